//! Warnings of a run: that nothing was trained, that settings have no effect, and about unusual adapters.

mod common;

use std::path::Path;

use common::{home, lines, model, run, write};

/// A model whose logits are NaN: no step is ever applied, so nothing is saved, however short the run.
#[test]
fn a_run_without_a_finite_step_saves_no_adapter() {
    use candle_core::{Device, safetensors};

    let home = home();
    let broken = home.path().join("broken");
    std::fs::create_dir(&broken).unwrap();
    for entry in std::fs::read_dir(model("llama-tiny")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, broken.join(path.file_name().unwrap())).unwrap();
    }
    let weights = broken.join("model.safetensors");
    let mut tensors = safetensors::load(&weights, &Device::Cpu).unwrap();
    let norm = tensors.get_mut("model.norm.weight").unwrap();
    *norm = (&*norm * f64::NAN).unwrap();
    safetensors::save(&tensors, &weights).unwrap();

    // The second would overwrite a good run.
    let sound = model("llama-tiny");
    let arguments = [
        "train",
        "--model",
        &sound,
        "--data",
        "chats.jsonl",
        "--output",
        "out",
        "--max-steps",
        "3",
    ];
    run(home.path(), &arguments).good();
    let good = || std::fs::read(home.path().join("out/adapter_model.safetensors")).unwrap();
    let (before, out) = (good(), home.path().join("out"));
    for (more, metrics, said) in [
        (
            &["--output", "new", "--max-steps", "2"][..],
            "new/metrics.jsonl",
            "new has metrics.jsonl and loss.svg",
        ),
        (&["--output", "new2"], "new2/metrics.jsonl", "new2 has metrics.jsonl"),
        (
            &["--output", "out", "--overwrite-output", "--max-steps", "1"],
            "out/unfinished-run/metrics.jsonl",
            "the earlier run in the folder above is unchanged",
        ),
    ] {
        let ended = run(
            home.path(),
            &[&["train", "--model", "broken", "--data", "chats.jsonl"], more].concat(),
        );
        assert_eq!(ended.code, Some(1), "{}", ended.stderr);
        for part in ["no step was applied, so there is no adapter", said, "not finite"] {
            assert!(ended.stderr.contains(part), "expected `{part}` in {}", ended.stderr);
        }
        assert!(
            !ended.stdout.contains("Written to") && !ended.stdout.contains("Trained"),
            "{}",
            ended.stdout
        );
        assert!(
            lines(&home.path().join(metrics))
                .iter()
                .all(|line| line["loss"] == "NaN" && line["skipped"] == true)
        );
    }
    for folder in ["new", "new2"] {
        assert!(!home.path().join(folder).join("adapter_model.safetensors").exists());
        assert!(!home.path().join(folder).join("adapter_config.json").exists());
    }
    assert_eq!(good(), before);
    assert!(out.join("adapter_config.json").exists());
}

#[test]
fn settings_without_effect_are_warned_about() {
    let home = home();
    let model = model("llama-tiny");
    let said = |more: &[&str]| {
        let fixed = [
            "train",
            "--model",
            &model,
            "--data",
            "chats.jsonl",
            "--output",
            "out",
            "--overwrite-output",
        ];
        run(home.path(), &[&fixed[..], more].concat()).good().stderr
    };
    for (more, expected) in [
        (
            &["--max-steps", "1"][..],
            "warning: warm-up takes 1 step and the run has 1 step: the learning rate is 0 throughout",
        ),
        (
            &["--max-steps", "2", "--eval-steps", "1"],
            "warning: --eval-steps has no effect: no validation data",
        ),
        (
            &["--max-steps", "2", "--validation", "chats.jsonl"],
            "warning: --validation is the file of --data",
        ),
        (
            &["--max-steps", "2", "--gradient-accumulation-steps", "9"],
            "an epoch has 1 batch, and a step takes no more",
        ),
        (
            &["--max-steps", "2", "--num-train-epochs", "9"],
            "warning: --num-train-epochs has no effect: --max-steps decides",
        ),
        (
            &["--max-steps", "2", "--batch-size", "9"],
            "warning: a batch of 9 rows: there are only 3 examples",
        ),
        (
            &["--max-steps", "2", "--max-length", "24", "--train-on-inputs"],
            "longer than 24 tokens (--max-length), cut",
        ),
    ] {
        let stderr = said(more);
        assert!(stderr.contains(expected), "{more:?}: {stderr}");
        assert_eq!(stderr.matches("warning: ").count(), 1, "{more:?}: {stderr}");
    }
}

/// A PEFT adapter for several architectures, written by a newer version than the supported one.
#[test]
fn unusual_adapters_are_warned_about_once() {
    let home = home();
    let folder = home.path().join("adapter");
    std::fs::create_dir(&folder).unwrap();
    let given = common::fixture("adapters/peft-llama-tiny");
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        std::fs::copy(Path::new(&given).join(file), folder.join(file)).unwrap();
    }
    let arguments = [
        "generate",
        "--model",
        &model("llama-tiny"),
        "--adapter",
        "adapter",
        "--prompt",
        "a",
        "--max-new-tokens",
        "4",
    ];
    let plain = run(home.path(), &arguments).good();
    assert!(!plain.stderr.contains("warning"), "{}", plain.stderr);
    let text = std::fs::read_to_string(folder.join("adapter_config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
    config["target_modules"]
        .as_array_mut()
        .unwrap()
        .extend(["c_attn".into(), "wqkv".into()]);
    config["peft_version"] = "9.9.1".into();
    config["use_something_new"] = true.into();
    write(&folder, "adapter_config.json", &config.to_string());
    let odd = run(home.path(), &arguments).good();
    assert_eq!(odd.stdout, plain.stdout);
    for part in [
        "warning: adapter/adapter_config.json: unknown settings are ignored: `use_something_new` (written by PEFT 9.9.1)",
        "warning: target_modules: no layer of this model matches `c_attn`, `wqkv`",
    ] {
        assert_eq!(
            odd.stderr.matches(part).count(),
            1,
            "expected `{part}` in {}",
            odd.stderr
        );
    }
}
