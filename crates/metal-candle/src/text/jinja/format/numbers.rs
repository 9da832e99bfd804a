//! Digits of floats and integers in Python's formats.
//!
//! Signs, widths and fills are added by the two formats.

/// Format `f`, `e` or `g` of a number without its sign. `alternate` keeps the point and trailing zeros.
pub(in crate::text::jinja) fn float_digits(number: f64, kind: char, precision: usize, alternate: bool) -> String {
    let number = number.abs();
    if !number.is_finite() {
        return if number.is_nan() { "nan" } else { "inf" }.to_owned();
    }
    match kind.to_ascii_lowercase() {
        'f' => with_point(format!("{number:.precision$}"), alternate && precision == 0),
        'e' => exponent(number, precision, alternate),
        _ => general(number, precision.max(1), alternate, false),
    }
}

fn with_point(text: String, point: bool) -> String {
    if point { text + "." } else { text }
}

/// `d.ddde+XX`
fn exponent(number: f64, precision: usize, alternate: bool) -> String {
    let text = format!("{number:.precision$e}");
    let (digits, power) = text.split_once('e').unwrap_or((&text, "0"));
    let (sign, power) = power.strip_prefix('-').map_or(('+', power), |power| ('-', power));
    let point = if alternate && precision == 0 { "." } else { "" };
    format!("{digits}{point}e{sign}{power:0>2}")
}

/// `g`: the number of significant digits is the precision. `as_float` is the format without a letter, whose result
/// always looks like a float.
pub(super) fn general(number: f64, precision: usize, alternate: bool, as_float: bool) -> String {
    if number == 0.0 && as_float {
        return "0.0".to_owned();
    }
    let rounded = format!("{number:.*e}", precision - 1);
    let power: i32 = rounded
        .split_once('e')
        .and_then(|(_, power)| power.parse().ok())
        .unwrap_or(0);
    let limit = precision as i32 - i32::from(as_float);
    if power < -4 || power >= limit {
        let text = exponent(number, precision - 1, alternate);
        if alternate {
            return text;
        }
        let (digits, power) = text.split_once('e').unwrap_or((&text, "+00"));
        return format!("{}e{power}", without_zeros(digits));
    }
    let decimals = usize::try_from(precision as i32 - 1 - power).unwrap_or(0);
    let text = format!("{number:.decimals$}");
    if alternate {
        return with_point(text, decimals == 0);
    }
    let text = without_zeros(&text);
    if as_float && !text.contains('.') {
        format!("{text}.0")
    } else {
        text.to_owned()
    }
}

fn without_zeros(digits: &str) -> &str {
    if digits.contains('.') {
        digits.trim_end_matches('0').trim_end_matches('.')
    } else {
        digits
    }
}

/// Digits of an integer without its sign, with the prefix of its base if requested.
pub(super) fn int_digits(number: i128, kind: char, prefix: bool) -> String {
    let number = number.unsigned_abs();
    match (kind, prefix) {
        ('x', false) => format!("{number:x}"),
        ('x', true) => format!("{number:#x}"),
        ('X', false) => format!("{number:X}"),
        ('X', true) => format!("0X{number:X}"),
        ('o', false) => format!("{number:o}"),
        ('o', true) => format!("{number:#o}"),
        ('b', false) => format!("{number:b}"),
        ('b', true) => format!("{number:#b}"),
        _ => number.to_string(),
    }
}
