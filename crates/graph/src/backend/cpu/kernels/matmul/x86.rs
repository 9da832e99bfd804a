//! The vector operations for x86-64: AVX2 with FMA and F16C, AVX-512, and AVX-512 with pairs of bf16. CPU features are
//! detected by the caller.

#[allow(clippy::wildcard_imports)] // dozens of instructions
use std::arch::x86_64::*;

use half::{bf16, f16};

use super::kernel::Round;
use super::vector_ops::VectorOps;

/// Implements [`VectorOps`] from one expression per operation.
macro_rules! vector_ops {
    (
        $(#[$doc:meta])* $name:ident: $panel:ty => $acc:ty, $vector:ty, $sums:ty, $lanes:literal;
        load($from:ident) $load:expr;
        part($part_from:ident, $count:ident) $part:expr;
        splat($one:ident) $splat:expr;
        zero $zero:ident; fetch $fetch:ident; fma($s:ident, $a:ident, $b:ident) $fma:expr; store $store:ident; join $join:ident; totals $totals:ident
    ) => {
        $(#[$doc])*
        #[derive(Clone, Copy)]
        pub(super) struct $name;

        impl VectorOps for $name {
            type Panel = $panel;
            type Acc = $acc;
            type Vector = $vector;
            type Sums = $sums;
            const LANES: usize = $lanes;

            #[inline(always)]
            unsafe fn load($from: *const $panel) -> $vector {
                // SAFETY: guaranteed by the caller.
                unsafe { $load }
            }
            #[inline(always)]
            unsafe fn load_part($part_from: *const $panel, $count: usize) -> $vector {
                // SAFETY: guaranteed by the caller; what is masked out is not read.
                unsafe { $part }
            }
            #[inline(always)]
            unsafe fn splat($one: *const $panel) -> $vector {
                // SAFETY: guaranteed by the caller.
                unsafe { $splat }
            }
            #[inline(always)]
            unsafe fn zero() -> $sums {
                // SAFETY: guaranteed by the caller.
                unsafe { $zero() }
            }
            #[inline(always)]
            unsafe fn fetch(from: *const $acc) -> $sums {
                // SAFETY: guaranteed by the caller.
                unsafe { $fetch(from) }
            }
            #[inline(always)]
            unsafe fn fma($s: $sums, $a: $vector, $b: $vector) -> $sums {
                // SAFETY: guaranteed by the caller.
                unsafe { $fma }
            }
            #[inline(always)]
            unsafe fn store(sums: $sums, to: *mut $acc) {
                // SAFETY: guaranteed by the caller.
                unsafe { $store(to, sums) }
            }
            #[inline(always)]
            unsafe fn join(a: $sums, b: $sums) -> $sums {
                // SAFETY: guaranteed by the caller.
                unsafe { $join(a, b) }
            }
            #[inline(always)]
            unsafe fn totals(sums: [$sums; 4], to: *mut $acc) {
                // SAFETY: guaranteed by the caller.
                unsafe { $totals(sums, to) }
            }
        }
    };
}

vector_ops! {
    /// f32, 16 lanes.
    Wide32: f32 => f32, __m512, __m512, 16;
    load(from) _mm512_loadu_ps(from);
    part(from, count) _mm512_maskz_loadu_ps(first16(count), from);
    splat(one) _mm512_set1_ps(*one);
    zero _mm512_setzero_ps; fetch _mm512_loadu_ps; fma(s, a, b) _mm512_fmadd_ps(a, b, s); store _mm512_storeu_ps; join _mm512_add_ps; totals totals_512
}

vector_ops! {
    /// f64, 8 lanes.
    Wide64: f64 => f64, __m512d, __m512d, 8;
    load(from) _mm512_loadu_pd(from);
    part(from, count) _mm512_maskz_loadu_pd(first16(count) as __mmask8, from);
    splat(one) _mm512_set1_pd(*one);
    zero _mm512_setzero_pd; fetch _mm512_loadu_pd; fma(s, a, b) _mm512_fmadd_pd(a, b, s); store _mm512_storeu_pd; join _mm512_add_pd; totals totals_512d
}

vector_ops! {
    /// Pairs of bf16: 32 products per instruction.
    WidePairs: [bf16; 2] => f32, __m512bh, __m512, 16;
    load(from) pairs(_mm512_loadu_si512(from.cast()));
    part(from, count) pairs(_mm512_maskz_loadu_epi32(first16(count), from.cast()));
    splat(one) pairs(_mm512_set1_epi32(one.cast::<i32>().read_unaligned()));
    zero _mm512_setzero_ps; fetch _mm512_loadu_ps; fma(s, a, b) _mm512_dpbf16_ps(s, a, b); store _mm512_storeu_ps; join _mm512_add_ps; totals totals_512
}

vector_ops! {
    /// bf16 widened to f32, 16 lanes.
    WideBf16: bf16 => f32, __m512, __m512, 16;
    load(from) widen_bf16_512(_mm256_loadu_si256(from.cast()));
    part(from, count) widen_bf16_512(_mm256_maskz_loadu_epi16(first16(count), from.cast()));
    splat(one) _mm512_set1_ps(f32::from_bits(u32::from((*one).to_bits()) << 16));
    zero _mm512_setzero_ps; fetch _mm512_loadu_ps; fma(s, a, b) _mm512_fmadd_ps(a, b, s); store _mm512_storeu_ps; join _mm512_add_ps; totals totals_512
}

vector_ops! {
    /// f16 widened to f32, 16 lanes.
    WideF16: f16 => f32, __m512, __m512, 16;
    load(from) _mm512_cvtph_ps(_mm256_loadu_si256(from.cast()));
    part(from, count) _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first16(count), from.cast()));
    splat(one) _mm512_cvtph_ps(_mm256_set1_epi16((*one).to_bits() as i16));
    zero _mm512_setzero_ps; fetch _mm512_loadu_ps; fma(s, a, b) _mm512_fmadd_ps(a, b, s); store _mm512_storeu_ps; join _mm512_add_ps; totals totals_512
}

vector_ops! {
    /// f32, 8 lanes.
    Narrow32: f32 => f32, __m256, __m256, 8;
    load(from) _mm256_loadu_ps(from);
    part(from, count) _mm256_maskload_ps(from, first8(count));
    splat(one) _mm256_set1_ps(*one);
    zero _mm256_setzero_ps; fetch _mm256_loadu_ps; fma(s, a, b) _mm256_fmadd_ps(a, b, s); store _mm256_storeu_ps; join _mm256_add_ps; totals totals_256
}

vector_ops! {
    /// f64, 4 lanes.
    Narrow64: f64 => f64, __m256d, __m256d, 4;
    load(from) _mm256_loadu_pd(from);
    part(from, count) _mm256_maskload_pd(from, _mm256_cvtepi32_epi64(_mm256_castsi256_si128(first8(count))));
    splat(one) _mm256_set1_pd(*one);
    zero _mm256_setzero_pd; fetch _mm256_loadu_pd; fma(s, a, b) _mm256_fmadd_pd(a, b, s); store _mm256_storeu_pd; join _mm256_add_pd; totals totals_256d
}

vector_ops! {
    /// bf16 widened to f32, 8 lanes.
    NarrowBf16: bf16 => f32, __m256, __m256, 8;
    load(from) widen_bf16_256(_mm_loadu_si128(from.cast()));
    part(from, count) widen_bf16_256(first_of(from.cast(), count));
    splat(one) _mm256_set1_ps(f32::from_bits(u32::from((*one).to_bits()) << 16));
    zero _mm256_setzero_ps; fetch _mm256_loadu_ps; fma(s, a, b) _mm256_fmadd_ps(a, b, s); store _mm256_storeu_ps; join _mm256_add_ps; totals totals_256
}

vector_ops! {
    /// f16 widened to f32, 8 lanes.
    NarrowF16: f16 => f32, __m256, __m256, 8;
    load(from) _mm256_cvtph_ps(_mm_loadu_si128(from.cast()));
    part(from, count) _mm256_cvtph_ps(first_of(from.cast(), count));
    splat(one) _mm256_cvtph_ps(_mm_set1_epi16((*one).to_bits() as i16));
    zero _mm256_setzero_ps; fetch _mm256_loadu_ps; fma(s, a, b) _mm256_fmadd_ps(a, b, s); store _mm256_storeu_ps; join _mm256_add_ps; totals totals_256
}

/// A mask of the lowest `count` of sixteen bits.
#[inline(always)]
fn first16(count: usize) -> __mmask16 {
    ((1u32 << count.min(16)) - 1) as __mmask16
}

/// A mask with the sign bit of the first `count` of eight lanes.
#[inline(always)]
unsafe fn first8(count: usize) -> __m256i {
    // SAFETY: guaranteed by the caller.
    unsafe {
        _mm256_cmpgt_epi32(
            _mm256_set1_epi32(count as i32),
            _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7),
        )
    }
}

/// The first `count` of eight 16-bit words, zero-padded.
#[inline(always)]
unsafe fn first_of(from: *const u16, count: usize) -> __m128i {
    let mut words = [0u16; 8];
    // SAFETY: guaranteed by the caller.
    unsafe {
        std::ptr::copy_nonoverlapping(from, words.as_mut_ptr(), count.min(8));
        _mm_loadu_si128(words.as_ptr().cast())
    }
}

#[inline(always)]
unsafe fn pairs(bits: __m512i) -> __m512bh {
    // SAFETY: both are 512 bits, any of them valid.
    unsafe { std::mem::transmute(bits) }
}

/// bf16 is the upper half of an f32.
#[inline(always)]
unsafe fn widen_bf16_512(halves: __m256i) -> __m512 {
    // SAFETY: guaranteed by the caller.
    unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(halves))) }
}

#[inline(always)]
unsafe fn widen_bf16_256(halves: __m128i) -> __m256 {
    // SAFETY: guaranteed by the caller.
    unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(halves))) }
}

/// Adds the upper half to the lower.
#[inline(always)]
unsafe fn fold(sums: __m512) -> __m256 {
    // SAFETY: guaranteed by the caller.
    unsafe { _mm256_add_ps(_mm512_castps512_ps256(sums), _mm512_extractf32x8_ps::<1>(sums)) }
}

#[inline(always)]
unsafe fn fold_d(sums: __m512d) -> __m256d {
    // SAFETY: guaranteed by the caller.
    unsafe { _mm256_add_pd(_mm512_castpd512_pd256(sums), _mm512_extractf64x4_pd::<1>(sums)) }
}

#[inline(always)]
unsafe fn totals_512(sums: [__m512; 4], to: *mut f32) {
    // SAFETY: guaranteed by the caller.
    unsafe {
        totals_256([fold(sums[0]), fold(sums[1]), fold(sums[2]), fold(sums[3])], to);
    }
}

#[inline(always)]
unsafe fn totals_512d(sums: [__m512d; 4], to: *mut f64) {
    // SAFETY: guaranteed by the caller.
    unsafe {
        totals_256d([fold_d(sums[0]), fold_d(sums[1]), fold_d(sums[2]), fold_d(sums[3])], to);
    }
}

#[inline(always)]
unsafe fn totals_256([a, b, c, d]: [__m256; 4], to: *mut f32) {
    // SAFETY: guaranteed by the caller.
    unsafe {
        let quarters = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
        let halves = [_mm256_castps256_ps128(quarters), _mm256_extractf128_ps::<1>(quarters)];
        _mm_storeu_ps(to, _mm_add_ps(halves[0], halves[1]));
    }
}

#[inline(always)]
unsafe fn totals_256d([a, b, c, d]: [__m256d; 4], to: *mut f64) {
    // SAFETY: guaranteed by the caller.
    unsafe {
        let (ab, cd) = (_mm256_hadd_pd(a, b), _mm256_hadd_pd(c, d));
        _mm_storeu_pd(
            to,
            _mm_add_pd(_mm256_castpd256_pd128(ab), _mm256_extractf128_pd::<1>(ab)),
        );
        _mm_storeu_pd(
            to.add(2),
            _mm_add_pd(_mm256_castpd256_pd128(cd), _mm256_extractf128_pd::<1>(cd)),
        );
    }
}

/// Transposes 8 rows of 8 elements, given as f32, into 8 rows with stride `to_step` entries.
///
/// # Safety
/// AVX2; everything named is writable.
#[inline(always)]
unsafe fn transpose_8(row: impl Fn(usize) -> __m256, to: *mut f32, to_step: usize) {
    // SAFETY: guaranteed by the caller.
    unsafe {
        // As below, with halves instead of quarters: half h of word 4 g + l holds column 4 h + l of rows 4 g to 4 g + 3.
        let mut words = [_mm256_setzero_ps(); 8];
        for g in 0..2 {
            let (a, b, c, d) = (row(4 * g), row(4 * g + 1), row(4 * g + 2), row(4 * g + 3));
            let (ab0, ab1) = (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
            let (cd0, cd1) = (_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
            words[4 * g] = _mm256_shuffle_ps::<0x44>(ab0, cd0);
            words[4 * g + 1] = _mm256_shuffle_ps::<0xee>(ab0, cd0);
            words[4 * g + 2] = _mm256_shuffle_ps::<0x44>(ab1, cd1);
            words[4 * g + 3] = _mm256_shuffle_ps::<0xee>(ab1, cd1);
        }
        for l in 0..4 {
            let (a, b) = (words[l], words[4 + l]);
            _mm256_storeu_ps(to.add(l * to_step), _mm256_permute2f128_ps::<0x20>(a, b));
            _mm256_storeu_ps(to.add((4 + l) * to_step), _mm256_permute2f128_ps::<0x31>(a, b));
        }
    }
}

/// [`transpose_8`] for each element type.
macro_rules! transposes {
    ($($name:ident: $t:ty => $ops:ty;)*) => { $(
        /// # Safety
        /// AVX2 and F16C; everything named is readable or writable.
        #[allow(clippy::cast_ptr_alignment)] // read as they lie
        #[target_feature(enable = "avx2,fma,f16c")]
        pub(super) unsafe fn $name(from: *const u8, from_step: usize, to: *mut u32, to_step: usize) {
            // SAFETY: guaranteed by the caller.
            unsafe {
                transpose_8(
                    #[inline(always)]
                    |i| <$ops>::load(from.add(i * from_step).cast::<$t>()),
                    to.cast(),
                    to_step,
                );
            }
        }
    )* };
}

transposes! {
    transpose_f32: f32 => Narrow32;
    transpose_bf16: bf16 => NarrowBf16;
    transpose_f16: f16 => NarrowF16;
}

/// Transposes 16 rows of 16 four-byte entries with stride `from_step` bytes into 16 rows with stride `to_step` entries.
///
/// # Safety
/// AVX-512F; everything named is readable or writable.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn transpose_16(from: *const u8, from_step: usize, to: *mut u32, to_step: usize) {
    // SAFETY: guaranteed by the caller.
    unsafe {
        let row = |i: usize| _mm512_loadu_si512(from.add(i * from_step).cast());
        // Interleaves pairs of rows by entries, then by pairs of entries: quarter q of word 4 g + l holds column 4 q +
        // l of the rows 4 g to 4 g + 3.
        let mut words = [_mm512_setzero_si512(); 16];
        for g in 0..4 {
            let (a, b, c, d) = (row(4 * g), row(4 * g + 1), row(4 * g + 2), row(4 * g + 3));
            let (ab0, ab1) = (_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
            let (cd0, cd1) = (_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
            words[4 * g] = _mm512_unpacklo_epi64(ab0, cd0);
            words[4 * g + 1] = _mm512_unpackhi_epi64(ab0, cd0);
            words[4 * g + 2] = _mm512_unpacklo_epi64(ab1, cd1);
            words[4 * g + 3] = _mm512_unpackhi_epi64(ab1, cd1);
        }
        for l in 0..4 {
            let (a, b, c, d) = (words[l], words[4 + l], words[8 + l], words[12 + l]);
            let (ab0, ab1) = (_mm512_shuffle_i32x4::<0x44>(a, b), _mm512_shuffle_i32x4::<0xee>(a, b));
            let (cd0, cd1) = (_mm512_shuffle_i32x4::<0x44>(c, d), _mm512_shuffle_i32x4::<0xee>(c, d));
            let column = |q: usize, word: __m512i| _mm512_storeu_si512(to.add((4 * q + l) * to_step).cast(), word);
            column(0, _mm512_shuffle_i32x4::<0x88>(ab0, cd0));
            column(1, _mm512_shuffle_i32x4::<0xdd>(ab0, cd0));
            column(2, _mm512_shuffle_i32x4::<0x88>(ab1, cd1));
            column(3, _mm512_shuffle_i32x4::<0xdd>(ab1, cd1));
        }
    }
}

/// [`transpose_16`] of fewer rows and columns: missing elements are neither read nor written.
///
/// # Safety
/// Like [`transpose_16`].
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn transpose_part_of_16(
    (from, from_step): (*const u8, usize),
    (to, to_step): (*mut u32, usize),
    (runs, entries): (usize, usize),
) {
    let (mut block, mut transposed_block) = ([[0u32; 16]; 16], [[0u32; 16]; 16]);
    // SAFETY: guaranteed by the caller; what is masked out is neither read nor written.
    unsafe {
        for (r, run) in block.iter_mut().enumerate().take(runs) {
            let run_of_entries = _mm512_maskz_loadu_epi32(first16(entries), from.add(r * from_step).cast());
            _mm512_storeu_si512(run.as_mut_ptr().cast(), run_of_entries);
        }
        transpose_16(block.as_ptr().cast(), 64, transposed_block.as_mut_ptr().cast(), 16);
        for (e, run) in transposed_block.iter().enumerate().take(entries) {
            let run = _mm512_loadu_si512(run.as_ptr().cast());
            _mm512_mask_storeu_epi32(to.add(e * to_step).cast(), first16(runs), run);
        }
    }
}

/// Interleaves two rows into pairs.
///
/// # Safety
/// AVX-512 F, BW and VL; everything named is readable or writable.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(super) unsafe fn interleave_pairs([even, odd]: [*const bf16; 2], to: *mut [bf16; 2], count: usize) {
    for j in (0..count).step_by(16) {
        let mask = first16(count - j);
        // SAFETY: guaranteed by the caller; what is masked out is neither read nor written.
        unsafe {
            let run = |from: *const bf16| _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, from.add(j).cast()));
            let pairs = _mm512_or_si512(run(even), _mm512_slli_epi32::<16>(run(odd)));
            _mm512_mask_storeu_epi32(to.add(j).cast(), mask, pairs);
        }
    }
}

/// [`Round`] with the CPU's own conversion, which flushes subnormal sums to zero.
///
/// # Safety
/// AVX-512 with BF16, BW and VL; everything named is readable or writable.
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
pub(super) unsafe fn round_pairs(round: &Round<'_>) {
    let alpha = _mm512_set1_ps(round.alpha);
    for r in 0..round.rows {
        for j in (0..round.cols).step_by(16) {
            let mask = first16(round.cols - j);
            // SAFETY: guaranteed by the caller; what is masked out is neither read nor written.
            unsafe {
                let to = round.to.add(r * round.to_row + j).cast::<i16>();
                let mut sums = _mm512_mul_ps(_mm512_loadu_ps(round.sums.add(r * round.stride + j)), alpha);
                for addend in round.addends {
                    let from = addend.at(r, j).ptr.cast::<i16>();
                    sums = _mm512_add_ps(sums, widen_bf16_512(_mm256_maskz_loadu_epi16(mask, from)));
                }
                let halves: __m256i = std::mem::transmute(_mm512_cvtneps_pbh(sums));
                _mm256_mask_storeu_epi16(to, mask, halves);
            }
        }
    }
}
