//! Batched matrix product with any strides: `C = alpha * A @ B (+ C)`.
//!
//! f32 and f64 go to the `gemm` crate as they lie. bf16 and f16 are widened panel by panel into f32 scratch, so sums are
//! f32 and no widened copy of a matrix exists. One row or one column takes a direct path that reads each weight once.

mod dense;
mod gemv;
#[cfg(test)]
mod tests;
mod tiles;

pub(crate) use dense::dense_product;
pub(crate) use tiles::widen;

use super::float::{Float, Mat};
use super::par::{Shared, for_pieces};
use gemv::Gemv;
use tiles::Tiles;

/// From this many multiply-adds on, a product is spread over threads.
const PARALLEL_MACS: usize = 1 << 19;

/// With so many rows gemm reads a row-major B badly, and copying its panels pays (measured: five times at 16 rows).
const FEW_ROWS: std::ops::RangeInclusive<usize> = 4..=48;

/// Matrices of one size in one buffer: element (i, j) of matrix `t` is
/// `data[offsets[t] + i * row_stride + j * col_stride]`. Strides may be 0.
#[derive(Clone, Copy, Debug)]
pub struct MatView<'a, T> {
    /// The buffer.
    pub data: &'a [T],
    /// Where each matrix of the batch starts.
    pub offsets: &'a [usize],
    /// Elements from one row to the next.
    pub row_stride: usize,
    /// Elements from one column to the next.
    pub col_stride: usize,
}

impl<T> MatView<'_, T> {
    fn check(&self, rows: usize, cols: usize, name: &str) {
        if rows == 0 || cols == 0 {
            return;
        }
        let last = (rows - 1) * self.row_stride + (cols - 1) * self.col_stride;
        let furthest = self.offsets.iter().max().map_or(0, |o| o + last);
        assert!(
            self.offsets.is_empty() || furthest < self.data.len(),
            "matmul: {name} reaches past its buffer"
        );
    }

    fn mat(&self, t: usize) -> Mat<*const T> {
        Mat {
            ptr: self.data[self.offsets[t]..].as_ptr(),
            rows: self.row_stride as isize,
            cols: self.col_stride as isize,
        }
    }
}

/// The sizes of one product: A is (m, k), B is (k, n), C is (m, n).
#[derive(Clone, Copy, Debug)]
pub struct MatmulShape {
    /// Rows of A and C.
    pub m: usize,
    /// Columns of B and C.
    pub n: usize,
    /// Columns of A, rows of B.
    pub k: usize,
}

/// For each t in the batch: `c[t] = alpha * a[t] @ b[t]`, plus what is in `c` if `accumulate`.
///
/// `c` is (batch, m, n), row-major and contiguous; the batch is as long as both lists of offsets.
///
/// # Panics
/// If the sizes do not fit the buffers.
pub fn matmul<T: Float>(
    shape: MatmulShape,
    alpha: T::Acc,
    a: MatView<'_, T>,
    b: MatView<'_, T>,
    accumulate: bool,
    c: &mut [T],
) {
    let MatmulShape { m, n, k } = shape;
    let batch = a.offsets.len();
    assert_eq!(batch, b.offsets.len(), "matmul: batches differ");
    assert_eq!(c.len(), batch * m * n, "matmul: the output has another size");
    a.check(m, k, "A");
    b.check(k, n, "B");
    if c.is_empty() {
        return;
    }
    if k == 0 {
        if !accumulate {
            c.fill(T::default());
        }
        return;
    }
    let out = Shared::new(c);
    // SAFETY: `check` covered every element; each product writes its own m * n elements of C.
    let one = |t: usize, dims: (usize, usize, usize), parallel: bool| unsafe {
        product(dims, alpha, a.mat(t), b.mat(t), out.at(t * m * n), accumulate, parallel);
    };
    if batch > 1 && shares_right(&a, &b, m) {
        return one(0, (batch * m, n, k), parallel_pays(batch * m, n, k));
    }
    if batch == 1 || parallel_pays(m, n, k / 4) {
        (0..batch).for_each(|t| one(t, (m, n, k), parallel_pays(m, n, k)));
    } else {
        let piece = (PARALLEL_MACS / 4 / (m * n * k)).max(1);
        for_pieces(batch, piece, parallel_pays(batch * m, n, k), |_, range| {
            range.for_each(|t| one(t, (m, n, k), false));
        });
    }
}

/// True where the batch is one tall product: every B the same, the A's below one another.
fn shares_right<T>(a: &MatView<'_, T>, b: &MatView<'_, T>, m: usize) -> bool {
    b.offsets.iter().all(|&o| o == b.offsets[0])
        && a.offsets.windows(2).all(|pair| pair[1] == pair[0] + m * a.row_stride)
}

fn parallel_pays(m: usize, n: usize, k: usize) -> bool {
    m.saturating_mul(n).saturating_mul(k) >= PARALLEL_MACS
}

/// One product; C is row-major and contiguous.
///
/// # Safety
/// As [`Real::gemm`].
pub(crate) unsafe fn product<T: Float>(
    (m, n, k): (usize, usize, usize),
    alpha: T::Acc,
    a: Mat<*const T>,
    b: Mat<*const T>,
    c: *mut T,
    accumulate: bool,
    parallel: bool,
) {
    // SAFETY: handed on from the caller.
    unsafe {
        if m == 1 && (b.rows == 1 || b.cols == 1) {
            let job = Gemv {
                n,
                k,
                alpha,
                x: (a.ptr, a.cols),
                w: b,
                out: Shared::raw(c),
                accumulate,
            };
            job.run(parallel);
        } else if n == 1 && (a.rows == 1 || a.cols == 1) {
            let w = Mat {
                ptr: a.ptr,
                rows: a.cols,
                cols: a.rows,
            };
            let job = Gemv {
                n: m,
                k,
                alpha,
                x: (b.ptr, b.rows),
                w,
                out: Shared::raw(c),
                accumulate,
            };
            job.run(parallel);
        } else if T::IS_ACC && !(FEW_ROWS.contains(&m) && b.cols == 1) {
            let (a, b) = (a.cast(), b.cast());
            let c = Mat {
                ptr: c.cast::<T::Acc>(),
                rows: n as isize,
                cols: 1,
            };
            dense_product((m, n, k), alpha, a, b, c, accumulate, parallel);
        } else {
            Tiles {
                dims: (m, n, k),
                alpha,
                a,
                b,
                out: Shared::raw(c),
                accumulate,
            }
            .run(parallel);
        }
    }
}
