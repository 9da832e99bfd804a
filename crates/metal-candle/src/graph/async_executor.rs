//! The executor of version 1: runs one operation at a time on Candle tensors through the engine. Each operation is
//! evaluated as usual (checked, planned once per shape, run by the device's backend); the executor has no state.

use std::borrow::Borrow;

use candle_core::{Device, Tensor};
use metal_candle_graph::{Error as GraphError, LazyTensor, Operation};

use crate::error::{During, Result};

/// Runs single operations on one device.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use metal_candle::graph::{AsyncExecutor, Operation};
///
/// # fn main() -> metal_candle::Result<()> {
/// let executor = AsyncExecutor::new(Device::Cpu)?;
/// let (a, b) = (Tensor::new(&[[1f32], [2.0]], &Device::Cpu)?, Tensor::new(&[10f32, 20.0], &Device::Cpu)?);
/// let sum = executor.execute_operation(&Operation::Add, &[a, b])?;
/// assert_eq!(sum.to_vec2::<f32>()?, [[11.0, 21.0], [12.0, 22.0]]);
/// executor.synchronize()?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct AsyncExecutor {
    device: Device,
}

impl AsyncExecutor {
    /// An executor for `device`: a [`candle_core::Device`] or a [`metal_candle::Device`](crate::Device), or a reference
    /// to one.
    ///
    /// # Errors
    ///
    /// None today; opening queues of a GPU may fail.
    pub fn new(device: impl Borrow<Device>) -> Result<Self> {
        Ok(Self {
            device: device.borrow().clone(),
        })
    }

    /// The (first) result of `operation` on `inputs`, with the same shapes, dtypes and broadcasting as the methods of
    /// lazy tensors.
    ///
    /// # Errors
    ///
    /// If the operation is `Input`, the number, shapes, dtypes or devices of the inputs do not fit, or a kernel fails.
    pub fn execute_operation(&self, operation: &Operation, inputs: &[Tensor]) -> Result<Tensor> {
        if *operation == Operation::Input {
            return Err(GraphError::ExecuteInput.into());
        }
        if let Some(other) = inputs.iter().find(|t| !t.device().same_device(&self.device)) {
            return Err(GraphError::DeviceMismatch {
                operation: operation.name(),
                first: format!("{:?}", self.device.location()),
                second: format!("{:?}", other.device().location()),
            }
            .into());
        }
        if inputs.is_empty() {
            return Ok(LazyTensor::record_source(operation.clone(), &self.device)?.eval()?);
        }
        let lazy = |tensor: &Tensor| Ok(LazyTensor::from_tensor(tensor.clone())?);
        let inputs = inputs.iter().map(lazy).collect::<Result<Vec<_>>>()?;
        let outputs = LazyTensor::record(operation.clone(), &inputs.iter().collect::<Vec<_>>())?;
        Ok(outputs[0].eval()?)
    }

    /// Waits until the device has finished all submitted work; the CPU backend is already synchronous.
    ///
    /// # Errors
    ///
    /// If the device reports an error.
    pub fn synchronize(&self) -> Result<()> {
        self.device.synchronize().during("waiting for the device")
    }
}
