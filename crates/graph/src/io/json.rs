//! JSON objects from untrusted files: bounded in size and depth, without duplicate keys.

use std::fmt;
use std::io::Read;
use std::path::Path;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use super::safetensors::open_regular;
use super::{FileError, Result};

/// Largest settings file accepted, in bytes; parsed JSON takes up to about fifty times its text.
const MAX_JSON: u64 = 1 << 20;

/// Reads a settings file that holds one JSON object, such as `config.json`.
///
/// Keys keep their order. A duplicate key, at any depth, is an error: parsers differ in which value they keep.
///
/// # Errors
/// [`FileError::Io`], [`FileError::NotAFile`], [`FileError::TooLarge`] above 1 MiB, [`FileError::Json`] with line and
/// column for text that is not UTF-8, not JSON, not an object, too deep, or has duplicate keys.
pub fn read_json_object(path: &Path) -> Result<Map<String, Value>> {
    let (file, size) = open_regular(path)?;
    if size > MAX_JSON {
        return Err(FileError::TooLarge {
            path: path.to_owned(),
            size,
            limit: MAX_JSON,
        });
    }
    let mut bytes = Vec::new();
    let read = file.take(MAX_JSON).read_to_end(&mut bytes);
    read.map_err(|source| FileError::Io {
        path: path.to_owned(),
        action: "read",
        source,
    })?;
    match serde_json::from_slice(&bytes) {
        Ok(UniqueKeys(Value::Object(map))) => Ok(map),
        Ok(_) => Err(FileError::Json {
            path: path.to_owned(),
            reason: "not an object".to_owned(),
        }),
        Err(e) => Err(FileError::Json {
            path: path.to_owned(),
            reason: e.to_string(),
        }),
    }
}

/// A value whose objects have no duplicate keys. Depth is bounded by `serde_json`.
struct UniqueKeys(Value);

impl<'de> Deserialize<'de> for UniqueKeys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_any(AnyValue).map(Self)
    }
}

struct AnyValue;

impl<'de> Visitor<'de> for AnyValue {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> std::result::Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> std::result::Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> std::result::Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> std::result::Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> std::result::Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> std::result::Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_seq<S: SeqAccess<'de>>(self, mut seq: S) -> std::result::Result<Value, S::Error> {
        let mut values = Vec::new();
        while let Some(UniqueKeys(value)) = seq.next_element()? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> std::result::Result<Value, M::Error> {
        let mut object = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            if object.contains_key(&key) {
                return Err(M::Error::custom(format_args!("`{}` appears twice", key.escape_debug())));
            }
            let UniqueKeys(value) = map.next_value()?;
            object.insert(key, value);
        }
        Ok(Value::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &[u8]) -> Result<Map<String, Value>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        std::fs::write(&path, text).unwrap();
        read_json_object(&path)
    }

    #[test]
    fn values_of_every_kind_in_order() {
        let text = r#"{"z":[1,-2,2.5,null,true,{"a":"b"}],"a":1e3,"big":18446744073709551615}"#;
        let map = read(text.as_bytes()).unwrap();
        assert_eq!(Value::Object(map.clone()), serde_json::from_str::<Value>(text).unwrap());
        assert!(map.keys().eq(["z", "a", "big"]));
    }

    #[test]
    fn malformed_files_are_errors() {
        let deep = "{\"a\":".repeat(10_000);
        for (text, needle) in [
            (&b"{\"a\":1,\n\"a\":2}"[..], "`a` appears twice at line 2"),
            (b"{\"x\":{\"a\":1,\"a\":2}}", "`a` appears twice"),
            (b"[1]", "not an object"),
            (b"", "EOF"),
            (b"{\"a\":1e999}", "out of range"),
            (b"{\"a\":NaN}", "line 1"),
            (b"{\"\xff\":1}", "line 1"),
            (b"{} {}", "trailing"),
            (deep.as_bytes(), "recursion limit"),
        ] {
            match read(text) {
                Err(FileError::Json { reason, .. }) => assert!(reason.contains(needle), "{reason}"),
                other => panic!("{other:?}"),
            }
        }
        assert!(matches!(read(&vec![b' '; 2 << 20]), Err(FileError::TooLarge { .. })));
    }
}
