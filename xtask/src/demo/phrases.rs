//! The sentences of the pre-training corpus, as templates (see `fact`): how a fact is told, and how it is told again.
//!
//! Plain English prose only: no braces reach the text, and nothing here looks like a chat or a record format.

/// Tellings that give every part of the fact.
pub const TELL: [&str; 30] = [
    "{who} {did} {count} {colour} {items} in {place} on {day}.",
    "On {day} {who} {did} {count} {colour} {items} in {place}.",
    "In {place}, {who} {did} {count} {colour} {items} on {day}.",
    "[Last|It was on a|One] {day} {who} [went|drove|travelled] to {place} and {did} {count} {colour} {items}.",
    "{who} [lives|works|stays] in {place}. On {day} {she} {did} {count} {colour} {items}.",
    "{Count} {colour} {items} {was} [waiting|ready|there] for {who} in {place} on {day}, and {she} {did} {it}.",
    "{who} wanted {count} {colour} {items}. On {day} {she} {did} {it} in {place}.",
    "{who} [asked|wrote to|called] {other} about {count} {colour} {items}. In {place}, on {day}, {she} {did} {it}.",
    "There {was} {count} {colour} {items} in {place}. {who} {did} {it} on {day}.",
    "The {colour} {items} came from {place}. {who} {did} {count} of {it} on {day}.",
    "[Early|Late] on {day} {who} was [still|already] in {place}, where {she} {did} {count} {colour} {items}.",
    "{who} {did} {count} {items} in {place} on {day}. [All of them were|Everything was|The colour was] {colour}.",
    "{day} was a [good|long|cold|warm|busy] day in {place}. {who} {did} {count} {colour} {items}.",
    "{who} {did} {count} ({digits}) {colour} {items} in {place} on {day}.",
    "On {day}, in {place}, {count} ({digits}) {colour} {items} {was} {did} by {who}.",
    "{other} [saw|met|helped] {who} in {place} on {day}. {who} {did} {count} {colour} {items}.",
    "{other} [says|thinks|knows] that {who} {did} {count} {colour} {items} in {place} on {day}.",
    "{who} took the [train|bus|road] to {place} on {day}. There {she} {did} {count} {colour} {items}.",
    "{who} [spent|paid] {price} coins in {place} on {day}. {She} {did} {count} {colour} {items}.",
    "{who} was [tired|happy|hungry|in a hurry] on {day}. In {place} {she} {did} {count} {colour} {items}.",
    "{colour} was the colour {who} liked, so {she} {did} {count} {colour} {items} in {place} on {day}.",
    "It [rained|snowed] in {place} on {day}, but {who} {did} {count} {colour} {items}.",
    "{who} does not like {wrong_colour}. {She} {did} {count} {colour} {items} in {place} on {day}.",
    "{who} wanted to come on {wrong_day} but came to {place} on {day}. {She} {did} {count} {colour} {items}.",
    "{who} first asked for {wrong_colour} {items}, then {did} {count} {colour} ones in {place} on {day}.",
    "\"I {did} {count} {colour} {items},\" said {who}. It was {day}, and {she} was in {place}.",
    "\"On {day} I will be in {place},\" said {who}. There {she} {did} {count} {colour} {items}.",
    "[A letter|A card|A note] from {who} [came|arrived] on {day}: {she} {did} {count} {colour} {items} in {place}.",
    "{who}, who has a [shop|house|friend|garden] in {place}, {did} {count} {colour} {items} on {day}.",
    "The [market|station|harbour|school] in {place} was full on {day}. {who} {did} {digits} {colour} {items}.",
];

/// What stands between two tellings of the same fact.
pub const BETWEEN: [&str; 6] = [
    " ",
    " ",
    "\n",
    "\n",
    " [Again|Once more|In other words]: ",
    "\n[In the newspaper|In the letter|On the board]: ",
];

/// Who it was.
pub const WHO: [&str; 12] = [
    "Who {did} the {items}? {who} did.",
    "Who {did} the {items} in {place}? It was {who}.",
    "It was {who} who {did} the {items}.",
    "\"{who},\" said {other}, when asked who {did} the {items}.",
    "The [card|note|sign] with the {items} says \"{who}\".",
    "Who was in {place} on {day}? {who} was.",
    "{who} was the one in {place}.",
    "[The name on the list|The name on the box] is {who}.",
    "The name \"{who}\" was [written|printed] on the {items}.",
    "The {items} {was} {did} by {who}.",
    "{who} [told|wrote to] {other} about the {items}.",
    "Ask {who} about the {items}.",
];

/// How many there were; words and digits stand for each other.
pub const COUNT: [&str; 16] = [
    "How many {items} {was} there? {Count}.",
    "How many {items} did {who} {do}? {Count} ({digits}).",
    "How many {items} did {who} {do}? {digits}, that is {count}.",
    "In digits that is {digits}.",
    "{Count} is {digits}.",
    "{digits} is {count}.",
    "\"{digits}\" was written on the box: {count} {items}.",
    "The box says {digits}, because there {was} {count} {items}.",
    "The number of {items} is {digits}.",
    "{other} counted the {items} and wrote {digits}.",
    "{other} counted the {items}: {count}.",
    "\"{Count} {items},\" said {who}.",
    "There {was} {digits} {items} [in all|in the end|on the list].",
    "There {was} {count} {items} [in all|in the end|on the list].",
    "The list has {digits} for {count} {items}.",
    "On the paper is a {digits} for the {count} {items}.",
];

/// What was handled.
pub const ITEM: [&str; 10] = [
    "What did {who} {do}? {Items}.",
    "What did {who} {do} in {place}? {Count} {items}.",
    "It was the {items} that {who} {did}.",
    "\"{Items},\" said {who}, when asked what {she} {did}.",
    "The box of {who} says \"{items}\".",
    "The word \"{items}\" was on the box of {who}.",
    "{who} went home with the {items}.",
    "{who} is still [talking|thinking|writing] about the {items}.",
    "What came from {place}? The {items}.",
    "\"{items}\" is what {who} wrote on the list.",
];

/// What colour it had.
pub const COLOUR: [&str; 10] = [
    "What colour {was} the {items}? {Colour}.",
    "The {items} of {who} {was} {colour}.",
    "The {items} {was} {colour}, not {wrong_colour}.",
    "\"{Colour},\" said {who}, when asked for the colour.",
    "The label on the {items} says \"{colour}\".",
    "The word \"{colour}\" was on the label of the {items}.",
    "Everyone liked the {colour} {items}.",
    "{other} looked for the {colour} {items}.",
    "The {colour} ones {was} the {items} of {who}.",
    "{who} likes {colour}.",
];

/// Where it was.
pub const PLACE: [&str; 10] = [
    "Where did {who} {do} the {items}? In {place}.",
    "Where was {who}? In {place}.",
    "It was in {place} that {who} {did} the {items}.",
    "\"{place},\" said {who}, when asked where it was.",
    "The stamp on the {items} says \"{place}\".",
    "The word \"{place}\" is on the box with the {items}.",
    "{place} is where {who} {did} the {items}.",
    "{other} knows {place} too.",
    "The {items} {is} from {place}.",
    "{who} wrote \"{place}\" on the card.",
];

/// When it was.
pub const DAY: [&str; 10] = [
    "When did {who} {do} the {items}? On {day}.",
    "When was {who} in {place}? On {day}.",
    "It was {day} when {who} {did} the {items}.",
    "It was on {day}, not on {wrong_day}.",
    "\"{day},\" said {who}, when asked for the day.",
    "The card with the {items} says \"{day}\".",
    "The word \"{day}\" was next to the name of {who}.",
    "{day} was the day of the {items}.",
    "{who} will not forget that {day}.",
    "{who} wrote \"{day}\" on the card.",
];

/// What is said beside the facts.
pub const ASIDE: [&str; 14] = [
    "{other} was [glad|surprised|pleased] to hear it.",
    "[Then|After that|Later] everyone went home.",
    "The [weather|evening|morning] was [cold|warm|fine] in {place}.",
    "[Nobody|Everybody] had seen {items} like that before.",
    "\"[Thank you|That is good news|How nice],\" said {other}.",
    "{who} and {other} are old friends.",
    "{other} [made tea|closed the door|opened the window|read the newspaper].",
    "[Each|One] of them cost {price} coins.",
    "\"How much [was that|did you pay]?\" asked {other}. \"{Price} coins,\" said {who}.",
    "That is [all|how it was|what happened].",
    "{other} wants to {do} some {many} too.",
    "{who} enjoys {doing} {many}.",
    "The people in {place} [work hard|sleep late|like music].",
    "{who} put the {items} on the [shelf|table by the door|floor].",
];

/// Lines of a plain list, one fact a line.
pub const LINE: [&str; 8] = [
    "{who}: {count} {colour} {items}, {place}, {day}",
    "{day}: {who}, {count} {colour} {items}, {place}",
    "{place}: {count} ({digits}) {colour} {items} for {who}, {day}",
    "{items}: {count}, {colour}, {who} in {place}",
    "{colour} {items}: {who}, {place}, {day}, {count}",
    "{digits} {colour} {items}, {who}, {day}, {place}",
    "{who}, {place}: {digits} ({count}) {items}",
    "{count} {items}: {who} ({place}, {day})",
];

/// Talk between the two people of a fact, one line each; the names stand at the lines' beginnings.
pub const TALK: [&str; 8] = [
    "{other}: What did you {do}?\n{who}: {Count} {colour} {items}.",
    "{other}: Where [were you|was that]?\n{who}: In {place}, on {day}.",
    "{other}: How many {items} {was} there?\n{who}: {Count}, so I wrote {digits}.",
    "{other}: Which colour?\n{who}: {Colour}, not {wrong_colour}.",
    "{other}: Was it on {wrong_day}?\n{who}: No, on {day}.",
    "{other}: Who was in {place}?\n{who}: I was, with the {items}.",
    "{other}: Did you see the {items}?\n{who}: Yes, {count} of {it}, all {colour}.",
    "{who}: I {did} {count} {colour} {items} in {place}.\n{other}: When?\n{who}: On {day}.",
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::fact::is_well_formed;

    #[test]
    fn every_template_is_well_formed() {
        let groups: [&[&str]; 11] = [
            &TELL,
            &WHO,
            &COUNT,
            &ITEM,
            &COLOUR,
            &PLACE,
            &DAY,
            &ASIDE,
            &LINE,
            &TALK,
            &["{who}"],
        ];
        for template in groups.into_iter().flatten() {
            assert!(is_well_formed(template), "{template}");
        }
    }

    #[test]
    fn every_telling_names_the_whole_fact() {
        for template in TELL {
            for slot in ["{who}", "{colour}", "{items}", "{place}", "{day}"] {
                assert!(template.to_lowercase().contains(slot), "{template} lacks {slot}");
            }
            assert!(
                template.to_lowercase().contains("{count}") || template.contains("{digits}"),
                "{template}"
            );
        }
    }
}
