//! Models against transformers: logits, hidden states, and the errors of folders that do not load.

#![cfg(feature = "graph")]

mod common;

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use common::{MODELS, fixture, largest_difference, reference, tokens_of};
use metal_candle::models::{CausalLm, LoadError, LoadedModel, ModelConfig, from_parts, load, load_model};
use metal_candle::nn::Pass;
use metal_candle::text::Tokenizer;
use metal_candle_graph::LazyTensor;
use serde_json::Value;

#[test]
fn logits_equal_transformers() {
    for name in MODELS {
        let model = load_model(fixture(&format!("models/{name}")), DType::F32, &Device::Cpu).unwrap();
        let expected = reference(&format!("models/{name}/reference.safetensors"));
        let tokens = tokens_of(&expected["input_ids"]);
        let mut pass = Pass::from_start(tokens.dims()[1], &Device::Cpu).unwrap();
        let logits = model.logits(&tokens, &mut pass).unwrap().eval().unwrap();
        let difference = largest_difference(&logits, &expected["logits"]);
        assert!(difference <= 1e-4, "{name}: logits differ by {difference:e}");
    }
}

#[test]
fn hidden_states_equal_transformers() {
    for name in MODELS {
        let model = load_model(fixture(&format!("models/{name}")), DType::F32, &Device::Cpu).unwrap();
        let expected = reference(&format!("models/{name}/reference.safetensors"));
        let tokens = tokens_of(&expected["input_ids"]);
        let mut pass = Pass::from_start(tokens.dims()[1], &Device::Cpu).unwrap();
        let hidden = model.hidden(&tokens, &mut pass).unwrap().eval().unwrap();
        // transformers' last hidden state is the one after the final norm.
        let last = &expected[&format!("hidden_states.{}", model.config().num_hidden_layers)];
        let difference = largest_difference(&hidden, last);
        assert!(difference <= 1e-4, "{name}: hidden states differ by {difference:e}");
    }
}

#[test]
fn packed_texts_do_not_see_each_other() {
    let model = load_model(fixture("models/qwen2-tiny"), DType::F64, &Device::Cpu).unwrap();
    let alone = |ids: &[u32]| {
        let row = LazyTensor::from_data(ids, &[1, ids.len()], &Device::Cpu).unwrap();
        model
            .logits(&row, &mut Pass::from_start(ids.len(), &Device::Cpu).unwrap())
            .unwrap()
            .eval()
            .unwrap()
    };
    let row = |values: &[u32]| LazyTensor::from_data(values, &[1, values.len()], &Device::Cpu).unwrap();
    let mut pass = Pass::new(row(&[0, 1, 2, 0, 1, 2, 3])).with_segments(row(&[0, 0, 0, 1, 1, 1, 1]));
    let packed = model
        .logits(&row(&[9, 8, 7, 20, 21, 22, 23]), &mut pass)
        .unwrap()
        .eval()
        .unwrap();
    let apart = Tensor::cat(&[alone(&[9, 8, 7]), alone(&[20, 21, 22, 23])], 1).unwrap();
    assert!(largest_difference(&packed, &apart) <= 1e-10);
}

/// transformers computes in bf16 throughout, too; its rounding is about 1/256 of the largest logits.
#[test]
fn half_precision_stays_close_to_f32() {
    for (dtype, most) in [(DType::BF16, 0.05), (DType::F16, 0.01)] {
        let model = load_model(fixture("models/llama-tiny"), dtype, &Device::Cpu).unwrap();
        assert_eq!(model.head().dtype(), dtype);
        let expected = reference("models/llama-tiny/reference.safetensors");
        let tokens = tokens_of(&expected["input_ids"]);
        let mut pass = Pass::from_start(tokens.dims()[1], &Device::Cpu).unwrap();
        let logits = model.logits(&tokens, &mut pass).unwrap().eval().unwrap();
        let difference = largest_difference(&logits, &expected["logits"]);
        let largest = expected["logits"]
            .abs()
            .unwrap()
            .max_all()
            .unwrap()
            .to_scalar::<f32>()
            .unwrap();
        assert!(
            difference / f64::from(largest) <= most,
            "{dtype:?}: {difference} of {largest}"
        );
    }
}

/// A sliding window against the definition: each token computed alone from the tokens in its window. Deeper layers see
/// further, so a one-layer model is compared.
#[test]
fn a_sliding_window_masks_earlier_tokens() {
    let folder = fixture("models/qwen2-tiny");
    let mut json: serde_json::Map<String, Value> =
        serde_json::from_slice(&std::fs::read(folder.join("config.json")).unwrap()).unwrap();
    json.insert("num_hidden_layers".into(), 1.into());
    json.insert("use_sliding_window".into(), true.into());
    json.insert("sliding_window".into(), 3.into());
    json.insert("layer_types".into(), serde_json::json!(["sliding_attention"]));
    let config = ModelConfig::from_json("config.json".as_ref(), &json).unwrap();
    let needed = config.parameter_shapes();
    let mut tensors = candle_core::safetensors::load(folder.join("model.safetensors"), &Device::Cpu).unwrap();
    tensors.retain(|name, _| needed.iter().any(|(n, _)| n == name));
    let model = from_parts(&config, tensors, DType::F64, &Device::Cpu).unwrap();

    let ids = [9u32, 8, 7, 20, 21, 22, 23];
    let logits = |from: usize, to: usize| {
        let row = LazyTensor::from_data(&ids[from..to], &[1, to - from], &Device::Cpu).unwrap();
        let positions: Vec<u32> = (from as u32..to as u32).collect();
        let mut pass = Pass::new(LazyTensor::from_data(&positions, &[1, to - from], &Device::Cpu).unwrap());
        model.logits(&row, &mut pass).unwrap().eval().unwrap()
    };
    let whole = logits(0, ids.len());
    for at in 0..ids.len() {
        let window = logits(at.saturating_sub(2), at + 1);
        let last = window.narrow(1, window.dims()[1] - 1, 1).unwrap();
        assert!(
            largest_difference(&last, &whole.narrow(1, at, 1).unwrap()) <= 1e-10,
            "token {at}"
        );
    }
}

#[test]
fn tensors_that_do_not_fit_are_all_named() {
    let folder = fixture("models/llama-tiny");
    let config = ModelConfig::read(&folder).unwrap();
    let good = candle_core::safetensors::load(folder.join("model.safetensors"), &Device::Cpu).unwrap();
    let load = |tensors: &HashMap<String, Tensor>| {
        let folder = tempfile::tempdir().unwrap();
        std::fs::copy(
            fixture("models/llama-tiny/config.json"),
            folder.path().join("config.json"),
        )
        .unwrap();
        candle_core::safetensors::save(tensors, folder.path().join("model.safetensors")).unwrap();
        let of_folder = load_model(folder.path(), DType::F32, &Device::Cpu).map(drop);
        let of_tensors = from_parts(&config, tensors.clone(), DType::F32, &Device::Cpu).map(drop);
        match (of_folder, of_tensors) {
            (Ok(()), Ok(())) => None,
            (Err(LoadError::Tensors { faults, .. }), Err(LoadError::Tensors { faults: same, .. })) => {
                assert_eq!(faults, same);
                Some(faults)
            }
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(load(&good), None);

    let mut with_buffer = good.clone();
    let small = Tensor::zeros(8, DType::F32, &Device::Cpu).unwrap();
    with_buffer.insert("model.layers.0.self_attn.rotary_emb.inv_freq".to_owned(), small.clone());
    assert_eq!(load(&with_buffer), None);

    let mut bad = good;
    let missing = ["lm_head.weight", "model.layers.1.mlp.up_proj.weight"].map(str::to_owned);
    for name in &missing {
        bad.remove(name);
    }
    bad.insert("model.norm.weight".to_owned(), small.clone());
    bad.insert("model.layers.0.self_attn.q_proj.bias".to_owned(), small);
    let faults = load(&bad).unwrap();
    assert_eq!(faults.missing, missing);
    assert_eq!(faults.misshapen, [("model.norm.weight".to_owned(), vec![8], vec![64])]);
    assert_eq!(faults.unexpected, ["model.layers.0.self_attn.q_proj.bias"]);
    let text = faults.to_string();
    assert!(text.contains("`model.norm.weight` is [8] instead of [64]"), "{text}");
    assert!(text.contains("missing: `lm_head.weight`"), "{text}");
}

/// As in transformers 5: a head with different values is used; one equal to the embedding is tied.
#[test]
fn a_head_beside_tied_embeddings_is_used_where_it_differs() {
    let source = fixture("models/llama-tied-tiny");
    let tied = candle_core::safetensors::load(source.join("model.safetensors"), &Device::Cpu).unwrap();
    let embedding = &tied["model.embed_tokens.weight"];
    let own = (embedding * 0.5).unwrap();
    let ids = LazyTensor::from_data(&[3u32, 1, 4, 1, 5], &[1, 5], &Device::Cpu).unwrap();
    let load_with_head = |head: Option<&Tensor>| {
        let folder = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(&source).unwrap() {
            let path = entry.unwrap().path();
            std::fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
        }
        let mut tensors = tied.clone();
        tensors.extend(head.map(|head| ("lm_head.weight".to_owned(), head.clone())));
        candle_core::safetensors::save(&tensors, folder.path().join("model.safetensors")).unwrap();
        let config = ModelConfig::read(folder.path()).unwrap();
        let loaded = load(folder.path(), DType::F32, &Device::Cpu);
        // The same rule holds for tensors in memory.
        let in_memory = from_parts(&config, tensors, DType::F32, &Device::Cpu);
        if let (Ok(loaded), Ok(same)) = (&loaded, &in_memory) {
            let tied = |model: &dyn CausalLm| model.config().tie_word_embeddings;
            assert_eq!(tied(&*loaded.model), tied(&**same));
        }
        assert_eq!(loaded.is_ok(), in_memory.is_ok());
        loaded.map_err(|error| error.to_string())
    };
    let logits = |loaded: &LoadedModel| {
        let mut pass = Pass::from_start(5, &Device::Cpu).unwrap();
        loaded.model.logits(&ids, &mut pass).unwrap().eval().unwrap()
    };
    let plain = load_with_head(None).unwrap();
    let same = load_with_head(Some(embedding)).unwrap();
    assert!(same.warnings.is_empty() && same.model.config().tie_word_embeddings);
    assert!(largest_difference(&logits(&plain), &logits(&same)) == 0.0);
    let other = load_with_head(Some(&own)).unwrap();
    assert!(!other.model.config().tie_word_embeddings);
    assert!(
        other.warnings.len() == 1 && other.warnings[0].contains("lm_head.weight"),
        "{:?}",
        other.warnings
    );
    let halved = (logits(&plain) * 0.5).unwrap();
    assert!(largest_difference(&halved, &logits(&other)) <= 1e-5);
    let misshapen = embedding.narrow(0, 0, 7).unwrap();
    let fault = load_with_head(Some(&misshapen)).map(drop).unwrap_err();
    assert!(
        fault.contains("`lm_head.weight` is [7, 32] instead of [300, 32]"),
        "{fault}"
    );
}

/// Settings that need far more than the weights contain are refused after reading the header alone.
#[test]
fn sizes_beyond_the_weights_are_refused_before_anything_is_allocated() {
    let source = fixture("models/llama-tiny");
    let mut json: serde_json::Map<String, Value> =
        serde_json::from_slice(&std::fs::read(source.join("config.json")).unwrap()).unwrap();
    for (field, value) in [
        ("vocab_size", 1 << 26),
        ("hidden_size", 1 << 20),
        ("intermediate_size", 1 << 22),
        ("num_hidden_layers", 1024),
        ("head_dim", 1 << 14),
    ] {
        json.insert(field.to_owned(), value.into());
    }
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), Value::from(json).to_string()).unwrap();
    std::fs::copy(
        source.join("model.safetensors"),
        folder.path().join("model.safetensors"),
    )
    .unwrap();
    let fault = load_model(folder.path(), DType::F32, &Device::Cpu)
        .map(drop)
        .unwrap_err();
    let LoadError::Tensors { faults, .. } = fault else {
        panic!("{fault}")
    };
    assert!(faults.missing.len() > 9000 && faults.misshapen.len() > 10);
}

#[test]
fn settings_that_are_not_followed_are_in_the_warnings() {
    let source = fixture("models/llama-tiny");
    let folder = tempfile::tempdir().unwrap();
    for name in ["model.safetensors", "tokenizer.json"] {
        std::fs::copy(source.join(name), folder.path().join(name)).unwrap();
    }
    let config = std::fs::read_to_string(source.join("config.json")).unwrap();
    let config = config.replacen("\"attention_dropout\": 0.0", "\"attention_dropout\": 0.25", 1);
    std::fs::write(folder.path().join("config.json"), config).unwrap();
    let generation = r#"{"num_beams": 4, "max_time": 0.5, "do_sample": true, "no_repeat_ngram_size": 3}"#;
    std::fs::write(folder.path().join("generation_config.json"), generation).unwrap();
    let warnings = load(folder.path(), DType::F32, &Device::Cpu).unwrap().warnings;
    assert_eq!(
        warnings,
        [
            "config.json: attention_dropout = 0.25 is not applied in training",
            "generation_config.json: not implemented and left out: num_beams = 4, max_time = 0.5",
        ]
    );
}

#[test]
fn folders_that_are_no_models_say_why() {
    let fault = |folder: &Path| load(folder, DType::F32, &Device::Cpu).map(drop).unwrap_err();
    assert!(matches!(fault("no/such/folder".as_ref()), LoadError::NoFolder { .. }));
    let folder = tempfile::tempdir().unwrap();
    let add = |name: &str| {
        std::fs::copy(fixture(&format!("models/llama-tiny/{name}")), folder.path().join(name)).unwrap();
    };
    assert!(matches!(fault(folder.path()), LoadError::NotAModel { .. }));
    add("config.json");
    assert!(matches!(fault(folder.path()), LoadError::Text(_)));
    add("tokenizer.json");
    assert!(matches!(fault(folder.path()), LoadError::File(_)));
    add("model.safetensors");
    assert!(load(folder.path(), DType::F32, &Device::Cpu).is_ok());
    assert!(matches!(
        load_model(folder.path(), DType::U8, &Device::Cpu),
        Err(LoadError::Dtype { .. })
    ));
}

#[test]
fn a_tokenizer_of_another_model_is_refused() {
    // 304 rows for a tokenizer with 300 tokens.
    let small = load(fixture("models/llama-tiny"), DType::F32, &Device::Cpu).unwrap();
    let json = std::fs::read(fixture("models/llama-tiny/tokenizer.json")).unwrap();
    let mut value: Value = serde_json::from_slice(&json).unwrap();
    let token = serde_json::json!({"id": 300, "content": "<|extra|>", "single_word": false, "lstrip": false,
        "rstrip": false, "normalized": false, "special": true});
    value["added_tokens"].as_array_mut().unwrap().push(token);
    let tokenizer = Tokenizer::from_bytes(value.to_string().as_bytes(), b"{}").unwrap();
    assert_eq!(tokenizer.vocab_size(), 301);
    let fault = LoadedModel::new(small.model, tokenizer, small.generation)
        .map(drop)
        .unwrap_err();
    assert!(
        matches!(
            fault,
            LoadError::Vocabulary {
                tokenizer: 301,
                model: 300
            }
        ),
        "{fault}"
    );
}
