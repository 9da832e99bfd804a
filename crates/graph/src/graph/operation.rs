//! The closed list of operations. Everything the engine knows about one is answered by an exhaustive `match` over this
//! enum: arity and dtypes (verify.rs), shapes (infer.rs), gradients (grad/rules.rs), Candle lowering
//! (backend/candle.rs), printing (print.rs), its class (class.rs), equality (parameters.rs). No table has a `_ =>` arm,
//! so the compiler lists what a new operation must answer.

use std::sync::Arc;

use candle_core::{DType, Shape};

use crate::fused::dequant_matmul::QuantFormat;
use crate::fused::elementwise::Expression;
use crate::fused::matmul_sum::SumTerm;

/// What a node of the graph computes from its inputs.
///
/// Binary operations broadcast their inputs by the usual trailing-dimension rule. Reductions keep the reduced
/// dimensions with size 1. Tensors are row-major.
///
/// Two operations are equal if they compute the same bits: parameters are compared by their bits, so that a NaN equals
/// itself and 0.0 is not -0.0. The plan cache and common subexpression elimination rely on this equality.
#[derive(Debug, Clone)]
#[allow(clippy::upper_case_acronyms)] // the field's own names: LoRA, GELU
pub enum Operation {
    // ---- sources
    /// A leaf that holds data (or, during tracing, an argument).
    Input,
    /// Every element is `value`.
    Constant {
        /// The value, converted to `dtype`.
        value: f64,
        /// Shape of the result.
        shape: Shape,
        /// Dtype of the result.
        dtype: DType,
    },
    /// The index along `dim`: `0, 1, 2, ..`.
    Iota {
        /// The counted dimension.
        dim: usize,
        /// Shape of the result.
        shape: Shape,
        /// Dtype of the result.
        dtype: DType,
    },
    /// Counter-based random numbers (Philox 4x32-10) from a key tensor of four `u32` words.
    Random {
        /// How the bits become numbers.
        distribution: Distribution,
        /// Shape of the result.
        shape: Shape,
        /// Dtype of the result.
        dtype: DType,
    },

    // ---- elementwise, one input
    /// `-x`
    Neg,
    /// `|x|`
    Abs,
    /// -1, 0 or 1; 0 for NaN
    Sign,
    /// `e^x`
    Exp,
    /// natural logarithm
    Log,
    /// square root
    Sqrt,
    /// `1 / sqrt(x)`
    Rsqrt,
    /// `1 / x`
    Recip,
    /// sine
    Sin,
    /// cosine
    Cos,
    /// hyperbolic tangent
    Tanh,
    /// error function
    Erf,
    /// `1 / (1 + e^-x)`
    Sigmoid,
    /// largest integer not above x
    Floor,
    /// `x * value`
    MulScalar {
        /// The factor.
        value: f32,
    },
    /// `x + value`
    AddScalar {
        /// The summand.
        value: f32,
    },
    /// Conversion to another dtype: floats to integers truncate and saturate, NaN becomes 0; integers to integers wrap.
    Cast {
        /// Dtype of the result.
        dtype: DType,
    },

    // ---- elementwise, two or three inputs
    /// `a + b`
    Add,
    /// `a - b`
    Sub,
    /// `a * b`
    Mul,
    /// `a / b`; of integers truncated, and 0 where `b` is 0
    Div,
    /// `a ^ b`
    Pow,
    /// the larger; NaN where either is NaN
    Maximum,
    /// the smaller; NaN where either is NaN
    Minimum,
    /// `a == b` as `u8`
    Equal,
    /// `a < b` as `u8`
    Less,
    /// `a <= b` as `u8`
    LessEqual,
    /// `condition ? a : b`; the condition is `u8`
    Where,

    // ---- reductions
    /// Sum over `dims`.
    Sum {
        /// Reduced dimensions, ascending.
        dims: Vec<usize>,
    },
    /// Maximum over `dims`.
    Max {
        /// Reduced dimensions, ascending.
        dims: Vec<usize>,
    },
    /// Index of the first maximum along `dim`, or of the first NaN, as `u32`.
    ArgMax {
        /// The reduced dimension.
        dim: usize,
    },

    // ---- movement
    /// The same elements in row-major order under another shape.
    Reshape {
        /// Shape of the result.
        shape: Shape,
    },
    /// Dimension `i` of the result is dimension `dims[i]` of the input.
    Permute {
        /// A permutation of the dimensions.
        dims: Vec<usize>,
    },
    /// Repeats dimensions of size 1, and adds leading ones.
    Broadcast {
        /// Shape of the result.
        shape: Shape,
    },
    /// The elements from `start[i]` to `end[i]` in each dimension `i`.
    Slice {
        /// First index per dimension.
        start: Vec<usize>,
        /// One past the last index per dimension.
        end: Vec<usize>,
    },
    /// Inputs concatenated along `dim`.
    Concat {
        /// The joined dimension.
        dim: usize,
    },
    /// Zeros around the input.
    Pad {
        /// Zeros before, per dimension.
        before: Vec<usize>,
        /// Zeros after, per dimension.
        after: Vec<usize>,
    },

    // ---- indexing
    /// `(x, indices (n))`: whole slices of `x` along `dim`.
    IndexSelect {
        /// The indexed dimension.
        dim: usize,
    },
    /// `(x, indices)`: one element per index along `dim`, as `torch.gather`.
    Gather {
        /// The indexed dimension.
        dim: usize,
    },
    /// `(x, indices (n), updates)`: adds whole slices; the adjoint of `IndexSelect`.
    IndexAdd {
        /// The indexed dimension.
        dim: usize,
    },
    /// `(x, indices, updates)`: adds single elements; the adjoint of `Gather`.
    ScatterAdd {
        /// The indexed dimension.
        dim: usize,
    },
    /// `(x, position u32 (1))`: `length` slices along `dim` from a position known only at run time.
    DynamicSlice {
        /// The sliced dimension.
        dim: usize,
        /// Number of slices.
        length: usize,
    },
    /// `(x, update, position u32 (1))`: `x` with `update` written along `dim` at a position known only at run time.
    SliceUpdate {
        /// The written dimension.
        dim: usize,
    },

    // ---- the rest
    /// The input's value; no gradient passes.
    StopGradient,
    /// `(.., m, k) x (.., k, n)`; batch dimensions broadcast.
    Matmul,

    // ---- fused; each has a folder under fused/ with its formula and its fallback
    /// See [`crate::fused::softmax`].
    Softmax {
        /// The normalised dimension.
        dim: usize,
    },
    /// See [`crate::fused::rms_norm`].
    RMSNorm {
        /// Added to the mean square.
        eps: f32,
    },
    /// See [`crate::fused::layer_norm`].
    LayerNorm {
        /// Added to the variance.
        eps: f32,
    },
    /// See [`crate::fused::rope`].
    Rope {
        /// Pairs are `(2i, 2i + 1)` instead of `(i, i + half)`.
        interleaved: bool,
    },
    /// See [`crate::fused::swiglu`].
    SwiGLU,
    /// See [`crate::fused::gelu`].
    GELU {
        /// Which form.
        approximate: Approximate,
    },
    /// See [`crate::fused::lora`].
    LoRA {
        /// alpha / rank.
        scale: f32,
    },
    /// See [`crate::fused::dequant_matmul`].
    DequantMatmul {
        /// The storage format of the weights.
        format: QuantFormat,
        /// `x W` instead of `x W^T`.
        transposed: bool,
    },
    /// See [`crate::fused::attention`].
    Attention(AttentionOptions),
    /// See [`crate::fused::cross_entropy`].
    CrossEntropy(CrossEntropyOptions),
    /// See [`crate::fused::adamw`].
    AdamW(AdamWOptions),
    /// See [`crate::fused::elementwise`].
    Elementwise(Arc<Expression>),
    /// See [`crate::fused::matmul_sum`].
    MatmulSum {
        /// The terms of the sum.
        terms: Vec<SumTerm>,
        /// Factor on the sum.
        scale: f32,
        /// Dtype of the result.
        dtype: DType,
    },
    /// See [`crate::fused::shared_matmul`].
    SharedMatmul {
        /// Number of right factors, and of outputs.
        count: usize,
        /// Factor on each product.
        scale: f32,
        /// Dtype of the results.
        dtype: DType,
    },
    /// A fused operation together with its vector-Jacobian product. It is made by the pass `pair` if a kernel that
    /// computes both saves work; users never record one.
    ///
    /// Inputs: those of `of`, then one cotangent per output. Outputs: those of `of`, then the gradients of the inputs
    /// whose bit is set in `wanted`, in order.
    ValueAndVjp {
        /// The computed and differentiated operation.
        of: Box<Operation>,
        /// Bit `i`: the gradient of input `i` is an output.
        wanted: u32,
    },
    /// The vector-Jacobian product of a fused operation.
    ///
    /// Inputs: those of `of`, then its outputs, then one cotangent per output. Outputs: the gradients of the inputs
    /// whose bit is set in `wanted`, in order.
    Vjp {
        /// The differentiated operation.
        of: Box<Operation>,
        /// Bit `i`: the gradient of input `i` is an output.
        wanted: u32,
    },
}

/// How random bits become numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Distribution {
    /// Uniform in `[0, 1)`.
    Uniform,
    /// Standard normal.
    Normal,
    /// Raw bits (`u32` only).
    Bits,
}

/// The form of GELU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Approximate {
    /// `x * Phi(x)` through erf.
    None,
    /// The tanh approximation.
    Tanh,
}

/// The mask and scale of an attention. Equal by bits, like [`Operation`].
#[derive(Debug, Clone, Copy)]
pub struct AttentionOptions {
    /// Factor on the scores, usually `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// A query sees only keys at its own position and before.
    pub causal: bool,
    /// A query sees only this many positions, its own included (needs `causal`).
    pub window: Option<usize>,
    /// An input holds the absolute position of the first query (u32, one element); keys start at position 0.
    pub offset: bool,
    /// Two inputs hold segment ids; a query sees only keys of its own segment.
    pub segments: bool,
}

/// The weighting of rows in a cross-entropy. Equal by bits, like [`Operation`].
#[derive(Debug, Clone, Copy)]
pub struct CrossEntropyOptions {
    /// Rows with this target have loss 0 and no gradient.
    pub ignore_index: i64,
    /// Share of the target's probability spread over the whole vocabulary.
    pub label_smoothing: f32,
}

impl Default for CrossEntropyOptions {
    fn default() -> Self {
        Self {
            ignore_index: -100,
            label_smoothing: 0.0,
        }
    }
}

/// Constants of the `AdamW` update; what changes from step to step is an input. Equal by bits, like [`Operation`].
#[derive(Debug, Clone, Copy)]
pub struct AdamWOptions {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the denominator.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
}

impl Operation {
    /// Number of outputs.
    #[must_use]
    pub fn output_count(&self) -> usize {
        match self {
            Self::Attention(_) | Self::CrossEntropy(_) => 2,
            Self::AdamW(_) => 3,
            Self::SharedMatmul { count, .. } => *count,
            Self::Vjp { wanted, .. } => wanted.count_ones() as usize,
            Self::ValueAndVjp { of, wanted } => of.output_count() + wanted.count_ones() as usize,
            Self::Input
            | Self::Constant { .. }
            | Self::Iota { .. }
            | Self::Random { .. }
            | Self::Neg
            | Self::Abs
            | Self::Sign
            | Self::Exp
            | Self::Log
            | Self::Sqrt
            | Self::Rsqrt
            | Self::Recip
            | Self::Sin
            | Self::Cos
            | Self::Tanh
            | Self::Erf
            | Self::Sigmoid
            | Self::Floor
            | Self::MulScalar { .. }
            | Self::AddScalar { .. }
            | Self::Cast { .. }
            | Self::Add
            | Self::Sub
            | Self::Mul
            | Self::Div
            | Self::Pow
            | Self::Maximum
            | Self::Minimum
            | Self::Equal
            | Self::Less
            | Self::LessEqual
            | Self::Where
            | Self::Sum { .. }
            | Self::Max { .. }
            | Self::ArgMax { .. }
            | Self::Reshape { .. }
            | Self::Permute { .. }
            | Self::Broadcast { .. }
            | Self::Slice { .. }
            | Self::Concat { .. }
            | Self::Pad { .. }
            | Self::IndexSelect { .. }
            | Self::Gather { .. }
            | Self::IndexAdd { .. }
            | Self::ScatterAdd { .. }
            | Self::DynamicSlice { .. }
            | Self::SliceUpdate { .. }
            | Self::StopGradient
            | Self::Matmul
            | Self::Softmax { .. }
            | Self::RMSNorm { .. }
            | Self::LayerNorm { .. }
            | Self::Rope { .. }
            | Self::SwiGLU
            | Self::GELU { .. }
            | Self::LoRA { .. }
            | Self::DequantMatmul { .. }
            | Self::Elementwise(_)
            | Self::MatmulSum { .. } => 1,
        }
    }
}
