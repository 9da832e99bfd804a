//! Generation token by token: ids, texts and probabilities against transformers' logits and against `generate`.

#![cfg(feature = "graph")]

mod common;

use std::ops::ControlFlow;

use candle_core::{DType, Device, Tensor};
use common::{MODELS, fixture, reference, values};
use metal_candle::StreamToken;
use metal_candle::inference::{FinishReason, Generation, GenerationOptions, Generator, Prompt, SamplingConfig};
use metal_candle::models::{LoadedModel, load};

const TEXT: Prompt<'static> = Prompt::Text("The quick brown fox");

fn loaded(name: &str) -> LoadedModel {
    load(fixture(&format!("models/{name}")), DType::F32, &Device::Cpu).unwrap()
}

fn up_to(max_new_tokens: usize) -> GenerationOptions {
    GenerationOptions {
        max_new_tokens,
        ..GenerationOptions::default()
    }
}

/// Generates with both callbacks and checks that they agree.
fn stream(
    generator: &Generator<'_>,
    prompt: Prompt<'_>,
    options: &GenerationOptions,
) -> (Vec<StreamToken>, Generation) {
    let plain = generator
        .generate(prompt, options, &mut |_| ControlFlow::Continue(()))
        .unwrap();
    let mut told = Vec::new();
    let answer = generator
        .generate_stream(prompt, options, &mut |token| {
            told.push(token.clone());
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!((&answer.tokens, &answer.text), (&plain.tokens, &plain.text));
    assert_eq!(answer.finish_reason, plain.finish_reason);
    assert_eq!(told.iter().map(|t| t.token_id).collect::<Vec<_>>(), answer.tokens);
    assert_eq!(
        told.iter().filter_map(|t| t.text.as_deref()).collect::<String>(),
        answer.text
    );
    assert!(told.iter().all(|t| t.text.as_deref() != Some("")));
    (told, answer)
}

/// `ln(softmax(row))` by the definition, in f64.
fn log_softmax(row: &[f32]) -> Vec<f64> {
    let sum: f64 = row.iter().map(|&x| f64::from(x).exp()).sum();
    row.iter().map(|&x| f64::from(x) - sum.ln()).collect()
}

#[test]
fn log_probabilities_equal_those_of_transformers_logits() {
    for name in MODELS {
        let (loaded, expected) = (loaded(name), reference(&format!("models/{name}/reference.safetensors")));
        let generator = Generator::new(&loaded);
        let tokens: Vec<u32> = expected["input_ids"]
            .get(0)
            .and_then(|t| t.to_dtype(DType::U32)?.to_vec1())
            .unwrap();
        for read in [1, 7, 19] {
            let row: Tensor = expected["logits"].get(0).and_then(|t| t.get(read - 1)).unwrap();
            let (told, _) = stream(&generator, Prompt::Tokens(&tokens[..read]), &up_to(1));
            let (logits, token) = (values(&row), &told[0]);
            let want = log_softmax(&logits)[token.token_id as usize];
            assert!(
                (f64::from(token.log_probability) - want).abs() < 1e-4,
                "{name}, {read}: {token:?}, {want}"
            );
            assert!(
                (f64::from(token.probability) - want.exp()).abs() < 1e-5,
                "{name}, {read}: {token:?}"
            );
            assert!(
                (token.logit - logits[token.token_id as usize]).abs() < 1e-4,
                "{name}, {read}: {token:?}"
            );
        }
    }
}

#[test]
fn texts_of_tokens_add_up_to_the_answer() {
    for name in MODELS {
        let loaded = loaded(name);
        let generator = Generator::new(&loaded);
        let (_, answer) = stream(&generator, TEXT, &up_to(24));
        // A stop string that is reached, and one whose beginning occurs again and again.
        let middle: String = answer.text.chars().skip(4).take(2).collect();
        let hardly = format!("{}\u{1F40E}", answer.text.chars().next_back().unwrap());
        for stop in [middle, hardly] {
            let options = GenerationOptions {
                stop_strings: vec![stop],
                ..up_to(24)
            };
            stream(&generator, TEXT, &options);
        }
    }
}

#[test]
fn sampling_changes_the_choice_and_not_the_models_probability() {
    let loaded = loaded("llama-tiny");
    let generator = Generator::new(&loaded);
    let (greedy, _) = stream(&generator, TEXT, &up_to(1));
    let sampling = SamplingConfig {
        temperature: 1e-4,
        top_k: 1,
        ..SamplingConfig::default()
    };
    let (sampled, _) = stream(&generator, TEXT, &GenerationOptions { sampling, ..up_to(1) });
    assert_eq!(sampled, greedy);
    assert!(
        greedy[0].probability < 0.9,
        "the test needs a model in doubt: {greedy:?}"
    );
}

#[test]
fn only_the_token_that_ends_the_answer_is_an_end_token() {
    let loaded = loaded("llama-tiny");
    let generator = Generator::new(&loaded);
    let (free, _) = stream(&generator, TEXT, &up_to(5));
    assert!(free.iter().all(|token| !token.is_eos));
    let options = GenerationOptions {
        stop_tokens: Some(vec![free[2].token_id]),
        ..up_to(5)
    };
    let (told, answer) = stream(&generator, TEXT, &options);
    assert_eq!(answer.finish_reason, FinishReason::StopToken);
    assert_eq!(
        told.iter().map(|token| token.is_eos).collect::<Vec<_>>(),
        [false, false, true]
    );
}

#[test]
fn a_break_ends_the_answer_after_that_token() {
    let loaded = loaded("qwen2-tiny");
    let generator = Generator::new(&loaded);
    let mut count = 0;
    let answer = generator
        .generate_stream(TEXT, &up_to(24), &mut |_| {
            count += 1;
            if count == 3 {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })
        .unwrap();
    assert_eq!((count, answer.tokens.len()), (3, 3));
    assert_eq!(answer.finish_reason, FinishReason::Cancelled);
}
