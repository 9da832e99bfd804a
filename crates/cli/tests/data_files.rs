//! Data files in practice: every supported layout is trained on and reported, every other file is refused with advice.

mod common;

use common::{Outcome, fixture, home, model, run, write};

/// Two steps on a file; returns the output of the program.
fn train(data: &str) -> Outcome {
    let home = home();
    let model = model("llama-tied-tiny");
    let arguments = ["train", "--model", &model, "--data", data, "--max-steps", "2"];
    run(home.path(), &arguments)
}

/// The same, on a file with this text.
fn train_on(text: &str) -> Outcome {
    let data = tempfile::tempdir().unwrap();
    write(data.path(), "odd.json", text);
    train(data.path().join("odd.json").to_str().unwrap())
}

#[test]
fn every_layout_is_trained_on_and_named() {
    let sharegpt =
        r#"{"conversations": [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "It is the sea."}]}"#;
    let alpaca = r#"[{"instruction": "Say it.", "input": "", "output": "It was so.", "score": NaN}]"#;
    let cases = [
        (train_on(sharegpt), "ShareGPT (\"conversations\"), one object a line"),
        (train_on(alpaca), "Alpaca (\"instruction\", \"output\"), a JSON array"),
        (
            train(&fixture("data/reported/array.json")),
            "chat (\"messages\"), a JSON array",
        ),
        (
            train(&fixture("data/reported/pretty.json")),
            "chat (\"messages\"), objects over several lines",
        ),
        (
            train(&fixture("data/reported/parts.jsonl")),
            "chat (\"messages\"), one object a line",
        ),
    ];
    for (outcome, expected) in cases {
        let Outcome { stdout, .. } = outcome.good();
        assert!(
            stdout.contains(&format!("  rows     {expected}\n")),
            "{expected}: {stdout}"
        );
    }
}

#[test]
fn other_files_are_refused_with_advice() {
    let cases = [
        (
            "prompt,completion\na,b\n",
            "odd.json: a table of text (CSV), not JSON rows; convert it with pandas",
        ),
        (
            "PAR1\u{15}\0",
            "odd.json: a Parquet file, not JSON rows; convert it with pandas",
        ),
        (
            "Once upon a time.\n",
            "odd.json: plain text, not JSON rows; write each text as a line {\"text\": ...}",
        ),
        (
            r#"{"prompt": "p", "chosen": "a", "rejected": "b"}"#,
            "odd.json:1: \"chosen\" and \"rejected\" are preference data",
        ),
        (
            r#"{"text": {"0": "a", "1": "b"}}"#,
            "odd.json:1: this is a whole table in one object",
        ),
        (
            r#"{"text": "half \ud83d"}"#,
            "odd.json:1: not JSON: lone surrogate \\ud83d",
        ),
    ];
    for (text, expected) in cases {
        let Outcome { code, stderr, .. } = train_on(text);
        assert_eq!(code, Some(2), "{stderr}");
        assert!(stderr.contains(expected), "{expected}: {stderr}");
    }
    for (name, expected) in [
        (
            "null_only.jsonl",
            "null_only.jsonl:1: field \"messages\", message 2: field \"content\" is null",
        ),
        (
            "image_part.jsonl",
            "image_part.jsonl:1: field \"messages\", message 1: field \"content\", part 1: has the type",
        ),
    ] {
        let Outcome { code, stderr, .. } = train(&fixture(&format!("data/reported/{name}")));
        assert_eq!(code, Some(2), "{stderr}");
        assert!(stderr.contains(expected), "{expected}: {stderr}");
    }
}
