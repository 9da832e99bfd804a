//! Filters that create text: `join`, `indent`, `replace`, `title`, `truncate`, ...
//!
//! Values that are not text are converted first, where Jinja2 does so.

use super::select::Path;
use crate::text::jinja::arguments::{Args, int_or, required, text, truth_or};
use crate::text::jinja::fault::{Outcome, failed};
use crate::text::jinja::format::numbers::float_digits;
use crate::text::jinja::format::percent;
use crate::text::jinja::functions::count;
use crate::text::jinja::interpreter::Interpreter;
use crate::text::jinja::methods;
use crate::text::jinja::unicode::{is_space, is_word};
use crate::text::jinja::value::{Dict, Value};

/// Maximum width of `indent`.
const MAX_INDENT: usize = 4096;

pub(super) fn call(run: &mut Interpreter, name: &str, value: &Value, args: Args) -> Outcome<Value> {
    match name {
        "indent" => return indent(run, value, args),
        "truncate" => return truncate(run, value, args),
        "join" => return join(run, value, args),
        "filesizeformat" => return file_size(value, args),
        "urlencode" => {
            args.none(name)?;
            return urlencode(run, value);
        }
        "format" => return format(run, value, args),
        _ => {}
    }
    let of = value.to_text(&run.budget)?;
    run.budget.bytes(of.len() * 2)?;
    Ok(match name {
        "center" => {
            let [width] = args.bind(name, ["width"])?;
            let width = width.unwrap_or(Value::Int(80));
            let args = Args {
                positional: vec![width],
                named: Vec::new(),
            };
            methods::call(run, &Value::Str(of), name, args)?
        }
        "trim" => {
            let [letters] = args.bind(name, ["chars"])?;
            Value::from(methods::strip(&of, letters.as_ref(), &run.budget)?)
        }
        "replace" => {
            let [old, new, most] = args.bind(name, ["old", "new", "count"])?;
            let old = required(old, name)?.to_text(&run.budget)?;
            let new = required(new, name)?.to_text(&run.budget)?;
            let most = int_or(most.as_ref(), -1, name)?;
            Value::from(methods::replace(&of, &old, &new, most, &run.budget)?)
        }
        _ => {
            args.none(name)?;
            match name {
                "capitalize" => Value::from(methods::cases::capitalized(&of)),
                "lower" => Value::from(of.to_lowercase()),
                "upper" => Value::from(of.to_uppercase()),
                "title" => Value::from(title(&of)),
                "wordcount" => Value::int(
                    of.split(|letter| !is_word(letter))
                        .filter(|word| !word.is_empty())
                        .count(),
                ),
                "safe" => Value::Safe(of),
                "e" | "escape" if matches!(value, Value::Safe(_)) => value.clone(),
                "e" | "escape" | "forceescape" => Value::Safe(escape(&of).into()),
                _ if matches!(value, Value::Safe(_)) => value.clone(),
                _ => Value::Str(of),
            }
        }
    })
}

/// Replaces HTML's special characters by entities.
pub(in crate::text::jinja) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\'' => out.push_str("&#39;"),
            '"' => out.push_str("&#34;"),
            _ => out.push(letter),
        }
    }
    out
}

/// Words begin after white space, hyphens and opening brackets.
fn title(text: &str) -> String {
    let begins = |letter: char| is_space(letter) || "-({[<".contains(letter);
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while !rest.is_empty() {
        let gap = rest.find(|letter| !begins(letter)).unwrap_or(rest.len());
        out.push_str(&rest[..gap]);
        rest = &rest[gap..];
        let word = rest.find(begins).unwrap_or(rest.len());
        let mut letters = rest[..word].chars();
        if let Some(first) = letters.next() {
            out.extend(first.to_uppercase());
            out.push_str(&letters.as_str().to_lowercase());
        }
        rest = &rest[word..];
    }
    out
}

fn format(run: &Interpreter, value: &Value, args: Args) -> Outcome<Value> {
    if !args.positional.is_empty() && !args.named.is_empty() {
        return failed("FilterArgumentError: can't handle positional and keyword arguments at the same time");
    }
    let values = if args.named.is_empty() {
        Value::tuple(args.positional)
    } else {
        let mut dict = Dict::default();
        args.named
            .into_iter()
            .for_each(|(name, value)| dict.insert_text(&name, value));
        Value::dict(dict)
    };
    let pattern = match value {
        Value::Safe(_) => value.clone(),
        _ => Value::Str(value.to_text(&run.budget)?),
    };
    percent::format(&pattern, &values, &run.budget)
}

fn join(run: &mut Interpreter, value: &Value, args: Args) -> Outcome<Value> {
    let [separator, attribute] = args.bind("join", ["d", "attribute"])?;
    let separator = separator.map_or(Ok("".into()), |separator| separator.to_text(&run.budget))?;
    let path = Path::new(attribute.as_ref());
    let mut out = String::new();
    for (index, item) in value.iterate(&run.budget)?.iter().enumerate() {
        let part = path.of(run, item, None)?.to_text(&run.budget)?;
        run.budget.bytes(part.len() + separator.len())?;
        if index > 0 {
            out.push_str(&separator);
        }
        out.push_str(&part);
    }
    Ok(Value::from(out))
}

fn indent(run: &Interpreter, value: &Value, args: Args) -> Outcome<Value> {
    let [width, first, blank] = args.bind("indent", ["width", "first", "blank"])?;
    let of = text(value, "indent")?;
    if matches!(value, Value::Safe(_)) {
        return failed("the filter 'indent' of text that is marked safe is not supported");
    }
    let indentation = match width.as_ref().and_then(Value::as_str) {
        Some(text) => text.to_owned(),
        None => " ".repeat(count(width.as_ref(), 4, MAX_INDENT, "indent")?),
    };
    let with_end = format!("{of}\n");
    let lines = methods::lines(&with_end);
    run.budget
        .bytes(of.len() + lines.len().saturating_mul(indentation.len() + 1))?;
    let mut out = String::new();
    if truth_or(first.as_ref(), false) {
        out.push_str(&indentation);
    }
    let blank = truth_or(blank.as_ref(), false);
    for (index, line) in lines.iter().enumerate() {
        if index > 0 {
            out.push('\n');
            if blank || !line.is_empty() {
                out.push_str(&indentation);
            }
        }
        out.push_str(line);
    }
    Ok(Value::from(out))
}

fn truncate(run: &Interpreter, value: &Value, args: Args) -> Outcome<Value> {
    let [length, killwords, end, leeway] = args.bind("truncate", ["length", "killwords", "end", "leeway"])?;
    let of = text(value, "truncate")?;
    let end = end.unwrap_or_else(|| Value::from("..."));
    let end = text(&end, "truncate")?;
    let length = int_or(length.as_ref(), 255, "truncate")?;
    let leeway = int_or(leeway.as_ref(), 5, "truncate")?;
    let room = length - end.chars().count() as i128;
    if room < 0 || leeway < 0 {
        return failed("AssertionError: truncate: the length is shorter than its end, or the leeway negative");
    }
    run.budget.bytes(of.len())?;
    if of.chars().count() as i128 <= length + leeway {
        return Ok(value.clone());
    }
    let cut: String = of.chars().take(usize::try_from(room).unwrap_or(usize::MAX)).collect();
    let kept = match cut.rsplit_once(' ') {
        Some((before, _)) if !truth_or(killwords.as_ref(), false) => before,
        _ => &cut,
    };
    Ok(Value::from(format!("{kept}{end}")))
}

fn file_size(value: &Value, args: Args) -> Outcome<Value> {
    let [binary] = args.bind("filesizeformat", ["binary"])?;
    let Some(bytes) = value.as_float().or_else(|| value.as_str()?.trim().parse().ok()) else {
        return failed("filesizeformat: expected a number");
    };
    let binary = truth_or(binary.as_ref(), false);
    let base: f64 = if binary { 1024.0 } else { 1000.0 };
    if bytes == 1.0 {
        return Ok(Value::from("1 Byte"));
    }
    if bytes < base {
        return Ok(Value::from(format!("{} Bytes", bytes.trunc())));
    }
    let letters = if binary { "KMGTPEZY" } else { "kMGTPEZY" };
    let power = (2..9).find(|power| bytes < base.powi(*power)).unwrap_or(9);
    let letter = letters.chars().nth(power as usize - 2).unwrap_or('Y');
    let size = float_digits(base * bytes / base.powi(power), 'f', 1, false);
    Ok(Value::from(format!(
        "{size} {letter}{}B",
        if binary { "i" } else { "" }
    )))
}

fn urlencode(run: &Interpreter, value: &Value) -> Outcome<Value> {
    let quoted = |value: &Value, in_query: bool| {
        let text = value.to_text(&run.budget)?;
        run.budget.bytes(text.len() * 3)?;
        Ok(quote(&text, in_query))
    };
    let pairs = match value {
        Value::Dict(_)
        | Value::List(_)
        | Value::Tuple(_)
        | Value::Group(_)
        | Value::View(..)
        | Value::Range(_)
        | Value::Iterator(_) => match value {
            Value::Dict(dict) => dict
                .entries()
                .iter()
                .map(|(k, v)| Value::tuple(vec![k.clone(), v.clone()]))
                .collect(),
            _ => value.iterate(&run.budget)?,
        },
        _ => return Ok(Value::from(quoted(value, false)?)),
    };
    let mut parts = Vec::new();
    for pair in pairs {
        let pair = pair.iterate(&run.budget)?;
        let [key, value] = &pair[..] else {
            return failed("ValueError: urlencode: expected pairs");
        };
        parts.push(format!("{}={}", quoted(key, true)?, quoted(value, true)?));
    }
    Ok(Value::from(parts.join("&")))
}

fn quote(text: &str, in_query: bool) -> String {
    use std::fmt::Write;
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'_' | b'.' | b'-' | b'~' => out.push(byte as char),
            b'/' if !in_query => out.push('/'),
            b' ' if in_query => out.push('+'),
            _ => {
                let _ = write!(out, "%{byte:02X}"); // writing to a String cannot fail
            }
        }
    }
    out
}
