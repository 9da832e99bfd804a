//! Normalisation along the last dimension.

use metal_candle_graph::{LazyTensor, Result};

/// `x / sqrt(mean(x^2) + eps) * weight`, computed in f32.
#[derive(Debug, Clone)]
pub struct RmsNorm {
    weight: LazyTensor,
    eps: f32,
}

impl RmsNorm {
    /// Creates a norm from `weight` `(features)`.
    #[must_use]
    pub fn new(weight: LazyTensor, eps: f32) -> Self {
        Self { weight, eps }
    }

    /// `(.., features)` to the same shape.
    ///
    /// # Errors
    /// When the last dimension of `x` does not match the weight.
    pub fn forward(&self, x: &LazyTensor) -> Result<LazyTensor> {
        x.rms_norm_weighted(&self.weight, self.eps)
    }
}
