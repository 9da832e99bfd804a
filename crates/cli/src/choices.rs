//! Enumerated values of flags.

use candle_core::{DType, Device};
use clap::ValueEnum;
use metal_candle::models::{LoadOptions, QuantFormat};
use serde::{Deserialize, Serialize};

use crate::error::{Failure, Result};

/// Values of `--lr-scheduler-type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scheduler {
    /// Constant.
    Constant,
    /// Linear decay to zero.
    Linear,
    /// Cosine decay to zero.
    Cosine,
}

/// Values of `--dtype`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DtypeChoice {
    /// The fastest on the device: f32 on a CPU.
    Auto,
    /// 32 bits.
    F32,
    /// 16 bits with the range of 32.
    Bf16,
}

/// Values of `--device`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceChoice {
    /// The fastest available.
    Auto,
    /// The CPU.
    Cpu,
    /// An NVIDIA GPU.
    Cuda,
    /// An Apple GPU.
    Metal,
}

/// Values of `--quantize`: llama.cpp's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
pub enum QuantizeChoice {
    /// 8 bits per weight, and a scale per 32.
    #[value(name = "q8_0")]
    #[serde(rename = "q8_0")]
    Q8_0,
    /// 4 bits per weight, and a scale per 32.
    #[value(name = "q4_0")]
    #[serde(rename = "q4_0")]
    Q4_0,
}

impl DtypeChoice {
    /// The options for loading weights for the CPU.
    pub fn options(self, quantize: Option<QuantizeChoice>) -> LoadOptions {
        let dtype = match self {
            Self::Auto | Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
        };
        LoadOptions::new(dtype).quantized(quantize.map(|choice| match choice {
            QuantizeChoice::Q8_0 => QuantFormat::Q8_0,
            QuantizeChoice::Q4_0 => QuantFormat::Q4_0,
        }))
    }
}

impl DeviceChoice {
    /// The device.
    ///
    /// # Errors
    /// For a device without kernels in this version.
    pub fn device(self) -> Result<Device> {
        match self {
            Self::Auto | Self::Cpu => Ok(Device::Cpu),
            Self::Cuda => Err(no_kernels("cuda")),
            Self::Metal => Err(no_kernels("metal")),
        }
    }
}

fn no_kernels(name: &str) -> Failure {
    Failure::with_tip(
        format!("--device {name}: this version computes on the CPU only"),
        "use `--device cpu`, or leave it out",
    )
}
