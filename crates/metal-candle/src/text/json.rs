//! JSON between `serde_json` and the template engine, and the `tojson` filter as chat templates expect it.
//!
//! Hugging Face replaces Jinja's `tojson` (which escapes HTML) by Python's `json.dumps(x, ensure_ascii=False)`; this is
//! that function: `", "` and `": "` between items, keys in their order, non-ASCII text as it is.

use std::fmt::Write;

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};

use super::python_json;

/// Nesting of lists and maps that is followed before giving up.
pub(super) const MAX_DEPTH: usize = 100;
/// Widest indentation of one level.
const MAX_INDENT: usize = 16;

/// A JSON value as a value of the template engine.
pub(super) fn to_template(value: &serde_json::Value) -> Value {
    match value {
        serde_json::Value::Null => Value::from(()),
        serde_json::Value::Bool(flag) => Value::from(*flag),
        serde_json::Value::Number(number) => number
            .as_i64()
            .map(Value::from)
            .or_else(|| number.as_u64().map(Value::from))
            .unwrap_or_else(|| Value::from(number.as_f64().unwrap_or(f64::NAN))),
        serde_json::Value::String(text) => Value::from(text.as_str()),
        serde_json::Value::Array(items) => Value::from(items.iter().map(to_template).collect::<Vec<_>>()),
        serde_json::Value::Object(fields) => python_json::number(value).map_or_else(|| object(fields), exact),
    }
}

/// A number that `serde_json` cannot hold: an integer of up to 127 bits, or a float that is not finite.
fn exact(text: &str) -> Value {
    let float = || Value::from(text.parse::<f64>().unwrap_or(f64::NAN));
    text.parse::<i128>().map_or_else(|_| float(), Value::from)
}

/// A JSON object as a map of the template engine, keys in their order.
pub(super) fn object(fields: &serde_json::Map<String, serde_json::Value>) -> Value {
    Value::from_pairs(fields.iter().map(|(key, value)| (key.as_str(), to_template(value))))
}

/// The filter `tojson(ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
#[allow(clippy::needless_pass_by_value)] // the engine's signature
pub(super) fn tojson(
    state: &State,
    value: &Value,
    ensure_ascii: Option<Value>,
    indent: Option<Value>,
    options: Kwargs,
) -> Result<String, Error> {
    let ascii = match ensure_ascii {
        Some(flag) => flag.is_true(),
        None => options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
    };
    let indent = match indent {
        Some(width) => Some(width),
        None => options.get::<Option<Value>>("indent")?,
    };
    let indent = match indent.filter(|width| !width.is_none()) {
        Some(width) => Some(width.as_usize().filter(|n| *n <= MAX_INDENT).ok_or_else(|| {
            Error::new(
                ErrorKind::InvalidOperation,
                format!("tojson: indent must be 0..={MAX_INDENT}, got {width}"),
            )
        })?),
        None => None,
    };
    let (comma, colon) = match options.get::<Option<Vec<String>>>("separators")?.as_deref() {
        Some([comma, colon]) => (comma.clone(), colon.clone()),
        Some(_) => {
            return Err(Error::new(
                ErrorKind::InvalidOperation,
                "tojson: separators must be two strings",
            ));
        }
        None => (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()),
    };
    let sort_keys = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    options.assert_all_used()?;
    let mut dump = Dump {
        state,
        ascii,
        indent,
        comma,
        colon,
        sort_keys,
        out: String::new(),
        charged: 0,
    };
    dump.value(value, 0)?;
    Ok(dump.out)
}

/// `json.dumps` in the making.
struct Dump<'a, 'b, 'c> {
    state: &'a State<'b, 'c>,
    ascii: bool,
    indent: Option<usize>,
    comma: String,
    colon: String,
    sort_keys: bool,
    out: String,
    charged: usize,
}

impl Dump<'_, '_, '_> {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > MAX_DEPTH {
            return Err(Error::new(ErrorKind::InvalidOperation, "tojson: nested too deeply"));
        }
        // Shared sublists can make the text exponentially larger than the value: pay while writing.
        self.state
            .consume_fuel(1 + ((self.out.len() - self.charged) / 64) as u64)?;
        self.charged = self.out.len();
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self.out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.number(value),
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                let items = value.try_iter()?.checked().collect::<Result<Vec<_>, _>>()?;
                self.list('[', ']', items, depth, |dump, item| dump.value(&item, depth + 1))?;
            }
            ValueKind::Map => {
                let mut keys = value.try_iter()?.checked().collect::<Result<Vec<_>, _>>()?;
                if self.sort_keys {
                    keys.sort();
                }
                self.list('{', '}', keys, depth, |dump, key| {
                    let text = if key.kind() == ValueKind::Bool {
                        key.to_string().to_lowercase()
                    } else {
                        key.to_string()
                    };
                    dump.string(&text);
                    let colon = dump.colon.clone();
                    dump.out.push_str(&colon);
                    dump.value(&value.get_item(&key)?, depth + 1)
                })?;
            }
            kind => {
                return Err(Error::new(
                    ErrorKind::InvalidOperation,
                    format!("tojson: a value of type {kind} is not JSON"),
                ));
            }
        }
        Ok(())
    }

    fn list(
        &mut self,
        open: char,
        close: char,
        items: Vec<Value>,
        depth: usize,
        mut write: impl FnMut(&mut Self, Value) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.out.push(open);
        let empty = items.is_empty();
        for (index, item) in items.into_iter().enumerate() {
            if index > 0 {
                let comma = self.comma.clone();
                self.out.push_str(&comma);
            }
            self.line(depth + 1);
            write(self, item)?;
        }
        if !empty {
            self.line(depth);
        }
        self.out.push(close);
        Ok(())
    }

    /// With an indent, a new line at this depth.
    fn line(&mut self, depth: usize) {
        if let Some(width) = self.indent {
            self.out.push('\n');
            self.out.extend(std::iter::repeat_n(' ', width * depth));
        }
    }

    /// Python's number: 1.0, 1e-05, 1e+16, NaN, Infinity.
    fn number(&mut self, value: &Value) {
        if value.is_integer() {
            self.out.push_str(&value.to_string());
            return;
        }
        let number = f64::try_from(value.clone()).unwrap_or(f64::NAN);
        if number.is_infinite() {
            self.out.push_str(if number > 0.0 { "Infinity" } else { "-Infinity" });
            return;
        }
        let text = format!("{number:?}"); // the shortest text that reads back, like Python's repr
        match text.split_once('e') {
            Some((digits, power)) => {
                let (sign, power) = power.strip_prefix('-').map_or(('+', power), |power| ('-', power));
                let _ = write!(self.out, "{digits}e{sign}{power:0>2}"); // cannot fail
            }
            None => self.out.push_str(&text),
        }
    }

    fn string(&mut self, text: &str) {
        self.out.push('"');
        for letter in text.chars() {
            match letter {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                _ if (letter as u32) < 0x20 || (self.ascii && !(' '..='~').contains(&letter)) => {
                    self.escape(letter);
                }
                _ => self.out.push(letter),
            }
        }
        self.out.push('"');
    }

    /// `\uXXXX`, as two surrogates outside the basic plane.
    fn escape(&mut self, letter: char) {
        for unit in letter.encode_utf16(&mut [0; 2]) {
            let _ = write!(self.out, "\\u{unit:04x}"); // writing to a String cannot fail
        }
    }
}
