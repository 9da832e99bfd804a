//! `swiglu(gate, up) = gate * sigmoid(gate) * up` (Shazeer 2020).

use super::accumulate;
use crate::error::Result;
use crate::lazy_tensor::LazyTensor;

/// The definition in primitives.
///
/// # Errors
/// When the shapes differ.
pub fn fallback(gate: &LazyTensor, up: &LazyTensor) -> Result<LazyTensor> {
    let wide = accumulate(gate)?;
    wide.mul(&wide.sigmoid()?)?.mul(&accumulate(up)?)?.cast(gate.dtype())
}
