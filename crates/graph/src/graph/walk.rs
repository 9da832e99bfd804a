//! Walks over recorded nodes, all iterative: a chain of a million operations must not overflow the stack.

use std::sync::Arc;

use candle_core::Device;
use rustc_hash::{FxHashMap, FxHashSet};
use smallvec::SmallVec;

use super::ir::{self, Graph, GraphNode, ValueRef};
use super::node::{Inputs, Meta, NodeId, State};
use super::operation::Operation;
use crate::backend::Bindings;
use crate::error::{Error, Result};
use crate::lazy_tensor::LazyTensor;

/// A flat graph and the leaf behind each of its `Input` nodes, in order.
pub(crate) struct Flat {
    pub graph: Graph,
    pub leaves: Vec<LazyTensor>,
}

/// The inputs a walk follows: none for a node that holds its value.
pub(crate) fn recorded_inputs(tensor: &LazyTensor) -> Inputs {
    match &*tensor.node().state() {
        State::Recorded(inputs) => inputs.clone(),
        State::Evaluated(_) => Inputs::new(),
    }
}

/// Every node reachable from `roots`, inputs before users, each once. The tensors returned stand for their nodes.
pub(crate) fn post_order(roots: &[LazyTensor]) -> Vec<(LazyTensor, Inputs)> {
    post_order_until(roots, |_| false)
}

/// As [`post_order`], without going behind the nodes where `stop` says so; they appear without inputs.
pub(crate) fn post_order_until(roots: &[LazyTensor], stop: impl Fn(NodeId) -> bool) -> Vec<(LazyTensor, Inputs)> {
    let inputs_of = |t: &LazyTensor| if stop(t.node_id()) { Inputs::new() } else { recorded_inputs(t) };
    let mut seen: FxHashSet<NodeId> = FxHashSet::default();
    let mut order = Vec::new();
    // (node, its inputs, the next input to visit)
    let mut stack: Vec<(LazyTensor, Inputs, usize)> = Vec::new();
    for root in roots {
        if seen.insert(root.node_id()) {
            stack.push((root.clone(), inputs_of(root), 0));
        }
        while let Some((_, inputs, next)) = stack.last_mut() {
            if let Some(input) = inputs.get(*next) {
                *next += 1;
                if seen.insert(input.node_id()) {
                    let input = input.clone();
                    let below = inputs_of(&input);
                    stack.push((input, below, 0));
                }
            } else if let Some((tensor, inputs, _)) = stack.pop() {
                order.push((tensor, inputs));
            }
        }
    }
    order
}

/// The nodes reachable from some targets, numbered as they will stand in a flat graph. Nothing is copied out of the
/// nodes: a plan is found by hashing and comparing this, and only a new plan pays for a [`Graph`].
pub(crate) struct Numbered {
    steps: Vec<Numbering>,
    outputs: SmallVec<[ValueRef; 4]>,
    device: Device,
}

/// One node and its place.
struct Numbering {
    tensor: LazyTensor,
    /// Holds a value, or waits for one while tracing: stands in the graph as one `Input` per output.
    is_leaf: bool,
    /// Number of its first node in the flat graph.
    first: u32,
    inputs: SmallVec<[ValueRef; 3]>,
}

impl Numbering {
    /// How many nodes of the flat graph it takes.
    fn width(&self) -> u32 {
        if self.is_leaf { self.tensor.node().outputs.len() as u32 } else { 1 }
    }

    /// Where an output of this node is found in the flat graph.
    fn value(&self, output: u32) -> ValueRef {
        if self.is_leaf {
            ValueRef { node: self.first + output, output: 0 }
        } else {
            ValueRef { node: self.first, output }
        }
    }
}

/// Numbers the nodes reachable from `targets`.
///
/// # Errors
/// [`Error::DeviceMismatch`] when targets live on different devices.
pub(crate) fn number(targets: &[LazyTensor]) -> Result<Numbered> {
    let device = targets.first().map_or(Device::Cpu, |t| t.device().clone());
    if let Some(other) = targets.iter().find(|t| !t.device().same_device(&device)) {
        return Err(Error::DeviceMismatch {
            operation: "eval",
            first: format!("{:?}", device.location()),
            second: format!("{:?}", other.device().location()),
        });
    }
    let mut numbering = InOrder::default();
    for target in targets {
        numbering.visit(target);
    }
    let outputs = targets.iter().map(|t| numbering.value(t)).collect();
    Ok(Numbered { steps: numbering.steps, outputs, device })
}

/// Marks a node that has been seen and whose inputs are not numbered yet.
const OPEN: u32 = u32::MAX;

/// The walk of [`number`].
#[derive(Default)]
struct InOrder {
    steps: Vec<Numbering>,
    /// Position in `steps`.
    positions: FxHashMap<NodeId, u32>,
    /// (node, its inputs, the next input to visit)
    stack: Vec<(LazyTensor, Inputs, usize)>,
    count: u32,
}

impl InOrder {
    fn visit(&mut self, root: &LazyTensor) {
        self.open(root);
        while let Some((_, inputs, next)) = self.stack.last_mut() {
            if let Some(input) = inputs.get(*next) {
                *next += 1;
                let input = input.clone();
                self.open(&input);
            } else if let Some((tensor, inputs, _)) = self.stack.pop() {
                let inputs = inputs.iter().map(|input| self.value(input)).collect();
                self.close(tensor, false, inputs);
            }
        }
    }

    /// Numbers a leaf at once; puts another node on the stack.
    fn open(&mut self, tensor: &LazyTensor) {
        if self.positions.contains_key(&tensor.node_id()) {
            return;
        }
        let recorded = match &*tensor.node().state() {
            State::Recorded(inputs) if tensor.node().operation != Operation::Input => Some(inputs.clone()),
            _ => None,
        };
        match recorded {
            Some(inputs) => {
                self.positions.insert(tensor.node_id(), OPEN);
                self.stack.push((tensor.clone(), inputs, 0));
            }
            None => self.close(tensor.clone(), true, SmallVec::new()),
        }
    }

    fn close(&mut self, tensor: LazyTensor, is_leaf: bool, inputs: SmallVec<[ValueRef; 3]>) {
        self.positions.insert(tensor.node_id(), self.steps.len() as u32);
        let first = self.count;
        self.count += if is_leaf { tensor.node().outputs.len() as u32 } else { 1 };
        self.steps.push(Numbering { tensor, is_leaf, first, inputs });
    }

    /// Graphs have no cycles, so what is asked for is closed.
    fn value(&self, tensor: &LazyTensor) -> ValueRef {
        self.steps[self.positions[&tensor.node_id()] as usize].value(tensor.output())
    }
}

impl Numbered {
    /// The nodes of the flat graph: operation, inputs, outputs.
    fn nodes(&self) -> impl Iterator<Item = (&Operation, &[ValueRef], &[Meta])> {
        self.steps.iter().flat_map(|step| {
            let node = step.tensor.node();
            (0..step.width() as usize).map(move |i| {
                if step.is_leaf {
                    (&Operation::Input, &[][..], std::slice::from_ref(&node.outputs[i]))
                } else {
                    (&node.operation, &step.inputs[..], &node.outputs[..])
                }
            })
        })
    }

    /// As [`Graph::structural_hash`] of the flat graph.
    pub fn structural_hash(&self) -> u64 {
        ir::structural_hash(self.nodes(), &self.outputs)
    }

    /// Whether this is the structure of `graph`.
    pub fn is(&self, graph: &Graph) -> bool {
        graph.outputs[..] == self.outputs[..]
            && graph.device.same_device(&self.device)
            && graph.nodes.len() == self.steps.last().map_or(0, |last| (last.first + last.width()) as usize)
            && graph.nodes.iter().zip(self.nodes()).all(|(node, (operation, inputs, outputs))| {
                node.operation == *operation && node.inputs[..] == *inputs && node.outputs[..] == *outputs
            })
    }

    /// The flat graph.
    pub fn graph(&self) -> Graph {
        let nodes = self.nodes().map(|(operation, inputs, outputs)| GraphNode {
            operation: operation.clone(),
            inputs: inputs.into(),
            outputs: outputs.into(),
        });
        Graph { nodes: nodes.collect(), outputs: self.outputs.to_vec(), device: self.device.clone() }
    }

    /// What is bound to the `Input` nodes, in order.
    pub fn leaves(&self) -> impl Iterator<Item = LazyTensor> {
        self.steps.iter().filter(|step| step.is_leaf).flat_map(|step| {
            let node = step.tensor.node();
            (0..node.outputs.len() as u32).map(|output| LazyTensor::of(Arc::clone(node), output))
        })
    }

    /// The values of the leaves.
    ///
    /// # Errors
    /// [`Error::Placeholder`] when one is an argument of a function being traced.
    pub fn values(&self) -> Result<Bindings> {
        let mut values = Bindings::new();
        for step in self.steps.iter().filter(|step| step.is_leaf) {
            match &*step.tensor.node().state() {
                State::Evaluated(held) => values.extend(held.iter().cloned()),
                State::Recorded(_) => return Err(Error::Placeholder),
            }
        }
        Ok(values)
    }

    /// Where it runs.
    pub fn device(&self) -> &Device {
        &self.device
    }
}

/// The graph reachable from `targets`, copied out, and its leaves.
///
/// # Errors
/// See [`number`].
pub(crate) fn flatten(targets: &[LazyTensor]) -> Result<Flat> {
    let numbered = number(targets)?;
    Ok(Flat { graph: numbered.graph(), leaves: numbered.leaves().collect() })
}
