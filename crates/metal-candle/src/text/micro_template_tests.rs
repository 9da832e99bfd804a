//! A thousand micro-templates, compared with the real jinja2.

use serde_json::Value as Json;

use super::{ChatMessage, ChatTemplate, python_json};

/// Templates that jinja2 renders and this implementation refuses, with an error.
const REFUSED: &[&str] = &[
    r"{{ '\N{BULLET}' }}",
    "{{ 'abc'.encode() }}",
    "{{ 1 | pprint }}",
    "{% for x in [1, 2, 3] %}{{ loop }}{% endfor %}",
    "{{ namespace }}",
    "{{ self }}",
    // Undefined only because jinja2 folds constants; with a variable it is an error.
    "{{ {'a': 1}[1:2] }}",
    "{{ 5[1:2] }}",
    "{{ none[1:] }}",
    "{% autoescape true %}{{ '<' }}{% endautoescape %}",
    "{% block a %}x{% endblock %}",
];

/// `fixtures/templates/micro.json` is what jinja2 3.1.6 renders in the environment of transformers 5.23, Python 3.11.
fn fixture() -> Json {
    python_json::parse(include_bytes!("../../../../fixtures/templates/micro.json")).unwrap()
}

/// The difference in one case, if any.
fn difference(case: &Json, messages: &[ChatMessage], tools: &Json) -> Option<String> {
    let source = case["template"].as_str().unwrap();
    let template = ChatTemplate::new("t", source, [("bos_token", "<s>"), ("eos_token", "</s>")]);
    let rendered = template.and_then(|template| {
        template
            .with_clock(1_741_305_600)
            .render_with_tools(messages, Some(tools), true)
    });
    let refused = REFUSED.contains(&source);
    match (rendered, case["expected"].as_str()) {
        (Ok(text), Some(expected)) if text == expected && !refused => None,
        (Ok(text), Some(expected)) => Some(format!("{source:?}\n    renders  {text:?}\n    expected {expected:?}")),
        (Ok(text), None) => Some(format!(
            "{source:?}\n    renders {text:?}\n    expected {}",
            case["error"]
        )),
        (Err(_), None) => None,
        (Err(_), Some(_)) if refused => None,
        (Err(error), Some(expected)) => Some(format!("{source:?}\n    fails: {error}\n    expected {expected:?}")),
    }
}

#[test]
fn micro_templates_render_as_jinja2_renders_them() {
    let fixture = fixture();
    let messages: Vec<ChatMessage> = fixture["messages"]
        .as_array()
        .unwrap()
        .iter()
        // Not normalised: jinja2 was given lists of parts, which messages of a row never contain.
        .map(|message| ChatMessage::of(message.as_object().unwrap().clone(), true))
        .collect();
    let (mut count, mut differences) = (0, Vec::new());
    for (group, cases) in fixture["groups"].as_object().unwrap() {
        for case in cases.as_array().unwrap() {
            count += 1;
            differences.extend(difference(case, &messages, &fixture["tools"]).map(|text| format!("{group}: {text}")));
        }
    }
    assert!(count > 1000, "{count} cases");
    assert!(
        differences.is_empty(),
        "{} of {count} micro-templates differ:\n{}",
        differences.len(),
        differences.join("\n")
    );
}
