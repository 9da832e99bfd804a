//! `'%s' % value`
//!
//! Widths and precisions of more than four digits are refused.

use super::numbers::{float_digits, int_digits};
use crate::text::jinja::fault::{Budget, Outcome, failed};
use crate::text::jinja::print::push_code;
use crate::text::jinja::value::Value;

/// One `%` conversion with its flags.
#[allow(clippy::struct_excessive_bools)] // Python's five flags
#[derive(Default)]
struct Field {
    left: bool,
    plus: bool,
    blank: bool,
    alternate: bool,
    zero: bool,
    width: usize,
    precision: Option<usize>,
}

/// The remaining values.
struct Values<'v> {
    all: &'v Value,
    several: Option<&'v [Value]>,
    taken: usize,
}

impl<'v> Values<'v> {
    fn next(&mut self) -> Outcome<&'v Value> {
        let value = match self.several {
            Some(items) => items.get(self.taken),
            None => (self.taken == 0).then_some(self.all),
        };
        self.taken += 1;
        match value {
            Some(value) => Ok(value),
            None => failed("TypeError: not enough arguments for format string"),
        }
    }

    /// Unused values are an error, unless they are a mapping.
    fn finish(&self) -> Outcome<()> {
        let is_mapping = matches!(
            self.all,
            Value::Dict(_) | Value::List(_) | Value::Range(_) | Value::Undefined(_)
        );
        let all = self.several.map_or(1, <[Value]>::len);
        if self.taken < all && !is_mapping {
            return failed("TypeError: not all arguments converted during string formatting");
        }
        Ok(())
    }
}

pub(in crate::text::jinja) fn format(pattern: &Value, values: &Value, budget: &Budget) -> Outcome<Value> {
    let Value::Str(pattern) = pattern else {
        return failed("formatting with text that is marked safe is not supported");
    };
    let several = match values {
        Value::Tuple(items) | Value::Group(items) => Some(&items[..]),
        _ => None,
    };
    let mut left = Values {
        all: values,
        several,
        taken: 0,
    };
    let mut out = String::new();
    let mut letters = pattern.chars().peekable();
    while let Some(letter) = letters.next() {
        if letter != '%' {
            out.push(letter);
            continue;
        }
        let field = field(&mut letters, &mut left, budget)?;
        budget.bytes(field.len())?;
        out.push_str(&field);
    }
    budget.bytes(out.len())?;
    left.finish()?;
    Ok(Value::from(out))
}

type Letters<'p> = std::iter::Peekable<std::str::Chars<'p>>;

fn field(letters: &mut Letters, values: &mut Values, budget: &Budget) -> Outcome<String> {
    let mut named = None;
    if letters.next_if_eq(&'(').is_some() {
        named = Some(by_name(letters, values, budget)?);
    }
    let mut field = Field::default();
    while let Some(flag) = letters.next_if(|letter| "-+ #0".contains(*letter)) {
        match flag {
            '-' => field.left = true,
            '+' => field.plus = true,
            ' ' => field.blank = true,
            '#' => field.alternate = true,
            _ => field.zero = true,
        }
    }
    if let Some((width, negative)) = number(letters, values)? {
        field.width = width;
        field.left |= negative;
    }
    if letters.next_if_eq(&'.').is_some() {
        let (precision, negative) = number(letters, values)?.unwrap_or_default();
        field.precision = Some(if negative { 0 } else { precision });
    }
    while letters.next_if(|letter| "hlL".contains(*letter)).is_some() {}
    let Some(kind) = letters.next() else {
        return failed("ValueError: incomplete format");
    };
    budget.bytes(field.width + field.precision.unwrap_or(0))?;
    if kind == '%' {
        return Ok("%".to_owned());
    }
    let value = match named {
        Some(value) => value,
        None => values.next()?.clone(),
    };
    convert(kind, &value, &field, budget)
}

/// The value of `%(name)s`.
fn by_name(letters: &mut Letters, values: &mut Values, budget: &Budget) -> Outcome<Value> {
    let mut name = String::new();
    let mut depth = 1;
    for letter in letters.by_ref() {
        match letter {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            break;
        }
        name.push(letter);
    }
    let Value::Dict(dict) = values.all else {
        return failed("TypeError: format requires a mapping");
    };
    match dict.get(&Value::from(name.as_str()), budget)? {
        Some(value) => Ok(value.clone()),
        None => failed(format!("KeyError: '{name}'")),
    }
}

/// A width or a precision, and whether it is negative (which only `*` can be).
fn number(letters: &mut Letters, values: &mut Values) -> Outcome<Option<(usize, bool)>> {
    const MOST: usize = 9999;
    let checked = |number: usize, negative| {
        if number > MOST {
            return failed(format!("a width or precision of more than {MOST} is not supported"));
        }
        Ok(Some((number, negative)))
    };
    if letters.next_if_eq(&'*').is_some() {
        return match values.next()?.as_int() {
            Some(number) => {
                let size = usize::try_from(number.unsigned_abs()).unwrap_or(usize::MAX);
                checked(size, number < 0)
            }
            None => failed("TypeError: * wants int"),
        };
    }
    let mut digits = String::new();
    while let Some(digit) = letters.next_if(char::is_ascii_digit) {
        digits.push(digit);
    }
    if digits.is_empty() {
        return Ok(None);
    }
    checked(digits.parse().unwrap_or(usize::MAX), false)
}

fn convert(kind: char, value: &Value, field: &Field, budget: &Budget) -> Outcome<String> {
    let text = match kind {
        's' => value.to_text(budget)?.to_string(),
        'r' => value.repr(budget)?,
        'a' => ascii(&value.repr(budget)?),
        'c' => character(value)?,
        'd' | 'i' | 'u' | 'x' | 'X' | 'o' => return integer(kind, value, field),
        'e' | 'E' | 'f' | 'F' | 'g' | 'G' => return float(kind, value, field),
        _ => return failed(format!("ValueError: unsupported format character '{kind}'")),
    };
    let text = match field.precision {
        Some(most) if kind != 'c' => text.chars().take(most).collect(),
        _ => text,
    };
    Ok(pad("", &text, field, false))
}

fn ascii(text: &str) -> String {
    let mut out = String::new();
    for letter in text.chars() {
        if letter.is_ascii() {
            out.push(letter);
        } else {
            push_code(letter, &mut out);
        }
    }
    out
}

fn character(value: &Value) -> Outcome<String> {
    let code = value.as_int().and_then(|code| u32::try_from(code).ok());
    if let Some(letter) = code.and_then(char::from_u32) {
        return Ok(letter.to_string());
    }
    match value.as_str() {
        Some(text) if text.chars().count() == 1 => Ok(text.to_owned()),
        _ => failed("TypeError: %c requires int or char"),
    }
}

fn integer(kind: char, value: &Value, field: &Field) -> Outcome<String> {
    let decimal = matches!(kind, 'd' | 'i' | 'u');
    let number = match value {
        Value::Undefined(message) => return failed(&**message),
        Value::Float(number) if decimal && number.is_finite() && number.abs() < 1e38 => number.trunc() as i128,
        _ => {
            let Some(number) = value.as_int() else {
                let wanted = if decimal { "a real number is" } else { "an integer is" };
                return failed(format!(
                    "TypeError: %{kind} format: {wanted} required, not {}",
                    value.type_name()
                ));
            };
            number
        }
    };
    let mut digits = int_digits(number, kind, false);
    if let Some(least) = field.precision {
        digits = format!("{}{digits}", "0".repeat(least.saturating_sub(digits.len())));
    }
    let prefix = match kind {
        'x' | 'X' | 'o' if field.alternate => format!("0{kind}"),
        _ => String::new(),
    };
    Ok(pad(
        &format!("{}{prefix}", sign(number < 0, field)),
        &digits,
        field,
        true,
    ))
}

fn float(kind: char, value: &Value, field: &Field) -> Outcome<String> {
    if let Value::Undefined(message) = value {
        return failed(&**message);
    }
    let Some(number) = value.as_float() else {
        return failed(format!("TypeError: must be real number, not {}", value.type_name()));
    };
    let digits = float_digits(number, kind, field.precision.unwrap_or(6), field.alternate);
    let digits = if kind.is_ascii_uppercase() {
        digits.to_uppercase()
    } else {
        digits
    };
    let negative = number.is_sign_negative() && !number.is_nan();
    Ok(pad(sign(negative, field), &digits, field, true))
}

fn sign(negative: bool, field: &Field) -> &'static str {
    match (negative, field.plus, field.blank) {
        (true, _, _) => "-",
        (false, true, _) => "+",
        (false, false, true) => " ",
        _ => "",
    }
}

fn pad(sign: &str, digits: &str, field: &Field, number: bool) -> String {
    let missing = field
        .width
        .saturating_sub(sign.chars().count() + digits.chars().count());
    if field.left {
        format!("{sign}{digits}{}", " ".repeat(missing))
    } else if field.zero && number {
        format!("{sign}{}{digits}", "0".repeat(missing))
    } else {
        format!("{}{sign}{digits}", " ".repeat(missing))
    }
}
