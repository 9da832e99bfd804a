//! The gated feed-forward layer: `down(silu(gate(x)) * up(x))`.

use std::sync::Arc;

use metal_candle_graph::{LazyTensor, Result};

use super::{Pass, Projection};

/// The MLP of one decoder layer.
pub struct Mlp {
    /// `hidden` to `intermediate`, through `silu`.
    pub gate_proj: Arc<dyn Projection>,
    /// `hidden` to `intermediate`.
    pub up_proj: Arc<dyn Projection>,
    /// `intermediate` to `hidden`.
    pub down_proj: Arc<dyn Projection>,
}

impl Mlp {
    /// `(batch, seq, hidden)` to the same shape.
    ///
    /// # Errors
    /// When the shapes are incompatible.
    pub fn forward(&self, x: &LazyTensor, pass: &Pass<'_>) -> Result<LazyTensor> {
        let gate = self.gate_proj.forward(x, pass)?;
        let up = self.up_proj.forward(x, pass)?;
        self.down_proj.forward(&gate.swiglu(&up)?, pass)
    }
}
