//! The other methods of `str`: stripping, padding, joining, replacing.
//!
//! Results may be much longer than their inputs, so they are charged before they are created.

use crate::text::jinja::arguments::{Args, int_or, required, text};
use crate::text::jinja::fault::{Budget, Outcome, failed};
use crate::text::jinja::functions::count;
use crate::text::jinja::unicode::is_space;
use crate::text::jinja::value::{Dict, Value};

/// Maximum padded width.
pub(in crate::text::jinja) const MAX_WIDTH: usize = 1 << 20;

pub(super) fn call(of: &str, name: &str, args: Args, budget: &Budget) -> Outcome<Value> {
    match name {
        "strip" | "lstrip" | "rstrip" => {
            let [letters] = args.bind(name, ["/"])?;
            strip(of, name, letters.as_ref(), budget).map(Value::from)
        }
        "removeprefix" => {
            let prefix = args.one(name)?;
            Ok(Value::from(of.strip_prefix(text(&prefix, name)?).unwrap_or(of)))
        }
        "removesuffix" => {
            let suffix = args.one(name)?;
            Ok(Value::from(of.strip_suffix(text(&suffix, name)?).unwrap_or(of)))
        }
        "center" | "ljust" | "rjust" => {
            let [width, fill] = args.bind(name, ["/", "/"])?;
            let width = count(Some(&required(width, name)?), 0, MAX_WIDTH, name)?;
            pad(of, name, width, fill.as_ref(), budget)
        }
        "zfill" => {
            let width = count(Some(&args.one(name)?), 0, MAX_WIDTH, name)?;
            budget.bytes(width)?;
            let (sign, digits) = of.split_at(usize::from(of.starts_with(['+', '-'])));
            let zeros = width.saturating_sub(of.chars().count());
            Ok(Value::from(format!("{sign}{}{digits}", "0".repeat(zeros))))
        }
        "expandtabs" => {
            let [size] = args.bind(name, ["tabsize"])?;
            let size = count(size.as_ref(), 8, MAX_WIDTH, name)?;
            expand_tabs(of, size, budget)
        }
        "join" => {
            let items = args.one(name)?.iterate(budget)?;
            join(of, &items, budget)
        }
        "replace" => {
            let [old, new, most] = args.bind(name, ["/", "/", "/"])?;
            let (old, new) = (required(old, name)?, required(new, name)?);
            let most = int_or(most.as_ref(), -1, name)?;
            replace(of, text(&old, name)?, text(&new, name)?, most, budget).map(Value::from)
        }
        "translate" => match args.one(name)? {
            Value::Dict(table) => translate(of, &table, budget),
            other => super::unsupported(&other, "translate"),
        },
        _ => super::unsupported(&Value::from(of), name),
    }
}

pub(in crate::text::jinja) fn strip<'t>(
    of: &'t str,
    name: &str,
    letters: Option<&Value>,
    budget: &Budget,
) -> Outcome<&'t str> {
    let letters: Option<Vec<char>> = match letters {
        None | Some(Value::None) => None,
        Some(letters) => Some(text(letters, name)?.chars().collect()),
    };
    if let Some(letters) = &letters {
        budget.spend((of.len() as u64 / 64 + 1).saturating_mul(letters.len() as u64 / 8 + 1))?;
    }
    let drop = |letter: char| {
        letters
            .as_ref()
            .map_or_else(|| is_space(letter), |letters| letters.contains(&letter))
    };
    let mut rest = of;
    if name != "rstrip" {
        rest = rest.trim_start_matches(drop);
    }
    if name != "lstrip" {
        rest = rest.trim_end_matches(drop);
    }
    Ok(rest)
}

fn pad(of: &str, name: &str, width: usize, fill: Option<&Value>, budget: &Budget) -> Outcome<Value> {
    let fill = fill.map_or(Ok(" "), |fill| text(fill, name))?;
    if fill.chars().count() != 1 {
        return failed("TypeError: The fill character must be exactly one character long");
    }
    budget.bytes(width)?;
    let missing = width.saturating_sub(of.chars().count());
    let left = match name {
        "ljust" => 0,
        "rjust" => missing,
        // Python puts the odd character on the left if the width is odd.
        _ => missing / 2 + (missing & width & 1),
    };
    Ok(Value::from(format!(
        "{}{of}{}",
        fill.repeat(left),
        fill.repeat(missing - left)
    )))
}

fn expand_tabs(of: &str, size: usize, budget: &Budget) -> Outcome<Value> {
    budget.bytes(of.matches('\t').count().saturating_mul(size))?;
    let mut out = String::with_capacity(of.len());
    let mut column = 0;
    for letter in of.chars() {
        if letter == '\t' {
            let gap = if size == 0 { 0 } else { size - column % size };
            out.extend(std::iter::repeat_n(' ', gap));
            column += gap;
        } else {
            out.push(letter);
            column = if matches!(letter, '\n' | '\r') { 0 } else { column + 1 };
        }
    }
    Ok(Value::from(out))
}

fn join(separator: &str, items: &[Value], budget: &Budget) -> Outcome<Value> {
    let mut out = String::new();
    for (index, item) in items.iter().enumerate() {
        let Some(text) = item.as_str() else {
            return failed(format!(
                "TypeError: sequence item {index}: expected str instance, {} found",
                item.type_name()
            ));
        };
        budget.bytes(text.len() + separator.len())?;
        if index > 0 {
            out.push_str(separator);
        }
        out.push_str(text);
    }
    Ok(Value::from(out))
}

/// `str.replace`; a negative `most` means all.
pub(in crate::text::jinja) fn replace(of: &str, old: &str, new: &str, most: i128, budget: &Budget) -> Outcome<String> {
    budget.bytes(of.len())?;
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    let found = if old.is_empty() {
        of.chars().count() + 1
    } else {
        of.matches(old).count()
    };
    budget.bytes(found.min(most).saturating_mul(new.len()))?;
    Ok(of.replacen(old, new, most))
}

/// `str.translate` by a map of code points.
fn translate(of: &str, table: &Dict, budget: &Budget) -> Outcome<Value> {
    let mut out = String::with_capacity(of.len());
    for letter in of.chars() {
        match table.get(&Value::Int(i128::from(letter as u32)), budget)? {
            None => out.push(letter),
            Some(Value::None) => {}
            Some(Value::Str(text)) => {
                budget.bytes(text.len())?;
                out.push_str(text);
            }
            Some(Value::Int(code)) => match u32::try_from(*code).ok().and_then(char::from_u32) {
                Some(letter) => out.push(letter),
                None => return failed("ValueError: character mapping must be in range(0x110000)"),
            },
            Some(_) => return failed("TypeError: character mapping must return integer, None or str"),
        }
    }
    Ok(Value::from(out))
}
