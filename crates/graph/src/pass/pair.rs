//! Joins a cross-entropy with its gradient if the gradient's cotangents do not depend on the loss: computed together,
//! the logits are computed once instead of twice.

use crate::graph::{Graph, GraphNode, Operation, ValueRef};

pub(super) fn run(mut graph: Graph) -> Graph {
    // Joining moves later nodes, so the search starts over; each round has one gradient less.
    while let Some(joined) = joined_once(&graph) {
        graph = joined;
    }
    graph
}

fn joined_once(graph: &Graph) -> Option<Graph> {
    let mut gradients = (0..graph.nodes.len()).filter(|&index| is_gradient(&graph.nodes[index]));
    gradients.find_map(|index| join(graph, index))
}

fn is_gradient(node: &GraphNode) -> bool {
    matches!(&node.operation, Operation::Vjp { of, .. } if matches!(**of, Operation::CrossEntropy(_)))
}

/// The loss whose gradient is the node at `index`, if both can be computed at the gradient's position.
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

/// Whether one of the values depends on a node.
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

/// Moves all users of the loss behind the cotangents, and replaces loss and gradient by one node.
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
    // The gradient itself uses the loss's outputs, until both are joined.
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

#[cfg(test)]
mod tests {
    use candle_core::DType;

    use super::super::testing::{input, of, operations};
    use super::*;
    use crate::graph::CrossEntropyOptions;
    use crate::{LazyTensor, value_and_grad};

    /// The losses of five rows with a head of seven classes, each time with new inputs `hidden` and `weight`.
    fn losses() -> (LazyTensor, [LazyTensor; 2]) {
        let (hidden, weight, targets) = (input(&[5, 4]), input(&[7, 4]), of(&[5], DType::I64));
        let options = CrossEntropyOptions::default();
        (
            hidden.cross_entropy(&weight, &targets, options).unwrap(),
            [hidden, weight],
        )
    }

    fn with_gradients(loss: &LazyTensor, parameters: &[LazyTensor]) -> Vec<LazyTensor> {
        let (loss, gradients) = value_and_grad(loss, parameters).unwrap();
        std::iter::once(loss).chain(gradients).collect()
    }

    #[test]
    fn a_mean_loss_and_its_gradients_are_one_operation() {
        let (losses, parameters) = losses();
        let outputs = with_gradients(&losses.mean_all().unwrap(), &parameters);
        let expected = "\
%3 = Constant value=5() : f32[]
%4 = Constant value=1() : f32[]
%5 = Reshape(%4) : f32[1]
%6 = Div(%5, %3) : f32[1]
%7 = Broadcast(%6) : f32[5]
%8 = Constant value=0() : f32[5]
%9 = ValueAndVjp of=(CrossEntropy ignore=-100 smoothing=0) wanted=0b11(%0, %1, %2, %7, %8) : f32[5], f32[5], f32[5, 4], f32[7, 4]
%10 = Sum dims=[0](%9) : f32[1]
%11 = Div(%10, %3) : f32[1]
%12 = Reshape(%11) : f32[]
return %12, %9.2, %9.3
";
        assert_eq!(operations(&outputs, run), expected);
    }

    #[test]
    fn a_cotangent_that_depends_on_the_loss_prevents_joining() {
        let (losses, parameters) = losses();
        let squares = losses.mul(&losses).unwrap().sum_all().unwrap();
        let text = operations(&with_gradients(&squares, &parameters), run);
        assert!(text.contains(" = CrossEntropy ") && text.contains(" = Vjp "), "{text}");
        assert!(!text.contains("ValueAndVjp"), "{text}");
    }

    #[test]
    fn a_gradient_of_another_loss_is_not_joined() {
        // The weights of the rows come from another loss, which is independent of the first: both pairs are joined.
        let ((first, parameters), (second, others)) = (losses(), losses());
        let both = first.sum_all().unwrap().add(&second.sum_all().unwrap()).unwrap();
        let text = operations(&with_gradients(&both, &[parameters, others].concat()), run);
        assert_eq!(text.matches(" = ValueAndVjp ").count(), 2, "{text}");
        assert!(
            !text.contains(" = CrossEntropy ") && !text.contains(" = Vjp "),
            "{text}"
        );
        // Their product: the cotangent of each loss depends on the other loss, so only one pair can be joined.
        let ((first, parameters), (second, others)) = (losses(), losses());
        let both = first.mul(&second).unwrap().sum_all().unwrap();
        let text = operations(&with_gradients(&both, &[parameters, others].concat()), run);
        assert_eq!(text.matches(" = ValueAndVjp ").count(), 1, "{text}");
        assert_eq!(text.matches(" = CrossEntropy ").count(), 1, "{text}");
        assert_eq!(text.matches(" = Vjp ").count(), 1, "{text}");
    }

    #[test]
    fn of_two_gradients_one_is_joined() {
        let (losses, parameters) = losses();
        let mean = with_gradients(&losses.mean_all().unwrap(), &parameters);
        let sum = with_gradients(&losses.mul_scalar(3.0).unwrap().sum_all().unwrap(), &parameters);
        let text = operations(&[mean, sum].concat(), run);
        assert_eq!(text.matches(" = ValueAndVjp ").count(), 1, "{text}");
        assert_eq!(text.matches(" = Vjp ").count(), 1, "{text}");
    }

    #[test]
    fn a_loss_without_a_gradient_stays() {
        let text = operations(&[losses().0], run);
        assert!(text.contains(" = CrossEntropy ") && !text.contains("Vjp"), "{text}");
    }
}
