//! Python's classification of characters: white space, letters, digits, title case, printable.
//!
//! Rust's own predicates differ in detail (U+001C is white space in Python). Nothing here knows a string.

use std::sync::LazyLock;

use regex::Regex;

/// `str.isspace` of one character; also `\s` of Python's regular expressions.
pub(in crate::text) fn is_space(letter: char) -> bool {
    letter.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&letter)
}

/// Where `str.splitlines` splits.
pub(super) fn is_line_end(letter: char) -> bool {
    matches!(
        letter,
        '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}' | '\u{1d}' | '\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}'
    )
}

macro_rules! class {
    ($name:ident, $pattern:literal) => {
        pub(super) fn $name(letter: char) -> bool {
            static CLASS: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new($pattern).ok());
            let mut bytes = [0; 4];
            CLASS
                .as_ref()
                .is_some_and(|class| class.is_match(letter.encode_utf8(&mut bytes)))
        }
    };
}

class!(is_unprintable_beyond_ascii, r"^[\p{C}\p{Z}]$");
class!(is_letter, r"^\p{L}$");
class!(is_decimal, r"^\p{Nd}$");
class!(is_number, r"^\p{N}$");
class!(is_title, r"^\p{Lt}$");
class!(is_word, r"^[\p{L}\p{N}_]$");
class!(is_identifier_start, r"^[\p{XID_Start}_]$");
class!(is_identifier_part, r"^\p{XID_Continue}$");

pub(super) fn is_printable(letter: char) -> bool {
    if letter.is_ascii() {
        (' '..='~').contains(&letter)
    } else {
        !is_unprintable_beyond_ascii(letter)
    }
}

pub(super) fn is_digit(letter: char) -> bool {
    is_decimal(letter)
        || matches!(letter as u32,
            0xB2 | 0xB3 | 0xB9 | 0x1369..=0x1371 | 0x19DA | 0x2070 | 0x2074..=0x2079 | 0x2080..=0x2089
            | 0x2460..=0x2468 | 0x2474..=0x247C | 0x2488..=0x2490 | 0x24EA | 0x24F5..=0x24FD | 0x24FF
            | 0x2776..=0x277E | 0x2780..=0x2788 | 0x278A..=0x2792 | 0x10A40..=0x10A43 | 0x10E60..=0x10E68
            | 0x11052..=0x1105A | 0x1F100..=0x1F10A)
}

/// `str.isnumeric`: numbers of every kind, including ideographs for numbers.
pub(super) fn is_numeric(letter: char) -> bool {
    const IDEOGRAPHS: &str = "〇一二三四五六七八九十百千万億兆零壱弐参肆伍陸柒捌玖拾佰仟萬亿两廿卅";
    is_number(letter) || IDEOGRAPHS.contains(letter)
}

/// A character in title case: digraphs have their own forms, and of a ligature only the first letter is upper case.
pub(super) fn push_title(letter: char, out: &mut String) {
    match letter as u32 {
        0x1C4..=0x1C6 => out.push('\u{1C5}'),
        0x1C7..=0x1C9 => out.push('\u{1C8}'),
        0x1CA..=0x1CC => out.push('\u{1CB}'),
        0x1F1..=0x1F3 => out.push('\u{1F2}'),
        0x10D0..=0x10FF => out.push(letter),
        0xDF | 0xFB00..=0xFB06 | 0xFB13..=0xFB17 | 0x587 => {
            let mut letters = letter.to_uppercase();
            out.extend(letters.next());
            out.extend(letters.flat_map(char::to_lowercase));
        }
        0x1F80..=0x1FAF => out.extend(char::from_u32(letter as u32 | 8)),
        0x1FB3 | 0x1FC3 | 0x1FF3 => out.extend(char::from_u32(letter as u32 + 9)),
        _ => out.extend(letter.to_uppercase()),
    }
}
