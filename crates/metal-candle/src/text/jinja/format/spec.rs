//! Format specifications: the text after the colon in `'{:>10.2f}'.format(x)`.
//!
//! Refused are widths and precisions of more than four digits, and leading zeros of grouped digits.

use super::numbers::{float_digits, general, int_digits};
use crate::text::jinja::fault::{Budget, Outcome, failed};
use crate::text::jinja::print::float;
use crate::text::jinja::value::Value;

/// Maximum width and precision.
const MAX_NUMBER: usize = 9999;

#[derive(Default)]
struct Spec {
    fill: Option<char>,
    align: Option<char>,
    sign: Option<char>,
    alternate: bool,
    width: usize,
    grouping: Option<char>,
    precision: Option<usize>,
    kind: Option<char>,
}

/// `format(value, spec)`
pub(super) fn format(value: &Value, spec: &str, budget: &Budget) -> Outcome<String> {
    if spec.is_empty() {
        return Ok(value.to_text(budget)?.to_string());
    }
    let Some(parsed) = parse(spec) else {
        return failed(format!(
            "ValueError: invalid format specifier '{spec}' for object of type '{}'",
            value.type_name()
        ));
    };
    budget.bytes(parsed.width + parsed.precision.unwrap_or(0))?;
    match value {
        Value::Undefined(_) | Value::Str(_) | Value::Safe(_) if !value.is_undefined() => {
            text(value.as_str().unwrap_or_default(), &parsed)
        }
        Value::Bool(_) | Value::Int(_) => integer(value.as_int().unwrap_or_default(), &parsed),
        Value::Float(number) => floating(*number, &parsed),
        _ => failed(format!(
            "TypeError: unsupported format string passed to {}.__format__",
            value.type_name()
        )),
    }
}

fn parse(text: &str) -> Option<Spec> {
    let mut spec = Spec::default();
    let mut rest: Vec<char> = text.chars().rev().collect();
    let is_align = |letter: char| matches!(letter, '<' | '>' | '=' | '^');
    let length = rest.len();
    if length >= 2 && is_align(rest[length - 2]) {
        spec.fill = rest.pop();
        spec.align = rest.pop();
    } else if length >= 1 && is_align(rest[length - 1]) {
        spec.align = rest.pop();
    }
    let mut take = |letters: &str| rest.pop_if(|letter| letters.contains(*letter));
    spec.sign = take("+- ");
    spec.alternate = take("#").is_some();
    if take("0").is_some() {
        spec.fill.get_or_insert('0');
        spec.align.get_or_insert('=');
    }
    let number = |take: &mut dyn FnMut(&str) -> Option<char>| {
        let mut digits = String::new();
        while let Some(digit) = take("0123456789") {
            digits.push(digit);
        }
        if digits.is_empty() {
            Some(None)
        } else {
            digits.parse().ok().filter(|n| *n <= MAX_NUMBER).map(Some)
        }
    };
    spec.width = number(&mut take)?.unwrap_or(0);
    spec.grouping = take(",_");
    if take(".").is_some() {
        spec.precision = Some(number(&mut take)??);
    }
    spec.kind = rest.pop();
    rest.is_empty().then_some(spec)
}

fn text(value: &str, spec: &Spec) -> Outcome<String> {
    let odd = spec.sign.is_some() || spec.alternate || spec.grouping.is_some() || spec.align == Some('=');
    if odd || spec.kind.is_some_and(|kind| kind != 's') {
        return failed("ValueError: this format is not allowed for a string");
    }
    let cut: String = match spec.precision {
        Some(most) => value.chars().take(most).collect(),
        None => value.to_owned(),
    };
    Ok(pad("", &cut, spec, '<'))
}

fn integer(number: i128, spec: &Spec) -> Outcome<String> {
    match spec.kind {
        Some('e' | 'E' | 'f' | 'F' | 'g' | 'G' | '%') => return floating(number as f64, spec),
        None | Some('d' | 'b' | 'o' | 'x' | 'X' | 'n') => {}
        Some('c') => {
            let letter = u32::try_from(number).ok().and_then(char::from_u32);
            return match letter {
                Some(letter) => Ok(pad("", &letter.to_string(), spec, '<')),
                None => failed("OverflowError: %c arg not in range(0x110000)"),
            };
        }
        Some(kind) => {
            return failed(format!(
                "ValueError: Unknown format code '{kind}' for object of type 'int'"
            ));
        }
    }
    if spec.precision.is_some() {
        return failed("ValueError: Precision not allowed in integer format specifier");
    }
    let kind = spec.kind.unwrap_or('d');
    let digits = int_digits(number, kind, false);
    let every = if kind == 'd' { 3 } else { 4 };
    let digits = grouped(&digits, spec, every)?;
    let prefix = match kind {
        'b' | 'o' | 'x' | 'X' if spec.alternate => format!("0{kind}"),
        _ => String::new(),
    };
    Ok(pad(&format!("{}{prefix}", sign(number < 0, spec)), &digits, spec, '>'))
}

fn floating(number: f64, spec: &Spec) -> Outcome<String> {
    let negative = number.is_sign_negative() && !number.is_nan();
    let size = number.abs();
    let digits = match (spec.kind, spec.precision) {
        (None, None) => float(size),
        (None, Some(_)) if !size.is_finite() => float(size),
        (None, Some(precision)) => general(size, precision.max(1), spec.alternate, true),
        (Some('n'), _) => float_digits(size, 'g', spec.precision.unwrap_or(6), spec.alternate),
        (Some('%'), precision) => float_digits(size * 100.0, 'f', precision.unwrap_or(6), spec.alternate) + "%",
        (Some(kind @ ('e' | 'E' | 'f' | 'F' | 'g' | 'G')), precision) => {
            let digits = float_digits(size, kind, precision.unwrap_or(6), spec.alternate);
            if kind.is_ascii_uppercase() {
                digits.to_uppercase()
            } else {
                digits
            }
        }
        (Some(kind), _) => {
            return failed(format!(
                "ValueError: Unknown format code '{kind}' for object of type 'float'"
            ));
        }
    };
    let digits = grouped(&digits, spec, 3)?;
    Ok(pad(sign(negative, spec), &digits, spec, '>'))
}

fn sign(negative: bool, spec: &Spec) -> &'static str {
    match (negative, spec.sign) {
        (true, _) => "-",
        (false, Some('+')) => "+",
        (false, Some(' ')) => " ",
        _ => "",
    }
}

/// Inserts separators between groups of digits before the point.
fn grouped(digits: &str, spec: &Spec, every: usize) -> Outcome<String> {
    let Some(separator) = spec.grouping else {
        return Ok(digits.to_owned());
    };
    if spec.fill == Some('0') && spec.align == Some('=') && spec.width > 0 {
        return failed("zeros in front of grouped digits are not supported");
    }
    let whole = digits
        .find(|letter: char| !letter.is_ascii_hexdigit() || letter == 'e')
        .unwrap_or(digits.len());
    let mut out = String::new();
    for (index, letter) in digits[..whole].chars().enumerate() {
        if index > 0 && (whole - index) % every == 0 {
            out.push(separator);
        }
        out.push(letter);
    }
    Ok(out + &digits[whole..])
}

fn pad(sign: &str, digits: &str, spec: &Spec, default: char) -> String {
    let fill = spec.fill.unwrap_or(' ').to_string();
    let missing = spec.width.saturating_sub(sign.chars().count() + digits.chars().count());
    let all = fill.repeat(missing);
    match spec.align.unwrap_or(default) {
        '<' => format!("{sign}{digits}{all}"),
        '=' => format!("{sign}{all}{digits}"),
        '^' => {
            let left = fill.repeat(missing / 2);
            let right = fill.repeat(missing - missing / 2);
            format!("{left}{sign}{digits}{right}")
        }
        _ => format!("{all}{sign}{digits}"),
    }
}
