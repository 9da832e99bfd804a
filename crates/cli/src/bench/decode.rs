//! `bench decode`: greedy generation with a model with random weights, defined like the peers' `decode.py`: the time of
//! one new token is that of prefill, and the additional time of more tokens is that of decoding.

use std::time::Instant;

use metal_candle::inference::{Decoder, GenerateError, Sampler, SamplingConfig};
use metal_candle::models;

use super::args::DecodeArgs;
use super::inputs::{self, Inputs};
use super::row::Row;
use super::{Bench, engine, work};
use crate::error::{Failure, Result};

/// Creates the model, generates, and checks against the limits.
pub fn run(arguments: &DecodeArgs) -> Result<()> {
    let (name, config) = inputs::model(&arguments.config)?;
    let DecodeArgs { batch, prompt, new, .. } = *arguments;
    check_length(prompt, new, config.max_position_embeddings)?;
    let mut bench = Bench::new(&arguments.common)?;
    let options = arguments.dtype.options();
    let model =
        models::random_with(&config, options, arguments.common.seed, &bench.device).map_err(Failure::checking)?;
    let decoder = Decoder::new(&*model);
    let mut random = Inputs::new(arguments.common.seed, &bench.device);
    let prompts: Vec<Vec<u32>> = (0..batch).map(|_| random.tokens(prompt, config.vocab_size)).collect();

    for _ in 0..arguments.warmup {
        generate(&decoder, &prompts, new)?;
    }
    let (mut first, mut more) = (f64::INFINITY, f64::INFINITY);
    for _ in 0..arguments.steps {
        let times = generate(&decoder, &prompts, new)?;
        (first, more) = (first.min(times.0), more.min(times.1));
    }
    let step = more / (new - 1) as f64;

    let reading = work::prefill(&config, batch, prompt, options);
    // The first decoding step sees one token more than the prompt, the last one all but its own token.
    let step_work = work::decode(&config, batch, prompt + new / 2, options);
    let least_first = bench
        .judge
        .least_seconds(&format!("{name}: reading the prompt"), &reading, first)?;
    let least_step = bench
        .judge
        .least_seconds(&format!("{name}: a decoding step"), &step_work, step)?;
    let (rows, prompt_tokens) = (batch as f64, (batch * prompt) as f64);
    let row = Row::new()
        .with("model", name)
        .with("dtype", arguments.dtype.name())
        .with("batch", batch)
        .with("prompt", prompt)
        .with("static", true)
        .figure("tokens_per_s", rows / step, 1)
        .limit("limit", rows / least_step, least_step / step)
        .figure("ms_per_step", step * 1e3, 3)
        .figure("prefill_tokens_per_s", prompt_tokens / first, 0)
        .limit("prefill_limit", prompt_tokens / least_first, least_first / first);
    bench.output.row(row, &bench.judge);
    Ok(())
}

fn check_length(prompt: usize, new: usize, limit: usize) -> Result<()> {
    if prompt.saturating_add(new) <= limit {
        return Ok(());
    }
    Err(Failure::with_tip(
        format!("{prompt} tokens of prompt and {new} new ones do not fit the model's {limit} positions"),
        "give smaller --prompt and --new, or raise max_position_embeddings in the file",
    ))
}

/// Generates `new` tokens for each prompt with an empty cache; returns the seconds until the first token of each, and
/// the remaining seconds.
fn generate(decoder: &Decoder<'_>, prompts: &[Vec<u32>], new: usize) -> Result<(f64, f64)> {
    let start = Instant::now();
    let mut sampler = Sampler::new(SamplingConfig::default()).map_err(GenerateError::from)?;
    let mut cache = decoder.cache(prompts.len()).map_err(engine)?;
    let rows: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
    let mut logits = decoder.read(&mut cache, &rows).map_err(engine)?;
    let mut first = 0.0;
    for made in 1..=new {
        let width = logits.len() / prompts.len();
        let tokens = logits.chunks_mut(width).map(|row| sampler.sample(row, &[]));
        let tokens = tokens.collect::<std::result::Result<Vec<u32>, _>>();
        let tokens = tokens.map_err(GenerateError::from)?;
        if made == 1 {
            first = start.elapsed().as_secs_f64();
        }
        if made < new {
            logits = decoder.next(&mut cache, &tokens).map_err(engine)?;
        }
    }
    Ok((first, start.elapsed().as_secs_f64() - first))
}
