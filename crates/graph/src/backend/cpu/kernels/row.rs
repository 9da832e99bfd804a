//! Helpers of kernels over the rows of a (rows, n) matrix: mapping a row in place, and sums over the rows.

use std::ops::Range;

use super::float::{Float, Real};
use super::par::{BLOCK, Shared, each, for_pieces, simd};
use super::scratch::Filled;
use super::tuning::loops::PARALLEL_WORK;

/// Minimum number of rows per partial sum, and maximum number of partial sums.
const MIN_PIECE: usize = 16;
const MAX_PIECES: usize = 32;

/// The number of rows of `n` in `len` elements.
///
/// # Panics
/// If the elements are not a whole number of rows.
pub(crate) fn rows(len: usize, n: usize) -> usize {
    if n == 0 {
        assert_eq!(len, 0, "rows of no elements cannot hold {len}");
        return 0;
    }
    assert_eq!(len % n, 0, "{len} elements are not a whole number of rows of {n}");
    len / n
}

/// `dst[i] = f(src[i], [side[i] of each side])`, block by block so that `src` may be `dst`; each side is a row.
///
/// # Safety
/// `src` and `dst` are valid for `n` elements, and equal or disjoint.
#[inline(always)]
pub(crate) unsafe fn map_row<T: Float, const N: usize>(
    (src, dst): (*const T, *mut T),
    n: usize,
    sides: [&[T::Acc]; N],
    f: impl Fn(T::Acc, [T::Acc; N]) -> T::Acc,
) {
    for start in (0..n).step_by(BLOCK) {
        let len = BLOCK.min(n - start);
        let sides: [&[T::Acc]; N] = each(
            #[inline(always)]
            |s| &sides[s][start..][..len],
        );
        // SAFETY: the block is in bounds of both, and if they are distinct only `dst` is written.
        unsafe {
            let to = std::slice::from_raw_parts_mut(dst.add(start), len);
            if std::ptr::eq(src, dst) {
                for (i, to) in to.iter_mut().enumerate() {
                    *to = T::from_acc(f(to.to_acc(), nth(&sides, i)));
                }
            } else {
                let from = std::slice::from_raw_parts(src.add(start), len);
                for (i, (to, from)) in to.iter_mut().zip(from).enumerate() {
                    *to = T::from_acc(f(from.to_acc(), nth(&sides, i)));
                }
            }
        }
    }
}

/// Element `i` of each side.
#[inline(always)]
fn nth<A: Copy, const N: usize>(sides: &[&[A]; N], i: usize) -> [A; N] {
    each(
        #[inline(always)]
        |s| sides[s][i],
    )
}

/// A weight of `n` elements, widened; filled with `missing` if there is none.
pub(crate) fn widened<T: Float>(weight: Option<&[T]>, n: usize, missing: T::Acc) -> Filled<T::Acc> {
    let mut wide = Filled::new(n, missing);
    for (wide, weight) in wide.iter_mut().zip(weight.unwrap_or_default()) {
        *wide = weight.to_acc();
    }
    wide
}

/// Sums over rows: each piece of rows has its own partial sums, which are added in order at the end. The pieces depend
/// on the number of rows alone.
pub(crate) struct RowSums<A> {
    rows: usize,
    n: usize,
    piece: usize,
    kinds: usize,
    partial: Filled<A>,
}

impl<A: Real> RowSums<A> {
    /// Zero accumulators for `kinds` sums of `n` columns each.
    pub(crate) fn new(rows: usize, n: usize, kinds: usize) -> Self {
        let piece = rows.div_ceil(MAX_PIECES).max(MIN_PIECE);
        RowSums {
            rows,
            n,
            piece,
            kinds,
            partial: Filled::new(rows.div_ceil(piece) * kinds * n, A::ZERO),
        }
    }

    /// Runs `f(rows, sums)` over all pieces; `sums` is (kinds, n), initially zero.
    pub(crate) fn run(&mut self, row_work: usize, f: impl Fn(Range<usize>, &mut [A]) + Sync) {
        let parallel = self.rows * row_work >= PARALLEL_WORK;
        let width = self.kinds * self.n;
        let partial = Shared::new(&mut self.partial);
        for_pieces(self.rows, self.piece, parallel, |i, range| {
            // SAFETY: piece i owns row i of the partial sums.
            f(range, unsafe { partial.slice(i * width, width) });
        });
    }

    /// Adds up the partial sums of one kind and rounds them into `out`.
    pub(crate) fn finish<T: Float<Acc = A>>(&self, kind: usize, out: &mut [T]) {
        assert_eq!(out.len(), self.n, "the gradient does not have the length of a row");
        simd(
            #[inline(always)]
            || {
                let mut total = Filled::new(self.n, A::ZERO);
                for piece in self.partial.chunks_exact((self.kinds * self.n).max(1)) {
                    for (t, &x) in total.iter_mut().zip(&piece[kind * self.n..][..self.n]) {
                        *t += x;
                    }
                }
                for (o, &t) in out.iter_mut().zip(&*total) {
                    *o = T::from_acc(t);
                }
            },
        );
    }
}
