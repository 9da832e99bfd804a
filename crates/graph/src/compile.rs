//! Compiled functions: traced once per input signature, then replayed without recording. Arguments can be donated, so
//! that optimizer state and caches are updated in place.

use std::sync::{Arc, Mutex, PoisonError};

use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use crate::backend::{Backend, Bindings, Value};
use crate::error::{Error, Result};
use crate::explain::Explanation;
use crate::graph::kind::{Kind, is_alike};
use crate::graph::node::NodeId;
use crate::graph::numbered::{self, Numbered};
use crate::lazy_tensor::LazyTensor;
use crate::plan::{Plan, PlanMemory};

/// A function of lazy tensors with its plans, one per signature (shapes, dtypes, devices) of its arguments.
///
/// Tensors that the function captures are bound when it is traced; what changes from call to call must be an argument.
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
    traces: Mutex<Vec<(Signature, Arc<Trace>)>>,
}

/// A plan is for shapes, dtypes and devices, and for who runs it.
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
    /// Where each input of the plan comes from.
    sources: Vec<Source>,
}

enum Source {
    Argument(usize),
    Captured(LazyTensor),
}

/// Prepares `function` for repeated calls. Nothing is traced before the first call.
pub fn compile<F>(function: F) -> Compiled<F>
where
    F: Fn(&[LazyTensor]) -> Result<Vec<LazyTensor>>,
{
    Compiled {
        function,
        traces: Mutex::new(Vec::new()),
    }
}

impl<F> Compiled<F>
where
    F: Fn(&[LazyTensor]) -> Result<Vec<LazyTensor>>,
{
    /// Runs the function. An argument that nobody else holds is donated: its buffer may be reused for a result.
    ///
    /// # Errors
    /// What the function reports while it is traced, and what the kernels report.
    pub fn call(&self, arguments: Vec<LazyTensor>) -> Result<Vec<LazyTensor>> {
        crate::plan::evaluate(&arguments)?;
        let trace = self.trace(&arguments)?;
        let inputs = bind(&trace.sources, arguments)?;
        let results = trace.plan.run(inputs)?.into_iter().zip(trace.plan.results());
        Ok(results
            .map(|(value, kind)| LazyTensor::from_value(value, Arc::clone(kind)))
            .collect())
    }

    /// The memory that a call with these arguments takes. Traces the function where it has not been traced for them.
    ///
    /// # Errors
    /// What the function reports while it is traced.
    pub fn memory(&self, arguments: &[LazyTensor]) -> Result<PlanMemory> {
        Ok(self.trace(arguments)?.plan.memory())
    }

    /// Traces the function for these arguments, runs it twice and tells where the time of the second run goes. Nothing is
    /// donated: an argument that a call would overwrite is copied before the clock starts.
    ///
    /// # Errors
    /// What the function reports while it is traced, and what the kernels report.
    pub fn explain(&self, arguments: &[LazyTensor]) -> Result<Explanation> {
        crate::plan::evaluate(arguments)?;
        let traced = self.record(arguments, |recorded, backend| (recorded.graph(), backend))?;
        let (sources, (graph, backend)) = traced;
        Explanation::of(graph, backend, &bind(&sources, arguments.to_vec())?)
    }

    /// How many signatures have been traced.
    #[must_use]
    pub fn trace_count(&self) -> usize {
        self.traces.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    fn trace(&self, arguments: &[LazyTensor]) -> Result<Arc<Trace>> {
        let mut traces = self.traces.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, trace)) = traces.iter().find(|(signature, _)| signature.is_of(arguments)) {
            return Ok(Arc::clone(trace));
        }
        let trace = Arc::new(self.make_trace(arguments)?);
        traces.push((Signature::of(arguments), Arc::clone(&trace)));
        Ok(trace)
    }

    fn make_trace(&self, arguments: &[LazyTensor]) -> Result<Trace> {
        let (sources, sought) = self.record(arguments, Plan::seek)?;
        Ok(Trace {
            plan: sought.plan()?,
            sources,
        })
    }

    /// Records the function on placeholders; returns where the inputs come from, and what `f` makes of the graph.
    fn record<R>(
        &self,
        arguments: &[LazyTensor],
        f: impl FnOnce(&Numbered<'_>, Backend) -> R,
    ) -> Result<(Vec<Source>, R)> {
        let holders: Vec<LazyTensor> = arguments
            .iter()
            .map(|t| LazyTensor::placeholder(t.meta(), t.device()))
            .collect();
        let positions: FxHashMap<NodeId, usize> = holders
            .iter()
            .enumerate()
            .map(|(i, holder)| (holder.node_id(), i))
            .collect();
        let outputs = (self.function)(&holders)?;
        numbered::number(&outputs, |recorded| {
            let sources = recorded.leaves().map(|leaf| match positions.get(&leaf.node_id()) {
                Some(&position) => Source::Argument(position),
                None => Source::Captured(leaf),
            });
            let device = arguments.first().map_or(recorded.device(), LazyTensor::device);
            Ok((sources.collect(), f(recorded, Backend::current(device))))
        })
    }
}

/// The plan's inputs. Arguments are consumed: the last use of a value hands it over, so that a buffer which nobody else
/// holds arrives with a count of one and may be overwritten.
fn bind(sources: &[Source], arguments: Vec<LazyTensor>) -> Result<Bindings> {
    let mut arguments: Vec<Option<LazyTensor>> = arguments.into_iter().map(Some).collect();
    let mut inputs = Bindings::with_capacity(sources.len());
    for source in sources {
        inputs.push(match source {
            Source::Captured(tensor) => tensor.value()?,
            // Each argument is one leaf of the graph, so it is taken at most once.
            Source::Argument(position) => into_value(arguments[*position].take().ok_or(Error::Placeholder)?)?,
        });
    }
    Ok(inputs)
}

/// The value of an evaluated tensor, moved out of its node where this is the last handle.
fn into_value(tensor: LazyTensor) -> Result<Value> {
    let output = tensor.output() as usize;
    if Arc::strong_count(tensor.node()) > 1 {
        return tensor.value();
    }
    // Nobody else can have cloned it meanwhile.
    Arc::into_inner(tensor.into_node()).map_or(Err(Error::Placeholder), |node| node.into_value(output))
}
