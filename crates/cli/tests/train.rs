//! Training from the command line: the files written, the use of the adapter, and how a run ends.

mod common;

use std::path::Path;

use common::{home, lines, model, run, write};

/// Three steps of a tiny model into `out`.
fn three_steps(folder: &Path, name: &str, more: &[&str]) {
    let model = model(name);
    let arguments = [
        "train",
        "--model",
        &model,
        "--data",
        "chats.jsonl",
        "--output",
        "out",
        "--max-steps",
        "3",
    ];
    run(folder, &[&arguments[..], more].concat()).good();
}

fn answer(folder: &Path, arguments: &[&str]) -> String {
    let fixed = ["generate", "--prompt", "What is it?", "--max-new-tokens", "12"];
    run(folder, &[&fixed[..], arguments].concat()).good().stdout
}

#[test]
fn a_run_writes_adapter_metrics_plot_and_settings() {
    for name in ["llama-tiny", "qwen2-tiny"] {
        let home = home();
        let more = [
            "--validation",
            "chats.jsonl",
            "--eval-steps",
            "2",
            "--learning-rate",
            "0.05",
            "--warmup-ratio",
            "0",
        ];
        three_steps(home.path(), name, &more);
        let out = home.path().join("out");
        for file in [
            "adapter_config.json",
            "adapter_model.safetensors",
            "metrics.jsonl",
            "loss.svg",
            "training.toml",
        ] {
            assert!(out.join(file).metadata().unwrap().len() > 0, "{file}");
        }
        let metrics = lines(&out.join("metrics.jsonl"));
        let steps: Vec<_> = metrics.iter().filter(|line| line.get("loss").is_some()).collect();
        assert_eq!(
            steps
                .iter()
                .map(|line| line["step"].as_u64().unwrap())
                .collect::<Vec<_>>(),
            [1, 2, 3]
        );
        assert!(
            steps[2]["loss"].as_f64().unwrap() < steps[0]["loss"].as_f64().unwrap(),
            "{metrics:?}"
        );
        assert!(steps.iter().all(|line| line["grad_norm"].as_f64().unwrap() > 0.0));
        let measured: Vec<_> = metrics.iter().filter(|line| line.get("eval_loss").is_some()).collect();
        assert_eq!(
            measured
                .iter()
                .map(|line| line["step"].as_u64().unwrap())
                .collect::<Vec<_>>(),
            [2, 3]
        );
        assert!(
            std::fs::read_to_string(out.join("loss.svg"))
                .unwrap()
                .contains("validation")
        );

        let model = model(name);
        let base = answer(home.path(), &["--model", &model]);
        assert_ne!(
            answer(home.path(), &["--model", &model, "--adapter", "out"]),
            base,
            "{name}: the adapter changes nothing"
        );
        // The adapter knows its model.
        assert_eq!(
            answer(home.path(), &["--adapter", "out"]),
            answer(home.path(), &["--model", &model, "--adapter", "out"])
        );
    }
}

#[test]
fn the_same_settings_give_the_same_adapter() {
    let (one, two) = (home(), home());
    three_steps(
        one.path(),
        "llama-tiny",
        &[
            "--r",
            "4",
            "--lora-dropout",
            "0.1",
            "--target-modules",
            "q_proj",
            "v_proj",
        ],
    );
    let settings = one.path().join("out/training.toml");
    let arguments = ["train", "--config", settings.to_str().unwrap(), "--output", "out"];
    run(two.path(), &arguments).good();
    let weights = |home: &Path| std::fs::read(home.join("out/adapter_model.safetensors")).unwrap();
    assert_eq!(weights(one.path()), weights(two.path()));
}

#[test]
fn flags_win_over_the_settings_file() {
    let home = home();
    let file = format!(
        "model = {:?}\ndata = \"chats.jsonl\"\noutput = \"out\"\nrank = 4\nmax_steps = 2\nlora_alpha = 3",
        model("llama-tiny")
    );
    write(home.path(), "run.toml", &file);
    run(home.path(), &["train", "--config", "run.toml", "--r", "2"]).good();
    let written = std::fs::read_to_string(home.path().join("out/adapter_config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_str(&written).unwrap();
    assert_eq!(
        (config["r"].as_u64(), config["lora_alpha"].as_f64()),
        (Some(2), Some(3.0))
    );
    assert_eq!(lines(&home.path().join("out/metrics.jsonl")).len(), 2);
}

#[test]
fn a_non_empty_output_folder_can_be_overwritten() {
    let home = home();
    three_steps(home.path(), "llama-tiny", &[]);
    three_steps(home.path(), "llama-tiny", &["--overwrite-output", "--seed", "1"]);
    assert_eq!(lines(&home.path().join("out/metrics.jsonl")).len(), 3);
}

#[test]
fn a_default_output_folder_is_chosen() {
    let home = home();
    let model = model("llama-tiny");
    for _ in 0..2 {
        run(
            home.path(),
            &["train", "--model", &model, "--data", "chats.jsonl", "--max-steps", "1"],
        )
        .good();
    }
    for folder in ["metal-candle-output", "metal-candle-output-2"] {
        assert!(
            home.path().join(folder).join("adapter_model.safetensors").exists(),
            "{folder}"
        );
    }
}

#[test]
fn generation_streams_or_not_and_is_reproducible() {
    let home = home();
    let model = model("qwen2-tiny");
    let sampled = ["--model", &model, "--temperature", "1", "--seed", "3"];
    let text = answer(home.path(), &sampled);
    assert_eq!(answer(home.path(), &[&sampled[..], &["--stream=false"]].concat()), text);
    assert_ne!(
        answer(home.path(), &["--model", &model, "--temperature", "1", "--seed", "4"]),
        text
    );
    assert_ne!(
        answer(home.path(), &["--model", &model, "--raw"]),
        answer(home.path(), &["--model", &model])
    );
    let numbers = run(home.path(), &["generate", "--model", &model, "--prompt", "a"])
        .good()
        .stderr;
    assert!(numbers.contains("tokens/s") && !numbers.contains('\u{1b}'), "{numbers}");
}

#[test]
fn the_log_shows_passes_and_plans() {
    let home = home();
    let arguments = [
        "generate",
        "--model",
        &model("llama-tiny"),
        "--prompt",
        "a",
        "--max-new-tokens",
        "2",
    ];
    let quiet = run(home.path(), &arguments).good().stderr;
    assert!(!quiet.contains("metal_candle_graph"), "{quiet}");
    let log = common::program(home.path(), &arguments)
        .env("METAL_CANDLE_LOG", "graph")
        .output()
        .unwrap();
    let log = String::from_utf8(log.stderr).unwrap();
    assert!(log.contains("metal_candle_graph") && log.contains("pass"), "{log}");
}

#[test]
fn help_contains_examples() {
    let home = home();
    for arguments in [&["--help"][..], &["train", "--help"], &["generate", "--help"]] {
        let help = run(home.path(), arguments).good().stdout;
        assert!(help.contains("Examples:\n  metal-candle "), "{help}");
    }
    let train = run(home.path(), &["train", "--help"]).good().stdout;
    for name in [
        "--learning-rate",
        "--lora-alpha",
        "--target-modules",
        "[alias: --rank]",
        "0.0002",
        "\"messages\"",
    ] {
        assert!(train.contains(name), "{name}");
    }
}

#[test]
fn a_failed_run_saves_the_last_adapter() {
    let home = home();
    let arguments = [
        "train",
        "--model",
        &model("llama-tiny"),
        "--data",
        "chats.jsonl",
        "--output",
        "out",
        "--learning-rate",
        "1e30",
        "--warmup-ratio",
        "0",
        "--max-steps",
        "20",
        "--max-nonfinite-steps",
        "2",
    ];
    let ended = run(home.path(), &arguments);
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    for said in ["3 steps in a row", "out, with metrics.jsonl and loss.svg"] {
        assert!(ended.stderr.contains(said), "{}", ended.stderr);
    }
    let out = home.path().join("out");
    assert_eq!(lines(&out.join("metrics.jsonl")).len(), 3);
    let picture = std::fs::read_to_string(out.join("loss.svg")).unwrap();
    assert!(picture.starts_with("<svg") && picture.contains("Training loss"));
    assert!(out.join("adapter_model.safetensors").exists());
}

#[test]
fn a_batch_size_above_the_number_of_examples_is_reduced() {
    let home = home();
    three_steps(home.path(), "llama-tiny", &["--batch-size", "1000000000"]);
    let steps = lines(&home.path().join("out/metrics.jsonl"));
    assert_eq!(steps[2]["epoch"].as_f64(), Some(3.0));
}

#[test]
fn a_prompt_may_begin_with_a_dash() {
    let home = home();
    let model = model("llama-tiny");
    for prompt in ["-5 apples", "--help me", "- a list"] {
        let arguments = [
            "generate",
            "--model",
            &model,
            "--max-new-tokens",
            "3",
            "--prompt",
            prompt,
        ];
        let numbers = run(home.path(), &arguments).good().stderr;
        assert!(numbers.contains("3 tokens in"), "{prompt}: {numbers}");
    }
}

/// A closed reader (broken pipe) ends the text, without an error.
#[cfg(unix)]
#[test]
fn a_broken_pipe_ends_the_generation() {
    use std::io::Read;
    use std::process::Stdio;

    let home = home();
    let model = model("llama-tiny");
    let arguments = [
        "generate",
        "--model",
        &model,
        "--prompt",
        "a",
        "--max-new-tokens",
        "400",
    ];
    let mut child = common::program(home.path(), &arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = child.stdout.take().unwrap();
    out.read_exact(&mut [0; 4]).unwrap();
    drop(out);
    let ended = child.wait_with_output().unwrap();
    let numbers = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(ended.status.code(), Some(0), "{numbers}");
    assert!(numbers.contains("ended by the reader"), "{numbers}");
    assert_eq!(numbers.lines().count(), 1, "{numbers}");
}

/// A long run that a signal ends; returns its exit code and its output.
#[cfg(unix)]
fn ended_by(signal: &str) -> (Option<i32>, tempfile::TempDir) {
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    let home = home();
    let model = model("llama-tiny");
    let arguments = [
        "train",
        "--model",
        &model,
        "--data",
        "chats.jsonl",
        "--output",
        "out",
        "--max-steps",
        "1000000",
    ];
    let mut child = common::program(home.path(), &arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let metrics = home.path().join("out/metrics.jsonl");
    let deadline = Instant::now() + Duration::from_secs(120);
    while std::fs::metadata(&metrics).map_or(0, |file| file.len()) == 0 {
        assert!(
            child.try_wait().unwrap().is_none() && Instant::now() < deadline,
            "no step was done"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(
        Command::new("kill")
            .args([signal, &child.id().to_string()])
            .status()
            .unwrap()
            .success()
    );
    (child.wait().unwrap().code(), home)
}

#[cfg(unix)]
#[test]
fn a_signal_ends_the_run_with_the_adapter_saved() {
    for (signal, code) in [("-HUP", 129), ("-INT", 130), ("-TERM", 143)] {
        let (ended, home) = ended_by(signal);
        assert_eq!(ended, Some(code));
        let steps = lines(&home.path().join("out/metrics.jsonl"));
        assert!(!steps.is_empty());
        assert!(home.path().join("out/loss.svg").exists());
        answer(home.path(), &["--adapter", "out"]);
    }
}

/// The message of the first signal explains the second, which ends a long step.
#[cfg(unix)]
#[test]
fn a_second_signal_ends_the_run_at_once() {
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    let home = home();
    // One step of all rows, each a batch: minutes.
    write(
        home.path(),
        "many.jsonl",
        &"{\"text\": \"It is the sea.\"}\n".repeat(30_000),
    );
    let model = model("llama-tiny");
    let arguments = ["train", "--model", &model, "--data", "many.jsonl", "--output", "out"];
    let one_step = [
        "--max-steps",
        "1",
        "--batch-size",
        "1",
        "--gradient-accumulation-steps",
        "30000",
        "--warmup-steps",
        "0",
    ];
    let mut child = common::program(home.path(), &[&arguments[..], &one_step].concat())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let signal = |id: u32| Command::new("kill").args(["-INT", &id.to_string()]).status().unwrap();
    while !home.path().join("out/metrics.jsonl").exists() {
        assert!(child.try_wait().unwrap().is_none());
        std::thread::sleep(Duration::from_millis(20));
    }
    std::thread::sleep(Duration::from_millis(200)); // the file is made just before signals are held
    assert!(signal(child.id()).success());
    let said = BufReader::new(child.stderr.take().unwrap())
        .lines()
        .map(Result::unwrap)
        .next();
    assert!(
        said.as_ref()
            .is_some_and(|line| line.contains("once more stops at once")),
        "{said:?}"
    );
    assert!(child.try_wait().unwrap().is_none());
    let start = Instant::now();
    assert!(signal(child.id()).success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(start.elapsed() < Duration::from_secs(2));
    assert!(!home.path().join("out/adapter_model.safetensors").exists());
}
