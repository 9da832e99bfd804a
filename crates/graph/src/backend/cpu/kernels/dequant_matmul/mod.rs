//! Products with quantised weights: `y = x W^T`, and `y = x W` for gradients.
//!
//! A few rows of `x` are quantised as well, block by block to 8 bits, and multiplied as bytes: each byte of the weights
//! is read once, in place, and memory bandwidth limits decoding. More rows are multiplied with panels of dequantised
//! weights. The choice depends on the sizes alone. f64 is never quantised.

mod activations;
mod dots;
mod table;
#[cfg(test)]
mod tests;
mod widen;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::ops::Range;

use half::f16;

pub(crate) use self::activations::{Activations, activation_bytes, quantize};
use self::dots::{QuantizedDots, ROWS};
use super::float::{Float, Real};
use super::par::{Shared, for_pieces, rows_of_task, with_scratch, with_space};
use super::tuning::matmul::{PARALLEL_MACS, QUANTISED_ROWS, TASK_BYTES};
use crate::fused::dequant_matmul::{BLOCK, QuantFormat};

/// Output columns are a multiple of this within a task.
const GROUP: usize = 4;

/// Quantised weights `(rows, cols)`.
#[derive(Clone, Copy, Debug)]
pub struct QuantizedWeights<'a> {
    /// The storage format.
    pub format: QuantFormat,
    /// Output features.
    pub rows: usize,
    /// Input features: a multiple of the block size.
    pub cols: usize,
    /// `rows * cols / 32` blocks.
    pub quants: &'a [u8],
    /// One scale per block.
    pub scales: &'a [f16],
}

impl QuantizedWeights<'_> {
    /// Blocks per row.
    fn blocks(&self) -> usize {
        self.cols / BLOCK
    }

    /// Bytes per row.
    fn row_bytes(&self) -> usize {
        self.blocks() * self.format.block_bytes()
    }

    fn check(&self) {
        let fits = self.cols.is_multiple_of(BLOCK)
            && self.quants.len() == self.rows * self.row_bytes()
            && self.scales.len() == self.rows * self.blocks();
        assert!(fits, "dequant_matmul: the weights have the wrong size");
    }

    /// Weight rows per task for a few rows of `x`; the weights have `rows` rows of `row_bytes` bytes.
    pub(crate) fn piece(rows: usize, row_bytes: usize) -> usize {
        rows_of_task(rows, row_bytes, TASK_BYTES).next_multiple_of(GROUP)
    }

    /// Whether a product with `m` rows is large enough for several threads.
    fn is_parallel(&self, m: usize) -> bool {
        m.saturating_mul(self.rows).saturating_mul(self.cols) >= PARALLEL_MACS
    }
}

/// `y (m, rows) = x (m, cols) W^T`, or transposed `y (m, cols) = x (m, rows) W`.
///
/// # Panics
/// If the sizes are inconsistent.
pub fn dequant_matmul<T: Float>(x: &[T], weights: &QuantizedWeights<'_>, transposed: bool, y: &mut [T]) {
    weights.check();
    let (read, made) = if transposed {
        (weights.rows, weights.cols)
    } else {
        (weights.cols, weights.rows)
    };
    if y.is_empty() {
        return;
    }
    let m = y.len() / made;
    assert!(
        y.len() == m * made && x.len() == m * read,
        "dequant_matmul: x or y has the wrong size"
    );
    if read == 0 {
        y.fill(T::default());
    } else if is_in_bytes::<T>(m, transposed) {
        few_rows(x, weights, m, y);
    } else {
        widen::product(x, weights, transposed, m, y);
    }
}

/// Whether a product of `m` rows of `T` quantises its activations.
pub(crate) fn is_in_bytes<T: Float>(m: usize, transposed: bool) -> bool {
    !transposed && m <= QUANTISED_ROWS && size_of::<T::Acc>() == size_of::<f32>()
}

/// Quantises `x` and multiplies it with the quantised weights.
fn few_rows<T: Float>(x: &[T], weights: &QuantizedWeights<'_>, m: usize, y: &mut [T]) {
    let to = Shared::new(y);
    with_space(activation_bytes(m, weights.cols), |space: *mut u8| {
        // SAFETY: the scratch space belongs to this call.
        unsafe { quantize(x, weights.cols, weights.format, space) };
        let x = Activations::of(space, m, weights.cols);
        let piece = QuantizedWeights::piece(weights.rows, weights.row_bytes());
        for_pieces(weights.rows, piece, weights.is_parallel(m), |_, range| {
            // SAFETY: this part of y belongs to this task.
            unsafe { piece_of_few_rows(&x, m, weights, range, to) };
        });
    });
}

/// The columns of `y (m, rows) = x W^T` that belong to a range of rows of W.
///
/// # Safety
/// `x` holds `m` rows; `to` is all of y, and these columns are not accessed elsewhere meanwhile.
pub(crate) unsafe fn piece_of_few_rows<T: Float>(
    x: &Activations,
    m: usize,
    weights: &QuantizedWeights<'_>,
    range: Range<usize>,
    to: Shared<T>,
) {
    let (n, row_bytes, count) = (weights.rows, weights.row_bytes(), range.len());
    with_scratch(ROWS * count, |sums: &mut [f32]| {
        for first in (0..m).step_by(ROWS) {
            let rows = ROWS.min(m - first);
            let dots = QuantizedDots {
                blocks: weights.blocks(),
                x: x.at_row(first),
                rows,
                quants: weights.quants[range.start * row_bytes..].as_ptr(),
                scales: weights.scales[range.start * weights.blocks()..].as_ptr(),
                count,
                out: sums.as_mut_ptr(),
            };
            // SAFETY: the weights hold these rows; the sums have capacity for ROWS times the count; the table returns
            // only kernels that this CPU supports.
            unsafe { table::dots(weights.format)(&dots) };
            for (r, sums) in sums.chunks_exact(count).enumerate().take(rows) {
                // SAFETY: guaranteed by the caller.
                let to = unsafe { to.slice((first + r) * n + range.start, count) };
                for (to, &sum) in to.iter_mut().zip(sums) {
                    *to = T::from_acc(T::Acc::of(f64::from(sum)));
                }
            }
        }
    });
}
