//! Dot products of quantised rows on x86-64: AVX2, and AVX-512 with VNNI. CPU features are detected by the caller.
//!
//! Memory is read faster in a few long streams than in many short ones, so the weight rows that are processed together
//! are far apart: the task's rows are cut into parts, each row begins a part, and the parts are read side by side.
//!
//! With VNNI unsigned quants are multiplied directly, and their offset is corrected once per 16 blocks. 16 scales are
//! widened and multiplied with those of the activations at once, then broadcast to the lanes.

#[allow(clippy::wildcard_imports)] // dozens of instructions
use std::arch::x86_64::*;

use half::f16;

use super::super::par::each;
use super::activations::CHUNK;
use super::dots::QuantizedDots;

/// A kernel for each number of activation rows: more of these means fewer weight rows at a time, as registers are few.
macro_rules! kernels {
    ($($name:ident: $of:ident::<$nibbles:literal>, [$two:literal, $more:literal], $features:literal;)*) => { $(
        /// # Safety
        /// See [`DotKernel`](super::dots::DotKernel).
        #[target_feature(enable = $features)]
        pub(super) unsafe fn $name(d: &QuantizedDots) {
            // SAFETY: guaranteed by the caller.
            unsafe {
                match d.rows {
                    1 => $of::<1, 4, $nibbles>(d),
                    2 => $of::<2, $two, $nibbles>(d),
                    3 => $of::<3, $more, $nibbles>(d),
                    _ => $of::<4, $more, $nibbles>(d),
                }
            }
        }
    )* };
}

kernels! {
    narrow_8: narrow::<false>, [2, 1], "avx2,fma,f16c";
    narrow_4: narrow::<true>, [2, 1], "avx2,fma,f16c";
    wide_8: wide::<false>, [4, 2], "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni";
    wide_4: wide::<true>, [4, 2], "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni";
}

/// # Safety
/// See [`DotKernel`](super::dots::DotKernel).
#[inline(always)]
unsafe fn wide<const R: usize, const C: usize, const NIBBLES: bool>(d: &QuantizedDots) {
    // SAFETY: forwarded from the caller.
    unsafe {
        in_parts::<R, C, NIBBLES>(
            d,
            #[inline(always)]
            |quants, scales| {
                let sums = wide_rows::<R, C, NIBBLES>(d, quants, scales);
                each(
                    #[inline(always)]
                    |r| {
                        totals(each(
                            #[inline(always)]
                            |c| {
                                let sum: __m512 = sums[r][c % C];
                                _mm256_add_ps(_mm512_castps512_ps256(sum), _mm512_extractf32x8_ps::<1>(sum))
                            },
                        ))
                    },
                )
            },
        );
    }
}

/// # Safety
/// See [`DotKernel`](super::dots::DotKernel).
#[inline(always)]
unsafe fn narrow<const R: usize, const C: usize, const NIBBLES: bool>(d: &QuantizedDots) {
    // SAFETY: forwarded from the caller.
    unsafe {
        in_parts::<R, C, NIBBLES>(
            d,
            #[inline(always)]
            |quants, scales| {
                let sums = narrow_rows::<R, C, NIBBLES>(d, quants, scales);
                each(
                    #[inline(always)]
                    |r| {
                        totals(each(
                            #[inline(always)]
                            |c| sums[r][c % C],
                        ))
                    },
                )
            },
        );
    }
}

/// `C` rows of weights at a time, one of each part. `dots` returns up to four sums for each row of activations.
///
/// # Safety
/// See [`DotKernel`](super::dots::DotKernel).
#[inline(always)]
unsafe fn in_parts<const R: usize, const C: usize, const NIBBLES: bool>(
    d: &QuantizedDots,
    dots: impl Fn([*const u8; C], [*const f16; C]) -> [[f32; 4]; R],
) {
    let row_bytes = d.blocks * if NIBBLES { 16 } else { 32 };
    let part = d.count.div_ceil(C);
    for i in 0..part {
        // SAFETY: guaranteed by the caller. Missing rows repeat the last one.
        unsafe {
            let rows: [usize; C] = each(
                #[inline(always)]
                |c| (c * part + i).min(d.count - 1),
            );
            let quants = each(
                #[inline(always)]
                |c| d.quants.add(rows[c] * row_bytes),
            );
            let scales = each(
                #[inline(always)]
                |c| d.scales.add(rows[c] * d.blocks),
            );
            for (r, sums) in dots(quants, scales).iter().enumerate() {
                for (&row, &sum) in rows.iter().zip(sums) {
                    *d.out.add(r * d.count + row) = sum;
                }
            }
        }
    }
}

/// `C` rows of weights against `R` rows of activations.
///
/// # Safety
/// See [`DotKernel`](super::dots::DotKernel).
#[inline(always)]
unsafe fn wide_rows<const R: usize, const C: usize, const NIBBLES: bool>(
    d: &QuantizedDots,
    quants: [*const u8; C],
    scales: [*const f16; C],
) -> [[__m512; C]; R] {
    // SAFETY: guaranteed by the caller; activations are padded to whole chunks of blocks.
    unsafe {
        let mut sums: [[__m512; C]; R] = each(
            #[inline(always)]
            |_| zeros::<C>(),
        );
        let (vectors, block_bytes) = if NIBBLES { (CHUNK / 4, 16) } else { (CHUNK / 2, 32) };
        let whole = d.blocks / CHUNK;
        for chunk in 0..whole {
            let mut wide = zeros::<C>();
            for c in 0..C {
                let from = scales[c].add(chunk * CHUNK).cast::<u8>();
                wide[c] = _mm512_cvtph_ps(_mm256_loadu_si256(from.cast()));
            }
            let factors = factors::<R, C>(d, &wide, chunk, &mut sums);
            for v in 0..vectors {
                let at = chunk * vectors + v;
                let mut weights = zeros::<C>();
                for c in 0..C {
                    let from = quants[c].add(at * 64);
                    weights[c] = _mm512_castsi512_ps(_mm512_loadu_si512(from.cast()));
                }
                wide_step::<R, C, NIBBLES>(d, &weights, (at, v), &factors, &mut sums);
            }
        }
        let rest = d.blocks % CHUNK;
        if rest > 0 {
            let mut wide = zeros::<C>();
            for c in 0..C {
                let from = scales[c].add(whole * CHUNK);
                wide[c] = _mm512_cvtph_ps(_mm256_maskz_loadu_epi16((1 << rest) - 1, from.cast()));
            }
            let factors = factors::<R, C>(d, &wide, whole, &mut sums);
            let bytes = rest * block_bytes;
            for v in 0..bytes.div_ceil(64) {
                let at = whole * vectors + v;
                let mask = u64::MAX >> (64 - (bytes - v * 64).min(64));
                let mut weights = zeros::<C>();
                for c in 0..C {
                    let from = quants[c].add(at * 64);
                    weights[c] = _mm512_castsi512_ps(_mm512_maskz_loadu_epi8(mask, from.cast()));
                }
                wide_step::<R, C, NIBBLES>(d, &weights, (at, v), &factors, &mut sums);
            }
        }
        sums
    }
}

/// The scale of each block of a chunk; adds the offset correction to the sums.
///
/// # Safety
/// See [`DotKernel`](super::dots::DotKernel).
#[inline(always)]
unsafe fn factors<const R: usize, const C: usize>(
    d: &QuantizedDots,
    wide: &[__m512; C],
    chunk: usize,
    sums: &mut [[__m512; C]; R],
) -> [[__m512; C]; R] {
    // SAFETY: guaranteed by the caller.
    unsafe {
        let mut factors: [[__m512; C]; R] = each(
            #[inline(always)]
            |_| zeros::<C>(),
        );
        for r in 0..R {
            let at = r * d.x.scales_row + chunk * CHUNK;
            let (scales, offsets) = (
                _mm512_loadu_ps(d.x.scales.add(at)),
                _mm512_loadu_ps(d.x.offsets.add(at)),
            );
            for c in 0..C {
                sums[r][c] = _mm512_fmadd_ps(wide[c], offsets, sums[r][c]);
                factors[r][c] = _mm512_mul_ps(wide[c], scales);
            }
        }
        factors
    }
}

/// One vector of each row of weights: vector `at` of the row, number `v` in its chunk.
///
/// # Safety
/// See [`DotKernel`](super::dots::DotKernel).
#[inline(always)]
unsafe fn wide_step<const R: usize, const C: usize, const NIBBLES: bool>(
    d: &QuantizedDots,
    weights: &[__m512; C],
    (at, v): (usize, usize),
    factors: &[[__m512; C]; R],
    sums: &mut [[__m512; C]; R],
) {
    // SAFETY: guaranteed by the caller.
    unsafe {
        let lane = if NIBBLES {
            let lanes = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
            _mm512_add_epi32(lanes, _mm512_set1_epi32(4 * v as i32))
        } else {
            let lanes = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
            _mm512_add_epi32(lanes, _mm512_set1_epi32(2 * v as i32))
        };
        let (low, zero) = (_mm512_set1_epi8(15), _mm512_setzero_si512());
        for r in 0..R {
            let x = d.x.quants.add(r * d.x.quants_row + at * if NIBBLES { 128 } else { 64 });
            let first = _mm512_loadu_si512(x.cast());
            let last = if NIBBLES {
                _mm512_loadu_si512(x.add(64).cast())
            } else {
                zero
            };
            for c in 0..C {
                let weights = _mm512_castps_si512(weights[c]);
                let dots = if NIBBLES {
                    let high = _mm512_and_si512(_mm512_srli_epi16::<4>(weights), low);
                    let dots = _mm512_dpbusd_epi32(zero, _mm512_and_si512(weights, low), first);
                    _mm512_dpbusd_epi32(dots, high, last)
                } else {
                    _mm512_dpbusd_epi32(zero, weights, first)
                };
                let factor = _mm512_permutexvar_ps(lane, factors[r][c]);
                sums[r][c] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots), factor, sums[r][c]);
            }
        }
    }
}

/// Blocks whose scales fill a vector.
const GROUP: usize = 8;

/// `C` rows of weights against `R` rows of activations.
///
/// # Safety
/// See [`DotKernel`](super::dots::DotKernel).
#[inline(always)]
unsafe fn narrow_rows<const R: usize, const C: usize, const NIBBLES: bool>(
    d: &QuantizedDots,
    quants: [*const u8; C],
    scales: [*const f16; C],
) -> [[__m256; C]; R] {
    // SAFETY: guaranteed by the caller; activations are padded to whole chunks of blocks, which are whole groups.
    unsafe {
        let mut sums: [[__m256; C]; R] = each(
            #[inline(always)]
            |_| short_zeros::<C>(),
        );
        let (vectors, block_bytes) = if NIBBLES { (GROUP / 2, 16) } else { (GROUP, 32) };
        let whole = d.blocks / GROUP;
        for group in 0..whole {
            let mut wide = short_zeros::<C>();
            for c in 0..C {
                wide[c] = _mm256_cvtph_ps(_mm_loadu_si128(scales[c].add(group * GROUP).cast()));
            }
            let factors = narrow_factors::<R, C, NIBBLES>(d, &wide, group, &mut sums);
            for v in 0..vectors {
                let at = group * vectors + v;
                let mut weights = short_zeros::<C>();
                for c in 0..C {
                    weights[c] = _mm256_loadu_ps(quants[c].add(at * 32).cast());
                }
                narrow_step::<R, C, NIBBLES>(d, &weights, (at, v), &factors, &mut sums);
            }
        }
        let rest = d.blocks % GROUP;
        if rest > 0 {
            let mut wide = short_zeros::<C>();
            for c in 0..C {
                wide[c] = _mm256_cvtph_ps(some_scales(scales[c].add(whole * GROUP), rest));
            }
            let factors = narrow_factors::<R, C, NIBBLES>(d, &wide, whole, &mut sums);
            let bytes = rest * block_bytes;
            for v in 0..bytes.div_ceil(32) {
                let at = whole * vectors + v;
                let mut weights = short_zeros::<C>();
                for c in 0..C {
                    let from = quants[c].add(at * 32);
                    weights[c] = if bytes - v * 32 < 32 {
                        _mm256_zextps128_ps256(_mm_loadu_ps(from.cast()))
                    } else {
                        _mm256_loadu_ps(from.cast())
                    };
                }
                narrow_step::<R, C, NIBBLES>(d, &weights, (at, v), &factors, &mut sums);
            }
        }
        sums
    }
}

/// Loads an incomplete group of scales, zero-padded, without a store and reload.
///
/// # Safety
/// That many scales are readable.
#[inline(always)]
unsafe fn some_scales(from: *const f16, count: usize) -> __m128i {
    // SAFETY: guaranteed by the caller.
    unsafe {
        let (mut bits, mut left) = (0u128, count);
        if left % 2 == 1 {
            left -= 1;
            bits = u128::from(from.add(left).cast::<u16>().read_unaligned());
        }
        if left % 4 == 2 {
            left -= 2;
            bits = bits << 32 | u128::from(from.add(left).cast::<u32>().read_unaligned());
        }
        if left == 4 {
            bits = bits << 64 | u128::from(from.cast::<u64>().read_unaligned());
        }
        _mm_set_epi64x((bits >> 64) as i64, bits as i64)
    }
}

/// The scale of each block of a group; adds the offset correction of `q4_0` to the sums.
///
/// # Safety
/// See [`DotKernel`](super::dots::DotKernel).
#[inline(always)]
unsafe fn narrow_factors<const R: usize, const C: usize, const NIBBLES: bool>(
    d: &QuantizedDots,
    wide: &[__m256; C],
    group: usize,
    sums: &mut [[__m256; C]; R],
) -> [[__m256; C]; R] {
    // SAFETY: guaranteed by the caller.
    unsafe {
        let mut factors: [[__m256; C]; R] = each(
            #[inline(always)]
            |_| short_zeros::<C>(),
        );
        for r in 0..R {
            let at = r * d.x.scales_row + group * GROUP;
            let scales = _mm256_loadu_ps(d.x.scales.add(at));
            for c in 0..C {
                if NIBBLES {
                    sums[r][c] = _mm256_fmadd_ps(wide[c], _mm256_loadu_ps(d.x.offsets.add(at)), sums[r][c]);
                }
                factors[r][c] = _mm256_mul_ps(wide[c], scales);
            }
        }
        factors
    }
}

/// One vector of each row of weights: vector `at` of the row, number `v` in its group. Signed bytes are multiplied as
/// magnitudes, with the weights' signs applied to the activations.
///
/// # Safety
/// See [`DotKernel`](super::dots::DotKernel).
#[inline(always)]
unsafe fn narrow_step<const R: usize, const C: usize, const NIBBLES: bool>(
    d: &QuantizedDots,
    weights: &[__m256; C],
    (at, v): (usize, usize),
    factors: &[[__m256; C]; R],
    sums: &mut [[__m256; C]; R],
) {
    // SAFETY: guaranteed by the caller.
    unsafe {
        let lane = if NIBBLES {
            let lanes = _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1);
            _mm256_add_epi32(lanes, _mm256_set1_epi32(2 * v as i32))
        } else {
            _mm256_set1_epi32(v as i32)
        };
        let (low, sign, ones) = (_mm256_set1_epi8(15), _mm256_set1_epi8(-128), _mm256_set1_epi16(1));
        for c in 0..C {
            let weights = _mm256_castps_si256(weights[c]);
            for r in 0..R {
                let row = d.x.quants.add(r * d.x.quants_row);
                let pairs = if NIBBLES {
                    // The halves of four blocks are interleaved.
                    let x = row.add(at / 2 * 128 + at % 2 * 32);
                    let high = _mm256_and_si256(_mm256_srli_epi16::<4>(weights), low);
                    let first = _mm256_maddubs_epi16(_mm256_and_si256(weights, low), _mm256_loadu_si256(x.cast()));
                    let last = _mm256_maddubs_epi16(high, _mm256_loadu_si256(x.add(64).cast()));
                    _mm256_add_epi16(first, last)
                } else {
                    let x = _mm256_loadu_si256(row.add(at * 32).cast());
                    let weights = _mm256_xor_si256(weights, sign);
                    _mm256_maddubs_epi16(_mm256_abs_epi8(weights), _mm256_sign_epi8(x, weights))
                };
                let dots = _mm256_cvtepi32_ps(_mm256_madd_epi16(pairs, ones));
                let factor = _mm256_permutevar8x32_ps(factors[r][c], lane);
                sums[r][c] = _mm256_fmadd_ps(dots, factor, sums[r][c]);
            }
        }
    }
}

/// Zero accumulators.
#[inline(always)]
unsafe fn zeros<const C: usize>() -> [__m512; C] {
    each(
        #[inline(always)]
        // SAFETY: guaranteed by the caller.
        |_| unsafe { _mm512_setzero_ps() },
    )
}

/// As [`zeros`].
#[inline(always)]
unsafe fn short_zeros<const C: usize>() -> [__m256; C] {
    each(
        #[inline(always)]
        // SAFETY: guaranteed by the caller.
        |_| unsafe { _mm256_setzero_ps() },
    )
}

/// The horizontal sum of each of four vectors.
#[inline(always)]
unsafe fn totals([a, b, c, d]: [__m256; 4]) -> [f32; 4] {
    let mut to = [0.0; 4];
    // SAFETY: guaranteed by the caller.
    unsafe {
        let quarters = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
        let halves = [_mm256_castps256_ps128(quarters), _mm256_extractf128_ps::<1>(quarters)];
        _mm_storeu_ps(to.as_mut_ptr(), _mm_add_ps(halves[0], halves[1]));
    }
    to
}
