//! Which tokens are supervised, compared with transformers and TRL where they apply, else with expectations written by
//! hand.

use std::path::Path;

use serde_json::{Value, json};

use crate::data::{DataError, DataWarning, Dataset, DatasetOptions, Rows};
use crate::text::testing::{CHATML, byte_level};
use crate::text::{ChatTemplate, Tokenizer};

fn fixture(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(path);
    std::fs::read_to_string(path).unwrap()
}

fn template(name: &str) -> Tokenizer {
    byte_level(Some(&fixture(&format!("turns/{name}.jinja"))))
}

fn dataset(tokenizer: &Tokenizer, row: &Value) -> Result<Dataset, DataError> {
    let rows = Rows::from_reader("data.jsonl", row.to_string().as_bytes()).unwrap();
    Dataset::from_rows(&rows, tokenizer, &DatasetOptions::default())
}

/// The row's text, with brackets around what is supervised.
fn marked(tokenizer: &Tokenizer, row: &Value) -> String {
    let dataset = dataset(tokenizer, row).unwrap();
    let example = &dataset.examples()[0];
    let (mut text, mut at) = (String::new(), 0);
    for run in example.supervised.chunk_by(PartialEq::eq) {
        let piece = tokenizer.decode(&example.tokens[at..at + run.len()], false).unwrap();
        text.extend(if run[0] { ["[", &piece, "]"] } else { ["", &piece, ""] });
        at += run.len();
    }
    text
}

/// A conversation with alternating user and assistant messages.
fn chat(turns: &[&str]) -> Value {
    let role = |i: usize| ["user", "assistant"][i % 2];
    let say = |(i, content): (usize, &&str)| json!({"role": role(i), "content": content});
    json!({ "messages": turns.iter().enumerate().map(say).collect::<Vec<_>>() })
}

fn error(tokenizer: &Tokenizer, row: &Value) -> String {
    dataset(tokenizer, row).unwrap_err().to_string()
}

/// Checks the tokens of a case and which of them are supervised; the first is never a target.
fn check(tokenizer: &Tokenizer, row: &Value, case: &Value) {
    let dataset = dataset(tokenizer, row).unwrap();
    let example = &dataset.examples()[0];
    let numbers = |field: &str| {
        case[field]
            .as_array()
            .unwrap()
            .iter()
            .map(|n| n.as_u64().unwrap() as u32)
    };
    assert_eq!(example.tokens, numbers("ids").collect::<Vec<_>>(), "{case}");
    let mut mask: Vec<bool> = numbers("mask").map(|is| is != 0).collect();
    mask[0] = false;
    assert_eq!(example.supervised, mask, "{case}");
}

#[test]
fn marks_give_the_mask_of_transformers() {
    let fixture: Value = serde_json::from_str(&fixture("turns/marks.json")).unwrap();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures");
    let tokenizer = Tokenizer::from_folder(folder.join(fixture["tokenizer"].as_str().unwrap())).unwrap();
    let cases = fixture["cases"].as_array().unwrap();
    assert!(cases.len() >= 28);
    for case in cases {
        let variables = [("bos_token", "<|begin_of_text|>"), ("eos_token", "<|im_end|>")];
        let template = ChatTemplate::new("t.jinja", case["template"].as_str().unwrap(), variables).unwrap();
        let tokenizer = tokenizer.clone().with_chat_template(template);
        check(&tokenizer, &json!({"messages": case["messages"]}), case);
    }
}

#[test]
fn completions_have_the_tokens_and_the_mask_of_trl() {
    let fixture: Value = serde_json::from_str(&fixture("turns/completions.json")).unwrap();
    for (name, set) in fixture.as_object().unwrap() {
        let config = json!({"bos_token": "<s>", "eos_token": "</s>"}).to_string();
        let tokenizer = Tokenizer::from_bytes(set["tokenizer"].to_string().as_bytes(), config.as_bytes()).unwrap();
        let cases = set["cases"].as_array().unwrap();
        assert!(cases.len() >= 10, "{name}");
        for case in cases {
            check(
                &tokenizer,
                &json!({"prompt": case["prompt"], "completion": case["completion"]}),
                case,
            );
        }
    }
}

/// A template that omits earlier reasoning, and whose generation prompt opens a reasoning block that the text need not
/// have.
#[test]
fn reasoning_templates_supervise_the_rendered_text() {
    let r1 = template("r1");
    let cases = [
        (
            chat(&["2+2", "4"]),
            "<|bos|><|im_start|>user2+2<|im_start|>assistant[4<|im_end|>]",
        ),
        (
            chat(&["2+2", "<think>\nhm\n</think>\n\n4", "3+3", "6"]),
            "<|bos|><|im_start|>user2+2<|im_start|>assistant[\n\n4<|im_end|>]<|im_start|>user3+3<|im_start|>assistant[6<|im_end|>]",
        ),
    ];
    for (row, expected) in cases {
        assert_eq!(marked(&r1, &row), expected);
    }
    let warnings = dataset(&r1, &chat(&["2+2", "4"])).unwrap().warnings().to_vec();
    assert_eq!(warnings, [DataWarning::OtherPrompt { turns: 1 }]);
    let qwen3 = template("qwen3");
    let user = |said: &str| format!("<|im_start|>user\n{said}<|im_end|>\n<|im_start|>assistant\n");
    let last = |thought: &str, said: &str| format!("[<think>\n{thought}\n</think>\n\n{said}<|im_end|>]\n");
    let cases = [
        (chat(&["2+2", "4"]), user("2+2") + &last("", "4")),
        (
            chat(&["2+2", "4", "3+3", "6"]),
            user("2+2") + "[4<|im_end|>]\n" + &user("3+3") + &last("", "6"),
        ),
        (
            chat(&["2+2", "<think>\nhm\n</think>\n\n4", "3+3", "<think>\nso\n</think>\n\n6"]),
            user("2+2") + "[4<|im_end|>]\n" + &user("3+3") + &last("so", "6"),
        ),
        // The assistant repeats the user's words, and the user writes like the template.
        (
            chat(&["4", "4", "6<|im_end|>\n<|im_start|>assistant\n6", "6"]),
            user("4") + "[4<|im_end|>]\n" + &user("6<|im_end|>\n<|im_start|>assistant\n6") + &last("", "6"),
        ),
    ];
    for (row, expected) in cases {
        assert_eq!(marked(&qwen3, &row), expected);
    }
    assert!(dataset(&qwen3, &chat(&["2+2", "4"])).unwrap().warnings().is_empty());
}

#[test]
fn tool_calls_are_supervised_with_the_text() {
    let call = |arguments: Value| json!([{"type": "function", "function": {"name": "w", "arguments": arguments}}]);
    let row = |arguments: Value| {
        json!({"messages": [
            {"role": "user", "content": "Oslo?"},
            {"role": "assistant", "content": "", "tool_calls": call(arguments)},
            {"role": "tool", "content": "3"},
            {"role": "assistant", "content": "yes"}]})
    };
    let text = |arguments: &str| {
        format!(
            "<|im_start|>user\nOslo?<|im_end|>\n<|im_start|>assistant[\n<tool_call>\n{{\"name\": \"w\", \"arguments\": \
             {arguments}}}\n</tool_call><|im_end|>]\n<|im_start|>user\n<tool_response>\n3\n</tool_response><|im_end|>\n\
             <|im_start|>assistant\n[yes<|im_end|>]\n"
        )
    };
    let expected = |arguments: &str| text(arguments).replace("assistant[\n", "assistant\n[");
    let tools = template("qwentools");
    assert_eq!(
        marked(&tools, &row(json!({"c": "Oslo"}))),
        expected("{\"c\": \"Oslo\"}")
    );
    assert_eq!(marked(&tools, &row(json!({"n": 1}))), expected("{\"n\": 1}"));
    // The same by comparison: a template that ends its last turn differently.
    let source = fixture("turns/qwentools.jinja");
    let compared = byte_level(Some(&format!(
        "{source}{{% if not add_generation_prompt %}}<|endoftext|>{{% endif %}}"
    )));
    for arguments in [json!({"c": "Oslo"}), json!({"n": 1})] {
        let printed = if arguments.get("c").is_some() {
            "{\"c\": \"Oslo\"}"
        } else {
            "{\"n\": 1}"
        };
        let shown = marked(&compared, &row(arguments));
        let ended = expected(printed).replace("[yes<|im_end|>]\n", "[yes<|im_end|>\n<|endoftext|>]");
        assert_eq!(shown, ended);
    }
}

#[test]
fn other_messages_are_never_supervised() {
    // The user's words are written only together with the assistant's answer.
    let late = "{% for m in messages %}{% if m.role == 'assistant' %}Q: {{ messages[loop.index0 - 1].content }} A: \
                {{ m.content }}<|im_end|>{% endif %}{% endfor %}";
    let tokenizer = byte_level(Some(late));
    assert_eq!(
        marked(&tokenizer, &chat(&["hello", "yes"])),
        "Q: hello A: [yes<|im_end|>]"
    );
    assert_eq!(
        marked(&tokenizer, &chat(&["yes", "yes", "the", "the world"])),
        "Q: yes A: [yes<|im_end|>]Q: the A:[ the world<|im_end|>]"
    );
}

#[test]
fn context_turns_are_not_supervised() {
    let row = json!({"messages": [
        {"role": "user", "content": "a"}, {"role": "assistant", "content": "no", "weight": 0},
        {"role": "user", "content": "b"}, {"role": "assistant", "content": "yes", "weight": 1},
        {"role": "user", "content": "c"}, {"role": "assistant", "content": "", "train": false}]});
    let expected = "<|im_start|>user\nb<|im_end|>\n<|im_start|>assistant\n[yes<|im_end|>]\n";
    let shown = marked(&byte_level(Some(CHATML)), &row);
    assert!(shown.contains(expected) && shown.matches('[').count() == 1, "{shown}");
    let with_marks = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}\
                      {% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}{% else %}\
                      {{ m.content + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}";
    assert_eq!(marked(&byte_level(Some(with_marks)), &row), shown);
    let row = json!({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "bad", "train": false}]});
    let error = error(&byte_level(Some(CHATML)), &row);
    assert!(
        error.contains("every message of the assistant is context only"),
        "{error}"
    );
}

#[test]
fn turns_that_cannot_be_located_are_errors() {
    let left_out = "data.jsonl:1: message 2: the chat template leaves the assistant's text out";
    for row in [chat(&["2+2", "4"]), chat(&["2+2", "4", "3+3", "6"])] {
        let error = error(&template("noasstcontent"), &row);
        assert!(error.starts_with(left_out), "{error}");
    }
    let headers =
        "{% for m in messages %}<|im_start|>{{ m.role }}{{ m.content if m.role == 'user' }}<|im_end|>{% endfor %}";
    let message = error(&byte_level(Some(headers)), &chat(&["a", "b"]));
    assert!(message.starts_with(left_out), "{message}");
    let message = error(&byte_level(Some(headers)), &chat(&["a", "a"]));
    assert!(message.starts_with(left_out), "{message}");
    let twice = "{% for m in messages %}{{ m.content }};{% endfor %}{{ messages[-1].content }}";
    let message = error(&byte_level(Some(twice)), &chat(&["a", "b", "c", "a"]));
    assert!(
        message.contains("message 4: the chat template writes") && message.contains("{% generation %}"),
        "{message}"
    );
    // Old turns that a template omits are no error, as long as there is some target.
    let short = "{% for m in messages[-2:] %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}";
    let shown = marked(&byte_level(Some(short)), &chat(&["a", "b", "c", "yes"]));
    assert_eq!(shown, "<|im_start|>c<|im_end|><|im_start|>[yes<|im_end|>]");
}

#[test]
fn missing_stop_tokens_are_warned_about() {
    let warnings = |tokenizer: &Tokenizer, row: &Value| dataset(tokenizer, row).unwrap().warnings().to_vec();
    let multi = chat(&["2+2", "4", "3+3", "6"]);
    assert_eq!(
        warnings(&template("noendlast"), &multi),
        [DataWarning::NoStopToken { turns: 2 }]
    );
    assert!(warnings(&byte_level(Some(CHATML)), &multi).is_empty());
    let text = DataWarning::NoStopToken { turns: 2 }.to_string();
    assert!(
        text.contains("does not learn to stop") && text.contains("{{ eos_token }}"),
        "{text}"
    );
}
