//! Joins narrow products with a common left factor: the low-rank factors of layers with the same input, and the
//! gradients of those factors, read it once. Only independent products are joined.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use candle_core::DType;
use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use crate::fused::matmul_sum::SumTerm;
use crate::graph::verify::is_float;
use crate::graph::{Graph, GraphNode, Operation, ValueRef};

/// Maximum columns of a product that is joined: wider ones fill registers by themselves.
const NARROW: usize = 64;
/// Minimum rows of the left factor: with fewer, packing the right factors side by side costs more than it saves.
const ROWS: usize = 16;

pub(super) fn run(graph: Graph) -> Graph {
    let groups = independent(&graph, groups(&graph));
    if groups.is_empty() {
        return graph;
    }
    // Two groups may depend on each other; then nothing is joined.
    joined(&graph, &groups).unwrap_or(graph)
}

/// The key of products that can be joined: the left factor, the bits of the scale, and the result's dtype.
type ProductKey = (ValueRef, u32, DType);

/// The key of a narrow product.
fn narrow(graph: &Graph, node: &GraphNode) -> Option<ProductKey> {
    let (&[a, b], scale) = (&node.inputs[..], scale_of(&node.operation)?) else {
        return None;
    };
    let made = &node.outputs[0];
    let dims = made.shape.dims();
    let columns = *dims.last()?;
    let is_narrow = graph.meta(b).shape.rank() == 2 && columns <= NARROW && made.shape.elem_count() >= ROWS * columns;
    (is_narrow && columns > 0 && is_float(made.dtype)).then_some((a, scale.to_bits(), made.dtype))
}

fn scale_of(operation: &Operation) -> Option<f32> {
    match operation {
        Operation::Matmul => Some(1.0),
        Operation::MatmulSum { terms, scale, .. } if terms[..] == [SumTerm::Product] => Some(*scale),
        _ => None,
    }
}

/// Groups of two or more narrow products with the same key.
fn groups(graph: &Graph) -> Vec<Vec<usize>> {
    let mut found: FxHashMap<ProductKey, Vec<usize>> = FxHashMap::default();
    for (index, node) in graph.nodes.iter().enumerate() {
        if let Some(key) = narrow(graph, node) {
            found.entry(key).or_default().push(index);
        }
    }
    let mut groups: Vec<Vec<usize>> = found.into_values().filter(|group| group.len() > 1).collect();
    groups.sort_unstable();
    groups
}

/// Removes members that depend on another member of their group.
fn independent(graph: &Graph, groups: Vec<Vec<usize>>) -> Vec<Vec<usize>> {
    let kept = groups.into_iter().map(|group| {
        let (first, last) = (group[0], group[group.len() - 1]);
        // Whether a node depends on a kept member, from the first member on.
        let mut needs = vec![false; last + 1 - first];
        let mut kept = Vec::with_capacity(group.len());
        for index in first..=last {
            let inputs = graph.nodes[index].inputs.iter().map(|input| input.node as usize);
            needs[index - first] = inputs.filter(|&input| input >= first).any(|input| needs[input - first]);
            if group.contains(&index) && !needs[index - first] {
                kept.push(index);
                needs[index - first] = true;
            }
        }
        kept
    });
    kept.filter(|group| group.len() > 1).collect()
}

/// The graph with one node per group, otherwise in the old order if inputs come first; `None` if that is impossible.
fn joined(graph: &Graph, groups: &[Vec<usize>]) -> Option<Graph> {
    // The first member represents its group.
    let mut stands: Vec<(usize, u32)> = (0..graph.nodes.len()).map(|index| (index, 0)).collect();
    let mut members: FxHashMap<usize, &[usize]> = FxHashMap::default();
    for group in groups {
        members.insert(group[0], group);
        group
            .iter()
            .zip(0..)
            .for_each(|(&index, place)| stands[index] = (group[0], place));
    }
    let of = |index: usize| -> SmallVec<[usize; 4]> {
        members
            .get(&index)
            .map_or_else(|| SmallVec::from_slice(&[index]), |group| SmallVec::from_slice(group))
    };
    let order = sorted(graph, &stands, &of)?;
    let mut places = vec![0u32; graph.nodes.len()];
    order.iter().zip(0..).for_each(|(&index, place)| places[index] = place);
    let moved = |value: &ValueRef| {
        let (index, output) = stands[value.node as usize];
        ValueRef {
            node: places[index],
            output: value.output + output,
        }
    };
    let nodes = order.iter().map(|&index| {
        let (node, all) = (&graph.nodes[index], of(index));
        if all.len() == 1 {
            return GraphNode {
                inputs: node.inputs.iter().map(moved).collect(),
                ..node.clone()
            };
        }
        let factors = all.iter().map(|&member| moved(&graph.nodes[member].inputs[1]));
        GraphNode {
            operation: Operation::SharedMatmul {
                count: all.len(),
                scale: scale_of(&node.operation).unwrap_or(1.0),
                dtype: node.outputs[0].dtype,
            },
            inputs: std::iter::once(moved(&node.inputs[0])).chain(factors).collect(),
            outputs: all
                .iter()
                .map(|&member| graph.nodes[member].outputs[0].clone())
                .collect(),
        }
    });
    Some(Graph {
        nodes: nodes.collect(),
        outputs: graph.outputs.iter().map(moved).collect(),
        device: graph.device.clone(),
    })
}

/// The remaining nodes in topological order, the earliest first.
fn sorted(graph: &Graph, stands: &[(usize, u32)], of: &impl Fn(usize) -> SmallVec<[usize; 4]>) -> Option<Vec<usize>> {
    let count = graph.nodes.len();
    let mut waits = vec![0usize; count];
    let mut users: Vec<SmallVec<[u32; 2]>> = vec![SmallVec::new(); count];
    let stays: Vec<usize> = (0..count).filter(|&index| stands[index].0 == index).collect();
    for &index in &stays {
        for member in of(index) {
            for input in &graph.nodes[member].inputs {
                users[stands[input.node as usize].0].push(index as u32);
                waits[index] += 1;
            }
        }
    }
    let mut ready: BinaryHeap<Reverse<usize>> = stays.iter().filter(|&&i| waits[i] == 0).map(|&i| Reverse(i)).collect();
    let mut order = Vec::with_capacity(stays.len());
    while let Some(Reverse(index)) = ready.pop() {
        order.push(index);
        for &user in &users[index] {
            waits[user as usize] -= 1;
            if waits[user as usize] == 0 {
                ready.push(Reverse(user as usize));
            }
        }
    }
    (order.len() == stays.len()).then_some(order)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{input, operations};
    use super::*;
    use crate::{LazyTensor, Result};

    /// The optimised outputs of `f(x)` as text, with `x (20, 6)`.
    fn left(f: impl Fn(&LazyTensor) -> Result<Vec<LazyTensor>>) -> String {
        operations(&f(&input(&[20, 6])).unwrap(), run)
    }

    #[test]
    fn low_rank_factors_of_one_input_are_one_product() {
        let expected = "\
%4 = SharedMatmul count=2 scale=1(%0, %1, %3) : f32[20, 4], f32[20, 3]
%5 = Matmul(%4, %2) : f32[20, 7]
%7 = Matmul(%4.1, %6) : f32[20, 8]
return %5, %7
";
        let found = left(|x| {
            let (first, second) = (x.matmul(&input(&[6, 4]))?, x.matmul(&input(&[6, 3]))?);
            Ok(vec![first.matmul(&input(&[4, 7]))?, second.matmul(&input(&[3, 8]))?])
        });
        assert_eq!(found, expected);
    }

    #[test]
    fn scales_differ_or_agree() {
        let both = |first: f32, second: f32| {
            let x = input(&[20, 6]);
            let outputs = [first, second].map(|s| x.matmul(&input(&[6, 2])).unwrap().mul_scalar(s).unwrap());
            operations(&outputs, |graph| run(super::super::products::run(graph)))
        };
        assert!(both(0.5, 0.5).contains("SharedMatmul count=2 scale=0.5("));
        assert!(!both(0.5, 2.0).contains("SharedMatmul"));
    }

    #[test]
    fn dependent_members_are_not_joined() {
        // The second factor is computed from the first product; the third is not.
        let text = left(|x| {
            let first = x.matmul(&input(&[6, 4]))?;
            let second = x.matmul(&first.sum(0)?.reshape(&[1, 4])?.broadcast_to(&[6, 4])?)?;
            Ok(vec![second, x.matmul(&input(&[6, 2]))?])
        });
        assert!(
            text.contains("SharedMatmul count=2 scale=1") && text.contains(" = Matmul("),
            "{text}"
        );
    }

    #[test]
    fn mutually_dependent_groups_are_not_joined() {
        let y = input(&[20, 6]);
        let text = left(|x| {
            let tall = |z: &LazyTensor| z.sum(0)?.reshape(&[1, 3])?.broadcast_to(&[6, 3]);
            let (a, b) = (x.matmul(&input(&[6, 3]))?, y.matmul(&input(&[6, 3]))?);
            Ok(vec![y.matmul(&tall(&a)?)?, x.matmul(&tall(&b)?)?])
        });
        assert!(!text.contains("SharedMatmul"), "{text}");
        assert_eq!(text.matches(" = Matmul(").count(), 4, "{text}");
    }

    #[test]
    fn wide_products_and_few_rows_are_not_joined() {
        for (x, b) in [(input(&[20, 6]), [6, NARROW + 1]), (input(&[ROWS - 1, 6]), [6, 2])] {
            let text = operations(&[0, 1].map(|_| x.matmul(&input(&b)).unwrap()), run);
            assert!(!text.contains("SharedMatmul"), "{text}");
        }
    }
}
