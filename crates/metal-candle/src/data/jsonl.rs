//! JSONL: one JSON object a line, read into typed rows.
//!
//! The first row decides the format of the file; a line that is not such a row is an error with file, line and reason,
//! never skipped. Blank lines and a byte-order mark are skipped. Fields that a format does not use are ignored.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use serde_json::{Map, Value};

use super::DataError;
use crate::text::{ChatMessage, TextError, json_kind};

/// How the rows of a file are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowFormat {
    /// `{"messages": [{"role": ..., "content": ...}, ...]}`, rendered through the chat template.
    Messages,
    /// `{"prompt": ..., "completion": ...}`: two texts, or two lists of messages.
    PromptCompletion,
    /// `{"text": ...}`.
    Text,
}

/// What a row says.
#[derive(Clone, Debug, PartialEq)]
pub enum RowContent {
    /// A conversation.
    Messages {
        /// Its messages.
        messages: Vec<ChatMessage>,
        /// Assistant messages before this index are context and are not learnt (0: all are learnt).
        learn_from: usize,
        /// The tools offered to the model: the row's `tools` list.
        tools: Option<Value>,
    },
    /// A text and what is to follow it.
    PromptCompletion {
        /// Given to the model.
        prompt: String,
        /// Learnt by the model.
        completion: String,
    },
    /// A text that is learnt whole.
    Text(String),
}

/// One row and the line it stands on.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Line in the file, from 1.
    pub line: usize,
    /// What it says.
    pub content: RowContent,
}

/// The rows of a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Rows {
    /// The file's name, for error messages.
    pub file: String,
    /// How its rows are written.
    pub format: RowFormat,
    /// At least one row.
    pub rows: Vec<Row>,
}

impl RowFormat {
    /// The format of a first row.
    fn detect(fields: &Map<String, Value>) -> Option<Self> {
        if fields.contains_key("messages") {
            Some(Self::Messages)
        } else if fields.contains_key("prompt") || fields.contains_key("completion") {
            Some(Self::PromptCompletion)
        } else if fields.contains_key("text") {
            Some(Self::Text)
        } else {
            None
        }
    }

    /// What an object of this format says, or what is wrong with it.
    fn read(self, fields: &Map<String, Value>) -> Result<RowContent, String> {
        match self {
            Self::Messages => Ok(RowContent::Messages {
                messages: messages(fields, "messages")?,
                learn_from: 0,
                tools: tools(fields)?,
            }),
            Self::PromptCompletion if fields.get("prompt").is_some_and(Value::is_array) => {
                let mut all = messages(fields, "prompt")?;
                let learn_from = all.len();
                all.extend(messages(fields, "completion")?);
                Ok(RowContent::Messages {
                    messages: all,
                    learn_from,
                    tools: tools(fields)?,
                })
            }
            Self::PromptCompletion => Ok(RowContent::PromptCompletion {
                prompt: string(fields, "prompt")?,
                completion: string(fields, "completion")?,
            }),
            Self::Text => Ok(RowContent::Text(string(fields, "text")?)),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Messages => "\"messages\"",
            Self::PromptCompletion => "\"prompt\" and \"completion\"",
            Self::Text => "\"text\"",
        }
    }
}

fn expected(field: &str, what: &str, found: Option<&Value>) -> String {
    format!("expected field \"{field}\" ({what}), found {}", json_kind(found))
}

fn string(fields: &Map<String, Value>, field: &str) -> Result<String, String> {
    match fields.get(field) {
        Some(Value::String(text)) => Ok(text.clone()),
        other => Err(expected(field, "string", other)),
    }
}

fn messages(fields: &Map<String, Value>, field: &str) -> Result<Vec<ChatMessage>, String> {
    let list = match fields.get(field) {
        Some(Value::Array(list)) => list,
        other => return Err(expected(field, "list of messages", other)),
    };
    if list.is_empty() {
        return Err(format!(
            "field \"{field}\" is an empty list; expected at least one message"
        ));
    }
    let read = |(index, message)| {
        ChatMessage::from_json(message).map_err(|error| match error {
            TextError::Message { reason } => {
                format!("field \"{field}\", message {}: {reason}", index + 1)
            }
            other => other.to_string(),
        })
    };
    list.iter().enumerate().map(read).collect()
}

fn tools(fields: &Map<String, Value>) -> Result<Option<Value>, String> {
    match fields.get("tools") {
        None | Some(Value::Null) => Ok(None),
        Some(list @ Value::Array(_)) => Ok(Some(list.clone())),
        other => Err(expected("tools", "list", other)),
    }
}

impl Rows {
    /// Reads a file.
    ///
    /// # Errors
    ///
    /// [`DataError::Read`], [`DataError::Empty`], or [`DataError::Row`] for the first bad line with the count of the
    /// others.
    pub fn read(path: impl AsRef<Path>) -> Result<Self, DataError> {
        let file = path.as_ref().display().to_string();
        let open = File::open(path).map_err(|source| DataError::Read {
            file: file.clone(),
            source,
        })?;
        Self::from_reader(&file, BufReader::new(open))
    }

    /// Reads JSONL from anywhere; `file` is its name in errors.
    ///
    /// # Errors
    ///
    /// Those of [`read`](Self::read).
    pub fn from_reader(file: &str, mut reader: impl BufRead) -> Result<Self, DataError> {
        let mut reading = Reading::default();
        let (mut line, mut bytes) = (0, Vec::new());
        loop {
            bytes.clear();
            let read = reader.read_until(b'\n', &mut bytes);
            if read.map_err(|source| DataError::Read {
                file: file.to_owned(),
                source,
            })? == 0
            {
                break;
            }
            line += 1;
            let text = if line == 1 {
                bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(&bytes)
            } else {
                &bytes
            };
            let text = text.trim_ascii_end();
            if !text.is_empty() {
                reading.take(line, text);
            }
        }
        reading.finish(file)
    }
}

/// Rows so far, and what was wrong so far.
#[derive(Default)]
struct Reading {
    format: Option<RowFormat>,
    rows: Vec<Row>,
    first_bad: Option<(usize, String)>,
    bad: usize,
}

impl Reading {
    fn take(&mut self, line: usize, text: &[u8]) {
        match self.parse(text) {
            Ok(content) => self.rows.push(Row { line, content }),
            Err(reason) => {
                self.bad += 1;
                self.first_bad.get_or_insert((line, reason));
            }
        }
    }

    fn parse(&mut self, text: &[u8]) -> Result<RowContent, String> {
        let text = std::str::from_utf8(text).map_err(|error| format!("not UTF-8: {error}"))?;
        let value: Value = serde_json::from_str(text).map_err(|error| not_json(&error))?;
        let Value::Object(fields) = &value else {
            return Err(format!("expected a JSON object, found {}", json_kind(Some(&value))));
        };
        let detected = RowFormat::detect(fields);
        let Some(format) = self.format.or(detected) else {
            return Err("expected a row with \"messages\", \"prompt\" and \"completion\", or \"text\"".to_owned());
        };
        self.format = Some(format);
        format.read(fields).map_err(|reason| match detected {
            Some(other) if other != format => {
                format!(
                    "{reason} (the file began with {} rows, this row has {})",
                    format.name(),
                    other.name()
                )
            }
            _ => reason,
        })
    }

    fn finish(self, file: &str) -> Result<Rows, DataError> {
        let file = file.to_owned();
        match (self.first_bad, self.format) {
            (Some((line, reason)), _) => Err(DataError::Row {
                file,
                line,
                reason,
                more: self.bad - 1,
            }),
            (None, Some(format)) => Ok(Rows {
                file,
                format,
                rows: self.rows,
            }),
            (None, None) => Err(DataError::Empty { file }),
        }
    }
}

/// The parser's reason with the column only: the line is always the file's.
fn not_json(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let reason = text.split(" at line ").next().unwrap_or(&text);
    format!("not JSON: {reason}, at column {}", error.column())
}

#[cfg(test)]
#[path = "jsonl_tests.rs"]
mod tests;
