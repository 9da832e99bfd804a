//! Rematerialisation: a cheap value that is live across the peak of memory, with readers before and long after it (in a
//! gradient), is recomputed for its late readers from inputs that are live then anyway. Bits do not change: it is the
//! same operation on the same values.

use std::cmp::Reverse;

use smallvec::SmallVec;

use super::dce;
use super::live_ranges::LiveRanges;
use crate::graph::{Graph, GraphNode, Meta, Operation, ValueRef, cost};

/// Maximum recomputed work, as a share of all work.
const WORK: f64 = 0.02;
/// Floating-point operations in the time of moving one byte.
const FLOPS_OF_BYTE: f64 = 8.0;
/// Maximum operations per element of a value that is cheap to recompute.
const CHEAP: f64 = 32.0;
/// Minimum size of a recomputed value as a share of the peak, so that thousands of small ones are left alone.
const WORTH: f64 = 0.0005;

pub(super) fn run(graph: Graph) -> Graph {
    if graph.nodes.iter().any(|node| node.operation.updates_in_place()) {
        return graph;
    }
    let live_ranges = LiveRanges::of(&graph);
    let (before, peak) = live_ranges.peak();
    let again = chosen(&graph, live_ranges, (before, peak));
    if again.is_empty() {
        return graph;
    }
    // A view whose readers have all moved to the recomputed value would keep the first one alive.
    let repeated = dce::run(repeated(&graph, &again, peak));
    let after = LiveRanges::of(&repeated).peak().0;
    if after >= before {
        return graph;
    }
    tracing::debug!(before, after, "bytes held at once");
    repeated
}

/// A node to recompute before another one, its first reader after the peak.
struct Recompute {
    node: usize,
    before: usize,
}

/// Chooses the nodes to recompute: the largest first, within the work limit.
fn chosen(graph: &Graph, mut live_ranges: LiveRanges, (most, peak): (usize, usize)) -> Vec<Recompute> {
    let readers = readers(graph);
    let mut candidates: Vec<(usize, usize, usize)> = Vec::new();
    for index in (0..graph.nodes.len()).take(peak + 1) {
        let near = readers[index].iter().rfind(|&&reader| reader as usize <= peak);
        let late = readers[index].iter().find(|&&reader| reader as usize > peak);
        let large = live_ranges.bytes[index] as f64 >= WORTH * most as f64;
        if let (Some(&near), Some(&late)) = (near, late)
            && large
            && is_cheap(graph, index)
            && live_ranges.last[index] < graph.nodes.len()
        {
            candidates.push((index, near as usize, late as usize));
        }
    }
    candidates.sort_by_key(|&(index, ..)| Reverse(live_ranges.bytes[index]));
    let mut left = WORK * graph.nodes.iter().map(|node| work(graph, node)).sum::<f64>();
    let mut again = Vec::new();
    for (index, near, late) in candidates {
        let node = &graph.nodes[index];
        let there = |input: &ValueRef| {
            let owner = live_ranges.owners[input.node as usize];
            graph.nodes[owner].operation.is_given() || live_ranges.last[owner] >= late
        };
        let cost = work(graph, node);
        if cost <= left && node.inputs.iter().all(there) {
            left -= cost;
            // A recomputed node cannot be an input of other recomputed nodes.
            live_ranges.last[index] = near;
            again.push(Recompute {
                node: index,
                before: late,
            });
        }
    }
    again
}

/// The readers of each node's memory, in order, looking through views. Views themselves do not count.
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

/// The source of a chain of views.
fn source(graph: &Graph, mut index: usize) -> usize {
    while graph.nodes[index].operation.is_view() {
        index = graph.nodes[index].inputs[0].node as usize;
    }
    index
}

/// Whether a node has one output, computed with a few operations per element or row.
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

/// The cost of a node, in floating-point operations including the time for moving bytes.
fn work(graph: &Graph, node: &GraphNode) -> f64 {
    if node.operation.is_view() || node.operation.is_given() {
        return 0.0;
    }
    let read: usize = node.inputs.iter().map(|&input| graph.meta(input).bytes()).sum();
    let made: usize = node.outputs.iter().map(Meta::bytes).sum();
    flops(graph, node).max(FLOPS_OF_BYTE * (read + made) as f64)
}

/// The graph with these nodes duplicated. Readers after the peak use the duplicates, and so do the views in between,
/// which are duplicated too.
fn repeated(graph: &Graph, again: &[Recompute], peak: usize) -> Graph {
    let mut is_again = vec![false; graph.nodes.len()];
    let mut due: Vec<SmallVec<[usize; 1]>> = vec![SmallVec::new(); graph.nodes.len()];
    for one in again {
        is_again[one.node] = true;
        due[one.before].push(one.node);
    }
    // A view of a duplicated node is duplicated with it.
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
        due[index].iter().for_each(|&made| copy.recompute(made));
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
    /// Whether a node, or the source of a view, is duplicated.
    is_again: Vec<bool>,
    /// The new index of each node, and that of its duplicate.
    first: Vec<u32>,
    second: Vec<Option<u32>>,
    nodes: Vec<GraphNode>,
}

impl Copy<'_> {
    /// The new value for a reader: for a late one, that of the duplicate, if any.
    fn place(&mut self, value: ValueRef, late: bool) -> ValueRef {
        let index = value.node as usize;
        if late && self.is_again[index] {
            self.recompute(index);
        }
        let node = self.second[index].filter(|_| late).unwrap_or(self.first[index]);
        ValueRef { node, ..value }
    }

    /// Inserts the duplicate of a node, with the views between it and its source.
    fn recompute(&mut self, index: usize) {
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
        let before = LiveRanges::of(&graph).peak().0;
        (before, LiveRanges::of(&run(graph)).peak().0)
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
    fn activations_of_a_gradient_are_recomputed() -> Result<()> {
        // The gradient of the sine needs its input; the next product needs its output.
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
    fn values_with_dead_inputs_are_kept() -> Result<()> {
        // The gradient of the exponential needs only its output: its input is dead.
        let outputs = layers(6, LazyTensor::exp)?;
        assert_eq!(operations(&outputs, run), operations(&outputs, |graph| graph));
        Ok(())
    }

    #[test]
    fn products_are_not_recomputed() -> Result<()> {
        let outputs = layers(6, |x| x.add(&x.mul_scalar(0.5)?.matmul(&input(&[1024, 1024]))?))?;
        let products = |text: &str| text.matches(" = Matmul(").count();
        let (text, plain) = (operations(&outputs, run), operations(&outputs, |graph| graph));
        assert_eq!(products(&text), products(&plain));
        Ok(())
    }
}
