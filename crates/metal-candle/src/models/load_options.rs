//! Options for the weights of a model that is loaded or created.

use candle_core::DType;
use metal_candle_graph::QuantFormat;

/// Dtype and, if weights are to be quantised, the format.
///
/// ```
/// use candle_core::DType;
/// use metal_candle::models::{LoadOptions, QuantFormat};
///
/// let options = LoadOptions::new(DType::BF16).quantized(QuantFormat::Q4_0);
/// assert_eq!(options.quantization, Some(QuantFormat::Q4_0));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct LoadOptions {
    /// Dtype of activations, embedding, norms and biases, and of linear layers that are not quantised: f32, f16, bf16 or
    /// f64.
    pub dtype: DType,
    /// Quantisation format of the linear layers and of the output head. A layer whose input size is not a multiple of
    /// 32 keeps `dtype`. With tied embeddings the head is a quantised copy, and the embedding keeps `dtype`.
    pub quantization: Option<QuantFormat>,
}

impl LoadOptions {
    /// Everything in `dtype`.
    #[must_use]
    pub fn new(dtype: DType) -> Self {
        Self {
            dtype,
            quantization: None,
        }
    }

    /// With linear layers and head in `format`.
    #[must_use]
    pub fn quantized(self, format: impl Into<Option<QuantFormat>>) -> Self {
        Self {
            quantization: format.into(),
            ..self
        }
    }
}
