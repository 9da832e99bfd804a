//! The measuring loops for 64-bit Arm: NEON, which belongs to the target, so nothing is detected.
//!
//! There is no bf16 loop: the language has no intrinsics for those instructions yet, and no kernel uses them.

use std::arch::aarch64::{float32x4_t, vaddq_u64, vaddvq_u64, vdupq_n_f32, vdupq_n_u64, vfmaq_f32, vld1q_u64};
use std::hint::black_box;

use super::FlopLoop;

/// Independent accumulators: four per cycle with a latency of four cycles.
const CHAINS: usize = 16;

/// Sums words.
pub(super) fn reader() -> fn(&[u64]) -> u64 {
    // SAFETY: the target has NEON.
    |words| unsafe { sum(words) }
}

pub(super) fn f32_loop() -> FlopLoop {
    FlopLoop {
        // SAFETY: the target has NEON.
        run: |iterations| unsafe { multiply_add(iterations) },
        flops: 2 * 4 * CHAINS,
    }
}

pub(super) fn bf16_loop() -> Option<FlopLoop> {
    None
}

#[target_feature(enable = "neon")]
fn sum(words: &[u64]) -> u64 {
    let mut sums = [vdupq_n_u64(0); 8];
    let (blocks, rest) = words.as_chunks::<16>();
    for block in blocks {
        for (i, sum) in sums.iter_mut().enumerate() {
            // SAFETY: a block is eight vectors of two words.
            *sum = vaddq_u64(*sum, unsafe { vld1q_u64(block.as_ptr().add(2 * i)) });
        }
    }
    let mut total = 0u64;
    for sum in sums {
        total = total.wrapping_add(vaddvq_u64(sum));
    }
    rest.iter().fold(total, |sum, &word| sum.wrapping_add(word))
}

/// `black_box` hides that the accumulators are equal, or the compiler would compute only one of them.
#[target_feature(enable = "neon")]
fn multiply_add(iterations: usize) {
    let (factor, term) = black_box((vdupq_n_f32(0.999), vdupq_n_f32(0.001)));
    let mut sums: [float32x4_t; CHAINS] = black_box([vdupq_n_f32(1.0); CHAINS]);
    for _ in 0..iterations {
        for sum in &mut sums {
            *sum = vfmaq_f32(term, *sum, factor);
        }
    }
    black_box(sums);
}
