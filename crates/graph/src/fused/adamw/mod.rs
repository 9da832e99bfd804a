//! One `AdamW` step (Loshchilov and Hutter 2019) of one tensor:
//! `m' = b1 m + (1 - b1) g`, `v' = b2 v + (1 - b2) g^2`, `p' = p (1 - lr wd) - lr / c1 * m' / (sqrt(v') / sqrt(c2) + eps)`
//! with `g = factor * gradient`. `rates (4)` holds what changes from step to step: lr, `c1 = 1 - b1^t`, `c2 = 1 -
//! b2^t`, and the factor (of clipping, or of a mean). Outputs: p', m', v'; kernels update the three buffers in place if
//! they are not shared.

use crate::error::Result;
use crate::graph::AdamWOptions;
use crate::lazy_tensor::LazyTensor;

/// The definition in primitives.
///
/// # Errors
/// When the shapes are incompatible.
pub fn fallback(
    p: &LazyTensor,
    g: &LazyTensor,
    m: &LazyTensor,
    v: &LazyTensor,
    rates: &LazyTensor,
    options: &AdamWOptions,
) -> Result<Vec<LazyTensor>> {
    let rate = |i: usize| rates.slice(0, i, i + 1)?.reshape(&[]);
    let times = |x: &LazyTensor, value: f64| x.mul(&x.scalar_like(value)?);
    let (lr, c1, c2) = (rate(0)?, rate(1)?, rate(2)?);
    let g = g.mul(&rate(3)?)?;
    let m = times(m, options.beta1)?.add(&times(&g, 1.0 - options.beta1)?)?;
    let v = times(v, options.beta2)?.add(&times(&g.mul(&g)?, 1.0 - options.beta2)?)?;
    let denominator = v.sqrt()?.div(&c2.sqrt()?)?;
    let denominator = denominator.add(&denominator.scalar_like(options.eps)?)?;
    let kept = lr.scalar_like(1.0)?.sub(&times(&lr, options.weight_decay)?)?;
    let p = p.mul(&kept)?.sub(&m.div(&denominator)?.mul(&lr.div(&c1)?)?)?;
    Ok(vec![p, m, v])
}
