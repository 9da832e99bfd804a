//! Rejected parameters, sizes and positions, with one error variant each.

use candle_core::{DType, Device};
use metal_candle_graph::{
    AdamWOptions, AttentionInputs, AttentionOptions, CrossEntropyOptions, Error, LazyTensor, Result, value_and_grad,
    with_backend,
};

use super::{BACKENDS, INF, NAN, f64s, gives, i64s};

#[track_caller]
fn refuses<T>(result: Result<T>, fits: fn(&Error) -> bool) {
    match result {
        Err(error) => assert!(fits(&error), "{error:?}"),
        Ok(_) => panic!("accepted"),
    }
}

#[test]
fn a_dimension_given_twice_is_refused() {
    let x = LazyTensor::ones(&[2, 3], DType::F32, &Device::Cpu).unwrap();
    let is_shape: fn(&Error) -> bool = |error| matches!(error, Error::Shape { .. });
    refuses(x.mean_keepdim(&[1, 1]), is_shape);
    refuses(x.sum_keepdim(&[0, 1, 0]), is_shape);
    refuses(x.max_keepdim(&[0, 0]), is_shape);
    refuses(x.permute(&[1, 1]), is_shape);
    assert_eq!(
        x.sum_keepdim(&[1, 1]).unwrap_err().to_string(),
        "Sum: dimension 1 appears twice in [1, 1]"
    );
    // In any order, without duplicates.
    assert_eq!(x.mean_keepdim(&[1, 0]).unwrap().to_vec::<f32>().unwrap(), [1.0]);
    refuses(i64s(&[1, 2]).mean_all(), |error| {
        matches!(error, Error::DType { operation: "mean", .. })
    });
}

#[test]
fn rates_of_dropout_are_from_0_to_1() {
    let key = LazyTensor::from_data(&[1u32, 2, 3, 4], &[4], &Device::Cpu).unwrap();
    let x = f64s(&[1.0, 2.0, INF]);
    for rate in [f32::NAN, -0.1, 1.1, f32::INFINITY] {
        refuses(x.dropout(rate, &key), |error| {
            matches!(error, Error::Parameter { name: "rate", .. })
        });
    }
    assert_eq!(
        x.dropout(1.5, &key).unwrap_err().to_string(),
        "dropout: rate is 1.5, expected a number from 0 to 1"
    );
    gives("a rate of 0", &[1.0, 2.0, INF], |dtype| {
        x.cast(dtype)?.dropout(0.0, &key)
    });
    gives("a rate of 1", &[0.0, 0.0, NAN], |dtype| {
        x.cast(dtype)?.dropout(1.0, &key)
    });
    gives("the gradient at a rate of 1", &[0.0; 3], |dtype| {
        let x = x.cast(dtype)?;
        Ok(value_and_grad(&x.dropout(1.0, &key)?.sum_all()?, &[x])?.1.remove(0))
    });
}

#[test]
fn parameters_out_of_range_are_refused() {
    let is_parameter: fn(&Error) -> bool = |error| matches!(error, Error::Parameter { .. });
    let x = LazyTensor::ones(&[2, 3], DType::F32, &Device::Cpu).unwrap();
    let row = LazyTensor::ones(&[3], DType::F32, &Device::Cpu).unwrap();
    for eps in [-1e-5, f32::NAN] {
        refuses(x.rms_norm(eps), is_parameter);
        refuses(x.layer_norm(&row, &row, eps), is_parameter);
    }
    let targets = i64s(&[0, 1]);
    for label_smoothing in [-0.1, 1.1, f32::NAN] {
        let options = CrossEntropyOptions {
            label_smoothing,
            ..CrossEntropyOptions::default()
        };
        refuses(x.cross_entropy(&x, &targets, options), is_parameter);
    }
    let rates = LazyTensor::ones(&[4], DType::F32, &Device::Cpu).unwrap();
    let good = AdamWOptions {
        beta1: 0.9,
        beta2: 0.99,
        eps: 1e-8,
        weight_decay: 0.0,
    };
    let bad = [
        AdamWOptions { beta1: 1.0, ..good },
        AdamWOptions { beta2: -0.1, ..good },
        AdamWOptions { beta2: NAN, ..good },
        AdamWOptions { eps: -1e-8, ..good },
        AdamWOptions {
            weight_decay: NAN,
            ..good
        },
    ];
    for options in bad {
        refuses(x.adamw(&x, &x, &x, &rates, options), is_parameter);
    }
    x.adamw(&x, &x, &x, &rates, good).unwrap();
}

#[test]
fn sizes_beyond_memory_are_refused() {
    let is_shape: fn(&Error) -> bool = |error| matches!(error, Error::Shape { .. });
    let x = LazyTensor::ones(&[2, 1], DType::F32, &Device::Cpu).unwrap();
    let huge = usize::MAX / 2;
    refuses(x.broadcast_to(&[2, huge]), is_shape);
    refuses(x.broadcast_to(&[huge, 2, 4]), is_shape);
    refuses(x.reshape(&[huge, 4]), is_shape);
    refuses(x.pad(&[huge, 0], &[huge, 1]), is_shape);
    refuses(LazyTensor::zeros(&[huge, 3], DType::F32, &Device::Cpu), is_shape);
    refuses(LazyTensor::from_slice(&[1.0], &[huge, 5], &Device::Cpu), is_shape);
}

/// Queries at positions without a key are reported by both backends.
#[test]
fn attention_beyond_its_keys_is_reported() {
    let heads = |seq: usize| LazyTensor::ones(&[1, seq, 1, 2], DType::F32, &Device::Cpu).unwrap();
    let options = AttentionOptions {
        scale: 1.0,
        causal: true,
        window: None,
        offset: true,
        segments: false,
    };
    let attend = |queries: usize, at: u32| {
        let offset = LazyTensor::from_data(&[at], &[1], &Device::Cpu)?;
        let (q, k) = (heads(queries), heads(4));
        let inputs = AttentionInputs {
            q: &q,
            k: &k,
            v: &k,
            offset: Some(&offset),
            segments: None,
        };
        LazyTensor::attention(&inputs, options)?.eval()
    };
    for backend in BACKENDS {
        with_backend(backend, || {
            attend(2, 2).unwrap();
            refuses(attend(2, 3), |error| {
                matches!(
                    error,
                    Error::Range {
                        start: 3,
                        end: 5,
                        size: 4,
                        ..
                    }
                )
            });
            refuses(attend(5, 0), |error| matches!(error, Error::Shape { .. }));
        });
    }
}
