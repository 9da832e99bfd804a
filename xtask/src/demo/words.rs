//! The vocabulary of the demonstration: ordinary first names, things, colours, towns, days, numbers and verbs.
//!
//! Lists only. The order matters to nothing but the seed's outcome.

/// A person's first name and the pronouns the stories use for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Person {
    pub name: &'static str,
    pub she: &'static str,
    pub her: &'static str,
}

const fn she(name: &'static str) -> Person {
    Person {
        name,
        she: "she",
        her: "her",
    }
}

const fn he(name: &'static str) -> Person {
    Person {
        name,
        she: "he",
        her: "his",
    }
}

pub const PEOPLE: [Person; 48] = [
    she("Ada"),
    she("Alma"),
    she("Ana"),
    she("Anna"),
    she("Clara"),
    she("Dora"),
    she("Ella"),
    she("Emma"),
    she("Eva"),
    she("Greta"),
    she("Ida"),
    she("Iris"),
    she("Julia"),
    she("Lena"),
    she("Lily"),
    she("Lucy"),
    she("Maria"),
    she("Mia"),
    she("Nina"),
    she("Nora"),
    she("Olga"),
    she("Rosa"),
    she("Ruth"),
    she("Sara"),
    he("Adam"),
    he("Amir"),
    he("Ben"),
    he("Carl"),
    he("David"),
    he("Emil"),
    he("Erik"),
    he("Felix"),
    he("Hugo"),
    he("Ivan"),
    he("Jack"),
    he("Jonas"),
    he("Karim"),
    he("Leo"),
    he("Liam"),
    he("Marco"),
    he("Max"),
    he("Noah"),
    he("Omar"),
    he("Oscar"),
    he("Paul"),
    he("Peter"),
    he("Samir"),
    he("Tom"),
];

/// A thing that can be counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Item {
    pub one: &'static str,
    pub many: &'static str,
    pub is_food: bool,
}

const fn food(one: &'static str, many: &'static str) -> Item {
    Item {
        one,
        many,
        is_food: true,
    }
}

const fn thing(one: &'static str, many: &'static str) -> Item {
    Item {
        one,
        many,
        is_food: false,
    }
}

pub const ITEMS: [Item; 48] = [
    food("apple", "apples"),
    food("bean", "beans"),
    food("cake", "cakes"),
    food("carrot", "carrots"),
    food("cherry", "cherries"),
    food("grape", "grapes"),
    food("melon", "melons"),
    food("onion", "onions"),
    food("pear", "pears"),
    food("pepper", "peppers"),
    food("plum", "plums"),
    food("potato", "potatoes"),
    thing("bag", "bags"),
    thing("ball", "balls"),
    thing("basket", "baskets"),
    thing("bell", "bells"),
    thing("bike", "bikes"),
    thing("blanket", "blankets"),
    thing("book", "books"),
    thing("bottle", "bottles"),
    thing("bowl", "bowls"),
    thing("box", "boxes"),
    thing("brush", "brushes"),
    thing("bucket", "buckets"),
    thing("button", "buttons"),
    thing("candle", "candles"),
    thing("chair", "chairs"),
    thing("clock", "clocks"),
    thing("coat", "coats"),
    thing("cup", "cups"),
    thing("door", "doors"),
    thing("flag", "flags"),
    thing("glove", "gloves"),
    thing("hat", "hats"),
    thing("kettle", "kettles"),
    thing("kite", "kites"),
    thing("lamp", "lamps"),
    thing("mirror", "mirrors"),
    thing("pen", "pens"),
    thing("pillow", "pillows"),
    thing("plate", "plates"),
    thing("ribbon", "ribbons"),
    thing("scarf", "scarves"),
    thing("shirt", "shirts"),
    thing("spoon", "spoons"),
    thing("table", "tables"),
    thing("tent", "tents"),
    thing("towel", "towels"),
];

pub const COLOURS: [&str; 16] = [
    "red", "blue", "green", "yellow", "black", "white", "brown", "grey", "pink", "purple", "orange", "silver",
    "golden", "violet", "beige", "striped",
];

pub const PLACES: [&str; 32] = [
    "Oslo", "Rome", "Paris", "Lima", "Cairo", "Delhi", "Tokyo", "Berlin", "Madrid", "Lisbon", "Vienna", "Prague",
    "Dublin", "London", "Athens", "Warsaw", "Zurich", "Turin", "Porto", "Lyon", "Bern", "Bergen", "Quito", "Havana",
    "Boston", "Denver", "Sydney", "Perth", "Seoul", "Hanoi", "Nairobi", "Tunis",
];

pub const DAYS: [&str; 7] = [
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
    "Sunday",
];

/// The number words; `NUMBERS[n - 1]` is the word for `n`.
pub const NUMBERS: [&str; 20] = [
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
    "twenty",
];

/// A verb for what people do with things.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verb {
    pub base: &'static str,
    pub past: &'static str,
    pub ing: &'static str,
}

const fn verb(base: &'static str, past: &'static str, ing: &'static str) -> Verb {
    Verb { base, past, ing }
}

/// What can be done with anything.
pub const VERBS: [Verb; 14] = [
    verb("buy", "bought", "buying"),
    verb("sell", "sold", "selling"),
    verb("send", "sent", "sending"),
    verb("order", "ordered", "ordering"),
    verb("bring", "brought", "bringing"),
    verb("find", "found", "finding"),
    verb("move", "moved", "moving"),
    verb("pack", "packed", "packing"),
    verb("carry", "carried", "carrying"),
    verb("collect", "collected", "collecting"),
    verb("count", "counted", "counting"),
    verb("wash", "washed", "washing"),
    verb("store", "stored", "storing"),
    verb("share", "shared", "sharing"),
];

/// What can be done with food only.
pub const COOKING: [Verb; 4] = [
    verb("cook", "cooked", "cooking"),
    verb("cut", "cut", "cutting"),
    verb("eat", "ate", "eating"),
    verb("prepare", "prepared", "preparing"),
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn no_word_stands_for_two_things() {
        let mut seen = BTreeSet::new();
        let words = PEOPLE
            .iter()
            .map(|person| person.name)
            .chain(PLACES)
            .chain(DAYS)
            .chain(COLOURS)
            .chain(NUMBERS);
        let items = ITEMS.iter().flat_map(|item| [item.one, item.many]);
        for word in words.chain(items) {
            assert!(seen.insert(word.to_lowercase()), "{word} is listed twice");
        }
    }

    #[test]
    fn verbs_have_three_forms() {
        assert!(
            VERBS
                .iter()
                .chain(&COOKING)
                .all(|verb| verb.ing.ends_with("ing") && !verb.past.is_empty())
        );
    }
}
