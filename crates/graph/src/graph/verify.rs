//! How many inputs an operation takes, of which dtypes, and whether a whole graph is well formed. The first is checked
//! at every recording, the second between the passes of a plan.

use candle_core::DType;
use smallvec::{SmallVec, smallvec};

use super::infer::infer;
use super::ir::Graph;
use super::node::Meta;
use super::operation::Operation;
use crate::error::{Error, Result};

/// The dtypes that an input accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum DTypeClass {
    /// Any supported dtype.
    Any,
    /// f64, f32, f16, bf16.
    Float,
    /// Signed numbers: floats and i64.
    Signed,
    /// u32 or i64.
    Index,
    /// This dtype.
    Exactly(DType),
    /// The dtype of input `i`.
    Like(usize),
}

/// Used at every recording, so it must not allocate.
type DTypeClasses = SmallVec<[DTypeClass; 6]>;

/// The dtypes of the required inputs, then of the optional ones (as one block: all or none, unless `repeat`).
struct InputDTypes {
    required: DTypeClasses,
    optional: DTypeClasses,
    /// The last required class may repeat (concat).
    repeat: bool,
}

impl InputDTypes {
    /// The dtypes that input `index` accepts.
    fn class(&self, index: usize) -> Option<DTypeClass> {
        let optional = || self.optional.get(index - self.required.len()).or(self.optional.last());
        self.required.get(index).or_else(optional).copied()
    }
}

fn takes<const N: usize>(classes: [DTypeClass; N]) -> InputDTypes {
    InputDTypes {
        required: classes.into_iter().collect(),
        optional: DTypeClasses::new(),
        repeat: false,
    }
}

/// Whether the engine supports this dtype.
#[must_use]
pub fn is_supported(dtype: DType) -> bool {
    is_float(dtype) || matches!(dtype, DType::U8 | DType::U32 | DType::I64)
}

/// Whether this is a supported floating-point dtype.
#[must_use]
pub fn is_float(dtype: DType) -> bool {
    matches!(dtype, DType::F64 | DType::F32 | DType::F16 | DType::BF16)
}

/// The table of inputs that each operation takes.
fn signature(operation: &Operation) -> InputDTypes {
    use DTypeClass::{Any, Exactly, Float, Index, Like, Signed};
    use Operation as O;
    match operation {
        O::Input | O::Constant { .. } | O::Iota { .. } => takes([]),
        O::Random { .. } => takes([Exactly(DType::U32)]),
        O::Neg | O::Abs | O::Sign => takes([Signed]),
        O::Exp
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
        | O::Softmax { .. }
        | O::GELU { .. } => takes([Float]),
        O::Cast { .. }
        | O::Sum { .. }
        | O::Max { .. }
        | O::ArgMax { .. }
        | O::Reshape { .. }
        | O::Permute { .. }
        | O::Broadcast { .. }
        | O::Slice { .. }
        | O::Pad { .. }
        | O::StopGradient => takes([Any]),
        O::Add | O::Sub | O::Mul | O::Div | O::Maximum | O::Minimum | O::Equal | O::Less | O::LessEqual => {
            takes([Any, Like(0)])
        }
        O::Pow | O::Matmul | O::SwiGLU => takes([Float, Like(0)]),
        O::Where => takes([Exactly(DType::U8), Any, Like(1)]),
        O::Concat { .. } => InputDTypes {
            required: smallvec![Any],
            optional: smallvec![Like(0)],
            repeat: true,
        },
        O::IndexSelect { .. } | O::Gather { .. } => takes([Any, Index]),
        O::IndexAdd { .. } | O::ScatterAdd { .. } => takes([Any, Index, Like(0)]),
        O::DynamicSlice { .. } => takes([Any, Exactly(DType::U32)]),
        O::SliceUpdate { .. } => takes([Any, Like(0), Exactly(DType::U32)]),
        O::RMSNorm { .. } => InputDTypes {
            required: smallvec![Float],
            optional: smallvec![Like(0)],
            repeat: false,
        },
        O::LayerNorm { .. } => InputDTypes {
            required: smallvec![Float],
            optional: smallvec![Like(0), Like(0)],
            repeat: false,
        },
        O::Rope { .. } | O::LoRA { .. } => takes([Float, Like(0), Like(0)]),
        O::DequantMatmul { .. } => takes([Float, Exactly(DType::U8), Exactly(DType::F16)]),
        O::Attention(options) => {
            let mut required: DTypeClasses = smallvec![Float, Like(0), Like(0)];
            required.extend(options.offset.then_some(Exactly(DType::U32)));
            required.extend(
                options
                    .segments
                    .then_some([Exactly(DType::U32); 2])
                    .into_iter()
                    .flatten(),
            );
            InputDTypes {
                required,
                optional: DTypeClasses::new(),
                repeat: false,
            }
        }
        O::CrossEntropy(_) => takes([Float, Like(0), Exactly(DType::I64)]),
        O::AdamW(_) => takes([Float, Like(0), Like(0), Like(0), Like(0)]),
        O::Elementwise(expression) => InputDTypes {
            required: expression.inputs.iter().map(|meta| Exactly(meta.dtype)).collect(),
            optional: DTypeClasses::new(),
            repeat: false,
        },
        O::MatmulSum { terms, .. } => {
            let count = terms.iter().map(|term| term.inputs()).sum();
            InputDTypes {
                required: (0..count).map(|i| if i == 0 { Float } else { Like(0) }).collect(),
                optional: DTypeClasses::new(),
                repeat: false,
            }
        }
        O::SharedMatmul { count, .. } => InputDTypes {
            required: (0..=*count).map(|i| if i == 0 { Float } else { Like(0) }).collect(),
            optional: DTypeClasses::new(),
            repeat: false,
        },
        O::Vjp { .. } | O::ValueAndVjp { .. } => InputDTypes {
            required: smallvec![Any],
            optional: smallvec![Any],
            repeat: true,
        },
    }
}

/// Checks the number and dtypes of an operation's inputs.
///
/// # Errors
/// [`Error::Arity`] or [`Error::DType`].
pub fn check_inputs(operation: &Operation, inputs: &[&Meta]) -> Result<()> {
    let signature = signature(operation);
    let (least, most) = (
        signature.required.len(),
        signature.required.len() + signature.optional.len(),
    );
    let fits = inputs.len() == least || inputs.len() == most || (signature.repeat && inputs.len() >= least);
    if !fits {
        let plural = |n: usize| {
            if n == 1 {
                "1 input".to_owned()
            } else {
                format!("{n} inputs")
            }
        };
        // If required inputs are missing, the message does not mention the optional ones.
        let expected = match (signature.repeat, least == most || inputs.len() < least) {
            (true, _) => format!("at least {}", plural(least)),
            (false, true) => plural(least),
            (false, false) => format!("{least} or {}", plural(most)),
        };
        return Err(Error::Arity {
            operation: operation.name(),
            expected,
            found: inputs.len(),
        });
    }
    for (index, input) in inputs.iter().enumerate() {
        if let Some(class) = signature.class(index) {
            check_class(operation, index, class, inputs, input.dtype)?;
        }
    }
    Ok(())
}

/// Dtypes that an operation with `count` inputs accepts, for shape inference without dtypes.
pub(super) fn fitting_dtypes(operation: &Operation, count: usize) -> SmallVec<[DType; 6]> {
    if let Operation::Vjp { of, .. } = operation {
        // The differentiated operation's inputs, its outputs, then as many cotangents.
        let mut dtypes = fitting_dtypes(of, count.saturating_sub(2 * of.output_count()));
        dtypes.resize(count, DType::F32);
        return dtypes;
    }
    if let Operation::ValueAndVjp { of, .. } = operation {
        let mut dtypes = fitting_dtypes(of, count.saturating_sub(of.output_count()));
        dtypes.resize(count, DType::F32);
        return dtypes;
    }
    let signature = signature(operation);
    let mut dtypes: SmallVec<[DType; 6]> = SmallVec::new();
    for index in 0..count {
        dtypes.push(match signature.class(index) {
            Some(DTypeClass::Exactly(dtype)) => dtype,
            Some(DTypeClass::Index) => DType::U32,
            Some(DTypeClass::Like(other)) => dtypes[other],
            Some(DTypeClass::Any | DTypeClass::Float | DTypeClass::Signed) | None => DType::F32,
        });
    }
    dtypes
}

fn check_class(operation: &Operation, input: usize, class: DTypeClass, inputs: &[&Meta], found: DType) -> Result<()> {
    let fits = match class {
        DTypeClass::Any => is_supported(found),
        DTypeClass::Float => is_float(found),
        DTypeClass::Signed => is_float(found) || found == DType::I64,
        DTypeClass::Index => matches!(found, DType::U32 | DType::I64),
        DTypeClass::Exactly(dtype) => found == dtype,
        DTypeClass::Like(other) => found == inputs[other].dtype,
    };
    if fits {
        return Ok(());
    }
    let expected = match class {
        DTypeClass::Any => "one of f32, f64, f16, bf16, u8, u32, i64".to_owned(),
        DTypeClass::Float => "a float (f32, f64, f16, bf16)".to_owned(),
        DTypeClass::Signed => "a float or i64".to_owned(),
        DTypeClass::Index => "u32 or i64".to_owned(),
        DTypeClass::Exactly(dtype) => format!("{dtype:?}"),
        DTypeClass::Like(other) => format!("{:?} like input {other}", inputs[other].dtype),
    };
    Err(Error::DType {
        operation: operation.name(),
        input,
        found,
        expected,
    })
}

/// Checks a whole graph: inputs come before their users, and every stored shape and dtype is the inferred one.
///
/// # Errors
/// [`Error::Verify`] naming the node and the rule that it violates.
pub fn verify(graph: &Graph, pass: &'static str) -> Result<()> {
    let fail = |message: String| Err(Error::Verify { pass, message });
    for (index, node) in graph.nodes.iter().enumerate() {
        let mut metas = Vec::with_capacity(node.inputs.len());
        for input in &node.inputs {
            if input.node as usize >= index {
                return fail(format!(
                    "%{index} {} uses %{} before it is computed",
                    node.operation.name(),
                    input.node
                ));
            }
            match graph.nodes[input.node as usize].outputs.get(input.output as usize) {
                Some(meta) => metas.push(meta),
                None => return fail(format!("%{index} uses output {} of %{}", input.output, input.node)),
            }
        }
        if node.operation == Operation::Input {
            continue;
        }
        match infer(&node.operation, &metas) {
            Ok(outputs) if outputs == node.outputs => {}
            Ok(outputs) => {
                let list = |of: &[Meta]| of.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
                let (stored, inferred) = (list(&node.outputs), list(&outputs));
                return fail(format!(
                    "%{index} {} stores {stored}, inferred {inferred}",
                    node.operation.name()
                ));
            }
            Err(error) => return fail(format!("%{index}: {error}")),
        }
    }
    for output in &graph.outputs {
        let exists = graph
            .nodes
            .get(output.node as usize)
            .is_some_and(|n| (output.output as usize) < n.outputs.len());
        if !exists {
            return fail(format!("output %{}.{} does not exist", output.node, output.output));
        }
    }
    Ok(())
}
