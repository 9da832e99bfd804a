//! The lazy engine: tensors that record operations, gradients, compiled functions.
//!
//! The public surface: [`LazyTensor`] and its operations with their settings, [`value_and_grad`], [`compile`], the
//! choice of backend and threads, the memory of plans, and checked files ([`io`]). Passes, nodes and kernels are not
//! exported.

mod async_executor;

pub use metal_candle_graph::{
    AdamWOptions, AdamWState, Approximate, AttentionInputs, AttentionOptions, Backend, CallError, Compiled,
    CrossEntropyOptions, Distribution, Error, Explanation, Kernel, KernelGroup, LazyTensor, Meta, NodeId, Operation,
    PlanMemory, QuantFormat, Quantized, Result, Statistics, compile, eval_all, io, limits, prepare, random,
    release_memory, statistics, threads, value_and_grad, with_backend, with_threads,
};
#[cfg(feature = "async-exec")]
pub use metal_candle_graph::{Evaluation, eval_all_async};

pub use async_executor::AsyncExecutor;
