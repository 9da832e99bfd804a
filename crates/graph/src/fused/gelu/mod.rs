//! `gelu(x) = x/2 (1 + erf(x / sqrt(2)))`, or `x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))` (Hendrycks and Gimpel 2016).

use super::accumulate;
use crate::error::Result;
use crate::graph::Approximate;
use crate::lazy_tensor::LazyTensor;

/// The definition in primitives.
///
/// # Errors
/// When the dtype is not a float.
pub fn fallback(x: &LazyTensor, approximate: Approximate) -> Result<LazyTensor> {
    let wide = accumulate(x)?;
    let gate = match approximate {
        Approximate::None => wide.mul(&wide.scalar_like(std::f64::consts::FRAC_1_SQRT_2)?)?.erf()?,
        Approximate::Tanh => {
            let cube = wide.mul(&wide)?.mul(&wide)?;
            let inner = wide.add(&cube.mul(&cube.scalar_like(0.044_715)?)?)?;
            inner
                .mul(&inner.scalar_like((2.0 / std::f64::consts::PI).sqrt())?)?
                .tanh()?
        }
    };
    wide.mul_scalar(0.5)?.mul(&gate.add_scalar(1.0)?)?.cast(x.dtype())
}
