//! Cross-entropy between logits and token ids, optionally with label smoothing.
//!
//! The mean is over supervised tokens only, and the arithmetic is f32 (f64 for f64 logits) whatever the dtype of the
//! logits. Made of operations that Candle differentiates; token ids are checked on the host first.

use candle_core::{D, DType, Device, Tensor};

use crate::error::{During, Error, Result, TrainingError, shape_text};

const NAME: &str = "cross_entropy_loss";

/// Mean cross-entropy of `logits` `(.., vocab)` with token ids `targets` `(..)`, a scalar:
///
/// ```text
/// loss = mean over supervised i of  ln(sum_j exp(logits[i, j])) - logits[i, targets[i]]
/// ```
///
/// `targets` are u8, u32 or i64. Positions whose target is `ignore_index` are not supervised: they do not count in the
/// mean, and their gradient is zero. Differentiable in the logits.
///
/// # Errors
///
/// If the shapes are incompatible, an id is outside the vocabulary, `targets` are not integers, or no position is supervised.
///
/// # Example
///
/// ```
/// use candle_core::{Device, Tensor};
/// use metal_candle::training::cross_entropy_loss;
///
/// # fn main() -> metal_candle::Result<()> {
/// let logits = Tensor::new(&[[[2f32, 0.0], [0.0, 0.0]]], &Device::Cpu)?; // (batch 1, seq 2, vocab 2)
/// let targets = Tensor::new(&[[0u32, 1]], &Device::Cpu)?;
/// let first = cross_entropy_loss(&logits, &targets, Some(1))?.to_scalar::<f32>()?;
/// assert!((first - (1.0 + (-2f32).exp()).ln()).abs() < 1e-6);
/// # Ok(())
/// # }
/// ```
pub fn cross_entropy_loss(logits: &Tensor, targets: &Tensor, ignore_index: Option<u32>) -> Result<Tensor> {
    cross_entropy_loss_with_smoothing(logits, targets, 0.0, ignore_index)
}

/// [`cross_entropy_loss`] with label smoothing: the share `smoothing` of the target's probability is spread over all
/// classes.
///
/// ```text
/// loss = (1 - smoothing) * cross entropy + smoothing * mean over supervised i, and j, of -ln softmax(logits[i])[j]
/// ```
///
/// # Errors
///
/// As [`cross_entropy_loss`], and if `smoothing` is outside `[0, 1)`.
///
/// # Example
///
/// ```
/// use candle_core::{Device, Tensor};
/// use metal_candle::training::{cross_entropy_loss, cross_entropy_loss_with_smoothing};
///
/// # fn main() -> metal_candle::Result<()> {
/// let logits = Tensor::new(&[[[10f32, 0.0, 0.0]]], &Device::Cpu)?;
/// let targets = Tensor::new(&[[0u32]], &Device::Cpu)?;
/// let sharp = cross_entropy_loss(&logits, &targets, None)?.to_scalar::<f32>()?;
/// let smooth = cross_entropy_loss_with_smoothing(&logits, &targets, 0.1, None)?.to_scalar::<f32>()?;
/// assert!(smooth > sharp);
/// # Ok(())
/// # }
/// ```
pub fn cross_entropy_loss_with_smoothing(
    logits: &Tensor,
    targets: &Tensor,
    smoothing: f32,
    ignore_index: Option<u32>,
) -> Result<Tensor> {
    if !(0.0..1.0).contains(&smoothing) {
        return Err(TrainingError::config(format!(
            "label smoothing is {smoothing}, it must be at least 0 and below 1"
        )));
    }
    let vocab = check_shapes(logits, targets)?;
    let supervised = Supervised::read(targets, vocab, ignore_index)?;
    smoothed_mean(logits, vocab, &supervised, f64::from(smoothing)).during(format_args!(
        "{NAME}: logits {} against targets {}",
        shape_text(logits.dims()),
        shape_text(targets.dims())
    ))
}

/// Checks that `logits` `(.., vocab)` match `targets` `(..)`; returns the vocabulary size.
fn check_shapes(logits: &Tensor, targets: &Tensor) -> Result<usize> {
    match logits.dims().split_last() {
        Some((&vocab, positions)) if positions == targets.dims() => Ok(vocab),
        _ => Err(Error::invalid_input(
            NAME,
            format!(
                "logits {} do not fit targets {}: logits must be (.., vocab) and targets the same (..), \
                 for example (batch, seq, vocab) and (batch, seq)",
                shape_text(logits.dims()),
                shape_text(targets.dims())
            ),
        )),
    }
}

/// The supervised positions, as rows of the flattened logits, and their target ids.
struct Supervised {
    rows: Vec<u32>,
    ids: Vec<u32>,
    positions: usize,
}

impl Supervised {
    /// Reads `targets` on the host; checks that every supervised id is below `vocab`.
    fn read(targets: &Tensor, vocab: usize, ignore_index: Option<u32>) -> Result<Self> {
        if !targets.dtype().is_int() {
            return Err(Error::invalid_input(
                NAME,
                format!("targets are {:?}, token ids must be u8, u32 or i64", targets.dtype()),
            ));
        }
        let values = targets
            .to_device(&Device::Cpu)
            .and_then(|t| t.flatten_all()?.to_dtype(DType::I64)?.to_vec1::<i64>())
            .during(format_args!("{NAME}: reading targets {}", shape_text(targets.dims())))?;
        let mut supervised = Self {
            rows: Vec::with_capacity(values.len()),
            ids: Vec::with_capacity(values.len()),
            positions: values.len(),
        };
        for (row, &id) in values.iter().enumerate() {
            if ignore_index.map(i64::from) == Some(id) {
                continue;
            }
            supervised.ids.push(token_id(id, row, vocab)?);
            supervised.rows.push(row as u32);
        }
        if supervised.rows.is_empty() {
            return Err(Error::invalid_input(
                NAME,
                format!(
                    "no supervised token among {} targets, there is nothing to average",
                    values.len()
                ),
            ));
        }
        Ok(supervised)
    }
}

/// `id` as an index, if it is valid.
fn token_id(id: i64, position: usize, vocab: usize) -> Result<u32> {
    u32::try_from(id)
        .ok()
        .filter(|&id| (id as usize) < vocab)
        .ok_or_else(|| {
            Error::invalid_input(
                NAME,
                format!("target {id} at position {position} is outside the vocabulary of {vocab} tokens"),
            )
        })
}

/// `mean_i [ ln(sum_j exp(x_ij)) - (1 - s) * x_it - s * mean_j x_ij ]` with t the target of i: the smoothed loss with
/// `-ln softmax(x_i)[j] = ln(sum_k exp(x_ik)) - x_ij` expanded, so that log probabilities are not materialised.
fn smoothed_mean(logits: &Tensor, vocab: usize, supervised: &Supervised, s: f64) -> candle_core::Result<Tensor> {
    let device = logits.device();
    let count = supervised.rows.len();
    let mut x = logits.reshape((supervised.positions, vocab))?;
    if count < supervised.positions {
        // Selecting rows, unlike multiplying by zero, also excludes their NaN or Inf.
        x = x.index_select(&Tensor::from_slice(&supervised.rows, count, device)?, 0)?;
    }
    if x.dtype() != DType::F64 {
        x = x.to_dtype(DType::F32)?;
    }
    // Shifted so that exp cannot overflow; the loss is invariant under the shift, which therefore needs no gradient.
    let x = x.broadcast_sub(&x.max_keepdim(D::Minus1)?.detach())?;
    let ids = Tensor::from_slice(&supervised.ids, (count, 1), device)?;
    let target = x.gather(&ids, 1)?;
    let predicted = if s == 0.0 {
        target
    } else {
        ((target * (1.0 - s))? + (x.mean_keepdim(D::Minus1)? * s)?)?
    };
    (x.exp()?.sum_keepdim(D::Minus1)?.log()? - predicted)?.mean_all()
}
