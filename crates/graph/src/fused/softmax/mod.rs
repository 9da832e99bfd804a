//! `softmax(x)_i = exp(x_i - max(x)) / sum_j exp(x_j - max(x))` along one dimension.
//! Vjp: `dx = y * (g - sum(g * y))`.

use super::accumulate;
use crate::error::Result;
use crate::lazy_tensor::LazyTensor;

/// The definition in primitives.
///
/// # Errors
/// When the dimension does not exist.
pub fn fallback(x: &LazyTensor, dim: usize) -> Result<LazyTensor> {
    let wide = accumulate(x)?;
    // The maximum cancels in the quotient, and so does its gradient.
    let powers = wide.sub(&wide.max_keepdim(&[dim])?.stop_gradient()?)?.exp()?;
    powers.div(&powers.sum_keepdim(&[dim])?)?.cast(x.dtype())
}
