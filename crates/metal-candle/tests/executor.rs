//! The executor of single operations, as used by version 1 programs.

#![cfg(feature = "graph")]

use candle_core::{DType, Device, Tensor};
use metal_candle::Result;
use metal_candle::graph::{AsyncExecutor, Operation};

const CPU: Device = Device::Cpu;

fn executor() -> AsyncExecutor {
    AsyncExecutor::new(CPU).unwrap()
}

fn vector(values: &[f32]) -> Tensor {
    Tensor::new(values, &CPU).unwrap()
}

#[test]
fn a_device_may_be_candles_or_ours_by_value_or_reference() -> Result<()> {
    let ours = metal_candle::Device::new_cpu();
    for executor in [
        AsyncExecutor::new(CPU)?,
        AsyncExecutor::new(&CPU)?,
        AsyncExecutor::new(&ours)?,
        AsyncExecutor::new(ours)?,
    ] {
        executor.synchronize()?;
        executor.synchronize()?;
    }
    Ok(())
}

#[test]
fn results() -> Result<()> {
    let run = |operation: Operation, inputs: &[Tensor]| executor().execute_operation(&operation, inputs);
    let (a, b) = (vector(&[1.0, 2.0, 3.0]), vector(&[4.0, 5.0, 6.0]));
    let both = [a.clone(), b];
    assert_eq!(run(Operation::Add, &both)?.to_vec1::<f32>()?, [5.0, 7.0, 9.0]);
    assert_eq!(run(Operation::Mul, &both)?.to_vec1::<f32>()?, [4.0, 10.0, 18.0]);
    assert_eq!(
        run(Operation::MulScalar { value: 2.5 }, &[a])?.to_vec1::<f32>()?,
        [2.5, 5.0, 7.5]
    );

    let (a, b) = (
        Tensor::new(&[[1f32, 2.0], [3.0, 4.0]], &CPU)?,
        Tensor::new(&[[5f32, 6.0], [7.0, 8.0]], &CPU)?,
    );
    assert_eq!(
        run(Operation::Matmul, &[a, b])?.to_vec2::<f32>()?,
        [[19.0, 22.0], [43.0, 50.0]]
    );
    let ones = run(
        Operation::Constant {
            value: 1.0,
            shape: (2, 1).into(),
            dtype: DType::F64,
        },
        &[],
    )?;
    assert_eq!(ones.to_vec2::<f64>()?, [[1.0], [1.0]]);
    Ok(())
}

#[test]
fn additions_products_and_batches_broadcast() -> Result<()> {
    let column = Tensor::new(&[[1f32], [2.0], [3.0]], &CPU)?;
    let row = vector(&[10.0, 20.0, 30.0]);
    let sum = executor().execute_operation(&Operation::Add, &[column.clone(), row.clone()])?;
    assert_eq!(
        sum.to_vec2::<f32>()?,
        [[11.0, 21.0, 31.0], [12.0, 22.0, 32.0], [13.0, 23.0, 33.0]]
    );
    let product = executor().execute_operation(&Operation::Mul, &[column, row])?;
    assert_eq!(
        product.to_vec2::<f32>()?,
        [[10.0, 20.0, 30.0], [20.0, 40.0, 60.0], [30.0, 60.0, 90.0]]
    );

    let (a, b) = (
        Tensor::randn(0f32, 1f32, (2, 3, 4), &CPU)?,
        Tensor::randn(0f32, 1f32, (4, 5), &CPU)?,
    );
    let batch = executor().execute_operation(&Operation::Matmul, &[a.clone(), b.clone()])?;
    let difference = (batch - a.broadcast_matmul(&b)?)?
        .abs()?
        .flatten_all()?
        .max(0)?
        .to_scalar::<f32>()?;
    assert!(difference <= 1e-6, "{difference:e}");
    Ok(())
}

#[test]
fn fused_operations_are_their_sequential_forms() -> Result<()> {
    let x = Tensor::randn(0f32, 1f32, (3, 16), &CPU)?;
    let a = Tensor::randn(0f32, 0.2f32, (16, 4), &CPU)?;
    let b = Tensor::randn(0f32, 0.2f32, (4, 8), &CPU)?;
    let close = |found: Tensor, expected: Tensor| -> Result<()> {
        let difference = (found - expected)?.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()?;
        assert!(difference <= 1e-6, "{difference:e}");
        Ok(())
    };
    let lora = executor().execute_operation(&Operation::LoRA { scale: 1.5 }, &[x.clone(), a.clone(), b.clone()])?;
    close(lora, (x.matmul(&a)?.matmul(&b)? * 1.5)?)?;
    let softmax = executor().execute_operation(&Operation::Softmax { dim: 1 }, std::slice::from_ref(&x))?;
    close(softmax, candle_nn::ops::softmax(&x, 1)?)?;
    let norm = executor().execute_operation(&Operation::RMSNorm { eps: 1e-5 }, std::slice::from_ref(&x))?;
    close(
        norm,
        candle_nn::ops::rms_norm(&x, &Tensor::ones(16, DType::F32, &CPU)?, 1e-5)?,
    )
}

#[test]
fn the_wrong_number_of_inputs_is_an_error() {
    let v = || vector(&[1.0, 2.0]);
    let message = |operation: Operation, inputs: &[Tensor]| {
        executor()
            .execute_operation(&operation, inputs)
            .unwrap_err()
            .to_string()
    };
    assert_eq!(message(Operation::Matmul, &[v()]), "Matmul requires 2 inputs, got 1");
    assert_eq!(
        message(Operation::Matmul, &[v(), v(), v()]),
        "Matmul requires 2 inputs, got 3"
    );
    assert_eq!(message(Operation::Add, &[v()]), "Add requires 2 inputs, got 1");
    assert_eq!(message(Operation::Mul, &[]), "Mul requires 2 inputs, got 0");
    assert_eq!(
        message(Operation::MulScalar { value: 2.0 }, &[]),
        "MulScalar requires 1 input, got 0"
    );
    assert_eq!(
        message(Operation::MulScalar { value: 2.0 }, &[v(), v()]),
        "MulScalar requires 1 input, got 2"
    );
    assert_eq!(
        message(Operation::Softmax { dim: 0 }, &[]),
        "Softmax requires 1 input, got 0"
    );
    assert_eq!(
        message(Operation::RMSNorm { eps: 1e-5 }, &[]),
        "RMSNorm requires 1 input, got 0"
    );
    assert_eq!(
        message(Operation::LoRA { scale: 1.0 }, &[v(), v()]),
        "LoRA requires 3 inputs, got 2"
    );
}

#[test]
fn an_input_cannot_be_executed() {
    let message = |inputs: &[Tensor]| {
        executor()
            .execute_operation(&Operation::Input, inputs)
            .unwrap_err()
            .to_string()
    };
    assert_eq!(message(&[vector(&[1.0])]), "Cannot execute Input operation");
    assert_eq!(message(&[]), "Cannot execute Input operation");
}

#[test]
fn incompatible_shapes_and_dtypes_are_errors() -> Result<()> {
    let message = |operation: Operation, inputs: &[Tensor]| {
        executor()
            .execute_operation(&operation, inputs)
            .unwrap_err()
            .to_string()
    };
    let (a, b) = (
        Tensor::zeros((2, 3), DType::F32, &CPU)?,
        Tensor::zeros((4, 5), DType::F32, &CPU)?,
    );
    assert_eq!(
        message(Operation::Matmul, &[a.clone(), b.clone()]),
        "Matmul: [2, 3] x [4, 5]: inner dimensions differ"
    );
    assert_eq!(
        message(Operation::Add, &[a.clone(), b]),
        "Add: shapes [2, 3] and [4, 5] do not broadcast"
    );
    let doubles = Tensor::zeros((2, 3), DType::F64, &CPU)?;
    assert_eq!(
        message(Operation::Add, &[a, doubles]),
        "Add: input 1 has dtype F64, expected F32 like input 0"
    );
    Ok(())
}
