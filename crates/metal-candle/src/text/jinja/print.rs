//! `str(value)` and `repr(value)`.
//!
//! Values whose text contains an address in Python (functions, generators) cannot be printed: that is an error.

use std::fmt::Write;

use super::fault::{Budget, Outcome, failed};
use super::unicode::is_printable;
use super::value::{Text, Value, View};

impl Value {
    /// `str(value)`
    pub fn to_text(&self, budget: &Budget) -> Outcome<Text> {
        match self {
            Self::Str(text) | Self::Safe(text) => Ok(text.clone()),
            Self::Undefined(_) => Ok("".into()),
            _ => Ok(self.repr(budget)?.into()),
        }
    }

    /// `repr(value)`
    pub fn repr(&self, budget: &Budget) -> Outcome<String> {
        let mut out = String::new();
        write_repr(self, &mut out, budget)?;
        Ok(out)
    }
}

fn write_repr(value: &Value, out: &mut String, budget: &Budget) -> Outcome<()> {
    let before = out.len();
    match value {
        Value::Undefined(_) => out.push_str("Undefined"),
        Value::None => out.push_str("None"),
        Value::Bool(true) => out.push_str("True"),
        Value::Bool(false) => out.push_str("False"),
        Value::Int(number) => push(out, number),
        Value::Float(number) => out.push_str(&float(*number)),
        Value::Str(text) => quote(text, out),
        Value::Safe(text) => {
            out.push_str("Markup(");
            quote(text, out);
            out.push(')');
        }
        Value::List(items) => write_items("[", items, "]", out, budget)?,
        Value::Tuple(items) | Value::Group(items) => {
            let close = if items.len() == 1 { ",)" } else { ")" };
            write_items("(", items, close, out, budget)?;
        }
        Value::Dict(dict) => write_entries(dict.entries(), out, budget)?,
        Value::View(view, _) => {
            let name = match view {
                View::Keys => "dict_keys([",
                View::Values => "dict_values([",
                View::Items => "dict_items([",
            };
            write_items(name, &value.iterate(budget)?, "])", out, budget)?;
        }
        Value::Range(range) => {
            push(out, format_args!("range({}, {}", range.start, range.stop));
            if range.step != 1 {
                push(out, format_args!(", {}", range.step));
            }
            out.push(')');
        }
        Value::Namespace(fields) => {
            out.push_str("<Namespace ");
            let fields = fields.borrow().clone();
            write_entries(fields.entries(), out, budget)?;
            out.push('>');
        }
        _ => {
            return failed(format!(
                "a value of type {} has no text; call it, or turn it into a list first",
                value.type_name()
            ));
        }
    }
    // Inner values are charged when they are printed; a shared one each time.
    budget.bytes(if value.length().is_some() && value.as_str().is_none() {
        0
    } else {
        out.len() - before
    })
}

fn push(out: &mut String, part: impl std::fmt::Display) {
    let _ = write!(out, "{part}"); // writing to a String cannot fail
}

fn write_items(open: &str, items: &[Value], close: &str, out: &mut String, budget: &Budget) -> Outcome<()> {
    out.push_str(open);
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            out.push_str(", ");
        }
        budget.nested(|| write_repr(item, out, budget))?;
    }
    out.push_str(close);
    Ok(())
}

fn write_entries(entries: &[(Value, Value)], out: &mut String, budget: &Budget) -> Outcome<()> {
    out.push('{');
    for (index, (key, value)) in entries.iter().enumerate() {
        if index > 0 {
            out.push_str(", ");
        }
        budget.nested(|| write_repr(key, out, budget))?;
        out.push_str(": ");
        budget.nested(|| write_repr(value, out, budget))?;
    }
    out.push('}');
    Ok(())
}

/// `repr(float)`: the shortest digits that read back, an exponent of two digits below 1e-4 and from 1e16.
pub(in crate::text) fn float(number: f64) -> String {
    if number.is_nan() {
        return "nan".to_owned();
    }
    if number.is_infinite() {
        return if number > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    let text = format!("{number:?}");
    match text.split_once('e') {
        Some((digits, power)) => {
            let (sign, power) = power.strip_prefix('-').map_or(('+', power), |power| ('-', power));
            let digits = digits.strip_suffix(".0").unwrap_or(digits);
            format!("{digits}e{sign}{power:0>2}")
        }
        None => text,
    }
}

/// `repr(str)`
pub(super) fn quote(text: &str, out: &mut String) {
    let mark = if text.contains('\'') && !text.contains('"') {
        '"'
    } else {
        '\''
    };
    out.push(mark);
    for letter in text.chars() {
        match letter {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            _ if letter == mark => {
                out.push('\\');
                out.push(letter);
            }
            _ if is_printable(letter) => out.push(letter),
            _ => push_code(letter, out),
        }
    }
    out.push(mark);
}

/// `\xNN`, `\uNNNN` or `\UNNNNNNNN`
pub(super) fn push_code(letter: char, out: &mut String) {
    match letter as u32 {
        code @ 0..=0xFF => push(out, format_args!("\\x{code:02x}")),
        code @ 0x100..=0xFFFF => push(out, format_args!("\\u{code:04x}")),
        code => push(out, format_args!("\\U{code:08x}")),
    }
}
