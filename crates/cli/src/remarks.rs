//! Warnings before a run about settings that are valid individually but have no effect, or an unexpected one, in
//! combination.
//!
//! Impossible settings are rejected elsewhere; nothing here ends a run.

use crate::args::Settings;
use crate::report::counted;

/// Facts about a run before its first step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// Optimizer steps.
    pub steps: usize,
    /// Batches per epoch.
    pub batches: usize,
    /// Training examples.
    pub examples: usize,
    /// Whether there is validation data.
    pub validates: bool,
    /// Whether that is the training file.
    pub validates_on_training_data: bool,
    /// Whether the data is plain text, which is always trained on as a whole.
    pub plain_text: bool,
    /// Number of linear layers that `--quantize` leaves unquantised, and of all.
    pub unquantized: (usize, usize),
}

/// The warnings about a run. `by_flag` tells which settings were given as flags.
pub fn remarks(settings: &Settings, by_flag: &dyn Fn(&str) -> bool, facts: &Facts) -> Vec<String> {
    let all = [
        learning_rate(settings, facts),
        overruled(settings, by_flag),
        evaluation(settings, facts),
        groups(settings, by_flag, facts),
        facts
            .validates_on_training_data
            .then(|| "--validation is the file of --data: its loss says nothing about new data".to_owned()),
        (facts.plain_text && settings.train_on_inputs)
            .then(|| "--train-on-inputs has no effect: plain text is always trained on as a whole".to_owned()),
        quantization(settings, facts),
    ];
    all.into_iter().flatten().collect()
}

/// A warm-up longer than the run.
fn learning_rate(settings: &Settings, facts: &Facts) -> Option<String> {
    let trainer = settings.trainer();
    let (warmup, steps) = (trainer.warmup_of(facts.steps), facts.steps);
    if warmup < steps {
        return None;
    }
    let advice = "more steps, or --warmup-steps 0, would change that";
    let highest = trainer.learning_rate_at(steps.saturating_sub(1), steps);
    let of = format!(
        "warm-up takes {} and the run has {}",
        counted(warmup, "step"),
        counted(steps, "step")
    );
    Some(if highest > 0.0 {
        format!(
            "{of}: the learning rate reaches only {highest:.3e}, not {}; {advice}",
            settings.learning_rate
        )
    } else {
        format!("{of}: the learning rate is 0 throughout, so nothing will be trained; {advice}")
    })
}

/// A setting that overrides another.
fn overruled(settings: &Settings, by_flag: &dyn Fn(&str) -> bool) -> Option<String> {
    let pairs = [
        ("max_steps", settings.max_steps.is_some(), "num_train_epochs"),
        ("warmup_steps", settings.warmup_steps.is_some(), "warmup_ratio"),
    ];
    let (decides, _, other) = pairs
        .into_iter()
        .find(|(decides, set, other)| *set && by_flag(decides) && by_flag(other))?;
    let flag = |name: &str| format!("--{}", name.replace('_', "-"));
    Some(format!("{} has no effect: {} decides", flag(other), flag(decides)))
}

fn evaluation(settings: &Settings, facts: &Facts) -> Option<String> {
    let every = settings.eval_steps?;
    if !facts.validates {
        return Some(
            "--eval-steps has no effect: no validation data; give --validation FILE or --validation-split SHARE"
                .to_owned(),
        );
    }
    (every > facts.steps).then(|| {
        format!(
            "--eval-steps {every} has no effect: the run has {}; the validation loss is evaluated at its end",
            counted(facts.steps, "step")
        )
    })
}

/// Batches, and groups of batches, that the data does not fill.
fn groups(settings: &Settings, by_flag: &dyn Fn(&str) -> bool, facts: &Facts) -> Option<String> {
    let (rows, group) = (
        settings.per_device_train_batch_size,
        settings.gradient_accumulation_steps,
    );
    if group > facts.batches {
        return Some(format!(
            "--gradient-accumulation-steps {group}: an epoch has {}, and a step takes no more than an epoch",
            counted(facts.batches, "batch").replace("batchs", "batches")
        ));
    }
    (rows > facts.examples && by_flag("per_device_train_batch_size")).then(|| {
        format!(
            "a batch of {rows} rows: there are only {}",
            counted(facts.examples, "example")
        )
    })
}

fn quantization(settings: &Settings, facts: &Facts) -> Option<String> {
    let (left, all) = facts.unquantized;
    (settings.quantize.is_some() && left > 0).then(|| {
        let which = if left == all {
            "all".to_owned()
        } else {
            format!("{left} of {all}")
        };
        format!("--quantize leaves {which} linear layers as they are: their input size is not a multiple of 32")
    })
}

#[cfg(test)]
mod tests {
    use clap::{Args, FromArgMatches, parser::ValueSource};

    use super::*;

    const FACTS: Facts = Facts {
        steps: 100,
        batches: 10,
        examples: 80,
        validates: true,
        validates_on_training_data: false,
        plain_text: false,
        unquantized: (0, 14),
    };

    fn said(flags: &str, facts: Facts) -> Vec<String> {
        let command = Settings::augment_args(clap::Command::new("train"));
        let matches = command.get_matches_from(std::iter::once("train").chain(flags.split_whitespace()));
        let settings = Settings::from_arg_matches(&matches).unwrap();
        remarks(
            &settings,
            &|key| matches.value_source(key) == Some(ValueSource::CommandLine),
            &facts,
        )
    }

    #[test]
    fn an_ordinary_run_has_no_warnings() {
        let usual = [
            "",
            "--eval-steps 100 --max-steps 100",
            "--warmup-steps 99 --num-train-epochs 2",
            "--gradient-accumulation-steps 10 --batch-size 80",
            "--train-on-inputs --quantize q8_0",
        ];
        for flags in usual {
            assert_eq!(said(flags, FACTS), Vec::<String>::new(), "{flags}");
        }
    }

    #[test]
    fn settings_without_effect_are_reported() {
        let steps = |steps| Facts { steps, ..FACTS };
        let few = Facts {
            batches: 2,
            examples: 2,
            ..FACTS
        };
        for (flags, facts, expected) in [
            (
                "",
                steps(1),
                "warm-up takes 1 step and the run has 1 step: the learning rate is 0 throughout, so nothing will be trained",
            ),
            (
                "--warmup-steps 1000",
                steps(100),
                "warm-up takes 1,000 steps and the run has 100 steps: the learning rate reaches only 1.980e-5, not 0.0002",
            ),
            (
                "--max-steps 100 --num-train-epochs 2",
                FACTS,
                "--num-train-epochs has no effect: --max-steps decides",
            ),
            (
                "--warmup-steps 3 --warmup-ratio 0.1",
                FACTS,
                "--warmup-ratio has no effect: --warmup-steps decides",
            ),
            (
                "--eval-steps 5",
                Facts {
                    validates: false,
                    ..FACTS
                },
                "--eval-steps has no effect: no validation data",
            ),
            (
                "--eval-steps 101",
                FACTS,
                "--eval-steps 101 has no effect: the run has 100 steps",
            ),
            (
                "--gradient-accumulation-steps 3",
                few,
                "--gradient-accumulation-steps 3: an epoch has 2 batches",
            ),
            ("--batch-size 3", few, "a batch of 3 rows: there are only 2 examples"),
            (
                "--validation v",
                Facts {
                    validates_on_training_data: true,
                    ..FACTS
                },
                "--validation is the file of --data",
            ),
            (
                "--train-on-inputs",
                Facts {
                    plain_text: true,
                    ..FACTS
                },
                "--train-on-inputs has no effect",
            ),
            (
                "--quantize q4_0",
                Facts {
                    unquantized: (14, 14),
                    ..FACTS
                },
                "--quantize leaves all linear layers as they are",
            ),
            (
                "--quantize q4_0",
                Facts {
                    unquantized: (3, 14),
                    ..FACTS
                },
                "--quantize leaves 3 of 14 linear layers",
            ),
        ] {
            let found = said(flags, facts);
            assert_eq!(found.len(), 1, "{flags}: {found:?}");
            assert!(found[0].starts_with(expected), "{flags}: {}", found[0]);
        }
    }
}
