//! Explanations: the work of a graph, the passes, and fused operations.

use candle_core::{DType, Device};
use metal_candle_graph::{Backend, LazyTensor, compile, limits, with_backend};

fn input(shape: &[usize]) -> LazyTensor {
    let values = vec![0.5; shape.iter().product()];
    LazyTensor::from_slice(&values, shape, &Device::Cpu).unwrap()
}

#[test]
fn a_product_is_two_operations_for_each_pair() {
    let (a, b) = (input(&[12, 32]), input(&[32, 20]));
    for backend in [Backend::Cpu, Backend::Candle] {
        let explained = with_backend(backend, || a.matmul(&b).unwrap().explain().unwrap());
        assert_eq!(explained.flops(), 2.0 * 12.0 * 32.0 * 20.0, "{backend:?}");
        assert_eq!(explained.bytes(), 4.0 * (12.0 * 32.0 + 32.0 * 20.0 + 12.0 * 20.0));
        assert_eq!(explained.kernels.len(), 1, "{explained}");
        assert!(explained.seconds() > 0.0);
    }
}

#[test]
fn passes_leave_less_and_a_chain_is_one_kernel() {
    let x = input(&[64]);
    let chain = || x.mul_scalar(3.0).unwrap().sin().unwrap();
    let y = chain().add(&chain()).unwrap();
    let explained = y.explain().unwrap();
    assert!(!y.is_evaluated());
    assert_eq!(explained.recorded, 6);
    let left = |name: &str| {
        let mut passes = explained.passes.iter();
        passes.find(|(pass, _)| *pass == name).expect("the pass ran").1
    };
    assert!(left("dce") < explained.recorded, "duplicates stay: {explained}");
    assert!(left("fuse") < left("dce"), "nothing is fused: {explained}");
    let [kernel] = &explained.kernels[..] else {
        panic!("one kernel: {explained}");
    };
    assert_eq!(kernel.text, "Elementwise [MulScalar + Sin + Add]");
    assert_eq!((kernel.flops, kernel.bytes), (3.0 * 64.0, 2.0 * 256.0));
}

#[test]
fn a_view_is_read_once_and_constants_are_not() {
    let row = input(&[1, 8]).broadcast_to(&[100, 8]).unwrap();
    let ones = LazyTensor::ones(&[100, 8], DType::F32, &Device::Cpu).unwrap();
    let x = input(&[100, 8]);
    let explained = x.mul(&row).unwrap().sub(&ones.mul_scalar(2.0).unwrap()).unwrap();
    let explained = explained.explain().unwrap();
    assert_eq!(explained.bytes(), 4.0 * (800.0 + 8.0 + 800.0), "{explained}");
}

#[test]
fn a_compiled_function_is_explained_with_its_arguments() {
    let function = compile(|arguments| Ok(vec![arguments[0].matmul(&arguments[1])?.exp()?]));
    let arguments = [input(&[4, 8]), input(&[8, 2])];
    let explained = function.explain(&arguments).unwrap();
    assert_eq!(explained.flops(), 2.0 * 64.0 + 8.0);
    assert_eq!(explained.memory, function.memory(&arguments).unwrap());

    let text = explained.to_string();
    for part in [
        "Passes: recorded 4 -> ",
        "Kernels: 2 in ",
        "arena ",
        "Matmul",
        "GFLOP/s",
        "The slowest kernels:",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(!text.contains("limit"), "{text}");
    let text = explained.with_limits(limits::measure()).to_string();
    assert!(text.contains("of limit") && text.contains("% reached"), "{text}");
}

#[test]
fn an_evaluated_tensor_has_an_empty_explanation() {
    let x = input(&[2]);
    let explained = x.explain().unwrap();
    assert_eq!((explained.recorded, explained.kernels.len()), (0, 0), "{explained}");
}
