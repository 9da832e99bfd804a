//! Messages about model folders: settings that are not followed, and folders that are not models.

mod common;

use std::path::Path;

use common::{home, model, run, write};

/// A copy of a model of the fixtures, with other settings in one of its files.
fn copy(folder: &Path, name: &str, file: &str, text: &str) {
    std::fs::create_dir(folder.join(name)).unwrap();
    for file in [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "generation_config.json",
    ] {
        std::fs::copy(Path::new(&model("llama-tiny")).join(file), folder.join(name).join(file)).unwrap();
    }
    write(&folder.join(name), file, text);
}

fn generate(folder: &Path, name: &str) -> common::Outcome {
    let fixed = ["generate", "--prompt", "The sea", "--max-new-tokens", "3", "--model"];
    run(folder, &[&fixed[..], &[name]].concat())
}

#[test]
fn settings_that_are_not_followed_are_reported_once() {
    let home = home();
    let settings = r#"{"num_beams": 4, "no_repeat_ngram_size": 2, "eos_token_id": -1}"#;
    copy(home.path(), "beams", "generation_config.json", settings);
    let outcome = generate(home.path(), "beams").good();
    let said = "warning: beams: generation_config.json: not implemented and left out: num_beams = 4\n";
    assert_eq!(outcome.stderr.matches(said).count(), 1, "{}", outcome.stderr);
    assert_eq!(outcome.stderr.matches("warning").count(), 1, "{}", outcome.stderr);
}

#[test]
fn a_byte_order_mark_and_non_json_numbers_are_accepted() {
    let home = home();
    let config = std::fs::read_to_string(Path::new(&model("llama-tiny")).join("config.json")).unwrap();
    let config = config.replacen('{', "{\"unused\": [NaN, Infinity, -Infinity],", 1);
    copy(home.path(), "odd", "config.json", &format!("\u{feff}{config}"));
    assert_eq!(generate(home.path(), "odd").good().stderr.matches("warning").count(), 0);
}

#[test]
fn folders_that_are_no_models_say_what_to_do() {
    let home = home();
    for (name, file, parts) in [
        (
            "quants",
            "tiny.gguf",
            &["GGUF is not read", "gguf_file='tiny.gguf'", "save_pretrained"][..],
        ),
        ("pickle", "pytorch_model.bin", &["pytorch_model.bin", "save_pretrained"]),
        ("lora", "adapter_config.json", &["LoRA adapter", "base model"]),
        ("images", "model_index.json", &["diffusers pipeline"]),
        ("other", "model.onnx", &["no config.json", "`model.onnx`"]),
    ] {
        std::fs::create_dir(home.path().join(name)).unwrap();
        write(&home.path().join(name), file, "{}");
        if name == "pickle" {
            let config = Path::new(&model("llama-tiny")).join("config.json");
            std::fs::copy(config, home.path().join(name).join("config.json")).unwrap();
            let tokenizer = Path::new(&model("llama-tiny")).join("tokenizer.json");
            std::fs::copy(tokenizer, home.path().join(name).join("tokenizer.json")).unwrap();
        }
        let outcome = generate(home.path(), name);
        assert_eq!(outcome.code, Some(2), "{}", outcome.stderr);
        assert!(
            outcome.stderr.starts_with(&format!("error: {name}")),
            "{}",
            outcome.stderr
        );
        for part in parts {
            assert!(
                outcome.stderr.contains(part),
                "expected `{part}` in: {}",
                outcome.stderr
            );
        }
    }
}
