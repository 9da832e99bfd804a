//! Compute devices: the CPU, an Apple GPU (Metal) or an NVIDIA GPU (CUDA).
//!
//! [`Device`] is Candle's device with constructors whose errors say what to do. Every function of this crate that takes
//! a device accepts either. Nothing here changes a device's settings or moves a tensor.

use std::borrow::Borrow;
use std::panic::catch_unwind;
use std::sync::LazyLock;

use candle_core::{Device as CandleDevice, DeviceLocation};

use crate::error::{DeviceError, Result};

/// A compute device.
///
/// # Example
///
/// ```
/// use candle_core::{DType, Tensor};
/// use metal_candle::Device;
/// use metal_candle::training::{LoRAConfig, LoRALayer};
///
/// # fn main() -> metal_candle::Result<()> {
/// let device = Device::best();
/// let x = Tensor::ones((2, 32), DType::F32, device.as_candle_device())?;
/// let lora = LoRALayer::new(32, 32, &LoRAConfig::default(), &device)?;
/// assert_eq!(lora.forward(&x)?.dims(), &[2, 32]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Device(CandleDevice);

/// The kind of a [`Device`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DeviceType {
    /// The processor.
    Cpu,
    /// An Apple GPU.
    Metal,
    /// An NVIDIA GPU.
    Cuda,
}

/// Information about a device, from [`Device::info`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeviceInfo {
    /// The kind of this device.
    pub device_type: DeviceType,
    /// Its index among the devices of its kind; 0 for the CPU.
    pub index: usize,
    /// Whether Metal is available to this program on this machine, whatever this device is.
    pub metal_available: bool,
}

impl Device {
    /// The CPU, which is always available.
    #[must_use]
    pub const fn new_cpu() -> Self {
        Self(CandleDevice::Cpu)
    }

    /// The Apple GPU with this index (0 is the first).
    ///
    /// # Errors
    ///
    /// [`DeviceError::MetalUnavailable`] if the program was built without Metal or there is no such GPU.
    pub fn new_metal(index: usize) -> Result<Self> {
        open(CandleDevice::new_metal, index).map_err(|why| {
            let reason = if candle_core::utils::metal_is_available() {
                format!("Metal device {index}: {why}. Use an index below the number of GPUs, or `Device::new_cpu()`")
            } else {
                format!(
                    "Metal device {index}: this program was built without Metal, which exists on macOS alone. Use \
                     `Device::best()` or `Device::new_cpu()`"
                )
            };
            DeviceError::MetalUnavailable { reason }.into()
        })
    }

    /// The NVIDIA GPU with this index (0 is the first), as a Candle device.
    ///
    /// # Errors
    ///
    /// [`DeviceError::CudaUnavailable`] if the program was built without Candle's CUDA support or there is no such GPU.
    pub fn new_cuda(index: usize) -> Result<Self> {
        open(CandleDevice::new_cuda, index).map_err(|why| {
            let reason = if candle_core::utils::cuda_is_available() {
                format!("CUDA device {index}: {why}. Check it with `nvidia-smi`, or use `Device::new_cpu()`")
            } else {
                format!(
                    "CUDA device {index}: this program was built without Candle's CUDA support. Build it with the \
                     feature `cuda` of candle-core, or use `Device::best()` or `Device::new_cpu()`"
                )
            };
            DeviceError::CudaUnavailable { reason }.into()
        })
    }

    /// The Apple GPU with this index, or the CPU if it is not available; then a warning through [`tracing`] gives the
    /// reason. [`Self::best`] does not warn.
    #[must_use]
    pub fn new_with_fallback(index: usize) -> Self {
        Self::new_metal(index).unwrap_or_else(|why| {
            tracing::warn!("computing on the CPU: {why}");
            Self::new_cpu()
        })
    }

    /// The fastest available device: the first NVIDIA GPU, else the first Apple GPU, else the CPU.
    #[must_use]
    pub fn best() -> Self {
        Self::new_cuda(0).or_else(|_| Self::new_metal(0)).unwrap_or_default()
    }

    /// Whether this is the CPU.
    #[must_use]
    pub fn is_cpu(&self) -> bool {
        self.0.is_cpu()
    }

    /// Whether this is an Apple GPU.
    #[must_use]
    pub fn is_metal(&self) -> bool {
        self.0.is_metal()
    }

    /// Whether this is an NVIDIA GPU.
    #[must_use]
    pub fn is_cuda(&self) -> bool {
        self.0.is_cuda()
    }

    /// Whether this program can open the first Apple GPU on this machine; tried once.
    #[must_use]
    pub fn is_metal_available() -> bool {
        static AVAILABLE: LazyLock<bool> = LazyLock::new(|| Device::new_metal(0).is_ok());
        *AVAILABLE
    }

    /// The kind and index of this device.
    #[must_use]
    pub fn info(&self) -> DeviceInfo {
        let (device_type, index) = match self.0.location() {
            DeviceLocation::Cpu => (DeviceType::Cpu, 0),
            DeviceLocation::Metal { gpu_id } => (DeviceType::Metal, gpu_id),
            DeviceLocation::Cuda { gpu_id } => (DeviceType::Cuda, gpu_id),
        };
        DeviceInfo {
            device_type,
            index,
            metal_available: self.is_metal() || Self::is_metal_available(),
        }
    }

    /// The wrapped Candle device, for Candle's own functions.
    #[must_use]
    pub const fn as_candle_device(&self) -> &CandleDevice {
        &self.0
    }

    /// The wrapped Candle device.
    #[must_use]
    pub fn into_candle_device(self) -> CandleDevice {
        self.0
    }

    /// Wraps a device that Candle has opened.
    #[must_use]
    pub const fn from_candle_device(device: CandleDevice) -> Self {
        Self(device)
    }
}

/// Opens a device; converts Candle's panics (no such index, no driver) to errors.
fn open(
    constructor: fn(usize) -> candle_core::Result<CandleDevice>,
    index: usize,
) -> std::result::Result<Device, String> {
    match catch_unwind(|| constructor(index)) {
        Ok(Ok(device)) => Ok(Device(device)),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("there is no such device, or its driver is missing".into()),
    }
}

impl Default for Device {
    /// The CPU.
    fn default() -> Self {
        Self::new_cpu()
    }
}

impl From<CandleDevice> for Device {
    fn from(device: CandleDevice) -> Self {
        Self(device)
    }
}

impl From<Device> for CandleDevice {
    fn from(device: Device) -> Self {
        device.0
    }
}

impl AsRef<CandleDevice> for Device {
    fn as_ref(&self) -> &CandleDevice {
        &self.0
    }
}

impl Borrow<CandleDevice> for Device {
    fn borrow(&self) -> &CandleDevice {
        &self.0
    }
}

/// For callers that hold a `&Device` and pass `&device`.
impl Borrow<CandleDevice> for &Device {
    fn borrow(&self) -> &CandleDevice {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panicking_constructor_is_an_error() {
        let why = open(|index| panic!("no device {index}"), 7).unwrap_err();
        assert!(why.contains("no such device"), "{why}");
    }

    #[test]
    fn a_failing_constructor_keeps_candles_reason() {
        let why = open(|_| Err(candle_core::Error::msg("out of order")), 0).unwrap_err();
        assert!(why.contains("out of order"), "{why}");
    }
}
