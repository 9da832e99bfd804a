//! Products with quantised weights on both backends, their gradients, and the dequantised weights.

use candle_core::{DType, Device};
use metal_candle_graph::fused::dequant_matmul::dequantize;
use metal_candle_graph::{Backend, LazyTensor, QuantFormat, Result, random, value_and_grad, with_backend};

const FORMATS: [QuantFormat; 2] = [QuantFormat::Q8_0, QuantFormat::Q4_0];
const OUT: usize = 70;
const IN: usize = 160;

fn normal(seed: u32, shape: &[usize], dtype: DType) -> LazyTensor {
    let values: Vec<f32> = random::normal32([seed, 3], [0, 0])
        .take(shape.iter().product())
        .collect();
    LazyTensor::from_slice(&values, shape, &Device::Cpu)
        .unwrap()
        .cast(dtype)
        .unwrap()
}

/// Weights in f32, and their quants and scales.
fn weights(format: QuantFormat) -> (Vec<f32>, LazyTensor, LazyTensor) {
    let values = normal(1, &[OUT, IN], DType::F32).to_vec::<f32>().unwrap();
    let quantized = format.quantize(&values).unwrap();
    let width = IN / 32 * format.block_bytes();
    let quants = LazyTensor::from_data(&quantized.quants, &[OUT, width], &Device::Cpu).unwrap();
    let scales = LazyTensor::from_data(&quantized.scales, &[OUT, IN / 32], &Device::Cpu).unwrap();
    (format.dequantize(&quantized), quants, scales)
}

fn values(tensor: &LazyTensor) -> Vec<f64> {
    tensor.cast(DType::F64).unwrap().to_vec().unwrap()
}

/// Normalised mean squared error.
fn nmse(found: &[f64], wanted: &[f64]) -> f64 {
    let power: f64 = wanted.iter().map(|w| w * w).sum();
    found.iter().zip(wanted).map(|(f, w)| (f - w).powi(2)).sum::<f64>() / power
}

/// The error of `f` on the CPU backend relative to the reference.
fn error(f: impl Fn() -> Result<LazyTensor>) -> f64 {
    let on = |backend| with_backend(backend, || values(&f().unwrap()));
    nmse(&on(Backend::Cpu), &on(Backend::Candle))
}

/// The maximum rounding error of a dtype.
fn rounding(dtype: DType) -> f64 {
    match dtype {
        DType::F64 => 1e-24,
        DType::F32 => 1e-10,
        DType::F16 => 1e-6,
        _ => 5e-5,
    }
}

#[test]
fn both_backends_agree() {
    for format in FORMATS {
        let (_, quants, scales) = weights(format);
        for dtype in [DType::F32, DType::F64, DType::F16, DType::BF16] {
            let product = |shape: &[usize]| error(|| normal(2, shape, dtype).dequant_matmul(&quants, &scales, format));
            let many = product(&[3, 7, IN]);
            assert!(many <= rounding(dtype), "{format:?} {dtype:?}: {many:e}");
            // Quantised activations: the step is the largest of 32 normal numbers, about 2.1 deviations, divided by
            // 127, and its error a twelfth of its square: 2.5e-5.
            let few = product(&[2, 1, IN]);
            let allowed = if dtype == DType::F64 { 1e-24 } else { 1e-4 };
            assert!(few <= allowed, "{format:?} {dtype:?}, a few rows: {few:e}");
            assert!(
                dtype == DType::F64 || few > 1e-6,
                "a few rows were not multiplied as bytes"
            );
            let turned = error(|| {
                let x = normal(2, &[IN, 11], dtype).t()?;
                x.dequant_matmul(&quants, &scales, format)
            });
            assert!(
                turned <= rounding(dtype),
                "{format:?} {dtype:?}, transposed: {turned:e}"
            );
        }
    }
}

#[test]
fn the_definition_is_the_product_with_the_dequantised_weights() {
    for format in FORMATS {
        let (weights, quants, scales) = weights(format);
        for backend in [Backend::Cpu, Backend::Candle] {
            with_backend(backend, || {
                let wide = dequantize(&quants, &scales, format, DType::F32).unwrap();
                assert_eq!(wide.to_vec::<f32>().unwrap(), weights, "{format:?} {backend:?}");
                let x = normal(2, &[3, IN], DType::F64);
                let product = x.dequant_matmul(&quants, &scales, format).unwrap();
                let plain = x.matmul_t(&wide.cast(DType::F64).unwrap()).unwrap();
                let error = nmse(&values(&product), &values(&plain));
                assert!(error < 1e-28, "{format:?} {backend:?}: {error:e}");
            });
        }
    }
}

/// A frozen base: the gradient reaches the inputs, and is that of the dequantised weights.
#[test]
fn the_gradient_is_that_of_the_dequantised_weights() {
    for format in FORMATS {
        let (_, quants, scales) = weights(format);
        for dtype in [DType::F32, DType::BF16] {
            for rows in [1, 20] {
                let x = normal(2, &[rows, IN], dtype);
                let of = |y: LazyTensor| {
                    let loss = y
                        .cast(DType::F32)?
                        .mul(&normal(3, &[rows, OUT], DType::F32))?
                        .sum_all()?;
                    Ok(values(&value_and_grad(&loss, std::slice::from_ref(&x))?.1[0]))
                };
                let wide = dequantize(&quants, &scales, format, dtype).unwrap();
                let found: Result<Vec<f64>> = x.dequant_matmul(&quants, &scales, format).and_then(of);
                let wanted = x.matmul_t(&wide).and_then(of).unwrap();
                let error = nmse(&found.unwrap(), &wanted);
                assert!(error <= rounding(dtype), "{format:?} {dtype:?} {rows}: {error:e}");
            }
        }
    }
}

#[test]
fn quants_and_scales_have_no_gradient() {
    let (_, quants, scales) = weights(QuantFormat::Q8_0);
    let y = normal(2, &[3, IN], DType::F16).dequant_matmul(&quants, &scales, QuantFormat::Q8_0);
    let message = value_and_grad(&y.unwrap().sum_all().unwrap(), &[scales])
        .unwrap_err()
        .to_string();
    assert!(message.contains("have no gradient for it"), "{message}");
}
