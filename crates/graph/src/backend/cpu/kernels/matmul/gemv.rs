//! One row (or, turned, one column) times a matrix: each weight is read once, where it lies.

use super::super::float::{Float, Mat, Real};
use super::super::par::{Shared, for_pieces, simd, sum2, with_scratch};

/// `out = alpha * x @ W (+ out)`, x (k), W (k, n) with one stride of 1.
pub(super) struct Gemv<T: Float> {
    pub(super) n: usize,
    pub(super) k: usize,
    pub(super) alpha: T::Acc,
    pub(super) x: (*const T, isize),
    pub(super) w: Mat<*const T>,
    pub(super) out: Shared<T>,
    pub(super) accumulate: bool,
}

/// Columns of a vector-matrix product that are summed together.
const GEMV_COLUMNS: usize = 128;

// SAFETY: the inputs are only read, the output is written in disjoint pieces.
unsafe impl<T: Float> Sync for Gemv<T> {}

impl<T: Float> Gemv<T> {
    /// # Safety
    /// Sizes and strides stay inside the allocations.
    pub(super) unsafe fn run(&self, parallel: bool) {
        with_scratch(self.k, |x: &mut [T::Acc]| {
            for (i, x) in x.iter_mut().enumerate() {
                // SAFETY: i < k.
                *x = unsafe { *self.x.0.offset(i as isize * self.x.1) }.to_acc() * self.alpha;
            }
            let x = &*x;
            for_pieces(self.n, GEMV_COLUMNS, parallel, |_, columns| {
                // SAFETY: the columns are inside 0..n and no other piece has them.
                simd(
                    #[inline(always)]
                    || unsafe {
                        if self.w.rows == 1 {
                            self.dots(x, columns.start, columns.len());
                        } else {
                            self.axpys(x, columns.start, columns.len());
                        }
                    },
                );
            });
        });
    }

    #[inline(always)]
    unsafe fn write(&self, j: usize, value: T::Acc) {
        // SAFETY: the caller owns column j.
        unsafe {
            let out = self.out.at(j);
            *out = T::from_acc(if self.accumulate {
                (*out).to_acc() + value
            } else {
                value
            });
        }
    }

    /// Each column of W is contiguous: one dot product a column.
    #[inline(always)]
    unsafe fn dots(&self, x: &[T::Acc], start: usize, len: usize) {
        for j in start..start + len {
            // SAFETY: column j of W has k contiguous elements.
            unsafe {
                let column = self.w.ptr.offset(j as isize * self.w.cols);
                let column = std::slice::from_raw_parts(column, self.k);
                let dot = sum2(
                    x,
                    column,
                    #[inline(always)]
                    |x, w| x * w.to_acc(),
                );
                self.write(j, dot);
            }
        }
    }

    /// Each row of W is contiguous: the row times x[i] is added to the running columns, four rows at a time.
    #[inline(always)]
    unsafe fn axpys(&self, x: &[T::Acc], start: usize, len: usize) {
        let mut sums = [T::Acc::ZERO; GEMV_COLUMNS];
        let sums = &mut sums[..len];
        // SAFETY: rows 0..k of W have the columns start..start + len.
        unsafe {
            let row = |i: usize| {
                let row = self.w.ptr.offset(i as isize * self.w.rows).add(start);
                std::slice::from_raw_parts(row, len)
            };
            let (fours, rest) = x.as_chunks::<4>();
            for (i, x) in fours.iter().enumerate() {
                let w: [&[T]; 4] = [row(4 * i), row(4 * i + 1), row(4 * i + 2), row(4 * i + 3)];
                for j in 0..len {
                    sums[j] += (w[0][j].to_acc() * x[0] + w[1][j].to_acc() * x[1])
                        + (w[2][j].to_acc() * x[2] + w[3][j].to_acc() * x[3]);
                }
            }
            for (i, &x) in rest.iter().enumerate() {
                for (sum, w) in sums.iter_mut().zip(row(4 * fours.len() + i)) {
                    *sum += w.to_acc() * x;
                }
            }
            for (j, &sum) in sums.iter().enumerate() {
                self.write(start + j, sum);
            }
        }
    }
}
