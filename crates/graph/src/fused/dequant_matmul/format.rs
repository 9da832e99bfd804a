//! Quantisation formats: llama.cpp's `q8_0` and `q4_0`, in blocks of 32 values with one f16 scale each. Scales are
//! stored apart from the quants, row by row, so that kernels read both in place. Knows no tensor and no device.

use half::f16;

use crate::error::{Error, Result};

/// Values per block, along a row.
pub const BLOCK: usize = 32;

/// A format of quantised weights. A row of `n` values is `n / 32` blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum QuantFormat {
    /// One byte per value: `value = scale * (quant - 128)`. The offset makes the byte unsigned, as one operand of the
    /// CPU's dot product instructions must be; llama.cpp stores `quant - 128`.
    Q8_0,
    /// Two values per byte: `value = scale * (quant - 8)`. The low nibbles of a block's 16 bytes are its first 16
    /// values, the high nibbles its last 16, as in llama.cpp.
    Q4_0,
}

/// Quantised rows.
#[derive(Debug, Clone, PartialEq)]
pub struct Quantized {
    /// The quants, block by block.
    pub quants: Vec<u8>,
    /// The scale of each block.
    pub scales: Vec<f16>,
}

impl QuantFormat {
    /// The name of the format in llama.cpp.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Q8_0 => "q8_0",
            Self::Q4_0 => "q4_0",
        }
    }

    /// Bytes of quants per block.
    #[must_use]
    pub fn block_bytes(self) -> usize {
        match self {
            Self::Q8_0 => BLOCK,
            Self::Q4_0 => BLOCK / 2,
        }
    }

    /// Bytes per value, including its share of the scale: 34/32 or 18/32.
    #[must_use]
    pub fn bytes_per_value(self) -> f64 {
        (self.block_bytes() + size_of::<f16>()) as f64 / BLOCK as f64
    }

    /// The offset that is subtracted from a quant.
    #[must_use]
    pub fn offset(self) -> u8 {
        match self {
            Self::Q8_0 => 128,
            Self::Q4_0 => 8,
        }
    }

    /// Quantises values by rounding to the nearest quant, like llama.cpp.
    ///
    /// ```
    /// use metal_candle_graph::QuantFormat;
    ///
    /// let values: Vec<f32> = (0..32).map(|i| i as f32 / 31.0).collect();
    /// let quantized = QuantFormat::Q8_0.quantize(&values)?;
    /// let back = QuantFormat::Q8_0.dequantize(&quantized);
    /// assert!(values.iter().zip(back).all(|(x, y)| (x - y).abs() < 0.005));
    /// # Ok::<(), metal_candle_graph::Error>(())
    /// ```
    ///
    /// # Errors
    /// If the number of values is not a multiple of the block size, a value is not finite, or a scale overflows f16.
    pub fn quantize(self, values: &[f32]) -> Result<Quantized> {
        if !values.len().is_multiple_of(BLOCK) {
            let message = format!("{} values are not a multiple of the block size {BLOCK}", values.len());
            return Err(Error::shape("quantize", message));
        }
        let blocks = values.len() / BLOCK;
        let mut quants = vec![0; blocks * self.block_bytes()];
        let mut scales = Vec::with_capacity(blocks);
        for (block, quants) in values
            .chunks_exact(BLOCK)
            .zip(quants.chunks_exact_mut(self.block_bytes()))
        {
            scales.push(f16::from_f32(match self {
                Self::Q8_0 => quantize_8(block, quants),
                Self::Q4_0 => quantize_4(block, quants),
            }));
        }
        if let Some(block) = scales.iter().position(|scale| !scale.is_finite()) {
            let message = format!("values of block {block} are not finite, or too large for a scale in f16");
            return Err(Error::Value {
                operation: "quantize",
                message,
            });
        }
        Ok(Quantized { quants, scales })
    }

    /// The dequantised values; exact.
    #[must_use]
    pub fn dequantize(self, quantized: &Quantized) -> Vec<f32> {
        let blocks = quantized.quants.chunks_exact(self.block_bytes());
        let mut values = Vec::with_capacity(quantized.scales.len() * BLOCK);
        for (quants, scale) in blocks.zip(&quantized.scales) {
            let value = |quant: u8| scale.to_f32() * (f32::from(quant) - f32::from(self.offset()));
            match self {
                Self::Q8_0 => values.extend(quants.iter().map(|&q| value(q))),
                Self::Q4_0 => {
                    values.extend(quants.iter().map(|&q| value(q & 15)));
                    values.extend(quants.iter().map(|&q| value(q >> 4)));
                }
            }
        }
        values
    }
}

/// The reciprocal of the scale, or 0 for a block of zeros.
fn inverse(scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { 1.0 / scale }
}

/// Quants from -127 to 127, rounded half away from zero; the scale is the largest magnitude divided by 127.
fn quantize_8(block: &[f32], quants: &mut [u8]) -> f32 {
    let scale = largest(block).abs() / 127.0;
    let inverse = inverse(scale);
    for (quant, x) in quants.iter_mut().zip(block) {
        let scaled = x * inverse;
        // `f32::round`, in steps that are vectorised.
        let whole = scaled as i32;
        let rest = scaled - whole as f32;
        *quant = (whole + i32::from(rest >= 0.5) - i32::from(rest <= -0.5) + 128) as u8;
    }
    scale
}

/// Quants from 0 to 15; the scale maps the value of the largest magnitude to -8.
fn quantize_4(block: &[f32], quants: &mut [u8]) -> f32 {
    let scale = largest(block) / -8.0;
    let inverse = inverse(scale);
    let quant = |x: f32| ((x * inverse + 8.5) as u8).min(15);
    let (first, last) = block.split_at(BLOCK / 2);
    for (quants, (&low, &high)) in quants.iter_mut().zip(first.iter().zip(last)) {
        *quants = quant(low) | quant(high) << 4;
    }
    scale
}

/// The first value of the largest magnitude; NaN if any is NaN.
fn largest(block: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b.abs() > a.abs() || b.is_nan() { b } else { a };
    block.iter().copied().fold(0.0, larger)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values() -> Vec<f32> {
        (0..64).map(|i| ((i * 37 % 64) as f32 - 20.25) * 0.125).collect()
    }

    /// The first block as `NumPy` 2.4 quantises it in f32: `d = amax / 127; trunc(x / d + copysign(0.5, x))`, and
    /// `d = signed max / -8; clip(trunc(x / d + 8.5), 0, 15)`.
    #[test]
    fn quants_and_scales_are_those_that_numpy_computes() {
        let block = &values()[..BLOCK];
        let q8 = QuantFormat::Q8_0.quantize(block).unwrap();
        let wanted: [i32; BLOCK] = [
            -60, 50, -30, 79, -1, 109, 29, -51, 59, -22, 88, 8, 118, 38, -42, 68, -13, 97, 17, 127, 47, -33, 76, -4,
            106, 26, -54, 56, -25, 85, 5, 115,
        ];
        assert!(q8.quants.iter().map(|&q| i32::from(q) - 128).eq(wanted));
        assert_eq!(q8.scales[0].to_bits(), 10595);
        let q4 = QuantFormat::Q4_0.quantize(block).unwrap();
        let wanted = [156, 37, 122, 3, 88, 161, 54, 139, 20, 105, 178, 71, 161, 54, 139, 20];
        assert_eq!(q4.quants, wanted);
        assert_eq!(q4.scales[0].to_bits(), 47448);
    }

    #[test]
    fn quants_are_those_of_the_definition() {
        for (format, levels) in [(QuantFormat::Q8_0, 127.0f64), (QuantFormat::Q4_0, -8.0)] {
            let quantized = format.quantize(&values()).unwrap();
            for (b, block) in values().chunks(BLOCK).enumerate() {
                let top = block
                    .iter()
                    .copied()
                    .max_by(|a, b| a.abs().total_cmp(&b.abs()))
                    .unwrap();
                let scale = match format {
                    QuantFormat::Q8_0 => f64::from(top.abs()) / levels,
                    QuantFormat::Q4_0 => f64::from(top) / levels,
                };
                assert_eq!(quantized.scales[b], f16::from_f64(scale));
                for (i, &x) in block.iter().enumerate() {
                    let exact = f64::from(x) / scale;
                    let (found, wanted) = match format {
                        QuantFormat::Q8_0 => (f64::from(quantized.quants[b * 32 + i]) - 128.0, exact.round()),
                        QuantFormat::Q4_0 => {
                            let byte = quantized.quants[b * 16 + i % 16];
                            (
                                f64::from(byte >> (i / 16 * 4) & 15),
                                (exact + 8.5).trunc().clamp(0.0, 15.0),
                            )
                        }
                    };
                    assert_eq!(found, wanted, "{} block {b} element {i}", format.name());
                }
            }
        }
    }

    #[test]
    fn dequantised_values_are_within_half_a_step() {
        let values = values();
        for format in [QuantFormat::Q8_0, QuantFormat::Q4_0] {
            let quantized = format.quantize(&values).unwrap();
            let back = format.dequantize(&quantized);
            for (i, (x, y)) in values.iter().zip(back).enumerate() {
                let step = quantized.scales[i / BLOCK].to_f32().abs();
                // The largest value of the other sign is clipped to 15 in q4_0: an error of a whole step.
                let most = if format == QuantFormat::Q8_0 { 0.51 } else { 1.01 };
                assert!(
                    (x - y).abs() <= most * step,
                    "{} element {i}: {x} became {y}",
                    format.name()
                );
            }
        }
    }

    #[test]
    fn zeros_stay_zeros_and_invalid_values_are_refused() {
        for format in [QuantFormat::Q8_0, QuantFormat::Q4_0] {
            let zeros = format.quantize(&[0.0; 32]).unwrap();
            assert_eq!(format.dequantize(&zeros), [0.0; 32]);
            let fault = format.quantize(&[0.0; 33]).unwrap_err().to_string();
            assert!(fault.starts_with("quantize: 33 values"), "{fault}");
            for wrong in [f32::NAN, f32::INFINITY, -1e30] {
                let mut block = [1.0; 64];
                block[40] = wrong;
                let fault = format.quantize(&block).unwrap_err().to_string();
                assert!(fault.contains("block 1"), "{fault}");
            }
        }
        assert_eq!(QuantFormat::Q8_0.bytes_per_value(), 34.0 / 32.0);
        assert_eq!(QuantFormat::Q4_0.bytes_per_value(), 18.0 / 32.0);
    }
}
