//! Pre-trains the demonstration's base model with this project's own engine: every weight of a small Qwen2, on the
//! generated corpus, from a seeded start.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use metal_candle::data::permutation;
use metal_candle::graph::{AdamWOptions, CrossEntropyOptions, Error, LazyTensor, random};
use metal_candle::models::{ModelConfig, from_recorded};
use metal_candle::nn::Pass;
use metal_candle::text::Tokenizer;
use metal_candle::training::{Schedule, Stepper};
use metal_candle_graph::io::safetensors;
use miette::{IntoDiagnostic, Result};

use super::corpus;

/// Tokens of a row.
const LENGTH: usize = 192;
/// Rows of a step.
const ROWS: usize = 16;
const LEARNING_RATE: f64 = 3e-3;
const WARMUP: usize = 60;
const OPTIMIZER: AdamWOptions = AdamWOptions { beta1: 0.9, beta2: 0.98, eps: 1e-8, weight_decay: 0.01 };

/// Trains for `steps` optimizer steps and writes `model.safetensors` in bf16 into the model folder.
///
/// # Errors
///
/// A folder without settings or tokenizer, or a file that cannot be written.
pub fn pretrain(folder: &Path, seed: u64, documents: usize, steps: usize) -> Result<()> {
    let config = ModelConfig::read(folder).into_diagnostic()?;
    let tokenizer = Tokenizer::from_folder(folder).into_diagnostic()?;
    let rows = rows(&tokenizer, seed, documents)?;
    println!("{} rows of {LENGTH} tokens, {steps} steps of {ROWS} rows", rows.len());
    let shapes = config.parameter_shapes();
    let names: Vec<String> = shapes.iter().map(|(name, _)| name.clone()).collect();
    let parameters = initial(&shapes, seed).into_diagnostic()?;
    let of_loss = (config, names.clone());
    let loss = move |parameters: &[LazyTensor], batch: &[LazyTensor]| summed_loss(&of_loss, parameters, batch);
    let mut stepper = Stepper::new(parameters, OPTIMIZER, loss).into_diagnostic()?;

    let start = Instant::now();
    let mut average = f64::NAN;
    for step in 0..steps {
        let batch = batch(&rows, seed, step).into_diagnostic()?;
        let rate = LEARNING_RATE * Schedule::Cosine.factor(step, WARMUP, steps);
        let outcome = stepper.step(&[batch], ROWS * LENGTH, rate, 1.0).into_diagnostic()?;
        average = if average.is_nan() { outcome.loss } else { 0.95 * average + 0.05 * outcome.loss };
        if step % 20 == 0 || step + 1 == steps {
            let seconds = start.elapsed().as_secs_f64();
            let speed = ((step + 1) * ROWS * LENGTH) as f64 / seconds;
            println!("step {step} of {steps}: loss {average:.3}, {speed:.0} tokens/s, {seconds:.0} s");
        }
        if step % 200 == 199 || step + 1 == steps {
            save(folder, &names, stepper.parameters(), seed, step + 1, average)?;
        }
    }
    Ok(())
}

/// The corpus as one stream of tokens with an end-of-text token after each document, cut into rows of one token more
/// than the model reads: each token's target is the next.
fn rows(tokenizer: &Tokenizer, seed: u64, documents: usize) -> Result<Vec<Vec<u32>>> {
    let end = tokenizer.token_id(super::tokenizer::END_OF_TEXT).unwrap_or_default();
    let mut stream = Vec::new();
    for text in corpus(seed, documents) {
        stream.extend(tokenizer.encode(&text, false).into_diagnostic()?);
        stream.push(end);
    }
    Ok(stream.windows(LENGTH + 1).step_by(LENGTH).map(<[u32]>::to_vec).collect())
}

fn batch(rows: &[Vec<u32>], seed: u64, step: usize) -> metal_candle::graph::Result<Vec<LazyTensor>> {
    let per_epoch = rows.len() / ROWS;
    let order = permutation(rows.len(), seed, (step / per_epoch) as u64);
    let picked: Vec<&Vec<u32>> = (0..ROWS).map(|row| &rows[order[step % per_epoch * ROWS + row]]).collect();
    let tokens: Vec<u32> = picked.iter().flat_map(|row| row[..LENGTH].iter().copied()).collect();
    let targets: Vec<i64> = picked.iter().flat_map(|row| row[1..].iter().map(|&token| i64::from(token))).collect();
    Ok(vec![
        LazyTensor::from_data(&tokens, &[ROWS, LENGTH], &Device::Cpu)?,
        LazyTensor::from_data(&targets, &[ROWS * LENGTH], &Device::Cpu)?,
    ])
}

/// Norms one, biases zero, matrices normal with deviation 0.05, and those that write into the residual stream smaller by
/// the square root of twice the number of layers.
fn initial(shapes: &[(String, Vec<usize>)], seed: u64) -> metal_candle::graph::Result<Vec<LazyTensor>> {
    let layers = shapes.iter().filter(|(name, _)| name.ends_with("o_proj.weight")).count();
    let make = |(number, (name, shape)): (usize, &(String, Vec<usize>))| {
        let count = shape.iter().product();
        let deviation = match name {
            name if name.ends_with("norm.weight") => return LazyTensor::from_slice(&vec![1.0; count], shape, &Device::Cpu),
            name if name.ends_with(".bias") => 0.0,
            name if name.ends_with("o_proj.weight") || name.ends_with("down_proj.weight") => {
                0.05 / (2.0 * layers as f32).sqrt()
            }
            _ => 0.05,
        };
        let key = [seed as u32, (seed >> 32) as u32];
        let values: Vec<f32> = random::normal32(key, [number as u32, 1]).take(count).map(|x| x * deviation).collect();
        LazyTensor::from_slice(&values, shape, &Device::Cpu)
    };
    shapes.iter().enumerate().map(make).collect()
}

fn summed_loss(
    (config, names): &(ModelConfig, Vec<String>),
    parameters: &[LazyTensor],
    batch: &[LazyTensor],
) -> metal_candle::graph::Result<LazyTensor> {
    let named = names.iter().cloned().zip(parameters.iter().cloned());
    let model = from_recorded(config, named)
        .map_err(|error| Error::Shape { operation: "pretrain", message: error.to_string() })?;
    let hidden = model.hidden(&batch[0], &mut Pass::from_start(LENGTH, &Device::Cpu)?)?;
    let hidden = hidden.reshape(&[ROWS * LENGTH, config.hidden_size])?;
    hidden.cross_entropy(model.head(), &batch[1], CrossEntropyOptions::default())?.sum_all()
}

fn save(folder: &Path, names: &[String], parameters: &[LazyTensor], seed: u64, steps: usize, loss: f64) -> Result<()> {
    let mut tensors: Vec<(String, Tensor)> = Vec::with_capacity(names.len());
    for (name, parameter) in names.iter().zip(parameters) {
        tensors.push((name.clone(), parameter.cast(DType::BF16).and_then(|t| t.eval()).into_diagnostic()?));
    }
    let note = format!(
        "A small base model pre-trained by `cargo xtask demo build` (metal-candle's own engine) on text generated by \
         the seeded program in xtask/src/demo: seed {seed}, {steps} steps of {ROWS} rows of {LENGTH} tokens, loss {loss:.3}."
    );
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned()), ("origin".to_owned(), note)]);
    safetensors::write(&folder.join("model.safetensors"), &tensors, &metadata).into_diagnostic()
}
