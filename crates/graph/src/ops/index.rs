//! Indexing by tensors: slices by index, elements by index, and slices at run-time positions.

use crate::error::Result;
use crate::graph::Operation;
use crate::lazy_tensor::LazyTensor;

impl LazyTensor {
    /// Whole slices along `dim`, by `indices (n)` of dtype u32 or i64.
    ///
    /// # Errors
    /// When the shapes are incompatible; an index out of range is reported at run time.
    pub fn index_select(&self, dim: usize, indices: &Self) -> Result<Self> {
        Self::record_one(Operation::IndexSelect { dim }, &[self, indices])
    }

    /// One element per index along `dim`: `out[i][j] = self[i][indices[i][j]]` for `dim` 1, as `torch.gather`.
    ///
    /// # Errors
    /// When the shapes are incompatible; an index out of range is reported at run time.
    pub fn gather(&self, dim: usize, indices: &Self) -> Result<Self> {
        Self::record_one(Operation::Gather { dim }, &[self, indices])
    }

    /// This tensor with `updates` added to the slices along `dim` given by `indices (n)`.
    ///
    /// # Errors
    /// When the shapes are incompatible; an index out of range is reported at run time.
    pub fn index_add(&self, dim: usize, indices: &Self, updates: &Self) -> Result<Self> {
        Self::record_one(Operation::IndexAdd { dim }, &[self, indices, updates])
    }

    /// This tensor with single elements added along `dim`, as `torch.scatter_add`.
    ///
    /// # Errors
    /// When the shapes are incompatible; an index out of range is reported at run time.
    pub fn scatter_add(&self, dim: usize, indices: &Self, updates: &Self) -> Result<Self> {
        Self::record_one(Operation::ScatterAdd { dim }, &[self, indices, updates])
    }

    /// `length` slices along `dim` from `position` (u32, shape `(1)`), which is read at run time.
    ///
    /// # Errors
    /// When the shapes are incompatible; a range that exceeds the dimension is reported at run time.
    pub fn dynamic_slice(&self, dim: usize, position: &Self, length: usize) -> Result<Self> {
        Self::record_one(Operation::DynamicSlice { dim, length }, &[self, position])
    }

    /// This tensor with `update` written along `dim` at `position` (u32, shape `(1)`), which is read at run time.
    ///
    /// # Errors
    /// When the shapes are incompatible; a range that exceeds the dimension is reported at run time.
    pub fn slice_update(&self, dim: usize, update: &Self, position: &Self) -> Result<Self> {
        Self::record_one(Operation::SliceUpdate { dim }, &[self, update, position])
    }
}
