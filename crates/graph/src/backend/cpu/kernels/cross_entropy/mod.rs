//! Cross-entropy of a linear head, `logits = hidden @ weight^T`, by blocks of rows and vocabulary.
//!
//! Only one block of logits is materialised at a time. The gradient alone recomputes them; computed together with the
//! loss it reuses what the loss saved. Rows whose target is the ignored index take no part in any product.

mod backward;
#[cfg(test)]
mod tests;
mod together;

pub use backward::cross_entropy_vjp;
pub use together::cross_entropy_and_vjp;

use super::error::KernelError;
use super::float::{Float, Mat, Real};
use super::float::{dense_mut, transposed};
use super::matmul::dense_product;
use super::par::{Shared, for_rows, max_nan, max1, simd, store, sum1, with_scratch, with_space};
use super::scratch::Filled;
use super::tuning::cross_entropy::EXP_WORK;
use super::tuning::loops::PARALLEL_WORK;

/// Rows per block.
const BLOCK_ROWS: usize = 256;
/// Classes per block: its logits fit in the L2 cache.
const BLOCK_CLASSES: usize = 768;

/// The inputs of a cross-entropy: row i is `hidden[i]` (of (n, d)) with target class `targets[i]` (of n), and `weight`
/// is (vocab, d), all contiguous.
#[derive(Clone, Copy, Debug)]
pub struct CrossEntropy<'a, T> {
    /// (n, d)
    pub hidden: &'a [T],
    /// (vocab, d)
    pub weight: &'a [T],
    /// (n)
    pub targets: &'a [i64],
    /// Hidden size.
    pub d: usize,
    /// Number of classes.
    pub vocab: usize,
    /// Rows with this target have loss 0 and no gradient.
    pub ignore_index: i64,
    /// Label smoothing: share of the target's probability that is spread over all classes.
    pub smoothing: f64,
}

/// A row that is not ignored, and its target class.
#[derive(Clone, Copy)]
struct SupervisedRow {
    row: usize,
    target: usize,
}

/// Checks a row's target and returns its class.
fn class(row: usize, target: i64, vocab: usize) -> Result<usize, KernelError> {
    let class = usize::try_from(target).ok().filter(|&class| class < vocab);
    class.ok_or(KernelError::Target { row, target, vocab })
}

/// Checks that every target is a class of the vocabulary or the ignored index.
///
/// # Errors
/// If one is not.
pub fn check_targets(targets: &[i64], vocab: usize, ignore_index: i64) -> Result<(), KernelError> {
    let mut counted = targets
        .iter()
        .enumerate()
        .filter(|(_, target)| **target != ignore_index);
    counted.try_for_each(|(row, &target)| class(row, target, vocab).map(drop))
}

impl<T: Float> CrossEntropy<'_, T> {
    /// The rows that are not ignored.
    fn rows(&self) -> Result<Filled<SupervisedRow>, KernelError> {
        assert_eq!(
            self.hidden.len(),
            self.targets.len() * self.d,
            "cross_entropy: hidden has the wrong size"
        );
        assert_eq!(
            self.weight.len(),
            self.vocab * self.d,
            "cross_entropy: the weight has the wrong size"
        );
        let targets = self.targets.iter().enumerate();
        let counted = targets.filter(|&(_, &target)| target != self.ignore_index);
        let class =
            |(row, &target): (usize, &i64)| class(row, target, self.vocab).map(|target| SupervisedRow { row, target });
        let mut rows = Filled::new(self.targets.len(), SupervisedRow { row: 0, target: 0 });
        let mut count = 0;
        for (place, found) in rows.iter_mut().zip(counted.map(class)) {
            *place = found?;
            count += 1;
        }
        rows.truncate(count);
        Ok(rows)
    }

    /// Whether a call is large enough for several threads.
    fn parallel(&self, rows: usize) -> bool {
        rows * self.vocab * self.d >= PARALLEL_WORK
    }

    /// For each block of at most `most` rows, calls `f` with its first index, its rows and its hidden states, (rows,
    /// d).
    fn for_row_blocks(
        &self,
        rows: &[SupervisedRow],
        most: usize,
        mut f: impl FnMut(usize, &[SupervisedRow], Mat<*const T>),
    ) {
        for (number, block) in rows.chunks(most).enumerate() {
            let (first, last) = (block[0].row, block[block.len() - 1].row);
            let mat = |ptr: *const T| Mat {
                ptr,
                rows: self.d as isize,
                cols: 1,
            };
            if last - first + 1 == block.len() {
                f(number * most, block, mat(self.hidden[first * self.d..].as_ptr()));
                continue;
            }
            with_space(block.len() * self.d, |gathered: *mut T| {
                for (i, row) in block.iter().enumerate() {
                    let from = self.hidden[row.row * self.d..][..self.d].as_ptr();
                    // SAFETY: the scratch space has capacity for every row of the block.
                    unsafe { std::ptr::copy_nonoverlapping(from, gathered.add(i * self.d), self.d) };
                }
                f(number * most, block, mat(gathered));
            });
        }
    }

    /// Classes per block.
    fn block_classes(&self) -> usize {
        BLOCK_CLASSES.min(self.vocab)
    }

    /// The weight rows of the classes from `start` on, (classes, d).
    fn classes(&self, start: usize) -> Mat<*const T> {
        Mat {
            ptr: self.weight[start * self.d..].as_ptr(),
            rows: self.d as isize,
            cols: 1,
        }
    }

    /// logits = hidden @ classes^T, (rows, count).
    fn logits(&self, hidden: Mat<*const T>, rows: usize, start: usize, count: usize, logits: &mut [T::Acc]) {
        assert!(logits.len() >= rows * count && start + count <= self.vocab);
        let (one, right) = (T::Acc::ONE, transposed(self.classes(start)));
        let parallel = self.parallel(rows);
        // SAFETY: hidden is (rows, d); the classes are inside the weight, and the logits have the capacity.
        unsafe {
            dense_product(
                (rows, count, self.d),
                one,
                hidden,
                right,
                dense_mut(logits, count),
                false,
                parallel,
            );
        };
    }
}

/// Partial statistics of a row over some classes, as in an online softmax.
#[derive(Clone, Copy)]
struct Partial<A> {
    max: A,
    /// Sum of exp(logit - max).
    exps: A,
    logits: A,
}

impl<A: Real> Partial<A> {
    const NONE: Self = Self {
        max: A::NEG_INFINITY,
        exps: A::ZERO,
        logits: A::ZERO,
    };

    /// Merges the statistics of disjoint classes.
    fn merge(self, other: Self) -> Self {
        let max = max_nan(self.max, other.max);
        let shrunk = |part: Self| {
            if part.max == A::NEG_INFINITY {
                part.exps
            } else {
                part.exps * (part.max - max).exp()
            }
        };
        Self {
            max,
            exps: shrunk(self) + shrunk(other),
            logits: self.logits + other.logits,
        }
    }
}

/// Writes loss (n) and lse (n), the log-sum-exp of the row's logits; both 0 in ignored rows.
///
/// With label smoothing e: `loss = (1 - e) * (lse - logit[target]) + e * (lse - mean(logits))`.
///
/// # Errors
/// If a target is outside the vocabulary and not `ignore_index`.
///
/// # Panics
/// If the sizes are inconsistent.
pub fn cross_entropy<T: Float>(
    input: &CrossEntropy<'_, T>,
    loss: &mut [T::Acc],
    lse: &mut [T::Acc],
) -> Result<(), KernelError> {
    let rows = input.rows()?;
    assert_eq!(
        [loss.len(), lse.len()],
        [input.targets.len(); 2],
        "cross_entropy: an output has the wrong size"
    );
    loss.fill(T::Acc::ZERO);
    lse.fill(T::Acc::ZERO);
    let mut found = Filled::new(rows.len(), Partial::NONE);
    let mut picked = Filled::new(rows.len(), T::Acc::ZERO);
    input.for_row_blocks(&rows, BLOCK_ROWS, |first, rows, hidden| {
        let (found, picked) = (&mut found[first..], &mut picked[first..]);
        scan(input, rows, hidden, None, found, picked);
    });
    finish_rows(input, &rows, &found, &picked, loss, lse);
    Ok(())
}

/// Loss and log-sum-exp of rows from their statistics over all classes.
fn finish_rows<T: Float>(
    input: &CrossEntropy<'_, T>,
    rows: &[SupervisedRow],
    found: &[Partial<T::Acc>],
    picked: &[T::Acc],
    loss: &mut [T::Acc],
    lse: &mut [T::Acc],
) {
    for ((row, found), &picked) in rows.iter().zip(found).zip(picked) {
        let total = found.max + found.exps.ln();
        let mut value = total - picked;
        if input.smoothing > 0.0 {
            let spread = total - found.logits / T::Acc::of(input.vocab as f64);
            value = value * T::Acc::of(1.0 - input.smoothing) + spread * T::Acc::of(input.smoothing);
        }
        (loss[row.row], lse[row.row]) = (value, total);
    }
}

/// The exponentials saved for a block of rows; blocks of classes are stored one after the other.
#[derive(Clone, Copy)]
struct Saved<T: Float> {
    /// exp(logit - max), rounded: (rows, classes) of each block of classes.
    exps: Shared<T>,
    /// The largest logit of each row in each block of classes.
    maxima: Shared<T::Acc>,
}

/// The statistics of each row of a block over all classes, and the logit of its target.
fn scan<T: Float>(
    input: &CrossEntropy<'_, T>,
    rows: &[SupervisedRow],
    hidden: Mat<*const T>,
    saved: Option<Saved<T>>,
    found: &mut [Partial<T::Acc>],
    picked: &mut [T::Acc],
) {
    let (classes, total) = (input.block_classes(), rows.len());
    let (found, picked) = (Shared::new(found), Shared::new(picked));
    with_scratch(total * classes, |logits: &mut [T::Acc]| {
        for (block, start) in (0..input.vocab).step_by(classes).enumerate() {
            let count = classes.min(input.vocab - start);
            input.logits(hidden, total, start, count, logits);
            let logits = Shared::new(logits);
            for_rows(total, EXP_WORK * count, |range| {
                for i in range {
                    // SAFETY: row i belongs to this task.
                    unsafe {
                        let logits = logits.slice(i * count, count);
                        if (start..start + count).contains(&rows[i].target) {
                            *picked.at(i) = logits[rows[i].target - start];
                        }
                        let part = summarise(logits, input.smoothing > 0.0);
                        *found.at(i) = (*found.at(i)).merge(part);
                        if let Some(saved) = saved {
                            *saved.maxima.at(block * total + i) = part.max;
                            let exps = saved.exps.at(total * start + i * count);
                            simd(
                                #[inline(always)]
                                || store(logits, exps),
                            );
                        }
                    }
                }
            });
        }
    });
}

/// The statistics of some logits; each logit is replaced by exp(logit - max).
fn summarise<A: Real>(logits: &mut [A], sum: bool) -> Partial<A> {
    simd(
        #[inline(always)]
        || {
            let max = max1(logits, |x| x);
            let sum = if sum { sum1(logits, |x| x) } else { A::ZERO };
            if max == A::NEG_INFINITY {
                logits.fill(A::ZERO);
            } else {
                for x in &mut *logits {
                    *x = (*x - max).exp_below();
                }
            }
            Partial {
                max,
                exps: sum1(logits, |x| x),
                logits: sum,
            }
        },
    )
}
