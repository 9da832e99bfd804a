//! Which way a product of f32 or f64 goes: the `gemm` crate as a whole, in pieces that it multiplies without packing, or
//! plain sums of rows. The thresholds were measured.

use super::super::float::{Mat, Real};
use super::super::par::{Shared, for_pieces, simd, with_scratch};

/// Elements of C up to which gemm reads rows of A and columns of B as they lie, without packing.
const UNPACKED: usize = 256;
/// A matrix with at most so many rows (or columns) does not repay packing the other.
const NARROW: usize = 64;
/// A product with at most so many terms a sum is a sum of rows of B.
const SHORT: usize = 32;
/// Multiply-adds of a piece of a parallel product.
const PIECE_MACS: usize = 1 << 18;

/// `C = alpha * A @ B (+ C if accumulate)` with A (m, k), B (k, n), C (m, n).
///
/// # Safety
/// As [`Real::gemm`].
pub(crate) unsafe fn dense_product<A: Real>(
    dims: (usize, usize, usize),
    alpha: A,
    a: Mat<*const A>,
    b: Mat<*const A>,
    c: Mat<*mut A>,
    accumulate: bool,
    parallel: bool,
) {
    let (m, n, k) = dims;
    let job = Job {
        dims,
        alpha,
        a,
        b,
        c,
        accumulate,
    };
    // SAFETY: handed on from the caller.
    unsafe {
        if a.cols == 1 && b.rows == 1 && m.min(n) <= NARROW && m * n > UNPACKED && k > SHORT {
            job.unpacked(parallel);
        } else if k <= SHORT && c.cols == 1 && m >= 8 && n >= NARROW {
            job.sums_of_rows(parallel);
        } else {
            A::gemm(dims, alpha, a, b, c, accumulate, parallel);
        }
    }
}

struct Job<A> {
    dims: (usize, usize, usize),
    alpha: A,
    a: Mat<*const A>,
    b: Mat<*const A>,
    c: Mat<*mut A>,
    accumulate: bool,
}

// SAFETY: A and B are only read, C is written in disjoint pieces.
unsafe impl<A: Sync> Sync for Job<A> {}

impl<A: Real> Job<A> {
    /// Pieces of C small enough that gemm does not pack, along the longer side.
    ///
    /// # Safety
    /// As [`dense_product`].
    unsafe fn unpacked(&self, parallel: bool) {
        let (m, n, k) = self.dims;
        let (long, narrow) = (m.max(n), m.min(n));
        let step = (UNPACKED / narrow).max(1);
        let piece = (PIECE_MACS / (narrow * k)).next_multiple_of(step).max(step);
        for_pieces(long, piece, parallel, |_, range| {
            for start in range.clone().step_by(step) {
                let count = step.min(range.end - start);
                let (dims, i, j) = if m > n {
                    ((count, n, k), start, 0)
                } else {
                    ((m, count, k), 0, start)
                };
                let c = Mat {
                    ptr: self.c.at(i, j),
                    ..self.c
                };
                // SAFETY: the piece is inside C, and no other task has it.
                unsafe {
                    A::gemm(
                        dims,
                        self.alpha,
                        self.a.at(i, 0),
                        self.b.at(0, j),
                        c,
                        self.accumulate,
                        false,
                    );
                };
            }
        });
    }

    /// Each row of C as a sum of rows of B, four at a time.
    ///
    /// # Safety
    /// As [`dense_product`]; the rows of C are contiguous.
    unsafe fn sums_of_rows(&self, parallel: bool) {
        let (m, n, k) = self.dims;
        let turned = if self.b.cols == 1 { 0 } else { k * n };
        with_scratch(turned, |scratch: &mut [A]| {
            let b = if turned == 0 { self.b } else { self.turn(scratch) };
            let (rows, c) = (
                Rows {
                    ptr: b.ptr,
                    step: b.rows,
                    n,
                },
                Shared::raw(self.c.ptr),
            );
            let piece = (PIECE_MACS / (n * k.max(1))).max(1);
            for_pieces(m, piece, parallel, |_, range| {
                for i in range {
                    // SAFETY: row i of C belongs to this task.
                    let out = unsafe { std::slice::from_raw_parts_mut(c.at(0).offset(i as isize * self.c.rows), n) };
                    simd(
                        #[inline(always)]
                        || {
                            if !self.accumulate {
                                out.fill(A::ZERO);
                            }
                            // SAFETY: row i of A has k elements, B has k rows.
                            unsafe { self.add_rows(i, &rows, out) };
                        },
                    );
                }
            });
        });
    }

    /// B with contiguous rows.
    fn turn(&self, scratch: &mut [A]) -> Mat<*const A> {
        let (_, n, k) = self.dims;
        for (i, row) in scratch.chunks_exact_mut(n).take(k).enumerate() {
            for (j, x) in row.iter_mut().enumerate() {
                // SAFETY: (i, j) is inside B.
                *x = unsafe { *self.b.at(i, j).ptr };
            }
        }
        Mat {
            ptr: scratch.as_ptr(),
            rows: n as isize,
            cols: 1,
        }
    }

    #[inline(always)]
    unsafe fn add_rows(&self, i: usize, rows: &Rows<A>, out: &mut [A]) {
        let k = self.dims.2;
        // SAFETY: (i, l) is inside A.
        let factor = |l: usize| unsafe { *self.a.at(i, l).ptr } * self.alpha;
        let whole = k - k % 4;
        for l in (0..whole).step_by(4) {
            // SAFETY: rows l .. l + 4 are inside B.
            let b = unsafe { [rows.get(l), rows.get(l + 1), rows.get(l + 2), rows.get(l + 3)] };
            let x = [factor(l), factor(l + 1), factor(l + 2), factor(l + 3)];
            for j in 0..out.len() {
                out[j] += (b[0][j] * x[0] + b[1][j] * x[1]) + (b[2][j] * x[2] + b[3][j] * x[3]);
            }
        }
        for l in whole..k {
            // SAFETY: row l is inside B.
            let (b, x) = (unsafe { rows.get(l) }, factor(l));
            for (out, b) in out.iter_mut().zip(b) {
                *out += *b * x;
            }
        }
    }
}

/// Contiguous rows of `n`, `step` apart.
struct Rows<A> {
    ptr: *const A,
    step: isize,
    n: usize,
}

impl<A> Rows<A> {
    /// # Safety
    /// Row `l` is inside the matrix.
    #[inline(always)]
    unsafe fn get(&self, l: usize) -> &[A] {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts(self.ptr.offset(l as isize * self.step), self.n) }
    }
}

// SAFETY: the rows are only read.
unsafe impl<A: Sync> Sync for Rows<A> {}
