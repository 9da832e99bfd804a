//! Ten training steps compared with `PyTorch` and PEFT: the loss of each step, and the final adapter.
#![cfg(feature = "graph")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use metal_candle::adapters::{
    Adapter, AdapterConfig, AdapterParameters, LoraPair, TargetModules, apply, write_adapter,
};
use metal_candle::graph::{AdamWOptions, CrossEntropyOptions, LazyTensor};
use metal_candle::models::{CausalLm, load_model};
use metal_candle::nn::Pass;
use metal_candle::training::Stepper;
use metal_candle_graph::io::SafetensorsFile;
use serde_json::Value;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures")
}

struct Case {
    json: Value,
    file: SafetensorsFile,
}

impl Case {
    fn open(name: &str) -> Self {
        let path = fixtures().join("training").join(name);
        let json = std::fs::read_to_string(path.with_extension("json")).unwrap();
        let file = SafetensorsFile::open(path.with_extension("safetensors")).unwrap();
        Self {
            json: serde_json::from_str(&json).unwrap(),
            file,
        }
    }

    fn tensor(&self, name: &str) -> Tensor {
        self.file.load(name, &Device::Cpu).unwrap()
    }

    fn number(&self, pointer: &str) -> f64 {
        self.json
            .pointer(pointer)
            .and_then(Value::as_f64)
            .unwrap_or_else(|| panic!("no number {pointer}"))
    }

    /// The factors under `initial.` or `final.`, by module.
    fn pairs(&self, stage: &str) -> BTreeMap<String, LoraPair> {
        let modules = self.json["modules"]
            .as_array()
            .unwrap()
            .iter()
            .map(|m| m.as_str().unwrap());
        modules
            .map(|module| {
                let half = |half: &str| self.tensor(&format!("{stage}.{module}.{half}.weight"));
                let name = module.trim_start_matches("base_model.model.").to_owned();
                (
                    name,
                    LoraPair {
                        a: half("lora_A"),
                        b: half("lora_B"),
                    },
                )
            })
            .collect()
    }

    fn config(&self) -> AdapterConfig {
        let lora = &self.json["lora"];
        let target_modules = match &lora["target_modules"] {
            Value::String(text) => TargetModules::from_text(text),
            list => TargetModules::Names(
                list.as_array()
                    .unwrap()
                    .iter()
                    .map(|v| v.as_str().unwrap().into())
                    .collect(),
            ),
        };
        AdapterConfig {
            r: lora["r"].as_u64().unwrap() as usize,
            lora_alpha: lora["lora_alpha"].as_f64().unwrap(),
            use_rslora: lora["use_rslora"].as_bool().unwrap(),
            target_modules,
            ..AdapterConfig::default()
        }
    }

    /// Tokens, shifted targets and the number of supervised ones.
    fn batch(&self, step: usize) -> (Vec<LazyTensor>, usize) {
        let ids = self.tensor(&format!("step.{step}.input_ids"));
        let labels = self.tensor(&format!("step.{step}.labels")).to_vec2::<i64>().unwrap();
        let (rows, length) = ids.dims2().unwrap();
        let shifted = |row: &Vec<i64>| row[1..].iter().copied().chain([-100]).collect::<Vec<_>>();
        let targets: Vec<i64> = labels.iter().flat_map(shifted).collect();
        let supervised = targets.iter().filter(|t| **t != -100).count();
        let tokens = LazyTensor::from_tensor(ids.to_dtype(DType::U32).unwrap()).unwrap();
        (
            vec![
                tokens,
                LazyTensor::from_data(&targets, &[rows * length], &Device::Cpu).unwrap(),
            ],
            supervised,
        )
    }
}

fn loss(
    model: &dyn CausalLm,
    parameters: &[LazyTensor],
    batch: &[LazyTensor],
) -> metal_candle::graph::Result<LazyTensor> {
    let tokens = &batch[0];
    let mut pass = Pass::from_start(tokens.dims()[1], tokens.device())?.with_adapters(parameters);
    let hidden = model.hidden(tokens, &mut pass)?;
    let width = hidden.dims()[2];
    let rows = hidden.dims()[0] * hidden.dims()[1];
    hidden
        .reshape(&[rows, width])?
        .cross_entropy(model.head(), &batch[1], CrossEntropyOptions::default())?
        .sum_all()
}

fn prepare(case: &Case) -> (Box<dyn CausalLm>, AdapterParameters) {
    let folder = fixtures().join("models").join(case.json["model"].as_str().unwrap());
    let mut model = load_model(folder, DType::F32, &Device::Cpu).unwrap();
    let mut parameters = apply(&mut *model, &case.config(), 0).unwrap();
    let folder = tempfile::tempdir().unwrap();
    write_adapter(folder.path(), &case.config(), &case.pairs("initial")).unwrap();
    parameters
        .set_adapter(&Adapter::read(folder.path(), &Device::Cpu).unwrap())
        .unwrap();
    (model, parameters)
}

fn largest_difference(a: &Tensor, b: &Tensor) -> f64 {
    (a - b)
        .unwrap()
        .abs()
        .unwrap()
        .flatten_all()
        .unwrap()
        .max(0)
        .unwrap()
        .to_scalar::<f32>()
        .unwrap()
        .into()
}

fn ten_steps(name: &str) {
    let case = Case::open(name);
    let (model, mut parameters) = prepare(&case);
    let options = AdamWOptions {
        beta1: case.number("/optimizer/beta1"),
        beta2: case.number("/optimizer/beta2"),
        eps: case.number("/optimizer/eps"),
        weight_decay: case.number("/optimizer/weight_decay"),
    };
    let model = &*model;
    let mut stepper = Stepper::new(
        parameters.tensors().to_vec(),
        options,
        move |p: &[LazyTensor], b: &[LazyTensor]| loss(model, p, b),
    )
    .unwrap();
    let steps = case.json["steps"].as_array().unwrap();
    assert_eq!(steps.len(), 10);
    for step in 0..steps.len() {
        let (batch, supervised) = case.batch(step);
        assert_eq!(
            supervised as f64,
            case.number(&format!("/steps/{step}/supervised_tokens"))
        );
        let rate = case.number(&format!("/steps/{step}/learning_rate"));
        let outcome = stepper
            .step(&[batch], supervised, rate, case.number("/optimizer/max_grad_norm"))
            .unwrap();
        for (what, found, expected) in [
            ("loss", outcome.loss, case.number(&format!("/steps/{step}/loss"))),
            (
                "gradient norm",
                outcome.grad_norm,
                case.number(&format!("/steps/{step}/grad_norm")),
            ),
        ] {
            assert!(
                (found - expected).abs() <= 1e-5 * expected,
                "{name} step {step}: {what} {found}, PyTorch {expected}"
            );
        }
    }
    parameters.set_tensors(stepper.parameters().to_vec()).unwrap();
    let found = parameters.to_pairs().unwrap();
    for (module, expected) in case.pairs("final") {
        let pair = &found[&module];
        for (half, found, expected) in [("A", &pair.a, &expected.a), ("B", &pair.b, &expected.b)] {
            let difference = largest_difference(found, expected);
            assert!(difference <= 2e-5, "{name} {module} {half}: {difference}");
        }
    }
    // The trained adapter round-trips through its files.
    let folder = tempfile::tempdir().unwrap();
    write_adapter(folder.path(), parameters.config(), &found).unwrap();
    let read = Adapter::read(folder.path(), &Device::Cpu).unwrap();
    assert!(
        read.pairs
            .iter()
            .all(|(module, pair)| largest_difference(&pair.a, &found[module].a) == 0.0)
    );
}

#[test]
fn llama_all_linear_matches_peft() {
    ten_steps("llama-tiny-all-linear");
}

#[test]
fn llama_rslora_matches_peft() {
    ten_steps("llama-tiny-rslora");
}

#[test]
fn qwen2_all_linear_matches_peft() {
    ten_steps("qwen2-tiny-all-linear");
}

#[test]
fn qwen2_rslora_matches_peft() {
    ten_steps("qwen2-tiny-rslora");
}

#[test]
fn any_split_into_micro_batches_gives_the_same_step() {
    let case = Case::open("llama-tiny-all-linear");
    let options = AdamWOptions {
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: 0.0,
    };
    let run = |split: bool| {
        let (model, parameters) = prepare(&case);
        let model = &*model;
        let mut stepper = Stepper::new(
            parameters.tensors().to_vec(),
            options,
            |p: &[LazyTensor], b: &[LazyTensor]| loss(model, p, b),
        )
        .unwrap();
        let (batch, supervised) = case.batch(0);
        let (rows, length) = (batch[0].dims()[0], batch[0].dims()[1]);
        let part = |from: usize, to: usize| {
            let tokens = batch[0].slice(0, from, to).unwrap();
            let targets = batch[1].slice(0, from * length, to * length).unwrap();
            vec![tokens, targets]
        };
        let batches = if split {
            (0..rows).map(|row| part(row, row + 1)).collect()
        } else {
            vec![batch.clone()]
        };
        let outcome = stepper.step(&batches, supervised, 1e-3, 1.0).unwrap();
        (outcome.loss, outcome.grad_norm)
    };
    let (whole, parts) = (run(false), run(true));
    assert!(
        (whole.0 - parts.0).abs() <= 1e-6 * whole.0 && (whole.1 - parts.1).abs() <= 1e-6 * whole.1,
        "{whole:?} {parts:?}"
    );
}
