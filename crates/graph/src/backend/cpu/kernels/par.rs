//! How work is cut over threads and how loops reach the widest vector instructions of the machine.
//!
//! Pieces are cut by sizes alone, never by the number of threads.

use std::ops::Range;

use rayon::prelude::*;

use super::float::Float;

/// Below this many element operations a call stays on the caller's thread.
pub(crate) const PARALLEL_WORK: usize = 1 << 16;
/// A piece of work is at least this many element operations.
const PIECE_WORK: usize = 1 << 14;
/// And there are at most this many pieces.
const MAX_PIECES: usize = 64;
/// Elements of a loop's stack buffer.
pub(crate) const BLOCK: usize = 256;

/// Runs `f` compiled for the widest vectors of this machine. `f` and what it calls must be `#[inline(always)]`.
#[inline(always)]
pub(crate) fn simd<R>(f: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(f)
}

/// Runs `f` over pieces of `0..rows`, in parallel where `rows * row_work` is large. Pieces are whole multiples of
/// nothing: do not reduce across them.
pub(crate) fn for_rows(rows: usize, row_work: usize, f: impl Fn(Range<usize>) + Sync) {
    let work = rows.saturating_mul(row_work);
    if rows == 0 {
        return;
    }
    if work < PARALLEL_WORK || rows == 1 {
        return f(0..rows);
    }
    let piece = PIECE_WORK
        .div_ceil(row_work.max(1))
        .max(rows.div_ceil(MAX_PIECES))
        .min(rows);
    for_pieces(rows, piece, true, |_, range| f(range));
}

/// Runs `f(i, range i)` over `0..rows` in pieces of `piece` (the last may be shorter).
pub(crate) fn for_pieces(
    rows: usize,
    piece: usize,
    parallel: bool,
    f: impl Fn(usize, Range<usize>) + Sync,
) {
    let run = |i: usize| f(i, i * piece..(i * piece + piece).min(rows));
    let count = rows.div_ceil(piece);
    if parallel && count > 1 {
        (0..count).into_par_iter().with_max_len(1).for_each(run);
    } else {
        (0..count).for_each(run);
    }
}

/// A pointer that tasks may share: each writes a part that no other touches.
pub(crate) struct Shared<T>(*mut T);

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Shared<T> {}

// SAFETY: only `slice` gives access, and its caller promises disjoint parts.
unsafe impl<T: Send> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    pub(crate) fn new(slice: &mut [T]) -> Self {
        Shared(slice.as_mut_ptr())
    }

    /// The part from `start`, `len` long.
    ///
    /// # Safety
    /// The part is inside the slice this was made of, which is still borrowed, and no other task uses it meanwhile.
    #[inline(always)]
    pub(crate) unsafe fn slice<'a>(self, start: usize, len: usize) -> &'a mut [T] {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(start), len) }
    }

    #[inline(always)]
    pub(crate) fn at(self, start: usize) -> *mut T {
        self.0.wrapping_add(start)
    }
}

/// Widens `into.len()` elements from `src`.
///
/// # Safety
/// `src` is readable for that many elements.
#[inline(always)]
pub(crate) unsafe fn load<T: Float>(src: *const T, into: &mut [T::Acc]) {
    for (i, x) in into.iter_mut().enumerate() {
        // SAFETY: the caller's promise.
        *x = unsafe { *src.add(i) }.to_acc();
    }
}

/// Rounds `from` into the elements at `dst`.
///
/// # Safety
/// `dst` is writable for `from.len()` elements.
#[inline(always)]
pub(crate) unsafe fn store<T: Float>(from: &[T::Acc], dst: *mut T) {
    for (i, &x) in from.iter().enumerate() {
        // SAFETY: the caller's promise.
        unsafe { *dst.add(i) = T::from_acc(x) };
    }
}
