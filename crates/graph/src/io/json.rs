//! Settings files (`config.json`, `adapter_config.json` and others): one JSON object, read like Python's `json`.
//!
//! That allows a byte order mark and the numbers `NaN`, `Infinity` and `-Infinity`. Such a number is read as a string
//! with its name, so that it is harmless in an unused field and reported as not a number in a used one. The file is
//! untrusted: its size and depth are bounded, and a duplicate key is an error.

use std::fmt;
use std::io::Read;
use std::path::Path;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use super::safetensors::open_regular;
use super::{FileError, Result};

/// Largest settings file accepted, in bytes; parsed JSON takes up to about fifty times its text.
const MAX_BYTES: u64 = 1 << 20;

/// Reads a settings file that holds one JSON object, such as `config.json`.
///
/// Keys keep their order. A duplicate key, at any depth, is an error: parsers differ in which value they keep. `NaN`,
/// `Infinity` and `-Infinity` become strings.
///
/// # Errors
/// [`FileError::Io`], [`FileError::NotAFile`], [`FileError::TooLarge`] above 1 MiB, [`FileError::Json`] with line and
/// column for text that is not UTF-8, not JSON, not an object, too deep, or has duplicate keys.
pub fn read_json_object(path: &Path) -> Result<Map<String, Value>> {
    let bytes = read_bounded(path)?;
    let json = |reason: String| FileError::Json {
        path: path.to_owned(),
        reason,
    };
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        return Err(json("the text is UTF-16; save it as UTF-8".to_owned()));
    }
    let text = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
    match serde_json::from_slice(&with_numbers_named(text)) {
        Ok(UniqueKeys(Value::Object(map))) => Ok(map),
        Ok(_) => Err(json("not an object".to_owned())),
        Err(error) => Err(json(error.to_string())),
    }
}

fn read_bounded(path: &Path) -> Result<Vec<u8>> {
    let (file, size) = open_regular(path)?;
    let too_large = |size| FileError::TooLarge {
        path: path.to_owned(),
        size,
        limit: MAX_BYTES,
    };
    if size > MAX_BYTES {
        return Err(too_large(size));
    }
    let mut bytes = Vec::new();
    let read = file.take(MAX_BYTES + 1).read_to_end(&mut bytes);
    read.map_err(|source| FileError::Io {
        path: path.to_owned(),
        action: "read",
        source,
    })?;
    // The reported size of files such as those of `/proc` is 0.
    if bytes.len() as u64 > MAX_BYTES {
        return Err(too_large(bytes.len() as u64));
    }
    Ok(bytes)
}

/// The text with non-JSON numbers replaced by their names in quotes.
fn with_numbers_named(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(&byte) = rest.first() {
        let length = match byte {
            b'"' => string_length(rest),
            b'N' | b'I' | b'-' | b'0'..=b'9' => {
                let length = rest.iter().take_while(|b| is_number_or_word(**b)).count();
                if let Some(name) = named(&rest[..length]) {
                    out.extend_from_slice(name);
                    rest = &rest[length..];
                    continue;
                }
                length
            }
            _ => 1,
        };
        out.extend_from_slice(&rest[..length]);
        rest = &rest[length..];
    }
    out
}

/// The length in bytes of the string at the start of `text`, including both quotes; all of it if the string does not
/// end.
fn string_length(text: &[u8]) -> usize {
    let mut escaped = false;
    for (at, &byte) in text.iter().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

fn is_number_or_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'+' | b'.')
}

/// The replacement of a value that is not a JSON number, or exceeds the largest f64.
fn named(word: &[u8]) -> Option<&'static [u8]> {
    match word {
        b"NaN" => return Some(b"\"NaN\""),
        b"Infinity" => return Some(b"\"Infinity\""),
        b"-Infinity" => return Some(b"\"-Infinity\""),
        _ => {}
    }
    let numeric = word.iter().all(|b| b.is_ascii_digit() || b"+-.eE".contains(b));
    let value: f64 = std::str::from_utf8(word).ok().filter(|_| numeric)?.parse().ok()?;
    match value {
        f64::INFINITY => Some(b"\"Infinity\""),
        f64::NEG_INFINITY => Some(b"\"-Infinity\""),
        _ => None,
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
    use serde_json::json;

    use super::*;

    fn read(text: &[u8]) -> Result<Map<String, Value>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        std::fs::write(&path, text).unwrap();
        read_json_object(&path)
    }

    #[test]
    fn what_python_reads_is_read() {
        let text = b"\xef\xbb\xbf{\"a\": NaN, \"b\": [Infinity, -Infinity, -1, 1e999, -1e999, 0.5], \"c\": \"NaN, \\\"Infinity\"}";
        let expected = json!({
            "a": "NaN", "b": ["Infinity", "-Infinity", -1, "Infinity", "-Infinity", 0.5], "c": "NaN, \"Infinity",
        });
        assert_eq!(Value::Object(read(text).unwrap()), expected);
        let plain = r#"{"z":[1,-2,2.5,null,true,{"a":"b"}],"a":1e3,"big":18446744073709551615}"#;
        let map = read(plain.as_bytes()).unwrap();
        assert_eq!(
            Value::Object(map.clone()),
            serde_json::from_str::<Value>(plain).unwrap()
        );
        assert!(map.keys().eq(["z", "a", "big"]));
    }

    #[test]
    fn malformed_text_is_described() {
        let deep = "{\"a\":".repeat(10_000);
        for (text, needle) in [
            (&b"{\"a\":1,\n\"a\":2}"[..], "`a` appears twice at line 2"),
            (b"{\"x\":{\"a\":1,\"a\":2}}", "`a` appears twice"),
            (b"[1]", "not an object"),
            (b"NaN", "not an object"),
            (b"", "EOF"),
            (b"{\"a\":nan}", "line 1"),
            (b"{\"a\":NaNa}", "line 1"),
            (b"{\"a\":Inf}", "line 1"),
            (b"{\"a\":\"open", "EOF"),
            (b"{\"\xff\":1}", "line 1"),
            (b"{} {}", "trailing"),
            (b"\xff\xfe{\0}\0", "UTF-16"),
            (deep.as_bytes(), "recursion limit"),
        ] {
            match read(text) {
                Err(FileError::Json { reason, .. }) => assert!(reason.contains(needle), "{reason}"),
                other => panic!("{other:?}"),
            }
        }
        assert!(matches!(read(&vec![b' '; 2 << 20]), Err(FileError::TooLarge { .. })));
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(
            read_json_object(folder.path()),
            Err(FileError::NotAFile { .. })
        ));
        assert!(matches!(
            read_json_object(&folder.path().join("config.json")),
            Err(FileError::Io { .. })
        ));
    }
}
