//! Training on conversations and generation with the trained adapter, with many kinds of templates.

mod common;

use std::path::Path;

use common::{Outcome, fixture, model, run, write};

const SINGLE: &str = r#"{"messages": [{"role": "user", "content": "2+2"}, {"role": "assistant", "content": "4"}]}"#;
const MULTI: &str = r#"{"messages": [{"role": "user", "content": "2+2"}, {"role": "assistant", "content": "4"}, {"role": "user", "content": "3+3"}, {"role": "assistant", "content": "6"}]}"#;

/// A folder with the data, and a copy of a tiny model whose configuration names `<|endoftext|>` as its only end token.
fn home(template: &str) -> tempfile::TempDir {
    let home = tempfile::tempdir().unwrap();
    write(home.path(), "single.jsonl", SINGLE);
    write(home.path(), "multi.jsonl", MULTI);
    let (from, to) = (model("llama-tied-tiny"), home.path().join("model"));
    std::fs::create_dir(&to).unwrap();
    for file in ["model.safetensors", "tokenizer.json"] {
        std::fs::copy(Path::new(&from).join(file), to.join(file)).unwrap();
    }
    let config = std::fs::read_to_string(Path::new(&from).join("config.json")).unwrap();
    write(
        &to,
        "config.json",
        &config.replace("\"eos_token_id\": 3", "\"eos_token_id\": 1"),
    );
    write(&to, "generation_config.json", r#"{"eos_token_id": 1}"#);
    let tokens = r#"{"bos_token": "<|begin_of_text|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}"#;
    write(&to, "tokenizer_config.json", tokens);
    std::fs::copy(fixture(template), to.join("chat_template.jinja")).unwrap();
    home
}

fn train(home: &Path, data: &str, steps: &str) -> Outcome {
    let output = format!("out-{data}");
    let arguments = [
        "train",
        "--model",
        "model",
        "--data",
        data,
        "--output",
        &output,
        "--max-steps",
        steps,
        "--learning-rate",
        "0.01",
    ];
    run(home, &arguments)
}

#[test]
fn an_answer_ends_with_the_turn() {
    let home = home("models/llama-tiny/chat_template.jinja");
    let trained = train(home.path(), "multi.jsonl", "200").good();
    assert!(!trained.stderr.contains("warning"), "{}", trained.stderr);
    let generate = |more: &[&str]| {
        let fixed = [
            "generate",
            "--model",
            "model",
            "--adapter",
            "out-multi.jsonl",
            "--max-new-tokens",
            "20",
        ];
        run(home.path(), &[&fixed[..], &["--prompt", "2+2"], more].concat())
    };
    let answer = generate(&[]).good();
    assert_eq!(answer.stdout, "4\n");
    assert!(answer.stderr.contains("ended by the model"), "{}", answer.stderr);
    let four = generate(&["--stop", "4<|im_end|>", "--stop", "4"]).good();
    assert!(
        four.stdout == "\n" && four.stderr.contains("ended by a stop string"),
        "{}",
        four.stderr
    );
    // The first token of the answer, "4", by its id in the tiny vocabulary.
    let vocabulary: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(home.path().join("model/tokenizer.json")).unwrap()).unwrap();
    let id = vocabulary["model"]["vocab"]["4"].to_string();
    let by_token = generate(&["--stop-token-ids", &format!("2,{id}")]).good();
    assert!(
        by_token.stdout == "\n" && by_token.stderr.contains("ended by the model"),
        "{}",
        by_token.stderr
    );
    let refused = generate(&["--stop-token-ids", "12345"]);
    assert_eq!(refused.code, Some(2));
    assert!(
        refused.stderr.contains("stop token 12345 is outside the vocabulary"),
        "{}",
        refused.stderr
    );
}

#[test]
fn reasoning_templates_are_trained_on() {
    for (template, single_warns) in [("turns/r1.jinja", true), ("turns/qwen3.jinja", false)] {
        let home = home(template);
        for data in ["single.jsonl", "multi.jsonl"] {
            let trained = train(home.path(), data, "2").good();
            assert_eq!(
                trained.stderr.contains("warning"),
                single_warns,
                "{template} {data}: {}",
                trained.stderr
            );
        }
    }
}

#[test]
fn templates_without_turn_ends_are_warned_about_and_without_answers_refused() {
    let home = home("turns/noendlast.jinja");
    let trained = train(home.path(), "multi.jsonl", "2").good();
    let said = trained.stderr.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(said.contains("the model does not learn to stop"), "{said}");
    std::fs::copy(
        fixture("turns/noasstcontent.jinja"),
        home.path().join("model/chat_template.jinja"),
    )
    .unwrap();
    let refused = train(home.path(), "single.jsonl", "2");
    assert_eq!(refused.code, Some(2));
    let said = refused.stderr.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(said.contains("single.jsonl:1: message 2"), "{said}");
    assert!(!said.contains("no message has the role"), "{said}");
}
