//! Warnings: what a data set is warned about, and what not.

use serde_json::{Value, json};

use super::super::{DataError, Dataset, DatasetOptions, Rows};
use crate::text::testing::{CHATML, byte_level};

/// CHATML that writes tools, tool calls and reasoning too.
const WHOLE: &str = "{% if tools %}{{ tools | tojson }}{% endif %}{% for message in messages %}{{ '<|im_start|>' + \
    message['role'] + '\n' + (message.reasoning_content or '') + (message['content'] or '') }}{% if message.tool_calls %}\
    {{ message.tool_calls | tojson }}{% endif %}{{ '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}\
    {{ '<|im_start|>assistant\n' }}{% endif %}";

fn warnings(template: &str, rows: &[Value]) -> Result<Vec<String>, DataError> {
    let text: Vec<String> = rows.iter().map(Value::to_string).collect();
    let rows = Rows::from_reader("data.jsonl", text.join("\n").as_bytes())?;
    let options = DatasetOptions {
        max_length: 10_000,
        train_on_inputs: false,
    };
    let dataset = Dataset::from_rows(&rows, &byte_level(Some(template)), &options)?;
    Ok(dataset.warnings().iter().map(ToString::to_string).collect())
}

/// A question and an answer with more fields, in a row with more fields.
fn row(answer: &Value, more: &Value) -> Value {
    let mut row = json!({"messages": [{"role": "user", "content": "a"}, answer]});
    row.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    row
}

#[test]
fn parts_that_the_template_does_not_write_are_named() {
    let call = json!([{"type": "function", "function": {"name": "add", "arguments": {"x": 1}}}]);
    let tools = json!({"tools": [{"type": "function", "function": {"name": "add"}}]});
    let answer = |more: Value| {
        let mut answer = json!({"role": "assistant", "content": "yes"});
        answer
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        answer
    };
    let cases = [
        (row(&answer(json!({})), &tools), "tools"),
        (row(&answer(json!({"tool_calls": call})), &json!({})), "tool calls"),
        (
            row(&answer(json!({"reasoning_content": "so"})), &json!({})),
            "reasoning",
        ),
    ];
    let plain = row(&answer(json!({})), &json!({}));
    for (row, part) in cases {
        let rows = [plain.clone(), row];
        let found = warnings(CHATML, &rows).unwrap();
        let expected = format!("the chat template does not write the {part} of 1 row,");
        assert!(found.len() == 1 && found[0].starts_with(&expected), "{found:?}");
        assert_eq!(warnings(WHOLE, &rows).unwrap(), [""; 0], "{part}");
    }
    // Nothing but calls: the model would learn to say nothing, or nothing at all.
    let silent = json!({"role": "assistant", "content": "", "tool_calls": call});
    let found = warnings(CHATML, &[row(&silent, &tools)]).unwrap();
    assert!(
        found.len() == 2 && found[1].contains("does not write the tools"),
        "{found:?}"
    );
    let skips = CHATML.replace("%}{{ '<|im_start|>' +", "%}{% if message.content %}{{ '<|im_start|>' +");
    let skips = skips.replace("{% endfor %}", "{% endif %}{% endfor %}");
    let fault = warnings(&skips, &[row(&silent, &tools)]).unwrap_err();
    let fault = fault.to_string();
    assert!(
        fault.contains("the chat template does not write `tool_calls`"),
        "{fault}"
    );
    assert_eq!(warnings(WHOLE, &[row(&silent, &tools)]).unwrap(), [""; 0]);
}

#[test]
fn empty_answers_and_unknown_roles_are_counted() {
    let yes = json!({"role": "assistant", "content": "yes"});
    let rows = [
        row(&yes, &json!({})),
        json!({"messages": [{"role": "user", "content": "a"}, {"role": "Assistant", "content": "b"}, yes]}),
        row(&json!({"role": "assistant", "content": ""}), &json!({})),
        row(&json!({"role": "assistant", "content": " "}), &json!({})),
    ];
    let found = warnings(CHATML, &rows).unwrap();
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(
        found[0].starts_with("2 answers are empty (the first at line 3)"),
        "{found:?}"
    );
    assert!(
        found[1].starts_with("1 message has the role \"Assistant\" (the first at line 2)"),
        "{found:?}"
    );
    let completion = |text: &str| json!({"prompt": "a", "completion": text});
    let found = warnings(CHATML, &[completion(""), completion("b")]).unwrap();
    assert!(found[0].starts_with("an answer is empty (line 1)"), "{found:?}");
}
