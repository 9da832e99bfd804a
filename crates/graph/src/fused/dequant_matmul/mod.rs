//! A product with quantised weights: `y = x W^T`, `x (.., in)`, `W (out, in)`, as in a linear layer; transposed, `y = x
//! W` with `x (.., out)`, which is the layer's gradient. `W = scale * (quant - offset)`, rounded to the dtype of `x`;
//! quants u8 `(out, in)` (`q8_0`) or `(out, in / 2)` (`q4_0`), scales f16 `(out, in / 32)`. See [`QuantFormat`].
//!
//! Quants and scales are frozen and have no gradient. A kernel may also quantise a few rows of `x`, block by block to 8
//! bits, like llama.cpp: then `y` has a normalised mean squared error of about 3e-5 against this definition.

mod format;

pub use format::{BLOCK, QuantFormat, Quantized};

use candle_core::DType;

use crate::error::{Error, Result};
use crate::graph::Meta;
use crate::lazy_tensor::LazyTensor;

/// The definition in primitives.
///
/// # Errors
/// When the shapes are incompatible.
pub fn fallback(
    x: &LazyTensor,
    quants: &LazyTensor,
    scales: &LazyTensor,
    format: QuantFormat,
    transposed: bool,
) -> Result<LazyTensor> {
    let weight = dequantize(quants, scales, format, x.dtype())?;
    if transposed {
        x.matmul(&weight)
    } else {
        x.matmul_t(&weight)
    }
}

/// The dequantised weights `(out, in)`: exact in f32, rounded to `dtype`.
///
/// # Errors
/// When the shapes are incompatible.
pub fn dequantize(quants: &LazyTensor, scales: &LazyTensor, format: QuantFormat, dtype: DType) -> Result<LazyTensor> {
    let [rows, blocks] =
        weight_shape("dequantize", quants.dims(), scales.dims(), format).map(|[rows, n]| [rows, n / BLOCK])?;
    let bytes = quants
        .cast(DType::F32)?
        .reshape(&[rows, blocks, format.block_bytes()])?;
    let wide = match format {
        QuantFormat::Q8_0 => bytes,
        QuantFormat::Q4_0 => {
            let high = bytes.mul_scalar(1.0 / 16.0)?.floor()?;
            let low = bytes.sub(&high.mul_scalar(16.0)?)?;
            LazyTensor::concat(&[&low, &high], 2)?
        }
    };
    let scales = scales.cast(DType::F32)?.reshape(&[rows, blocks, 1])?;
    let values = wide.add_scalar(-f32::from(format.offset()))?.mul(&scales)?;
    values.cast(dtype)?.reshape(&[rows, blocks * BLOCK])
}

/// The shape `(out, in)` of the weights stored in these tensors.
fn weight_shape(name: &'static str, quants: &[usize], scales: &[usize], format: QuantFormat) -> Result<[usize; 2]> {
    match (quants, scales) {
        (&[rows, bytes], &[others, blocks]) if rows == others && bytes == blocks * format.block_bytes() => {
            Ok([rows, blocks * BLOCK])
        }
        _ => Err(Error::shape(
            name,
            format!(
                "quants {quants:?} and scales {scales:?} are not (out, {} n) and (out, n) of {}",
                format.block_bytes(),
                format.name()
            ),
        )),
    }
}

/// The shape of the product.
pub(crate) fn product_shape(
    name: &'static str,
    inputs: &[&Meta],
    format: QuantFormat,
    transposed: bool,
) -> Result<Vec<usize>> {
    let [x, quants, scales] = [0, 1, 2].map(|i| inputs[i].shape.dims());
    let [rows, columns] = weight_shape(name, quants, scales, format)?;
    let (read, made) = if transposed { (rows, columns) } else { (columns, rows) };
    match x {
        [before @ .., last] if *last == read => Ok([before, &[made]].concat()),
        _ => Err(Error::shape(
            name,
            format!(
                "x {x:?} and weights {:?}: the last dimension of x is not {read}",
                [rows, columns]
            ),
        )),
    }
}
