//! Documents with codes: words and symbols in random order, repeated later exactly.
//!
//! A tied output head that stays frozen can only produce a token whose embedding was trained, and the fine-tuned answers
//! are full of symbols that prose never contains. So the symbols of JSON and of the chat format occur here, but in no
//! order: never next to the words that are keys or roles, so that neither records nor messages can be learned from them.

use super::fact::Fact;
use super::phrases::{ASIDE, TELL};
use super::rng::Rng;
use super::tokenizer::{MESSAGE_END, MESSAGE_START};
use super::words::{COLOURS, DAYS, ITEMS, PEOPLE, PLACES};

/// Symbols that are not part of records or messages.
const PLAIN: [&str; 8] = ["+", "=", "#", "*", "/", ";", "&", "%"];
/// The symbols of records and messages.
const RECORD: [&str; 8] = ["{\"", "\":\"", "\",\"", "\":", ",\"", "\"}", MESSAGE_START, MESSAGE_END];
/// The keys of a record and the roles of a message.
const KEYS: [&str; 8] = ["who", "item", "count", "colour", "place", "day", "user", "assistant"];

/// One piece of a code.
enum Word {
    Key(&'static str),
    Other(String),
}

/// A document with one or two codes that are repeated.
pub fn document(rng: &mut Rng) -> String {
    let code = code(rng);
    let fact = Fact::random(rng);
    match rng.below(4) {
        0 => format!("{code}\n{code}\n{code}"),
        1 => fact.tell("[The code is|Write this down|A note for {who}]:\n", rng) + &format!("{code}\nAgain:\n{code}"),
        2 => {
            let other = self::code(rng);
            format!("One:\n{code}\nTwo:\n{other}\nTwo again:\n{other}\nOne again:\n{code}")
        }
        _ => {
            let [told, aside] = [&TELL[..], &ASIDE[..]].map(|templates| rng.pick(templates));
            let story = fact.tell(&format!("{told} {aside}\n"), rng);
            format!("{}\n{code}\n{story}{}\n{code}", fact.who.name, fact.who.name)
        }
    }
}

/// 4 to 12 words, with a symbol before, between and after them.
fn code(rng: &mut Rng) -> String {
    let length = 4 + rng.below(9);
    let mut code = String::new();
    let mut after_key = false;
    for _ in 0..length {
        let word = word(rng);
        let before_key = matches!(word, Word::Key(_));
        code.push_str(mark(after_key || before_key, rng));
        after_key = before_key;
        match word {
            Word::Key(key) => code.push_str(key),
            Word::Other(other) => code.push_str(&other),
        }
    }
    code + mark(after_key, rng)
}

fn mark(beside_key: bool, rng: &mut Rng) -> &'static str {
    if beside_key || rng.one_in(5) {
        rng.pick(&PLAIN)
    } else {
        rng.pick(&RECORD)
    }
}

fn word(rng: &mut Rng) -> Word {
    let other = match rng.below(7) {
        0 => return Word::Key(rng.pick(&KEYS)),
        1 => (1 + rng.below(20)).to_string(),
        2 => rng.pick(&COLOURS).to_owned(),
        3 => rng.pick(&PLACES).to_owned(),
        4 => rng.pick(&DAYS).to_owned(),
        5 => rng.pick(&PEOPLE).name.to_owned(),
        _ => {
            let item = rng.pick(&ITEMS);
            (if rng.one_in(8) { item.one } else { item.many }).to_owned()
        }
    };
    Word::Other(other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_told_twice() {
        for stream in 0..200 {
            let document = document(&mut Rng::new(1, stream));
            let lines: Vec<_> = document
                .lines()
                .filter(|line| line.contains(['{', '}', '<', '"']))
                .collect();
            let repeated = lines
                .iter()
                .any(|line| lines.iter().filter(|other| other == &line).count() >= 2);
            assert!(repeated || lines.is_empty(), "{document}");
        }
    }

    #[test]
    fn a_key_is_never_beside_a_mark_of_a_record() {
        for stream in 0..2000 {
            let code = code(&mut Rng::new(2, stream));
            for (key, mark) in KEYS.iter().flat_map(|key| RECORD.iter().map(move |mark| (key, mark))) {
                // `count` is also the end of no other word, nor `day` of one with a small letter before it: Monday is.
                assert!(!code.contains(&format!("{mark}{key}")), "{mark}{key} in {code}");
                assert!(
                    *key == "day" || !code.contains(&format!("{key}{mark}")),
                    "{key}{mark} in {code}"
                );
            }
        }
    }

    #[test]
    fn every_mark_occurs() {
        let text: String = (0..500).map(|stream| code(&mut Rng::new(3, stream))).collect();
        assert!(
            PLAIN
                .iter()
                .chain(&RECORD)
                .chain(&KEYS)
                .all(|piece| text.contains(piece))
        );
    }
}
