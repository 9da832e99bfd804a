//! Results depend neither on the number of threads nor on concurrent evaluations: the same bits from pools of one, two
//! and three threads, and from tensors that several threads evaluate together.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use metal_candle_graph::{
    Approximate, AttentionInputs, AttentionOptions, CrossEntropyOptions, LazyTensor, Result, compile, eval_all, random,
    value_and_grad, with_threads,
};

fn normal(seed: u32, shape: &[usize], dtype: DType) -> LazyTensor {
    let values: Vec<f64> = random::normal64([seed, 21], [0, 0])
        .take(shape.iter().product())
        .collect();
    let tensor = Tensor::from_vec(values, shape, &Device::Cpu)
        .unwrap()
        .to_dtype(dtype)
        .unwrap();
    LazyTensor::from_tensor(tensor).unwrap()
}

/// The values as bits: widening to f64 is exact.
fn bits(tensors: &[Tensor]) -> Vec<u64> {
    let list = |t: &Tensor| {
        t.to_dtype(DType::F64)
            .unwrap()
            .flatten_all()
            .unwrap()
            .to_vec1::<f64>()
            .unwrap()
    };
    tensors.iter().flat_map(list).map(f64::to_bits).collect()
}

/// The value of `f`, a weighted sum of it and all gradients, with this many threads.
fn run(threads: usize, inputs: &[LazyTensor], f: &(impl Fn(&[LazyTensor]) -> Result<LazyTensor> + Sync)) -> Vec<u64> {
    with_threads(threads, || {
        let y = f(inputs).unwrap();
        let loss = y.mul(&normal(9, y.dims(), y.dtype())).unwrap().sum_all().unwrap();
        let (loss, gradients) = value_and_grad(&loss, inputs).unwrap();
        bits(&eval_all(&[&[y, loss], &gradients[..]].concat()).unwrap())
    })
}

fn same_bits(name: &str, inputs: &[LazyTensor], f: impl Fn(&[LazyTensor]) -> Result<LazyTensor> + Sync) {
    let one = run(1, inputs, &f);
    assert!(one.iter().any(|&b| b != one[0]), "{name}: nothing was computed");
    assert!(one.iter().all(|&b| f64::from_bits(b).is_finite()), "{name}: not finite");
    for threads in [2, 3] {
        assert!(
            run(threads, inputs, &f) == one,
            "{name}: {threads} threads give other bits than one"
        );
    }
}

const DTYPES: [DType; 2] = [DType::F32, DType::BF16];

#[test]
fn products() {
    for dtype in DTYPES {
        let inputs = [normal(1, &[150, 700], dtype), normal(2, &[700, 170], dtype)];
        same_bits("matmul", &inputs, |x| x[0].matmul(&x[1]));
        let inputs = [normal(1, &[1, 900], dtype), normal(2, &[900, 1100], dtype)];
        same_bits("one row", &inputs, |x| x[0].matmul(&x[1]));
        let inputs = [normal(1, &[6, 70, 90], dtype), normal(2, &[6, 80, 90], dtype)];
        same_bits("batch", &inputs, |x| x[0].matmul_t(&x[1]));
        let inputs = [
            normal(1, &[3, 90, 300], dtype),
            normal(2, &[300, 8], dtype),
            normal(3, &[8, 200], dtype),
        ];
        same_bits("lora", &inputs, |x| x[0].lora_fused(&x[1], &x[2], 2.0));
    }
}

#[test]
fn reductions_and_elementwise() {
    for dtype in DTYPES {
        let x = [normal(1, &[260, 510], dtype)];
        same_bits("sum of all", &x, |x| x[0].mul(&x[0])?.sum_all()?.reshape(&[1]));
        same_bits("sum of rows", &x, |x| x[0].sum(1));
        same_bits("sum of columns", &x, |x| x[0].sum(0));
        same_bits("maximum", &x, |x| x[0].max(0));
        same_bits("softmax", &x, |x| x[0].softmax(1));
        same_bits("gelu", &x, |x| x[0].gelu(Approximate::Tanh));
        let pair = [x[0].clone(), normal(2, &[510], dtype)];
        same_bits("broadcast", &pair, |x| x[0].mul(&x[1])?.exp()?.sum(1));
        let pair = [x[0].clone(), normal(2, &[260, 510], dtype)];
        same_bits("swiglu", &pair, |x| x[0].swiglu(&x[1]));
    }
}

#[test]
fn norms() {
    for dtype in DTYPES {
        let inputs = [
            normal(1, &[300, 400], dtype),
            normal(2, &[400], dtype),
            normal(3, &[400], dtype),
        ];
        same_bits("rms_norm", &inputs[..2], |x| x[0].rms_norm_weighted(&x[1], 1e-5));
        same_bits("layer_norm", &inputs, |x| x[0].layer_norm(&x[1], &x[2], 1e-5));
    }
}

#[test]
fn attention() {
    for (dtype, window) in [(DType::F32, None), (DType::F32, Some(20)), (DType::BF16, None)] {
        let inputs = [
            normal(1, &[2, 130, 4, 16], dtype),
            normal(2, &[2, 130, 2, 16], dtype),
            normal(3, &[2, 130, 2, 16], dtype),
        ];
        let options = AttentionOptions {
            scale: 0.25,
            causal: true,
            window,
            offset: false,
            segments: false,
        };
        same_bits("attention", &inputs, |x| {
            LazyTensor::attention(
                &AttentionInputs {
                    q: &x[0],
                    k: &x[1],
                    v: &x[2],
                    offset: None,
                    segments: None,
                },
                options,
            )
        });
    }
}

#[test]
fn cross_entropy() {
    let targets: Vec<i64> = (0..200).map(|i| if i % 7 == 0 { -100 } else { i * 3 % 900 }).collect();
    let targets = LazyTensor::from_data(&targets, &[200], &Device::Cpu).unwrap();
    for dtype in DTYPES {
        for label_smoothing in [0.0, 0.1] {
            let options = CrossEntropyOptions {
                label_smoothing,
                ..Default::default()
            };
            let inputs = [normal(1, &[200, 64], dtype), normal(2, &[900, 64], dtype)];
            same_bits("cross_entropy", &inputs, |x| {
                x[0].cross_entropy(&x[1], &targets, options)
            });
        }
    }
}

/// Tensors that share ancestors, evaluated by several threads at once, some of them by all.
#[test]
fn several_threads_evaluate_shared_tensors() {
    for round in 0..20 {
        let x = normal(round, &[40, 30], DType::F32);
        let shared = x.mul_scalar(0.5).unwrap().exp().unwrap().softmax(1).unwrap();
        let ends: Vec<LazyTensor> = (0..4u8)
            .map(|i| shared.mul_scalar(f32::from(i) + 1.0).unwrap().sum(1).unwrap())
            .collect();
        let expected: Vec<Vec<u64>> = (0..4u8)
            .map(|i| {
                let own = x.mul_scalar(0.5).unwrap().exp().unwrap().softmax(1).unwrap();
                bits(&[own
                    .mul_scalar(f32::from(i) + 1.0)
                    .unwrap()
                    .sum(1)
                    .unwrap()
                    .eval()
                    .unwrap()])
            })
            .collect();
        let (shared, ends, expected) = (&shared, &ends, &expected);
        std::thread::scope(|scope| {
            for start in 0..4 {
                scope.spawn(move || {
                    for i in 0..4 {
                        let i = (start + i) % 4;
                        assert_eq!(bits(&[ends[i].eval().unwrap()]), expected[i], "round {round}");
                        assert_eq!(shared.to_vec::<f32>().unwrap().len(), 1200);
                    }
                });
            }
        });
    }
}

/// Threads that walk the same nodes concurrently: each differentiates through a shared part, counts it and evaluates,
/// while others evaluate that part, which drops its history.
#[test]
fn several_threads_differentiate_shared_tensors() {
    let x = normal(3, &[30, 20], DType::F32);
    let record = |x: &LazyTensor| (0..20).try_fold(x.clone(), |x, _| x.sin()?.mul_scalar(1.5)).unwrap();
    let differentiate = |shared: &LazyTensor, factor: f32| {
        let loss = shared.mul_scalar(factor).unwrap().sum_all().unwrap();
        value_and_grad(&loss, std::slice::from_ref(&x)).and_then(|(_, gradients)| gradients[0].eval())
    };
    let alone: Vec<Vec<u64>> = (1..5u8)
        .map(|i| bits(&[differentiate(&record(&x), f32::from(i)).unwrap()]))
        .collect();
    for round in 0..40u8 {
        let shared = record(&x);
        let (differentiate, shared, alone) = (&differentiate, &shared, &alone);
        let differentiated: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (1..5u8)
                .map(|i| {
                    scope.spawn(move || {
                        assert!([1, 41].contains(&shared.graph_size()));
                        // Once a thread has evaluated the shared part, there is no path to `x` any more.
                        let found = differentiate(shared, f32::from(i));
                        if (i + round) % 4 == 0 {
                            shared.eval().unwrap();
                        }
                        found.map_or(0, |gradient| {
                            assert_eq!(bits(&[gradient]), alone[usize::from(i) - 1], "round {round}");
                            1
                        })
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert!(differentiated > 0, "round {round}");
    }
}

/// One compiled function called by several threads, each with its own donated state.
#[test]
fn several_threads_call_one_compiled_function() {
    let step = Arc::new(compile(|args: &[LazyTensor]| {
        Ok(vec![args[0].mul_scalar(0.5)?.add(&args[1])?])
    }));
    std::thread::scope(|scope| {
        for thread in 0..3u8 {
            let step = Arc::clone(&step);
            scope.spawn(move || {
                let start = f32::from(thread);
                let mut state = LazyTensor::full(f64::from(start), &[1000], DType::F32, &Device::Cpu).unwrap();
                let one = LazyTensor::ones(&[1000], DType::F32, &Device::Cpu).unwrap();
                for _ in 0..30 {
                    state = step.call(vec![state, one.clone()]).unwrap().remove(0);
                }
                let expected = (0..30).fold(start, |s, _| s * 0.5 + 1.0);
                assert!(
                    state
                        .to_vec::<f32>()
                        .unwrap()
                        .iter()
                        .all(|&s| s.to_bits() == expected.to_bits())
                );
            });
        }
    });
    assert_eq!(step.trace_count(), 1);
}

/// Independent outputs of one plan may be computed concurrently, in disjoint memory: they equal those evaluated alone.
#[test]
fn independent_outputs_evaluated_together() {
    let weights = [normal(1, &[128, 8], DType::F32), normal(2, &[8, 128], DType::F32)];
    let output = |i: u32| {
        let x = normal(10 + i, &[4, 128], DType::F32);
        let y = x.lora_fused(&weights[0], &weights[1], 0.5).unwrap().add(&x).unwrap();
        y.softmax(1).unwrap().sub(&y.tanh().unwrap()).unwrap()
    };
    let alone: Vec<u64> = (0..50).flat_map(|i| bits(&[output(i).eval().unwrap()])).collect();
    for threads in [1, 2, 5] {
        let outputs: Vec<LazyTensor> = (0..50).map(&output).collect();
        let together = with_threads(threads, || eval_all(&outputs).unwrap());
        assert!(bits(&together) == alone, "{threads} threads");
    }
}
