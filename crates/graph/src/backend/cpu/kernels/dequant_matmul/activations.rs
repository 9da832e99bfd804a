//! Activations quantised to 8 bits: blocks of 32 along a row, each with a scale in f32, in the order in which the
//! kernels read them. A block with a non-finite value has the scale NaN, so that every output is NaN too.

use super::super::float::{Float, Real};
use super::super::par::simd;
use crate::fused::dequant_matmul::{BLOCK, QuantFormat};

/// Rows are zero-padded to a multiple of this many blocks.
pub(super) const CHUNK: usize = 16;
/// Number of `q4_0` blocks that are interleaved: the first halves of four blocks, then their second halves.
pub(super) const INTERLEAVED: usize = 4;
/// Adding it to a number below 2^22 rounds to the nearest integer, which is then in the low bits.
const MAGIC: f32 = 12_582_912.0;

/// Quantised rows of one length.
#[derive(Clone, Copy)]
pub(crate) struct Activations {
    /// The quants of each row: block by block, or interleaved for [`QuantFormat::Q4_0`].
    pub quants: *const i8,
    /// Row stride.
    pub quants_row: usize,
    /// The scale of each block.
    pub scales: *const f32,
    /// Row stride.
    pub scales_row: usize,
    /// The correction for the offset of the weights' quants in each block's partial sum, negated: it is multiplied by
    /// the weights' scale. Same row stride as the scales.
    pub offsets: *const f32,
}

// SAFETY: only read.
unsafe impl Sync for Activations {}

impl Activations {
    /// The rows that [`quantize`] wrote at `at`: `rows` rows of `cols` values.
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

    /// The rows from `row` on.
    pub fn at_row(&self, row: usize) -> Self {
        Self {
            quants: self.quants.wrapping_add(row * self.quants_row),
            scales: self.scales.wrapping_add(row * self.scales_row),
            offsets: self.offsets.wrapping_add(row * self.scales_row),
            ..*self
        }
    }
}

/// Blocks of a row of `cols` values, padding included.
fn blocks(cols: usize) -> usize {
    (cols / BLOCK).next_multiple_of(CHUNK)
}

/// Size in bytes of quantised rows.
pub(crate) fn activation_bytes(rows: usize, cols: usize) -> usize {
    rows * blocks(cols) * (BLOCK + 2 * size_of::<f32>())
}

/// Quantises the rows of `x`, each `cols` long, against weights in `format`, into [`activation_bytes`] from `to` on.
///
/// # Safety
/// The bytes are writable, aligned for f32 and not accessed elsewhere meanwhile.
pub(crate) unsafe fn quantize<T: Float>(x: &[T], cols: usize, format: QuantFormat, to: *mut u8) {
    let rows = Activations::of(to, x.len() / cols, cols);
    let (blocks, quants_row) = (rows.scales_row, rows.quants_row);
    for (r, x) in x.chunks_exact(cols).enumerate() {
        let row = rows.at_row(r);
        let (quants, scales, offsets) = (row.quants.cast_mut(), row.scales.cast_mut(), row.offsets.cast_mut());
        // SAFETY: guaranteed by the caller; all of it is written here before it is read, and any bits are valid.
        let (quants, scales, offsets) = unsafe {
            quants.add(cols).write_bytes(0, quants_row - cols);
            scales.write_bytes(0, blocks);
            offsets.write_bytes(0, blocks);
            if format == QuantFormat::Q4_0 {
                // Interleaving leaves gaps in the last blocks.
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
                let at = b / INTERLEAVED * INTERLEAVED * BLOCK + b % INTERLEAVED * BLOCK / 2;
                quants[at..][..BLOCK / 2].copy_from_slice(first);
                quants[at + INTERLEAVED * BLOCK / 2..][..BLOCK / 2].copy_from_slice(last);
            }
        }
    }
}

/// Quants from -127 to 127, and the scale: the largest magnitude divided by 127.
#[inline(always)]
fn quantize_block<T: Float>(block: &[T], quants: &mut [i8; BLOCK]) -> f32 {
    let mut wide = [0f32; BLOCK];
    for (wide, x) in wide.iter_mut().zip(block) {
        *wide = x.to_acc().widen() as f32;
    }
    // Compares bit patterns, by which NaN is larger than all numbers.
    let mut top = 0;
    for x in wide {
        top = top.max(x.to_bits() & 0x7fff_ffff);
    }
    let top = f32::from_bits(top);
    // Non-finite, or so small that the inverse overflows: zeros.
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
