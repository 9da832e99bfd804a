//! `cargo xtask ci`: all checks of the repository, those that fail soonest first.
//!
//! Each step prints its command and its time; the first failure ends the run with exit code 1. A step whose tool or
//! database is missing is reported as not run, with the reason; it is never skipped silently.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use miette::{IntoDiagnostic, Result, bail};

use crate::tidy;

/// Flags of `cargo xtask ci`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Skip `cargo test --workspace`, for a caller that has just run it.
    #[arg(long)]
    skip_tests: bool,
}

/// One command line of the run.
struct Step {
    name: &'static str,
    arguments: &'static [&'static str],
    environment: &'static [(&'static str, &'static str)],
}

const FORMAT: Step = step("format", &["fmt", "--all", "--check"]);
const CLIPPY: Step = step(
    "clippy",
    &[
        "clippy",
        "--workspace",
        "--all-targets",
        "--all-features",
        "--",
        "-D",
        "warnings",
    ],
);
const TESTS: Step = step("tests", &["test", "--workspace"]);
const EAGER: Step = step(
    "eager-only build",
    &["test", "--package", "metal-candle", "--no-default-features"],
);
/// Tests that need other than the default features.
const ASYNC: Step = step(
    "asynchronous evaluation",
    &[
        "test",
        "--package",
        "metal-candle-graph",
        "--package",
        "metal-candle",
        "--features",
        "async-exec",
        "--lib",
        "--test",
        "lazy_execution",
    ],
);
const ASYNC_EXAMPLES: Step = step(
    "examples of asynchronous evaluation",
    &[
        "test",
        "--package",
        "metal-candle-graph",
        "--features",
        "async-exec",
        "--doc",
    ],
);
const DOCS: Step = Step {
    name: "documentation",
    arguments: &["doc", "--no-deps", "--workspace", "--all-features"],
    environment: &[("RUSTDOCFLAGS", "-D warnings")],
};
/// The target whose Metal support is compiled nowhere else; type-checking it needs no Apple software.
const MACOS_TARGET: &str = "aarch64-apple-darwin";
const MACOS: Step = step(
    "clippy for macOS",
    &[
        "clippy",
        "--target",
        MACOS_TARGET,
        "--package",
        "metal-candle-graph",
        "--package",
        "metal-candle",
        "--package",
        "metal-candle-cli",
        "--",
        "-D",
        "warnings",
    ],
);
const LICENCES: Step = step(
    "licences, sources, bans",
    &["deny", "check", "licenses", "sources", "bans"],
);
const ADVISORIES: Step = step("advisories", &["deny", "check", "advisories"]);

const fn step(name: &'static str, arguments: &'static [&'static str]) -> Step {
    Step {
        name,
        arguments,
        environment: &[],
    }
}

/// The result of a step; a failure ends the run instead.
enum Outcome {
    Passed(Duration),
    NotRun(&'static str),
}

/// Runs all checks on the repository at `root`.
///
/// # Errors
///
/// The first step that fails, by name.
pub fn run(root: &Path, arguments: &Arguments) -> Result<()> {
    let mut report = vec![(FORMAT.name, run_step(root, &FORMAT)?)];
    report.push(("tidy", run_tidy(root)?));
    report.push((CLIPPY.name, run_step(root, &CLIPPY)?));
    report.push((MACOS.name, run_macos(root)?));
    let tests = if arguments.skip_tests {
        Outcome::NotRun("--skip-tests was given")
    } else {
        run_step(root, &TESTS)?
    };
    report.push((TESTS.name, tests));
    for step in [&EAGER, &ASYNC, &ASYNC_EXAMPLES, &DOCS] {
        report.push((step.name, run_step(root, step)?));
    }
    report.extend(run_deny(root)?);
    print_report(&report);
    Ok(())
}

fn run_step(root: &Path, step: &Step) -> Result<Outcome> {
    println!("== {}: cargo {}", step.name, step.arguments.join(" "));
    let start = Instant::now();
    let status = cargo(root, step.arguments)
        .envs(step.environment.iter().copied())
        .status()
        .into_diagnostic()?;
    if !status.success() {
        bail!(
            "{} failed after {:.1} s: cargo {}",
            step.name,
            start.elapsed().as_secs_f64(),
            step.arguments.join(" ")
        );
    }
    println!("== {}: passed in {:.1} s", step.name, start.elapsed().as_secs_f64());
    Ok(Outcome::Passed(start.elapsed()))
}

fn run_tidy(root: &Path) -> Result<Outcome> {
    println!("== tidy");
    let start = Instant::now();
    tidy::run(root)?;
    Ok(Outcome::Passed(start.elapsed()))
}

/// Installs the target if it is missing; a toolchain that rustup does not manage has only its own.
fn run_macos(root: &Path) -> Result<Outcome> {
    let rustup = |arguments: &[&str]| Command::new("rustup").args(arguments).current_dir(root).status();
    match rustup(&["target", "add", MACOS_TARGET]) {
        Ok(status) if status.success() => run_step(root, &MACOS),
        Ok(_) => bail!(
            "{}: `rustup target add {MACOS_TARGET}` failed; run it once with a network",
            MACOS.name
        ),
        Err(_) => Ok(Outcome::NotRun("rustup, which installs the target, is not there")),
    }
}

/// Licences and sources if cargo-deny is installed; advisories if it can also fetch their database.
fn run_deny(root: &Path) -> Result<[(&'static str, Outcome); 2]> {
    if !succeeds_quietly(root, &["deny", "--version"]) {
        let reason = "cargo-deny is not installed (cargo install cargo-deny --locked)";
        return Ok([
            (LICENCES.name, Outcome::NotRun(reason)),
            (ADVISORIES.name, Outcome::NotRun(reason)),
        ]);
    }
    let licences = run_step(root, &LICENCES)?;
    let advisories = if succeeds_quietly(root, &["deny", "fetch", "db"]) {
        run_step(root, &ADVISORIES)?
    } else {
        Outcome::NotRun("the advisory database cannot be reached from here")
    };
    Ok([(LICENCES.name, licences), (ADVISORIES.name, advisories)])
}

fn succeeds_quietly(root: &Path, arguments: &[&str]) -> bool {
    let status = cargo(root, arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    status.is_ok_and(|status| status.success())
}

/// The cargo that started this program, so that a toolchain chosen with `cargo +name` is kept.
fn cargo(root: &Path, arguments: &[&str]) -> Command {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(program);
    command.args(arguments).current_dir(root);
    command
}

fn print_report(report: &[(&str, Outcome)]) {
    println!("\nsummary");
    for (name, outcome) in report {
        match outcome {
            Outcome::Passed(time) => println!("  passed   {name} ({:.1} s)", time.as_secs_f64()),
            Outcome::NotRun(reason) => println!("  NOT RUN  {name}: {reason}"),
        }
    }
    println!("  beside   cargo xtask miri, cargo xtask asan: undefined behaviour, with a nightly compiler");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_step_stops_the_run_and_names_itself() {
        let step = step("nonsense", &["this-is-no-cargo-command"]);
        let error = run_step(&crate::repository_root(), &step)
            .err()
            .map(|error| error.to_string());
        assert!(error.is_some_and(|text| text.starts_with("nonsense failed after")));
    }

    #[test]
    fn a_missing_tool_is_noticed() {
        assert!(!succeeds_quietly(
            &crate::repository_root(),
            &["this-is-no-cargo-command"]
        ));
        assert!(succeeds_quietly(&crate::repository_root(), &["--version"]));
    }

    /// The README says `cargo run`, without the name of a binary.
    #[test]
    fn cargo_run_has_one_binary_to_run() {
        let metadata = Command::new("cargo")
            .args(["metadata", "--no-deps", "--format-version", "1", "--offline"])
            .current_dir(crate::repository_root())
            .output()
            .unwrap();
        let metadata: serde_json::Value = serde_json::from_slice(&metadata.stdout).unwrap();
        let list = |value: &serde_json::Value| value.as_array().unwrap().clone();
        let members = list(&metadata["workspace_default_members"]);
        let packages = list(&metadata["packages"]);
        let targets = packages
            .iter()
            .filter(|package| members.contains(&package["id"]))
            .flat_map(|package| list(&package["targets"]));
        let binaries: Vec<_> = targets
            .filter(|target| list(&target["kind"]).contains(&"bin".into()))
            .map(|target| target["name"].clone())
            .collect();
        assert_eq!(binaries, ["metal-candle"]);
    }
}
