//! Replaces fused operations without a kernel in the backend by their fallbacks.

use rustc_hash::FxHashMap;
use smallvec::{SmallVec, smallvec};

use crate::error::Result;
use crate::fused;
use crate::graph::{Graph, GraphNode, Meta, Operation, ValueRef, numbered};
use crate::lazy_tensor::LazyTensor;

/// One round; `None` if every fused operation has a kernel.
pub(super) fn run(graph: &Graph, has_kernel: &dyn Fn(&Graph, &GraphNode) -> bool) -> Result<Option<Graph>> {
    let lacking = |node: &GraphNode| node.operation.is_fused() && !has_kernel(graph, node);
    if !graph.nodes.iter().any(lacking) {
        return Ok(None);
    }
    let mut nodes: Vec<GraphNode> = Vec::with_capacity(graph.nodes.len() * 2);
    // For each old node, the replacements of its outputs.
    let mut values: Vec<Vec<ValueRef>> = Vec::with_capacity(graph.nodes.len());
    for node in &graph.nodes {
        let inputs: Vec<ValueRef> = node
            .inputs
            .iter()
            .map(|i| values[i.node as usize][i.output as usize])
            .collect();
        if lacking(node) && node.outputs.iter().all(|meta| meta.shape.elem_count() == 0) {
            values.push(node.outputs.iter().map(|meta| nothing(meta, &mut nodes)).collect());
        } else if lacking(node) {
            let expanded = expand(graph, node, &inputs, &mut nodes)?;
            values.push(expanded);
        } else {
            let number = nodes.len() as u32;
            values.push(
                (0..node.outputs.len() as u32)
                    .map(|output| ValueRef { node: number, output })
                    .collect(),
            );
            nodes.push(GraphNode {
                inputs: inputs.into(),
                ..node.clone()
            });
        }
    }
    let outputs = graph
        .outputs
        .iter()
        .map(|o| values[o.node as usize][o.output as usize])
        .collect();
    Ok(Some(Graph {
        nodes,
        outputs,
        device: graph.device.clone(),
    }))
}

/// An empty tensor.
fn nothing(meta: &Meta, nodes: &mut Vec<GraphNode>) -> ValueRef {
    nodes.push(GraphNode {
        operation: Operation::Constant {
            value: 0.0,
            shape: meta.shape.clone(),
            dtype: meta.dtype,
        },
        inputs: SmallVec::new(),
        outputs: smallvec![meta.clone()],
    });
    ValueRef {
        node: nodes.len() as u32 - 1,
        output: 0,
    }
}

/// Records the fallback on placeholders, flattens it, and inserts it.
fn expand(graph: &Graph, node: &GraphNode, inputs: &[ValueRef], nodes: &mut Vec<GraphNode>) -> Result<Vec<ValueRef>> {
    let holders: Vec<LazyTensor> = node
        .inputs
        .iter()
        .map(|&i| LazyTensor::placeholder(graph.meta(i), &graph.device))
        .collect();
    let bound: FxHashMap<_, ValueRef> = holders
        .iter()
        .map(LazyTensor::node_id)
        .zip(inputs.iter().copied())
        .collect();
    let outputs = fused::fallback(&node.operation, &holders)?;
    let flat = numbered::flatten(&outputs)?;
    let mut leaves = flat.leaves.iter();
    let mut first: Vec<ValueRef> = Vec::with_capacity(flat.graph.nodes.len());
    let shift = |first: &[ValueRef], v: &ValueRef| ValueRef {
        output: first[v.node as usize].output + v.output,
        ..first[v.node as usize]
    };
    for inner in &flat.graph.nodes {
        if inner.operation == Operation::Input {
            // Leaves are in the order of the Input nodes.
            if let Some(value) = leaves.next().and_then(|leaf| bound.get(&leaf.node_id())) {
                first.push(*value);
                continue;
            }
        }
        first.push(ValueRef {
            node: nodes.len() as u32,
            output: 0,
        });
        let inputs = inner.inputs.iter().map(|v| shift(&first, v)).collect();
        nodes.push(GraphNode {
            inputs,
            ..inner.clone()
        });
    }
    Ok(flat.graph.outputs.iter().map(|v| shift(&first, v)).collect())
}
