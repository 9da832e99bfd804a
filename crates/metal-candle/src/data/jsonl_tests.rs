//! Rows: formats, and malformed lines with their position and reason.

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
        input_at: None,
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
            "data.jsonl:2: not JSON: ends where a value is expected, at column 11 (each line must hold a whole object, as \
             the first one does)",
        ),
        (
            "{\"prompt\": \"a\"} x",
            "data.jsonl:2: not JSON: there is more text after the value, at column 17",
        ),
        (
            "{\"text\": \"x\"}",
            "data.jsonl:2: expected field \"prompt\" (string), found nothing (the file began with \"prompt\" and \
             \"completion\" rows, this row is \"text\")",
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
    assert!(
        error.starts_with("data.jsonl:1: expected a row with \"messages\", "),
        "{error}"
    );
    let error = Rows::from_reader("data.jsonl", &b"{\"text\": \"\xFF\"}"[..])
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        "data.jsonl:1: not JSON: not UTF-8; save the file as UTF-8, at column 11"
    );
}

#[test]
fn nothing_to_read_is_an_error() {
    for text in ["", "\n\n", "\u{FEFF}"] {
        assert!(matches!(read(text), Err(DataError::Empty { .. })), "{text:?}");
    }
    let error = Rows::read("/no/such.jsonl").unwrap_err().to_string();
    assert!(error.starts_with("/no/such.jsonl: cannot be read: "), "{error}");
}

/// Every input of the shared cases that concerns rows, unchanged.
#[test]
fn reported_files_are_read_or_refused() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/data/reported/");
    let read = |name: &str| {
        let read = Rows::read(format!("{folder}{name}"));
        read.map_err(|error| error.to_string().replace(folder, ""))
    };
    let good = [
        ("arg_string.jsonl", 1, FileLayout::Lines),
        ("array.json", 8, FileLayout::Array),
        ("multi.jsonl", 1, FileLayout::Lines),
        ("parts.jsonl", 1, FileLayout::Lines),
        ("pretty.json", 1, FileLayout::Objects),
        ("single.jsonl", 1, FileLayout::Lines),
        ("train_false.jsonl", 1, FileLayout::Lines),
        ("weight0.jsonl", 1, FileLayout::Lines),
    ];
    for (name, count, layout) in good {
        let rows = read(name).unwrap();
        assert_eq!(
            (rows.rows.len(), rows.format, rows.layout),
            (count, RowFormat::Messages, layout),
            "{name}"
        );
    }
    let learnt = |name: &str| match &read(name).unwrap().rows[0].content {
        RowContent::Messages { messages, .. } => messages.iter().map(ChatMessage::is_learnt).collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    };
    assert_eq!(learnt("weight0.jsonl"), [true, false, true, true]);
    assert_eq!(learnt("train_false.jsonl"), [true, false]);
    let messages = vec![
        ChatMessage::new("user", "Name a fruit"),
        ChatMessage::new("assistant", "A pear"),
    ];
    let (learn_from, tools) = (0, None);
    let parts = RowContent::Messages {
        messages,
        learn_from,
        tools,
    };
    assert_eq!(read("parts.jsonl").unwrap().rows[0].content, parts);
    assert_eq!(
        read("null_only.jsonl").unwrap_err(),
        "null_only.jsonl:1: field \"messages\", message 2: field \"content\" is null, and the message (assistant) has no \
         \"tool_calls\"; write its text, or leave the message out"
    );
    assert_eq!(
        read("image_part.jsonl").unwrap_err(),
        "image_part.jsonl:1: field \"messages\", message 1: field \"content\", part 1: has the type \"image_url\", but this is \
         a text model, not one that reads images, sound or files"
    );
}

#[test]
fn rows_are_in_lines_arrays_and_sequences() {
    let (a, b) = ("{\"text\": \"a\"}", "{\n  \"text\":\n    \"b\"\n}");
    let cases = [
        (format!("{a}\n{a}"), FileLayout::Lines, vec![1, 2]),
        (format!("{a}\r\n\r\n{a}\r\n"), FileLayout::Lines, vec![1, 3]),
        (format!("{a}\r{a}\r"), FileLayout::Lines, vec![1, 2]),
        (format!("\u{FEFF}\n  {a}"), FileLayout::Lines, vec![2]),
        (format!("[{a}, {a}]"), FileLayout::Array, vec![1, 1]),
        (
            format!("\u{FEFF}[\n{a},\n{b}\n, {a}]\n\n"),
            FileLayout::Array,
            vec![2, 3, 7],
        ),
        (format!("{b}\n{b}\n{a}"), FileLayout::Objects, vec![1, 5, 9]),
        (
            format!("{}{}", b.replace('\n', "\r\n"), b),
            FileLayout::Objects,
            vec![1, 4],
        ),
    ];
    for (text, layout, lines) in cases {
        let rows = read(&text).unwrap();
        let found: Vec<usize> = rows.rows.iter().map(|row| row.line).collect();
        assert_eq!((rows.layout, found), (layout, lines), "{text}");
        // In whatever pieces the reader returns the bytes.
        let slow = BufReader::with_capacity(1, text.as_bytes());
        let again = Rows::from_reader("data.jsonl", slow);
        if !text.starts_with('\u{FEFF}') {
            assert_eq!(again.unwrap(), rows);
        }
    }
}

#[test]
fn faults_of_arrays_and_sequences_have_their_line_and_column() {
    let cases = [
        (
            "[{\"text\": \"a\"},\n {\"text\": \"\\ud83d\"}]",
            "data.jsonl:2: not JSON: lone surrogate \\ud83d: half of a character",
        ),
        (
            "{\"text\": \"é\", \"prompt\": \"\\ud83d\"}",
            "data.jsonl:1: not JSON: lone surrogate",
        ),
        (
            "{\"text\": \"é\\ud83d\"}",
            "remove it, or write both halves, at column 12",
        ),
        (
            "[{\"text\": \"a\"},\n{\"text\": 3}, [1], 5]",
            "data.jsonl:2: expected field \"text\" (string), found number (and 2 further bad lines)",
        ),
        (
            "[{\"text\": \"a\"}",
            "data.jsonl:1: not JSON: the file ends within the array that begins in line 1, at column 15",
        ),
        (
            "[{\"text\": \"a\"}\n{\"text\": \"a\"}]",
            "data.jsonl:2: not JSON: expected `,` or `]` in the array that begins in line 1, at column 1",
        ),
        (
            "[{\"text\": \"a\"},\n]",
            "data.jsonl:1: not JSON: a comma before the end of the array, at column 15",
        ),
        (
            "[{\"text\": \"a\"}] {}",
            "data.jsonl:1: there is more text after the array, at column 17",
        ),
        (
            "[\n{\"text\":\n  a}]",
            "data.jsonl:3: not JSON: expected a value, found `a`, at column 3 (in the object that begins in line 2)",
        ),
        (
            "{\n\"text\": \"a\",\n",
            "data.jsonl:2: not JSON: ends where a key in double quotes is expected, at column 13 (in the object",
        ),
        (
            "{\"text\": \"a\",\n \"text\": \"b\"}",
            "data.jsonl:2: not JSON: the key \"text\" occurs twice in one object, at column 2",
        ),
        (
            "{\"text\": \"a\nb\"}",
            "data.jsonl:1: not JSON: ends within a string; a line break within a string is written as \\n",
        ),
        (
            "{\"text\": \"a\"}{\"text\": \"b\"}",
            "data.jsonl:1: not JSON: there is more text after the value, at column 14",
        ),
        (
            "{'text': 'a'}",
            "data.jsonl:1: not JSON: expected a key in double quotes, found `'`, at column 2",
        ),
        ("[[1, 2]]", "data.jsonl:1: expected a JSON object, found list"),
        ("\"a\"\n", "data.jsonl:1: expected a JSON object, found string"),
        (
            "[}",
            "data.jsonl:1: not JSON: ends where a value is expected, at column 2",
        ),
        (
            "[",
            "data.jsonl:1: not JSON: ends where a value is expected, at column 2",
        ),
    ];
    for (text, expected) in cases {
        let said = read(text).unwrap_err().to_string();
        assert!(said.contains(expected), "{text}: {said}");
    }
    assert!(matches!(read("[]"), Err(DataError::Empty { .. })));
    let csv = read("prompt,completion\na,b\n");
    assert!(matches!(csv, Err(DataError::NotRows { .. })));
    let said = csv.unwrap_err().to_string();
    assert!(
        said.starts_with("data.jsonl: a table of text (CSV), not JSON rows; convert it with pandas: "),
        "{said}"
    );
}

#[test]
fn deep_nesting_is_refused_with_its_position() {
    for open in ["[", "{\"a\":"] {
        let text = format!("{{\"text\": \"a\"}}\n{{\"messages\": {}", open.repeat(100_000));
        let said = read(&text).unwrap_err().to_string();
        assert!(
            said.starts_with("data.jsonl:2: not JSON: lists and objects are nested more than 100 levels deep"),
            "{said}"
        );
    }
}

/// An endless row is not read into memory.
#[test]
fn rows_have_a_largest_size() {
    let good = "{\"text\": \"a\"}\n";
    for (begin, line) in [("{\"text\": \"", 2), ("[", 2), ("{", 2)] {
        let endless = std::io::repeat(b' ').take(1 << 40);
        let text = format!("{good}{begin}");
        let reader = BufReader::new(Cursor::new(text).chain(endless));
        let said = Rows::with_limit("data.jsonl", reader, 1 << 20).unwrap_err().to_string();
        let expected = format!("data.jsonl:{line}: the row that begins here has more than 1048576 bytes");
        assert!(said.starts_with(&expected), "{said}");
    }
    let pretty = BufReader::new(Cursor::new("{\n\"text\":\n").chain(std::io::repeat(b' ').take(1 << 40)));
    let said = Rows::with_limit("data.jsonl", pretty, 1 << 20).unwrap_err().to_string();
    assert!(said.starts_with("data.jsonl:1: the row that begins here"), "{said}");
    let array = BufReader::new(Cursor::new("[{\"text\": \"").chain(std::io::repeat(b'x').take(1 << 40)));
    let said = Rows::with_limit("data.jsonl", array, 1 << 20).unwrap_err().to_string();
    assert!(said.starts_with("data.jsonl:1: the row that begins here"), "{said}");
}

proptest! {
    #[test]
    fn any_bytes_give_rows_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Rows::from_reader("x", &bytes[..]);
    }

    #[test]
    fn nearly_rows_give_rows_or_an_error(text in r#"(\[|\{|\]|\}|:|,|"|\\|"text"|"messages"|"role"|"from"|null|1|\n| ){0,40}"#) {
        let _ = read(&text);
        let _ = read(&format!("[{text}]"));
        let _ = read(&format!("{{\"messages\": [{{\"role\": \"user\", \"content\": {text}}}]}}"));
        let _ = read(&format!("{{\"conversations\": [{{\"from\": \"function_call\", \"value\": {text}}}]}}"));
    }

    /// The same rows in every layout of a file.
    #[test]
    fn layouts_agree(texts in prop::collection::vec(".*", 1..5)) {
        let objects: Vec<_> = texts.iter().map(|text| serde_json::json!({ "text": text })).collect();
        let lines: Vec<String> = objects.iter().map(serde_json::Value::to_string).collect();
        let pretty: Vec<String> = objects.iter().map(|row| serde_json::to_string_pretty(row).unwrap()).collect();
        let array = serde_json::to_string_pretty(&objects).unwrap();
        let said = |text: &str| read(text).unwrap().rows.into_iter().map(|row| row.content).collect::<Vec<_>>();
        let expected = said(&lines.join("\n"));
        prop_assert_eq!(&said(&lines.join("\r")), &expected);
        prop_assert_eq!(&said(&pretty.join("\n")), &expected);
        prop_assert_eq!(&said(&array), &expected);
    }

    #[test]
    fn any_text_comes_back(texts in prop::collection::vec(".*", 1..5)) {
        let lines: Vec<String> = texts.iter().map(|text| serde_json::json!({ "text": text }).to_string()).collect();
        let rows = read(&lines.join("\n")).unwrap().rows;
        let back: Vec<RowContent> = rows.into_iter().map(|row| row.content).collect();
        prop_assert_eq!(back, texts.into_iter().map(RowContent::Text).collect::<Vec<_>>());
    }
}
