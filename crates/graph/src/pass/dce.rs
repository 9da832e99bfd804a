//! Dead code elimination: nodes that no output needs are dropped. Inputs are kept, because leaves are bound by
//! position.

use crate::graph::{Graph, Operation, ValueRef};

pub(super) fn run(graph: Graph) -> Graph {
    let Graph { nodes, outputs, device } = graph;
    let mut live = vec![false; nodes.len()];
    for output in &outputs {
        live[output.node as usize] = true;
    }
    for (index, node) in nodes.iter().enumerate().rev() {
        live[index] |= node.operation == Operation::Input;
        if live[index] {
            node.inputs.iter().for_each(|input| live[input.node as usize] = true);
        }
    }
    let mut numbers = vec![0; nodes.len()];
    let mut kept = Vec::with_capacity(nodes.len());
    for (index, mut node) in nodes.into_iter().enumerate() {
        if live[index] {
            numbers[index] = kept.len() as u32;
            node.inputs
                .iter_mut()
                .for_each(|input| input.node = numbers[input.node as usize]);
            kept.push(node);
        }
    }
    let outputs = outputs
        .into_iter()
        .map(|o| ValueRef {
            node: numbers[o.node as usize],
            ..o
        })
        .collect();
    Graph {
        nodes: kept,
        outputs,
        device,
    }
}
