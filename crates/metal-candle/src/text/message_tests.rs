//! Messages: normalisation of the various forms, and what is refused.

use serde_json::json;

use super::*;

fn refused(message: &Json) -> String {
    ChatMessage::from_json(message).unwrap_err().to_string()
}

#[test]
fn plain_messages_are_equal_however_they_are_made() {
    let made = ChatMessage::new("user", "hi");
    assert_eq!(
        ChatMessage::from_json(&json!({"role": "user", "content": "hi"})).unwrap(),
        made
    );
    let exported = json!({"role": "user", "content": "hi", "name": null, "tool_calls": []});
    assert_eq!(ChatMessage::from_json(&exported).unwrap(), made);
    assert_eq!(
        (made.role(), made.content(), made.is_learnt()),
        ("user", Some("hi"), true)
    );
    let odd = ChatMessage::new("narrator", "hi");
    assert_eq!((odd.role(), odd.content()), ("narrator", Some("hi")));
}

#[test]
fn parts_of_text_are_one_text() {
    let cases = [
        (
            json!([{"type": "text", "text": "Name"}, {"type": "text", "text": " a fruit"}]),
            "Name a fruit",
        ),
        (json!(["Name", {"text": " it"}]), "Name it"),
        (json!([{"type": "input_text", "text": "a", "image_url": null}]), "a"),
        (json!([{"type": "text", "text": ""}]), ""),
    ];
    for (content, text) in cases {
        let message = ChatMessage::from_json(&json!({"role": "user", "content": content})).unwrap();
        assert_eq!(message, ChatMessage::new("user", text));
    }
}

#[test]
fn what_a_text_model_cannot_read_is_refused() {
    for name in [
        "image",
        "image_url",
        "input_image",
        "audio",
        "input_audio",
        "video",
        "video_url",
        "file",
        "document",
    ] {
        let said = refused(&json!({"role": "user", "content": [{"type": "text", "text": "a"}, {"type": name}]}));
        let expected =
            format!("chat message: field \"content\", part 2: has the type \"{name}\", but this is a text model");
        assert!(said.starts_with(&expected), "{said}");
    }
    let cases = [
        (
            json!([{"type": "thinking", "thinking": "a"}]),
            "has the type \"thinking\"; only \"text\" is supported",
        ),
        (
            json!([{"type": "text"}]),
            "part 1: expected field \"text\" (string), found nothing",
        ),
        (
            json!([1]),
            "part 1: expected an object with \"type\" and \"text\", found number",
        ),
        (json!([]), "is an empty list"),
        (json!(null), "is null, and the message (user) has no \"tool_calls\""),
        (json!({"a": 1}), "found object; write the object as JSON in a string"),
        (json!(3), "expected field \"content\" (string), found number"),
    ];
    for (content, expected) in cases {
        let said = refused(&json!({"role": "user", "content": content}));
        assert!(said.contains(expected), "{said}");
    }
    assert!(refused(&json!({"role": "user"})).contains("expected field \"content\" (string), found nothing"));
    assert!(refused(&json!({"content": "a"})).contains("expected field \"role\" (string), found nothing"));
    assert!(refused(&json!({"role": "assistant", "content": null, "tool_calls": []})).contains("is null"));
    assert!(refused(&json!("hi")).contains("expected an object with \"role\" and \"content\", found string"));
}

#[test]
fn weights_and_flags_make_a_message_context() {
    let cases = [
        (json!({"weight": 0}), false),
        (json!({"weight": 0.0}), false),
        (json!({"weight": 1}), true),
        (json!({"weight": null}), true),
        (json!({"train": false}), false),
        (json!({"train": true}), true),
        (json!({"training": false}), false),
        (json!({"weight": 1, "train": false}), false),
        (json!({"weight": 0, "train": true}), false),
    ];
    for (flags, is_learnt) in cases {
        let mut message = json!({"role": "assistant", "content": "a"});
        message
            .as_object_mut()
            .unwrap()
            .extend(flags.as_object().unwrap().clone());
        let message = ChatMessage::from_json(&message).unwrap();
        assert_eq!(message.is_learnt(), is_learnt, "{flags}");
        assert_eq!(
            message.said,
            ChatMessage::new("assistant", "a").said,
            "the template sees {flags}"
        );
    }
    let said = |flags: &str| {
        let text = format!("{{\"role\": \"user\", \"content\": \"a\", {flags}}}");
        refused(&serde_json::from_str(&text).unwrap())
    };
    assert!(said("\"weight\": 0.5").contains("expected 0 (context only) or 1 (trained on), found 0.5"));
    assert!(said("\"weight\": \"0\"").contains("expected 0 (context only) or 1 (trained on), found \"0\""));
    assert!(said("\"weight\": true").contains("found true"));
    assert!(said("\"train\": 0").contains("expected true or false, found 0"));
    assert!(said("\"train\": true").contains("is true in a message with the role \"user\""));
    assert!(said("\"train_detail\": []").contains("training on part of a message is not supported"));
    assert!(
        !ChatMessage::from_json(&json!({"role": "user", "content": "a", "weight": 0}))
            .unwrap()
            .is_learnt()
    );
}

#[test]
fn malformed_tool_calls_are_refused() {
    let cases = [
        (
            json!("w()"),
            "field \"tool_calls\": the string is not JSON: expected a value, found `w`, at its character 1",
        ),
        (
            json!({"name": "w"}),
            "expected field \"tool_calls\" (list), found object",
        ),
        (json!([1]), "call 1: expected an object, found number"),
        (
            json!([{"function": "w"}]),
            "call 1: expected field \"function\" (object), found string",
        ),
        (
            json!([{"name": "w"}, {"id": 1}]),
            "call 2: expected field \"name\" (string), found nothing",
        ),
        (
            json!([{"function": {"name": "w", "arguments": "{c: 1}"}}]),
            "call 1: field \"arguments\": the string is not JSON: expected a key in double quotes, found `c`, at its character 2",
        ),
        (
            json!([{"name": "w", "arguments": ""}]),
            "field \"arguments\": the string is not JSON: ends where a value is",
        ),
        (
            json!([{"name": "w", "arguments": "[1]"}]),
            "expected a JSON object in the string, found list",
        ),
        (
            json!([{"name": "w", "arguments": "\"{}\""}]),
            "expected a JSON object in the string, found string",
        ),
        (
            json!([{"name": "w", "arguments": "{\"a\": 1, \"a\": 2}"}]),
            "the key \"a\" occurs twice",
        ),
        (
            json!([{"name": "w", "arguments": "{\"é\": \"\\ud83d\"}"}]),
            "lone surrogate",
        ),
    ];
    for (calls, expected) in cases {
        let said = refused(&json!({"role": "assistant", "content": "", "tool_calls": calls}));
        assert!(said.contains(expected), "{said}");
    }
    let both =
        json!({"role": "assistant", "content": "", "tool_calls": [{"name": "w"}], "function_call": {"name": "w"}});
    assert!(refused(&both).contains("both \"tool_calls\" and \"function_call\""));
}
