//! Softmax and norms as methods of Candle's tensors: values against their definition, gradients against finite differences.

use candle_core::{DType, Device, Result, Tensor, Var};
use metal_candle::TensorExt;

const CPU: Device = Device::Cpu;

type Function = fn(&Tensor) -> Result<Tensor>;

const FUNCTIONS: [(&str, Function); 3] = [
    ("softmax_stable", |x| x.softmax_stable()),
    ("layer_norm", |x| x.layer_norm(1e-5)),
    ("rms_norm", |x| x.rms_norm(1e-6)),
];

fn definition(name: &str, row: &[f64]) -> Vec<f64> {
    let n = row.len() as f64;
    let mean = if name == "layer_norm" {
        row.iter().sum::<f64>() / n
    } else {
        0.0
    };
    let root = |eps: f64| (row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n + eps).sqrt();
    match name {
        "softmax_stable" => {
            let sum: f64 = row.iter().map(|x| x.exp()).sum();
            row.iter().map(|x| x.exp() / sum).collect()
        }
        "layer_norm" => row.iter().map(|x| (x - mean) / root(1e-5)).collect(),
        "rms_norm" => row.iter().map(|x| x / root(1e-6)).collect(),
        other => panic!("no definition of {other}"),
    }
}

fn numbers(t: &Tensor) -> Vec<f64> {
    t.to_dtype(DType::F64).and_then(|t| t.flatten_all()?.to_vec1()).unwrap()
}

/// Irregular numbers between -3 and 3, with a tie for the largest in the first row.
fn sample() -> Vec<f64> {
    let mut x: Vec<f64> = (0..24).map(|i| (f64::from(i) * 1.7).sin() * 3.0).collect();
    (x[1], x[2]) = (2.9999, 2.9999);
    x
}

#[test]
fn values_are_those_of_the_definition_in_every_dtype() -> Result<()> {
    for (dtype, most) in [
        (DType::F64, 1e-12),
        (DType::F32, 1e-6),
        (DType::F16, 2e-3),
        (DType::BF16, 2e-2),
    ] {
        let x = Tensor::from_vec(sample(), (2, 3, 4), &CPU)?.to_dtype(dtype)?;
        for (name, function) in FUNCTIONS {
            let y = function(&x)?;
            assert_eq!((y.dims(), y.dtype()), (x.dims(), dtype), "{name}");
            let want: Vec<f64> = numbers(&x).chunks(4).flat_map(|row| definition(name, row)).collect();
            for (got, want) in numbers(&y).iter().zip(&want) {
                assert!(
                    (got - want).abs() <= most,
                    "{name} in {dtype:?}: {got}, expected {want}"
                );
            }
        }
    }
    Ok(())
}

/// The gradient of a sum with unequal weights, so that no terms cancel.
#[test]
fn gradients_are_the_finite_differences() -> Result<()> {
    let weights = Tensor::from_vec((0..24).map(|i| f64::from(i % 7) - 2.5).collect(), (2, 3, 4), &CPU)?;
    let step = 1e-6;
    for (name, function) in FUNCTIONS {
        let loss = |x: &Tensor| function(x)?.mul(&weights)?.sum_all();
        let x = Var::from_tensor(&Tensor::from_vec(sample(), (2, 3, 4), &CPU)?)?;
        let gradients = loss(&x)?.backward()?;
        let gradient = numbers(gradients.get(&x).expect("the input is in the loss"));
        for (i, got) in gradient.iter().enumerate() {
            let moved = |by: f64| -> Result<f64> {
                let mut values = sample();
                values[i] += by;
                loss(&Tensor::from_vec(values, (2, 3, 4), &CPU)?)?.to_scalar::<f64>()
            };
            let want = (moved(step)? - moved(-step)?) / (2.0 * step);
            assert!(
                (got - want).abs() < 1e-6 * (1.0 + want.abs()),
                "{name}, element {i}: {got}, expected {want}"
            );
        }
    }
    Ok(())
}

#[test]
fn gradients_flow_through_half_precision() -> Result<()> {
    for (name, function) in FUNCTIONS {
        let x = Var::from_tensor(&Tensor::from_vec(sample(), (6, 4), &CPU)?.to_dtype(DType::BF16)?)?;
        let gradients = function(&x)?.sqr()?.sum_all()?.backward()?;
        let gradient = gradients.get(&x).expect("the input is in the loss");
        assert_eq!((gradient.dims(), gradient.dtype()), (x.dims(), DType::BF16), "{name}");
    }
    Ok(())
}

#[test]
fn large_values_do_not_overflow() -> Result<()> {
    let x = Tensor::new(&[[1e4f32, 1e4, -1e4]], &CPU)?;
    assert_eq!(x.softmax_stable()?.to_vec2::<f32>()?, [[0.5, 0.5, 0.0]]);
    // A square beyond f16's largest number.
    let x = Tensor::new(&[[1000f32, 1000.0, -1000.0]], &CPU)?.to_dtype(DType::F16)?;
    assert_eq!(numbers(&x.rms_norm(1e-6)?), [1.0, 1.0, -1.0]);
    Ok(())
}

#[test]
fn strided_views_are_accepted() -> Result<()> {
    let x = Tensor::from_vec(sample(), (4, 6), &CPU)?.t()?;
    for (name, function) in FUNCTIONS {
        assert_eq!(numbers(&function(&x)?), numbers(&function(&x.contiguous()?)?), "{name}");
    }
    Ok(())
}

#[test]
fn what_does_not_fit_is_refused_by_name() -> Result<()> {
    let (integers, scalar) = (Tensor::new(&[1u32, 2], &CPU)?, Tensor::new(1f32, &CPU)?);
    for (name, function) in FUNCTIONS {
        for x in [&integers, &scalar] {
            let text = function(x).unwrap_err().to_string();
            assert!(
                text.starts_with(&format!("{name} takes floating-point numbers")),
                "{text}"
            );
        }
    }
    Ok(())
}
