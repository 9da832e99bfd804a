//! The CPU backend against the candle backend: every operation, all dtypes it takes, strided and broadcast inputs.
#![allow(clippy::cloned_ref_to_slice_refs, clippy::items_after_statements)] // tables of cases read best so

use candle_core::{DType, Device, WithDType};
use metal_candle_graph::{
    AdamWOptions, Approximate, AttentionInputs, AttentionOptions, Backend, CrossEntropyOptions, Distribution,
    LazyTensor, Result, random, value_and_grad, with_backend,
};

const FLOATS: [DType; 4] = [DType::F32, DType::F64, DType::F16, DType::BF16];

fn tensor<T: WithDType>(values: &[T], shape: &[usize], dtype: DType) -> LazyTensor {
    let tensor = LazyTensor::from_data(values, shape, &Device::Cpu).unwrap();
    tensor.cast(dtype).unwrap()
}

fn normal(seed: u32, shape: &[usize], dtype: DType) -> LazyTensor {
    let values: Vec<f64> = random::normal64([seed, 1], [0, 0])
        .take(shape.iter().product())
        .collect();
    tensor(&values, shape, dtype)
}

fn positive(seed: u32, shape: &[usize], dtype: DType) -> LazyTensor {
    let values: Vec<f64> = random::uniform64([seed, 2], [0, 0])
        .take(shape.iter().product())
        .map(|u| u + 0.25)
        .collect();
    tensor(&values, shape, dtype)
}

fn indices(values: &[u32], shape: &[usize], dtype: DType) -> LazyTensor {
    tensor(values, shape, dtype)
}

/// Normalised mean squared error that a dtype is allowed.
fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::F64 => 1e-24,
        DType::F32 => 1e-10,
        DType::F16 => 5e-6,
        DType::BF16 => 5e-4,
        _ => 0.0,
    }
}

fn values(tensor: &LazyTensor) -> Vec<f64> {
    tensor.cast(DType::F64).unwrap().to_vec().unwrap()
}

/// Records twice, runs once on each backend and compares.
fn compare(name: &str, dtype: DType, record: impl Fn() -> Result<LazyTensor>) {
    let expected = with_backend(Backend::Candle, || {
        values(&record().unwrap_or_else(|e| panic!("{name}: {e}")))
    });
    let found = with_backend(Backend::Cpu, || values(&record().unwrap()));
    assert_eq!(expected.len(), found.len());
    let mut error = 0.0;
    let mut power = 0.0;
    for (e, f) in expected.iter().zip(&found) {
        if e.is_finite() {
            error += (e - f).powi(2);
            power += e.powi(2);
        } else {
            assert!(
                e.is_nan() == f.is_nan() && (e.is_nan() || e == f),
                "{name} {dtype:?}: {e} and {f}"
            );
        }
    }
    assert!(
        error <= tolerance(dtype) * power,
        "{name} {dtype:?}: error {error:e} of {power:e}"
    );
}

#[test]
fn elementwise() {
    type Unary = fn(&LazyTensor) -> Result<LazyTensor>;
    let unary: [(&str, Unary); 17] = [
        ("neg", LazyTensor::neg),
        ("abs", LazyTensor::abs),
        ("sign", LazyTensor::sign),
        ("exp", LazyTensor::exp),
        ("log", LazyTensor::log),
        ("sqrt", LazyTensor::sqrt),
        ("rsqrt", LazyTensor::rsqrt),
        ("recip", LazyTensor::recip),
        ("sin", LazyTensor::sin),
        ("cos", LazyTensor::cos),
        ("tanh", LazyTensor::tanh),
        ("erf", LazyTensor::erf),
        ("sigmoid", LazyTensor::sigmoid),
        ("floor", LazyTensor::floor),
        ("mul_scalar", |x| x.mul_scalar(2.5)),
        ("add_scalar", |x| x.add_scalar(-0.5)),
        ("stop_gradient", LazyTensor::stop_gradient),
    ];
    type Binary = fn(&LazyTensor, &LazyTensor) -> Result<LazyTensor>;
    let binary: [(&str, Binary); 10] = [
        ("add", LazyTensor::add),
        ("sub", LazyTensor::sub),
        ("mul", LazyTensor::mul),
        ("div", LazyTensor::div),
        ("pow", LazyTensor::pow),
        ("maximum", LazyTensor::maximum),
        ("minimum", LazyTensor::minimum),
        ("equal", LazyTensor::equal),
        ("less", LazyTensor::less),
        ("less_equal", LazyTensor::less_equal),
    ];
    for dtype in FLOATS {
        for (name, f) in unary {
            compare(name, dtype, || f(&positive(1, &[5, 67], dtype)));
            compare(name, dtype, || f(&positive(1, &[4, 3, 5], dtype).permute(&[2, 0, 1])?));
        }
        for (name, f) in binary {
            for (left, right) in [
                (&[3, 40][..], &[3, 40][..]),
                (&[3, 1, 5], &[4, 1]),
                (&[7], &[]),
                (&[2, 3, 4], &[4]),
            ] {
                compare(name, dtype, || f(&positive(1, left, dtype), &positive(2, right, dtype)));
            }
            compare(name, dtype, || {
                let x = positive(1, &[9, 9], dtype);
                f(&x.mul_scalar(1.5)?.t()?, &x)
            });
        }
        compare("where", dtype, || {
            let (a, b) = (normal(1, &[3, 1, 4], dtype), normal(2, &[5, 4], dtype));
            a.less(&b)?.where_cond(&a, &b)
        });
        compare("a value and its transpose", dtype, || {
            let x = normal(1, &[8, 8], dtype).mul_scalar(2.0)?;
            x.add(&x.t()?)?.add(&x)
        });
    }
}

#[test]
fn large_enough_for_several_threads() {
    compare("add", DType::F32, || {
        normal(1, &[300, 1000], DType::F32).add(&normal(2, &[1000], DType::F32))
    });
    compare("exp", DType::F32, || normal(1, &[3, 200_000], DType::F32).exp());
    compare("sum", DType::F32, || normal(1, &[300, 1000], DType::F32).sum(0));
    compare("sum", DType::F32, || normal(1, &[300, 1000], DType::F32).sum(1));
    compare("max", DType::F32, || normal(1, &[2, 500, 300], DType::F32).max(1));
    compare("matmul", DType::F32, || {
        normal(1, &[2, 130, 200], DType::F32).matmul(&normal(2, &[200, 90], DType::F32))
    });
}

#[test]
fn casts_between_all_dtypes() {
    let all = [
        DType::F32,
        DType::F64,
        DType::F16,
        DType::BF16,
        DType::U8,
        DType::U32,
        DType::I64,
    ];
    for from in all {
        for to in all {
            compare("cast", to, || {
                positive(1, &[40], DType::F32)
                    .mul_scalar(100.0)?
                    .floor()?
                    .cast(from)?
                    .cast(to)
            });
        }
    }
}

#[test]
fn integers() {
    type Binary = fn(&LazyTensor, &LazyTensor) -> Result<LazyTensor>;
    let binary: [(&str, Binary); 6] = [
        ("add", LazyTensor::add),
        ("mul", LazyTensor::mul),
        ("maximum", LazyTensor::maximum),
        ("minimum", LazyTensor::minimum),
        ("equal", LazyTensor::equal),
        ("less", LazyTensor::less),
    ];
    for dtype in [DType::U8, DType::U32, DType::I64] {
        for (name, f) in binary {
            compare(name, dtype, || {
                f(&indices(&[1, 5, 3, 9], &[2, 2], dtype), &indices(&[4, 2], &[2], dtype))
            });
        }
        compare("div", dtype, || {
            indices(&[1, 5, 3, 9], &[2, 2], dtype).div(&indices(&[0, 2], &[2], dtype))
        });
        compare("sum", dtype, || indices(&[1, 5, 3, 9], &[2, 2], dtype).sum(0));
        compare("argmax", DType::U32, || {
            indices(&[1, 5, 9, 9], &[2, 2], dtype).argmax(1)
        });
    }
    for f in [LazyTensor::neg, LazyTensor::abs, LazyTensor::sign] {
        compare("of one integer", DType::I64, || {
            f(&LazyTensor::from_data(&[-3i64, 0, 5], &[3], &Device::Cpu)?)
        });
    }
}

#[test]
fn integers_divided_by_zero_are_zero() {
    let of = |values: &[i64]| LazyTensor::from_data(values, &[values.len()], &Device::Cpu).unwrap();
    for backend in [Backend::Candle, Backend::Cpu] {
        let quotient = || of(&[7, -7, i64::MIN, i64::MIN]).div(&of(&[0, 2, 0, -1])).unwrap();
        let found = with_backend(backend, || quotient().to_vec::<i64>().unwrap());
        assert_eq!(found, [0, -3, 0, i64::MIN], "{backend:?}");
    }
}

#[test]
fn reductions() {
    for dtype in FLOATS {
        for dims in [&[0][..], &[1], &[2], &[0, 1], &[1, 2], &[0, 2], &[0, 1, 2]] {
            compare("sum", dtype, || normal(1, &[3, 5, 7], dtype).sum_keepdim(dims));
            compare("max", dtype, || normal(1, &[3, 5, 7], dtype).max_keepdim(dims));
            compare("sum of a view", dtype, || {
                normal(1, &[3, 5, 7], dtype).permute(&[2, 0, 1])?.sum_keepdim(dims)
            });
        }
        for dim in 0..3 {
            compare("argmax", DType::U32, || normal(1, &[3, 5, 7], dtype).argmax(dim));
        }
        compare("mean", dtype, || normal(1, &[3, 5], dtype).mean_all());
    }
}

#[test]
fn movement_and_sources() {
    for dtype in FLOATS {
        let x = || normal(1, &[4, 3, 5], dtype);
        compare("reshape of a permutation", dtype, || {
            x().permute(&[1, 2, 0])?.reshape(&[5, 12])?.mul_scalar(2.0)
        });
        compare("broadcast", dtype, || {
            normal(1, &[3, 1], dtype).broadcast_to(&[2, 3, 4])
        });
        compare("slice", dtype, || x().slice(1, 1, 3)?.slice(2, 0, 4)?.add_scalar(1.0));
        compare("concat", dtype, || {
            LazyTensor::concat(&[&x(), &x().slice(1, 0, 2)?, &x()], 1)
        });
        compare("pad", dtype, || x().pad(&[1, 0, 2], &[0, 3, 1]));
        compare("constant", dtype, || {
            LazyTensor::full(1.5, &[3, 2], dtype, &Device::Cpu)
        });
        compare("iota", dtype, || LazyTensor::iota(1, &[2, 5, 3], dtype, &Device::Cpu));
        let key = || indices(&[1, 2, 3, 4], &[4], DType::U32);
        compare("uniform", dtype, || key().random(Distribution::Uniform, &[3, 7], dtype));
        compare("normal", dtype, || key().random(Distribution::Normal, &[3, 7], dtype));
        compare("dropout", dtype, || x().dropout(0.3, &key()));
        compare("bits", DType::U32, || {
            key().random(Distribution::Bits, &[9], DType::U32)
        });
    }
}

#[test]
fn indexing() {
    for dtype in FLOATS {
        for of in [DType::U32, DType::I64] {
            let x = || normal(1, &[3, 4, 2], dtype);
            let rows = || indices(&[2, 0, 2, 1, 1], &[5], of);
            compare("index_select", dtype, || x().index_select(0, &rows()));
            compare("index_select", dtype, || x().index_select(1, &rows()));
            compare("index_add", dtype, || {
                x().index_add(1, &rows(), &normal(2, &[3, 5, 2], dtype))
            });
            let places = || indices(&[0, 1, 2, 2, 1, 0], &[3, 1, 2], of);
            compare("gather", dtype, || x().gather(1, &places()));
            compare("scatter_add", dtype, || {
                x().scatter_add(1, &places(), &normal(2, &[3, 1, 2], dtype))
            });
        }
        let at = || indices(&[1], &[1], DType::U32);
        compare("dynamic_slice", dtype, || {
            normal(1, &[3, 4, 2], dtype).dynamic_slice(1, &at(), 2)
        });
        compare("slice_update", dtype, || {
            normal(1, &[3, 4, 2], dtype).slice_update(1, &normal(2, &[3, 2, 2], dtype), &at())
        });
    }
    let at = |position| indices(&[position], &[1], DType::U32);
    let column = || normal(1, &[2, 1, 4], DType::F32).dynamic_slice(2, &at(3), 1);
    let one = || normal(2, &[1, 1, 1], DType::F32);
    compare("update of the end, an empty part behind it", DType::F32, || {
        column()?.slice_update(0, &one(), &at(1))
    });
}

#[test]
fn products() {
    for dtype in FLOATS {
        for (left, right) in [
            (&[5, 7][..], &[7, 3][..]),
            (&[1, 64], &[64, 40]),
            (&[2, 5, 7], &[7, 3]),
            (&[2, 1, 5, 7], &[3, 7, 4]),
            (&[5, 7], &[2, 7, 3]),
        ] {
            compare("matmul", dtype, || {
                normal(1, left, dtype).matmul(&normal(2, right, dtype))
            });
        }
        compare("transposed right", dtype, || {
            normal(1, &[2, 5, 7], dtype).matmul_t(&normal(2, &[3, 7], dtype))
        });
        compare("transposed left", dtype, || {
            normal(1, &[7, 5], dtype).t()?.matmul(&normal(2, &[7, 3], dtype))
        });
        compare("permuted", dtype, || {
            normal(1, &[2, 5, 3, 4], dtype)
                .permute(&[0, 2, 1, 3])?
                .matmul(&normal(2, &[2, 6, 3, 4], dtype).permute(&[0, 2, 3, 1])?)
        });
    }
}

/// Compares the value and, with a weighted sum, all gradients.
fn compare_with_gradients(
    name: &str,
    dtype: DType,
    inputs: &[LazyTensor],
    f: impl Fn(&[LazyTensor]) -> Result<LazyTensor>,
) {
    compare(name, dtype, || f(inputs));
    for which in 0..inputs.len() {
        compare(&format!("{name}, gradient {which}"), dtype, || {
            let y = f(inputs)?;
            let loss = y.mul(&normal(77, y.dims(), y.dtype()))?.sum_all()?;
            Ok(value_and_grad(&loss, &inputs[which..=which])?.1.remove(0))
        });
    }
}

#[test]
fn fused_norms_and_activations() {
    for dtype in FLOATS {
        let x = normal(1, &[3, 5, 18], dtype);
        let (w, b) = (normal(2, &[18], dtype), normal(3, &[18], dtype));
        compare_with_gradients("softmax", dtype, &[x.clone()], |x| x[0].softmax(2));
        compare_with_gradients("softmax", dtype, &[x.clone()], |x| x[0].softmax(1));
        compare_with_gradients("rms_norm", dtype, &[x.clone()], |x| x[0].rms_norm(1e-5));
        compare_with_gradients("rms_norm", dtype, &[x.clone(), w.clone()], |x| {
            x[0].rms_norm_weighted(&x[1], 1e-5)
        });
        compare_with_gradients("layer_norm", dtype, &[x.clone(), w, b], |x| {
            x[0].layer_norm(&x[1], &x[2], 1e-5)
        });
        compare_with_gradients("swiglu", dtype, &[x.clone(), normal(4, &[3, 5, 18], dtype)], |x| {
            x[0].swiglu(&x[1])
        });
        compare_with_gradients("gelu", dtype, &[x.clone()], |x| x[0].gelu(Approximate::None));
        compare_with_gradients("gelu", dtype, &[x.clone()], |x| x[0].gelu(Approximate::Tanh));
        let (a, b) = (normal(5, &[18, 4], dtype), normal(6, &[4, 9], dtype));
        compare_with_gradients("lora", dtype, &[x, a, b], |x| x[0].lora_fused(&x[1], &x[2], 0.5));
        for interleaved in [false, true] {
            let x = [
                normal(1, &[2, 3, 4, 10], dtype),
                normal(2, &[1, 3, 4], dtype),
                normal(3, &[1, 3, 4], dtype),
            ];
            compare_with_gradients("rope", dtype, &x, |x| x[0].rope(&x[1], &x[2], interleaved));
        }
    }
}

#[test]
fn fused_attention() {
    for dtype in FLOATS {
        for (heads, kv_heads, seq, keys, offset) in [
            (4, 2, 7, 7, None),
            (3, 3, 70, 70, None),
            (4, 1, 1, 33, Some(20u32)),
            (2, 1, 5, 16, Some(3)),
        ] {
            for (causal, window, segments) in [
                (true, None, false),
                (true, Some(3), false),
                (false, None, false),
                (true, None, true),
                (false, None, true),
            ] {
                if (segments && offset.is_some()) || (!causal && offset.is_some()) {
                    continue;
                }
                let options = AttentionOptions {
                    scale: 0.35,
                    causal,
                    window,
                    offset: false,
                    segments: false,
                };
                let inputs = [
                    normal(1, &[2, seq, heads, 8], dtype),
                    normal(2, &[2, keys, kv_heads, 8], dtype),
                    normal(3, &[2, keys, kv_heads, 8], dtype),
                ];
                let ids: Vec<u32> = (0..2 * seq).map(|i| (i % seq / 3) as u32).collect();
                let ids = LazyTensor::from_data(&ids, &[2, seq], &Device::Cpu).unwrap();
                let position = offset.map(|o| indices(&[o], &[1], DType::U32));
                let name = format!(
                    "attention heads {heads}/{kv_heads} {seq}x{keys} {causal} {window:?} {segments} {offset:?}"
                );
                compare_with_gradients(&name, dtype, &inputs, |x| {
                    let inputs = AttentionInputs {
                        q: &x[0],
                        k: &x[1],
                        v: &x[2],
                        offset: position.as_ref(),
                        segments: segments.then_some((&ids, &ids)),
                    };
                    LazyTensor::attention(&inputs, options)
                });
            }
        }
    }
}

#[test]
fn fused_losses_and_optimizer() {
    for dtype in FLOATS {
        let targets: Vec<i64> = (0..9).map(|i| if i % 3 == 0 { -100 } else { i * 5 }).collect();
        let targets = LazyTensor::from_data(&targets, &[9], &Device::Cpu).unwrap();
        for label_smoothing in [0.0, 0.1] {
            let options = CrossEntropyOptions {
                label_smoothing,
                ..Default::default()
            };
            let inputs = [normal(1, &[9, 12], dtype), normal(2, &[50, 12], dtype)];
            compare_with_gradients("cross_entropy", dtype, &inputs, |x| {
                x[0].cross_entropy(&x[1], &targets, options)
            });
        }
        let rates = LazyTensor::from_data(&[0.1f64, 0.1, 0.2, 0.75], &[4], &Device::Cpu)
            .unwrap()
            .cast(dtype)
            .unwrap();
        let options = AdamWOptions {
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-6,
            weight_decay: 0.1,
        };
        for part in 0..3 {
            compare("adamw", dtype, || {
                let (p, g) = (normal(1, &[3, 70], dtype), normal(2, &[3, 70], dtype));
                let state = p.adamw(
                    &g,
                    &normal(3, &[3, 70], dtype),
                    &positive(4, &[3, 70], dtype),
                    &rates,
                    options,
                )?;
                Ok([state.parameter, state.first, state.second][part].clone())
            });
        }
    }
}

#[test]
fn empty_and_scalar_tensors() {
    compare("empty", DType::F32, || normal(1, &[0, 3], DType::F32).mul_scalar(2.0));
    compare("sum of nothing", DType::F32, || normal(1, &[0, 3], DType::F32).sum(0));
    compare("scalar", DType::F32, || normal(1, &[], DType::F32).exp());
    compare("empty concat", DType::F32, || {
        LazyTensor::concat(&[&normal(1, &[0, 3], DType::F32), &normal(2, &[2, 3], DType::F32)], 0)
    });
}

#[test]
fn indices_out_of_range_are_reported_by_both() {
    for backend in [Backend::Candle, Backend::Cpu] {
        with_backend(backend, || {
            let x = normal(1, &[3, 2], DType::F32);
            let message = x
                .index_select(0, &indices(&[3], &[1], DType::U32))
                .unwrap()
                .eval()
                .unwrap_err()
                .to_string();
            assert_eq!(message, "IndexSelect: index 3 is out of range for a dimension of 3");
            let at = indices(&[2], &[1], DType::U32);
            let message = x.dynamic_slice(0, &at, 2).unwrap().eval().unwrap_err().to_string();
            assert_eq!(message, "DynamicSlice: 2..4 is not inside a dimension of 3");
        });
    }
}
