//! Runs the binary like a user.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The result of a run of the program.
pub struct Outcome {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Outcome {
    /// The outcome, if the program succeeded.
    pub fn good(self) -> Self {
        assert_eq!(self.code, Some(0), "{}", self.stderr);
        self
    }
}

impl From<Output> for Outcome {
    fn from(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).expect("the program writes UTF-8");
        Self {
            code: output.status.code(),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        }
    }
}

/// The program, to be run in `folder`.
pub fn program(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_metal-candle"));
    command
        .current_dir(folder)
        .args(arguments)
        .env_remove("METAL_CANDLE_LOG");
    command
}

/// Runs the program to its end.
pub fn run(folder: &Path, arguments: &[&str]) -> Outcome {
    program(folder, arguments).output().expect("the program starts").into()
}

/// A folder of the fixtures.
pub fn fixture(path: &str) -> String {
    let folder: PathBuf = [env!("CARGO_MANIFEST_DIR"), "..", "..", "fixtures", path]
        .iter()
        .collect();
    folder.to_str().expect("a path in UTF-8").to_owned()
}

/// A model among the fixtures.
pub fn model(name: &str) -> String {
    fixture(&format!("models/{name}"))
}

/// Training conversations, in a file `chats.jsonl` of a temporary folder.
pub fn home() -> tempfile::TempDir {
    let home = tempfile::tempdir().expect("a folder");
    let row = |question: &str, answer: &str| {
        serde_json::json!({ "messages": [
            { "role": "user", "content": question },
            { "role": "assistant", "content": answer },
        ] })
        .to_string()
    };
    let rows = [
        row("What is it?", "It is the sea."),
        row("And now?", "Now it is the sky."),
        row("Why?", "It was so."),
    ];
    write(home.path(), "chats.jsonl", &rows.join("\n"));
    home
}

/// Writes a file of a test.
pub fn write(folder: &Path, name: &str, text: &str) {
    std::fs::write(folder.join(name), text).expect("a file can be written");
}

/// The objects of a JSONL file.
pub fn lines(path: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(path).expect("the file is there");
    text.lines()
        .map(|line| serde_json::from_str(line).expect("each line is JSON"))
        .collect()
}
