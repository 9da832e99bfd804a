//! Chat templates: renderings equal to transformers', and malicious templates.

use std::time::{Duration, Instant};

use serde_json::Value as Json;

use super::*;

const TEMPLATES: [(&str, &str); 5] = [
    ("chatml", include_str!("testdata/chatml.jinja")),
    ("llama3", include_str!("testdata/llama3.jinja")),
    ("qwen", include_str!("testdata/qwen.jinja")),
    ("mistral", include_str!("testdata/mistral.jinja")),
    ("mixed", include_str!("testdata/mixed.jinja")),
];

fn template(name: &str) -> ChatTemplate {
    let (_, source) = TEMPLATES.iter().find(|(known, _)| *known == name).unwrap();
    ChatTemplate::new(name, source, [("bos_token", "<s>"), ("eos_token", "</s>")])
        .unwrap()
        .with_clock(1_741_305_600)
}

fn inline(source: &str) -> ChatTemplate {
    ChatTemplate::new("t", source, [("", ""); 0]).unwrap()
}

/// `expected.json` is what transformers 5.23 renders (`render_jinja_template`, jinja2 3.1.6) from these inputs.
#[test]
fn renders_what_transformers_renders() {
    let cases: Vec<Json> = serde_json::from_str(include_str!("testdata/expected.json")).unwrap();
    assert_eq!(cases.len(), 12);
    for case in cases {
        let messages = case["messages"].as_array().unwrap();
        let messages: Vec<_> = messages.iter().map(|m| ChatMessage::from_json(m).unwrap()).collect();
        let prompt = case["add_generation_prompt"].as_bool().unwrap();
        let tools = Some(&case["tools"]).filter(|tools| !tools.is_null());
        let template = template(case["template"].as_str().unwrap());
        let text = template.render_with_tools(&messages, tools, prompt).unwrap();
        assert_eq!(text, case["expected"].as_str().unwrap(), "{}", case["template"]);
    }
}

#[test]
fn a_refusal_carries_the_template_s_words() {
    let said = [ChatMessage::new("assistant", "hi")];
    let error = template("mistral").render(&said, false).unwrap_err();
    let expected =
        "mistral: the chat template refuses this conversation: user and assistant must take turns, the user first";
    assert!(matches!(error, TextError::TemplateRefused { .. }));
    assert_eq!(error.to_string(), expected);
}

#[test]
fn failures_name_the_line() {
    let error = inline("a\nb\n{{ messages[0].content.nope() }}").render(&[ChatMessage::new("user", "x")], false);
    assert!(
        error
            .unwrap_err()
            .to_string()
            .starts_with("t: chat template, line 3: cannot render this conversation: ")
    );
    let error = ChatTemplate::new("t", "a\n{% for %}", [("", ""); 0]).unwrap_err();
    assert!(error.to_string().starts_with("t: chat template, line 2: "), "{error}");
    assert!(matches!(error, TextError::TemplateSyntax { line: 2, .. }));
}

#[test]
fn content_is_text_and_never_a_template() {
    let text = "{{ 1 + 1 }} {% raw %} <b>&amp;</b>";
    assert_eq!(
        inline("{{ messages[0].content }}")
            .render(&[ChatMessage::new("user", text)], false)
            .unwrap(),
        text
    );
}

/// Programs that would run forever or exhaust the memory end early, with an error.
#[test]
fn hostile_templates_are_stopped() {
    let big =
        "{% set ns = namespace(s='xxxxxxxx', l=[1]) %}{% for i in range(20) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}";
    let list = "{% set ns = namespace(l=[1]) %}{% for i in range(64) %}{% set ns.l = [ns.l, ns.l] %}{% endfor %}";
    let cases = [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}".to_owned(),
        "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}".to_owned(),
        "{% set ns = namespace(s='x') %}{% for i in range(64) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}"
            .to_owned(),
        "{{ 'x' * 99999999999 }}".to_owned(),
        "{% set x = 'x' * 9999999 %}{{ x.join(range(99999)) }}".to_owned(),
        "{% set x = 'x' * 9999999 %}{{ x.replace('x', x) }}".to_owned(),
        "{% set x = 'x' * 9999999 %}{{ ('{0}' * 9999).format(x) }}".to_owned(),
        "{{ '{:>999999999999}'.format('x') }}".to_owned(),
        "{{ '%999999999d' | format(1) }}".to_owned(),
        "{% set x = 'x' * 999999 %}{% for i in range(9999) %}{{ x.count('y') }}{% endfor %}".to_owned(),
        "{% set x = 'x ' * 999999 %}{% for i in range(9999) %}{{ x.split(' ') | length }}{% endfor %}".to_owned(),
        "{% set x = 'x' * 999999 %}{% for i in range(99) %}{{ x }}{% endfor %}".to_owned(),
        format!("{list}{{{{ ns.l | tojson }}}}"),
        format!("{list}{{{{ ns.l }}}}"),
        format!("{list}{{% set text %}}{{{{ ns.l }}}}{{% endset %}}"),
        format!("{list}{{{{ 'x'.join([ns.l]) }}}}"),
        format!("{big}{{{{ ns.s * 9 }}}}{{{{ ns.s * 9 }}}}"),
        format!("{}{}", "{{ [".repeat(9000), "] }}"),
        "(".repeat(9) + &"{{ (".to_owned().repeat(9000),
        "{{ ".to_owned() + &"(".repeat(1_000_000),
        "{% if true %}".repeat(70_000),
    ];
    for source in cases {
        let start = Instant::now();
        let result = ChatTemplate::new("t", &source, [("", ""); 0]).and_then(|template| template.render(&[], false));
        let shown = &source[..source.len().min(120)];
        assert!(result.is_err(), "{shown}: wrote {} bytes", result.unwrap().len());
        assert!(
            start.elapsed() < Duration::from_secs(10),
            "{shown}: took {:?}",
            start.elapsed()
        );
    }
}

/// Comparing lists that contain one another many times over is charged element by element.
#[test]
fn comparisons_are_charged() {
    let grow = "{% set ns = namespace(a=[1], b=[1]) %}{% for i in range(24) %}{% set ns.a = [ns.a, ns.a] %}\
                {% set ns.b = [ns.b, ns.b] %}{% endfor %}";
    for hang in [
        "ns.a == ns.b",
        "ns.a in [ns.b]",
        "ns.a < ns.b",
        "[ns.a, ns.b] | sort",
        "ns.a ~ 'x'",
        "'%s' % [ns.a]",
    ] {
        let template = inline(&format!("{{% if messages %}}{grow}{{{{ {hang} }}}}{{% endif %}}"));
        let error = template.render(&[ChatMessage::new("user", "x")], false).unwrap_err();
        assert!(matches!(error, TextError::TemplateBudget { .. }), "{hang}: {error}");
        assert_eq!(template.render(&[], false).unwrap(), "");
    }
}

/// The time limit ends a rendering that neither work nor output ends.
#[test]
fn a_rendering_ends_in_time() {
    let mut template = inline("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}");
    (template.fuel, template.max_time) = (u64::MAX, Duration::from_millis(30));
    let error = template.render(&[], false).unwrap_err().to_string();
    assert_eq!(error, "t: chat template stopped: it took longer than 0.03 s");
}

/// Sources and values with the deepest nesting that a template can create do not overflow the stack.
#[test]
fn deep_templates_do_not_overflow() {
    let chain = |before: &str, link: &str, after: &str| {
        let limit = 50_000;
        let room = limit - before.len() - after.len();
        format!("{before}{}{after}", link.repeat(room / link.len()))
    };
    let nest = "{% set ns = namespace(l=[1], m=[1]) %}{% for i in range(99999) %}{% set ns.l = [ns.l] %}\
                {% set ns.m = [ns.m] %}{% endfor %}";
    let cases = [
        chain("{{ ", "-", "1 }}"),
        chain("{{ ", "not ", "1 }}"),
        chain("{{ ", "1+", "1 }}"),
        chain("{{ ", "1~", "1 }}"),
        chain("{{ ", "1**", "1 }}"),
        chain("{{ ", "a and ", "a }}"),
        chain("{{ ", "a if a else ", "a }}"),
        chain("{{ a", ".a", " }}"),
        chain("{{ a", "()", " }}"),
        chain("{{ a", "|e", " }}"),
        chain("{{ a", " is a", " }}"),
        chain("{% if a %}", "{%elif a%}", "{% endif %}"),
        chain("{{ ", "[", " }}"),
        nest.to_owned(),
        format!("{nest}{{{{ ns.l }}}}"),
        format!("{nest}{{{{ ns.l == ns.m }}}}"),
        format!("{nest}{{{{ ns.l ~ 'x' }}}}"),
        format!("{nest}{{{{ ns.l | tojson }}}}"),
        format!("{nest}{{{{ {{ns.l: 1}} }}}}"),
    ];
    for source in cases {
        // Most fail to parse or render, some write a little; all of them return.
        let _ = ChatTemplate::new("t", &source, [("", ""); 0]).and_then(|template| template.render(&[], false));
    }
}

#[test]
fn the_limits_are_named() {
    let error =
        inline("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}").render(&[], false);
    assert!(error.unwrap_err().to_string().contains("exceeded the work limit"));
    let error = inline("{% set x = 'x' * 999999 %}{% for i in range(99) %}{{ x }}{% endfor %}").render(&[], false);
    assert!(
        error
            .unwrap_err()
            .to_string()
            .contains("it wrote more than 16777216 bytes")
    );
    let error = ChatTemplate::new("t", &" ".repeat(MAX_SOURCE + 1), [("", ""); 0]).unwrap_err();
    assert!(matches!(error, TextError::TemplateBudget { .. }));
    assert!(ChatTemplate::new("t", &"{{ a }} text ".repeat(40_000), [("", ""); 0]).is_ok());
}

/// A long but legitimate conversation is far from the limits.
#[test]
fn long_conversations_render() {
    let text = "word ".repeat(200);
    let turn = |index| ChatMessage::new(if index % 2 == 0 { "user" } else { "assistant" }, text.clone());
    let messages: Vec<_> = (0..1000).map(turn).collect();
    for name in ["chatml", "llama3", "qwen", "mistral"] {
        assert!(
            template(name).render(&messages, true).unwrap().len() > 900_000,
            "{name}"
        );
    }
}

#[test]
fn messages_are_checked() {
    let cases = [
        (
            serde_json::json!("x"),
            "expected an object with \"role\" and \"content\", found string",
        ),
        (
            serde_json::json!({"content": "x"}),
            "expected field \"role\" (string), found nothing",
        ),
        (
            serde_json::json!({"role": "user"}),
            "expected field \"content\" (string), found nothing",
        ),
        (
            serde_json::json!({"role": "user", "content": 3}),
            "expected field \"content\" (string), found number",
        ),
    ];
    for (value, expected) in cases {
        let error = ChatMessage::from_json(&value).unwrap_err().to_string();
        assert_eq!(error, format!("chat message: {expected}"));
    }
    let calls = serde_json::json!([{"name": "w"}]);
    let message = ChatMessage::from_json(&serde_json::json!({"role": "assistant", "tool_calls": calls})).unwrap();
    assert_eq!((message.role(), message.content()), ("assistant", None));
}
