//! Batched matrix product with any strides: `C = alpha * A @ B (+ C)`.
//!
//! f32 and f64 go to the `gemm` crate as they lie. bf16 and f16 are widened panel by panel into f32 scratch, so sums are
//! f32 and no widened copy of a matrix exists. One row or one column takes a direct path that reads each weight once.

use super::float::{Float, Mat, Real};
use super::par::{Shared, for_pieces, simd, store, sum2, with_scratch};

/// From this many multiply-adds on, a product is spread over threads.
const PARALLEL_MACS: usize = 1 << 19;
/// Tile of C and depth of the panels for the narrow types.
const TILE_M: usize = 128;
const TILE_N: usize = 256;
const TILE_K: usize = 512;

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
        } else if T::IS_ACC {
            let (a, b) = (a.cast(), b.cast());
            let c = Mat {
                ptr: c.cast::<T::Acc>(),
                rows: n as isize,
                cols: 1,
            };
            T::Acc::gemm((m, n, k), alpha, a, b, c, accumulate, parallel);
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

/// `out = alpha * x @ W (+ out)`, x (k), W (k, n) with one stride of 1.
struct Gemv<T: Float> {
    n: usize,
    k: usize,
    alpha: T::Acc,
    x: (*const T, isize),
    w: Mat<*const T>,
    out: Shared<T>,
    accumulate: bool,
}

/// Columns of a vector-matrix product that are summed together.
const GEMV_COLUMNS: usize = 128;

// SAFETY: the inputs are only read, the output is written in disjoint pieces.
unsafe impl<T: Float> Sync for Gemv<T> {}

impl<T: Float> Gemv<T> {
    /// # Safety
    /// Sizes and strides stay inside the allocations.
    unsafe fn run(&self, parallel: bool) {
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

/// A product of a narrow type, tile by tile through f32 scratch.
struct Tiles<T: Float> {
    dims: (usize, usize, usize),
    alpha: T::Acc,
    a: Mat<*const T>,
    b: Mat<*const T>,
    out: Shared<T>,
    accumulate: bool,
}

// SAFETY: the inputs are only read, the output is written in disjoint tiles.
unsafe impl<T: Float> Sync for Tiles<T> {}

impl<T: Float> Tiles<T> {
    /// # Safety
    /// Sizes and strides stay inside the allocations.
    unsafe fn run(&self, parallel: bool) {
        let (m, n, _) = self.dims;
        let across = n.div_ceil(TILE_N);
        for_pieces(m.div_ceil(TILE_M) * across, 1, parallel, |tile, _| {
            let (i, j) = (tile / across * TILE_M, tile % across * TILE_N);
            // SAFETY: the tile is inside C and belongs to this task.
            unsafe { self.tile((i, TILE_M.min(m - i)), (j, TILE_N.min(n - j))) };
        });
    }

    unsafe fn tile(&self, (i, rows): (usize, usize), (j, cols): (usize, usize)) {
        let (_, n, k) = self.dims;
        let deep = TILE_K.min(k);
        with_scratch((rows + cols) * deep + rows * cols, |scratch: &mut [T::Acc]| {
            let (panel_a, rest) = scratch.split_at_mut(rows * deep);
            let (panel_b, tile) = rest.split_at_mut(cols * deep);
            for depth in (0..k).step_by(deep) {
                let step = deep.min(k - depth);
                // SAFETY: the panels are inside A and B, the scratch holds them.
                unsafe {
                    let a = widen(self.a.at(i, depth), (rows, step), panel_a);
                    let b = widen(self.b.at(depth, j), (step, cols), panel_b);
                    let c = Mat {
                        ptr: tile.as_mut_ptr(),
                        rows: cols as isize,
                        cols: 1,
                    };
                    T::Acc::gemm((rows, cols, step), self.alpha, a, b, c, depth > 0, false);
                }
            }
            simd(
                #[inline(always)]
                || {
                    for (r, row) in tile.chunks_exact_mut(cols).enumerate() {
                        let out = self.out.at((i + r) * n + j);
                        // SAFETY: row r of the tile lies there.
                        unsafe {
                            if self.accumulate {
                                for (c, x) in row.iter_mut().enumerate() {
                                    *x += (*out.add(c)).to_acc();
                                }
                            }
                            store(row, out);
                        }
                    }
                },
            );
        });
    }
}

impl<T> Mat<*const T> {
    /// The matrix from element (i, j) on.
    #[inline(always)]
    pub(crate) fn at(self, i: usize, j: usize) -> Self {
        let step = i as isize * self.rows + j as isize * self.cols;
        Mat {
            ptr: self.ptr.wrapping_offset(step),
            ..self
        }
    }

    pub(crate) fn cast<U>(self) -> Mat<*const U> {
        Mat {
            ptr: self.ptr.cast(),
            rows: self.rows,
            cols: self.cols,
        }
    }
}

/// Widens a (rows, cols) matrix into `scratch`, keeping the direction that is contiguous in the source.
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
                        super::par::load(from, into);
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

#[cfg(test)]
mod tests {
    use super::super::testing::{close, each_float, epsilon, noise_as, widen as wide};
    use super::*;

    /// Rows of the table: m, n, k, batch, A transposed, B transposed, B shared, accumulate.
    type Case = (usize, usize, usize, usize, bool, bool, bool, bool);

    fn strides(transposed: bool, rows: usize, cols: usize) -> (usize, usize) {
        if transposed { (1, rows) } else { (cols, 1) }
    }

    fn check<T: Float>(case: Case) {
        let (m, n, k, batch, ta, tb, shared, accumulate) = case;
        let (a, a64) = noise_as::<T>(1, batch * m * k + 3);
        let (b, b64) = noise_as::<T>(2, batch * k * n + 5);
        let (mut c, c64) = noise_as::<T>(3, batch * m * n);
        let a_offsets: Vec<usize> = (0..batch).map(|t| 3 + t * m * k).collect();
        let b_offsets: Vec<usize> = (0..batch).map(|t| if shared { 5 } else { 5 + t * k * n }).collect();
        let ((ar, ac), (br, bc)) = (strides(ta, m, k), strides(tb, k, n));
        let mut want = vec![0.0; batch * m * n];
        for t in 0..batch {
            for i in 0..m {
                for j in 0..n {
                    let dot: f64 = (0..k)
                        .map(|l| a64[a_offsets[t] + i * ar + l * ac] * b64[b_offsets[t] + l * br + j * bc])
                        .sum();
                    let at = (t * m + i) * n + j;
                    want[at] = 0.5 * dot + if accumulate { c64[at] } else { 0.0 };
                }
            }
        }
        let a = MatView {
            data: &a,
            offsets: &a_offsets,
            row_stride: ar,
            col_stride: ac,
        };
        let b = MatView {
            data: &b,
            offsets: &b_offsets,
            row_stride: br,
            col_stride: bc,
        };
        matmul(MatmulShape { m, n, k }, T::Acc::of(0.5), a, b, accumulate, &mut c);
        // The sums are f32 for the narrow types too, and may be one after another.
        let sum = if T::IS_ACC { epsilon::<T>() } else { 1.2e-7 };
        let tolerance = epsilon::<T>() + sum * (k as f64 / 8.0);
        close(&wide(&c), &want, tolerance);
    }

    fn table<T: Float>() {
        let sizes = [
            (1, 1, 1, 1),
            (0, 3, 2, 1),
            (3, 2, 0, 2),
            (3, 4, 5, 0),
            (1, 300, 77, 1),
            (1, 5, 1030, 3),
            (270, 1, 33, 1),
            (5, 7, 9, 4),
            (130, 259, 517, 1),
            (33, 3, 65, 2),
        ];
        for (m, n, k, batch) in sizes {
            for flags in 0..16 {
                let flag = |bit: usize| flags >> bit & 1 == 1;
                check::<T>((m, n, k, batch, flag(0), flag(1), flag(2), flag(3)));
            }
        }
    }

    #[test]
    fn agrees_with_the_definition() {
        each_float!(table);
    }

    #[test]
    fn broadcast_strides_and_gaps() {
        // A's row is repeated (stride 0); B's rows and columns both have gaps, also for one row of A.
        let (a, b) = ([1.0f64, 2.0], (0..40).map(f64::from).collect::<Vec<_>>());
        for m in [1, 3] {
            let mut c = vec![0.0; m * 2];
            let left = MatView {
                data: &a,
                offsets: &[0],
                row_stride: 0,
                col_stride: 1,
            };
            let right = MatView {
                data: &b,
                offsets: &[1],
                row_stride: 10,
                col_stride: 3,
            };
            matmul(MatmulShape { m, n: 2, k: 2 }, 1.0, left, right, false, &mut c);
            // b[1], b[4]; b[11], b[14]
            assert_eq!(c, [23.0, 32.0].repeat(m));
        }
    }

    fn same_bits_on_any_pool<T: Float>() {
        let (m, n, k) = (150, 310, 530);
        let (a, _) = noise_as::<T>(7, m * k);
        let (b, _) = noise_as::<T>(8, k * n);
        let run = |threads: usize, m: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let mut c = vec![T::default(); m * n];
            let left = MatView {
                data: &a,
                offsets: &[0],
                row_stride: k,
                col_stride: 1,
            };
            let right = MatView {
                data: &b,
                offsets: &[0],
                row_stride: 1,
                col_stride: k,
            };
            pool.install(|| matmul(MatmulShape { m, n, k }, T::Acc::ONE, left, right, false, &mut c));
            c
        };
        for m in [1, m] {
            assert!(run(1, m) == run(5, m));
        }
    }

    #[test]
    fn threads_do_not_change_the_result() {
        each_float!(same_bits_on_any_pool);
    }
}
