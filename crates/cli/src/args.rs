//! The command line: each flag is defined once, here, with its documentation and its default.
//!
//! The flags of `bench` are in `bench/args.rs`. The settings of `train` are also the keys of a settings file
//! (`config_file.rs`), so a flag added here becomes a key there.
#![allow(
    clippy::doc_markdown,
    reason = "this documentation is the text of --help, where backticks would be seen"
)]

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, value_parser};
use metal_candle::adapters::{AdapterConfig, TargetModules};
use metal_candle::data::DatasetOptions;
use metal_candle::training::{Schedule, TrainerConfig};
use serde::{Deserialize, Deserializer, Serialize};

use crate::bench::args::{self as bench, BenchArgs};
use crate::choices::{DeviceChoice, DtypeChoice, QuantizeChoice, Scheduler};
use crate::explain::ExplainArgs;

const EXAMPLES: &str = "\
Examples:
  metal-candle train
      Fine-tune the built-in demonstration model: a minute, no files needed
  metal-candle train --model ./Qwen2.5-0.5B --data chats.jsonl --output mine
      Fine-tune your own model on your own data
  metal-candle generate --model ./Qwen2.5-0.5B --adapter mine --prompt \"Hello\"
      Answer with the adapter

METAL_CANDLE_LOG=graph shows what the engine does.";

const TRAIN_EXAMPLES: &str = "\
Examples:
  metal-candle train
      The demonstration: a built-in model learns to turn orders into JSON records
  metal-candle train --model ./Qwen2.5-0.5B --data chats.jsonl
      The usual case; the adapter is written to metal-candle-output
  metal-candle train --model ./Llama-3.2-1B --data pairs.jsonl \\
      --r 16 --lora-alpha 32 --target-modules q_proj,v_proj \\
      --learning-rate 1e-4 --num-train-epochs 2 \\
      --validation-split 0.05 --eval-steps 50
      Adapt two kinds of layers, and measure on a twentieth of the data every 50 steps
  metal-candle train --config run.toml --seed 7
      All settings from a file, one of them changed

Data is JSON objects: one a line, an array, or pretty-printed. The first decides which of
  {\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}, {\"role\": \"assistant\", \"content\": \"Hello!\"}]}
  {\"conversations\": [{\"from\": \"human\", \"value\": \"Hi\"}, {\"from\": \"gpt\", \"value\": \"Hello!\"}]}
  {\"instruction\": \"Greet.\", \"input\": \"\", \"output\": \"Hello!\"}
  {\"prompt\": \"Hi\", \"completion\": \"Hello!\"}
  {\"text\": \"Learnt whole.\"}
The model learns what the assistant says (the completion, the text), not the prompts.

A settings file has the flags' names with underscores:
  model = \"Qwen2.5-0.5B\"
  data = \"chats.jsonl\"
  learning_rate = 1e-4
  target_modules = [\"q_proj\", \"v_proj\"]

Ctrl-C, SIGTERM and a closed terminal end the run after the current step; the adapter is saved. A second time ends it
at once. Exit codes: 0 done, 1 failed, 2 bad input, 128 and the signal's number.";

const GENERATE_EXAMPLES: &str = "\
Examples:
  metal-candle generate --adapter metal-candle-output \\
      --prompt \"Nine red apples for Ada in Oslo on Monday, please.\"
      The demonstration's adapter on the built-in model
  metal-candle generate --model ./Qwen2.5-0.5B-Instruct \\
      --system \"Be brief.\" --prompt \"Name three rivers.\"
      A conversation: the model's chat template is used where it has one
  metal-candle generate --model ./Llama-3.2-1B --raw \\
      --prompt \"Once upon a time\" --temperature 0.8 --top-p 0.95 --seed 7
      Plain continuation, sampled
  metal-candle generate --model ./Qwen2.5-0.5B --dtype bf16 --quantize q4_0 \\
      --prompt \"Name three rivers.\"
      Weights in 4 bits: less memory, more tokens a second

The text goes to stdout as it is made, the numbers to stderr.";

/// The value of `--target-modules` for every linear layer.
pub const ALL_LINEAR: &str = "all-linear";

// The groups of settings in `--help`.
const DATA: &str = "Model and data";
const OUTPUT: &str = "Output";
const ADAPTER: &str = "Adapter (PEFT's names)";
const TRAINING: &str = "Training (Hugging Face's names)";
const SAMPLING: &str = "Sampling";
const MACHINE: &str = "Machine";

/// Fine-tune language models with LoRA, and generate text with the adapters.
#[derive(Debug, Parser)]
#[command(name = "metal-candle", version, after_help = EXAMPLES, max_term_width = 110)]
pub struct Cli {
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Fine-tune a model with LoRA; without arguments, run a demonstration with a built-in model and data.
    #[command(after_help = TRAIN_EXAMPLES)]
    Train(Box<TrainArgs>),
    /// Continue or answer a prompt, with or without an adapter.
    #[command(after_help = GENERATE_EXAMPLES)]
    Generate(Box<GenerateArgs>),
    /// Measure speed and memory on this machine, as shares of its limits.
    #[command(after_help = bench::EXAMPLES)]
    Bench(Box<BenchArgs>),
    /// Profile a training step or a decoding step: passes, kernels, memory, limits.
    Explain(Box<ExplainArgs>),
}

/// Arguments of `train`.
#[derive(Debug, Args)]
pub struct TrainArgs {
    /// Read settings from this TOML file; flags take precedence over it.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The settings.
    #[command(flatten)]
    pub settings: Settings,
}

/// All settings of a training run.
#[derive(Debug, Clone, Args, Serialize, Deserialize)]
#[allow(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
pub struct Settings {
    /// The base model: a folder in Hugging Face's layout. Default: the built-in model.
    #[arg(long, value_name = "DIR", help_heading = DATA)]
    pub model: Option<PathBuf>,
    /// The training data: a file of JSON objects. Without it and without --model, the demonstration is run.
    #[arg(long, value_name = "FILE", help_heading = DATA)]
    pub data: Option<PathBuf>,
    /// The validation data: a file of JSON objects.
    #[arg(long, value_name = "FILE", help_heading = DATA)]
    pub validation: Option<PathBuf>,
    /// Share of the data that is split off for validation, from 0 to below 1.
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, help_heading = DATA)]
    pub validation_split: f64,
    /// Longest example in tokens; longer ones are truncated. At most the context of the model [default: 1024, or the
    /// model's context if that is shorter].
    #[arg(long, value_name = "TOKENS", help_heading = DATA)]
    pub max_length: Option<usize>,
    /// Pack several examples into one row; they do not see each other. A batch then holds up to --batch-size x
    /// --max-length tokens, in rows whose length is chosen for the data.
    #[arg(long, num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true",
        action = clap::ArgAction::Set, value_name = "BOOL", help_heading = DATA)]
    pub packing: bool,
    /// Train on the prompts too, not only on the answers.
    #[arg(long, num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true",
        action = clap::ArgAction::Set, value_name = "BOOL", help_heading = DATA)]
    pub train_on_inputs: bool,

    /// Folder for the adapter, the metrics and the loss curve; it must be empty or absent. Default:
    /// metal-candle-output, or the first free one of metal-candle-output-2, -3 ...
    #[arg(long, value_name = "DIR", help_heading = OUTPUT)]
    pub output: Option<PathBuf>,
    /// Write into --output even if it is not empty. An earlier run in it is kept until this one is saved.
    #[arg(long, num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true",
        action = clap::ArgAction::Set, value_name = "BOOL", help_heading = OUTPUT)]
    pub overwrite_output: bool,

    /// Rank of the adapter.
    #[arg(long, visible_alias = "rank", value_name = "N", default_value_t = AdapterConfig::default().r, help_heading = ADAPTER)]
    pub r: usize,
    /// The adapter's output is scaled by lora-alpha / r.
    #[arg(long, value_name = "X", default_value_t = AdapterConfig::default().lora_alpha, help_heading = ADAPTER)]
    pub lora_alpha: f64,
    /// Dropout probability of the adapter's input.
    #[arg(long, value_name = "P", default_value_t = AdapterConfig::default().lora_dropout, help_heading = ADAPTER)]
    pub lora_dropout: f64,
    /// Scale by lora-alpha / sqrt(r) instead.
    #[arg(long, num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true",
        action = clap::ArgAction::Set, value_name = "BOOL", help_heading = ADAPTER)]
    pub use_rslora: bool,
    /// Layers to adapt: names such as q_proj,v_proj, or all-linear, or one regular expression for whole names.
    #[arg(long, value_name = "NAMES", num_args = 1.., default_value = ALL_LINEAR, help_heading = ADAPTER)]
    #[serde(deserialize_with = "one_or_many")]
    pub target_modules: Vec<String>,

    /// Peak learning rate.
    #[arg(long, value_name = "X", default_value_t = TrainerConfig::default().learning_rate, help_heading = TRAINING)]
    pub learning_rate: f64,
    /// Number of epochs; may be a fraction.
    #[arg(long, value_name = "X", default_value_t = TrainerConfig::default().num_train_epochs, help_heading = TRAINING)]
    pub num_train_epochs: f64,
    /// Number of optimizer steps; overrides the epochs.
    #[arg(long, value_name = "N", help_heading = TRAINING)]
    pub max_steps: Option<usize>,
    /// Rows per batch.
    #[arg(long, visible_alias = "batch-size", value_name = "N", help_heading = TRAINING,
        default_value_t = TrainerConfig::default().per_device_train_batch_size)]
    pub per_device_train_batch_size: usize,
    /// Batches per optimizer step.
    #[arg(long, value_name = "N", help_heading = TRAINING,
        default_value_t = TrainerConfig::default().gradient_accumulation_steps)]
    pub gradient_accumulation_steps: usize,
    /// Shape of the learning rate after the warm-up.
    #[arg(long, value_enum, value_name = "KIND", default_value_t = Scheduler::Cosine, help_heading = TRAINING)]
    pub lr_scheduler_type: Scheduler,
    /// Steps of the linear warm-up; overrides the ratio.
    #[arg(long, value_name = "N", help_heading = TRAINING)]
    pub warmup_steps: Option<usize>,
    /// Warm-up as a share of all steps.
    #[arg(long, value_name = "SHARE", default_value_t = TrainerConfig::default().warmup_ratio, help_heading = TRAINING)]
    pub warmup_ratio: f64,
    /// Decoupled weight decay.
    #[arg(long, value_name = "X", default_value_t = TrainerConfig::default().weight_decay, help_heading = TRAINING)]
    pub weight_decay: f64,
    /// AdamW: decay of the first moment.
    #[arg(long, value_name = "X", default_value_t = TrainerConfig::default().adam_beta1, help_heading = TRAINING)]
    pub adam_beta1: f64,
    /// AdamW: decay of the second moment.
    #[arg(long, value_name = "X", default_value_t = TrainerConfig::default().adam_beta2, help_heading = TRAINING)]
    pub adam_beta2: f64,
    /// AdamW: added to the denominator.
    #[arg(long, value_name = "X", default_value_t = TrainerConfig::default().adam_epsilon, help_heading = TRAINING)]
    pub adam_epsilon: f64,
    /// Global norm for gradient clipping; 0 for no clipping.
    #[arg(long, value_name = "X", default_value_t = TrainerConfig::default().max_grad_norm, help_heading = TRAINING)]
    pub max_grad_norm: f64,
    /// Steps between evaluations of the validation loss; it is always evaluated at the end. Needs --validation or
    /// --validation-split.
    #[arg(long, value_name = "N", help_heading = TRAINING)]
    pub eval_steps: Option<usize>,
    /// Seed of all random numbers.
    #[arg(long, value_name = "N", value_parser = value_parser!(u64).range(..=i64::MAX as u64),
        default_value_t = TrainerConfig::default().seed, help_heading = TRAINING)]
    pub seed: u64,
    /// Maximum consecutive steps with a non-finite loss or gradient; such steps are skipped.
    #[arg(long, value_name = "N", default_value_t = TrainerConfig::default().max_nonfinite_steps, help_heading = TRAINING)]
    pub max_nonfinite_steps: usize,

    /// Dtype of the base model; the adapter is always f32.
    #[arg(long, value_enum, value_name = "DTYPE", default_value_t = DtypeChoice::Auto, help_heading = MACHINE)]
    pub dtype: DtypeChoice,
    /// Quantise the base model's linear layers to 8 or 4 bits; the adapter is trained on top of them.
    #[arg(long, value_enum, value_name = "FORMAT", help_heading = MACHINE)]
    pub quantize: Option<QuantizeChoice>,
    /// Device to compute on.
    #[arg(long, value_enum, value_name = "DEVICE", default_value_t = DeviceChoice::Auto, help_heading = MACHINE)]
    pub device: DeviceChoice,
}

/// Arguments of `generate`.
#[derive(Debug, Args)]
pub struct GenerateArgs {
    /// The model: a folder in Hugging Face's layout. Default: the base model named by the adapter, else the built-in
    /// one.
    #[arg(long, value_name = "DIR")]
    pub model: Option<PathBuf>,
    /// The adapter: a folder written by `train` or PEFT.
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// The prompt to answer or continue.
    #[arg(long, short, value_name = "TEXT", allow_hyphen_values = true)]
    pub prompt: String,
    /// Require the chat template; without --chat and --raw it is used if the model has one.
    #[arg(long, conflicts_with = "raw")]
    pub chat: bool,
    /// Continue the prompt unchanged, without the chat template.
    #[arg(long, conflicts_with = "system")]
    pub raw: bool,
    /// A system message before the prompt.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub system: Option<String>,
    /// Maximum number of generated tokens [default: the model's suggestion, else 256].
    #[arg(long, value_name = "N")]
    pub max_new_tokens: Option<usize>,
    /// 0 takes the most likely token, 1 samples from the model's own distribution [default: the model's suggestion,
    /// else 0; 1 if another sampling flag is given].
    #[arg(long, value_name = "X", help_heading = SAMPLING)]
    pub temperature: Option<f64>,
    /// Sample only from the N most likely tokens; 0 for all.
    #[arg(long, value_name = "N", help_heading = SAMPLING)]
    pub top_k: Option<usize>,
    /// Sample only from the most likely tokens whose probabilities add up to P.
    #[arg(long, value_name = "P", help_heading = SAMPLING)]
    pub top_p: Option<f64>,
    /// Sample only from tokens with at least P times the largest probability.
    #[arg(long, value_name = "P", help_heading = SAMPLING)]
    pub min_p: Option<f64>,
    /// Above 1, tokens that have occurred become less likely.
    #[arg(long, value_name = "X", help_heading = SAMPLING)]
    pub repetition_penalty: Option<f64>,
    /// Seed of the sampling.
    #[arg(long, value_name = "N", default_value_t = 42, help_heading = SAMPLING)]
    pub seed: u64,
    /// Stop string: text that ends the answer and is not part of it, such as "\n\n" or <|im_end|>; may be repeated.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub stop: Vec<String>,
    /// Additional stop tokens, by id: 1,2; those of the model and its chat template always end the answer.
    #[arg(long, value_name = "IDS", value_delimiter = ',')]
    pub stop_token_ids: Vec<u32>,
    /// Print the text as it is generated; --stream=false prints it at the end.
    #[arg(long, num_args = 0..=1, require_equals = true, default_value_t = true, default_missing_value = "true",
        action = clap::ArgAction::Set, value_name = "BOOL")]
    pub stream: bool,
    /// Dtype of the model.
    #[arg(long, value_enum, value_name = "DTYPE", default_value_t = DtypeChoice::Auto, help_heading = MACHINE)]
    pub dtype: DtypeChoice,
    /// Quantise linear layers and head to 8 or 4 bits: less memory, more tokens per second, slightly less accurate.
    #[arg(long, value_enum, value_name = "FORMAT", help_heading = MACHINE)]
    pub quantize: Option<QuantizeChoice>,
    /// Device to compute on.
    #[arg(long, value_enum, value_name = "DEVICE", default_value_t = DeviceChoice::Auto, help_heading = MACHINE)]
    pub device: DeviceChoice,
}

impl Settings {
    /// The settings of the trainer.
    pub fn trainer(&self) -> TrainerConfig {
        TrainerConfig {
            learning_rate: self.learning_rate,
            num_train_epochs: self.num_train_epochs,
            max_steps: self.max_steps,
            per_device_train_batch_size: self.per_device_train_batch_size,
            gradient_accumulation_steps: self.gradient_accumulation_steps,
            max_length: self.longest(),
            packing: self.packing,
            lr_scheduler_type: match self.lr_scheduler_type {
                Scheduler::Constant => Schedule::Constant,
                Scheduler::Linear => Schedule::Linear,
                Scheduler::Cosine => Schedule::Cosine,
            },
            warmup_steps: self.warmup_steps,
            warmup_ratio: self.warmup_ratio,
            weight_decay: self.weight_decay,
            adam_beta1: self.adam_beta1,
            adam_beta2: self.adam_beta2,
            adam_epsilon: self.adam_epsilon,
            max_grad_norm: self.max_grad_norm,
            eval_steps: self.eval_steps,
            seed: self.seed,
            max_nonfinite_steps: self.max_nonfinite_steps,
        }
    }

    /// The settings of the adapter, for a base model called `base`.
    pub fn adapter(&self, base: &str) -> AdapterConfig {
        AdapterConfig {
            r: self.r,
            lora_alpha: self.lora_alpha,
            lora_dropout: self.lora_dropout,
            use_rslora: self.use_rslora,
            target_modules: targets(&self.target_modules),
            base_model_name_or_path: Some(base.to_owned()),
            ..AdapterConfig::default()
        }
    }

    /// Longest example in tokens.
    fn longest(&self) -> usize {
        self.max_length.unwrap_or(TrainerConfig::default().max_length)
    }

    /// The options of the data set.
    pub fn dataset(&self) -> DatasetOptions {
        DatasetOptions {
            max_length: self.longest(),
            train_on_inputs: self.train_on_inputs,
        }
    }
}

/// A single value with metacharacters of regular expressions is a pattern; everything else is a list of names.
fn targets(values: &[String]) -> TargetModules {
    match values {
        [one]
            if one.eq_ignore_ascii_case(ALL_LINEAR)
                || one.contains(['*', '+', '?', '(', '[', '{', '|', '^', '$', '\\']) =>
        {
            TargetModules::from_text(one)
        }
        many => TargetModules::Names(
            many.iter()
                .flat_map(|v| v.split(','))
                .map(|v| v.trim().to_owned())
                .filter(|v| !v.is_empty()) // `q_proj, v_proj` is two words to a shell
                .collect(),
        ),
    }
}

/// In a settings file, a single name need not be a list.
fn one_or_many<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "expected a name or a list of names")]
    enum OneOrMany {
        One(String),
        Many(Vec<String>),
    }
    Ok(match OneOrMany::deserialize(deserializer)? {
        OneOrMany::One(one) => vec![one],
        OneOrMany::Many(many) => many,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn flags_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_examples_of_the_helps_are_valid_commands() {
        let helps = [EXAMPLES, TRAIN_EXAMPLES, GENERATE_EXAMPLES, bench::EXAMPLES].join("\n");
        let joined = helps.replace("\\\n", " ");
        let examples: Vec<_> = joined
            .lines()
            .filter(|line| line.starts_with("  metal-candle "))
            .collect();
        assert_eq!(examples.len(), 18);
        for example in examples {
            // Quoted words alternate with others; what is in them does not matter here.
            let words = example.split('"').enumerate().flat_map(|(at, text)| match at % 2 {
                0 => text.split_whitespace().collect(),
                _ => vec![text],
            });
            let parsed = Cli::try_parse_from(words);
            assert!(parsed.is_ok(), "{example}: {:?}", parsed.err());
        }
    }

    #[test]
    fn targets_by_peft_s_rules() {
        let of = |values: &[&str]| targets(&values.iter().map(|v| (*v).to_owned()).collect::<Vec<_>>());
        let names = |values: &[&str]| TargetModules::Names(values.iter().map(|v| (*v).to_owned()).collect());
        assert_eq!(of(&["q_proj,v_proj"]), names(&["q_proj", "v_proj"]));
        assert_eq!(of(&["q_proj,", "v_proj"]), names(&["q_proj", "v_proj"]));
        assert_eq!(
            of(&["q_proj", "self_attn.v_proj"]),
            names(&["q_proj", "self_attn.v_proj"])
        );
        assert_eq!(of(&["all-linear"]), TargetModules::AllLinear);
        assert_eq!(
            of(&[r".*\.[qv]_proj"]),
            TargetModules::Pattern(r".*\.[qv]_proj".to_owned())
        );
    }

    #[test]
    fn defaults_are_the_library_s() {
        let cli = Cli::try_parse_from(["metal-candle", "train"]).unwrap();
        let Command::Train(arguments) = cli.command else {
            panic!("train")
        };
        assert_eq!(arguments.settings.trainer(), TrainerConfig::default());
        let base = AdapterConfig {
            base_model_name_or_path: Some("m".to_owned()),
            ..AdapterConfig::default()
        };
        assert_eq!(arguments.settings.adapter("m"), base);
    }
}
