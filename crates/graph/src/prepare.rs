//! Plans ahead of time: everything of an evaluation but the running.

use smallvec::SmallVec;

use crate::backend::Backend;
use crate::error::Result;
use crate::graph::walk;
use crate::lazy_tensor::LazyTensor;
use crate::plan::Plan;

/// Makes the plan of these tensors, or finds it, without running it: evaluating them, or anything recorded alike, then
/// starts at once. Where the plan is there already, the call costs what finding a plan costs.
///
/// ```
/// use candle_core::Device;
/// use metal_candle_graph::{LazyTensor, prepare};
///
/// let x = LazyTensor::from_slice(&[1.0, 2.0], &[2], &Device::Cpu)?;
/// let y = x.mul_scalar(3.0)?;
/// prepare(&[y.clone()])?;
/// assert!(!y.is_evaluated());
/// assert_eq!(y.to_vec::<f32>()?, [3.0, 6.0]); // the plan was there
/// # Ok::<(), metal_candle_graph::Error>(())
/// ```
///
/// # Errors
/// When the tensors live on different devices.
pub fn prepare(tensors: &[LazyTensor]) -> Result<()> {
    let mut nodes: SmallVec<[&LazyTensor; 4]> = SmallVec::new();
    for tensor in tensors.iter().filter(|tensor| !tensor.is_evaluated()) {
        if nodes.iter().all(|other| other.node_id() != tensor.node_id()) {
            nodes.push(tensor);
        }
    }
    // As in an evaluation: a node with all its outputs.
    let targets: SmallVec<[LazyTensor; 4]> = nodes
        .iter()
        .flat_map(|t| (0..t.node().outputs.len() as u32).map(|output| LazyTensor::of(t.node().clone(), output)))
        .collect();
    if let Some(first) = targets.first() {
        Plan::of(&walk::number(&targets)?, Backend::current(first.device()))?;
    }
    Ok(())
}
