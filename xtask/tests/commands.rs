//! The command line of the binary. Building this test also builds the binary for `.ci/run`, with the dependencies of
//! the tests.

use std::process::{Command, Output};

fn xtask(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_xtask"))
        .args(arguments)
        .output()
        .unwrap()
}

#[test]
fn help_lists_the_commands() {
    let output = xtask(&["--help"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success());
    assert!(
        ["ci", "tidy", "miri", "asan", "demo"]
            .iter()
            .all(|command| text.contains(&format!("  {command} "))),
        "{text}"
    );
}

#[test]
fn a_folder_that_is_not_empty_is_left_alone() {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/src");
    let output = xtask(&["demo", "corpus", "--output", source]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains("is not empty"));
}

#[test]
fn an_unknown_command_is_a_usage_error() {
    assert_eq!(xtask(&["no-such-command"]).status.code(), Some(2));
}
