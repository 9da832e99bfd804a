//! Escapes in string literals, as Python's `unicode-escape` codec reads them.
//!
//! Unknown escapes are copied. Nothing here knows a token.

use std::fmt::Write;

/// The value of the contents of a literal, or the reason why it has none.
pub(super) fn unescape(inside: &str) -> Result<String, String> {
    let mut out = String::with_capacity(inside.len());
    let mut rest = inside;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        rest = escape(&rest[at + 1..], &mut out)?;
    }
    out.push_str(rest);
    Ok(out)
}

/// Reads the escape after a backslash, and returns the rest.
fn escape<'t>(text: &'t str, out: &mut String) -> Result<&'t str, String> {
    let Some(letter) = text.chars().next() else {
        return Err("\\ at end of string".to_owned());
    };
    let after = &text[letter.len_utf8()..];
    let simple = match letter {
        '\n' => return Ok(after),
        '\\' | '\'' | '"' => letter,
        'a' => '\u{7}',
        'b' => '\u{8}',
        'f' => '\u{c}',
        'n' => '\n',
        'r' => '\r',
        't' => '\t',
        'v' => '\u{b}',
        '0'..='7' => return octal(text, out),
        'x' => return hex(after, 2, "\\xXX", out),
        'u' => return hex(after, 4, "\\uXXXX", out),
        'U' => return hex(after, 8, "\\UXXXXXXXX", out),
        'N' => return Err("named characters (\\N{...}) are not supported; write \\uXXXX".to_owned()),
        _ => {
            out.push('\\');
            if letter.is_ascii() {
                out.push(letter);
            } else {
                // Jinja2 escapes such a letter first, which pairs its backslash with the preceding one.
                let code = letter as u32;
                let _ = match code {
                    0..=0xFF => write!(out, "x{code:02x}"),
                    0x100..=0xFFFF => write!(out, "u{code:04x}"),
                    _ => write!(out, "U{code:08x}"),
                }; // writing to a String cannot fail
            }
            return Ok(after);
        }
    };
    out.push(simple);
    Ok(after)
}

fn octal<'t>(text: &'t str, out: &mut String) -> Result<&'t str, String> {
    let length = text
        .bytes()
        .take(3)
        .take_while(|digit| (b'0'..=b'7').contains(digit))
        .count();
    let code = u32::from_str_radix(&text[..length], 8).map_err(|error| error.to_string())?;
    out.extend(char::from_u32(code));
    Ok(&text[length..])
}

fn hex<'t>(text: &'t str, length: usize, shape: &str, out: &mut String) -> Result<&'t str, String> {
    let code = text
        .get(..length)
        .filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()))
        .and_then(|digits| u32::from_str_radix(digits, 16).ok())
        .ok_or_else(|| format!("truncated {shape} escape"))?;
    let letter = char::from_u32(code)
        .ok_or_else(|| format!("the escape for U+{code:04X} is not a character (a lone surrogate)"))?;
    out.push(letter);
    Ok(&text[length..])
}
