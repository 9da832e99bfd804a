//! Dot products of quantised rows: the arguments of a kernel, and the kernel in plain Rust. Sums inside a block are
//! exact integers; blocks are accumulated in f32.

use half::f16;

use super::super::float::Float;
use super::activations::{Activations, INTERLEAVED};
use crate::fused::dequant_matmul::BLOCK;

/// Maximum rows of activations per kernel call.
pub(super) const ROWS: usize = 4;

/// Dot products of `rows` rows of activations with `count` rows of weights; row r times weight row c is stored at
/// `out[r * count + c]`.
pub(super) struct QuantizedDots {
    pub blocks: usize,
    pub x: Activations,
    pub rows: usize,
    pub quants: *const u8,
    pub scales: *const f16,
    pub count: usize,
    pub out: *mut f32,
}

/// # Safety
/// The CPU has the instructions; all inputs are readable in the given sizes, and the output is writable.
pub(super) type DotKernel = unsafe fn(&QuantizedDots);

/// # Safety
/// See [`DotKernel`].
pub(super) unsafe fn portable_8(d: &QuantizedDots) {
    // SAFETY: forwarded from the caller.
    unsafe {
        portable::<BLOCK>(d, |quants, x, b| {
            let pairs = quants.iter().zip(&x[b * BLOCK..][..BLOCK]);
            pairs.map(|(&w, &x)| (i32::from(w) - 128) * i32::from(x)).sum()
        });
    }
}

/// # Safety
/// See [`DotKernel`].
pub(super) unsafe fn portable_4(d: &QuantizedDots) {
    const HALF: usize = BLOCK / 2;
    // SAFETY: forwarded from the caller.
    unsafe {
        portable::<HALF>(d, |quants, x, b| {
            let interleaved = &x[b / INTERLEAVED * INTERLEAVED * BLOCK..][..INTERLEAVED * BLOCK];
            let (first, last) = (
                &interleaved[b % INTERLEAVED * HALF..][..HALF],
                &interleaved[(INTERLEAVED + b % INTERLEAVED) * HALF..][..HALF],
            );
            let products = quants.iter().zip(first.iter().zip(last)).map(|(&w, (&low, &high))| {
                (i32::from(w & 15) - 8) * i32::from(low) + (i32::from(w >> 4) - 8) * i32::from(high)
            });
            products.sum()
        });
    }
}

/// `dot(weights of block b, activations of the row, b)`.
///
/// # Safety
/// See [`DotKernel`].
#[inline(always)]
unsafe fn portable<const BYTES: usize>(d: &QuantizedDots, dot: impl Fn(&[u8], &[i8], usize) -> i32) {
    for c in 0..d.count {
        // SAFETY: guaranteed by the caller.
        let (quants, scales) = unsafe {
            (
                std::slice::from_raw_parts(d.quants.add(c * d.blocks * BYTES), d.blocks * BYTES),
                std::slice::from_raw_parts(d.scales.add(c * d.blocks), d.blocks),
            )
        };
        for r in 0..d.rows {
            let x = d.x.at_row(r);
            // SAFETY: as above.
            let (x, x_scales) = unsafe {
                (
                    std::slice::from_raw_parts(x.quants, x.quants_row),
                    std::slice::from_raw_parts(x.scales, x.scales_row),
                )
            };
            let blocks = quants.chunks_exact(BYTES).zip(scales.iter().zip(x_scales)).enumerate();
            let sum = blocks.fold(0.0, |sum, (b, (quants, (scale, x_scale)))| {
                sum + dot(quants, x, b) as f32 * (scale.to_acc() * x_scale)
            });
            // SAFETY: as above.
            unsafe { *d.out.add(r * d.count + c) = sum };
        }
    }
}
