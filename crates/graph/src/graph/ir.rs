//! The flat form of a graph: nodes in a list, inputs before their users. Passes rewrite it, backends compile it,
//! and its structure (not the data) is the key under which a plan is found again.

use std::hash::{Hash, Hasher};

use candle_core::Device;
use rustc_hash::FxHasher;
use smallvec::SmallVec;

use super::node::{Meta, Outputs};
use super::operation::{AdamWOptions, AttentionOptions, Operation};

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
        let mut state = FxHasher::default();
        for (index, node) in (0..).zip(&self.nodes) {
            hash_operation(&node.operation, &mut state);
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

/// Hashes an operation's kind and parameters. Equality is checked in full where the hash is found again.
#[allow(clippy::too_many_lines)] // one table
pub(crate) fn hash_operation(operation: &Operation, state: &mut impl Hasher) {
    use Operation as O;
    std::mem::discriminant(operation).hash(state);
    match operation {
        O::Constant { value, shape, dtype } => {
            (value.to_bits(), *dtype as u8).hash(state);
            hash_dims(shape.dims(), state);
        }
        O::Iota { dim, shape, dtype } => {
            (*dim, *dtype as u8).hash(state);
            hash_dims(shape.dims(), state);
        }
        O::Random {
            distribution,
            shape,
            dtype,
        } => {
            (distribution, *dtype as u8).hash(state);
            hash_dims(shape.dims(), state);
        }
        O::MulScalar { value }
        | O::AddScalar { value }
        | O::RMSNorm { eps: value }
        | O::LayerNorm { eps: value }
        | O::LoRA { scale: value } => value.to_bits().hash(state),
        O::Cast { dtype } => state.write_u8(*dtype as u8),
        O::ArgMax { dim }
        | O::Concat { dim }
        | O::IndexSelect { dim }
        | O::Gather { dim }
        | O::IndexAdd { dim }
        | O::ScatterAdd { dim }
        | O::SliceUpdate { dim }
        | O::Softmax { dim } => dim.hash(state),
        O::DynamicSlice { dim, length } => (dim, length).hash(state),
        O::Sum { dims } | O::Max { dims } | O::Permute { dims } => hash_dims(dims, state),
        O::Reshape { shape } | O::Broadcast { shape } => hash_dims(shape.dims(), state),
        O::Slice {
            start: first,
            end: second,
        }
        | O::Pad {
            before: first,
            after: second,
        } => {
            hash_dims(first, state);
            hash_dims(second, state);
        }
        O::Rope { interleaved } => interleaved.hash(state),
        O::GELU { approximate } => approximate.hash(state),
        O::DequantMatmul { format, transposed } => (format, transposed).hash(state),
        O::Attention(options) => {
            let AttentionOptions {
                scale,
                causal,
                window,
                offset,
                segments,
            } = options;
            (scale.to_bits(), causal, window, offset, segments).hash(state);
        }
        O::CrossEntropy(options) => (options.ignore_index, options.label_smoothing.to_bits()).hash(state),
        O::AdamW(options) => {
            let AdamWOptions {
                beta1,
                beta2,
                eps,
                weight_decay,
            } = options;
            [beta1, beta2, eps, weight_decay].map(|x| x.to_bits()).hash(state);
        }
        O::Elementwise(expression) => {
            expression.inputs.len().hash(state);
            for term in &expression.terms {
                hash_operation(&term.operation, state);
                hash_dims(term.meta.shape.dims(), state);
            }
        }
        O::MatmulSum { terms, scale, dtype } => (terms, scale.to_bits(), dtype).hash(state),
        O::SharedMatmul { count, scale, dtype } => (count, scale.to_bits(), dtype).hash(state),
        O::Vjp { of, wanted } | O::ValueAndVjp { of, wanted } => {
            wanted.hash(state);
            hash_operation(of, state);
        }
        O::Input
        | O::Neg
        | O::Abs
        | O::Sign
        | O::Exp
        | O::Log
        | O::Sqrt
        | O::Rsqrt
        | O::Recip
        | O::Sin
        | O::Cos
        | O::Tanh
        | O::Erf
        | O::Sigmoid
        | O::Floor
        | O::Add
        | O::Sub
        | O::Mul
        | O::Div
        | O::Pow
        | O::Maximum
        | O::Minimum
        | O::Equal
        | O::Less
        | O::LessEqual
        | O::Where
        | O::StopGradient
        | O::Matmul
        | O::SwiGLU => {}
    }
}
