//! Inputs of the benchmarks: seeded random numbers, token ids, and the settings of a model.

use std::path::Path;

use candle_core::{DType, Device};
use metal_candle::graph::io::read_json_object;
use metal_candle::graph::{LazyTensor, Result, random};
use metal_candle::models::ModelConfig;

use crate::error::{self, Failure};

/// Seeded random inputs, each from its own stream.
pub struct Inputs {
    seed: u64,
    made: u32,
    device: Device,
}

impl Inputs {
    pub fn new(seed: u64, device: &Device) -> Self {
        Self {
            seed,
            made: 0,
            device: device.clone(),
        }
    }

    /// Normal numbers with this standard deviation, evaluated.
    pub fn normal(&mut self, shape: &[usize], deviation: f32, dtype: DType) -> Result<LazyTensor> {
        let (key, stream) = self.next();
        let count = shape.iter().product();
        let values: Vec<f32> = random::normal32(key, stream)
            .take(count)
            .map(|x| x * deviation)
            .collect();
        let tensor = LazyTensor::from_slice(&values, shape, &self.device)?.cast(dtype)?;
        LazyTensor::from_tensor(tensor.eval()?)
    }

    /// Token ids below `vocabulary`.
    pub fn tokens(&mut self, count: usize, vocabulary: usize) -> Vec<u32> {
        let (key, stream) = self.next();
        // The upper half of a product with a random word: uniform, as the vocabulary is far below 2^32.
        let below = |word: u32| ((u64::from(word) * vocabulary as u64) >> 32) as u32;
        random::bits(key, stream).take(count).map(below).collect()
    }

    fn next(&mut self) -> ([u32; 2], [u32; 2]) {
        self.made += 1;
        ([self.seed as u32, (self.seed >> 32) as u32], [self.made, 2])
    }
}

/// The settings of a model, and its name: that of the file.
///
/// # Errors
/// Bad input that names the file and the field.
pub fn model(path: &Path) -> error::Result<(String, ModelConfig)> {
    let map = read_json_object(path).map_err(|error| {
        let tip = "give the config.json of a model, as Hugging Face stores it";
        Failure::with_tip(error.to_string(), tip)
    })?;
    let config = ModelConfig::from_json(path, &map).map_err(|error| Failure::input(error.to_string()))?;
    let name = path
        .file_stem()
        .map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    Ok((name, config))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_depend_on_the_seed_and_differ_from_each_other() {
        let make = |seed| {
            let mut inputs = Inputs::new(seed, &Device::Cpu);
            [0; 2].map(|_| {
                inputs
                    .normal(&[2, 3], 1.0, DType::F32)
                    .unwrap()
                    .to_vec::<f32>()
                    .unwrap()
            })
        };
        assert_eq!(make(1), make(1));
        assert_ne!(make(1), make(2));
        assert_ne!(make(1)[0], make(1)[1]);
    }

    #[test]
    fn tokens_are_within_the_vocabulary() {
        let tokens = Inputs::new(7, &Device::Cpu).tokens(1000, 5);
        assert!((0..5).all(|id| tokens.contains(&id)));
        assert_eq!(tokens.iter().max(), Some(&4));
    }
}
