//! Paths of fixtures, and comparisons of numbers.

#![allow(dead_code, reason = "each test program uses a part")]

pub mod seeded;

use std::collections::HashMap;
use std::path::PathBuf;

use candle_core::{DType, Device, Tensor};
use metal_candle_graph::LazyTensor;

/// Every model folder of the fixtures.
pub const MODELS: [&str; 4] = ["llama-tiny", "llama-tied-tiny", "qwen2-tiny", "qwen2-sharded-tiny"];

/// A file or folder of the fixtures.
pub fn fixture(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../fixtures")
        .join(path)
}

/// The tensors of a safetensors file of the fixtures.
pub fn reference(path: &str) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(fixture(path), &Device::Cpu).unwrap()
}

/// Token ids as an input of models.
pub fn tokens_of(ids: &Tensor) -> LazyTensor {
    LazyTensor::from_tensor(ids.to_dtype(DType::U32).unwrap()).unwrap()
}

/// The largest absolute difference of two tensors of one shape, taken in f64.
pub fn largest_difference(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.dims(), b.dims());
    let difference = (a.to_dtype(DType::F64).unwrap() - b.to_dtype(DType::F64).unwrap()).unwrap();
    difference.abs().unwrap().max_all().unwrap().to_scalar().unwrap()
}

/// A tensor's numbers.
pub fn values(tensor: &Tensor) -> Vec<f32> {
    tensor
        .to_dtype(DType::F32)
        .unwrap()
        .flatten_all()
        .unwrap()
        .to_vec1()
        .unwrap()
}
