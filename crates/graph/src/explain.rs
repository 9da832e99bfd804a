//! A profile of a computation: what was recorded, what each pass left, the kernels with their work and measured time,
//! and the memory. An explanation makes a plan of its own, runs it twice and times the second run; it never touches the
//! plan cache, and does not slow down ordinary evaluation.

mod table;

use candle_core::DType;

use crate::backend::{Backend, Bindings};
use crate::error::Result;
use crate::fused::matmul_sum::SumTerm;
use crate::graph::class::Class;
use crate::graph::cost::flops;
use crate::graph::{Graph, GraphNode, Meta, Operation, ValueRef};
use crate::lazy_tensor::LazyTensor;
use crate::limits::{Limits, Work};
use crate::plan::{PlanMemory, all_outputs, memory_of, pending, recorded_bytes};
use crate::{graph::numbered, pass::Trail};

/// What a plan consists of and where its time goes. `Display` prints it as tables.
///
/// ```
/// use candle_core::{DType, Device};
/// use metal_candle_graph::LazyTensor;
///
/// let a = LazyTensor::ones(&[8, 16], DType::F32, &Device::Cpu)?;
/// let b = LazyTensor::from_slice(&[1.0; 64], &[16, 4], &Device::Cpu)?;
/// let explanation = a.matmul(&b)?.abs()?.sin()?.explain()?;
/// assert_eq!(explanation.recorded, 5);
/// // The product, and the two operations after it as one.
/// assert!(explanation.kernels.iter().any(|kernel| kernel.text == "Elementwise [Abs + Sin]"));
/// println!("{explanation}");
/// # Ok::<(), metal_candle_graph::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Explanation {
    /// Nodes that were recorded, inputs included.
    pub recorded: usize,
    /// The passes in the order they ran, with the number of nodes after each.
    pub passes: Trail,
    /// The kernels in the order they run.
    pub kernels: Vec<Kernel>,
    /// The plan's memory.
    pub memory: PlanMemory,
    limits: Option<Limits>,
}

/// A node of the optimised graph that is executed, in one kernel call or a few.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// Name under which operations are grouped: `Matmul`, `Vjp of Attention`.
    pub name: String,
    /// The operation; for a fused expression, the fused operations.
    pub text: String,
    /// Shapes and dtypes of its inputs.
    pub inputs: Vec<Meta>,
    /// Shapes and dtypes of its results.
    pub outputs: Vec<Meta>,
    /// Bytes that it must read and write, counted once each.
    pub bytes: f64,
    /// Floating-point operations according to the operation's formula.
    pub flops: f64,
    /// Measured time.
    pub seconds: f64,
}

/// Kernels with the same name.
#[derive(Debug, Clone)]
pub struct KernelGroup<'a> {
    /// The common name.
    pub name: &'a str,
    /// The kernels in the order they run.
    pub kernels: Vec<&'a Kernel>,
}

impl Explanation {
    /// Compiles a graph and measures it. The first of two runs warms up caches.
    pub(crate) fn of(graph: Graph, backend: Backend, inputs: &Bindings) -> Result<Self> {
        let recorded = graph.nodes.len();
        let recorded_bytes = recorded_bytes(&graph);
        let mut passes = Trail::new();
        let graph = backend.optimise(graph, &mut passes)?;
        let executable = backend.compile(graph.clone())?;
        executable.run(&mut inputs.clone())?;
        let mut seconds = vec![None; graph.nodes.len()];
        executable.run_timed(&mut inputs.clone(), &mut seconds)?;
        let timed = graph.nodes.iter().zip(&seconds);
        let kernels = timed.filter_map(|(node, seconds)| seconds.map(|seconds| Kernel::of(&graph, node, seconds)));
        Ok(Self {
            recorded,
            passes,
            kernels: kernels.collect(),
            memory: memory_of(&*executable, recorded_bytes),
            limits: None,
        })
    }

    /// Adds the machine's limits, so that each figure is shown as a share of them.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = Some(limits);
        self
    }

    /// The limits, if they were given.
    #[must_use]
    pub fn limits(&self) -> Option<&Limits> {
        self.limits.as_ref()
    }

    /// Measured time of all kernels.
    #[must_use]
    pub fn seconds(&self) -> f64 {
        self.kernels.iter().map(|kernel| kernel.seconds).sum()
    }

    /// Floating-point operations of all kernels.
    #[must_use]
    pub fn flops(&self) -> f64 {
        self.kernels.iter().map(|kernel| kernel.flops).sum()
    }

    /// Bytes that all kernels read and write.
    #[must_use]
    pub fn bytes(&self) -> f64 {
        self.kernels.iter().map(|kernel| kernel.bytes).sum()
    }

    /// The kernels by name, sorted by time, longest first.
    ///
    /// ```
    /// use candle_core::{DType, Device};
    /// use metal_candle_graph::LazyTensor;
    ///
    /// let a = LazyTensor::full(0.5, &[64, 64], DType::F32, &Device::Cpu)?;
    /// let explanation = a.matmul(&a)?.matmul(&a)?.explain()?;
    /// let groups = explanation.groups();
    /// assert_eq!((groups[0].name, groups[0].kernels.len()), ("Matmul", 2));
    /// # Ok::<(), metal_candle_graph::Error>(())
    /// ```
    #[must_use]
    pub fn groups(&self) -> Vec<KernelGroup<'_>> {
        let mut groups = self.grouped(|kernel| &kernel.name);
        groups.sort_by(|a, b| b.seconds().total_cmp(&a.seconds()));
        groups
    }

    /// Groups kernels by a key, in the order of first occurrence.
    fn grouped<'a>(&'a self, key: impl Fn(&'a Kernel) -> &'a String) -> Vec<KernelGroup<'a>> {
        let mut groups: Vec<KernelGroup<'a>> = Vec::new();
        for kernel in &self.kernels {
            let name = key(kernel).as_str();
            match groups.iter_mut().find(|group| group.name == name) {
                Some(group) => group.kernels.push(kernel),
                None => groups.push(KernelGroup {
                    name,
                    kernels: vec![kernel],
                }),
            }
        }
        groups
    }
}

impl KernelGroup<'_> {
    /// Measured time of the group.
    #[must_use]
    pub fn seconds(&self) -> f64 {
        self.sum(|kernel| kernel.seconds)
    }

    /// Floating-point operations of the group.
    #[must_use]
    pub fn flops(&self) -> f64 {
        self.sum(|kernel| kernel.flops)
    }

    /// Bytes that the group reads and writes.
    #[must_use]
    pub fn bytes(&self) -> f64 {
        self.sum(|kernel| kernel.bytes)
    }

    /// The least time in which a machine can run the group, in seconds.
    #[must_use]
    pub fn least_seconds(&self, limits: &Limits) -> f64 {
        self.sum(|kernel| kernel.least_seconds(limits))
    }

    fn sum(&self, of: impl Fn(&Kernel) -> f64) -> f64 {
        self.kernels.iter().map(|kernel| of(kernel)).sum()
    }
}

impl Kernel {
    fn of(graph: &Graph, node: &GraphNode, seconds: f64) -> Self {
        let inputs: Vec<&Meta> = node.inputs.iter().map(|&input| graph.meta(input)).collect();
        Self {
            name: name(&node.operation),
            text: text(&node.operation),
            bytes: bytes(graph, node),
            flops: flops(&node.operation, &inputs, &node.outputs),
            inputs: inputs.into_iter().cloned().collect(),
            outputs: node.outputs.to_vec(),
            seconds,
        }
    }

    /// The least time in which a machine can run this kernel, in seconds.
    #[must_use]
    pub fn least_seconds(&self, limits: &Limits) -> f64 {
        // The faster dtype if both occur, so that a share is not overstated. It may be for attention over a cache,
        // where the filled length is known only at run time.
        let is_narrow = self.inputs.iter().any(|meta| meta.dtype == DType::BF16);
        limits.least_seconds(&Work {
            bytes: self.bytes,
            flops: self.flops,
            dtype: if is_narrow { DType::BF16 } else { DType::F32 },
        })
    }
}

fn name(operation: &Operation) -> String {
    match operation {
        Operation::Vjp { of, .. } => format!("Vjp of {}", of.name()),
        Operation::ValueAndVjp { of, .. } => format!("{} and Vjp", of.name()),
        other => other.name().to_owned(),
    }
}

/// The operation with its parameters; for an expression, the names of the fused operations.
fn text(operation: &Operation) -> String {
    match operation {
        Operation::Elementwise(expression) => {
            let terms = expression.terms.iter().map(|term| &term.operation);
            let computed = terms.filter(|operation| !matches!(operation, Operation::Constant { .. }));
            format!(
                "Elementwise [{}]",
                computed.map(Operation::name).collect::<Vec<_>>().join(" + ")
            )
        }
        Operation::Vjp { .. } | Operation::ValueAndVjp { .. } => name(operation),
        Operation::MatmulSum { terms, .. } => {
            let terms = terms.iter().map(|term| match term {
                SumTerm::Product => "Matmul",
                SumTerm::Addend => "Add",
            });
            format!("MatmulSum [{}]", terms.collect::<Vec<_>>().join(" + "))
        }
        other => other.to_string(),
    }
}

/// Bytes that must be read and written: views count the elements they cover, constants count nothing, and indexed reads
/// and updates count only the part that they touch.
fn bytes(graph: &Graph, node: &GraphNode) -> f64 {
    let mut inputs: Vec<ValueRef> = node.inputs.to_vec();
    inputs.sort_unstable();
    inputs.dedup();
    let made: usize = node.outputs.iter().map(Meta::bytes).sum();
    let of = |input: usize| node.inputs.get(input).map_or(0, |&value| looked_at(graph, value));
    let moved = match node.operation.class() {
        Class::Picking => 2 * made + of(1),
        Class::Updating if matches!(node.operation, Operation::SliceUpdate { .. }) => 2 * of(1),
        Class::Updating => made + of(0) + of(1) + of(2),
        // A view that was copied.
        Class::View | Class::Given => 2 * made,
        Class::Source | Class::Elementwise | Class::Reduction | Class::Movement | Class::Product | Class::Fused => {
            made + inputs.iter().map(|&value| looked_at(graph, value)).sum::<usize>()
        }
    };
    moved as f64
}

/// The smallest size in bytes that holds a value's elements, looking through views.
fn looked_at(graph: &Graph, value: ValueRef) -> usize {
    let node = &graph.nodes[value.node as usize];
    match (&node.operation, node.inputs.first()) {
        (Operation::Constant { .. }, _) => 0,
        (operation, Some(&source)) if operation.is_view() => graph.meta(value).bytes().min(looked_at(graph, source)),
        _ => graph.meta(value).bytes(),
    }
}

impl LazyTensor {
    /// Plans the computation of this tensor, runs and times it, and reports where the time goes. The tensor stays
    /// unevaluated; for an evaluated tensor the report is empty.
    ///
    /// # Errors
    /// See [`LazyTensor::eval`].
    pub fn explain(&self) -> Result<Explanation> {
        let targets = all_outputs(&pending(std::slice::from_ref(self)));
        let (graph, inputs) = numbered::number(&targets, |recorded| Ok((recorded.graph(), recorded.values()?)))?;
        Explanation::of(graph, Backend::current(self.device()), &inputs)
    }
}
