//! Matrix products. Transposes are views: no backend copies a transposed input.

use crate::error::Result;
use crate::graph::Operation;
use crate::lazy_tensor::LazyTensor;

impl LazyTensor {
    /// `(.., m, k) x (.., k, n) -> (.., m, n)`; batch dimensions broadcast. Accumulates in f32 (f64 for f64).
    ///
    /// # Errors
    /// When the inner dimensions differ, the batch dimensions do not broadcast, or the dtypes differ.
    pub fn matmul(&self, other: &Self) -> Result<Self> {
        Self::record_one(Operation::Matmul, &[self, other])
    }

    /// `self x other^T`: `(.., m, k) x (.., n, k) -> (.., m, n)`, the product of a linear layer with its weight.
    ///
    /// # Errors
    /// See [`Self::matmul`].
    pub fn matmul_t(&self, other: &Self) -> Result<Self> {
        self.matmul(&other.t()?)
    }
}
