//! `explain` end to end on a tiny model.

mod common;

use common::{Outcome, run, write};
use serde_json::Value;

fn explain(flags: &str) -> Outcome {
    let home = tempfile::tempdir().expect("a folder");
    let config = r#"{"model_type": "llama", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}"#;
    write(home.path(), "tiny.json", config);
    let command = format!("explain --config tiny.json {flags}");
    run(home.path(), &command.split_whitespace().collect::<Vec<_>>())
}

#[test]
fn a_training_step_is_explained_as_text() {
    let text = explain("--length 8").good().stdout;
    let parts = [
        "This machine: ",
        "== forward and backward ==",
        "== gradient norm ==",
        "== update ==",
    ];
    let words = [
        "Passes: recorded ",
        " -> fuse ",
        "arena ",
        "Fused into one loop each:",
        "of limit",
        "Matmul",
        "AdamW",
    ];
    for word in parts.iter().chain(&words) {
        assert!(text.contains(word), "{word}: {text}");
    }
}

#[test]
fn a_decoding_step_is_explained_as_json() {
    let text = explain("--what decode --batch 2 --length 5 --json").good().stdout;
    let row: Value = serde_json::from_str(&text).expect("one line of JSON");
    assert_eq!(row["part"], "decoding step");
    let kernels = row["kernels"].as_array().expect("a list");
    let sum: f64 = kernels.iter().filter_map(|kernel| kernel["flop"].as_f64()).sum();
    // Each weight of the linear layers and the head meets both tokens.
    let weights = 2.0 * (2.0 * 32.0 * 32.0 + 2.0 * 32.0 * 16.0 + 3.0 * 32.0 * 64.0) + 32.0 * 64.0;
    assert!(sum > 2.0 * 2.0 * weights && Some(sum) == row["flop"].as_f64(), "{row}");
    assert!(row["recorded"].as_u64() > Some(kernels.len() as u64), "{row}");
    let groups = row["groups"].as_array().expect("a list");
    let count = |name: &Value| kernels.iter().filter(|kernel| kernel["group"] == *name).count();
    assert!(
        groups.iter().all(|group| group["count"] == count(&group["name"])),
        "{row}"
    );
    let flops: f64 = groups.iter().filter_map(|group| group["flop"].as_f64()).sum();
    assert!((flops - sum).abs() < 1.0, "{row}");
}

#[test]
fn a_text_that_fills_the_context_is_bad_input() {
    let Outcome { code, stderr, .. } = explain("--what decode --length 64");
    assert_eq!(code, Some(2), "{stderr}");
    assert!(stderr.contains("64 positions"), "{stderr}");
    let Outcome { code, stderr, .. } = explain("--what train --length 65");
    assert_eq!(code, Some(2), "{stderr}");
    assert!(stderr.contains("give --length 64 or less"), "{stderr}");
}
