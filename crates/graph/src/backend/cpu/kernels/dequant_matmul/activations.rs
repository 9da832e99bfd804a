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
    /// What the offset of the weights' quants adds too much to each sum of four products (of eight in `q4_0`: four of
    /// each half), with the other sign.
    pub offsets: *const i32,
    /// From row to row.
    pub offsets_row: usize,
}

// SAFETY: only read.
unsafe impl Sync for Activations {}

impl Activations {
    /// Those of the rows from `row` on.
    pub fn from_row(&self, row: usize) -> Self {
        Self {
            quants: self.quants.wrapping_add(row * self.quants_row),
            scales: self.scales.wrapping_add(row * self.scales_row),
            offsets: self.offsets.wrapping_add(row * self.offsets_row),
            ..*self
        }
    }
}

/// Lends `f` the rows of `x`, each `cols` long, against weights in `format`.
pub(super) fn with_activations<T: Float>(x: &[T], cols: usize, format: QuantFormat, f: impl FnOnce(&Activations)) {
    let rows = x.len() / cols;
    let blocks = (cols / BLOCK).next_multiple_of(CHUNK);
    let (quants_row, offsets_row) = match format {
        QuantFormat::Q8_0 => (blocks * BLOCK, blocks * BLOCK / 4),
        QuantFormat::Q4_0 => (blocks * BLOCK, blocks * BLOCK / 8),
    };
    with_space(rows * quants_row, |quants: *mut i8| {
        with_space(rows * blocks, |scales: *mut f32| {
            with_space(rows * offsets_row, |offsets: *mut i32| {
                for (r, x) in x.chunks_exact(cols).enumerate() {
                    // SAFETY: the space is this call's and has room for so many rows; all bits are written before they
                    // are read, and any are valid.
                    let (quants, scales, offsets) = unsafe {
                        quants.add(r * quants_row).write_bytes(0, quants_row);
                        scales.add(r * blocks).write_bytes(0, blocks);
                        offsets.add(r * offsets_row).write_bytes(0, offsets_row);
                        (
                            std::slice::from_raw_parts_mut(quants.add(r * quants_row), quants_row),
                            std::slice::from_raw_parts_mut(scales.add(r * blocks), blocks),
                            std::slice::from_raw_parts_mut(offsets.add(r * offsets_row), offsets_row),
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
                    offsets_row,
                });
            });
        });
    });
}

#[inline(always)]
fn quantize_row<T: Float>(x: &[T], format: QuantFormat, quants: &mut [i8], scales: &mut [f32], offsets: &mut [i32]) {
    for (b, (block, scale)) in x.chunks_exact(BLOCK).zip(scales).enumerate() {
        let mut small = [0; BLOCK];
        *scale = quantize_block(block, &mut small);
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
    let four = |quants: &[i8]| quants.iter().map(|&q| i32::from(q)).sum::<i32>();
    match format {
        QuantFormat::Q8_0 => {
            for (offset, quants) in offsets.iter_mut().zip(quants.chunks_exact(4)) {
                *offset = -128 * four(quants);
            }
        }
        QuantFormat::Q4_0 => {
            let woven = quants.chunks_exact(WOVEN * BLOCK);
            for (offsets, quants) in offsets.chunks_exact_mut(WOVEN * BLOCK / 8).zip(woven) {
                let (first, last) = quants.split_at(WOVEN * BLOCK / 2);
                for (offset, (low, high)) in offsets.iter_mut().zip(first.chunks_exact(4).zip(last.chunks_exact(4))) {
                    *offset = -8 * (four(low) + four(high));
                }
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
    if !top.is_finite() {
        return f32::NAN;
    }
    // So small that the inverse is infinite: zeros.
    if top < f32::MIN_POSITIVE * 127.0 {
        return 0.0;
    }
    let inverse = 127.0 / top;
    for (quant, x) in quants.iter_mut().zip(wide) {
        *quant = (x * inverse + MAGIC).to_bits() as i8;
    }
    top / 127.0
}
