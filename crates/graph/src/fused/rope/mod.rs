//! Rotary position embedding (Su et al. 2021): each pair of channels is rotated by an angle proportional to the
//! position. `x (batch, seq, heads, head_dim)`; `cos`, `sin` `(batch or 1, seq, r)` rotate the first `2 r` channels,
//! the rest is unchanged. Pairs are `(i, i + r)`, or `(2i, 2i + 1)` when interleaved. The vjp is the rotation by the
//! negated angle.

use crate::error::Result;
use crate::lazy_tensor::LazyTensor;

/// The definition in primitives.
///
/// # Errors
/// When the shapes are incompatible.
pub fn fallback(x: &LazyTensor, cos: &LazyTensor, sin: &LazyTensor, interleaved: bool) -> Result<LazyTensor> {
    let (half, width) = (cos.dims()[2], x.dims()[3]);
    let turned = x.slice(3, 0, 2 * half)?;
    let mut by_pair = x.dims().to_vec();
    by_pair[3] = half;
    // (first channel of each pair, second channel of each pair), both (batch, seq, heads, r)
    let (first, second) = if interleaved {
        let pairs = turned.reshape(&[&by_pair[..], &[2]].concat())?;
        (
            pairs.slice(4, 0, 1)?.reshape(&by_pair)?,
            pairs.slice(4, 1, 2)?.reshape(&by_pair)?,
        )
    } else {
        (turned.slice(3, 0, half)?, turned.slice(3, half, 2 * half)?)
    };
    let (cos, sin) = (cos.unsqueeze(2)?, sin.unsqueeze(2)?);
    let new_first = first.mul(&cos)?.sub(&second.mul(&sin)?)?;
    let new_second = second.mul(&cos)?.add(&first.mul(&sin)?)?;
    let joined = if interleaved {
        LazyTensor::concat(&[&new_first.unsqueeze(4)?, &new_second.unsqueeze(4)?], 4)?.reshape(turned.dims())?
    } else {
        LazyTensor::concat(&[&new_first, &new_second], 3)?
    };
    if 2 * half == width {
        return Ok(joined);
    }
    LazyTensor::concat(&[&joined, &x.slice(3, 2 * half, width)?], 3)
}
