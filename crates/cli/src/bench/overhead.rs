//! `bench overhead`: the overhead of laziness: recording an operation, and looking up the plan of a recorded graph,
//! compared with Candle's eager call of a tiny operation.

use std::time::Instant;

use candle_core::Tensor;
use metal_candle::graph::{self, LazyTensor, Operation, prepare};
use metal_candle::models::{self, CausalLm, ModelConfig};
use metal_candle::nn::Pass;
use serde_json::json;

use super::args::OverheadArgs;
use super::inputs::{self, Inputs};
use super::row::Row;
use super::timing::median;
use super::{Bench, engine};
use crate::error::{Failure, Result};

/// Number of operations in the chain.
const CHAIN: usize = 1000;
/// Number of elements of the chain's tensors.
const WIDTH: usize = 16;
/// Number of tokens for the blocks.
const LENGTH: usize = 16;
/// Maximum time for recording an operation, in microseconds.
const RECORD_LIMIT: f64 = 0.15;
/// Maximum lookup time per operation of a plan, in microseconds.
const LOOKUP_LIMIT: f64 = 0.05;

/// Measures a chain and the blocks of a model.
pub fn run(arguments: &OverheadArgs) -> Result<()> {
    let (name, config) = match &arguments.config {
        Some(path) => inputs::model(path)?,
        None => ("small blocks".to_owned(), small()?),
    };
    let mut bench = Bench::new(&arguments.common)?;
    let (dtype, seed) = (arguments.dtype.dtype(), arguments.common.seed);
    let mut random = Inputs::new(seed, &bench.device);
    let x = random.normal(&[WIDTH], 1.0, dtype).map_err(engine)?;
    let chain = || (0..CHAIN).try_fold(x.clone(), |y, _| y.add(&x));
    let candle = eager(arguments, &x.eval().map_err(engine)?)?;
    time(&mut bench, arguments, &format!("chain of {CHAIN}"), candle, &chain)?;

    let model = models::random(&config, dtype, seed, &bench.device).map_err(Failure::checking)?;
    let tokens = random.tokens(LENGTH, config.vocab_size);
    let tokens = LazyTensor::from_data(&tokens, &[1, LENGTH], &bench.device).map_err(engine)?;
    let blocks = || hidden(&*model, &tokens);
    time(&mut bench, arguments, &name, candle, &blocks)
}

fn hidden(model: &dyn CausalLm, tokens: &LazyTensor) -> graph::Result<LazyTensor> {
    model.hidden(tokens, &mut Pass::from_start(LENGTH, tokens.device())?)
}

/// Four blocks with negligible arithmetic.
fn small() -> Result<ModelConfig> {
    let json = json!({
        "model_type": "llama", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
    });
    let map = json.as_object().cloned().unwrap_or_default();
    ModelConfig::from_json("small blocks".as_ref(), &map).map_err(|error| Failure::Run(error.to_string()))
}

/// Seconds of one eager addition with Candle.
fn eager(arguments: &OverheadArgs, x: &Tensor) -> Result<f64> {
    let chain = || (0..CHAIN).try_fold(x.clone(), |y, _| &y + x);
    let failed = |error: candle_core::Error| Failure::Run(error.to_string());
    sample(arguments, || {
        let start = Instant::now();
        chain().map_err(failed)?;
        Ok(start.elapsed().as_secs_f64() / CHAIN as f64)
    })
}

fn time(
    bench: &mut Bench,
    arguments: &OverheadArgs,
    case: &str,
    candle: f64,
    record: &dyn Fn() -> graph::Result<LazyTensor>,
) -> Result<()> {
    let recorded = record().map_err(engine)?;
    let operations = operations(&recorded).map_err(engine)?;
    let each = |seconds: f64| seconds * 1e6 / operations as f64;
    let recording = sample(arguments, || {
        let start = Instant::now();
        let recorded = record().map_err(engine)?;
        let seconds = start.elapsed().as_secs_f64();
        drop(recorded);
        Ok(seconds)
    })?;
    // The first call makes the plan, in the warm-up or as one sample of many.
    let lookup = sample(arguments, || {
        let recorded = [record().map_err(engine)?];
        let start = Instant::now();
        prepare(&recorded).map_err(engine)?;
        Ok(start.elapsed().as_secs_f64())
    })?;
    let whole = sample(arguments, || {
        let start = Instant::now();
        record().and_then(|recorded| recorded.eval()).map_err(engine)?;
        Ok(start.elapsed().as_secs_f64())
    })?;
    let (recording, lookup, whole) = (each(recording), each(lookup), each(whole));
    check(case, [recording, lookup, whole, candle])?;
    let row = Row::new()
        .with("case", case)
        .with("dtype", arguments.dtype.name())
        .with("operations", operations)
        .figure("record_us", recording, 4)
        .limit("record_limit", RECORD_LIMIT, recording / RECORD_LIMIT)
        .figure("lookup_us", lookup, 4)
        .limit("lookup_limit", LOOKUP_LIMIT, lookup / LOOKUP_LIMIT)
        .figure("eval_us", whole, 4)
        .figure("candle_us", candle * 1e6, 4);
    bench.output.row(row, &bench.judge);
    Ok(())
}

/// Checks that all times are positive, and that evaluation takes at least as long as recording.
fn check(case: &str, figures: [f64; 4]) -> Result<()> {
    let [recording, _, whole, _] = figures;
    if figures.iter().all(|figure| *figure > 0.0) && whole >= recording {
        return Ok(());
    }
    Err(Failure::Run(format!(
        "measuring error: {case}: of recording, lookup, evaluation and Candle, at {figures:?} us an operation, one cannot be"
    )))
}

fn sample(arguments: &OverheadArgs, mut run: impl FnMut() -> Result<f64>) -> Result<f64> {
    for _ in 0..arguments.warmup {
        run()?;
    }
    let samples: Result<Vec<f64>> = (0..arguments.steps).map(|_| run()).collect();
    Ok(median(&mut samples?))
}

/// Recorded operations; inputs are not counted.
fn operations(recorded: &LazyTensor) -> graph::Result<usize> {
    let nodes = recorded.graph()?.nodes;
    Ok(nodes.iter().filter(|node| node.operation != Operation::Input).count())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_times_are_measuring_errors() {
        assert!(check("it", [0.1, 0.1, 0.3, 0.2]).is_ok());
        for wrong in [[0.0, 0.1, 0.3, 0.2], [0.4, 0.1, 0.3, 0.2], [f64::NAN, 0.1, 0.3, 0.2]] {
            let failure = check("it", wrong).unwrap_err();
            assert!(
                failure.to_string().starts_with("error: measuring error: it"),
                "{failure}"
            );
        }
    }
}
