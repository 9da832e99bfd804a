//! Rows of a data file: JSON objects, one a line, in one array, or one after another.
//!
//! The first row decides the format of the file; a row of another format is an error with file, line and reason, never
//! skipped. Blank lines and a byte-order mark are passed over, columns that a format does not use are ignored. Files are
//! read piece by piece, and a row has a largest size.

use std::fs::File;
use std::io::{BufRead, BufReader, Cursor, Read};
use std::path::Path;

use serde_json::Value;

use super::layout::{self, COLUMNS};
use super::source::{MAX_ROW, Place, Source, Stop};
use super::{DataError, foreign};
use crate::text::ChatMessage;
use crate::text::python_json::{self, Fault};

/// How the rows of a file are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RowFormat {
    /// `{"messages": [{"role": ..., "content": ...}, ...]}`, rendered through the chat template.
    Messages,
    /// `ShareGPT`: `{"conversations": [{"from": "human", "value": ...}, {"from": "gpt", "value": ...}]}`, read as messages.
    ShareGpt,
    /// Alpaca: `{"instruction": ..., "input": ..., "output": ...}`, read as messages; rendered with Alpaca's own prompt
    /// where the model has no chat template.
    Alpaca,
    /// `{"prompt": ..., "completion": ...}`: two texts, or two lists of messages.
    PromptCompletion,
    /// `{"text": ...}`.
    Text,
}

/// How the rows stand in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FileLayout {
    /// One object a line (JSONL).
    Lines,
    /// One JSON array of all objects.
    Array,
    /// Objects one after another, each over several lines (pretty-printed).
    Objects,
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
        /// The tools offered to the model: the row's `tools` list, never empty.
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

/// One row and the line it begins on.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Line in the file, from 1.
    pub line: usize,
    /// What it says.
    pub content: RowContent,
    /// Where the input of an Alpaca row begins in its last question, in bytes.
    input_at: Option<usize>,
}

/// The rows of a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Rows {
    /// The file's name, for error messages.
    pub file: String,
    /// How its rows are written.
    pub format: RowFormat,
    /// How the rows stand in the file.
    pub layout: FileLayout,
    /// At least one row.
    pub rows: Vec<Row>,
}

impl RowFormat {
    /// The format in words, with its columns: `ShareGPT ("conversations")`.
    #[must_use]
    pub fn describe(self) -> &'static str {
        match self {
            Self::Messages => "chat (\"messages\")",
            Self::ShareGpt => "ShareGPT (\"conversations\")",
            Self::Alpaca => "Alpaca (\"instruction\", \"output\")",
            Self::PromptCompletion => "\"prompt\" and \"completion\"",
            Self::Text => "\"text\"",
        }
    }
}

impl FileLayout {
    /// The layout in words: `one object a line`.
    #[must_use]
    pub fn describe(self) -> &'static str {
        match self {
            Self::Lines => "one object a line",
            Self::Array => "a JSON array",
            Self::Objects => "objects over several lines",
        }
    }
}

impl Rows {
    /// What was seen in the file, in words: `ShareGPT ("conversations"), a JSON array`.
    ///
    /// ```
    /// use metal_candle::data::Rows;
    ///
    /// let file = r#"[{"instruction": "Greet.", "input": "", "output": "Hello!"}]"#;
    /// let rows = Rows::from_reader("greet.json", file.as_bytes())?;
    /// assert_eq!(rows.describe(), "Alpaca (\"instruction\", \"output\"), a JSON array");
    /// # Ok::<(), metal_candle::data::DataError>(())
    /// ```
    #[must_use]
    pub fn describe(&self) -> String {
        format!("{}, {}", self.format.describe(), self.layout.describe())
    }

    /// Reads a file.
    ///
    /// # Errors
    ///
    /// [`DataError::Read`], [`DataError::Empty`], [`DataError::NotRows`] for a file of another kind, or
    /// [`DataError::Row`] for the first bad row with the count of the others.
    pub fn read(path: impl AsRef<Path>) -> Result<Self, DataError> {
        let file = path.as_ref().display().to_string();
        let open = File::open(path).map_err(|source| DataError::Read {
            file: file.clone(),
            source,
        })?;
        Self::from_reader(&file, BufReader::new(open))
    }

    /// Reads rows from anywhere; `file` is its name in errors.
    ///
    /// # Errors
    ///
    /// Those of [`read`](Self::read).
    pub fn from_reader(file: &str, reader: impl BufRead) -> Result<Self, DataError> {
        Self::with_limit(file, reader, MAX_ROW)
    }

    /// Reads rows of at most `limit` bytes each.
    fn with_limit(file: &str, reader: impl BufRead, limit: usize) -> Result<Self, DataError> {
        let mut reading = Reading::default();
        match reading.file(reader, limit) {
            Ok(()) => reading.finish(file),
            Err(Stop::Io(source)) => Err(DataError::Read {
                file: file.to_owned(),
                source,
            }),
            Err(Stop::TooLong { line }) => {
                let reason = format!(
                    "the row that begins here has more than {limit} bytes, the most that is read; write one object a line"
                );
                reading.bad(line, reason);
                reading.finish(file)
            }
        }
    }

    /// Alpaca rows with Alpaca's own prompt, for a model without a chat template; `None` for rows of other formats.
    pub(super) fn with_alpaca_prompt(&self) -> Option<Self> {
        if self.format != RowFormat::Alpaca {
            return None;
        }
        let plain = |row: &Row| match &row.content {
            RowContent::Messages { messages, .. } => Some(Row {
                line: row.line,
                content: layout::alpaca_prompt(messages, row.input_at)?,
                input_at: None,
            }),
            _ => None,
        };
        Some(Self {
            file: self.file.clone(),
            format: self.format,
            layout: self.layout,
            rows: self.rows.iter().map(plain).collect::<Option<_>>()?,
        })
    }
}

/// What has been read of a file, and what was wrong so far.
#[derive(Default)]
struct Reading {
    format: Option<RowFormat>,
    layout: Option<FileLayout>,
    rows: Vec<Row>,
    foreign: Option<String>,
    first_bad: Option<(usize, String)>,
    bad: usize,
}

impl Reading {
    fn file(&mut self, reader: impl BufRead, limit: usize) -> Result<(), Stop> {
        let mut source = Source::new(reader, Place::START, limit);
        source.skip_mark()?;
        self.foreign = foreign::recognise(source.ahead()?);
        if self.foreign.is_some() {
            return Ok(());
        }
        match source.skip_blank()? {
            None => Ok(()),
            Some(b'[') => self.array(&mut source),
            Some(_) => self.lines(source, limit),
        }
    }

    /// One object a line. Where the first line does not hold a whole one, objects over several lines.
    fn lines(&mut self, mut source: Source<impl BufRead>, limit: usize) -> Result<(), Stop> {
        let mut text = Vec::new();
        while source.skip_blank()?.is_some() {
            let place = source.place;
            source.line(&mut text)?;
            let first = self.layout.is_none();
            self.layout = Some(FileLayout::Lines);
            let Err(fault) = self.take(place, &text) else { continue };
            if first && fault.is_unfinished && text.starts_with(b"{") {
                let rest = Cursor::new(text).chain(source.into_reader());
                return self.objects(&mut Source::new(rest, place, limit));
            }
            self.fault(place, &text, &fault);
        }
        Ok(())
    }

    /// Objects one after another. After a fault nobody knows where the next begins.
    fn objects(&mut self, source: &mut Source<impl BufRead>) -> Result<(), Stop> {
        self.layout = Some(FileLayout::Objects);
        let mut text = Vec::new();
        while source.skip_blank()?.is_some() {
            let place = source.place;
            source.value(&mut text)?;
            if let Err(fault) = self.take(place, &text) {
                self.fault(place, &text, &fault);
                break;
            }
        }
        Ok(())
    }

    /// One array of objects.
    fn array(&mut self, source: &mut Source<impl BufRead>) -> Result<(), Stop> {
        self.layout = Some(FileLayout::Array);
        let begin = source.place.line;
        source.skip_byte()?;
        let mut text = Vec::new();
        let mut next = source.skip_blank()?;
        while next != Some(b']') {
            let place = source.place;
            source.value(&mut text)?;
            if let Err(fault) = self.take(place, &text) {
                self.fault(place, &text, &fault);
                return Ok(());
            }
            next = source.skip_blank()?;
            let after = source.place;
            if next == Some(b',') {
                source.skip_byte()?;
                next = source.skip_blank()?;
                if next == Some(b']') {
                    self.bad_at(after, "not JSON: a comma before the end of the array");
                    return Ok(());
                }
            } else if next != Some(b']') {
                let end = next.map_or("the file ends within", |_| "expected `,` or `]` in");
                self.bad_at(after, &format!("not JSON: {end} the array that begins in line {begin}"));
                return Ok(());
            }
        }
        source.skip_byte()?;
        if source.skip_blank()?.is_some() {
            self.bad_at(source.place, "there is more text after the array");
        }
        Ok(())
    }

    /// Reads one row. An error of the text itself is returned; other errors are noted.
    fn take(&mut self, place: Place, text: &[u8]) -> Result<(), Fault> {
        let columns = python_json::columns(text, &COLUMNS)?;
        let Some(columns) = columns else {
            let found = match text.first() {
                Some(b'[') => "list",
                Some(b'"') => "string",
                Some(b'n') => "null",
                Some(b't' | b'f') => "boolean",
                _ => "number",
            };
            self.bad(place.line, format!("expected a JSON object, found {found}"));
            return Ok(());
        };
        let detected = layout::detect(&columns);
        let format = match (self.format, &detected) {
            (Some(format), _) => format,
            (None, Ok(format)) => *format,
            (None, Err(reason)) => {
                self.bad(place.line, reason.clone());
                return Ok(());
            }
        };
        self.format = Some(format);
        match layout::read(format, columns) {
            Ok((content, input_at)) => self.rows.push(Row {
                line: place.line,
                content,
                input_at,
            }),
            Err(reason) => self.bad(place.line, of_another_format(reason, format, &detected)),
        }
        Ok(())
    }

    /// Notes a fault in the text of a row that begins at `place`.
    fn fault(&mut self, place: Place, text: &[u8], fault: &Fault) {
        // A file that ends too early is to be mended where its last text stands.
        let end = if fault.is_unfinished {
            text.trim_ascii_end().len()
        } else {
            fault.at
        };
        let at = place.after(&text[..end]);
        let of_row = if at.line != place.line {
            format!(" (in the object that begins in line {})", place.line)
        } else if fault.is_unfinished && self.layout == Some(FileLayout::Lines) {
            " (each line must hold a whole object, as the first one does)".to_owned()
        } else {
            String::new()
        };
        self.bad(
            at.line,
            format!("not JSON: {}, at column {}{of_row}", fault.reason, at.column),
        );
    }

    fn bad_at(&mut self, place: Place, reason: &str) {
        self.bad(place.line, format!("{reason}, at column {}", place.column));
    }

    fn bad(&mut self, line: usize, reason: String) {
        self.bad += 1;
        self.first_bad.get_or_insert((line, reason));
    }

    fn finish(self, file: &str) -> Result<Rows, DataError> {
        let file = file.to_owned();
        if let Some(reason) = self.foreign {
            return Err(DataError::NotRows { file, reason });
        }
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
                layout: self.layout.unwrap_or(FileLayout::Lines),
                rows: self.rows,
            }),
            (None, None) => Err(DataError::Empty { file }),
        }
    }
}

/// The reason, and how the row differs from those before it.
fn of_another_format(reason: String, format: RowFormat, detected: &Result<RowFormat, String>) -> String {
    match detected {
        Ok(other) if *other == format => reason,
        Ok(other) => format!(
            "{reason} (the file began with {} rows, this row is {})",
            format.describe(),
            other.describe()
        ),
        Err(_) => format!("{reason} (the file began with {} rows)", format.describe()),
    }
}

#[cfg(test)]
#[path = "jsonl_tests.rs"]
mod tests;
