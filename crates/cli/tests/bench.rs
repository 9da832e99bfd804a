//! `bench` end to end on a tiny model: the keys are those of the scripts that time other libraries, and no figure
//! exceeds the machine's limits.

mod common;

use common::{Outcome, run, write};
use serde_json::Value;
use tempfile::TempDir;

/// A folder with the settings of a tiny model in `tiny.json`.
fn home() -> TempDir {
    let home = tempfile::tempdir().expect("a folder");
    let config = r#"{"model_type": "llama", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}"#;
    write(home.path(), "tiny.json", config);
    home
}

/// The rows that `bench` prints with `--json`.
fn rows(arguments: &str) -> Vec<Value> {
    let home = home();
    let arguments: Vec<&str> = ["bench"]
        .into_iter()
        .chain(arguments.split(' '))
        .chain(["--json"])
        .collect();
    let outcome = run(home.path(), &arguments).good();
    let rows = outcome.stdout.lines();
    rows.map(|row| serde_json::from_str(row).expect("each line is JSON"))
        .collect()
}

/// Every row has these keys in this order, all but the first two of which are figures or cases, then `machine`.
fn have_keys(rows: &[Value], keys: &[&str]) {
    assert!(!rows.is_empty());
    for row in rows {
        let found: Vec<&str> = row.as_object().expect("an object").keys().map(String::as_str).collect();
        let expected: Vec<&str> = ["peer", "device"]
            .into_iter()
            .chain(keys.iter().copied())
            .chain(["machine"])
            .collect();
        assert_eq!(found, expected);
        assert_eq!((&row["peer"], &row["device"]), (&"metal-candle".into(), &"cpu".into()));
        assert!(
            row["machine"]["f32_gflop_per_s"]
                .as_f64()
                .is_some_and(|flops| flops > 0.0)
        );
    }
}

/// The reached share of each limit is between 0 and 1.
fn are_possible(rows: &[Value], share: &str) {
    for row in rows {
        let share = row[share].as_f64().expect("a number");
        // A tiny case may reach a share that rounds to zero.
        assert!((0.0..=1.06).contains(&share), "{row}");
    }
}

const TIMED: [&str; 6] = ["case", "dtype", "mode", "latency_us", "best_us", "throughput_us"];

#[test]
fn lora_forward() {
    let rows = rows("lora-forward --steps 2 --warmup 1");
    have_keys(&rows, &[&TIMED[..], &["limit", "share"]].concat());
    are_possible(&rows, "share");
    // Ten cases in two dtypes and two modes, and the step.
    assert_eq!(rows.len(), 10 * 2 * 2 + 1);
    let named = |case: &str| rows.iter().filter(|row| row["case"] == case).count();
    assert_eq!((named("lora b1 512x512 r8"), named("lora step 64x512 r8")), (4, 1));
}

#[test]
fn matmul() {
    let rows = rows("matmul --size 8x16x24 --config tiny.json --length 3 --dtype bf16 --steps 2");
    have_keys(&rows, &[&TIMED[..], &["gflop_per_s", "limit", "share"]].concat());
    are_possible(&rows, "share");
    let cases: Vec<&str> = rows.iter().filter_map(|row| row["case"].as_str()).collect();
    let layers = [
        "matmul 3x32x32 t",
        "matmul 3x32x16 t",
        "matmul 3x32x64 t",
        "matmul 3x64x32 t",
    ];
    assert_eq!(cases, [&["matmul 8x16x24"], &layers[..]].concat());
}

#[test]
fn finetune() {
    let rows = rows("finetune --config tiny.json --batch 2 --length 8 --steps 3 --warmup 1");
    let memory: &[&str] = if cfg!(unix) {
        &["peak_gib", "peak_limit", "peak_share"]
    } else {
        &["peak_gib"]
    };
    let before = [
        "model",
        "dtype",
        "batch",
        "length",
        "compile",
        "liger",
        "checkpoint",
        "step_ms",
        "tokens_per_s",
    ];
    have_keys(&rows, &[&before[..], &["limit", "share"], memory, &["loss"]].concat());
    are_possible(&rows, "share");
    let row = &rows[0];
    assert_eq!(
        (&row["model"], &row["batch"], &row["length"]),
        (&"tiny".into(), &2.into(), &8.into())
    );
    // A random model gives each of 64 tokens about the same probability.
    let loss = row["loss"].as_f64().expect("a number");
    assert!((loss - 64f64.ln()).abs() < 0.5, "{row}");
    let (step, tokens) = (row["step_ms"].as_f64().unwrap(), row["tokens_per_s"].as_f64().unwrap());
    assert!((step * tokens / 16e3 - 1.0).abs() < 0.05, "{row}");
}

#[test]
fn decode() {
    for batch in ["1", "2"] {
        let rows = rows(&format!(
            "decode --config tiny.json --batch {batch} --prompt 5 --new 40 --steps 3"
        ));
        let keys = [
            "model",
            "dtype",
            "batch",
            "prompt",
            "static",
            "tokens_per_s",
            "limit",
            "share",
        ];
        let prefill = ["ms_per_step", "prefill_tokens_per_s", "prefill_limit", "prefill_share"];
        have_keys(&rows, &[&keys[..], &prefill].concat());
        are_possible(&rows, "share");
        are_possible(&rows, "prefill_share");
    }
}

#[test]
fn overhead() {
    let rows = rows("overhead --steps 5 --warmup 2");
    let recording = [
        "record_us",
        "record_limit",
        "record_share",
        "lookup_us",
        "lookup_limit",
        "lookup_share",
    ];
    have_keys(
        &rows,
        &[
            &["case", "dtype", "operations"],
            &recording[..],
            &["eval_us", "candle_us"],
        ]
        .concat(),
    );
    assert_eq!(rows[0]["operations"], 1000);
    assert_eq!(
        (&rows[1]["record_limit"], &rows[1]["lookup_limit"]),
        (&0.15.into(), &0.05.into())
    );
}

#[test]
fn the_table_begins_with_the_limits() {
    let home = home();
    let Outcome { stdout, .. } = run(home.path(), &["bench", "matmul", "--size", "8x8x8", "--steps", "2"]).good();
    let lines: Vec<&str> = stdout.lines().collect();
    assert_eq!(lines.len(), 5, "{stdout}");
    assert!(
        lines[0].starts_with("This machine: ") && lines[0].contains("GB/s from memory"),
        "{stdout}"
    );
    assert!(lines[2].starts_with("case") && lines[2].ends_with("share"), "{stdout}");
    assert!(
        lines[3].starts_with("matmul 8^3") && lines[3].ends_with('%'),
        "{stdout}"
    );
}

/// The examples of the help run, with fewer calls than by default. The first one is the test `lora_forward`.
#[test]
fn the_examples_of_the_help_run() {
    let home = home();
    let config = std::fs::read_to_string(home.path().join("tiny.json")).unwrap();
    write(home.path(), "config.json", &config.replace("64}", "512}"));
    let help = run(home.path(), &["bench", "--help"]).good().stdout;
    let examples = help.lines().filter_map(|line| line.strip_prefix("  metal-candle "));
    let examples: Vec<&str> = examples.filter(|example| *example != "bench lora-forward").collect();
    assert_eq!(examples.len(), 6, "{help}");
    for example in examples {
        let arguments: Vec<&str> = example.split(' ').chain(["--steps", "2", "--warmup", "1"]).collect();
        run(home.path(), &arguments).good();
    }
}

#[test]
fn impossible_benchmarks_are_bad_input() {
    let home = home();
    let cases = [
        ("finetune --config absent.json", "absent.json"),
        ("decode --config tiny.json --prompt 60 --new 5", "64 positions"),
        ("lora-forward --case nonesuch", "nonesuch"),
        ("matmul --size 8x8", "three sizes"),
        ("finetune --config tiny.json --length 1", "--length"),
        ("finetune --config tiny.json --length 65", "give --length 64 or less"),
    ];
    for (arguments, part) in cases {
        let arguments: Vec<&str> = ["bench"].into_iter().chain(arguments.split(' ')).collect();
        let Outcome { code, stdout, stderr } = run(home.path(), &arguments);
        assert_eq!(code, Some(2), "{stdout}{stderr}");
        assert!(stderr.contains(part), "{stderr}");
    }
}
