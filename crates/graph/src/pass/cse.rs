//! Common subexpression elimination: equal operations on equal inputs are computed once. Random numbers are a function
//! of their key, so they may be merged too.

use std::hash::{Hash, Hasher};

use rustc_hash::{FxHashMap, FxHasher};
use smallvec::SmallVec;

use crate::graph::{Graph, GraphNode, Operation, ValueRef};

pub(super) fn run(graph: Graph) -> Graph {
    let Graph { nodes, outputs, device } = graph;
    let mut kept: Vec<GraphNode> = Vec::with_capacity(nodes.len());
    let mut numbers: Vec<u32> = Vec::with_capacity(nodes.len());
    // hash -> candidates
    let mut seen: FxHashMap<u64, SmallVec<[u32; 2]>> = FxHashMap::default();
    for mut node in nodes {
        node.inputs
            .iter_mut()
            .for_each(|input| input.node = numbers[input.node as usize]);
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

fn hash(node: &GraphNode) -> u64 {
    let mut state = FxHasher::default();
    node.operation.hash(&mut state);
    node.inputs.hash(&mut state);
    node.outputs.first().map(|meta| meta.shape.dims()).hash(&mut state);
    state.finish()
}
