//! `int`, `float`, `round` and `abs`.
//!
//! Texts are parsed as in Python: with surrounding white space, single underscores between digits, and base prefixes.

use crate::text::jinja::arguments::{Args, int_or};
use crate::text::jinja::fault::{Outcome, failed};
use crate::text::jinja::interpreter::Interpreter;
use crate::text::jinja::unicode::is_space;
use crate::text::jinja::value::Value;

pub(super) fn call(_run: &Interpreter, name: &str, value: &Value, args: Args) -> Outcome<Value> {
    if let Value::Undefined(message) = value {
        return failed(&**message);
    }
    match name {
        "abs" => {
            args.none(name)?;
            match (value, value.as_int()) {
                (Value::Float(number), _) => Ok(Value::Float(number.abs())),
                (_, Some(number)) => Ok(Value::Int(number.abs())),
                _ => failed(format!(
                    "TypeError: bad operand type for abs(): '{}'",
                    value.type_name()
                )),
            }
        }
        "float" => {
            let [default] = args.bind(name, ["default"])?;
            let parsed = value.as_float().or_else(|| value.as_str().and_then(parse_float));
            Ok(parsed.map_or_else(|| default.unwrap_or(Value::Float(0.0)), Value::Float))
        }
        "int" => int(value, args),
        _ => round(value, args),
    }
}

fn int(value: &Value, args: Args) -> Outcome<Value> {
    let [default, base] = args.bind("int", ["default", "base"])?;
    let default = default.unwrap_or(Value::Int(0));
    let base = int_or(base.as_ref(), 10, "int")?;
    let truncated = |number: f64| match number {
        _ if !number.is_finite() => Ok(None),
        _ if number.abs() < 1e38 => Ok(Some(Value::Int(number.trunc() as i128))),
        _ => failed("an integer of more than 127 bits is not supported"),
    };
    if let Some(text) = value.as_str() {
        let base = u32::try_from(base)
            .ok()
            .filter(|base| *base == 0 || (2..=36).contains(base));
        if let Some(number) = base.and_then(|base| parse_int(text, base)) {
            return match number {
                Some(number) => Ok(Value::Int(number)),
                None => failed("an integer of more than 127 bits is not supported"),
            };
        }
        let number = parse_float(text).map(truncated).transpose()?.flatten();
        return Ok(number.unwrap_or(default));
    }
    match value {
        Value::Float(number) if number.is_infinite() => {
            failed("OverflowError: cannot convert float infinity to integer")
        }
        Value::Float(number) => Ok(truncated(*number)?.unwrap_or(default)),
        _ => Ok(value.as_int().map_or(default, Value::Int)),
    }
}

/// Removes single underscores between digits.
fn without_underscores(text: &str) -> Option<String> {
    let bytes = text.as_bytes();
    let misplaced = |at: usize| {
        let neighbour = |at: Option<usize>| at.and_then(|at| bytes.get(at)).is_some_and(u8::is_ascii_alphanumeric);
        bytes[at] == b'_' && !(neighbour(at.checked_sub(1)) && neighbour(Some(at + 1)))
    };
    (!(0..bytes.len()).any(misplaced)).then(|| text.replace('_', ""))
}

/// `int(text, base)`: `None` if it is not an integer, `Some(None)` if it does not fit.
#[allow(clippy::option_option)] // no integer, or one that is too large
fn parse_int(text: &str, base: u32) -> Option<Option<i128>> {
    let text = text.trim_matches(is_space);
    let (sign, body) = text.split_at(usize::from(text.starts_with(['+', '-'])));
    let lower = body.to_ascii_lowercase();
    let prefixed = [("0x", 16), ("0o", 8), ("0b", 2)].into_iter().find_map(|(prefix, of)| {
        let rest = lower.strip_prefix(prefix)?;
        (base == 0 || base == of).then(|| (rest.strip_prefix('_').unwrap_or(rest).to_owned(), of))
    });
    let (digits, base) = match prefixed {
        Some(found) => found,
        None if base == 0 => {
            let plain = !lower.starts_with('0') || lower.bytes().all(|digit| matches!(digit, b'0' | b'_'));
            plain.then_some((lower, 10))?
        }
        None => (lower, base),
    };
    let digits = without_underscores(&digits)?;
    if digits.is_empty() || !digits.chars().all(|digit| digit.is_digit(base)) {
        return None;
    }
    Some(i128::from_str_radix(&format!("{sign}{digits}"), base).ok())
}

/// `float(text)`
fn parse_float(text: &str) -> Option<f64> {
    let text = without_underscores(text.trim_matches(is_space))?;
    let word = text.trim_start_matches(['+', '-']).to_ascii_lowercase();
    let named = matches!(&*word, "inf" | "infinity" | "nan");
    let signs = text.len() - word.len();
    if !named
        && word
            .bytes()
            .any(|letter| letter.is_ascii_alphabetic() && letter != b'e')
        || signs > 1
    {
        return None;
    }
    text.parse().ok()
}

fn round(value: &Value, args: Args) -> Outcome<Value> {
    let [precision, method] = args.bind("round", ["precision", "method"])?;
    let precision = int_or(precision.as_ref(), 0, "round")?;
    let Some(places) = i32::try_from(precision).ok().filter(|places| places.abs() <= 400) else {
        return failed("round(): a precision of more than 400 digits is not supported");
    };
    let Some(number) = value.as_float() else {
        return failed(format!(
            "TypeError: type {} doesn't define __round__ method",
            value.type_name()
        ));
    };
    let factor = 10f64.powi(places);
    match method.as_ref().map(|method| method.as_str()) {
        None | Some(Some("common")) => match value.as_int() {
            Some(whole) => round_int(whole, places),
            None => Ok(Value::Float(round_float(number, places))),
        },
        Some(Some("ceil")) => Ok(Value::Float((number * factor).ceil() / factor)),
        Some(Some("floor")) => Ok(Value::Float((number * factor).floor() / factor)),
        _ => failed("FilterArgumentError: method must be common, ceil or floor"),
    }
}

/// `round(float, places)`: rounds the exact value, half to even.
fn round_float(number: f64, places: i32) -> f64 {
    if !number.is_finite() {
        return number;
    }
    if let Ok(places) = usize::try_from(places) {
        return format!("{number:.places$}").parse().unwrap_or(number);
    }
    if number.abs() >= 1e38 {
        return number;
    }
    let size = number.abs();
    let (whole, above) = (size.trunc() as i128, size.fract() > 0.0);
    // A remainder makes the value more than a tie: twice the quotient plus one keeps that information.
    let rounded = if above {
        round_half(2 * whole + 1, 2, places)
    } else {
        round_half(whole, 1, places)
    };
    (rounded as f64).copysign(number)
}

/// `number / scale` rounded to tens, hundreds, ... by a negative number of places, half to even.
fn round_half(number: i128, scale: i128, places: i32) -> i128 {
    let unit = 10i128
        .checked_pow(places.unsigned_abs())
        .and_then(|unit| unit.checked_mul(scale));
    let Some(unit) = unit else {
        return 0;
    };
    let (down, rest) = (number.div_euclid(unit), number.rem_euclid(unit));
    let up = rest > unit - rest || rest == unit - rest && down % 2 != 0;
    (down + i128::from(up)).saturating_mul(unit / scale)
}

fn round_int(number: i128, places: i32) -> Outcome<Value> {
    if places >= 0 {
        return Ok(Value::Int(number));
    }
    match round_half(number, 1, places) {
        i128::MAX | i128::MIN => failed("an integer of more than 127 bits is not supported"),
        rounded => Ok(Value::Int(rounded)),
    }
}
