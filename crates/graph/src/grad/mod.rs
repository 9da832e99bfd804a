//! Reverse-mode differentiation, graph to graph: the gradients are lazy tensors made of ordinary operations, so they are
//! planned, printed and differentiated again like anything else. The reduction that undoes broadcasting is done once,
//! here, so that each rule is a line. Nothing here touches a device.

mod rules;

use rustc_hash::{FxHashMap, FxHashSet};

use crate::error::{Error, Result};
use crate::fused;
use crate::graph::node::NodeId;
use crate::graph::{Operation, walk};
use crate::lazy_tensor::LazyTensor;

/// The gradients of a loss with respect to `parameters`, and the loss itself.
///
/// ```
/// use candle_core::Device;
/// use metal_candle_graph::{LazyTensor, value_and_grad};
///
/// let x = LazyTensor::from_slice(&[3.0], &[1], &Device::Cpu)?;
/// let (loss, grads) = value_and_grad(&x.mul(&x)?, &[x])?;
/// assert_eq!((loss.to_scalar::<f32>()?, grads[0].to_scalar::<f32>()?), (9.0, 6.0));
/// # Ok::<(), metal_candle_graph::Error>(())
/// ```
///
/// Each gradient is the whole derivative of the loss with respect to that tensor, as `torch.autograd.grad` has it: where
/// one parameter was computed from another, the path through it counts for both. [`LazyTensor::stop_gradient`] cuts a path.
///
/// ```
/// # use candle_core::Device;
/// # use metal_candle_graph::{LazyTensor, value_and_grad};
/// let x = LazyTensor::from_slice(&[3.0], &[1], &Device::Cpu)?;
/// let square = x.mul(&x)?;
/// let (_, grads) = value_and_grad(&square.mul_scalar(2.0)?, &[square, x])?;
/// assert_eq!((grads[0].to_scalar::<f32>()?, grads[1].to_scalar::<f32>()?), (2.0, 12.0));
/// # Ok::<(), metal_candle_graph::Error>(())
/// ```
///
/// # Errors
/// When the loss has not exactly one element, or a parameter is not reachable from it ([`Error::Unreachable`] says what
/// cuts the path).
pub fn value_and_grad(loss: &LazyTensor, parameters: &[LazyTensor]) -> Result<(LazyTensor, Vec<LazyTensor>)> {
    if loss.shape().elem_count() != 1 {
        return Err(Error::shape(
            "gradient",
            format!("the loss has shape {:?}, expected one element", loss.dims()),
        ));
    }
    let seed = LazyTensor::full(1.0, loss.dims(), loss.dtype(), loss.device())?;
    let found = pullback(&[(loss.clone(), seed)], parameters, &FxHashSet::default())?;
    let gradients = found
        .gradients
        .into_iter()
        .enumerate()
        .map(|(index, gradient)| {
            gradient.ok_or_else(|| Error::Unreachable {
                index,
                reason: reason(&found.reached, &found.cuts, parameters, index),
            })
        })
        .collect::<Result<_>>()?;
    Ok((loss.clone(), gradients))
}

fn reason(reached: &FxHashSet<NodeId>, cuts: &[&'static str], parameters: &[LazyTensor], index: usize) -> String {
    if !reached.contains(&parameters[index].node_id()) {
        return ": it takes no part in it, or what connects them was evaluated before (evaluated tensors forget their \
                history)"
            .into();
    }
    if cuts.is_empty() {
        return ": the operations between them have no gradient for it".into();
    }
    let mut names = cuts.to_vec();
    names.sort_unstable();
    names.dedup();
    format!(": the path goes through {}, where no gradient passes", names.join(", "))
}

/// What a reverse walk found.
struct Pullback {
    gradients: Vec<Option<LazyTensor>>,
    /// Every node of the walked graph.
    reached: FxHashSet<NodeId>,
    /// Names of operations that depend on a parameter and pass no gradient.
    cuts: Vec<&'static str>,
}

/// Pulls cotangents of `outputs` back to `parameters`. The walk does not go behind `boundary`.
fn pullback(
    outputs: &[(LazyTensor, LazyTensor)],
    parameters: &[LazyTensor],
    boundary: &FxHashSet<NodeId>,
) -> Result<Pullback> {
    let roots: Vec<LazyTensor> = outputs.iter().map(|(output, _)| output.clone()).collect();
    let mut needs: FxHashSet<NodeId> = parameters.iter().map(LazyTensor::node_id).collect();
    let order = walk::post_order_until(&roots, |id| boundary.contains(&id));
    let parameter_ids = needs.clone();
    let mut cuts = Vec::new();
    for (tensor, inputs) in &order {
        if leads_on(inputs, &needs) {
            let operation = &tensor.node().operation;
            if rules::is_differentiable(operation) {
                needs.insert(tensor.node_id());
            } else {
                cuts.push(operation.name());
            }
        }
    }
    let mut cotangents: FxHashMap<(NodeId, u32), LazyTensor> = FxHashMap::default();
    for (output, cotangent) in outputs {
        accumulate(&mut cotangents, output, cotangent.clone())?;
    }
    let mut whole: FxHashMap<(NodeId, u32), LazyTensor> = FxHashMap::default();
    for (tensor, inputs) in order.iter().rev() {
        let id = tensor.node_id();
        if parameter_ids.contains(&id) {
            // All that uses it came before. What it was computed from may be a parameter too, so the walk goes on.
            let outputs = (0..tensor.node().outputs.len() as u32).map(|output| (id, output));
            whole.extend(outputs.filter_map(|key| Some((key, cotangents.get(&key)?.clone()))));
        }
        if leads_on(inputs, &needs) && rules::is_differentiable(&tensor.node().operation) {
            step(tensor, inputs, &needs, &mut cotangents)?;
        }
    }
    let gradients = parameters
        .iter()
        .map(|p| whole.get(&(p.node_id(), p.output())).cloned())
        .collect();
    let reached = order.iter().map(|(tensor, _)| tensor.node_id()).collect();
    Ok(Pullback {
        gradients,
        reached,
        cuts,
    })
}

/// Whether a parameter is among the inputs or behind them.
fn leads_on(inputs: &[LazyTensor], needs: &FxHashSet<NodeId>) -> bool {
    inputs.iter().any(|input| needs.contains(&input.node_id()))
}

/// Applies one node's rule and hands its inputs their share.
fn step(
    tensor: &LazyTensor,
    inputs: &[LazyTensor],
    needs: &FxHashSet<NodeId>,
    cotangents: &mut FxHashMap<(NodeId, u32), LazyTensor>,
) -> Result<()> {
    let node = tensor.node();
    let count = node.outputs.len() as u32;
    let incoming: Vec<Option<LazyTensor>> = (0..count).map(|o| cotangents.remove(&(node.id, o))).collect();
    if incoming.iter().all(Option::is_none) {
        return Ok(());
    }
    let outputs: Vec<LazyTensor> = (0..count).map(|o| LazyTensor::of(node.clone(), o)).collect();
    let wanted: Vec<bool> = inputs.iter().map(|input| needs.contains(&input.node_id())).collect();
    let shares = rules::vjp(&node.operation, inputs, &outputs, &incoming, &wanted)?;
    for ((input, share), wanted) in inputs.iter().zip(shares).zip(wanted) {
        if let (true, Some(share)) = (wanted, share) {
            accumulate(cotangents, input, reduce_to(&share, input.dims())?)?;
        }
    }
    Ok(())
}

fn accumulate(
    cotangents: &mut FxHashMap<(NodeId, u32), LazyTensor>,
    tensor: &LazyTensor,
    share: LazyTensor,
) -> Result<()> {
    let key = (tensor.node_id(), tensor.output());
    let total = match cotangents.get(&key) {
        Some(sum) => sum.add(&share)?,
        None => share,
    };
    cotangents.insert(key, total);
    Ok(())
}

/// Sums over what broadcasting repeated.
fn reduce_to(gradient: &LazyTensor, shape: &[usize]) -> Result<LazyTensor> {
    if gradient.dims() == shape {
        return Ok(gradient.clone());
    }
    let added = gradient.rank() - shape.len();
    let repeated = |i: usize| i < added || (shape[i - added] == 1 && gradient.dims()[i] != 1);
    let dims: Vec<usize> = (0..gradient.rank()).filter(|&i| repeated(i)).collect();
    gradient.sum_keepdim(&dims)?.reshape(shape)
}

/// The vjp of a fused operation through its fallback. The inputs are wrapped so that the walk stops at them, and so that
/// an input that appears twice gets two gradients.
pub(crate) fn differentiate_fallback(
    operation: &Operation,
    inputs: &[LazyTensor],
    cotangents: &[Option<LazyTensor>],
    wanted: &[bool],
) -> Result<Vec<Option<LazyTensor>>> {
    let wrapped: Vec<LazyTensor> = inputs.iter().map(|x| x.reshape(x.dims())).collect::<Result<_>>()?;
    let outputs = fused::fallback(operation, &wrapped)?;
    let pairs: Vec<(LazyTensor, LazyTensor)> = outputs
        .into_iter()
        .zip(cotangents)
        .filter_map(|(o, c)| c.clone().map(|c| (o, c)))
        .collect();
    let boundary: FxHashSet<NodeId> = wrapped.iter().map(LazyTensor::node_id).collect();
    let asked: Vec<LazyTensor> = wrapped
        .into_iter()
        .zip(wanted)
        .filter(|(_, wanted)| **wanted)
        .map(|(x, _)| x)
        .collect();
    let mut gradients = pullback(&pairs, &asked, &boundary)?.gradients.into_iter();
    Ok(wanted
        .iter()
        .map(|&wanted| if wanted { gradients.next().flatten() } else { None })
        .collect())
}
