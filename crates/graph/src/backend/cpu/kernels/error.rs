//! Errors for invalid data that a kernel is given; wrong sizes are the caller's bug and panic.

/// A value that a kernel cannot process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KernelError {
    /// An index outside the dimension it picks from.
    #[error("{operation}: index {index} (element {element} of the indices) is outside a dimension of size {size}")]
    Index {
        /// The kernel.
        operation: &'static str,
        /// The position in the indices.
        element: usize,
        /// Its value.
        index: i64,
        /// Size of the dimension.
        size: usize,
    },
    /// A target class that is neither in the vocabulary nor the ignored index.
    #[error(
        "cross_entropy: target {target} of row {row} is outside the vocabulary of {vocab} and is not the ignored index"
    )]
    Target {
        /// The row.
        row: usize,
        /// Its target.
        target: i64,
        /// Size of the vocabulary.
        vocab: usize,
    },
}
