//! The demonstration that `train` runs without arguments: the embedded model and data, its settings, and its questions.
//!
//! `cargo xtask demo` creates the files; only this module includes them. Nothing is downloaded.

use std::ops::ControlFlow;

use candle_core::Device;
use metal_candle::data::{Row, RowContent, Rows};
use metal_candle::inference::{GenerationOptions, Generator, Prompt};
use metal_candle::models::{self, LoadOptions, LoadedModel};
use metal_candle::text::ChatMessage;
use toml::{Table, Value};

use crate::error::{Failure, Result};
use crate::progress::Counter;

/// The name of the built-in model in adapters.
pub const NAME: &str = "metal-candle-demo";
/// A description in two lines.
pub const INTRODUCTION: [&str; 2] = [
    "Demonstration: a small built-in model learns, by LoRA, to turn an order in plain words into a JSON record.",
    "It is asked about orders it never saw before and after. Your own model and data: --model DIR --data FILE.jsonl",
];
/// Number of examples shown in full, before and after.
pub const SHOWN: usize = 3;

/// Number of held-out orders for the accuracy, before and after.
const ASKED: usize = 100;
/// Maximum length of an answer: records have fewer tokens.
const MAX_NEW_TOKENS: usize = 48;

/// Settings that differ from the defaults. Tuned for 60 seconds on two cores; flags and a settings file take
/// precedence.
pub fn settings() -> Table {
    Table::from_iter([
        ("r".to_owned(), Value::Integer(16)),
        ("lora_alpha".to_owned(), Value::Float(32.0)),
        ("learning_rate".to_owned(), Value::Float(3e-3)),
        ("num_train_epochs".to_owned(), Value::Float(1.0)),
        ("warmup_ratio".to_owned(), Value::Float(0.05)),
        ("weight_decay".to_owned(), Value::Float(0.0)),
        ("per_device_train_batch_size".to_owned(), Value::Integer(8)),
        ("max_length".to_owned(), Value::Integer(128)),
        ("validation_split".to_owned(), Value::Float(0.02)),
        ("eval_steps".to_owned(), Value::Integer(50)),
    ])
}

const MODEL: [(&str, &[u8]); 5] = [
    ("config.json", include_bytes!("../demo/config.json")),
    (
        "generation_config.json",
        include_bytes!("../demo/generation_config.json"),
    ),
    ("model.safetensors", include_bytes!("../demo/model.safetensors")),
    ("tokenizer.json", include_bytes!("../demo/tokenizer.json")),
    ("tokenizer_config.json", include_bytes!("../demo/tokenizer_config.json")),
];
const TRAINING: &[u8] = include_bytes!("../demo/train.jsonl");
const HELD_OUT: &[u8] = include_bytes!("../demo/heldout.jsonl");

/// Loads the built-in model, from a temporary folder that is removed on return.
pub fn load(options: LoadOptions, device: &Device) -> Result<LoadedModel> {
    let unpacked = || -> std::io::Result<tempfile::TempDir> {
        let folder = tempfile::Builder::new().prefix("metal-candle-").tempdir()?;
        for (name, bytes) in MODEL {
            std::fs::write(folder.path().join(name), bytes)?;
        }
        Ok(folder)
    };
    let folder = unpacked().map_err(|error| Failure::Run(format!("cannot unpack the built-in model: {error}")))?;
    models::load_with(folder.path(), options, device).map_err(Failure::running)
}

/// The training data.
pub fn training_rows() -> Result<Rows> {
    Rows::from_reader("train.jsonl (built in)", TRAINING).map_err(Failure::running)
}

/// A held-out order, and the expected record.
#[derive(Debug, Clone, PartialEq)]
pub struct Question {
    messages: Vec<ChatMessage>,
    /// The expected answer.
    pub answer: String,
}

impl Question {
    /// The question of a conversation that ends with its answer.
    fn of_row(row: &Row) -> Option<Self> {
        let RowContent::Messages { messages, .. } = &row.content else {
            return None;
        };
        let (last, before) = messages.split_last()?;
        Some(Self {
            messages: before.to_vec(),
            answer: last.content()?.to_owned(),
        })
    }

    /// The order.
    pub fn text(&self) -> &str {
        self.messages.last().and_then(ChatMessage::content).unwrap_or_default()
    }
}

/// The held-out questions.
pub fn questions() -> Result<Vec<Question>> {
    let rows = Rows::from_reader("heldout.jsonl (built in)", HELD_OUT).map_err(Failure::running)?;
    Ok(rows.rows.iter().filter_map(Question::of_row).take(ASKED).collect())
}

/// The accuracy of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Score {
    /// Number of exactly correct answers.
    pub right: usize,
    /// Number of questions.
    pub asked: usize,
    /// The first answers in full.
    pub answers: Vec<String>,
}

/// Answers every question, greedily.
pub fn measure(generator: &Generator<'_>, questions: &[Question], when: &str) -> Result<Score> {
    let counter = Counter::start(questions.len(), &format!("asking {} questions {when}", questions.len()));
    let mut score = Score {
        right: 0,
        asked: questions.len(),
        answers: Vec::new(),
    };
    for (number, question) in questions.iter().enumerate() {
        let whole = number < SHOWN;
        let text = answer(generator, question, whole)?;
        score.right += usize::from(text == question.answer);
        if whole {
            score.answers.push(text);
        }
        counter.advance();
    }
    counter.finish();
    Ok(score)
}

/// An answer; unless `whole`, it ends at the first wrong character.
fn answer(generator: &Generator<'_>, question: &Question, whole: bool) -> Result<String> {
    let options = GenerationOptions {
        max_new_tokens: MAX_NEW_TOKENS,
        ..GenerationOptions::default()
    };
    let mut so_far = String::new();
    let answer = generator.generate(Prompt::Chat(&question.messages), &options, &mut |piece| {
        so_far.push_str(piece);
        if whole || question.answer.starts_with(&so_far) {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        }
    })?;
    Ok(answer.text)
}

#[cfg(test)]
mod tests {
    use candle_core::DType;

    use super::*;

    #[test]
    fn the_embedded_files_are_a_model_and_its_questions() {
        let loaded = load(LoadOptions::new(DType::F32), &Device::Cpu).unwrap();
        assert!(loaded.tokenizer.chat_template().is_some());
        assert!(training_rows().unwrap().rows.len() > 1000);
        let questions = questions().unwrap();
        assert_eq!(questions.len(), ASKED);
        for question in questions {
            assert!(question.text().len() > 10);
            assert!(question.answer.starts_with('{'), "{}", question.answer);
            let tokens = loaded.tokenizer.encode(&question.answer, false).unwrap();
            assert!(
                tokens.len() < MAX_NEW_TOKENS,
                "{} tokens: {}",
                tokens.len(),
                question.answer
            );
        }
    }
}
