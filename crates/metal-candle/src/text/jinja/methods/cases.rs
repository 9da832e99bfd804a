//! `str.upper` and similar methods, and predicates such as `str.isupper`.
//!
//! Letters are mapped by Unicode, with Python's rules for word boundaries.

use crate::text::jinja::unicode::{
    is_decimal, is_digit, is_identifier_part, is_identifier_start, is_letter, is_numeric, is_printable, is_space,
    is_title, push_title,
};

pub(super) fn changed(text: &str, name: &str) -> String {
    match name {
        "lower" => text.to_lowercase(),
        "upper" => text.to_uppercase(),
        "casefold" => casefold(text),
        "swapcase" => swapped(text),
        "title" => titled(text),
        _ => capitalized(text),
    }
}

/// The first letter in title case, the others in lower case.
pub(in crate::text::jinja) fn capitalized(text: &str) -> String {
    let mut letters = text.chars();
    let mut out = String::with_capacity(text.len());
    if let Some(first) = letters.next() {
        push_title(first, &mut out);
        // Lower-cased as a whole, for the final sigma.
        let lower = text.to_lowercase();
        let length: usize = first.to_lowercase().map(char::len_utf8).sum();
        out.push_str(lower.get(length..).unwrap_or_default());
    }
    out
}

fn titled(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut in_word = false;
    for (at, letter) in text.char_indices() {
        if in_word && letter == 'Σ' {
            let ends = !text[at + letter.len_utf8()..]
                .chars()
                .next()
                .is_some_and(is_cased_letter);
            out.push(if ends { 'ς' } else { 'σ' });
        } else if in_word {
            out.extend(letter.to_lowercase());
        } else {
            push_title(letter, &mut out);
        }
        in_word = is_cased_letter(letter);
    }
    out
}

fn swapped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        if letter.is_uppercase() {
            out.extend(letter.to_lowercase());
        } else if letter.is_lowercase() {
            out.extend(letter.to_uppercase());
        } else {
            out.push(letter);
        }
    }
    out
}

/// Case folding: lower case, and letters that fold to several.
fn casefold(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            'ß' | 'ẞ' => out.push_str("ss"),
            'ς' => out.push('σ'),
            'ſ' => out.push('s'),
            'µ' => out.push('μ'),
            '\u{FB00}'..='\u{FB06}' | '\u{FB13}'..='\u{FB17}' | 'ŉ' | 'ǰ' | 'ΐ' | 'ΰ' | 'և' => {
                out.extend(letter.to_uppercase().flat_map(char::to_lowercase));
            }
            _ => out.extend(letter.to_lowercase()),
        }
    }
    out
}

fn is_cased_letter(letter: char) -> bool {
    letter.is_lowercase() || letter.is_uppercase() || is_title(letter)
}

/// `str.islower` or `str.isupper`: there are cased letters, and all have that case.
pub(in crate::text::jinja) fn is_cased(text: &str, upper: bool) -> bool {
    let fits = |letter: char| {
        if upper {
            letter.is_uppercase()
        } else {
            letter.is_lowercase()
        }
    };
    let mut cased = text.chars().filter(|letter| is_cased_letter(*letter)).peekable();
    cased.peek().is_some() && cased.all(fits)
}

fn is_titled(text: &str) -> bool {
    let mut in_word = false;
    let mut any = false;
    for letter in text.chars() {
        let upper = letter.is_uppercase() || is_title(letter);
        if upper && in_word || letter.is_lowercase() && !in_word {
            return false;
        }
        in_word = is_cased_letter(letter);
        any |= in_word;
    }
    any
}

pub(super) fn is(text: &str, name: &str) -> bool {
    let all = |fits: fn(char) -> bool| !text.is_empty() && text.chars().all(fits);
    match name {
        "isalnum" => all(|letter| is_letter(letter) || is_numeric(letter)),
        "isalpha" => all(is_letter),
        "isascii" => text.is_ascii(),
        "isdecimal" => all(is_decimal),
        "isdigit" => all(is_digit),
        "isidentifier" => {
            text.chars().next().is_some_and(is_identifier_start) && text.chars().skip(1).all(is_identifier_part)
        }
        "islower" => is_cased(text, false),
        "isnumeric" => all(is_numeric),
        "isprintable" => text.chars().all(is_printable),
        "isspace" => all(is_space),
        "istitle" => is_titled(text),
        _ => is_cased(text, true),
    }
}
