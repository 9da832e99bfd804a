//! Pre-trains the demonstration's base model with this project's own engine: every weight of a small Qwen2, on the
//! generated corpus, from a seeded start.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use metal_candle::data::{IGNORED, permutation};
use metal_candle::graph::{AdamWOptions, CrossEntropyOptions, Error, LazyTensor};
use metal_candle::models::{ModelConfig, from_recorded, random_parameters};
use metal_candle::nn::Pass;
use metal_candle::text::Tokenizer;
use metal_candle::training::{Schedule, Stepper};
use metal_candle_graph::io::safetensors;
use miette::{IntoDiagnostic, Result};

use super::corpus;

/// Documents of a step, one a row.
const ROWS: usize = 16;
/// Longest row in tokens.
const MAX_LENGTH: usize = 256;
/// Documents that are sorted by length before they are cut into batches, so that a batch has little padding.
const WINDOW: usize = 64 * ROWS;
/// Of the matrices at the start.
const DEVIATION: f32 = 0.05;
const LEARNING_RATE: f64 = 1e-3;
/// Share of the steps that is warm-up.
const WARMUP: f64 = 0.02;
/// The learning rate at the end, as a share of the peak.
const FLOOR: f64 = 0.05;
const OPTIMIZER: AdamWOptions = AdamWOptions {
    beta1: 0.9,
    beta2: 0.98,
    eps: 1e-8,
    weight_decay: 0.01,
};

/// Trains for `steps` optimizer steps and writes `model.safetensors` in bf16 into the model folder.
///
/// # Errors
///
/// A folder without settings or tokenizer, or a file that cannot be written.
pub fn pretrain(folder: &Path, seed: u64, documents: usize, steps: usize) -> Result<()> {
    let config = ModelConfig::read(folder).into_diagnostic()?;
    let tokenizer = Tokenizer::from_folder(folder).into_diagnostic()?;
    let documents = tokenised(&tokenizer, seed, documents)?;
    println!("{} documents, {steps} steps of {ROWS}", documents.len());
    let initial = random_parameters(&config, DEVIATION, DType::F32, seed, &Device::Cpu).into_diagnostic()?;
    let (names, parameters): (Vec<String>, Vec<LazyTensor>) = initial.into_iter().unzip();
    let warmup = (steps as f64 * WARMUP).ceil() as usize;
    let of_loss = (config, names.clone());
    let loss = move |parameters: &[LazyTensor], batch: &[LazyTensor]| summed_loss(&of_loss, parameters, batch);
    let mut stepper = Stepper::new(parameters, OPTIMIZER, loss).into_diagnostic()?;

    let start = Instant::now();
    let (mut average, mut tokens) = (f64::NAN, 0);
    let mut epoch = Vec::new();
    for step in 0..steps {
        let per_epoch = documents.len() / ROWS;
        if step % per_epoch == 0 {
            epoch = batches(&documents, seed, (step / per_epoch) as u64);
        }
        let (batch, targets) = batch(&documents, &epoch[step % per_epoch]).into_diagnostic()?;
        let factor = FLOOR + (1.0 - FLOOR) * Schedule::Cosine.factor(step, warmup, steps);
        let outcome = stepper
            .step(&[batch], targets, LEARNING_RATE * factor, 1.0)
            .into_diagnostic()?;
        tokens += targets;
        average = if average.is_nan() {
            outcome.loss
        } else {
            0.98 * average + 0.02 * outcome.loss
        };
        if step % 50 == 0 || step + 1 == steps {
            let seconds = start.elapsed().as_secs_f64();
            println!("step {step} of {steps}: loss {average:.3}, {tokens} tokens, {seconds:.0} s");
        }
        if step % 500 == 499 || step + 1 == steps {
            save(folder, &names, stepper.parameters(), seed, step + 1, average)?;
        }
    }
    Ok(())
}

/// Each document with an end-of-text token after it.
fn tokenised(tokenizer: &Tokenizer, seed: u64, documents: usize) -> Result<Vec<Vec<u32>>> {
    let end = tokenizer.token_id(super::tokenizer::END_OF_TEXT).unwrap_or_default();
    let tokens = |text: String| {
        let mut tokens = tokenizer.encode(&text, false).into_diagnostic()?;
        tokens.push(end);
        tokens.truncate(MAX_LENGTH);
        Ok(tokens)
    };
    corpus(seed, documents).into_iter().map(tokens).collect()
}

/// The documents of each batch of an epoch: windows of a seeded order, sorted by length, their batches in a seeded order.
fn batches(documents: &[Vec<u32>], seed: u64, epoch: u64) -> Vec<Vec<usize>> {
    let mut order = permutation(documents.len(), seed, epoch);
    order
        .chunks_mut(WINDOW)
        .for_each(|window| window.sort_by_key(|&document| documents[document].len()));
    let batches: Vec<Vec<usize>> = order.chunks_exact(ROWS).map(<[usize]>::to_vec).collect();
    permutation(batches.len(), seed, epoch + (1 << 32))
        .into_iter()
        .map(|batch| batches[batch].clone())
        .collect()
}

/// Tokens and targets, padded to the longest document of the batch, and the number of targets.
fn batch(documents: &[Vec<u32>], picked: &[usize]) -> metal_candle::graph::Result<(Vec<LazyTensor>, usize)> {
    let longest = picked
        .iter()
        .map(|&document| documents[document].len())
        .max()
        .unwrap_or(1);
    let length = longest.next_multiple_of(8);
    let (mut tokens, mut targets) = (vec![0u32; ROWS * length], vec![IGNORED; ROWS * length]);
    for (row, &document) in picked.iter().enumerate() {
        let document = &documents[document];
        tokens[row * length..][..document.len()].copy_from_slice(document);
        for (target, &next) in targets[row * length..].iter_mut().zip(&document[1..]) {
            *target = i64::from(next);
        }
    }
    let count = targets.iter().filter(|target| **target != IGNORED).count();
    let batch = vec![
        LazyTensor::from_data(&tokens, &[ROWS, length], &Device::Cpu)?,
        LazyTensor::from_data(&targets, &[ROWS * length], &Device::Cpu)?,
    ];
    Ok((batch, count))
}

fn summed_loss(
    (config, names): &(ModelConfig, Vec<String>),
    parameters: &[LazyTensor],
    batch: &[LazyTensor],
) -> metal_candle::graph::Result<LazyTensor> {
    let named = names.iter().cloned().zip(parameters.iter().cloned());
    let model = from_recorded(config, named).map_err(|error| Error::Shape {
        operation: "pretrain",
        message: error.to_string(),
    })?;
    let length = batch[0].dims()[1];
    let hidden = model.hidden(&batch[0], &mut Pass::from_start(length, &Device::Cpu)?)?;
    let hidden = hidden.reshape(&[ROWS * length, config.hidden_size])?;
    hidden
        .cross_entropy(model.head(), &batch[1], CrossEntropyOptions::default())?
        .sum_all()
}

fn save(folder: &Path, names: &[String], parameters: &[LazyTensor], seed: u64, steps: usize, loss: f64) -> Result<()> {
    let mut tensors: Vec<(String, Tensor)> = Vec::with_capacity(names.len());
    for (name, parameter) in names.iter().zip(parameters) {
        tensors.push((
            name.clone(),
            parameter.cast(DType::BF16).and_then(|t| t.eval()).into_diagnostic()?,
        ));
    }
    let note = format!(
        "A small base model pre-trained by `cargo xtask demo build` (metal-candle's own engine) on text generated by \
         the seeded program in xtask/src/demo: seed {seed}, {steps} steps of {ROWS} documents, loss {loss:.3}."
    );
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned()), ("origin".to_owned(), note)]);
    safetensors::write(&folder.join("model.safetensors"), &tensors, &metadata).into_diagnostic()
}
