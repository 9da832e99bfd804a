//! The output of a run on a terminal: a wide one, a narrow one, one without colours, and one without cursor movement.
#![cfg(unix)]

mod common;

use std::fs::File;
use std::io::Read;
use std::process::Stdio;

use common::{home, model, program};
use nix::pty::{Winsize, openpty};

/// The output of a run of three steps on a terminal of this width.
fn shown(columns: u16, variables: &[(&str, &str)]) -> String {
    let size = Winsize {
        ws_row: 24,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    let terminal = openpty(&size, None).unwrap();
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
        "3",
    ];
    let mut command = program(home.path(), &arguments);
    for variable in ["NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE"] {
        command.env_remove(variable);
    }
    command.env("TERM", "xterm-256color").envs(variables.iter().copied());
    let mut child = command
        .stdout(Stdio::null())
        .stderr(Stdio::from(terminal.slave))
        .spawn()
        .unwrap();
    drop(command); // holds the program's end of the terminal open
    let mut text = Vec::new();
    // A terminal whose last program is gone ends in an error.
    let _ = File::from(terminal.master).read_to_end(&mut text);
    assert!(child.wait().unwrap().success());
    String::from_utf8(text).unwrap()
}

/// The visible lines, without escape sequences for cursor movement and colour.
fn lines(text: &str) -> Vec<String> {
    let mut plain = String::new();
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        if character == '\u{1b}' {
            // ESC [ parameters letter
            characters.by_ref().skip(1).find(char::is_ascii_alphabetic);
        } else {
            plain.push(character);
        }
    }
    plain
        .split(['\r', '\n'])
        .filter(|line| !line.trim().is_empty())
        .map(str::to_owned)
        .collect()
}

fn says(text: &str, parts: &[&str]) {
    let line = |line: &String| parts.iter().all(|part| line.contains(part));
    assert!(
        lines(text).iter().any(line),
        "no line with {parts:?} in {:#?}",
        lines(text)
    );
}

#[test]
fn a_terminal_shows_step_loss_and_time_left_at_any_width() {
    for columns in [120, 80, 40, 30] {
        let text = shown(columns, &[]);
        let bar = if columns > 60 { "━" } else { "" };
        let left = if columns >= 40 { " left" } else { "s" };
        let loss = if columns >= 40 { "loss " } else { "" };
        says(&text, &["3/3", bar, loss, left]);
        for line in lines(&text) {
            assert!(
                line.chars().count() <= usize::from(columns),
                "{columns} columns: {line}"
            );
        }
    }
}

#[test]
fn colours_can_be_turned_off() {
    let colour = "\u{1b}[36m";
    assert!(shown(120, &[]).contains(colour));
    let text = shown(120, &[("NO_COLOR", "1")]);
    assert!(!text.contains(colour), "{text:?}");
    says(&text, &["3/3", "━", "loss ", " left"]);
}

#[test]
fn a_terminal_that_cannot_move_its_cursor_gets_lines() {
    for columns in [80, 40] {
        let text = shown(columns, &[("TERM", "dumb")]);
        assert!(!text.contains('\u{1b}'), "{text:?}");
        says(&text, &["step 3/3", "loss ", " left"]);
    }
}
