//! Examples: which tokens are supervised, for every row format.

use serde_json::{Value, json};

use super::*;
use crate::text::ChatMessage;
use crate::text::testing::{CHATML, byte_fallback, byte_level};

fn rows(lines: &[Value]) -> Rows {
    let text: Vec<String> = lines.iter().map(Value::to_string).collect();
    Rows::from_reader("data.jsonl", text.join("\n").as_bytes()).unwrap()
}

fn dataset(tokenizer: &Tokenizer, lines: &[Value], options: &DatasetOptions) -> Result<Dataset, DataError> {
    Dataset::from_rows(&rows(lines), tokenizer, options)
}

/// The first row's example as text, with its supervised tokens in brackets.
fn marked(tokenizer: &Tokenizer, line: &Value, train_on_inputs: bool) -> String {
    let options = DatasetOptions {
        train_on_inputs,
        ..DatasetOptions::default()
    };
    let dataset = dataset(tokenizer, std::slice::from_ref(line), &options).unwrap();
    let example = &dataset.examples()[0];
    let mut text = String::new();
    for run in example.supervised.chunk_by(PartialEq::eq).scan(0, |at, run| {
        let start = *at;
        *at += run.len();
        Some((run[0], start..*at))
    }) {
        let piece = tokenizer.decode(&example.tokens[run.1], false).unwrap();
        text.extend(if run.0 { ["[", &piece, "]"] } else { ["", &piece, ""] });
    }
    text
}

fn chat(turns: &[(&str, &str)]) -> Value {
    let messages: Vec<Value> = turns
        .iter()
        .map(|(role, content)| json!({"role": role, "content": content}))
        .collect();
    json!({ "messages": messages })
}

#[test]
fn conversations_supervise_every_assistant_turn_with_its_end() {
    let tokenizer = byte_level(Some(CHATML));
    let row = chat(&[
        ("system", "a"),
        ("user", "hello"),
        ("assistant", "yes 🦀"),
        ("user", "the"),
        ("assistant", " world "),
    ]);
    assert_eq!(
        marked(&tokenizer, &row, false),
        "<|im_start|>system\na<|im_end|>\n<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n[yes 🦀<|im_end|>]\n\
         <|im_start|>user\nthe<|im_end|>\n<|im_start|>assistant\n[ world <|im_end|>]\n"
    );
    assert_eq!(
        marked(&tokenizer, &chat(&[("user", "a"), ("assistant", "yes")]), true),
        "<|im_start|>[user\na<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n]"
    );
}

#[test]
fn a_conversation_is_tokenised_as_when_generating() {
    let tokenizer = byte_level(Some(CHATML));
    let template = tokenizer.chat_template().unwrap();
    let turns = [ChatMessage::new("user", "hello"), ChatMessage::new("assistant", "yes")];
    let prompt = tokenizer
        .encode(&template.render(&turns[..1], true).unwrap(), false)
        .unwrap();
    let row = chat(&[("user", "hello"), ("assistant", "yes")]);
    let dataset = dataset(&tokenizer, &[row], &DatasetOptions::default()).unwrap();
    let example = &dataset.examples()[0];
    assert!(example.tokens.starts_with(&prompt));
    let first = example.supervised.iter().position(|is| *is);
    assert_eq!(first, Some(prompt.len()));
}

/// A template without special tokens: the line break is the end of the turn and is supervised.
#[test]
fn plain_templates_supervise_their_line_break() {
    let plain = "{% for m in messages %}{{ m.role ~ ': ' ~ m.content ~ '\n' }}{% endfor %}\
                 {% if add_generation_prompt %}assistant:{% endif %}";
    let tokenizer = byte_level(Some(plain));
    let row = chat(&[("user", "a"), ("assistant", "yes"), ("user", "b"), ("assistant", "the")]);
    assert_eq!(
        marked(&tokenizer, &row, false),
        "user: a\nassistant:[ yes\n]user: b\nassistant:[ the\n]"
    );
}

/// A template that changes the last message to upper case: its turns are found by comparison, where prefixes are not
/// enough.
#[test]
fn templates_that_rewrite_earlier_turns_are_compared() {
    let shout_last = "{% for m in messages %}{{ m.content | upper if loop.last else m.content }};{% endfor %}";
    let row = chat(&[("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]);
    assert_eq!(marked(&byte_level(Some(shout_last)), &row, false), "a;[b;]c;[D;]");
    assert_eq!(marked(&byte_level(Some(shout_last)), &row, true), "a[;b;c;D;]");
    let end_once =
        "{% for m in messages %}<{{ m.content }}{{ '!' if loop.last and not add_generation_prompt }}{% endfor %}";
    assert_eq!(marked(&byte_level(Some(end_once)), &row, false), "<a[<b]<c[<d!]");
}

#[test]
fn only_the_completion_is_supervised() {
    let tokenizer = byte_level(None);
    let cases = [
        ("hello the", " world", "<|bos|>hello the[ world<|endoftext|>]"),
        ("hello", "<|endoftext|>", "<|bos|>hello[<|endoftext|>]"),
        ("", "yes", "<|bos|>[yes<|endoftext|>]"),
        ("yes", "", "<|bos|>yes[<|endoftext|>]"),
        // Tokenised together they share a token.
        ("hel", "lo", "<|bos|>[hello<|endoftext|>]"),
    ];
    for (prompt, completion, expected) in cases {
        let row = json!({"prompt": prompt, "completion": completion});
        assert_eq!(marked(&tokenizer, &row, false), expected);
    }
    let rows = [("hel", "lo"), ("hello", " yes"), ("a", "yes")].map(|(p, c)| json!({"prompt": p, "completion": c}));
    let warnings = |rows: &[Value]| {
        dataset(&tokenizer, rows, &DatasetOptions::default())
            .unwrap()
            .warnings()
            .to_vec()
    };
    assert_eq!(warnings(&rows), [DataWarning::SharedToken { rows: 1 }]);
    assert!(warnings(&rows[1..]).is_empty());
    let row = json!({"prompt": "hello", "completion": " yes"});
    assert_eq!(marked(&tokenizer, &row, true), "<|bos|>[hello yes<|endoftext|>]");
    // No space is inserted between the two, although this tokenizer puts one before every text.
    let row = json!({"prompt": "abc", "completion": "def"});
    assert_eq!(marked(&byte_fallback(), &row, false), "abc[def</s>]");
}

#[test]
fn only_the_turns_of_a_message_completion_are_supervised() {
    let tokenizer = byte_level(Some(CHATML));
    let turn = |role: &str, content: &str| json!({"role": role, "content": content});
    let row = json!({"prompt": [turn("user", "a"), turn("assistant", "b"), turn("user", "c")],
                     "completion": [turn("assistant", "yes")]});
    let text = marked(&tokenizer, &row, false);
    assert!(
        text.ends_with(
            "assistant\nb<|im_end|>\n<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n[yes<|im_end|>]\n"
        )
    );
    assert_eq!(text.matches('[').count(), 1);
}

#[test]
fn texts_are_supervised_as_a_whole() {
    let tokenizer = byte_level(None);
    assert_eq!(
        marked(&tokenizer, &json!({"text": "hello"}), false),
        "<|bos|>[hello<|endoftext|>]"
    );
    let example = &dataset(&tokenizer, &[json!({"text": "hello"})], &DatasetOptions::default())
        .unwrap()
        .examples()[0]
        .clone();
    assert_eq!((example.supervised[0], example.supervised_tokens()), (false, 2));
}

#[test]
fn long_examples_are_truncated_and_those_without_targets_dropped() {
    let tokenizer = byte_level(None);
    let row = |prompt: &str, completion: &str| json!({"prompt": prompt, "completion": completion});
    let lines = [
        row("a", "b"),
        row("a", "bcdefgh"),
        row("abcdefgh", "i"),
        row("abc", "d"),
    ];
    let options = DatasetOptions {
        max_length: 5,
        train_on_inputs: false,
    };
    let dataset = dataset(&tokenizer, &lines, &options).unwrap();
    let stats = dataset.stats();
    let expected = DatasetStats {
        examples: 3,
        tokens: 14,
        supervised_tokens: 2 + 3 + 1,
        longest: 5,
        truncated: 2,
        dropped: 1,
        cut_off: 1,
        first_dropped: Some(3),
    };
    assert_eq!(stats, expected);
    assert_eq!(
        tokenizer.decode(&dataset.examples()[1].tokens, false).unwrap(),
        "<|bos|>abcd"
    );
}

#[test]
fn no_target_is_an_error_with_advice() {
    let tokenizer = byte_level(Some(CHATML));
    let short = DatasetOptions {
        max_length: 2,
        train_on_inputs: false,
    };
    let any = DatasetOptions::default();
    let cases = [
        (
            chat(&[("user", "a")]),
            &any,
            "data.jsonl: no token to train on in 1 rows: no message has the role \"assistant\"; add",
        ),
        (
            chat(&[("user", "a"), ("model", "b")]),
            &any,
            "no message has the role \"assistant\" (it has [\"model\"]); add",
        ),
        (
            json!({"prompt": "abc", "completion": "d"}),
            &short,
            "everything to train on comes after the first 2 tokens; raise max_length",
        ),
    ];
    for (row, options, expected) in cases {
        let error = dataset(&tokenizer, &[row], options).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let options = DatasetOptions {
        max_length: 1,
        train_on_inputs: false,
    };
    let error = dataset(&tokenizer, &[json!({"text": "a"})], &options)
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        "max_length: must be at least 2 (a token and the one after it), got 1"
    );
}

#[test]
fn missing_pieces_of_the_tokenizer_are_named() {
    let bare = Tokenizer::from_bytes(&crate::text::testing::byte_level_json(), b"{}").unwrap();
    let error = dataset(&bare, &[chat(&[("user", "a")])], &DatasetOptions::default()).unwrap_err();
    assert!(matches!(error, DataError::NoChatTemplate { .. }) && error.to_string().contains("chat_template.jinja"));
    let error = dataset(&bare, &[json!({"text": "a"})], &DatasetOptions::default()).unwrap_err();
    assert!(matches!(error, DataError::NoEndOfText { .. }) && error.to_string().contains("\"eos_token\""));
    let refusing = byte_level(Some("{{ raise_exception('no') }}"));
    let error = dataset(&refusing, &[chat(&[("user", "a")])], &DatasetOptions::default())
        .unwrap_err()
        .to_string();
    let expected = "data.jsonl:1: tokenizer_config.json: the chat template refuses this conversation: no";
    assert_eq!(error, expected);
}

#[test]
fn a_split_shares_out_every_example() {
    let tokenizer = byte_level(None);
    let lines: Vec<Value> = (0..10).map(|n| json!({"text": format!("a{n}")})).collect();
    let all = dataset(&tokenizer, &lines, &DatasetOptions::default()).unwrap();
    let (train, validate) = all.clone().split(0.2, 7).unwrap();
    assert_eq!((train.stats().examples, validate.stats().examples), (8, 2));
    assert_eq!(all.clone().split(0.2, 7).unwrap(), (train.clone(), validate.clone()));
    assert_ne!(all.clone().split(0.2, 8).unwrap().1, validate);
    let mut both = [train.examples(), validate.examples()].concat();
    both.sort_by(|a, b| a.tokens.cmp(&b.tokens));
    let mut expected = all.examples().to_vec();
    expected.sort_by(|a, b| a.tokens.cmp(&b.tokens));
    assert_eq!(both, expected);
    assert_eq!(all.clone().split(0.0, 7).unwrap().1.stats(), DatasetStats::default());
    for fraction in [1.0, -0.1, f64::NAN] {
        assert!(all.clone().split(fraction, 7).is_err());
    }
    let single = dataset(&tokenizer, &lines[..1], &DatasetOptions::default()).unwrap();
    assert!(single.split(0.1, 7).unwrap_err().to_string().contains("one example"));
}

#[test]
fn examples_made_elsewhere_are_checked() {
    let error = Dataset::from_examples(vec![Example {
        tokens: vec![1, 2],
        supervised: vec![true],
    }])
    .unwrap_err();
    assert_eq!(
        error.to_string(),
        "examples: example 0: 2 tokens but 1 supervised flags"
    );
}

/// Alpaca rows are conversations if the model has a template; otherwise they use the prompt of the Alpaca models.
#[test]
fn alpaca_rows_suit_models_with_and_without_a_template() {
    let row = json!({"instruction": "hello", "input": "world", "output": "yes"});
    assert_eq!(
        marked(&byte_level(Some(CHATML)), &row, false),
        "<|im_start|>user\nhello\nworld<|im_end|>\n<|im_start|>assistant\n[yes<|im_end|>]\n"
    );
    let plain = marked(&byte_level(None), &row, false);
    assert!(
        plain.starts_with("<|bos|>Below is an instruction that describes a task, paired with an input"),
        "{plain}"
    );
    let end = "\n\n### Instruction:\nhello\n\n### Input:\nworld\n\n### Response:\n[yes<|endoftext|>]";
    assert!(plain.ends_with(end), "{plain}");
}
