//! How loops are split over threads and compiled for the widest vector instructions of the machine.
//!
//! Loops here are split by sizes alone, never by the number of threads; where a caller splits by that number, its
//! results do not depend on it.

use std::mem::MaybeUninit;
use std::ops::Range;

use super::float::{Float, Mat, Real};
use super::pool;
pub(crate) use super::scratch::{with_scratch, with_space};
use super::tuning::loops::{MAX_PIECES, PARALLEL_WORK, PIECE_WORK};

/// Elements of a loop's stack buffer.
pub(crate) const BLOCK: usize = 256;

/// Runs `f` compiled for the widest vectors of this machine. `f` and its callees must be `#[inline(always)]`.
#[inline(always)]
pub(crate) fn simd<R>(f: impl FnOnce() -> R) -> R {
    // Miri does not interpret vector instructions.
    if cfg!(miri) {
        return f();
    }
    pulp::Arch::new().dispatch(f)
}

/// Runs `f` over pieces of `0..rows`, in parallel if `rows * row_work` is large. The pieces are unspecified, so rows
/// must be independent.
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

/// Runs `f(i, range i)` over `0..rows` in pieces of `piece` rows (the last may be shorter).
pub(crate) fn for_pieces(rows: usize, piece: usize, parallel: bool, f: impl Fn(usize, Range<usize>) + Sync) {
    let run = |i: usize| f(i, i * piece..(i * piece + piece).min(rows));
    let count = rows.div_ceil(piece);
    if parallel && count > 1 {
        pool::run(count, &run);
    } else {
        (0..count).for_each(run);
    }
}

/// Rows per task for a stream of `rows` rows of `row_bytes`: tasks of about `task_bytes` and equal size, an even number
/// of them, so that two threads finish together.
pub(crate) fn rows_of_task(rows: usize, row_bytes: usize, task_bytes: usize) -> usize {
    let tasks = rows.saturating_mul(row_bytes).div_ceil(task_bytes).next_multiple_of(2);
    rows.div_ceil(tasks.max(1)).max(1)
}

/// Prefetches the cache line of an address, which need not be valid.
#[inline(always)]
pub(crate) fn prefetch<T>(at: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 has the instruction, and it reads nothing.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// A pointer shared by tasks, each of which writes a disjoint part.
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

    pub(crate) fn raw(start: *mut T) -> Self {
        Shared(start)
    }

    /// The part of `len` elements from `start` on.
    ///
    /// # Safety
    /// The part is inside the slice this was made of, which is still borrowed, and no other task uses it meanwhile.
    #[inline(always)]
    pub(crate) unsafe fn slice<'a>(self, start: usize, len: usize) -> &'a mut [T] {
        // SAFETY: guaranteed by the caller.
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
/// `src` is readable for that many elements and disjoint from `into`.
#[inline(always)]
pub(crate) unsafe fn load<T: Float>(src: *const T, into: &mut [T::Acc]) {
    // SAFETY: guaranteed by the caller.
    let from = unsafe { std::slice::from_raw_parts(src, into.len()) };
    for (x, from) in into.iter_mut().zip(from) {
        *x = from.to_acc();
    }
}

/// Rounds `from` into the elements at `dst`.
///
/// # Safety
/// `dst` is writable for `from.len()` elements and disjoint from `from`.
#[inline(always)]
pub(crate) unsafe fn store<T: Float>(from: &[T::Acc], dst: *mut T) {
    // SAFETY: guaranteed by the caller.
    let into = unsafe { std::slice::from_raw_parts_mut(dst, from.len()) };
    for (to, &x) in into.iter_mut().zip(from) {
        *to = T::from_acc(x);
    }
}

/// Number of accumulators of a sum: fixed, so that the order of additions is the same on every machine.
const LANES: usize = 128;

/// Accumulates `x` with `step`, element i into accumulator `i % LANES`, and reduces the accumulators in a tree.
///
/// The inner loop runs over slices whose length is known only at run time, which the compiler vectorises.
#[inline(always)]
pub(crate) fn lanes1<X: Copy, S: Copy>(x: &[X], identity: S, step: impl Fn(S, X) -> S, join: impl Fn(S, S) -> S) -> S {
    let mut lanes = [identity; LANES];
    let lanes = &mut lanes[..LANES.min(x.len())];
    for x in x.chunks(LANES) {
        for (lane, &x) in lanes.iter_mut().zip(x) {
            *lane = step(*lane, x);
        }
    }
    tree(lanes, identity, join)
}

#[inline(always)]
fn tree<S: Copy>(mut lanes: &mut [S], identity: S, join: impl Fn(S, S) -> S) -> S {
    if let Ok(lanes) = <&[S; LANES]>::try_from(&*lanes) {
        return whole_tree(lanes, join);
    }
    while lanes.len() > 1 {
        let (left, right) = lanes.split_at_mut(lanes.len().div_ceil(2));
        for (left, right) in left.iter_mut().zip(right) {
            *left = join(*left, *right);
        }
        lanes = left;
    }
    lanes.first().copied().unwrap_or(identity)
}

/// The same tree over all accumulators, in loops of constant length, which are vectorised without a remainder loop.
#[inline(always)]
fn whole_tree<S: Copy>(lanes: &[S; LANES], join: impl Fn(S, S) -> S) -> S {
    const LAST: usize = LANES / 8;
    let mut sums = [lanes[0]; LAST];
    for (i, sum) in sums.iter_mut().enumerate() {
        let pair = |j: usize| join(lanes[i + j * LAST], lanes[i + (j + 4) * LAST]);
        *sum = join(join(pair(0), pair(2)), join(pair(1), pair(3)));
    }
    halved(sums, join)
}

/// A tree reduction of a few values.
#[inline(always)]
fn halved<S: Copy, const N: usize>(mut values: [S; N], join: impl Fn(S, S) -> S) -> S {
    let mut half = N / 2;
    while half > 0 {
        for i in 0..half {
            values[i] = join(values[i], values[i + half]);
        }
        half /= 2;
    }
    values[0]
}

/// The sum of `f(x)`.
#[inline(always)]
pub(crate) fn sum1<X: Copy, A: Real>(x: &[X], f: impl Fn(X) -> A) -> A {
    lanes1(
        x,
        A::ZERO,
        #[inline(always)]
        |sum, x| sum + f(x),
        #[inline(always)]
        |a, b| a + b,
    )
}

/// The sum of `f(x, y)` over pairs of elements; the slices have equal lengths.
#[inline(always)]
pub(crate) fn sum2<X: Copy, Y: Copy, A: Real>(x: &[X], y: &[Y], f: impl Fn(X, Y) -> A) -> A {
    let mut lanes = [A::ZERO; LANES];
    let lanes = &mut lanes[..LANES.min(x.len())];
    for (x, y) in x.chunks(LANES).zip(y.chunks(LANES)) {
        for (lane, (&x, &y)) in lanes.iter_mut().zip(x.iter().zip(y)) {
            *lane += f(x, y);
        }
    }
    tree(
        lanes,
        A::ZERO,
        #[inline(always)]
        |a, b| a + b,
    )
}

/// Writes `f(x)` of each element and returns their sum, in the order of [`sum1`].
#[inline(always)]
pub(crate) fn map_sum<X: Copy, A: Real>(x: &[X], into: &mut [A], f: impl Fn(X) -> A) -> A {
    let mut lanes = [A::ZERO; LANES];
    let lanes = &mut lanes[..LANES.min(x.len())];
    for (x, into) in x.chunks(LANES).zip(into.chunks_mut(LANES)) {
        for (lane, (&x, into)) in lanes.iter_mut().zip(x.iter().zip(into)) {
            *into = f(x);
            *lane += *into;
        }
    }
    tree(
        lanes,
        A::ZERO,
        #[inline(always)]
        |a, b| a + b,
    )
}

/// The largest `f(x)`; minus infinity if there is none. NaN is ignored if another number is above minus infinity:
/// callers subtract this from each x, which propagates every NaN.
#[inline(always)]
pub(crate) fn max1<X: Copy, A: Real>(x: &[X], f: impl Fn(X) -> A) -> A {
    // As many as fit in registers; a maximum does not depend on the order.
    let mut lanes = [A::NEG_INFINITY; 32];
    let larger = |max: A, x: A| if x > max { x } else { max };
    let mut chunks = x.chunks_exact(lanes.len());
    for x in &mut chunks {
        for (lane, &x) in lanes.iter_mut().zip(x) {
            *lane = larger(*lane, f(x));
        }
    }
    let rest = chunks.remainder().iter().map(|&x| f(x));
    let top = rest.fold(halved(lanes, larger), larger);
    if top == A::NEG_INFINITY {
        return x.iter().fold(top, |max, &x| max_nan(max, f(x)));
    }
    top
}

/// The larger of two numbers; NaN if either is NaN.
#[inline(always)]
#[allow(clippy::eq_op)] // only NaN differs from itself
pub(crate) fn max_nan<A: PartialOrd + Copy>(a: A, b: A) -> A {
    if a >= b || a != a { a } else { b }
}

/// Copies `src` to `dst` unless they are the same memory, and returns `dst`, for kernels that work in place.
///
/// # Safety
/// Both are valid for `len` elements and equal or disjoint; `dst` is not accessed elsewhere while it is borrowed.
#[inline(always)]
pub(crate) unsafe fn copied<'a, T: Copy>(src: *const T, dst: *mut T, len: usize) -> &'a mut [T] {
    // SAFETY: guaranteed by the caller.
    unsafe {
        if !std::ptr::eq(src, dst) {
            std::ptr::copy_nonoverlapping(src, dst, len);
        }
        std::slice::from_raw_parts_mut(dst, len)
    }
}

/// Runs `f(start, len)` over `0..n` in blocks of at most [`BLOCK`], in parallel where `n * work` is large.
pub(crate) fn for_blocks(n: usize, work: usize, f: impl Fn(usize, usize) + Sync) {
    for_rows(n.div_ceil(BLOCK), BLOCK * work, |blocks| {
        for block in blocks {
            let start = block * BLOCK;
            f(start, BLOCK.min(n - start));
        }
    });
}

/// Widens a (rows, cols) matrix into `scratch`, with the same contiguous dimension as the source.
///
/// # Safety
/// The source is readable; `scratch` holds rows * cols elements.
pub(crate) unsafe fn widen<T: Float>(
    src: Mat<*const T>,
    (rows, cols): (usize, usize),
    scratch: &mut [T::Acc],
) -> Mat<*const T::Acc> {
    let by_columns = src.rows == 1 && src.cols != 1;
    let (lines, len) = if by_columns { (cols, rows) } else { (rows, cols) };
    let (across, along) = if by_columns {
        (src.cols, src.rows)
    } else {
        (src.rows, src.cols)
    };
    let scratch = &mut scratch[..lines * len];
    simd(
        #[inline(always)]
        || {
            for (line, into) in scratch.chunks_exact_mut(len.max(1)).enumerate() {
                let from = src.ptr.wrapping_offset(line as isize * across);
                // SAFETY: the line has `len` elements `along` apart.
                unsafe {
                    if along == 1 {
                        load(from, into);
                    } else {
                        for (i, x) in into.iter_mut().enumerate() {
                            *x = (*from.offset(i as isize * along)).to_acc();
                        }
                    }
                }
            }
        },
    );
    let step = len as isize;
    let (row_step, col_step) = if by_columns { (1, step) } else { (step, 1) };
    Mat {
        ptr: scratch.as_ptr(),
        rows: row_step,
        cols: col_step,
    }
}

/// An array built entry by entry, inlined into the caller so that it uses its vector instructions:
/// [`std::array::from_fn`] may be a separate call, and an array repeat expression may go through memory. Closures must
/// be `#[inline(always)]`.
#[inline(always)]
pub(super) fn each<T: Copy, const N: usize>(make: impl Fn(usize) -> T) -> [T; N] {
    let mut entries = [MaybeUninit::uninit(); N];
    for (i, entry) in entries.iter_mut().enumerate() {
        entry.write(make(i));
    }
    // SAFETY: each entry was written.
    unsafe { entries.as_ptr().cast::<[T; N]>().read() }
}
