//! A fact (who did what with how many things, where and when) and the templates that state it.
//!
//! A template is a sentence with slots in braces, `{who}`, and with alternatives in brackets, `[then|later]`, which may
//! contain slots. `{Count}` is `{count}` capitalised. A template with an unknown slot is a bug that the tests find.

use super::rng::Rng;
use super::words::{COLOURS, COOKING, DAYS, ITEMS, Item, NUMBERS, PEOPLE, PLACES, Person, VERBS, Verb};

/// One fact of a story or of an order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fact {
    pub who: Person,
    /// Somebody else, who tells, asks or receives.
    pub other: Person,
    pub verb: Verb,
    /// 1 to 20.
    pub count: usize,
    pub item: Item,
    pub colour: &'static str,
    /// A different colour, as a distractor.
    pub wrong_colour: &'static str,
    pub place: &'static str,
    pub day: &'static str,
    /// A different day, as a distractor.
    pub wrong_day: &'static str,
    /// In whole coins, 2 to 60.
    pub price: usize,
}

impl Fact {
    /// A fact with every field drawn independently.
    pub fn random(rng: &mut Rng) -> Self {
        Self::random_many(rng, 1).remove(0)
    }

    /// Up to 6 facts that share no person, thing, place or day, so that questions about them are unambiguous.
    pub fn random_many(rng: &mut Rng, count: usize) -> Vec<Self> {
        let people = rng.sample(&PEOPLE, 2 * count);
        let items = rng.sample(&ITEMS, count);
        let places = rng.sample(&PLACES, count);
        let days = rng.sample(&DAYS, count + 1);
        let make = |index: usize| {
            let colours = rng.sample(&COLOURS, 2);
            let item = *items[index];
            let verb = if item.is_food && rng.one_in(3) {
                rng.pick(&COOKING)
            } else {
                rng.pick(&VERBS)
            };
            Self {
                who: *people[2 * index],
                other: *people[2 * index + 1],
                verb,
                count: 1 + rng.below(NUMBERS.len()),
                item,
                colour: colours[0],
                wrong_colour: colours[1],
                place: places[index],
                day: days[index],
                wrong_day: days[index + 1],
                price: 2 + rng.below(59),
            }
        };
        (0..count).map(make).collect()
    }

    /// The name of the thing in singular or plural, by the count.
    pub fn item_name(&self) -> &'static str {
        if self.count == 1 { self.item.one } else { self.item.many }
    }

    /// The sentence that `template` gives for this fact; alternatives are drawn from `rng`.
    pub fn tell(&self, template: &str, rng: &mut Rng) -> String {
        let chosen = choose(template, rng);
        let mut told = String::with_capacity(chosen.len() + 32);
        let mut rest = chosen.as_str();
        while let Some((before, tail)) = rest.split_once('{') {
            let (slot, after) = tail.split_once('}').unwrap_or((tail, ""));
            told.push_str(before);
            told.push_str(&self.slot(slot));
            rest = after;
        }
        told + rest
    }

    /// The word for a slot; an unknown slot is kept in angle brackets, for the tests to find.
    fn slot(&self, slot: &str) -> String {
        let word = match slot {
            "who" => self.who.name,
            "other" => self.other.name,
            "she" => self.who.she,
            "her" => self.who.her,
            "items" => self.item_name(),
            "many" => self.item.many,
            "count" => NUMBERS[self.count - 1],
            "colour" => self.colour,
            "wrong_colour" => self.wrong_colour,
            "place" => self.place,
            "day" => self.day,
            "wrong_day" => self.wrong_day,
            "do" => self.verb.base,
            "did" => self.verb.past,
            "doing" => self.verb.ing,
            "was" => {
                if self.count == 1 {
                    "was"
                } else {
                    "were"
                }
            }
            "is" => {
                if self.count == 1 {
                    "is"
                } else {
                    "are"
                }
            }
            "it" => {
                if self.count == 1 {
                    "it"
                } else {
                    "them"
                }
            }
            "they" => {
                if self.count == 1 {
                    "it"
                } else {
                    "they"
                }
            }
            "digits" => return self.count.to_string(),
            "price" => return self.price.to_string(),
            _ => return self.capitalised(slot),
        };
        word.to_owned()
    }

    fn capitalised(&self, slot: &str) -> String {
        let Some(first) = slot.chars().next().filter(char::is_ascii_uppercase) else {
            return format!("<{slot}>");
        };
        capitalise(&self.slot(&format!("{}{}", first.to_ascii_lowercase(), &slot[1..])))
    }
}

/// Replaces each `[a|b|c]` by a random alternative.
fn choose(template: &str, rng: &mut Rng) -> String {
    let mut chosen = String::with_capacity(template.len());
    let mut rest = template;
    while let Some((before, tail)) = rest.split_once('[') {
        let (alternatives, after) = tail.split_once(']').unwrap_or((tail, ""));
        let alternatives: Vec<_> = alternatives.split('|').collect();
        chosen.push_str(before);
        chosen.push_str(rng.pick(&alternatives));
        rest = after;
    }
    chosen + rest
}

/// `text` with its first letter in upper case.
pub fn capitalise(text: &str) -> String {
    let mut characters = text.chars();
    characters
        .next()
        .map_or_else(String::new, |first| first.to_uppercase().chain(characters).collect())
}

/// Whether `template` contains only known slots and balanced brackets.
#[cfg(test)]
pub fn is_well_formed(template: &str) -> bool {
    (0..32).all(|stream| {
        let mut rng = Rng::new(3, stream);
        let told = Fact::random(&mut rng).tell(template, &mut rng);
        !told.contains(['<', '>', '[', ']', '{', '}', '|'])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fact() -> Fact {
        Fact {
            who: PEOPLE[0],
            other: PEOPLE[1],
            verb: VERBS[0],
            count: 3,
            item: ITEMS[0],
            colour: "red",
            wrong_colour: "blue",
            place: "Oslo",
            day: "Monday",
            wrong_day: "Friday",
            price: 7,
        }
    }

    #[test]
    fn slots_are_filled() {
        let mut rng = Rng::new(0, 0);
        let told = fact().tell(
            "{Count} {colour} {items} ({digits}) for {who}: {she} {did} {it}.",
            &mut rng,
        );
        assert_eq!(told, "Three red apples (3) for Ada: she bought them.");
        let single = Fact { count: 1, ..fact() };
        assert_eq!(
            single.tell("{count} {items}, {it} {was}", &mut rng),
            "one apple, it was"
        );
    }

    #[test]
    fn alternatives_are_all_drawn() {
        let mut rng = Rng::new(0, 0);
        let told: std::collections::BTreeSet<_> = (0..64).map(|_| fact().tell("[a|{who}|c]!", &mut rng)).collect();
        assert_eq!(told.into_iter().collect::<Vec<_>>(), ["Ada!", "a!", "c!"]);
    }

    #[test]
    fn a_template_with_a_mistake_is_noticed() {
        assert!(is_well_formed("{who} [a|b {day}]"));
        assert!(!is_well_formed("{whom}"));
        assert!(!is_well_formed("{who} a|b]"));
    }

    #[test]
    fn the_facts_of_one_story_share_nothing() {
        let facts = Fact::random_many(&mut Rng::new(5, 0), 5);
        for (index, a) in facts.iter().enumerate() {
            for b in &facts[index + 1..] {
                assert!(a.who != b.who && a.who != b.other && a.item != b.item && a.place != b.place && a.day != b.day);
            }
        }
    }
}
