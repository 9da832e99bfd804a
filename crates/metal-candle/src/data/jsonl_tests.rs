//! Rows: formats, and bad lines with their place and reason.

use proptest::prelude::*;

use super::*;

fn read(text: &str) -> Result<Rows, DataError> {
    Rows::from_reader("data.jsonl", text.as_bytes())
}

#[test]
fn each_format_is_detected_from_the_first_row() {
    let rows = read("{\"text\": \"a\"}\n\n  \r\n{\"text\": \"b\", \"id\": 3}").unwrap();
    let text = |line, text: &str| Row {
        line,
        content: RowContent::Text(text.to_owned()),
    };
    assert_eq!(rows.format, RowFormat::Text);
    assert_eq!(rows.rows, [text(1, "a"), text(4, "b")]);

    let rows = read("{\"prompt\": \"p\", \"completion\": \"c\"}").unwrap();
    let content = RowContent::PromptCompletion {
        prompt: "p".to_owned(),
        completion: "c".to_owned(),
    };
    assert_eq!(
        (rows.format, &rows.rows[0].content),
        (RowFormat::PromptCompletion, &content)
    );

    let rows = read("{\"messages\": [{\"role\": \"user\", \"content\": \"hi\"}]}").unwrap();
    let messages = vec![ChatMessage::new("user", "hi")];
    let content = RowContent::Messages {
        messages,
        learn_from: 0,
        tools: None,
    };
    assert_eq!((rows.format, &rows.rows[0].content), (RowFormat::Messages, &content));
}

#[test]
fn prompts_may_be_messages() {
    let rows = read(
        "{\"prompt\": [{\"role\": \"user\", \"content\": \"p\"}], \
          \"completion\": [{\"role\": \"assistant\", \"content\": \"c\"}]}",
    );
    let messages = vec![ChatMessage::new("user", "p"), ChatMessage::new("assistant", "c")];
    assert_eq!(
        rows.unwrap().rows[0].content,
        RowContent::Messages {
            messages,
            learn_from: 1,
            tools: None
        }
    );
}

#[test]
fn a_byte_order_mark_is_skipped() {
    assert_eq!(read("\u{FEFF}{\"text\": \"a\"}").unwrap().rows.len(), 1);
    assert!(read("{\"text\": \"a\"}\n\u{FEFF}{\"text\": \"a\"}").is_err());
}

#[test]
fn bad_lines_are_named() {
    let good = "{\"prompt\": \"p\", \"completion\": \"c\"}";
    let cases = [
        (
            "{\"prompt\": \"p\", \"completion\": 3}",
            "data.jsonl:2: expected field \"completion\" (string), found number",
        ),
        (
            "{\"prompt\": \"p\"}",
            "data.jsonl:2: expected field \"completion\" (string), found nothing",
        ),
        (
            "{\"prompt\": null, \"completion\": \"c\"}",
            "data.jsonl:2: expected field \"prompt\" (string), found null",
        ),
        ("[1]", "data.jsonl:2: expected a JSON object, found list"),
        (
            "{\"prompt\": ",
            "data.jsonl:2: not JSON: EOF while parsing a value, at column 10",
        ),
        (
            "{\"prompt\": \"a\"} x",
            "data.jsonl:2: not JSON: trailing characters, at column 17",
        ),
        (
            "{\"text\": \"x\"}",
            "data.jsonl:2: expected field \"prompt\" (string), found nothing (the file began with \"prompt\" and \
             \"completion\" rows, this row has \"text\")",
        ),
        (
            "{\"prompt\": [{\"role\": 1}], \"completion\": []}",
            "data.jsonl:2: field \"prompt\", message 1: expected field \"role\" (string), found number",
        ),
        (
            "{\"prompt\": [], \"completion\": []}",
            "data.jsonl:2: field \"prompt\" is an empty list; expected at least one message",
        ),
    ];
    for (bad, expected) in cases {
        assert_eq!(
            read(&format!("{good}\n{bad}\n{good}")).unwrap_err().to_string(),
            expected
        );
    }
    let error = read(&format!("{good}\n\n[1]\n{good}\n[2]\n{{}}"))
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        "data.jsonl:3: expected a JSON object, found list (and 2 further bad lines)"
    );
    let error = read("{\"words\": 1}").unwrap_err().to_string();
    assert_eq!(
        error,
        "data.jsonl:1: expected a row with \"messages\", \"prompt\" and \"completion\", or \"text\""
    );
    let error = Rows::from_reader("data.jsonl", &b"{\"text\": \"\xFF\"}"[..])
        .unwrap_err()
        .to_string();
    assert!(error.starts_with("data.jsonl:1: not UTF-8: "), "{error}");
}

#[test]
fn nothing_to_read_is_an_error() {
    for text in ["", "\n\n", "\u{FEFF}"] {
        assert!(matches!(read(text), Err(DataError::Empty { .. })), "{text:?}");
    }
    let error = Rows::read("/no/such.jsonl").unwrap_err().to_string();
    assert!(error.starts_with("/no/such.jsonl: cannot be read: "), "{error}");
}

proptest! {
    #[test]
    fn any_bytes_give_rows_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Rows::from_reader("x", &bytes[..]);
    }

    #[test]
    fn any_text_comes_back(texts in prop::collection::vec(".*", 1..5)) {
        let lines: Vec<String> = texts.iter().map(|text| serde_json::json!({ "text": text }).to_string()).collect();
        let rows = read(&lines.join("\n")).unwrap().rows;
        let back: Vec<RowContent> = rows.into_iter().map(|row| row.content).collect();
        prop_assert_eq!(back, texts.into_iter().map(RowContent::Text).collect::<Vec<_>>());
    }
}
