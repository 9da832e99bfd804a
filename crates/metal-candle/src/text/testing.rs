//! Two tiny tokenizers for tests: a byte-level BPE like those of GPT-2, Llama 3 and Qwen, and a BPE with byte fallback
//! that drops the first space, like those of Llama 2 and Mistral.

use serde_json::{Map, Value, json};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

use super::Tokenizer;

/// The `ChatML` template, as Qwen's family writes it.
pub(crate) const CHATML: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + \
    message['content'] + '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' \
    }}{% endif %}";

const WORDS: [&str; 12] = [
    "user",
    "assistant",
    "system",
    "Ġthe",
    "Ġworld",
    "hello",
    "Ġhello",
    "Ġa",
    "Ġis",
    "yes",
    "Ġyes",
    "ĊĊ",
];

/// Adds the merges that build each word from its letters, left to right.
fn add_words(vocab: &mut Map<String, Value>, merges: &mut Vec<Value>, words: &[&str]) {
    for word in words {
        let letters: Vec<char> = word.chars().collect();
        for end in 2..=letters.len() {
            let left: String = letters[..end - 1].iter().collect();
            let whole: String = letters[..end].iter().collect();
            if !vocab.contains_key(&whole) {
                vocab.insert(whole, json!(vocab.len()));
                merges.push(json!([left, letters[end - 1].to_string()]));
            }
        }
    }
}

fn added(id: usize, content: &str) -> Value {
    json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
           "normalized": false, "special": true})
}

/// `tokenizer.json` of the byte-level tokenizer.
pub(crate) fn byte_level_json() -> Vec<u8> {
    let mut letters: Vec<char> = ByteLevel::alphabet().into_iter().collect();
    letters.sort_unstable();
    let mut vocab: Map<String, Value> = letters
        .iter()
        .enumerate()
        .map(|(id, letter)| (letter.to_string(), json!(id)))
        .collect();
    let mut merges = Vec::new();
    add_words(&mut vocab, &mut merges, &WORDS);
    let specials: Vec<Value> = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|bos|>"]
        .iter()
        .enumerate()
        .map(|(n, content)| added(vocab.len() + n, content))
        .collect();
    let bos = vocab.len() + 3;
    let pieces = json!({
        "version": "1.0", "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
        "padding": null, "added_tokens": specials, "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": {"type": "Sequence", "processors": [
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
            {"type": "TemplateProcessing",
             "single": [{"SpecialToken": {"id": "<|bos|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
             "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
             "special_tokens": {"<|bos|>": {"id": "<|bos|>", "ids": [bos], "tokens": ["<|bos|>"]}}}]},
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                  "vocab": vocab, "merges": merges}});
    pieces.to_string().into_bytes()
}

/// The byte-level tokenizer, with a chat template or without.
pub(crate) fn byte_level(template: Option<&str>) -> Tokenizer {
    let config = json!({"bos_token": "<|bos|>", "eos_token": {"content": "<|endoftext|>", "lstrip": false},
                        "pad_token": "<|endoftext|>", "chat_template": template});
    Tokenizer::from_bytes(&byte_level_json(), config.to_string().as_bytes()).unwrap()
}

/// The tokenizer with byte fallback: `▁` for spaces, `<0x00>`..`<0xFF>` for what has no token.
pub(crate) fn byte_fallback() -> Tokenizer {
    let mut vocab = Map::new();
    for token in ["<unk>", "<s>", "</s>"] {
        vocab.insert(token.to_owned(), json!(vocab.len()));
    }
    for byte in 0..=255 {
        vocab.insert(format!("<0x{byte:02X}>"), json!(vocab.len()));
    }
    for letter in "▁abcdefghijklmnopqrstuvwxyz.,!?é".chars() {
        vocab.insert(letter.to_string(), json!(vocab.len()));
    }
    let mut merges = Vec::new();
    add_words(&mut vocab, &mut merges, &["▁hello", "▁world", "▁▁", "he", "is"]);
    let specials = [added(0, "<unk>"), added(1, "<s>"), added(2, "</s>")];
    let json = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": specials,
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "pre_tokenizer": null, "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
                  "vocab": vocab, "merges": merges}});
    let config = json!({"bos_token": "<s>", "eos_token": "</s>"});
    Tokenizer::from_bytes(json.to_string().as_bytes(), config.to_string().as_bytes()).unwrap()
}
