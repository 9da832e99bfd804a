//! Root-mean-square normalisation of rows: `y = x / sqrt(mean(x^2) + eps) * weight`, and its gradient.

use super::float::{Float, Real};
use super::inout::InOut;
use super::par::{Shared, for_rows, load, simd, sum1, sum2, with_scratch};
use super::row::{RowSums, map_row, rows, widened};

/// Normalises each row of x (rows, n), n the length of a row; `weight` is (n). May be in place.
///
/// # Panics
/// If the sizes are inconsistent.
pub fn rms_norm<T: Float>(x: &InOut<'_, T>, n: usize, weight: Option<&[T]>, eps: f64) {
    let rows = check(x.len(), n, weight);
    let weight = widened(weight, n, T::Acc::ONE);
    let (src, dst) = (Shared::raw(x.src().cast_mut()), Shared::raw(x.dst()));
    for_rows(rows, 4 * n, |range| {
        simd(
            #[inline(always)]
            || {
                for row in range {
                    // SAFETY: the row is in bounds of both buffers and belongs to this task.
                    unsafe {
                        let from: *const T = src.at(row * n);
                        let r = reciprocal::<T>(from, n, eps);
                        map_row(
                            (from, dst.at(row * n)),
                            n,
                            [&weight],
                            #[inline(always)]
                            |x, [w]| x * r * w,
                        );
                    }
                }
            },
        );
    });
}

fn check<T>(len: usize, n: usize, weight: Option<&[T]>) -> usize {
    assert!(
        weight.is_none_or(|w| w.len() == n),
        "rms_norm: the weight does not have the length of a row"
    );
    rows(len, n)
}

/// 1 / sqrt(mean(x^2) + eps)
///
/// # Safety
/// `x` is readable for `n` elements and not written meanwhile.
#[inline(always)]
unsafe fn reciprocal<T: Float>(x: *const T, n: usize, eps: f64) -> T::Acc {
    // SAFETY: guaranteed by the caller.
    let row = unsafe { std::slice::from_raw_parts(x, n) };
    let sum = sum1(
        row,
        #[inline(always)]
        |x| x.to_acc() * x.to_acc(),
    );
    let mean = sum / T::Acc::of(n as f64);
    T::Acc::ONE / (mean + T::Acc::of(eps)).sqrt()
}

/// The gradients of [`rms_norm`] from that of its result, `g` (rows, n).
///
/// With r = 1 / sqrt(mean(x^2) + eps) and h = g * weight: `dx = r * (h - x * r^2 * mean(h * x))`, and if requested
/// `dweight = sum over rows of g * x * r`.
///
/// # Panics
/// If the sizes are inconsistent.
pub fn rms_norm_vjp<T: Float>(
    x: &[T],
    n: usize,
    weight: Option<&[T]>,
    eps: f64,
    g: &[T],
    dx: &mut [T],
    dweight: Option<&mut [T]>,
) {
    let rows = check(x.len(), n, weight);
    assert!(
        g.len() == x.len() && dx.len() == x.len(),
        "rms_norm: gradient of the wrong size"
    );
    let weight = widened(weight, n, T::Acc::ONE);
    let out = Shared::new(dx);
    let mut sums = RowSums::new(rows, n, usize::from(dweight.is_some()));
    sums.run(10 * n, |range, sum| {
        with_scratch(2 * n, |scratch| {
            let (wide_x, wide_g) = scratch.split_at_mut(n);
            simd(
                #[inline(always)]
                || {
                    for at in range.map(|row| row * n) {
                        // SAFETY: the row is inside x and g, and that of dx belongs to this task.
                        let dx = unsafe {
                            load(x[at..][..n].as_ptr(), wide_x);
                            load(g[at..][..n].as_ptr(), wide_g);
                            out.slice(at, n)
                        };
                        // SAFETY: the row is in bounds of x.
                        let r = unsafe { reciprocal(x[at..].as_ptr(), n, eps) };
                        row_vjp(r, &weight, wide_x, wide_g, dx, sum);
                    }
                },
            );
        });
    });
    if let Some(dweight) = dweight {
        sums.finish(0, dweight);
    }
}

/// One row; `g` is overwritten. The weight's gradient is added to `sum`, unless it is empty.
#[inline(always)]
fn row_vjp<T: Float>(r: T::Acc, weight: &[T::Acc], x: &[T::Acc], g: &mut [T::Acc], dx: &mut [T], sum: &mut [T::Acc]) {
    for (sum, (g, x)) in sum.iter_mut().zip(g.iter().zip(x)) {
        *sum += *g * *x * r;
    }
    for (g, w) in g.iter_mut().zip(weight) {
        *g = *g * *w;
    }
    let k = sum2(x, g, |x, h| x * h) * r * r / T::Acc::of(x.len() as f64);
    for (dx, (h, x)) in dx.iter_mut().zip(g.iter().zip(x)) {
        *dx = T::from_acc(r * (*h - *x * k));
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{affordable, close, differences, each_float, epsilon, noise, noise_as, widen};
    use super::*;

    fn naive(x: &[f64], w: &[f64], eps: f64) -> Vec<f64> {
        let n = w.len();
        let normalise = |row: &[f64]| {
            let r = 1.0 / (row.iter().map(|x| x * x).sum::<f64>() / n as f64 + eps).sqrt();
            row.iter().zip(w).map(|(x, w)| x * r * w).collect::<Vec<_>>()
        };
        x.chunks(n).flat_map(normalise).collect()
    }

    fn forward<T: Float>() {
        for (rows, n) in [(1, 1), (3, 31), (2, 32), (5, 257), (200, 700), (0, 4)] {
            if !affordable(rows * n) {
                continue;
            }
            let ((mut x, x64), (w, w64)) = (noise_as::<T>(1, rows * n), noise_as::<T>(2, n));
            let mut y = vec![T::default(); x.len()];
            rms_norm(&InOut::new(&x, &mut y), n, Some(&w), 1e-5);
            close(&widen(&y), &naive(&x64, &w64, 1e-5), 4.0 * epsilon::<T>());
            rms_norm(&InOut::new(&x, &mut y), n, None, 1e-5);
            close(&widen(&y), &naive(&x64, &vec![1.0; n], 1e-5), 4.0 * epsilon::<T>());
            rms_norm(&InOut::in_place(&mut x), n, None, 1e-5);
            assert!(x == y);
        }
    }

    #[test]
    fn forward_agrees_with_the_definition() {
        each_float!(forward);
    }

    #[test]
    fn gradients_agree_with_differences() {
        for (rows, n) in [(1, 1), (3, 7), (4, 40)] {
            if !affordable(rows * n * rows * n) {
                continue;
            }
            let (x, w, g) = (noise(1, rows * n), noise(2, n), noise(3, rows * n));
            let loss = |x: &[f64], w: &[f64]| naive(x, w, 1e-3).iter().zip(&g).map(|(y, g)| y * g).sum::<f64>();
            let (mut dx, mut dw) = (vec![0.0; rows * n], vec![0.0; n]);
            rms_norm_vjp(&x, n, Some(&w), 1e-3, &g, &mut dx, Some(&mut dw));
            close(&dx, &differences(&x, |x| loss(x, &w)), 1e-6);
            close(&dw, &differences(&w, |w| loss(&x, w)), 1e-6);
            let ones = vec![1.0; n];
            rms_norm_vjp(&x, n, None, 1e-3, &g, &mut dx, None);
            close(&dx, &differences(&x, |x| loss(x, &ones)), 1e-6);
        }
    }

    fn narrow<T: Float>() {
        let (rows, n) = if cfg!(miri) { (20, 30) } else { (300, 300) };
        let ((x, x64), (w, w64), (g, g64)) = (
            noise_as::<T>(1, rows * n),
            noise_as::<T>(2, n),
            noise_as::<T>(3, rows * n),
        );
        let (mut dx, mut dw) = (vec![T::default(); rows * n], vec![T::default(); n]);
        let (mut dx64, mut dw64) = (vec![0.0; rows * n], vec![0.0; n]);
        rms_norm_vjp(&x, n, Some(&w), 1e-5, &g, &mut dx, Some(&mut dw));
        rms_norm_vjp(&x64, n, Some(&w64), 1e-5, &g64, &mut dx64, Some(&mut dw64));
        close(&widen(&dx), &dx64, 4.0 * epsilon::<T>());
        close(&widen(&dw), &dw64, 2.0 * epsilon::<T>() + 1e-5);
    }

    #[test]
    fn narrow_gradients_agree_with_f64() {
        each_float!(narrow);
    }
}
