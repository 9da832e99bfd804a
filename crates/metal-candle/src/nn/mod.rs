//! Layers: small structs of named weights whose `forward` records operations and never runs them.
//!
//! Activations are `(batch, seq, features)`; attention splits them into `(batch, seq, heads, head_dim)` without a
//! permutation. What changes from call to call (positions, cache, adapters) is in a [`Pass`]. A layer knows no model,
//! no file and no adapter: adapters replace a [`Projection`] from outside.

mod attention;
mod block;
mod embedding;
mod linear;
mod mlp;
mod norms;
mod pass;
mod quantized_linear;
mod rope;

pub use attention::Attention;
pub use block::Block;
pub use embedding::Embedding;
pub use linear::Linear;
pub use metal_candle_graph::Result;
pub use mlp::Mlp;
pub use norms::RmsNorm;
pub use pass::{Cache, Pass};
pub use quantized_linear::QuantizedLinear;
pub use rope::{Rotary, Rotation};

use std::sync::Arc;

use metal_candle_graph::LazyTensor;

/// A linear map of the last dimension: a [`Linear`] layer or its replacement.
pub trait Projection: Send + Sync {
    /// `(.., in_features)` to `(.., out_features)`.
    ///
    /// # Errors
    /// When the last dimension of `x` is not `in_features`, or `pass` lacks what the layer needs.
    fn forward(&self, x: &LazyTensor, pass: &Pass<'_>) -> Result<LazyTensor>;

    /// Size of the last dimension of the input.
    fn in_features(&self) -> usize;

    /// Size of the last dimension of the output.
    fn out_features(&self) -> usize;

    /// The wrapped projection, if this is an adapter.
    fn base(&self) -> Option<&Arc<dyn Projection>> {
        None
    }
}
