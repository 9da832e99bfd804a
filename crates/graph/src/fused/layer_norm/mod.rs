//! `layer_norm(x) = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias` along the last dimension (Ba et al. 2016),
//! with the biased variance. Weight and bias are optional together.

use super::accumulate;
use crate::error::Result;
use crate::lazy_tensor::LazyTensor;

/// The definition in primitives; `affine` is empty or weight and bias.
///
/// # Errors
/// When `x` is a scalar.
pub fn fallback(x: &LazyTensor, affine: &[LazyTensor], eps: f32) -> Result<LazyTensor> {
    let (wide, last) = (accumulate(x)?, x.rank() - 1);
    let centred = wide.sub(&wide.mean_keepdim(&[last])?)?;
    let variance = centred.mul(&centred)?.mean_keepdim(&[last])?;
    let normed = centred.mul(&variance.add_scalar(eps)?.rsqrt()?)?;
    match affine {
        [weight, bias] => normed
            .mul(&accumulate(weight)?)?
            .add(&accumulate(bias)?)?
            .cast(x.dtype()),
        _ => normed.cast(x.dtype()),
    }
}
