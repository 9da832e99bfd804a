//! About thirty small models with random settings against transformers and PEFT: logits, greedy tokens, losses; and the
//! effects of `generation_config.json`.
//!
//! Their weights are generated from a seed, like those of `scripts/reference_fixtures/parity.py`, and loaded from
//! folders like a user's: in three dtypes, in one file or in shards, with settings in both spellings.

#![cfg(feature = "graph")]

mod common;

use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;

use candle_core::{DType, Device, Tensor};
use common::{fixture, largest_difference, reference, seeded};
use metal_candle::adapters::{Adapter, AdapterConfig, LoraPair, TargetModules, apply, write_adapter};
use metal_candle::graph::{AdamWOptions, CrossEntropyOptions, LazyTensor, Result};
use metal_candle::inference::{Decoder, GenerationOptions, Generator, LogitsProcessors, Prompt, SamplingConfig};
use metal_candle::models::{CausalLm, ModelConfig, load, load_model};
use metal_candle::nn::Pass;
use metal_candle::training::Stepper;
use serde::Deserialize;
use serde_json::{Map, Value, json};

/// Tokens per row in the comparisons.
const LENGTH: usize = 40;

#[derive(Deserialize)]
struct Case {
    config: Map<String, Value>,
    seed: u64,
    dtype: String,
    /// The kind of output head: `embedding`, `own`, `own though tied`, `alone` (tied, saved under the head's name).
    head: String,
    shards: usize,
    /// Positions whose logits are in the fixture.
    positions: Vec<u32>,
    /// Lengths of the prompts, which are prefixes of rows.
    prompts: Vec<usize>,
    greedy: Vec<Vec<u32>>,
}

#[derive(Deserialize)]
struct Run {
    case: usize,
    r: usize,
    lora_alpha: f64,
    learning_rate: f64,
    /// Loss and norm of the gradient.
    steps: Vec<(f64, f64)>,
}

fn parsed<T: for<'de> Deserialize<'de>>(name: &str) -> Vec<T> {
    let text = std::fs::read_to_string(fixture(&format!("parity/{name}.json"))).unwrap();
    serde_json::from_str(&text).unwrap()
}

impl Case {
    fn row(&self, row: usize) -> Vec<u32> {
        let vocabulary = self.config["vocab_size"].as_u64().unwrap() as usize;
        seeded::integers(self.seed, &format!("ids.{row}"), LENGTH, vocabulary)
    }

    fn weights(&self) -> Vec<(String, Tensor)> {
        let config = ModelConfig::from_json("config.json".as_ref(), &self.config).unwrap();
        let mut shapes = config.parameter_shapes();
        if self.head == "own though tied" {
            shapes.push(("lm_head.weight".to_owned(), shapes[0].1.clone()));
        }
        let dtype = match self.dtype.as_str() {
            "float32" => DType::F32,
            "bfloat16" => DType::BF16,
            "float16" => DType::F16,
            other => panic!("{other}"),
        };
        let made = shapes.into_iter().map(|(name, shape)| {
            let tensor = seeded::weight(self.seed, &name, &shape).to_dtype(dtype).unwrap();
            let alone = self.head == "alone" && name == "model.embed_tokens.weight";
            (if alone { "lm_head.weight".to_owned() } else { name }, tensor)
        });
        made.collect()
    }

    fn folder(&self) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::write(path("config.json"), serde_json::to_string(&self.config).unwrap()).unwrap();
        let weights = self.weights();
        if self.shards == 1 {
            let all: HashMap<_, _> = weights.into_iter().collect();
            candle_core::safetensors::save(&all, path("model.safetensors")).unwrap();
            return folder;
        }
        let mut map = Map::new();
        for (number, part) in weights.chunks(weights.len().div_ceil(self.shards)).enumerate() {
            let name = format!("model-{:05}-of-{:05}.safetensors", number + 1, self.shards);
            map.extend(part.iter().map(|(tensor, _)| (tensor.clone(), json!(name))));
            let part: HashMap<_, _> = part.iter().cloned().collect();
            candle_core::safetensors::save(&part, path(&name)).unwrap();
        }
        let index = json!({"metadata": {"total_size": 0}, "weight_map": map}).to_string();
        std::fs::write(path("model.safetensors.index.json"), index).unwrap();
        folder
    }

    fn model(&self) -> Box<dyn CausalLm> {
        load_model(self.folder().path(), DType::F32, &Device::Cpu).unwrap_or_else(|e| panic!("{}: {e}", self.seed))
    }
}

fn tokens(rows: &[Vec<u32>]) -> LazyTensor {
    LazyTensor::from_data(&rows.concat(), &[rows.len(), rows[0].len()], &Device::Cpu).unwrap()
}

/// Logits of whole rows in one pass, `(rows, length, vocab)`.
fn whole(model: &dyn CausalLm, rows: &[Vec<u32>]) -> Tensor {
    let mut pass = Pass::from_start(rows[0].len(), &Device::Cpu).unwrap();
    model.logits(&tokens(rows), &mut pass).unwrap().eval().unwrap()
}

#[test]
fn logits_equal_transformers() {
    let (cases, expected) = (parsed::<Case>("models"), reference("parity/logits.safetensors"));
    assert!(cases.len() >= 30 && expected.len() == cases.len());
    let mut worst = (0.0, 0);
    for case in &cases {
        let model = case.model();
        assert_eq!(
            model.config().tie_word_embeddings,
            !case.head.starts_with("own"),
            "{}",
            case.seed
        );
        let logits = whole(&*model, &[case.row(0), case.row(1)]);
        let positions = Tensor::new(case.positions.clone(), &Device::Cpu).unwrap();
        let difference = largest_difference(
            &logits.index_select(&positions, 1).unwrap(),
            &expected[&case.seed.to_string()],
        );
        assert!(
            difference <= 1e-4,
            "case {}: logits differ by {difference:e}",
            case.seed
        );
        if difference > worst.0 {
            worst = (difference, case.seed);
        }
    }
    println!(
        "{} models: logits differ by at most {:e} (case {})",
        cases.len(),
        worst.0,
        worst.1
    );
}

#[test]
fn greedy_tokens_equal_transformers_and_the_cache_changes_nothing() {
    let mut count = 0;
    for case in parsed::<Case>("models") {
        let model = case.model();
        let decoder = Decoder::new(&*model);
        for (row, (length, expected)) in case.prompts.iter().zip(&case.greedy).enumerate() {
            let mut history = case.row(row)[..*length].to_vec();
            let mut cache = decoder.cache(1).unwrap();
            let mut logits = decoder.read(&mut cache, &[&history]).unwrap();
            let mut cached = Vec::new();
            for _ in 0..expected.len() {
                let best = (0..logits.len())
                    .max_by(|a, b| logits[*a].total_cmp(&logits[*b]))
                    .unwrap();
                history.push(best as u32);
                cached.push(std::mem::take(&mut logits));
                logits = decoder.next(&mut cache, &[best as u32]).unwrap();
            }
            assert_eq!(&history[*length..], expected, "case {}, row {row}", case.seed);
            let full = whole(&*model, &[history]).narrow(1, length - 1, cached.len()).unwrap();
            let cached = Tensor::new(cached, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
            let difference = largest_difference(&full, &cached);
            assert!(difference <= 1e-4, "case {}, row {row}: {difference:e}", case.seed);
            count += expected.len();
        }
    }
    println!("{count} greedy tokens");
    assert!(count >= 2000, "{count}");
}

#[derive(Deserialize)]
struct Said {
    model: String,
    prompt: Vec<u32>,
    settings: Map<String, Value>,
    ids: Vec<u32>,
}

/// `generation_config.json` as transformers' `generate` follows it.
#[test]
fn suggestions_of_the_model_are_followed_as_in_transformers() {
    let cases = parsed::<Said>("generation");
    assert!(cases.len() >= 20);
    for case in cases {
        let source = fixture(&format!("models/{}", case.model));
        let folder = tempfile::tempdir().unwrap();
        for name in ["config.json", "model.safetensors", "tokenizer.json"] {
            std::fs::copy(source.join(name), folder.path().join(name)).unwrap();
        }
        let settings = Value::Object(case.settings.clone()).to_string();
        std::fs::write(folder.path().join("generation_config.json"), settings).unwrap();
        let loaded = load(folder.path(), DType::F32, &Device::Cpu).unwrap();
        let options = GenerationOptions {
            max_new_tokens: case.ids.len(),
            sampling: SamplingConfig::suggested_by(&loaded.generation, 0),
            processors: LogitsProcessors::suggested_by(&loaded.generation),
            // The reference was generated without the model's own end tokens.
            stop_tokens: Some(loaded.generation.eos_token_ids.clone()),
            ..GenerationOptions::default()
        };
        let mut continued = |_: &str| ControlFlow::Continue(());
        let answer = Generator::new(&loaded)
            .generate(Prompt::Tokens(&case.prompt), &options, &mut continued)
            .unwrap();
        assert_eq!(answer.tokens, case.ids, "{} with {:?}", case.model, case.settings);
    }
}

fn loss(model: &dyn CausalLm, parameters: &[LazyTensor], batch: &[LazyTensor]) -> Result<LazyTensor> {
    let mut pass = Pass::from_start(batch[0].dims()[1], &Device::Cpu)?.with_adapters(parameters);
    let hidden = model.hidden(&batch[0], &mut pass)?;
    let [rows, length, width] = [0, 1, 2].map(|i| hidden.dims()[i]);
    hidden
        .reshape(&[rows * length, width])?
        .cross_entropy(model.head(), &batch[1], CrossEntropyOptions::default())?
        .sum_all()
}

/// Three rows of tokens, and for each token the next one.
fn batch(case: &Case, step: usize) -> (Vec<LazyTensor>, usize) {
    let vocabulary = case.config["vocab_size"].as_u64().unwrap() as usize;
    let row = |row| seeded::integers(case.seed, &format!("step.{step}.{row}"), 24, vocabulary);
    let rows: Vec<Vec<u32>> = (0..3).map(row).collect();
    let next = |row: &Vec<u32>| {
        row[1..]
            .iter()
            .map(|id| i64::from(*id))
            .chain([-100])
            .collect::<Vec<_>>()
    };
    let targets: Vec<i64> = rows.iter().flat_map(next).collect();
    let targets = LazyTensor::from_data(&targets, &[targets.len()], &Device::Cpu).unwrap();
    (vec![tokens(&rows), targets], 3 * 23)
}

#[test]
fn ten_lora_steps_equal_peft() {
    let cases = parsed::<Case>("models");
    let runs = parsed::<Run>("training");
    assert!(runs.len() >= 8);
    for run in runs {
        let case = &cases[run.case];
        let mut model = case.model();
        let config = AdapterConfig {
            r: run.r,
            lora_alpha: run.lora_alpha,
            target_modules: TargetModules::from_text("all-linear"),
            ..AdapterConfig::default()
        };
        let mut parameters = apply(&mut *model, &config, 0).unwrap();
        let factor = |name: String, like: &Tensor, scale: f32| {
            let values = seeded::fractions(case.seed, &name, like.elem_count());
            let values: Vec<f32> = values.into_iter().map(|x| x * scale).collect();
            Tensor::from_vec(values, like.dims(), &Device::Cpu).unwrap()
        };
        let seeded = |(module, pair): (String, LoraPair)| {
            let a = factor(format!("{module}.lora_A.weight"), &pair.a, 0.5);
            let b = factor(format!("{module}.lora_B.weight"), &pair.b, 0.25);
            (module, LoraPair { a, b })
        };
        let pairs: BTreeMap<_, _> = parameters.to_pairs().unwrap().into_iter().map(seeded).collect();
        let folder = tempfile::tempdir().unwrap();
        write_adapter(folder.path(), &config, &pairs).unwrap();
        parameters
            .set_adapter(&Adapter::read(folder.path(), &Device::Cpu).unwrap())
            .unwrap();
        let options = AdamWOptions {
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.01,
        };
        let model = &*model;
        let step = move |p: &[LazyTensor], b: &[LazyTensor]| loss(model, p, b);
        let mut stepper = Stepper::new(parameters.tensors().to_vec(), options, step).unwrap();
        assert_eq!(run.steps.len(), 10);
        let mut worst = [0f64; 2];
        for (number, (loss, norm)) in run.steps.iter().enumerate() {
            let (batch, supervised) = batch(case, number);
            let outcome = stepper.step(&[batch], supervised, run.learning_rate, 1.0).unwrap();
            // In PyTorch itself, the gradient norm in f32 differs from that in f64 by up to 1e-5.
            for (at, found, expected, most) in [(0, outcome.loss, loss, 1e-5), (1, outcome.grad_norm, norm, 4e-5)] {
                let relative = (found - expected).abs() / expected;
                let what = ["loss", "norm"][at];
                assert!(
                    relative <= most,
                    "case {}, step {number}: {what} {found}, PEFT {expected}",
                    run.case
                );
                worst[at] = worst[at].max(relative);
            }
        }
        println!(
            "case {}: losses and norms differ by at most {worst:?}, relatively",
            run.case
        );
    }
}
