//! Row formats of other trainers, compared with how those read them.

use super::super::{FileLayout, Row, Rows};
use super::*;
use crate::text::{ChatTemplate, python_json};

fn read(text: &str) -> Result<Rows, String> {
    Rows::from_reader("data", text.as_bytes()).map_err(|error| error.to_string())
}

/// The messages and tools of the only row, one per line.
fn seen(text: &str) -> String {
    let source = "{% for m in messages %}{{ m | tojson }}\n{% endfor %}{% if tools %}{{ tools | tojson }}{% endif %}";
    let template = ChatTemplate::new("t", source, [("", ""); 0]).unwrap();
    let rows = read(text).unwrap();
    let [
        Row {
            content: RowContent::Messages { messages, tools, .. },
            ..
        },
    ] = &rows.rows[..]
    else {
        panic!("{text}: {:?}", rows.rows);
    };
    template.render_with_tools(messages, tools.as_ref(), false).unwrap()
}

/// Against `fixtures/data/rows.json`, made by `scripts/rows.py` with transformers and TRL.
#[test]
fn templates_see_what_trl_and_transformers_show_them() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/data/rows.json");
    let fixture = python_json::parse(&std::fs::read(path).unwrap()).unwrap();
    let cases = fixture["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 24);
    for case in cases {
        let row = case["row"].as_str().unwrap();
        assert_eq!(seen(row), case["seen"].as_str().unwrap(), "{}", case["name"]);
    }
}

fn user(text: &str) -> String {
    format!("{{\"role\": \"user\", \"content\": \"{text}\"}}\n")
}

fn assistant(text: &str) -> String {
    format!("{{\"role\": \"assistant\", \"content\": \"{text}\"}}\n")
}

#[test]
fn sharegpt_speakers_have_their_roles() {
    let turns = |pairs: &[(&str, &str)]| {
        let turn = |(from, value): &(&str, &str)| serde_json::json!({"from": from, "value": value});
        serde_json::json!({"conversations": pairs.iter().map(turn).collect::<Vec<_>>()}).to_string()
    };
    let expected = user("a") + &assistant("b");
    for (human, gpt) in [
        ("human", "gpt"),
        ("user", "assistant"),
        ("Human", "GPT"),
        ("prompter", "bot"),
        ("user", "model"),
    ] {
        assert_eq!(seen(&turns(&[(human, "a"), (gpt, "b")])), expected);
    }
    for tool in ["tool", "observation", "function_response", "function", "ipython"] {
        let text = turns(&[("system", "s"), ("human", "a"), (tool, "b")]);
        let expected = format!(
            "{{\"role\": \"system\", \"content\": \"s\"}}\n{}{{\"role\": \"tool\", \"content\": \"b\"}}\n",
            user("a")
        );
        assert_eq!(seen(&text), expected);
    }
    let call = "{\"role\": \"assistant\", \"content\": \"\", \"tool_calls\": [{\"type\": \"function\", \"function\": {\"name\": \"w\", \
                \"arguments\": {\"c\": 1}}}]}\n";
    for written in [
        "{\"name\": \"w\", \"arguments\": {\"c\": 1}}",
        "[{\"name\": \"w\", \"arguments\": \"{\\\"c\\\": 1}\"}]",
    ] {
        for from in ["function_call", "tool_call", "function"] {
            assert_eq!(seen(&turns(&[("human", "a"), (from, written)])), user("a") + call);
        }
    }
    let refused = |pairs: &[(&str, &str)]| read(&turns(pairs)).unwrap_err();
    assert!(refused(&[("alien", "a")]).starts_with(
        "data:1: field \"conversations\", message 1: field \"from\": unknown speaker \"alien\"; expected human"
    ));
    assert!(refused(&[("human", "a"), ("function_call", "w()")]).contains("message 2: a function_call must be JSON"));
}

#[test]
fn sharegpt_rows_bring_their_system_text_tools_and_weights() {
    let row = r#"{"id": 7, "system": "s", "tools": "[{\"name\": \"w\", \"parameters\": {}}]", "conversations":
        [{"from": "human", "value": "a", "weight": 0}, {"from": "gpt", "value": "b", "weight": 0}, {"from": "gpt", "value": "c"}]}"#;
    let tools = "[{\"type\": \"function\", \"function\": {\"name\": \"w\", \"parameters\": {}}}]";
    let system = "{\"role\": \"system\", \"content\": \"s\"}\n".to_owned();
    assert_eq!(
        seen(row),
        system + &user("a") + &assistant("b") + &assistant("c") + tools
    );
    let rows = read(row).unwrap();
    let RowContent::Messages { messages, .. } = &rows.rows[0].content else {
        panic!()
    };
    let learnt: Vec<bool> = messages.iter().map(ChatMessage::is_learnt).collect();
    assert_eq!(learnt, [true, false, false, true]);
    // The conversation's own system message takes precedence, as in axolotl.
    let row = r#"{"system": "x", "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}]}"#;
    assert_eq!(
        seen(row),
        "{\"role\": \"system\", \"content\": \"s\"}\n".to_owned() + &user("a")
    );
    // Other names for roles belong to ShareGPT alone.
    assert!(seen(r#"{"messages": [{"role": "human", "content": "a"}]}"#).contains("\"role\": \"human\""));
    let row = r#"{"conversations": [{"role": "human", "content": "a"}, {"role": "gpt", "content": "b"}]}"#;
    assert_eq!(seen(row), user("a") + &assistant("b"));
    for empty in ["null", "\"\"", "[]", "\"[]\"", "NaN", "\"null\""] {
        let row = format!(r#"{{"tools": {empty}, "messages": [{{"role": "user", "content": "a"}}]}}"#);
        assert_eq!(seen(&row), user("a"), "{empty}");
    }
}

/// As in LLaMA-Factory's converter: instruction and input are lines of one question, the history comes first.
#[test]
fn alpaca_rows_are_conversations() {
    let cases = [
        (
            r#"{"instruction": "i", "input": "x", "output": "o"}"#,
            user("i\\nx") + &assistant("o"),
        ),
        (
            r#"{"instruction": "i", "input": "", "output": "o", "text": "Below is"}"#,
            user("i") + &assistant("o"),
        ),
        (
            r#"{"instruction": "i", "input": null, "output": "o"}"#,
            user("i") + &assistant("o"),
        ),
        (
            r#"{"instruction": "i", "input": NaN, "output": "o"}"#,
            user("i") + &assistant("o"),
        ),
        (
            r#"{"instruction": "", "input": "x", "output": "o"}"#,
            user("x") + &assistant("o"),
        ),
        (
            r#"{"instruction": "i", "context": "x", "response": "o", "category": "qa"}"#,
            user("i\\nx") + &assistant("o"),
        ),
        (
            r#"{"instruction": "i", "output": "o", "system": "s", "history": [["q", "a"]]}"#,
            "{\"role\": \"system\", \"content\": \"s\"}\n".to_owned()
                + &user("q")
                + &assistant("a")
                + &user("i")
                + &assistant("o"),
        ),
    ];
    for (row, expected) in cases {
        assert_eq!(seen(row), expected, "{row}");
    }
    let wrong = [
        (
            r#"{"instruction": "i", "output": 3}"#,
            "expected field \"output\" (string), found number",
        ),
        (
            r#"{"instruction": ["i"], "output": "o"}"#,
            "expected field \"instruction\" (string), found list",
        ),
        (
            r#"{"instruction": "i", "output": "o", "history": [["q"]]}"#,
            "field \"history\", turn 1: expected two strings",
        ),
        (
            r#"{"instruction": "i", "output": "o", "history": "q"}"#,
            "expected field \"history\" (list of pairs of strings)",
        ),
    ];
    for (row, expected) in wrong {
        assert!(read(row).unwrap_err().contains(expected), "{row}");
    }
}

/// The prompt of Stanford's Alpaca, for models without a chat template.
#[test]
fn alpaca_rows_have_a_prompt_of_their_own() {
    let rows = concat!(
        r#"{"instruction": "i", "input": "x\ny", "output": "o"}"#,
        "\n",
        r#"{"instruction": "i\n", "output": "o"}"#,
        "\n",
        r#"{"instruction": "i", "output": "o", "system": "s", "history": [["q", "a"]]}"#
    );
    let rows = read(rows).unwrap().with_alpaca_prompt().unwrap();
    let prompts: Vec<&str> = rows
        .rows
        .iter()
        .map(|row| match &row.content {
            RowContent::PromptCompletion { prompt, completion } if completion == "o" => prompt.as_str(),
            other => panic!("{other:?}"),
        })
        .collect();
    let expected = [
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a response \
         that appropriately completes the request.\n\n### Instruction:\ni\n\n### Input:\nx\ny\n\n### Response:\n",
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n\
         ### Instruction:\ni\n\n\n### Response:\n",
        "s\n\n### Instruction:\nq\n\n### Response:\na\n\n### Instruction:\ni\n\n### Response:\n",
    ];
    assert_eq!(prompts, expected);
    assert!(read("{\"text\": \"a\"}").unwrap().with_alpaca_prompt().is_none());
}

#[test]
fn tables_in_one_object_and_other_data_are_named() {
    let pandas = "this is a whole table in one object, as pandas writes it by default";
    let cases = [
        (r#"{"prompt": {"0": "a"}, "completion": {"0": "b"}}"#, pandas),
        (r#"{"words": 1, "messages": {"0": []}}"#, pandas),
        (r#"{"0": {"text": "a"}, "1": {"text": "b"}}"#, pandas),
        (r#"{"columns": ["text"], "index": [0], "data": [["a"]]}"#, pandas),
        (r#"{"schema": {"fields": []}, "data": [{"text": "a"}]}"#, pandas),
        (
            r#"{"data": [{"text": "a"}]}"#,
            "the rows are in the field \"data\"; write that list alone",
        ),
        (r#"{"role": "user", "content": "a"}"#, "this is a message, not a row"),
        (
            r#"[[{"role": "user", "content": "a"}]]"#,
            "expected a JSON object, found list",
        ),
        (
            r#"{"prompt": "p", "chosen": "a", "rejected": "b"}"#,
            "are preference data (for DPO and the like)",
        ),
        (
            r#"{"prompt": "p", "completion": "c", "label": false}"#,
            "is preference data (for KTO)",
        ),
        (r#"{"chosen": [], "rejected": []}"#, "are preference data"),
        (
            r#"{"question": "a", "answer": "b"}"#,
            "this one has \"question\", \"answer\"",
        ),
        (r#"{"instruction": "a"}"#, "this one has \"instruction\""),
        ("{}", "this one has no columns"),
        (r#"{"text": NaN}"#, "this one has \"text\", but it is null"),
        (
            r#"{"messages": "[{}]"}"#,
            "found string; write the list itself, not JSON in a string",
        ),
        (
            r#"{"prompt": "a", "completion": []}"#,
            "\"prompt\" is a string and \"completion\" a list; expected two texts",
        ),
        (
            r#"{"tools": {}, "messages": [{"role": "user", "content": "a"}]}"#,
            "expected field \"tools\" (list), found object",
        ),
        (
            r#"{"tools": "w", "messages": [{"role": "user", "content": "a"}]}"#,
            "field \"tools\": the string is not JSON",
        ),
        (
            r#"{"tools": [1], "messages": [{"role": "user", "content": "a"}]}"#,
            "field \"tools\", tool 1: expected an object",
        ),
    ];
    for (row, expected) in cases {
        let said = read(row).unwrap_err();
        assert!(said.contains(expected), "{row}: {said}");
    }
}

#[test]
fn columns_of_null_do_not_decide_the_format() {
    let rows = read(r#"{"messages": null, "instruction": NaN, "text": "a"}"#).unwrap();
    assert_eq!((rows.format, rows.layout), (RowFormat::Text, FileLayout::Lines));
}
