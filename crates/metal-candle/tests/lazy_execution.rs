//! Recording and evaluation as used by version 1 programs: graph sizes, what is evaluated when, separately built
//! tensors.

#![cfg(feature = "graph")]

use candle_core::{DType, Device, Tensor, Var};
use metal_candle::Result;
use metal_candle::graph::{Error as GraphError, LazyTensor, NodeId, Operation, eval_all};

const CPU: Device = Device::Cpu;

fn vector(values: &[f32]) -> LazyTensor {
    LazyTensor::from_slice(values, &[values.len()], &CPU).unwrap()
}

#[test]
fn sizes_count_reachable_nodes_once() -> Result<()> {
    let (a, b) = (vector(&[1.0, 2.0]), vector(&[3.0, 4.0]));
    assert_eq!((a.graph_size(), b.graph_size()), (1, 1));
    let sum = a.add(&b)?;
    assert_eq!(sum.graph_size(), 3);
    assert_eq!(sum.mul_scalar(2.0)?.graph_size(), 4);
    assert_eq!(sum.mul(&sum)?.graph_size(), 4);
    assert_eq!(a.add(&a)?.graph_size(), 2);
    // Recording operations on a tensor does not enlarge the tensor's own graph.
    assert_eq!(a.graph_size(), 1);
    Ok(())
}

#[test]
fn nothing_runs_before_eval_and_then_once() -> Result<()> {
    let (a, b) = (vector(&[1.0, 2.0]), vector(&[3.0, 4.0]));
    let sum = a.add(&b)?;
    let twice = sum.mul_scalar(2.0)?;
    assert!(a.is_evaluated() && !sum.is_evaluated() && !twice.is_evaluated());
    assert_eq!(twice.eval()?.to_vec1::<f32>()?, [8.0, 12.0]);
    assert!(twice.is_evaluated());
    // Only the requested value is kept.
    assert!(!sum.is_evaluated());
    // The value exists already: the same buffer is returned.
    let address = |t: &Tensor| match &*t.storage_and_layout().0 {
        candle_core::Storage::Cpu(storage) => storage.as_slice::<f32>().unwrap().as_ptr(),
        _ => unreachable!("made on the CPU"),
    };
    assert_eq!(address(&twice.eval()?), address(&twice.eval()?));
    Ok(())
}

#[test]
fn an_evaluated_tensor_drops_its_history() -> Result<()> {
    let a = vector(&[1.0, 2.0]);
    let sum = a.add(&vector(&[3.0, 4.0]))?;
    let clone = sum.clone();
    sum.eval()?;
    assert_eq!((sum.graph_size(), clone.graph_size()), (1, 1));
    assert!(clone.is_evaluated());
    // It becomes an input of further operations.
    let next = sum.mul_scalar(2.0)?;
    assert_eq!(next.graph_size(), 2);
    assert_eq!(next.to_vec::<f32>()?, [8.0, 12.0]);
    Ok(())
}

#[test]
fn a_loop_holds_no_history() -> Result<()> {
    let mut x = vector(&[1.0]);
    for step in 0..100 {
        x = x.mul_scalar(1.5)?.add_scalar(-0.5)?;
        assert_eq!(x.graph_size(), 3, "step {step}");
        x.eval()?;
    }
    assert_eq!(x.to_vec::<f32>()?, [1.0]);
    Ok(())
}

#[test]
fn tensors_built_separately_combine() -> Result<()> {
    let left = vector(&[1.0, 2.0]).add(&vector(&[1.0, 1.0]))?;
    let right = vector(&[3.0, 4.0]).mul_scalar(2.0)?;
    let joined = left.mul(&right)?;
    assert_eq!(joined.graph_size(), 6);
    assert_eq!(joined.to_vec::<f32>()?, [12.0, 24.0]);
    // Evaluated and unevaluated tensors together.
    right.eval()?;
    assert_eq!(left.add(&right)?.to_vec::<f32>()?, [8.0, 11.0]);
    Ok(())
}

#[test]
fn a_tensor_added_to_the_graph_is_an_input() -> Result<()> {
    let a = LazyTensor::from_tensor(Tensor::new(&[1f32, 2.0, 3.0], &CPU)?)?;
    let b = a.add_tensor_to_graph(Tensor::new(&[4f32, 5.0, 6.0], &CPU)?)?;
    assert!(b.is_evaluated());
    assert_ne!(a.node_id(), b.node_id());
    let sum = a.add(&b)?;
    assert_eq!((sum.graph_size(), sum.to_vec::<f32>()?), (3, vec![5.0, 7.0, 9.0]));
    Ok(())
}

#[test]
fn several_results_come_from_one_evaluation() -> Result<()> {
    let x = vector(&[1.0, 2.0]);
    let shared = x.exp()?;
    let (sum, product) = (shared.add(&x)?, shared.mul(&x)?);
    let values = eval_all(&[sum.clone(), product.clone(), sum.clone()])?;
    assert!(sum.is_evaluated() && product.is_evaluated());
    let (sum, product, again) = (
        values[0].to_vec1::<f32>()?,
        values[1].to_vec1::<f32>()?,
        values[2].to_vec1::<f32>()?,
    );
    assert_eq!(sum, again);
    for (i, x) in [1f32, 2.0].into_iter().enumerate() {
        assert!((sum[i] - (x.exp() + x)).abs() <= 1e-6 && (product[i] - x.exp() * x).abs() <= 2e-6);
    }
    Ok(())
}

#[test]
fn values_are_candles() -> Result<()> {
    for dtype in [DType::F32, DType::F64] {
        let normal = |shape: &[usize]| Tensor::randn(0f64, 1f64, shape, &CPU)?.to_dtype(dtype);
        let (x, w, bias) = (normal(&[2, 3, 16])?, normal(&[16, 8])?, normal(&[8])?);
        let eager = x.broadcast_matmul(&w)?.broadcast_add(&bias)?.affine(0.5, 0.0)?;
        let eager = eager.broadcast_mul(&eager)?;
        let lazy = |t: &Tensor| LazyTensor::from_tensor(t.clone());
        let half = lazy(&x)?.matmul(&lazy(&w)?)?.add(&lazy(&bias)?)?.mul_scalar(0.5)?;
        let found = half.mul(&half)?.eval()?;
        assert_eq!((found.dims(), found.dtype()), (eager.dims(), dtype));
        let (eager, found) = (eager.to_dtype(DType::F64)?, found.to_dtype(DType::F64)?);
        let error = ((&eager - found)?.abs()? / (eager.abs()? + 1.0)?)?;
        let error = error.flatten_all()?.max(0)?.to_scalar::<f64>()?;
        assert!(error <= 1e-6, "{dtype:?}: {error:e}");
    }
    Ok(())
}

#[test]
fn sources_know_their_shape_and_dtype() -> Result<()> {
    let zeros = LazyTensor::zeros(&[2, 3], DType::F32, &CPU)?;
    let ones = LazyTensor::ones(&[2, 3], DType::F32, &metal_candle::Device::new_cpu())?;
    assert_eq!((ones.shape().dims(), ones.dtype()), (&[2, 3][..], DType::F32));
    assert!(ones.device().is_cpu());
    assert_eq!(zeros.add(&ones)?.eval()?.to_vec2::<f32>()?, [[1.0; 3]; 2]);
    Ok(())
}

#[test]
fn products_of_matrices() -> Result<()> {
    let a = LazyTensor::from_slice(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], &[2, 3], &CPU)?;
    let b = LazyTensor::from_slice(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], &[3, 2], &CPU)?;
    let product = a.matmul(&b)?;
    assert_eq!(product.shape().dims(), &[2, 2]);
    assert_eq!(product.eval()?.to_vec2::<f32>()?, [[22.0, 28.0], [49.0, 64.0]]);
    Ok(())
}

#[test]
fn an_input_shares_memory_and_no_history_with_candle() -> Result<()> {
    let var = Var::new(&[1f32, 2.0], &CPU)?;
    let x = LazyTensor::from_tensor(var.as_tensor().clone())?;
    let twice = x.mul_scalar(2.0)?;
    var.set(&Tensor::new(&[5f32, 6.0], &CPU)?)?;
    assert_eq!(twice.to_vec::<f32>()?, [10.0, 12.0]);
    assert!(!x.eval()?.track_op());
    // Nor does Candle's history of an input.
    assert!(!LazyTensor::from_tensor((var.as_tensor() * 3.0)?)?.eval()?.track_op());
    Ok(())
}

#[test]
fn what_does_not_fit_is_refused_at_the_call() -> Result<()> {
    let text = |result: std::result::Result<LazyTensor, GraphError>| result.unwrap_err().to_string();
    let zeros = |shape: &[usize], dtype| LazyTensor::zeros(shape, dtype, &CPU);
    let (a, b) = (zeros(&[2, 3], DType::F32)?, zeros(&[4, 5], DType::F32)?);
    assert_eq!(text(a.matmul(&b)), "Matmul: [2, 3] x [4, 5]: inner dimensions differ");
    assert_eq!(text(a.add(&b)), "Add: shapes [2, 3] and [4, 5] do not broadcast");
    assert_eq!(
        text(a.matmul(&zeros(&[3], DType::F32)?)),
        "Matmul: [2, 3] x [3]: both sides need at least 2 dimensions"
    );
    let doubles = zeros(&[2, 3], DType::F64)?;
    assert_eq!(
        text(a.mul(&doubles)),
        "Mul: input 1 has dtype F64, expected F32 like input 0"
    );
    let integers = zeros(&[2, 3], DType::U32)?;
    assert_eq!(
        text(integers.mul_scalar(2.0)),
        "MulScalar: input 0 has dtype U32, expected a float (f32, f64, f16, bf16)"
    );
    assert_eq!(
        text(LazyTensor::from_slice(&[1.0; 5], &[2, 3], &CPU)),
        "from_slice: 5 values do not fill shape [2, 3]"
    );
    Ok(())
}

#[test]
fn operations_tell_their_names_shapes_and_dtypes() -> Result<()> {
    let (a, b) = (candle_core::Shape::from((2, 3)), candle_core::Shape::from((3, 4)));
    assert_eq!(Operation::Matmul.name(), "Matmul");
    assert_eq!(Operation::Matmul.output_shape(&[&a, &b])?.dims(), &[2, 4]);
    assert_eq!(Operation::Matmul.output_dtype(&[DType::F64, DType::F64]), DType::F64);
    let lora = Operation::LoRA { scale: 2.0 };
    assert!(matches!(lora, Operation::LoRA { scale, .. } if scale > 1.0));
    assert_eq!((lora.name(), NodeId(3)), ("LoRA", NodeId(3)));
    Ok(())
}

#[cfg(feature = "async-exec")]
#[test]
fn an_evaluation_may_be_awaited() -> Result<()> {
    use std::future::Future;
    use std::sync::{Arc, mpsc};
    use std::task::{Context, Poll, Wake};

    struct ChannelWaker(mpsc::SyncSender<()>);
    impl Wake for ChannelWaker {
        fn wake(self: Arc<Self>) {
            let _ = self.0.try_send(());
        }
    }

    async fn program() -> Result<Vec<f32>> {
        let a = LazyTensor::from_tensor(Tensor::new(&[1f32, 2.0, 3.0], &CPU)?)?;
        let b = a.add_tensor_to_graph(Tensor::new(&[4f32, 5.0, 6.0], &CPU)?)?;
        Ok(a.add(&b)?.eval_async().await?.to_vec1()?)
    }

    let (sender, bell) = mpsc::sync_channel(1);
    let waker = Arc::new(ChannelWaker(sender)).into();
    let mut program = std::pin::pin!(program());
    let value = loop {
        match program.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(value) => break value?,
            Poll::Pending => bell.recv().expect("the waker lives"),
        }
    };
    assert_eq!(value, [5.0, 7.0, 9.0]);
    Ok(())
}
