//! Softmax along one dimension of (outer, n, inner), `y = exp(x - max) / sum(exp(x - max))`, and its gradient.

use super::float::{Float, Real};
use super::inout::InOut;
use super::par::{BLOCK, Shared, for_rows, load, map_sum, max_nan, max1, simd, store, sum2, with_scratch};
use super::reduce::ReduceShape;

/// Softmax of x along its middle dimension. May be in place. A line of only minus infinity gives NaN.
///
/// # Panics
/// If the sizes are inconsistent.
pub fn softmax<T: Float>(shape: ReduceShape, x: &InOut<'_, T>) {
    let ReduceShape { outer, n, inner } = shape;
    assert_eq!(x.len(), outer * n * inner, "softmax: x has the wrong size");
    let (src, dst) = (Shared::raw(x.src().cast_mut()), Shared::raw(x.dst()));
    if inner == 1 {
        for_rows(outer, 12 * n, |range| {
            with_scratch(n, |row| {
                simd(
                    #[inline(always)]
                    || {
                        for at in range.map(|i| i * n) {
                            // SAFETY: the row is in bounds of both buffers and belongs to this task.
                            unsafe {
                                normalise(src.at(at), dst.at(at), row);
                            }
                        }
                    },
                );
            });
        });
    } else {
        for_columns(shape, 24, |start, len| {
            simd(
                #[inline(always)]
                // SAFETY: the columns are in bounds of both buffers and belong to this task.
                || unsafe { columns(src.at(start), dst.at(start), (n, inner), len) },
            );
        });
    }
}

/// One row; `row` is scratch of its length.
///
/// # Safety
/// `src` is readable and `dst` writable for the row; they are equal or disjoint.
#[inline(always)]
unsafe fn normalise<T: Float>(src: *const T, dst: *mut T, row: &mut [T::Acc]) {
    let scale = {
        // SAFETY: guaranteed by the caller.
        let x = unsafe { std::slice::from_raw_parts(src, row.len()) };
        let max = max1(x, T::to_acc);
        T::Acc::ONE / map_sum(x, row, |x| (x.to_acc() - max).exp_below())
    };
    // SAFETY: as above; the source is not read any more.
    let y = unsafe { std::slice::from_raw_parts_mut(dst, row.len()) };
    for (y, &x) in y.iter_mut().zip(&*row) {
        *y = T::from_acc(x * scale);
    }
}

/// Runs `f(first element, count)` over blocks of columns.
fn for_columns(ReduceShape { outer, n, inner }: ReduceShape, work: usize, f: impl Fn(usize, usize) + Sync) {
    let blocks = inner.div_ceil(BLOCK);
    for_rows(outer * blocks, work * n * BLOCK.min(inner), |range| {
        for at in range {
            let start = at % blocks * BLOCK;
            f(at / blocks * n * inner + start, BLOCK.min(inner - start));
        }
    });
}

/// # Safety
/// `src` and `dst` are valid for `len` columns of `n` rows, `inner` apart, and equal or disjoint.
#[inline(always)]
unsafe fn columns<T: Float>(src: *const T, dst: *mut T, (n, inner): (usize, usize), len: usize) {
    let zero = T::Acc::ZERO;
    let (mut row, mut max, mut sum) = ([zero; BLOCK], [T::Acc::NEG_INFINITY; BLOCK], [zero; BLOCK]);
    let (row, max, sum) = (&mut row[..len], &mut max[..len], &mut sum[..len]);
    for i in 0..n {
        // SAFETY: row i is in bounds.
        unsafe { load(src.add(i * inner), row) };
        for (max, x) in max.iter_mut().zip(&*row) {
            *max = max_nan(*max, *x);
        }
    }
    for i in 0..n {
        // SAFETY: row i is in bounds.
        unsafe { load(src.add(i * inner), row) };
        for j in 0..len {
            sum[j] += (row[j] - max[j]).exp_below();
        }
    }
    for i in 0..n {
        // SAFETY: row i is in bounds, and not read again.
        unsafe {
            load(src.add(i * inner), row);
            for j in 0..len {
                row[j] = (row[j] - max[j]).exp_below() / sum[j];
            }
            store(row, dst.add(i * inner));
        }
    }
}

/// The gradient of [`softmax`] from its result `y` and the gradient of the result, `g`: `dx = y * (g - sum(g * y))`.
///
/// # Panics
/// If the sizes are inconsistent.
pub fn softmax_vjp<T: Float>(shape: ReduceShape, y: &[T], g: &[T], dx: &mut [T]) {
    let ReduceShape { outer, n, inner } = shape;
    assert_eq!(
        [y.len(), g.len(), dx.len()],
        [outer * n * inner; 3],
        "softmax: sizes differ"
    );
    let out = Shared::new(dx);
    if inner == 1 {
        for_rows(outer, 4 * n, |range| {
            simd(
                #[inline(always)]
                || {
                    for at in range.map(|i| i * n) {
                        let (y, g) = (&y[at..][..n], &g[at..][..n]);
                        let dot = sum2(y, g, |y, g| y.to_acc() * g.to_acc());
                        // SAFETY: the row belongs to this task.
                        let dx = unsafe { out.slice(at, n) };
                        for (dx, (y, g)) in dx.iter_mut().zip(y.iter().zip(g)) {
                            *dx = T::from_acc(y.to_acc() * (g.to_acc() - dot));
                        }
                    }
                },
            );
        });
    } else {
        for_columns(shape, 4, |start, len| {
            simd(
                #[inline(always)]
                || {
                    let mut dot = [T::Acc::ZERO; BLOCK];
                    let dot = &mut dot[..len];
                    for at in (0..n).map(|i| start + i * inner) {
                        for (dot, (y, g)) in dot.iter_mut().zip(y[at..][..len].iter().zip(&g[at..][..len])) {
                            *dot += y.to_acc() * g.to_acc();
                        }
                    }
                    for at in (0..n).map(|i| start + i * inner) {
                        let (y, g) = (&y[at..][..len], &g[at..][..len]);
                        // SAFETY: the columns belong to this task.
                        let dx = unsafe { out.slice(at, len) };
                        for j in 0..len {
                            dx[j] = T::from_acc(y[j].to_acc() * (g[j].to_acc() - dot[j]));
                        }
                    }
                },
            );
        });
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{affordable, cast, close, differences, each_float, epsilon, noise, noise_as, widen};
    use super::*;

    const SHAPES: [(usize, usize, usize); 8] = [
        (1, 1, 1),
        (3, 31, 1),
        (5, 257, 1),
        (300, 300, 1),
        (2, 3, 4),
        (1, 7, 513),
        (0, 3, 2),
        (2, 0, 1),
    ];

    fn naive((outer, n, inner): (usize, usize, usize), x: &[f64]) -> Vec<f64> {
        let mut y = x.to_vec();
        for at in 0..outer * inner {
            let place = |i: usize| (at / inner * n + i) * inner + at % inner;
            let sum: f64 = (0..n).map(|i| x[place(i)].exp()).sum();
            (0..n).for_each(|i| y[place(i)] = x[place(i)].exp() / sum);
        }
        y
    }

    fn forward<T: Float>() {
        for (outer, n, inner) in SHAPES {
            if !affordable(outer * n * inner) {
                continue;
            }
            let x: Vec<f64> = noise(1, outer * n * inner).iter().map(|x| x * 20.0).collect();
            let mut x = cast::<T>(&x);
            let x64 = widen(&x);
            let mut y = x.clone();
            let shape = ReduceShape { outer, n, inner };
            softmax(shape, &InOut::new(&x, &mut y));
            close(
                &widen(&y),
                &naive((outer, n, inner), &x64),
                epsilon::<T>() + 4.0 * epsilon::<T::Acc>(),
            );
            softmax(shape, &InOut::in_place(&mut x));
            assert!(x == y);
        }
    }

    #[test]
    fn forward_agrees_with_the_definition() {
        each_float!(forward);
    }

    #[test]
    fn large_masked_and_invalid_numbers() {
        let inf = f32::INFINITY;
        // The same line as a row, and as each of two columns.
        let run = |line: [f32; 3]| {
            let mut row = line;
            softmax(
                ReduceShape {
                    outer: 1,
                    n: 3,
                    inner: 1,
                },
                &InOut::in_place(&mut row),
            );
            let mut columns = line.map(|x| [x; 2]);
            softmax(
                ReduceShape {
                    outer: 1,
                    n: 3,
                    inner: 2,
                },
                &InOut::in_place(columns.as_flattened_mut()),
            );
            [row, columns.map(|pair| pair[0]), columns.map(|pair| pair[1])]
        };
        assert_eq!(run([1e30, 1e30, -inf]), [[0.5, 0.5, 0.0]; 3]);
        assert!(run([-inf; 3]).as_flattened().iter().all(|x| x.is_nan()));
        assert!(run([0.0, f32::NAN, 1.0]).as_flattened().iter().all(|x| x.is_nan()));
    }

    #[test]
    fn gradients_agree_with_differences() {
        for (outer, n, inner) in [(1, 1, 1), (3, 31, 1), (2, 5, 4)] {
            let (x, g) = (noise(1, outer * n * inner), noise(2, outer * n * inner));
            let shape = (outer, n, inner);
            let mut dx = vec![0.0; x.len()];
            softmax_vjp(ReduceShape { outer, n, inner }, &naive(shape, &x), &g, &mut dx);
            let loss = |x: &[f64]| naive(shape, x).iter().zip(&g).map(|(y, g)| y * g).sum::<f64>();
            close(&dx, &differences(&x, loss), 1e-6);
        }
    }

    fn narrow<T: Float>() {
        for (outer, n, inner) in SHAPES {
            if !affordable(outer * n * inner) {
                continue;
            }
            let shape = ReduceShape { outer, n, inner };
            let ((y, y64), (g, g64)) = (noise_as::<T>(1, outer * n * inner), noise_as::<T>(2, outer * n * inner));
            let (mut dx, mut dx64) = (y.clone(), y64.clone());
            softmax_vjp(shape, &y, &g, &mut dx);
            softmax_vjp(shape, &y64, &g64, &mut dx64);
            close(&widen(&dx), &dx64, 2.0 * epsilon::<T>() + 10.0 * epsilon::<T::Acc>());
        }
    }

    #[test]
    fn narrow_gradients_agree_with_f64() {
        each_float!(narrow);
    }
}
