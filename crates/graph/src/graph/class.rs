//! What sort of operation one is, and what follows from that: one exhaustive table, from which every yes-or-no question is
//! answered, so that a new operation is asked about here and nowhere has a silent default.

use super::operation::Operation;

/// The sorts of operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    /// There before anything runs: data and constants.
    Given,
    /// Made of parameters, or of a key.
    Source,
    /// Each element of the result comes from the elements at its place.
    Elementwise,
    /// Fewer elements out of many.
    Reduction,
    /// Another look at the input's elements.
    View,
    /// Elements at new places.
    Movement,
    /// Elements picked by indices or positions.
    Picking,
    /// A tensor changed in a few places, which may happen in its own memory.
    Updating,
    /// Matrix products.
    Product,
    /// Has a folder with its fallback and, on some backends, a kernel.
    Fused,
}

impl Operation {
    /// The table.
    pub(crate) fn class(&self) -> Class {
        match self {
            Self::Input | Self::Constant { .. } => Class::Given,
            Self::Iota { .. } | Self::Random { .. } => Class::Source,
            Self::Neg
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
            | Self::Where => Class::Elementwise,
            Self::Sum { .. } | Self::Max { .. } | Self::ArgMax { .. } => Class::Reduction,
            Self::Reshape { .. }
            | Self::Permute { .. }
            | Self::Broadcast { .. }
            | Self::Slice { .. }
            | Self::StopGradient => Class::View,
            Self::Concat { .. } | Self::Pad { .. } => Class::Movement,
            Self::IndexSelect { .. } | Self::Gather { .. } | Self::DynamicSlice { .. } => Class::Picking,
            Self::IndexAdd { .. } | Self::ScatterAdd { .. } | Self::SliceUpdate { .. } => Class::Updating,
            Self::Matmul => Class::Product,
            Self::Softmax { .. }
            | Self::RMSNorm { .. }
            | Self::LayerNorm { .. }
            | Self::Rope { .. }
            | Self::SwiGLU
            | Self::GELU { .. }
            | Self::LoRA { .. }
            | Self::DequantMatmul { .. }
            | Self::Attention(_)
            | Self::CrossEntropy(_)
            | Self::AdamW(_)
            | Self::Elementwise(_)
            | Self::MatmulSum { .. }
            | Self::SharedMatmul { .. }
            | Self::ValueAndVjp { .. }
            | Self::Vjp { .. } => Class::Fused,
        }
    }

    /// Whether this is a fused operation: one with a folder, a fallback and, on some backends, a kernel.
    #[must_use]
    pub fn is_fused(&self) -> bool {
        self.class() == Class::Fused
    }

    /// Whether each element of the result comes from the elements at its place.
    #[must_use]
    pub fn is_elementwise(&self) -> bool {
        self.class() == Class::Elementwise
    }

    /// Whether the result is only another look at the input's elements.
    #[must_use]
    pub fn is_view(&self) -> bool {
        self.class() == Class::View
    }

    /// Whether the value is there before anything runs.
    pub(crate) fn is_given(&self) -> bool {
        self.class() == Class::Given
    }

    /// Whether a kernel may write the result over an input: then everything else has to read that input first.
    pub(crate) fn updates_in_place(&self) -> bool {
        match self.class() {
            Class::Updating => true,
            Class::Fused => self.fused_updates_in_place(),
            Class::Given
            | Class::Source
            | Class::Elementwise
            | Class::Reduction
            | Class::View
            | Class::Movement
            | Class::Picking
            | Class::Product => false,
        }
    }
}
