//! Scheduling: a value is computed right before its first use, or as soon as possible if computing it frees more memory
//! than it takes. The old order is kept if this saves too little, and for nodes that overwrite their inputs.

use smallvec::SmallVec;

use super::live_ranges::LiveRanges;
use crate::graph::{Graph, GraphNode, ValueRef};

/// Minimum saving of a new order as a share of the peak: otherwise consecutive kernels stay together.
const WORTH: f64 = 0.01;

pub(super) fn run(graph: Graph) -> Graph {
    if graph.nodes.iter().any(|node| node.operation.updates_in_place()) {
        return graph;
    }
    let live_ranges = LiveRanges::of(&graph);
    let before = live_ranges.peak().0;
    let reordered = reordered(&graph, &Order::of(&graph, &live_ranges).nodes);
    let after = LiveRanges::of(&reordered).peak().0;
    if (after as f64) >= before as f64 * (1.0 - WORTH) {
        return graph;
    }
    tracing::debug!(before, after, "bytes held at once");
    reordered
}

/// The new order under construction.
struct Order<'a> {
    graph: &'a Graph,
    live_ranges: &'a LiveRanges,
    /// The readers of each node's value.
    users: Vec<SmallVec<[u32; 2]>>,
    /// For each node, the number of inputs that are not scheduled yet.
    missing: Vec<usize>,
    /// For each owner, the number of readers of its memory that are not scheduled yet.
    readers: Vec<usize>,
    is_made: Vec<bool>,
    nodes: Vec<usize>,
}

impl<'a> Order<'a> {
    fn of(graph: &'a Graph, live_ranges: &'a LiveRanges) -> Self {
        let count = graph.nodes.len();
        let mut order = Self {
            graph,
            live_ranges,
            users: vec![SmallVec::new(); count],
            missing: graph.nodes.iter().map(|node| node.inputs.len()).collect(),
            readers: vec![0; count],
            is_made: vec![false; count],
            nodes: Vec::with_capacity(count),
        };
        for (index, node) in graph.nodes.iter().enumerate() {
            for input in &node.inputs {
                order.users[input.node as usize].push(index as u32);
                order.readers[live_ranges.owners[input.node as usize]] += 1;
            }
        }
        // Inputs are bound by their order.
        let given = |index: &usize| graph.nodes[*index].operation.is_given();
        (0..count).filter(given).for_each(|index| order.make(index));
        for index in 0..count {
            if !order.is_made[index] && !order.waits(index) {
                order.make_with_inputs(index);
            }
        }
        // Results without readers.
        for index in 0..count {
            if !order.is_made[index] {
                order.make_with_inputs(index);
            }
        }
        order
    }

    /// Whether a node takes more memory than it frees, so that it should be delayed until its first use.
    fn waits(&self, index: usize) -> bool {
        let is_result = self.live_ranges.last[self.live_ranges.owners[index]] == self.graph.nodes.len();
        !is_result && !self.users[index].is_empty() && !self.pays(index)
    }

    /// Bytes that a node helps to free: for each input, its share among the remaining readers.
    fn freed(&self, index: usize) -> usize {
        let inputs = &self.graph.nodes[index].inputs;
        let owners = inputs.iter().map(|input| self.live_ranges.owners[input.node as usize]);
        let ends = |owner: &usize| self.live_ranges.last[*owner] < self.graph.nodes.len();
        let share = |owner: usize| self.live_ranges.bytes[owner] / self.readers[owner].max(1);
        owners.filter(ends).map(share).sum()
    }

    /// Whether a node frees more than it takes. A view takes nothing once its source is computed.
    fn pays(&self, index: usize) -> bool {
        if self.graph.nodes[index].operation.is_view() {
            return self.missing[index] == 0;
        }
        self.freed(index) > self.live_ranges.bytes[index]
    }

    /// Schedules a node after its inputs, and then all nodes that now free memory.
    fn make_with_inputs(&mut self, index: usize) {
        let mut pending = vec![index];
        while let Some(&next) = pending.last() {
            if self.is_made[next] {
                pending.pop();
                continue;
            }
            let inputs = self.graph.nodes[next].inputs.iter().map(|input| input.node as usize);
            let needed: SmallVec<[usize; 4]> = inputs.filter(|&input| !self.is_made[input]).collect();
            if needed.is_empty() {
                pending.pop();
                self.make(next);
                let users = self.users[next].iter().map(|&user| user as usize);
                let frees = |&user: &usize| self.missing[user] == 0 && !self.is_made[user] && self.pays(user);
                let early: SmallVec<[usize; 4]> = users.filter(frees).collect();
                pending.extend(early.into_iter().rev());
            } else {
                pending.extend(needed.into_iter().rev());
            }
        }
    }

    fn make(&mut self, index: usize) {
        self.is_made[index] = true;
        self.nodes.push(index);
        for input in &self.graph.nodes[index].inputs {
            self.readers[self.live_ranges.owners[input.node as usize]] -= 1;
        }
        for &user in &self.users[index] {
            self.missing[user as usize] -= 1;
        }
    }
}

/// The graph with its nodes reordered; inputs must come before their users.
fn reordered(graph: &Graph, order: &[usize]) -> Graph {
    let mut places = vec![0u32; order.len()];
    order.iter().zip(0..).for_each(|(&index, place)| places[index] = place);
    let moved = |value: &ValueRef| ValueRef {
        node: places[value.node as usize],
        ..*value
    };
    let node = |&index: &usize| {
        let node = &graph.nodes[index];
        GraphNode {
            inputs: node.inputs.iter().map(moved).collect(),
            ..node.clone()
        }
    };
    Graph {
        nodes: order.iter().map(node).collect(),
        outputs: graph.outputs.iter().map(moved).collect(),
        device: graph.device.clone(),
    }
}

#[cfg(test)]
mod tests {
    use candle_core::DType;

    use super::super::testing::{input, of, operations};
    use super::*;
    use crate::graph::numbered;
    use crate::{LazyTensor, Result};

    /// The peak memory with the nodes of one operation scheduled early, and after the pass.
    fn peaks(output: &LazyTensor, early: &str) -> (usize, usize) {
        let graph = numbered::flatten(std::slice::from_ref(output)).unwrap().graph;
        let rank = |index: usize| match &graph.nodes[index].operation {
            operation if operation.is_given() || operation.is_view() => 0,
            operation if operation.name() == early => 1,
            _ => 2,
        };
        let mut order: Vec<usize> = (0..graph.nodes.len()).collect();
        order.sort_by_key(|&index| rank(index));
        let graph = super::reordered(&graph, &order);
        let before = LiveRanges::of(&graph).peak().0;
        (before, LiveRanges::of(&run(graph)).peak().0)
    }

    #[test]
    fn values_that_take_memory_are_delayed() -> Result<()> {
        let mut total = input(&[1, 1]);
        for _ in 0..3 {
            let wide = input(&[100, 1]).broadcast_to(&[100, 100])?.exp()?;
            total = total.add(&wide.sum_keepdim(&[0, 1])?)?;
        }
        // Three wide values and a sum, or one and two sums.
        assert_eq!(peaks(&total, "Exp"), (120_004, 40_008));
        Ok(())
    }

    #[test]
    fn values_that_free_memory_are_scheduled_early() -> Result<()> {
        let x = input(&[100, 100]);
        let sums = [x.exp()?, x.sin()?, x.abs()?].map(|wide| wide.sum_keepdim(&[0, 1]));
        let [a, b, c] = sums;
        let total = a?.add(&b?.add(&c?)?)?;
        let (before, after) = peaks(&total, "Exp");
        assert!(after < 40_100 && before >= after, "{before} became {after}");
        assert_eq!(peaks(&total, "Sin").1, after);
        Ok(())
    }

    #[test]
    fn a_chain_and_updates_in_place_keep_their_order() -> Result<()> {
        let x = input(&[8, 8]);
        let chain = x.exp()?.sin()?.abs()?;
        let zeros = input(&[1, 8]).exp()?;
        let updated = x.exp()?.slice_update(0, &zeros, &of(&[1], DType::U32))?;
        for output in [chain, updated] {
            let outputs = [output];
            assert_eq!(operations(&outputs, run), operations(&outputs, |graph| graph));
        }
        Ok(())
    }
}
