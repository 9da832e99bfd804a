//! `bench finetune`: optimizer steps of the library's trainer on a model with random weights, defined like the peers'
//! `finetune.py`: rank 16, alpha 32, no dropout, every linear layer, loss on every token, `AdamW`, no clipping.

use std::ops::ControlFlow;

use candle_core::Device;
use metal_candle::adapters::{self, AdapterConfig, TargetModules};
use metal_candle::data::{Dataset, Example};
use metal_candle::models::{self, CausalLm, ModelConfig};
use metal_candle::training::{Event, Schedule, StepReport, Trainer, TrainerConfig};

use super::args::FinetuneArgs;
use super::inputs::{self, Inputs};
use super::row::Row;
use super::timing::median;
use super::{Bench, memory, work};
use crate::error::{Failure, Result};
use crate::report::counted;

const RANK: usize = 16;
const ALPHA: f64 = 32.0;
const LEARNING_RATE: f64 = 1e-4;
const GIB: f64 = (1u64 << 30) as f64;

/// Trains, then measures the limits, whose buffers must not count as the model's memory.
pub fn run(arguments: &FinetuneArgs) -> Result<()> {
    let (name, config) = inputs::model(&arguments.config)?;
    let steps = train(arguments, &config)?;
    let peak = memory::resident_peak();
    let timed = &steps[arguments.warmup..];
    let mut seconds: Vec<f64> = timed.iter().map(|step| step.seconds).collect();
    let (median, best) = (median(&mut seconds), seconds[0]);
    let loss = timed.last().map_or(f64::NAN, |step| step.loss);
    let (options, tokens) = (arguments.dtype.options(), (arguments.batch * arguments.length) as f64);

    let mut bench = Bench::new(&arguments.common)?;
    let step = work::finetune(&config, arguments.batch, arguments.length, RANK, options);
    let what = format!("a step of {name}");
    let least = bench.judge.least_seconds(&what, &step, best)?;
    let mut row = Row::new()
        .with("model", name)
        .with("dtype", arguments.dtype.name())
        .with("batch", arguments.batch)
        .with("length", arguments.length)
        .with("compile", true)
        .with("liger", false)
        .with("checkpoint", false)
        .figure("step_ms", median * 1e3, 2)
        .figure("tokens_per_s", tokens / median, 0)
        .limit("limit", tokens / least, least / median);
    row = match peak {
        Some(peak) => {
            let (peak, least) = (peak as f64 / GIB, least_gib(&config, arguments));
            check_memory(peak, least)?;
            row.figure("peak_gib", peak, 2).limit("peak_limit", least, least / peak)
        }
        None => row.with("peak_gib", ()),
    };
    bench.output.row(row.figure("loss", loss, 4), &bench.judge);
    Ok(())
}

/// Every step of a run, including the warm-up.
fn train(arguments: &FinetuneArgs, config: &ModelConfig) -> Result<Vec<StepReport>> {
    check_length(arguments.length, config)?;
    let (device, seed) = (arguments.common.device.device()?, arguments.common.seed);
    let model = models::random_with(config, arguments.dtype.options(), seed, &device);
    let mut model = model.map_err(Failure::checking)?;
    let shape = [arguments.batch, arguments.length];
    let mut trainer = trainer(&mut *model, shape, arguments.warmup + arguments.steps, seed, &device)?;
    let mut steps = Vec::new();
    let done = trainer.run(&mut |event| {
        if let Event::Step(step) = event {
            steps.push(step.clone());
        }
        ControlFlow::Continue(())
    });
    done.map_err(Failure::running)?;
    Ok(steps)
}

/// Checks that rows of this length fit the model's context.
///
/// # Errors
/// Bad input if they do not.
pub fn check_length(length: usize, config: &ModelConfig) -> Result<()> {
    let limit = config.max_position_embeddings;
    if length <= limit {
        return Ok(());
    }
    Err(Failure::with_tip(
        format!("--length {length} exceeds the model's {}", counted(limit, "position")),
        format!("give --length {limit} or less, or raise max_position_embeddings in the file"),
    ))
}

/// A trainer of an adapter for every linear layer on one batch, `(batch, length)`, of random tokens.
pub fn trainer<'m>(
    model: &'m mut dyn CausalLm,
    [batch, length]: [usize; 2],
    steps: usize,
    seed: u64,
    device: &Device,
) -> Result<Trainer<'m>> {
    let adapter = AdapterConfig {
        r: RANK,
        lora_alpha: ALPHA,
        lora_dropout: 0.0,
        target_modules: TargetModules::AllLinear,
        ..AdapterConfig::default()
    };
    let adapter = adapters::apply(&mut *model, &adapter, seed).map_err(Failure::checking)?;
    let vocabulary = model.config().vocab_size;
    let mut random = Inputs::new(seed, device);
    let row = |_| Example {
        tokens: random.tokens(length, vocabulary),
        supervised: vec![true; length],
    };
    let rows = Dataset::from_examples((0..batch).map(row).collect()).map_err(Failure::checking)?;
    let settings = TrainerConfig {
        learning_rate: LEARNING_RATE,
        max_steps: Some(steps),
        per_device_train_batch_size: batch,
        max_length: length,
        lr_scheduler_type: Schedule::Constant,
        warmup_steps: Some(0),
        max_grad_norm: 0.0,
        seed,
        max_nonfinite_steps: 0,
        ..TrainerConfig::default()
    };
    Trainer::new(model, adapter, rows, None, settings, 0).map_err(Failure::checking)
}

/// The minimum resident memory: the weights, and for each factor of the adapter its value and two moments in f32.
fn least_gib(config: &ModelConfig, arguments: &FinetuneArgs) -> f64 {
    let adapters = 3.0 * 4.0 * work::adapter(config, RANK);
    (work::weight_bytes(config, arguments.dtype.options()) + adapters) / GIB
}

fn check_memory(peak: f64, least: f64) -> Result<()> {
    if peak >= least {
        return Ok(());
    }
    Err(Failure::Run(format!(
        "measuring error: the process's resident peak is {peak:.3} GiB, but weights and adapters alone are {least:.3} GiB"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peak_below_the_weights_is_a_measuring_error() {
        assert!(check_memory(1.0, 0.5).is_ok());
        let failure = check_memory(0.25, 0.5).unwrap_err();
        assert_eq!(failure.exit_code(), 1);
        assert!(failure.to_string().contains("measuring error"), "{failure}");
    }
}
