//! The lazy `LoRA` layer against the eager one: values, gradients, dropout, errors.

#![cfg(feature = "graph")]

use candle_core::{DType, Device, Tensor, Var};
use metal_candle::Result;
use metal_candle::graph::{Backend, LazyTensor, Operation, value_and_grad, with_backend};
use metal_candle::training::{LoRAConfig, LoRALayer};

const CPU: Device = Device::Cpu;

/// A layer in evaluation mode whose B is not zero.
fn layer(inputs: usize, outputs: usize, rank: usize) -> Result<LoRALayer> {
    let config = LoRAConfig {
        rank,
        alpha: 1.5 * rank as f32,
        dropout: 0.0,
    };
    let mut layer = LoRALayer::new(inputs, outputs, &config, &CPU)?;
    layer.lora_a().set(&Tensor::randn(0f32, 0.1, (inputs, rank), &CPU)?)?;
    layer.lora_b().set(&Tensor::randn(0f32, 0.1, (rank, outputs), &CPU)?)?;
    layer.eval();
    Ok(layer)
}

fn lazy(x: &Tensor) -> Result<LazyTensor> {
    Ok(LazyTensor::from_tensor(x.clone())?)
}

fn largest_difference(a: &Tensor, b: &Tensor) -> Result<f32> {
    assert_eq!(a.dims(), b.dims());
    Ok((a - b)?.abs()?.flatten_all()?.max(0)?.to_scalar()?)
}

#[track_caller]
fn assert_equal(eager: &Tensor, lazy: &Tensor) -> Result<()> {
    let difference = largest_difference(eager, lazy)?;
    assert!(difference <= 1e-6, "{difference:e}");
    Ok(())
}

#[test]
fn values_are_the_eager_ones_for_every_rank_and_shape() -> Result<()> {
    for rank in [2, 4, 8, 16] {
        for leading in [&[][..], &[1], &[8], &[2, 3], &[2, 1, 3], &[3, 2, 2, 2], &[0]] {
            for (inputs, outputs) in [(16, 16), (64, 64), (64, 24)] {
                let layer = layer(inputs, outputs, rank)?;
                let x = Tensor::randn(0f32, 1f32, [leading, &[inputs]].concat(), &CPU)?;
                let (eager, recorded) = (layer.forward(&x)?, layer.forward_lazy(&lazy(&x)?)?);
                assert_eq!((recorded.dims(), recorded.dtype()), (eager.dims(), DType::F32));
                assert!(!recorded.is_evaluated());
                if eager.elem_count() > 0 {
                    assert_equal(&eager, &recorded.eval()?)?;
                } else {
                    assert_eq!(recorded.eval()?.dims(), eager.dims());
                }
            }
        }
    }
    Ok(())
}

#[test]
fn both_backends_agree() -> Result<()> {
    let layer = layer(64, 64, 8)?;
    let x = Tensor::randn(0f32, 1f32, (8, 64), &CPU)?;
    for backend in [Backend::Candle, Backend::Cpu] {
        let lazy = with_backend(backend, || -> Result<Tensor> {
            Ok(layer.forward_lazy(&lazy(&x)?)?.eval()?)
        });
        assert_equal(&layer.forward(&x)?, &lazy?)?;
    }
    Ok(())
}

#[test]
fn chains_of_layers() -> Result<()> {
    for (rows, width, rank) in [(1, 16, 2), (1, 16, 4), (8, 64, 8), (8, 64, 16)] {
        let (first, second) = (layer(width, 2 * width, rank)?, layer(2 * width, width, rank)?);
        let x = Tensor::randn(0f32, 1f32, (rows, width), &CPU)?;
        let eager = second.forward(&first.forward(&x)?)?;
        let recorded = second.forward_lazy(&first.forward_lazy(&lazy(&x)?)?)?;
        // Three inputs and one operation, then two inputs and one operation.
        assert_eq!(recorded.graph_size(), 7);
        assert_equal(&eager, &recorded.eval()?)?;
    }
    Ok(())
}

#[test]
fn inputs_need_not_be_contiguous() -> Result<()> {
    let layer = layer(6, 5, 3)?;
    let whole = Tensor::randn(0f32, 1f32, (6, 4, 2), &CPU)?;
    for x in [
        whole.permute((2, 1, 0))?,
        whole.permute((1, 2, 0))?,
        whole.narrow(1, 1, 2)?.permute((2, 1, 0))?,
    ] {
        assert!(!x.is_contiguous());
        assert_equal(&layer.forward(&x)?, &layer.forward_lazy(&lazy(&x)?)?.eval()?)?;
    }
    // Views of the graph reach the layer as strides.
    let transposed = lazy(&whole)?.permute(&[2, 1, 0])?;
    let eager = layer.forward(&whole.permute((2, 1, 0))?.contiguous()?)?;
    assert_equal(&eager, &layer.forward_lazy(&transposed)?.eval()?)
}

#[test]
fn one_operation_is_recorded_and_weights_are_read_when_it_runs() -> Result<()> {
    let layer = layer(16, 8, 4)?;
    let x = Tensor::randn(0f32, 1f32, (2, 16), &CPU)?;
    let recorded = layer.forward_lazy(&lazy(&x)?)?;
    assert_eq!(recorded.graph_size(), 4);
    let graph = recorded.graph()?;
    assert!(matches!(graph.nodes[3].operation, Operation::LoRA { scale } if (scale - 1.5).abs() < f32::EPSILON));

    layer.lora_b().set(&Tensor::ones((4, 8), DType::F32, &CPU)?)?;
    assert_equal(&layer.forward(&x)?, &recorded.eval()?)
}

#[test]
fn gradients_are_those_of_candles_backward() -> Result<()> {
    let layer = layer(12, 10, 4)?;
    let x = Var::from_tensor(&Tensor::randn(0f32, 1f32, (2, 3, 12), &CPU)?)?;
    let upstream = Tensor::randn(0f32, 1f32, (2, 3, 10), &CPU)?;
    let eager = (layer.forward(&x)? * &upstream)?.sum_all()?.backward()?;

    let input = lazy(&x)?;
    let loss = layer.forward_lazy(&input)?.mul(&lazy(&upstream)?)?.sum_all()?;
    let parameters = [layer.lora_a_lazy().clone(), layer.lora_b_lazy().clone(), input];
    let (_, gradients) = value_and_grad(&loss, &parameters)?;
    for (var, gradient) in [layer.lora_a(), layer.lora_b(), &x].into_iter().zip(gradients) {
        let expected = eager.get(var).expect("reached by the loss");
        let difference = largest_difference(expected, &gradient.eval()?)?;
        assert!(difference <= 1e-5, "{difference:e}");
    }
    Ok(())
}

#[test]
fn a_step_through_the_graph_is_a_step_of_the_layer() -> Result<()> {
    let layer = layer(8, 4, 2)?;
    let x = Tensor::randn(0f32, 1f32, (16, 8), &CPU)?;
    let target = Tensor::randn(0f32, 1f32, (16, 4), &CPU)?;
    let loss = || -> Result<LazyTensor> {
        let error = layer.forward_lazy(&lazy(&x)?)?.sub(&lazy(&target)?)?;
        Ok(error.mul(&error)?.sum_all()?.mul_scalar(1.0 / 64.0)?)
    };
    let before = loss()?.to_scalar::<f32>()?;
    for _ in 0..50 {
        let parameters = [layer.lora_a_lazy().clone(), layer.lora_b_lazy().clone()];
        let (_, gradients) = value_and_grad(&loss()?, &parameters)?;
        for (var, gradient) in layer.trainable_variables().into_iter().zip(gradients) {
            var.set(&(var.as_tensor() - (gradient.eval()? * 0.2)?)?)?;
        }
    }
    let after = loss()?.to_scalar::<f32>()?;
    assert!(after < 0.9 * before, "loss {before} before, {after} after");
    Ok(())
}

/// An identity layer in training mode: A and B are the identity and the scaling is 1.
fn identity(n: usize, dropout: f32) -> Result<LoRALayer> {
    let config = LoRAConfig {
        rank: n,
        alpha: n as f32,
        dropout,
    };
    let layer = LoRALayer::new(n, n, &config, &CPU)?;
    for variable in layer.trainable_variables() {
        variable.set(&Tensor::eye(n, DType::F32, &CPU)?)?;
    }
    Ok(layer)
}

#[test]
fn dropout_zeroes_its_share_and_scales_up_the_rest() -> Result<()> {
    let layer = identity(64, 0.25)?;
    let x = LazyTensor::ones(&[100, 64], DType::F32, &CPU)?;
    let y = layer.forward_lazy(&x)?.to_vec::<f32>()?;
    assert!(y.iter().all(|&y| y == 0.0 || (y - 4.0 / 3.0).abs() < 1e-6));
    let share = y.iter().filter(|&&y| y == 0.0).count() as f64 / y.len() as f64;
    // 6400 draws: six standard deviations.
    assert!((share - 0.25).abs() < 6.0 * (0.25f64 * 0.75 / 6400.0).sqrt(), "{share}");
    Ok(())
}

#[test]
fn dropout_differs_from_call_to_call_and_only_in_training_mode() -> Result<()> {
    let mut layer = identity(64, 0.5)?;
    let x = LazyTensor::ones(&[4, 64], DType::F32, &CPU)?;
    let recorded = layer.forward_lazy(&x)?;
    assert_ne!(recorded.to_vec::<f32>()?, layer.forward_lazy(&x)?.to_vec::<f32>()?);
    assert_eq!(recorded.to_vec::<f32>()?, recorded.to_vec::<f32>()?);
    layer.eval();
    assert_eq!(layer.forward_lazy(&x)?.to_vec::<f32>()?, vec![1.0; 256]);
    layer.set_training(true);
    assert!(layer.forward_lazy(&x)?.to_vec::<f32>()?.contains(&0.0));
    Ok(())
}

#[test]
fn gradients_pass_what_dropout_kept() -> Result<()> {
    let layer = identity(32, 0.5)?;
    let x = LazyTensor::ones(&[8, 32], DType::F32, &CPU)?;
    let y = layer.forward_lazy(&x)?;
    let (_, gradients) = value_and_grad(&y.sum_all()?, &[x])?;
    // Through two identities the gradient is the mask itself, 0 or 2.
    assert_eq!(gradients[0].to_vec::<f32>()?, y.to_vec::<f32>()?);
    Ok(())
}

#[test]
fn what_does_not_fit_is_refused_when_it_is_recorded() -> Result<()> {
    let layer = layer(16, 8, 4)?;
    let refused = |x: LazyTensor| layer.forward_lazy(&x).unwrap_err().to_string();
    let zeros = |shape: &[usize], dtype| LazyTensor::zeros(shape, dtype, &CPU);
    assert_eq!(
        refused(zeros(&[2, 15], DType::F32)?),
        "LoRA: [2, 15] x [16, 4]: inner dimensions differ"
    );
    assert_eq!(
        refused(zeros(&[15], DType::F32)?),
        "LoRA: [1, 15] x [16, 4]: inner dimensions differ"
    );
    assert_eq!(
        refused(zeros(&[], DType::F32)?),
        "LoRA forward: input is a scalar, it must have shape (.., 16)"
    );
    assert_eq!(
        refused(zeros(&[2, 16], DType::F64)?),
        "LoRA: input 1 has dtype F32, expected F64 like input 0"
    );
    Ok(())
}
