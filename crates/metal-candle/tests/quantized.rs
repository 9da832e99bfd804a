//! Models with quantised weights: close to transformers' logits, and equal to the model with the dequantised weights,
//! in generation and with trained adapters.

#![cfg(feature = "graph")]

mod common;

use std::collections::HashMap;
use std::ops::ControlFlow;

use candle_core::{DType, Device, Tensor};
use common::{fixture, reference, tokens_of, values};
use metal_candle::adapters::{AdapterConfig, AdapterParameters, apply};
use metal_candle::inference::{Decoder, GenerationOptions, Generator, Prompt};
use metal_candle::models::{
    CausalLm, LoadOptions, ModelConfig, QuantFormat, from_parts, load_model, load_model_with, load_with, random_with,
};
use metal_candle::nn::{Pass, QuantizedLinear};
use metal_candle::training::Stepper;
use metal_candle_graph::{AdamWOptions, CrossEntropyOptions, LazyTensor, value_and_grad};

const FORMATS: [QuantFormat; 2] = [QuantFormat::Q8_0, QuantFormat::Q4_0];

/// Normalised mean squared error.
fn nmse(found: &[f32], wanted: &[f32]) -> f64 {
    assert_eq!(found.len(), wanted.len());
    let square = |x: f32| f64::from(x).powi(2);
    let error: f64 = found.iter().zip(wanted).map(|(f, w)| square(f - w)).sum();
    error / wanted.iter().map(|w| square(*w)).sum::<f64>()
}

fn quantized(name: &str, format: QuantFormat) -> Box<dyn CausalLm> {
    let options = LoadOptions::new(DType::F32).quantized(format);
    load_model_with(fixture(&format!("models/{name}")), options, &Device::Cpu).unwrap()
}

/// The model with the dequantised weights: every matrix except the embedding.
fn dequantized(name: &str, format: QuantFormat) -> Box<dyn CausalLm> {
    let folder = fixture(&format!("models/{name}"));
    let config = ModelConfig::read(&folder).unwrap();
    let mut tensors = HashMap::new();
    for (name, tensor) in candle_core::safetensors::load(folder.join("model.safetensors"), &Device::Cpu).unwrap() {
        let is_matrix = name.ends_with("proj.weight") || name == "lm_head.weight";
        let tensor = if is_matrix && QuantizedLinear::fits(tensor.dims()[1]) {
            let values = format.dequantize(&format.quantize(&values(&tensor)).unwrap());
            Tensor::from_vec(values, tensor.shape(), &Device::Cpu).unwrap()
        } else {
            tensor
        };
        tensors.insert(name, tensor);
    }
    from_parts(&config, tensors, DType::F32, &Device::Cpu).unwrap()
}

fn logits(model: &dyn CausalLm, tokens: &LazyTensor) -> Vec<f32> {
    let mut pass = Pass::from_start(tokens.dims()[1], &Device::Cpu).unwrap();
    values(&model.logits(tokens, &mut pass).unwrap().eval().unwrap())
}

/// Weights in 8 bits have an error of about 3e-5, in 4 bits of 6e-3; random layers, which are not adapted to the likely
/// directions of their inputs, accumulate all of it.
#[test]
fn logits_stay_close_to_transformers() {
    for name in ["llama-tiny", "llama-tied-tiny", "qwen2-sharded-tiny"] {
        let expected = reference(&format!("models/{name}/reference.safetensors"));
        let tokens = tokens_of(&expected["input_ids"]);
        for (format, most) in [(QuantFormat::Q8_0, 1e-3), (QuantFormat::Q4_0, 0.2)] {
            let found = logits(&*quantized(name, format), &tokens);
            let error = nmse(&found, &values(&expected["logits"]));
            assert!(error > 1e-8, "{name}: nothing was quantised");
            assert!(error <= most, "{name} in {}: {error:e}", format.name());
        }
    }
}

#[test]
fn logits_are_those_of_the_dequantised_weights() {
    for format in FORMATS {
        let expected = reference("models/llama-tiny/reference.safetensors");
        let tokens = tokens_of(&expected["input_ids"]);
        let found = logits(&*quantized("llama-tiny", format), &tokens);
        let error = nmse(&found, &logits(&*dequantized("llama-tiny", format), &tokens));
        assert!(error <= 1e-9, "{}: {error:e}", format.name());
    }
}

/// All layers of `qwen2-tiny` have 48 inputs, except some with 80: not a multiple of the block size.
#[test]
fn layers_with_partial_blocks_are_not_quantised() {
    let plain = load_model(fixture("models/qwen2-tiny"), DType::F32, &Device::Cpu).unwrap();
    let tokens = LazyTensor::from_data(&[5u32, 6, 7], &[1, 3], &Device::Cpu).unwrap();
    let model = quantized("qwen2-tiny", QuantFormat::Q4_0);
    assert_eq!(logits(&*model, &tokens), logits(&*plain, &tokens));
}

/// Embedding lookups and training read the embedding, decoding reads the quantised copy.
#[test]
fn a_tied_head_is_a_copy() {
    let plain = load_model(fixture("models/llama-tied-tiny"), DType::F32, &Device::Cpu).unwrap();
    let model = quantized("llama-tied-tiny", QuantFormat::Q4_0);
    let list = |tensor: &LazyTensor| tensor.to_vec::<f32>().unwrap();
    assert_eq!(list(model.head()), list(plain.head()));
    let hidden = plain.head().slice(0, 0, 12).unwrap();
    let error = nmse(
        &list(&model.project(&hidden).unwrap()),
        &list(&plain.project(&hidden).unwrap()),
    );
    assert!((1e-5..0.05).contains(&error), "{error:e}");
    // An untied head is kept only in quantised form; training reads the dequantised weight.
    let model = quantized("llama-tiny", QuantFormat::Q4_0);
    let untied = dequantized("llama-tiny", QuantFormat::Q4_0);
    assert_eq!(list(model.head()), list(untied.head()));
}

/// Decoding token by token quantises the few rows of activations; reading all at once does not. Quantised activations
/// have an error of 3e-5, which accumulates like that of the weights.
#[test]
fn quantised_decoding_agrees_with_the_full_forward() {
    for format in FORMATS {
        let options = LoadOptions::new(DType::F32).quantized(format);
        let loaded = load_with(fixture("models/llama-tiny"), options, &Device::Cpu).unwrap();
        let tokens: Vec<u32> = (0..20).map(|i| 3 + 13 * i).collect();
        let row = LazyTensor::from_data(&tokens, &[1, tokens.len()], &Device::Cpu).unwrap();
        let all = logits(&*loaded.model, &row);
        let vocab = all.len() / tokens.len();
        let decoder = Decoder::new(&*loaded.model);
        let mut cache = decoder.cache(1).unwrap();
        let mut step = decoder.read(&mut cache, &[&tokens[..9]]).unwrap();
        for (i, &token) in tokens.iter().enumerate().skip(9) {
            let error = nmse(&step, &all[(i - 1) * vocab..i * vocab]);
            assert!(error <= 5e-3, "{}, token {i}: {error:e}", format.name());
            step = decoder.next(&mut cache, &[token]).unwrap();
        }
        let options = GenerationOptions {
            max_new_tokens: 12,
            stop_tokens: Some(vec![]),
            ..GenerationOptions::default()
        };
        let generator = Generator::new(&loaded);
        let answer = generator.generate(Prompt::Tokens(&tokens), &options, &mut |_| ControlFlow::Continue(()));
        assert_eq!(answer.unwrap().tokens.len(), 12);
    }
}

/// The loss of a model with adapters, over every token.
fn loss(model: &dyn CausalLm, adapters: &[LazyTensor], tokens: &LazyTensor) -> metal_candle_graph::Result<LazyTensor> {
    let length = tokens.dims()[1];
    let mut pass = Pass::from_start(length, &Device::Cpu)?.with_adapters(adapters);
    let hidden = model.hidden(tokens, &mut pass)?.slice(1, 0, length - 1)?;
    let targets = tokens.slice(1, 1, length)?.reshape(&[length - 1])?.cast(DType::I64)?;
    let rows = hidden.reshape(&[length - 1, model.config().hidden_size])?;
    rows.cross_entropy(model.head(), &targets, CrossEntropyOptions::default())?
        .sum_all()
}

fn adapted(model: &mut dyn CausalLm) -> AdapterParameters {
    let mut adapter = apply(model, &AdapterConfig::default(), 3).unwrap();
    // B is not zero, so that A has a gradient too.
    let moved = |t: &LazyTensor| LazyTensor::from_tensor(t.add_scalar(0.01).unwrap().eval().unwrap()).unwrap();
    let tensors = adapter.tensors().iter().map(moved).collect();
    adapter.set_tensors(tensors).unwrap();
    adapter
}

#[test]
fn gradients_of_adapters_are_those_over_the_dequantised_weights() {
    let tokens: Vec<u32> = (0..24).map(|i| 3 + 11 * i % 290).collect();
    let tokens = LazyTensor::from_data(&tokens, &[1, 24], &Device::Cpu).unwrap();
    for format in FORMATS {
        let of = |mut model: Box<dyn CausalLm>| {
            let adapter = adapted(&mut *model);
            let loss = loss(&*model, adapter.tensors(), &tokens).unwrap();
            let (_, gradients) = value_and_grad(&loss, adapter.tensors()).unwrap();
            gradients.iter().map(|g| g.to_vec::<f32>().unwrap()).collect::<Vec<_>>()
        };
        let (found, wanted) = (
            of(quantized("llama-tiny", format)),
            of(dequantized("llama-tiny", format)),
        );
        for (i, (found, wanted)) in found.iter().zip(&wanted).enumerate() {
            let error = nmse(found, wanted);
            assert!(error <= 1e-8, "{}, tensor {i}: {error:e}", format.name());
        }
    }
}

#[test]
fn an_adapter_learns_on_a_quantised_base() {
    let tokens = LazyTensor::from_data(
        &[7u32, 50, 9, 120, 33, 7, 50, 9, 120, 33, 7, 50],
        &[1, 12],
        &Device::Cpu,
    )
    .unwrap();
    for format in FORMATS {
        let mut model = quantized("llama-tiny", format);
        let adapter = apply(&mut *model, &AdapterConfig::default(), 3).unwrap();
        let options = AdamWOptions {
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.0,
        };
        let model = &*model;
        let learn = move |adapters: &[LazyTensor], batch: &[LazyTensor]| loss(model, adapters, &batch[0]);
        let mut stepper = Stepper::new(adapter.tensors().to_vec(), options, learn).unwrap();
        let mut step = || stepper.step(&[vec![tokens.clone()]], 11, 1e-2, 1.0).unwrap();
        let first = step().loss;
        let last = (0..30).map(|_| step().loss).last().unwrap();
        assert!(last < 0.5 * first, "{}: {first} became {last}", format.name());
        let b = stepper.parameters()[1].to_vec::<f32>().unwrap();
        assert!(b.iter().any(|x| *x != 0.0), "B stayed zero");
    }
}

#[test]
fn random_models_are_quantised_from_the_same_numbers() {
    let config = ModelConfig::read(&fixture("models/llama-tiny")).unwrap();
    let make = |format: Option<QuantFormat>| {
        let options = LoadOptions::new(DType::F32).quantized(format);
        random_with(&config, options, 5, &Device::Cpu).unwrap()
    };
    let tokens = LazyTensor::from_data(&(3..20u32).collect::<Vec<_>>(), &[1, 17], &Device::Cpu).unwrap();
    let plain = logits(&*make(None), &tokens);
    let error = FORMATS.map(|format| nmse(&logits(&*make(Some(format)), &tokens), &plain));
    assert!(
        1e-8 < error[0] && error[0] < 1e-3 && error[0] < error[1] && error[1] < 0.1,
        "{error:?}"
    );
}

#[test]
fn weights_that_cannot_be_quantised_are_named() {
    let folder = fixture("models/llama-tiny");
    let copy = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(folder.join(file), copy.path().join(file)).unwrap();
    }
    let weights = copy.path().join("model.safetensors");
    let mut tensors = candle_core::safetensors::load(&weights, &Device::Cpu).unwrap();
    let name = "model.layers.1.mlp.up_proj.weight";
    let shape = tensors[name].shape().clone();
    tensors.insert(name.to_owned(), Tensor::full(f32::NAN, shape, &Device::Cpu).unwrap());
    candle_core::safetensors::save(&tensors, &weights).unwrap();
    let options = LoadOptions::new(DType::F32).quantized(QuantFormat::Q8_0);
    let fault = load_model_with(copy.path(), options, &Device::Cpu)
        .err()
        .unwrap()
        .to_string();
    assert!(
        fault.starts_with(&format!("tensor `{name}` cannot be quantised: ")),
        "{fault}"
    );
}
