//! The least work of each case: bytes that must be moved and operations that must be done by any implementation.
//!
//! Only matrix products and attention are counted, and each tensor is read or written once, so that the limits are
//! lower bounds.

use candle_core::DType;
use metal_candle::graph::limits::Work;
use metal_candle::models::{LoadOptions, ModelConfig};
use metal_candle::nn::QuantizedLinear;

/// `(x a b) * scale`, x `(batch, inputs)`.
pub fn lora(batch: usize, inputs: usize, outputs: usize, rank: usize, dtype: DType) -> Work {
    let numbers = batch * (inputs + outputs) + rank * (inputs + outputs);
    Work {
        bytes: bytes(numbers, dtype),
        flops: 2.0 * (batch * rank * (inputs + outputs)) as f64,
        dtype,
    }
}

/// `(m, k) x (k, n)`.
pub fn matmul([m, k, n]: [usize; 3], dtype: DType) -> Work {
    Work {
        bytes: bytes(m * k + k * n + m * n, dtype),
        flops: 2.0 * (m * k * n) as f64,
        dtype,
    }
}

/// Reads and writes each of `numbers` elements once.
pub fn pointwise(numbers: usize, dtype: DType) -> Work {
    Work {
        bytes: bytes(2 * numbers, dtype),
        flops: 0.0,
        dtype,
    }
}

/// One step of `x W + (x A B) * scale` with targets, with gradients for A and B and `AdamW`, in f32.
pub fn lora_step(batch: usize, inputs: usize, outputs: usize, rank: usize) -> Work {
    let adapter = rank * (inputs + outputs);
    Work {
        // The input, the weight and the targets once; A, B and their two moments are read and written.
        bytes: bytes(batch * (inputs + outputs) + inputs * outputs + 6 * adapter, DType::F32),
        // Forward: both products of the adapter. Backward: the gradients of B, of its input, and of A.
        flops: 2.0 * (batch * inputs * outputs + batch * rank * (2 * inputs + 3 * outputs)) as f64,
        dtype: DType::F32,
    }
}

/// One fine-tuning step of `batch` rows of `length` tokens, all but the last of each with a target.
pub fn finetune(config: &ModelConfig, batch: usize, length: usize, rank: usize, options: LoadOptions) -> Work {
    let tokens = (batch * length) as f64;
    // Forward, and the gradient through each frozen weight; none goes beyond the first layer's q, k, v.
    let layers = 4.0 * linear(config) - 2.0 * first_inputs(config);
    let head = 4.0 * head(config) * (batch * (length - 1)) as f64;
    // A and B: forward, their own gradients, and the gradient between them.
    let adapters = adapter(config, rank) * 6.0 - first_adapter_inputs(config, rank) * 2.0;
    // Scores and values forward; four products of the same size backward.
    let attention = 12.0 * attended(config, length) * batch as f64;
    Work {
        // Weights are read forward and backward.
        bytes: 2.0 * weight_bytes(config, options),
        flops: tokens * (layers + adapters) + head + attention,
        dtype: options.dtype,
    }
}

/// Prefill of `batch` prompts of `length` tokens, up to the logits after the last.
pub fn prefill(config: &ModelConfig, batch: usize, length: usize, options: LoadOptions) -> Work {
    let tokens = (batch * length) as f64;
    Work {
        bytes: weight_bytes(config, options),
        flops: 2.0 * (tokens * linear(config) + batch as f64 * head(config))
            + 4.0 * batch as f64 * attended(config, length),
        dtype: options.dtype,
    }
}

/// Decoding one token for each of `batch` texts of `length` tokens.
pub fn decode(config: &ModelConfig, batch: usize, length: usize, options: LoadOptions) -> Work {
    let windows = config
        .sliding_windows
        .iter()
        .map(|window| visible(length, *window))
        .sum::<usize>();
    let cached = 2 * config.num_key_value_heads * config.head_dim * windows;
    let scores = (config.num_attention_heads * config.head_dim * windows) as f64;
    // A machine does at most twice as many byte products as bf16 products.
    let products = if options.quantization.is_some() { 1.0 } else { 2.0 };
    Work {
        bytes: weight_bytes(config, options) + bytes(batch * cached, options.dtype),
        flops: batch as f64 * (products * (linear(config) + head(config)) + 4.0 * scores),
        dtype: options.dtype,
    }
}

/// Bytes of the weights that every token needs: linear layers and head; only rows of the embedding are read.
pub fn weight_bytes(config: &ModelConfig, options: LoadOptions) -> f64 {
    let size = |inputs: usize| match options.quantization {
        Some(format) if QuantizedLinear::fits(inputs) => format.bytes_per_value(),
        _ => options.dtype.size_in_bytes() as f64,
    };
    let shapes = config.linear_shapes();
    let layer = shapes
        .iter()
        .map(|(_, inputs, outputs, _)| (inputs * outputs) as f64 * size(*inputs));
    layer.sum::<f64>() * config.num_hidden_layers as f64 + head(config) * size(config.hidden_size)
}

/// Number of adapter parameters for all linear layers.
pub fn adapter(config: &ModelConfig, rank: usize) -> f64 {
    let sizes = config.linear_shapes().map(|(_, inputs, outputs, _)| inputs + outputs);
    (rank * sizes.iter().sum::<usize>() * config.num_hidden_layers) as f64
}

/// Number of weights of the linear layers, without the head.
fn linear(config: &ModelConfig) -> f64 {
    let layer: usize = config
        .linear_shapes()
        .iter()
        .map(|(_, inputs, outputs, _)| inputs * outputs)
        .sum();
    (layer * config.num_hidden_layers) as f64
}

fn head(config: &ModelConfig) -> f64 {
    (config.vocab_size * config.hidden_size) as f64
}

/// Number of weights of q, k and v of one layer.
fn first_inputs(config: &ModelConfig) -> f64 {
    let inputs = config.linear_shapes();
    inputs[..3]
        .iter()
        .map(|(_, inputs, outputs, _)| inputs * outputs)
        .sum::<usize>() as f64
}

/// Number of parameters of A for q, k and v of one layer.
fn first_adapter_inputs(config: &ModelConfig, rank: usize) -> f64 {
    (3 * rank * config.hidden_size) as f64
}

/// Multiplications of one product of causal attention over `length` tokens, in all layers.
fn attended(config: &ModelConfig, length: usize) -> f64 {
    let width = config.num_attention_heads * config.head_dim;
    let pairs = |window: &Option<usize>| (1..=length).map(|seen| visible(seen, *window)).sum::<usize>();
    (width * config.sliding_windows.iter().map(pairs).sum::<usize>()) as f64
}

fn visible(tokens: usize, window: Option<usize>) -> usize {
    window.map_or(tokens, |window| window.min(tokens))
}

fn bytes(numbers: usize, dtype: DType) -> f64 {
    (numbers * dtype.size_in_bytes()) as f64
}

#[cfg(test)]
mod tests {
    use metal_candle::models::QuantFormat;

    use super::*;

    /// One layer: hidden 4, inner 8, two heads of 2 with one for keys and values, 10 tokens.
    fn config() -> ModelConfig {
        let json = serde_json::json!({
            "model_type": "llama", "vocab_size": 10, "hidden_size": 4, "intermediate_size": 8,
            "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
        });
        ModelConfig::from_json("config.json".as_ref(), json.as_object().unwrap()).unwrap()
    }

    #[test]
    fn small_cases_by_hand() {
        let product = matmul([2, 3, 5], DType::F32);
        assert_eq!((product.bytes, product.flops), (4.0 * 31.0, 60.0));
        let forward = lora(2, 3, 5, 1, DType::BF16);
        assert_eq!((forward.bytes, forward.flops), (2.0 * 24.0, 2.0 * 16.0));
        let step = lora_step(2, 3, 5, 1);
        assert_eq!(
            (step.bytes, step.flops),
            (4.0 * (16.0 + 15.0 + 48.0), 2.0 * (30.0 + 2.0 * 21.0))
        );
        assert_eq!(pointwise(10, DType::F32).bytes, 80.0);
    }

    #[test]
    fn a_model_by_hand() {
        let config = config();
        // q and o 4x4, k and v 4x2, gate, up and down 4x8
        let (linear, head) = (16.0 + 8.0 + 8.0 + 16.0 + 96.0, 40.0);
        let bf16 = LoadOptions::new(DType::BF16);
        assert_eq!(weight_bytes(&config, bf16), 2.0 * (linear + head));
        assert_eq!(adapter(&config, 1), 8.0 + 6.0 + 6.0 + 8.0 + 36.0);
        // Two tokens: the first sees one, the second two; each pair costs two heads of two numbers.
        let prompt = prefill(&config, 1, 2, bf16);
        assert_eq!(prompt.flops, 2.0 * (2.0 * linear + head) + 4.0 * 4.0 * 3.0);
        // The cache holds keys and values of one head of two numbers for each of three tokens.
        let token = decode(&config, 1, 3, bf16);
        assert_eq!(token.bytes, 2.0 * (linear + head + 12.0));
        assert_eq!(token.flops, 2.0 * (linear + head) + 4.0 * 4.0 * 3.0);
        let step = finetune(&config, 1, 2, 1, bf16);
        let layers = 2.0 * (4.0 * linear - 2.0 * 32.0);
        let adapters = 2.0 * (6.0 * 64.0 - 2.0 * 12.0);
        assert_eq!(step.flops, layers + adapters + 4.0 * head + 12.0 * 12.0);
    }

    /// Hidden 32, inner 48: only the input size of `down` is not a multiple of the block size.
    #[test]
    fn a_quantised_model_by_hand() {
        let json = serde_json::json!({
            "model_type": "llama", "vocab_size": 10, "hidden_size": 32, "intermediate_size": 48,
            "num_hidden_layers": 2, "num_attention_heads": 2,
        });
        let config = ModelConfig::from_json("config.json".as_ref(), json.as_object().unwrap()).unwrap();
        let (whole, down, head) = (4.0 * 1024.0 + 2.0 * 1536.0, 1536.0, 320.0);
        for (format, size) in [(QuantFormat::Q8_0, 34.0 / 32.0), (QuantFormat::Q4_0, 18.0 / 32.0)] {
            let options = LoadOptions::new(DType::F32).quantized(format);
            let bytes = 2.0 * (whole * size + down * 4.0) + head * size;
            assert_eq!(weight_bytes(&config, options), bytes);
            let token = decode(&config, 1, 1, options);
            // Keys and values of 32 numbers each in two layers.
            assert_eq!(token.bytes, bytes + 4.0 * 2.0 * 2.0 * 32.0);
            assert_eq!(token.flops, 2.0 * (whole + down) + head + 4.0 * 2.0 * 32.0);
        }
    }
}
