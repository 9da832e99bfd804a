//! Compiled functions: traced once per input signature, then replayed without recording. Arguments can be donated, so
//! that optimizer state and caches are updated in place; a call that fails returns them unchanged.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};

use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use crate::backend::{Backend, Bindings, Value};
use crate::error::{Error, Result};
use crate::explain::Explanation;
use crate::graph::kind::{Kind, is_alike};
use crate::graph::node::{Node, NodeId};
use crate::graph::numbered::{self, Numbered};
use crate::lazy_tensor::LazyTensor;
use crate::plan::{Plan, PlanMemory};

/// Maximum number of traces per function; beyond it the least recently used is evicted.
const CAPACITY: usize = 64;

/// A function of lazy tensors with its plans, one per signature (shapes, dtypes, devices) of its arguments. It keeps
/// the plans of the 64 most recently used signatures.
///
/// Tensors that the function captures are bound when it is traced; what changes from call to call must be an argument.
/// The function runs on the calling thread without holding a lock: it may call other compiled functions, and several
/// threads may trace at once. It must not call itself with arguments of the signature it is being traced for
/// ([`Error::Recursion`]).
///
/// ```
/// use candle_core::Device;
/// use metal_candle_graph::{LazyTensor, compile};
///
/// let double = compile(|args| Ok(vec![args[0].mul_scalar(2.0)?]));
/// let x = LazyTensor::from_slice(&[1.0, 2.0], &[2], &Device::Cpu)?;
/// assert_eq!(double.call(vec![x])?[0].to_vec::<f32>()?, [2.0, 4.0]);
/// # Ok::<(), metal_candle_graph::Error>(())
/// ```
pub struct Compiled<F> {
    function: F,
    traces: Mutex<Traces>,
}

/// The traces of a function.
#[derive(Default)]
struct Traces {
    /// Ordered by last use.
    known: Vec<(Signature, Arc<Trace>)>,
    /// The signatures being traced, and the threads that trace them.
    running: Vec<(ThreadId, Signature)>,
}

impl Traces {
    fn find(&mut self, arguments: &[LazyTensor]) -> Option<Arc<Trace>> {
        let found = self
            .known
            .iter()
            .rposition(|(signature, _)| signature.is_of(arguments))?;
        // Nearly always the last one already.
        self.known[found..].rotate_left(1);
        self.known.last().map(|(_, trace)| Arc::clone(trace))
    }

    /// Adds a trace; returns the one that is evicted for it.
    fn keep(&mut self, signature: Signature, trace: Arc<Trace>) -> Option<(Signature, Arc<Trace>)> {
        let oldest = (self.known.len() >= CAPACITY).then(|| self.known.remove(0));
        self.known.push((signature, trace));
        oldest
    }
}

/// The key of a trace: shapes, dtypes and devices of the arguments, and the backend.
struct Signature {
    arguments: SmallVec<[(Arc<Kind>, u32); 4]>,
    backend: Option<Backend>,
}

impl Signature {
    fn of(arguments: &[LazyTensor]) -> Self {
        Self {
            arguments: arguments.iter().map(|t| (Arc::clone(t.kind()), t.output())).collect(),
            backend: Backend::forced(),
        }
    }

    fn is_of(&self, arguments: &[LazyTensor]) -> bool {
        self.backend == Backend::forced()
            && self.arguments.len() == arguments.len()
            && self
                .arguments
                .iter()
                .zip(arguments)
                .all(|(one, other)| is_alike(one, other))
    }
}

struct Trace {
    plan: Arc<Plan>,
    /// The source of each input of the plan.
    sources: Vec<InputSource>,
}

enum InputSource {
    Argument(usize),
    Captured(LazyTensor),
}

/// The error of a failed call of a compiled function, with the call's arguments, unchanged.
///
/// ```
/// use candle_core::Device;
/// use metal_candle_graph::{LazyTensor, compile};
///
/// let row = compile(|args| Ok(vec![args[0].index_select(0, &args[1])?]));
/// let table = LazyTensor::from_slice(&[1.0, 2.0], &[2, 1], &Device::Cpu)?;
/// let index = |i: u32| LazyTensor::from_data(&[i], &[1], &Device::Cpu);
/// let failed = row.call(vec![table, index(7)?]).unwrap_err();
/// let (error, mut arguments) = failed.into_parts();
/// assert_eq!(error.to_string(), "IndexSelect: index 7 is out of range for a dimension of 2");
/// arguments[1] = index(1)?;
/// assert_eq!(row.call(arguments)?[0].to_vec::<f32>()?, [2.0]);
/// # Ok::<(), metal_candle_graph::Error>(())
/// ```
#[derive(Debug)]
pub struct CallError {
    error: Box<Error>,
    arguments: Vec<LazyTensor>,
}

impl CallError {
    /// The error.
    #[must_use]
    pub fn error(&self) -> &Error {
        &self.error
    }

    /// The error and the arguments.
    #[must_use]
    pub fn into_parts(self) -> (Error, Vec<LazyTensor>) {
        (*self.error, self.arguments)
    }
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl std::error::Error for CallError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.error.source()
    }
}

/// Drops the arguments.
impl From<CallError> for Error {
    fn from(failed: CallError) -> Self {
        *failed.error
    }
}

/// Creates a compiled function. Nothing is traced before the first call.
pub fn compile<F>(function: F) -> Compiled<F>
where
    F: Fn(&[LazyTensor]) -> Result<Vec<LazyTensor>>,
{
    Compiled {
        function,
        traces: Mutex::default(),
    }
}

impl<F> Compiled<F> {
    fn traces(&self) -> MutexGuard<'_, Traces> {
        // Every update is one method call on a vector, so a poisoned lock holds a valid state.
        self.traces.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of signatures for which the function is traced.
    #[must_use]
    pub fn trace_count(&self) -> usize {
        self.traces().known.len()
    }
}

impl<F> Compiled<F>
where
    F: Fn(&[LazyTensor]) -> Result<Vec<LazyTensor>>,
{
    /// Runs the function. An argument that is not shared is donated: its buffer may be reused for a result.
    ///
    /// A failed call has no effect: [`CallError`] returns all arguments with their old values. To that end everything
    /// that depends on data (indices, positions, targets) is checked before the first donated buffer is written; where
    /// it depends on values that the call itself computes later, the call works on copies of the buffers it would
    /// overwrite. A panic of a kernel is a bug of the engine, and running out of memory aborts the process; in these
    /// cases the arguments are lost.
    ///
    /// # Errors
    /// Errors of the function while it is traced, and errors of the kernels.
    pub fn call(&self, mut arguments: Vec<LazyTensor>) -> std::result::Result<Vec<LazyTensor>, CallError> {
        self.run(&mut arguments).map_err(|error| CallError {
            error: Box::new(error),
            arguments,
        })
    }

    fn run(&self, arguments: &mut [LazyTensor]) -> Result<Vec<LazyTensor>> {
        crate::plan::evaluate(arguments)?;
        let trace = self.trace(arguments)?;
        let mut bound = Bound::new(&trace.sources, arguments)?;
        let results = match trace.plan.run(&mut bound.inputs) {
            Ok(results) => results,
            Err(error) => {
                bound.give_back(&trace.sources, arguments);
                return Err(error);
            }
        };
        let results = results.into_iter().zip(trace.plan.results());
        Ok(results
            .map(|(value, kind)| LazyTensor::from_value(value, Arc::clone(kind)))
            .collect())
    }

    /// The memory use of a call with these arguments. Traces the function if it is not traced for them yet.
    ///
    /// # Errors
    /// Errors of the function while it is traced.
    pub fn memory(&self, arguments: &[LazyTensor]) -> Result<PlanMemory> {
        Ok(self.trace(arguments)?.plan.memory())
    }

    /// Traces the function for these arguments, runs it twice and reports where the time of the second run goes.
    /// Nothing is donated: arguments that a call would overwrite are copied before the clock starts.
    ///
    /// # Errors
    /// Errors of the function while it is traced, and errors of the kernels.
    pub fn explain(&self, arguments: &[LazyTensor]) -> Result<Explanation> {
        crate::plan::evaluate(arguments)?;
        let traced = self.record(arguments, |recorded, backend| (recorded.graph(), backend))?;
        let (sources, (graph, backend)) = traced;
        let value = |source: &InputSource| match source {
            InputSource::Captured(tensor) => tensor.value(),
            InputSource::Argument(position) => arguments[*position].value(),
        };
        let inputs = sources.iter().map(value).collect::<Result<Bindings>>()?;
        Explanation::of(graph, backend, &inputs)
    }

    fn trace(&self, arguments: &[LazyTensor]) -> Result<Arc<Trace>> {
        if let Some(trace) = self.traces().find(arguments) {
            return Ok(trace);
        }
        let trace = Arc::new(self.make_trace(arguments)?);
        let mut traces = self.traces();
        // Another thread may have traced the same signature meanwhile.
        if let Some(trace) = traces.find(arguments) {
            return Ok(trace);
        }
        let oldest = traces.keep(Signature::of(arguments), Arc::clone(&trace));
        drop(traces);
        // Dropped outside the lock: it may hold the last handles of captured tensors.
        drop(oldest);
        Ok(trace)
    }

    fn make_trace(&self, arguments: &[LazyTensor]) -> Result<Trace> {
        let (sources, sought) = self.record(arguments, Plan::seek)?;
        Ok(Trace {
            plan: sought.plan()?,
            sources,
        })
    }

    /// Records the function on placeholders; returns the sources of the inputs, and the result of `f` for the graph.
    fn record<R>(
        &self,
        arguments: &[LazyTensor],
        f: impl FnOnce(&Numbered<'_>, Backend) -> R,
    ) -> Result<(Vec<InputSource>, R)> {
        let holders: Vec<LazyTensor> = arguments
            .iter()
            .map(|t| LazyTensor::placeholder(t.meta(), t.device()))
            .collect();
        let positions: FxHashMap<NodeId, usize> = holders
            .iter()
            .enumerate()
            .map(|(i, holder)| (holder.node_id(), i))
            .collect();
        let outputs = {
            let _running = Running::begin(&self.traces, arguments)?;
            (self.function)(&holders)?
        };
        numbered::number(&outputs, |recorded| {
            let sources = recorded.leaves().map(|leaf| match positions.get(&leaf.node_id()) {
                Some(&position) => InputSource::Argument(position),
                None => InputSource::Captured(leaf),
            });
            let device = arguments.first().map_or(recorded.device(), LazyTensor::device);
            Ok((sources.collect(), f(recorded, Backend::current(device))))
        })
    }
}

/// A guard that marks this signature as being traced on this thread: tracing it again would recurse forever.
struct Running<'a>(&'a Mutex<Traces>);

impl<'a> Running<'a> {
    fn begin(traces: &'a Mutex<Traces>, arguments: &[LazyTensor]) -> Result<Self> {
        let this = thread::current().id();
        let mut held = traces.lock().unwrap_or_else(PoisonError::into_inner);
        let again = |(thread, signature): &(ThreadId, Signature)| *thread == this && signature.is_of(arguments);
        if held.running.iter().any(again) {
            return Err(Error::Recursion);
        }
        held.running.push((this, Signature::of(arguments)));
        Ok(Self(traces))
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let this = thread::current().id();
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // A thread finishes its traces in reverse order.
        if let Some(last) = held.running.iter().rposition(|(thread, _)| *thread == this) {
            drop(held.running.remove(last));
        }
    }
}

/// The bound inputs of a plan during a call. The values of uniquely held arguments are moved out of them, so that
/// unshared buffers have a reference count of one and may be overwritten.
struct Bound {
    inputs: Bindings,
    /// For each input, whether its value was moved out of its argument.
    taken: SmallVec<[bool; 4]>,
}

impl Bound {
    fn new(sources: &[InputSource], arguments: &mut [LazyTensor]) -> Result<Self> {
        let mut bound = Self {
            inputs: Bindings::with_capacity(sources.len()),
            taken: SmallVec::with_capacity(sources.len()),
        };
        for (index, source) in sources.iter().enumerate() {
            let value = match source {
                InputSource::Captured(tensor) => tensor.value().map(|value| (value, false)),
                InputSource::Argument(position) => take(&mut arguments[*position]),
            };
            match value {
                Ok((value, taken)) => {
                    bound.inputs.push(value);
                    bound.taken.push(taken);
                }
                Err(error) => {
                    bound.give_back(&sources[..index], arguments);
                    return Err(error);
                }
            }
        }
        Ok(bound)
    }

    /// Moves the values back into their arguments.
    fn give_back(self, sources: &[InputSource], arguments: &mut [LazyTensor]) {
        for ((source, value), taken) in sources.iter().zip(self.inputs).zip(self.taken) {
            if let (InputSource::Argument(position), true) = (source, taken) {
                let argument = &mut arguments[*position];
                let output = argument.output() as usize;
                // Still uniquely held by this argument.
                if let Some(node) = argument.node_mut() {
                    node.values_mut().insert(output, value);
                }
            }
        }
    }
}

/// The value of an evaluated argument, and whether it was moved out.
fn take(argument: &mut LazyTensor) -> Result<(Value, bool)> {
    let output = argument.output() as usize;
    // Each argument is one leaf of the graph, so it is moved at most once.
    if let Some(values) = argument.node_mut().map(Node::values_mut)
        && output < values.len()
    {
        return Ok((values.remove(output), true));
    }
    argument.value().map(|value| (value, false))
}
