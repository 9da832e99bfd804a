//! The skill that fine-tuning teaches: from an order in plain words to a one-line JSON record.
//!
//! Values are copied from the order, number words become digits, and statements about other people, days and colours
//! are ignored. No pair of a name and a thing in the held-out examples occurs in the training examples.

use serde_json::{Value, json};

use super::fact::{Fact, capitalise};
use super::rng::{Rng, hash};
use super::words::{ITEMS, PEOPLE};

/// Training examples made by [`instructions`].
pub const TRAINING: usize = 3000;
/// Held-out examples made by [`instructions`].
pub const HELD_OUT: usize = 160;
/// One pair of a name and a thing in this many is kept for the held-out examples.
const HELD_OUT_SHARE: u64 = 8;

/// How an order is written. Each names the whole fact; some also name a person, a day or a colour that does not count.
pub const ORDERS: [&str; 32] = [
    "{who} [bought|ordered|wants|needs|would like] {count} {colour} {items} in {place} on {day}.",
    "On {day} {who} [bought|sold|needs|ordered] {count} {colour} {items} in {place}.",
    "Please [send|bring|take] {count} {colour} {items} to {who} in {place} [by|on] {day}.",
    "Please [send|bring|take] {who} in {place} {count} {colour} {items} on {day}.",
    "{who} [lives|works|is] in {place}. On {day} {she} needs {count} {colour} {items}.",
    "[We need|I need] {count} {items} for {who}. The colour is {colour}. [Bring|Send] {it} to {place} on {day}.",
    "{Count} {colour} {items} for {who}, please. [Deliver|Send] {it} to {place} on {day}.",
    "Hello, this is {who} from {place}. [Could I have|I would like|Please keep] {count} {colour} {items} on {day}.",
    "[My name is|I am] {who}. On {day} I will be in {place} and need {count} {colour} {items}.",
    "[An order|A letter] from {place}: {who} asks for {count} {colour} {items} on {day}.",
    "For {day}: {count} {colour} {items}. {who} will [collect|fetch] {it} in {place}.",
    "{who} will be in {place} on {day} to [collect|fetch|buy] {count} {colour} {items}.",
    "In {place} {who} is waiting for {count} {colour} {items}. They should come on {day}.",
    "There {is} {count} {colour} {items} for {who} in the shop in {place}. Please pack {it} on {day}.",
    "Do not forget: {who} gets {count} {items} on {day}, {colour} ones, in {place}.",
    "Can you [pack|prepare] {count} {colour} {items}? {who} in {place} wants {it} on {day}.",
    "{day} is the day: {who} comes to {place} and takes {count} {colour} {items}.",
    "The shop in {place} must have {count} {colour} {items} on {day}. {who} ordered {it}.",
    "{who} ([{place}, {day}|{day}, {place}]): {count} {colour} {items}.",
    "{place}, {day}. {who} {did} {count} {colour} {items}.",
    "{who} {did} {count} {items} in {place} on {day}. [All of them were|Everything was] {colour}.",
    "\"I need {count} {colour} {items} in {place} on {day},\" said {who}.",
    "\"{Count} {colour} {items},\" said {who}. \"I will be in {place} on {day}.\"",
    "{other} [says|told us|wrote] that {who} wants {count} {colour} {items} in {place} on {day}.",
    "{other} [called|wrote]: on {day} {who} needs {count} {colour} {items} in {place}.",
    "{who} wants {count} {colour} {items}, not {wrong_colour} ones, in {place} on {day}.",
    "{who} wants {count} {items} in {place} on {day}. [No {wrong_colour} ones, please|Not {wrong_colour}]: {colour}.",
    "{who} [comes|is coming] to {place} on {day}, not on {wrong_day}, for {count} {colour} {items}.",
    "The {count} {colour} {items} for {who} should be in {place} on {day} and not on {wrong_day}.",
    "{who} first asked for {wrong_colour} {items} but now wants {count} {colour} ones in {place} on {day}.",
    "{other} cannot come. Give the {count} {colour} {items} to {who} in {place} on {day}.",
    "{other} had {wrong_colour} {items}. {who} wants {count} {colour} ones, in {place}, on {day}.",
];

/// One order and the record it should become.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    pub order: String,
    /// One line of JSON without spaces, keys in a fixed order.
    pub record: String,
}

impl Example {
    /// The example as a line of a `messages` data set.
    pub fn to_json(&self) -> Value {
        json!({ "messages": [
            { "role": "user", "content": self.order },
            { "role": "assistant", "content": self.record },
        ] })
    }
}

/// The training and the held-out examples of `seed`.
pub fn instructions(seed: u64) -> (Vec<Example>, Vec<Example>) {
    (examples(seed, 1, TRAINING, false), examples(seed, 2, HELD_OUT, true))
}

fn examples(seed: u64, set: u64, count: usize, held_out: bool) -> Vec<Example> {
    let mut rng = Rng::new(hash(seed) ^ set, 0);
    let mut examples = Vec::with_capacity(count);
    while examples.len() < count {
        let fact = Fact::random(&mut rng);
        if is_held_out(&fact) == held_out {
            examples.push(example(&fact, &mut rng));
        }
    }
    examples
}

/// Decided by the pair of name and thing alone, so that no seed mixes the two sets.
fn is_held_out(fact: &Fact) -> bool {
    let person = PEOPLE.iter().position(|person| *person == fact.who).unwrap_or_default();
    let item = ITEMS.iter().position(|item| *item == fact.item).unwrap_or_default();
    hash((person * ITEMS.len() + item) as u64).is_multiple_of(HELD_OUT_SHARE)
}

fn example(fact: &Fact, rng: &mut Rng) -> Example {
    let order = rng.pick(&ORDERS);
    // One order in six gives the number in digits already.
    let order = if rng.one_in(6) {
        order.replace("{count}", "{digits}").replace("{Count}", "{digits}")
    } else {
        (*order).into()
    };
    Example {
        order: capitalise(&fact.tell(&order, rng)),
        record: record(fact),
    }
}

fn record(fact: &Fact) -> String {
    json!({
        "who": fact.who.name,
        "item": fact.item_name(),
        "count": fact.count,
        "colour": fact.colour,
        "place": fact.place,
        "day": fact.day,
    })
    .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::fact::is_well_formed;
    use crate::demo::words::NUMBERS;
    use std::collections::BTreeSet;

    #[test]
    fn every_order_is_well_formed_and_names_the_whole_fact() {
        for order in ORDERS {
            assert!(is_well_formed(order), "{order}");
            for slot in ["{who}", "{count}", "{colour}", "{items}", "{place}", "{day}"] {
                assert!(order.to_lowercase().contains(slot), "{order} lacks {slot}");
            }
        }
    }

    #[test]
    fn a_record_is_one_compact_line() {
        let (training, _) = instructions(1);
        let record = &training[0].record;
        assert!(
            record.starts_with("{\"who\":\"") && !record.contains([' ', '\n']),
            "{record}"
        );
    }

    #[test]
    fn every_value_of_a_record_stands_in_its_order() {
        let (training, held_out) = instructions(2);
        for Example { order, record } in training.iter().chain(&held_out) {
            let record: Value = serde_json::from_str(record).unwrap();
            for key in ["who", "item", "colour", "place", "day"] {
                let value = record[key].as_str().unwrap();
                let found = order.contains(value) || order.contains(&capitalise(value));
                assert!(found, "{value} is not in: {order}");
            }
            let count = record["count"].as_u64().unwrap() as usize;
            let word = NUMBERS[count - 1];
            let found = order.contains(word) || order.contains(&capitalise(word)) || order.contains(&count.to_string());
            assert!(found, "{count} is not in: {order}");
        }
    }

    #[test]
    fn no_held_out_pair_is_trained_on() {
        let (training, held_out) = instructions(3);
        assert_eq!((training.len(), held_out.len()), (TRAINING, HELD_OUT));
        let pair = |example: &Example| {
            let record: Value = serde_json::from_str(&example.record).unwrap();
            let item = record["item"].as_str().unwrap();
            let item = ITEMS.iter().position(|known| known.one == item || known.many == item);
            (record["who"].to_string(), item)
        };
        let trained: BTreeSet<_> = training.iter().map(pair).collect();
        assert!(held_out.iter().all(|example| !trained.contains(&pair(example))));
    }
}
