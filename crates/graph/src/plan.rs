//! Plans: optimised graphs compiled by a backend, cached by the structure of the recorded graph. A loop that records
//! the same shapes again reuses its plan.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use rustc_hash::{FxHashMap, FxHashSet};
use smallvec::SmallVec;

use crate::backend::{Backend, Bindings, Executable, Footprint};
use crate::error::{Error, Result};
use crate::graph::kind::Kind;
use crate::graph::node::{NodeId, Values};
use crate::graph::numbered::{self, Numbered, PlanKey};
use crate::graph::{Graph, GraphNode, Meta, Operation, walk};
use crate::lazy_tensor::LazyTensor;
use crate::pass::Trail;

/// Maximum number of cached plans; beyond it the least recently used is evicted.
const CAPACITY: usize = 256;

/// A compiled graph.
pub(crate) struct Plan {
    /// The recorded structure, compared in full on a hit.
    key: PlanKey,
    backend: Backend,
    executable: Box<dyn Executable>,
    memory: PlanMemory,
    /// The results as leaves of later graphs.
    results: Vec<Arc<Kind>>,
}

/// The result of a cache lookup.
pub(crate) enum Lookup {
    Found(Arc<Plan>),
    /// The graph of the plan to make. Making it records fallbacks, which must wait for the end of the walk.
    Missing {
        hash: u64,
        key: PlanKey,
        /// Boxed, because a graph holds a device, which is large where Metal is built.
        graph: Box<Graph>,
        backend: Backend,
    },
}

/// The memory of a plan in bytes, known before it runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PlanMemory {
    /// Held by the tensors that the plan reads.
    pub inputs: usize,
    /// Results. A result that overwrites a donated argument takes none.
    pub outputs: usize,
    /// Intermediate values, placed by their live ranges. The next run of any plan reuses this memory.
    pub arena: usize,
    /// What results and intermediate values would take without reuse of memory, as recorded. Views take none.
    pub values: usize,
}

impl PlanMemory {
    /// The peak memory of the plan. Scratch memory of kernels (packed blocks of a matrix) is not included.
    #[must_use]
    pub const fn peak(&self) -> usize {
        self.inputs + self.outputs + self.arena
    }

    /// The memory saved by planning, compared with one buffer per value.
    #[must_use]
    pub const fn saved(&self) -> usize {
        self.values.saturating_sub(self.outputs + self.arena)
    }
}

/// Counters of the process since it started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Evaluations whose plan was cached.
    pub plan_hits: u64,
    /// Evaluations whose plan had to be made.
    pub plan_misses: u64,
    /// Plans run.
    pub evaluations: u64,
    /// Arena bytes of the plans run, summed over the runs. They share one arena, so this is not memory held.
    pub arena_bytes: u64,
    /// [`PlanMemory::saved`] of the plans run, summed over the runs.
    pub saved_bytes: u64,
}

static HITS: AtomicU64 = AtomicU64::new(0);
static MISSES: AtomicU64 = AtomicU64::new(0);
static EVALUATIONS: AtomicU64 = AtomicU64::new(0);
static ARENA_BYTES: AtomicU64 = AtomicU64::new(0);
static SAVED_BYTES: AtomicU64 = AtomicU64::new(0);

/// The counters of the process; subtract two readings to count what happened between them.
#[must_use]
pub fn statistics() -> Statistics {
    Statistics {
        plan_hits: HITS.load(Ordering::Relaxed),
        plan_misses: MISSES.load(Ordering::Relaxed),
        evaluations: EVALUATIONS.load(Ordering::Relaxed),
        arena_bytes: ARENA_BYTES.load(Ordering::Relaxed),
        saved_bytes: SAVED_BYTES.load(Ordering::Relaxed),
    }
}

#[derive(Default)]
struct PlanCache {
    plans: FxHashMap<u64, Vec<(u64, Arc<Plan>)>>,
    count: usize,
    clock: u64,
}

fn cache() -> MutexGuard<'static, PlanCache> {
    static CACHE: OnceLock<Mutex<PlanCache>> = OnceLock::new();
    // A poisoned cache still holds only complete plans.
    CACHE
        .get_or_init(Mutex::default)
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
}

impl PlanCache {
    fn find(&mut self, recorded: &Numbered<'_>, backend: Backend) -> Option<Arc<Plan>> {
        self.clock += 1;
        let clock = self.clock;
        let bucket = self.plans.get_mut(&recorded.hash())?;
        let (used, plan) = bucket
            .iter_mut()
            .find(|(_, p)| p.backend == backend && recorded.is(&p.key))?;
        *used = clock;
        Some(Arc::clone(plan))
    }

    fn insert(&mut self, hash: u64, plan: Arc<Plan>) {
        if self.count >= CAPACITY {
            self.evict_least_recently_used();
        }
        self.count += 1;
        // A distinct time even if two threads made the same plan: eviction identifies entries by it.
        self.clock += 1;
        self.plans.entry(hash).or_default().push((self.clock, plan));
    }

    fn evict_least_recently_used(&mut self) {
        let oldest = self
            .plans
            .iter()
            .flat_map(|(&hash, bucket)| bucket.iter().map(move |(used, _)| (*used, hash)))
            .min();
        if let Some((used, hash)) = oldest {
            if let Some(bucket) = self.plans.get_mut(&hash) {
                bucket.retain(|(other, _)| *other != used);
                if bucket.is_empty() {
                    self.plans.remove(&hash);
                }
            }
            self.count -= 1;
        }
    }
}

impl Plan {
    /// Looks up the plan of a recorded graph.
    pub fn seek(recorded: &Numbered<'_>, backend: Backend) -> Lookup {
        if let Some(plan) = cache().find(recorded, backend) {
            HITS.fetch_add(1, Ordering::Relaxed);
            tracing::trace!(hash = recorded.hash(), "plan found");
            return Lookup::Found(plan);
        }
        MISSES.fetch_add(1, Ordering::Relaxed);
        Lookup::Missing {
            hash: recorded.hash(),
            key: recorded.key(),
            graph: Box::new(recorded.graph()),
            backend,
        }
    }

    fn make(key: PlanKey, graph: Graph, backend: Backend) -> Result<Self> {
        let results = graph.outputs.iter().map(|&output| graph.meta(output));
        let results = results
            .map(|meta| Kind::input(&meta.shape, meta.dtype, &graph.device))
            .collect();
        let (recorded, bytes) = (graph.nodes.len(), recorded_bytes(&graph));
        let optimised = backend.optimise(graph, &mut Trail::new())?;
        tracing::debug!(?backend, recorded, planned = optimised.nodes.len(), "plan made");
        tracing::trace!("plan:\n{optimised}");
        let executable = backend.compile(optimised)?;
        let memory = memory_of(&*executable, bytes);
        tracing::debug!(?memory, peak = memory.peak(), saved = memory.saved(), "memory");
        Ok(Self {
            key,
            backend,
            executable,
            memory,
            results,
        })
    }

    pub fn memory(&self) -> PlanMemory {
        self.memory
    }

    /// The kinds of the results, as leaves.
    pub fn results(&self) -> &[Arc<Kind>] {
        &self.results
    }

    /// Runs the plan. Values that are not shared may be overwritten; after an error they are unchanged.
    pub fn run(&self, inputs: &mut Bindings) -> Result<Bindings> {
        EVALUATIONS.fetch_add(1, Ordering::Relaxed);
        ARENA_BYTES.fetch_add(self.memory.arena as u64, Ordering::Relaxed);
        SAVED_BYTES.fetch_add(self.memory.saved() as u64, Ordering::Relaxed);
        let start = tracing::enabled!(tracing::Level::TRACE).then(std::time::Instant::now);
        let outputs = self.executable.run(inputs)?;
        if let Some(start) = start {
            tracing::trace!(micros = start.elapsed().as_micros() as u64, "evaluated");
        }
        Ok(outputs)
    }
}

/// The memory of a compiled graph, with the [`recorded_bytes`] of the recorded one.
pub(crate) fn memory_of(executable: &dyn Executable, [inputs, values]: [usize; 2]) -> PlanMemory {
    let Footprint { arena, outputs } = executable.footprint();
    PlanMemory {
        inputs,
        outputs,
        arena,
        values,
    }
}

/// Bytes of the inputs, and of all values computed by operations.
pub(crate) fn recorded_bytes(graph: &Graph) -> [usize; 2] {
    let bytes = |of: &dyn Fn(&GraphNode) -> bool| {
        let nodes = graph.nodes.iter().filter(|node| of(node));
        nodes.flat_map(|node| &node.outputs).map(Meta::bytes).sum()
    };
    let is_input = |node: &GraphNode| node.operation == Operation::Input;
    let is_made = |node: &GraphNode| !is_input(node) && !node.operation.is_view();
    [bytes(&is_input), bytes(&is_made)]
}

impl Lookup {
    /// The plan, made on a miss.
    pub fn plan(self) -> Result<Arc<Plan>> {
        match self {
            Self::Found(plan) => Ok(plan),
            Self::Missing {
                hash,
                key,
                graph,
                backend,
            } => {
                let plan = Arc::new(Plan::make(key, *graph, backend)?);
                cache().insert(hash, Arc::clone(&plan));
                Ok(plan)
            }
        }
    }
}

/// The tensors that are not evaluated yet, without duplicates.
pub(crate) fn pending(tensors: &[LazyTensor]) -> SmallVec<[&LazyTensor; 4]> {
    let mut pending: SmallVec<[&LazyTensor; 4]> = tensors.iter().filter(|t| !t.is_evaluated()).collect();
    if pending.len() > 1 {
        let mut seen: FxHashSet<NodeId> = FxHashSet::default();
        pending.retain(|t| seen.insert(t.node_id()));
    }
    pending
}

/// All outputs of these nodes: a node is evaluated with all of them, so that it can drop its inputs.
pub(crate) fn all_outputs(pending: &[&LazyTensor]) -> SmallVec<[LazyTensor; 4]> {
    pending
        .iter()
        .flat_map(|t| (0..t.kind().outputs.len() as u32).map(|output| LazyTensor::of(t.node().clone(), output)))
        .collect()
}

/// Makes or looks up the plan of these tensors without running it, and returns its memory use: evaluating them, or
/// anything recorded with the same structure, then starts at once.
///
/// ```
/// use candle_core::Device;
/// use metal_candle_graph::{LazyTensor, prepare};
///
/// let x = LazyTensor::from_slice(&[0.5; 1000], &[1000], &Device::Cpu)?;
/// let y = (0..10).try_fold(x, |x, _| x.sin()?.add_scalar(1.0))?;
/// let memory = prepare(&[y.clone()])?;
/// assert!(!y.is_evaluated());
/// assert_eq!((memory.inputs, memory.outputs, memory.values), (4000, 4000, 20 * 4000));
/// assert!(memory.arena < 4000, "the chain runs in the memory of its result");
/// # Ok::<(), metal_candle_graph::Error>(())
/// ```
///
/// # Errors
/// When the tensors live on different devices, or one is a placeholder of a function that is being traced.
pub fn prepare(tensors: &[LazyTensor]) -> Result<PlanMemory> {
    let targets = all_outputs(&pending(tensors));
    let Some(first) = targets.first() else {
        return Ok(PlanMemory::default());
    };
    let backend = Backend::current(first.device());
    let plan = numbered::number(&targets, |recorded| Ok(Plan::seek(recorded, backend)))?.plan()?;
    Ok(plan.memory())
}

/// Evaluates the tensors that are not evaluated yet as one plan.
pub(crate) fn evaluate(tensors: &[LazyTensor]) -> Result<()> {
    let pending = pending(tensors);
    if pending.is_empty() {
        return Ok(());
    }
    let targets = all_outputs(&pending);
    let backend = Backend::current(targets[0].device());
    let (mut inputs, sought) = numbered::number(&targets, |recorded| {
        Ok((recorded.values()?, Plan::seek(recorded, backend)))
    })?;
    let mut results = sought.plan()?.run(&mut inputs)?.into_iter();
    for tensor in &pending {
        let count = tensor.kind().outputs.len();
        let values: Values = results.by_ref().take(count).collect();
        if values.len() != count {
            return Err(Error::internal("a plan gave fewer results than were asked for"));
        }
        tensor.node().set_values(values);
    }
    // A node without history has its values.
    drop(walk::forget(pending.iter().map(|t| t.node())));
    Ok(())
}
