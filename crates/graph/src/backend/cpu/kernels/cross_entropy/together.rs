//! Loss and gradient in one pass: the logits of a block of rows are computed once, and their exponentials saved for the
//! gradient.

use super::super::error::KernelError;
use super::super::float::{Float, Real};
use super::super::par::{Shared, with_scratch, with_space};
use super::super::scratch::Filled;
use super::super::tuning::cross_entropy::{LEAST_ROWS, SAVED_BYTES};
use super::backward::Vjp;
use super::{BLOCK_ROWS, CrossEntropy, Partial, Saved, finish_rows, scan};

/// [`cross_entropy`](super::cross_entropy) and [`cross_entropy_vjp`](super::cross_entropy_vjp) together.
///
/// # Errors
/// If a target is outside the vocabulary and not `ignore_index`.
///
/// # Panics
/// If the sizes are inconsistent.
pub fn cross_entropy_and_vjp<T: Float>(
    input: &CrossEntropy<'_, T>,
    g: &[T::Acc],
    g_lse: Option<&[T::Acc]>,
    (loss, lse): (&mut [T::Acc], &mut [T::Acc]),
    d_hidden: &mut [T],
    d_weight: Option<&mut [T]>,
) -> Result<(), KernelError> {
    let rows = input.rows()?;
    let n = input.targets.len();
    let sizes = [loss.len(), lse.len(), g.len(), g_lse.map_or(n, <[_]>::len)];
    assert_eq!(
        sizes, [n; 4],
        "cross_entropy: an output or a gradient has the wrong size"
    );
    assert_eq!(
        d_hidden.len(),
        input.hidden.len(),
        "cross_entropy: d_hidden has the wrong size"
    );
    loss.fill(T::Acc::ZERO);
    lse.fill(T::Acc::ZERO);
    d_hidden.fill(T::default());
    let most = rows_of_block::<T>(rows.len(), input.vocab);
    input.for_row_blocks(&rows, most, |_, rows, hidden| {
        let mut found = Filled::new(rows.len(), Partial::NONE);
        let mut picked = Filled::new(rows.len(), T::Acc::ZERO);
        let blocks = input.vocab.div_ceil(input.block_classes());
        with_space(rows.len() * input.vocab, |exps: *mut T| {
            with_scratch(rows.len() * blocks, |maxima| {
                let saved = Saved {
                    exps: Shared::raw(exps),
                    maxima: Shared::new(maxima),
                };
                scan(input, rows, hidden, Some(saved), &mut found, &mut picked);
                finish_rows(input, rows, &found, &picked, loss, lse);
                let vjp = Vjp {
                    input,
                    rows,
                    lse,
                    g,
                    g_lse,
                };
                // SAFETY: `scan` has just saved them.
                unsafe { vjp.hidden_from_saved(rows, (saved, &picked), d_hidden) };
            });
        });
    });
    if let Some(d_weight) = d_weight {
        assert_eq!(
            d_weight.len(),
            input.weight.len(),
            "cross_entropy: d_weight has the wrong size"
        );
        let rows = &rows;
        Vjp {
            input,
            rows,
            lse,
            g,
            g_lse,
        }
        .weight(d_weight);
    }
    Ok(())
}

/// Rows per block, such that blocks have about equal sizes.
fn rows_of_block<T: Float>(rows: usize, vocab: usize) -> usize {
    let most = (SAVED_BYTES / (vocab * size_of::<T>()).max(1)).clamp(LEAST_ROWS, BLOCK_ROWS);
    rows.div_ceil(rows.div_ceil(most).max(1)).max(1)
}
