//! Every operation of the closed list, with a sample of each: shapes are inferred, the graph prints and verifies, both
//! backends agree, and gradients of differentiable inputs exist and are finite. `samples.rs` lists the operations once
//! more, so a new one does not compile here without a sample.

mod samples;

use std::collections::HashSet;

use candle_core::{DType, Device, Shape};
use metal_candle_graph::graph::infer::infer;
use metal_candle_graph::graph::verify::verify;
use metal_candle_graph::{
    AdamWOptions, AttentionOptions, Backend, CrossEntropyOptions, LazyTensor, Meta, Operation, compile, eval_all,
    value_and_grad, with_backend,
};
use samples::{COUNT, Sample, floats, position, record, samples};

/// Miri cannot run Candle's products.
const BACKENDS: &[Backend] = if cfg!(miri) {
    &[Backend::Cpu]
} else {
    &[Backend::Candle, Backend::Cpu]
};

#[test]
fn there_is_a_sample_of_each() {
    let mut seen = [false; COUNT];
    seen[position(&Operation::Input)] = true; // the leaf of every other sample
    for sample in samples() {
        let place = &mut seen[position(&sample.operation)];
        assert!(!std::mem::replace(place, true), "two samples of {}", sample.text);
    }
    let missing: Vec<usize> = (0..COUNT).filter(|&i| !seen[i]).collect();
    assert!(missing.is_empty(), "no sample at {missing:?}");
}

#[test]
fn each_infers_prints_and_verifies() {
    for sample in samples() {
        let outputs = record(&sample);
        assert_eq!(sample.operation.to_string(), sample.text);
        assert!(sample.text.starts_with(sample.operation.name()));
        assert_eq!(outputs.len(), sample.operation.output_count(), "{}", sample.text);
        let metas: Vec<&Meta> = sample.inputs.iter().map(LazyTensor::meta).collect();
        let inferred = infer(&sample.operation, &metas).unwrap();
        assert!(
            inferred.iter().eq(outputs.iter().map(LazyTensor::meta)),
            "{}",
            sample.text
        );
        let graph = outputs[0].graph().unwrap();
        verify(&graph, "test").unwrap();
        let line = format!(" = {}(", sample.text);
        assert!(graph.to_string().contains(&line), "{graph}");
        assert!(
            graph.to_dot().contains(&format!("label=\"{}\\n", sample.text)),
            "{}",
            graph.to_dot()
        );
        // Neither fewer nor more inputs are accepted.
        let fewer = infer(&sample.operation, &metas[..metas.len().saturating_sub(1)]);
        let optional = matches!(sample.operation, Operation::Concat { .. } | Operation::RMSNorm { .. });
        assert!(
            metas.is_empty() || optional || fewer.is_err(),
            "{} takes fewer inputs",
            sample.text
        );
    }
}

#[test]
fn each_runs_on_both_backends_with_the_inferred_shape() {
    for sample in samples() {
        let run = |backend| {
            with_backend(backend, || {
                eval_all(&record(&sample)).unwrap_or_else(|e| panic!("{}: {e}", sample.text))
            })
        };
        let ours = run(Backend::Cpu);
        let reference = if cfg!(miri) { ours.clone() } else { run(Backend::Candle) };
        for ((expected, found), recorded) in reference.iter().zip(&ours).zip(record(&sample)) {
            for tensor in [expected, found] {
                assert_eq!(
                    (tensor.shape(), tensor.dtype()),
                    (recorded.shape(), recorded.dtype()),
                    "{}",
                    sample.text
                );
            }
            let list = |t: &candle_core::Tensor| {
                t.to_dtype(DType::F64)
                    .unwrap()
                    .flatten_all()
                    .unwrap()
                    .to_vec1::<f64>()
                    .unwrap()
            };
            for (e, f) in list(expected).into_iter().zip(list(found)) {
                assert!(
                    (e - f).abs() <= 1e-12 * e.abs().max(1.0),
                    "{}: {f} instead of {e}",
                    sample.text
                );
            }
        }
    }
}

#[test]
fn each_has_a_gradient_or_says_that_it_cuts() {
    // Under Miri only those with their own kernels: the gradients of the others use operations that `each_runs` runs.
    let tried = |s: &Sample| !s.inputs.is_empty() && (!cfg!(miri) || s.operation.is_fused());
    for sample in samples().into_iter().filter(tried) {
        let mut floats: Vec<LazyTensor> = sample
            .inputs
            .iter()
            .filter(|x| x.dtype() == DType::F64)
            .cloned()
            .collect();
        if let Operation::Vjp { of, .. } = &sample.operation {
            // The operation's outputs only save work: they depend on its inputs, for which the gradient is computed.
            let output = floats.remove(floats.len() - 2 * of.output_count());
            assert_eq!(
                cut(&loss_of(&sample), &output),
                "the operations between them have no gradient for it"
            );
        }
        let Some(first) = floats.first() else { continue };
        let loss = loss_of(&sample);
        if !sample.differentiable {
            let name = sample.operation.name();
            // A comparison is cast to be part of the loss.
            let expected = format!("the path goes through {name}, where no gradient passes");
            assert_eq!(cut(&loss, first), expected);
            continue;
        }
        for &backend in BACKENDS {
            let (_, gradients) = value_and_grad(&loss, &floats).unwrap_or_else(|e| panic!("{}: {e}", sample.text));
            let values = with_backend(backend, || eval_all(&gradients)).unwrap();
            for (gradient, input) in values.iter().zip(&floats) {
                assert_eq!(gradient.shape(), input.shape(), "{}", sample.text);
            }
            let all: Vec<f64> = values
                .iter()
                .flat_map(|g| g.flatten_all().unwrap().to_vec1::<f64>().unwrap())
                .collect();
            assert!(all.iter().all(|g| g.is_finite()), "{}: {all:?}", sample.text);
            assert!(all.iter().any(|g| *g != 0.0), "{}: the gradient is zero", sample.text);
        }
    }
}

/// A weighted sum of all outputs of a sample.
fn loss_of(sample: &Sample) -> LazyTensor {
    let zero = LazyTensor::zeros(&[], DType::F64, &Device::Cpu).unwrap();
    let weigh = |y: &LazyTensor| y.cast(DType::F64)?.mul(&floats(11, y.dims()))?.sum_all();
    record(sample)
        .iter()
        .try_fold(zero, |sum, y| sum.add(&weigh(y)?))
        .unwrap()
}

/// The reason why a parameter has no gradient.
fn cut(loss: &LazyTensor, parameter: &LazyTensor) -> String {
    let message = value_and_grad(loss, std::slice::from_ref(parameter))
        .unwrap_err()
        .to_string();
    let prefix = "gradient: parameter 0 is not reachable from the loss: ";
    message
        .strip_prefix(prefix)
        .unwrap_or_else(|| panic!("{message}"))
        .to_owned()
}

/// The equality used by the plan cache and for common subexpressions.
#[test]
fn an_operation_equals_only_itself() {
    let samples = samples();
    for (i, sample) in samples.iter().enumerate() {
        for (j, other) in samples.iter().enumerate() {
            assert_eq!(
                sample.operation == other.operation.clone(),
                i == j,
                "{} and {}",
                sample.text,
                other.text
            );
        }
    }
}

#[test]
fn equality_is_that_of_the_bits() {
    let shape = || Shape::from(2);
    let constant = |value: f64| Operation::Constant {
        value,
        shape: shape(),
        dtype: DType::F32,
    };
    let attention = |scale: f32| {
        Operation::Attention(AttentionOptions {
            scale,
            causal: true,
            window: None,
            offset: false,
            segments: false,
        })
    };
    let cross_entropy = |label_smoothing: f32| {
        Operation::CrossEntropy(CrossEntropyOptions {
            ignore_index: 0,
            label_smoothing,
        })
    };
    let adamw = |eps: f64| {
        Operation::AdamW(AdamWOptions {
            beta1: 0.9,
            beta2: 0.9,
            eps,
            weight_decay: 0.0,
        })
    };
    let makers: [&dyn Fn(f64) -> Operation; 10] = [
        &constant,
        &|value| Operation::MulScalar { value: value as f32 },
        &|value| Operation::AddScalar { value: value as f32 },
        &|eps| Operation::RMSNorm { eps: eps as f32 },
        &|eps| Operation::LayerNorm { eps: eps as f32 },
        &|scale| Operation::LoRA { scale: scale as f32 },
        &|scale| attention(scale as f32),
        &|smoothing| cross_entropy(smoothing as f32),
        &adamw,
        &|scale| Operation::Vjp {
            of: Box::new(attention(scale as f32)),
            wanted: 1,
        },
    ];
    for make in makers {
        assert_eq!(make(f64::NAN), make(f64::NAN));
        assert_eq!(make(-0.0), make(-0.0));
        assert_ne!(make(0.0), make(-0.0));
        assert_ne!(make(0.0), make(0.5));
        // Another NaN payload, which survives in f32.
        let other_nan = f64::from_bits(f64::NAN.to_bits() | 1 << 40);
        assert_ne!(make(f64::NAN), make(other_nan));
        let all = [0.0, -0.0, 0.5, f64::NAN, other_nan];
        let set: HashSet<Operation> = all.iter().chain(&all).map(|&value| make(value)).collect();
        assert_eq!(set.len(), all.len());
    }
    assert_ne!(
        constant(1.0),
        Operation::Constant {
            value: 1.0,
            shape: shape(),
            dtype: DType::F64
        }
    );
    assert_ne!(
        Operation::Iota {
            dim: 0,
            shape: shape(),
            dtype: DType::F32
        },
        Operation::Iota {
            dim: 0,
            shape: Shape::from(3),
            dtype: DType::F32
        }
    );
    assert_ne!(
        Operation::Slice {
            start: vec![0],
            end: vec![1]
        },
        Operation::Slice {
            start: vec![0],
            end: vec![2]
        }
    );
    assert_ne!(
        Operation::DynamicSlice { dim: 0, length: 1 },
        Operation::DynamicSlice { dim: 0, length: 2 }
    );
}

/// The plan of a graph with a NaN is found again.
#[test]
fn graphs_with_nan_are_equal_and_hash_alike() {
    let graph = |value: f32| {
        let x = LazyTensor::from_slice(&[1.0], &[1], &Device::Cpu).unwrap();
        x.mul_scalar(value).unwrap().graph().unwrap()
    };
    assert_eq!(graph(f32::NAN), graph(f32::NAN));
    assert_eq!(graph(f32::NAN).structural_hash(), graph(f32::NAN).structural_hash());
    assert_ne!(graph(0.0), graph(-0.0));
}

/// Traces are per backend: another backend traces its own.
#[test]
fn compiled_functions_follow_the_backend() {
    let twice = compile(|args| Ok(vec![args[0].mul_scalar(2.0)?]));
    let call = |backend| {
        let x = LazyTensor::from_slice(&[1.5], &[1], &Device::Cpu).unwrap();
        with_backend(backend, || twice.call(vec![x]).unwrap()[0].to_vec::<f32>().unwrap())
    };
    for backend in [Backend::Candle, Backend::Cpu, Backend::Candle] {
        assert_eq!(call(backend), [3.0]);
    }
    assert_eq!(twice.trace_count(), 2);
}
