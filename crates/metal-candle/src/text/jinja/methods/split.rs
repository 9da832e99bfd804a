//! `str.split`, `str.splitlines`, `str.partition` and similar methods.
//!
//! Without a separator, splits at runs of white space; with one, empty parts are kept.

use crate::text::jinja::arguments::{Args, int_or, required, text, truth_or};
use crate::text::jinja::fault::{Budget, Outcome, failed};
use crate::text::jinja::unicode::{is_line_end, is_space};
use crate::text::jinja::value::Value;

pub(super) fn call(of: &str, name: &str, args: Args, budget: &Budget) -> Outcome<Value> {
    match name {
        "partition" | "rpartition" => partition(of, name, args),
        "splitlines" => {
            let [keep] = args.bind(name, ["keepends"])?;
            pieces(lines(of, truth_or(keep.as_ref(), false)), budget)
        }
        _ => {
            let [separator, most] = args.bind(name, ["sep", "maxsplit"])?;
            let most = usize::try_from(int_or(most.as_ref(), -1, name)?).unwrap_or(usize::MAX);
            let right = name == "rsplit";
            let separator = separator.filter(|separator| !separator.is_none());
            match &separator {
                None => pieces(if right { words_right(of, most) } else { words(of, most) }, budget),
                Some(separator) => {
                    let separator = text(separator, name)?;
                    if separator.is_empty() {
                        return failed("ValueError: empty separator");
                    }
                    pieces(split(of, separator, most, right), budget)
                }
            }
        }
    }
}

fn pieces(pieces: Vec<&str>, budget: &Budget) -> Outcome<Value> {
    budget.slots(pieces.len() * 2)?;
    Ok(Value::list(pieces.into_iter().map(Value::from).collect()))
}

fn split<'t>(of: &'t str, separator: &str, most: usize, right: bool) -> Vec<&'t str> {
    let parts = most.saturating_add(1);
    if !right {
        return of.splitn(parts, separator).collect();
    }
    let mut found: Vec<&str> = of.rsplitn(parts, separator).collect();
    found.reverse();
    found
}

fn words(of: &str, most: usize) -> Vec<&str> {
    let mut found = Vec::new();
    let mut rest = of.trim_start_matches(is_space);
    while !rest.is_empty() {
        if found.len() == most {
            found.push(rest);
            break;
        }
        let end = rest.find(is_space).unwrap_or(rest.len());
        found.push(&rest[..end]);
        rest = rest[end..].trim_start_matches(is_space);
    }
    found
}

fn words_right(of: &str, most: usize) -> Vec<&str> {
    let mut found = Vec::new();
    let mut rest = of.trim_end_matches(is_space);
    while !rest.is_empty() {
        if found.len() == most {
            found.push(rest);
            break;
        }
        let start = rest.char_indices().rev().find(|(_, letter)| is_space(*letter));
        let start = start.map_or(0, |(at, letter)| at + letter.len_utf8());
        found.push(&rest[start..]);
        rest = rest[..start].trim_end_matches(is_space);
    }
    found.reverse();
    found
}

/// `str.splitlines` without the ends of the lines.
pub(in crate::text::jinja) fn whole_lines(of: &str) -> Vec<&str> {
    lines(of, false)
}

fn lines(of: &str, keep_ends: bool) -> Vec<&str> {
    let mut found = Vec::new();
    let mut rest = of;
    while let Some(at) = rest.find(is_line_end) {
        let letter = rest[at..].chars().next().map_or(1, char::len_utf8);
        let end = at + if rest[at..].starts_with("\r\n") { 2 } else { letter };
        found.push(&rest[..if keep_ends { end } else { at }]);
        rest = &rest[end..];
    }
    if !rest.is_empty() {
        found.push(rest);
    }
    found
}

fn partition(of: &str, name: &str, args: Args) -> Outcome<Value> {
    let [separator] = args.bind(name, ["/"])?;
    let separator = required(separator, name)?;
    let separator = text(&separator, name)?;
    if separator.is_empty() {
        return failed("ValueError: empty separator");
    }
    let right = name == "rpartition";
    let found = if right {
        of.rsplit_once(separator)
    } else {
        of.split_once(separator)
    };
    let parts = match found {
        Some((before, after)) => [before, separator, after],
        None if right => ["", "", of],
        None => [of, "", ""],
    };
    Ok(Value::tuple(parts.into_iter().map(Value::from).collect()))
}
