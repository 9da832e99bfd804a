//! The pre-training corpus: short stories, lists, letters and conversations about who did what, where and when.
//!
//! Each document states a few facts and then restates them in other words, so that a model learns to look back and
//! copy. It contains no JSON and no chat: those are what fine-tuning teaches. Their symbols occur only in `codes`, in
//! random order.

use super::fact::{Fact, capitalise};
use super::phrases::{ASIDE, BETWEEN, COLOUR, COUNT, DAY, ITEM, LINE, PLACE, TALK, TELL, WHO};
use super::rng::Rng;
use super::words::{COLOURS, DAYS, ITEMS, NUMBERS, PEOPLE, PLACES};
use super::{codes, echoes};

const AGAIN: [&[&str]; 6] = [&WHO, &COUNT, &ITEM, &COLOUR, &PLACE, &DAY];

/// `documents` documents of about 40 to 200 words; document `i` depends on `seed` and `i` alone.
pub fn corpus(seed: u64, documents: usize) -> Vec<String> {
    (0..documents as u64)
        .map(|index| document(&mut Rng::new(seed, index)))
        .collect()
}

fn document(rng: &mut Rng) -> String {
    match rng.below(32) {
        0..=5 => echoes::echo(rng),
        6..=15 => echoes::lookup(rng),
        16..=18 => retold(rng),
        19..=23 => story(rng),
        24 => letter(rng),
        25 => list(rng),
        26 => conversation(rng),
        27 | 28 => labels(rng),
        29 => drill(rng),
        _ => codes::document(rng),
    }
}

/// One fact, or two, stated in full and restated in full: most of the copying is learned here.
fn retold(rng: &mut Rng) -> String {
    let count = rng.pick(&[1, 1, 1, 2]);
    let facts = Fact::random_many(rng, count);
    let times = 2 + rng.below(3);
    let templates = rng.sample(&TELL, times);
    let mut text = String::new();
    for (index, template) in templates.into_iter().enumerate() {
        for fact in &facts {
            if !text.is_empty() {
                text.push_str(&fact.tell(rng.pick(&BETWEEN), rng));
            }
            let styled = style(template, rng);
            text.push_str(&capitalise(&fact.tell(&styled, rng)));
        }
        if index == 0 && rng.one_in(4) {
            text.push(' ');
            text.push_str(&sentence(&facts[0], &ASIDE, rng));
        }
    }
    text
}

/// `template` unchanged, with digits for number words, or with every part of the fact in quotation marks.
///
/// A word after a quotation mark is another token than the same word after a space; using both gives them the same
/// meaning.
fn style(template: &str, rng: &mut Rng) -> String {
    let mut styled = template.to_owned();
    if rng.one_in(3) {
        styled = styled.replace("{count}", "{digits}").replace("{Count}", "{digits}");
    }
    if !template.contains('"') && rng.one_in(5) {
        for slot in [
            "{who}", "{count}", "{digits}", "{colour}", "{items}", "{place}", "{day}",
        ] {
            styled = styled.replace(slot, &format!("\"{slot}\""));
        }
    }
    styled
}

/// Facts, then the same facts again, in another order and other words. Most stories have one fact: lookup is learned
/// from these, and telling two facts apart from the others.
fn story(rng: &mut Rng) -> String {
    let count = rng.pick(&[1, 1, 1, 1, 2, 2, 3]);
    let facts = Fact::random_many(rng, count);
    let mut sentences = Vec::new();
    for fact in &facts {
        sentences.push(sentence(fact, &TELL, rng));
        if rng.one_in(6) {
            sentences.push(sentence(fact, &ASIDE, rng));
        }
    }
    let questions = 3 + rng.below(3 + 2 * count);
    sentences.extend(retell(&facts, questions, rng));
    if rng.one_in(4) {
        let fact = &facts[rng.below(facts.len())];
        sentences.push(sentence(fact, &TELL, rng));
    }
    join(sentences.into_iter(), " ")
}

/// `count` different parts of the facts, restated in random order (fewer if the facts have fewer).
fn retell(facts: &[Fact], count: usize, rng: &mut Rng) -> Vec<String> {
    let parts: Vec<_> = facts
        .iter()
        .flat_map(|fact| AGAIN.iter().map(move |part| (fact, *part)))
        .collect();
    let chosen = rng.sample(&parts, count);
    chosen
        .into_iter()
        .map(|(fact, part)| sentence(fact, part, rng))
        .collect()
}

fn letter(rng: &mut Rng) -> String {
    let count = 1 + rng.below(2);
    let facts = Fact::random_many(rng, count);
    let opening = facts[0].tell("Dear {other},\n", rng);
    let told = join(facts.iter().map(|fact| sentence(fact, &TELL, rng)), " ");
    let questions = 2 + rng.below(4);
    let retold = retell(&facts, questions, rng).join(" ");
    let closing = facts[0].tell("\n[Yours|Many greetings|See you on {day}],\n{who}", rng);
    format!("{opening}{told} {retold}{closing}")
}

/// A list with one fact per line, and the same list in prose.
fn list(rng: &mut Rng) -> String {
    let count = 2 + rng.below(3);
    let facts = Fact::random_many(rng, count);
    let heading = rng.pick(&["The list", "Orders", "In the book", "From the notice board", "To do"]);
    let line = rng.pick(&LINE);
    let lines = join(facts.iter().map(|fact| fact.tell(line, rng)), "\n");
    let questions = 3 + rng.below(4);
    let prose = retell(&facts, questions, rng).join(" ");
    if rng.one_in(2) {
        return format!("{heading}\n{lines}\n{prose}");
    }
    let told = join(facts.iter().map(|fact| sentence(fact, &TELL, rng)), " ");
    format!("{told}\n{heading}\n{lines}\n{prose}")
}

fn conversation(rng: &mut Rng) -> String {
    let fact = Fact::random(rng);
    let told = sentence(&fact, &TELL, rng);
    let turns = 2 + rng.below(3);
    let talk = join(
        rng.sample(&TALK, turns)
            .into_iter()
            .map(|template| fact.tell(template, rng)),
        "\n",
    );
    let retold = retell(&[fact], 2, rng).join(" ");
    format!("{told}\n{talk}\n{retold}")
}

/// One fact and every part of it again, each on its own line like a label, a card or a stamp.
fn labels(rng: &mut Rng) -> String {
    let fact = Fact::random(rng);
    let told = sentence(&fact, &TELL, rng);
    let parts = [
        "\"{who}\" [is the name|says the card|is on the door].",
        "\"{items}\" [is the thing|says the box|is on the list].",
        "\"{colour}\" [is the colour|says the label].",
        "\"{place}\" [is the town|says the stamp|is on the map].",
        "\"{day}\" [is the day|says the calendar].",
        "{digits} [is the number|says the paper], for {count}.",
    ];
    let kept = 3 + rng.below(4);
    let said = join(
        rng.sample(&parts, kept).into_iter().map(|part| fact.tell(part, rng)),
        "\n",
    );
    format!("{told}\n{said}")
}

/// Words and numbers that are repeated: counting, spelling out digits, reading a list back.
fn drill(rng: &mut Rng) -> String {
    match rng.below(3) {
        0 => {
            let pairs = 4 + rng.below(8);
            let start = rng.below(NUMBERS.len() - pairs);
            join(
                (start..start + pairs).map(|n| format!("{} is {}.", capitalise(NUMBERS[n]), n + 1)),
                " ",
            )
        }
        1 => {
            let pairs = 6 + rng.below(8);
            join((0..pairs).map(|_| number_pair(rng)), ", ") + "."
        }
        _ => read_back(rng),
    }
}

fn number_pair(rng: &mut Rng) -> String {
    let n = rng.below(NUMBERS.len());
    if rng.one_in(2) {
        format!("{} ({})", NUMBERS[n], n + 1)
    } else {
        format!("{} ({})", n + 1, NUMBERS[n])
    }
}

/// A list of words in a row, then the same words in quotation marks, on lines, or in a row again.
fn read_back(rng: &mut Rng) -> String {
    let people: Vec<_> = PEOPLE.iter().map(|person| person.name).collect();
    let items: Vec<_> = ITEMS.iter().flat_map(|item| [item.one, item.many]).collect();
    let words: &[&str] = match rng.below(5) {
        0 => &people,
        1 => &items,
        2 => &COLOURS,
        3 => &PLACES,
        _ => &DAYS,
    };
    let count = 3 + rng.below(6);
    let chosen = rng.sample(words, count);
    let row = join(chosen.iter().map(|word| (**word).to_owned()), ", ");
    let quoted = join(chosen.iter().map(|word| format!("\"{word}\"")), ", ");
    let lines = join(chosen.iter().map(|word| (**word).to_owned()), "\n");
    match rng.below(4) {
        0 => format!("The words are {row}. Read them back: {quoted}."),
        1 => format!("The words are {quoted}. Again: {row}."),
        2 => format!("Write these down: {row}.\n{lines}"),
        _ => format!("{lines}\nIn one line: {row}. And with marks: {quoted}."),
    }
}

fn join(parts: impl Iterator<Item = String>, separator: &str) -> String {
    parts.collect::<Vec<_>>().join(separator)
}

/// The sentence of one of `templates` for `fact`, capitalised: a template may begin with a slot that is a common word.
fn sentence(fact: &Fact, templates: &[&str], rng: &mut Rng) -> String {
    capitalise(&fact.tell(rng.pick(templates), rng))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_document_depends_on_seed_and_number_alone() {
        let short = corpus(11, 5);
        assert_eq!(short, corpus(11, 50)[..5]);
        assert_ne!(short, corpus(12, 5));
    }

    #[test]
    fn documents_differ() {
        let documents = corpus(1, 2000);
        let distinct: BTreeSet<_> = documents.iter().collect();
        assert!(distinct.len() > 1980, "{} of 2000", distinct.len());
    }

    #[test]
    fn prose_is_prose_and_codes_are_no_records() {
        let keys = ["who", "item", "count", "colour", "place", "day"];
        let (mut prose, documents) = (0, corpus(2, 3000));
        for document in &documents {
            prose += usize::from(!document.contains(['{', '}', '<', '>', '|']));
            assert!(!document.contains(['[', ']', '\\']), "{document}");
            for key in keys {
                assert!(!document.contains(&format!("\"{key}\":")), "{document}");
            }
            assert!(
                !document.contains("<|im_start|>user") && !document.contains("<|im_start|>assistant"),
                "{document}"
            );
            let words = document.split_whitespace().count();
            assert!((1..=260).contains(&words), "{words} words: {document}");
        }
        assert!(prose * 10 > documents.len() * 6, "{prose} of {}", documents.len());
    }

    #[test]
    fn every_word_occurs() {
        let text = corpus(3, 3000).join("\n");
        let names = PEOPLE
            .iter()
            .map(|person| person.name)
            .chain(PLACES)
            .chain(DAYS)
            .chain(COLOURS)
            .chain(NUMBERS);
        for word in names.chain(ITEMS.iter().flat_map(|item| [item.one, item.many])) {
            assert!(text.contains(&format!(" {word}")), "{word} never follows a space");
        }
        for n in 1..=20 {
            assert!(text.contains(&format!("{} is {n}.", capitalise(NUMBERS[n - 1]))), "{n}");
        }
    }
}
