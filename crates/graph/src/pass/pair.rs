//! Joins a cross-entropy with its gradient where the gradient's cotangents do not depend on the loss: computed together,
//! the logits are made once instead of twice.

use crate::graph::{Graph, GraphNode, Operation, ValueRef};

pub(super) fn run(mut graph: Graph) -> Graph {
    let gradients: Vec<usize> = (0..graph.nodes.len())
        .filter(|&index| is_gradient(&graph.nodes[index]))
        .collect();
    for index in gradients {
        if let Some(joined) = join(&graph, index) {
            graph = joined;
        }
    }
    graph
}

fn is_gradient(node: &GraphNode) -> bool {
    matches!(&node.operation, Operation::Vjp { of, .. } if matches!(**of, Operation::CrossEntropy(_)))
}

/// The loss that the gradient at `index` is of, if both can be computed at the gradient's place.
fn loss_of(graph: &Graph, index: usize) -> Option<usize> {
    let Operation::Vjp { of, .. } = &graph.nodes[index].operation else {
        return None;
    };
    let inputs = &graph.nodes[index].inputs;
    let count = inputs.len() - 2 * of.output_count();
    let loss = inputs[count].node as usize;
    let node = &graph.nodes[loss];
    let same = node.operation == **of && node.inputs[..] == inputs[..count];
    (same && !depends(graph, &inputs[count + of.output_count()..], loss)).then_some(loss)
}

/// Whether one of the values is computed from a node.
fn depends(graph: &Graph, values: &[ValueRef], on: usize) -> bool {
    let mut reached = vec![false; graph.nodes.len()];
    for value in values {
        reached[value.node as usize] = true;
    }
    for index in (on + 1..graph.nodes.len()).rev() {
        if reached[index] {
            graph.nodes[index]
                .inputs
                .iter()
                .for_each(|input| reached[input.node as usize] = true);
        }
    }
    reached[on]
}

/// Moves everything that needs the loss behind the cotangents, and puts one node in place of the two.
fn join(graph: &Graph, gradient: usize) -> Option<Graph> {
    let loss = loss_of(graph, gradient)?;
    let Operation::Vjp { of, wanted } = &graph.nodes[gradient].operation else {
        return None;
    };
    let mut late = vec![false; graph.nodes.len()];
    late[loss] = true;
    for index in loss + 1..graph.nodes.len() {
        late[index] = graph.nodes[index].inputs.iter().any(|input| late[input.node as usize]);
    }
    // The gradient itself needs the loss's outputs, but not for long.
    let order = (0..graph.nodes.len()).filter(|&i| !late[i]).chain([gradient]);
    let order = order.chain((loss + 1..graph.nodes.len()).filter(|&i| late[i] && i != gradient));
    let order: Vec<usize> = order.collect();
    let mut places = vec![0u32; graph.nodes.len()];
    for (place, &index) in order.iter().enumerate() {
        places[index] = place as u32;
    }
    places[loss] = places[gradient];
    let outputs = of.output_count() as u32;
    let moved = |value: &ValueRef| ValueRef {
        node: places[value.node as usize],
        output: value.output + if value.node as usize == gradient { outputs } else { 0 },
    };
    let nodes = order.iter().map(|&index| {
        let node = &graph.nodes[index];
        if index != gradient {
            return GraphNode {
                inputs: node.inputs.iter().map(moved).collect(),
                ..node.clone()
            };
        }
        let loss = &graph.nodes[loss];
        let cotangents = &node.inputs[loss.inputs.len() + of.output_count()..];
        GraphNode {
            operation: Operation::ValueAndVjp {
                of: of.clone(),
                wanted: *wanted,
            },
            inputs: loss.inputs.iter().chain(cotangents).map(moved).collect(),
            outputs: loss.outputs.iter().chain(&node.outputs).cloned().collect(),
        }
    });
    Some(Graph {
        nodes: nodes.collect(),
        outputs: graph.outputs.iter().map(moved).collect(),
        device: graph.device.clone(),
    })
}
