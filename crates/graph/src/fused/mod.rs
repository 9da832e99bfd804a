//! The fused operations: one folder each, with the formula and the fallback in primitives. The fallback is the
//! specification, the default gradient, the behaviour where a backend has no kernel, and the oracle of the tests.

pub mod adamw;
pub mod attention;
pub mod cross_entropy;
pub mod dequant_matmul;
pub mod elementwise;
pub mod gelu;
pub mod layer_norm;
pub mod lora;
pub mod matmul_sum;
pub mod rms_norm;
pub mod rope;
pub mod shared_matmul;
pub mod softmax;
pub mod swiglu;

use crate::error::{Error, Result};
use crate::grad;
use crate::graph::Operation;
use crate::graph::infer::accumulator;
use crate::lazy_tensor::LazyTensor;

/// Records a fused operation as the primitives that define it.
///
/// # Errors
/// When `operation` is not fused or the inputs do not fit it.
pub fn fallback(operation: &Operation, inputs: &[LazyTensor]) -> Result<Vec<LazyTensor>> {
    let one = |tensor: Result<LazyTensor>| tensor.map(|t| vec![t]);
    match (operation, inputs) {
        (Operation::Softmax { dim }, [x]) => one(softmax::fallback(x, *dim)),
        (Operation::RMSNorm { eps }, [x, rest @ ..]) => one(rms_norm::fallback(x, rest.first(), *eps)),
        (Operation::LayerNorm { eps }, [x, rest @ ..]) => one(layer_norm::fallback(x, rest, *eps)),
        (Operation::Rope { interleaved }, [x, cos, sin]) => one(rope::fallback(x, cos, sin, *interleaved)),
        (Operation::SwiGLU, [gate, up]) => one(swiglu::fallback(gate, up)),
        (Operation::GELU { approximate }, [x]) => one(gelu::fallback(x, *approximate)),
        (Operation::LoRA { scale }, [x, a, b]) => one(lora::fallback(x, a, b, *scale)),
        (Operation::DequantMatmul { format, transposed }, [x, quants, scales]) => {
            one(dequant_matmul::fallback(x, quants, scales, *format, *transposed))
        }
        (Operation::Attention(options), [q, k, v, rest @ ..]) => attention::fallback(q, k, v, rest, options),
        (Operation::CrossEntropy(options), [hidden, weight, targets]) => {
            cross_entropy::fallback(hidden, weight, targets, options)
        }
        (Operation::AdamW(options), [p, g, m, v, rates]) => adamw::fallback(p, g, m, v, rates, options),
        (Operation::Elementwise(expression), inputs) => one(elementwise::fallback(inputs, expression)),
        (Operation::MatmulSum { terms, scale, dtype }, inputs) => {
            one(matmul_sum::fallback(inputs, terms, *scale, *dtype))
        }
        (Operation::SharedMatmul { scale, dtype, .. }, [x, factors @ ..]) => {
            shared_matmul::fallback(x, factors, *scale, *dtype)
        }
        (Operation::Vjp { of, wanted }, inputs) => vjp_fallback(of, *wanted, inputs),
        (Operation::ValueAndVjp { of, wanted }, inputs) => value_and_vjp(of, *wanted, inputs),
        _ => Err(Error::internal(format!(
            "{} has no fallback for {} inputs",
            operation.name(),
            inputs.len()
        ))),
    }
}

/// Properties of a fused operation.
#[derive(Clone, Copy)]
struct Traits {
    /// Whether some backend has a kernel for its gradient.
    has_vjp_kernel: bool,
    /// Whether its kernel may overwrite inputs with results.
    updates_in_place: bool,
}

/// The table of fused operations; `None` for an operation that is not fused.
fn traits(operation: &Operation) -> Option<Traits> {
    let plain = Traits {
        has_vjp_kernel: false,
        updates_in_place: false,
    };
    let with_vjp = Traits {
        has_vjp_kernel: true,
        ..plain
    };
    match operation {
        Operation::Softmax { .. }
        | Operation::RMSNorm { .. }
        | Operation::LayerNorm { .. }
        | Operation::SwiGLU
        | Operation::GELU { .. }
        | Operation::Attention(_)
        | Operation::CrossEntropy(_) => Some(with_vjp),
        Operation::AdamW(_) => Some(Traits {
            updates_in_place: true,
            ..plain
        }),
        Operation::Rope { .. }
        | Operation::LoRA { .. }
        | Operation::DequantMatmul { .. }
        | Operation::Elementwise(_)
        | Operation::MatmulSum { .. }
        | Operation::SharedMatmul { .. }
        | Operation::ValueAndVjp { .. }
        | Operation::Vjp { .. } => Some(plain),
        Operation::Input
        | Operation::Constant { .. }
        | Operation::Iota { .. }
        | Operation::Random { .. }
        | Operation::Neg
        | Operation::Abs
        | Operation::Sign
        | Operation::Exp
        | Operation::Log
        | Operation::Sqrt
        | Operation::Rsqrt
        | Operation::Recip
        | Operation::Sin
        | Operation::Cos
        | Operation::Tanh
        | Operation::Erf
        | Operation::Sigmoid
        | Operation::Floor
        | Operation::MulScalar { .. }
        | Operation::AddScalar { .. }
        | Operation::Cast { .. }
        | Operation::Add
        | Operation::Sub
        | Operation::Mul
        | Operation::Div
        | Operation::Pow
        | Operation::Maximum
        | Operation::Minimum
        | Operation::Equal
        | Operation::Less
        | Operation::LessEqual
        | Operation::Where
        | Operation::Sum { .. }
        | Operation::Max { .. }
        | Operation::ArgMax { .. }
        | Operation::Reshape { .. }
        | Operation::Permute { .. }
        | Operation::Broadcast { .. }
        | Operation::Slice { .. }
        | Operation::Concat { .. }
        | Operation::Pad { .. }
        | Operation::IndexSelect { .. }
        | Operation::Gather { .. }
        | Operation::IndexAdd { .. }
        | Operation::ScatterAdd { .. }
        | Operation::DynamicSlice { .. }
        | Operation::SliceUpdate { .. }
        | Operation::StopGradient
        | Operation::Matmul => None,
    }
}

/// Whether the gradient is recorded as one [`Operation::Vjp`] (some backend has a kernel for it) instead of the
/// differentiated fallback.
#[must_use]
pub(crate) fn has_vjp_kernel(operation: &Operation) -> bool {
    traits(operation).is_some_and(|traits| traits.has_vjp_kernel)
}

impl Operation {
    /// Whether the kernel of a fused operation may overwrite inputs with results.
    pub(crate) fn fused_updates_in_place(&self) -> bool {
        traits(self).is_some_and(|traits| traits.updates_in_place)
    }
}

/// The value and the vjp as separate operations.
fn value_and_vjp(of: &Operation, wanted: u32, inputs: &[LazyTensor]) -> Result<Vec<LazyTensor>> {
    let split = inputs.len().saturating_sub(of.output_count());
    let (primal, cotangents) = inputs.split_at(split);
    let mut values = LazyTensor::record(of.clone(), &primal.iter().collect::<Vec<_>>())?;
    let all: Vec<&LazyTensor> = primal.iter().chain(&values).chain(cotangents).collect();
    let of = Box::new(of.clone());
    let gradients = LazyTensor::record(Operation::Vjp { of, wanted }, &all)?;
    values.extend(gradients);
    Ok(values)
}

/// Differentiates the fallback of `of`.
fn vjp_fallback(of: &Operation, wanted: u32, inputs: &[LazyTensor]) -> Result<Vec<LazyTensor>> {
    let outputs = of.output_count();
    let (primal, rest) = inputs.split_at(inputs.len() - 2 * outputs);
    let wanted: Vec<bool> = (0..primal.len()).map(|i| wanted >> i & 1 == 1).collect();
    let cotangents: Vec<Option<LazyTensor>> = rest[outputs..].iter().cloned().map(Some).collect();
    let gradients = grad::differentiate_fallback(of, primal, &cotangents, &wanted)?;
    gradients
        .into_iter()
        .zip(primal)
        .zip(wanted)
        .filter(|(_, wanted)| *wanted)
        .map(|((gradient, input), _)| gradient.map_or_else(|| input.zeros_like(), Ok))
        .collect()
}

/// Casts the tensor to its accumulation dtype, in which losses and norms are computed.
pub(crate) fn accumulate(x: &LazyTensor) -> Result<LazyTensor> {
    x.cast(accumulator(x.dtype()))
}
