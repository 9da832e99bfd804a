//! The gradients: the logits' by blocks, and from them those of hidden (by blocks of rows) and weight (by blocks of
//! classes).

use super::super::error::KernelError;
use super::super::float::{Float, Mat, Real};
use super::super::matmul::dense_product;
use super::super::par::{Shared, for_pieces, for_rows, simd, store, with_scratch};
use super::{BLOCK_ROWS, CrossEntropy, Row};

/// The gradients of [`cross_entropy`](super::cross_entropy) from those of its results: `g` (n) of the loss and `g_lse`
/// (n; 0 if missing) of lse.
///
/// With p the probabilities, that of a row's logits is
/// `(g + g_lse) * p - g * ((1 - smoothing) * onehot(target) + smoothing / vocab)`; `d_hidden` (n, d) is that times the
/// weight, 0 in ignored rows, and `d_weight` (vocab, d) its transpose times hidden.
///
/// # Errors
/// If a target is outside the vocabulary and not `ignore_index`.
///
/// # Panics
/// If the sizes do not fit.
pub fn cross_entropy_vjp<T: Float>(
    input: &CrossEntropy<'_, T>,
    lse: &[T::Acc],
    g: &[T::Acc],
    g_lse: Option<&[T::Acc]>,
    d_hidden: Option<&mut [T]>,
    d_weight: Option<&mut [T]>,
) -> Result<(), KernelError> {
    let rows = input.rows()?;
    let n = input.targets.len();
    assert!(
        lse.len() == n && g.len() == n,
        "cross_entropy: lse or a gradient has another size"
    );
    assert!(
        g_lse.is_none_or(|g| g.len() == n),
        "cross_entropy: the gradient of lse has another size"
    );
    let job = Job {
        input,
        rows: &rows,
        lse,
        g,
        g_lse,
    };
    if let Some(d_hidden) = d_hidden {
        assert_eq!(
            d_hidden.len(),
            input.hidden.len(),
            "cross_entropy: d_hidden has another size"
        );
        job.hidden(d_hidden);
    }
    if let Some(d_weight) = d_weight {
        assert_eq!(
            d_weight.len(),
            input.weight.len(),
            "cross_entropy: d_weight has another size"
        );
        job.weight(d_weight);
    }
    Ok(())
}

struct Job<'a, T: Float> {
    input: &'a CrossEntropy<'a, T>,
    rows: &'a [Row],
    lse: &'a [T::Acc],
    g: &'a [T::Acc],
    g_lse: Option<&'a [T::Acc]>,
}

impl<T: Float> Job<'_, T> {
    /// From the logits of (rows, classes) to their gradients.
    fn turn(&self, rows: &[Row], start: usize, count: usize, logits: &mut [T::Acc], parallel: bool) {
        let smoothing = self.input.smoothing;
        let logits = Shared::new(&mut logits[..rows.len() * count]);
        let run = |i: usize| {
            let Row { row, target } = rows[i];
            // SAFETY: row i belongs to this task.
            let logits = unsafe { logits.slice(i * count, count) };
            let (g, lse) = (self.g[row], self.lse[row]);
            let factor = self.g_lse.map_or(g, |more| g + more[row]);
            let even = g * T::Acc::of(smoothing / self.input.vocab as f64);
            simd(
                #[inline(always)]
                || {
                    for x in &mut *logits {
                        *x = (*x - lse).exp() * factor - even;
                    }
                },
            );
            if (start..start + count).contains(&target) {
                logits[target - start] += -g * T::Acc::of(1.0 - smoothing);
            }
        };
        if parallel {
            for_rows(rows.len(), 16 * count, |range| range.for_each(run));
        } else {
            (0..rows.len()).for_each(run);
        }
    }

    /// Rows of a task: enough tasks for many threads, enough rows for a matrix product.
    fn task_rows(&self) -> usize {
        self.rows.len().div_ceil(16).clamp(32, BLOCK_ROWS)
    }

    fn hidden(&self, d_hidden: &mut [T]) {
        let (input, d, classes) = (self.input, self.input.d, self.input.block_classes());
        d_hidden.fill(T::default());
        let out = Shared::new(d_hidden);
        let step = self.task_rows();
        let pays = input.parallel(self.rows.len());
        // With few blocks of rows the threads share the products inside one block.
        let wide_products = pays && self.rows.len() <= 2 * step;
        let lengths = 2 * step * d + step * classes;
        for_pieces(self.rows.len(), step, pays && !wide_products, |_, range| {
            let rows = &self.rows[range];
            with_scratch(lengths + input.weight_scratch(), |scratch| {
                let (hidden, rest) = scratch.split_at_mut(step * d);
                let (sums, rest) = rest.split_at_mut(step * d);
                let (logits, wide) = rest.split_at_mut(step * classes);
                input.gather(rows, hidden);
                sums.fill(T::Acc::ZERO);
                for start in (0..input.vocab).step_by(classes) {
                    let count = classes.min(input.vocab - start);
                    let weight = input.classes(start, count, wide);
                    // SAFETY: the scratch is as large as the block.
                    unsafe { input.logits((rows.len(), count), hidden, weight, logits, wide_products) };
                    self.turn(rows, start, count, logits, wide_products);
                    let left = Mat {
                        ptr: logits.as_ptr(),
                        rows: count as isize,
                        cols: 1,
                    };
                    let sums = Mat {
                        ptr: sums.as_mut_ptr(),
                        rows: d as isize,
                        cols: 1,
                    };
                    let dims = (rows.len(), d, count);
                    // SAFETY: as above; the weight is (count, d).
                    unsafe { dense_product(dims, T::Acc::ONE, left, weight, sums, true, wide_products) };
                }
                for (row, sums) in rows.iter().zip(sums.chunks_exact(d.max(1))) {
                    // SAFETY: the row belongs to this task.
                    unsafe { store(sums, out.at(row.row * d)) };
                }
            });
        });
    }

    fn weight(&self, d_weight: &mut [T]) {
        let (input, d, classes) = (self.input, self.input.d, self.input.block_classes());
        let out = Shared::new(d_weight);
        let lengths = BLOCK_ROWS * d + BLOCK_ROWS * classes + classes * d;
        for_pieces(input.vocab, classes, input.parallel(self.rows.len()), |_, range| {
            let (start, count) = (range.start, range.len());
            with_scratch(lengths + input.weight_scratch(), |scratch| {
                let (hidden, rest) = scratch.split_at_mut(BLOCK_ROWS * d);
                let (logits, rest) = rest.split_at_mut(BLOCK_ROWS * classes);
                let (sums, wide) = rest.split_at_mut(classes * d);
                let sums = &mut sums[..count * d];
                sums.fill(T::Acc::ZERO);
                let weight = input.classes(start, count, wide);
                for rows in self.rows.chunks(BLOCK_ROWS) {
                    input.gather(rows, hidden);
                    // SAFETY: the scratch is as large as the block.
                    unsafe { input.logits((rows.len(), count), hidden, weight, logits, false) };
                    self.turn(rows, start, count, logits, false);
                    let left = Mat {
                        ptr: logits.as_ptr(),
                        rows: 1,
                        cols: count as isize,
                    };
                    let right = Mat {
                        ptr: hidden.as_ptr(),
                        rows: d as isize,
                        cols: 1,
                    };
                    let sums = Mat {
                        ptr: sums.as_mut_ptr(),
                        rows: d as isize,
                        cols: 1,
                    };
                    let dims = (count, d, rows.len());
                    // SAFETY: as above.
                    unsafe { dense_product(dims, T::Acc::ONE, left, right, sums, true, false) };
                }
                // SAFETY: the classes belong to this task.
                unsafe { store(sums, out.at(start * d)) };
            });
        });
    }
}
