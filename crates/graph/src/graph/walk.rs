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
    let mut seen: FxHashSet<NodeId> = FxHashSet::default();
    let mut order = Vec::new();
    // (node, its inputs, the next input to visit)
    let mut stack: Vec<(LazyTensor, Inputs, usize)> = Vec::new();
    for root in roots {
        if seen.insert(root.node_id()) {
            stack.push((root.clone(), recorded_inputs(root), 0));
        }
        while let Some((_, inputs, next)) = stack.last_mut() {
            if let Some(input) = inputs.get(*next) {
                *next += 1;
                if seen.insert(input.node_id()) {
                    let input = input.clone();
                    let below = recorded_inputs(&input);
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
    let mut numbers: FxHashMap<NodeId, u32> = FxHashMap::default();
    numbers.reserve(order.len());
    let mut nodes = Vec::with_capacity(order.len());
    let mut leaves = Vec::new();
    let number = |numbers: &FxHashMap<NodeId, u32>, t: &LazyTensor| ValueRef {
        node: numbers[&t.node_id()],
        output: t.output(),
    };
    for (tensor, inputs) in &order {
        let node = tensor.node();
        // What holds a value (or waits for one, while tracing) is a leaf, whatever computed it.
        let is_leaf = node.operation == Operation::Input || matches!(&*node.state(), State::Evaluated(_));
        let operation = if is_leaf { Operation::Input } else { node.operation.clone() };
        let inputs: SmallVec<[ValueRef; 3]> = inputs.iter().map(|t| number(&numbers, t)).collect();
        if is_leaf && node.outputs.len() > 1 {
            push_leaves(tensor, &mut nodes, &mut leaves, &mut numbers);
            continue;
        }
        if is_leaf {
            leaves.push(tensor.clone());
        }
        numbers.insert(node.id, nodes.len() as u32);
        nodes.push(GraphNode { operation, inputs, outputs: node.outputs.clone() });
    }
    let outputs = targets.iter().map(|t| number(&numbers, t)).collect();
    Ok(Flat { graph: Graph { nodes, outputs, device }, leaves })
}

/// An evaluated node of several outputs: one `Input` node carrying all of them would need several leaves, so it keeps
/// its outputs together as one node and binds one leaf per output.
fn push_leaves(
    tensor: &LazyTensor,
    nodes: &mut Vec<GraphNode>,
    leaves: &mut Vec<LazyTensor>,
    numbers: &mut FxHashMap<NodeId, u32>,
) {
    let node = tensor.node();
    numbers.insert(node.id, nodes.len() as u32);
    nodes.push(GraphNode { operation: Operation::Input, inputs: SmallVec::new(), outputs: node.outputs.clone() });
    for output in 0..node.outputs.len() {
        leaves.push(LazyTensor::of(Arc::clone(node), output as u32));
    }
}
