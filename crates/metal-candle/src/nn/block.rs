//! One layer of a pre-norm decoder: attention and MLP each read a normalised copy and add to the residual stream.

use std::sync::Arc;

use metal_candle_graph::{LazyTensor, Result};

use super::{Attention, Mlp, Pass, Projection, RmsNorm, Rotation};

/// A decoder layer; fields have the names of checkpoints.
pub struct Block {
    /// Before attention.
    pub input_layernorm: RmsNorm,
    /// Attention.
    pub self_attn: Attention,
    /// Before the MLP.
    pub post_attention_layernorm: RmsNorm,
    /// MLP.
    pub mlp: Mlp,
}

impl Block {
    /// `(batch, seq, hidden)` to the same shape.
    ///
    /// # Errors
    /// When the shapes are incompatible.
    pub fn forward(&self, x: &LazyTensor, rotation: &Rotation, pass: &mut Pass<'_>) -> Result<LazyTensor> {
        let x = x.add(
            &self
                .self_attn
                .forward(&self.input_layernorm.forward(x)?, rotation, pass)?,
        )?;
        x.add(&self.mlp.forward(&self.post_attention_layernorm.forward(&x)?, pass)?)
    }

    /// Its linear layers with their names in checkpoints, in the order in which they run.
    pub fn linears(&mut self) -> [(&'static str, &mut Arc<dyn Projection>); 7] {
        let (attention, mlp) = (&mut self.self_attn, &mut self.mlp);
        [
            ("self_attn.q_proj", &mut attention.q_proj),
            ("self_attn.k_proj", &mut attention.k_proj),
            ("self_attn.v_proj", &mut attention.v_proj),
            ("self_attn.o_proj", &mut attention.o_proj),
            ("mlp.gate_proj", &mut mlp.gate_proj),
            ("mlp.up_proj", &mut mlp.up_proj),
            ("mlp.down_proj", &mut mlp.down_proj),
        ]
    }
}
