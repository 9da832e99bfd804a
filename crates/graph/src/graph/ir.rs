//! The flat form of a graph: nodes in a list, inputs before their users. Passes rewrite it, backends compile it,
//! and its structure (not the data) is the key under which a plan is found again.

use std::hash::{Hash, Hasher};

use candle_core::Device;
use rustc_hash::FxHasher;
use smallvec::SmallVec;

use super::node::{Meta, Outputs};
use super::operation::Operation;

/// One output of one node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ValueRef {
    /// Position of the node in the list.
    pub node: u32,
    /// Which of its outputs.
    pub output: u32,
}

/// An operation with its inputs.
#[derive(Debug, Clone, PartialEq)]
pub struct GraphNode {
    /// What is computed.
    pub operation: Operation,
    /// From which earlier values.
    pub inputs: SmallVec<[ValueRef; 3]>,
    /// Shapes and dtypes of the results.
    pub outputs: Outputs,
}

/// A computation: nodes in topological order and the values it is asked for.
///
/// The `k`-th `Input` node is bound to the `k`-th leaf when the plan runs.
#[derive(Debug, Clone)]
pub struct Graph {
    /// Inputs come before their users.
    pub nodes: Vec<GraphNode>,
    /// The requested values.
    pub outputs: Vec<ValueRef>,
    /// Where it runs.
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
        let nodes = self
            .nodes
            .iter()
            .map(|node| (&node.operation, &node.inputs[..], &node.outputs[..]));
        structural_hash(nodes, &self.outputs)
    }
}

/// The hash of a graph given node by node: operation, inputs, outputs.
pub(crate) fn structural_hash<'a>(
    nodes: impl Iterator<Item = (&'a Operation, &'a [ValueRef], &'a [Meta])>,
    outputs: &[ValueRef],
) -> u64 {
    let mut state = FxHasher::default();
    for (index, (operation, inputs, outputs)) in nodes.enumerate() {
        hash_operation(operation, &mut state);
        for input in inputs {
            (index as u32 - input.node, input.output).hash(&mut state);
        }
        for meta in outputs {
            meta.shape.dims().hash(&mut state);
            (meta.dtype as u8).hash(&mut state);
        }
    }
    outputs.hash(&mut state);
    state.finish()
}

/// Hashes an operation's kind and the parameters that its output shapes do not already tell.
/// Equality is checked in full on a hit, so this need only spread well.
pub(crate) fn hash_operation(operation: &Operation, state: &mut impl Hasher) {
    std::mem::discriminant(operation).hash(state);
    match operation {
        Operation::Constant { value, .. } => value.to_bits().hash(state),
        Operation::MulScalar { value }
        | Operation::AddScalar { value }
        | Operation::RMSNorm { eps: value }
        | Operation::LayerNorm { eps: value }
        | Operation::LoRA { scale: value } => value.to_bits().hash(state),
        Operation::Softmax { dim }
        | Operation::Concat { dim }
        | Operation::Iota { dim, .. }
        | Operation::ArgMax { dim }
        | Operation::IndexSelect { dim }
        | Operation::Gather { dim }
        | Operation::IndexAdd { dim }
        | Operation::ScatterAdd { dim }
        | Operation::DynamicSlice { dim, .. }
        | Operation::SliceUpdate { dim } => dim.hash(state),
        Operation::Permute { dims } => dims.hash(state),
        Operation::Slice { start, .. } => start.hash(state),
        Operation::Pad { before, .. } => before.hash(state),
        Operation::Vjp { of, wanted } => {
            wanted.hash(state);
            std::mem::discriminant(&**of).hash(state);
        }
        _ => {}
    }
}
