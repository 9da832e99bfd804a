//! Fuses elementwise operations into expressions: a value with a single user, an expression of the same shape, becomes
//! part of it; so does a row reduction (sum or maximum) at its end. Each expression has one result, so fusion creates
//! no cycles, and nothing but constants is computed twice.

use std::sync::Arc;

use candle_core::{DType, Shape};
use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use crate::fused::elementwise::{Expression, Operand, Reduction, Term};
use crate::graph::verify::is_float;
use crate::graph::{Graph, GraphNode, Operation, ValueRef};

/// Maximum number of operations of an expression, and of its inputs: what a loop keeps in the L1 cache.
const TERMS: usize = 24;
const INPUTS: usize = 12;

/// Minimum length of a row that is reduced in an expression: for shorter rows the overhead exceeds the savings.
const ROW: usize = 1024;

/// The type in which an expression computes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ComputeType {
    Single,
    Double,
}

pub(super) fn run(graph: Graph) -> Graph {
    let groups = groups(&graph);
    let mut members: FxHashMap<usize, Vec<usize>> = FxHashMap::default();
    for (index, group) in groups.iter().enumerate() {
        if let Some(root) = *group {
            members.entry(root).or_default().push(index);
        }
    }
    if members.values().all(|group| group.len() < 2) {
        return graph;
    }
    let mut numbers = vec![0u32; graph.nodes.len()];
    let mut nodes: Vec<GraphNode> = Vec::with_capacity(graph.nodes.len());
    for (index, node) in graph.nodes.iter().enumerate() {
        let root = groups[index];
        if root.is_some_and(|root| root != index) {
            continue;
        }
        let fused = root.and_then(|root| members.get(&root)).filter(|group| group.len() > 1);
        let mut node = fused.map_or_else(|| node.clone(), |group| express(&graph, group));
        for input in &mut node.inputs {
            input.node = numbers[input.node as usize];
        }
        numbers[index] = nodes.len() as u32;
        nodes.push(node);
    }
    let renumbered = |v: &ValueRef| ValueRef {
        node: numbers[v.node as usize],
        ..*v
    };
    Graph {
        nodes,
        outputs: graph.outputs.iter().map(renumbered).collect(),
        device: graph.device,
    }
}

/// An elementwise node as an expression of one operation; `None` for one that is not computed in f32 or f64 throughout.
pub(crate) fn expression_of(graph: &Graph, index: usize) -> Option<GraphNode> {
    compute_type(graph, &graph.nodes[index]).map(|_| express(graph, &[index]))
}

/// For each elementwise node, the last node of its group.
fn groups(graph: &Graph) -> Vec<Option<usize>> {
    let count = graph.nodes.len();
    let mut users: Vec<SmallVec<[u32; 2]>> = vec![SmallVec::new(); count];
    for (index, node) in graph.nodes.iter().enumerate() {
        for input in &node.inputs {
            users[input.node as usize].push(index as u32);
        }
    }
    let mut wanted = vec![false; count];
    for output in &graph.outputs {
        wanted[output.node as usize] = true;
    }
    let mut groups: Vec<Option<usize>> = vec![None; count];
    let mut sizes: FxHashMap<usize, (usize, usize)> = FxHashMap::default();
    for index in (0..count).rev() {
        let node = &graph.nodes[index];
        if reduced(graph, node).is_some() {
            groups[index] = Some(index);
            sizes.insert(index, (1, 1));
            continue;
        }
        let Some(numbers) = compute_type(graph, node).filter(|_| node.outputs[0].shape.elem_count() > 0) else {
            continue;
        };
        let shared = users[index].first().and_then(|&user| groups[user as usize]);
        let joins = |root: usize| {
            let (terms, inputs) = sizes[&root];
            !wanted[index]
                && users[index].iter().all(|&user| groups[user as usize] == Some(root))
                && loop_shape(graph, root) == &node.outputs[0].shape
                && compute_type(graph, &graph.nodes[root]) == Some(numbers)
                && terms < TERMS
                && inputs + node.inputs.len() <= INPUTS + 1
        };
        let root = shared.filter(|&root| joins(root)).unwrap_or(index);
        groups[index] = Some(root);
        let size = sizes.entry(root).or_insert((0, 0));
        // Joining replaces one input by the inputs of the joined node.
        *size = (
            size.0 + 1,
            (size.1 + node.inputs.len()).saturating_sub(usize::from(root != index)),
        );
    }
    groups
}

/// The input of a row reduction of long rows of floating-point numbers.
fn reduced(graph: &Graph, node: &GraphNode) -> Option<ValueRef> {
    let &[input] = &node.inputs[..] else { return None };
    let meta = graph.meta(input);
    let Reduction { first, .. } = Reduction::of(&node.operation, &meta.shape)?;
    let row: usize = meta.shape.dims()[first..].iter().product();
    (row >= ROW && meta.shape.elem_count() > 0 && is_float(meta.dtype)).then_some(input)
}

/// The shape of the loop whose last operation is this node.
fn loop_shape(graph: &Graph, index: usize) -> &Shape {
    let node = &graph.nodes[index];
    reduced(graph, node).map_or(&node.outputs[0].shape, |input| &graph.meta(input).shape)
}

/// The type in which an elementwise node or row reduction computes; `None` if it is not fused: integers, and casts
/// between f32 and f64.
fn compute_type(graph: &Graph, node: &GraphNode) -> Option<ComputeType> {
    if !node.operation.is_elementwise() && reduced(graph, node).is_none() {
        return None;
    }
    let mut found = None;
    let dtypes = node.inputs.iter().map(|&input| graph.meta(input).dtype);
    for dtype in dtypes.chain([node.outputs[0].dtype]) {
        let numbers = match dtype {
            DType::F64 => ComputeType::Double,
            // A mask: the result of a comparison, the condition of a select, or a mask that is cast to a number.
            DType::U8 => continue,
            other if is_float(other) => ComputeType::Single,
            _ => return None,
        };
        if found.is_some_and(|other| other != numbers) {
            return None;
        }
        found = Some(numbers);
    }
    let masks = node.outputs[0].dtype == DType::U8 && !matches!(node.operation, Operation::Cast { .. })
        || node.outputs[0].dtype != DType::U8;
    found.filter(|_| masks)
}

/// A single node for a group. Constants become part of it, unless it would have no input left.
fn express(graph: &Graph, group: &[usize]) -> GraphNode {
    let node = express_with(graph, group, true);
    if node.inputs.is_empty() {
        return express_with(graph, group, false);
    }
    node
}

fn express_with(graph: &Graph, group: &[usize], constants: bool) -> GraphNode {
    let mut inputs: SmallVec<[ValueRef; 3]> = SmallVec::new();
    let mut terms: Vec<Term> = Vec::with_capacity(group.len());
    let mut places: FxHashMap<u32, usize> = FxHashMap::default();
    for &index in group {
        let node = &graph.nodes[index];
        let mut operands = SmallVec::new();
        for &input in &node.inputs {
            let source = &graph.nodes[input.node as usize];
            if let Operation::Constant { .. } = source.operation
                && constants
                && !places.contains_key(&input.node)
            {
                places.insert(input.node, terms.len());
                terms.push(term(source, SmallVec::new()));
            }
            operands.push(match places.get(&input.node) {
                Some(&place) => Operand::Term(place),
                None => Operand::Input(inputs.iter().position(|&i| i == input).unwrap_or_else(|| {
                    inputs.push(input);
                    inputs.len() - 1
                })),
            });
        }
        places.insert(index as u32, terms.len());
        terms.push(term(node, operands));
    }
    let metas = inputs.iter().map(|&input| graph.meta(input).clone()).collect();
    let last = &graph.nodes[group[group.len() - 1]];
    GraphNode {
        operation: Operation::Elementwise(Arc::new(Expression { inputs: metas, terms })),
        inputs,
        outputs: last.outputs.clone(),
    }
}

fn term(node: &GraphNode, operands: SmallVec<[Operand; 3]>) -> Term {
    Term {
        operation: node.operation.clone(),
        operands,
        meta: node.outputs[0].clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{input, of, operations};
    use super::*;
    use crate::{LazyTensor, Result};

    fn left(outputs: Result<Vec<LazyTensor>>) -> String {
        operations(&outputs.unwrap(), run)
    }

    #[test]
    fn a_sum_of_rows_ends_an_expression() {
        let (x, y) = (input(&[5, 1024]), input(&[1024]));
        let rows = left(
            x.sub(&y)
                .and_then(|d| d.mul(&d)?.sum_keepdim(&[1]))
                .map(|sum| vec![sum]),
        );
        assert_eq!(
            rows,
            "%2 = Elementwise [t0 = Sub #0 #1; t1 = Mul t0 t0; t2 = Sum dims=[1] t1](%0, %1) : f32[5, 1]\nreturn %2\n"
        );
        let all = left(x.exp().and_then(|e| e.max_keepdim(&[0, 1])).map(|max| vec![max]));
        assert!(all.contains("[t0 = Exp #0; t1 = Max dims=[0, 1] t0]"), "{all}");
        // The operations that follow are another loop.
        let scaled = left(
            x.abs()
                .and_then(|a| a.sum_keepdim(&[1])?.sqrt()?.neg())
                .map(|y| vec![y]),
        );
        assert_eq!(scaled.matches("Elementwise").count(), 2, "{scaled}");
    }

    #[test]
    fn other_sums_are_not_fused() {
        let x = input(&[1024, 1024]);
        let columns = x.exp().and_then(|e| e.sum_keepdim(&[0])).map(|sum| vec![sum]);
        let short = input(&[1024, 4])
            .exp()
            .and_then(|e| e.sum_keepdim(&[1]))
            .map(|sum| vec![sum]);
        let read_twice = x.exp().and_then(|e| Ok(vec![e.sum_keepdim(&[1])?, e]));
        let bare = x.sum_keepdim(&[1]).map(|sum| vec![sum]);
        let integers = of(&[2, 1024], DType::I64);
        let integers = integers
            .mul(&integers)
            .and_then(|e| e.sum_keepdim(&[1]))
            .map(|sum| vec![sum]);
        for outputs in [columns, short, read_twice, bare, integers] {
            let text = left(outputs);
            assert!(text.contains(" = Sum ") && !text.contains("Elementwise"), "{text}");
        }
    }
}
