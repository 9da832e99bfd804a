//! Sampling against transformers' processors on fixed logits, and draws against their probabilities.

use proptest::prelude::*;

use super::*;

const LOGITS: [f32; 10] = [2.0, 1.0, 0.5, -0.5, 3.0, 1.0, -2.0, 0.0, 2.5, -1.0];

/// No limits, temperature 1.
fn plain() -> SamplingConfig {
    SamplingConfig {
        temperature: 1.0,
        ..Default::default()
    }
}

fn probabilities(config: SamplingConfig, history: &[u32]) -> [f32; 10] {
    let mut logits = LOGITS;
    penalise(&mut logits, history, config.repetition_penalty as f32);
    let kept = Sampler::new(config).unwrap().kept(&mut logits);
    let whole: f32 = kept.iter().map(|(_, p)| p).sum();
    let mut all = [0.0; 10];
    for (id, p) in kept {
        all[id as usize] = p / whole;
    }
    all
}

/// Name, settings, history, and the probabilities of transformers 5: its processors in the order of `generate`,
/// then softmax.
type Case = (&'static str, SamplingConfig, &'static [u32], [f32; 10]);

#[rustfmt::skip]
fn cases() -> [Case; 10] {
    let topped = [0.186_323_7, 0., 0., 0., 0.506_480_4, 0., 0., 0., 0.307_195_9, 0.];
    let tied = [0.163_860_2, 0.060_280_8, 0., 0., 0.445_418_3, 0.060_280_8, 0., 0., 0.270_159_9, 0.];
    let one = [0., 0., 0., 0., 1., 0., 0., 0., 0., 0.];
    let warm = [
        0.126_347_3, 0.030_279_3, 0.014_823, 0.003_552_3, 0.527_213_6,
        0.030_279_3, 0.000_416_8, 0.007_256_5, 0.258_093, 0.001_739,
    ];
    let less = [
        0.191_238_3, 0.070_352_6, 0.042_671, 0.013_511_2, 0.260_138_1,
        0.070_352_6, 0.003_502_7, 0.025_881_3, 0.315_298_6, 0.007_053_5,
    ];
    let all = [0.140_796_1, 0., 0., 0., 0.399_007_1, 0.061_189_7, 0., 0., 0.399_007_1, 0.];
    let every =
        SamplingConfig { temperature: 0.8, top_k: 6, top_p: 0.9, min_p: 0.05, repetition_penalty: 1.2, ..plain() };
    [
        ("temperature", SamplingConfig { temperature: 0.7, ..plain() }, &[], warm),
        ("top-k", SamplingConfig { top_k: 3, ..plain() }, &[], topped),
        ("top-k with a tie at the edge", SamplingConfig { top_k: 4, ..plain() }, &[], tied),
        ("top-p", SamplingConfig { top_p: 0.8, ..plain() }, &[], topped),
        ("top-p with a tie", SamplingConfig { top_p: 0.9, ..plain() }, &[], tied),
        ("small top-p", SamplingConfig { top_p: 0.3, ..plain() }, &[], one),
        ("top-p 0", SamplingConfig { top_p: 0.0, ..plain() }, &[], one),
        ("min-p", SamplingConfig { min_p: 0.2, ..plain() }, &[], topped),
        ("penalty", SamplingConfig { repetition_penalty: 1.3, ..plain() }, &[4, 4, 9, 3], less),
        ("all", every, &[4, 9, 0], all),
    ]
}

#[test]
fn probabilities_equal_transformers() {
    for (name, config, history, expected) in cases() {
        let found = probabilities(config, history);
        for (token, (f, e)) in found.iter().zip(expected).enumerate() {
            assert!((f - e).abs() < 2e-6, "{name}, token {token}: {f} against {e}");
        }
    }
}

/// Random settings and logits; the probabilities are those of transformers' warpers in the order of `generate`.
#[derive(serde::Deserialize)]
struct Drawn {
    settings: serde_json::Map<String, serde_json::Value>,
    logits: Vec<f32>,
    history: Vec<u32>,
    probabilities: Vec<f32>,
}

#[test]
fn probabilities_of_drawn_settings_equal_transformers() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/parity/sampling.json");
    let cases: Vec<Drawn> = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    assert!(cases.len() >= 60);
    for (number, case) in cases.iter().enumerate() {
        let folder = tempfile::tempdir().unwrap();
        let settings = serde_json::Value::Object(case.settings.clone()).to_string();
        std::fs::write(folder.path().join("generation_config.json"), settings).unwrap();
        let generation = GenerationConfig::read(folder.path()).unwrap();
        assert!(generation.unsupported.is_empty());
        let config = SamplingConfig::suggested_by(&generation, 0);
        let mut logits = case.logits.clone();
        penalise(&mut logits, &case.history, config.repetition_penalty as f32);
        let kept = Sampler::new(config).unwrap().kept(&mut logits);
        let whole: f32 = kept.iter().map(|(_, p)| p).sum();
        let mut found = vec![0.0; logits.len()];
        for (id, p) in kept {
            found[id as usize] = p / whole;
        }
        for (token, (f, e)) in found.iter().zip(&case.probabilities).enumerate() {
            assert!(
                (f - e).abs() < 2e-6,
                "case {number}, token {token}: {f} against {e} with {:?}",
                case.settings
            );
        }
    }
}

#[test]
fn greedy_takes_the_lowest_of_equals_and_honours_the_penalty() {
    let mut sampler = Sampler::new(SamplingConfig {
        repetition_penalty: 2.0,
        ..Default::default()
    })
    .unwrap();
    assert_eq!(sampler.sample(&mut [1.0, 3.0, 3.0], &[]).unwrap(), 1);
    assert_eq!(sampler.sample(&mut [1.0, 3.0, 3.0], &[1, 99]).unwrap(), 2);
    assert_eq!(sampler.sample(&mut [-1.0, -1.5], &[0]).unwrap(), 1);
    assert_eq!(sampler.step(), 0, "greedy draws nothing");
}

/// Pearson's chi-squared test of 20,000 draws; 9 degrees of freedom exceed 27.9 with probability 0.001.
#[test]
fn draws_follow_the_probabilities() {
    for seed in [0, 1, 12_345] {
        let expected = probabilities(plain(), &[]);
        let mut sampler = Sampler::new(SamplingConfig { seed, ..plain() }).unwrap();
        let (mut counts, draws) = ([0u32; 10], 20_000);
        for _ in 0..draws {
            counts[sampler.sample(&mut LOGITS.clone(), &[]).unwrap() as usize] += 1;
        }
        let terms = counts.iter().zip(expected).map(|(&n, p)| {
            let mean = f64::from(p) * f64::from(draws);
            (f64::from(n) - mean).powi(2) / mean
        });
        let chi_square: f64 = terms.sum();
        assert!(chi_square < 27.9, "seed {seed}: {chi_square}");
    }
}

/// Sixteen equal cells over consecutive steps, over consecutive seeds, and lag-one correlation.
#[test]
fn uniform_is_uniform_along_steps_and_seeds() {
    let along_steps: Vec<f64> = (0..16_000).map(|i| uniform(3, i)).collect();
    let along_seeds: Vec<f64> = (0..16_000).map(|i| uniform(i, 3)).collect();
    for numbers in [along_steps, along_seeds] {
        let mut cells = [0f64; 16];
        for u in &numbers {
            cells[(u * 16.0) as usize] += 1.0;
        }
        let chi_square: f64 = cells.iter().map(|n| (n - 1000.0).powi(2) / 1000.0).sum();
        assert!(chi_square < 37.7, "{chi_square}");
        let lagged: f64 = numbers.windows(2).map(|w| (w[0] - 0.5) * (w[1] - 0.5)).sum::<f64>() / 16_000.0 * 12.0;
        assert!(lagged.abs() < 0.026, "{lagged}");
    }
}

#[test]
fn same_seed_same_tokens_other_seed_others() {
    let tokens = |seed| {
        let mut sampler = Sampler::new(SamplingConfig { seed, ..plain() }).unwrap();
        (0..64)
            .map(|_| sampler.sample(&mut LOGITS.clone(), &[]).unwrap())
            .collect::<Vec<_>>()
    };
    assert_eq!(tokens(5), tokens(5));
    assert_ne!(tokens(5), tokens(6));
}

#[test]
fn broken_logits_are_errors() {
    let mut sampler = Sampler::new(plain()).unwrap();
    assert_eq!(sampler.sample(&mut [], &[]), Err(SamplingError::Empty));
    let none = &mut [f32::NEG_INFINITY; 3];
    assert_eq!(sampler.sample(none, &[]), Err(SamplingError::AllExcluded));
    let nan = sampler.sample(&mut [0.0, f32::NAN], &[]);
    assert!(matches!(nan, Err(SamplingError::NotFinite { token: 1, value }) if value.is_nan()));
    let infinite = sampler.sample(&mut [f32::INFINITY, 0.0], &[]);
    assert!(matches!(infinite, Err(SamplingError::NotFinite { token: 0, .. })));
    assert_eq!(sampler.step(), 0);
}

#[test]
fn settings_are_validated() {
    let bad = [
        SamplingConfig {
            temperature: -0.1,
            ..plain()
        },
        SamplingConfig {
            temperature: f64::NAN,
            ..plain()
        },
        SamplingConfig {
            temperature: f64::INFINITY,
            ..plain()
        },
        SamplingConfig { top_p: 1.1, ..plain() },
        SamplingConfig { top_p: -0.1, ..plain() },
        SamplingConfig { min_p: 2.0, ..plain() },
        SamplingConfig {
            repetition_penalty: 0.0,
            ..plain()
        },
        SamplingConfig {
            typical_p: 0.0,
            ..plain()
        },
        SamplingConfig {
            epsilon_cutoff: 1.0,
            ..plain()
        },
        SamplingConfig {
            eta_cutoff: -0.1,
            ..plain()
        },
        SamplingConfig {
            top_h: Some(0.0),
            ..plain()
        },
    ];
    for config in bad {
        assert!(matches!(Sampler::new(config), Err(SamplingError::Setting { .. })));
    }
}

#[test]
fn suggestions_of_the_model() {
    let silent = GenerationConfig {
        temperature: Some(0.6),
        ..Default::default()
    };
    assert_eq!(SamplingConfig::suggested_by(&silent, 0), SamplingConfig::default());
    let spoken = GenerationConfig {
        do_sample: Some(true),
        top_p: Some(0.8),
        ..silent
    };
    let expected = SamplingConfig {
        temperature: 0.6,
        top_k: 50,
        top_p: 0.8,
        seed: 3,
        ..plain()
    };
    assert_eq!(SamplingConfig::suggested_by(&spoken, 3), expected);
}

proptest! {
    /// Whatever the settings, the token exists, was not excluded, and is among the `k` most likely ones.
    #[test]
    fn a_token_is_always_allowed(
        logits in prop::collection::vec(prop_oneof![4 => -1e30f32..1e30, 4 => -5f32..5.0, 1 => Just(f32::NEG_INFINITY)], 1..40),
        history in prop::collection::vec(0u32..50, 0..5),
        temperature in prop_oneof![Just(1e-40f64), 1e-3..10.0], top_k in 0usize..50, top_p in 0f64..=1.0,
        min_p in 0f64..=1.0, seed: u64,
    ) {
        prop_assume!(logits.iter().any(|l| l.is_finite()));
        let config = SamplingConfig { temperature, top_k, top_p, min_p, repetition_penalty: 1.1, seed, ..plain() };
        let mut penalised = logits.clone();
        penalise(&mut penalised, &history, 1.1);
        let token = Sampler::new(config).unwrap().sample(&mut logits.clone(), &history).unwrap() as usize;
        prop_assert!(penalised[token] > f32::NEG_INFINITY);
        let better = penalised.iter().filter(|&&l| l > penalised[token]).count();
        prop_assert!(top_k == 0 || better < top_k);
    }
}
