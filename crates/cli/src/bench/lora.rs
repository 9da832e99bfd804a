//! `bench lora-forward`: the cases of the peers' `lora_forward.py`, and the small `LoRA` step of Candle's program.
//!
//! `lazy` records and evaluates in each call, `compile` calls a compiled function; inputs are created beforehand in
//! both.

use candle_core::DType;
use metal_candle::graph::limits::Work;
use metal_candle::graph::{self, AdamWOptions, LazyTensor, compile};
use metal_candle::training::Stepper;

use super::args::{Dtype, LoraForwardArgs};
use super::inputs::Inputs;
use super::row::Row;
use super::timing::{Timing, measure};
use super::{Bench, engine, work};
use crate::error::{Failure, Result};

/// `(batch, in, out, rank)`
const CASES: [(usize, usize, usize, usize); 7] = [
    (1, 16, 16, 8),
    (8, 64, 64, 8),
    (1, 512, 512, 8),
    (64, 512, 512, 8),
    (1, 1024, 1024, 8),
    (1, 2048, 2048, 8),
    (1024, 2048, 2048, 16),
];
/// Cases with more elements of x are timed with fewer calls.
const LARGE: usize = 1 << 20;
/// Candle's defaults for `AdamW`.
const OPTIMIZER: AdamWOptions = AdamWOptions {
    beta1: 0.9,
    beta2: 0.999,
    eps: 1e-8,
    weight_decay: 0.01,
};
const LEARNING_RATE: f64 = 1e-3;

/// Runs every requested case.
pub fn run(arguments: &LoraForwardArgs) -> Result<()> {
    let mut cases = Cases {
        bench: Bench::new(&arguments.common)?,
        arguments,
        rows: 0,
    };
    for dtype in Dtype::chosen(arguments.dtype) {
        cases.forward(dtype)?;
        cases.square(dtype)?;
    }
    if arguments.dtype != Some(Dtype::Bf16) {
        cases.step()?;
    }
    if cases.rows == 0 {
        let message = format!("no case's name contains `{}`", arguments.case);
        let tip = "run `metal-candle bench lora-forward` to see their names";
        return Err(Failure::with_tip(message, tip));
    }
    Ok(())
}

/// A timed case.
struct Case<'c> {
    name: &'c str,
    dtype: Dtype,
    mode: &'static str,
    work: Work,
}

struct Cases<'a> {
    bench: Bench,
    arguments: &'a LoraForwardArgs,
    rows: usize,
}

impl Cases<'_> {
    fn inputs(&self) -> Inputs {
        Inputs::new(self.arguments.common.seed, &self.bench.device)
    }

    fn forward(&mut self, dtype: Dtype) -> Result<()> {
        for (batch, inputs, outputs, rank) in CASES {
            let name = format!("lora b{batch} {inputs}x{outputs} r{rank}");
            if !self.is_wanted(&name) {
                continue;
            }
            let mut random = self.inputs();
            let mut normal = |rows, columns| random.normal(&[rows, columns], 1.0, dtype.dtype()).map_err(engine);
            let (x, a, b) = (normal(batch, inputs)?, normal(inputs, rank)?, normal(rank, outputs)?);
            let runs = if batch * inputs < LARGE { 300 } else { 30 };
            let work = work::lora(batch, inputs, outputs, rank, dtype.dtype());
            self.both(&name, dtype, work, runs, &x, |x| x.lora_fused(&a, &b, 2.0))?;
        }
        Ok(())
    }

    /// The cases on 1024 x 1024 tensors.
    fn square(&mut self, dtype: Dtype) -> Result<()> {
        const SIZE: usize = 1024;
        let mut random = self.inputs();
        let mut normal = || random.normal(&[SIZE, SIZE], 1.0, dtype.dtype()).map_err(engine);
        let (x, m) = (normal()?, normal()?);
        let ones = LazyTensor::ones(&[SIZE], dtype.dtype(), &self.bench.device).and_then(|ones| ones.eval());
        let g = ones.and_then(LazyTensor::from_tensor).map_err(engine)?;
        let each = work::pointwise(SIZE * SIZE, dtype.dtype());
        self.both("softmax 1024x1024", dtype, each, 100, &x, |x| x.softmax(1))?;
        self.both("rms_norm 1024x1024", dtype, each, 100, &x, |x| {
            x.rms_norm_weighted(&g, 1e-5)
        })?;
        let product = work::matmul([SIZE; 3], dtype.dtype());
        self.both("matmul 1024^3", dtype, product, 20, &x, |x| x.matmul(&m))
    }

    /// Times one forward pass in both modes.
    fn both(
        &mut self,
        name: &str,
        dtype: Dtype,
        work: Work,
        runs: usize,
        x: &LazyTensor,
        forward: impl Fn(&LazyTensor) -> graph::Result<LazyTensor>,
    ) -> Result<()> {
        if !self.is_wanted(name) {
            return Ok(());
        }
        let case = |mode| Case {
            name,
            dtype,
            mode,
            work,
        };
        self.time(&case("lazy"), runs, || {
            forward(x).and_then(|y| y.eval()).map_err(engine)
        })?;
        let compiled = compile(|arguments: &[LazyTensor]| Ok(vec![forward(&arguments[0])?]));
        self.time(&case("compile"), runs, || {
            compiled.call(vec![x.clone()]).map_err(|failed| engine(failed.into()))
        })
    }

    /// `x W + (x A B) * 2`, the mean squared error against y, and `AdamW` on A and B.
    fn step(&mut self) -> Result<()> {
        let (batch, size, rank) = (64, 512, 8);
        let case = Case {
            name: "lora step 64x512 r8",
            dtype: Dtype::F32,
            mode: "compile",
            work: work::lora_step(batch, size, size, rank),
        };
        if !self.is_wanted(case.name) {
            return Ok(());
        }
        let mut random = self.inputs();
        let mut normal =
            |rows, columns, deviation| random.normal(&[rows, columns], deviation, DType::F32).map_err(engine);
        let (x, w, y) = (
            normal(batch, size, 1.0)?,
            normal(size, size, 1.0)?,
            normal(batch, size, 1.0)?,
        );
        let a = normal(size, rank, 0.1)?;
        let b = LazyTensor::zeros(&[rank, size], DType::F32, &self.bench.device).map_err(engine)?;
        let loss = move |parameters: &[LazyTensor], batch: &[LazyTensor]| {
            let low_rank = batch[0].lora_fused(&parameters[0], &parameters[1], 2.0)?;
            let difference = batch[0].matmul(&w)?.add(&low_rank)?.sub(&batch[1])?;
            difference.mul(&difference)?.sum_all()
        };
        let mut stepper = Stepper::new(vec![a, b], OPTIMIZER, loss).map_err(engine)?;
        self.time(&case, 200, || {
            let batch_of_one = [vec![x.clone(), y.clone()]];
            let outcome = stepper
                .step(&batch_of_one, batch * size, LEARNING_RATE, 0.0)
                .map_err(engine)?;
            if outcome.applied {
                Ok(outcome.loss)
            } else {
                Err(Failure::Run(format!("the LoRA step's loss is {}", outcome.loss)))
            }
        })
    }

    fn is_wanted(&self, name: &str) -> bool {
        name.contains(&self.arguments.case)
    }

    fn time<R>(&mut self, case: &Case<'_>, runs: usize, call: impl FnMut() -> Result<R>) -> Result<()> {
        let timing = measure(self.arguments.warmup, self.arguments.steps.unwrap_or(runs), call)?;
        let Case {
            name,
            dtype,
            mode,
            work,
        } = case;
        let row = Row::new()
            .with("case", *name)
            .with("dtype", dtype.name())
            .with("mode", *mode);
        let row = timed(row, &timing);
        let what = format!("{name} ({}, {mode})", dtype.name());
        let least = self.bench.judge.least_seconds(&what, work, timing.least())?;
        let row = row.limit("limit", least * 1e6, least / timing.latency);
        self.bench.output.row(row, &self.bench.judge);
        self.rows += 1;
        Ok(())
    }
}

/// Adds the times of calls.
pub fn timed(row: Row, timing: &Timing) -> Row {
    row.figure("latency_us", timing.latency * 1e6, 2)
        .figure("best_us", timing.best * 1e6, 2)
        .figure("throughput_us", timing.throughput * 1e6, 2)
}
