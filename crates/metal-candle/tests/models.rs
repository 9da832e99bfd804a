//! Models against transformers: logits, hidden states and what is wrong with folders that do not load.

#![cfg(feature = "graph")]

mod common;

use candle_core::{DType, Device};
use common::{MODELS, fixture, largest_difference, reference, tokens_of};
use metal_candle::models::load_model;
use metal_candle::nn::Pass;

#[test]
fn logits_equal_transformers() {
    for name in MODELS {
        let model = load_model(fixture(&format!("models/{name}")), DType::F32, &Device::Cpu).unwrap();
        let expected = reference(&format!("models/{name}/reference.safetensors"));
        let tokens = tokens_of(&expected["input_ids"]);
        let mut pass = Pass::from_start(tokens.dims()[1], &Device::Cpu).unwrap();
        let logits = model.logits(&tokens, &mut pass).unwrap().eval().unwrap();
        let difference = largest_difference(&logits, &expected["logits"]);
        assert!(difference <= 1e-4, "{name}: logits differ by {difference:e}");
    }
}
