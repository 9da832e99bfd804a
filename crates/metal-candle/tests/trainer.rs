//! The end of a training run: when nothing is finite, when the observer breaks, and when the run cannot begin.

#![cfg(feature = "graph")]

mod common;

use std::ops::ControlFlow;

use candle_core::{DType, Device};
use common::fixture;
use metal_candle::Error;
use metal_candle::adapters::{AdapterConfig, AdapterParameters, apply};
use metal_candle::data::{Dataset, Example};
use metal_candle::graph::LazyTensor;
use metal_candle::models::{CausalLm, load_model};
use metal_candle::training::{Event, Trainer, TrainerConfig, TrainingError};

fn adapted() -> (Box<dyn CausalLm>, AdapterParameters) {
    let mut model = load_model(fixture("models/llama-tiny"), DType::F32, &Device::Cpu).unwrap();
    let parameters = apply(&mut *model, &AdapterConfig::default(), 1).unwrap();
    (model, parameters)
}

fn examples(count: usize, length: usize) -> Dataset {
    let example = |i: usize| Example {
        tokens: (0..length).map(|t| 3 + ((i + 5 * t) % 200) as u32).collect(),
        supervised: vec![true; length],
    };
    Dataset::from_examples((0..count).map(example).collect()).unwrap()
}

fn config(steps: usize) -> TrainerConfig {
    TrainerConfig {
        max_steps: Some(steps),
        per_device_train_batch_size: 2,
        warmup_ratio: 0.0,
        ..TrainerConfig::default()
    }
}

/// A run may be shorter than the limit of consecutive skipped steps.
#[test]
fn a_run_without_a_finite_step_is_an_error() {
    let (model, mut parameters) = adapted();
    let spoilt = |t: &LazyTensor| LazyTensor::full(f64::NAN, t.dims(), DType::F32, &Device::Cpu).unwrap();
    let tensors = parameters.tensors().iter().map(spoilt).collect();
    parameters.set_tensors(tensors).unwrap();
    let mut trainer = Trainer::new(&*model, parameters, examples(4, 6), None, config(2), 0).unwrap();
    let mut skipped = 0;
    let fault = trainer.run(&mut |event| {
        skipped += usize::from(matches!(event, Event::Step(report) if report.skipped));
        ControlFlow::Continue(())
    });
    assert!(
        matches!(&fault, Err(Error::Training(TrainingError::NotFinite { steps: 2, loss, .. })) if loss.is_nan()),
        "{fault:?}"
    );
    assert_eq!((skipped, trainer.updates()), (2, 0));
}

#[test]
fn examples_beyond_the_context_are_refused() {
    for (train, validation) in [(513, 4), (4, 513)] {
        let (model, parameters) = adapted();
        let validation = Some(examples(1, validation));
        let refused = Trainer::new(&*model, parameters, examples(2, train), validation, config(1), 0);
        let fault = refused.err().unwrap();
        assert!(
            matches!(
                &fault,
                Error::Training(TrainingError::TooLong {
                    tokens: 513,
                    context: 512
                })
            ),
            "{fault}"
        );
    }
    let (model, parameters) = adapted();
    Trainer::new(&*model, parameters, examples(2, 512), None, config(1), 0).unwrap();
}

#[test]
fn an_evaluation_can_be_interrupted() {
    let (model, parameters) = adapted();
    let config = TrainerConfig {
        eval_steps: Some(1),
        ..config(3)
    };
    let mut trainer = Trainer::new(&*model, parameters, examples(2, 6), Some(examples(6, 6)), config, 0).unwrap();
    let mut heard = Vec::new();
    let run = trainer.run(&mut |event| {
        heard.push(match event {
            Event::Step(report) => format!("step {}", report.step),
            Event::Evaluating {
                step,
                batches,
                total_batches,
            } => format!("{step}: {batches}/{total_batches}"),
            _ => "measured".to_owned(),
        });
        if heard.last().unwrap() == "2: 2/3" {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    });
    assert_eq!(
        heard,
        [
            "step 1", "1: 1/3", "1: 2/3", "1: 3/3", "measured", "step 2", "2: 1/3", "2: 2/3"
        ]
    );
    let run = run.unwrap();
    assert!(run.stopped_early && run.steps == 2 && trainer.updates() == 2);
    assert!(run.evaluation_loss.is_some(), "that of the first");
}

/// Numbers that are valid as f64 but not as f32, which the computation uses.
#[test]
fn settings_are_checked_as_f32() {
    let base = TrainerConfig::default;
    for (name, config) in [
        (
            "learning_rate",
            TrainerConfig {
                learning_rate: 1e-60,
                ..base()
            },
        ),
        (
            "learning_rate",
            TrainerConfig {
                learning_rate: 1e60,
                ..base()
            },
        ),
        (
            "adam_epsilon",
            TrainerConfig {
                adam_epsilon: 1e-300,
                ..base()
            },
        ),
        (
            "adam_beta1",
            TrainerConfig {
                adam_beta1: 0.999_999_999_9,
                ..base()
            },
        ),
        (
            "adam_beta2",
            TrainerConfig {
                adam_beta2: 0.999_999_999_9,
                ..base()
            },
        ),
        (
            "weight_decay",
            TrainerConfig {
                weight_decay: 1e300,
                ..base()
            },
        ),
    ] {
        let fault = config.validate().unwrap_err().to_string();
        assert!(fault.contains(name), "{fault}");
    }
    base().validate().unwrap();
}
