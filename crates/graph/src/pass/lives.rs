//! What a graph holds in memory while its nodes run in their order: an estimate that knows no backend. A view lies in the
//! memory of its source; inputs and constants count nothing, results until the end.

use crate::graph::{Graph, Meta};

/// Since when and until when the memory of each node is needed.
pub(super) struct Lives {
    /// The node whose memory a node's value lies in.
    pub owners: Vec<usize>,
    /// Bytes that a node takes; 0 for a view.
    pub bytes: Vec<usize>,
    /// The last node that reads what an owner holds; the number of nodes where it is a result.
    pub last: Vec<usize>,
}

impl Lives {
    pub fn of(graph: &Graph) -> Self {
        let count = graph.nodes.len();
        let mut lives = Self {
            owners: (0..count).collect(),
            bytes: vec![0; count],
            last: (0..count).collect(),
        };
        for (index, node) in graph.nodes.iter().enumerate() {
            if node.operation.is_view() {
                lives.owners[index] = lives.owners[node.inputs[0].node as usize];
            } else if !node.operation.is_given() {
                lives.bytes[index] = node.outputs.iter().map(Meta::bytes).sum();
            }
            for input in &node.inputs {
                let owner = lives.owners[input.node as usize];
                lives.last[owner] = index;
            }
        }
        for output in &graph.outputs {
            let owner = lives.owners[output.node as usize];
            lives.last[owner] = count;
        }
        lives
    }

    /// The most bytes that are held at once, and the node at which.
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
        // The view keeps the exponentials; with them lives the sum.
        assert_eq!(Lives::of(&graph).peak().0, 400 + 4);
        let chain = x.exp().unwrap().sin().unwrap().sum_keepdim(&[0, 1]).unwrap();
        let graph = numbered::flatten(&[chain]).unwrap().graph;
        assert_eq!(Lives::of(&graph).peak(), (800, 2));
    }
}
