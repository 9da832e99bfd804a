//! Rows of activations in bytes: blocks of 32 along a row, each with a scale in f32, in the order in which the kernels
//! meet them. A block with a value that is not finite has the scale NaN, so that every output is NaN too.

use super::super::float::{Float, Real};
use super::super::par::simd;
use crate::fused::dequant_matmul::{BLOCK, QuantFormat};

/// Rows are filled up with zeros to so many blocks.
pub(super) const CHUNK: usize = 16;
/// Blocks of `q4_0` that lie woven: the first halves of four, then their last halves.
pub(super) const WOVEN: usize = 4;
/// Added to a number below 2^22 it leaves the nearest integer in the low bits.
const MAGIC: f32 = 12_582_912.0;

/// Quantised rows of one length.
#[derive(Clone, Copy)]
pub(crate) struct Activations {
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
    /// What [`quantize`] wrote from `at` on: so many rows of so many values.
    pub fn of(at: *const u8, rows: usize, cols: usize) -> Self {
        let blocks = blocks(cols);
        let quants_row = blocks * BLOCK;
        let scales: *const f32 = at.wrapping_add(rows * quants_row).cast();
        Self {
            quants: at.cast(),
            quants_row,
            scales,
            scales_row: blocks,
            offsets: scales.wrapping_add(rows * blocks),
        }
    }

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

/// Blocks that a row of so many values is filled up to.
fn blocks(cols: usize) -> usize {
    (cols / BLOCK).next_multiple_of(CHUNK)
}

/// Bytes that so many rows of so many values take when they are quantised.
pub(crate) fn activation_bytes(rows: usize, cols: usize) -> usize {
    rows * blocks(cols) * (BLOCK + 2 * size_of::<f32>())
}

/// Quantises the rows of `x`, each `cols` long, against weights in `format`, into [`activation_bytes`] from `to` on.
///
/// # Safety
/// The bytes are writable and aligned for f32; nobody else uses them meanwhile.
pub(crate) unsafe fn quantize<T: Float>(x: &[T], cols: usize, format: QuantFormat, to: *mut u8) {
    let rows = Activations::of(to, x.len() / cols, cols);
    let (blocks, quants_row) = (rows.scales_row, rows.quants_row);
    for (r, x) in x.chunks_exact(cols).enumerate() {
        let row = rows.at_row(r);
        let (quants, scales, offsets) = (row.quants.cast_mut(), row.scales.cast_mut(), row.offsets.cast_mut());
        // SAFETY: the caller's promise; all of it is written here before it is read, and any bits are valid.
        let (quants, scales, offsets) = unsafe {
            quants.add(cols).write_bytes(0, quants_row - cols);
            scales.write_bytes(0, blocks);
            offsets.write_bytes(0, blocks);
            if format == QuantFormat::Q4_0 {
                // Woven, the last blocks have gaps.
                quants.write_bytes(0, cols);
            }
            (
                std::slice::from_raw_parts_mut(quants, quants_row),
                std::slice::from_raw_parts_mut(scales, blocks),
                std::slice::from_raw_parts_mut(offsets, blocks),
            )
        };
        simd(
            #[inline(always)]
            || quantize_row(x, format, quants, scales, offsets),
        );
    }
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
