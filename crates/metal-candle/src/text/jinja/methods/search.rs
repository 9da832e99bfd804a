//! `str.find`, `str.count`, `str.startswith` and similar methods, with their bounds.
//!
//! Positions count characters, not bytes, and negative bounds count from the end.

use crate::text::jinja::arguments::{Args, int_or, required, text};
use crate::text::jinja::fault::{Budget, Outcome, failed};
use crate::text::jinja::value::Value;

pub(super) fn call(of: &str, name: &str, args: Args, budget: &Budget) -> Outcome<Value> {
    let [wanted, start, end] = args.bind(name, ["/", "/", "/"])?;
    let wanted = required(wanted, name)?;
    let length = of.chars().count();
    let Some((from, to)) = bounds(start.as_ref(), end.as_ref(), length, name)? else {
        return absent(name);
    };
    let (first, last) = (byte_at(of, from), byte_at(of, to));
    let part = &of[first..last];
    if matches!(name, "startswith" | "endswith") {
        return affix(part, name, &wanted, budget);
    }
    let wanted = text(&wanted, name)?;
    if name == "count" {
        return Ok(Value::int(part.matches(wanted).count()));
    }
    let found = if name.starts_with('r') {
        part.rfind(wanted)
    } else {
        part.find(wanted)
    };
    match found {
        Some(at) => Ok(Value::int(from + part[..at].chars().count())),
        None => absent(name),
    }
}

fn absent(name: &str) -> Outcome<Value> {
    match name {
        "index" | "rindex" => failed("ValueError: substring not found"),
        "count" => Ok(Value::Int(0)),
        "startswith" | "endswith" => Ok(Value::Bool(false)),
        _ => Ok(Value::Int(-1)),
    }
}

/// `startswith` and `endswith`: one text, or a tuple of several.
fn affix(part: &str, name: &str, wanted: &Value, budget: &Budget) -> Outcome<Value> {
    let fits = |wanted: &str| {
        if name == "startswith" {
            part.starts_with(wanted)
        } else {
            part.ends_with(wanted)
        }
    };
    let Value::Tuple(several) = wanted else {
        if let Value::Undefined(message) = wanted {
            return failed(&**message);
        }
        let Some(wanted) = wanted.as_str() else {
            return failed(format!(
                "TypeError: {name} first arg must be str or a tuple of str, not {}",
                wanted.type_name()
            ));
        };
        return Ok(Value::Bool(fits(wanted)));
    };
    for wanted in several.iter() {
        budget.spend(1)?;
        if fits(text(wanted, name)?) {
            return Ok(Value::Bool(true));
        }
    }
    Ok(Value::Bool(false))
}

/// The characters within the bounds, as `from..to`; `None` if the bounds exclude even the empty string.
pub(super) fn bounds(
    start: Option<&Value>,
    end: Option<&Value>,
    length: usize,
    function: &str,
) -> Outcome<Option<(usize, usize)>> {
    let clip = |bound: i128| {
        let bound = if bound < 0 {
            (bound + length as i128).max(0)
        } else {
            bound
        };
        usize::try_from(bound).unwrap_or(usize::MAX)
    };
    let from = clip(int_or(start, 0, function)?);
    let to = clip(int_or(end, length as i128, function)?).min(length);
    Ok((from <= to).then_some((from, to)))
}

fn byte_at(text: &str, character: usize) -> usize {
    text.char_indices().nth(character).map_or(text.len(), |(at, _)| at)
}
