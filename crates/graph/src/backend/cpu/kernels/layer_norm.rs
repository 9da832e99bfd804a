//! Layer normalisation of rows: `y = (x - mean) / sqrt(variance + eps) * weight + bias`, and its gradients.

use super::float::{Float, Real};
use super::inout::InOut;
use super::par::{Shared, for_rows, load, simd, sum1, sum2, with_scratch};
use super::row::{RowSums, map_row, rows, widened};

/// Normalises each row of x (rows, n), n the length of a row; `weight` and `bias` are (n). May be in place.
///
/// # Panics
/// If the sizes are inconsistent.
pub fn layer_norm<T: Float>(x: &InOut<'_, T>, n: usize, weight: Option<&[T]>, bias: Option<&[T]>, eps: f64) {
    assert!(
        [weight, bias].iter().flatten().all(|w| w.len() == n),
        "layer_norm: weight or bias of the wrong length"
    );
    let (weight, bias) = (widened(weight, n, T::Acc::ONE), widened(bias, n, T::Acc::ZERO));
    let (src, dst) = (Shared::raw(x.src().cast_mut()), Shared::raw(x.dst()));
    for_rows(rows(x.len(), n), 6 * n, |range| {
        simd(
            #[inline(always)]
            || {
                for at in range.map(|row| row * n) {
                    // SAFETY: the row is in bounds of both buffers and belongs to this task.
                    unsafe {
                        let from: *const T = src.at(at);
                        let (mean, r) = moments(std::slice::from_raw_parts(from, n), eps);
                        map_row(
                            (from, dst.at(at)),
                            n,
                            [&weight, &bias],
                            #[inline(always)]
                            |x, [w, b]| (x - mean) * r * w + b,
                        );
                    }
                }
            },
        );
    });
}

/// Mean, and 1 / sqrt(variance + eps), of a row.
#[inline(always)]
fn moments<T: Float>(row: &[T], eps: f64) -> (T::Acc, T::Acc) {
    let n = T::Acc::of(row.len() as f64);
    let mean = sum1(row, |x: T| x.to_acc()) / n;
    let square = |x: T| (x.to_acc() - mean) * (x.to_acc() - mean);
    let variance = sum1(row, square) / n;
    (mean, T::Acc::ONE / (variance + T::Acc::of(eps)).sqrt())
}

/// The gradients of weight and bias, (n) each, if requested.
#[derive(Default)]
pub struct ScaleGradients<'a, T> {
    /// Sum over rows of `g * (x - mean) * r`.
    pub weight: Option<&'a mut [T]>,
    /// Sum over rows of `g`.
    pub bias: Option<&'a mut [T]>,
}

/// The gradients of [`layer_norm`] from that of its result, `g` (rows, n).
///
/// With r = 1 / sqrt(variance + eps), z = (x - mean) * r and h = g * weight:
/// `dx = r * (h - mean(h) - z * mean(h * z))`.
///
/// # Panics
/// If the sizes are inconsistent.
pub fn layer_norm_vjp<T: Float>(
    x: &[T],
    n: usize,
    weight: Option<&[T]>,
    eps: f64,
    g: &[T],
    dx: &mut [T],
    scale: ScaleGradients<'_, T>,
) {
    assert!(
        weight.is_none_or(|w| w.len() == n),
        "layer_norm: the weight does not have the length of a row"
    );
    assert_eq!(
        [g.len(), dx.len()],
        [x.len(); 2],
        "layer_norm: gradient of the wrong size"
    );
    let weight = widened(weight, n, T::Acc::ONE);
    let out = Shared::new(dx);
    let wanted = scale.weight.is_some() || scale.bias.is_some();
    let mut sums = RowSums::new(rows(x.len(), n), n, if wanted { 2 } else { 0 });
    sums.run(12 * n, |range, sum| {
        with_scratch(2 * n, |scratch| {
            let (z, h) = scratch.split_at_mut(n);
            simd(
                #[inline(always)]
                || {
                    for at in range.map(|row| row * n) {
                        let (mean, r) = moments(&x[at..][..n], eps);
                        // SAFETY: the row is inside x and g, and that of dx belongs to this task.
                        let dx = unsafe {
                            load(x[at..][..n].as_ptr(), z);
                            load(g[at..][..n].as_ptr(), h);
                            out.slice(at, n)
                        };
                        for z in &mut *z {
                            *z = (*z - mean) * r;
                        }
                        row_vjp(r, &weight, z, h, dx, sum);
                    }
                },
            );
        });
    });
    if let Some(out) = scale.weight {
        sums.finish(0, out);
    }
    if let Some(out) = scale.bias {
        sums.finish(1, out);
    }
}

/// One row; `g` is overwritten. The gradients of weight and bias are added to `sums` (2, n), unless it is empty.
#[inline(always)]
fn row_vjp<T: Float>(r: T::Acc, weight: &[T::Acc], z: &[T::Acc], g: &mut [T::Acc], dx: &mut [T], sums: &mut [T::Acc]) {
    let n = T::Acc::of(z.len() as f64);
    let (weight_sum, bias_sum) = sums.split_at_mut(sums.len() / 2);
    for (sum, (g, z)) in weight_sum.iter_mut().zip(g.iter().zip(z)) {
        *sum += *g * *z;
    }
    for (sum, g) in bias_sum.iter_mut().zip(&*g) {
        *sum += *g;
    }
    for (g, w) in g.iter_mut().zip(weight) {
        *g = *g * *w;
    }
    let (mean, along) = (sum1(g, |h| h) / n, sum2(z, g, |z, h| z * h) / n);
    for (dx, (h, z)) in dx.iter_mut().zip(g.iter().zip(z)) {
        *dx = T::from_acc(r * (*h - mean - *z * along));
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{affordable, close, differences, each_float, epsilon, noise, noise_as, widen};
    use super::*;

    const EPS: f64 = 1e-3;

    fn naive(x: &[f64], w: &[f64], b: &[f64]) -> Vec<f64> {
        let n = w.len() as f64;
        let normalise = |row: &[f64]| {
            let mean = row.iter().sum::<f64>() / n;
            let r = 1.0 / (row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n + EPS).sqrt();
            row.iter()
                .zip(w)
                .zip(b)
                .map(|((x, w), b)| (x - mean) * r * w + b)
                .collect::<Vec<_>>()
        };
        x.chunks(w.len().max(1)).flat_map(normalise).collect()
    }

    fn forward<T: Float>() {
        for (rows, n) in [(1, 1), (3, 31), (5, 257), (200, 700), (0, 4), (0, 0)] {
            if !affordable(rows * n) {
                continue;
            }
            let (mut x, x64) = noise_as::<T>(1, rows * n);
            let ((w, w64), (b, b64)) = (noise_as::<T>(2, n), noise_as::<T>(3, n));
            let mut y = x.clone();
            layer_norm(&InOut::new(&x, &mut y), n, Some(&w), Some(&b), EPS);
            close(&widen(&y), &naive(&x64, &w64, &b64), 6.0 * epsilon::<T>());
            layer_norm(&InOut::new(&x, &mut y), n, None, None, EPS);
            close(
                &widen(&y),
                &naive(&x64, &vec![1.0; n], &vec![0.0; n]),
                6.0 * epsilon::<T>(),
            );
            layer_norm(&InOut::in_place(&mut x), n, None, None, EPS);
            assert!(x == y);
        }
    }

    #[test]
    fn forward_agrees_with_the_definition() {
        each_float!(forward);
    }

    #[test]
    fn gradients_agree_with_differences() {
        for (rows, n) in [(1, 1), (3, 7), (40, 33)] {
            if !affordable(rows * n * rows * n) {
                continue;
            }
            let (x, w, b, g) = (noise(1, rows * n), noise(2, n), noise(3, n), noise(4, rows * n));
            let loss = |x: &[f64], w: &[f64], b: &[f64]| naive(x, w, b).iter().zip(&g).map(|(y, g)| y * g).sum::<f64>();
            let (mut dx, mut dw, mut db) = (vec![0.0; rows * n], vec![0.0; n], vec![0.0; n]);
            let scale = ScaleGradients {
                weight: Some(&mut dw),
                bias: Some(&mut db),
            };
            layer_norm_vjp(&x, n, Some(&w), EPS, &g, &mut dx, scale);
            close(&dx, &differences(&x, |x| loss(x, &w, &b)), 1e-6);
            close(&dw, &differences(&w, |w| loss(&x, w, &b)), 1e-6);
            close(&db, &differences(&b, |b| loss(&x, &w, b)), 1e-6);
            db.fill(0.0);
            let scale = ScaleGradients {
                weight: None,
                bias: Some(&mut db),
            };
            layer_norm_vjp(&x, n, None, EPS, &g, &mut dx, scale);
            let ones = vec![1.0; n];
            close(&dx, &differences(&x, |x| loss(x, &ones, &b)), 1e-6);
            close(&db, &differences(&b, |b| loss(&x, &ones, b)), 1e-6);
            layer_norm_vjp(&x, n, None, EPS, &g, &mut dx, ScaleGradients::default());
            close(&dx, &differences(&x, |x| loss(x, &ones, &b)), 1e-6);
        }
    }

    fn narrow<T: Float>() {
        let (rows, n) = if cfg!(miri) { (20, 30) } else { (300, 300) };
        let ((x, x64), (w, w64), (g, g64)) = (
            noise_as::<T>(1, rows * n),
            noise_as::<T>(2, n),
            noise_as::<T>(3, rows * n),
        );
        let (mut dx, mut dw) = (x.clone(), w.clone());
        let (mut dx64, mut dw64) = (x64.clone(), w64.clone());
        let scale = ScaleGradients {
            weight: Some(&mut dw[..]),
            bias: None,
        };
        layer_norm_vjp(&x, n, Some(&w), EPS, &g, &mut dx, scale);
        let scale = ScaleGradients {
            weight: Some(&mut dw64[..]),
            bias: None,
        };
        layer_norm_vjp(&x64, n, Some(&w64), EPS, &g64, &mut dx64, scale);
        close(&widen(&dx), &dx64, 4.0 * epsilon::<T>());
        close(&widen(&dw), &dw64, 2.0 * epsilon::<T>() + 1e-5);
    }

    #[test]
    fn narrow_gradients_agree_with_f64() {
        each_float!(narrow);
    }
}
