//! Cross-entropy of a linear head, `logits = hidden @ weight^T`, by blocks of rows and vocabulary.
//!
//! No more than a block of logits exists at a time; the gradient computes them again. Rows whose target is the ignored
//! index are left out of all products.

mod backward;
#[cfg(test)]
mod tests;

pub use backward::cross_entropy_vjp;

use super::error::KernelError;
use super::float::{Float, Mat, Real};
use super::matmul::dense_product;
use super::par::{PARALLEL_WORK, Shared, for_pieces, load, max1, simd, sum1, widen, with_scratch};

/// Rows of a block.
const BLOCK_ROWS: usize = 128;

/// The inputs of a cross-entropy: row i is `hidden[i]` (of (n, d)) against class `targets[i]` (of n), with `weight`
/// (vocab, d), all contiguous.
#[derive(Clone, Copy, Debug)]
pub struct CrossEntropy<'a, T> {
    /// (n, d)
    pub hidden: &'a [T],
    /// (vocab, d)
    pub weight: &'a [T],
    /// (n)
    pub targets: &'a [i64],
    /// Channels.
    pub d: usize,
    /// Classes.
    pub vocab: usize,
    /// Rows with this target have loss 0 and no gradient.
    pub ignore_index: i64,
    /// Share of the target's probability that is spread over all classes.
    pub smoothing: f64,
}

/// A row that counts, and its class.
#[derive(Clone, Copy)]
struct Row {
    row: usize,
    target: usize,
}

impl<T: Float> CrossEntropy<'_, T> {
    /// The rows that count.
    fn rows(&self) -> Result<Vec<Row>, KernelError> {
        assert_eq!(
            self.hidden.len(),
            self.targets.len() * self.d,
            "cross_entropy: hidden has another size"
        );
        assert_eq!(
            self.weight.len(),
            self.vocab * self.d,
            "cross_entropy: the weight has another size"
        );
        let counted = self
            .targets
            .iter()
            .enumerate()
            .filter(|&(_, &target)| target != self.ignore_index);
        let class = |(row, &target): (usize, &i64)| match usize::try_from(target) {
            Ok(class) if class < self.vocab => Ok(Row { row, target: class }),
            _ => Err(KernelError::Target {
                row,
                target,
                vocab: self.vocab,
            }),
        };
        counted.map(class).collect()
    }

    /// Classes of a block: as many rows of the weight as fit the second-level cache.
    fn block_classes(&self) -> usize {
        ((1 << 19) / self.d.max(1)).clamp(64, 2048)
    }

    /// True where a call is worth several threads.
    fn parallel(&self, rows: usize) -> bool {
        rows * self.vocab * self.d >= PARALLEL_WORK
    }

    /// Elements of scratch for a block of the weight.
    fn weight_scratch(&self) -> usize {
        if T::IS_ACC { 0 } else { self.block_classes() * self.d }
    }

    /// Gathers the hidden rows of a block into (rows, d).
    fn gather(&self, rows: &[Row], into: &mut [T::Acc]) {
        for (row, into) in rows.iter().zip(into.chunks_exact_mut(self.d.max(1))) {
            // SAFETY: the slice is as long as `into`.
            unsafe { load(self.hidden[row.row * self.d..][..self.d].as_ptr(), into) };
        }
    }

    /// The classes from `start` on, (classes, d): where they lie, or widened into scratch.
    fn classes(&self, start: usize, classes: usize, scratch: &mut [T::Acc]) -> Mat<*const T::Acc> {
        let block = &self.weight[start * self.d..][..classes * self.d];
        let mat = Mat {
            ptr: block.as_ptr(),
            rows: self.d as isize,
            cols: 1,
        };
        if T::IS_ACC {
            return mat.cast();
        }
        // SAFETY: the block is (classes, d), contiguous.
        unsafe { widen(mat, (classes, self.d), scratch) }
    }

    /// logits = hidden @ classes^T, (rows, classes).
    ///
    /// # Safety
    /// `classes` is (count, d), `hidden` (rows, d), and `logits` holds (rows, count).
    unsafe fn logits(
        &self,
        (rows, count): (usize, usize),
        hidden: &[T::Acc],
        classes: Mat<*const T::Acc>,
        logits: &mut [T::Acc],
        parallel: bool,
    ) {
        let hidden = Mat {
            ptr: hidden.as_ptr(),
            rows: self.d as isize,
            cols: 1,
        };
        let classes = Mat {
            ptr: classes.ptr,
            rows: classes.cols,
            cols: classes.rows,
        };
        let logits = Mat {
            ptr: logits.as_mut_ptr(),
            rows: count as isize,
            cols: 1,
        };
        // SAFETY: the caller's promise.
        unsafe {
            dense_product(
                (rows, count, self.d),
                T::Acc::ONE,
                hidden,
                classes,
                logits,
                false,
                parallel,
            );
        };
    }
}

/// What a block of classes says of a row.
#[derive(Clone, Copy)]
struct Partial<A> {
    max: A,
    /// Sum of exp(logit - max).
    exps: A,
    logits: A,
}

/// Writes loss (n) and lse (n), the log-sum-exp of the row's logits; both 0 in ignored rows.
///
/// With label smoothing e: `loss = (1 - e) * (lse - logit[target]) + e * (lse - mean(logits))`.
///
/// # Errors
/// If a target is outside the vocabulary and not `ignore_index`.
///
/// # Panics
/// If the sizes do not fit.
pub fn cross_entropy<T: Float>(
    input: &CrossEntropy<'_, T>,
    loss: &mut [T::Acc],
    lse: &mut [T::Acc],
) -> Result<(), KernelError> {
    let rows = input.rows()?;
    assert_eq!(
        [loss.len(), lse.len()],
        [input.targets.len(); 2],
        "cross_entropy: an output has another size"
    );
    loss.fill(T::Acc::ZERO);
    lse.fill(T::Acc::ZERO);
    let blocks = input.vocab.div_ceil(input.block_classes());
    let (partials, picked) = scan(input, &rows, blocks);
    for (i, row) in rows.iter().enumerate() {
        let (total, sum) = combine(&partials[i * blocks..][..blocks]);
        let mut value = total - picked[i];
        if input.smoothing > 0.0 {
            let spread = total - sum / T::Acc::of(input.vocab as f64);
            value = value * T::Acc::of(1.0 - input.smoothing) + spread * T::Acc::of(input.smoothing);
        }
        (loss[row.row], lse[row.row]) = (value, total);
    }
    Ok(())
}

/// For each counted row the partial results of each block of classes, and the logit of its target.
fn scan<T: Float>(input: &CrossEntropy<'_, T>, rows: &[Row], blocks: usize) -> (Vec<Partial<T::Acc>>, Vec<T::Acc>) {
    let (d, classes) = (input.d, input.block_classes());
    let empty = Partial {
        max: T::Acc::NEG_INFINITY,
        exps: T::Acc::ZERO,
        logits: T::Acc::ZERO,
    };
    let mut partials = vec![empty; rows.len() * blocks];
    let mut picked = vec![T::Acc::ZERO; rows.len()];
    let (out, pick) = (Shared::new(&mut partials), Shared::new(&mut picked));
    let lengths = BLOCK_ROWS * d + BLOCK_ROWS * classes;
    for_pieces(
        rows.len().div_ceil(BLOCK_ROWS) * blocks,
        1,
        input.parallel(rows.len()),
        |task, _| {
            let (first, block) = (task / blocks * BLOCK_ROWS, task % blocks);
            let rows = &rows[first..rows.len().min(first + BLOCK_ROWS)];
            let start = block * classes;
            let count = classes.min(input.vocab - start);
            with_scratch(lengths + input.weight_scratch(), |scratch| {
                let (hidden, rest) = scratch.split_at_mut(BLOCK_ROWS * d);
                let (logits, wide) = rest.split_at_mut(BLOCK_ROWS * classes);
                input.gather(rows, hidden);
                let weight = input.classes(start, count, wide);
                // SAFETY: the scratch is as large as the block.
                unsafe { input.logits((rows.len(), count), hidden, weight, logits, false) };
                for (i, (row, logits)) in rows.iter().zip(logits.chunks_exact_mut(count)).enumerate() {
                    // SAFETY: this row and block belong to this task, and the target is in one block.
                    unsafe {
                        if (start..start + count).contains(&row.target) {
                            *pick.at(first + i) = logits[row.target - start];
                        }
                        *out.at((first + i) * blocks + block) = summarise(logits);
                    }
                }
            });
        },
    );
    (partials, picked)
}

fn summarise<A: Real>(logits: &mut [A]) -> Partial<A> {
    simd(
        #[inline(always)]
        || {
            let max = max1(logits, |x| x);
            let sum = sum1(logits, |x| x);
            if max == A::NEG_INFINITY {
                return Partial {
                    max,
                    exps: A::ZERO,
                    logits: sum,
                };
            }
            for x in &mut *logits {
                *x = (*x - max).exp();
            }
            Partial {
                max,
                exps: sum1(logits, |x| x),
                logits: sum,
            }
        },
    )
}

/// Log-sum-exp and sum of a row's logits.
fn combine<A: Real>(partials: &[Partial<A>]) -> (A, A) {
    let max = max1(partials, |p| p.max);
    let exps = sum1(partials, |p: Partial<A>| p.exps * (p.max - max).exp());
    (max + exps.ln(), sum1(partials, |p| p.logits))
}
