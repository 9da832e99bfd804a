//! Equality of operations: the same kind and the same parameters, floats by their bits, so that a NaN equals itself and
//! 0 and -0 differ. Plans are found and subexpressions merged by it.

use super::operation::{AdamWOptions, AttentionOptions, CrossEntropyOptions, Operation};

impl PartialEq for AttentionOptions {
    fn eq(&self, other: &Self) -> bool {
        let rest = |o: &Self| (o.scale.to_bits(), o.causal, o.window, o.offset, o.segments);
        rest(self) == rest(other)
    }
}

impl PartialEq for CrossEntropyOptions {
    fn eq(&self, other: &Self) -> bool {
        let bits = |o: &Self| (o.ignore_index, o.label_smoothing.to_bits());
        bits(self) == bits(other)
    }
}

impl PartialEq for AdamWOptions {
    fn eq(&self, other: &Self) -> bool {
        let bits = |o: &Self| [o.beta1, o.beta2, o.eps, o.weight_decay].map(f64::to_bits);
        bits(self) == bits(other)
    }
}

impl PartialEq for Operation {
    fn eq(&self, other: &Self) -> bool {
        use std::mem::discriminant;
        discriminant(self) == discriminant(other) && self.same_parameters(other)
    }
}

impl Operation {
    /// Whether two operations of one kind have the same parameters; the left sides list every operation.
    #[allow(clippy::too_many_lines)] // one table
    fn same_parameters(&self, other: &Self) -> bool {
        use Operation as O;
        match (self, other) {
            (
                O::Constant {
                    value: a,
                    shape: s,
                    dtype: d,
                },
                O::Constant {
                    value: b,
                    shape: t,
                    dtype: e,
                },
            ) => a.to_bits() == b.to_bits() && s == t && d == e,
            (
                O::Iota {
                    dim: a,
                    shape: s,
                    dtype: d,
                },
                O::Iota {
                    dim: b,
                    shape: t,
                    dtype: e,
                },
            ) => (a, s, d) == (b, t, e),
            (
                O::Random {
                    distribution: a,
                    shape: s,
                    dtype: d,
                },
                O::Random {
                    distribution: b,
                    shape: t,
                    dtype: e,
                },
            ) => (a, s, d) == (b, t, e),
            (O::MulScalar { value: a }, O::MulScalar { value: b })
            | (O::AddScalar { value: a }, O::AddScalar { value: b })
            | (O::RMSNorm { eps: a }, O::RMSNorm { eps: b })
            | (O::LayerNorm { eps: a }, O::LayerNorm { eps: b })
            | (O::LoRA { scale: a }, O::LoRA { scale: b }) => a.to_bits() == b.to_bits(),
            (O::Cast { dtype: a }, O::Cast { dtype: b }) => a == b,
            (O::Sum { dims: a }, O::Sum { dims: b })
            | (O::Max { dims: a }, O::Max { dims: b })
            | (O::Permute { dims: a }, O::Permute { dims: b }) => a == b,
            (O::Reshape { shape: a }, O::Reshape { shape: b })
            | (O::Broadcast { shape: a }, O::Broadcast { shape: b }) => a == b,
            (O::Slice { start: a, end: c }, O::Slice { start: b, end: d })
            | (O::Pad { before: a, after: c }, O::Pad { before: b, after: d }) => (a, c) == (b, d),
            (O::ArgMax { dim: a }, O::ArgMax { dim: b })
            | (O::Concat { dim: a }, O::Concat { dim: b })
            | (O::IndexSelect { dim: a }, O::IndexSelect { dim: b })
            | (O::Gather { dim: a }, O::Gather { dim: b })
            | (O::IndexAdd { dim: a }, O::IndexAdd { dim: b })
            | (O::ScatterAdd { dim: a }, O::ScatterAdd { dim: b })
            | (O::SliceUpdate { dim: a }, O::SliceUpdate { dim: b })
            | (O::Softmax { dim: a }, O::Softmax { dim: b }) => a == b,
            (O::DynamicSlice { dim: a, length: c }, O::DynamicSlice { dim: b, length: d }) => (a, c) == (b, d),
            (O::Rope { interleaved: a }, O::Rope { interleaved: b }) => a == b,
            (O::GELU { approximate: a }, O::GELU { approximate: b }) => a == b,
            (
                O::DequantMatmul {
                    format: a,
                    transposed: c,
                },
                O::DequantMatmul {
                    format: b,
                    transposed: d,
                },
            ) => (a, c) == (b, d),
            (O::Attention(a), O::Attention(b)) => a == b,
            (O::CrossEntropy(a), O::CrossEntropy(b)) => a == b,
            (O::AdamW(a), O::AdamW(b)) => a == b,
            (O::Elementwise(a), O::Elementwise(b)) => a == b,
            (
                O::MatmulSum {
                    terms: a,
                    scale: c,
                    dtype: e,
                },
                O::MatmulSum {
                    terms: b,
                    scale: d,
                    dtype: f,
                },
            ) => c.to_bits() == d.to_bits() && e == f && a == b,
            (
                O::SharedMatmul {
                    count: a,
                    scale: c,
                    dtype: e,
                },
                O::SharedMatmul {
                    count: b,
                    scale: d,
                    dtype: f,
                },
            ) => c.to_bits() == d.to_bits() && (a, e) == (b, f),
            (O::Vjp { of: a, wanted: c }, O::Vjp { of: b, wanted: d })
            | (O::ValueAndVjp { of: a, wanted: c }, O::ValueAndVjp { of: b, wanted: d }) => c == d && a == b,
            (
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
                | O::SwiGLU,
                _,
            ) => true,
            // Of two kinds.
            (
                O::Constant { .. }
                | O::Iota { .. }
                | O::Random { .. }
                | O::MulScalar { .. }
                | O::AddScalar { .. }
                | O::RMSNorm { .. }
                | O::LayerNorm { .. }
                | O::Elementwise(_)
                | O::LoRA { .. }
                | O::DequantMatmul { .. }
                | O::Cast { .. }
                | O::Sum { .. }
                | O::Max { .. }
                | O::Permute { .. }
                | O::Reshape { .. }
                | O::Broadcast { .. }
                | O::Slice { .. }
                | O::Pad { .. }
                | O::ArgMax { .. }
                | O::Concat { .. }
                | O::IndexSelect { .. }
                | O::Gather { .. }
                | O::IndexAdd { .. }
                | O::ScatterAdd { .. }
                | O::SliceUpdate { .. }
                | O::Softmax { .. }
                | O::DynamicSlice { .. }
                | O::Rope { .. }
                | O::GELU { .. }
                | O::Attention(_)
                | O::CrossEntropy(_)
                | O::AdamW(_)
                | O::MatmulSum { .. }
                | O::SharedMatmul { .. }
                | O::ValueAndVjp { .. }
                | O::Vjp { .. },
                _,
            ) => false,
        }
    }
}
