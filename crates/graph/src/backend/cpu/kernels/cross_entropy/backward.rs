//! The backward pass: gradients of the logits by blocks, rounded to the element type, and from them those of the hidden
//! states (by blocks of rows) and of the weight (by blocks of classes).

use super::super::error::KernelError;
use super::super::float::{Float, Mat, Real, dense_mut, transposed};
use super::super::matmul::dense_product;
use super::super::par::{Shared, for_rows, simd, store, with_scratch, with_space};
use super::{BLOCK_ROWS, CrossEntropy, EXP_WORK, Saved, SupervisedRow};

/// The gradients of [`cross_entropy`](super::cross_entropy) from the gradients of its outputs: `g` (n) of the loss and
/// `g_lse` (n; zero if `None`) of lse.
///
/// With p the probabilities and t the smoothed target, `(1 - smoothing) * onehot(target) + smoothing / vocab`, the
/// gradient of a row's logits is `(g + g_lse) * p - g * t`. `d_hidden` (n, d) is its product with the weight, 0 in
/// ignored rows, and `d_weight`, of shape (vocab, d), the product of its transpose with the hidden states.
///
/// # Errors
/// If a target is outside the vocabulary and not `ignore_index`.
///
/// # Panics
/// If the sizes are inconsistent.
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
        "cross_entropy: lse or a gradient has the wrong size"
    );
    assert!(
        g_lse.is_none_or(|g| g.len() == n),
        "cross_entropy: the gradient of lse has the wrong size"
    );
    let vjp = Vjp {
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
            "cross_entropy: d_hidden has the wrong size"
        );
        vjp.hidden(d_hidden);
    }
    if let Some(d_weight) = d_weight {
        assert_eq!(
            d_weight.len(),
            input.weight.len(),
            "cross_entropy: d_weight has the wrong size"
        );
        vjp.weight(d_weight);
    }
    Ok(())
}

pub(super) struct Vjp<'a, T: Float> {
    pub input: &'a CrossEntropy<'a, T>,
    pub rows: &'a [SupervisedRow],
    pub lse: &'a [T::Acc],
    pub g: &'a [T::Acc],
    pub g_lse: Option<&'a [T::Acc]>,
}

impl<T: Float> Vjp<'_, T> {
    /// Writes the gradients of the logits of some rows and classes, rounded to the element type.
    ///
    /// # Safety
    /// `gradients` has room for (rows, count).
    unsafe fn logit_gradients(
        &self,
        rows: &[SupervisedRow],
        start: usize,
        count: usize,
        logits: &mut [T::Acc],
        gradients: *mut T,
    ) {
        let smoothing = self.input.smoothing;
        let (logits, gradients) = (Shared::new(logits), Shared::raw(gradients));
        for_rows(rows.len(), EXP_WORK * count, |range| {
            for i in range {
                let SupervisedRow { row, target } = rows[i];
                // SAFETY: row i belongs to this task.
                let logits = unsafe { logits.slice(i * count, count) };
                let (g, lse) = (self.g[row], self.lse[row]);
                let factor = self.g_lse.map_or(g, |more| g + more[row]);
                let even = g * T::Acc::of(smoothing / self.input.vocab as f64);
                simd(
                    #[inline(always)]
                    || {
                        for x in &mut *logits {
                            *x = (*x - lse).exp_below() * factor - even;
                        }
                    },
                );
                if (start..start + count).contains(&target) {
                    logits[target - start] += -g * T::Acc::of(1.0 - smoothing);
                }
                simd(
                    #[inline(always)]
                    // SAFETY: as above.
                    || unsafe { store(logits, gradients.at(i * count)) },
                );
            }
        });
    }

    /// Like [`logit_gradients`](Self::logit_gradients), from the exponentials saved by the loss and the logit of each row's target.
    ///
    /// # Safety
    /// Like [`logit_gradients`](Self::logit_gradients); the saved exponentials are those of these rows.
    unsafe fn logit_gradients_from_saved(
        &self,
        rows: &[SupervisedRow],
        (start, count): (usize, usize),
        (saved, picked): (Saved<T>, &[T::Acc]),
        gradients: *mut T,
    ) {
        let (smoothing, total) = (self.input.smoothing, rows.len());
        let (block, gradients) = (start / self.input.block_classes(), Shared::raw(gradients));
        for_rows(total, 4 * count, |range| {
            for i in range {
                let SupervisedRow { row, target } = rows[i];
                let (g, lse) = (self.g[row], self.lse[row]);
                let factor = self.g_lse.map_or(g, |more| g + more[row]);
                let even = g * T::Acc::of(smoothing / self.input.vocab as f64);
                // SAFETY: row i belongs to this task, and the loss saved this block.
                let (max, exps, gradients) = unsafe {
                    let exps = saved.exps.slice(total * start + i * count, count);
                    (
                        *saved.maxima.at(block * total + i),
                        exps,
                        gradients.slice(i * count, count),
                    )
                };
                let share = factor * (max - lse).exp();
                simd(
                    #[inline(always)]
                    || {
                        for (gradient, exp) in gradients.iter_mut().zip(&*exps) {
                            *gradient = T::from_acc(exp.to_acc() * share - even);
                        }
                    },
                );
                if (start..start + count).contains(&target) {
                    // For a probability near 1, 1 - p cancels: it is computed from the logit, not from the rounded
                    // exponential.
                    let rest = (picked[i] - lse).exp() * factor - even - g * T::Acc::of(1.0 - smoothing);
                    gradients[target - start] = T::from_acc(rest);
                }
            }
        });
    }

    fn hidden(&self, d_hidden: &mut [T]) {
        d_hidden.fill(T::default());
        self.input.for_row_blocks(self.rows, BLOCK_ROWS, |_, rows, hidden| {
            with_scratch(rows.len() * self.input.block_classes(), |logits| {
                self.hidden_block(rows, d_hidden, |start, count, gradients| {
                    self.input.logits(hidden, rows.len(), start, count, logits);
                    // SAFETY: guaranteed by the caller.
                    unsafe { self.logit_gradients(rows, start, count, logits, gradients) };
                });
            });
        });
    }

    /// `d_hidden` of a block of rows from the saved exponentials of their logits.
    ///
    /// # Safety
    /// The saved exponentials are those of these rows.
    pub unsafe fn hidden_from_saved(&self, rows: &[SupervisedRow], saved: (Saved<T>, &[T::Acc]), d_hidden: &mut [T]) {
        self.hidden_block(rows, d_hidden, |start, count, gradients| {
            // SAFETY: guaranteed by the caller.
            unsafe { self.logit_gradients_from_saved(rows, (start, count), saved, gradients) };
        });
    }

    /// `d_hidden` of a block of rows; `logit_gradients` writes the gradients of the logits of `count` classes from `start` on,
    /// (rows, count).
    fn hidden_block(
        &self,
        rows: &[SupervisedRow],
        d_hidden: &mut [T],
        mut logit_gradients: impl FnMut(usize, usize, *mut T),
    ) {
        let (input, d, classes, total) = (self.input, self.input.d, self.input.block_classes(), rows.len());
        with_scratch(total * d, |sums: &mut [T::Acc]| {
            sums.fill(T::Acc::ZERO);
            with_space(total * classes, |gradients: *mut T| {
                for start in (0..input.vocab).step_by(classes) {
                    let count = classes.min(input.vocab - start);
                    logit_gradients(start, count, gradients);
                    let (left, right) = (matrix(gradients, count), input.classes(start));
                    let (dims, parallel) = ((total, d, count), input.parallel(total));
                    // SAFETY: gradients are (rows, count), the weight is (count, d), the sums are (rows, d).
                    unsafe { dense_product(dims, T::Acc::ONE, left, right, dense_mut(sums, d), true, parallel) };
                }
            });
            for (row, sums) in rows.iter().zip(sums.chunks_exact(d.max(1))) {
                // SAFETY: the row is in bounds of d_hidden, which is not written elsewhere.
                unsafe { store(sums, d_hidden[row.row * d..][..d].as_mut_ptr()) };
            }
        });
    }

    pub fn weight(&self, d_weight: &mut [T]) {
        let (input, d, classes) = (self.input, self.input.d, self.input.block_classes());
        for start in (0..input.vocab).step_by(classes) {
            let width = classes.min(input.vocab - start);
            with_block(
                width * d,
                BLOCK_ROWS.min(self.rows.len()) * width,
                |sums, logits, gradients| {
                    sums.fill(T::Acc::ZERO);
                    input.for_row_blocks(self.rows, BLOCK_ROWS, |_, rows, hidden| {
                        let count = rows.len();
                        input.logits(hidden, count, start, width, logits);
                        // SAFETY: the block has the size of its logits, the sums are (width, d), hidden is (rows, d).
                        unsafe {
                            self.logit_gradients(rows, start, width, logits, gradients);
                            let (left, dims) = (transposed(matrix(gradients, width)), (width, d, count));
                            let parallel = input.parallel(count);
                            dense_product(dims, T::Acc::ONE, left, hidden, dense_mut(sums, d), true, parallel);
                        }
                    });
                    // SAFETY: both are (width, d).
                    unsafe { store(sums, d_weight[start * d..][..width * d].as_mut_ptr()) };
                },
            );
        }
    }
}

/// A row-major matrix.
fn matrix<T>(ptr: *mut T, cols: usize) -> Mat<*const T> {
    Mat {
        ptr: ptr.cast_const(),
        rows: cols as isize,
        cols: 1,
    }
}

/// Calls `f` with scratch for sums, and for logits with their gradients.
fn with_block<T: Float>(sums: usize, logits: usize, f: impl FnOnce(&mut [T::Acc], &mut [T::Acc], *mut T)) {
    with_scratch(sums + logits, |scratch: &mut [T::Acc]| {
        let (sums, logits_of_block) = scratch.split_at_mut(sums);
        with_space(logits, |gradients: *mut T| f(sums, logits_of_block, gradients));
    });
}
