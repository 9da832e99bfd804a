//! `AdamW` against `PyTorch` and against its formula; the schedules at their boundaries and in shape.

use candle_core::{DType, Device, Tensor, Var};
use metal_candle::training::{AdamW, AdamWConfig, LRScheduler};
use metal_candle::{Error, Result};
use proptest::prelude::*;

const CPU: Device = Device::Cpu;

const CONFIG: AdamWConfig = AdamWConfig {
    learning_rate: 0.01,
    beta1: 0.9,
    beta2: 0.999,
    epsilon: 1e-8,
    weight_decay: 0.1,
};
const START: [f32; 4] = [0.5, -1.25, 2.0, 0.0];
const GRADIENTS: [[f32; 4]; 3] = [[0.1, -0.2, 0.3, 0.0], [-0.05, 0.4, 0.3, 1e-4], [2.0, 0.0, -1.0, 1e-4]];

/// The results of `PyTorch` 2 for `START` and `GRADIENTS`:
///
/// ```python
/// w = torch.tensor(START, requires_grad=True)
/// optimizer = torch.optim.AdamW([w], lr=0.01, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1)
/// for g in GRADIENTS: w.grad = torch.tensor(g); optimizer.step(); print(w.tolist())
/// ```
const PYTORCH: [[f64; 4]; 3] = [
    [0.489_500_016, -1.238_749_98, 1.988_000_04, 0.0],
    [0.486_347_139, -1.241_172_31, 1.976_012_11, -0.007_440_316_49],
    [0.479_367_793, -1.242_761_14, 1.976_900_34, -0.016_016_449_8],
];

fn numbers(t: &Tensor) -> Vec<f64> {
    t.to_dtype(DType::F64).and_then(|t| t.flatten_all()?.to_vec1()).unwrap()
}

#[track_caller]
fn assert_close(got: &[f64], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len());
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!((g - w).abs() <= tolerance, "element {i}: {g}, expected {w}");
    }
}

#[test]
fn variables_step_as_in_pytorch() -> Result<()> {
    for (dtype, tolerance) in [(DType::F32, 3e-7), (DType::F64, 3e-7), (DType::BF16, 2e-2)] {
        let mut optimizer = AdamW::new(CONFIG)?;
        let w = Var::from_tensor(&Tensor::new(&START, &CPU)?.to_dtype(dtype)?)?;
        for (gradient, want) in GRADIENTS.iter().zip(&PYTORCH) {
            optimizer.step_var(&w, &Tensor::new(gradient, &CPU)?.to_dtype(dtype)?)?;
            assert_eq!(w.dtype(), dtype);
            assert_close(&numbers(&w), want, tolerance);
        }
        assert_eq!(optimizer.step_count(), 3);
    }
    Ok(())
}

#[test]
fn named_parameters_step_as_in_pytorch() -> Result<()> {
    let mut optimizer = AdamW::new(CONFIG)?;
    let mut w = Tensor::new(&START, &CPU)?;
    optimizer.add_parameter("w", &w)?;
    for (gradient, want) in GRADIENTS.iter().zip(&PYTORCH) {
        w = optimizer.step("w", &w, &Tensor::new(gradient, &CPU)?)?;
        assert_close(&numbers(&w), want, 3e-7);
    }
    Ok(())
}

#[test]
fn two_hundred_steps_follow_the_formula() -> Result<()> {
    let mut optimizer = AdamW::new(AdamWConfig {
        epsilon: 1e-3,
        ..CONFIG
    })?;
    let [lr, beta1, beta2, epsilon, decay] = {
        let c = optimizer.config();
        [c.learning_rate, c.beta1, c.beta2, c.epsilon, c.weight_decay].map(f64::from)
    };
    let var = Var::new(&[1.5f64], &CPU)?;
    let (mut w, mut m, mut v) = (1.5f64, 0.0, 0.0);
    for t in 1..=200 {
        let g = (f64::from(t) * 0.7).sin() + 0.1 * w;
        optimizer.step_var(&var, &Tensor::new(&[g], &CPU)?)?;
        m = beta1 * m + (1.0 - beta1) * g;
        v = beta2 * v + (1.0 - beta2) * g * g;
        let (m_hat, v_hat) = (m / (1.0 - beta1.powi(t)), v / (1.0 - beta2.powi(t)));
        w -= lr * decay * w + lr * m_hat / (v_hat.sqrt() + epsilon);
        assert_close(&numbers(&var), &[w], 1e-12);
    }
    Ok(())
}

#[test]
fn each_parameter_counts_its_own_steps() -> Result<()> {
    let mut optimizer = AdamW::new(CONFIG)?;
    let [v, w] = [Var::new(&START, &CPU)?, Var::new(&START, &CPU)?];
    optimizer.step_var(&v, &Tensor::new(&GRADIENTS[0], &CPU)?)?;
    for gradient in &GRADIENTS {
        // A second handle on the same variable shares its state.
        optimizer.step_var(&w.clone(), &Tensor::new(gradient, &CPU)?)?;
    }
    assert_close(&numbers(&v), &PYTORCH[0], 3e-7);
    assert_close(&numbers(&w), &PYTORCH[2], 3e-7);
    assert_eq!(optimizer.step_count(), 3);
    Ok(())
}

#[test]
fn a_reset_optimizer_starts_over() -> Result<()> {
    let mut optimizer = AdamW::new(CONFIG)?;
    optimizer.add_parameter("w", &Tensor::new(&START, &CPU)?)?;
    for _ in 0..2 {
        let mut w = Tensor::new(&START, &CPU)?;
        for (gradient, want) in GRADIENTS.iter().zip(&PYTORCH) {
            w = optimizer.step("w", &w, &Tensor::new(gradient, &CPU)?)?;
            assert_close(&numbers(&w), want, 3e-7);
        }
        optimizer.reset_state();
        assert_eq!(optimizer.step_count(), 0);
    }
    Ok(())
}

#[test]
fn a_learning_rate_of_zero_moves_nothing_and_a_broken_one_is_refused() -> Result<()> {
    let mut optimizer = AdamW::new(CONFIG)?;
    let w = Var::new(&START, &CPU)?;
    let gradient = Tensor::new(&GRADIENTS[0], &CPU)?;
    optimizer.set_lr(0.0);
    assert_eq!(
        (optimizer.learning_rate(), optimizer.config().learning_rate),
        (0.0, 0.0)
    );
    optimizer.step_var(&w, &gradient)?;
    assert_eq!(w.to_vec1::<f32>()?, START);
    for lr in [f32::NAN, f32::INFINITY, -1.0] {
        optimizer.set_lr(lr);
        assert!(matches!(optimizer.step_var(&w, &gradient), Err(Error::Training(_))));
    }
    assert_eq!(w.to_vec1::<f32>()?, START);
    assert_eq!(optimizer.step_count(), 1);
    Ok(())
}

#[test]
fn the_updated_value_holds_no_history() -> Result<()> {
    let mut optimizer = AdamW::new(CONFIG)?;
    let w = Var::new(&START, &CPU)?;
    optimizer.add_parameter("w", &w)?;
    let updated = optimizer.step("w", &w, &w.sqr()?)?;
    assert!(!updated.track_op());
    Ok(())
}

#[test]
fn what_does_not_fit_is_refused() -> Result<()> {
    let mut optimizer = AdamW::new(CONFIG)?;
    let w = Tensor::zeros((2, 3), DType::F32, &CPU)?;
    let error = optimizer.step("w", &w, &w).unwrap_err().to_string();
    assert!(error.contains("no parameter `w`"), "{error}");

    optimizer.add_parameter("w", &w)?;
    let error = optimizer.step("w", &w, &w.t()?).unwrap_err().to_string();
    let want = "AdamW step: parameter `w` has shape (2, 3), its gradient has shape (3, 2)";
    assert_eq!(error, want);
    assert!(optimizer.step("w", &w.t()?, &w).is_err());
    assert!(
        optimizer
            .add_parameter("ids", &Tensor::zeros(2, DType::U32, &CPU)?)
            .is_err()
    );
    assert_eq!(optimizer.step_count(), 0);
    Ok(())
}

#[test]
fn settings_outside_their_range_are_refused_by_name() {
    assert!(AdamWConfig::default().validate().is_ok());
    for (bad, name) in [
        (
            AdamWConfig {
                learning_rate: 0.0,
                ..CONFIG
            },
            "learning_rate",
        ),
        (
            AdamWConfig {
                learning_rate: f32::NAN,
                ..CONFIG
            },
            "learning_rate",
        ),
        (AdamWConfig { beta1: 1.0, ..CONFIG }, "beta1"),
        (AdamWConfig { beta1: -0.1, ..CONFIG }, "beta1"),
        (AdamWConfig { beta2: 1.5, ..CONFIG }, "beta2"),
        (AdamWConfig { epsilon: 0.0, ..CONFIG }, "epsilon"),
        (
            AdamWConfig {
                weight_decay: -0.1,
                ..CONFIG
            },
            "weight_decay",
        ),
        (
            AdamWConfig {
                weight_decay: f32::INFINITY,
                ..CONFIG
            },
            "weight_decay",
        ),
    ] {
        let error = AdamW::new(bad).unwrap_err().to_string();
        assert!(error.contains(&format!("AdamW {name} is")), "{error}");
    }
}

#[test]
fn schedules_pass_through_their_corners() {
    let (linear, cosine) = (LRScheduler::linear(1000, 1e-3), LRScheduler::cosine(10_000, 1e-3, 1e-5));
    let both = LRScheduler::warmup_cosine(1000, 11_000, 1e-3, 1e-5);
    let middle = f32::midpoint(1e-3, 1e-5);
    for (schedule, step, want) in [
        (&LRScheduler::constant(1e-4), 0, 1e-4),
        (&LRScheduler::constant(1e-4), usize::MAX, 1e-4),
        (&linear, 0, 0.0),
        (&linear, 500, 5e-4),
        (&linear, 1000, 1e-3),
        (&linear, usize::MAX, 1e-3),
        (&cosine, 0, 1e-3),
        (&cosine, 5000, middle),
        (&cosine, 10_000, 1e-5),
        (&cosine, usize::MAX, 1e-5),
        (&both, 0, 0.0),
        (&both, 500, 5e-4),
        (&both, 1000, 1e-3),
        (&both, 6000, middle),
        (&both, 11_000, 1e-5),
        (&both, usize::MAX, 1e-5),
    ] {
        let lr = schedule.get_lr(step);
        assert!(
            (lr - want).abs() <= 1e-6 * want,
            "{schedule:?} at {step}: {lr}, expected {want}"
        );
    }
}

#[test]
fn schedules_that_make_no_sense_are_refused_and_never_panic() {
    for bad in [
        LRScheduler::constant(0.0),
        LRScheduler::constant(-1e-4),
        LRScheduler::constant(f32::NAN),
        LRScheduler::linear(0, 1e-3),
        LRScheduler::linear(10, f32::INFINITY),
        LRScheduler::cosine(0, 1e-3, 1e-5),
        LRScheduler::cosine(10, 1e-5, 1e-3),
        LRScheduler::cosine(10, 1e-3, 1e-3),
        LRScheduler::cosine(10, 1e-3, -1e-5),
        LRScheduler::warmup_cosine(0, 10, 1e-3, 1e-5),
        LRScheduler::warmup_cosine(10, 10, 1e-3, 1e-5),
        LRScheduler::warmup_cosine(10, 5, 1e-3, 1e-5),
    ] {
        assert!(matches!(bad.validate(), Err(Error::Training(_))), "{bad:?}");
        for step in [0, 5, 10, 11] {
            let _ = bad.get_lr(step);
        }
    }
    // A schedule without steps is at its end.
    assert!((LRScheduler::cosine(0, 1e-3, 1e-5).get_lr(0) - 1e-5).abs() < 1e-12);
}

proptest! {
    #[test]
    fn warmup_cosine_rises_then_falls_within_its_bounds(
        warmup in 1usize..200, rest in 1usize..2000, max_lr in 1e-6f32..1.0, share in 0.0f32..0.99,
    ) {
        let (total, min_lr) = (warmup + rest, max_lr * share);
        let schedule = LRScheduler::warmup_cosine(warmup, total, max_lr, min_lr);
        prop_assert!(schedule.validate().is_ok());
        let rates: Vec<f32> = (0..=total + 3).map(|step| schedule.get_lr(step)).collect();
        prop_assert!(rates[..=warmup].is_sorted());
        prop_assert!(rates[warmup..].is_sorted_by(|a, b| a >= b));
        prop_assert!(rates[warmup..].iter().all(|lr| (min_lr..=max_lr).contains(lr)));
        prop_assert_eq!((rates[0], rates[warmup], rates[total]), (0.0, max_lr, min_lr));
    }
}
