//! The vector operations in which the matmul micro-kernels are written: on a vector of operands and a vector of
//! accumulators. An implementation is a list of instructions; it never contains a loop over a matrix.

use super::super::float::{Float, Real};

/// Vector instructions for one element type.
///
/// A panel is a packed sequence of operands along the inner dimension: single elements, or pairs if the machine
/// multiplies and adds two terms at once.
///
/// # Safety
/// Every function needs the instructions of its implementation; the kernels that call it are compiled for these and are
/// only chosen if the machine supports them. Addresses are valid for a whole vector, or for `count` entries.
pub(super) trait VectorOps: Copy + 'static {
    /// An entry of a panel.
    type Panel: Copy + Send + Sync + 'static;
    /// The accumulation type.
    type Acc: Real;
    /// A vector of operands.
    type Vector: Copy;
    /// A vector of accumulators.
    type Sums: Copy;
    /// Entries per vector.
    const LANES: usize;

    unsafe fn load(from: *const Self::Panel) -> Self::Vector;
    /// Loads the first `count` entries, zero-padded.
    unsafe fn load_part(from: *const Self::Panel, count: usize) -> Self::Vector;
    /// Broadcasts one entry to every lane.
    unsafe fn splat(from: *const Self::Panel) -> Self::Vector;
    unsafe fn zero() -> Self::Sums;
    /// Loads accumulators written by [`store`](Self::store).
    unsafe fn fetch(from: *const Self::Acc) -> Self::Sums;
    /// `sums + a * b`, lane-wise.
    unsafe fn fma(sums: Self::Sums, a: Self::Vector, b: Self::Vector) -> Self::Sums;
    unsafe fn store(sums: Self::Sums, to: *mut Self::Acc);
    /// `a + b`, lane-wise.
    unsafe fn join(a: Self::Sums, b: Self::Sums) -> Self::Sums;
    /// The horizontal sum of each of four vectors.
    unsafe fn totals(sums: [Self::Sums; 4], to: *mut Self::Acc);
}

/// Portable Rust for any element type.
#[derive(Clone, Copy)]
pub(super) struct Portable<S>(std::marker::PhantomData<S>);

const PORTABLE_LANES: usize = 8;

impl<S: Float> VectorOps for Portable<S> {
    type Panel = S;
    type Acc = S::Acc;
    type Vector = [S::Acc; PORTABLE_LANES];
    type Sums = [S::Acc; PORTABLE_LANES];
    const LANES: usize = PORTABLE_LANES;

    #[inline(always)]
    unsafe fn load(from: *const S) -> Self::Vector {
        // SAFETY: guaranteed by the caller.
        unsafe { *from.cast::<[S; PORTABLE_LANES]>() }.map(S::to_acc)
    }

    #[inline(always)]
    unsafe fn load_part(from: *const S, count: usize) -> Self::Vector {
        // SAFETY: entries below `count` are readable.
        std::array::from_fn(|i| {
            if i < count {
                unsafe { *from.add(i) }.to_acc()
            } else {
                S::Acc::ZERO
            }
        })
    }

    #[inline(always)]
    unsafe fn splat(from: *const S) -> Self::Vector {
        // SAFETY: guaranteed by the caller.
        [unsafe { *from }.to_acc(); PORTABLE_LANES]
    }

    #[inline(always)]
    unsafe fn join(a: Self::Sums, b: Self::Sums) -> Self::Sums {
        std::array::from_fn(|i| a[i] + b[i])
    }

    #[inline(always)]
    unsafe fn zero() -> Self::Sums {
        [S::Acc::ZERO; PORTABLE_LANES]
    }

    #[inline(always)]
    unsafe fn fetch(from: *const S::Acc) -> Self::Sums {
        // SAFETY: guaranteed by the caller.
        unsafe { *from.cast() }
    }

    #[inline(always)]
    unsafe fn fma(sums: Self::Sums, a: Self::Vector, b: Self::Vector) -> Self::Sums {
        std::array::from_fn(|i| sums[i] + a[i] * b[i])
    }

    #[inline(always)]
    unsafe fn store(sums: Self::Sums, to: *mut S::Acc) {
        // SAFETY: guaranteed by the caller.
        unsafe { *to.cast() = sums }
    }

    #[inline(always)]
    unsafe fn totals(sums: [Self::Sums; 4], to: *mut S::Acc) {
        for (i, lanes) in sums.into_iter().enumerate() {
            let fours: [S::Acc; 4] = std::array::from_fn(|l| lanes[l] + lanes[l + 4]);
            // SAFETY: guaranteed by the caller.
            unsafe { *to.add(i) = (fours[0] + fours[2]) + (fours[1] + fours[3]) };
        }
    }
}
