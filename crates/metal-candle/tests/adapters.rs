//! Adapters around models: an adapter written by PEFT gives PEFT's logits however it is applied, and an adapter written
//! by this crate gives the same logits in PEFT.

#![cfg(feature = "graph")]

mod common;

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use common::{fixture, largest_difference, reference, tokens_of, values};
use metal_candle::adapters::{
    Adapter, AdapterConfig, AdapterError, AdapterParameters, TargetModules, apply, apply_adapter, attach, detach,
};
use metal_candle::models::{CausalLm, load_model};
use metal_candle::nn::Pass;
use metal_candle_graph::{LazyTensor, random};

/// The models with an adapter of PEFT's and one of ours.
const ADAPTED: [&str; 2] = ["llama-tiny", "qwen2-tiny"];

fn model(name: &str) -> Box<dyn CausalLm> {
    load_model(fixture(&format!("models/{name}")), DType::F32, &Device::Cpu).unwrap()
}

fn adapter(name: &str) -> Adapter {
    Adapter::read(&fixture(&format!("adapters/peft-{name}")), &Device::Cpu).unwrap()
}

fn logits(model: &dyn CausalLm, tokens: &LazyTensor, adapters: &[LazyTensor], key: Option<[u32; 4]>) -> Tensor {
    let mut pass = Pass::from_start(tokens.dims()[1], &Device::Cpu)
        .unwrap()
        .with_adapters(adapters);
    if let Some(key) = key {
        pass = pass.with_dropout(LazyTensor::from_data(&key, &[4], &Device::Cpu).unwrap());
    }
    model.logits(tokens, &mut pass).unwrap().eval().unwrap()
}

/// An adapter like that of a training run: A from its seed, B not zero.
fn ours(name: &str) -> AdapterParameters {
    let base = AdapterConfig {
        r: 2,
        base_model_name_or_path: Some(name.to_owned()),
        ..AdapterConfig::default()
    };
    let config = match name {
        "llama-tiny" => base,
        _ => AdapterConfig {
            lora_alpha: 3.0,
            use_rslora: true,
            target_modules: TargetModules::Names(vec!["q_proj".to_owned(), "mlp.down_proj".to_owned()]),
            rank_pattern: vec![("layers.1.self_attn.q_proj".to_owned(), 5)],
            alpha_pattern: vec![("down_proj".to_owned(), 1.5)],
            ..base
        },
    };
    let mut parameters = apply(&mut *model(name), &config, 11).unwrap();
    let trained = |(i, tensor): (usize, &LazyTensor)| {
        if i.is_multiple_of(2) {
            return tensor.clone();
        }
        let draws = random::uniform32([i as u32, 5], [0, 0]).map(|u| u - 0.5);
        let values: Vec<f32> = draws.take(tensor.shape().elem_count()).collect();
        LazyTensor::from_slice(&values, tensor.dims(), &Device::Cpu).unwrap()
    };
    let tensors = parameters.tensors().iter().enumerate().map(trained).collect();
    parameters.set_tensors(tensors).unwrap();
    parameters
}

/// PEFT was given these very files, and `logits_with_adapters_equal_pefts` has its answer. `fixtures/README.md` tells
/// how to regenerate both.
#[test]
fn what_we_write_is_what_peft_was_given() {
    for name in ADAPTED {
        let given = fixture(&format!("adapters/metal-candle-{name}"));
        if std::env::var_os("UPDATE_FIXTURES").is_some() {
            ours(name).save(&given).unwrap();
        }
        let folder = tempfile::tempdir().unwrap();
        ours(name).save(folder.path()).unwrap();
        for file in ["adapter_config.json", "adapter_model.safetensors"] {
            let read = |folder: &Path| std::fs::read(folder.join(file)).unwrap_or_default();
            assert!(
                read(folder.path()) == read(&given),
                "{file} of {name} is written in another way than PEFT was given it; if that is meant, see fixtures/README.md"
            );
        }
    }
}

#[test]
fn logits_with_adapters_equal_pefts() {
    for (writer, name) in ["peft", "metal-candle"]
        .into_iter()
        .flat_map(|w| ADAPTED.map(|n| (w, n)))
    {
        let folder = format!("adapters/{writer}-{name}");
        let adapter = Adapter::read(&fixture(&folder), &Device::Cpu).unwrap();
        let expected = reference(&format!("{folder}/reference.safetensors"));
        let tokens = tokens_of(&expected["input_ids"]);
        let mut used = model(name);
        attach(&mut *used, &adapter).unwrap();
        let mut trained = model(name);
        let parameters = apply_adapter(&mut *trained, &adapter).unwrap();
        for (way, found) in [
            ("attached", logits(&*used, &tokens, &[], None)),
            ("applied", logits(&*trained, &tokens, parameters.tensors(), None)),
        ] {
            let difference = largest_difference(&found, &expected["logits"]);
            assert!(difference <= 1e-4, "{folder}, {way}: logits differ by {difference:e}");
        }
        // The comparison is meaningful: the adapter changes the logits by far more than the tolerance.
        let moved = largest_difference(&logits(&*model(name), &tokens, &[], None), &expected["logits"]);
        assert!(moved > 1e-2, "{folder}: the adapter moves logits by {moved:e} only");
    }
}

#[test]
fn a_new_adapter_changes_nothing_and_is_a_function_of_its_seed() {
    let base = model("qwen2-tiny");
    let tokens = LazyTensor::from_data(&[5u32, 6, 7], &[1, 3], &Device::Cpu).unwrap();
    let start = |seed| {
        let mut model = model("qwen2-tiny");
        let parameters = apply(&mut *model, &AdapterConfig::default(), seed).unwrap();
        (model, parameters)
    };
    let (wrapped, parameters) = start(7);
    let plain = logits(&*base, &tokens, &[], None);
    assert_eq!(
        values(&plain),
        values(&logits(&*wrapped, &tokens, parameters.tensors(), None))
    );

    let a = |parameters: &AdapterParameters, i: usize| parameters.tensors()[2 * i].to_vec::<f32>().unwrap();
    assert_eq!(a(&parameters, 0), a(&start(7).1, 0));
    assert_ne!(a(&parameters, 0), a(&start(8).1, 0));
    assert_ne!(a(&parameters, 0), a(&parameters, 1));
    for (i, module) in parameters.modules().iter().enumerate() {
        let bound = 1.0 / (module.in_features as f32).sqrt();
        let values = a(&parameters, i);
        let spread = (values.iter().map(|v| v * v).sum::<f32>() / values.len() as f32).sqrt();
        assert!(values.iter().all(|v| v.abs() <= bound), "{}", module.name);
        // The standard deviation of a uniform distribution is its bound over sqrt(3).
        assert!(
            (spread * 3f32.sqrt() / bound - 1.0).abs() < 0.15,
            "{}: {spread} for {bound}",
            module.name
        );
    }
    let (linears, layers) = (7, 3);
    assert_eq!(parameters.modules().len(), linears * layers);
    assert_eq!(parameters.names()[1], "model.layers.0.self_attn.q_proj.lora_B");
    let counted: usize = parameters
        .modules()
        .iter()
        .map(|m| m.rank * (m.in_features + m.out_features))
        .sum();
    assert_eq!(parameters.num_parameters(), counted);
}

#[test]
fn saved_and_read_again_gives_the_same_logits() {
    let adapter = adapter("llama-tiny");
    let mut one = model("llama-tiny");
    let parameters = apply_adapter(&mut *one, &adapter).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("adapter");
    parameters.save(&path).unwrap();
    let again = Adapter::read(&path, &Device::Cpu).unwrap();
    assert_eq!(again.config.target_modules, adapter.config.target_modules);
    let mut two = model("llama-tiny");
    attach(&mut *two, &again).unwrap();
    let tokens = LazyTensor::from_data(&[5u32, 6, 7, 8], &[2, 2], &Device::Cpu).unwrap();
    let saved = logits(&*one, &tokens, parameters.tensors(), None);
    assert_eq!(values(&saved), values(&logits(&*two, &tokens, &[], None)));
}

#[test]
fn dropout_acts_only_with_a_key_and_repeats_with_it() {
    let mut adapter = adapter("llama-tiny");
    adapter.config.lora_dropout = 0.5;
    let mut model = model("llama-tiny");
    let parameters = apply_adapter(&mut *model, &adapter).unwrap();
    let tokens = LazyTensor::from_data(&[5u32, 6, 7, 8], &[1, 4], &Device::Cpu).unwrap();
    let run = |key| logits(&*model, &tokens, parameters.tensors(), key);
    let differ = |a, b| largest_difference(&run(a), &run(b)) > 0.0;
    assert!(differ(None, Some([1, 2, 3, 0])));
    assert!(!differ(Some([1, 2, 3, 0]), Some([1, 2, 3, 0])));
    assert!(differ(Some([1, 2, 3, 0]), Some([1, 2, 4, 0])));
}

#[test]
fn mismatches_are_named_and_leave_the_model_unchanged() {
    let tokens = LazyTensor::from_data(&[5u32, 6], &[1, 2], &Device::Cpu).unwrap();
    let mut model = model("qwen2-tiny");
    let plain = logits(&*model, &tokens, &[], None);

    let config = AdapterConfig {
        target_modules: TargetModules::Names(vec!["query".to_owned()]),
        ..AdapterConfig::default()
    };
    assert!(matches!(
        apply(&mut *model, &config, 0),
        Err(AdapterError::NothingMatched { .. })
    ));
    let config = AdapterConfig {
        r: 0,
        ..AdapterConfig::default()
    };
    assert!(matches!(
        apply(&mut *model, &config, 0),
        Err(AdapterError::Setting { field: "r", .. })
    ));

    let mut incomplete = adapter("qwen2-tiny");
    incomplete.pairs.remove("model.layers.1.self_attn.v_proj");
    let fault = attach(&mut *model, &incomplete).unwrap_err();
    assert!(fault.to_string().contains("model.layers.1.self_attn.v_proj"), "{fault}");
    let mut misshapen = adapter("qwen2-tiny");
    let pair = misshapen.pairs.get_mut("model.layers.0.self_attn.q_proj").unwrap();
    pair.b = Tensor::zeros((47, 4), DType::F32, &Device::Cpu).unwrap();
    assert!(matches!(
        apply_adapter(&mut *model, &misshapen),
        Err(AdapterError::Shape { .. })
    ));

    assert_eq!(values(&plain), values(&logits(&*model, &tokens, &[], None)));
}

#[test]
fn a_pass_without_the_factors_is_an_error_that_says_so() {
    let mut model = model("qwen2-tiny");
    apply(&mut *model, &AdapterConfig::default(), 0).unwrap();
    let tokens = LazyTensor::from_data(&[5u32, 6], &[1, 2], &Device::Cpu).unwrap();
    let mut pass = Pass::from_start(2, &Device::Cpu).unwrap();
    let fault = model.logits(&tokens, &mut pass).unwrap_err().to_string();
    assert!(fault.starts_with("adapter: module 0 has no weights"), "{fault}");
}

/// The ways of applying an adapter.
const WAYS: usize = 4;

fn put_on(way: usize, model: &mut dyn CausalLm, adapter: &Adapter) -> Result<(), Box<AdapterError>> {
    let other_layers = AdapterConfig {
        target_modules: TargetModules::Names(vec!["down_proj".to_owned()]),
        ..AdapterConfig::default()
    };
    match way {
        0 => apply(model, &AdapterConfig::default(), 3).map(|_| ()),
        1 => apply(model, &other_layers, 3).map(|_| ()),
        2 => apply_adapter(model, adapter).map(|_| ()),
        _ => attach(model, adapter),
    }
    .map_err(Box::new)
}

#[test]
fn a_second_adapter_is_refused_until_the_first_is_detached() {
    let adapter = adapter("llama-tiny");
    let tokens = LazyTensor::from_data(&[5u32, 6, 7], &[1, 3], &Device::Cpu).unwrap();
    let mut model = model("llama-tiny");
    let plain = values(&logits(&*model, &tokens, &[], None));
    assert_eq!(detach(&mut *model), 0);
    for first in 0..WAYS {
        put_on(first, &mut *model, &adapter).unwrap();
        for second in 0..WAYS {
            let fault = *put_on(second, &mut *model, &adapter).unwrap_err();
            assert!(
                matches!(&fault, AdapterError::AlreadyAdapted { module } if module.starts_with("model.layers.0.")),
                "{fault}"
            );
            assert!(fault.to_string().contains("`adapters::detach`"), "{fault}");
        }
        assert!(detach(&mut *model) > 0);
        assert_eq!(values(&logits(&*model, &tokens, &[], None)), plain);
    }
    // Further training starts from the whole adapter.
    let parameters = apply_adapter(&mut *model, &adapter).unwrap();
    let expected = reference("adapters/peft-llama-tiny/reference.safetensors");
    let tokens = tokens_of(&expected["input_ids"]);
    let found = logits(&*model, &tokens, parameters.tensors(), None);
    assert!(largest_difference(&found, &expected["logits"]) <= 1e-4);
}

/// Factors that the model does not use are an error, not silently ignored.
#[test]
fn a_pass_with_the_factors_of_another_model_is_an_error() {
    let tokens = LazyTensor::from_data(&[5u32, 6], &[1, 2], &Device::Cpu).unwrap();
    let mut model = model("qwen2-tiny");
    let parameters = apply(&mut *model, &AdapterConfig::default(), 0).unwrap();
    detach(&mut *model);
    let given = |model: &dyn CausalLm, adapters: &[LazyTensor]| {
        let mut pass = Pass::from_start(2, &Device::Cpu).unwrap().with_adapters(adapters);
        model
            .logits(&tokens, &mut pass)
            .map(|_| ())
            .map_err(|fault| fault.to_string())
    };
    let fault = given(&*model, parameters.tensors()).unwrap_err();
    assert!(
        fault.starts_with("adapter: ") && fault.contains("the model took 0"),
        "{fault}"
    );
    let config = AdapterConfig {
        target_modules: TargetModules::Names(vec!["q_proj".to_owned()]),
        ..AdapterConfig::default()
    };
    let few = apply(&mut *model, &config, 0).unwrap();
    given(&*model, few.tensors()).unwrap();
    let more = [few.tensors(), &parameters.tensors()[..2]].concat();
    let fault = given(&*model, &more).unwrap_err();
    assert!(
        fault.contains("holds 8 adapter tensors, but the model took 6"),
        "{fault}"
    );
}

/// PEFT's rule: one matching entry of a list of targets is enough. A list for a new adapter is checked entry by entry.
#[test]
fn a_list_of_targets_for_many_architectures_is_peft_s() {
    let mut listed = adapter("llama-tiny");
    let expected = reference("adapters/peft-llama-tiny/reference.safetensors");
    let tokens = tokens_of(&expected["input_ids"]);
    let TargetModules::Names(entries) = &mut listed.config.target_modules else {
        panic!("a list")
    };
    entries.extend(["c_attn".to_owned(), "query_key_value".to_owned()]);
    let mut model = model("llama-tiny");
    attach(&mut *model, &listed).unwrap();
    assert!(largest_difference(&logits(&*model, &tokens, &[], None), &expected["logits"]) <= 1e-4);
    detach(&mut *model);
    let parameters = apply_adapter(&mut *model, &listed).unwrap();
    assert!(
        largest_difference(
            &logits(&*model, &tokens, parameters.tensors(), None),
            &expected["logits"]
        ) <= 1e-4
    );
    detach(&mut *model);
    assert!(matches!(
        apply(&mut *model, &listed.config, 0),
        Err(AdapterError::NothingMatched { target, .. }) if target == "`c_attn`"
    ));
    listed.config.target_modules = TargetModules::Names(vec!["c_attn".to_owned(), "wte".to_owned()]);
    let fault = attach(&mut *model, &listed).unwrap_err().to_string();
    assert!(fault.contains("`c_attn` or `wte` matches no linear layer"), "{fault}");
}

#[test]
fn head_and_embedding_take_no_adapter() {
    let mut model = model("llama-tiny");
    for targets in [
        TargetModules::Names(vec!["q_proj".to_owned(), "lm_head".to_owned()]),
        TargetModules::Names(vec!["embed_tokens".to_owned()]),
        TargetModules::from_text(".*(q_proj|lm_head)"),
        TargetModules::from_text(".*"),
    ] {
        let config = AdapterConfig {
            target_modules: targets,
            ..AdapterConfig::default()
        };
        let fault = apply(&mut *model, &config, 0).unwrap_err();
        assert!(matches!(&fault, AdapterError::HeadOrEmbedding { .. }), "{fault}");
        assert!(fault.to_string().contains("`all-linear` means"), "{fault}");
    }
}
