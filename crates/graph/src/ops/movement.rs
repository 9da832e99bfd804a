//! Movement operations: the same elements with another shape, order or extent.

use candle_core::Shape;

use crate::error::{Error, Result};
use crate::graph::Operation;
use crate::lazy_tensor::LazyTensor;

impl LazyTensor {
    /// The same elements in row-major order under another shape.
    ///
    /// # Errors
    /// When the number of elements differs.
    pub fn reshape(&self, shape: &[usize]) -> Result<Self> {
        Self::record_one(
            Operation::Reshape {
                shape: Shape::from(shape),
            },
            &[self],
        )
    }

    /// Dimension `i` of the result is dimension `dims[i]` of this tensor.
    ///
    /// # Errors
    /// When `dims` is not a permutation.
    pub fn permute(&self, dims: &[usize]) -> Result<Self> {
        Self::record_one(Operation::Permute { dims: dims.to_vec() }, &[self])
    }

    /// Swaps two dimensions.
    ///
    /// # Errors
    /// When one of them does not exist.
    pub fn transpose(&self, a: usize, b: usize) -> Result<Self> {
        let mut dims: Vec<usize> = (0..self.rank()).collect();
        if a.max(b) >= dims.len() {
            return Err(Error::shape(
                "transpose",
                format!("dimension {a} or {b} is out of range for shape {:?}", self.dims()),
            ));
        }
        dims.swap(a, b);
        self.permute(&dims)
    }

    /// The matrix transpose: swaps the last two dimensions.
    ///
    /// # Errors
    /// When there are fewer than two dimensions.
    pub fn t(&self) -> Result<Self> {
        match self.rank() {
            0 | 1 => Err(Error::shape(
                "t",
                format!("{:?} has fewer than two dimensions", self.dims()),
            )),
            rank => self.transpose(rank - 2, rank - 1),
        }
    }

    /// Repeats dimensions of size 1 and adds leading ones.
    ///
    /// # Errors
    /// When the shape does not broadcast to `shape`.
    pub fn broadcast_to(&self, shape: &[usize]) -> Result<Self> {
        Self::record_one(
            Operation::Broadcast {
                shape: Shape::from(shape),
            },
            &[self],
        )
    }

    /// The indices `start..end` along `dim`.
    ///
    /// # Errors
    /// When the range is not inside the dimension.
    pub fn slice(&self, dim: usize, start: usize, end: usize) -> Result<Self> {
        let (mut from, mut to) = (vec![0; self.rank()], self.dims().to_vec());
        if dim >= to.len() {
            return Err(Error::shape(
                "Slice",
                format!("dimension {dim} is out of range for shape {to:?}"),
            ));
        }
        (from[dim], to[dim]) = (start, end);
        // The range is checked against the input when recorded.
        Self::record_one(Operation::Slice { start: from, end: to }, &[self])
    }

    /// Concatenates tensors along `dim`.
    ///
    /// # Errors
    /// When they differ in dtype or outside `dim`.
    pub fn concat(tensors: &[&Self], dim: usize) -> Result<Self> {
        Self::record_one(Operation::Concat { dim }, tensors)
    }

    /// Zero padding: `before[i]` and `after[i]` along dimension `i`.
    ///
    /// # Errors
    /// When the lists do not have one entry per dimension.
    pub fn pad(&self, before: &[usize], after: &[usize]) -> Result<Self> {
        Self::record_one(
            Operation::Pad {
                before: before.to_vec(),
                after: after.to_vec(),
            },
            &[self],
        )
    }
}
