//! The lazy tensor engine of metal-candle. Operations on a [`LazyTensor`] record a graph; `eval` turns the graph into a
//! plan (cached by its structure), and a backend runs the plan. The engine contains no language-model concepts.
//!
//! ```
//! use candle_core::Device;
//! use metal_candle_graph::{LazyTensor, value_and_grad};
//!
//! let x = LazyTensor::from_slice(&[1.0, 2.0, 3.0], &[1, 3], &Device::Cpu)?;
//! let w = LazyTensor::from_slice(&[0.5, 0.5, 0.5], &[3, 1], &Device::Cpu)?;
//! let loss = x.matmul(&w)?.sum_all()?;
//! let (loss, grads) = value_and_grad(&loss, &[w])?;
//! assert_eq!(loss.to_scalar::<f32>()?, 3.0);
//! assert_eq!(grads[0].to_vec::<f32>()?, [1.0, 2.0, 3.0]);
//! # Ok::<(), metal_candle_graph::Error>(())
//! ```

#[cfg(feature = "async-exec")]
mod async_eval;
mod backend;
mod compile;
mod error;
mod explain;
// Public for this workspace's tests, not part of the API: the internals of operations and plans.
#[doc(hidden)]
pub mod fused;
mod grad;
#[doc(hidden)]
pub mod graph;
pub mod io;
mod lazy_tensor;
mod ops;
mod pass;
mod plan;
pub mod random;

#[cfg(feature = "async-exec")]
pub use async_eval::{Evaluation, eval_all_async};
pub use backend::{Backend, limits, release_memory, threads, with_backend, with_threads};
pub use compile::{CallError, Compiled, compile};
pub use error::{Error, Result};
pub use explain::{Explanation, Kernel, KernelGroup};
pub use fused::dequant_matmul::{QuantFormat, Quantized};
pub use grad::value_and_grad;
pub use graph::{
    AdamWOptions, Approximate, AttentionOptions, CrossEntropyOptions, Distribution, Graph, Meta, NodeId, Operation,
};
pub use lazy_tensor::{LazyTensor, eval_all};
pub use ops::{AdamWState, AttentionInputs};
pub use plan::{PlanMemory, Statistics, prepare, statistics};
