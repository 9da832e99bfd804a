//! Splits compared with the Python tokenizers, whose patterns run in Oniguruma.

use std::time::{Duration, Instant};

use serde_json::{Value as Json, json};
use tokenizers::tokenizer::pattern::Pattern;

use super::pattern::SplitPattern;
use super::translate::translate;
use crate::text::Tokenizer;

/// `fixtures/tokenizers/splits.json`, written with tokenizers 0.23.3.
fn fixture() -> Json {
    serde_json::from_str(include_str!("../../../../../fixtures/tokenizers/splits.json")).unwrap()
}

/// A tokenizer of the fixture's model with these parts.
fn tokenizer(model: &Json, normalizer: &Json, pre_tokenizer: &Json) -> Tokenizer {
    let file = json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": normalizer,
                      "pre_tokenizer": pre_tokenizer, "post_processor": null, "decoder": null, "model": model});
    Tokenizer::from_bytes(file.to_string().as_bytes(), b"{}").unwrap()
}

fn differences(name: &str, tokenizer: &Tokenizer, cases: &Json) -> Vec<String> {
    let mut out = Vec::new();
    for case in cases.as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        let expected: Vec<u32> = serde_json::from_value(case["ids"].clone()).unwrap();
        let pieces = |ids: &[u32]| ids.iter().map(|id| tokenizer.token(*id).unwrap()).collect::<Vec<_>>();
        match tokenizer.encode(text, false) {
            Ok(ids) if ids == expected => {}
            Ok(ids) => out.push(format!(
                "{name}: {text:?}\n    gives    {:?}\n    expected {:?}",
                pieces(&ids),
                pieces(&expected)
            )),
            Err(error) => out.push(format!("{name}: {text:?}: {error}")),
        }
    }
    out
}

#[test]
fn token_ids_are_those_of_the_python_tokenizers() {
    let fixture = fixture();
    let families = fixture["families"].as_object().unwrap();
    let mut found = Vec::new();
    for (name, family) in families {
        let tokenizer = tokenizer(&fixture["model"], &Json::Null, &family["pre_tokenizer"]);
        found.extend(differences(name, &tokenizer, &family["cases"]));
    }
    let normalized = &fixture["normalized"];
    let pre_tokenizer = &families["gpt2"]["pre_tokenizer"];
    let normalizing = tokenizer(&fixture["model"], &normalized["normalizer"], pre_tokenizer);
    found.extend(differences("normalized", &normalizing, &normalized["cases"]));
    assert!(families.len() >= 30);
    assert!(found.is_empty(), "{} texts differ:\n{}", found.len(), found.join("\n"));
}

/// Tokens of `tokenizer_config.json` that `tokenizer.json` lacks, or has with other flags, as in transformers 5.23.
#[test]
fn tokens_of_the_settings_are_added_as_in_transformers() {
    let fixture = fixture();
    for settings in fixture["settings"].as_array().unwrap() {
        let file = json!({"version": "1.0", "truncation": null, "padding": null, "normalizer": null,
                          "added_tokens": settings["tokenizer"]["added_tokens"],
                          "pre_tokenizer": fixture["families"]["gpt2"]["pre_tokenizer"], "post_processor": null,
                          "decoder": null, "model": fixture["model"]});
        let config = settings["config"].to_string();
        let tokenizer = Tokenizer::from_bytes(file.to_string().as_bytes(), config.as_bytes()).unwrap();
        for case in settings["cases"].as_array().unwrap() {
            let ids = tokenizer.encode(case["text"].as_str().unwrap(), false).unwrap();
            assert_eq!(json!(ids), case["ids"], "{}: {}", settings["name"], case["text"]);
            let text = tokenizer.decode(&ids, true).unwrap();
            assert_eq!(json!(text), case["decoded"], "{}: {}", settings["name"], case["text"]);
        }
    }
}

fn checksum(ids: &[u32]) -> u64 {
    let step = |total: u64, id: &u32| ((u128::from(total) * 31 + u128::from(*id)) % (1 << 61)) as u64;
    ids.iter().fold(0, step)
}

/// Runs of a million characters give the ids of the Python tokenizers too, within seconds.
#[test]
fn long_runs_take_bounded_time() {
    let fixture = fixture();
    for (name, family) in fixture["families"].as_object().unwrap() {
        let tokenizer = tokenizer(&fixture["model"], &Json::Null, &family["pre_tokenizer"]);
        for run in family["long"].as_array().into_iter().flatten() {
            let unit = run["unit"].as_str().unwrap();
            let text = unit.repeat(run["count"].as_u64().unwrap() as usize) + run["tail"].as_str().unwrap();
            let start = Instant::now();
            let ids = tokenizer.encode(&text, false).unwrap();
            let took = start.elapsed();
            assert_eq!(
                ids.len() as u64,
                run["length"].as_u64().unwrap(),
                "{name}: a run of {unit:?}"
            );
            assert_eq!(
                checksum(&ids),
                run["checksum"].as_u64().unwrap(),
                "{name}: a run of {unit:?}"
            );
            assert!(
                took < Duration::from_secs(50),
                "{name}: a run of {unit:?} took {took:?}"
            );
        }
    }
}

/// Patterns that would backtrack forever end with an error that names them.
#[test]
fn hostile_patterns_are_stopped() {
    for source in ["(a*)*b(?=c)", "(a|aa)+$(?!b)", "(?:a+)+(?=b)", r"(?>a?){1000}(?=b)"] {
        let pattern = SplitPattern::new(source).unwrap();
        let start = Instant::now();
        if let Err(error) = (&pattern).find_matches(&"a".repeat(5000)) {
            assert!(error.to_string().contains(source), "{error}");
        }
        assert!(
            start.elapsed() < Duration::from_secs(30),
            "{source}: {:?}",
            start.elapsed()
        );
    }
    let huge = format!("{}a{}", "(".repeat(60_000), ")".repeat(1000));
    assert!(SplitPattern::new(&huge).is_err());
    assert!(SplitPattern::new("(?:a{1000}){1000}{1000}").is_err());
}

#[test]
fn patterns_are_translated() {
    let cases = [
        (r"a{1,3}+", r"(?:a{1,3})+", false),
        ("(ab){,2}", "(?:ab){0,2}", false),
        (r"[\w-]+", r"[\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\-]+", false),
        (r"a++(?m:.)", r"a++(?s:.)", true),
        (r"[[:digit:]~~--]", r"[[\p{Nd}]\~\~\-\-]", false),
        (r"a{b}", r"a\{b}", false),
    ];
    for (pattern, expected, fancy) in cases {
        let translated = translate(pattern).unwrap();
        assert_eq!(
            (translated.pattern.as_str(), translated.fancy),
            (expected, fancy),
            "{pattern}"
        );
    }
    for refused in [
        r"\X",
        r"\1",
        r"\K",
        r"(?<name>a)",
        r"(?x)a",
        r"[[:graph:]]",
        r"\xFF",
        "[a",
        "a\\",
        r"\p{L",
        r"(?~a)",
        r"\G",
    ] {
        assert!(SplitPattern::new(refused).is_err(), "{refused}");
    }
}
