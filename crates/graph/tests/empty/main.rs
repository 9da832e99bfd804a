//! Empty tensors: every operation, with each of its sizes zero in turn, on contiguous tensors and on permuted, sliced
//! and broadcast views, on all backends, values and gradients. `cases.rs` and `plain.rs` list the operations.

mod cases;
mod plain;
#[path = "../operations/samples.rs"]
#[allow(dead_code)] // the names of all operations are what is needed of it
mod samples;

use std::collections::BTreeSet;

use candle_core::{DType, Device, Tensor};
use cases::{Case, Content, Input, cases};
use metal_candle_graph::{Backend, Error, LazyTensor, Result, eval_all, random, value_and_grad, with_backend};

const BACKENDS: [Backend; 4] = [Backend::Unoptimised, Backend::Candle, Backend::Cpu, Backend::Checked];

/// The layout of an input.
#[derive(Debug, Clone, Copy)]
enum Look {
    Whole,
    Permuted,
    Sliced,
    /// An empty dimension is broadcast to size zero.
    Broadcast,
}

const LOOKS: [Look; 4] = [Look::Whole, Look::Permuted, Look::Sliced, Look::Broadcast];

fn whole(content: Content, dims: &[usize]) -> LazyTensor {
    let count = dims.iter().product();
    let device = &Device::Cpu;
    let made = match content {
        Content::Numbers => {
            let values: Vec<f64> = random::uniform64([7, 5], [0, 0]).take(count).map(|u| u + 0.5).collect();
            LazyTensor::from_data(&values, dims, device)
        }
        Content::Indices => LazyTensor::from_data(&vec![0u32; count], dims, device),
        Content::Targets => LazyTensor::from_data(&vec![0i64; count], dims, device),
        Content::Bytes => LazyTensor::from_data(&vec![1u8; count], dims, device),
        Content::Scales => LazyTensor::full(0.5, dims, DType::F16, device),
    };
    made.unwrap()
}

fn input(Input(content, dims): &Input, look: Look) -> LazyTensor {
    let order: Vec<usize> = (0..dims.len()).rev().collect();
    match look {
        Look::Whole => whole(*content, dims),
        Look::Permuted => {
            let turned: Vec<usize> = dims.iter().rev().copied().collect();
            whole(*content, &turned).permute(&order).unwrap()
        }
        Look::Sliced => {
            let larger: Vec<usize> = dims.iter().map(|dim| dim + 2).collect();
            let cut = |x: LazyTensor, dim: usize| x.slice(dim, 1, 1 + dims[dim]).unwrap();
            (0..dims.len()).fold(whole(*content, &larger), cut)
        }
        Look::Broadcast => {
            let single: Vec<usize> = dims.iter().map(|dim| (*dim).max(1)).collect();
            whole(*content, &single).broadcast_to(dims).unwrap()
        }
    }
}

/// All elements; all NaN are equal.
fn list(tensor: &Tensor) -> Vec<f64> {
    let wide = tensor.to_dtype(DType::F64).and_then(|t| t.flatten_all());
    let values: Vec<f64> = wide.unwrap().to_vec1().unwrap();
    values
        .into_iter()
        .map(|x| if x.is_nan() { f64::NAN } else { x })
        .collect()
}

/// The results of a backend, or the error.
fn run(backend: Backend, tensors: &dyn Fn() -> Vec<LazyTensor>) -> Result<Vec<(Vec<usize>, Vec<f64>)>> {
    let values = with_backend(backend, || eval_all(&tensors()))?;
    Ok(values.iter().map(|t| (t.dims().to_vec(), list(t))).collect())
}

#[track_caller]
fn compare(name: &str, tensors: &dyn Fn() -> Vec<LazyTensor>, fails: bool) {
    let dims: Vec<Vec<usize>> = tensors().iter().map(|t| t.dims().to_vec()).collect();
    let mut reference: Option<Vec<(Vec<usize>, Vec<f64>)>> = None;
    for backend in BACKENDS {
        let found = match run(backend, tensors) {
            Err(Error::Index { .. } | Error::Range { .. }) if fails => continue,
            Err(error) => panic!("{name} on {backend:?}: {error}"),
            Ok(found) => found,
        };
        assert!(!fails, "{name} on {backend:?}: an index of nothing was found");
        assert!(found.iter().map(|(dims, _)| dims).eq(&dims), "{name} on {backend:?}");
        let expected = reference.get_or_insert_with(|| found.clone());
        for ((_, found), (_, expected)) in found.iter().zip(expected.iter()) {
            let close = |(f, e): (&f64, &f64)| f.to_bits() == e.to_bits() || (f - e).abs() <= 1e-12 * e.abs().max(1.0);
            assert!(
                found.len() == expected.len() && found.iter().zip(expected).all(close),
                "{name} on {backend:?}: {found:?} instead of {expected:?}"
            );
        }
    }
}

fn loss(outputs: &[LazyTensor]) -> Result<LazyTensor> {
    let zero = LazyTensor::zeros(&[], DType::F64, &Device::Cpu)?;
    let sum = |sum: LazyTensor, y: &LazyTensor| sum.add(&y.cast(DType::F64)?.sum_all()?);
    outputs.iter().try_fold(zero, sum)
}

/// Checks one operation on inputs of some sizes; collects the names of the recorded operations.
fn check(case: &Case, sizes: &[usize], look: Look, names: &mut BTreeSet<&'static str>) {
    let name = format!("{} with sizes {sizes:?}, {look:?}", case.name);
    let inputs: Vec<LazyTensor> = (case.inputs)(sizes).iter().map(|i| input(i, look)).collect();
    let make = || (case.make)(&inputs, sizes);
    let outputs = match make() {
        Ok(outputs) => {
            assert!(!(case.refused)(sizes), "{name}: accepted");
            outputs
        }
        Err(error) => {
            assert!((case.refused)(sizes), "{name}: {error}");
            return;
        }
    };
    let fails = (case.fails)(sizes);
    let mut note = |tensor: &LazyTensor| {
        let graph = tensor.graph().unwrap();
        names.extend(graph.nodes.iter().map(|node| node.operation.name()));
    };
    outputs.iter().for_each(&mut note);
    compare(&name, &|| make().unwrap(), fails);
    if !case.differentiable {
        return;
    }
    let numbers: Vec<LazyTensor> = inputs.iter().filter(|x| x.dtype() == DType::F64).cloned().collect();
    let gradients = || value_and_grad(&loss(&make().unwrap()).unwrap(), &numbers).unwrap().1;
    gradients().iter().for_each(note);
    compare(&format!("gradients of {name}"), &gradients, fails);
}

#[test]
fn every_operation_with_each_size_zero() {
    let mut names = BTreeSet::new();
    for case in cases() {
        for zero in 0..=case.sizes.len() {
            let mut sizes = case.sizes.to_vec();
            // The last time with the listed sizes.
            if let Some(size) = sizes.get_mut(zero) {
                *size = 0;
            }
            for look in LOOKS {
                check(&case, &sizes, look, &mut names);
            }
        }
    }
    let all: BTreeSet<&str> = samples::samples()
        .iter()
        .map(|sample| sample.operation.name())
        .collect();
    let missing: Vec<&&str> = all.difference(&names).collect();
    assert!(missing.is_empty(), "no case for {missing:?}");
}

#[test]
fn reductions_of_no_elements() {
    let x = || LazyTensor::zeros(&[2, 0], DType::F32, &Device::Cpu).unwrap();
    for backend in BACKENDS {
        with_backend(backend, || {
            assert_eq!(x().sum(1).unwrap().to_vec::<f32>().unwrap(), [0.0; 2]);
            assert!(
                x().mean_keepdim(&[1])
                    .unwrap()
                    .to_vec::<f32>()
                    .unwrap()
                    .iter()
                    .all(|m| m.is_nan())
            );
            assert!(x().mean_all().unwrap().to_scalar::<f32>().unwrap().is_nan());
            assert_eq!(x().max(0).unwrap().to_vec::<f32>().unwrap(), [0.0; 0]);
            assert_eq!(x().softmax(1).unwrap().to_vec::<f32>().unwrap(), [0.0; 0]);
            let product = x().matmul(&LazyTensor::zeros(&[0, 3], DType::F32, &Device::Cpu).unwrap());
            assert_eq!(product.unwrap().to_vec::<f32>().unwrap(), [0.0; 6]);
        });
    }
    for refused in [x().max(1), x().argmax(1), x().max_keepdim(&[0, 1])] {
        assert!(matches!(refused, Err(Error::Shape { .. })));
    }
}
