//! One message of a conversation, normalised for chat templates.
//!
//! Rows may have the forms of `OpenAI`, transformers, axolotl and Parquet exports. A [`ChatMessage`] normalises them:
//! lists of text parts are joined, arguments of tool calls are objects, the older `function_call` is a tool call, null
//! fields are absent. Content that a text model cannot read is refused. Nothing here renders a message.

use std::borrow::Cow;

use serde_json::{Map, Value as Json};

use super::TextError;
use super::python_json::{self, is_missing};

/// Names of the field with the model's reasoning.
pub(crate) const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];
/// Types of text parts.
const TEXT_PARTS: [&str; 3] = ["text", "input_text", "output_text"];
/// Words in the types of parts that are not text.
const MEDIA: [&str; 5] = ["image", "audio", "video", "file", "document"];

/// One message of a conversation: an object with at least a `role`, and other fields for the template.
#[derive(Clone, Debug, PartialEq)]
pub struct ChatMessage {
    said: MessageFields,
    is_learnt: bool,
}

/// The fields of a message. Plain messages, of which a large data file holds many, have a compact form.
#[derive(Clone, Debug, PartialEq)]
enum MessageFields {
    Plain { role: Cow<'static, str>, content: Box<str> },
    Fields(Box<Map<String, Json>>),
}

impl ChatMessage {
    /// A message with a role (`system`, `user`, `assistant`) and its text.
    #[must_use]
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self {
            said: MessageFields::Plain {
                role: known(role.into()),
                content: content.into().into_boxed_str(),
            },
            is_learnt: true,
        }
    }

    /// A message from JSON. Fields besides `role` and `content` (`tool_calls`, `name`, ...) are passed to the template.
    ///
    /// - `content` as a list of text parts becomes one text.
    /// - `arguments` of tool calls given as a JSON string are parsed; `function_call` becomes `tool_calls`, and the role
    ///   `function` becomes `tool`.
    /// - Null fields are removed, except a null `content` beside tool calls.
    /// - Reasoning is stored as `reasoning_content` and `thinking`, whichever name it had, as in transformers.
    /// - `"weight": 0` and `"train": false` make it context only ([`is_learnt`](Self::is_learnt)); the template does not
    ///   see them.
    ///
    /// ```
    /// use metal_candle::text::ChatMessage;
    ///
    /// let parts = serde_json::json!([{"type": "text", "text": "Name"}, {"type": "text", "text": " a fruit"}]);
    /// let message = ChatMessage::from_json(&serde_json::json!({"role": "user", "content": parts}))?;
    /// assert_eq!(message.content(), Some("Name a fruit"));
    /// # Ok::<(), metal_candle::text::TextError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`TextError::Message`] unless it is an object with a string `role`, and a text `content` (or null or absent
    /// beside tool calls); if parts are images, audio or files; if tool calls are malformed; if `weight` is neither 0
    /// nor 1.
    pub fn from_json(value: &Json) -> Result<Self, TextError> {
        Self::from_value(value.clone()).map_err(|reason| TextError::Message { reason })
    }

    /// [`from_json`](Self::from_json) by value.
    pub(crate) fn from_value(value: Json) -> Result<Self, String> {
        let Json::Object(mut fields) = value else {
            let found = kind(Some(&value));
            return Err(format!(
                "expected an object with \"role\" and \"content\", found {found}"
            ));
        };
        let role = match fields.get_mut("role") {
            Some(Json::String(role)) => {
                if role == "function" {
                    "tool".clone_into(role);
                }
                role.clone()
            }
            other => {
                return Err(format!(
                    "expected field \"role\" (string), found {}",
                    kind(other.as_deref())
                ));
            }
        };
        let is_learnt = take_learnt(&mut fields, &role)?;
        fields.retain(|name, value| name == "content" || !is_missing(value));
        tool_calls(&mut fields)?;
        content(&mut fields, &role)?;
        name_reasoning(&mut fields);
        Ok(Self::of(fields, is_learnt))
    }

    /// A message with these normalised fields.
    pub(super) fn of(fields: Map<String, Json>, is_learnt: bool) -> Self {
        Self {
            said: MessageFields::of(fields),
            is_learnt,
        }
    }

    /// The role.
    #[must_use]
    pub fn role(&self) -> &str {
        match &self.said {
            MessageFields::Plain { role, .. } => role,
            MessageFields::Fields(fields) => fields.get("role").and_then(Json::as_str).unwrap_or_default(),
        }
    }

    /// The content, if it is plain text.
    #[must_use]
    pub fn content(&self) -> Option<&str> {
        match &self.said {
            MessageFields::Plain { content, .. } => Some(content),
            MessageFields::Fields(fields) => fields.get("content").and_then(Json::as_str),
        }
    }

    /// Whether the message may be trained on; false if the row says `"weight": 0` or `"train": false`.
    #[must_use]
    pub fn is_learnt(&self) -> bool {
        self.is_learnt
    }

    /// The message without fields of these names, and with an empty text where it had none; `None` if it has no such
    /// field.
    pub(crate) fn without(&self, names: &[&str]) -> Option<Self> {
        let mut fields = self.fields().into_owned();
        fields.retain(|name, value| !names.contains(&name.as_str()) || is_missing(value));
        if fields.len() == self.fields().len() {
            return None;
        }
        if fields.get("content").is_none_or(is_missing) {
            fields.insert("content".to_owned(), Json::String(String::new()));
        }
        Some(Self::of(fields, self.is_learnt))
    }

    /// Whether the message has this field.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.fields().get(name).is_some_and(|value| !is_missing(value))
    }

    /// The fields for the template, in order.
    pub(super) fn fields(&self) -> Cow<'_, Map<String, Json>> {
        match &self.said {
            MessageFields::Plain { role, content } => {
                let fields = [("role", role.as_ref()), ("content", content.as_ref())];
                Cow::Owned(
                    fields
                        .into_iter()
                        .map(|(name, text)| (name.to_owned(), Json::from(text)))
                        .collect(),
                )
            }
            MessageFields::Fields(fields) => Cow::Borrowed(fields),
        }
    }
}

impl MessageFields {
    fn of(mut fields: Map<String, Json>) -> Self {
        let is_plain = fields.len() == 2 && fields.keys().eq(["role", "content"]);
        match (
            fields.get_mut("role").map(Json::take),
            fields.get_mut("content").map(Json::take),
        ) {
            (Some(Json::String(role)), Some(Json::String(content))) if is_plain => Self::Plain {
                role: known(role),
                content: content.into_boxed_str(),
            },
            (role, content) => {
                for (name, value) in [("role", role), ("content", content)] {
                    if let (Some(slot), Some(value)) = (fields.get_mut(name), value) {
                        *slot = value;
                    }
                }
                Self::Fields(Box::new(fields))
            }
        }
    }
}

/// A role, without allocation for the usual ones.
fn known(role: String) -> Cow<'static, str> {
    const ROLES: [&str; 4] = ["system", "user", "assistant", "tool"];
    match ROLES.into_iter().find(|known| *known == role) {
        Some(known) => Cow::Borrowed(known),
        None => Cow::Owned(role),
    }
}

/// The kind of a JSON value, for error messages.
pub(crate) fn kind(value: Option<&Json>) -> &'static str {
    match value {
        None => "nothing",
        Some(Json::Null) => "null",
        Some(Json::Bool(_)) => "boolean",
        Some(Json::Number(_)) => "number",
        Some(Json::String(_)) => "string",
        Some(Json::Array(_)) => "list",
        Some(number) if python_json::number(number).is_some() => "number",
        Some(Json::Object(_)) => "object",
    }
}

/// Removes `weight` (`OpenAI`) and `train` or `training` (axolotl) from the fields.
fn take_learnt(fields: &mut Map<String, Json>, role: &str) -> Result<bool, String> {
    let mut is_learnt = true;
    if let Some(weight) = fields.shift_remove("weight").filter(|weight| !is_missing(weight)) {
        match weight.as_f64() {
            Some(0.0) => is_learnt = false,
            Some(1.0) => {}
            _ => {
                return Err(format!(
                    "field \"weight\": expected 0 (context only) or 1 (trained on), found {weight}"
                ));
            }
        }
    }
    for name in ["train", "training"] {
        match fields.shift_remove(name).filter(|flag| !is_missing(flag)) {
            None => {}
            Some(Json::Bool(true)) if role != "assistant" => {
                return Err(format!(
                    "field \"{name}\" is true in a message with the role \"{role}\"; only what the assistant says is \
                     learnt (or everything: `train_on_inputs`, `--train-on-inputs`)"
                ));
            }
            Some(Json::Bool(flag)) => is_learnt &= flag,
            Some(other) => return Err(format!("field \"{name}\": expected true or false, found {other}")),
        }
    }
    for name in ["train_detail", "training_detail"] {
        if fields.get(name).is_some_and(|value| !is_missing(value)) {
            return Err(format!(
                "field \"{name}\": training on part of a message is not supported; use \"train\" for the whole message"
            ));
        }
    }
    Ok(is_learnt)
}

/// Normalises `tool_calls` and the older `function_call`.
fn tool_calls(fields: &mut Map<String, Json>) -> Result<(), String> {
    if let Some(call) = fields.shift_remove("function_call") {
        if fields.contains_key("tool_calls") {
            return Err(
                "has both \"tool_calls\" and \"function_call\"; leave out the older \"function_call\"".to_owned(),
            );
        }
        let call = Json::from_iter([("type", Json::from("function")), ("function", call)]);
        fields.insert("tool_calls".to_owned(), Json::Array(vec![call]));
    }
    let Some(calls) = fields.get_mut("tool_calls") else {
        return Ok(());
    };
    unquote(calls).map_err(|reason| format!("field \"tool_calls\": {reason}"))?;
    let Json::Array(list) = calls else {
        return Err(format!(
            "expected field \"tool_calls\" (list), found {}",
            kind(Some(calls))
        ));
    };
    for (index, call) in list.iter_mut().enumerate() {
        tool_call(call).map_err(|reason| format!("field \"tool_calls\", call {}: {reason}", index + 1))?;
    }
    if list.is_empty() {
        fields.shift_remove("tool_calls");
    }
    Ok(())
}

/// `{"type": "function", "function": {"name": ..., "arguments": {...}}}`, or the inner object alone.
fn tool_call(call: &mut Json) -> Result<(), String> {
    let Json::Object(fields) = call else {
        return Err(format!("expected an object, found {}", kind(Some(call))));
    };
    fields.retain(|_, value| !is_missing(value));
    let function = match fields.get_mut("function") {
        Some(Json::Object(function)) => function,
        Some(other) => {
            return Err(format!(
                "expected field \"function\" (object), found {}",
                kind(Some(other))
            ));
        }
        None => fields,
    };
    if !matches!(function.get("name"), Some(Json::String(_))) {
        return Err(format!(
            "expected field \"name\" (string), found {}",
            kind(function.get("name"))
        ));
    }
    let Some(arguments) = function.get_mut("arguments") else {
        return Ok(());
    };
    if arguments.is_string() {
        unquote(arguments).map_err(|reason| format!("field \"arguments\": {reason}"))?;
        if !arguments.is_object() {
            let found = kind(Some(arguments));
            return Err(format!(
                "field \"arguments\": expected a JSON object in the string, found {found}"
            ));
        }
    }
    Ok(())
}

/// Parses the JSON in a string.
pub(crate) fn unquote(value: &mut Json) -> Result<(), String> {
    if let Json::String(text) = value {
        let read = python_json::parse(text.as_bytes());
        *value = read.map_err(|fault| {
            let column = String::from_utf8_lossy(&text.as_bytes()[..fault.at]).chars().count() + 1;
            format!("the string is not JSON: {}, at its character {column}", fault.reason)
        })?;
    }
    Ok(())
}

/// Checks `content`, and joins its parts.
fn content(fields: &mut Map<String, Json>, role: &str) -> Result<(), String> {
    let has_calls = fields.contains_key("tool_calls");
    match fields.get_mut("content") {
        Some(Json::String(_)) => Ok(()),
        None if has_calls => Ok(()),
        Some(value) if is_missing(value) && has_calls => {
            *value = Json::Null;
            Ok(())
        }
        Some(value) if is_missing(value) => Err(format!(
            "field \"content\" is null, and the message ({role}) has no \"tool_calls\"; write its text, or leave the \
             message out"
        )),
        Some(Json::Array(parts)) => {
            if parts.is_empty() && !has_calls {
                return Err("field \"content\" is an empty list".to_owned());
            }
            let text = join(parts)?;
            fields.insert("content".to_owned(), Json::String(text));
            Ok(())
        }
        Some(value @ Json::Object(_)) if python_json::number(value).is_none() => {
            Err("expected field \"content\" (string), found object; write the object as JSON in a string".to_owned())
        }
        other => Err(format!(
            "expected field \"content\" (string), found {}",
            kind(other.as_deref())
        )),
    }
}

/// The text of a list of parts.
fn join(parts: &[Json]) -> Result<String, String> {
    let mut text = String::new();
    for (index, part) in parts.iter().enumerate() {
        text.push_str(part_text(part).map_err(|reason| format!("field \"content\", part {}: {reason}", index + 1))?);
    }
    Ok(text)
}

fn part_text(part: &Json) -> Result<&str, String> {
    let fields = match part {
        Json::String(text) => return Ok(text),
        Json::Object(fields) => fields,
        other => {
            return Err(format!(
                "expected an object with \"type\" and \"text\", found {}",
                kind(Some(other))
            ));
        }
    };
    match fields.get("type") {
        None => {}
        Some(Json::String(name)) if TEXT_PARTS.contains(&name.as_str()) => {}
        Some(Json::String(name)) if MEDIA.iter().any(|media| name.contains(media)) => {
            return Err(format!(
                "has the type \"{name}\", but this is a text model, not one that reads images, sound or files"
            ));
        }
        Some(Json::String(name)) => return Err(format!("has the type \"{name}\"; only \"text\" is supported")),
        other => return Err(format!("expected field \"type\" (string), found {}", kind(other))),
    }
    match fields.get("text") {
        Some(Json::String(text)) => Ok(text),
        other => Err(format!("expected field \"text\" (string), found {}", kind(other))),
    }
}

/// Stores the reasoning under the names that templates read, like transformers: `thinking`, which comes first, and
/// `reasoning_content`.
fn name_reasoning(fields: &mut Map<String, Json>) {
    let Some(reasoning) = REASONING.iter().find_map(|name| fields.get(*name)).cloned() else {
        return;
    };
    let thinking = fields.shift_remove("thinking").unwrap_or_else(|| reasoning.clone());
    fields.shift_insert(0, "thinking".to_owned(), thinking);
    fields.insert("reasoning_content".to_owned(), reasoning);
}

#[cfg(test)]
#[path = "message_tests.rs"]
mod tests;
