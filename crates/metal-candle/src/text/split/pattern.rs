//! Split patterns with bounded running time.
//!
//! Most patterns end in `\s+(?!\S)|\s+`: white space, except the last character before a word. Without this tail they
//! need no backtracking and take linear time on any text. Other patterns backtrack, with a limit that is an error.

use std::time::{Duration, Instant};

use tokenizers::tokenizer::pattern::Pattern;
use tokenizers::{Offsets, Result};

use super::translate::translate;

/// Tails of patterns that leave the last white space to the following word.
const TAILS: [&str; 2] = [r"|\s+(?!\S)|\s+", r"|\s+(?!\S)|\s"];
/// Maximum backtracking steps per match.
const MAX_BACKTRACKS: usize = 10_000_000;
/// Time limit for one text with a backtracking engine.
const MAX_TIME: Duration = Duration::from_secs(10);
/// Maximum size of a compiled pattern in bytes.
const MAX_COMPILED: usize = 32 << 20;

/// A compiled split pattern.
#[derive(Clone, Debug)]
pub(in crate::text) enum SplitPattern {
    Linear(regex::Regex),
    /// The pattern before the tail, followed by a group for white space.
    WithTail(regex::Regex),
    Backtracking(Box<fancy_regex::Regex>, String),
}

impl SplitPattern {
    pub fn new(pattern: &str) -> std::result::Result<Self, String> {
        let refused = |reason: String| format!("the split pattern {pattern:?} cannot be used: {reason}");
        if let Some(head) = TAILS.iter().find_map(|tail| pattern.strip_suffix(tail)) {
            let head = translate(head).map_err(refused)?;
            // A bar inside brackets or a group is no end of an alternative; then this does not compile.
            if let (false, Ok(regex)) = (head.fancy, linear(&format!(r"(?:{})|(\s+)", head.pattern))) {
                return Ok(Self::WithTail(regex));
            }
        }
        let whole = translate(pattern).map_err(refused)?;
        if !whole.fancy {
            return linear(&whole.pattern).map(Self::Linear).map_err(refused);
        }
        let compiled = fancy_regex::RegexBuilder::new(&whole.pattern)
            .backtrack_limit(MAX_BACKTRACKS)
            .delegate_size_limit(MAX_COMPILED)
            .build();
        match compiled {
            Ok(regex) => Ok(Self::Backtracking(Box::new(regex), pattern.to_owned())),
            Err(error) => Err(refused(error.to_string())),
        }
    }

    /// A pattern that matches a literal text.
    pub fn literal(text: &str) -> std::result::Result<Self, String> {
        linear(&regex::escape(text)).map(Self::Linear)
    }

    /// The range of each match. Empty matches are left out, as they split nothing.
    fn matches(&self, text: &str) -> Result<Vec<Offsets>> {
        match self {
            Self::Linear(regex) => Ok(regex
                .find_iter(text)
                .map(|found| (found.start(), found.end()))
                .collect()),
            Self::WithTail(regex) => Ok(with_tail(regex, text)),
            Self::Backtracking(regex, pattern) => backtracking(regex, pattern, text),
        }
    }
}

fn linear(pattern: &str) -> std::result::Result<regex::Regex, String> {
    let compiled = regex::RegexBuilder::new(pattern).size_limit(MAX_COMPILED).build();
    compiled.map_err(|error| error.to_string())
}

/// White space matched by the tail ends before its last character if a word follows.
fn with_tail(regex: &regex::Regex, text: &str) -> Vec<Offsets> {
    let mut found = Vec::new();
    let mut at = 0;
    let mut places = regex.capture_locations();
    while at <= text.len() {
        let Some(whole) = regex.captures_read_at(&mut places, text, at) else {
            break;
        };
        let (start, mut end) = (whole.start(), whole.end());
        if places.get(1).is_some() && end < text.len() {
            let last = text[start..end].chars().next_back().map_or(0, char::len_utf8);
            if end - last > start {
                end -= last;
            }
        }
        found.push((start, end));
        at = if end > start {
            end
        } else {
            end + text[end..].chars().next().map_or(1, char::len_utf8)
        };
    }
    found
}

fn backtracking(regex: &fancy_regex::Regex, pattern: &str, text: &str) -> Result<Vec<Offsets>> {
    let deadline = Instant::now() + MAX_TIME;
    let mut found = Vec::new();
    for each in regex.find_iter(text) {
        let each = each.map_err(|_| format!("the split pattern {pattern:?} takes too much work on this text"))?;
        found.push((each.start(), each.end()));
        if found.len() % 1024 == 0 && Instant::now() > deadline {
            return Err(format!(
                "the split pattern {pattern:?} takes longer than {} s on this text",
                MAX_TIME.as_secs()
            )
            .into());
        }
    }
    Ok(found)
}

impl Pattern for &SplitPattern {
    fn find_matches(&self, inside: &str) -> Result<Vec<(Offsets, bool)>> {
        if inside.is_empty() {
            return Ok(vec![((0, 0), false)]);
        }
        let mut splits = Vec::new();
        let mut before = 0;
        for (start, end) in self.matches(inside)? {
            if before != start {
                splits.push(((before, start), false));
            }
            splits.push(((start, end), true));
            before = end;
        }
        if before != inside.len() {
            splits.push(((before, inside.len()), false));
        }
        Ok(splits)
    }
}
