//! The measuring loops without intrinsics, as the compiler vectorises them for the target's baseline.

use std::array;
use std::hint::black_box;

use super::FlopLoop;

/// Independent accumulators: enough for any latency.
const LANES: usize = 64;

/// Sums words.
pub(super) fn reader() -> fn(&[u64]) -> u64 {
    sum
}

pub(super) fn f32_loop() -> FlopLoop {
    FlopLoop {
        run: multiply_add,
        flops: 2 * LANES,
    }
}

#[cfg(not(target_arch = "x86_64"))]
pub(super) fn bf16_loop() -> Option<FlopLoop> {
    None
}

fn sum(words: &[u64]) -> u64 {
    let mut sums = [0u64; 8];
    let (blocks, rest) = words.as_chunks::<8>();
    for block in blocks {
        for (sum, word) in sums.iter_mut().zip(block) {
            *sum = sum.wrapping_add(*word);
        }
    }
    sums.iter().chain(rest).fold(0, |sum, &word| sum.wrapping_add(word))
}

/// A multiplication and an addition instead of a fused one, which would be a function call on targets without it.
fn multiply_add(iterations: usize) {
    let (factor, term) = black_box((0.999f32, 0.001f32));
    let mut sums: [f32; LANES] = black_box(array::from_fn(|i| i as f32));
    for _ in 0..iterations {
        for sum in &mut sums {
            *sum = *sum * factor + term;
        }
    }
    black_box(sums);
}
