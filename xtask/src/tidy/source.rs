//! A source file for the rules: its path, its text, and its code with comments and literals blanked.
//!
//! The blanking is a small scanner, not a parser: it keeps every line break, so line numbers in the blanked text are
//! those of the file. It never fails; on text that is not Rust the result is meaningless.

/// One file of the repository.
pub struct Source {
    /// Path from the repository root, with forward slashes.
    pub path: String,
    /// The text of the file.
    pub text: String,
    /// The text with comments, strings and character literals replaced by spaces (only for `.rs`, else empty).
    pub code: String,
}

impl Source {
    /// Creates a source from its `path` (relative to the repository root) and its text.
    pub fn new(path: impl Into<String>, text: impl Into<String>) -> Self {
        let (path, text) = (path.into(), text.into());
        let code = if is_rust(&path) { blank(&text) } else { String::new() };
        Self { path, text, code }
    }

    /// Whether this is a Rust file.
    pub fn is_rust(&self) -> bool {
        is_rust(&self.path)
    }

    /// The lines of blanked code with their numbers, up to the unit tests at the file's end.
    pub fn product_lines(&self) -> impl Iterator<Item = (usize, &str)> {
        let lines = self.code.lines().enumerate().map(|(index, line)| (index + 1, line));
        lines.take_while(|(_, line)| !line.starts_with("#[cfg(test)]"))
    }
}

fn is_rust(path: &str) -> bool {
    std::path::Path::new(path)
        .extension()
        .is_some_and(|extension| extension == "rs")
}

/// Whether `line` holds `word` with no identifier character on either side.
pub fn has_word(line: &str, word: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(start, _)| {
        !line[..start].ends_with(is_part) && (word.ends_with("::") || !line[start + word.len()..].starts_with(is_part))
    })
}

/// Replaces comments, strings and character literals by spaces, line breaks excepted.
fn blank(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let hidden = hidden_length(rest, code.chars().next_back());
        if hidden == 0 {
            code.push(first);
            rest = &rest[first.len_utf8()..];
        } else {
            let (gone, kept) = rest.split_at(hidden);
            code.extend(gone.chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
            rest = kept;
        }
    }
    code
}

/// How many bytes at the start of `rest` are a comment or a literal; 0 if code starts here.
fn hidden_length(rest: &str, before: Option<char>) -> usize {
    if rest.starts_with("//") {
        return rest.find('\n').unwrap_or(rest.len());
    }
    if rest.starts_with("/*") {
        return block_comment_length(rest);
    }
    if rest.starts_with('"') {
        return string_length(rest);
    }
    // `r"` and `r#"` are literals only where no identifier goes before them.
    if rest.starts_with('r') && !before.is_some_and(|c| c.is_alphanumeric() && c != 'b' || c == '_') {
        return raw_string_length(rest);
    }
    if rest.starts_with('\'') {
        character_length(rest)
    } else {
        0
    }
}

fn block_comment_length(rest: &str) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    while at < rest.len() {
        let (step, change) = match &rest.as_bytes()[at..] {
            [b'/', b'*', ..] => (2, 1),
            [b'*', b'/', ..] => (2, -1),
            _ => (1, 0),
        };
        at += step;
        depth = depth.saturating_add_signed(change);
        if depth == 0 {
            break;
        }
    }
    at
}

fn string_length(rest: &str) -> usize {
    let mut escaped = false;
    for (at, byte) in rest.bytes().enumerate().skip(1) {
        match byte {
            b'"' if !escaped => return at + 1,
            b'\\' => escaped = !escaped,
            _ => escaped = false,
        }
    }
    rest.len()
}

fn raw_string_length(rest: &str) -> usize {
    let hashes = rest[1..].bytes().take_while(|&byte| byte == b'#').count();
    let opening = 1 + hashes;
    if rest.as_bytes().get(opening) != Some(&b'"') {
        return 0;
    }
    let closing = format!("\"{}", "#".repeat(hashes));
    rest[opening + 1..]
        .find(&closing)
        .map_or(rest.len(), |at| opening + 1 + at + closing.len())
}

/// A character literal has a quote after one character or after an escape; anything else is a lifetime.
fn character_length(rest: &str) -> usize {
    let mut characters = rest.char_indices().skip(1);
    match characters.next() {
        Some((_, '\\')) => rest.get(3..).and_then(|tail| tail.find('\'')).map_or(0, |at| at + 4),
        Some(_) => characters
            .next()
            .filter(|&(_, c)| c == '\'')
            .map_or(0, |(at, _)| at + 1),
        None => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_become_spaces_and_lines_stay() {
        for (text, code) in [
            ("a // b\nc", "a     \nc"),
            ("a /* b /* c */ d */ e", "a                   e"),
            ("f(\"a \\\" b\", 'x', '\\'')", "f(        ,    ,     )"),
            ("r#\"a\"b\"# c", "         c"),
            ("fn f<'a>(x: &'a str)", "fn f<'a>(x: &'a str)"),
            ("var\"x\"", "var   "),
        ] {
            assert_eq!(blank(text), code, "{text}");
        }
    }

    #[test]
    fn words_end_at_identifier_characters() {
        assert!(has_word("let t = Tensor::zeros();", "Tensor::"));
        assert!(!has_word("let t = LazyTensor::zeros();", "Tensor::"));
        assert!(has_word("use x::{Shape, Tensor};", "Tensor"));
        assert!(!has_word("Tensors", "Tensor"));
    }

    #[test]
    fn unit_tests_are_not_product_code() {
        let source = Source::new("a.rs", "one\n#[cfg(test)]\nmod tests {}\n");
        assert_eq!(source.product_lines().collect::<Vec<_>>(), [(1, "one")]);
    }
}
