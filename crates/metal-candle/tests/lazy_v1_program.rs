//! A program written against version 1, its lazy half: queries of operations, and propagated errors.

#![cfg(feature = "graph")]

use candle_core::{DType, Device, Shape, Tensor};
use metal_candle::graph::{AsyncExecutor, LazyTensor, NodeId, Operation};

/// Version 1 returned Candle's own result, and so did its callers.
fn record_with_candles_result(device: &Device) -> candle_core::Result<LazyTensor> {
    let a = LazyTensor::from_slice(&[1.0, 2.0, 3.0, 4.0], &[2, 2], device)?;
    let b = a.add_tensor_to_graph(Tensor::ones((2, 2), DType::F32, device)?)?;
    a.matmul(&b)?
        .add(&b)?
        .mul_scalar(0.5)?
        .softmax(1)
        .map_err(candle_core::Error::from)
}

fn evaluate_with_our_result(device: &Device) -> metal_candle::Result<Tensor> {
    Ok(record_with_candles_result(device)?.eval()?)
}

#[test]
fn functions_with_candles_result_pass_the_graphs_errors_on() {
    fn mismatch(device: &Device) -> candle_core::Result<LazyTensor> {
        let a = LazyTensor::zeros(&[2, 3], DType::F32, device)?;
        let b = LazyTensor::ones(&[4, 5], DType::F32, device)?;
        Ok(a.matmul(&b)?)
    }
    let rows = evaluate_with_our_result(&Device::Cpu)
        .unwrap()
        .to_vec2::<f32>()
        .unwrap();
    assert_eq!(rows, [[0.5, 0.5], [0.5, 0.5]]);
    let text = mismatch(&Device::Cpu).unwrap_err().to_string();
    assert!(
        text.starts_with("Matmul: [2, 3] x [4, 5]: inner dimensions differ"),
        "{text}"
    );
}

#[test]
fn operations_say_what_they_make_of_shapes_and_dtypes() {
    let (shape, wide) = (Shape::from((2, 3)), Shape::from((3, 5)));
    assert_eq!(Operation::Input.output_shape(&[&shape]).unwrap(), shape);
    assert_eq!(
        Operation::Matmul.output_shape(&[&shape, &wide]).unwrap(),
        Shape::from((2, 5))
    );
    assert_eq!(
        Operation::MulScalar { value: 2.0 }.output_dtype(&[DType::F32]),
        DType::F32
    );
    for (operation, message) in [
        (Operation::RMSNorm { eps: 1e-5 }, "RMSNorm requires 1 input, got 0"),
        (Operation::Softmax { dim: 1 }, "Softmax requires 1 input, got 0"),
        (Operation::Matmul, "Matmul requires 2 inputs, got 0"),
    ] {
        assert_eq!(operation.output_shape(&[]).unwrap_err().to_string(), message);
        let executor = AsyncExecutor::new(Device::Cpu).unwrap();
        assert_eq!(
            executor.execute_operation(&operation, &[]).unwrap_err().to_string(),
            message
        );
    }
    assert!(matches!(Operation::LoRA { scale: 2.0 }, Operation::LoRA { scale, .. } if scale == 2.0));
}

#[test]
fn nodes_are_told_apart() -> metal_candle::Result<()> {
    let a = LazyTensor::zeros(&[2], DType::F32, &Device::Cpu)?;
    let b = a.add(&a)?;
    let (first, second): (NodeId, NodeId) = (a.node_id(), b.node_id());
    assert_ne!(first, second);
    Ok(())
}

/// The names that version 1 had at the root and in the engine, and that still exist.
#[test]
fn types_of_generation_and_training_are_at_the_root() {
    fn same<T>(_: Option<T>, _: Option<T>) {}
    same::<metal_candle::StreamToken>(None, None::<metal_candle::inference::StreamToken>);
    same::<metal_candle::Generator<'_>>(None, None::<metal_candle::inference::Generator<'_>>);
    same::<metal_candle::Trainer<'_>>(None, None::<metal_candle::training::Trainer<'_>>);
    same::<metal_candle::graph::Error>(None, None::<metal_candle_graph::Error>);
}
