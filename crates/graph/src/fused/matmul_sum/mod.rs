//! A sum of products and addends: `y = (t0 + t1 + ..) * scale`, each term a product `a b`, `a (.., m, k)`, `b (k, n)`,
//! or a tensor that broadcasts to the result. It is made by the pass `products`; users never record one. A linear
//! layer, its low-rank term, its bias and the residual are one such sum, whose terms never reach memory. With a kernel
//! the sum of the products is accumulated and rounded once. A cast of the sum to f32 is part of it: the f32 accumulator
//! is then stored as it is.

use candle_core::DType;

use crate::error::{Error, Result};
use crate::lazy_tensor::LazyTensor;

/// A term of the sum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SumTerm {
    /// The product of the next two inputs.
    Product,
    /// The next input.
    Addend,
}

impl SumTerm {
    /// The number of inputs of the term.
    #[must_use]
    pub fn inputs(self) -> usize {
        match self {
            Self::Product => 2,
            Self::Addend => 1,
        }
    }
}

/// The definition in primitives: terms are added from left to right, the sum is scaled, then cast.
///
/// # Errors
/// When the shapes are incompatible, or the number of inputs is not that of the terms.
pub fn fallback(inputs: &[LazyTensor], terms: &[SumTerm], scale: f32, dtype: DType) -> Result<LazyTensor> {
    let mut rest = inputs.iter();
    let mut sum: Option<LazyTensor> = None;
    for term in terms {
        let value = match (term, rest.next()) {
            (SumTerm::Addend, Some(x)) => x.clone(),
            (SumTerm::Product, Some(a)) => a.matmul(rest.next().ok_or_else(too_few)?)?,
            (_, None) => return Err(too_few()),
        };
        sum = Some(match sum {
            Some(sum) => sum.add(&value)?,
            None => value,
        });
    }
    let sum = sum.ok_or_else(too_few)?;
    finished(sum, scale, dtype)
}

/// Scales and casts a sum.
///
/// # Errors
/// When the sum is not of a floating-point dtype.
pub(crate) fn finished(sum: LazyTensor, scale: f32, dtype: DType) -> Result<LazyTensor> {
    let scaled = if scale.to_bits() == 1f32.to_bits() {
        sum
    } else {
        sum.mul_scalar(scale)?
    };
    if scaled.dtype() == dtype {
        return Ok(scaled);
    }
    scaled.cast(dtype)
}

fn too_few() -> Error {
    Error::internal("MatmulSum: terms and inputs differ in number")
}
