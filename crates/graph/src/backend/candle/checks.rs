//! Checks of data that an operation depends on (indices, positions, targets), before Candle's kernels see it.

use candle_core::{DType, Tensor};

use crate::error::{Error, Result};
use crate::graph::{GraphNode, Operation};

/// Checks that indices and positions are in range. The outer result is Candle's.
pub(super) fn check_data(node: &GraphNode, inputs: &[&Tensor]) -> candle_core::Result<Result<()>> {
    use Operation as O;
    let size = |dim: &usize| inputs[0].dims()[*dim];
    let name = node.operation.name();
    let position =
        |input: usize| Ok::<_, candle_core::Error>(inputs[input].flatten_all()?.to_vec1::<u32>()?[0] as usize);
    match &node.operation {
        O::IndexSelect { dim } | O::Gather { dim } | O::IndexAdd { dim } | O::ScatterAdd { dim } => {
            bounded(name, inputs[1], size(dim))
        }
        O::DynamicSlice { dim, length } => Ok(check_range(name, position(1)?, *length, size(dim))),
        O::SliceUpdate { dim } => Ok(check_range(name, position(2)?, inputs[1].dims()[*dim], size(dim))),
        // No data makes these fail; fused operations never arrive here.
        O::Input
        | O::Constant { .. }
        | O::Iota { .. }
        | O::Random { .. }
        | O::Neg
        | O::Abs
        | O::Sign
        | O::Exp
        | O::Log
        | O::Sqrt
        | O::Rsqrt
        | O::Recip
        | O::Sin
        | O::Cos
        | O::Tanh
        | O::Erf
        | O::Sigmoid
        | O::Floor
        | O::MulScalar { .. }
        | O::AddScalar { .. }
        | O::Cast { .. }
        | O::Add
        | O::Sub
        | O::Mul
        | O::Div
        | O::Pow
        | O::Maximum
        | O::Minimum
        | O::Equal
        | O::Less
        | O::LessEqual
        | O::Where
        | O::Sum { .. }
        | O::Max { .. }
        | O::ArgMax { .. }
        | O::Reshape { .. }
        | O::Permute { .. }
        | O::Broadcast { .. }
        | O::Slice { .. }
        | O::Concat { .. }
        | O::Pad { .. }
        | O::StopGradient
        | O::Matmul
        | O::Softmax { .. }
        | O::RMSNorm { .. }
        | O::LayerNorm { .. }
        | O::Rope { .. }
        | O::SwiGLU
        | O::GELU { .. }
        | O::LoRA { .. }
        | O::DequantMatmul { .. }
        | O::Attention(_)
        | O::CrossEntropy(_)
        | O::AdamW(_)
        | O::Elementwise(_)
        | O::MatmulSum { .. }
        | O::SharedMatmul { .. }
        | O::ValueAndVjp { .. }
        | O::Vjp { .. } => Ok(Ok(())),
    }
}

fn bounded(operation: &'static str, indices: &Tensor, size: usize) -> candle_core::Result<Result<()>> {
    let indices = indices.to_dtype(DType::I64)?.flatten_all()?.to_vec1::<i64>()?;
    let outside = indices.into_iter().find(|&i| i < 0 || i >= size as i64);
    Ok(outside.map_or(Ok(()), |index| Err(Error::Index { operation, index, size })))
}

/// Checks that `position..position + length` lies in a dimension of `size`.
fn check_range(operation: &'static str, position: usize, length: usize, size: usize) -> Result<()> {
    if position + length <= size {
        return Ok(());
    }
    Err(Error::Range {
        operation,
        start: position,
        end: position + length,
        size,
    })
}
