//! Rotary position embedding: angles from positions, computed once per pass for all layers.
//!
//! The angle of pair `i` at position `p` is `p * inverse_frequencies[i]`. Angles, sines and cosines are computed in f32
//! and only then cast: at position 30,000 the rounding error of a bf16 angle would be several full rotations.

use candle_core::{DType, Device};
use metal_candle_graph::{LazyTensor, Result};

/// The inverse frequencies of a model.
#[derive(Debug, Clone)]
pub struct Rotary {
    /// `(1, 1, head_dim / 2)`, f32.
    inverse_frequencies: LazyTensor,
    /// Scale of cosines and sines.
    attention_factor: f64,
}

/// Cosines and sines for the positions of a pass.
#[derive(Debug, Clone)]
pub struct Rotation {
    cos: LazyTensor,
    sin: LazyTensor,
}

impl Rotary {
    /// Creates a rotation from `head_dim / 2` angles per position, in radians.
    ///
    /// # Errors
    /// When the device cannot create the tensor.
    pub fn new(inverse_frequencies: &[f32], device: &Device) -> Result<Self> {
        let shape = [1, 1, inverse_frequencies.len()];
        Ok(Self {
            inverse_frequencies: LazyTensor::from_slice(inverse_frequencies, &shape, device)?,
            attention_factor: 1.0,
        })
    }

    /// Sets a scale of cosines and sines, as in `YaRN`; 1 is none.
    #[must_use]
    pub fn with_attention_factor(self, attention_factor: f64) -> Self {
        Self {
            attention_factor,
            ..self
        }
    }

    /// The rotation at `positions` `(batch or 1, seq)` for activations of `dtype`.
    ///
    /// # Errors
    /// When `positions` does not have two dimensions.
    pub fn at(&self, positions: &LazyTensor, dtype: DType) -> Result<Rotation> {
        let angles = positions
            .cast(DType::F32)?
            .unsqueeze(2)?
            .mul(&self.inverse_frequencies)?;
        let scaled = |x: LazyTensor| match self.attention_factor {
            1.0 => Ok(x),
            factor => x.mul_scalar(factor as f32),
        };
        Ok(Rotation {
            cos: scaled(angles.cos()?)?.cast(dtype)?,
            sin: scaled(angles.sin()?)?.cast(dtype)?,
        })
    }
}

impl Rotation {
    /// Rotates `x` `(batch, seq, heads, head_dim)`; pairs are `(i, i + head_dim / 2)`.
    ///
    /// # Errors
    /// When the shapes are incompatible.
    pub fn turn(&self, x: &LazyTensor) -> Result<LazyTensor> {
        x.rope(&self.cos, &self.sin, false)
    }
}
