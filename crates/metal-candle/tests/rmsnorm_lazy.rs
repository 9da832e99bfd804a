//! The lazy RMS norm against Candle's and against the formula in f64.

#![cfg(feature = "graph")]

use candle_core::{DType, Device, Tensor, Var};
use metal_candle::Result;
use metal_candle::graph::{Backend, LazyTensor, value_and_grad, with_backend};

const CPU: Device = Device::Cpu;

fn lazy(x: &Tensor, eps: f32) -> Result<Tensor> {
    Ok(LazyTensor::from_tensor(x.clone())?.rms_norm(eps)?.eval()?)
}

/// `x / sqrt(mean(x^2) + eps)`, row by row in f64.
fn formula(x: &Tensor, eps: f32) -> Result<Tensor> {
    let width = x.dims()[x.rank() - 1];
    let mut values: Vec<f64> = x.to_dtype(DType::F64)?.flatten_all()?.to_vec1()?;
    for row in values.chunks_mut(width) {
        let mean = row.iter().map(|x| x * x).sum::<f64>() / width as f64;
        for x in row.iter_mut() {
            *x /= (mean + f64::from(eps)).sqrt();
        }
    }
    Ok(Tensor::from_vec(values, x.dims(), &CPU)?)
}

#[track_caller]
fn assert_close(expected: &Tensor, found: &Tensor, tolerance: f64) -> Result<()> {
    assert_eq!(expected.dims(), found.dims());
    let difference = (expected.to_dtype(DType::F64)? - found.to_dtype(DType::F64)?)?;
    let difference = difference.abs()?.flatten_all()?.max(0)?.to_scalar::<f64>()?;
    assert!(difference <= tolerance, "{difference:e}");
    Ok(())
}

#[test]
fn shapes_and_eps() -> Result<()> {
    for (dtype, tolerance) in [(DType::F32, 1e-6), (DType::F64, 1e-14)] {
        for shape in [&[4][..], &[1, 16], &[8, 64], &[2, 10, 64], &[2, 3, 1, 7], &[5, 1]] {
            for eps in [1e-8, 1e-6, 1e-5, 1e-2, 1.0] {
                let x = Tensor::randn(0f64, 1f64, shape, &CPU)?.to_dtype(dtype)?;
                let found = lazy(&x, eps)?;
                assert_eq!(found.dtype(), dtype);
                assert_close(&formula(&x, eps)?, &found, tolerance)?;
            }
        }
    }
    Ok(())
}

#[test]
fn is_candles_with_a_weight_of_ones() -> Result<()> {
    let x = Tensor::randn(0f32, 1f32, (6, 32), &CPU)?;
    for eps in [1e-6, 1e-5] {
        let eager = candle_nn::ops::rms_norm(&x, &Tensor::ones(32, DType::F32, &CPU)?, eps)?;
        for backend in [Backend::Candle, Backend::Cpu] {
            assert_close(&eager, &with_backend(backend, || lazy(&x, eps))?, 1e-6)?;
        }
    }
    Ok(())
}

#[test]
fn a_weight_scales_the_columns() -> Result<()> {
    let (x, w) = (
        Tensor::randn(0f32, 1f32, (6, 32), &CPU)?,
        Tensor::randn(0f32, 1f32, 32, &CPU)?,
    );
    let eager = candle_nn::ops::rms_norm(&x, &w, 1e-5)?;
    let lazy = LazyTensor::from_tensor(x)?.rms_norm_weighted(&LazyTensor::from_tensor(w)?, 1e-5)?;
    assert_close(&eager, &lazy.eval()?, 1e-6)
}

#[test]
fn tiny_large_and_zero_rows() -> Result<()> {
    let x = Tensor::new(
        &[
            [1e-12f32, -2e-12, 3e-12],
            [1e15, -2e15, 3e15],
            [0., 0., 0.],
            [1e-3, 1e3, -1e-3],
        ],
        &CPU,
    )?;
    for eps in [1e-6, 1e-5] {
        let found = lazy(&x, eps)?;
        assert_close(&formula(&x, eps)?, &found, 1e-6)?;
        assert_eq!(found.to_vec2::<f32>()?[2], [0.0; 3]);
    }
    Ok(())
}

#[test]
fn strided_inputs() -> Result<()> {
    let x = Tensor::randn(0f32, 1f32, (5, 3, 4), &CPU)?.permute((2, 0, 1))?;
    assert!(!x.is_contiguous());
    assert_close(&formula(&x.contiguous()?, 1e-5)?, &lazy(&x, 1e-5)?, 1e-6)
}

#[test]
fn the_gradient_is_that_of_the_formula_under_candle() -> Result<()> {
    let x = Var::from_tensor(&Tensor::randn(0f64, 1f64, (3, 8), &CPU)?)?;
    let g = Tensor::randn(0f64, 1f64, (3, 8), &CPU)?;
    let norm = (x.sqr()?.mean_keepdim(1)? + f64::from(1e-5f32))?.sqrt()?;
    let eager = (x.broadcast_div(&norm)? * &g)?.sum_all()?.backward()?;

    let input = LazyTensor::from_tensor(x.as_tensor().clone())?;
    let loss = input.rms_norm(1e-5)?.mul(&LazyTensor::from_tensor(g)?)?.sum_all()?;
    let (_, gradients) = value_and_grad(&loss, &[input])?;
    assert_close(eager.get(&x).expect("reached"), &gradients[0].eval()?, 1e-12)
}

#[test]
fn scalars_and_integers_are_refused() -> Result<()> {
    let zeros = |shape: &[usize], dtype| LazyTensor::zeros(shape, dtype, &CPU);
    let scalar = zeros(&[], DType::F32)?.rms_norm(1e-5).unwrap_err().to_string();
    assert_eq!(scalar, "RMSNorm: a scalar has no last dimension to normalise");
    let integers = zeros(&[4], DType::I64)?.rms_norm(1e-5).unwrap_err().to_string();
    assert_eq!(
        integers,
        "RMSNorm: input 0 has dtype I64, expected a float (f32, f64, f16, bf16)"
    );
    let weight = zeros(&[2, 4], DType::F32)?
        .rms_norm_weighted(&zeros(&[3], DType::F32)?, 1e-5)
        .unwrap_err();
    assert_eq!(weight.to_string(), "RMSNorm: weight has shape [3], expected [4]");
    Ok(())
}
