//! Translates Oniguruma patterns (Ruby syntax, UTF-8) for Rust's regex engines.
//!
//! Classes contain different characters (`\w` has superscripts but no joiners), `^` and `$` match at lines, `{1,3}+`
//! repeats a repetition. A construct without an equivalent is an error, never a different meaning.

use super::brackets;

/// `\w` in brackets.
pub(super) const WORD_IN_BRACKETS: &str = r"\p{Alphabetic}\p{M}\p{Nd}\p{Pc}";
/// `\w` outside brackets also has some numbers of Latin-1.
const WORD: &str = r"\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\x{B2}\x{B3}\x{B9}\x{BC}-\x{BE}";
const LINE_END: &str = r"(?>\r\n|[\n-\r\x{85}\x{2028}\x{2029}])";
/// Maximum length of a pattern in bytes.
const MAX_PATTERN: usize = 64 << 10;

/// A translated pattern, and the engine it needs.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Translated {
    pub pattern: String,
    /// Whether it uses look-around or possessive or atomic constructs, which need a backtracking engine.
    pub fancy: bool,
}

pub(super) fn translate(pattern: &str) -> Result<Translated, String> {
    if pattern.len() > MAX_PATTERN {
        return Err(format!("the pattern has more than {MAX_PATTERN} bytes"));
    }
    let mut translation = Translation {
        rest: pattern,
        out: String::with_capacity(pattern.len()),
        fancy: false,
        atom: 0,
        groups: Vec::new(),
    };
    while translation.step()? {}
    Ok(Translated {
        pattern: translation.out,
        fancy: translation.fancy,
    })
}

struct Translation<'p> {
    rest: &'p str,
    out: String,
    fancy: bool,
    /// Output offset of the last repeatable item.
    atom: usize,
    /// Output offsets of the open groups.
    groups: Vec<usize>,
}

impl Translation<'_> {
    /// Translates the next item; returns false at the end.
    fn step(&mut self) -> Result<bool, String> {
        let Some(letter) = self.rest.chars().next() else {
            return Ok(false);
        };
        match letter {
            '\\' => self.escape()?,
            '[' => {
                let (class, rest) = brackets::translate(self.rest)?;
                self.rest = rest;
                self.emit(&class);
            }
            '(' => self.group()?,
            ')' => {
                self.rest = &self.rest[1..];
                self.atom = self.groups.pop().unwrap_or(0);
                self.out.push(')');
            }
            '*' | '+' | '?' | '{' => self.repetition(letter),
            '^' => self.take(1, r"(?:\A|(?m:^)(?!\z))", true),
            '$' => self.take(1, "(?m:$)", false),
            '|' => {
                self.rest = &self.rest[1..];
                self.out.push('|');
                self.atom = self.out.len();
            }
            _ => {
                let (literal, rest) = self.rest.split_at(letter.len_utf8());
                self.rest = rest;
                self.emit(literal);
            }
        }
        Ok(true)
    }

    /// Emits a repeatable item.
    fn emit(&mut self, item: &str) {
        self.atom = self.out.len();
        self.out.push_str(item);
    }

    /// Consumes bytes of the pattern and emits an item for them.
    fn take(&mut self, bytes: usize, item: &str, fancy: bool) {
        self.rest = &self.rest[bytes..];
        self.fancy |= fancy;
        self.emit(item);
    }

    fn escape(&mut self) -> Result<(), String> {
        let (item, rest, fancy) = match self.rest.chars().nth(1) {
            Some('w') => (format!("[{WORD}]"), &self.rest[2..], false),
            Some('W') => (format!("[^{WORD}]"), &self.rest[2..], false),
            Some('b') => {
                let at_edge = format!("(?:(?<=[{WORD}])(?![{WORD}])|(?<![{WORD}])(?=[{WORD}]))");
                (at_edge, &self.rest[2..], true)
            }
            Some('B') => {
                let inside = format!("(?:(?<=[{WORD}])(?=[{WORD}])|(?<![{WORD}])(?![{WORD}]))");
                (inside, &self.rest[2..], true)
            }
            Some('R') => (LINE_END.to_owned(), &self.rest[2..], true),
            Some('A') => (r"\A".to_owned(), &self.rest[2..], false),
            Some('z') => (r"\z".to_owned(), &self.rest[2..], false),
            Some('Z') => (r"(?=\n?\z)".to_owned(), &self.rest[2..], true),
            Some('H') => ("[^0-9A-Fa-f]".to_owned(), &self.rest[2..], false),
            Some('h') => ("[0-9A-Fa-f]".to_owned(), &self.rest[2..], false),
            _ => {
                let (item, rest) = escaped(self.rest)?;
                (item, rest, false)
            }
        };
        self.rest = rest;
        self.fancy |= fancy;
        self.emit(&item);
        Ok(())
    }

    fn group(&mut self) -> Result<(), String> {
        self.groups.push(self.out.len());
        let openings = [
            ("(?:", "(?:", false),
            ("(?=", "(?=", true),
            ("(?!", "(?!", true),
            ("(?>", "(?>", true),
        ];
        let behind = [("(?<=", "(?<=", true), ("(?<!", "(?<!", true)];
        for (opening, written, fancy) in openings.into_iter().chain(behind) {
            if let Some(rest) = self.rest.strip_prefix(opening) {
                self.rest = rest;
                self.out.push_str(written);
                self.fancy |= fancy;
                self.atom = self.out.len();
                return Ok(());
            }
        }
        if let Some(flags) = self.rest.strip_prefix("(?") {
            let end = flags.find([':', ')']).ok_or("an unterminated group")?;
            let (names, after) = flags.split_at(end);
            if names.is_empty() || !names.bytes().all(|flag| matches!(flag, b'i' | b'm' | b'-')) {
                return Err(format!("the group (?{names} is not supported"));
            }
            // Ruby's `m` lets the dot match line ends.
            self.out.push_str("(?");
            self.out.push_str(&names.replace('m', "s"));
            self.out.push_str(&after[..1]);
            self.rest = &after[1..];
            if after.starts_with(')') {
                self.groups.pop();
            }
        } else {
            self.rest = &self.rest[1..];
            self.out.push_str("(?:"); // what a group caught is never asked for
        }
        self.atom = self.out.len();
        Ok(())
    }

    fn repetition(&mut self, letter: char) {
        let bounds = if letter == '{' { bounds(self.rest) } else { Some(1) };
        let Some(length) = bounds else {
            self.take(1, r"\{", false); // no repetition: the brace itself
            return;
        };
        let (repetition, after) = self.rest.split_at(length);
        self.rest = after;
        if let Some(least) = repetition.strip_prefix("{,") {
            self.out.push_str("{0,");
            self.out.push_str(least);
        } else {
            self.out.push_str(repetition);
        }
        if let Some(after) = self.rest.strip_prefix('?') {
            self.rest = after;
            self.out.push('?');
        } else if self.rest.starts_with('+') && letter != '{' {
            self.rest = &self.rest[1..];
            self.out.push('+');
            self.fancy = true; // possessive
        }
        if self.rest.starts_with(['*', '+', '?']) || bounds_follow(self.rest) {
            // Repeats the repetition.
            self.out.insert_str(self.atom, "(?:");
            self.out.push(')');
        }
    }
}

/// Length of `{n}`, `{n,}`, `{,m}` or `{n,m}` at the start of a pattern.
fn bounds(pattern: &str) -> Option<usize> {
    let end = pattern.find('}')?;
    let inside = &pattern[1..end];
    let shaped = inside.bytes().all(|byte| byte.is_ascii_digit() || byte == b',') && inside.matches(',').count() < 2;
    (shaped && inside.bytes().any(|byte| byte.is_ascii_digit())).then_some(end + 1)
}

fn bounds_follow(pattern: &str) -> bool {
    pattern.starts_with('{') && bounds(pattern).is_some()
}

/// Translates an escape with the same meaning in brackets and outside; returns it and the rest.
pub(super) fn escaped(pattern: &str) -> Result<(String, &str), String> {
    let letter = pattern.chars().nth(1).ok_or("the pattern ends in a backslash")?;
    let after = &pattern[1 + letter.len_utf8()..];
    let fixed = |code: u32| Ok((format!(r"\x{{{code:X}}}"), after));
    match letter {
        's' | 'S' | 'd' | 'D' => Ok((format!("\\{letter}"), after)),
        't' => fixed(9),
        'n' => fixed(10),
        'v' => fixed(11),
        'f' => fixed(12),
        'r' => fixed(13),
        'a' => fixed(7),
        'e' => fixed(27),
        'p' | 'P' => property(pattern, after, letter),
        'u' => {
            let digits = after.get(..4).ok_or("\\u without four digits")?;
            Ok((code(digits)?, &after[4..]))
        }
        'x' if after.starts_with('{') => {
            let end = after.find('}').ok_or("unterminated \\x{")?;
            Ok((code(&after[1..end])?, &after[end + 1..]))
        }
        'x' => {
            let length = after.bytes().take(2).take_while(u8::is_ascii_hexdigit).count();
            let digits = &after[..length];
            match u8::from_str_radix(digits, 16) {
                Ok(byte) if byte < 0x80 => Ok((code(digits)?, &after[length..])),
                _ => Err(format!("the escape \\x{digits} is not supported; write \\u00{digits}")),
            }
        }
        _ if letter.is_ascii_alphanumeric() => Err(format!("the escape \\{letter} is not supported")),
        _ => Ok((regex::escape(&letter.to_string()), after)),
    }
}

fn code(digits: &str) -> Result<String, String> {
    match u32::from_str_radix(digits, 16).ok().and_then(char::from_u32) {
        Some(letter) => Ok(format!(r"\x{{{:X}}}", letter as u32)),
        None => Err(format!("{digits:?} is not a character")),
    }
}

/// `\p{Name}`, `\p{^Name}`, `\P{Name}`
fn property<'p>(pattern: &str, after: &'p str, letter: char) -> Result<(String, &'p str), String> {
    let inside = after
        .strip_prefix('{')
        .ok_or_else(|| format!("\\{letter} without {{ in {pattern:?}"))?;
    let end = inside.find('}').ok_or("unterminated \\p{")?;
    let (name, negated) = match inside[..end].strip_prefix('^') {
        Some(name) => (name, true),
        None => (&inside[..end], false),
    };
    let negated = negated != (letter == 'P');
    let rest = &inside[end + 1..];
    let known = match &*name.to_ascii_lowercase() {
        "word" => format!("[{WORD_IN_BRACKETS}]"),
        "alnum" => r"[\p{Alphabetic}\p{Nd}]".to_owned(),
        "punct" => r"[\p{P}\p{S}]".to_owned(),
        "digit" => r"\p{Nd}".to_owned(),
        "space" => r"\s".to_owned(),
        "blank" | "cntrl" | "graph" | "print" | "xdigit" | "ascii" => {
            return Err(format!("the property {name} is not supported"));
        }
        _ => format!(r"\p{{{name}}}"),
    };
    Ok((if negated { format!("[^{known}]") } else { known }, rest))
}
