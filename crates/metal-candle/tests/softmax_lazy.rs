//! The lazy softmax against Candle's and against the formula in f64.

#![cfg(feature = "graph")]

use candle_core::{DType, Device, Tensor};
use metal_candle::Result;
use metal_candle::graph::{Backend, LazyTensor, value_and_grad, with_backend};

const CPU: Device = Device::Cpu;

fn lazy(x: &Tensor, dim: usize) -> Result<Tensor> {
    Ok(LazyTensor::from_tensor(x.clone())?.softmax(dim)?.eval()?)
}

#[track_caller]
fn assert_close(a: &Tensor, b: &Tensor, tolerance: f64) -> Result<()> {
    assert_eq!((a.dims(), a.dtype()), (b.dims(), b.dtype()));
    let difference = (a - b)?
        .abs()?
        .to_dtype(DType::F64)?
        .flatten_all()?
        .max(0)?
        .to_scalar::<f64>()?;
    assert!(difference <= tolerance, "{difference:e}");
    Ok(())
}

#[test]
fn every_dimension_of_every_rank() -> Result<()> {
    for (dtype, tolerance) in [(DType::F32, 1e-6), (DType::F64, 1e-14)] {
        for shape in [&[4][..], &[4, 8], &[2, 10, 64], &[3, 4, 5], &[2, 3, 1, 7], &[1]] {
            let x = Tensor::randn(0f64, 2f64, shape, &CPU)?.to_dtype(dtype)?;
            for dim in 0..shape.len() {
                let eager = candle_nn::ops::softmax(&x, dim)?;
                let lazy = lazy(&x, dim)?;
                assert_close(&eager, &lazy, tolerance)?;
                let sums = lazy.sum(dim)?;
                assert_close(&sums, &sums.ones_like()?, tolerance)?;
            }
        }
    }
    Ok(())
}

#[test]
fn both_backends_and_strided_inputs() -> Result<()> {
    let x = Tensor::randn(0f32, 1f32, (5, 3, 4), &CPU)?.permute((2, 0, 1))?;
    for backend in [Backend::Candle, Backend::Cpu] {
        for dim in 0..3 {
            let expected = candle_nn::ops::softmax(&x.contiguous()?, dim)?;
            assert_close(&expected, &with_backend(backend, || lazy(&x, dim))?, 1e-6)?;
        }
    }
    Ok(())
}

#[test]
fn large_values_neither_overflow_nor_vanish() -> Result<()> {
    let rows = Tensor::new(
        &[
            [100f32, 200., 300., 400.],
            [-400., -300., -200., -100.],
            [3e38, 3e38, -3e38, 0.],
            [1e-30, 2e-30, 0., -1e-30],
        ],
        &CPU,
    )?;
    let expected = [[0f32, 0., 0., 1.], [0., 0., 0., 1.], [0.5, 0.5, 0., 0.], [0.25; 4]];
    assert_close(&Tensor::new(&expected, &CPU)?, &lazy(&rows, 1)?, 1e-6)
}

#[test]
fn masked_elements_are_zero_and_a_masked_row_is_nan() -> Result<()> {
    let masked = f32::NEG_INFINITY;
    let rows = Tensor::new(
        &[[masked, 0f32, masked, 0.], [1., masked, masked, masked], [masked; 4]],
        &CPU,
    )?;
    for backend in [Backend::Candle, Backend::Cpu] {
        let y = with_backend(backend, || lazy(&rows, 1))?.to_vec2::<f32>()?;
        assert_eq!(y[0], [0.0, 0.5, 0.0, 0.5]);
        assert_eq!(y[1], [1.0, 0.0, 0.0, 0.0]);
        // 0 / 0, as in every library: all elements are masked.
        assert!(y[2].iter().all(|y| y.is_nan()), "{:?}", y[2]);
    }
    Ok(())
}

#[test]
fn chained_with_other_operations() -> Result<()> {
    let x = Tensor::randn(0f32, 1f32, (4, 8), &CPU)?;
    let w = Tensor::randn(0f32, 1f32, (8, 3), &CPU)?;
    let eager = candle_nn::ops::softmax(&x, 1)?.affine(2.0, 0.0)?.matmul(&w)?;
    let input = LazyTensor::from_tensor(x)?;
    let recorded = input
        .softmax(1)?
        .mul_scalar(2.0)?
        .matmul(&LazyTensor::from_tensor(w)?)?;
    assert_eq!(recorded.graph_size(), 5);
    assert_close(&eager, &recorded.eval()?, 1e-6)
}

#[test]
fn the_gradient_is_its_closed_form() -> Result<()> {
    let x = LazyTensor::from_tensor(Tensor::randn(0f64, 1f64, (3, 5), &CPU)?)?;
    let g = Tensor::randn(0f64, 1f64, (3, 5), &CPU)?;
    let y = x.softmax(1)?;
    let loss = y.mul(&LazyTensor::from_tensor(g.clone())?)?.sum_all()?;
    let (_, gradients) = value_and_grad(&loss, &[x])?;
    // dx = y (g - sum(g y))
    let y = y.eval()?;
    let expected = (&y * g.broadcast_sub(&(&g * &y)?.sum_keepdim(1)?)?)?;
    assert_close(&expected, &gradients[0].eval()?, 1e-12)
}

#[test]
fn missing_dimensions_and_integer_dtypes_are_refused() {
    let refused = |shape: &[usize], dtype, dim| {
        LazyTensor::zeros(shape, dtype, &CPU)
            .and_then(|x| x.softmax(dim))
            .unwrap_err()
            .to_string()
    };
    assert_eq!(
        refused(&[2, 3], DType::F32, 2),
        "Softmax: dimension 2 is out of range for shape [2, 3]"
    );
    assert_eq!(
        refused(&[], DType::F32, 0),
        "Softmax: dimension 0 is out of range for shape []"
    );
    assert_eq!(
        refused(&[2], DType::U32, 0),
        "Softmax: input 0 has dtype U32, expected a float (f32, f64, f16, bf16)"
    );
}
