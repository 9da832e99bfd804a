//! Recompute or keep: a cheap value that is alive over the peak of memory, read before it and far behind it (in a gradient),
//! is made a second time for its late readers, from inputs that are alive then anyway. Bits do not change: it is the same
//! operation on the same values.

use std::cmp::Reverse;

use smallvec::SmallVec;

use super::dce;
use super::lives::Lives;
use crate::graph::{Graph, GraphNode, Meta, Operation, ValueRef, cost};

/// Work that may be done twice, as a share of all.
const WORK: f64 = 0.02;
/// Floating-point operations in the time that a byte takes.
const FLOPS_OF_BYTE: f64 = 8.0;
/// Operations for each element of a value that is cheap.
const CHEAP: f64 = 32.0;
/// The share of the peak that a value has to be, so that thousands of small ones are left alone.
const WORTH: f64 = 0.0005;

pub(super) fn run(graph: Graph) -> Graph {
    if graph.nodes.iter().any(|node| node.operation.updates_in_place()) {
        return graph;
    }
    let lives = Lives::of(&graph);
    let (before, peak) = lives.peak();
    let again = chosen(&graph, lives, (before, peak));
    if again.is_empty() {
        return graph;
    }
    // A view whose readers all look at the second value would keep the first.
    let repeated = dce::run(repeated(&graph, &again, peak));
    let after = Lives::of(&repeated).peak().0;
    if after >= before {
        return graph;
    }
    tracing::debug!(before, after, "bytes held at once");
    repeated
}

/// A node that is made again before another one, its first reader behind the peak.
struct Again {
    node: usize,
    before: usize,
}

/// What to make again: the largest first, while the work allows.
fn chosen(graph: &Graph, mut lives: Lives, (most, peak): (usize, usize)) -> Vec<Again> {
    let readers = readers(graph);
    let mut candidates: Vec<(usize, usize, usize)> = Vec::new();
    for index in (0..graph.nodes.len()).take(peak + 1) {
        let near = readers[index].iter().rfind(|&&reader| reader as usize <= peak);
        let late = readers[index].iter().find(|&&reader| reader as usize > peak);
        let large = lives.bytes[index] as f64 >= WORTH * most as f64;
        if let (Some(&near), Some(&late)) = (near, late)
            && large
            && is_cheap(graph, index)
            && lives.last[index] < graph.nodes.len()
        {
            candidates.push((index, near as usize, late as usize));
        }
    }
    candidates.sort_by_key(|&(index, ..)| Reverse(lives.bytes[index]));
    let mut left = WORK * graph.nodes.iter().map(|node| work(graph, node)).sum::<f64>();
    let mut again = Vec::new();
    for (index, near, late) in candidates {
        let node = &graph.nodes[index];
        let there = |input: &ValueRef| {
            let owner = lives.owners[input.node as usize];
            graph.nodes[owner].operation.is_given() || lives.last[owner] >= late
        };
        let cost = work(graph, node);
        if cost <= left && node.inputs.iter().all(there) {
            left -= cost;
            // What is made again is not there for others.
            lives.last[index] = near;
            again.push(Again {
                node: index,
                before: late,
            });
        }
    }
    again
}

/// The readers of each node's memory, through views too, in their order. Views do not count: what reads them does.
fn readers(graph: &Graph) -> Vec<SmallVec<[u32; 4]>> {
    let mut readers: Vec<SmallVec<[u32; 4]>> = vec![SmallVec::new(); graph.nodes.len()];
    for (index, node) in graph
        .nodes
        .iter()
        .enumerate()
        .filter(|(_, node)| !node.operation.is_view())
    {
        for input in &node.inputs {
            readers[source(graph, input.node as usize)].push(index as u32);
        }
    }
    readers
}

/// What a view looks at in the end.
fn source(graph: &Graph, mut index: usize) -> usize {
    while graph.nodes[index].operation.is_view() {
        index = graph.nodes[index].inputs[0].node as usize;
    }
    index
}

/// One value, made element by element or row by row in a few operations each.
fn is_cheap(graph: &Graph, index: usize) -> bool {
    use Operation as O;
    let node = &graph.nodes[index];
    let kind = match &node.operation {
        O::Elementwise(expression) => expression.reduction().is_none(),
        O::RMSNorm { .. } | O::LayerNorm { .. } | O::SwiGLU | O::GELU { .. } | O::Rope { .. } => true,
        other => other.is_elementwise(),
    };
    let [made] = &node.outputs[..] else { return false };
    kind && flops(graph, node) <= CHEAP * made.shape.elem_count() as f64
}

fn flops(graph: &Graph, node: &GraphNode) -> f64 {
    let inputs: SmallVec<[&Meta; 4]> = node.inputs.iter().map(|&input| graph.meta(input)).collect();
    cost::flops(&node.operation, &inputs, &node.outputs)
}

/// The time of a node, in the operations that could be done in it.
fn work(graph: &Graph, node: &GraphNode) -> f64 {
    if node.operation.is_view() || node.operation.is_given() {
        return 0.0;
    }
    let read: usize = node.inputs.iter().map(|&input| graph.meta(input).bytes()).sum();
    let made: usize = node.outputs.iter().map(Meta::bytes).sum();
    flops(graph, node).max(FLOPS_OF_BYTE * (read + made) as f64)
}

/// The graph with those nodes twice. What reads them behind the peak reads the second ones, and so do views that it looks
/// through: they are made again too.
fn repeated(graph: &Graph, again: &[Again], peak: usize) -> Graph {
    let mut is_again = vec![false; graph.nodes.len()];
    let mut due: Vec<SmallVec<[usize; 1]>> = vec![SmallVec::new(); graph.nodes.len()];
    for one in again {
        is_again[one.node] = true;
        due[one.before].push(one.node);
    }
    // A view of such a value stands for it.
    for index in 0..graph.nodes.len() {
        is_again[index] |=
            graph.nodes[index].operation.is_view() && is_again[graph.nodes[index].inputs[0].node as usize];
    }
    let mut copy = Copy {
        graph,
        is_again,
        first: vec![0; graph.nodes.len()],
        second: vec![None; graph.nodes.len()],
        nodes: Vec::with_capacity(graph.nodes.len() + again.len()),
    };
    for (index, node) in graph.nodes.iter().enumerate() {
        let late = index > peak && !copy.is_again[index];
        due[index].iter().for_each(|&made| copy.make_again(made));
        let inputs = node.inputs.iter().map(|&input| copy.place(input, late)).collect();
        copy.first[index] = copy.nodes.len() as u32;
        copy.nodes.push(GraphNode { inputs, ..node.clone() });
    }
    let outputs = graph.outputs.iter().map(|&output| copy.place(output, false)).collect();
    Graph {
        outputs,
        nodes: copy.nodes,
        device: graph.device.clone(),
    }
}

struct Copy<'a> {
    graph: &'a Graph,
    /// Whether a node, or what a view looks at, is made twice.
    is_again: Vec<bool>,
    /// Where each node is, and where it is the second time.
    first: Vec<u32>,
    second: Vec<Option<u32>>,
    nodes: Vec<GraphNode>,
}

impl Copy<'_> {
    /// A value for a node: of a late one, the second of those that are made twice.
    fn place(&mut self, value: ValueRef, late: bool) -> ValueRef {
        let index = value.node as usize;
        if late && self.is_again[index] {
            self.make_again(index);
        }
        let node = self.second[index].filter(|_| late).unwrap_or(self.first[index]);
        ValueRef { node, ..value }
    }

    /// A node the second time, with the views down to what it looks at.
    fn make_again(&mut self, index: usize) {
        let mut path: SmallVec<[usize; 4]> = SmallVec::new();
        let mut at = index;
        while self.second[at].is_none() {
            path.push(at);
            if !self.graph.nodes[at].operation.is_view() {
                break;
            }
            at = self.graph.nodes[at].inputs[0].node as usize;
        }
        for &at in path.iter().rev() {
            let node = &self.graph.nodes[at];
            let inputs = node.inputs.iter().map(|input| {
                let index = input.node as usize;
                ValueRef {
                    node: self.second[index].unwrap_or(self.first[index]),
                    ..*input
                }
            });
            let node = GraphNode {
                inputs: inputs.collect(),
                ..node.clone()
            };
            self.second[at] = Some(self.nodes.len() as u32);
            self.nodes.push(node);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::schedule;
    use super::super::testing::{input, operations};
    use super::*;
    use crate::graph::numbered;
    use crate::{LazyTensor, Result, value_and_grad};

    fn peaks(outputs: &[LazyTensor]) -> (usize, usize) {
        let graph = schedule::run(numbered::flatten(outputs).unwrap().graph);
        let before = Lives::of(&graph).peak().0;
        (before, Lives::of(&run(graph)).peak().0)
    }

    /// Layers of a product with a low-rank term and an activation, and the gradients of the low-rank factors.
    fn layers(count: usize, activation: fn(&LazyTensor) -> Result<LazyTensor>) -> Result<Vec<LazyTensor>> {
        let mut factors = Vec::new();
        let mut x = input(&[128, 1024]);
        for _ in 0..count {
            let (a, b) = (input(&[1024, 4]), input(&[4, 1024]));
            let low_rank = x.matmul(&a)?.matmul(&b)?;
            x = activation(&x.matmul(&input(&[1024, 1024]))?.add(&low_rank)?)?;
            factors.extend([a, b]);
        }
        let (loss, gradients) = value_and_grad(&x.sum_all()?, &factors)?;
        Ok([vec![loss], gradients].concat())
    }

    #[test]
    fn activations_of_a_gradient_are_made_again() -> Result<()> {
        // The gradient of the sine needs what went into it; the next product's what came out of it.
        let outputs = layers(6, LazyTensor::sin)?;
        let (before, after) = peaks(&outputs);
        assert!((after as f64) < 0.8 * before as f64, "{before} became {after}");
        let text = operations(&outputs, |graph| run(schedule::run(graph)));
        let plain = operations(&outputs, |graph| graph);
        assert!(
            text.matches(" = Sin(").count() > plain.matches(" = Sin(").count(),
            "{text}"
        );
        Ok(())
    }

    #[test]
    fn what_cannot_be_made_of_what_is_there_is_kept() -> Result<()> {
        // The gradient of the exponential needs the result alone: its input is gone.
        let outputs = layers(6, LazyTensor::exp)?;
        assert_eq!(operations(&outputs, run), operations(&outputs, |graph| graph));
        Ok(())
    }

    #[test]
    fn products_are_not_made_again() -> Result<()> {
        let outputs = layers(6, |x| x.add(&x.mul_scalar(0.5)?.matmul(&input(&[1024, 1024]))?))?;
        let products = |text: &str| text.matches(" = Matmul(").count();
        let (text, plain) = (operations(&outputs, run), operations(&outputs, |graph| graph));
        assert_eq!(products(&text), products(&plain));
        Ok(())
    }
}
