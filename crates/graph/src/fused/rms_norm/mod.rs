//! `rms_norm(x) = x / sqrt(mean(x^2) + eps) * weight` along the last dimension (Zhang and Sennrich 2019).
//! The weight is optional.

use super::accumulate;
use crate::error::Result;
use crate::lazy_tensor::LazyTensor;

/// The definition in primitives.
///
/// # Errors
/// When `x` is a scalar.
pub fn fallback(x: &LazyTensor, weight: Option<&LazyTensor>, eps: f32) -> Result<LazyTensor> {
    let wide = accumulate(x)?;
    let scale = wide
        .mul(&wide)?
        .mean_keepdim(&[x.rank() - 1])?
        .add_scalar(eps)?
        .rsqrt()?;
    let normed = wide.mul(&scale)?;
    match weight {
        Some(weight) => normed.mul(&accumulate(weight)?)?.cast(x.dtype()),
        None => normed.cast(x.dtype()),
    }
}
