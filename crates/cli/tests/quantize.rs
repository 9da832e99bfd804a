//! `--quantize` end to end: an adapter is trained on quantised weights and used on them, a settings file is equivalent,
//! and an unknown format is bad input.

mod common;

use common::{Outcome, home, model, run, write};
use serde_json::Value;

#[test]
fn an_adapter_is_trained_on_quantised_weights_and_used_on_them() {
    let home = home();
    let (base, at) = (model("llama-tiny"), home.path());
    let train = [
        "train",
        "--model",
        &base,
        "--data",
        "chats.jsonl",
        "--max-steps",
        "3",
        "--dtype",
        "bf16",
        "--quantize",
        "q4_0",
    ];
    let Outcome { stdout, .. } = run(at, &[&train[..], &["--output", "mine"]].concat()).good();
    assert!(stdout.contains(" M parameters in q4_0"), "{stdout}");
    // The suggested command loads the base model as it was in training.
    let next = format!("generate --model {base} --dtype bf16 --quantize q4_0 --adapter mine --prompt");
    assert!(stdout.contains(&next), "{stdout}");
    let settings = std::fs::read_dir(at.join("mine")).unwrap().filter_map(|entry| {
        let path = entry.unwrap().path();
        path.extension().is_some_and(|kind| kind == "toml").then_some(path)
    });
    let settings: Vec<_> = settings.collect();
    let [settings] = &settings[..] else {
        panic!("one settings file: {settings:?}")
    };
    let written = std::fs::read_to_string(settings).unwrap();
    assert!(written.contains("quantize = \"q4_0\""), "{written}");
    // The settings file written by a run reproduces it.
    let again = ["train", "--config", settings.to_str().unwrap(), "--output", "again"];
    run(at, &again).good();
    let adapter = |folder: &str| std::fs::read(at.join(folder).join("adapter_model.safetensors")).unwrap();
    assert_eq!(adapter("mine"), adapter("again"));
    for format in ["q4_0", "q8_0"] {
        let generate = [
            "generate",
            "--adapter",
            "mine",
            "--prompt",
            "Why?",
            "--max-new-tokens",
            "4",
            "--quantize",
            format,
        ];
        let Outcome { stderr, .. } = run(at, &generate).good();
        assert!(stderr.contains("4 tokens in"), "{stderr}");
    }
}

#[test]
fn benchmark_limits_use_the_quantised_bytes() {
    let home = tempfile::tempdir().unwrap();
    let config = r#"{"model_type": "llama", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}"#;
    write(home.path(), "tiny.json", config);
    for dtype in ["q8_0", "q4_0"] {
        let decode = "bench decode --config tiny.json --prompt 5 --new 8 --steps 2 --json --dtype";
        let finetune = "bench finetune --config tiny.json --length 8 --steps 2 --warmup 1 --json --dtype";
        for command in [decode, finetune] {
            let arguments: Vec<&str> = command.split(' ').chain([dtype]).collect();
            let Outcome { stdout, .. } = run(home.path(), &arguments).good();
            let row: Value = serde_json::from_str(&stdout).unwrap();
            assert_eq!(row["dtype"], dtype);
            assert!(
                row["share"].as_f64().is_some_and(|share| (0.0..=1.06).contains(&share)),
                "{row}"
            );
        }
        let explain = "explain --config tiny.json --what decode --length 8 --dtype";
        let arguments: Vec<&str> = explain.split(' ').chain([dtype]).collect();
        let Outcome { stdout, .. } = run(home.path(), &arguments).good();
        // Seven in each of two layers, and the head.
        assert!(stdout.contains(&format!("DequantMatmul {dtype}")), "{stdout}");
        assert!(stdout.contains("DequantMatmul               15 "), "{stdout}");
    }
}

#[test]
fn an_unknown_format_is_bad_input() {
    let home = home();
    write(home.path(), "run.toml", "quantize = \"q5_1\"");
    for arguments in [
        &["generate", "--prompt", "x", "--quantize", "q5_1"][..],
        &["train", "--quantize", "q5_1"],
        &["train", "--config", "run.toml"],
    ] {
        let Outcome { code, stderr, .. } = run(home.path(), arguments);
        assert_eq!(code, Some(2), "{stderr}");
        assert!(
            stderr.contains("q5_1") && stderr.contains("q8_0") && stderr.contains("q4_0"),
            "{stderr}"
        );
    }
}
