//! Live ranges: an estimate, independent of backends, of the memory that a graph holds while its nodes run in order. A
//! view shares the memory of its source; inputs and constants do not count; results are live until the end.

use crate::graph::{Graph, Meta};

/// The live range of each node's memory.
pub(super) struct LiveRanges {
    /// The node that owns the memory of each node's value.
    pub owners: Vec<usize>,
    /// Bytes allocated by a node; 0 for a view.
    pub bytes: Vec<usize>,
    /// The last node that reads an owner's memory; the number of nodes for a result.
    pub last: Vec<usize>,
}

impl LiveRanges {
    pub fn of(graph: &Graph) -> Self {
        let count = graph.nodes.len();
        let mut live_ranges = Self {
            owners: (0..count).collect(),
            bytes: vec![0; count],
            last: (0..count).collect(),
        };
        for (index, node) in graph.nodes.iter().enumerate() {
            if node.operation.is_view() {
                live_ranges.owners[index] = live_ranges.owners[node.inputs[0].node as usize];
            } else if !node.operation.is_given() {
                live_ranges.bytes[index] = node.outputs.iter().map(Meta::bytes).sum();
            }
            for input in &node.inputs {
                let owner = live_ranges.owners[input.node as usize];
                live_ranges.last[owner] = index;
            }
        }
        for output in &graph.outputs {
            let owner = live_ranges.owners[output.node as usize];
            live_ranges.last[owner] = count;
        }
        live_ranges
    }

    /// The peak memory, and the node at which it is reached.
    pub fn peak(&self) -> (usize, usize) {
        let count = self.last.len();
        let mut freed = vec![0; count + 1];
        for (&last, &bytes) in self.last.iter().zip(&self.bytes) {
            freed[last] += bytes;
        }
        let (mut held, mut peak) = (0, (0, 0));
        for (index, (&bytes, freed)) in self.bytes.iter().zip(freed).enumerate() {
            held += bytes;
            if held > peak.0 {
                peak = (held, index);
            }
            held -= freed;
        }
        peak
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::input;
    use super::*;
    use crate::graph::numbered;

    #[test]
    fn views_and_inputs_take_nothing_and_results_stay() {
        let x = input(&[4, 25]);
        let e = x.exp().unwrap();
        let view = e.t().unwrap();
        let sum = view.sum_keepdim(&[0, 1]).unwrap();
        let graph = numbered::flatten(&[sum, view]).unwrap().graph;
        // The view keeps the exponentials alive; the sum is live as well.
        assert_eq!(LiveRanges::of(&graph).peak().0, 400 + 4);
        let chain = x.exp().unwrap().sin().unwrap().sum_keepdim(&[0, 1]).unwrap();
        let graph = numbered::flatten(&[chain]).unwrap().graph;
        assert_eq!(LiveRanges::of(&graph).peak(), (800, 2));
    }
}
