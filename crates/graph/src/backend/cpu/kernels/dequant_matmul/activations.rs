//! Rows of activations in bytes: blocks of 32 along a row, each with a scale in f32, in the order in which the kernels
//! meet them. A block with a value that is not finite has the scale NaN, so that every output is NaN too.

use super::super::float::{Float, Real};
use super::super::par::{simd, with_space};
use crate::fused::dequant_matmul::{BLOCK, QuantFormat};

/// Rows are filled up with zeros to so many blocks.
pub(super) const CHUNK: usize = 16;
/// Blocks of `q4_0` that lie woven: the first halves of four, then their last halves.
pub(super) const WOVEN: usize = 4;
/// Added to a number below 2^22 it leaves the nearest integer in the low bits.
const MAGIC: f32 = 12_582_912.0;

/// Quantised rows of one length.
#[derive(Clone, Copy)]
pub(super) struct Activations {
    /// The quants of each row: block by block, or woven for [`QuantFormat::Q4_0`].
    pub quants: *const i8,
    /// From row to row.
    pub quants_row: usize,
    /// The scale of each block.
    pub scales: *const f32,
    /// From row to row.
    pub scales_row: usize,
    /// What the offset of the weights' quants adds too much to each block's share of a sum, with the other sign: a factor of
    /// the weights' scale. As far from row to row as the scales.
    pub offsets: *const f32,
}

// SAFETY: only read.
unsafe impl Sync for Activations {}

impl Activations {
    /// Those of the rows from `row` on.
    pub fn at_row(&self, row: usize) -> Self {
        Self {
            quants: self.quants.wrapping_add(row * self.quants_row),
            scales: self.scales.wrapping_add(row * self.scales_row),
            offsets: self.offsets.wrapping_add(row * self.scales_row),
            ..*self
        }
    }
}

/// Lends `f` the rows of `x`, each `cols` long, against weights in `format`.
pub(super) fn with_activations<T: Float>(x: &[T], cols: usize, format: QuantFormat, f: impl FnOnce(&Activations)) {
    let rows = x.len() / cols;
    let blocks = (cols / BLOCK).next_multiple_of(CHUNK);
    let quants_row = blocks * BLOCK;
    with_space(rows * quants_row, |quants: *mut i8| {
        with_space(2 * rows * blocks, |scales: *mut f32| {
            let offsets = scales.wrapping_add(rows * blocks);
            for (r, x) in x.chunks_exact(cols).enumerate() {
                // SAFETY: the space is this call's and has room for so many rows; all of it is written here before it is
                // read, and any bits are valid.
                let (quants, scales, offsets) = unsafe {
                    quants.add(r * quants_row + cols).write_bytes(0, quants_row - cols);
                    scales.add(r * blocks).write_bytes(0, blocks);
                    offsets.add(r * blocks).write_bytes(0, blocks);
                    if format == QuantFormat::Q4_0 {
                        // Woven, the last blocks have gaps.
                        quants.add(r * quants_row).write_bytes(0, cols);
                    }
                    (
                        std::slice::from_raw_parts_mut(quants.add(r * quants_row), quants_row),
                        std::slice::from_raw_parts_mut(scales.add(r * blocks), blocks),
                        std::slice::from_raw_parts_mut(offsets.add(r * blocks), blocks),
                    )
                };
                simd(
                    #[inline(always)]
                    || quantize_row(x, format, quants, scales, offsets),
                );
            }
            f(&Activations {
                quants,
                quants_row,
                scales,
                scales_row: blocks,
                offsets,
            });
        });
    });
}

#[inline(always)]
fn quantize_row<T: Float>(x: &[T], format: QuantFormat, quants: &mut [i8], scales: &mut [f32], offsets: &mut [f32]) {
    let too_much = -f32::from(format.offset());
    let blocks = x.chunks_exact(BLOCK).zip(scales.iter_mut().zip(offsets));
    for (b, (block, (scale, offset))) in blocks.enumerate() {
        let mut small = [0; BLOCK];
        *scale = quantize_block(block, &mut small);
        let mut sum = 0;
        for quant in small {
            sum += i32::from(quant);
        }
        *offset = too_much * *scale * sum as f32;
        match format {
            QuantFormat::Q8_0 => quants[b * BLOCK..][..BLOCK].copy_from_slice(&small),
            QuantFormat::Q4_0 => {
                let (first, last) = small.split_at(BLOCK / 2);
                let at = b / WOVEN * WOVEN * BLOCK + b % WOVEN * BLOCK / 2;
                quants[at..][..BLOCK / 2].copy_from_slice(first);
                quants[at + WOVEN * BLOCK / 2..][..BLOCK / 2].copy_from_slice(last);
            }
        }
    }
}

/// Quants from -127 to 127, and the scale: a 127th of the largest magnitude.
#[inline(always)]
fn quantize_block<T: Float>(block: &[T], quants: &mut [i8; BLOCK]) -> f32 {
    let mut wide = [0f32; BLOCK];
    for (wide, x) in wide.iter_mut().zip(block) {
        *wide = x.to_acc().widen() as f32;
    }
    // By the bits, by which NaN is above everything.
    let mut top = 0;
    for x in wide {
        top = top.max(x.to_bits() & 0x7fff_ffff);
    }
    let top = f32::from_bits(top);
    // So small that the inverse is infinite, or not finite itself: zeros.
    let inverse = if top >= f32::MIN_POSITIVE * 127.0 && top.is_finite() {
        127.0 / top
    } else {
        0.0
    };
    for (quant, x) in quants.iter_mut().zip(wide) {
        *quant = (x * inverse + MAGIC).to_bits() as i8;
    }
    match inverse {
        0.0 if top.is_finite() => 0.0,
        0.0 => f32::NAN,
        _ => top / 127.0,
    }
}
