//! `metal-candle bench`: speed and memory as shares of the machine's limits, with the same keys as the scripts that
//! time other libraries, so that the results can be compared.
//!
//! Inputs are random and seeded, results are awaited, and a figure beyond the limits is an error.

pub mod args;
mod decode;
pub mod finetune;
pub mod inputs;
pub mod judge;
mod lora;
mod matmul;
mod memory;
mod overhead;
mod row;
mod timing;
mod work;

use args::{BenchArgs, Common, Kind};
use candle_core::Device;
use judge::Judge;
use row::RowOutput;

use crate::error::{Failure, Result};

/// Runs the command; returns the exit code.
pub fn run(arguments: &BenchArgs) -> Result<u8> {
    match &arguments.kind {
        Kind::LoraForward(arguments) => lora::run(arguments)?,
        Kind::Finetune(arguments) => finetune::run(arguments)?,
        Kind::Decode(arguments) => decode::run(arguments)?,
        Kind::Matmul(arguments) => matmul::run(arguments)?,
        Kind::Overhead(arguments) => overhead::run(arguments)?,
    }
    Ok(0)
}

/// The state of a benchmark.
struct Bench {
    device: Device,
    output: RowOutput,
    judge: Judge,
}

impl Bench {
    fn new(common: &Common) -> Result<Self> {
        Ok(Self {
            device: common.device.device()?,
            output: RowOutput::new(common.json),
            judge: Judge::new(),
        })
    }
}

/// An error of the engine; as all inputs are created here, it is never the user's.
fn engine(error: metal_candle::graph::Error) -> Failure {
    Failure::running(error)
}
