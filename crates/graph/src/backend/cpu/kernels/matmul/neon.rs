//! The vector operations for NEON, which every 64-bit Arm machine has. Products of few rows of f16 use the portable
//! kernels.

#[allow(clippy::wildcard_imports)] // dozens of instructions
use std::arch::aarch64::*;

use half::bf16;

use super::vector_ops::VectorOps;

/// f32, 4 lanes.
#[derive(Clone, Copy)]
pub(super) struct Neon32;

impl VectorOps for Neon32 {
    type Panel = f32;
    type Acc = f32;
    type Vector = float32x4_t;
    type Sums = float32x4_t;
    const LANES: usize = 4;

    #[inline(always)]
    unsafe fn load(from: *const f32) -> float32x4_t {
        // SAFETY: guaranteed by the caller.
        unsafe { vld1q_f32(from) }
    }
    #[inline(always)]
    unsafe fn load_part(from: *const f32, count: usize) -> float32x4_t {
        // SAFETY: entries below `count` are readable.
        unsafe { vld1q_f32(first(from, count, 0.0).as_ptr()) }
    }
    #[inline(always)]
    unsafe fn splat(from: *const f32) -> float32x4_t {
        // SAFETY: guaranteed by the caller.
        unsafe { vdupq_n_f32(*from) }
    }
    #[inline(always)]
    unsafe fn join(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: NEON is always there.
        unsafe { vaddq_f32(a, b) }
    }
    #[inline(always)]
    unsafe fn zero() -> float32x4_t {
        // SAFETY: NEON is always there.
        unsafe { vdupq_n_f32(0.0) }
    }
    #[inline(always)]
    unsafe fn fetch(from: *const f32) -> float32x4_t {
        // SAFETY: guaranteed by the caller.
        unsafe { vld1q_f32(from) }
    }
    #[inline(always)]
    unsafe fn fma(sums: float32x4_t, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: as above.
        unsafe { vfmaq_f32(sums, a, b) }
    }
    #[inline(always)]
    unsafe fn store(sums: float32x4_t, to: *mut f32) {
        // SAFETY: guaranteed by the caller.
        unsafe { vst1q_f32(to, sums) }
    }
    #[inline(always)]
    unsafe fn totals([a, b, c, d]: [float32x4_t; 4], to: *mut f32) {
        // SAFETY: guaranteed by the caller.
        unsafe { vst1q_f32(to, vpaddq_f32(vpaddq_f32(a, b), vpaddq_f32(c, d))) }
    }
}

/// bf16 widened to f32, 4 lanes.
#[derive(Clone, Copy)]
pub(super) struct NeonBf16;

impl VectorOps for NeonBf16 {
    type Panel = bf16;
    type Acc = f32;
    type Vector = float32x4_t;
    type Sums = float32x4_t;
    const LANES: usize = 4;

    #[inline(always)]
    unsafe fn load(from: *const bf16) -> float32x4_t {
        // SAFETY: guaranteed by the caller; bf16 is the upper half of an f32.
        unsafe { vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(from.cast()))) }
    }
    #[inline(always)]
    unsafe fn load_part(from: *const bf16, count: usize) -> float32x4_t {
        // SAFETY: entries below `count` are readable.
        unsafe { Self::load(first(from, count, bf16::ZERO).as_ptr()) }
    }
    #[inline(always)]
    unsafe fn splat(from: *const bf16) -> float32x4_t {
        // SAFETY: guaranteed by the caller.
        unsafe { vdupq_n_f32(f32::from_bits(u32::from((*from).to_bits()) << 16)) }
    }
    #[inline(always)]
    unsafe fn join(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: NEON is always there.
        unsafe { Neon32::join(a, b) }
    }
    #[inline(always)]
    unsafe fn zero() -> float32x4_t {
        // SAFETY: NEON is always there.
        unsafe { Neon32::zero() }
    }
    #[inline(always)]
    unsafe fn fetch(from: *const f32) -> float32x4_t {
        // SAFETY: guaranteed by the caller.
        unsafe { Neon32::fetch(from) }
    }
    #[inline(always)]
    unsafe fn fma(sums: float32x4_t, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: as above.
        unsafe { Neon32::fma(sums, a, b) }
    }
    #[inline(always)]
    unsafe fn store(sums: float32x4_t, to: *mut f32) {
        // SAFETY: guaranteed by the caller.
        unsafe { Neon32::store(sums, to) }
    }
    #[inline(always)]
    unsafe fn totals(sums: [float32x4_t; 4], to: *mut f32) {
        // SAFETY: guaranteed by the caller.
        unsafe { Neon32::totals(sums, to) }
    }
}

/// The first `count` of four entries, padded with `zero`.
#[inline(always)]
unsafe fn first<T: Copy>(from: *const T, count: usize, zero: T) -> [T; 4] {
    // SAFETY: entries below `count` are readable.
    std::array::from_fn(|i| if i < count { unsafe { *from.add(i) } } else { zero })
}
