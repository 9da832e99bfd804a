//! Common subexpressions: equal operations on equal inputs are computed once. Random numbers are a function of their key,
//! so they may be merged too.

use std::hash::{BuildHasher, Hash};

use rustc_hash::{FxBuildHasher, FxHashMap};

use crate::graph::{Graph, GraphNode, Operation, ValueRef};

pub(super) fn run(graph: Graph) -> Graph {
    let Graph { nodes, outputs, device } = graph;
    let mut kept: Vec<GraphNode> = Vec::with_capacity(nodes.len());
    let mut numbers: Vec<u32> = Vec::with_capacity(nodes.len());
    // hash of (kind, inputs) -> candidates
    let mut seen: FxHashMap<u64, Vec<u32>> = FxHashMap::default();
    for mut node in nodes {
        node.inputs.iter_mut().for_each(|input| input.node = numbers[input.node as usize]);
        if node.operation == Operation::Input {
            numbers.push(kept.len() as u32);
            kept.push(node);
            continue;
        }
        let candidates = seen.entry(hash(&node)).or_default();
        let twin = candidates.iter().copied().find(|&i| kept[i as usize] == node);
        numbers.push(twin.unwrap_or(kept.len() as u32));
        if twin.is_none() {
            candidates.push(kept.len() as u32);
            kept.push(node);
        }
    }
    let outputs = outputs.into_iter().map(|o| ValueRef { node: numbers[o.node as usize], ..o }).collect();
    Graph { nodes: kept, outputs, device }
}

fn hash(node: &GraphNode) -> u64 {
    let parameters = match &node.operation {
        Operation::Constant { value, .. } => value.to_bits(),
        Operation::MulScalar { value } | Operation::AddScalar { value } => u64::from(value.to_bits()),
        _ => 0,
    };
    let shape = node.outputs.first().map(|meta| meta.shape.dims());
    FxBuildHasher.hash_one((HashKind(&node.operation), parameters, &node.inputs[..], shape))
}

struct HashKind<'a>(&'a Operation);

impl Hash for HashKind<'_> {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        std::mem::discriminant(self.0).hash(state);
    }
}
