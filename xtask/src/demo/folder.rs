//! The files of the demonstration: a model folder without weights, the corpus, and the two instruction sets.
//!
//! Everything is written from the seed alone; the weights are added by pre-training.

use std::path::Path;

use miette::{IntoDiagnostic, Result, WrapErr};
use serde_json::{Value, json};

use super::instructions::Example;
use super::tokenizer::{
    END_OF_TEXT, MESSAGE_END, PADDING, SPECIAL, VOCABULARY, count_tokens, tokenizer_json, train_tokenizer,
};
use super::{corpus, instructions};

/// Number of documents that the tokenizer is trained on; the rest of the corpus has the same words.
const TOKENIZER_DOCUMENTS: usize = 4000;
/// Number of chats that the tokenizer is trained on.
const TOKENIZER_EXAMPLES: usize = 500;
/// The `ChatML` template, as in the Qwen2 models, without a default system message.
const CHAT_TEMPLATE: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + \
    message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}{% if add_generation_prompt %}\
    {{ '<|im_start|>assistant\\n' }}{% endif %}";

/// Counts of what [`write_folder`] wrote.
#[derive(Debug, PartialEq, Eq)]
pub struct Statistics {
    pub documents: usize,
    pub corpus_tokens: usize,
    pub training: usize,
    /// Tokens of all orders and records, without chat markup.
    pub training_tokens: usize,
    pub held_out: usize,
}

/// Writes into `folder`, which is created if needed:
///
/// - `model/`: `config.json`, `generation_config.json`, `tokenizer.json`, `tokenizer_config.json`;
/// - `corpus.jsonl`: `documents` lines `{"text": ..}` for pre-training;
/// - `train.jsonl` and `heldout.jsonl`: `{"messages": [..]}`, the skill that fine-tuning teaches.
///
/// # Errors
///
/// A file that cannot be written, by name; a corpus too small to train the tokenizer on.
pub fn write_folder(folder: &Path, seed: u64, documents: usize) -> Result<Statistics> {
    let texts = corpus(seed, documents);
    let (training, held_out) = instructions(seed);
    let some = &texts[..documents.min(TOKENIZER_DOCUMENTS)];
    let tokenizer = train_tokenizer(some, &training[..TOKENIZER_EXAMPLES])?;

    write(
        folder,
        "corpus.jsonl",
        &lines(texts.iter().map(|text| json!({ "text": text }))),
    )?;
    write(folder, "train.jsonl", &lines(training.iter().map(Example::to_json)))?;
    write(folder, "heldout.jsonl", &lines(held_out.iter().map(Example::to_json)))?;
    write(folder, "model/tokenizer.json", &tokenizer_json(&tokenizer)?)?;
    for (name, value) in [
        ("config.json", config()),
        ("generation_config.json", generation_config()),
        ("tokenizer_config.json", tokenizer_config()),
    ] {
        write(folder, &format!("model/{name}"), &format!("{value:#}\n"))?;
    }

    let count = |texts: &mut dyn Iterator<Item = &String>| -> Result<usize> {
        texts.map(|text| count_tokens(&tokenizer, text)).sum()
    };
    Ok(Statistics {
        documents,
        corpus_tokens: count(&mut texts.iter())?,
        training: training.len(),
        training_tokens: count(&mut training.iter().flat_map(|example| [&example.order, &example.record]))?,
        held_out: held_out.len(),
    })
}

fn write(folder: &Path, name: &str, text: &str) -> Result<()> {
    let path = folder.join(name);
    let parent = path.parent().unwrap_or(folder);
    std::fs::create_dir_all(parent)
        .into_diagnostic()
        .wrap_err_with(|| parent.display().to_string())?;
    std::fs::write(&path, text)
        .into_diagnostic()
        .wrap_err_with(|| path.display().to_string())
}

fn lines(values: impl Iterator<Item = Value>) -> String {
    values.map(|value| value.to_string() + "\n").collect()
}

fn id(token: &str) -> Option<usize> {
    SPECIAL.iter().position(|special| *special == token)
}

/// A Qwen2 model of about a million parameters.
fn config() -> Value {
    json!({
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "vocab_size": VOCABULARY,
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_act": "silu",
        "max_position_embeddings": 512,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-6,
        "initializer_range": 0.05,
        "attention_dropout": 0.0,
        "tie_word_embeddings": true,
        "use_sliding_window": false,
        "use_cache": true,
        "bos_token_id": null,
        "eos_token_id": id(END_OF_TEXT),
        "pad_token_id": id(PADDING),
        "torch_dtype": "bfloat16",
    })
}

fn generation_config() -> Value {
    json!({
        "do_sample": false,
        "eos_token_id": [id(MESSAGE_END), id(END_OF_TEXT)],
        "pad_token_id": id(PADDING),
        "max_new_tokens": 64,
    })
}

fn tokenizer_config() -> Value {
    json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": false,
        "add_prefix_space": false,
        "clean_up_tokenization_spaces": false,
        "model_max_length": 512,
        "bos_token": null,
        "eos_token": MESSAGE_END,
        "pad_token": PADDING,
        "chat_template": CHAT_TEMPLATE,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_is_complete_and_repeats_itself() {
        let base = std::env::temp_dir().join(format!("xtask-folder-{}", std::process::id()));
        let (a, b) = (base.join("a"), base.join("b"));
        let statistics = write_folder(&a, 4, 1500).unwrap();
        assert_eq!(statistics, write_folder(&b, 4, 1500).unwrap());
        let model =
            ["config", "generation_config", "tokenizer", "tokenizer_config"].map(|name| format!("model/{name}.json"));
        let data = ["corpus.jsonl", "train.jsonl", "heldout.jsonl"].map(str::to_owned);
        for name in model.iter().chain(&data) {
            let text = std::fs::read_to_string(a.join(name)).unwrap();
            assert_eq!(text, std::fs::read_to_string(b.join(name)).unwrap(), "{name}");
            let documents = if name.ends_with('l') {
                text.lines().collect()
            } else {
                vec![text.as_str()]
            };
            assert!(
                documents.iter().all(|text| serde_json::from_str::<Value>(text).is_ok()),
                "{name}"
            );
        }
        std::fs::remove_dir_all(&base).unwrap();
    }

    #[test]
    fn the_head_sizes_fit() {
        let config = config();
        let number = |key: &str| config[key].as_u64().unwrap();
        assert_eq!(number("hidden_size") % number("num_attention_heads"), 0);
        assert_eq!(number("num_attention_heads") % number("num_key_value_heads"), 0);
        assert_eq!(config["pad_token_id"], 3);
        assert_eq!(generation_config()["eos_token_id"], json!([2, 0]));
    }
}
