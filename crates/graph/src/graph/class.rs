//! The class of each operation, and what follows from it: one exhaustive table answers every yes-or-no question, so
//! that a new operation is classified here and nowhere gets a silent default.

use super::operation::Operation;

/// The class of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    /// Available before anything runs: data and constants.
    Given,
    /// Computed from parameters, or from a random key.
    Source,
    /// Each output element depends on the input elements at its position.
    Elementwise,
    /// Reduces over dimensions.
    Reduction,
    /// A view of the input's elements.
    View,
    /// Moves elements to new positions.
    Movement,
    /// Selects elements by indices or positions.
    Picking,
    /// Updates a few elements of a tensor, possibly in place.
    Updating,
    /// Matrix products.
    Product,
    /// Has a folder with its fallback and, on some backends, a kernel.
    Fused,
}

impl Operation {
    /// The table of classes.
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

    /// Whether each output element depends on the input elements at its position.
    #[must_use]
    pub fn is_elementwise(&self) -> bool {
        self.class() == Class::Elementwise
    }

    /// Whether the result is a view of the input's elements.
    #[must_use]
    pub fn is_view(&self) -> bool {
        self.class() == Class::View
    }

    /// Whether the value is available before anything runs.
    pub(crate) fn is_given(&self) -> bool {
        self.class() == Class::Given
    }

    /// Whether a kernel may overwrite an input with the result: all other readers of that input must then run first.
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
