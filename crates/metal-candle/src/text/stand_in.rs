//! Stand-ins: numbered texts that replace the content of messages, to find where a chat template writes it.
//!
//! A stand-in is a run of digits, which case and white space filters do not change, and occurs in no text of its
//! conversation. Roles, types and ids are kept, because templates branch on them. Nothing here renders.

use std::ops::Range;
use std::sync::LazyLock;

use regex::Regex;
use serde_json::{Map, Value as Json};

use super::ChatMessage;

/// Structural fields, which are not content.
const STRUCTURE: [&str; 4] = ["role", "type", "id", "tool_call_id"];
/// Digits for the number of a message, and for that of a text in it.
const DIGITS: usize = 5;
const END: &str = "93";

/// Which strings of a message are replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Extent {
    /// The text between tags (`<think>`, `[INST]`), which are kept, with surrounding white space.
    BetweenTags,
    /// Every non-empty string.
    Strings,
    /// Names of functions as well.
    StringsAndNames,
}

/// Numbered texts that occur nowhere else.
#[derive(Clone, Debug)]
pub(crate) struct StandIns {
    salt: String,
}

/// An occurrence of a stand-in in a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// Number of its message.
    pub message: usize,
    /// Number within its message.
    pub piece: usize,
    /// Its byte range.
    pub bytes: Range<usize>,
}

impl StandIns {
    /// Stand-ins that none of the texts contains.
    pub fn absent_from(texts: &[&str]) -> Self {
        let salted = |number: usize| format!("71{number:06}");
        let absent = |salt: &String| !texts.iter().any(|text| text.contains(salt));
        let salt = (0..1_000_000).map(salted).find(absent).unwrap_or_else(|| salted(0));
        Self { salt }
    }

    /// The stand-in for a piece of a message.
    pub fn text(&self, message: usize, piece: usize) -> String {
        format!("{}{message:0DIGITS$}{piece:0DIGITS$}{END}", self.salt)
    }

    /// The message with stand-ins for its content; an empty message gets one as its content.
    pub fn replace(&self, message: &ChatMessage, number: usize, extent: Extent) -> ChatMessage {
        let mut piece = 0;
        let mut next = || {
            piece += 1;
            self.text(number, piece)
        };
        let mut fields = object(&message.fields(), extent, &mut next);
        if piece == 0 {
            fields.insert("content".to_owned(), Json::String(self.text(number, 0)));
        }
        ChatMessage::of(fields, message.is_learnt())
    }

    /// All stand-ins in a text, in order.
    pub fn find(&self, text: &str) -> Vec<Found> {
        let read = |at: usize| {
            let digits = text.get(at + self.salt.len()..at + self.salt.len() + 2 * DIGITS)?;
            let end = at + self.salt.len() + 2 * DIGITS + END.len();
            (text.get(..end)?.ends_with(END)).then_some(())?;
            Some(Found {
                message: digits[..DIGITS].parse().ok()?,
                piece: digits[DIGITS..].parse().ok()?,
                bytes: at..end,
            })
        };
        text.match_indices(&self.salt).filter_map(|(at, _)| read(at)).collect()
    }
}

/// The strings with content, in the order of the message.
pub(crate) fn strings(message: &ChatMessage) -> Vec<String> {
    let mut found = Vec::new();
    let mut collect = |value: &Json| {
        if let Json::String(text) = value {
            found.push(text.clone());
        }
    };
    for (key, field) in message.fields().iter() {
        visit(key, field, &mut collect);
    }
    found
}

fn visit(key: &str, value: &Json, take: &mut impl FnMut(&Json)) {
    match value {
        _ if STRUCTURE.contains(&key) => {}
        Json::Array(items) => items.iter().for_each(|item| visit("", item, take)),
        Json::Object(fields) => fields.iter().for_each(|(key, field)| visit(key, field, take)),
        other => take(other),
    }
}

fn object(fields: &Map<String, Json>, extent: Extent, next: &mut impl FnMut() -> String) -> Map<String, Json> {
    let replaced = |(key, value): (&String, &Json)| (key.clone(), replace(key, value, extent, next));
    fields.iter().map(replaced).collect()
}

fn replace(key: &str, value: &Json, extent: Extent, next: &mut impl FnMut() -> String) -> Json {
    if STRUCTURE.contains(&key) || (key == "name" && extent != Extent::StringsAndNames) {
        return value.clone();
    }
    match value {
        Json::String(text) if text.trim().is_empty() => value.clone(),
        Json::String(text) if extent == Extent::BetweenTags => Json::String(between_tags(text, next)),
        Json::String(_) => Json::String(next()),
        Json::Array(items) => items.iter().map(|item| replace("", item, extent, next)).collect(),
        Json::Object(fields) => Json::Object(object(fields, extent, next)),
        other => other.clone(),
    }
}

fn between_tags(text: &str, next: &mut impl FnMut() -> String) -> String {
    static TAG: LazyLock<Option<Regex>> =
        LazyLock::new(|| Regex::new(r"</?[A-Za-z_][^<>\s]{0,38}>|<\|[^<>|]{1,40}\|>|\[/?[A-Z_]{2,30}\]").ok());
    let (mut out, mut at) = (String::new(), 0);
    let mut piece = |text: &str, out: &mut String| {
        let said = text.trim();
        if said.is_empty() {
            return out.push_str(text);
        }
        let before = text.len() - text.trim_start().len();
        out.push_str(&text[..before]);
        out.push_str(&next());
        out.push_str(&text[before + said.len()..]);
    };
    for tag in TAG.iter().flat_map(|tag| tag.find_iter(text)) {
        piece(&text[at..tag.start()], &mut out);
        out.push_str(tag.as_str());
        at = tag.end();
    }
    piece(&text[at..], &mut out);
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn replaced(message: &Json, extent: Extent) -> Json {
        let stand_ins = StandIns { salt: "S".to_owned() };
        let message = ChatMessage::from_json(message).unwrap();
        Json::Object(stand_ins.replace(&message, 3, extent).fields().into_owned())
    }

    #[test]
    fn only_content_is_replaced() {
        let message = json!({"role": "assistant", "content": " <think>\na\n</think>\n\nb ", "tool_calls": [
            {"type": "function", "id": "x", "function": {"name": "f", "arguments": {"c": "Oslo", "n": 1}}}]});
        let call = |name: &str, city: &str| json!([{"type": "function", "id": "x", "function": {"name": name, "arguments": {"c": city, "n": 1}}}]);
        let expected = json!({"role": "assistant", "content": " <think>\nS000030000193\n</think>\n\nS000030000293 ",
                              "tool_calls": call("f", "S000030000393")});
        assert_eq!(replaced(&message, Extent::BetweenTags), expected);
        let expected =
            json!({"role": "assistant", "content": "S000030000193", "tool_calls": call("f", "S000030000293")});
        assert_eq!(replaced(&message, Extent::Strings), expected);
        let expected = json!({"role": "assistant", "content": "S000030000193",
                              "tool_calls": call("S000030000293", "S000030000393")});
        assert_eq!(replaced(&message, Extent::StringsAndNames), expected);
        let empty = json!({"role": "assistant", "content": ""});
        assert_eq!(replaced(&empty, Extent::Strings)["content"], "S000030000093");
    }

    #[test]
    fn stand_ins_are_found_at_their_positions() {
        let stand_ins = StandIns::absent_from(&["71000000", "71000001 and more"]);
        let (one, two) = (stand_ins.text(1, 2), stand_ins.text(40, 0));
        let found = stand_ins.find(&format!("71{one}é{two}71000002"));
        let place = |found: &Found| (found.message, found.piece, found.bytes.clone());
        assert_eq!(
            found.iter().map(place).collect::<Vec<_>>(),
            [(1, 2, 2..22), (40, 0, 24..44)]
        );
    }
}
