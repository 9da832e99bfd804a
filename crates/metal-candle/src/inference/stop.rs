//! Stop strings: text is held back while it may be the beginning of one, so no part of a stop string is ever streamed.
//!
//! Stop strings are matched in the text with its special tokens, which are not streamed.

use std::ops::Range;

/// Text waiting to be streamed.
#[derive(Debug)]
pub(super) struct StopText<'s> {
    stops: &'s [String],
    held: String,
    /// Parts of `held` that are matched but not streamed, in order.
    hidden: Vec<Range<usize>>,
}

impl<'s> StopText<'s> {
    /// Searches for the first of `stops`, none of which is empty.
    pub fn new(stops: &'s [String]) -> Self {
        Self {
            stops,
            held: String::new(),
            hidden: Vec::new(),
        }
    }

    /// Adds the next piece; returns the text to stream and whether a stop string was found.
    pub fn push(&mut self, piece: &str) -> (String, bool) {
        self.held.push_str(piece);
        if let Some(at) = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min() {
            return (self.release(at), true);
        }
        (self.release(self.safe()), false)
    }

    /// Adds the text of a special token: like [`push`](Self::push), but it is not streamed.
    pub fn push_hidden(&mut self, piece: &str) -> (String, bool) {
        let start = self.held.len();
        self.hidden.push(start..start + piece.len());
        self.push(piece)
    }

    /// The text that was held back, at the end.
    pub fn finish(&mut self) -> String {
        self.release(self.held.len())
    }

    /// Removes the first `end` bytes; returns their visible part.
    fn release(&mut self, end: usize) -> String {
        let rest = self.held.split_off(end);
        let taken = std::mem::replace(&mut self.held, rest);
        let (mut out, mut at, mut later) = (String::with_capacity(end), 0, Vec::new());
        for hidden in self.hidden.drain(..) {
            out.push_str(&taken[at.min(end)..hidden.start.min(end)]);
            at = hidden.end;
            if at > end {
                later.push(hidden.start.saturating_sub(end)..at - end);
            }
        }
        out.push_str(&taken[at.min(end)..]);
        self.hidden = later;
        out
    }

    /// Number of bytes in which no stop string can begin.
    fn safe(&self) -> usize {
        let begins = |at: &usize| self.stops.iter().any(|stop| stop.starts_with(&self.held[*at..]));
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let from = self.held.len().saturating_sub(longest);
        let boundaries = (from..self.held.len()).filter(|&at| self.held.is_char_boundary(at));
        boundaries.into_iter().find(begins).unwrap_or(self.held.len())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Streams `text` in pieces of `size` characters.
    fn run(text: &str, stops: &[String], size: usize) -> (String, bool) {
        let (mut out, mut stop) = (String::new(), StopText::new(stops));
        for piece in text.chars().collect::<Vec<_>>().chunks(size) {
            let (ready, stopped) = stop.push(&piece.iter().collect::<String>());
            out.push_str(&ready);
            if stopped {
                return (out, true);
            }
        }
        out.push_str(&stop.finish());
        (out, false)
    }

    #[test]
    fn text_ends_before_the_stop_string() {
        let stops = ["\n\n".to_owned(), "END".to_owned(), "→é".to_owned()];
        for size in 1..6 {
            for (text, expected) in [
                ("one EN two", ("one EN two", false)),
                ("one END two", ("one ", true)),
                ("a\n\nb", ("a", true)),
                ("END", ("", true)),
                ("x→→é", ("x→", true)),
                ("ends in EN", ("ends in EN", false)),
            ] {
                assert_eq!(
                    run(text, &stops, size),
                    (expected.0.to_owned(), expected.1),
                    "{text:?} by {size}"
                );
            }
        }
    }

    #[test]
    fn special_tokens_are_matched_but_not_streamed() {
        let stops = ["<end>".to_owned(), "b<x>c".to_owned()];
        let run = |pieces: &[&str]| {
            let (mut out, mut stop) = (String::new(), StopText::new(&stops));
            for piece in pieces {
                let (ready, stopped) = if piece.starts_with('<') {
                    stop.push_hidden(piece)
                } else {
                    stop.push(piece)
                };
                out.push_str(&ready);
                if stopped {
                    return (out, true);
                }
            }
            out.push_str(&stop.finish());
            (out, false)
        };
        for (pieces, text, stopped) in [
            (&["a", "<end>", "b"][..], "a", true),
            (&["a", "<x>", "b"][..], "ab", false),
            (&["ab", "<x>", "c"][..], "a", true),
            (&["ab", "<x>", "d"][..], "abd", false),
            (&["ab", "<x>"][..], "ab", false),
            (&["<x>", "a", "<x>", "<end>"][..], "a", true),
            // As ordinary text it is not a special token, and is found as well.
            (&["a<e", "nd>"][..], "a", true),
        ] {
            assert_eq!(run(pieces), (text.to_owned(), stopped), "{pieces:?}");
        }
    }

    #[test]
    fn only_prefixes_of_stop_strings_are_held_back() {
        let stops = ["abab".to_owned()];
        let mut stop = StopText::new(&stops);
        assert_eq!(stop.push("xaba"), ("x".to_owned(), false));
        assert_eq!(stop.push("c"), ("abac".to_owned(), false));
    }

    proptest! {
        #[test]
        fn the_result_does_not_depend_on_the_pieces(text in "[abé]{0,30}", stops in prop::collection::vec("[abé]{1,4}", 0..3), size in 1usize..5) {
            let end = stops.iter().filter_map(|s| text.find(s.as_str())).min();
            let (found, stopped) = run(&text, &stops, size);
            prop_assert_eq!(stopped, end.is_some());
            // In pieces the stop string that ends first counts, which may begin later than another that ends later.
            let fits = if stopped { text.starts_with(&found) } else { found == text };
            prop_assert!(fits, "{found}");
            prop_assert!(stops.iter().all(|s| !found.contains(s.as_str())));
        }
    }
}
