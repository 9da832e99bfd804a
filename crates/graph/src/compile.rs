//! Compiled functions: traced once per input signature, then replayed without recording. Arguments can be donated, so
//! that optimizer state and caches are updated in place.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::DeviceLocation;
use rustc_hash::FxHashMap;

use crate::backend::{Backend, Bindings, Value};
use crate::error::{Error, Result};
use crate::graph::node::{Inputs, NodeId, State};
use crate::graph::{Meta, walk};
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

/// A plan is for shapes and dtypes, and for who runs it where.
struct Signature {
    arguments: Vec<(Meta, DeviceLocation)>,
    backend: Option<Backend>,
}

impl Signature {
    fn of(arguments: &[LazyTensor]) -> Self {
        Self {
            arguments: arguments
                .iter()
                .map(|t| (t.meta().clone(), t.device().location()))
                .collect(),
            backend: Backend::forced(),
        }
    }

    fn is_of(&self, arguments: &[LazyTensor]) -> bool {
        let fits = |((meta, location), t): (&(Meta, DeviceLocation), &LazyTensor)| {
            meta == t.meta() && *location == t.device().location()
        };
        self.backend == Backend::forced()
            && self.arguments.len() == arguments.len()
            && self.arguments.iter().zip(arguments).all(fits)
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
        let results = trace.plan.run(inputs)?;
        let device = trace.plan.device();
        Ok(results
            .into_iter()
            .zip(trace.plan.output_metas())
            .map(|(value, meta)| LazyTensor::from_value(value, meta.clone(), device.clone()))
            .collect())
    }

    /// The memory that a call with these arguments takes. Traces the function where it has not been traced for them.
    ///
    /// # Errors
    /// What the function reports while it is traced.
    pub fn memory(&self, arguments: &[LazyTensor]) -> Result<PlanMemory> {
        Ok(self.trace(arguments)?.plan.memory())
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
        let holders: Vec<LazyTensor> = arguments
            .iter()
            .map(|t| LazyTensor::placeholder(t.meta().clone(), t.device().clone()))
            .collect();
        let positions: FxHashMap<NodeId, usize> = holders
            .iter()
            .enumerate()
            .map(|(i, holder)| (holder.node_id(), i))
            .collect();
        let outputs = (self.function)(&holders)?;
        let numbered = walk::number(&outputs)?;
        let sources = numbered
            .leaves()
            .map(|leaf| match positions.get(&leaf.node_id()) {
                Some(&position) => Source::Argument(position),
                None => Source::Captured(leaf),
            })
            .collect();
        let device = arguments
            .first()
            .map_or_else(|| numbered.device().clone(), |t| t.device().clone());
        let plan = Plan::of(&numbered, Backend::current(&device))?;
        Ok(Trace { plan, sources })
    }
}

/// The plan's inputs. Arguments are consumed: the last use of a value hands it over, so that a buffer which nobody else
/// holds arrives with a count of one and may be overwritten.
fn bind(sources: &[Source], arguments: Vec<LazyTensor>) -> Result<Bindings> {
    let mut arguments: Vec<Option<LazyTensor>> = arguments.into_iter().map(Some).collect();
    sources
        .iter()
        .map(|source| match source {
            Source::Captured(tensor) => tensor.value(),
            // Each argument is one leaf of the graph, so it is taken at most once.
            Source::Argument(position) => arguments[*position]
                .take()
                .ok_or(Error::Placeholder)
                .and_then(into_value),
        })
        .collect()
}

/// The value of an evaluated tensor, moved out of its node where this is the last handle.
#[allow(clippy::needless_pass_by_value)] // taking it is what makes it the last handle
fn into_value(tensor: LazyTensor) -> Result<Value> {
    if Arc::strong_count(tensor.node()) > 1 || tensor.node().outputs.len() > 1 {
        return tensor.value();
    }
    match tensor.node().replace_state(State::Recorded(Inputs::new())) {
        State::Evaluated(mut values) => values.pop().ok_or(Error::Placeholder),
        State::Recorded(_) => Err(Error::Placeholder),
    }
}
