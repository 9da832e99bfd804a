//! Reductions. The operations keep the reduced dimensions with size 1; the methods without `_keepdim` drop them.

use crate::error::{Error, Result};
use crate::graph::Operation;
use crate::graph::infer::accumulator;
use crate::graph::verify::is_float;
use crate::lazy_tensor::LazyTensor;

impl LazyTensor {
    /// Sum over `dims`, which are kept with size 1. Accumulates in f32 (f64 for f64); integers wrap. A sum of no
    /// elements is 0.
    ///
    /// # Errors
    /// When a dimension does not exist or is given twice.
    pub fn sum_keepdim(&self, dims: &[usize]) -> Result<Self> {
        Self::record_one(Operation::Sum { dims: ascending(dims) }, &[self])
    }

    /// Sum over one dimension, which is dropped.
    ///
    /// # Errors
    /// When the dimension does not exist.
    pub fn sum(&self, dim: usize) -> Result<Self> {
        self.sum_keepdim(&[dim])?.squeeze(dim)
    }

    /// Sum of all elements, of shape `()`.
    ///
    /// # Errors
    /// Never for a tensor of a supported dtype.
    pub fn sum_all(&self) -> Result<Self> {
        self.sum_keepdim(&(0..self.rank()).collect::<Vec<_>>())?.reshape(&[])
    }

    /// Mean over `dims`, which are kept with size 1. Computed in f32 (f64 for f64), so that neither sum nor count
    /// overflows a narrow dtype. A mean of no elements is NaN.
    ///
    /// # Errors
    /// When a dimension does not exist or is given twice, or the dtype is not a float.
    pub fn mean_keepdim(&self, dims: &[usize]) -> Result<Self> {
        if !is_float(self.dtype()) {
            return Err(Error::DType {
                operation: "mean",
                input: 0,
                found: self.dtype(),
                expected: "a float (f32, f64, f16, bf16)".into(),
            });
        }
        let sum = self.cast(accumulator(self.dtype()))?.sum_keepdim(dims)?;
        let count: usize = dims.iter().map(|&d| self.dims()[d]).product();
        sum.div(&sum.scalar_like(count as f64)?)?.cast(self.dtype())
    }

    /// Mean of all elements, of shape `()`.
    ///
    /// # Errors
    /// When the dtype is not a float.
    pub fn mean_all(&self) -> Result<Self> {
        self.mean_keepdim(&(0..self.rank()).collect::<Vec<_>>())?.reshape(&[])
    }

    /// Maximum over `dims`, which are kept with size 1. NaN propagates.
    ///
    /// # Errors
    /// When a dimension does not exist, is given twice or is empty, since a maximum of no elements is undefined.
    pub fn max_keepdim(&self, dims: &[usize]) -> Result<Self> {
        Self::record_one(Operation::Max { dims: ascending(dims) }, &[self])
    }

    /// Maximum over one dimension, which is dropped.
    ///
    /// # Errors
    /// When the dimension does not exist or is empty.
    pub fn max(&self, dim: usize) -> Result<Self> {
        self.max_keepdim(&[dim])?.squeeze(dim)
    }

    /// Index (u32) of the first maximum along `dim`, which is dropped; of the first NaN where there is one.
    ///
    /// # Errors
    /// When the dimension does not exist or is empty.
    pub fn argmax(&self, dim: usize) -> Result<Self> {
        Self::record_one(Operation::ArgMax { dim }, &[self])?.squeeze(dim)
    }

    /// Drops a dimension of size 1.
    ///
    /// # Errors
    /// When the dimension does not exist or has another size.
    pub fn squeeze(&self, dim: usize) -> Result<Self> {
        let mut dims = self.dims().to_vec();
        if dims.get(dim) != Some(&1) {
            return Err(Error::shape(
                "squeeze",
                format!("dimension {dim} of {dims:?} is not of size 1"),
            ));
        }
        dims.remove(dim);
        self.reshape(&dims)
    }

    /// Adds a dimension of size 1 before dimension `dim`.
    ///
    /// # Errors
    /// When `dim` exceeds the rank.
    pub fn unsqueeze(&self, dim: usize) -> Result<Self> {
        let mut dims = self.dims().to_vec();
        if dim > dims.len() {
            return Err(Error::shape(
                "unsqueeze",
                format!("cannot insert dimension {dim} into {dims:?}"),
            ));
        }
        dims.insert(dim, 1);
        self.reshape(&dims)
    }
}

fn ascending(dims: &[usize]) -> Vec<usize> {
    let mut dims = dims.to_vec();
    dims.sort_unstable();
    dims
}
