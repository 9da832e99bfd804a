//! Adapter settings as PEFT writes them, and settings that are refused.

use super::*;

/// Written by PEFT 0.21 (`save_pretrained`), with ranks and alphas by pattern.
const PEFT: &str = r#"{
  "alora_invocation_tokens": null, "alpha_pattern": {"v_proj": 6}, "arrow_config": null, "auto_mapping": null,
  "base_model_name_or_path": "some/model", "bias": "none", "corda_config": null, "ensure_weight_tying": false,
  "eva_config": null, "exclude_modules": null, "fan_in_fan_out": false, "inference_mode": true,
  "init_lora_weights": true, "kasa_config": null, "layer_replication": null, "layers_pattern": null,
  "layers_to_transform": null, "loftq_config": {}, "lora_alpha": 4, "lora_bias": false, "lora_dropout": 0.25,
  "lora_ga_config": null, "megatron_config": null, "megatron_core": "megatron.core", "modules_to_save": null,
  "monteclora_config": null, "peft_type": "LORA", "peft_version": "0.21.2", "qalora_group_size": 16, "r": 2,
  "rank_pattern": {"layers.0.self_attn.v_proj": 3, "v_proj": 4}, "revision": null,
  "target_modules": ["v_proj", "q_proj"], "target_parameters": null, "task_type": "CAUSAL_LM",
  "trainable_token_indices": null, "use_bdlora": null, "use_dora": false, "use_qalora": false, "use_rslora": false,
  "velora_config": null
}"#;

fn parse(value: &Value) -> Result<AdapterConfig> {
    AdapterConfig::from_json(Path::new(FILE), value.as_object().unwrap())
}

fn changed(changes: &Value) -> Result<AdapterConfig> {
    let mut value: Value = serde_json::from_str(PEFT).unwrap();
    value
        .as_object_mut()
        .unwrap()
        .extend(changes.as_object().unwrap().clone());
    parse(&value)
}

#[test]
fn reads_what_peft_writes() {
    let config = changed(&json!({})).unwrap();
    let expected = AdapterConfig {
        r: 2,
        lora_alpha: 4.0,
        lora_dropout: 0.25,
        use_rslora: false,
        target_modules: TargetModules::Names(vec!["v_proj".into(), "q_proj".into()]),
        rank_pattern: vec![("layers.0.self_attn.v_proj".into(), 3), ("v_proj".into(), 4)],
        alpha_pattern: vec![("v_proj".into(), 6.0)],
        base_model_name_or_path: Some("some/model".into()),
    };
    assert_eq!(config, expected);
    let each = config.per_module().unwrap();
    assert_eq!(each.rank_of("model.layers.0.self_attn.v_proj"), 3);
    assert_eq!(each.rank_of("model.layers.1.self_attn.v_proj"), 4);
    assert_eq!(each.rank_of("model.layers.1.self_attn.xv_proj"), 2);
    let scalings = ["model.layers.0.self_attn.v_proj", "v_proj", "q_proj"].map(|m| each.scaling_of(m));
    assert_eq!(scalings.map(|s| s.to_string()), ["2", "1.5", "2"]);
}

#[test]
fn what_is_written_is_read() {
    for targets in [
        TargetModules::AllLinear,
        TargetModules::Pattern(r".*\.q_proj".into()),
        TargetModules::Names(vec!["b".into(), "a".into()]),
    ] {
        let config = AdapterConfig {
            r: 3,
            lora_alpha: 2.5,
            use_rslora: true,
            target_modules: targets,
            rank_pattern: vec![("q".into(), 7)],
            alpha_pattern: vec![("q".into(), 0.5)],
            ..Default::default()
        };
        assert_eq!(parse(&config.to_json()).unwrap(), config);
    }
    assert_eq!(AdapterConfig::default().to_json()["lora_alpha"].to_string(), "8");
}

#[test]
fn unsupported_settings_are_refused_by_name() {
    for (field, value) in [
        ("bias", json!("all")),
        ("peft_type", json!("IA3")),
        ("task_type", json!("SEQ_CLS")),
        ("use_dora", json!(true)),
        ("fan_in_fan_out", json!(true)),
        ("modules_to_save", json!(["lm_head"])),
        ("layers_to_transform", json!(0)),
        ("layers_to_transform", json!([0, 1])),
        ("exclude_modules", json!("q_proj")),
        ("layer_replication", json!([[0, 4]])),
        ("init_lora_weights", json!("pissa")),
    ] {
        let fault = changed(&json!({ field: value })).unwrap_err();
        let named = matches!(&fault, AdapterError::Config(ConfigError::Unsupported { field: f, .. }) if f == field);
        assert!(named, "{field}: {fault}");
    }
    changed(&json!({"modules_to_save": [], "some_future_key": {"a": 1}})).unwrap();
}

#[test]
fn bad_values_name_the_field() {
    for (field, value) in [
        ("r", json!(0)),
        ("r", json!(-1)),
        ("r", json!(1_000_000_000)),
        ("lora_alpha", json!(0)),
        ("lora_alpha", json!("big")),
        ("lora_dropout", json!(1.0)),
        ("use_rslora", json!("yes")),
        ("target_modules", json!(null)),
        ("target_modules", json!([])),
        ("target_modules", json!(["q_proj", ""])),
        ("target_modules", json!(5)),
        ("target_modules", json!([5])),
        ("target_modules", json!("(")),
        ("rank_pattern", json!({"q_proj": 0})),
        ("rank_pattern", json!({"q_proj": "x"})),
        ("rank_pattern", json!({"(": 1})),
        ("alpha_pattern", json!([1])),
        ("alpha_pattern", (0..2000).map(|i| (i.to_string(), json!(1))).collect()),
        ("peft_type", json!(null)),
    ] {
        let fault = changed(&json!({ field: value })).unwrap_err().to_string();
        assert!(fault.contains(&format!("`{field}`")), "{field}: {fault}");
    }
}

#[test]
fn settings_made_in_code_are_validated() {
    let config = AdapterConfig {
        r: 0,
        ..Default::default()
    };
    assert!(matches!(
        config.validate(),
        Err(AdapterError::Setting { field: "r", .. })
    ));
    let config = AdapterConfig {
        lora_dropout: f64::NAN,
        ..Default::default()
    };
    assert!(matches!(
        config.validate(),
        Err(AdapterError::Setting {
            field: "lora_dropout",
            ..
        })
    ));
}

#[test]
fn unknown_settings_are_named_with_the_version_that_wrote_them() {
    let said = |value: &Value| unknown_settings(Path::new("a/adapter_config.json"), value.as_object().unwrap());
    let peft: Value = serde_json::from_str(PEFT).unwrap();
    assert_eq!(said(&peft), None);
    assert_eq!(said(&AdapterConfig::default().to_json()), None);
    let off = json!({"peft_version": "9.1.0", "new_a": null, "new_b": false, "new_c": []});
    assert_eq!(said(&off), None);
    let text = said(&json!({"peft_version": "9.1.0", "r": 8, "new_a": {"x": 1}, "new_b": true})).unwrap();
    assert!(
        text.starts_with(
            "a/adapter_config.json: unknown settings are ignored: `new_a`, `new_b` (written by PEFT 9.1.0)"
        ),
        "{text}"
    );
    let text = said(&json!({"new_a": 0})).unwrap();
    assert!(text.contains("does not name the PEFT version"), "{text}");
    // A malicious file must not produce an endless line.
    let many: Map<String, Value> = (0..1000)
        .map(|i| (format!("{i}\n{}", "x".repeat(1000)), json!(1)))
        .collect();
    let text = said(&Value::Object(many)).unwrap();
    assert!(
        text.contains("992 more") && text.len() < 1000 && text.lines().count() == 1,
        "{text}"
    );
}

/// Numbers that are valid as f64 but not as f32, which the computation uses.
#[test]
fn settings_are_checked_as_f32() {
    let refused = |config: AdapterConfig| config.validate().unwrap_err().to_string();
    let dropout = |lora_dropout| AdapterConfig {
        lora_dropout,
        ..Default::default()
    };
    assert!(refused(dropout(0.999_999_999)).contains("`lora_dropout` is 0.999999999"));
    dropout(0.999).validate().unwrap();
    for lora_alpha in [1e-50, 1e50] {
        let text = refused(AdapterConfig {
            lora_alpha,
            ..Default::default()
        });
        assert!(text.contains("`lora_alpha`"), "{text}");
    }
}
