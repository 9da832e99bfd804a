//! `cargo xtask miri` and `cargo xtask asan`: runs the engine's unsafe code under two tools that detect undefined
//! behaviour. Both need a nightly compiler, so neither is part of `cargo xtask ci`; neither installs anything.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use miette::{IntoDiagnostic, Result, bail, miette};

const ENGINE: &str = "metal-candle-graph";

/// Library tests for Miri, by the start of their names.
const MIRI_LIBRARY: &[&str] = &[
    "backend::cpu::buffer",
    "backend::cpu::kernels::adamw",
    "backend::cpu::kernels::attention",
    "backend::cpu::kernels::cross_entropy",
    "backend::cpu::kernels::index",
    "backend::cpu::kernels::layer_norm",
    "backend::cpu::kernels::matmul",
    "backend::cpu::kernels::pool",
    "backend::cpu::kernels::random::tests::bits",
    "backend::cpu::kernels::reduce::tests::integers",
    "backend::cpu::kernels::rms_norm",
    "backend::cpu::kernels::rope",
    "backend::cpu::kernels::scratch",
    "backend::cpu::kernels::softmax",
    "backend::cpu::kernels::swiglu",
    "backend::cpu::memory::tests::arenas",
    "io::json",
];

/// Tests of whole graphs for Miri: each operation and its gradient on the CPU backend, including walk, plan, views and
/// arena.
const MIRI_OPERATIONS: &[&str] = &["each_runs", "each_has_a_gradient"];

/// Tests of plans for Miri: random graphs are too slow, this covers row reductions in expressions.
const MIRI_PLANS: &[&str] = &["reductions_of_long_rows"];

const MIRI_FLAGS: &str = "-Zmiri-disable-isolation -Zmiri-ignore-leaks";

/// Integration tests for the address sanitizer. `allocations` has its own allocator.
const ASAN_TESTS: &[&str] = &["backends", "operations", "optimised_plans"];

/// One command line with its environment.
#[derive(Debug, PartialEq, Eq)]
struct Run {
    arguments: Vec<String>,
    environment: Vec<(&'static str, OsString)>,
}

/// Runs the engine's unsafe code under Miri, which stops at undefined behaviour: reads of freed or uninitialised
/// memory, data races, aliasing `&mut` references.
///
/// Miri interprets Rust and supports few vector instructions, so the engine uses its portable kernels, and its loops
/// skip `pulp`'s dispatch; parallel loops start at smaller sizes and tests have smaller cases. Miri cannot run Candle's
/// own products (`gemm` detects the CPU with assembly), hence neither the candle backend, nor the measured limits of
/// the machine (which need a clock), nor checkpoint files, which involve no unsafe code.
///
/// # Errors
/// When the compiler or Miri is missing, with the command that installs it, and when a test fails.
pub fn miri(root: &Path) -> Result<()> {
    needs_nightly(root)?;
    if !succeeds(root, &["+nightly", "miri", "--version"]) {
        bail!("Miri is missing: rustup component add --toolchain nightly miri rust-src");
    }
    let library = miri_run(&["--lib"], MIRI_LIBRARY);
    let operations = miri_run(&["--test", "operations"], MIRI_OPERATIONS);
    let plans = miri_run(&["--test", "optimised_plans"], MIRI_PLANS);
    run_all(root, "miri", &[library, operations, plans])
}

/// Runs the engine's tests, with its vector instructions, under the address sanitizer, which stops at out-of-bounds
/// accesses and use after free, and reports memory leaks.
///
/// # Errors
/// When the compiler is missing, with the command that installs it, and when a test fails.
pub fn asan(root: &Path) -> Result<()> {
    needs_nightly(root)?;
    let host = host(root)?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    run_all(root, "asan", &[asan_run(&host, &target)])
}

fn miri_run(target: &[&str], filters: &[&str]) -> Run {
    let start = ["+nightly", "miri", "test", "--package", ENGINE];
    let arguments = start.iter().chain(target).chain(&["--"]).chain(filters);
    Run {
        arguments: arguments.map(ToString::to_string).collect(),
        // The engine reads the time, the number of cores and an environment variable; its threads live as long as the
        // process, which Miri would report as a leak.
        environment: vec![("MIRIFLAGS", MIRI_FLAGS.into())],
    }
}

/// With `--target`, build scripts and procedural macros are built without the sanitizer. The separate folder keeps the
/// flags from invalidating other builds.
fn asan_run(host: &str, target: &Path) -> Run {
    let start = ["+nightly", "test", "--package", ENGINE, "--target", host, "--lib"];
    let tests = ASAN_TESTS.iter().flat_map(|test| ["--test", test]);
    Run {
        arguments: start.into_iter().chain(tests).map(String::from).collect(),
        environment: vec![
            ("RUSTFLAGS", "-Zsanitizer=address".into()),
            ("CARGO_TARGET_DIR", target.join("asan").into()),
        ],
    }
}

fn needs_nightly(root: &Path) -> Result<()> {
    if succeeds(root, &["+nightly", "--version"]) {
        return Ok(());
    }
    bail!("a nightly compiler is missing: rustup toolchain install nightly --component miri,rust-src")
}

/// The host's target triple, which the compiler prints as `host: x86_64-unknown-linux-gnu`.
fn host(root: &Path) -> Result<String> {
    let output = cargo(root, &["+nightly", "--version", "--verbose"])
        .output()
        .into_diagnostic()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(String::from)
        .ok_or_else(|| miette!("cargo +nightly --version --verbose names no host"))
}

fn run_all(root: &Path, name: &str, runs: &[Run]) -> Result<()> {
    let start = Instant::now();
    for run in runs {
        let arguments: Vec<&str> = run.arguments.iter().map(String::as_str).collect();
        let set = run.environment.iter();
        let set: Vec<String> = set.map(|(key, value)| format!("{key}={}", value.display())).collect();
        println!("== {name}: {} cargo {}", set.join(" "), arguments.join(" "));
        let status = cargo(root, &arguments)
            .envs(run.environment.iter().cloned())
            .status()
            .into_diagnostic()?;
        if !status.success() {
            bail!("{name} failed: cargo {}", arguments.join(" "));
        }
    }
    println!("== {name}: passed in {:.0} s", start.elapsed().as_secs_f64());
    Ok(())
}

fn succeeds(root: &Path, arguments: &[&str]) -> bool {
    let mut command = cargo(root, arguments);
    let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

/// The cargo in the path, which supports `+nightly`; the one that started this program has a fixed toolchain.
fn cargo(root: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new("cargo");
    command.args(arguments).current_dir(root);
    // A missing toolchain is reported, not downloaded.
    command.env("RUSTUP_AUTO_INSTALL", "0");
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn miri_gets_the_filters_behind_two_dashes() {
        let run = miri_run(&["--test", "operations"], &["each_runs", "each_has"]);
        assert_eq!(
            run.arguments.join(" "),
            "+nightly miri test --package metal-candle-graph --test operations -- each_runs each_has"
        );
        assert_eq!(run.environment, [("MIRIFLAGS", MIRI_FLAGS.into())]);
    }

    #[test]
    fn the_sanitizer_has_a_target_and_a_folder_of_its_own() {
        let run = asan_run("x86_64-unknown-linux-gnu", Path::new("built"));
        assert_eq!(
            run.arguments.join(" "),
            "+nightly test --package metal-candle-graph --target x86_64-unknown-linux-gnu --lib --test backends \
             --test operations --test optimised_plans"
        );
        let folder = Path::new("built").join("asan").into_os_string();
        assert_eq!(
            run.environment,
            [
                ("RUSTFLAGS", "-Zsanitizer=address".into()),
                ("CARGO_TARGET_DIR", folder)
            ]
        );
    }

    /// A filter that matches nothing would pass silently.
    #[test]
    fn every_filter_names_a_module_or_a_test_that_exists() {
        let engine = crate::repository_root().join("crates/graph");
        for filter in MIRI_LIBRARY {
            let module = filter.split("::tests::").next().unwrap_or(filter);
            let module = engine.join("src").join(module.replace("::", "/"));
            assert!(module.is_dir() || module.with_extension("rs").is_file(), "{filter}");
        }
        for (test, filters) in [("operations", MIRI_OPERATIONS), ("optimised_plans", MIRI_PLANS)] {
            let text = std::fs::read_to_string(engine.join("tests").join(test).join("main.rs")).unwrap();
            for filter in filters {
                assert!(text.contains(&format!("fn {filter}")), "{filter}");
            }
        }
        for test in ASAN_TESTS {
            let path = engine.join("tests").join(test);
            assert!(path.is_dir() || path.with_extension("rs").is_file(), "{test}");
        }
    }

    #[test]
    fn a_failing_run_stops_and_names_its_command() {
        let run = Run {
            arguments: vec!["this-is-no-cargo-command".into()],
            environment: Vec::new(),
        };
        let error = run_all(&crate::repository_root(), "miri", &[run]).unwrap_err();
        assert_eq!(error.to_string(), "miri failed: cargo this-is-no-cargo-command");
    }
}
