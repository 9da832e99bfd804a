//! The backends that run plans. Only this folder (and `io`) names the storages behind tensors. `candle` runs any
//! operation on any of Candle's devices: the reference and the fallback. `cpu` has the engine's own kernels.

mod candle;
mod cpu;

use std::cell::Cell;
use std::sync::Arc;

use candle_core::op::BackpropOp;
use candle_core::{Device, Storage, Tensor};
use smallvec::SmallVec;

use self::cpu::OutputBuffer;
use crate::error::Result;
use crate::graph::{Graph, GraphNode, Meta};
use crate::pass::{self, Trail};

pub use self::cpu::kernels::pool::{threads, with_threads};
pub use self::cpu::limits;

/// The backend that a plan is compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Backend {
    /// Candle's operations, one by one, with the fallbacks of fused operations: the reference, on any device.
    Candle,
    /// The engine's own kernels on the CPU.
    Cpu,
    /// Like [`Self::Cpu`], slowly: each kernel runs by itself and twice, in poisoned memory that shows whether it reads
    /// and writes only what it declared. A violation is an [`Error::Internal`](crate::Error::Internal). For tests.
    Checked,
    /// Like [`Self::Candle`], without any pass: what the passes must reproduce bit for bit.
    Unoptimised,
}

thread_local! {
    static FORCED: Cell<Option<Backend>> = const { Cell::new(None) };
}

/// Runs `f` with `backend` for every plan that this thread makes: how tests compare backends.
///
/// ```
/// use candle_core::Device;
/// use metal_candle_graph::{Backend, LazyTensor, with_backend};
///
/// let x = LazyTensor::from_slice(&[1.0, 2.0], &[2], &Device::Cpu)?;
/// let reference = with_backend(Backend::Candle, || x.softmax(0)?.to_vec::<f32>())?;
/// let ours = x.softmax(0)?.to_vec::<f32>()?;
/// assert!((reference[0] - ours[0]).abs() < 1e-6);
/// # Ok::<(), metal_candle_graph::Error>(())
/// ```
pub fn with_backend<R>(backend: Backend, f: impl FnOnce() -> R) -> R {
    struct Restore(Option<Backend>);
    impl Drop for Restore {
        fn drop(&mut self) {
            FORCED.set(self.0);
        }
    }
    let _restore = Restore(FORCED.replace(Some(backend)));
    f()
}

/// The backend set by [`with_backend`] on this thread, for work that moves to another thread.
#[cfg(feature = "async-exec")]
pub(crate) fn forced() -> Option<Backend> {
    FORCED.get()
}

/// Frees the memory that the engine keeps for later runs: free arenas and large output buffers. Memory in use is not
/// affected.
///
/// Useful after one evaluation that was far larger than the following ones; otherwise the next run has to allocate it
/// again.
pub fn release_memory() {
    cpu::release_memory();
}

impl Backend {
    /// The default backend of a device, unless [`with_backend`] set another.
    pub(crate) fn current(device: &Device) -> Self {
        match (FORCED.get(), device) {
            (Some(Self::Unoptimised), _) => Self::Unoptimised,
            (Some(Self::Candle), _) | (_, Device::Cuda(_) | Device::Metal(_)) => Self::Candle,
            (Some(Self::Checked), _) => Self::Checked,
            (_, Device::Cpu) => Self::Cpu,
        }
    }

    /// The backend set by [`with_backend`] on this thread.
    pub(crate) fn forced() -> Option<Self> {
        FORCED.get()
    }

    /// Prepares a recorded graph for [`Self::compile`].
    pub(crate) fn optimise(self, graph: Graph, trail: &mut Trail) -> Result<Graph> {
        let has_kernel = |graph: &Graph, node: &GraphNode| self.has_kernel(graph, node);
        if self == Self::Unoptimised {
            return pass::lower(graph, &[], &has_kernel, trail);
        }
        pass::optimise(graph, &has_kernel, trail)
    }

    fn has_kernel(self, graph: &Graph, node: &GraphNode) -> bool {
        match self {
            Self::Candle | Self::Unoptimised => false,
            Self::Cpu | Self::Checked => cpu::has_kernel(graph, node),
        }
    }

    pub(crate) fn compile(self, graph: Graph) -> Result<Box<dyn Executable>> {
        match self {
            Self::Candle | Self::Unoptimised => Ok(Box::new(candle::Interpreter::new(graph))),
            Self::Cpu => cpu::compile(&graph),
            Self::Checked => cpu::compile_checked(&graph),
        }
    }
}

/// A compiled graph.
pub(crate) trait Executable: Send + Sync {
    /// Computes the outputs. `inputs` are the values of the graph's `Input` nodes, in order. Those that are not shared
    /// may be overwritten, and must be dropped then; after an error they are unchanged.
    fn run(&self, inputs: &mut Bindings) -> Result<Bindings>;

    /// Like [`Self::run`], with timing: adds to `seconds`, one per node of the compiled graph, the time spent on the
    /// node. Entries of nodes that computed nothing stay `None`.
    fn run_timed(&self, inputs: &mut Bindings, seconds: &mut [Option<f64>]) -> Result<Bindings>;

    /// The memory of a run, without its inputs.
    fn footprint(&self) -> Footprint;
}

/// Memory use of a run in bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Footprint {
    /// Peak memory of intermediate values.
    pub arena: usize,
    /// Results with memory of their own.
    pub outputs: usize,
}

/// The inputs or outputs of a run.
pub(crate) type Bindings = SmallVec<[Value; 4]>;

/// The value of an evaluated tensor.
#[derive(Clone)]
pub(crate) enum Value {
    /// Held by Candle, and perhaps shared: never overwritten.
    Tensor(Tensor),
    /// Held by the engine alone: may be overwritten when its last handle is donated. Contiguous.
    Host(Arc<OutputBuffer>),
}

impl Value {
    /// The value as a Candle tensor. Moves the buffer if it is not shared, else copies it.
    pub fn into_tensor(self, meta: &Meta) -> Tensor {
        match self {
            Self::Tensor(tensor) => tensor,
            Self::Host(buffer) => {
                let storage = Storage::Cpu(Arc::unwrap_or_clone(buffer).into_storage());
                Tensor::from_storage(storage, meta.shape.clone(), BackpropOp::none(), false)
            }
        }
    }
}
