//! The reference backend: interprets any operation on any Candle device, one Candle call (or a few) per node. Other
//! backends are compared with it, and it is the fallback for devices without kernels. Fused operations never arrive
//! here: the plan has replaced them by their fallbacks.

mod checks;
mod integers;

use std::time::Instant;

use candle_core::{CpuStorage, DType, Device, Shape, Storage, Tensor};
use smallvec::SmallVec;

use self::checks::check_data;
use super::{Bindings, Executable, Footprint, Value};
use crate::error::{Error, Result};
use crate::graph::infer::broadcast;
use crate::graph::{Distribution, Graph, GraphNode, Meta, Operation, ValueRef};
use crate::random;

/// Runs a graph node by node.
pub(crate) struct Interpreter {
    graph: Graph,
    /// For each node, the nodes whose live range ends there.
    dead_after: Vec<Vec<u32>>,
}

impl Interpreter {
    pub fn new(graph: Graph) -> Self {
        let mut last_use: Vec<usize> = (0..graph.nodes.len()).collect();
        for (index, node) in graph.nodes.iter().enumerate() {
            node.inputs
                .iter()
                .for_each(|input| last_use[input.node as usize] = index);
        }
        graph
            .outputs
            .iter()
            .for_each(|o| last_use[o.node as usize] = usize::MAX);
        let mut dead_after = vec![Vec::new(); graph.nodes.len()];
        for (node, &last) in last_use.iter().enumerate() {
            if let Some(dead) = dead_after.get_mut(last) {
                dead.push(node as u32);
            }
        }
        Self { graph, dead_after }
    }
}

impl Executable for Interpreter {
    fn run(&self, inputs: &mut Bindings) -> Result<Bindings> {
        self.run_with(inputs, |_, node, inputs| execute(node, inputs, &self.graph.device))
    }

    /// Does not synchronise with the device: on a GPU this measures launch time.
    fn run_timed(&self, inputs: &mut Bindings, seconds: &mut [Option<f64>]) -> Result<Bindings> {
        self.run_with(inputs, |index, node, inputs| {
            let start = Instant::now();
            let value = execute(node, inputs, &self.graph.device)?;
            // A reshape may copy; other views never do.
            if !node.operation.is_view() || matches!(node.operation, Operation::Reshape { .. }) {
                seconds[index] = Some(start.elapsed().as_secs_f64());
            }
            Ok(value)
        })
    }

    /// Each value has its own allocation until its last use.
    fn footprint(&self) -> Footprint {
        let bytes = |node: &GraphNode| {
            if node.operation == Operation::Input || node.operation.is_view() {
                return 0;
            }
            node.outputs.iter().map(Meta::bytes).sum::<usize>()
        };
        let (mut alive, mut most) = (0, 0);
        for (node, dead) in self.graph.nodes.iter().zip(&self.dead_after) {
            alive += bytes(node);
            most = most.max(alive);
            alive -= dead
                .iter()
                .map(|&i| bytes(&self.graph.nodes[i as usize]))
                .sum::<usize>();
        }
        let outputs = self.graph.outputs.iter().map(|&o| self.graph.meta(o).bytes()).sum();
        Footprint {
            arena: most.saturating_sub(outputs),
            outputs,
        }
    }
}

impl Interpreter {
    /// Runs all nodes in order; `run` gets the node's index and its inputs.
    fn run_with(
        &self,
        inputs: &Bindings,
        mut run: impl FnMut(usize, &GraphNode, &[&Tensor]) -> Result<Tensor>,
    ) -> Result<Bindings> {
        let mut leaves = inputs.iter();
        let mut values: Vec<Option<Tensor>> = vec![None; self.graph.nodes.len()];
        for (index, node) in self.graph.nodes.iter().enumerate() {
            let value = if node.operation == Operation::Input {
                leaves.next().ok_or_else(missing)?.clone().into_tensor(&node.outputs[0])
            } else {
                let inputs: Option<Vec<&Tensor>> =
                    node.inputs.iter().map(|i| values[i.node as usize].as_ref()).collect();
                run(index, node, &inputs.ok_or_else(missing)?)?
            };
            values[index] = Some(value);
            self.dead_after[index]
                .iter()
                .for_each(|&dead| values[dead as usize] = None);
        }
        let output = |&o: &ValueRef| {
            let (tensor, meta) = (values[o.node as usize].clone().ok_or_else(missing)?, self.graph.meta(o));
            if tensor.shape() != &meta.shape || tensor.dtype() != meta.dtype {
                let (dtype, dims) = (tensor.dtype(), tensor.dims());
                return Err(Error::internal(format!(
                    "a result is {dtype:?}{dims:?} instead of {meta}"
                )));
            }
            Ok(Value::Tensor(tensor))
        };
        self.graph.outputs.iter().map(output).collect()
    }
}

/// The error for a value that was freed or never computed.
fn missing() -> Error {
    Error::internal("a value of the graph was freed or not computed before it is read")
}

/// Executes one node. The inputs' shapes were checked when it was recorded.
fn execute(node: &GraphNode, inputs: &[&Tensor], device: &Device) -> Result<Tensor> {
    let candle = |source| {
        let shapes: Vec<String> = inputs.iter().map(|t| format!("{:?}", t.dims())).collect();
        Error::Candle {
            context: format!("{}({})", node.operation.name(), shapes.join(", ")),
            source,
        }
    };
    check_data(node, inputs).map_err(candle)??;
    let meta = &node.outputs[0];
    if meta.shape.elem_count() == 0 {
        // Candle's functions do not handle empty tensors.
        return Tensor::zeros(&meta.shape, meta.dtype, device).map_err(candle);
    }
    lower(node, inputs, device).map_err(candle)?
}

/// The table of operations, for non-empty results and checked data. The outer result is Candle's, the inner one the
/// engine's.
#[allow(clippy::too_many_lines)]
fn lower(node: &GraphNode, inputs: &[&Tensor], device: &Device) -> candle_core::Result<Result<Tensor>> {
    use Operation as O;
    let meta = &node.outputs[0];
    let x = || inputs[0];
    let y = || inputs[1];
    let zeros = || Tensor::zeros(&meta.shape, meta.dtype, device);
    let tensor = match &node.operation {
        O::Input => return Ok(Err(Error::ExecuteInput)),
        O::Constant { value, shape, dtype } => constant(*value, shape.dims(), *dtype, device)?,
        O::Iota { dim, shape, dtype } => iota(*dim, shape.dims(), *dtype, device)?,
        O::Random { distribution, .. } => return random(*distribution, meta, x(), device),
        O::Neg | O::Abs | O::Sign if x().dtype().is_int() => integers::unary(&node.operation, x())?,
        O::Neg => x().neg()?,
        O::Abs => x().abs()?,
        O::Sign => x().sign()?,
        O::Exp => x().exp()?,
        O::Log => x().log()?,
        O::Sqrt => x().sqrt()?,
        O::Rsqrt => x().sqrt()?.recip()?,
        O::Recip => x().recip()?,
        O::Sin => x().sin()?,
        O::Cos => x().cos()?,
        O::Tanh => x().tanh()?,
        O::Erf => x().erf()?,
        O::Sigmoid => (x().neg()?.exp()? + 1.0)?.recip()?,
        O::Floor => x().floor()?,
        // Adding -0.0 changes nothing; adding 0.0 would lose the sign of a zero.
        O::MulScalar { value } => x().affine(f64::from(*value), -0.0)?,
        O::AddScalar { value } => x().affine(1.0, f64::from(*value))?,
        O::Cast { dtype } => x().to_dtype(*dtype)?,
        O::Add | O::Sub | O::Mul | O::Div if x().dtype().is_int() => {
            integers::binary(&node.operation, x(), y(), &meta.shape)?
        }
        O::Add => x().broadcast_add(y())?,
        O::Sub => x().broadcast_sub(y())?,
        O::Mul => x().broadcast_mul(y())?,
        O::Div => x().broadcast_div(y())?,
        O::Pow => pow(x(), y(), &meta.shape)?,
        O::Maximum => or_nan(x(), y(), &x().broadcast_maximum(y())?)?,
        O::Minimum => or_nan(x(), y(), &x().broadcast_minimum(y())?)?,
        O::Equal => x().broadcast_eq(y())?,
        O::Less => x().broadcast_lt(y())?,
        O::LessEqual => x().broadcast_le(y())?,
        O::Where => {
            let fit = |t: &Tensor| t.broadcast_as(&meta.shape)?.contiguous();
            fit(inputs[0])?.where_cond(&fit(inputs[1])?, &fit(inputs[2])?)?
        }
        // Sums over no elements.
        O::Sum { .. } | O::Pad { .. } | O::Matmul if x().elem_count() == 0 => zeros()?,
        O::Sum { dims } if x().dtype().is_int() => integers::sum(x(), dims, &meta.shape)?,
        O::Sum { dims } => sum(x(), dims)?,
        O::Max { dims } => max(x(), dims)?,
        O::ArgMax { dim } => argmax(x(), *dim)?,
        O::Reshape { shape } => x().reshape(shape)?,
        O::Permute { dims } if dims.is_empty() => x().clone(),
        O::Permute { dims } => x().permute(dims.as_slice())?,
        O::Broadcast { shape } => x().broadcast_as(shape)?,
        O::Slice { start, end } => {
            let mut tensor = x().clone();
            for (dim, (&from, &to)) in start.iter().zip(end).enumerate() {
                tensor = tensor.narrow(dim, from, to - from)?;
            }
            tensor
        }
        O::Concat { dim } => concat(inputs, *dim)?,
        O::Pad { before, after } => pad(x(), before, after)?,
        O::IndexSelect { dim } => x().contiguous()?.index_select(&y().contiguous()?, *dim)?,
        O::Gather { dim } => x().contiguous()?.gather(&y().contiguous()?, *dim)?,
        O::IndexAdd { .. } | O::ScatterAdd { .. } if inputs[2].elem_count() == 0 => x().clone(),
        O::IndexAdd { dim } | O::ScatterAdd { dim } if x().dtype().is_int() => {
            let whole = matches!(node.operation, O::IndexAdd { .. });
            integers::add_at(whole, *dim, x(), y(), inputs[2])?
        }
        O::IndexAdd { dim } => x()
            .contiguous()?
            .index_add(&y().contiguous()?, &inputs[2].contiguous()?, *dim)?,
        O::ScatterAdd { dim } => x()
            .contiguous()?
            .scatter_add(&y().contiguous()?, &inputs[2].contiguous()?, *dim)?,
        O::DynamicSlice { dim, length } => x().narrow(*dim, y().to_vec1::<u32>()?[0] as usize, *length)?,
        O::SliceUpdate { .. } if y().elem_count() == 0 => x().clone(),
        O::SliceUpdate { dim } => slice_update(x(), y(), *dim, inputs[2].to_vec1::<u32>()?[0] as usize)?,
        O::StopGradient => x().clone(),
        O::Matmul => matmul(x(), y())?,
        O::Softmax { .. }
        | O::RMSNorm { .. }
        | O::LayerNorm { .. }
        | O::Rope { .. }
        | O::SwiGLU
        | O::GELU { .. }
        | O::LoRA { .. }
        | O::DequantMatmul { .. }
        | O::Attention(_)
        | O::CrossEntropy(_)
        | O::AdamW(_)
        | O::Elementwise(_)
        | O::MatmulSum { .. }
        | O::SharedMatmul { .. }
        | O::ValueAndVjp { .. }
        | O::Vjp { .. } => {
            return Ok(Err(Error::no_kernel(
                node.operation.name(),
                "it: it was not replaced by its fallback",
            )));
        }
    };
    Ok(Ok(tensor))
}

/// Candle's `pow` is `exp(y ln x)`, which is NaN for negative bases and for `0^0`: computed on the host and copied to
/// the device.
fn pow(x: &Tensor, y: &Tensor, shape: &Shape) -> candle_core::Result<Tensor> {
    let list = |t: &Tensor| {
        t.broadcast_as(shape)?
            .to_dtype(DType::F64)?
            .flatten_all()?
            .to_vec1::<f64>()
    };
    let powers = list(x)?.into_iter().zip(list(y)?).map(|(x, y)| libm::pow(x, y));
    Tensor::from_vec(powers.collect::<Vec<_>>(), shape, &Device::Cpu)?
        .to_dtype(x.dtype())?
        .to_device(x.device())
}

/// The larger or smaller of two elements, NaN if either is NaN: Candle ignores a NaN on the right.
fn or_nan(x: &Tensor, y: &Tensor, chosen: &Tensor) -> candle_core::Result<Tensor> {
    if x.dtype().is_int() {
        return Ok(chosen.clone());
    }
    let either = |side: &Tensor, chosen: &Tensor| {
        let side = side.broadcast_as(chosen.shape())?.contiguous()?;
        side.ne(&side)?.where_cond(&side, chosen)
    };
    either(x, &either(y, chosen)?)
}

/// For each element of a reduction over `dims`, whether any of the reduced elements is NaN.
fn has_nan(x: &Tensor, dims: &[usize]) -> candle_core::Result<Tensor> {
    dims.iter()
        .try_fold(x.ne(x)?, |t, &dim| reducible(&t, dim)?.max_keepdim(dim))
}

/// Candle's maximum ignores NaN except in the first place.
fn max(x: &Tensor, dims: &[usize]) -> candle_core::Result<Tensor> {
    let top = dims
        .iter()
        .try_fold(x.clone(), |t, &dim| reducible(&t, dim)?.max_keepdim(dim))?;
    if x.dtype().is_int() {
        return Ok(top);
    }
    let nan = constant(f64::NAN, top.dims(), top.dtype(), top.device())?;
    has_nan(x, dims)?.where_cond(&nan, &top)
}

/// The first NaN, else the first maximum.
fn argmax(x: &Tensor, dim: usize) -> candle_core::Result<Tensor> {
    let place = |t: &Tensor| reducible(t, dim)?.argmax_keepdim(dim);
    if x.dtype().is_int() {
        return place(x);
    }
    has_nan(x, &[dim])?.where_cond(&place(&x.ne(x)?)?, &place(x)?)
}

fn constant(value: f64, dims: &[usize], dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
    Tensor::full(value, dims, device)?.to_dtype(dtype)
}

fn iota(dim: usize, dims: &[usize], dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
    let mut along = vec![1; dims.len()];
    along[dim] = dims[dim];
    let counted: Vec<i64> = (0..dims[dim] as i64).collect();
    Tensor::from_vec(counted, along, &Device::Cpu)?
        .to_dtype(dtype)?
        .to_device(device)?
        .broadcast_as(dims)?
        .contiguous()
}

/// Random numbers are generated on the host by the definition and copied to the device.
fn random(
    distribution: Distribution,
    meta: &Meta,
    key: &Tensor,
    device: &Device,
) -> candle_core::Result<Result<Tensor>> {
    let key = key.to_vec1::<u32>()?;
    let [k0, k1, c2, c3] = key[..] else {
        return Ok(Err(Error::internal("Random: the key does not have four words")));
    };
    let count = meta.shape.elem_count();
    let storage = match (distribution, meta.dtype) {
        (Distribution::Bits, _) => CpuStorage::U32(random::bits([k0, k1], [c2, c3]).take(count).collect()),
        (Distribution::Uniform, DType::F64) => {
            CpuStorage::F64(random::uniform64([k0, k1], [c2, c3]).take(count).collect())
        }
        (Distribution::Normal, DType::F64) => {
            CpuStorage::F64(random::normal64([k0, k1], [c2, c3]).take(count).collect())
        }
        (Distribution::Uniform, _) => CpuStorage::F32(random::uniform32([k0, k1], [c2, c3]).take(count).collect()),
        (Distribution::Normal, _) => CpuStorage::F32(random::normal32([k0, k1], [c2, c3]).take(count).collect()),
    };
    let tensor = Tensor::from_storage(
        Storage::Cpu(storage),
        meta.shape.clone(),
        candle_core::op::BackpropOp::none(),
        false,
    );
    tensor.to_dtype(meta.dtype)?.to_device(device).map(Ok)
}

/// Candle's maxima divide by the stride of a contiguous view, which may be 0 in a dimension of size 1.
fn reducible(x: &Tensor, dim: usize) -> candle_core::Result<Tensor> {
    if x.dims()[dim] == 1 {
        x.reshape(x.shape())
    } else {
        Ok(x.clone())
    }
}

/// Candle sums f16 and bf16 in their own precision; the engine's rule is f32.
fn sum(x: &Tensor, dims: &[usize]) -> candle_core::Result<Tensor> {
    if dims.is_empty() {
        return Ok(x.clone());
    }
    match x.dtype() {
        DType::F16 | DType::BF16 => x.to_dtype(DType::F32)?.sum_keepdim(dims)?.to_dtype(x.dtype()),
        _ => x.sum_keepdim(dims),
    }
}

fn pad(x: &Tensor, before: &[usize], after: &[usize]) -> candle_core::Result<Tensor> {
    let mut tensor = x.clone();
    for (dim, (&b, &a)) in before.iter().zip(after).enumerate() {
        if b + a > 0 {
            tensor = tensor.pad_with_zeros(dim, b, a)?;
        }
    }
    Ok(tensor)
}

fn slice_update(x: &Tensor, update: &Tensor, dim: usize, position: usize) -> candle_core::Result<Tensor> {
    let end = position + update.dims()[dim];
    let (before, after) = (x.narrow(dim, 0, position)?, x.narrow(dim, end, x.dims()[dim] - end)?);
    concat(&[&before, update, &after], dim)
}

/// Candle computes an out-of-bounds offset for an empty part, so empty parts are left out.
fn concat(parts: &[&Tensor], dim: usize) -> candle_core::Result<Tensor> {
    let full: SmallVec<[&Tensor; 4]> = parts.iter().copied().filter(|part| part.elem_count() > 0).collect();
    Tensor::cat(if full.is_empty() { parts } else { &full }, dim)
}

/// Candle multiplies f16 and bf16 on the host in their own precision; the engine's rule is f32.
fn matmul(a: &Tensor, b: &Tensor) -> candle_core::Result<Tensor> {
    let (left, right) = match (a.dtype(), a.device()) {
        (DType::F16 | DType::BF16, Device::Cpu) => (a.to_dtype(DType::F32)?, b.to_dtype(DType::F32)?),
        _ => (a.clone(), b.clone()),
    };
    let product = if left.rank() == 2 && right.rank() == 2 {
        left.contiguous()?.matmul(&right.contiguous()?)?
    } else {
        // Candle's kernels take one batch dimension without repeats.
        let (rows, columns) = (left.dims().len() - 2, right.dims().len() - 2);
        let batch =
            broadcast("Matmul", &[&left.dims()[..rows], &right.dims()[..columns]]).map_err(candle_core::Error::wrap)?;
        let flat: usize = batch.iter().product();
        let fit = |t: &Tensor, skip: usize| {
            let matrix = &t.dims()[skip..];
            t.broadcast_as([&batch[..], matrix].concat())?
                .reshape((flat, matrix[0], matrix[1]))?
                .contiguous()
        };
        let product = fit(&left, rows)?.matmul(&fit(&right, columns)?)?;
        product.reshape([&batch[..], &product.dims()[1..]].concat())?
    };
    product.to_dtype(a.dtype())
}
