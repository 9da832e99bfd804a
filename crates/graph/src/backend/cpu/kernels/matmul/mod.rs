//! Batched matrix product with any strides: `C = alpha * A @ B (+ C)`.
//!
//! Sums are accumulated in f32 (f64 for f64) in registers over the whole inner dimension, and rounded once. bf16 is
//! multiplied in pairs or tiles where the machine does that fastest; otherwise 16-bit elements are widened once, during
//! packing. Products with few rows take paths that read each weight once, in place.

#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
mod drive;
mod kernel;
mod lines;
#[cfg(target_arch = "aarch64")]
mod neon;
mod pack;
#[cfg(target_arch = "x86_64")]
mod rates;
mod table;
#[cfg(test)]
mod tests;
mod tiles;
mod vector_ops;
#[cfg(target_arch = "x86_64")]
mod x86;

pub(crate) use drive::{Factors, Product, run_of_dots};
use half::{bf16, f16};

use super::float::{Float, Mat};
use super::par::{Shared, for_pieces};
use super::tuning::matmul::PARALLEL_MACS;

/// A batch of strided matrices of one size in one buffer: element (i, j) of matrix `t` is `data[offsets[t] + i *
/// row_stride + j * col_stride]`. Strides may be 0.
#[derive(Clone, Copy, Debug)]
pub struct MatView<'a, T> {
    /// The buffer.
    pub data: &'a [T],
    /// Offset of each matrix of the batch.
    pub offsets: &'a [usize],
    /// Row stride in elements.
    pub row_stride: usize,
    /// Column stride in elements.
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
            "matmul: {name} exceeds its buffer"
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

/// For each t in the batch: `c[t] = alpha * a[t] @ b[t]`, plus the old `c[t]` if `accumulate`.
///
/// `c` is (batch, m, n), row-major and contiguous; both lists of offsets have the length of the batch.
///
/// # Panics
/// If the sizes do not match the buffers.
/// If the sizes do not match the buffers.
/// If the sizes do not fit the buffers.
pub fn matmul<T: Float, C: Float<Acc = T::Acc>>(
    shape: MatmulShape,
    alpha: T::Acc,
    a: MatView<'_, T>,
    b: MatView<'_, T>,
    accumulate: bool,
    c: &mut [C],
) {
    let MatmulShape { m, n, k } = shape;
    let batch = a.offsets.len();
    assert_eq!(batch, b.offsets.len(), "matmul: batches differ");
    assert_eq!(c.len(), batch * m * n, "matmul: the output has the wrong size");
    a.check(m, k, "A");
    b.check(k, n, "B");
    if c.is_empty() {
        return;
    }
    if k == 0 {
        if !accumulate {
            c.fill(C::default());
        }
        return;
    }
    let out = Shared::new(c);
    let one = |t: usize, dims: (usize, usize, usize), parallel: bool| {
        let c = Mat {
            ptr: out.at(t * m * n),
            rows: n as isize,
            cols: 1,
        };
        // SAFETY: `check` covered every element; each product writes its own m * n elements of C.
        unsafe { dense_product(dims, alpha, a.mat(t), b.mat(t), c, accumulate, parallel) };
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

/// Whether the batch is one tall product: all B are the same, and the A are stacked.
fn shares_right<T>(a: &MatView<'_, T>, b: &MatView<'_, T>, m: usize) -> bool {
    b.offsets.iter().all(|&o| o == b.offsets[0])
        && a.offsets.windows(2).all(|pair| pair[1] == pair[0] + m * a.row_stride)
}

fn parallel_pays(m: usize, n: usize, k: usize) -> bool {
    m.saturating_mul(n).saturating_mul(k) >= PARALLEL_MACS
}

/// `C = alpha * A @ B (+ C if accumulate)` with A (m, k), B (k, n), C (m, n), whose rows are contiguous.
///
/// # Safety
/// Every element that the sizes and strides reach is inside its allocation; C overlaps neither A nor B.
pub(crate) unsafe fn dense_product<T: Float, C: Float<Acc = T::Acc>>(
    dims: (usize, usize, usize),
    alpha: T::Acc,
    a: Mat<*const T>,
    b: Mat<*const T>,
    c: Mat<*mut C>,
    accumulate: bool,
    parallel: bool,
) {
    debug_assert!(c.cols == 1 || dims.1 == 1, "matmul: rows of C are not contiguous");
    let (m, n, k) = dims;
    let addend = Mat {
        ptr: c.ptr.cast_const(),
        rows: c.rows,
        cols: 1,
    };
    let addends = if accumulate { std::slice::from_ref(&addend) } else { &[] };
    // SAFETY: forwarded from the caller.
    unsafe { sum_of_products((m, n), &[Factors { a, b, k }], alpha, addends, c, parallel) }
}

/// `C = alpha * (A0 @ B0 + A1 @ B1 + ..) + addends`: C (m, n) is rounded once if all A are row-major; its rows are
/// contiguous, and so are those of the addends, one of which may be C.
///
/// # Safety
/// Every element that the sizes and strides reach is inside its allocation; C overlaps no A or B, and an addend only if
/// it is the same matrix.
pub(crate) unsafe fn sum_of_products<T: Float, C: Float<Acc = T::Acc>>(
    (m, n): (usize, usize),
    factors: &[Factors<T>],
    alpha: T::Acc,
    addends: &[Mat<*const C>],
    c: Mat<*mut C>,
    parallel: bool,
) {
    debug_assert!(c.cols == 1 || n == 1, "matmul: rows of C are not contiguous");
    if m == 0 || n == 0 {
        return;
    }
    let product = Product {
        dims: (m, n),
        factors,
        alpha,
        addends,
        c: c.ptr,
        c_row: c.rows as usize,
    };
    let here = [Mat {
        ptr: c.ptr.cast_const(),
        rows: c.rows,
        cols: 1,
    }];
    let mut left = factors;
    let mut sum = product;
    while !left.is_empty() {
        let (now, later) = left.split_at(product.together(left));
        left = later;
        if now[0].k > 0 {
            let part = Product { factors: now, ..sum };
            // SAFETY: forwarded from the caller.
            unsafe { T::multiply(&part, parallel) };
            sum.addends = &here;
        }
    }
    if factors.iter().all(|factors| factors.k == 0) {
        // SAFETY: forwarded from the caller.
        unsafe { product.add_up() };
    }
}

/// Whether products with many rows of this element type are computed without widening it first.
pub(crate) fn multiplies_unwidened<T: Float>() -> bool {
    drive::is::<T, T::Acc>() || drive::is::<T, bf16>() && table::pairs().or(table::tiles()).is_some()
}

/// The kernels of each element type.
///
/// # Safety
/// As [`dense_product`]; no size is 0.
pub(super) mod kernels_of {
    use super::{Float, Product, bf16, f16, table};

    pub unsafe fn f32<C: Float<Acc = f32>>(product: &Product<'_, f32, C>, parallel: bool) {
        // SAFETY: guaranteed by the caller; the table holds only kernels that the machine supports.
        unsafe { product.run(table::for_f32(product.dims.1), parallel) }
    }

    pub unsafe fn f64<C: Float<Acc = f64>>(product: &Product<'_, f64, C>, parallel: bool) {
        // SAFETY: as above.
        unsafe { product.run(table::for_f64(product.dims.1), parallel) }
    }

    pub unsafe fn f16<C: Float<Acc = f32>>(product: &Product<'_, f16, C>, parallel: bool) {
        // SAFETY: as above.
        unsafe {
            if product.suits_widening() {
                product.run(table::for_widened_f16(product.dims.1), parallel);
            } else {
                product.run(table::for_f16(product.dims.1), parallel);
            }
        }
    }

    pub unsafe fn bf16<C: Float<Acc = f32>>(product: &Product<'_, bf16, C>, parallel: bool) {
        // SAFETY: as above.
        unsafe {
            let tiles = table::tiles().filter(|_| product.suits_tiles());
            match tiles.or_else(|| table::pairs().filter(|_| product.suits_pairs())) {
                Some(kernel) => product.run(kernel, parallel),
                None if product.suits_widening() => product.run(table::for_widened_bf16(product.dims.1), parallel),
                None => product.run(table::for_bf16(product.dims.1), parallel),
            }
        }
    }
}
