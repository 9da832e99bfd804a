//! The eager `LoRA` layer against its formula as f64 loops, and its gradients against their closed form and finite
//! differences.

use candle_core::{DType, Device, Tensor, Var};
use metal_candle::training::{LoRAConfig, LoRALayer};
use metal_candle::{Error, Result};
use proptest::prelude::*;

const CPU: Device = Device::Cpu;

/// A layer without dropout whose B is not zero, so that A has a gradient too.
fn layer(inputs: usize, outputs: usize, rank: usize, alpha: f32) -> Result<LoRALayer> {
    let config = LoRAConfig {
        rank,
        alpha,
        dropout: 0.0,
    };
    let layer = LoRALayer::new(inputs, outputs, &config, &CPU)?;
    layer.lora_a().set(&Tensor::randn(0f32, 0.5, (inputs, rank), &CPU)?)?;
    layer.lora_b().set(&Tensor::randn(0f32, 0.5, (rank, outputs), &CPU)?)?;
    Ok(layer)
}

/// The elements of a tensor in row-major order, in f64.
fn numbers(t: &Tensor) -> Vec<f64> {
    t.to_dtype(DType::F64).and_then(|t| t.flatten_all()?.to_vec1()).unwrap()
}

/// `a (n, k)` times `b (k, m)` by the definition.
fn matmul(a: &[f64], b: &[f64], n: usize, k: usize, m: usize) -> Vec<f64> {
    let mut out = vec![0.0; n * m];
    for i in 0..n {
        for j in 0..m {
            out[i * m + j] = (0..k).map(|l| a[i * k + l] * b[l * m + j]).sum();
        }
    }
    out
}

fn transpose(a: &[f64], rows: usize, columns: usize) -> Vec<f64> {
    (0..rows * columns)
        .map(|i| a[(i % rows) * columns + i / rows])
        .collect()
}

fn scaled(a: &[f64], factor: f32) -> Vec<f64> {
    a.iter().map(|x| x * f64::from(factor)).collect()
}

#[track_caller]
fn assert_close(got: &[f64], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len());
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!(
            (g - w).abs() <= tolerance * (1.0 + w.abs()),
            "element {i}: {g}, expected {w}"
        );
    }
}

/// The update by its formula, in f64.
fn formula(layer: &LoRALayer, x: &Tensor) -> Vec<f64> {
    let (inputs, outputs, rank) = (layer.in_features(), layer.out_features(), layer.config().rank);
    let rows = x.elem_count() / inputs;
    let hidden = matmul(&numbers(x), &numbers(layer.lora_a()), rows, inputs, rank);
    let update = matmul(&hidden, &numbers(layer.lora_b()), rows, rank, outputs);
    scaled(&update, layer.config().scaling())
}

#[test]
fn forward_is_the_formula_for_inputs_of_any_rank() -> Result<()> {
    for rank in [1, 2, 4, 8, 16] {
        for leading in [&[][..], &[1], &[8], &[2, 3], &[2, 1, 3], &[2, 2, 2, 2]] {
            let layer = layer(16, 24, rank, 12.0)?;
            let x = Tensor::randn(0f32, 1f32, [leading, &[16]].concat(), &CPU)?;
            let y = layer.forward(&x)?;
            assert_eq!(y.dims(), [leading, &[24]].concat());
            assert_close(&numbers(&y), &formula(&layer, &x), 1e-5);
        }
    }
    Ok(())
}

#[test]
fn forward_takes_inputs_that_are_not_contiguous() -> Result<()> {
    let layer = layer(6, 5, 3, 6.0)?;
    let x = Tensor::randn(0f32, 1f32, (6, 4, 2), &CPU)?.permute((2, 1, 0))?;
    assert!(!x.is_contiguous());
    assert_close(&numbers(&layer.forward(&x)?), &formula(&layer, &x.contiguous()?), 1e-5);
    Ok(())
}

#[test]
fn an_empty_batch_gives_an_empty_batch() -> Result<()> {
    let x = Tensor::zeros((0, 6), DType::F32, &CPU)?;
    assert_eq!(layer(6, 5, 3, 6.0)?.forward(&x)?.dims(), &[0, 5]);
    Ok(())
}

#[test]
fn gradients_are_their_closed_form() -> Result<()> {
    let (rows, inputs, outputs, rank) = (6, 7, 5, 3);
    let layer = layer(inputs, outputs, rank, 4.5)?;
    let s = layer.config().scaling();
    let x = Var::from_tensor(&Tensor::randn(0f32, 1f32, (2, 3, inputs), &CPU)?)?;
    let upstream = Tensor::randn(0f32, 1f32, (2, 3, outputs), &CPU)?;

    // The loss is sum(y * G), so dL/dy is G.
    let grads = (layer.forward(&x)? * &upstream)?.sum_all()?.backward()?;

    let (xv, g) = (numbers(&x), numbers(&upstream));
    let (a, b) = (numbers(layer.lora_a()), numbers(layer.lora_b()));
    let g_bt = matmul(&g, &transpose(&b, rank, outputs), rows, outputs, rank);
    let d_a = matmul(&transpose(&xv, rows, inputs), &g_bt, inputs, rows, rank);
    let x_a = matmul(&xv, &a, rows, inputs, rank);
    let d_b = matmul(&transpose(&x_a, rows, rank), &g, rank, rows, outputs);
    let d_x = matmul(&g_bt, &transpose(&a, inputs, rank), rows, rank, inputs);

    for (variable, want) in [(layer.lora_a(), d_a), (layer.lora_b(), d_b), (&x, d_x)] {
        let grad = grads.get(variable).expect("reached by the loss");
        assert_eq!(grad.dims(), variable.dims());
        assert_close(&numbers(grad), &scaled(&want, s), 1e-5);
    }
    Ok(())
}

/// A loss with curvature, so that the gradient depends on the point.
fn loss(layer: &LoRALayer, x: &Tensor, target: &Tensor) -> Result<Tensor> {
    Ok((layer.forward(x)? - target)?.sqr()?.mean_all()?)
}

#[test]
fn gradients_are_the_finite_differences() -> Result<()> {
    let layer = layer(6, 4, 2, 3.0)?;
    let x = Tensor::randn(0f32, 1f32, (2, 3, 6), &CPU)?;
    let target = Tensor::randn(0f32, 1f32, (2, 3, 4), &CPU)?;
    let grads = loss(&layer, &x, &target)?.backward()?;
    // The loss is quadratic in each element, so that central differences are exact: a wide step keeps the rounding of
    // f32 small.
    let step = 0.25f32;
    for variable in layer.trainable_variables() {
        let original = variable.flatten_all()?.to_vec1::<f32>()?;
        let grad = numbers(grads.get(variable).expect("reached by the loss"));
        for i in 0..original.len() {
            let at = |delta: f32| -> Result<f64> {
                let mut moved = original.clone();
                moved[i] += delta;
                variable.set(&Tensor::from_vec(moved, variable.shape(), &CPU)?)?;
                Ok(f64::from(loss(&layer, &x, &target)?.to_scalar::<f32>()?))
            };
            let difference = (at(step)? - at(-step)?) / f64::from(2.0 * step);
            assert_close(&[grad[i]], &[difference], 1e-4);
        }
        variable.set(&Tensor::from_vec(original, variable.shape(), &CPU)?)?;
    }
    Ok(())
}

#[test]
fn a_fresh_layer_adds_nothing_and_learns_through_b() -> Result<()> {
    let layer = LoRALayer::new(200, 100, &LoRAConfig::default(), &CPU)?;
    let x = Tensor::randn(0f32, 1f32, (4, 200), &CPU)?;
    let y = layer.forward(&x)?;
    assert!(numbers(&y).iter().all(|&y| y == 0.0));

    let a = numbers(layer.lora_a());
    let n = a.len() as f64;
    let mean = a.iter().sum::<f64>() / n;
    let std = (a.iter().map(|a| (a - mean).powi(2)).sum::<f64>() / n).sqrt();
    // 1 / sqrt(rank); 1600 samples: six standard errors of either estimate.
    let expected = 1.0 / 8f64.sqrt();
    assert!(mean.abs() < 6.0 * expected / n.sqrt(), "mean {mean}");
    assert!((std - expected).abs() < 6.0 * expected / (2.0 * n).sqrt(), "std {std}");

    let grads = y.sum_all()?.backward()?;
    let largest = |v: &Var| {
        numbers(grads.get(v).expect("reached by the loss"))
            .iter()
            .fold(0f64, |m, g| m.max(g.abs()))
    };
    assert!(largest(layer.lora_b()) > 0.0);
    assert!(largest(layer.lora_a()) == 0.0);
    Ok(())
}

/// An identity layer: A and B are the identity and the scaling is 1.
fn identity(n: usize, dropout: f32) -> Result<LoRALayer> {
    let config = LoRAConfig {
        rank: n,
        alpha: n as f32,
        dropout,
    };
    let layer = LoRALayer::new(n, n, &config, &CPU)?;
    for variable in layer.trainable_variables() {
        variable.set(&Tensor::eye(n, DType::F32, &CPU)?)?;
    }
    Ok(layer)
}

#[test]
fn dropout_zeroes_its_share_and_scales_up_the_rest() -> Result<()> {
    let p = 0.25f32;
    let layer = identity(64, p)?;
    let x = Tensor::ones((100, 64), DType::F32, &CPU)?;
    let y = numbers(&layer.forward(&x)?);
    let kept = 1.0 / (1.0 - f64::from(p));
    assert!(y.iter().all(|&y| y == 0.0 || (y - kept).abs() < 1e-6));
    let share = y.iter().filter(|&&y| y == 0.0).count() as f64 / y.len() as f64;
    // 6400 draws: six standard deviations.
    assert!(
        (share - f64::from(p)).abs() < 6.0 * (0.25f64 * 0.75 / 6400.0).sqrt(),
        "{share}"
    );
    Ok(())
}

#[test]
fn dropout_draws_anew_each_time_and_only_in_training_mode() -> Result<()> {
    let mut layer = identity(64, 0.5)?;
    let x = Tensor::ones((8, 64), DType::F32, &CPU)?;
    assert!(layer.is_training());
    assert_ne!(numbers(&layer.forward(&x)?), numbers(&layer.forward(&x)?));

    layer.eval();
    assert!(!layer.is_training());
    assert_close(&numbers(&layer.forward(&x)?), &numbers(&x), 1e-6);

    layer.set_training(true);
    assert_ne!(numbers(&layer.forward(&x)?), numbers(&x));
    Ok(())
}

#[test]
fn gradients_pass_through_what_dropout_kept() -> Result<()> {
    let layer = identity(32, 0.5)?;
    let x = Var::ones((4, 32), DType::F32, &CPU)?;
    let y = layer.forward(&x)?;
    let grads = y.sum_all()?.backward()?;
    // With identity matrices dy/dx is the mask itself, and so is y for an input of ones.
    assert_close(&numbers(grads.get(&x).expect("reached")), &numbers(&y), 1e-6);
    Ok(())
}

#[test]
fn inputs_that_do_not_fit_are_refused_by_name_and_shape() -> Result<()> {
    let layer = layer(16, 8, 4, 8.0)?;
    // 32 numbers could be reshaped as (2, 16); they must not be.
    for shape in [&[4, 8][..], &[32], &[2, 2, 8]] {
        let error = layer.forward(&Tensor::zeros(shape, DType::F32, &CPU)?).unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, Error::Candle { .. }), "{text}");
        assert!(text.starts_with("LoRA forward: matmul with lora_a (16, 4): "), "{text}");
    }
    let error = layer.forward(&Tensor::new(1f32, &CPU)?).unwrap_err().to_string();
    assert_eq!(error, "LoRA forward: input is a scalar, it must have shape (.., 16)");
    let error = layer.forward(&Tensor::zeros((1, 16), DType::F64, &CPU)?).unwrap_err();
    assert!(error.to_string().contains("F64"), "{error}");
    Ok(())
}

#[test]
fn settings_outside_their_range_are_refused() {
    let good = LoRAConfig::default();
    assert!(good.validate().is_ok());
    for (bad, name) in [
        (LoRAConfig { rank: 0, ..good }, "rank"),
        (LoRAConfig { alpha: 0.0, ..good }, "alpha"),
        (LoRAConfig { alpha: -1.0, ..good }, "alpha"),
        (
            LoRAConfig {
                alpha: f32::NAN,
                ..good
            },
            "alpha",
        ),
        (
            LoRAConfig {
                alpha: f32::INFINITY,
                ..good
            },
            "alpha",
        ),
        (LoRAConfig { dropout: 1.0, ..good }, "dropout"),
        (LoRAConfig { dropout: -0.1, ..good }, "dropout"),
        (
            LoRAConfig {
                dropout: f32::NAN,
                ..good
            },
            "dropout",
        ),
        (LoRAConfig { rank: 65, ..good }, "rank"),
    ] {
        let error = LoRALayer::new(64, 100, &bad, &CPU).unwrap_err();
        assert!(matches!(error, Error::Training(_)));
        assert!(error.to_string().contains(name), "{error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn forward_is_the_formula_for_any_sizes(
        leading in prop::collection::vec(1usize..4, 0..4),
        (inputs, outputs, rank) in (1usize..20, 1usize..20).prop_flat_map(|(i, o)| (Just(i), Just(o), 1..=i.min(o))),
        alpha in 0.1f32..64.0,
    ) {
        let layer = layer(inputs, outputs, rank, alpha).unwrap();
        let x = Tensor::randn(0f32, 1f32, [&leading[..], &[inputs]].concat(), &CPU).unwrap();
        let y = layer.forward(&x).unwrap();
        prop_assert_eq!(y.dims(), [&leading[..], &[outputs]].concat());
        // f32 sums against f64 sums: the error is proportional to the terms, not to the result.
        let size = f64::from(layer.config().scaling()) * (inputs * rank) as f64;
        for (got, want) in numbers(&y).iter().zip(formula(&layer, &x)) {
            prop_assert!((got - want).abs() <= 1e-5 * (1.0 + size), "{} vs {}", got, want);
        }
    }
}
