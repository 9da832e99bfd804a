//! Models with random weights for given settings, without a checkpoint: for benchmarks, for tests, and as the start of
//! pre-training.

use std::num::NonZero;
use std::thread;

use candle_core::{DType, Device, Tensor, WithDType};
use half::{bf16, f16};
use metal_candle_graph::{LazyTensor, random};

use super::{CausalLm, LoadError, LoadOptions, ModelConfig, loader};

/// Standard deviation of the matrices of a [`random`](fn@random) model: `initializer_range` of most `config.json`
/// files.
const DEVIATION: f32 = 0.02;

/// A model with random weights, determined by settings and seed: matrices are normal with deviation 0.02, norms are
/// one, biases zero. Weights are generated in `dtype`, so memory holds them once.
///
/// ```
/// use candle_core::{DType, Device};
/// use metal_candle::models::{self, ModelConfig};
///
/// let json = serde_json::json!({
///     "model_type": "llama", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 48,
///     "num_hidden_layers": 2, "num_attention_heads": 4,
/// });
/// let config = ModelConfig::from_json("config.json".as_ref(), json.as_object().unwrap())?;
/// let model = models::random(&config, DType::BF16, 42, &Device::Cpu)?;
/// assert_eq!(model.head().dims(), [32, 16]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// [`LoadError::Dtype`] for a dtype in which models cannot be computed.
pub fn random(config: &ModelConfig, dtype: DType, seed: u64, device: &Device) -> Result<Box<dyn CausalLm>, LoadError> {
    random_with(config, LoadOptions::new(dtype), seed, device)
}

/// Like [`random`](fn@random), with all options: a quantised model has the same weights, quantised.
///
/// # Errors
/// See [`random`](fn@random).
pub fn random_with(
    config: &ModelConfig,
    options: LoadOptions,
    seed: u64,
    device: &Device,
) -> Result<Box<dyn CausalLm>, LoadError> {
    let parameters = random_parameters(config, DEVIATION, options.dtype, seed, device)?;
    loader::quantized(config, parameters, options.quantization)
}

/// Name and value of every tensor of a model, as in [`random`](fn@random), with another deviation.
///
/// # Errors
/// See [`random`](fn@random).
pub fn random_parameters(
    config: &ModelConfig,
    deviation: f32,
    dtype: DType,
    seed: u64,
    device: &Device,
) -> Result<Vec<(String, LazyTensor)>, LoadError> {
    let shapes = config.parameter_shapes().into_iter().zip(0..);
    shapes
        .map(|((name, shape), number)| {
            let tensor = if name.ends_with("norm.weight") {
                Tensor::ones(shape, dtype, &Device::Cpu)
            } else if name.ends_with("proj.bias") {
                Tensor::zeros(shape, dtype, &Device::Cpu)
            } else {
                let stream = Stream {
                    seed,
                    number,
                    deviation,
                };
                match dtype {
                    DType::F32 => stream.tensor(&shape, |x| x),
                    DType::F16 => stream.tensor(&shape, f16::from_f32),
                    DType::BF16 => stream.tensor(&shape, bf16::from_f32),
                    DType::F64 => stream.tensor(&shape, f64::from),
                    found => return Err(LoadError::Dtype { found }),
                }
            };
            let tensor = tensor.and_then(|tensor| tensor.to_device(device));
            let tensor = tensor.map_err(|source| LoadError::Tensor {
                name: name.clone(),
                source: Box::new(source),
            })?;
            Ok((name, LazyTensor::from_tensor(tensor)?))
        })
        .collect()
}

/// The random numbers of one tensor.
#[derive(Clone, Copy)]
struct Stream {
    seed: u64,
    /// The index of the tensor among those of the model.
    number: u32,
    deviation: f32,
}

impl Stream {
    fn tensor<T: WithDType>(self, shape: &[usize], of: fn(f32) -> T) -> candle_core::Result<Tensor> {
        Tensor::from_vec(self.values(shape.iter().product(), of), shape, &Device::Cpu)
    }

    /// Each number depends on its index alone, so the work can be split over threads in any way.
    fn values<T: WithDType>(self, count: usize, of: fn(f32) -> T) -> Vec<T> {
        let mut values = vec![T::zero(); count];
        let threads = thread::available_parallelism().map_or(1, NonZero::get);
        // Whole Philox blocks of four.
        let share = count.div_ceil(threads).next_multiple_of(4);
        thread::scope(|scope| {
            for (part, values) in values.chunks_mut(share.max(4)).enumerate() {
                scope.spawn(move || self.fill(values, part * share / 4, of));
            }
        });
        values
    }

    /// Fills `values` with the numbers from block `first` on.
    fn fill<T>(self, values: &mut [T], first: usize, of: fn(f32) -> T) {
        let key = [self.seed as u32, (self.seed >> 32) as u32];
        for (values, index) in values.chunks_mut(4).zip(first as u64..) {
            let numbers = random::normal_block(key, [self.number, 1], index);
            for (value, number) in values.iter_mut().zip(numbers) {
                *value = of(number as f32 * self.deviation);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_stream_however_many_threads() {
        let stream = Stream {
            seed: 3 << 32 | 5,
            number: 7,
            deviation: 0.5,
        };
        for count in [0, 1, 6, 1001] {
            let plain: Vec<f32> = random::normal32([5, 3], [7, 1]).take(count).map(|x| x * 0.5).collect();
            assert_eq!(stream.values(count, |x| x), plain);
        }
    }
    #[test]
    fn weights_follow_from_the_seed_and_have_their_moments() {
        let json = serde_json::json!({
            "model_type": "qwen2", "vocab_size": 500, "hidden_size": 16, "intermediate_size": 48,
            "num_hidden_layers": 1, "num_attention_heads": 4,
        });
        let config = ModelConfig::from_json("config.json".as_ref(), json.as_object().unwrap()).unwrap();
        let make = |seed, dtype| random_parameters(&config, 0.02, dtype, seed, &Device::Cpu).unwrap();
        let values = |tensor: &LazyTensor| tensor.cast(DType::F32).unwrap().to_vec::<f32>().unwrap();
        let (wide, narrow, other) = (make(1, DType::F32), make(1, DType::BF16), make(2, DType::F32));
        for (((name, wide), (_, narrow)), (_, other)) in wide.iter().zip(&narrow).zip(&other) {
            assert_eq!((wide.dtype(), narrow.dtype()), (DType::F32, DType::BF16));
            let constant = match name {
                name if name.ends_with("norm.weight") => Some(1.0),
                name if name.ends_with("proj.bias") => Some(0.0),
                _ => None,
            };
            if let Some(constant) = constant {
                assert!(values(narrow).iter().all(|x| *x == constant), "{name}");
                continue;
            }
            assert_ne!(values(wide), values(other), "{name}");
            let rounded: Vec<f32> = values(wide).iter().map(|x| bf16::from_f32(*x).to_f32()).collect();
            assert_eq!(values(narrow), rounded, "{name}");
        }
        let embedding = values(&wide[0].1);
        let variance = embedding.iter().map(|x| x * x).sum::<f32>() / embedding.len() as f32;
        assert!((variance.sqrt() / 0.02 - 1.0).abs() < 0.03, "{variance}");
        assert!(random(&config, DType::U32, 1, &Device::Cpu).is_err());
    }
}
