//! The shortest documents: repeated words, and lookups of a few words by kind.
//!
//! Copying is learned from these first: with ten words to look back on, a small model soon finds the right one; with
//! long stories that would take too long. A word appears after a space, after a quotation mark and at the beginning of
//! a line, which are three different tokens, so that all forms get the same meaning.

use super::fact::{Fact, capitalise};
use super::rng::Rng;
use super::words::{COLOURS, DAYS, ITEMS, NUMBERS, PEOPLE, PLACES};

/// Echoes of one to three words of one kind.
const ECHOES: [&str; 16] = [
    "{a}? Yes, {a}.",
    "{a} and {b}, {b} and {a}.",
    "\"{a}\" is {a}.",
    "{a} is \"{a}\".",
    "Say {a}: \"{a}\".",
    "{a}, {b}, {c}: \"{a}\", \"{b}\", \"{c}\".",
    "\"{a}\", \"{b}\", \"{c}\" are {a}, {b}, {c}.",
    "Not {a} but {b}. \"{b}\".",
    "{a} or {b}? {a}.",
    "{a} or {b}? \"{b}\".",
    "{a}\n{b}\n{c}\n{a}\n{b}\n{c}",
    "The word is {a}.\n{a}",
    "The words are {a} and {b}.\n{a}\n{b}",
    "{a}/{b}/{c}\n{a}/{b}/{c}",
    "({a}) {a} ({b}) {b}",
    "{a}: \"{b}\". Again, {a}: \"{b}\".",
];

/// A kind of word: its names in questions, and its slot in a template.
const KINDS: [(&[&str], &str); 6] = [
    (&["name", "person"], "{who}"),
    (&["thing", "item"], "{items}"),
    (&["number", "count"], "{count}"),
    (&["colour"], "{colour}"),
    (&["town", "place"], "{place}"),
    (&["day"], "{day}"),
];

/// Templates of answers; `KIND` and `SLOT` stand for one of [`KINDS`].
const ANSWERS: [&str; 8] = [
    "The KIND is SLOT.",
    "The KIND? SLOT.",
    "The KIND is \"SLOT\".",
    "KIND: SLOT.",
    "KIND: \"SLOT\".",
    "KIND \"SLOT\".",
    "KIND=SLOT",
    "SLOT is the KIND.",
];

/// One to three words of one kind, repeated.
pub fn echo(rng: &mut Rng) -> String {
    let people: Vec<_> = PEOPLE.iter().map(|person| person.name).collect();
    let things: Vec<_> = ITEMS.iter().flat_map(|item| [item.many, item.many, item.one]).collect();
    let words: &[&str] = match rng.below(6) {
        0 => &people,
        1 => &things,
        2 => &COLOURS,
        3 => &PLACES,
        4 => &DAYS,
        _ => &NUMBERS,
    };
    let words = rng.sample(words, 3);
    let template = rng.pick(&ECHOES);
    let told = template
        .replace("{a}", words[0])
        .replace("{b}", words[1])
        .replace("{c}", words[2]);
    if template.starts_with("{a}?") || template.starts_with("{a} or") {
        capitalise(&told)
    } else {
        told
    }
}

/// Two to six parts of a fact in random order, and then some of them by their kind.
pub fn lookup(rng: &mut Rng) -> String {
    let fact = Fact::random(rng);
    let count = 2 + rng.below(5);
    let kinds = rng.sample(&KINDS, count);
    let between = rng.pick(&[", ", " ", ", ", " and "]);
    let given: Vec<_> = kinds.iter().map(|(_, slot)| *slot).collect();
    let mut template = given.join(between) + rng.pick(&[".", ".", ":", "?"]);
    let asked = 1 + rng.below(count);
    let answer = rng.pick(&ANSWERS);
    let gap = rng.pick(&[" ", " ", "\n"]);
    for (names, slot) in rng.sample(&kinds, asked) {
        // Mostly one form of answer within a document; digits for half of the number words.
        let answer = if rng.one_in(4) { rng.pick(&ANSWERS) } else { answer };
        let slot = if *slot == "{count}" && rng.one_in(2) {
            "{digits}"
        } else {
            *slot
        };
        template.push_str(gap);
        template.push_str(&answer.replace("KIND", rng.pick(names)).replace("SLOT", slot));
    }
    fact.tell(&template, rng)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::fact::is_well_formed;

    #[test]
    fn every_answer_is_well_formed() {
        for (names, slot) in KINDS {
            for answer in ANSWERS {
                assert!(
                    is_well_formed(&answer.replace("KIND", names[0]).replace("SLOT", slot)),
                    "{answer} {slot}"
                );
            }
        }
    }

    #[test]
    fn an_echo_says_a_word_twice() {
        for stream in 0..300 {
            let echo = echo(&mut Rng::new(1, stream)).to_lowercase();
            let words: Vec<_> = echo
                .split(|c: char| !c.is_alphabetic())
                .filter(|word| !word.is_empty())
                .collect();
            assert!(
                words
                    .iter()
                    .any(|word| words.iter().filter(|other| other == &word).count() == 2),
                "{echo}"
            );
        }
    }

    #[test]
    fn a_lookup_answers_from_what_was_given() {
        for stream in 0..300 {
            let lookup = lookup(&mut Rng::new(2, stream));
            assert!(
                !lookup.contains(['{', '}', '<', '>']) && !lookup.contains("SLOT"),
                "{lookup}"
            );
        }
    }
}
