//! Concurrent, overwriting and interrupted runs: real processes, and the contents of the folder afterwards.
#![cfg(unix)]

mod common;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{home, lines, model, program, run, write};

const FILES: [&str; 5] = [
    "adapter_config.json",
    "adapter_model.safetensors",
    "loss.svg",
    "metrics.jsonl",
    "training.toml",
];

fn names(folder: &Path) -> Vec<String> {
    let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
    let mut names: Vec<String> = fs::read_dir(folder).unwrap().map(name).collect();
    names.sort();
    names
}

fn contents(folder: &Path) -> Vec<Vec<u8>> {
    FILES
        .map(|file| fs::read(folder.join(file)).unwrap_or_default())
        .to_vec()
}

/// The arguments of a run on the little data there is.
fn training<'a>(model: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["train", "--model", model, "--data", "chats.jsonl"], more].concat()
}

/// A run that only a signal ends.
fn endless(folder: &Path, model: &str, more: &[&str]) -> Child {
    let arguments = training(model, &[&["--max-steps", "1000000"], more].concat());
    let mut command = program(folder, &arguments);
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// Waits until a condition holds for a running process.
fn wait_for(child: &mut Child, what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while !holds() {
        assert!(child.try_wait().unwrap().is_none(), "the run ended");
        assert!(Instant::now() < deadline, "{what}: not within two minutes");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Waits until a run has written something into `file`.
fn begun(child: &mut Child, file: &Path) {
    wait_for(child, &file.display().to_string(), || {
        fs::metadata(file).is_ok_and(|file| file.len() > 0)
    });
}

fn signal(child: &Child, signal: &str) {
    let kill = Command::new("kill").args([signal, &child.id().to_string()]).status();
    assert!(kill.unwrap().success());
}

#[test]
fn a_second_run_in_a_folder_is_refused_until_the_first_is_gone() {
    let home = home();
    let model = model("llama-tiny");
    let out = home.path().join("out");
    let into_out = training(&model, &["--output", "out", "--max-steps", "2"]);
    let over_it = [&into_out[..], &["--overwrite-output"]].concat();
    let mut first = endless(home.path(), &model, &["--output", "out"]);
    begun(&mut first, &out.join("metrics.jsonl"));
    for arguments in [&into_out, &over_it] {
        let second = run(home.path(), arguments);
        assert_eq!(second.code, Some(2), "{}", second.stderr);
        let said = format!("out: another run (process {}) is writing in this folder", first.id());
        assert!(second.stderr.contains(&said), "{}", second.stderr);
    }
    assert!(first.try_wait().unwrap().is_none());
    // The claim of a killed run ends, whatever is left in the folder.
    first.kill().unwrap();
    first.wait().unwrap();
    assert!(run(home.path(), &into_out).stderr.contains("not empty"));
    run(home.path(), &over_it).good();
    assert_eq!(names(&out), FILES);
    assert_eq!(lines(&out.join("metrics.jsonl")).len(), 2);
}

#[test]
fn concurrent_runs_without_a_name_get_separate_folders() {
    let home = home();
    let model = model("llama-tiny");
    let arguments = training(&model, &["--max-steps", "2"]);
    let runs: Vec<Child> = (0..3)
        .map(|_| {
            program(home.path(), &arguments)
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    for run in runs {
        let ended = run.wait_with_output().unwrap();
        assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    }
    let name = "metal-candle-output";
    assert_eq!(
        names(home.path()),
        [
            "chats.jsonl".to_owned(),
            name.to_owned(),
            format!("{name}-2"),
            format!("{name}-3")
        ]
    );
    for folder in &names(home.path())[1..] {
        assert_eq!(names(&home.path().join(folder)), FILES);
    }
}

/// One of the two is refused, and the folder belongs to the other.
#[test]
fn one_of_two_concurrent_runs_in_a_folder_is_refused() {
    let home = home();
    let model = model("llama-tiny");
    let arguments = training(&model, &["--max-steps", "2", "--output", "out"]);
    let start = || {
        program(home.path(), &arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let runs = [start(), start()];
    let mut codes = runs.map(|run| run.wait_with_output().unwrap().status.code());
    codes.sort();
    assert_eq!(codes, [Some(0), Some(2)]);
    assert_eq!(names(&home.path().join("out")), FILES);
}

/// Whenever a run that overwrites another is killed, the settings in the folder are those of its weights.
#[test]
fn a_killed_overwriting_run_leaves_the_earlier_one_unchanged() {
    let home = home();
    let model = model("llama-tiny");
    let out = home.path().join("out");
    run(home.path(), &training(&model, &["--output", "out", "--max-steps", "2"])).good();
    let before = contents(&out);
    assert!(before.iter().all(|file| !file.is_empty()));
    // The leftovers of a killed run must not be confused with the next one's: each has its own seed.
    let start = |seed: u32| {
        let seed = seed.to_string();
        let more = ["--output", "out", "--overwrite-output", "--seed", &seed, "--r", "2"];
        let mut run = endless(home.path(), &model, &more);
        let unfinished = out.join("unfinished-run");
        let settings = || fs::read_to_string(unfinished.join("training.toml")).unwrap_or_default();
        wait_for(&mut run, "settings", || settings().contains(&format!("seed = {seed}")));
        begun(&mut run, &unfinished.join("metrics.jsonl"));
        run
    };
    for (seed, patience) in [(4, 0), (5, 5), (6, 50)] {
        let mut second = start(seed);
        std::thread::sleep(Duration::from_millis(patience));
        second.kill().unwrap();
        second.wait().unwrap();
        assert_eq!(contents(&out), before);
    }
    // A handled signal ends the run with its adapter in place.
    let mut third = start(7);
    signal(&third, "-TERM");
    assert_eq!(third.wait().unwrap().code(), Some(143));
    assert_eq!(names(&out), FILES);
    let text = |file: &str| fs::read_to_string(out.join(file)).unwrap();
    assert!(text("training.toml").contains("seed = 7") && text("adapter_config.json").contains("\"r\": 2"));
    let answer = ["generate", "--adapter", "out", "--prompt", "a", "--max-new-tokens", "2"];
    run(home.path(), &answer).good();
}

/// A crash in the exchange of two runs: `generate` says where the finished one is, and the next start puts it in place.
#[test]
fn an_interrupted_exchange_loses_no_finished_run() {
    let home = home();
    let model = model("llama-tiny");
    let (out, unfinished) = (home.path().join("out"), home.path().join("out/unfinished-run"));
    let next = training(&model, &["--output", "out", "--max-steps", "2"]);
    run(home.path(), &next).good();
    let finished = contents(&out);
    // The state after the first change, with an earlier run whose files are all empty.
    fs::create_dir(&unfinished).unwrap();
    for file in FILES {
        fs::rename(out.join(file), unfinished.join(file)).unwrap();
        fs::write(out.join(file), "").unwrap();
    }
    fs::remove_file(out.join("adapter_config.json")).unwrap();
    let mark = "This run of metal-candle is complete; it replaces the one in the folder above.\n";
    fs::write(unfinished.join("complete"), mark).unwrap();

    let answer = |adapter| {
        let arguments = [
            "generate",
            "--adapter",
            adapter,
            "--prompt",
            "a",
            "--max-new-tokens",
            "2",
        ];
        run(home.path(), &arguments)
    };
    let refused = answer("out");
    assert_eq!(refused.code, Some(2), "{}", refused.stderr);
    assert!(
        refused.stderr.contains("--adapter out/unfinished-run"),
        "{}",
        refused.stderr
    );
    answer("out/unfinished-run").good();

    let started = run(home.path(), &next);
    assert!(
        started
            .stderr
            .contains("the finished run in unfinished-run has replaced"),
        "{}",
        started.stderr
    );
    assert!(started.stderr.contains("not empty"), "{}", started.stderr);
    assert_eq!(
        (contents(&out), names(&out)),
        (finished, FILES.map(str::to_owned).to_vec())
    );
    answer("out").good();
}

#[test]
fn data_is_never_overwritten() {
    let home = home();
    let model = model("llama-tiny");
    let data = fs::read(home.path().join("chats.jsonl")).unwrap();
    fs::create_dir(home.path().join("out")).unwrap();
    let metrics = home.path().join("out/metrics.jsonl");
    let train_on = |data: &str| {
        let arguments = [
            "train",
            "--model",
            &model,
            "--data",
            data,
            "--output",
            "out",
            "--overwrite-output",
            "--max-steps",
            "1",
        ];
        run(home.path(), &arguments)
    };
    let refused = |path: &str| {
        let refused = train_on(path);
        assert_eq!(refused.code, Some(2), "{path}: {}", refused.stderr);
        assert!(
            refused
                .stderr
                .contains("out/metrics.jsonl: the run would overwrite the data"),
            "{}",
            refused.stderr
        );
        assert_eq!(fs::read(home.path().join(path)).unwrap(), data);
    };
    fs::write(&metrics, &data).unwrap();
    refused("out/metrics.jsonl");
    fs::remove_file(&metrics).unwrap();
    fs::hard_link(home.path().join("chats.jsonl"), &metrics).unwrap();
    refused("chats.jsonl");
    fs::remove_file(&metrics).unwrap();
    std::os::unix::fs::symlink("../chats.jsonl", &metrics).unwrap();
    refused("chats.jsonl");
    fs::remove_file(&metrics).unwrap();
    // With another name it may be in the folder.
    fs::write(home.path().join("out/mine.jsonl"), &data).unwrap();
    train_on("out/mine.jsonl").good();
    assert_eq!(fs::read(home.path().join("out/mine.jsonl")).unwrap(), data);
}

#[test]
fn a_closed_terminal_ends_the_run_unless_sighup_is_ignored() {
    let home = home();
    let model = model("llama-tiny");
    let mut plain = endless(home.path(), &model, &["--output", "plain"]);
    begun(&mut plain, &home.path().join("plain/metrics.jsonl"));
    signal(&plain, "-HUP");
    assert_eq!(plain.wait().unwrap().code(), Some(129));
    assert_eq!(names(&home.path().join("plain")), FILES);

    let arguments = training(&model, &["--max-steps", "1000000", "--output", "kept"]);
    let mut kept = Command::new("nohup")
        .arg(env!("CARGO_BIN_EXE_metal-candle"))
        .args(&arguments)
        .current_dir(home.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let metrics = home.path().join("kept/metrics.jsonl");
    begun(&mut kept, &metrics);
    signal(&kept, "-HUP");
    let steps = lines(&metrics).len();
    while lines(&metrics).len() < steps + 5 {
        assert!(kept.try_wait().unwrap().is_none(), "nohup did not help");
        std::thread::sleep(Duration::from_millis(20));
    }
    signal(&kept, "-TERM");
    assert_eq!(kept.wait().unwrap().code(), Some(143));
}

/// The message about the first signal must not block the second.
#[test]
fn a_second_signal_ends_a_run_blocked_on_stderr() {
    let home = home();
    let model = model("llama-tiny");
    let arguments = training(&model, &["--max-steps", "1000000", "--output", "out"]);
    let mut child = program(home.path(), &arguments)
        .env("METAL_CANDLE_LOG", "graph=trace")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Until the pipe is full and the run blocks on its reader.
    let (mut before, mut now) = (u64::MAX, 0);
    let ticks = |child: &Child| {
        let stat = fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap_or_default();
        let fields: Vec<u64> = stat
            .rsplit(')')
            .next()
            .unwrap_or_default()
            .split(' ')
            .skip(12)
            .take(2)
            .filter_map(|f| f.parse().ok())
            .collect();
        fields.iter().sum()
    };
    while before != now {
        std::thread::sleep(Duration::from_millis(500));
        (before, now) = (now, ticks(&child));
    }
    assert!(child.try_wait().unwrap().is_none());
    let start = Instant::now();
    signal(&child, "-INT");
    std::thread::sleep(Duration::from_millis(100));
    signal(&child, "-INT");
    let code = child.wait().unwrap().code();
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    assert_eq!(code, Some(130));
}

/// Before training there is nothing to save: the first signal ends the program, and no trace of the run is left.
#[test]
fn a_signal_before_the_first_step_leaves_nothing() {
    let home = home();
    // Tokenising takes long enough.
    write(
        home.path(),
        "many.jsonl",
        &"{\"text\": \"It is the sea, and then the sky.\"}\n".repeat(200_000),
    );
    let model = model("llama-tiny");
    let mut child = program(
        home.path(),
        &[
            "train",
            "--model",
            &model,
            "--data",
            "many.jsonl",
            "--output",
            "new/out",
        ],
    )
    .stdout(Stdio::null())
    .stderr(Stdio::null())
    .spawn()
    .unwrap();
    begun(&mut child, &home.path().join("new/out/.metal-candle.lock"));
    signal(&child, "-INT");
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(!home.path().join("new").exists());
}

/// A limit on the file size simulates a full disk: writing fails in the middle of the weights.
#[test]
fn a_full_disk_is_reported_and_leaves_the_earlier_run() {
    let home = home();
    let model = model("llama-tiny");
    let out = home.path().join("out");
    run(home.path(), &training(&model, &["--output", "out", "--max-steps", "2"])).good();
    let before = contents(&out);
    let arguments = training(
        &model,
        &["--output", "out", "--max-steps", "2", "--overwrite-output", "--r", "64"],
    );
    let ended = Command::new("sh")
        .args([
            "-c",
            "ulimit -f 100; trap '' XFSZ; exec \"$0\" \"$@\"",
            env!("CARGO_BIN_EXE_metal-candle"),
        ])
        .args(&arguments)
        .current_dir(home.path())
        .output()
        .unwrap();
    let said = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(ended.status.code(), Some(1), "{said}");
    assert!(said.contains("adapter_model.safetensors: cannot write"), "{said}");
    assert_eq!(contents(&out), before);
}

#[test]
fn the_first_signal_is_explained() {
    let home = home();
    let model = model("llama-tiny");
    let arguments = training(&model, &["--max-steps", "1000000", "--output", "out"]);
    let mut child = program(home.path(), &arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    begun(&mut child, &home.path().join("out/metrics.jsonl"));
    signal(&child, "-TERM");
    let said: Vec<String> = BufReader::new(child.stderr.take().unwrap())
        .lines()
        .map(Result::unwrap)
        .collect();
    assert_eq!(child.wait().unwrap().code(), Some(143));
    assert!(
        said.iter().any(|line| line.contains("stopping after this step")),
        "{said:?}"
    );
    let last = said.last().unwrap();
    assert!(
        last.starts_with("stopped after step ") && last.contains("is saved in out, with metrics.jsonl and loss.svg"),
        "{last}"
    );
}
