//! Rows of a data file: JSON objects, one per line, in one array, or one after another.
//!
//! The first row decides the format of the file; a row of another format is an error with file, line and reason, never
//! skipped. Blank lines and a byte order mark are skipped, unused columns are ignored. Files are read in pieces, and
//! the size of a row is limited.

use std::fs::File;
use std::io::{BufRead, BufReader, Cursor, Read};
use std::path::Path;

use serde_json::Value;

use super::layout::{self, COLUMNS};
use super::source::{MAX_ROW, Position, Source, Stop};
use super::{DataError, foreign};
use crate::text::ChatMessage;
use crate::text::python_json::{self, JsonFault};

/// The format of the rows of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RowFormat {
    /// `{"messages": [{"role": ..., "content": ...}, ...]}`, rendered through the chat template.
    Messages,
    /// `ShareGPT`: `{"conversations": [{"from": "human", "value": ...}, {"from": "gpt", "value": ...}]}`, read as messages.
    ShareGpt,
    /// Alpaca: `{"instruction": ..., "input": ..., "output": ...}`, read as messages; rendered with Alpaca's own prompt
    /// if the model has no chat template.
    Alpaca,
    /// `{"prompt": ..., "completion": ...}`: two texts, or two lists of messages.
    PromptCompletion,
    /// `{"text": ...}`.
    Text,
}

/// The layout of the rows in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FileLayout {
    /// One object per line (JSONL).
    Lines,
    /// One JSON array of all objects.
    Array,
    /// Objects one after another, each possibly over several lines (pretty-printed).
    Objects,
}

/// The content of a row.
#[derive(Clone, Debug, PartialEq)]
pub enum RowContent {
    /// A conversation.
    Messages {
        /// Its messages.
        messages: Vec<ChatMessage>,
        /// Assistant messages before this index are context and not trained on (0: all are trained on).
        learn_from: usize,
        /// The tools offered to the model: the row's `tools` list, never empty.
        tools: Option<Value>,
    },
    /// A prompt and its completion.
    PromptCompletion {
        /// The input of the model.
        prompt: String,
        /// The text to train on.
        completion: String,
    },
    /// A text to train on as a whole.
    Text(String),
}

/// One row and the line at which it begins.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Line in the file, from 1.
    pub line: usize,
    /// Its content.
    pub content: RowContent,
    /// Byte offset of an Alpaca row's input in its last question.
    input_at: Option<usize>,
}

/// The rows of a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Rows {
    /// The file's name, for error messages.
    pub file: String,
    /// The format of its rows.
    pub format: RowFormat,
    /// The layout of the rows.
    pub layout: FileLayout,
    /// The rows; at least one.
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
    /// The layout in words: `one object per line`.
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
    /// The detected format and layout, in words: `ShareGPT ("conversations"), a JSON array`.
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
    /// [`DataError::Read`], [`DataError::Empty`], [`DataError::NotRows`] for another type of file, or
    /// [`DataError::Row`] for the first malformed row with the count of the others.
    pub fn read(path: impl AsRef<Path>) -> Result<Self, DataError> {
        let file = path.as_ref().display().to_string();
        let open = File::open(path).map_err(|source| DataError::Read {
            file: file.clone(),
            source,
        })?;
        Self::from_reader(&file, BufReader::new(open))
    }

    /// Reads rows from a reader; `file` is its name in errors.
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

/// The rows read so far, and the errors.
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
        let mut source = Source::new(reader, Position::START, limit);
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

    /// One object per line. If the first line does not hold a complete one, objects over several lines.
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

    /// Objects one after another. After a syntax error, the start of the next object is unknown.
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

    /// Reads one row. A JSON syntax error is returned; other errors are recorded.
    fn take(&mut self, place: Position, text: &[u8]) -> Result<(), JsonFault> {
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

    /// Records a syntax error in the text of a row that begins at `place`.
    fn fault(&mut self, place: Position, text: &[u8], fault: &JsonFault) {
        // A file that ends too early is reported at the end of its last text.
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

    fn bad_at(&mut self, place: Position, reason: &str) {
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

/// The reason, and how the row differs from the preceding ones.
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
