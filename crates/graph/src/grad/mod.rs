//! Reverse-mode differentiation, graph to graph: gradients are lazy tensors made of ordinary operations, so they are
//! planned, printed and differentiated like anything else. The reduction that undoes broadcasting is done once, here,
//! so that each rule is a line. Nothing here touches a device.

mod rules;

use rules::Gradients;
use smallvec::{SmallVec, smallvec};

use crate::error::{Error, Result};
use crate::fused;
use crate::graph::Operation;
use crate::graph::walk::{PostOrder, Visited, post_order};
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
/// Each gradient is the total derivative of the loss with respect to that tensor, as in `torch.autograd.grad`: if one
/// parameter was computed from another, the path through it counts for both. [`LazyTensor::stop_gradient`] cuts a path.
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
/// When the loss does not have exactly one element, or a parameter is not reachable from it ([`Error::Unreachable`]
/// names the operation that cuts the path).
pub fn value_and_grad(loss: &LazyTensor, parameters: &[LazyTensor]) -> Result<(LazyTensor, Vec<LazyTensor>)> {
    if loss.shape().elem_count() != 1 {
        return Err(Error::shape(
            "gradient",
            format!("the loss has shape {:?}, expected one element", loss.dims()),
        ));
    }
    let seed = LazyTensor::full(1.0, loss.dims(), loss.dtype(), loss.device())?;
    let mut found = pullback(&[(loss.clone(), seed)], parameters, &[])?;
    let gradients = std::mem::take(&mut found.gradients).into_iter().enumerate();
    let gradients = gradients.map(|(index, gradient)| {
        gradient.ok_or_else(|| Error::Unreachable {
            index,
            reason: found.reason(index),
        })
    });
    Ok((loss.clone(), gradients.collect::<Result<_>>()?))
}

/// The result of a reverse walk.
struct Pullback {
    gradients: Vec<Option<LazyTensor>>,
    /// Whether each parameter is in the walked graph.
    reached: Vec<bool>,
    /// Names of non-differentiable operations that depend on a parameter.
    cuts: Vec<&'static str>,
}

impl Pullback {
    /// The reason why a parameter has no gradient.
    fn reason(&self, parameter: usize) -> String {
        if !self.reached[parameter] {
            return ": it takes no part in it, or what connects them was evaluated before (evaluated tensors forget their \
                    history)"
                .into();
        }
        if self.cuts.is_empty() {
            return ": the operations between them have no gradient for it".into();
        }
        let mut names = self.cuts.clone();
        names.sort_unstable();
        names.dedup();
        format!(": the path goes through {}, where no gradient passes", names.join(", "))
    }
}

/// The cotangents of a node's outputs, accumulated so far.
type Cotangents = SmallVec<[Option<LazyTensor>; 1]>;

/// Computes the cotangents of `parameters` from those of `outputs`. The walk stops at `boundary`.
fn pullback(
    outputs: &[(LazyTensor, LazyTensor)],
    parameters: &[LazyTensor],
    boundary: &[LazyTensor],
) -> Result<Pullback> {
    let roots: Vec<LazyTensor> = outputs.iter().map(|(output, _)| output.clone()).collect();
    let order = post_order(boundary, &roots, parameters);
    let (needs, cuts) = dependents(&order);
    let none = |node: &Visited| smallvec![None; node.tensor.kind().outputs.len()];
    let mut cotangents: Vec<Cotangents> = order.nodes.iter().map(none).collect();
    for ((output, cotangent), &root) in outputs.iter().zip(&order.roots) {
        let sum = &mut cotangents[root as usize][output.output() as usize];
        accumulate(sum, cotangent.clone())?;
    }
    for (index, node) in order.nodes.iter().enumerate().rev() {
        // All users of the node have been visited. A parameter may be computed from another one, so the walk goes on.
        if reaches_parameter(node, &needs) && rules::is_differentiable(&node.tensor.kind().operation) {
            let (below, here) = cotangents.split_at_mut(index);
            step(node, &here[0], &needs, below)?;
        }
    }
    let gradient = |(parameter, place): (&LazyTensor, &Option<u32>)| {
        place.and_then(|place| cotangents[place as usize][parameter.output() as usize].clone())
    };
    Ok(Pullback {
        gradients: parameters.iter().zip(&order.wanted).map(gradient).collect(),
        reached: order.wanted.iter().map(Option::is_some).collect(),
        cuts,
    })
}

/// Which nodes are parameters or depend on one through differentiable operations, and the names of the
/// non-differentiable operations that depend on one.
fn dependents(order: &PostOrder) -> (Vec<bool>, Vec<&'static str>) {
    let (mut needs, mut cuts) = (vec![false; order.nodes.len()], Vec::new());
    for &place in order.wanted.iter().flatten() {
        needs[place as usize] = true;
    }
    for (index, node) in order.nodes.iter().enumerate() {
        if reaches_parameter(node, &needs) {
            let operation = &node.tensor.kind().operation;
            if rules::is_differentiable(operation) {
                needs[index] = true;
            } else {
                cuts.push(operation.name());
            }
        }
    }
    (needs, cuts)
}

/// Whether a parameter is reachable through the inputs.
fn reaches_parameter(node: &Visited, needs: &[bool]) -> bool {
    node.positions.iter().any(|&input| needs[input as usize])
}

/// Applies one node's rule and accumulates the cotangents of its inputs.
fn step(node: &Visited, incoming: &[Option<LazyTensor>], needs: &[bool], cotangents: &mut [Cotangents]) -> Result<()> {
    if incoming.iter().all(Option::is_none) {
        return Ok(());
    }
    let (recorded, operation) = (node.tensor.node(), &node.tensor.kind().operation);
    let outputs: SmallVec<[LazyTensor; 1]> = (0..incoming.len() as u32)
        .map(|output| LazyTensor::of(recorded.clone(), output))
        .collect();
    let wanted: SmallVec<[bool; 8]> = node.positions.iter().map(|&input| needs[input as usize]).collect();
    let shares = rules::vjp(operation, &node.inputs, &outputs, incoming, &wanted)?;
    for ((input, &position), (share, wanted)) in node
        .inputs
        .iter()
        .zip(&node.positions)
        .zip(shares.into_iter().zip(wanted))
    {
        if let (true, Some(share)) = (wanted, share) {
            let sum = &mut cotangents[position as usize][input.output() as usize];
            accumulate(sum, reduce_to(&share, input.dims())?)?;
        }
    }
    Ok(())
}

fn accumulate(sum: &mut Option<LazyTensor>, share: LazyTensor) -> Result<()> {
    *sum = Some(match sum.take() {
        Some(sum) => sum.add(&share)?,
        None => share,
    });
    Ok(())
}

/// Sums over broadcast dimensions.
fn reduce_to(gradient: &LazyTensor, shape: &[usize]) -> Result<LazyTensor> {
    if gradient.dims() == shape {
        return Ok(gradient.clone());
    }
    let added = gradient.rank() - shape.len();
    let repeated = |i: usize| i < added || (shape[i - added] == 1 && gradient.dims()[i] != 1);
    let dims: Vec<usize> = (0..gradient.rank()).filter(|&i| repeated(i)).collect();
    gradient.sum_keepdim(&dims)?.reshape(shape)
}

/// The vjp of a fused operation by differentiating its fallback. The inputs are wrapped so that the walk stops at them,
/// and so that an input that appears twice gets two gradients.
pub(crate) fn differentiate_fallback(
    operation: &Operation,
    inputs: &[LazyTensor],
    cotangents: &[Option<LazyTensor>],
    wanted: &[bool],
) -> Result<Gradients> {
    let wrapped: Vec<LazyTensor> = inputs.iter().map(|x| x.reshape(x.dims())).collect::<Result<_>>()?;
    let outputs = fused::fallback(operation, &wrapped)?;
    let pairs: Vec<(LazyTensor, LazyTensor)> = outputs
        .into_iter()
        .zip(cotangents)
        .filter_map(|(o, c)| c.clone().map(|c| (o, c)))
        .collect();
    let asked = wrapped.iter().zip(wanted).filter(|(_, wanted)| **wanted);
    let asked: Vec<LazyTensor> = asked.map(|(x, _)| x.clone()).collect();
    let mut gradients = pullback(&pairs, &asked, &wrapped)?.gradients.into_iter();
    Ok(wanted
        .iter()
        .map(|&wanted| if wanted { gradients.next().flatten() } else { None })
        .collect())
}
