//! One message of a conversation, and the checks that make it one.
//!
//! A [`ChatMessage`] is what a chat template reads: an object with a role and its text, and whatever else a row says.
//! Nothing here renders a message.

use serde_json::{Map, Value as Json};

use super::TextError;

/// One message of a conversation: an object with at least a `role`, and whatever else the template reads.
#[derive(Clone, Debug, PartialEq)]
pub struct ChatMessage {
    pub(super) fields: Map<String, Json>,
}

impl ChatMessage {
    /// A message with a role (`system`, `user`, `assistant`) and its text.
    #[must_use]
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        let fields = [
            ("role".to_owned(), Json::String(role.into())),
            ("content".to_owned(), Json::String(content.into())),
        ];
        Self {
            fields: fields.into_iter().collect(),
        }
    }

    /// A message as JSON. Fields besides `role` and `content` (`tool_calls`, `name`, ...) reach the template unchanged.
    ///
    /// # Errors
    ///
    /// [`TextError::Message`] unless it is an object with a string `role`, and a `content` that is a string, a list or
    /// null (or absent beside `tool_calls`).
    pub fn from_json(value: &Json) -> Result<Self, TextError> {
        let wrong = |reason: String| TextError::Message { reason };
        let Json::Object(fields) = value else {
            return Err(wrong(format!(
                "expected an object with \"role\" and \"content\", found {}",
                kind(Some(value))
            )));
        };
        match fields.get("role") {
            Some(Json::String(_)) => {}
            other => {
                return Err(wrong(format!(
                    "expected field \"role\" (string), found {}",
                    kind(other)
                )));
            }
        }
        match fields.get("content") {
            Some(Json::String(_) | Json::Array(_) | Json::Null) => {}
            None if fields.contains_key("tool_calls") => {}
            other => {
                return Err(wrong(format!(
                    "expected field \"content\" (string), found {}",
                    kind(other)
                )));
            }
        }
        Ok(Self { fields: fields.clone() })
    }

    /// Who speaks.
    #[must_use]
    pub fn role(&self) -> &str {
        self.fields.get("role").and_then(Json::as_str).unwrap_or_default()
    }

    /// Whether the model learns to say this, where the assistant says it: not with a `weight` of 0 or `train: false`.
    #[must_use]
    pub fn is_learnt(&self) -> bool {
        let weight = self.fields.get("weight").and_then(Json::as_f64);
        weight != Some(0.0) && self.fields.get("train").and_then(Json::as_bool) != Some(false)
    }

    /// What is said, where that is plain text.
    #[must_use]
    pub fn content(&self) -> Option<&str> {
        self.fields.get("content").and_then(Json::as_str)
    }
}

/// What a JSON value is, in a word for error messages.
pub(crate) fn kind(value: Option<&Json>) -> &'static str {
    match value {
        None => "nothing",
        Some(Json::Null) => "null",
        Some(Json::Bool(_)) => "boolean",
        Some(Json::Number(_)) => "number",
        Some(Json::String(_)) => "string",
        Some(Json::Array(_)) => "list",
        Some(Json::Object(_)) => "object",
    }
}
