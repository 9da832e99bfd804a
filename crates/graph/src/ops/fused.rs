//! The fused operations as methods. Formulas, fallbacks and kernels are in the folders under `fused/`.

use crate::error::{Error, Result};
use crate::fused::dequant_matmul::QuantFormat;
use crate::graph::{AdamWOptions, Approximate, AttentionOptions, CrossEntropyOptions, Operation};
use crate::lazy_tensor::LazyTensor;

/// The inputs of an attention; which optional ones are given decides what it computes.
#[derive(Debug, Clone, Copy)]
pub struct AttentionInputs<'a> {
    /// Queries `(batch, seq, heads, head_dim)`.
    pub q: &'a LazyTensor,
    /// Keys `(batch, keys, kv_heads, head_dim)`; `heads` is a multiple of `kv_heads`.
    pub k: &'a LazyTensor,
    /// Values, shaped like the keys.
    pub v: &'a LazyTensor,
    /// Absolute position of the first query (u32, shape `(1)`) when keys come from a cache that starts at position 0.
    pub offset: Option<&'a LazyTensor>,
    /// Segment ids of queries `(batch, seq)` and keys `(batch, keys)`, u32.
    pub segments: Option<(&'a LazyTensor, &'a LazyTensor)>,
}

/// A parameter and its optimizer state after an update.
#[derive(Debug, Clone)]
pub struct AdamWState {
    /// The parameter.
    pub parameter: LazyTensor,
    /// The first moment.
    pub first: LazyTensor,
    /// The second moment.
    pub second: LazyTensor,
}

impl LazyTensor {
    /// Softmax along `dim`.
    ///
    /// # Errors
    /// When the dimension does not exist or the dtype is not a float.
    pub fn softmax(&self, dim: usize) -> Result<Self> {
        Self::record_one(Operation::Softmax { dim }, &[self])
    }

    /// `x / sqrt(mean(x^2) + eps)` along the last dimension, without a weight.
    ///
    /// # Errors
    /// When there is no last dimension or the dtype is not a float.
    pub fn rms_norm(&self, eps: f32) -> Result<Self> {
        Self::record_one(Operation::RMSNorm { eps }, &[self])
    }

    /// RMS norm along the last dimension, times `weight (last)`.
    ///
    /// # Errors
    /// See [`Self::rms_norm`]; also when the weight does not fit.
    pub fn rms_norm_weighted(&self, weight: &Self, eps: f32) -> Result<Self> {
        Self::record_one(Operation::RMSNorm { eps }, &[self, weight])
    }

    /// Layer norm along the last dimension with `weight (last)` and `bias (last)`.
    ///
    /// # Errors
    /// When there is no last dimension or the shapes are incompatible.
    pub fn layer_norm(&self, weight: &Self, bias: &Self, eps: f32) -> Result<Self> {
        Self::record_one(Operation::LayerNorm { eps }, &[self, weight, bias])
    }

    /// Rotary position embedding of `(batch, seq, heads, head_dim)` with `cos`, `sin` `(batch or 1, seq, r)`.
    ///
    /// # Errors
    /// When the shapes are incompatible.
    pub fn rope(&self, cos: &Self, sin: &Self, interleaved: bool) -> Result<Self> {
        Self::record_one(Operation::Rope { interleaved }, &[self, cos, sin])
    }

    /// `silu(self) * up`
    ///
    /// # Errors
    /// When shapes or dtypes differ.
    pub fn swiglu(&self, up: &Self) -> Result<Self> {
        Self::record_one(Operation::SwiGLU, &[self, up])
    }

    /// GELU in the given form.
    ///
    /// # Errors
    /// When the dtype is not a float.
    pub fn gelu(&self, approximate: Approximate) -> Result<Self> {
        Self::record_one(Operation::GELU { approximate }, &[self])
    }

    /// The low-rank term of `LoRA`: `(x a b) * scale` with `a (in, rank)` and `b (rank, out)`.
    ///
    /// # Errors
    /// When the shapes are incompatible.
    pub fn lora_fused(&self, a: &Self, b: &Self, scale: f32) -> Result<Self> {
        Self::record_one(Operation::LoRA { scale }, &[self, a, b])
    }

    /// `self W^T` with quantised weights: quants u8 `(out, in)` (`q8_0`) or `(out, in / 2)` (`q4_0`), scales f16
    /// `(out, in / 32)`, as [`QuantFormat::quantize`] makes them from the rows of `W`. They have no gradient.
    ///
    /// # Errors
    /// When the shapes are incompatible.
    pub fn dequant_matmul(&self, quants: &Self, scales: &Self, format: QuantFormat) -> Result<Self> {
        let transposed = false;
        Self::record_one(Operation::DequantMatmul { format, transposed }, &[self, quants, scales])
    }

    /// Scaled dot-product attention, `(batch, seq, heads, head_dim)`.
    ///
    /// `options.offset` and `options.segments` are set from what `inputs` holds.
    ///
    /// # Errors
    /// When the shapes are incompatible.
    pub fn attention(inputs: &AttentionInputs<'_>, options: AttentionOptions) -> Result<Self> {
        let options = AttentionOptions {
            offset: inputs.offset.is_some(),
            segments: inputs.segments.is_some(),
            ..options
        };
        let mut tensors = vec![inputs.q, inputs.k, inputs.v];
        tensors.extend(inputs.offset);
        tensors.extend(inputs.segments.into_iter().flat_map(|(q, k)| [q, k]));
        Self::record_one(Operation::Attention(options), &tensors)
    }

    /// Cross-entropy of a linear head, per row: `hidden (n, d)`, `weight (vocab, d)`, `targets i64 (n)` -> `(n)`.
    /// The logits are never materialised as a whole.
    ///
    /// # Errors
    /// When the shapes are incompatible; a target outside the vocabulary is reported at run time.
    pub fn cross_entropy(&self, weight: &Self, targets: &Self, options: CrossEntropyOptions) -> Result<Self> {
        Self::record_one(Operation::CrossEntropy(options), &[self, weight, targets])
    }

    /// One `AdamW` update of this parameter. `rates (4)` holds the learning rate, the corrections `1 - beta1^t` and
    /// `1 - beta2^t`, and a factor on the gradient: 1, or that of gradient clipping.
    ///
    /// # Errors
    /// When the shapes or dtypes are incompatible.
    pub fn adamw(
        &self,
        gradient: &Self,
        first: &Self,
        second: &Self,
        rates: &Self,
        options: AdamWOptions,
    ) -> Result<AdamWState> {
        let mut outputs = Self::record(Operation::AdamW(options), &[self, gradient, first, second, rates])?.into_iter();
        let mut next = || {
            outputs
                .next()
                .ok_or_else(|| Error::internal("AdamW has fewer than three outputs"))
        };
        Ok(AdamWState {
            parameter: next()?,
            first: next()?,
            second: next()?,
        })
    }
}
