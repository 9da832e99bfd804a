//! The lexer, by the rules of Jinja2's with `trim_blocks` and `lstrip_blocks`.
//!
//! Line ends are normalised to `\n`, and one at the very end is dropped. Nothing here knows a statement.

use std::sync::Arc;

use super::escapes::unescape;
use super::fault::{Fault, FaultKind, Outcome};
use super::unicode::is_space;

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token {
    Data(Arc<str>),
    VariableBegin,
    VariableEnd,
    BlockBegin,
    BlockEnd,
    Name(Arc<str>),
    Text(Arc<str>),
    Int(i128),
    Float(f64),
    Op(&'static str),
    End,
}

/// Operators, longer ones first.
const OPERATORS: [&str; 25] = [
    "//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[", "]", "(", ")", "{", "}", ">", "<", "=", ".",
    ":", "|", ",",
];

#[derive(Clone, Copy, PartialEq)]
enum Tag {
    Variable,
    Block,
    Comment,
}

pub(super) fn syntax<T>(line: usize, message: impl Into<String>) -> Outcome<T> {
    Err(Fault::new(FaultKind::Syntax, message).at(line))
}

/// The tokens of a template, each with its line.
pub(super) fn tokens(source: &str) -> Outcome<Vec<(Token, usize)>> {
    let mut text = source.replace("\r\n", "\n").replace('\r', "\n");
    if text.ends_with('\n') {
        text.pop();
    }
    let mut lexer = Lexer {
        source: &text,
        at: 0,
        line: 1,
        at_line_start: true,
        out: Vec::new(),
    };
    lexer.root()?;
    let line = lexer.line;
    lexer.out.push((Token::End, line));
    Ok(lexer.out)
}

struct Lexer<'s> {
    source: &'s str,
    at: usize,
    line: usize,
    /// Whether the last match ended with a line end.
    at_line_start: bool,
    out: Vec<(Token, usize)>,
}

impl<'s> Lexer<'s> {
    fn rest(&self) -> &'s str {
        &self.source[self.at..]
    }

    /// Advances, and counts lines.
    fn advance(&mut self, bytes: usize) {
        let passed = &self.source[self.at..self.at + bytes];
        self.line += passed.matches('\n').count();
        self.at_line_start = passed.ends_with('\n');
        self.at += bytes;
    }

    fn push(&mut self, token: Token) {
        self.out.push((token, self.line));
    }

    fn push_data(&mut self, text: &str) {
        if !text.is_empty() {
            self.push(Token::Data(text.into()));
        }
    }

    fn root(&mut self) -> Outcome<()> {
        while !self.rest().is_empty() {
            let Some((length, tag)) = next_tag(self.rest()) else {
                self.push_data(self.rest());
                self.advance(self.rest().len());
                break;
            };
            let raw = (tag == Tag::Block).then(|| raw_begin(&self.rest()[length..])).flatten();
            let sign = self.rest()[length + 2..]
                .chars()
                .next()
                .filter(|sign| matches!(sign, '-' | '+'));
            let text = stripped(&self.rest()[..length], sign, tag, self.at_line_start);
            self.push_data(text);
            if let Some(opening) = raw {
                self.advance(length + opening);
                self.raw()?;
                continue;
            }
            self.advance(length + 2 + usize::from(sign.is_some()));
            match tag {
                Tag::Comment => self.comment()?,
                Tag::Block => {
                    self.push(Token::BlockBegin);
                    self.inside(Tag::Block)?;
                }
                Tag::Variable => {
                    self.push(Token::VariableBegin);
                    self.inside(Tag::Variable)?;
                }
            }
        }
        Ok(())
    }

    fn comment(&mut self) -> Outcome<()> {
        let Some(end) = self.rest().find("#}") else {
            return syntax(self.line, "missing end of comment tag");
        };
        let before = &self.rest()[..end];
        let sign = before.chars().next_back().filter(|sign| matches!(sign, '-' | '+'));
        let start = end - usize::from(sign.is_some());
        let length = closing(&self.rest()[start..], "#}", true).unwrap_or(0);
        self.advance(start + length);
        Ok(())
    }

    /// Text up to `{% endraw %}`.
    fn raw(&mut self) -> Outcome<()> {
        let mut from = 0;
        while let Some(found) = self.rest()[from..].find("{%") {
            let start = from + found;
            let tag = &self.rest()[start + 2..];
            let sign = tag.chars().next().filter(|sign| matches!(sign, '-' | '+'));
            let name = tag[usize::from(sign.is_some())..].trim_start_matches(is_space);
            if let Some(after) = name.strip_prefix("endraw") {
                let after = after.trim_start_matches(is_space);
                if let Some(length) = closing(after, "%}", true) {
                    let end = self.rest().len() - after.len() + length;
                    let text = stripped(&self.rest()[..start], sign, Tag::Block, self.at_line_start);
                    self.push_data(text);
                    self.advance(end);
                    return Ok(());
                }
            }
            from = start + 2;
        }
        syntax(self.line, "missing end of raw directive")
    }

    /// The tokens of a tag, up to its end.
    fn inside(&mut self, tag: Tag) -> Outcome<()> {
        let mut open: Vec<&'static str> = Vec::new();
        loop {
            let rest = self.rest();
            let Some(first) = rest.chars().next() else {
                return Ok(()); // the parser says what is missing
            };
            let end = match tag {
                _ if !open.is_empty() => None,
                Tag::Block => closing(rest, "%}", true),
                Tag::Variable | Tag::Comment => closing(rest, "}}", false),
            };
            if let Some(length) = end {
                self.push(if tag == Tag::Block {
                    Token::BlockEnd
                } else {
                    Token::VariableEnd
                });
                self.advance(length);
                return Ok(());
            }
            if is_space(first) {
                self.advance(rest.len() - rest.trim_start_matches(is_space).len());
            } else if first.is_ascii_digit() {
                self.number()?;
            } else if first == '_' || first.is_alphanumeric() {
                let length = rest
                    .find(|c: char| c != '_' && !c.is_alphanumeric())
                    .unwrap_or(rest.len());
                if !first.is_alphabetic() && first != '_' {
                    return syntax(self.line, "invalid character in identifier");
                }
                self.push(Token::Name(rest[..length].into()));
                self.advance(length);
            } else if matches!(first, '"' | '\'') {
                self.text(first)?;
            } else {
                self.operator(&mut open)?;
            }
        }
    }

    fn operator(&mut self, open: &mut Vec<&'static str>) -> Outcome<()> {
        let rest = self.rest();
        let Some(operator) = OPERATORS.iter().find(|operator| rest.starts_with(**operator)) else {
            let odd = rest.chars().next().unwrap_or_default();
            return syntax(self.line, format!("unexpected character {odd:?}"));
        };
        match *operator {
            "(" => open.push(")"),
            "[" => open.push("]"),
            "{" => open.push("}"),
            ")" | "]" | "}" => match open.pop() {
                Some(expected) if expected == *operator => {}
                Some(expected) => return syntax(self.line, format!("unexpected '{operator}', expected '{expected}'")),
                None => return syntax(self.line, format!("unexpected '{operator}'")),
            },
            _ => {}
        }
        self.push(Token::Op(operator));
        self.advance(operator.len());
        Ok(())
    }

    fn text(&mut self, quote: char) -> Outcome<()> {
        let rest = self.rest();
        let mut letters = rest.char_indices().skip(1);
        let end = loop {
            match letters.next() {
                None => return syntax(self.line, "an unterminated string"),
                Some((_, '\\')) => {
                    letters.next();
                }
                Some((at, letter)) if letter == quote => break at,
                Some(_) => {}
            }
        };
        let value = unescape(&rest[1..end]).map_err(|reason| Fault::new(FaultKind::Syntax, reason).at(self.line))?;
        self.push(Token::Text(value.into()));
        self.advance(end + 1);
        Ok(())
    }

    fn number(&mut self) -> Outcome<()> {
        let rest = self.rest();
        let after_dot = self.source[..self.at].ends_with('.');
        let (length, float) = match float_length(rest).filter(|_| !after_dot) {
            Some(length) => (length, true),
            None => (integer_length(rest), false),
        };
        let digits = rest[..length].replace('_', "");
        let token = if float {
            Token::Float(digits.parse().unwrap_or(f64::NAN))
        } else {
            match integer(&digits) {
                Some(value) => Token::Int(value),
                None => return syntax(self.line, format!("the integer {digits} has more than 127 bits")),
            }
        };
        self.push(token);
        self.advance(length);
        Ok(())
    }
}

fn next_tag(text: &str) -> Option<(usize, Tag)> {
    let mut from = 0;
    while let Some(found) = text[from..].find('{') {
        let at = from + found;
        match text.as_bytes().get(at + 1) {
            Some(b'{') => return Some((at, Tag::Variable)),
            Some(b'%') => return Some((at, Tag::Block)),
            Some(b'#') => return Some((at, Tag::Comment)),
            _ => from = at + 1,
        }
    }
    None
}

/// The text before a tag, without the white space that the tag strips.
fn stripped(text: &str, sign: Option<char>, tag: Tag, at_line_start: bool) -> &str {
    match sign {
        Some('-') => text.trim_end_matches(is_space),
        None if tag != Tag::Variable => {
            let line = text.rfind('\n').map_or(0, |at| at + 1);
            let blank = text[line..].chars().all(is_space);
            if blank && (line > 0 || at_line_start) {
                &text[..line]
            } else {
                text
            }
        }
        _ => text,
    }
}

/// Length of the end of a tag (`%}`, `-%}` with the white space after it, `+%}`) at the start of a text.
fn closing(text: &str, end: &str, trims_line: bool) -> Option<usize> {
    if let Some(after) = text.strip_prefix(end) {
        return Some(end.len() + usize::from(trims_line && after.starts_with('\n')));
    }
    let after = text.strip_prefix('-').and_then(|text| text.strip_prefix(end));
    if let Some(after) = after {
        return Some(text.len() - after.trim_start_matches(is_space).len());
    }
    let after = text.strip_prefix('+').and_then(|text| text.strip_prefix(end));
    (trims_line && after.is_some()).then_some(1 + end.len())
}

/// Length of `{% raw %}` at the start of a text. Its end strips no line end.
fn raw_begin(text: &str) -> Option<usize> {
    let tag = text.strip_prefix("{%")?;
    let name = tag.strip_prefix(['-', '+']).unwrap_or(tag).trim_start_matches(is_space);
    let after = name.strip_prefix("raw")?.trim_start_matches(is_space);
    let end = after.strip_prefix("%}").or_else(|| {
        let end = after.strip_prefix("-%}")?;
        Some(end.trim_start_matches(is_space))
    })?;
    Some(text.len() - end.len())
}

/// Length of digits with single underscores between them.
fn digits(text: &str, allowed: fn(&u8) -> bool) -> usize {
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let underscore = at > 0 && bytes[at] == b'_' && bytes.get(at + 1).is_some_and(allowed);
        if !allowed(&bytes[at]) && !underscore {
            break;
        }
        at += 1;
    }
    at
}

fn float_length(text: &str) -> Option<usize> {
    let decimal = |text: &str| digits(text, u8::is_ascii_digit);
    let whole = decimal(text);
    let fraction = text[whole..]
        .strip_prefix('.')
        .map(decimal)
        .filter(|length| *length > 0);
    let mantissa = whole + fraction.map_or(0, |length| length + 1);
    let power = text[mantissa..].strip_prefix(['e', 'E']).and_then(|power| {
        let bare = power.strip_prefix(['+', '-']).unwrap_or(power);
        let length = decimal(bare);
        (length > 0).then_some(1 + power.len() - bare.len() + length)
    });
    (fraction.is_some() || power.is_some()).then(|| mantissa + power.unwrap_or(0))
}

fn integer_length(text: &str) -> usize {
    let prefixed = |allowed: fn(&u8) -> bool| {
        let body = &text[2..];
        let length = digits(body.strip_prefix('_').unwrap_or(body), allowed);
        (length > 0).then(|| 2 + usize::from(body.starts_with('_')) + length)
    };
    let based = match text.as_bytes().get(1).map(u8::to_ascii_lowercase) {
        Some(b'b') if text.starts_with('0') => prefixed(|digit| matches!(digit, b'0' | b'1')),
        Some(b'o') if text.starts_with('0') => prefixed(|digit| matches!(digit, b'0'..=b'7')),
        Some(b'x') if text.starts_with('0') => prefixed(u8::is_ascii_hexdigit),
        _ => None,
    };
    based.unwrap_or_else(|| {
        if text.starts_with('0') {
            digits(text, |digit| *digit == b'0')
        } else {
            digits(text, u8::is_ascii_digit)
        }
    })
}

fn integer(digits: &str) -> Option<i128> {
    let lower = digits.to_ascii_lowercase();
    for (prefix, base) in [("0b", 2), ("0o", 8), ("0x", 16)] {
        if let Some(body) = lower.strip_prefix(prefix) {
            return i128::from_str_radix(body, base).ok();
        }
    }
    lower.parse().ok()
}
