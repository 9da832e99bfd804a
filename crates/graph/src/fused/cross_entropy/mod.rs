//! Cross-entropy of a linear head without materialising all logits: `logits = hidden weight^T`, `hidden (n, d)`,
//! `weight (vocab, d)`, `targets (n)`; per row `loss = (1 - e) (lse - logits[target]) + e (lse - mean(logits))` with
//! label smoothing `e`. Outputs: loss `(n)` and lse `(n)`; both are 0 for the ignored target.

use super::accumulate;
use crate::error::Result;
use crate::graph::CrossEntropyOptions;
use crate::lazy_tensor::LazyTensor;

/// The definition in primitives.
///
/// # Errors
/// When the shapes are incompatible.
pub fn fallback(
    hidden: &LazyTensor,
    weight: &LazyTensor,
    targets: &LazyTensor,
    options: &CrossEntropyOptions,
) -> Result<Vec<LazyTensor>> {
    let rows = hidden.dims()[0];
    let logits = accumulate(hidden)?.matmul_t(&accumulate(weight)?)?;
    let top = logits.max_keepdim(&[1])?.stop_gradient()?;
    let lse = logits.sub(&top)?.exp()?.sum_keepdim(&[1])?.log()?.add(&top)?;
    let ignored = targets.equal(&targets.scalar_like(options.ignore_index as f64)?)?;
    let safe = ignored.where_cond(&targets.scalar_like(0.0)?, targets)?;
    let picked = logits.gather(1, &safe.unsqueeze(1)?)?;
    let mut loss = lse.sub(&picked)?;
    if options.label_smoothing > 0.0 {
        let spread = lse.sub(&logits.mean_keepdim(&[1])?)?;
        let share = f64::from(options.label_smoothing);
        loss = loss
            .mul(&loss.scalar_like(1.0 - share)?)?
            .add(&spread.mul(&spread.scalar_like(share)?)?)?;
    }
    let zero = loss.scalar_like(0.0)?;
    let kept = |x: &LazyTensor| ignored.where_cond(&zero, &x.reshape(&[rows])?);
    Ok(vec![kept(&loss)?, kept(&lse)?])
}
