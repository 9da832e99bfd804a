//! Generation against transformers: tokens and texts, conversations, the cache, and all stop conditions.

#![cfg(feature = "graph")]

mod common;

use std::ops::ControlFlow;

use candle_core::{DType, Device, Tensor};
use common::{MODELS, fixture, largest_difference, reference};
use metal_candle::adapters::{Adapter, apply_adapter, attach};
use metal_candle::inference::{
    FinishReason, GenerateError, Generation, GenerationOptions, Generator, Prompt, SamplingConfig,
};
use metal_candle::models::{CausalLm, GenerationConfig, LoadedModel, ModelConfig, from_parts, load, load_model};
use metal_candle::nn::{Cache, Pass};
use metal_candle::text::{ChatMessage, Tokenizer};
use metal_candle_graph::LazyTensor;
use serde_json::Value;

fn loaded(name: &str) -> LoadedModel {
    load(fixture(&format!("models/{name}")), DType::F32, &Device::Cpu).unwrap()
}

fn expectations(name: &str) -> Value {
    let path = fixture(&format!("models/{name}/reference.json"));
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|id| id.as_u64().unwrap() as u32)
        .collect()
}

/// Generates and checks that the pieces concatenate to the text.
fn run(generator: &Generator<'_>, prompt: Prompt<'_>, options: &GenerationOptions) -> Generation {
    let mut pieces = String::new();
    let answer = generator
        .generate(prompt, options, &mut |piece| {
            assert!(!piece.is_empty());
            pieces.push_str(piece);
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(pieces, answer.text);
    answer
}

fn up_to(max_new_tokens: usize) -> GenerationOptions {
    GenerationOptions {
        max_new_tokens,
        ..GenerationOptions::default()
    }
}

#[test]
fn greedy_answers_equal_transformers() {
    for name in MODELS {
        let (loaded, expected) = (loaded(name), expectations(name));
        let generator = Generator::new(&loaded);
        for prompt in expected["prompts"].as_array().unwrap() {
            let text = prompt["text"].as_str().unwrap();
            assert_eq!(
                generator.encode(Prompt::Text(text)).unwrap(),
                ids(&prompt["ids"]),
                "{name}: {text:?}"
            );
            for greedy in prompt["greedy"].as_array().unwrap() {
                let repetition_penalty = greedy["repetition_penalty"].as_f64().unwrap();
                let sampling = SamplingConfig {
                    repetition_penalty,
                    ..SamplingConfig::default()
                };
                let answer = run(
                    &generator,
                    Prompt::Text(text),
                    &GenerationOptions { sampling, ..up_to(24) },
                );
                assert_eq!(
                    answer.tokens,
                    ids(&greedy["ids"]),
                    "{name}: {text:?}, penalty {repetition_penalty}"
                );
                assert_eq!(answer.text, greedy["text"].as_str().unwrap(), "{name}: {text:?}");
                let ended = greedy["ended"].as_bool().unwrap();
                assert_eq!(
                    answer.finish_reason == FinishReason::StopToken,
                    ended,
                    "{name}: {text:?}"
                );
            }
        }
    }
}

#[test]
fn conversations_are_rendered_as_by_transformers() {
    for name in MODELS {
        let (loaded, expected) = (loaded(name), expectations(name));
        let (tokenizer, generator) = (&loaded.tokenizer, Generator::new(&loaded));
        let template = tokenizer.chat_template().unwrap();
        let conversation = |value: &Value| -> Vec<ChatMessage> {
            value
                .as_array()
                .unwrap()
                .iter()
                .map(|m| ChatMessage::from_json(m).unwrap())
                .collect()
        };
        for chat in expected["chats"].as_array().unwrap() {
            let (messages, open) = (
                conversation(&chat["messages"]),
                chat["add_generation_prompt"].as_bool().unwrap(),
            );
            let text = template.render(&messages, open).unwrap();
            assert_eq!(text, chat["text"].as_str().unwrap(), "{name}");
            assert_eq!(tokenizer.encode(&text, false).unwrap(), ids(&chat["ids"]), "{name}");
            if open {
                assert_eq!(
                    generator.encode(Prompt::Chat(&messages)).unwrap(),
                    ids(&chat["ids"]),
                    "{name}"
                );
            }
        }
        for refused in expected["chats_refused"].as_array().unwrap() {
            assert!(
                generator.encode(Prompt::Chat(&conversation(refused))).is_err(),
                "{name}"
            );
        }
    }
}

/// In f64, where errors stand out from rounding; in f32 other shapes sum in another order.
#[test]
fn decoding_with_the_cache_equals_the_full_forward() {
    for (dtype, most) in [(DType::F64, 1e-10), (DType::F32, 1e-4)] {
        for name in MODELS {
            let model = load_model(fixture(&format!("models/{name}")), dtype, &Device::Cpu).unwrap();
            let tokens: Vec<u32> = (0..12).map(|i| (i * 37 + 5) % 290).collect();
            let mut pass = Pass::from_start(tokens.len(), &Device::Cpu).unwrap();
            let whole = model.logits(&row(&tokens), &mut pass).unwrap().eval().unwrap();
            let difference = largest_difference(&in_parts(&*model, &tokens, dtype), &whole);
            assert!(
                difference <= most,
                "{name} in {dtype:?}: logits differ by {difference:e}"
            );
        }
    }
}

/// Logits of 12 tokens read with a cache in parts of 5, 1, 3, 1 and 2.
fn in_parts(model: &dyn CausalLm, tokens: &[u32], dtype: DType) -> Tensor {
    let config = model.config();
    let shape = [1, 16, config.num_key_value_heads, config.head_dim];
    let empty = || LazyTensor::zeros(&shape, dtype, &Device::Cpu).unwrap();
    let mut layers: Vec<_> = (0..config.num_hidden_layers).map(|_| (empty(), empty())).collect();
    let (mut parts, mut read) = (Vec::new(), 0u32);
    for part in [
        &tokens[..5],
        &tokens[5..6],
        &tokens[6..9],
        &tokens[9..10],
        &tokens[10..],
    ] {
        let offset = LazyTensor::from_data(&[read], &[1], &Device::Cpu).unwrap();
        let mut pass = Pass::after(Cache { layers, offset }, part.len()).unwrap();
        parts.push(model.logits(&row(part), &mut pass).unwrap().eval().unwrap());
        layers = pass.into_cache().unwrap().layers;
        read += part.len() as u32;
    }
    Tensor::cat(&parts, 1).unwrap()
}

fn row(part: &[u32]) -> LazyTensor {
    LazyTensor::from_data(part, &[1, part.len()], &Device::Cpu).unwrap()
}

/// qwen2-tiny with a context of 2048 tokens, which changes nothing else.
fn long_context() -> LoadedModel {
    let folder = fixture("models/qwen2-tiny");
    let config = ModelConfig {
        max_position_embeddings: 2048,
        ..ModelConfig::read(&folder).unwrap()
    };
    let tensors = candle_core::safetensors::load(folder.join("model.safetensors"), &Device::Cpu).unwrap();
    let model = from_parts(&config, tensors, DType::F32, &Device::Cpu).unwrap();
    LoadedModel::new(
        model,
        Tokenizer::from_folder(&folder).unwrap(),
        GenerationConfig::default(),
    )
    .unwrap()
}

#[test]
fn outgrown_caches_and_prompts_read_in_parts_change_nothing() {
    let loaded = long_context();
    let generator = Generator::new(&loaded);
    // The initial capacity of the cache is 64 tokens; prompts are read 512 tokens at a time.
    for (length, new) in [(62, 8), (64, 2), (520, 2)] {
        let mut text: Vec<u32> = (0..length).map(|i| (i * 53 + 7) % 290).collect();
        let options = GenerationOptions {
            stop_tokens: Some(vec![]),
            ..up_to(new)
        };
        let answer = run(&generator, Prompt::Tokens(&text), &options);
        text.extend(&answer.tokens);
        let mut pass = Pass::from_start(text.len(), &Device::Cpu).unwrap();
        let logits = loaded.model.logits(&row(&text), &mut pass).unwrap();
        let likeliest = logits.argmax(2).unwrap().to_vec::<u32>().unwrap();
        assert_eq!(
            likeliest[length as usize - 1..text.len() - 1],
            answer.tokens,
            "prompt of {length} tokens"
        );
        assert_eq!(answer.tokens.len(), new);
    }
}

#[test]
fn a_seed_repeats_its_answer_and_another_gives_another() {
    let loaded = loaded("llama-tiny");
    let generator = Generator::new(&loaded);
    let drawn = |seed| {
        let sampling = SamplingConfig {
            temperature: 1.5,
            top_k: 50,
            seed,
            ..SamplingConfig::default()
        };
        run(
            &generator,
            Prompt::Text("The"),
            &GenerationOptions {
                sampling,
                stop_tokens: Some(vec![]),
                ..up_to(16)
            },
        )
        .tokens
    };
    assert_eq!(drawn(1), drawn(1));
    assert_ne!(drawn(1), drawn(2));
}

#[test]
fn answers_end_at_stop_tokens_strings_and_limits() {
    let loaded = loaded("llama-tiny");
    let generator = Generator::new(&loaded);
    let prompt = Prompt::Text("1 + 2 =\n\n  3, isn't it?");
    let whole = run(&generator, prompt, &up_to(24));
    assert_eq!(
        (whole.finish_reason, whole.tokens.len(), whole.prompt_tokens),
        (FinishReason::Length, 24, 20)
    );

    // Every substring of the text as a stop string, however it is spread over tokens.
    let text: Vec<(usize, char)> = whole.text.char_indices().collect();
    for start in 0..text.len() - 3 {
        let (from, to) = (text[start].0, text[start + 3].0);
        let stop = whole.text[from..to].to_owned();
        let expected = &whole.text[..whole.text.find(&stop).unwrap()];
        let answer = run(
            &generator,
            prompt,
            &GenerationOptions {
                stop_strings: vec![stop.clone()],
                ..up_to(24)
            },
        );
        assert_eq!(answer.finish_reason, FinishReason::StopString, "{stop:?}");
        assert_eq!(answer.text, expected, "{stop:?}");
        assert!(answer.tokens.len() <= 24 && whole.tokens.starts_with(&answer.tokens));
    }

    let third = GenerationOptions {
        stop_tokens: Some(vec![whole.tokens[2]]),
        ..up_to(24)
    };
    let answer = run(&generator, prompt, &third);
    assert_eq!(
        (answer.finish_reason, &answer.tokens[..]),
        (FinishReason::StopToken, &whole.tokens[..3])
    );
    assert_eq!(answer.text, loaded.tokenizer.decode(&whole.tokens[..2], true).unwrap());

    let mut pieces = 0;
    let answer = generator
        .generate(prompt, &up_to(24), &mut |_| {
            pieces += 1;
            if pieces == 2 {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })
        .unwrap();
    assert_eq!((answer.finish_reason, pieces), (FinishReason::Cancelled, 2));
    assert!(whole.text.starts_with(&answer.text) && answer.text.len() < whole.text.len());
}

#[test]
fn adapters_act_when_given_to_the_generator() {
    let adapter = Adapter::read(&fixture("adapters/peft-qwen2-tiny"), &Device::Cpu).unwrap();
    let (mut attached, mut applied) = (loaded("qwen2-tiny"), loaded("qwen2-tiny"));
    attach(&mut *attached.model, &adapter).unwrap();
    let parameters = apply_adapter(&mut *applied.model, &adapter).unwrap();
    let mut generator = Generator::new(&applied);
    generator.set_adapters(parameters.tensors());
    let tokens = |generator: &Generator<'_>| run(generator, Prompt::Text("The quick"), &up_to(12)).tokens;
    let expected = tokens(&Generator::new(&attached));
    assert_eq!(tokens(&generator), expected);
    let base = loaded("qwen2-tiny");
    assert_ne!(tokens(&Generator::new(&base)), expected);

    // Greedy choices follow PEFT's logits.
    let peft = reference("adapters/peft-qwen2-tiny/reference.safetensors");
    let row: Vec<u32> = peft["input_ids"]
        .to_dtype(DType::U32)
        .unwrap()
        .to_vec2()
        .unwrap()
        .swap_remove(0);
    let last = peft["logits"]
        .get(0)
        .unwrap()
        .get(row.len() - 1)
        .unwrap()
        .argmax(0)
        .unwrap()
        .to_scalar::<u32>()
        .unwrap();
    assert_eq!(run(&generator, Prompt::Tokens(&row), &up_to(1)).tokens, [last]);
}

#[test]
fn invalid_requests_are_errors_and_the_next_one_works() {
    let loaded = loaded("qwen2-tiny");
    let generator = Generator::new(&loaded);
    let refused = |prompt: &[u32], options: &GenerationOptions| {
        generator
            .generate(Prompt::Tokens(prompt), options, &mut |_| ControlFlow::Continue(()))
            .unwrap_err()
    };
    assert!(matches!(refused(&[], &up_to(1)), GenerateError::EmptyPrompt));
    assert!(matches!(
        refused(&[5, 304], &up_to(1)),
        GenerateError::TokenOutOfVocabulary {
            id: 304,
            position: 1,
            vocab_size: 304
        }
    ));
    assert!(matches!(
        refused(&[5; 500], &up_to(13)),
        GenerateError::ContextTooLong {
            prompt: 500,
            max_new_tokens: 13,
            limit: 512
        }
    ));
    assert!(matches!(
        refused(&[5], &up_to(usize::MAX)),
        GenerateError::ContextTooLong { .. }
    ));
    let empty = GenerationOptions {
        stop_strings: vec![String::new()],
        ..up_to(1)
    };
    assert!(matches!(refused(&[5], &empty), GenerateError::EmptyStopString));
    let cold = SamplingConfig {
        temperature: -1.0,
        ..SamplingConfig::default()
    };
    assert!(matches!(
        refused(
            &[5],
            &GenerationOptions {
                sampling: cold,
                ..up_to(1)
            }
        ),
        GenerateError::Sampling(_)
    ));

    assert_eq!(run(&generator, Prompt::Tokens(&[303]), &up_to(1)).tokens.len(), 1);
    assert_eq!(run(&generator, Prompt::Tokens(&[5; 500]), &up_to(0)).tokens, [0; 0]);
}
