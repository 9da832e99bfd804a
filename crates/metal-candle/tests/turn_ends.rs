//! A model is trained to end its turn with the token of its chat template, which its configuration does not name, and
//! generation ends there; packed or padded, in one batch or several, the same data has the same gradient.

#![cfg(feature = "graph")]

mod common;

use std::ops::ControlFlow;
use std::path::Path;

use candle_core::{DType, Device};
use common::{fixture, largest_difference, values};
use metal_candle::adapters::{AdapterConfig, apply};
use metal_candle::data::{Dataset, DatasetOptions, Rows};
use metal_candle::inference::{FinishReason, GenerateError, Generation, GenerationOptions, Generator, Prompt};
use metal_candle::models::{LoadedModel, load};
use metal_candle::text::{ChatMessage, end_of_turn_tokens};
use metal_candle::training::{Event, Schedule, StepReport, Trainer, TrainerConfig};

/// A tiny model whose only end token is `<|endoftext|>`, with a template that ends turns with `<|im_end|>`.
fn ended_otherwise(folder: &Path) -> LoadedModel {
    let from = fixture("models/llama-tied-tiny");
    for file in ["model.safetensors", "tokenizer.json"] {
        std::fs::copy(from.join(file), folder.join(file)).unwrap();
    }
    let config = std::fs::read_to_string(from.join("config.json")).unwrap();
    let config = config.replace("\"eos_token_id\": 3", "\"eos_token_id\": 1");
    std::fs::write(folder.join("config.json"), config).unwrap();
    std::fs::write(folder.join("generation_config.json"), r#"{"eos_token_id": 1}"#).unwrap();
    let tokens = r#"{"bos_token": "<|begin_of_text|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}"#;
    std::fs::write(folder.join("tokenizer_config.json"), tokens).unwrap();
    std::fs::copy(
        fixture("models/llama-tiny/chat_template.jinja"),
        folder.join("chat_template.jinja"),
    )
    .unwrap();
    load(folder, DType::F32, &Device::Cpu).unwrap()
}

fn dataset(loaded: &LoadedModel, lines: &str) -> Dataset {
    let rows = Rows::from_reader("data.jsonl", lines.as_bytes()).unwrap();
    Dataset::from_rows(&rows, &loaded.tokenizer, &DatasetOptions::default()).unwrap()
}

fn answer(generator: &Generator<'_>, options: &GenerationOptions) -> Result<Generation, GenerateError> {
    let question = [ChatMessage::new("user", "2+2")];
    generator.generate(Prompt::Chat(&question), options, &mut |_| ControlFlow::Continue(()))
}

#[test]
fn generation_ends_with_the_turn() {
    let folder = tempfile::tempdir().unwrap();
    let mut loaded = ended_otherwise(folder.path());
    let end = loaded.tokenizer.token_id("<|im_end|>").unwrap();
    assert_eq!(end_of_turn_tokens(&loaded.tokenizer), [end]);
    assert_eq!(loaded.stop_tokens(), [1]);
    let multi = r#"{"messages": [{"role": "user", "content": "2+2"}, {"role": "assistant", "content": "4"},
        {"role": "user", "content": "3+3"}, {"role": "assistant", "content": "6"}]}"#;
    let data = dataset(&loaded, &multi.replace('\n', " "));
    assert!(data.warnings().is_empty());
    let parameters = apply(&mut *loaded.model, &AdapterConfig::default(), 42).unwrap();
    let config = TrainerConfig {
        max_steps: Some(200),
        learning_rate: 0.01,
        ..TrainerConfig::default()
    };
    let mut trainer = Trainer::new(&*loaded.model, parameters, data, None, config, 1).unwrap();
    trainer.run(&mut |_| ControlFlow::Continue(())).unwrap();
    let mut generator = Generator::new(&loaded);
    generator.set_adapters(trainer.parameters().unwrap().tensors());
    assert_eq!(generator.stop_tokens(), [1, end]);
    let of = |stop_tokens: Option<Vec<u32>>, stop: &[&str]| {
        let options = GenerationOptions {
            max_new_tokens: 12,
            stop_tokens,
            stop_strings: stop.iter().map(|text| (*text).to_owned()).collect(),
            ..GenerationOptions::default()
        };
        let answer = answer(&generator, &options).unwrap();
        (answer.text, answer.finish_reason)
    };
    assert_eq!(of(None, &[]), ("4".to_owned(), FinishReason::StopToken));
    // Special tokens are matched, but not printed.
    assert_eq!(
        of(Some(vec![]), &["<|im_end|>"]),
        ("4".to_owned(), FinishReason::StopString)
    );
    assert_eq!(
        of(Some(vec![]), &["4<|im_end|>"]),
        (String::new(), FinishReason::StopString)
    );
    assert_eq!(of(Some(vec![]), &["<|im_end|>4"]).0, of(Some(vec![]), &[]).0);
    let four = loaded.tokenizer.encode("4", false).unwrap()[0];
    assert_eq!(of(Some(vec![four]), &[]), (String::new(), FinishReason::StopToken));
    let beyond = GenerationOptions {
        stop_tokens: Some(vec![1, 9999]),
        ..GenerationOptions::default()
    };
    let refused = answer(&generator, &beyond);
    assert!(matches!(
        refused,
        Err(GenerateError::StopTokenOutOfVocabulary { id: 9999, .. })
    ));
}

/// One optimizer step over all the data: the report, and the factors after it.
fn step(lines: &str, packing: bool, rows: usize, max_length: usize) -> (StepReport, Vec<candle_core::Tensor>) {
    let folder = tempfile::tempdir().unwrap();
    let mut loaded = ended_otherwise(folder.path());
    let data = dataset(&loaded, lines);
    let count = data.stats().examples;
    let parameters = apply(&mut *loaded.model, &AdapterConfig::default(), 7).unwrap();
    let config = TrainerConfig {
        max_steps: Some(1),
        per_device_train_batch_size: rows,
        gradient_accumulation_steps: count,
        max_length,
        packing,
        lr_scheduler_type: Schedule::Constant,
        warmup_ratio: 0.0,
        // With a large epsilon the first AdamW step is proportional to the gradient.
        learning_rate: 1.0,
        adam_epsilon: 1e3,
        weight_decay: 0.0,
        max_grad_norm: 0.0,
        ..TrainerConfig::default()
    };
    let mut trainer = Trainer::new(&*loaded.model, parameters, data, None, config, 1).unwrap();
    let mut report = None;
    trainer
        .run(&mut |event| {
            if let Event::Step(step) = event {
                report = Some(step.clone());
            }
            ControlFlow::Continue(())
        })
        .unwrap();
    let tensors = trainer
        .parameters()
        .unwrap()
        .tensors()
        .iter()
        .map(|t| t.eval().unwrap())
        .collect();
    (report.unwrap(), tensors)
}

#[test]
fn packed_or_padded_the_gradient_is_the_same() {
    let words = "the sea is blue and the sky was green or red so they say";
    let lines: Vec<String> = (0..24)
        .map(|i| {
            let said = |n: usize| words.chars().skip(i).take(n).collect::<String>();
            serde_json::json!({"messages": [{"role": "user", "content": said(3 + i)},
                {"role": "assistant", "content": said(2 + 7 * i % 11)}]})
            .to_string()
        })
        .collect();
    let lines = lines.join("\n");
    let (expected, factors) = step(&lines, false, 24, 512);
    for (packing, rows, max_length) in [(false, 5, 512), (true, 8, 512), (true, 2, 96), (true, 1, 128)] {
        let (report, tensors) = step(&lines, packing, rows, max_length);
        assert_eq!(
            (report.tokens, report.supervised_tokens),
            (expected.tokens, expected.supervised_tokens)
        );
        let near = |a: f64, b: f64| (a - b).abs() <= 2e-6 * b.abs();
        assert!(
            near(report.loss, expected.loss),
            "{} and {}",
            report.loss,
            expected.loss
        );
        assert!(
            near(report.grad_norm, expected.grad_norm),
            "{} and {}",
            report.grad_norm,
            expected.grad_norm
        );
        // The factors that were zero are now proportional to the gradient.
        for (a, b) in tensors.iter().zip(&factors).skip(1).step_by(2) {
            let most = values(b).iter().fold(0f32, |most, x| most.max(x.abs()));
            assert!(
                most > 0.0 && largest_difference(a, b) <= 1e-5 * f64::from(most),
                "packing {packing}, {rows} rows"
            );
        }
    }
}
