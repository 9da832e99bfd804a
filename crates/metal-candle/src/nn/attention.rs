//! Causal self-attention with grouped heads, rotary positions and, per layer, a sliding window.

use std::sync::Arc;

use metal_candle_graph::{AttentionInputs, AttentionOptions, LazyTensor, Result};

use super::{Pass, Projection, Rotation};

/// The attention of one decoder layer.
pub struct Attention {
    /// `hidden` to `heads * head_dim`.
    pub q_proj: Arc<dyn Projection>,
    /// `hidden` to `kv_heads * head_dim`.
    pub k_proj: Arc<dyn Projection>,
    /// `hidden` to `kv_heads * head_dim`.
    pub v_proj: Arc<dyn Projection>,
    /// `heads * head_dim` to `hidden`.
    pub o_proj: Arc<dyn Projection>,
    /// Head dimension.
    pub head_dim: usize,
    /// Sliding window in tokens, the current one included; `None` for full attention.
    pub window: Option<usize>,
    /// Index of the layer, for the cache.
    pub layer: usize,
}

impl Attention {
    /// `(batch, seq, hidden)` to the same shape.
    ///
    /// # Errors
    /// When the shapes are incompatible, or the cache has no such layer.
    pub fn forward(&self, x: &LazyTensor, rotation: &Rotation, pass: &mut Pass<'_>) -> Result<LazyTensor> {
        let q = rotation.turn(&self.heads(&*self.q_proj, x, pass)?)?;
        let k = rotation.turn(&self.heads(&*self.k_proj, x, pass)?)?;
        let v = self.heads(&*self.v_proj, x, pass)?;
        let (k, v, offset) = pass.extend(self.layer, k, v)?;
        let inputs = AttentionInputs {
            q: &q,
            k: &k,
            v: &v,
            offset: offset.as_ref(),
            segments: pass.segments().map(|segments| (segments, segments)),
        };
        let scale = (self.head_dim as f32).powf(-0.5);
        let (offset, segments) = (inputs.offset.is_some(), inputs.segments.is_some());
        let options = AttentionOptions {
            scale,
            causal: true,
            window: self.window,
            offset,
            segments,
        };
        let seen = LazyTensor::attention(&inputs, options)?;
        let [batch, seq, ..] = *seen.dims() else {
            return Ok(seen);
        };
        self.o_proj
            .forward(&seen.reshape(&[batch, seq, self.o_proj.in_features()])?, pass)
    }

    /// `(batch, seq, hidden)` to `(batch, seq, heads, head_dim)`.
    fn heads(&self, projection: &dyn Projection, x: &LazyTensor, pass: &Pass<'_>) -> Result<LazyTensor> {
        let y = projection.forward(x, pass)?;
        let mut shape = y.dims().to_vec();
        shape.pop();
        shape.extend([projection.out_features() / self.head_dim, self.head_dim]);
        y.reshape(&shape)
    }
}
