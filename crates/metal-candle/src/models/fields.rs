//! Typed access to the fields of a JSON settings file; every error names the file and the field.
//!
//! `null` counts as absent, as Python's libraries write it; unknown fields are ignored.

use std::path::Path;

use serde_json::{Map, Value};

use super::ConfigError;

type Result<T> = std::result::Result<T, ConfigError>;

/// The fields of one object; `prefix` is its path in the file, such as `rope_scaling.`.
pub(crate) struct Fields<'a> {
    path: &'a Path,
    prefix: String,
    map: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    pub(crate) fn new(path: &'a Path, map: &'a Map<String, Value>) -> Self {
        Self {
            path,
            prefix: String::new(),
            map,
        }
    }

    /// The value, if present and not null.
    pub(crate) fn get(&self, field: &str) -> Option<&'a Value> {
        self.map.get(field).filter(|v| !v.is_null())
    }

    /// Whether the field exists, even if it is null.
    pub(crate) fn has(&self, field: &str) -> bool {
        self.map.contains_key(field)
    }

    /// Whether there is no field.
    pub(crate) fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// A nested object.
    pub(crate) fn object(&self, field: &str) -> Result<Option<Fields<'a>>> {
        let Some(value) = self.get(field) else {
            return Ok(None);
        };
        let map = value
            .as_object()
            .ok_or_else(|| self.mistyped(field, "an object", value))?;
        Ok(Some(Fields {
            path: self.path,
            prefix: format!("{}{field}.", self.prefix),
            map,
        }))
    }

    pub(crate) fn usize(&self, field: &str) -> Result<Option<usize>> {
        let whole = |v: &Value| v.as_u64().and_then(|n| usize::try_from(n).ok());
        self.typed(field, "a whole number", whole)
    }

    pub(crate) fn f64(&self, field: &str) -> Result<Option<f64>> {
        self.typed(field, "a number", Value::as_f64)
    }

    pub(crate) fn required_f64(&self, field: &str) -> Result<f64> {
        self.f64(field)?.ok_or_else(|| self.missing(field))
    }

    pub(crate) fn bool(&self, field: &str) -> Result<Option<bool>> {
        self.typed(field, "true or false", Value::as_bool)
    }

    pub(crate) fn str(&self, field: &str) -> Result<Option<&'a str>> {
        self.typed(field, "text", Value::as_str)
    }

    /// A token id or a list of them; empty if absent. Negative ids, such as the -1 of some exporters, are ignored.
    pub(crate) fn token_ids(&self, field: &str) -> Result<Vec<u32>> {
        let ids = |v: &Value| match v {
            Value::Array(_) => ids(v),
            one => whole(one).map(|id| u32::try_from(id).into_iter().collect()),
        };
        Ok(self
            .typed(field, "a token id or a list of token ids", ids)?
            .unwrap_or_default())
    }

    /// A list of lists of token ids; empty if absent. A list with a negative id is left out, as it never occurs.
    pub(crate) fn token_id_lists(&self, field: &str) -> Result<Vec<Vec<u32>>> {
        let possible = |v: &Value| {
            let list = ids(v)?;
            Some((list.len() == v.as_array()?.len()).then_some(list))
        };
        let lists = |v: &'a Value| v.as_array()?.iter().map(possible).collect::<Option<Vec<_>>>();
        let lists = self.typed(field, "a list of lists of token ids", lists)?;
        Ok(lists.unwrap_or_default().into_iter().flatten().collect())
    }

    /// A list of texts.
    pub(crate) fn texts(&self, field: &str) -> Result<Option<Vec<String>>> {
        let text = |v: &Value| v.as_str().map(str::to_owned);
        self.typed(field, "a list of texts", |v| v.as_array()?.iter().map(text).collect())
    }

    fn typed<T>(
        &self,
        field: &str,
        expected: &'static str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.get(field) else {
            return Ok(None);
        };
        read(value)
            .map(Some)
            .ok_or_else(|| self.mistyped(field, expected, value))
    }

    pub(crate) fn missing(&self, field: &str) -> ConfigError {
        ConfigError::Missing {
            path: self.path.to_owned(),
            field: self.name(field),
        }
    }

    pub(crate) fn mistyped(&self, field: &str, expected: &'static str, found: &Value) -> ConfigError {
        ConfigError::Type {
            path: self.path.to_owned(),
            field: self.name(field),
            expected,
            found: shortened(found),
        }
    }

    pub(crate) fn unsupported(&self, field: &str, found: &Value, supported: &'static str) -> ConfigError {
        ConfigError::Unsupported {
            path: self.path.to_owned(),
            field: self.name(field),
            found: shortened(found),
            supported,
        }
    }

    pub(crate) fn invalid(&self, field: &str, reason: impl Into<String>) -> ConfigError {
        ConfigError::Invalid {
            path: self.path.to_owned(),
            field: self.name(field),
            reason: reason.into(),
        }
    }

    fn name(&self, field: &str) -> String {
        format!("{}{field}", self.prefix)
    }
}

/// An integer no larger than token ids can be; negative ones are accepted.
fn whole(value: &Value) -> Option<i64> {
    value.as_i64().filter(|id| *id <= i64::from(u32::MAX))
}

/// The token ids of a list, without negative ones.
fn ids(value: &Value) -> Option<Vec<u32>> {
    let all: Option<Vec<i64>> = value.as_array()?.iter().map(whole).collect();
    Some(all?.into_iter().filter_map(|id| u32::try_from(id).ok()).collect())
}

/// A value as text of at most 60 characters, so that an error fits on a line.
pub(super) fn shortened(value: &Value) -> String {
    let text = value.to_string();
    let mut short: String = text.chars().take(60).collect();
    if short.len() < text.len() {
        short.push('\u{2026}');
    }
    short
}
