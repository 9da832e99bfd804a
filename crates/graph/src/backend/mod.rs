//! Where plans run. Only this folder (and `io`) names the storages behind tensors. `candle` runs any operation on any of
//! Candle's devices: the reference and the fallback. `cpu` has the engine's own kernels.

mod candle;
mod cpu;

use std::cell::Cell;
use std::sync::Arc;

use candle_core::op::BackpropOp;
use candle_core::{Device, Storage, Tensor};
use smallvec::SmallVec;

use self::cpu::Buffer;
use crate::error::Result;
use crate::graph::{Graph, GraphNode, Meta};
use crate::pass::{self, Trail};

pub use self::cpu::kernels::pool::{threads, with_threads};
pub use self::cpu::limits;

/// The backend that a plan is compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Backend {
    /// Candle's operations, one by one, fused operations as their fallbacks: the reference, on any device.
    Candle,
    /// The engine's own kernels on the host.
    Cpu,
    /// As [`Self::Cpu`], slowly: each kernel runs by itself and twice, on memory that shows whether it reads and writes what
    /// it declared. A kernel that does not is an [`Error::Internal`](crate::Error::Internal). For tests.
    Checked,
    /// As [`Self::Candle`], with no pass run over the graph: what passes are compared with, bit for bit.
    Unoptimised,
}

thread_local! {
    static FORCED: Cell<Option<Backend>> = const { Cell::new(None) };
}

/// Runs `f` with every plan that this thread makes going to `backend`: how tests compare backends.
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

/// What [`with_backend`] says on this thread, for work that moves to another.
#[cfg(feature = "async-exec")]
pub(crate) fn forced() -> Option<Backend> {
    FORCED.get()
}

/// Frees what the engine keeps for later runs: arenas, and large buffers of results that are gone. What is in use stays.
///
/// After one evaluation that was far larger than what comes next; otherwise the next run would only ask for it again.
pub fn release_memory() {
    cpu::release_memory();
}

impl Backend {
    /// The backend for a device, unless [`with_backend`] says otherwise.
    pub(crate) fn current(device: &Device) -> Self {
        match (FORCED.get(), device) {
            (Some(Self::Unoptimised), _) => Self::Unoptimised,
            (Some(Self::Candle), _) | (_, Device::Cuda(_) | Device::Metal(_)) => Self::Candle,
            (Some(Self::Checked), _) => Self::Checked,
            (_, Device::Cpu) => Self::Cpu,
        }
    }

    /// What [`with_backend`] says on this thread.
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
    /// Computes the outputs. `inputs` are the values of the graph's `Input` nodes, in order. Those that nobody else holds may
    /// be overwritten, and are to be dropped then; after an error they are as they were.
    fn run(&self, inputs: &mut Bindings) -> Result<Bindings>;

    /// As [`Self::run`], with a clock around each part: adds to `seconds`, one for each node of the compiled graph, what
    /// was computed for the node. Those that computed nothing stay `None`.
    fn run_timed(&self, inputs: &mut Bindings, seconds: &mut [Option<f64>]) -> Result<Bindings>;

    /// The memory of a run besides its inputs.
    fn footprint(&self) -> Footprint;
}

/// Bytes that a run takes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Footprint {
    /// For what lies between inputs and results, at the most.
    pub arena: usize,
    /// For results with memory of their own.
    pub outputs: usize,
}

/// The values that go into a run or come out of it.
pub(crate) type Bindings = SmallVec<[Value; 4]>;

/// The value of an evaluated tensor.
#[derive(Clone)]
pub(crate) enum Value {
    /// Held by Candle, and perhaps by others: never overwritten.
    Tensor(Tensor),
    /// Held by the engine alone: overwritten when the last handle is donated. Contiguous.
    Host(Arc<Buffer>),
}

impl Value {
    /// The value as a Candle tensor. Takes the buffer over if nobody else holds it, else copies it.
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
