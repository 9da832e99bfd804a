//! The `tojson` filter as chat templates expect it.
//!
//! Hugging Face replaces Jinja's `tojson` (which escapes HTML) by Python's `json.dumps(x, ensure_ascii=False)`; this is
//! that function: `", "` and `": "` between items, keys in their order, non-ASCII text as it is.

use std::fmt::Write;

use super::jinja::{Args, Budget, Fault, FaultKind, Outcome, Value, float};

/// Maximum indentation per level.
const MAX_INDENT: i128 = 64;
fn failed<T>(message: impl Into<String>) -> Outcome<T> {
    Err(Fault::new(FaultKind::Failed, message))
}

/// The filter `tojson(ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
pub(super) fn tojson(budget: &Budget, value: &Value, args: Args) -> Outcome<Value> {
    let [ascii, indent, separators, sort_keys] =
        args.bind("tojson", ["ensure_ascii", "indent", "separators", "sort_keys"])?;
    let indent = match indent {
        None | Some(Value::None) => None,
        Some(Value::Str(text)) => Some(text.to_string()),
        Some(width) => match width.as_int() {
            Some(width) if width <= MAX_INDENT => Some(" ".repeat(usize::try_from(width).unwrap_or(0))),
            _ => return failed(format!("tojson: indent must be a string or at most {MAX_INDENT}")),
        },
    };
    let (comma, colon) = match separators.filter(|separators| !separators.is_none()) {
        None => (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()),
        Some(pair) => match &pair.iterate(budget)?[..] {
            [Value::Str(comma), Value::Str(colon)] => (comma.to_string(), colon.to_string()),
            _ => return failed("tojson: separators must be two strings"),
        },
    };
    let mut dump = Dump {
        budget,
        ascii: ascii.is_some_and(|flag| flag.truth()),
        indent,
        comma,
        colon,
        sort_keys: sort_keys.is_some_and(|flag| flag.truth()),
        out: String::new(),
        charged: 0,
    };
    dump.value(value, 0)?;
    Ok(Value::from(dump.out))
}

/// The state of `json.dumps`.
struct Dump<'a> {
    budget: &'a Budget,
    ascii: bool,
    indent: Option<String>,
    comma: String,
    colon: String,
    sort_keys: bool,
    out: String,
    charged: usize,
}

impl Dump<'_> {
    fn value(&mut self, value: &Value, depth: usize) -> Outcome<()> {
        // Shared sublists can make the text exponentially larger than the value: charge while writing.
        self.budget.bytes(self.out.len() - self.charged)?;
        self.charged = self.out.len();
        match value {
            Value::None => self.out.push_str("null"),
            Value::Bool(flag) => self.out.push_str(if *flag { "true" } else { "false" }),
            Value::Int(number) => {
                let _ = write!(self.out, "{number}"); // writing to a String cannot fail
            }
            Value::Float(number) => self.out.push_str(&json_float(*number)),
            Value::Str(text) | Value::Safe(text) => self.string(text),
            Value::List(items) | Value::Tuple(items) | Value::Group(items) => {
                self.list('[', ']', items, depth, |dump, item| dump.value(item, depth + 1))?;
            }
            Value::Dict(dict) => {
                let mut entries = dict.entries().to_vec();
                if self.sort_keys {
                    sort_entries(&mut entries)?;
                }
                self.list('{', '}', &entries, depth, |dump, (key, value)| {
                    dump.key(key)?;
                    let colon = dump.colon.clone();
                    dump.out.push_str(&colon);
                    dump.value(value, depth + 1)
                })?;
            }
            _ => {
                return failed(format!(
                    "TypeError: Object of type {} is not JSON serializable",
                    value.type_name()
                ));
            }
        }
        Ok(())
    }

    fn key(&mut self, key: &Value) -> Outcome<()> {
        match key {
            Value::Str(text) | Value::Safe(text) => self.string(text),
            Value::None => self.string("null"),
            Value::Bool(flag) => self.string(if *flag { "true" } else { "false" }),
            Value::Int(number) => self.string(&number.to_string()),
            Value::Float(number) => self.string(&json_float(*number)),
            _ => {
                return failed(format!(
                    "TypeError: keys must be str, int, float, bool or None, not {}",
                    key.type_name()
                ));
            }
        }
        Ok(())
    }

    fn list<T>(
        &mut self,
        open: char,
        close: char,
        items: &[T],
        depth: usize,
        mut write: impl FnMut(&mut Self, &T) -> Outcome<()>,
    ) -> Outcome<()> {
        self.out.push(open);
        self.budget.enter()?;
        for (index, item) in items.iter().enumerate() {
            if index > 0 {
                let comma = self.comma.clone();
                self.out.push_str(&comma);
            }
            self.line(depth + 1);
            write(self, item)?;
        }
        self.budget.leave();
        if !items.is_empty() {
            self.line(depth);
        }
        self.out.push(close);
        Ok(())
    }

    /// With an indent, a line break at this depth.
    fn line(&mut self, depth: usize) {
        if let Some(indent) = &self.indent {
            self.out.push('\n');
            (0..depth).for_each(|_| self.out.push_str(indent));
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

    /// `\uXXXX`, as a surrogate pair outside the basic plane.
    fn escape(&mut self, letter: char) {
        for unit in letter.encode_utf16(&mut [0; 2]) {
            let _ = write!(self.out, "\\u{unit:04x}"); // writing to a String cannot fail
        }
    }
}

fn json_float(number: f64) -> String {
    match number {
        _ if number.is_nan() => "NaN".to_owned(),
        _ if number.is_infinite() => if number > 0.0 { "Infinity" } else { "-Infinity" }.to_owned(),
        _ => float(number),
    }
}

/// Sorts text keys by code point; Python cannot order mixed keys.
fn sort_entries(entries: &mut [(Value, Value)]) -> Outcome<()> {
    if entries.iter().any(|(key, _)| key.as_str().is_none()) {
        return failed("tojson: sort_keys needs keys that are strings");
    }
    entries.sort_by(|(left, _), (right, _)| left.as_str().cmp(&right.as_str()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wide_integers_are_written_digit_for_digit() {
        let text = r#"{"a": [18446744073709551616, -170141183460469231731687303715884105727], "b": "18446744073709551616",
                       "c": 18446744073709551615, "d": 1e30, "e": 12345678901234567890.5, "f": NaN}"#;
        let value = crate::text::python_json::parse(text.as_bytes()).unwrap();
        let budget = Budget::new(1000, std::time::Duration::from_secs(9));
        let written = tojson(&budget, &Value::from_json(&value), Args::default()).unwrap();
        let expected = r#"{"a": [18446744073709551616, -170141183460469231731687303715884105727], "b": "18446744073709551616", "c": 18446744073709551615, "d": 1e+30, "e": 1.2345678901234567e+19, "f": NaN}"#;
        assert_eq!(written.as_str(), Some(expected));
    }
}
