//! The flat form of a graph: a list of nodes in topological order. Passes rewrite it, backends compile it, and its
//! structure (not the data) is the key of the plan cache.

use std::hash::{Hash, Hasher};

use candle_core::Device;
use rustc_hash::FxHasher;
use smallvec::SmallVec;

use super::node::{Meta, Outputs};
use super::operation::Operation;

/// One output of one node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ValueRef {
    /// Index of the node in the list.
    pub node: u32,
    /// Index of its output.
    pub output: u32,
}

/// An operation with its inputs.
#[derive(Debug, Clone, PartialEq)]
pub struct GraphNode {
    /// The operation.
    pub operation: Operation,
    /// Its inputs: earlier values.
    pub inputs: SmallVec<[ValueRef; 3]>,
    /// Shapes and dtypes of the results.
    pub outputs: Outputs,
}

/// A computation: nodes in topological order and the requested values.
///
/// The `k`-th `Input` node is bound to the `k`-th leaf when the plan runs.
#[derive(Debug, Clone)]
pub struct Graph {
    /// Inputs come before their users.
    pub nodes: Vec<GraphNode>,
    /// The requested values.
    pub outputs: Vec<ValueRef>,
    /// The device it runs on.
    pub device: Device,
}

impl PartialEq for Graph {
    fn eq(&self, other: &Self) -> bool {
        self.outputs == other.outputs && self.device.same_device(&other.device) && self.nodes == other.nodes
    }
}

impl Graph {
    /// Shape and dtype of a value.
    #[must_use]
    pub fn meta(&self, value: ValueRef) -> &Meta {
        &self.nodes[value.node as usize].outputs[value.output as usize]
    }

    /// Number of `Input` nodes.
    #[must_use]
    pub fn input_count(&self) -> usize {
        self.nodes.iter().filter(|n| n.operation == Operation::Input).count()
    }

    /// A hash of the structure: operations, parameters, shapes, dtypes and relative inputs.
    #[must_use]
    pub fn structural_hash(&self) -> u64 {
        let mut state = FxHasher::default();
        for (index, node) in (0..).zip(&self.nodes) {
            node.operation.hash(&mut state);
            for input in &node.inputs {
                (index - input.node, input.output).hash(&mut state);
            }
            for meta in &node.outputs {
                hash_dims(meta.shape.dims(), &mut state);
                state.write_u8(meta.dtype as u8);
            }
        }
        self.outputs.hash(&mut state);
        state.finish()
    }
}

/// Hashes sizes or indices of dimensions.
pub(crate) fn hash_dims(dims: &[usize], state: &mut impl Hasher) {
    for &dim in dims {
        state.write_usize(dim);
    }
}
