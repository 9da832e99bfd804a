//! The low-rank term of `LoRA` (Hu et al. 2021): `y = (x a b) * scale`, `x (.., in)`, `a (in, rank)`, `b (rank, out)`.
//! The product with `a` comes first and is scaled at rank width, so that neither `a b` is materialised nor `y` scaled
//! in a separate pass; the gradients are narrow products for the same reason.

use crate::error::Result;
use crate::lazy_tensor::LazyTensor;

/// The definition in primitives.
///
/// # Errors
/// When the shapes are incompatible.
pub fn fallback(x: &LazyTensor, a: &LazyTensor, b: &LazyTensor, scale: f32) -> Result<LazyTensor> {
    x.matmul(a)?.mul_scalar(scale)?.matmul(b)
}
