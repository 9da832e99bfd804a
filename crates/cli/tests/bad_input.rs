//! Invalid input: one message that says what to do, exit code 2, and nothing written.

mod common;

use std::path::Path;

use common::{Outcome, fixture, home, model, run, write};

/// Runs `train` with an output folder; the run must fail without a trace of it.
fn refused(folder: &Path, arguments: &[&str]) -> String {
    refused_without_output(folder, &[&["--output", "out"], arguments].concat())
}

fn refused_without_output(folder: &Path, arguments: &[&str]) -> String {
    let before = entries(folder);
    let Outcome { code, stdout, stderr } = run(folder, &[&["train"], arguments].concat());
    assert_eq!(code, Some(2), "{stdout}{stderr}");
    assert!(stderr.starts_with("error: "), "{stderr}");
    assert!(stderr.lines().count() <= 4, "{stderr}");
    assert_eq!(entries(folder), before, "something was written");
    stderr
}

fn entries(folder: &Path) -> Vec<String> {
    let name = |entry: std::io::Result<std::fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
    let mut names: Vec<String> = std::fs::read_dir(folder).unwrap().map(name).collect();
    names.sort();
    names
}

fn says(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "expected `{part}` in: {message}");
    }
}

#[test]
fn a_missing_or_invalid_model() {
    let home = home();
    let message = refused(home.path(), &["--model", "absent", "--data", "chats.jsonl"]);
    says(&message, &["absent: no such folder", "Hugging Face", "config.json"]);
    let message = refused(home.path(), &["--model", ".", "--data", "chats.jsonl"]);
    says(&message, &["not a model folder", "model.safetensors"]);
}

#[test]
fn an_unknown_architecture() {
    let home = home();
    std::fs::create_dir(home.path().join("bert")).unwrap();
    write(&home.path().join("bert"), "config.json", r#"{"model_type": "bert"}"#);
    let message = refused(home.path(), &["--model", "bert", "--data", "chats.jsonl"]);
    says(&message, &["config.json", "`bert` is not supported", "llama", "qwen2"]);
}

#[test]
fn truncated_weights() {
    let home = home();
    let broken = home.path().join("broken");
    std::fs::create_dir(&broken).unwrap();
    for entry in std::fs::read_dir(model("llama-tiny")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, broken.join(path.file_name().unwrap())).unwrap();
    }
    let weights = std::fs::read(broken.join("model.safetensors")).unwrap();
    std::fs::write(broken.join("model.safetensors"), &weights[..weights.len() / 2]).unwrap();
    says(
        &refused(home.path(), &["--model", "broken", "--data", "chats.jsonl"]),
        &["model.safetensors"],
    );
}

#[test]
fn targets_that_match_nothing() {
    let home = home();
    let model = model("llama-tiny");
    let common = ["--model", &model, "--data", "chats.jsonl", "--target-modules"];
    let message = refused(home.path(), &[&common[..], &["q_porj"]].concat());
    says(&message, &["q_porj", "matches no linear layer", "q_proj"]);
    for several in [&["all-linear,q_proj"][..], &["q_proj", "All-Linear"]] {
        let message = refused(home.path(), &[&common[..], several].concat());
        says(
            &message,
            &["`all-linear` is every linear layer, so it stands alone", "tip: "],
        );
    }
    says(
        &refused(home.path(), &[&common[..], &["(q_proj"]].concat()),
        &["(q_proj", "pattern"],
    );
}

#[test]
fn a_rank_of_zero_and_other_settings_out_of_range() {
    let home = home();
    let model = model("llama-tiny");
    let with =
        |flag: &str, value: &str| refused(home.path(), &["--model", &model, "--data", "chats.jsonl", flag, value]);
    says(&with("--r", "0"), &["`r` is 0", "between 1"]);
    says(&with("--r", "-3"), &["'-3' for '--r <N>'"]);
    says(&with("--rank", "0"), &["`r` is 0"]);
    says(&with("--lora-dropout", "1"), &["`lora_dropout` is 1"]);
    says(&with("--learning-rate", "0"), &["learning_rate", "above 0"]);
    says(&with("--learning-rate", "-1"), &["learning_rate", "got -1"]);
    says(&with("--learning-rate", "inf"), &["learning_rate", "finite"]);
    says(
        &with("--num-train-epochs", "1e300"),
        &["num_train_epochs", "at most 100000"],
    );
    says(&with("--batch-size", "0"), &["per_device_train_batch_size"]);
    says(&with("--max-length", "1"), &["max_length", "2"]);
    says(&with("--validation-split", "1.5"), &["validation", "1.5"]);
    says(&with("--device", "cuda"), &["CPU only", "--device cpu"]);
}

#[test]
fn malformed_data() {
    let home = home();
    let model = model("llama-tiny");
    let with = |text: &str| {
        write(home.path(), "bad.jsonl", text);
        refused(home.path(), &["--model", &model, "--data", "bad.jsonl"])
    };
    says(
        &with("{\"text\": \"a\"}\n{\"text\": \"b\"\n"),
        &["bad.jsonl:2", "not JSON"],
    );
    says(
        &with("{\"text\": \"a\"}\n{\"text\": 3}\n[]\n"),
        &["bad.jsonl:2", "\"text\"", "1 further"],
    );
    says(&with("\n\n"), &["bad.jsonl: no rows", "messages"]);
    says(
        &with("{\"messages\": [{\"role\": \"user\", \"content\": \"hi\"}]}"),
        &["bad.jsonl", "no token to train on", "assistant"],
    );
    let missing = refused(home.path(), &["--model", &model, "--data", "absent.jsonl"]);
    says(&missing, &["absent.jsonl: cannot be read"]);
}

#[test]
fn a_model_without_data() {
    let home = home();
    let message = refused(home.path(), &["--model", &model("llama-tiny")]);
    says(&message, &["--data", "nothing to train on"]);
}

#[test]
fn an_output_folder_in_use() {
    let home = home();
    let data = ["--model", &model("llama-tiny"), "--data", "chats.jsonl"];
    std::fs::create_dir(home.path().join("out")).unwrap();
    write(&home.path().join("out"), "precious.txt", "x");
    let message = refused(home.path(), &data);
    says(&message, &["out: the output folder is not empty", "--overwrite-output"]);
    assert_eq!(entries(&home.path().join("out")), ["precious.txt"]);
}

#[test]
fn an_output_path_that_is_not_a_folder() {
    let home = home();
    let data = [
        "train",
        "--model",
        &model("llama-tiny"),
        "--data",
        "chats.jsonl",
        "--output",
    ];
    for output in ["chats.jsonl", "chats.jsonl/out"] {
        let outcome = run(home.path(), &[&data[..], &[output]].concat());
        assert_eq!(outcome.code, Some(2), "{}", outcome.stderr);
        says(&outcome.stderr, &[&format!("output `{output}`"), "--output"]);
        assert!(!outcome.stderr.contains("not empty"), "{}", outcome.stderr);
    }
}

#[test]
fn a_settings_file_with_mistakes() {
    let home = home();
    let with = |text: &str| {
        write(home.path(), "run.toml", text);
        refused(home.path(), &["--config", "run.toml"])
    };
    says(
        &with("learnig_rate = 1e-4"),
        &[
            "run.toml: unknown setting `learnig_rate`",
            "did you mean `learning_rate`?",
        ],
    );
    says(
        &with("r = \"eight\""),
        &["run.toml: `r`: invalid type", "expected a whole number"],
    );
    says(&with("learning_rate = true"), &["`learning_rate`", "expected a number"]);
    says(&with("model = \"\""), &["run.toml: `model` is empty", "leave it out"]);
    says(
        &refused(home.path(), &["--config", "absent.toml"]),
        &["absent.toml: cannot be read"],
    );
}

#[test]
fn a_wrong_flag() {
    let home = home();
    let outcome = run(home.path(), &["train", "--learningrate", "3"]);
    assert_eq!(outcome.code, Some(2));
    says(&outcome.stderr, &["--learningrate", "--learning-rate"]);
}

#[test]
fn an_invalid_log_filter() {
    let home = home();
    let outcome: Outcome = common::program(home.path(), &["train"])
        .env("METAL_CANDLE_LOG", "graph=loudly")
        .output()
        .unwrap()
        .into();
    assert_eq!(outcome.code, Some(2));
    says(&outcome.stderr, &["METAL_CANDLE_LOG=graph=loudly", "for example"]);
}

#[test]
fn an_adapter_of_another_model() {
    let home = home();
    let adapter = fixture("adapters/peft-llama-tiny");
    for name in ["qwen2-tiny", "llama-tied-tiny"] {
        let model = model(name);
        let arguments = ["generate", "--model", &model, "--adapter", &adapter, "--prompt", "a"];
        let outcome = run(home.path(), &arguments);
        assert_eq!((outcome.code, outcome.stdout.as_str()), (Some(2), ""));
        says(
            &outcome.stderr,
            &["adapter_model.safetensors", "trained on `llama-tiny`: use that model"],
        );
    }
}

#[test]
fn generating_with_missing_files() {
    let home = home();
    let model = model("llama-tied-tiny");
    let with = |arguments: &[&str]| {
        let outcome = run(home.path(), &[&["generate"], arguments].concat());
        assert_eq!(
            (outcome.code, outcome.stdout.as_str()),
            (Some(2), ""),
            "{}",
            outcome.stderr
        );
        outcome.stderr
    };
    says(
        &with(&["--model", "absent", "--prompt", "a"]),
        &["absent: no such folder"],
    );
    says(
        &with(&["--model", &model, "--adapter", "absent", "--prompt", "a"]),
        &["absent: no such folder", "adapter_config.json"],
    );
    says(
        &with(&["--model", &model, "--prompt", ""]),
        &["prompt is empty", "--prompt"],
    );
    says(
        &with(&["--model", &model, "--adapter", ".", "--prompt", "a"]),
        &["adapter_config.json"],
    );
    says(
        &with(&["--model", &model, "--prompt", "a", "--top-p", "2"]),
        &["top_p is 2"],
    );
    says(
        &with(&["--model", &model, "--prompt", "a", "--temperature", "-1"]),
        &["temperature is -1"],
    );
    says(&with(&["--model", &model]), &["--prompt <TEXT>", "--help"]);
    says(&with(&[]), &["--prompt <TEXT>", "--help"]);
    says(
        &with(&[
            "--model",
            &model,
            "--prompt",
            "a",
            "--raw",
            "--max-new-tokens",
            "1000000",
        ]),
        &["1,000,000"],
    );
    says(
        &with(&["--model", &model, "--prompt", "a", "--stop", ""]),
        &["stop string is empty"],
    );
}

#[test]
fn examples_longer_than_the_context() {
    let home = home();
    let model = model("llama-tiny");
    let fixed = ["--model", &model, "--data", "chats.jsonl"];
    let message = refused(home.path(), &[&fixed[..], &["--max-length", "513"]].concat());
    says(
        &message,
        &[
            "--max-length 513",
            "512 tokens",
            "max_position_embeddings",
            "--max-length 512 or less",
        ],
    );
    // Within the context, and the default, which is reduced to it.
    for length in [&["--max-length", "512"][..], &[]] {
        let once = ["train", "--max-steps", "1", "--output", "out", "--overwrite-output"];
        let arguments = [&once[..], &fixed, length].concat();
        run(home.path(), &arguments).good();
        let settings = std::fs::read_to_string(home.path().join("out/training.toml")).unwrap();
        says(&settings, &["max_length = 512"]);
    }
}

#[test]
fn overwriting_without_an_output_folder() {
    let home = home();
    let message = refused_without_output(home.path(), &["--overwrite-output"]);
    says(
        &message,
        &[
            "--overwrite-output is given without --output",
            "leave --overwrite-output out",
        ],
    );
}

#[test]
fn numbers_that_are_invalid_as_f32() {
    let home = home();
    let model = model("llama-tiny");
    for (flag, value) in [
        ("--learning-rate", "1e-60"),
        ("--learning-rate", "1e60"),
        ("--adam-epsilon", "1e-300"),
        ("--adam-beta2", "0.9999999999"),
        ("--lora-dropout", "0.9999999999"),
        ("--lora-alpha", "1e-300"),
        ("--weight-decay", "1e300"),
    ] {
        let message = refused(home.path(), &["--model", &model, "--data", "chats.jsonl", flag, value]);
        says(&message, &[&flag[2..].replace('-', "_")]);
    }
}

#[test]
fn targets_that_cannot_be_adapted() {
    let home = home();
    let model = model("llama-tiny");
    for targets in ["lm_head", "q_proj,embed_tokens", ".*"] {
        let message = refused(
            home.path(),
            &["--model", &model, "--data", "chats.jsonl", "--target-modules", targets],
        );
        says(
            &message,
            &["target_modules", "output head or the embedding", "all-linear"],
        );
    }
}
