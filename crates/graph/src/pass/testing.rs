//! Helpers of the passes' tests: the text of a recorded graph after a pass. Nothing is run.

use candle_core::DType;

use super::dce;
use crate::graph::verify::verify;
use crate::graph::{Graph, Operation, numbered};
use crate::lazy_tensor::LazyTensor;

pub(super) fn input(shape: &[usize]) -> LazyTensor {
    of(shape, DType::F32)
}

pub(super) fn of(shape: &[usize], dtype: DType) -> LazyTensor {
    LazyTensor::hollow(shape, dtype)
}

/// The operations of the outputs' graph after a pass, and the outputs, as text. Inputs are not listed.
pub(super) fn operations(outputs: &[LazyTensor], pass: fn(Graph) -> Graph) -> String {
    let graph = dce::run(pass(numbered::flatten(outputs).unwrap().graph));
    verify(&graph, "the tested pass").unwrap();
    let inputs = graph.nodes.iter().map(|node| node.operation == Operation::Input);
    let text = graph.to_string();
    let lines = text.lines().zip(inputs.chain([false]));
    let mut kept: Vec<&str> = lines.filter(|(_, is_input)| !is_input).map(|(line, _)| line).collect();
    // The text ends with a newline.
    kept.push("");
    kept.join("\n")
}
