//! Products that share their left factor: `y_i = x b_i * scale`, `x (.., m, k)`, `b_i (k, n_i)`. It is made by the pass
//! `shared`; users never record one. The low-rank factors of layers with a common input (queries, keys and values; gate
//! and up) are such products, and so are the gradients of those factors. Kernels pack the narrow factors side by side
//! and read `x` once.

use candle_core::DType;

use super::matmul_sum::finished;
use crate::error::Result;
use crate::lazy_tensor::LazyTensor;

/// The definition in primitives: separate products.
///
/// # Errors
/// When the shapes are incompatible.
pub fn fallback(x: &LazyTensor, factors: &[LazyTensor], scale: f32, dtype: DType) -> Result<Vec<LazyTensor>> {
    let product = |factor: &LazyTensor| finished(x.matmul(factor)?, scale, dtype);
    factors.iter().map(product).collect()
}
