//! JSON compared with Python's `json`; errors and their positions.

use proptest::prelude::*;

use super::*;
use crate::text::{ChatMessage, ChatTemplate};

/// A value as `tojson` of a template writes it.
fn dumped(value: Json) -> String {
    let message = Json::from_iter([("role", Json::from("user")), ("content", Json::from("")), ("x", value)]);
    let template = ChatTemplate::new("t", "{{ messages[0].x | tojson }}", [("", ""); 0]).unwrap();
    template
        .render(&[ChatMessage::from_json(&message).unwrap()], false)
        .unwrap()
}

/// `fixtures/data/json.json`, made by `scripts/rows.py`.
#[test]
fn reads_what_python_reads() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/data/json.json");
    let fixture = parse(&std::fs::read(path).unwrap()).unwrap();
    let cases = fixture["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 77);
    for case in cases {
        let text = case["text"].as_str().unwrap();
        match (parse(text.as_bytes()), case["python"].as_str()) {
            (Ok(value), Some(python)) if is_missing(&value) => assert!(matches!(python, "null" | "NaN"), "{text}"),
            (Ok(value), Some(python)) => assert_eq!(dumped(value), python, "{text}"),
            (Err(_), None) => {}
            (read, python) => panic!("{text:?}: {read:?}, Python: {python:?}"),
        }
    }
}

#[test]
fn faults_have_position_and_reason() {
    let deep = "[".repeat(200);
    let many = format!("[{}0]", "0,".repeat(MAX_VALUES));
    let cases: [(&str, usize, &str); 19] = [
        (r#"{"a": "\ud83d"}"#, 7, "lone surrogate \\ud83d"),
        (r#"{"a": "x\udc00"}"#, 8, "lone surrogate \\udc00"),
        (r#"{"a": "\ud83d\n"}"#, 7, "lone surrogate \\ud83d"),
        (r#"{"a": "\ud83d\ud83d"}"#, 7, "lone surrogate \\ud83d"),
        (r#""\ud83d\u00"#, 9, "four hexadecimal digits"),
        (r#"{"a": 1, "b": 2, "a": 3}"#, 17, "the key \"a\" occurs twice"),
        (r#"[{"é": {"b": 1, "b": 2}}]"#, 17, "the key \"b\" occurs twice"),
        (&deep, 101, "nested more than 100 levels deep"),
        (&many, 2 * MAX_VALUES - 1, "more than 524288 values"),
        ("{\"a\": \"b\nc\"}", 8, "a line break or control character"),
        (r#"{"a": "C:\dir"}"#, 9, "an invalid escape"),
        ("{'a': 1}", 1, "expected a key in double quotes, found `'`"),
        (r#"{"a": True}"#, 6, "expected a value, found `T`"),
        (r#"{"a": nul"#, 9, "ends within `null`"),
        (r#"{"a": nope}"#, 6, "expected a value, found `n`"),
        (r#"{"a": 1"#, 7, "ends where `,` or `}` is expected"),
        (r#"{"a": "b"#, 8, "ends within a string"),
        ("{} {}", 3, "more text after the value"),
        ("170141183460469231731687303715884105728", 0, "more than 127 bits"),
    ];
    for (text, at, reason) in cases {
        let fault = parse(text.as_bytes()).unwrap_err();
        assert!(fault.reason.contains(reason), "{text:.40}: {}", fault.reason);
        assert_eq!(fault.at, at, "{text:.40}: {}", fault.reason);
    }
    let fault = parse(b"\"a\xFF\"").unwrap_err();
    assert_eq!(
        (fault.at, fault.reason.as_str()),
        (2, "not UTF-8; save the file as UTF-8")
    );
}

#[test]
fn only_incomplete_texts_are_unfinished() {
    for text in ["", "{", "{\"a\"", "{\"a\": ", "{\"a\": [1,", "{\"a\": 1.", "-", "fal"] {
        assert!(parse(text.as_bytes()).unwrap_err().is_unfinished, "{text}");
    }
    for text in ["\"a", "{\"a\": \"b", "{\"a\\", "[1 2", "fau"] {
        assert!(!parse(text.as_bytes()).unwrap_err().is_unfinished, "{text}");
    }
}

/// Skipped values may contain numbers of any length, lone surrogates and many values; null and NaN count as missing.
#[test]
fn unused_columns_are_not_allocated() {
    let list = "[],".repeat(2 * MAX_VALUES);
    let text =
        format!(r#"{{"a": NaN, "b": "\ud83d", "c": [{list} 1e999], "d": {{"x": 1, "x": 2}}, "e": 5, "f": null}}"#);
    let columns = columns(text.as_bytes(), &["a", "e", "f"]).unwrap().unwrap();
    let values: Vec<_> = columns
        .values
        .iter()
        .map(|(name, value)| (name.as_str(), is_missing(value)))
        .collect();
    assert_eq!(values, [("a", true), ("e", false), ("f", true)]);
    let others: Vec<_> = columns
        .others
        .iter()
        .map(|(name, first)| (name.as_str(), *first))
        .collect();
    assert_eq!(others, [("b", b'"'), ("c", b'['), ("d", b'{')]);
    assert_eq!(super::columns(b" [1]", &[]), Ok(None));
    assert!(
        super::columns(b"{\"a\": 1, \"a\": 2}", &[])
            .unwrap_err()
            .reason
            .contains("twice")
    );
}

proptest! {
    #[test]
    fn any_bytes_give_a_value_or_a_fault(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Err(fault) = parse(&bytes) {
            prop_assert!(fault.at <= bytes.len());
        }
    }

    #[test]
    fn nearly_json_gives_a_value_or_a_fault(text in r#"[\[\]{}:,"\\a-fnu0-9eE.+ \n-]{0,60}"#) {
        let fault_or_value = parse(text.as_bytes());
        prop_assert_eq!(fault_or_value.is_ok(), columns(text.as_bytes(), &["a"]).is_ok() && fault_or_value.is_ok());
    }

    /// Agrees with `serde_json` on all texts that the latter accepts.
    #[test]
    fn values_come_back(texts in prop::collection::vec(".*", 0..4), number in any::<i64>(), float in any::<f64>()) {
        let value = serde_json::json!({"texts": texts, "number": number, "float": float, "nested": {"a": [null, true]}});
        prop_assert_eq!(parse(value.to_string().as_bytes()).unwrap(), value.clone());
        prop_assert_eq!(parse(serde_json::to_string_pretty(&value).unwrap().as_bytes()).unwrap(), value);
    }
}
