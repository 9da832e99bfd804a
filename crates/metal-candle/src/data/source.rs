//! Splits a data file into the texts of its rows: one line each, or one value each of an array or of a sequence.
//!
//! Reads in pieces and tracks positions. The size of a row is limited, so a file without line ends is not read into
//! memory as a whole. The contents of rows are not parsed here.

use std::io::{self, BufRead, ErrorKind};

/// Maximum size of one row's text in bytes.
pub(super) const MAX_ROW: usize = 64 << 20;

/// The reason why no further row can be read.
#[derive(Debug)]
pub(super) enum Stop {
    /// An I/O error of the operating system.
    Io(io::Error),
    /// The row that begins at this line exceeds the limit.
    TooLong { line: usize },
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// A position in a file: line and column (in characters), from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Position {
    pub line: usize,
    pub column: usize,
    /// The last byte was `\r`: a following `\n` does not begin another line.
    after_return: bool,
}

impl Position {
    pub(super) const START: Self = Self {
        line: 1,
        column: 1,
        after_return: false,
    };

    fn pass(&mut self, byte: u8) {
        match byte {
            b'\n' if self.after_return => {}
            b'\n' | b'\r' => {
                self.line += 1;
                self.column = 1;
            }
            // A continuation byte is part of the preceding character.
            _ => self.column += usize::from(byte & 0xC0 != 0x80),
        }
        self.after_return = byte == b'\r';
    }

    /// The position after these bytes.
    pub(super) fn after(mut self, bytes: &[u8]) -> Self {
        for byte in bytes {
            self.pass(*byte);
        }
        self
    }
}

/// A scanning decision about the buffered bytes: how many to consume, and whether the piece ends there.
type Cut = (usize, bool);

/// A file that is being split.
pub(super) struct Source<R> {
    reader: R,
    pub(super) place: Position,
    limit: usize,
}

impl<R: BufRead> Source<R> {
    pub(super) fn new(reader: R, place: Position, limit: usize) -> Self {
        Self { reader, place, limit }
    }

    /// The reader, from the first byte that was not consumed.
    pub(super) fn into_reader(self) -> R {
        self.reader
    }

    /// The buffered bytes; empty at the end of the file.
    pub(super) fn ahead(&mut self) -> io::Result<&[u8]> {
        while let Err(error) = self.reader.fill_buf() {
            if error.kind() != ErrorKind::Interrupted {
                return Err(error);
            }
        }
        self.reader.fill_buf()
    }

    fn take(&mut self, count: usize) -> io::Result<()> {
        let place = self.place.after(&self.ahead()?[..count]);
        self.place = place;
        self.reader.consume(count);
        Ok(())
    }

    /// Skips a UTF-8 byte order mark.
    pub(super) fn skip_mark(&mut self) -> io::Result<()> {
        if self.ahead()?.starts_with(b"\xEF\xBB\xBF") {
            self.reader.consume(3);
        }
        Ok(())
    }

    /// Skips white space; returns the next byte.
    pub(super) fn skip_blank(&mut self) -> io::Result<Option<u8>> {
        loop {
            let ahead = self.ahead()?;
            let blank = ahead.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
            let (next, is_empty) = (ahead.get(blank).copied(), ahead.is_empty());
            self.take(blank)?;
            if next.is_some() || is_empty {
                return Ok(next);
            }
        }
    }

    /// Consumes the byte that [`skip_blank`](Self::skip_blank) returned.
    pub(super) fn skip_byte(&mut self) -> io::Result<()> {
        self.take(1)
    }

    /// Consumes bytes until `cut` ends the piece, or the file ends.
    fn piece(&mut self, out: &mut Vec<u8>, mut cut: impl FnMut(&[u8]) -> Cut) -> Result<(), Stop> {
        out.clear();
        let line = self.place.line;
        loop {
            let (room, ahead) = (self.limit - out.len(), self.ahead()?);
            if ahead.is_empty() {
                return Ok(());
            }
            let (count, is_end) = cut(ahead);
            if count > room {
                return Err(Stop::TooLong { line });
            }
            out.extend_from_slice(&ahead[..count]);
            self.take(count)?;
            if is_end {
                return Ok(());
            }
        }
    }

    /// The rest of the line, without its end (`\n`, `\r\n` or `\r`, none of which can occur inside a JSON string).
    pub(super) fn line(&mut self, out: &mut Vec<u8>) -> Result<(), Stop> {
        self.piece(out, |ahead| {
            match ahead.iter().position(|byte| matches!(byte, b'\n' | b'\r')) {
                Some(end) => (end, true),
                None => (ahead.len(), false),
            }
        })
    }

    /// One value: up to its closing bracket or quote, or for a number or word up to the first character that is not
    /// part of it.
    pub(super) fn value(&mut self, out: &mut Vec<u8>) -> Result<(), Stop> {
        let mut extent = ValueScanner::default();
        self.piece(out, |ahead| extent.cut(ahead))
    }
}

/// Finds the end of a value by counting brackets and quotes.
#[derive(Default)]
struct ValueScanner {
    depth: usize,
    in_string: bool,
    is_escaped: bool,
    has_begun: bool,
}

impl ValueScanner {
    fn cut(&mut self, ahead: &[u8]) -> Cut {
        for (index, byte) in ahead.iter().enumerate() {
            if self.in_string {
                match byte {
                    _ if self.is_escaped => self.is_escaped = false,
                    b'\\' => self.is_escaped = true,
                    b'"' => {
                        self.in_string = false;
                        if self.depth == 0 {
                            return (index + 1, true);
                        }
                    }
                    _ => {}
                }
                continue;
            }
            match byte {
                b'"' => self.in_string = true,
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' if self.depth == 0 => return (index, true),
                b'}' | b']' => {
                    self.depth -= 1;
                    if self.depth == 0 {
                        return (index + 1, true);
                    }
                }
                b',' | b' ' | b'\t' | b'\n' | b'\r' if self.depth == 0 && self.has_begun => return (index, true),
                _ => {}
            }
            self.has_begun = true;
        }
        (ahead.len(), false)
    }
}
