//! Settings as transformers writes them, and settings that are inconsistent or not supported.

use serde_json::json;

use super::*;
use crate::models::RopeScaling;

fn llama() -> Value {
    json!({
        "model_type": "llama", "vocab_size": 50, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 1,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "hidden_act": "silu",
        "attention_bias": true, "mlp_bias": true, "tie_word_embeddings": false,
    })
}

fn qwen2() -> Value {
    json!({
        "model_type": "qwen2", "vocab_size": 50, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3,
        "num_attention_heads": 3, "num_key_value_heads": 1, "tie_word_embeddings": true,
    })
}

/// `base` with some fields replaced.
fn with(mut base: Value, changes: Value) -> Result<ModelConfig> {
    let (Value::Object(map), Value::Object(changes)) = (&mut base, changes) else {
        unreachable!()
    };
    map.extend(changes);
    ModelConfig::from_json(Path::new("config.json"), map)
}

fn fault(changes: Value) -> ConfigError {
    let fault = with(llama(), changes).unwrap_err();
    assert!(fault.to_string().contains("config.json"), "{fault} names the file");
    fault
}

#[test]
fn defaults_are_those_of_transformers() {
    let minimal = json!({
        "model_type": "llama", "vocab_size": 50, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2,
        "num_attention_heads": 3, "head_dim": null, "num_key_value_heads": null,
    });
    let config = with(minimal, json!({})).unwrap();
    assert_eq!((config.num_key_value_heads, config.head_dim), (3, 8));
    assert_eq!((config.max_position_embeddings, config.rms_norm_eps), (2048, 1e-6));
    assert_eq!(
        config.rope,
        RopeConfig {
            theta: 10_000.0,
            scaling: RopeScaling::Default
        }
    );
    assert!(!config.tie_word_embeddings && !config.attention_bias && !config.mlp_bias);
    assert_eq!(config.dtype, None);
    assert_eq!((config.bos_token_id, config.eos_token_ids), (Some(1), vec![2]));
    let qwen = with(qwen2(), json!({})).unwrap();
    assert_eq!((qwen.bos_token_id, qwen.eos_token_ids), (None, vec![]));
    assert!(qwen.attention_bias && !qwen.mlp_bias && qwen.tie_word_embeddings);
    assert_eq!((qwen.max_position_embeddings, qwen.head_dim), (32_768, 8));
    assert_eq!(qwen.sliding_windows, [None; 3]);
}

#[test]
fn token_ids_and_dtype() {
    let config = with(
        llama(),
        json!({"eos_token_id": [2, 7], "bos_token_id": 1, "torch_dtype": "bfloat16"}),
    )
    .unwrap();
    assert_eq!((config.eos_token_ids, config.bos_token_id), (vec![2, 7], Some(1)));
    assert_eq!(config.dtype, Some(DType::BF16));
    let none = with(llama(), json!({"eos_token_id": null, "bos_token_id": null})).unwrap();
    assert_eq!((none.eos_token_ids, none.bos_token_id), (vec![], None));
    for negative in [json!(-1), json!([-1])] {
        let none = with(llama(), json!({"eos_token_id": negative})).unwrap();
        assert!(none.eos_token_ids.is_empty());
    }
    assert_eq!(
        with(llama(), json!({"eos_token_id": [7, -1]})).unwrap().eos_token_ids,
        [7]
    );
    assert_eq!(
        with(llama(), json!({"dtype": "float32"})).unwrap().dtype,
        Some(DType::F32)
    );
}

#[test]
fn old_and_new_rope_keys_agree() {
    let scaling = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    });
    let old = with(llama(), json!({"rope_theta": 500_000.0, "rope_scaling": scaling})).unwrap();
    let mut both = scaling;
    both["rope_theta"] = json!(500_000.0);
    let new = with(llama(), json!({"rope_parameters": both})).unwrap();
    assert_eq!(old.rope, new.rope);
    // An empty object counts as absent; if both exist, the older one takes precedence.
    let empty = with(llama(), json!({"rope_scaling": {}, "rope_parameters": both})).unwrap();
    assert_eq!(empty.rope, new.rope);
    let older = json!({"type": "linear", "factor": 2});
    let two = with(llama(), json!({"rope_scaling": older, "rope_parameters": both})).unwrap();
    assert_eq!(two.rope.scaling, RopeScaling::Linear { factor: 2.0 });
    let linear = with(llama(), json!({"rope_scaling": {"type": "linear", "factor": 2}})).unwrap();
    assert_eq!(linear.rope.scaling, RopeScaling::Linear { factor: 2.0 });
}

#[test]
fn the_original_context_of_the_file_wins_over_the_nested_one() {
    let original = |scaling: &Value, top: Value| {
        let changes = json!({
            "rope_scaling": scaling, "original_max_position_embeddings": top, "max_position_embeddings": 512,
        });
        match with(llama(), changes).unwrap().rope.scaling {
            RopeScaling::Llama3 {
                original_max_position_embeddings,
                ..
            }
            | RopeScaling::Yarn {
                original_max_position_embeddings,
                ..
            } => original_max_position_embeddings,
            other => panic!("{other:?}"),
        }
    };
    let llama3 = json!({"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4});
    for mut scaling in [llama3, json!({"type": "yarn", "factor": 4})] {
        assert_eq!(original(&scaling, Value::Null), 512);
        assert_eq!(original(&scaling, json!(32)), 32);
        scaling["original_max_position_embeddings"] = json!(64);
        assert_eq!(original(&scaling, Value::Null), 64);
        assert_eq!(original(&scaling, json!(32)), 32);
    }
    let zero = json!({"rope_scaling": {"type": "yarn"}, "original_max_position_embeddings": 0});
    assert!(
        fault(zero)
            .to_string()
            .contains("`original_max_position_embeddings` is 0")
    );
}

#[test]
fn the_attention_factor_of_yarn() {
    let factor = |mut scaling: Value| {
        scaling["rope_type"] = json!("yarn");
        with(llama(), json!({"rope_scaling": scaling}))
            .unwrap()
            .rope
            .attention_factor()
    };
    let near = |found: f64, expected: f64| assert!((found - expected).abs() < 1e-12, "{found} against {expected}");
    near(factor(json!({"factor": 4})), 0.1 * 4f64.ln() + 1.0);
    near(factor(json!({"factor": 0.5})), 1.0);
    near(factor(json!({"factor": 4, "attention_factor": 0.5})), 0.5);
    let both = json!({"factor": 4, "mscale": 0.7, "mscale_all_dim": 1.3});
    near(factor(both), (0.07 * 4f64.ln() + 1.0) / (0.13 * 4f64.ln() + 1.0));
    near(factor(json!({"factor": 4, "mscale": 0.7})), 0.1 * 4f64.ln() + 1.0);
    // Without a factor, the ratio of the two context lengths.
    near(
        factor(json!({"original_max_position_embeddings": 512})),
        0.1 * 4f64.ln() + 1.0,
    );
    near(factor(json!({})), 1.0);
}

/// Head dimension 24, where the exponent itself rounds; values of transformers 5's `LlamaRotaryEmbedding`.
#[test]
#[expect(clippy::excessive_precision, reason = "the constants are f32 values printed in full")]
fn inverse_frequencies_equal_transformers() {
    let rope = json!({
        "rope_theta": 500_000.0, "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    });
    let expected: [f32; 12] = [
        1.0,
        0.335_031_628_6,
        0.112_246_193,
        0.037_606_030_7,
        0.012_599_208_39,
        0.004_221_134_819,
        0.000_524_846_022,
        5.922_580_021e-5,
        1.984_250_775e-5,
        6.647_869_668e-6,
        2.227_247_478e-6,
        7.461_979_408e-7,
    ];
    let found = with(llama(), json!({"head_dim": 24, "rope_parameters": rope}))
        .unwrap()
        .inverse_frequencies();
    assert_eq!(found.len(), 12);
    for (f, e) in found.iter().zip(expected) {
        assert!((f - e).abs() <= 3e-7 * e, "{f} against {e}");
    }
}

#[test]
fn sliding_windows_as_transformers_derives_them() {
    let some = [None, Some(5), Some(5)];
    let by_index = json!({"use_sliding_window": true, "sliding_window": 5, "max_window_layers": 1});
    assert_eq!(with(qwen2(), by_index).unwrap().sliding_windows, some);
    let types = json!(["full_attention", "sliding_attention", "sliding_attention"]);
    let by_type = json!({"use_sliding_window": true, "sliding_window": 5, "layer_types": types});
    assert_eq!(with(qwen2(), by_type).unwrap().sliding_windows, some);
    let unused = json!({"use_sliding_window": false, "sliding_window": 5, "max_window_layers": 0});
    assert_eq!(with(qwen2(), unused).unwrap().sliding_windows, [None; 3]);
    for (types, field) in [
        (json!(["full_attention"]), "layer_types"),
        (
            json!(["sliding_attention", "full_attention", "full_attention"]),
            "layer_types",
        ),
        (
            json!(["chunked_attention", "full_attention", "full_attention"]),
            "layer_types",
        ),
        (json!("full_attention"), "layer_types"),
    ] {
        let fault = with(qwen2(), json!({"layer_types": types})).unwrap_err();
        assert!(fault.to_string().contains(field), "{fault}");
    }
}

/// The lists that `named_parameters()` of transformers gives for the same settings.
#[test]
fn parameters_equal_those_of_transformers() {
    let layer = |l: &str| format!("model.layers.0.{l}");
    let expected: Vec<(String, Vec<usize>)> = [
        ("model.embed_tokens.weight".to_owned(), vec![50, 24]),
        (layer("self_attn.q_proj.weight"), vec![32, 24]),
        (layer("self_attn.q_proj.bias"), vec![32]),
        (layer("self_attn.k_proj.weight"), vec![16, 24]),
        (layer("self_attn.k_proj.bias"), vec![16]),
        (layer("self_attn.v_proj.weight"), vec![16, 24]),
        (layer("self_attn.v_proj.bias"), vec![16]),
        (layer("self_attn.o_proj.weight"), vec![24, 32]),
        (layer("self_attn.o_proj.bias"), vec![24]),
        (layer("mlp.gate_proj.weight"), vec![40, 24]),
        (layer("mlp.gate_proj.bias"), vec![40]),
        (layer("mlp.up_proj.weight"), vec![40, 24]),
        (layer("mlp.up_proj.bias"), vec![40]),
        (layer("mlp.down_proj.weight"), vec![24, 40]),
        (layer("mlp.down_proj.bias"), vec![24]),
        (layer("input_layernorm.weight"), vec![24]),
        (layer("post_attention_layernorm.weight"), vec![24]),
        ("model.norm.weight".to_owned(), vec![24]),
        ("lm_head.weight".to_owned(), vec![50, 24]),
    ]
    .into();
    assert_eq!(with(llama(), json!({})).unwrap().parameter_shapes(), expected);
    let qwen = with(qwen2(), json!({"num_hidden_layers": 1}))
        .unwrap()
        .parameter_shapes();
    let biases: Vec<_> = qwen
        .iter()
        .filter(|(n, _)| n.ends_with("bias"))
        .map(|(_, s)| s[0])
        .collect();
    assert_eq!((qwen.len(), biases), (14, vec![24, 8, 8]));
    assert!(!qwen.iter().any(|(n, _)| n == "lm_head.weight"));
}

#[test]
fn required_fields_are_named() {
    for field in [
        "model_type",
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
    ] {
        let fault = fault(json!({ field: null }));
        assert!(
            matches!(&fault, ConfigError::Missing { field: f, .. } if f == field),
            "{fault}"
        );
    }
}

#[test]
fn wrong_types_are_named() {
    for (field, value) in [
        ("model_type", json!(3)),
        ("vocab_size", json!("many")),
        ("hidden_size", json!(-16)),
        ("hidden_size", json!(16.5)),
        ("num_hidden_layers", json!([1])),
        ("rms_norm_eps", json!("small")),
        ("tie_word_embeddings", json!(1)),
        ("rope_theta", json!({})),
        ("rope_scaling", json!(2)),
        ("eos_token_id", json!("2")),
        ("eos_token_id", json!(2.0)),
        ("rms_norm_eps", json!("Infinity")),
        ("dtype", json!(16)),
    ] {
        let fault = fault(json!({ field: value }));
        assert!(
            matches!(&fault, ConfigError::Type { field: f, .. } if f == field),
            "{field}: {fault}"
        );
    }
}

#[test]
fn impossible_sizes_are_named() {
    for (field, value) in [
        ("vocab_size", json!(0)),
        ("vocab_size", json!(u64::MAX)),
        ("hidden_size", json!(1_u64 << 40)),
        ("num_hidden_layers", json!(1_000_000_000)),
        ("num_hidden_layers", json!(0)),
        ("num_attention_heads", json!(0)),
        ("num_key_value_heads", json!(0)),
        ("num_key_value_heads", json!(3)),
        ("head_dim", json!(7)),
        ("head_dim", json!(0)),
        ("max_position_embeddings", json!(0)),
        ("rms_norm_eps", json!(-1e-6)),
        ("rms_norm_eps", json!(0)),
        ("rope_theta", json!(0)),
        ("rope_theta", json!(-1)),
        ("rope_theta", json!(1e300)),
    ] {
        let fault = fault(json!({ field: value }));
        assert!(
            matches!(&fault, ConfigError::Invalid { field: f, .. } if f == field),
            "{field}: {fault}"
        );
    }
    let odd = fault(json!({"head_dim": null, "hidden_size": 26}));
    assert!(
        odd.to_string().contains("not a multiple of num_attention_heads"),
        "{odd}"
    );
}

#[test]
fn inconsistent_rope_scaling_is_an_error() {
    for (scaling, field) in [
        (json!({"rope_type": "longrope", "factor": 2}), "rope_scaling.rope_type"),
        (json!({"type": "su", "factor": 2}), "rope_scaling.type"),
        (json!({"type": "mrope", "mrope_section": [1, 1]}), "rope_scaling.type"),
        (json!({"full_attention": {}}), "rope_scaling.full_attention"),
        (json!({"rope_type": "dynamic"}), "rope_scaling.factor"),
        (json!({"rope_type": "yarn", "factor": -2}), "rope_scaling.factor"),
        (json!({"rope_type": "yarn", "beta_fast": -1}), "rope_scaling.beta_fast"),
        (
            json!({"rope_type": "yarn", "attention_factor": 0}),
            "rope_scaling.attention_factor",
        ),
        (json!({"rope_type": "yarn", "rope_theta": 1}), "rope_scaling.rope_theta"),
        (
            json!({"rope_type": "yarn", "original_max_position_embeddings": 0}),
            "rope_scaling.original_max_position_embeddings",
        ),
        (json!({"type": "linear"}), "rope_scaling.factor"),
        (json!({"type": "linear", "factor": 0}), "rope_scaling.factor"),
        (
            json!({"rope_type": "llama3", "factor": 8, "high_freq_factor": 4}),
            "rope_scaling.low_freq_factor",
        ),
        (
            json!({"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4}),
            "rope_scaling.high_freq_factor",
        ),
        (
            json!({"partial_rotary_factor": 0.5}),
            "rope_scaling.partial_rotary_factor",
        ),
    ] {
        let text = fault(json!({"rope_scaling": scaling})).to_string();
        assert!(text.contains(&format!("`{field}`")), "{text}");
    }
    assert!(
        fault(json!({"rope_scaling": {"type": "longrope"}}))
            .to_string()
            .contains("default, linear, dynamic, llama3, yarn")
    );
}

#[test]
fn what_is_not_implemented_is_refused() {
    let unknown = fault(json!({"model_type": "mamba"})).to_string();
    assert!(
        unknown.contains("`mamba`") && unknown.contains("llama, qwen2"),
        "{unknown}"
    );
    assert!(matches!(
        fault(json!({"hidden_act": "gelu"})),
        ConfigError::Unsupported { .. }
    ));
    assert!(matches!(
        fault(json!({"dtype": "float8_e4m3fn"})),
        ConfigError::Unsupported { .. }
    ));
    for (field, value) in [
        ("hidden_act", json!("SiLU")),
        ("hidden_act", json!("gelu_pytorch_tanh")),
        ("is_causal", json!(false)),
        ("quantization_config", json!({"quant_method": "gptq"})),
        ("per_layer_config", json!({"0": {}})),
        ("partial_rotary_factor", json!(0.5)),
    ] {
        let fault = fault(json!({ field: value }));
        assert!(
            matches!(&fault, ConfigError::Unsupported { field: f, .. } if f == field),
            "{fault}"
        );
    }
    for same in [
        json!({"hidden_act": "swish"}),
        json!({"is_causal": true, "quantization_config": null, "attention_dropout": 0.0}),
    ] {
        assert_eq!(with(llama(), same).unwrap().warnings, [""; 0]);
    }
    let dropout = with(llama(), json!({"attention_dropout": 0.1})).unwrap().warnings;
    assert!(
        dropout.len() == 1 && dropout[0].contains("attention_dropout = 0.1"),
        "{dropout:?}"
    );
}

/// Defaults of absent fields, and of null ones.
#[test]
fn qwen2_has_defaults_of_its_own() {
    let mut base = qwen2();
    base["num_attention_heads"] = json!(64);
    base["hidden_size"] = json!(512);
    base["num_key_value_heads"] = Value::Null;
    assert_eq!(with(base.clone(), json!({})).unwrap().num_key_value_heads, 64);
    base.as_object_mut().unwrap().remove("num_key_value_heads");
    assert_eq!(with(base, json!({})).unwrap().num_key_value_heads, 32);
    let window = json!({"use_sliding_window": true, "max_window_layers": 0});
    assert_eq!(with(qwen2(), window).unwrap().sliding_windows, [Some(4096); 3]);
    let null = json!({"use_sliding_window": true, "max_window_layers": 0, "sliding_window": null});
    assert_eq!(with(qwen2(), null).unwrap().sliding_windows, [None; 3]);
}

#[test]
fn a_folder_without_settings_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let fault = ModelConfig::read(folder.path()).unwrap_err();
    assert!(matches!(fault, ConfigError::File(_)) && fault.to_string().contains("config.json"));
    let write = |text: String| std::fs::write(folder.path().join("config.json"), text).unwrap();
    write(llama().to_string());
    assert_eq!(ModelConfig::read(folder.path()).unwrap().hidden_size, 24);
    // With a byte order mark, and non-JSON numbers in a field that is not read.
    let text = llama().to_string();
    let odd = text.replacen('{', "{\"time_step_limit\": [0.0, Infinity], \"x\": NaN, ", 1);
    write(format!("\u{feff}{odd}"));
    assert_eq!(ModelConfig::read(folder.path()).unwrap().hidden_size, 24);
    // In a field that is read they are errors.
    write(text.replacen('{', "{\"rms_norm_eps\": NaN, ", 1));
    let fault = ModelConfig::read(folder.path()).unwrap_err().to_string();
    assert!(
        fault.contains("`rms_norm_eps` should be a number, found \"NaN\""),
        "{fault}"
    );
}
