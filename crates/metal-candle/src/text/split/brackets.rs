//! Translates bracket expressions from Oniguruma's syntax to that of Rust's regex engines.
//!
//! Classes of the same name contain different characters, and two hyphens or tildes are not operators in Oniguruma.

use super::translate::{WORD_IN_BRACKETS, escaped};

/// Maximum nesting of brackets.
const MAX_DEPTH: usize = 50;

/// Translates a bracket expression at the start of a pattern; returns it and the rest.
pub(super) fn translate(pattern: &str) -> Result<(String, &str), String> {
    let mut out = String::new();
    let rest = class(pattern, &mut out, 0)?;
    Ok((out, rest))
}

fn class<'p>(pattern: &'p str, out: &mut String, depth: usize) -> Result<&'p str, String> {
    if depth > MAX_DEPTH {
        return Err("brackets are nested too deeply".to_owned());
    }
    let mut rest = &pattern[1..];
    out.push('[');
    if let Some(after) = rest.strip_prefix('^') {
        out.push('^');
        rest = after;
    }
    if let Some(after) = rest.strip_prefix(']') {
        out.push_str(r"\]"); // a closing bracket that comes first is one of the characters
        rest = after;
    }
    loop {
        let letter = rest.chars().next().ok_or("unterminated brackets")?;
        let after = &rest[letter.len_utf8()..];
        match letter {
            ']' => {
                out.push(']');
                return Ok(after);
            }
            '[' if after.starts_with(':') => rest = posix(after, out)?,
            '[' => rest = class(rest, out, depth + 1)?,
            '\\' => rest = escape(rest, out)?,
            '&' if after.starts_with('&') => {
                out.push_str("&&");
                rest = &after[1..];
            }
            '-' => {
                // Two in a row would be a set operator in Rust.
                let literal = after.starts_with(['-', ']', '[']) || out.ends_with(['[', '^', '-']);
                out.push_str(if literal { r"\-" } else { "-" });
                rest = after;
            }
            '~' | '&' => {
                out.push('\\');
                out.push(letter);
                rest = after;
            }
            _ => {
                out.push(letter);
                rest = after;
            }
        }
    }
}

fn escape<'p>(pattern: &'p str, out: &mut String) -> Result<&'p str, String> {
    let known = match pattern.chars().nth(1) {
        Some('w') => WORD_IN_BRACKETS.to_owned(),
        Some('W') => format!("[^{WORD_IN_BRACKETS}]"),
        Some('h') => "0-9A-Fa-f".to_owned(),
        Some('H') => "[^0-9A-Fa-f]".to_owned(),
        Some('b') => r"\x{8}".to_owned(),
        _ => {
            let (item, rest) = escaped(pattern)?;
            out.push_str(&item);
            return Ok(rest);
        }
    };
    out.push_str(&known);
    Ok(&pattern[2..])
}

/// Translates `[:name:]`, after its first bracket.
fn posix<'p>(pattern: &'p str, out: &mut String) -> Result<&'p str, String> {
    let end = pattern.find(":]").ok_or("unterminated [:")?;
    let (name, negated) = match pattern[1..end].strip_prefix('^') {
        Some(name) => (name, true),
        None => (&pattern[1..end], false),
    };
    let class = match name {
        "alpha" => r"\p{Alphabetic}",
        "digit" => r"\p{Nd}",
        "alnum" => r"\p{Alphabetic}\p{Nd}",
        "upper" => r"\p{Uppercase}",
        "lower" => r"\p{Lowercase}",
        "space" => r"\s",
        "punct" => r"\p{P}\p{S}",
        "xdigit" => "0-9A-Fa-f",
        "word" => WORD_IN_BRACKETS,
        _ => return Err(format!("the class [:{name}:] is not supported")),
    };
    out.push_str(if negated { "[^" } else { "[" });
    out.push_str(class);
    out.push(']');
    Ok(&pattern[end + 2..])
}
