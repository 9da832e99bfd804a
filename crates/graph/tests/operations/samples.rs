//! A second list of operations, with a sample of each.

use std::sync::Arc;

use candle_core::{DType, Device, Shape};
use metal_candle_graph::fused::elementwise::{Expression, Operand, Term};
use metal_candle_graph::fused::matmul_sum::SumTerm;
use metal_candle_graph::{
    AdamWOptions, Approximate, AttentionOptions, CrossEntropyOptions, Distribution, LazyTensor, Meta, Operation,
    QuantFormat, Result, random,
};

pub const COUNT: usize = 66;

/// A distinct number below `COUNT` for each operation.
pub fn position(operation: &Operation) -> usize {
    use Operation as O;
    match operation {
        O::Input => 0,
        O::Constant { .. } => 1,
        O::Iota { .. } => 2,
        O::Random { .. } => 3,
        O::Neg => 4,
        O::Abs => 5,
        O::Sign => 6,
        O::Exp => 7,
        O::Log => 8,
        O::Sqrt => 9,
        O::Rsqrt => 10,
        O::Recip => 11,
        O::Sin => 12,
        O::Cos => 13,
        O::Tanh => 14,
        O::Erf => 15,
        O::Sigmoid => 16,
        O::Floor => 17,
        O::MulScalar { .. } => 18,
        O::AddScalar { .. } => 19,
        O::Cast { .. } => 20,
        O::Add => 21,
        O::Sub => 22,
        O::Mul => 23,
        O::Div => 24,
        O::Pow => 25,
        O::Maximum => 26,
        O::Minimum => 27,
        O::Equal => 28,
        O::Less => 29,
        O::LessEqual => 30,
        O::Where => 31,
        O::Sum { .. } => 32,
        O::Max { .. } => 33,
        O::ArgMax { .. } => 34,
        O::Reshape { .. } => 35,
        O::Permute { .. } => 36,
        O::Broadcast { .. } => 37,
        O::Slice { .. } => 38,
        O::Concat { .. } => 39,
        O::Pad { .. } => 40,
        O::IndexSelect { .. } => 41,
        O::Gather { .. } => 42,
        O::IndexAdd { .. } => 43,
        O::ScatterAdd { .. } => 44,
        O::DynamicSlice { .. } => 45,
        O::SliceUpdate { .. } => 46,
        O::StopGradient => 47,
        O::Matmul => 48,
        O::Softmax { .. } => 49,
        O::RMSNorm { .. } => 50,
        O::LayerNorm { .. } => 51,
        O::Rope { .. } => 52,
        O::SwiGLU => 53,
        O::GELU { .. } => 54,
        O::LoRA { .. } => 55,
        O::Attention(_) => 56,
        O::CrossEntropy(_) => 57,
        O::AdamW(_) => 58,
        O::Vjp { of, .. } if matches!(**of, O::SwiGLU) => 59,
        O::Vjp { .. } => 60,
        O::Elementwise(_) => 61,
        O::MatmulSum { .. } => 62,
        O::ValueAndVjp { .. } => 63,
        O::DequantMatmul { .. } => 64,
        O::SharedMatmul { .. } => 65,
    }
}

/// An operation, its inputs, its printed text, and whether it is differentiable in its float inputs.
pub struct Sample {
    pub operation: Operation,
    pub inputs: Vec<LazyTensor>,
    pub text: &'static str,
    pub differentiable: bool,
}

/// Numbers between 0.5 and 1.5.
pub fn floats(seed: u32, shape: &[usize]) -> LazyTensor {
    let values: Vec<f64> = random::uniform64([seed, 5], [0, 0])
        .take(shape.iter().product())
        .map(|u| u + 0.5)
        .collect();
    LazyTensor::from_data(&values, shape, &Device::Cpu).unwrap()
}

fn u32s(values: &[u32], shape: &[usize]) -> LazyTensor {
    LazyTensor::from_data(values, shape, &Device::Cpu).unwrap()
}

/// The output of an operation, evaluated, as an input of its vjp.
fn done(output: Result<LazyTensor>) -> LazyTensor {
    LazyTensor::from_tensor(output.and_then(|y| y.eval()).unwrap()).unwrap()
}

#[allow(clippy::too_many_lines)] // a list
pub fn samples() -> Vec<Sample> {
    use Operation as O;
    let x = || floats(1, &[2, 3]);
    let y = || floats(2, &[2, 3]);
    let mask = || LazyTensor::from_data(&[1u8, 0, 1], &[3], &Device::Cpu).unwrap();
    let at = || u32s(&[1], &[1]);
    let quants = || LazyTensor::from_data(&[0x5cu8; 48], &[3, 16], &Device::Cpu).unwrap();
    let shape = |dims: &[usize]| Shape::from(dims);
    let f64s = DType::F64;
    let smooth = |operation, inputs: Vec<LazyTensor>, text| Sample {
        operation,
        inputs,
        text,
        differentiable: true,
    };
    let flat = |operation, inputs: Vec<LazyTensor>, text| Sample {
        operation,
        inputs,
        text,
        differentiable: false,
    };
    let options = AttentionOptions {
        scale: 0.5,
        causal: true,
        window: Some(2),
        offset: true,
        segments: true,
    };
    let heads = |seed, keys| floats(seed, &[1, keys, 2, 4]);
    let adamw = AdamWOptions {
        beta1: 0.9,
        beta2: 0.99,
        eps: 1e-8,
        weight_decay: 0.1,
    };
    let key = || u32s(&[1, 2, 3, 4], &[4]);
    let targets = || LazyTensor::from_data(&[2i64, -100], &[2], &Device::Cpu).unwrap();
    vec![
        flat(
            O::Constant {
                value: 1.5,
                shape: shape(&[2]),
                dtype: f64s,
            },
            vec![],
            "Constant value=1.5",
        ),
        flat(
            O::Iota {
                dim: 0,
                shape: shape(&[3, 2]),
                dtype: f64s,
            },
            vec![],
            "Iota dim=0",
        ),
        flat(
            O::Random {
                distribution: Distribution::Normal,
                shape: shape(&[3]),
                dtype: f64s,
            },
            vec![key()],
            "Random Normal",
        ),
        smooth(O::Neg, vec![x()], "Neg"),
        smooth(O::Abs, vec![x()], "Abs"),
        flat(O::Sign, vec![x()], "Sign"),
        smooth(O::Exp, vec![x()], "Exp"),
        smooth(O::Log, vec![x()], "Log"),
        smooth(O::Sqrt, vec![x()], "Sqrt"),
        smooth(O::Rsqrt, vec![x()], "Rsqrt"),
        smooth(O::Recip, vec![x()], "Recip"),
        smooth(O::Sin, vec![x()], "Sin"),
        smooth(O::Cos, vec![x()], "Cos"),
        smooth(O::Tanh, vec![x()], "Tanh"),
        smooth(O::Erf, vec![x()], "Erf"),
        smooth(O::Sigmoid, vec![x()], "Sigmoid"),
        flat(O::Floor, vec![x()], "Floor"),
        smooth(O::MulScalar { value: 2.5 }, vec![x()], "MulScalar value=2.5"),
        smooth(O::AddScalar { value: -1.0 }, vec![x()], "AddScalar value=-1"),
        smooth(O::Cast { dtype: DType::F32 }, vec![x()], "Cast to=f32"),
        smooth(O::Add, vec![x(), y()], "Add"),
        smooth(O::Sub, vec![x(), y()], "Sub"),
        smooth(O::Mul, vec![x(), y()], "Mul"),
        smooth(O::Div, vec![x(), y()], "Div"),
        smooth(O::Pow, vec![x(), y()], "Pow"),
        smooth(O::Maximum, vec![x(), y()], "Maximum"),
        smooth(O::Minimum, vec![x(), y()], "Minimum"),
        flat(O::Equal, vec![x(), x()], "Equal"),
        flat(O::Less, vec![x(), y()], "Less"),
        flat(O::LessEqual, vec![x(), y()], "LessEqual"),
        smooth(O::Where, vec![mask(), x(), y()], "Where"),
        smooth(O::Sum { dims: vec![0] }, vec![x()], "Sum dims=[0]"),
        smooth(O::Max { dims: vec![0, 1] }, vec![x()], "Max dims=[0, 1]"),
        flat(O::ArgMax { dim: 1 }, vec![x()], "ArgMax dim=1"),
        smooth(O::Reshape { shape: shape(&[3, 2]) }, vec![x()], "Reshape"),
        smooth(O::Permute { dims: vec![1, 0] }, vec![x()], "Permute dims=[1, 0]"),
        smooth(
            O::Broadcast {
                shape: shape(&[4, 2, 3]),
            },
            vec![x()],
            "Broadcast",
        ),
        smooth(
            O::Slice {
                start: vec![0, 1],
                end: vec![2, 3],
            },
            vec![x()],
            "Slice start=[0, 1] end=[2, 3]",
        ),
        smooth(O::Concat { dim: 1 }, vec![x(), y(), x()], "Concat dim=1"),
        smooth(
            O::Pad {
                before: vec![0, 1],
                after: vec![2, 0],
            },
            vec![x()],
            "Pad before=[0, 1] after=[2, 0]",
        ),
        smooth(
            O::IndexSelect { dim: 1 },
            vec![x(), u32s(&[2, 2], &[2])],
            "IndexSelect dim=1",
        ),
        smooth(O::Gather { dim: 1 }, vec![x(), u32s(&[2, 0], &[2, 1])], "Gather dim=1"),
        smooth(
            O::IndexAdd { dim: 0 },
            vec![x(), u32s(&[1, 1], &[2]), y()],
            "IndexAdd dim=0",
        ),
        smooth(
            O::ScatterAdd { dim: 0 },
            vec![x(), u32s(&[1, 0, 1], &[1, 3]), floats(3, &[1, 3])],
            "ScatterAdd dim=0",
        ),
        smooth(
            O::DynamicSlice { dim: 1, length: 2 },
            vec![x(), at()],
            "DynamicSlice dim=1 length=2",
        ),
        smooth(
            O::SliceUpdate { dim: 1 },
            vec![x(), floats(3, &[2, 1]), at()],
            "SliceUpdate dim=1",
        ),
        flat(O::StopGradient, vec![x()], "StopGradient"),
        smooth(O::Matmul, vec![x(), floats(3, &[3, 2])], "Matmul"),
        smooth(O::Softmax { dim: 0 }, vec![x()], "Softmax dim=0"),
        smooth(O::RMSNorm { eps: 0.5 }, vec![x(), floats(3, &[3])], "RMSNorm eps=0.5"),
        smooth(
            O::LayerNorm { eps: 0.5 },
            vec![x(), floats(3, &[3]), floats(4, &[3])],
            "LayerNorm eps=0.5",
        ),
        smooth(
            O::Rope { interleaved: true },
            vec![heads(1, 3), floats(3, &[1, 3, 1]), floats(4, &[1, 3, 1])],
            "Rope interleaved=true",
        ),
        smooth(O::SwiGLU, vec![x(), y()], "SwiGLU"),
        smooth(
            O::GELU {
                approximate: Approximate::Tanh,
            },
            vec![x()],
            "GELU tanh",
        ),
        smooth(
            O::LoRA { scale: 2.0 },
            vec![x(), floats(3, &[3, 2]), floats(4, &[2, 5])],
            "LoRA scale=2",
        ),
        smooth(
            O::DequantMatmul {
                format: QuantFormat::Q4_0,
                transposed: true,
            },
            vec![
                x(),
                quants(),
                LazyTensor::full(0.5, &[3, 1], DType::F16, &Device::Cpu).unwrap(),
            ],
            "DequantMatmul q4_0 transposed",
        ),
        smooth(
            O::Attention(options),
            vec![
                heads(1, 2),
                heads(2, 4),
                heads(3, 4),
                at(),
                u32s(&[0, 1], &[1, 2]),
                u32s(&[0, 0, 1, 1], &[1, 4]),
            ],
            "Attention scale=0.5 causal=true window=2 offset segments",
        ),
        smooth(
            O::CrossEntropy(CrossEntropyOptions {
                ignore_index: -100,
                label_smoothing: 0.25,
            }),
            vec![x(), floats(3, &[5, 3]), targets()],
            "CrossEntropy ignore=-100 smoothing=0.25",
        ),
        smooth(
            O::AdamW(adamw),
            vec![x(), y(), floats(3, &[2, 3]), floats(4, &[2, 3]), floats(5, &[4])],
            "AdamW beta1=0.9 beta2=0.99 eps=0.00000001 weight_decay=0.1",
        ),
        smooth(
            O::Elementwise(Arc::new(expression())),
            vec![x(), floats(3, &[3])],
            "Elementwise [t0 = Mul #0 #1; t1 = Tanh t0; t2 = Add t1 #0]",
        ),
        smooth(
            O::MatmulSum {
                terms: vec![SumTerm::Product, SumTerm::Addend, SumTerm::Product],
                scale: 0.5,
                dtype: f64s,
            },
            vec![x(), floats(3, &[3, 4]), floats(4, &[4]), y(), floats(5, &[3, 4])],
            "MatmulSum terms=[Product, Addend, Product] scale=0.5",
        ),
        smooth(
            O::SharedMatmul {
                count: 2,
                scale: 0.5,
                dtype: f64s,
            },
            vec![x(), floats(3, &[3, 4]), floats(4, &[3, 1])],
            "SharedMatmul count=2 scale=0.5",
        ),
        smooth(
            O::ValueAndVjp {
                of: Box::new(O::CrossEntropy(CrossEntropyOptions::default())),
                wanted: 0b11,
            },
            vec![x(), floats(3, &[5, 3]), targets(), floats(4, &[2]), floats(5, &[2])],
            "ValueAndVjp of=(CrossEntropy ignore=-100 smoothing=0) wanted=0b11",
        ),
        smooth(
            O::Vjp {
                of: Box::new(O::SwiGLU),
                wanted: 0b11,
            },
            vec![x(), y(), done(x().swiglu(&y())), floats(4, &[2, 3])],
            "Vjp of=(SwiGLU) wanted=0b11",
        ),
        smooth(
            O::Vjp {
                of: Box::new(O::Softmax { dim: 1 }),
                wanted: 1,
            },
            vec![x(), done(x().softmax(1)), floats(4, &[2, 3])],
            "Vjp of=(Softmax dim=1) wanted=0b1",
        ),
    ]
}

/// `tanh(x * y) + x`, y broadcast.
fn expression() -> Expression {
    let meta = |dims: &[usize]| Meta::new(dims, DType::F64);
    let term = |operation, operands: &[Operand]| Term {
        operation,
        operands: operands.iter().copied().collect(),
        meta: meta(&[2, 3]),
    };
    Expression {
        inputs: vec![meta(&[2, 3]), meta(&[3])],
        terms: vec![
            term(Operation::Mul, &[Operand::Input(0), Operand::Input(1)]),
            term(Operation::Tanh, &[Operand::Term(0)]),
            term(Operation::Add, &[Operand::Term(1), Operand::Input(0)]),
        ],
    }
}

/// Records a sample; sources have no inputs and their own constructors.
pub fn record(sample: &Sample) -> Vec<LazyTensor> {
    let device = &Device::Cpu;
    match &sample.operation {
        Operation::Constant { value, shape, dtype } => {
            vec![LazyTensor::full(*value, shape.dims(), *dtype, device).unwrap()]
        }
        Operation::Iota { dim, shape, dtype } => vec![LazyTensor::iota(*dim, shape.dims(), *dtype, device).unwrap()],
        other => LazyTensor::record(other.clone(), &sample.inputs.iter().collect::<Vec<_>>())
            .unwrap_or_else(|e| panic!("{}: {e}", sample.text)),
    }
}
