//! Every differentiable operation against central differences in f64, first and second derivatives.
#![allow(clippy::cloned_ref_to_slice_refs)] // tables of cases read best so

use candle_core::{DType, Device};
use metal_candle_graph::{
    AdamWOptions, Approximate, AttentionInputs, AttentionOptions, CrossEntropyOptions, Distribution, LazyTensor,
    QuantFormat, Result, random, value_and_grad,
};

const EPS: f64 = 1e-6;
const ATOL: f64 = 1e-5;
const RTOL: f64 = 1e-3;

fn normal(seed: u32, shape: &[usize]) -> LazyTensor {
    let values: Vec<f64> = random::normal64([seed, 7], [0, 0])
        .take(shape.iter().product())
        .collect();
    LazyTensor::from_data(&values, shape, &Device::Cpu).unwrap()
}

fn positive(seed: u32, shape: &[usize]) -> LazyTensor {
    let values: Vec<f64> = random::uniform64([seed, 9], [0, 0])
        .take(shape.iter().product())
        .map(|u| u + 0.5)
        .collect();
    LazyTensor::from_data(&values, shape, &Device::Cpu).unwrap()
}

/// Quants and scales of random weights.
fn quantized(format: QuantFormat, shape: &[usize; 2]) -> (LazyTensor, LazyTensor) {
    let values = normal(9, shape).cast(DType::F32).unwrap().to_vec::<f32>().unwrap();
    let quantized = format.quantize(&values).unwrap();
    let tensor = |width: usize| [shape[0], width];
    let quants = LazyTensor::from_data(
        &quantized.quants,
        &tensor(quantized.quants.len() / shape[0]),
        &Device::Cpu,
    );
    let scales = LazyTensor::from_data(&quantized.scales, &tensor(shape[1] / 32), &Device::Cpu);
    (quants.unwrap(), scales.unwrap())
}

/// A scalar in which every element of `y` has a different weight.
fn weighted_sum(y: &LazyTensor) -> Result<LazyTensor> {
    y.mul(&normal(99, y.dims()))?.sum_all()
}

type Function<'a> = &'a dyn Fn(&[LazyTensor]) -> Result<LazyTensor>;

fn value(f: Function<'_>, inputs: &[LazyTensor]) -> f64 {
    weighted_sum(&f(inputs).unwrap()).unwrap().to_scalar::<f64>().unwrap()
}

fn moved(inputs: &[LazyTensor], which: usize, element: usize, by: f64) -> Vec<LazyTensor> {
    let mut inputs = inputs.to_vec();
    let mut values = inputs[which].to_vec::<f64>().unwrap();
    values[element] += by;
    inputs[which] = LazyTensor::from_data(&values, inputs[which].dims(), &Device::Cpu).unwrap();
    inputs
}

/// Compares the gradients of all inputs with central differences.
fn check_once(name: &str, f: Function<'_>, inputs: &[LazyTensor]) {
    let loss = weighted_sum(&f(inputs).unwrap()).unwrap();
    let (_, gradients) = value_and_grad(&loss, inputs).unwrap_or_else(|e| panic!("{name}: {e}"));
    for (which, gradient) in gradients.iter().enumerate() {
        let found = gradient.to_vec::<f64>().unwrap();
        assert_eq!(
            gradient.dims(),
            inputs[which].dims(),
            "{name}: gradient {which} has another shape"
        );
        near(
            &format!("{name}: d input {which}"),
            &found,
            &differences(f, inputs, which),
        );
    }
}

/// Central differences of `weighted_sum(f(inputs))` in each element of one input.
fn differences(f: Function<'_>, inputs: &[LazyTensor], which: usize) -> Vec<f64> {
    let by = |element, step| value(f, &moved(inputs, which, element, step));
    (0..inputs[which].shape().elem_count())
        .map(|element| (by(element, EPS) - by(element, -EPS)) / (2.0 * EPS))
        .collect()
}

fn near(name: &str, found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len(), "{name}");
    for (element, (found, expected)) in found.iter().zip(expected).enumerate() {
        let close = (found - expected).abs() <= ATOL + RTOL * expected.abs();
        assert!(close, "{name}[{element}] is {found}, central difference {expected}");
    }
}

/// Checks the gradients, and the gradients of the gradients.
fn check(name: &str, f: Function<'_>, inputs: &[LazyTensor]) {
    check_once(name, f, inputs);
    let first = |inputs: &[LazyTensor]| -> Result<LazyTensor> {
        let loss = weighted_sum(&f(inputs)?)?;
        let (_, gradients) = value_and_grad(&loss, inputs)?;
        // Squares keep every input reachable, even where the gradient does not depend on it.
        let squares = inputs.iter().map(|x| x.mul(x)?.sum_all()).collect::<Result<Vec<_>>>()?;
        let parts = gradients.iter().map(weighted_sum).collect::<Result<Vec<_>>>()?;
        let mut parts = squares.into_iter().chain(parts);
        let start = parts.next().unwrap();
        parts.try_fold(start, |sum, part| sum.add(&part))
    };
    check_once(&format!("{name}, twice"), &first, inputs);
}

#[test]
fn elementwise_of_one_input() {
    type Unary = fn(&LazyTensor) -> Result<LazyTensor>;
    let cases: [(&str, Unary); 14] = [
        ("neg", LazyTensor::neg),
        ("abs", LazyTensor::abs),
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
        ("mul_scalar", |x| x.mul_scalar(2.5)),
        ("add_scalar", |x| x.add_scalar(-0.5)),
    ];
    for (name, f) in cases {
        check(name, &|x| f(&x[0]), &[positive(1, &[2, 3])]);
    }
}

#[test]
fn elementwise_of_two_inputs_broadcasts() {
    type Binary = fn(&LazyTensor, &LazyTensor) -> Result<LazyTensor>;
    let cases: [(&str, Binary); 7] = [
        ("add", LazyTensor::add),
        ("sub", LazyTensor::sub),
        ("mul", LazyTensor::mul),
        ("div", LazyTensor::div),
        ("pow", LazyTensor::pow),
        ("maximum", LazyTensor::maximum),
        ("minimum", LazyTensor::minimum),
    ];
    for (name, f) in cases {
        for (left, right) in [
            (&[2, 3][..], &[2, 3][..]),
            (&[2, 1], &[3]),
            (&[3], &[2, 2, 3]),
            (&[], &[2]),
        ] {
            check(name, &|x| f(&x[0], &x[1]), &[positive(1, left), positive(2, right)]);
        }
    }
    let mask = LazyTensor::from_data(&[1u8, 0, 1], &[3], &Device::Cpu).unwrap();
    check(
        "where",
        &|x| mask.where_cond(&x[0], &x[1]),
        &[normal(1, &[2, 3]), normal(2, &[1])],
    );
}

#[test]
fn ties_share_the_gradient() {
    let x = LazyTensor::from_data(&[1.0, 2.0], &[2], &Device::Cpu).unwrap();
    let (_, g) = value_and_grad(
        &x.maximum(&x.mul_scalar(1.0).unwrap()).unwrap().sum_all().unwrap(),
        &[x.clone()],
    )
    .unwrap();
    assert_eq!(g[0].to_vec::<f64>().unwrap(), [1.0, 1.0]);
    let y = LazyTensor::from_data(&[3.0, 3.0, 1.0], &[3], &Device::Cpu).unwrap();
    let (_, g) = value_and_grad(&y.max(0).unwrap(), &[y.clone()]).unwrap();
    assert_eq!(g[0].to_vec::<f64>().unwrap(), [0.5, 0.5, 0.0]);
}

#[test]
fn reductions() {
    check("sum", &|x| x[0].sum(1), &[normal(1, &[2, 3, 2])]);
    check("sum of two", &|x| x[0].sum_keepdim(&[0, 2]), &[normal(1, &[2, 3, 2])]);
    check("mean", &|x| x[0].mean_keepdim(&[1]), &[normal(1, &[2, 3])]);
    check("max", &|x| x[0].max(1), &[normal(1, &[3, 4])]);
    check("max of two", &|x| x[0].max_keepdim(&[0, 1]), &[normal(1, &[2, 3, 2])]);
}

#[test]
fn movement() {
    check("reshape", &|x| x[0].reshape(&[3, 2]), &[normal(1, &[2, 3])]);
    check("permute", &|x| x[0].permute(&[2, 0, 1]), &[normal(1, &[2, 3, 2])]);
    check("broadcast", &|x| x[0].broadcast_to(&[4, 2, 3]), &[normal(1, &[2, 1])]);
    check("slice", &|x| x[0].slice(1, 1, 3), &[normal(1, &[2, 4])]);
    check(
        "concat",
        &|x| LazyTensor::concat(&[&x[0], &x[1], &x[0]], 1),
        &[normal(1, &[2, 1]), normal(2, &[2, 3])],
    );
    check("pad", &|x| x[0].pad(&[1, 0], &[0, 2]), &[normal(1, &[2, 2])]);
}

#[test]
fn indexing() {
    let u32s = |values: &[u32], shape: &[usize]| LazyTensor::from_data(values, shape, &Device::Cpu).unwrap();
    let rows = u32s(&[2, 0, 2], &[3]);
    check("index_select", &|x| x[0].index_select(0, &rows), &[normal(1, &[3, 2])]);
    check(
        "index_add",
        &|x| x[0].index_add(0, &rows, &x[1]),
        &[normal(1, &[3, 2]), normal(2, &[3, 2])],
    );
    let places = u32s(&[1, 1, 0, 2], &[2, 2]);
    check("gather", &|x| x[0].gather(1, &places), &[normal(1, &[2, 3])]);
    check(
        "scatter_add",
        &|x| x[0].scatter_add(1, &places, &x[1]),
        &[normal(1, &[2, 3]), normal(2, &[2, 2])],
    );
    let position = u32s(&[1], &[1]);
    check(
        "dynamic_slice",
        &|x| x[0].dynamic_slice(0, &position, 2),
        &[normal(1, &[4, 2])],
    );
    let update = |x: &[LazyTensor]| x[0].slice_update(0, &x[1], &position);
    check("slice_update", &update, &[normal(1, &[4, 2]), normal(2, &[2, 2])]);
}

#[test]
fn matrix_products() {
    for (left, right) in [
        (&[2, 3][..], &[3, 2][..]),
        (&[2, 2, 3], &[3, 2]),
        (&[2, 3], &[2, 3, 2]),
        (&[2, 1, 2, 3], &[3, 3, 2]),
    ] {
        check("matmul", &|x| x[0].matmul(&x[1]), &[normal(1, left), normal(2, right)]);
    }
    check(
        "matmul_t",
        &|x| x[0].matmul_t(&x[1]),
        &[normal(1, &[2, 2, 3]), normal(2, &[4, 3])],
    );
}

#[test]
fn norms_and_activations() {
    check("softmax", &|x| x[0].softmax(1), &[normal(1, &[2, 3, 2])]);
    check("rms_norm", &|x| x[0].rms_norm(1e-3), &[normal(1, &[2, 4])]);
    check(
        "rms_norm weighted",
        &|x| x[0].rms_norm_weighted(&x[1], 1e-3),
        &[normal(1, &[2, 4]), normal(2, &[4])],
    );
    let layer_norm = |x: &[LazyTensor]| x[0].layer_norm(&x[1], &x[2], 1e-3);
    check(
        "layer_norm",
        &layer_norm,
        &[normal(1, &[2, 4]), normal(2, &[4]), normal(3, &[4])],
    );
    check(
        "swiglu",
        &|x| x[0].swiglu(&x[1]),
        &[normal(1, &[2, 3]), normal(2, &[2, 3])],
    );
    check("gelu", &|x| x[0].gelu(Approximate::None), &[normal(1, &[2, 3])]);
    check("gelu tanh", &|x| x[0].gelu(Approximate::Tanh), &[normal(1, &[2, 3])]);
    let lora = |x: &[LazyTensor]| x[0].lora_fused(&x[1], &x[2], 0.5);
    check(
        "lora",
        &lora,
        &[normal(1, &[2, 2, 3]), normal(2, &[3, 2]), normal(3, &[2, 4])],
    );
    let (quants, scales) = quantized(QuantFormat::Q8_0, &[5, 64]);
    check(
        "dequant_matmul",
        &|x| x[0].dequant_matmul(&quants, &scales, QuantFormat::Q8_0),
        &[normal(1, &[2, 64])],
    );
    for interleaved in [false, true] {
        let rope = |x: &[LazyTensor]| x[0].rope(&x[1], &x[2], interleaved);
        check(
            "rope",
            &rope,
            &[normal(1, &[2, 3, 2, 6]), normal(2, &[1, 3, 2]), normal(3, &[1, 3, 2])],
        );
    }
}

#[test]
fn attention() {
    let options = AttentionOptions {
        scale: 0.7,
        causal: true,
        window: None,
        offset: false,
        segments: false,
    };
    let inputs = [
        normal(1, &[1, 3, 2, 2]),
        normal(2, &[1, 3, 1, 2]),
        normal(3, &[1, 3, 1, 2]),
    ];
    let run = |x: &[LazyTensor], options, offset: Option<&LazyTensor>, segments: Option<&LazyTensor>| {
        let inputs = AttentionInputs {
            q: &x[0],
            k: &x[1],
            v: &x[2],
            offset,
            segments: segments.map(|ids| (ids, ids)),
        };
        LazyTensor::attention(&inputs, options)
    };
    check("causal", &|x| run(x, options, None, None), &inputs);
    check(
        "full",
        &|x| {
            run(
                x,
                AttentionOptions {
                    causal: false,
                    ..options
                },
                None,
                None,
            )
        },
        &inputs,
    );
    check(
        "window",
        &|x| {
            run(
                x,
                AttentionOptions {
                    window: Some(2),
                    ..options
                },
                None,
                None,
            )
        },
        &inputs,
    );
    let segments = LazyTensor::from_data(&[1u32, 2, 2], &[1, 3], &Device::Cpu).unwrap();
    check("segments", &|x| run(x, options, None, Some(&segments)), &inputs);
    let offset = LazyTensor::from_data(&[1u32], &[1], &Device::Cpu).unwrap();
    let cached = [
        normal(1, &[1, 2, 2, 2]),
        normal(2, &[1, 4, 1, 2]),
        normal(3, &[1, 4, 1, 2]),
    ];
    check("cached", &|x| run(x, options, Some(&offset), None), &cached);
}

#[test]
fn losses_and_the_optimizer() {
    let targets = LazyTensor::from_data(&[2i64, -100, 0], &[3], &Device::Cpu).unwrap();
    for label_smoothing in [0.0, 0.1] {
        let options = CrossEntropyOptions {
            label_smoothing,
            ..Default::default()
        };
        let loss = |x: &[LazyTensor]| x[0].cross_entropy(&x[1], &targets, options);
        check("cross_entropy", &loss, &[normal(1, &[3, 2]), normal(2, &[4, 2])]);
    }
    let rates = LazyTensor::from_data(&[0.1, 0.1, 0.2, 0.75], &[4], &Device::Cpu).unwrap();
    let options = AdamWOptions {
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        weight_decay: 0.1,
    };
    let step = |x: &[LazyTensor]| Ok(x[0].adamw(&x[1], &x[2], &x[3], &rates, options)?.parameter);
    check(
        "adamw",
        &step,
        &[normal(1, &[3]), normal(2, &[3]), normal(3, &[3]), positive(4, &[3])],
    );
}

/// As with `torch.autograd.grad`, a path through another parameter counts for both.
#[test]
fn parameters_that_were_computed_from_one_another() {
    type Unary = fn(&LazyTensor) -> Result<LazyTensor>;
    let inner: Unary = |a| a.sin()?.mul(a);
    let middle: Unary = |b| b.sigmoid()?.add(b);
    let outer = |a: &LazyTensor, b: &LazyTensor, c: &LazyTensor| a.mul(b)?.add(&c.tanh()?)?.mul(c);
    // Recorded again for each use: evaluated tensors have no history.
    let record = || {
        let a = normal(1, &[2, 3]);
        let b = inner(&a).unwrap();
        let c = middle(&b).unwrap();
        [a, b, c]
    };
    let [a, b, c] =
        record().map(|x| LazyTensor::from_data(&x.to_vec::<f64>().unwrap(), &[2, 3], &Device::Cpu).unwrap());
    // The loss as a function of one of them, with dependent parameters recomputed.
    let of_a = |x: &[LazyTensor]| outer(&x[0], &inner(&x[0])?, &middle(&inner(&x[0])?)?);
    let of_b = |x: &[LazyTensor]| outer(&a, &x[0], &middle(&x[0])?);
    let of_c = |x: &[LazyTensor]| outer(&a, &b, &x[0]);
    let cases: [(&str, &LazyTensor, Function<'_>); 3] = [("a", &a, &of_a), ("b", &b, &of_b), ("c", &c, &of_c)];
    for order in [&[0, 1, 2][..], &[2, 1, 0], &[1, 0], &[0, 2, 0], &[2]] {
        let recorded = record();
        let loss = weighted_sum(&outer(&recorded[0], &recorded[1], &recorded[2]).unwrap()).unwrap();
        let parameters: Vec<LazyTensor> = order.iter().map(|&i| recorded[i].clone()).collect();
        let (_, gradients) = value_and_grad(&loss, &parameters).unwrap();
        for (&i, gradient) in order.iter().zip(gradients) {
            let (name, at, f) = cases[i];
            let expected = differences(f, &[at.clone()], 0);
            near(
                &format!("{name} of {order:?}"),
                &gradient.to_vec::<f64>().unwrap(),
                &expected,
            );
        }
    }
    // Held constant where the path is cut.
    let [a, b, c] = record();
    let loss = weighted_sum(&outer(&a, &b.stop_gradient().unwrap(), &c.stop_gradient().unwrap()).unwrap()).unwrap();
    let (_, gradients) = value_and_grad(&loss, &[a.clone()]).unwrap();
    let alone = |x: &[LazyTensor]| outer(&x[0], &b, &c);
    near(
        "cut",
        &gradients[0].to_vec::<f64>().unwrap(),
        &differences(&alone, &[a], 0),
    );
    // Second derivatives.
    let first = |x: &[LazyTensor]| {
        let b = inner(&x[0])?;
        let loss = weighted_sum(&outer(&x[0], &b, &middle(&b)?)?)?;
        let gradients = value_and_grad(&loss, &[x[0].clone(), b])?.1;
        gradients[0].add(&gradients[1])
    };
    check_once("twice", &first, &[normal(1, &[2, 3])]);
}

/// One output of a node with several outputs is a parameter; the others are differentiated through.
#[test]
fn a_parameter_that_is_one_of_several_outputs() {
    let rates = LazyTensor::from_data(&[0.1, 0.1, 0.2, 0.75], &[4], &Device::Cpu).unwrap();
    let options = AdamWOptions {
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        weight_decay: 0.1,
    };
    let state = |p: &LazyTensor| p.adamw(&normal(2, &[3]), &normal(3, &[3]), &positive(4, &[3]), &rates, options);
    let loss = |p: &LazyTensor, first: &LazyTensor| p.mul(first)?.mul(p);
    let p = normal(1, &[3]);
    let after = state(&p).unwrap();
    let whole = weighted_sum(&loss(&after.parameter, &after.first).unwrap()).unwrap();
    let (_, gradients) = value_and_grad(&whole, &[after.first.clone(), p.clone()]).unwrap();
    let of_first = |x: &[LazyTensor]| loss(&after.parameter, &x[0]);
    let of_p = |x: &[LazyTensor]| loss(&state(&x[0])?.parameter, &after.first);
    let at = LazyTensor::from_data(&after.first.to_vec::<f64>().unwrap(), &[3], &Device::Cpu).unwrap();
    near(
        "first",
        &gradients[0].to_vec::<f64>().unwrap(),
        &differences(&of_first, &[at], 0),
    );
    near(
        "p",
        &gradients[1].to_vec::<f64>().unwrap(),
        &differences(&of_p, &[p.clone()], 0),
    );
}

#[test]
fn a_cut_path_is_named() {
    let x = normal(1, &[2]);
    let key = LazyTensor::from_data(&[1u32, 2, 3, 4], &[4], &Device::Cpu).unwrap();
    let noise = key.random(Distribution::Normal, &[2], DType::F64).unwrap();
    let cut = x.floor().unwrap().add(&noise).unwrap().sum_all().unwrap();
    let message = value_and_grad(&cut, &[x.clone()]).unwrap_err().to_string();
    assert!(
        message.contains("parameter 0") && message.contains("Floor"),
        "{message}"
    );
    let absent = value_and_grad(&noise.sum_all().unwrap(), &[x]).unwrap_err().to_string();
    assert!(absent.contains("takes no part"), "{absent}");
}
