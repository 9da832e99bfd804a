//! The lazy engine: tensors that record operations, gradients, compiled functions. See [`metal_candle_graph`].

pub use metal_candle_graph::*;
