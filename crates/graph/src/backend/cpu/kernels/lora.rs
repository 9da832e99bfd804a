//! The low-rank update of an adapter, `y = ((x @ a) * scale) @ b`, by blocks of rows.
//!
//! The (rows, rank) product in between is a small scratch in the accumulation type.

use super::float::{Float, Mat, Real};
use super::matmul::{product, widen};
use super::par::{PARALLEL_WORK, Shared, for_pieces, simd, store, with_scratch};

/// Rows of a block.
const BLOCK_ROWS: usize = 128;

/// A (rows, cols) factor with any strides.
#[derive(Clone, Copy, Debug)]
pub struct Factor<'a, T> {
    /// Element (i, j) is `data[i * row_stride + j * col_stride]`.
    pub data: &'a [T],
    /// Elements from one row to the next.
    pub row_stride: usize,
    /// Elements from one column to the next.
    pub col_stride: usize,
}

impl<T: Float> Factor<'_, T> {
    /// The matrix, widened into scratch unless it lies as it is needed.
    fn wide(&self, rows: usize, cols: usize, scratch: &mut [T::Acc], name: &str) -> Mat<*const T::Acc> {
        if rows > 0 && cols > 0 {
            let last = (rows - 1) * self.row_stride + (cols - 1) * self.col_stride;
            assert!(last < self.data.len(), "lora: {name} reaches past its buffer");
        }
        let mat = Mat {
            ptr: self.data.as_ptr(),
            rows: self.row_stride as isize,
            cols: self.col_stride as isize,
        };
        if T::IS_ACC {
            return mat.cast();
        }
        // SAFETY: the last element is inside the buffer.
        unsafe { widen(mat, (rows, cols), scratch) }
    }
}

/// The sizes of an update: x is (n, inputs), a (inputs, rank), b (rank, outputs), y (n, outputs).
#[derive(Clone, Copy, Debug)]
pub struct LoraShape {
    /// Rows of x.
    pub n: usize,
    /// Columns of x.
    pub inputs: usize,
    /// Columns of a.
    pub rank: usize,
    /// Columns of b.
    pub outputs: usize,
}

/// `y = ((x @ a) * scale) @ b`; x and y are contiguous.
///
/// # Panics
/// If the sizes do not fit.
pub fn lora<T: Float>(shape: LoraShape, x: &[T], a: Factor<'_, T>, b: Factor<'_, T>, scale: T::Acc, y: &mut [T]) {
    let LoraShape {
        n,
        inputs,
        rank,
        outputs,
    } = shape;
    assert_eq!(x.len(), n * inputs, "lora: x has another size");
    assert_eq!(y.len(), n * outputs, "lora: y has another size");
    let factors = if T::IS_ACC { 0 } else { (inputs + outputs) * rank };
    with_scratch(factors, |scratch| {
        let (wide_a, wide_b) = scratch.split_at_mut(if T::IS_ACC { 0 } else { inputs * rank });
        let job = Job {
            shape,
            x,
            a: a.wide(inputs, rank, wide_a, "a"),
            b: b.wide(rank, outputs, wide_b, "b"),
            scale,
            y: Shared::new(y),
        };
        let parallel = n * rank * (inputs + outputs) >= 4 * PARALLEL_WORK;
        for_pieces(n, BLOCK_ROWS, parallel, |_, rows| job.block(rows.start, rows.len()));
    });
}

struct Job<'a, T: Float> {
    shape: LoraShape,
    x: &'a [T],
    a: Mat<*const T::Acc>,
    b: Mat<*const T::Acc>,
    scale: T::Acc,
    y: Shared<T>,
}

// SAFETY: the factors are only read, y is written in disjoint blocks of rows.
unsafe impl<T: Float> Sync for Job<'_, T> {}

impl<T: Float> Job<'_, T> {
    fn block(&self, start: usize, rows: usize) {
        let LoraShape {
            inputs, rank, outputs, ..
        } = self.shape;
        let x = &self.x[start * inputs..][..rows * inputs];
        let x = Mat {
            ptr: x.as_ptr(),
            rows: inputs as isize,
            cols: 1,
        };
        let y = self.y.at(start * outputs);
        let widened = if T::IS_ACC { 0 } else { rows * (inputs + outputs) };
        with_scratch(rows * rank + widened, |scratch| {
            let (middle, rest) = scratch.split_at_mut(rows * rank);
            let (wide_x, wide_y) = rest.split_at_mut(if T::IS_ACC { 0 } else { rows * inputs });
            // SAFETY: the sizes were checked; this block of y belongs to this task.
            unsafe {
                let x = if T::IS_ACC {
                    x.cast()
                } else {
                    widen(x, (rows, inputs), wide_x)
                };
                product(
                    (rows, rank, inputs),
                    self.scale,
                    x,
                    self.a,
                    middle.as_mut_ptr(),
                    false,
                    false,
                );
                let middle = Mat {
                    ptr: middle.as_ptr(),
                    rows: rank as isize,
                    cols: 1,
                };
                let dims = (rows, outputs, rank);
                if T::IS_ACC {
                    product(dims, T::Acc::ONE, middle, self.b, y.cast::<T::Acc>(), false, false);
                } else {
                    product(dims, T::Acc::ONE, middle, self.b, wide_y.as_mut_ptr(), false, false);
                    simd(
                        #[inline(always)]
                        || store(wide_y, y),
                    );
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{close, each_float, epsilon, noise_as, widen as wide};
    use super::*;

    fn check<T: Float>() {
        for (n, inputs, rank, outputs) in [
            (1, 1, 1, 1),
            (1, 40, 8, 30),
            (7, 5, 3, 9),
            (300, 65, 16, 130),
            (0, 3, 2, 4),
            (3, 4, 0, 5),
            (2, 0, 3, 2),
        ] {
            let (x, x64) = noise_as::<T>(1, n * inputs);
            let ((a, a64), (b, b64)) = (noise_as::<T>(2, inputs * rank), noise_as::<T>(3, rank * outputs));
            for flags in 0..4 {
                let stride = |flag: bool, rows: usize, cols: usize| if flag { (1, rows) } else { (cols, 1) };
                let (ar, ac) = stride(flags & 1 == 1, inputs, rank);
                let (br, bc) = stride(flags & 2 == 2, rank, outputs);
                let mut y = vec![T::from_acc(T::Acc::ONE); n * outputs];
                let left = Factor {
                    data: &a,
                    row_stride: ar,
                    col_stride: ac,
                };
                let right = Factor {
                    data: &b,
                    row_stride: br,
                    col_stride: bc,
                };
                lora(
                    LoraShape {
                        n,
                        inputs,
                        rank,
                        outputs,
                    },
                    &x,
                    left,
                    right,
                    T::Acc::of(2.0),
                    &mut y,
                );
                let mut want = vec![0.0; n * outputs];
                for (at, want) in want.iter_mut().enumerate() {
                    let (i, o) = (at / outputs, at % outputs);
                    let down = |r: usize| {
                        (0..inputs)
                            .map(|k| x64[i * inputs + k] * a64[k * ar + r * ac])
                            .sum::<f64>()
                    };
                    *want = (0..rank).map(|r| 2.0 * down(r) * b64[r * br + o * bc]).sum();
                }
                close(&wide(&y), &want, epsilon::<T>() + 200.0 * epsilon::<T::Acc>());
            }
        }
    }

    #[test]
    fn agrees_with_the_definition() {
        each_float!(check);
    }
}
