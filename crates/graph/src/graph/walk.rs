//! Walks over recorded nodes, all iterative: a chain of a million operations must not overflow the stack.

use std::sync::Arc;

use rustc_hash::{FxHashMap, FxHashSet};
use smallvec::SmallVec;

use super::ir::{Graph, GraphNode, ValueRef};
use super::node::{Inputs, NodeId, State};
use super::operation::Operation;
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

/// Numbers the nodes reachable from `targets`.
///
/// # Errors
/// [`Error::DeviceMismatch`] when targets live on different devices.
pub(crate) fn flatten(targets: &[LazyTensor]) -> Result<Flat> {
    let device = targets.first().map_or(candle_core::Device::Cpu, |t| t.device().clone());
    if let Some(other) = targets.iter().find(|t| !t.device().same_device(&device)) {
        return Err(Error::DeviceMismatch {
            operation: "eval",
            first: format!("{:?}", device.location()),
            second: format!("{:?}", other.device().location()),
        });
    }
    let order = post_order(targets);
    let mut numbers: FxHashMap<(NodeId, u32), ValueRef> = FxHashMap::default();
    numbers.reserve(order.len());
    let mut nodes = Vec::with_capacity(order.len());
    let mut leaves = Vec::new();
    for (tensor, inputs) in &order {
        let node = tensor.node();
        // What holds a value (or waits for one, while tracing) is a leaf, whatever computed it; one leaf per output.
        let is_leaf = node.operation == Operation::Input || matches!(&*node.state(), State::Evaluated(_));
        for output in 0..node.outputs.len() as u32 {
            let (number, part) = if is_leaf { (nodes.len() as u32 + output, 0) } else { (nodes.len() as u32, output) };
            numbers.insert((node.id, output), ValueRef { node: number, output: part });
        }
        if is_leaf {
            for (output, meta) in node.outputs.iter().enumerate() {
                leaves.push(LazyTensor::of(Arc::clone(node), output as u32));
                let outputs = SmallVec::from_elem(meta.clone(), 1);
                nodes.push(GraphNode { operation: Operation::Input, inputs: SmallVec::new(), outputs });
            }
        } else {
            let inputs = inputs.iter().map(|t| numbers[&(t.node_id(), t.output())]).collect();
            nodes.push(GraphNode { operation: node.operation.clone(), inputs, outputs: node.outputs.clone() });
        }
    }
    let outputs = targets.iter().map(|t| numbers[&(t.node_id(), t.output())]).collect();
    Ok(Flat { graph: Graph { nodes, outputs, device }, leaves })
}
