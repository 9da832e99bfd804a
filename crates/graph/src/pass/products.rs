//! Puts products and what is added to them into one operation: `x W + (x A) B + x` is one sum whose terms never reach
//! memory. Additions keep their order. A term that anything else uses stays as it is.

use smallvec::SmallVec;

use crate::fused::matmul_sum::SumTerm;
use crate::graph::verify::is_float;
use crate::graph::{Graph, GraphNode, Operation, ValueRef};

/// Addends of a sum, at most: a bias and a residual.
const ADDENDS: usize = 2;

/// What a node is the sum of.
#[derive(Clone)]
struct Sum {
    terms: Vec<SumTerm>,
    inputs: SmallVec<[ValueRef; 3]>,
    scale: f32,
}

impl Sum {
    fn count(&self, kind: SumTerm) -> usize {
        self.terms.iter().filter(|&&term| term == kind).count()
    }

    fn is_plain(&self) -> bool {
        self.scale.to_bits() == 1f32.to_bits()
    }

    /// Only a product.
    fn is_product(&self) -> bool {
        self.terms == [SumTerm::Product] && self.is_plain()
    }
}

pub(super) fn run(mut graph: Graph) -> Graph {
    let alone = alone(&graph);
    let mut sums: Vec<Option<Sum>> = Vec::with_capacity(graph.nodes.len());
    for node in &graph.nodes {
        let sum = sum_of(&graph, node, &sums, &alone);
        sums.push(sum);
    }
    // What went into another's sum is left without users.
    for (node, sum) in graph.nodes.iter_mut().zip(sums) {
        if let Some(sum) = sum.filter(|sum| sum.terms.len() > 1 || !sum.is_plain()) {
            node.operation = Operation::MatmulSum {
                terms: sum.terms,
                scale: sum.scale,
            };
            node.inputs = sum.inputs;
        }
    }
    graph
}

/// For each node whether exactly one input of one other node uses it.
fn alone(graph: &Graph) -> Vec<bool> {
    let mut uses = vec![0usize; graph.nodes.len()];
    let inputs = graph.nodes.iter().flat_map(|node| &node.inputs);
    inputs.for_each(|input| uses[input.node as usize] += 1);
    graph.outputs.iter().for_each(|output| uses[output.node as usize] += 2);
    uses.into_iter().map(|uses| uses == 1).collect()
}

fn sum_of(graph: &Graph, node: &GraphNode, sums: &[Option<Sum>], alone: &[bool]) -> Option<Sum> {
    let made = &node.outputs[0];
    let free = |value: ValueRef| {
        let same = graph.meta(value) == made && alone[value.node as usize];
        sums[value.node as usize].as_ref().filter(|sum| same && sum.is_plain())
    };
    match (&node.operation, &*node.inputs) {
        (Operation::Matmul, &[a, b]) if graph.meta(b).shape.rank() == 2 && graph.meta(a).shape.rank() >= 2 => {
            Some(Sum {
                terms: vec![SumTerm::Product],
                inputs: SmallVec::from_slice(&[a, b]),
                scale: 1.0,
            })
        }
        (&Operation::MulScalar { value }, &[x]) => free(x).filter(|sum| sum.is_product()).map(|sum| Sum {
            scale: value,
            ..sum.clone()
        }),
        (Operation::Add, &[x, y]) if is_float(made.dtype) => {
            // Addition commutes, bit for bit: the longer sum goes first.
            let length = |value| free(value).map_or(0, |sum| sum.terms.len());
            let (first, then) = if length(x) < length(y) { (y, x) } else { (x, y) };
            extended(graph, node, free(first)?, then, free(then))
        }
        _ => None,
    }
}

/// A sum with another value added to it.
fn extended(graph: &Graph, node: &GraphNode, sum: &Sum, value: ValueRef, other: Option<&Sum>) -> Option<Sum> {
    let mut sum = sum.clone();
    if let Some(product) = other.filter(|other| other.is_product()) {
        sum.terms.push(SumTerm::Product);
        sum.inputs.extend_from_slice(&product.inputs);
        return Some(sum);
    }
    let (dims, made) = (graph.meta(value).shape.dims(), node.outputs[0].shape.dims());
    let row = dims.iter().product::<usize>() == made[made.len() - 1] && dims.last() == made.last();
    if sum.count(SumTerm::Addend) == ADDENDS || !(row || dims == made) {
        return None;
    }
    sum.terms.push(SumTerm::Addend);
    sum.inputs.push(value);
    Some(sum)
}
