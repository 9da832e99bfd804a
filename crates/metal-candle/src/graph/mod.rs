//! The lazy engine: tensors that record operations, gradients, compiled functions. See [`metal_candle_graph`].

mod async_executor;

pub use metal_candle_graph::*;

pub use async_executor::AsyncExecutor;
