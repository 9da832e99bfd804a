//! Dot products of quantised rows on x86-64: AVX2, and AVX-512 with VNNI. Nothing here asks what the machine has.
//!
//! With VNNI a vector of sums begins with the activations' share of the offset, so that unsigned quants need no
//! subtraction. 16 scales are widened and multiplied with those of the activations at once, then spread over the lanes.

#[allow(clippy::wildcard_imports)] // dozens of instructions
use std::arch::x86_64::*;
use std::array::from_fn;

use half::f16;

use super::activations::CHUNK;
use super::dots::Dots;

/// How far before weights are read they are asked for, in bytes.
const AHEAD: usize = 2048;
/// Weight rows whose sums are folded together.
const GROUP: usize = 4;

/// A kernel for each number of rows.
macro_rules! kernels {
    ($($name:ident: $of:ident::<$nibbles:literal>, $features:literal;)*) => { $(
        /// # Safety
        /// See [`Kernel`](super::dots::Kernel).
        #[target_feature(enable = $features)]
        pub(super) unsafe fn $name(d: &Dots) {
            // SAFETY: the caller's promise.
            unsafe {
                match d.rows {
                    1 => $of::<1, $nibbles>(d),
                    2 => $of::<2, $nibbles>(d),
                    3 => $of::<3, $nibbles>(d),
                    _ => $of::<4, $nibbles>(d),
                }
            }
        }
    )* };
}

kernels! {
    narrow_8: narrow::<false>, "avx2,fma,f16c";
    narrow_4: narrow::<true>, "avx2,fma,f16c";
    wide_8: wide::<false>, "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni";
    wide_4: wide::<true>, "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni";
}

/// Asks for the cache line `ahead` bytes on.
#[inline(always)]
fn prefetch(at: *const u8, ahead: usize) {
    // SAFETY: every x86-64 has the instruction, and it reads nothing.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(ahead).cast()) }
}

/// # Safety
/// See [`Kernel`](super::dots::Kernel).
#[inline(always)]
unsafe fn wide<const R: usize, const NIBBLES: bool>(d: &Dots) {
    let row_bytes = d.blocks * if NIBBLES { 16 } else { 32 };
    for first in (0..d.count).step_by(GROUP) {
        let count = GROUP.min(d.count - first);
        // SAFETY: the caller's promise.
        unsafe {
            let mut sums = [[_mm512_setzero_ps(); GROUP]; R];
            for c in 0..count {
                let (quants, scales) = (
                    d.quants.add((first + c) * row_bytes),
                    d.scales.add((first + c) * d.blocks),
                );
                let row = wide_row::<R, NIBBLES>(d, quants, scales);
                for r in 0..R {
                    sums[r][c] = row[r];
                }
            }
            for (r, sums) in sums.iter().enumerate() {
                let mut totals = [0.0; GROUP];
                totals_512(*sums, &mut totals);
                d.out
                    .add(r * d.count + first)
                    .copy_from_nonoverlapping(totals.as_ptr(), count);
            }
        }
    }
}

/// One row of weights against all rows of activations.
///
/// # Safety
/// See [`Kernel`](super::dots::Kernel).
#[inline(always)]
unsafe fn wide_row<const R: usize, const NIBBLES: bool>(
    d: &Dots,
    quants: *const u8,
    scales: *const f16,
) -> [__m512; R] {
    // SAFETY: the caller's promise; activations are whole chunks of blocks.
    unsafe {
        let mut sums: [[__m512; 2]; R] = from_fn(|_| [_mm512_setzero_ps(); 2]);
        let vectors = if NIBBLES { CHUNK / 4 } else { CHUNK / 2 };
        let factors = |wide: __m512, chunk: usize| -> [__m512; R] {
            from_fn(|r| {
                _mm512_mul_ps(
                    wide,
                    _mm512_loadu_ps(d.x.scales.add(r * d.x.scales_row + chunk * CHUNK)),
                )
            })
        };
        let whole = d.blocks / CHUNK;
        for chunk in 0..whole {
            let scales = scales.add(chunk * CHUNK).cast::<u8>();
            prefetch(scales, AHEAD / 8);
            let factors = factors(_mm512_cvtph_ps(_mm256_loadu_si256(scales.cast())), chunk);
            for v in 0..vectors {
                let at = chunk * vectors + v;
                let from = quants.add(at * 64);
                prefetch(from, AHEAD);
                wide_step::<R, NIBBLES>(d, _mm512_loadu_si512(from.cast()), (at, v), &factors, &mut sums);
            }
        }
        let rest = d.blocks % CHUNK;
        if rest > 0 {
            let some = _mm256_maskz_loadu_epi16((1 << rest) - 1, scales.add(whole * CHUNK).cast());
            let factors = factors(_mm512_cvtph_ps(some), whole);
            let bytes = rest * if NIBBLES { 16 } else { 32 };
            for v in 0..bytes.div_ceil(64) {
                let at = whole * vectors + v;
                let from = quants.add(at * 64);
                prefetch(from, AHEAD);
                let mask = u64::MAX >> (64 - (bytes - v * 64).min(64));
                let weights = _mm512_maskz_loadu_epi8(mask, from.cast());
                wide_step::<R, NIBBLES>(d, weights, (at, v), &factors, &mut sums);
            }
        }
        from_fn(|r| _mm512_add_ps(sums[r][0], sums[r][1]))
    }
}

/// One vector of weights: number `at` of the row, `v` of its chunk.
///
/// # Safety
/// See [`Kernel`](super::dots::Kernel).
#[inline(always)]
unsafe fn wide_step<const R: usize, const NIBBLES: bool>(
    d: &Dots,
    weights: __m512i,
    (at, v): (usize, usize),
    factors: &[__m512; R],
    sums: &mut [[__m512; 2]; R],
) {
    // SAFETY: the caller's promise.
    unsafe {
        let lane = if NIBBLES {
            let lanes = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
            _mm512_add_epi32(lanes, _mm512_set1_epi32(4 * v as i32))
        } else {
            let lanes = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
            _mm512_add_epi32(lanes, _mm512_set1_epi32(2 * v as i32))
        };
        let low = _mm512_set1_epi8(15);
        let halves = [
            _mm512_and_si512(weights, low),
            _mm512_and_si512(_mm512_srli_epi16::<4>(weights), low),
        ];
        for r in 0..R {
            let x = d.x.quants.add(r * d.x.quants_row);
            let offsets = _mm512_loadu_si512(d.x.offsets.add(r * d.x.offsets_row + at * 16).cast());
            let dots = if NIBBLES {
                let x = x.add(at * 128);
                let first = _mm512_dpbusd_epi32(offsets, halves[0], _mm512_loadu_si512(x.cast()));
                _mm512_dpbusd_epi32(first, halves[1], _mm512_loadu_si512(x.add(64).cast()))
            } else {
                _mm512_dpbusd_epi32(offsets, weights, _mm512_loadu_si512(x.add(at * 64).cast()))
            };
            let factor = _mm512_permutexvar_ps(lane, factors[r]);
            sums[r][v % 2] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots), factor, sums[r][v % 2]);
        }
    }
}

/// # Safety
/// See [`Kernel`](super::dots::Kernel).
#[inline(always)]
unsafe fn narrow<const R: usize, const NIBBLES: bool>(d: &Dots) {
    let row_bytes = d.blocks * if NIBBLES { 16 } else { 32 };
    for c in 0..d.count {
        // SAFETY: the caller's promise.
        unsafe {
            let (quants, scales) = (d.quants.add(c * row_bytes), d.scales.add(c * d.blocks));
            let mut sums = [_mm256_setzero_ps(); R];
            if NIBBLES {
                narrow_row_4(d, quants, scales, &mut sums);
            } else {
                narrow_row_8(d, quants, scales, &mut sums);
            }
            for (r, &sum) in sums.iter().enumerate() {
                *d.out.add(r * d.count + c) = total_256(sum);
            }
        }
    }
}

/// Block by block. Bytes of both signs: magnitudes of weights against activations with the weights' signs.
///
/// # Safety
/// See [`Kernel`](super::dots::Kernel).
#[inline(always)]
unsafe fn narrow_row_8<const R: usize>(d: &Dots, quants: *const u8, scales: *const f16, sums: &mut [__m256; R]) {
    // SAFETY: the caller's promise.
    unsafe {
        let (sign, ones) = (_mm256_set1_epi8(-128), _mm256_set1_epi16(1));
        for b in 0..d.blocks {
            let from = quants.add(b * 32);
            prefetch(from, AHEAD);
            let weights = _mm256_xor_si256(_mm256_loadu_si256(from.cast()), sign);
            let magnitudes = _mm256_abs_epi8(weights);
            let scale = widened(*scales.add(b));
            for (r, sum) in sums.iter_mut().enumerate() {
                let x = _mm256_loadu_si256(d.x.quants.add(r * d.x.quants_row + b * 32).cast());
                let pairs = _mm256_maddubs_epi16(magnitudes, _mm256_sign_epi8(x, weights));
                let dots = _mm256_cvtepi32_ps(_mm256_madd_epi16(pairs, ones));
                let factor = _mm256_set1_ps(scale * *d.x.scales.add(r * d.x.scales_row + b));
                *sum = _mm256_fmadd_ps(dots, factor, *sum);
            }
        }
    }
}

/// Two blocks at a time.
///
/// # Safety
/// See [`Kernel`](super::dots::Kernel).
#[inline(always)]
unsafe fn narrow_row_4<const R: usize>(d: &Dots, quants: *const u8, scales: *const f16, sums: &mut [__m256; R]) {
    // SAFETY: the caller's promise; activations are whole chunks of blocks.
    unsafe {
        let (low, ones) = (_mm256_set1_epi8(15), _mm256_set1_epi16(1));
        for b in (0..d.blocks).step_by(2) {
            let from = quants.add(b * 16);
            prefetch(from, AHEAD);
            let (weights, upper) = if b + 1 < d.blocks {
                (_mm256_loadu_si256(from.cast()), widened(*scales.add(b + 1)))
            } else {
                (_mm256_zextsi128_si256(_mm_loadu_si128(from.cast())), 0.0)
            };
            let scale = _mm256_set_m128(_mm_set1_ps(upper), _mm_set1_ps(widened(*scales.add(b))));
            let halves = [
                _mm256_and_si256(weights, low),
                _mm256_and_si256(_mm256_srli_epi16::<4>(weights), low),
            ];
            for (r, sum) in sums.iter_mut().enumerate() {
                let x = d.x.quants.add(r * d.x.quants_row + b / 4 * 128 + b % 4 * 16);
                let first = _mm256_maddubs_epi16(halves[0], _mm256_loadu_si256(x.cast()));
                let last = _mm256_maddubs_epi16(halves[1], _mm256_loadu_si256(x.add(64).cast()));
                let pairs = _mm256_madd_epi16(_mm256_add_epi16(first, last), ones);
                let offsets = _mm256_loadu_si256(d.x.offsets.add(r * d.x.offsets_row + b * 4).cast());
                let dots = _mm256_cvtepi32_ps(_mm256_add_epi32(pairs, offsets));
                let x_scales = d.x.scales.add(r * d.x.scales_row + b);
                let x_scale = _mm256_set_m128(_mm_set1_ps(*x_scales.add(1)), _mm_set1_ps(*x_scales));
                *sum = _mm256_fmadd_ps(dots, _mm256_mul_ps(scale, x_scale), *sum);
            }
        }
    }
}

#[inline(always)]
unsafe fn widened(scale: f16) -> f32 {
    // SAFETY: the caller's promise.
    unsafe { _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(scale.to_bits())))) }
}

/// The total of each of four vectors.
#[inline(always)]
unsafe fn totals_512(sums: [__m512; GROUP], to: &mut [f32; GROUP]) {
    // SAFETY: the caller's promise.
    unsafe {
        let fold = |sum: __m512| _mm256_add_ps(_mm512_castps512_ps256(sum), _mm512_extractf32x8_ps::<1>(sum));
        let [a, b, c, d] = sums.map(fold);
        let quarters = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
        let halves = [_mm256_castps256_ps128(quarters), _mm256_extractf128_ps::<1>(quarters)];
        _mm_storeu_ps(to.as_mut_ptr(), _mm_add_ps(halves[0], halves[1]));
    }
}

#[inline(always)]
unsafe fn total_256(sum: __m256) -> f32 {
    // SAFETY: the caller's promise.
    unsafe {
        let fours = _mm_add_ps(_mm256_castps256_ps128(sum), _mm256_extractf128_ps::<1>(sum));
        let twos = _mm_add_ps(fours, _mm_movehl_ps(fours, fours));
        _mm_cvtss_f32(_mm_add_ss(twos, _mm_movehdup_ps(twos)))
    }
}
