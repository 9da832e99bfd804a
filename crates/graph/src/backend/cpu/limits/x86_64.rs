//! The measuring loops for x86-64: AMX, AVX-512, AVX-512-BF16, AVX2 with FMA, else the portable ones.

use std::arch::x86_64::{
    __m256, __m512, _mm256_add_epi64, _mm256_castpd_si256, _mm256_castsi256_pd, _mm256_fmadd_ps, _mm256_loadu_pd,
    _mm256_set1_ps, _mm256_setzero_si256, _mm256_storeu_pd, _mm512_add_epi64, _mm512_cvtne2ps_pbh, _mm512_dpbf16_ps,
    _mm512_fmadd_ps, _mm512_loadu_epi64, _mm512_reduce_add_epi64, _mm512_set1_ps, _mm512_setzero_si512,
};
use std::hint::black_box;

use super::super::kernels::matmul::amx;
use super::{FlopLoop, portable};

/// Independent accumulators: more than latency times throughput, and with the two factors they fit in 16 registers.
const CHAINS: usize = 12;

/// Sums words.
pub(super) fn reader() -> fn(&[u64]) -> u64 {
    if is_x86_feature_detected!("avx512f") {
        // SAFETY: the machine has the instructions.
        |words| unsafe { sum_avx512(words) }
    } else if is_x86_feature_detected!("avx2") {
        // SAFETY: the machine has the instructions.
        |words| unsafe { sum_avx2(words) }
    } else {
        portable::reader()
    }
}

pub(super) fn f32_loop() -> FlopLoop {
    if is_x86_feature_detected!("avx512f") {
        FlopLoop {
            // SAFETY: the machine has the instructions.
            run: |iterations| unsafe { multiply_add_avx512(iterations) },
            flops: 2 * 16 * CHAINS,
        }
    } else if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        FlopLoop {
            // SAFETY: the machine has the instructions.
            run: |iterations| unsafe { multiply_add_avx2(iterations) },
            flops: 2 * 8 * CHAINS,
        }
    } else {
        portable::f32_loop()
    }
}

pub(super) fn bf16_loop() -> Option<FlopLoop> {
    if amx::is_usable() {
        return Some(FlopLoop {
            // SAFETY: AMX is usable.
            run: |iterations| unsafe { amx::multiply_registers(iterations) },
            flops: amx::FLOPS,
        });
    }
    let has = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16");
    has.then_some(FlopLoop {
        // SAFETY: the machine has the instructions.
        run: |iterations| unsafe { dot_bf16(iterations) },
        // Each of 16 accumulators takes two products.
        flops: 2 * 32 * CHAINS,
    })
}

#[target_feature(enable = "avx512f")]
fn sum_avx512(words: &[u64]) -> u64 {
    let mut sums = [_mm512_setzero_si512(); 8];
    let (blocks, rest) = words.as_chunks::<64>();
    for block in blocks {
        for (i, sum) in sums.iter_mut().enumerate() {
            // SAFETY: a block is eight vectors of eight words.
            let vector = unsafe { _mm512_loadu_epi64(block.as_ptr().add(8 * i).cast::<i64>()) };
            *sum = _mm512_add_epi64(*sum, vector);
        }
    }
    let mut total = 0u64;
    for sum in sums {
        total = total.wrapping_add(_mm512_reduce_add_epi64(sum) as u64);
    }
    rest.iter().fold(total, |sum, &word| sum.wrapping_add(word))
}

#[target_feature(enable = "avx2")]
fn sum_avx2(words: &[u64]) -> u64 {
    let mut sums = [_mm256_setzero_si256(); 8];
    let (blocks, rest) = words.as_chunks::<32>();
    for block in blocks {
        for (i, sum) in sums.iter_mut().enumerate() {
            // SAFETY: a block is eight vectors of four words.
            let vector = unsafe { _mm256_loadu_pd(block.as_ptr().add(4 * i).cast::<f64>()) };
            *sum = _mm256_add_epi64(*sum, _mm256_castpd_si256(vector));
        }
    }
    let mut lanes = [0u64; 32];
    for (sum, lanes) in sums.iter().zip(lanes.as_chunks_mut::<4>().0) {
        // SAFETY: `lanes` holds four words.
        unsafe { _mm256_storeu_pd(lanes.as_mut_ptr().cast::<f64>(), _mm256_castsi256_pd(*sum)) };
    }
    lanes.iter().chain(rest).fold(0, |sum, &word| sum.wrapping_add(word))
}

// `black_box` hides that the accumulators are equal, or the compiler would compute only one of them.

#[target_feature(enable = "avx512f")]
fn multiply_add_avx512(iterations: usize) {
    let (factor, term) = black_box((_mm512_set1_ps(0.999), _mm512_set1_ps(0.001)));
    let mut sums: [__m512; CHAINS] = black_box([_mm512_set1_ps(1.0); CHAINS]);
    for _ in 0..iterations {
        for sum in &mut sums {
            *sum = _mm512_fmadd_ps(*sum, factor, term);
        }
    }
    black_box(sums);
}

#[target_feature(enable = "avx2,fma")]
fn multiply_add_avx2(iterations: usize) {
    let (factor, term) = black_box((_mm256_set1_ps(0.999), _mm256_set1_ps(0.001)));
    let mut sums: [__m256; CHAINS] = black_box([_mm256_set1_ps(1.0); CHAINS]);
    for _ in 0..iterations {
        for sum in &mut sums {
            *sum = _mm256_fmadd_ps(*sum, factor, term);
        }
    }
    black_box(sums);
}

#[target_feature(enable = "avx512f,avx512bf16")]
fn dot_bf16(iterations: usize) {
    let number = |x| _mm512_cvtne2ps_pbh(_mm512_set1_ps(x), _mm512_set1_ps(-x));
    let (x, y) = black_box((number(0.5), number(0.25)));
    let mut sums: [__m512; CHAINS] = black_box([_mm512_set1_ps(1.0); CHAINS]);
    for _ in 0..iterations {
        for sum in &mut sums {
            *sum = _mm512_dpbf16_ps(*sum, x, y);
        }
    }
    black_box(sums);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reader_of_this_machine_sums_alike() {
        let words: Vec<u64> = (0..997u64).map(|i| i.wrapping_mul(0x9E37_79B9_7F4A_7C15)).collect();
        let plain = portable::reader()(&words);
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the machine has the instructions.
            assert_eq!(unsafe { sum_avx2(&words) }, plain);
        }
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the machine has the instructions.
            assert_eq!(unsafe { sum_avx512(&words) }, plain);
        }
    }
}
