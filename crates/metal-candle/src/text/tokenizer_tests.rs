//! Tokenizers: folders, special tokens, and malformed files.

use serde_json::json;

use super::*;
use crate::text::ChatMessage;
use crate::text::folder::{CONFIG, GENERATION, SPECIAL, TEMPLATE, TEMPLATE_FOLDER, TOKENIZER};
use crate::text::testing::{CHATML, byte_level, byte_level_json};

/// A folder with these files beside the test tokenizer.
fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join(TOKENIZER), byte_level_json()).unwrap();
    for (name, text) in files {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    folder
}

#[test]
fn encodes_whole_texts_and_decodes_them() {
    let tokenizer = byte_level(None);
    let text = "hello the world, ñandú <|im_start|>";
    let ids = tokenizer.encode(text, false).unwrap();
    assert!(ids.len() > 4, "the truncation of tokenizer.json does not apply");
    assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
    assert_eq!(tokenizer.decode(&ids, true).unwrap(), "hello the world, ñandú ");
    let with = tokenizer.encode(text, true).unwrap();
    assert_eq!(with[0], tokenizer.bos_token_id().unwrap());
    assert_eq!(with[1..], ids);
}

#[test]
fn offsets_point_into_the_text() {
    let tokenizer = byte_level(None);
    let text = "hello 🦀 the";
    let encoded = tokenizer.encode_with_offsets(text, true).unwrap();
    assert_eq!(encoded.added[..2], [true, false]);
    assert_eq!(&text[encoded.offsets[1].0..encoded.offsets[1].1], "hello");
    assert_eq!(encoded.offsets.last(), Some(&(11, 14)));
}

#[test]
fn special_tokens_come_from_the_configuration() {
    let tokenizer = byte_level(None);
    assert_eq!(tokenizer.eos_token_id(), tokenizer.token_id("<|endoftext|>"));
    assert_eq!(tokenizer.pad_token_id(), tokenizer.eos_token_id());
    assert_eq!(tokenizer.stop_token_ids(), [tokenizer.eos_token_id().unwrap()]);
    assert_eq!(tokenizer.vocab_size(), tokenizer.bos_token_id().unwrap() as usize + 1);
    assert!(tokenizer.chat_template().is_none());
    assert!(tokenizer.is_special(tokenizer.bos_token_id().unwrap()) && !tokenizer.is_special(0));
}

#[test]
fn an_ordinary_token_named_as_special_becomes_special() {
    let config = br#"{"eos_token": "hello"}"#;
    let tokenizer = Tokenizer::from_bytes(&byte_level_json(), config).unwrap();
    let hello = tokenizer.token_id("hello").unwrap();
    assert_eq!(tokenizer.eos_token_id(), Some(hello));
    assert!(tokenizer.encode("yeshello", false).unwrap().contains(&hello));
    assert_eq!(tokenizer.decode(&[hello], true).unwrap(), "");
}

#[test]
fn a_folder_needs_only_its_tokenizer() {
    let tokenizer = Tokenizer::from_folder(folder(&[]).path()).unwrap();
    assert_eq!((tokenizer.eos_token_id(), tokenizer.stop_token_ids()), (None, &[][..]));
}

#[test]
fn generation_config_adds_stop_tokens_and_fills_gaps() {
    let files = [
        (CONFIG, r#"{"eos_token": "<|im_end|>"}"#),
        (GENERATION, r#"{"eos_token_id": [5, 6], "bos_token_id": 7}"#),
    ];
    let tokenizer = Tokenizer::from_folder(folder(&files).path()).unwrap();
    let end = tokenizer.token_id("<|im_end|>").unwrap();
    assert_eq!(tokenizer.stop_token_ids(), [end, 5, 6]);
    assert_eq!(tokenizer.bos_token_id(), Some(7));
    let tokenizer = Tokenizer::from_folder(folder(&[(GENERATION, r#"{"eos_token_id": 9}"#)]).path()).unwrap();
    assert_eq!(tokenizer.eos_token_id(), Some(9));
    let files = [(SPECIAL, r#"{"eos_token": {"content": "<|im_end|>"}}"#)];
    assert_eq!(
        Tokenizer::from_folder(folder(&files).path()).unwrap().eos_token_id(),
        Some(end)
    );
}

#[test]
fn the_template_file_takes_precedence_over_the_field() {
    let in_config = json!({"chat_template": "field"}).to_string();
    let in_list = json!({"chat_template": [{"name": "tool_use", "template": "tools"},
                                           {"name": "default", "template": "list {{ eos_token }}"}],
                         "eos_token": "<|im_end|>"})
    .to_string();
    let cases: [(&[(&str, &str)], &str); 3] = [
        (&[(CONFIG, &in_config)], "field"),
        (&[(CONFIG, &in_config), (TEMPLATE, "file")], "file"),
        (&[(CONFIG, &in_list)], "list <|im_end|>"),
    ];
    for (files, expected) in cases {
        let tokenizer = Tokenizer::from_folder(folder(files).path()).unwrap();
        assert_eq!(tokenizer.chat_template().unwrap().render(&[], false).unwrap(), expected);
    }
    let template = byte_level(Some(CHATML));
    let text = template
        .chat_template()
        .unwrap()
        .render(&[ChatMessage::new("user", "x")], false)
        .unwrap();
    assert_eq!(text, "<|im_start|>user\nx<|im_end|>\n");
}

#[test]
fn malformed_files_are_named() {
    let cases = [
        (CONFIG, "{", "tokenizer_config.json: not a JSON object: "),
        (CONFIG, "[1]", "tokenizer_config.json: not a JSON object: "),
        (
            CONFIG,
            r#"{"eos_token": 3}"#,
            "field \"eos_token\": expected a token (string or object), found number",
        ),
        (
            CONFIG,
            r#"{"eos_token": {"content": 1}}"#,
            "field \"eos_token\": expected \"content\" (string), found number",
        ),
        (
            CONFIG,
            r#"{"bos_token": "<nix>"}"#,
            "field \"bos_token\": the vocabulary of tokenizer.json has no token \"<nix>\"",
        ),
        (
            CONFIG,
            r#"{"chat_template": 3}"#,
            "field \"chat_template\": expected a template (string), found number",
        ),
        (
            CONFIG,
            r#"{"chat_template": [3]}"#,
            "expected a list of objects with \"name\" and \"template\" (strings)",
        ),
        (
            CONFIG,
            r#"{"added_tokens_decoder": {"x": {"content": "y"}}}"#,
            "field \"added_tokens_decoder\": token \"x\": expected an id",
        ),
        (
            CONFIG,
            r#"{"added_tokens_decoder": {"1": {}}}"#,
            "field \"added_tokens_decoder\": token \"1\": missing field `content`",
        ),
        (
            GENERATION,
            r#"{"eos_token_id": 1.5}"#,
            "field \"eos_token_id\": expected a token id, found 1.5",
        ),
        (
            GENERATION,
            r#"{"eos_token_id": [1, "x"]}"#,
            "field \"eos_token_id\": expected a token id, found \"x\"",
        ),
        (GENERATION, "", "generation_config.json: not a JSON object: "),
        (
            SPECIAL,
            r#"{"pad_token": []}"#,
            "special_tokens_map.json: field \"pad_token\": ",
        ),
        (TOKENIZER, "{}", "tokenizer.json: not a Hugging Face fast tokenizer: "),
        (
            TOKENIZER,
            "\u{0}",
            "tokenizer.json: not a Hugging Face fast tokenizer: ",
        ),
    ];
    for (file, text, expected) in cases {
        let error = Tokenizer::from_folder(folder(&[(file, text)]).path())
            .unwrap_err()
            .to_string();
        assert!(error.contains(expected), "{error:?} should contain {expected:?}");
    }
    let error = Tokenizer::from_folder("/no/such/folder").unwrap_err().to_string();
    assert!(
        error.starts_with("/no/such/folder/tokenizer.json: cannot be read: "),
        "{error}"
    );
}

/// An invalid template is an error when it is rendered; texts can still be encoded.
#[test]
fn a_broken_template_is_an_error_when_it_is_needed() {
    let long = "x".repeat((1 << 20) + 1);
    let in_list = r#"{"chat_template": [{"name": "rag", "template": "x"}, {"name": "tool_use", "template": "t"}]}"#;
    let cases = [
        (
            CONFIG,
            r#"{"chat_template": "\n{% if %}"}"#,
            "tokenizer_config.json: chat template, line 2: ",
        ),
        (TEMPLATE, "{{ a", "chat_template.jinja: chat template, line 1: "),
        (
            TEMPLATE,
            &long,
            "chat_template.jinja: chat template, line 1: larger than 1 MiB",
        ),
        (
            CONFIG,
            in_list,
            "the model has no template named \"default\", only rag, tool_use",
        ),
    ];
    for (file, text, expected) in cases {
        let tokenizer = Tokenizer::from_folder(folder(&[(file, text)]).path()).unwrap();
        assert!(!tokenizer.encode("hello", false).unwrap().is_empty());
        let template = tokenizer.chat_template().unwrap();
        let error = template.render(&[], false).unwrap_err().to_string();
        assert!(error.contains(expected), "{error:?} should contain {expected:?}");
    }
}

/// transformers uses `tool_use` if there are tools, even an empty list, and `default` otherwise.
#[test]
fn conversations_with_tools_take_their_own_template() {
    let in_list = json!({"chat_template": [{"name": "tool_use", "template": "tools {{ tools }}"},
                                           {"name": "default", "template": "plain"}]})
    .to_string();
    let additional = format!("{TEMPLATE_FOLDER}/tool_use.jinja");
    let files: [&[(&str, &str)]; 2] = [
        &[(CONFIG, &in_list)],
        &[
            (TEMPLATE, "plain"),
            (&additional, "tools {{ tools }}"),
            (CONFIG, r#"{"chat_template": "no"}"#),
        ],
    ];
    for files in files {
        let tokenizer = Tokenizer::from_folder(folder(files).path()).unwrap();
        let template = tokenizer.chat_template().unwrap();
        assert_eq!(template.render(&[], false).unwrap(), "plain");
        for (tools, expected) in [
            (json!(null), "plain"),
            (json!([]), "tools []"),
            (json!([1]), "tools [1]"),
        ] {
            assert_eq!(template.render_with_tools(&[], Some(&tools), false).unwrap(), expected);
        }
    }
}

#[test]
fn templates_see_every_token_that_has_a_name() {
    let config = json!({"eos_token": "<|im_end|>", "image_token": {"content": "<img>"}, "add_bos_token": true,
                        "extra_special_tokens": {"audio": "<audio>"}, "unk_token": null,
                        "chat_template": "{{ eos_token }}{{ image_token }}{{ audio }}{{ add_bos_token }}{{ unk_token }}"})
    .to_string();
    let tokenizer = Tokenizer::from_folder(folder(&[(CONFIG, &config)]).path()).unwrap();
    let text = tokenizer.chat_template().unwrap().render(&[], false).unwrap();
    assert_eq!(text, "<|im_end|><img><audio>");
}

#[test]
fn files_are_read_with_a_size_limit() {
    for (name, bytes, most) in [(TOKENIZER, 129 << 20, "128 MiB"), (CONFIG, 17 << 20, "16 MiB")] {
        let folder = folder(&[]);
        let file = std::fs::File::create(folder.path().join(name)).unwrap();
        file.set_len(bytes).unwrap();
        let error = Tokenizer::from_folder(folder.path()).unwrap_err();
        assert!(matches!(error, TextError::TooLarge { .. }), "{error}");
        assert!(
            error.to_string().contains(&format!("{name}: larger than {most}")),
            "{error}"
        );
    }
    let folder = folder(&[]);
    std::fs::create_dir(folder.path().join(CONFIG)).unwrap();
    let error = Tokenizer::from_folder(folder.path()).unwrap_err().to_string();
    assert!(
        error.ends_with("tokenizer_config.json: cannot be read: it is not a regular file"),
        "{error}"
    );
}

#[test]
fn a_byte_order_mark_is_ignored() {
    let folder = folder(&[(CONFIG, "\u{FEFF}{\"eos_token\": \"<|im_end|>\"}")]);
    let marked = [b"\xEF\xBB\xBF".as_slice(), &byte_level_json()].concat();
    std::fs::write(folder.path().join(TOKENIZER), marked).unwrap();
    let tokenizer = Tokenizer::from_folder(folder.path()).unwrap();
    assert_eq!(tokenizer.eos_token_id(), tokenizer.token_id("<|im_end|>"));
}

#[test]
fn other_vocabularies_say_how_to_convert_them() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("tokenizer.model"), "x").unwrap();
    let error = Tokenizer::from_folder(folder.path()).unwrap_err();
    assert!(matches!(error, TextError::Unconverted { .. }));
    let shown = folder.path().display();
    let expected = format!(
        "{shown}: has tokenizer.model but no tokenizer.json; make one with `pip install transformers sentencepiece protobuf \
         tiktoken` and then: python -c \"from transformers import AutoTokenizer; \
         AutoTokenizer.from_pretrained(r'{shown}').save_pretrained(r'{shown}')\""
    );
    assert_eq!(error.to_string(), expected);
}

/// Every truncation of a valid file, and many corrupted ones, give a tokenizer or an error, never a panic.
#[test]
fn damaged_tokenizers_never_panic() {
    let good = byte_level_json();
    for length in (0..good.len()).step_by(97) {
        assert!(Tokenizer::from_bytes(&good[..length], b"{}").is_err());
    }
    let text = String::from_utf8(good).unwrap();
    let damages = [
        ("\"ids\":[", "\"ids\":[4000000000,"),
        ("\"id\":", "\"id\":-"),
        ("\"ByteLevel\"", "\"Metaspace\""),
        ("\"<|bos|>\"", "\"<|nix|>\""),
        ("[\"u\",\"s\"]", "[\"nix\",\"s\"]"),
        ("\"merges\":[", "\"merges\":[[],"),
        ("\"unk_token\":null", "\"unk_token\":\"nix\""),
        ("\"vocab\":{", "\"vocab\":{\"hello\":4294967295,"),
        ("\"stride\":0", "\"stride\":18446744073709551615"),
        ("\"max_length\":4", "\"max_length\":0"),
    ];
    for (from, to) in damages {
        let damaged = text.replacen(from, to, 1);
        assert_ne!(damaged, text, "{from}");
        if let Ok(tokenizer) = Tokenizer::from_bytes(damaged.as_bytes(), b"{}") {
            let _ = tokenizer
                .encode("hello <|im_end|> ñ", true)
                .map(|ids| tokenizer.decode(&ids, false));
        }
    }
}
