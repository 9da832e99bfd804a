//! The flags of `bench`, each defined once. Names and defaults are those of the scripts that time other libraries.
#![allow(
    clippy::doc_markdown,
    reason = "this documentation is the text of --help, where backticks would be seen"
)]

use std::path::PathBuf;
use std::str::FromStr;

use candle_core::DType;
use clap::builder::RangedU64ValueParser;
use clap::{Args, Subcommand, ValueEnum};
use metal_candle::models::{LoadOptions, QuantFormat};

use crate::choices::DeviceChoice;

/// The text after `bench --help`.
pub const EXAMPLES: &str = "\
Examples:
  metal-candle bench lora-forward
      Latency and throughput of one LoRA forward in several sizes, softmax, RMS norm, a matrix product, a LoRA step
  metal-candle bench lora-forward --dtype bf16 --case 512x512 --json
      Some of them, as JSON lines
  metal-candle bench matmul --config config.json --length 256
      The matrix products of a model's linear layers on 256 tokens
  metal-candle bench finetune --config config.json --batch 1 --length 256
      One LoRA fine-tuning step of a model with random weights: time, tokens per second, memory
  metal-candle bench decode --config config.json --prompt 128 --new 32
      Reading a prompt and generating token by token
  metal-candle bench decode --config config.json --dtype q4_0
      The same with weights in 4 bits
  metal-candle bench overhead
      What recording an operation and finding its plan again cost

Beside each figure stands the limit of this machine, which is measured in the same run, and the share of it that was
reached. A figure beyond the limit is a measuring error: the command says so and fails.";

/// Arguments of `bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// The benchmark.
    #[command(subcommand)]
    pub kind: Kind,
}

/// The benchmarks.
#[derive(Debug, Subcommand)]
pub enum Kind {
    /// One LoRA forward pass in several sizes, softmax, RMS norm, a matrix product and one LoRA training step.
    LoraForward(LoraForwardArgs),
    /// One fine-tuning step: rank 16, alpha 32, every linear layer, loss on every token, AdamW.
    Finetune(FinetuneArgs),
    /// Greedy generation of one text (or several of equal length) with a KV cache.
    Decode(DecodeArgs),
    /// Matrix products.
    Matmul(MatmulArgs),
    /// The overhead of recording an operation and of the plan cache.
    Overhead(OverheadArgs),
}

/// The flags of all benchmarks.
#[derive(Debug, Clone, Args)]
pub struct Common {
    /// Print JSON lines, with the keys of the scripts that time other libraries.
    #[arg(long)]
    pub json: bool,
    /// Seed of all random numbers.
    #[arg(long, value_name = "N", default_value_t = 42)]
    pub seed: u64,
    /// Device to compute on.
    #[arg(long, value_enum, value_name = "DEVICE", default_value_t = DeviceChoice::Auto)]
    pub device: DeviceChoice,
}

/// Arguments of `bench lora-forward`.
#[derive(Debug, Args)]
pub struct LoraForwardArgs {
    /// The flags of all benchmarks.
    #[command(flatten)]
    pub common: Common,
    /// Dtype of all tensors [default: both].
    #[arg(long, value_enum, value_name = "DTYPE")]
    pub dtype: Option<Dtype>,
    /// Run only the cases whose names contain this text.
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub case: String,
    /// Timed calls per case [default: 20 to 300, by its size].
    #[arg(long, value_name = "N", value_parser = at_least(1))]
    pub steps: Option<usize>,
    /// Warm-up calls.
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub warmup: usize,
}

/// Arguments of `bench matmul`.
#[derive(Debug, Args)]
pub struct MatmulArgs {
    /// The flags of all benchmarks.
    #[command(flatten)]
    pub common: Common,
    /// Dtype of both factors [default: both].
    #[arg(long, value_enum, value_name = "DTYPE")]
    pub dtype: Option<Dtype>,
    /// Sizes of a product (M, K) x (K, N), such as 1024x1024x1024; may be repeated [default: that one].
    #[arg(long, value_name = "MxKxN")]
    pub size: Vec<Size>,
    /// The products of this model's linear layers and head, with weights (N, K) as in checkpoints.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Number of tokens.
    #[arg(long, value_name = "TOKENS", default_value_t = 256, requires = "config", value_parser = at_least(1))]
    pub length: usize,
    /// Timed calls per product.
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = at_least(1))]
    pub steps: usize,
    /// Warm-up calls.
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub warmup: usize,
}

/// Arguments of `bench finetune`.
#[derive(Debug, Args)]
pub struct FinetuneArgs {
    /// The flags of all benchmarks.
    #[command(flatten)]
    pub common: Common,
    /// The model's config.json; its weights are random.
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Dtype of the base model; the adapter is always f32.
    #[arg(long, value_enum, value_name = "DTYPE", default_value_t = ModelDtype::Bf16)]
    pub dtype: ModelDtype,
    /// Rows per batch.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = at_least(1))]
    pub batch: usize,
    /// Tokens per row.
    #[arg(long, value_name = "TOKENS", default_value_t = 256, value_parser = at_least(2))]
    pub length: usize,
    /// Timed optimizer steps.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = at_least(1))]
    pub steps: usize,
    /// Warm-up steps.
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub warmup: usize,
}

/// Arguments of `bench decode`.
#[derive(Debug, Args)]
pub struct DecodeArgs {
    /// The flags of all benchmarks.
    #[command(flatten)]
    pub common: Common,
    /// The model's config.json; its weights are random.
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Dtype of the model.
    #[arg(long, value_enum, value_name = "DTYPE", default_value_t = ModelDtype::Bf16)]
    pub dtype: ModelDtype,
    /// Number of texts generated in a batch.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = at_least(1))]
    pub batch: usize,
    /// Tokens of the prompt.
    #[arg(long, value_name = "TOKENS", default_value_t = 128, value_parser = at_least(1))]
    pub prompt: usize,
    /// Tokens to generate.
    #[arg(long, value_name = "TOKENS", default_value_t = 32, value_parser = at_least(2))]
    pub new: usize,
    /// Timed runs of each length, of which the fastest counts.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = at_least(1))]
    pub steps: usize,
    /// Warm-up runs.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub warmup: usize,
}

/// Arguments of `bench overhead`.
#[derive(Debug, Args)]
pub struct OverheadArgs {
    /// The flags of all benchmarks.
    #[command(flatten)]
    pub common: Common,
    /// Dtype of all tensors.
    #[arg(long, value_enum, value_name = "DTYPE", default_value_t = Dtype::F32)]
    pub dtype: Dtype,
    /// The model whose blocks are recorded [default: a small one].
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Timed runs of each graph.
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = at_least(1))]
    pub steps: usize,
    /// Warm-up runs.
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub warmup: usize,
}

/// Values of `--dtype`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Dtype {
    /// 32 bits.
    F32,
    /// 16 bits with the range of 32.
    Bf16,
}

impl Dtype {
    /// The given one, or all.
    pub fn chosen(given: Option<Self>) -> Vec<Self> {
        given.map_or_else(|| vec![Self::F32, Self::Bf16], |one| vec![one])
    }

    /// The engine's dtype.
    pub fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
        }
    }

    /// The name in PyTorch.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::Bf16 => "bfloat16",
        }
    }
}

/// Values of `--dtype` for a whole model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ModelDtype {
    /// 32 bits.
    F32,
    /// 16 bits with the range of 32.
    Bf16,
    /// Weights in 8 bits with a scale per 32, everything else in bf16.
    #[value(name = "q8_0")]
    Q8_0,
    /// Weights in 4 bits with a scale per 32, everything else in bf16.
    #[value(name = "q4_0")]
    Q4_0,
}

impl ModelDtype {
    /// The options for loading a model.
    pub fn options(self) -> LoadOptions {
        match self {
            Self::F32 => LoadOptions::new(DType::F32),
            Self::Bf16 => LoadOptions::new(DType::BF16),
            Self::Q8_0 => LoadOptions::new(DType::BF16).quantized(QuantFormat::Q8_0),
            Self::Q4_0 => LoadOptions::new(DType::BF16).quantized(QuantFormat::Q4_0),
        }
    }

    /// The name in PyTorch or llama.cpp.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => Dtype::F32.name(),
            Self::Bf16 => Dtype::Bf16.name(),
            Self::Q8_0 => QuantFormat::Q8_0.name(),
            Self::Q4_0 => QuantFormat::Q4_0.name(),
        }
    }
}

/// `M`, `K` and `N` of a matrix product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size(pub [usize; 3]);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let sizes: Result<Vec<usize>, _> = text.split('x').map(str::parse).collect();
        match sizes.as_deref() {
            Ok(&[m, k, n]) if [m, k, n].iter().all(|size| (1..=1 << 20).contains(size)) => Ok(Self([m, k, n])),
            _ => Err("give three sizes from 1 to 1048576, such as 1024x1024x1024".to_owned()),
        }
    }
}

/// A count with this minimum.
fn at_least(least: u64) -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(least..)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_three_numbers() {
        assert_eq!("64x512x8".parse(), Ok(Size([64, 512, 8])));
        for wrong in ["64x512", "64x512x0", "64x512x8x8", "axbxc", "9999999x1x1"] {
            assert!(wrong.parse::<Size>().is_err(), "{wrong}");
        }
    }
}
