//! JSON as read by Python's `json` module: `NaN` and `Infinity` are numbers, and integers keep all their digits.
//!
//! Data files are written by Python, and errors in them must be located: a fault has a byte offset. A lone surrogate, a
//! duplicate key and deep nesting are faults. Unused values are checked and skipped without allocation. Numbers that
//! `serde_json::Number` cannot represent are stored in a marked object ([`exact_number`]), because `serde_json`'s
//! feature `arbitrary_precision` would change how all crates of a program read numbers.

use serde_json::{Map, Value as Json};

/// Maximum nesting of lists and objects.
const MAX_DEPTH: usize = 100;
/// Maximum number of values in one text: a list of empty lists takes many times the memory of its text.
const MAX_VALUES: usize = 1 << 19;
/// The only key of an object that represents a number.
const NUMBER: &str = "$metal_candle::integer";

/// A syntax error and its position.
#[derive(Debug, PartialEq)]
pub(crate) struct JsonFault {
    /// Byte offset of the error; the length of the text if it ends too early.
    pub at: usize,
    /// The reason.
    pub reason: String,
    /// Whether the text ends before the value does, outside a string.
    pub is_unfinished: bool,
}

type Read<T> = Result<T, JsonFault>;

/// The columns of a row: the values of requested ones, the names of all.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Columns {
    /// The requested columns.
    pub values: Map<String, Json>,
    /// Names of the other columns, each with the first byte of its value.
    pub others: Vec<(String, u8)>,
}

/// Parses a text with exactly one value.
pub(crate) fn parse(text: &[u8]) -> Read<Json> {
    let mut parser = Parser::new(text);
    let value = parser.value(0, true)?.unwrap_or_default();
    parser.end()?;
    Ok(value)
}

/// Parses the `wanted` columns of an object; checks and skips the others. `None` if the text is not an object.
pub(crate) fn columns(text: &[u8], wanted: &[&str]) -> Read<Option<Columns>> {
    let mut parser = Parser::new(text);
    parser.blank();
    if parser.peek() != Some(b'{') {
        parser.value(0, false)?;
        return parser.end().map(|()| None);
    }
    let mut columns = Columns::default();
    parser.object(|parser, at, name| {
        let seen = |columns: &Columns| columns.values.contains_key(&name) || columns.others.iter().any(|c| c.0 == name);
        if seen(&columns) {
            return Err(twice(at, &name));
        }
        parser.blank();
        let first = parser.peek().unwrap_or_default();
        let keep = wanted.contains(&name.as_str());
        match parser.value(1, keep)? {
            Some(value) => {
                columns.values.insert(name, value);
            }
            None if columns.others.len() < MAX_NAMES => columns.others.push((name, first)),
            None => {}
        }
        Ok(())
    })?;
    parser.end()?;
    Ok(Some(columns))
}

/// Maximum number of column names that are kept.
const MAX_NAMES: usize = 64;

/// Whether a value is null, or pandas' NaN.
pub(crate) fn is_missing(value: &Json) -> bool {
    value.is_null() || number(value) == Some("NaN")
}

/// A value for the text of a number that `serde_json::Number` cannot represent.
pub(crate) fn exact_number(text: &str) -> Json {
    let mut fields = Map::new();
    fields.insert(NUMBER.to_owned(), Json::String(text.to_owned()));
    Json::Object(fields)
}

/// The text of such a number: an integer beyond 64 bits, `NaN`, `Infinity` or `-Infinity`.
pub(crate) fn number(value: &Json) -> Option<&str> {
    match value {
        Json::Object(fields) if fields.len() == 1 => fields.get(NUMBER).and_then(Json::as_str),
        _ => None,
    }
}

fn twice(at: usize, name: &str) -> JsonFault {
    let name: String = name.chars().take(40).collect();
    JsonFault {
        at,
        reason: format!("the key \"{name}\" occurs twice in one object"),
        is_unfinished: false,
    }
}

struct Parser<'a> {
    text: &'a [u8],
    at: usize,
    values: usize,
}

impl<'a> Parser<'a> {
    fn new(text: &'a [u8]) -> Self {
        Self { text, at: 0, values: 0 }
    }

    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    /// An error at the current position.
    fn fault<T>(&self, reason: impl Into<String>) -> Read<T> {
        Self::fault_at(self.at, reason)
    }

    fn fault_at<T>(at: usize, reason: impl Into<String>) -> Read<T> {
        Err(JsonFault {
            at,
            reason: reason.into(),
            is_unfinished: false,
        })
    }

    /// The error if something else than `what` is found.
    fn expected<T>(&self, what: &str) -> Read<T> {
        match self.peek() {
            None => Err(JsonFault {
                at: self.at,
                reason: format!("ends where {what} is expected"),
                is_unfinished: true,
            }),
            Some(byte) if byte.is_ascii_graphic() => self.fault(format!("expected {what}, found `{}`", byte as char)),
            Some(_) => self.fault(format!("expected {what}")),
        }
    }

    fn blank(&mut self) {
        while self
            .peek()
            .is_some_and(|byte| matches!(byte, b' ' | b'\t' | b'\n' | b'\r'))
        {
            self.at += 1;
        }
    }

    /// Checks that the text ends here.
    fn end(&mut self) -> Read<()> {
        self.blank();
        match self.peek() {
            None => Ok(()),
            Some(_) => self.fault("there is more text after the value"),
        }
    }

    /// Consumes this byte if it is next; returns whether it was.
    fn pass(&mut self, byte: u8) -> bool {
        let is_here = self.peek() == Some(byte);
        self.at += usize::from(is_here);
        is_here
    }

    /// Parses a value; `None` unless it is kept.
    fn value(&mut self, depth: usize, keep: bool) -> Read<Option<Json>> {
        self.blank();
        if depth > MAX_DEPTH {
            return self.fault(format!(
                "lists and objects are nested more than {MAX_DEPTH} levels deep"
            ));
        }
        self.values += usize::from(keep);
        if self.values > MAX_VALUES {
            return self.fault(format!("holds more than {MAX_VALUES} values"));
        }
        match self.peek() {
            Some(b'"') => Ok(self.string(keep)?.map(Json::String)),
            Some(b'{') => self.map(depth, keep),
            Some(b'[') => self.list(depth, keep),
            Some(b'-' | b'0'..=b'9' | b'N' | b'I') => self.number(keep),
            Some(b't') => self.word("true", keep.then_some(Json::Bool(true))),
            Some(b'f') => self.word("false", keep.then_some(Json::Bool(false))),
            Some(b'n') => self.word("null", keep.then_some(Json::Null)),
            _ => self.expected("a value"),
        }
    }

    fn word<T>(&mut self, word: &str, value: T) -> Read<T> {
        let rest = &self.text[self.at..];
        if rest.starts_with(word.as_bytes()) {
            self.at += word.len();
            return Ok(value);
        }
        if !word.as_bytes().starts_with(rest) {
            return self.expected("a value");
        }
        Err(JsonFault {
            at: self.text.len(),
            reason: format!("ends within `{word}`"),
            is_unfinished: true,
        })
    }

    fn map(&mut self, depth: usize, keep: bool) -> Read<Option<Json>> {
        let mut fields = Map::new();
        self.object(|parser, at, name| {
            let value = parser.value(depth + 1, keep)?;
            if let Some(value) = value
                && fields.insert(name.clone(), value).is_some()
            {
                return Err(twice(at, &name));
            }
            Ok(())
        })?;
        Ok(keep.then_some(Json::Object(fields)))
    }

    /// Parses an object; `field` gets the offset and name of each key and parses the value.
    fn object(&mut self, mut field: impl FnMut(&mut Self, usize, String) -> Read<()>) -> Read<()> {
        self.at += 1;
        self.blank();
        if self.pass(b'}') {
            return Ok(());
        }
        loop {
            self.blank();
            if self.peek() != Some(b'"') {
                return self.expected("a key in double quotes");
            }
            let at = self.at;
            let name = self.string(true)?.unwrap_or_default();
            self.blank();
            if !self.pass(b':') {
                return self.expected("`:` after the key");
            }
            field(self, at, name)?;
            self.blank();
            if self.pass(b'}') {
                return Ok(());
            }
            if !self.pass(b',') {
                return self.expected("`,` or `}`");
            }
        }
    }

    fn list(&mut self, depth: usize, keep: bool) -> Read<Option<Json>> {
        self.at += 1;
        let mut items = Vec::new();
        self.blank();
        if self.pass(b']') {
            return Ok(keep.then_some(Json::Array(items)));
        }
        loop {
            items.extend(self.value(depth + 1, keep)?);
            self.blank();
            if self.pass(b']') {
                return Ok(keep.then_some(Json::Array(items)));
            }
            if !self.pass(b',') {
                return self.expected("`,` or `]`");
            }
        }
    }

    /// A number by JSON's grammar, `NaN`, `Infinity` or `-Infinity`.
    fn number(&mut self, keep: bool) -> Read<Option<Json>> {
        let start = self.at;
        self.pass(b'-');
        match self.peek() {
            Some(b'N') if start == self.at => return self.word("NaN", keep.then(|| exact_number("NaN"))),
            Some(b'I') => {
                let text = if start == self.at { "Infinity" } else { "-Infinity" };
                return self.word("Infinity", keep.then(|| exact_number(text)));
            }
            Some(b'0') => self.at += 1,
            Some(b'1'..=b'9') => self.digits()?,
            _ => return self.expected("a digit"),
        }
        let whole = self.at;
        if self.pass(b'.') {
            self.digits()?;
        }
        if self.pass(b'e') || self.pass(b'E') {
            let _ = self.pass(b'+') || self.pass(b'-');
            self.digits()?;
        }
        if !keep {
            return Ok(None);
        }
        // The text between the two is ASCII.
        let text = String::from_utf8_lossy(&self.text[start..self.at]);
        if whole < self.at {
            return Ok(Some(float(&text)));
        }
        match integer(&text) {
            Some(number) => Ok(Some(number)),
            None => Self::fault_at(start, "an integer of more than 127 bits; write it as a string"),
        }
    }

    fn digits(&mut self) -> Read<()> {
        if !self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            return self.expected("a digit");
        }
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
        Ok(())
    }

    /// Parses a string; its escapes are decoded only if it is kept.
    fn string(&mut self, keep: bool) -> Read<Option<String>> {
        self.at += 1;
        let mut out = Vec::new();
        loop {
            let plain = self.at;
            while self
                .peek()
                .is_some_and(|byte| byte != b'"' && byte != b'\\' && byte >= b' ')
            {
                self.at += 1;
            }
            let part = &self.text[plain..self.at];
            if let Err(error) = std::str::from_utf8(part) {
                return Self::fault_at(plain + error.valid_up_to(), "not UTF-8; save the file as UTF-8");
            }
            if keep {
                out.extend_from_slice(part);
            }
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    // Made of validated parts and whole characters.
                    return Ok(keep.then(|| String::from_utf8_lossy(&out).into_owned()));
                }
                Some(b'\\') => self.escape(keep.then_some(&mut out))?,
                Some(_) => {
                    return self.fault("a line break or control character within a string; write it as \\n or \\u00..");
                }
                None => return self.fault("ends within a string; a line break within a string is written as \\n"),
            }
        }
    }

    fn escape(&mut self, out: Option<&mut Vec<u8>>) -> Read<()> {
        let start = self.at;
        self.at += 1;
        let letter = match self.peek() {
            Some(b'n') => '\n',
            Some(b't') => '\t',
            Some(b'r') => '\r',
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(byte @ (b'"' | b'\\' | b'/')) => byte as char,
            Some(b'u') if out.is_none() => {
                self.at += 1;
                return self.hex().map(|_| ());
            }
            Some(b'u') => {
                self.at += 1;
                self.unicode(start)?
            }
            Some(_) => return Self::fault_at(start, "an invalid escape; write a backslash as \\\\"),
            None => return self.fault("ends within a string"),
        };
        if !matches!(self.text.get(start + 1), Some(b'u')) {
            self.at += 1;
        }
        if let Some(out) = out {
            out.extend_from_slice(letter.encode_utf8(&mut [0; 4]).as_bytes());
        }
        Ok(())
    }

    /// The character of `\uXXXX`, or of a surrogate pair; `start` is the backslash's offset.
    fn unicode(&mut self, start: usize) -> Read<char> {
        let lone = |unit: u32| {
            let advice = "half of a character that was cut in two; remove it, or write both halves";
            Self::fault_at(start, format!("lone surrogate \\u{unit:04x}: {advice}"))
        };
        let first = self.hex()?;
        if let Some(letter) = char::from_u32(first) {
            return Ok(letter);
        }
        if first >= 0xDC00 || !self.text[self.at..].starts_with(b"\\u") {
            return lone(first);
        }
        self.at += 2;
        let second = self.hex()?;
        if !(0xDC00..0xE000).contains(&second) {
            return lone(first);
        }
        let letter = char::from_u32(0x1_0000 + ((first - 0xD800) << 10) + (second - 0xDC00));
        Ok(letter.unwrap_or(char::REPLACEMENT_CHARACTER))
    }

    fn hex(&mut self) -> Read<u32> {
        let digits = self.text.get(self.at..self.at + 4).unwrap_or_default();
        if digits.len() < 4 || !digits.iter().all(u8::is_ascii_hexdigit) {
            return self.fault("expected four hexadecimal digits after \\u");
        }
        self.at += 4;
        let value = |unit: u32, digit: &u8| unit * 16 + (*digit as char).to_digit(16).unwrap_or_default();
        Ok(digits.iter().fold(0, value))
    }
}

/// An integer of up to 127 bits; `-0` is 0, as in Python.
fn integer(text: &str) -> Option<Json> {
    if let Ok(number) = text.parse::<i64>() {
        Some(Json::from(number))
    } else if let Ok(number) = text.parse::<u64>() {
        Some(Json::from(number))
    } else {
        text.parse::<i128>().is_ok().then(|| exact_number(text))
    }
}

/// A number with a point or an exponent; on overflow it is infinite, as in Python.
fn float(text: &str) -> Json {
    match text.parse::<f64>() {
        Ok(number) if number.is_finite() => Json::from(number),
        _ if text.starts_with('-') => exact_number("-Infinity"),
        _ => exact_number("Infinity"),
    }
}

#[cfg(test)]
#[path = "python_json_tests.rs"]
mod tests;
