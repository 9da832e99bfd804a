//! `metal-candle explain`: a profile of one training step (as in `bench finetune`) or one decoding step, with the
//! limits of the machine. It measures one run of each function; `bench` measures speed.

use std::path::PathBuf;

use candle_core::Device;
use clap::{Args, ValueEnum, builder::RangedU64ValueParser};
use metal_candle::graph::{Explanation, Meta};
use metal_candle::inference::Decoder;
use metal_candle::models::{self, CausalLm};
use serde_json::{Value, json};

use crate::bench::args::{Common, ModelDtype};
use crate::bench::finetune;
use crate::bench::inputs::{self, Inputs};
use crate::bench::judge::Judge;
use crate::console::say;
use crate::error::{Failure, Result};

/// Arguments of `explain`.
#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// JSON output, seed and device.
    #[command(flatten)]
    pub common: Common,
    /// The config.json of a model; its weights are random.
    #[arg(long, value_name = "FILE", required_unless_present = "model")]
    pub config: Option<PathBuf>,
    /// A model folder.
    #[arg(long, value_name = "DIR", conflicts_with = "config")]
    pub model: Option<PathBuf>,
    /// The step to profile.
    #[arg(long, value_enum, value_name = "STEP", default_value_t = What::Train)]
    pub what: What,
    /// Dtype of the base model.
    #[arg(long, value_enum, value_name = "DTYPE", default_value_t = ModelDtype::Bf16)]
    pub dtype: ModelDtype,
    /// Rows per batch, or number of texts.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    pub batch: usize,
    /// Tokens per row, or length of the text so far.
    #[arg(long, value_name = "TOKENS", default_value_t = 256, value_parser = RangedU64ValueParser::<usize>::new().range(2..))]
    pub length: usize,
}

/// The steps that can be profiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum What {
    /// Forward, backward, gradient norm and update.
    Train,
    /// Decoding of one token.
    Decode,
}

/// Profiles and prints; returns the exit code.
pub fn run(arguments: &ExplainArgs) -> Result<u8> {
    let device = arguments.common.device.device()?;
    let mut model = model(arguments, &device)?;
    let explained = match arguments.what {
        What::Train => {
            finetune::check_length(arguments.length, model.config())?;
            let shape = [arguments.batch, arguments.length];
            let trainer = finetune::trainer(&mut *model, shape, 1, arguments.common.seed, &device)?;
            trainer.explain().map_err(Failure::running)?
        }
        What::Decode => vec![("decoding step", decode(&*model, arguments, &device)?)],
    };
    let judge = Judge::new();
    if !arguments.common.json {
        say(&judge.describe());
    }
    for (part, explanation) in explained {
        let explanation = explanation.with_limits(judge.limits().clone());
        if arguments.common.json {
            say(&to_json(part, &explanation, &judge).to_string());
        } else {
            say(&format!("\n== {part} ==\n{}", explanation.to_string().trim_end()));
        }
    }
    Ok(0)
}

fn model(arguments: &ExplainArgs, device: &Device) -> Result<Box<dyn CausalLm>> {
    let options = arguments.dtype.options();
    let Some(config) = &arguments.config else {
        return Ok(crate::base::Base::load(arguments.model.as_deref(), options, device)?
            .loaded
            .model);
    };
    let (_, config) = inputs::model(config)?;
    models::random_with(&config, options, arguments.common.seed, device).map_err(Failure::checking)
}

fn decode(model: &dyn CausalLm, arguments: &ExplainArgs, device: &Device) -> Result<Explanation> {
    let (length, positions) = (arguments.length, model.config().max_position_embeddings);
    if length >= positions {
        return Err(Failure::input(format!(
            "--length {length} leaves no room for a token in the model's {positions} positions"
        )));
    }
    let decoder = Decoder::new(model);
    let mut random = Inputs::new(arguments.common.seed, device);
    let mut tokens = |count| random.tokens(count, model.config().vocab_size);
    let prompts: Vec<Vec<u32>> = (0..arguments.batch).map(|_| tokens(length)).collect();
    let rows: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
    let mut cache = decoder.cache(arguments.batch).map_err(Failure::running)?;
    decoder.read(&mut cache, &rows).map_err(Failure::running)?;
    decoder
        .explain(&mut cache, &tokens(arguments.batch))
        .map_err(Failure::running)
}

fn to_json(part: &str, explanation: &Explanation, judge: &Judge) -> Value {
    let texts = |metas: &[Meta]| metas.iter().map(Meta::to_string).collect::<Vec<_>>();
    let kernels = explanation.kernels.iter().map(|kernel| {
        json!({
            "group": kernel.name,
            "operation": kernel.text,
            "inputs": texts(&kernel.inputs),
            "outputs": texts(&kernel.outputs),
            "us": kernel.seconds * 1e6,
            "least_us": kernel.least_seconds(judge.limits()) * 1e6,
            "flop": kernel.flops,
            "bytes": kernel.bytes,
        })
    });
    let groups = explanation.groups().into_iter().map(|group| {
        json!({
            "name": group.name,
            "count": group.kernels.len(),
            "us": group.seconds() * 1e6,
            "least_us": group.least_seconds(judge.limits()) * 1e6,
            "flop": group.flops(),
            "bytes": group.bytes(),
        })
    });
    let passes = explanation.passes.iter();
    json!({
        "part": part,
        "recorded": explanation.recorded,
        "passes": passes.map(|(pass, left)| json!([pass, left])).collect::<Vec<_>>(),
        "seconds": explanation.seconds(),
        "flop": explanation.flops(),
        "bytes": explanation.bytes(),
        "input_bytes": explanation.memory.inputs,
        "output_bytes": explanation.memory.outputs,
        "arena_bytes": explanation.memory.arena,
        "groups": groups.collect::<Vec<_>>(),
        "kernels": kernels.collect::<Vec<_>>(),
        "machine": judge.to_json(),
    })
}
