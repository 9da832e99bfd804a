//! The operations with their inputs for a few sizes, and the expected behaviour if one of them is zero.

use std::sync::Arc;

use candle_core::{DType, Device, Shape};
use metal_candle_graph::fused::elementwise::{Expression, Operand, Term};
use metal_candle_graph::fused::matmul_sum::SumTerm;
use metal_candle_graph::{
    AdamWOptions, Approximate, AttentionOptions, CrossEntropyOptions, Distribution, LazyTensor, Meta, Operation,
    QuantFormat, Result,
};

use super::plain;

/// The kind of an input's elements.
#[derive(Debug, Clone, Copy)]
pub enum Content {
    /// f64 between 0.5 and 1.5.
    Numbers,
    /// u32, zeros.
    Indices,
    /// i64, zeros.
    Targets,
    /// u8, ones.
    Bytes,
    /// f16, halves.
    Scales,
}

pub struct Input(pub Content, pub Vec<usize>);

type Make = Box<dyn Fn(&[LazyTensor], &[usize]) -> Result<Vec<LazyTensor>>>;
pub type Tells = fn(&[usize]) -> bool;

pub struct Case {
    pub name: &'static str,
    pub sizes: &'static [usize],
    pub inputs: fn(&[usize]) -> Vec<Input>,
    pub make: Make,
    /// Whether all number inputs are differentiable.
    pub differentiable: bool,
    /// Whether recording it is an error.
    pub refused: Tells,
    /// Whether running it is an error, because of an index into an empty dimension.
    pub fails: Tells,
}

pub fn numbers(dims: &[usize]) -> Input {
    Input(Content::Numbers, dims.to_vec())
}

fn indices(dims: &[usize]) -> Input {
    Input(Content::Indices, dims.to_vec())
}

fn case(
    name: &'static str,
    sizes: &'static [usize],
    inputs: fn(&[usize]) -> Vec<Input>,
    make: impl Fn(&[LazyTensor], &[usize]) -> Result<Vec<LazyTensor>> + 'static,
) -> Case {
    Case {
        name,
        sizes,
        inputs,
        make: Box::new(make),
        differentiable: true,
        refused: |_| false,
        fails: |_| false,
    }
}

/// A case with one output.
pub fn one(
    name: &'static str,
    sizes: &'static [usize],
    inputs: fn(&[usize]) -> Vec<Input>,
    make: impl Fn(&[LazyTensor], &[usize]) -> Result<LazyTensor> + 'static,
) -> Case {
    case(name, sizes, inputs, move |x, sizes| make(x, sizes).map(|y| vec![y]))
}

impl Case {
    pub fn flat(self) -> Self {
        Self {
            differentiable: false,
            ..self
        }
    }

    pub fn refused(self, refused: Tells) -> Self {
        Self { refused, ..self }
    }

    fn fails(self, fails: Tells) -> Self {
        Self { fails, ..self }
    }
}

fn record(operation: Operation, inputs: &[LazyTensor]) -> Result<Vec<LazyTensor>> {
    LazyTensor::record(operation, &inputs.iter().collect::<Vec<_>>())
}

pub fn cases() -> Vec<Case> {
    [
        plain::elementwise(),
        plain::reductions(),
        movement(),
        indexing(),
        products(),
        layers(),
        made_by_passes(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn movement() -> Vec<Case> {
    fn x(sizes: &[usize]) -> Vec<Input> {
        vec![numbers(sizes)]
    }
    fn none(_: &[usize]) -> Vec<Input> {
        Vec::new()
    }
    vec![
        one("reshape", &[2, 3, 4], x, |x, s| x[0].reshape(&[s[2], s[0] * s[1]])),
        one("permute", &[2, 3, 4], x, |x, _| x[0].permute(&[2, 0, 1])),
        one(
            "broadcast",
            &[2, 3],
            |s| vec![numbers(&[1, s[1]])],
            |x, s| x[0].broadcast_to(&[4, s[0], s[1]]),
        ),
        one("slice", &[4, 3], x, |x, s| x[0].slice(0, s[0] / 2, s[0])),
        one("slice of nothing", &[4, 3], x, |x, s| x[0].slice(0, s[0], s[0])),
        one(
            "concat",
            &[2, 3, 4],
            |s| vec![numbers(&[s[0], s[1]]), numbers(&[s[2], s[1]]), numbers(&[1, s[1]])],
            |x, _| LazyTensor::concat(&[&x[0], &x[1], &x[2]], 0),
        ),
        one("pad", &[2, 3], x, |x, _| x[0].pad(&[1, 0], &[0, 2])),
        one("constant", &[2, 3], none, |_, s| {
            LazyTensor::full(1.5, s, DType::F64, &Device::Cpu)
        })
        .flat(),
        one("iota", &[2, 3], none, |_, s| {
            LazyTensor::iota(1, s, DType::F64, &Device::Cpu)
        })
        .flat(),
        one(
            "random",
            &[2, 3],
            |_| vec![indices(&[4])],
            |x, s| x[0].random(Distribution::Normal, s, DType::F64),
        )
        .flat(),
        one(
            "dropout",
            &[2, 3],
            |s| vec![numbers(s), indices(&[4])],
            |x, _| x[0].dropout(0.5, &x[1]),
        ),
    ]
}

fn indexing() -> Vec<Case> {
    // n rows of d numbers, m of which are selected.
    const SIZES: &[usize] = &[5, 3, 2];
    fn nothing_to_find(s: &[usize]) -> bool {
        s[0] == 0
    }
    fn no_elements(s: &[usize]) -> bool {
        s[0] == 0 && s[1] > 0
    }
    vec![
        one(
            "index_select",
            SIZES,
            |s| vec![numbers(&[s[0], s[1]]), indices(&[s[2]])],
            |x, _| x[0].index_select(0, &x[1]),
        )
        .fails(nothing_to_find),
        one(
            "gather",
            SIZES,
            |s| vec![numbers(&[s[0], s[1]]), indices(&[s[2], s[1]])],
            |x, _| x[0].gather(0, &x[1]),
        )
        .fails(no_elements),
        one(
            "index_add",
            SIZES,
            |s| vec![numbers(&[s[0], s[1]]), indices(&[s[2]]), numbers(&[s[2], s[1]])],
            |x, _| x[0].index_add(0, &x[1], &x[2]),
        )
        .fails(nothing_to_find),
        one(
            "scatter_add",
            SIZES,
            |s| vec![numbers(&[s[0], s[1]]), indices(&[s[2], s[1]]), numbers(&[s[2], s[1]])],
            |x, _| x[0].scatter_add(0, &x[1], &x[2]),
        )
        .fails(no_elements),
        one(
            "dynamic_slice",
            SIZES,
            |s| vec![numbers(&[s[0], s[1]]), indices(&[1])],
            |x, s| x[0].dynamic_slice(0, &x[1], s[2]),
        )
        .refused(nothing_to_find),
        one(
            "slice_update",
            SIZES,
            |s| vec![numbers(&[s[0], s[1]]), numbers(&[s[2], s[1]]), indices(&[1])],
            |x, _| x[0].slice_update(0, &x[1], &x[2]),
        )
        .refused(nothing_to_find),
    ]
}

fn products() -> Vec<Case> {
    vec![
        one(
            "matmul",
            &[2, 3, 4],
            |s| vec![numbers(&[s[0], s[1]]), numbers(&[s[1], s[2]])],
            |x, _| x[0].matmul(&x[1]),
        ),
        one(
            "matmul of a batch",
            &[2, 3, 4, 5],
            |s| vec![numbers(&[s[0], s[1], s[2]]), numbers(&[s[2], s[3]])],
            |x, _| x[0].matmul(&x[1]),
        ),
        one(
            "matmul of two batches",
            &[2, 3, 4, 5],
            |s| vec![numbers(&[s[0], s[1], s[2]]), numbers(&[s[0], s[3], s[2]])],
            |x, _| x[0].matmul_t(&x[1]),
        ),
        one(
            "a linear layer with a low-rank term",
            &[2, 3, 4, 5],
            |s| {
                vec![
                    numbers(&[s[0], s[1]]),
                    numbers(&[s[1], s[2]]),
                    numbers(&[s[1], s[3]]),
                    numbers(&[s[3], s[2]]),
                ]
            },
            |x, _| x[0].matmul(&x[1])?.add(&x[0].lora_fused(&x[2], &x[3], 0.5)?),
        ),
        one(
            "lora",
            &[2, 3, 4, 5],
            |s| vec![numbers(&[s[0], s[1]]), numbers(&[s[1], s[2]]), numbers(&[s[2], s[3]])],
            |x, _| x[0].lora_fused(&x[1], &x[2], 0.5),
        ),
        one(
            "dequant_matmul",
            &[2, 1, 3],
            |s| {
                vec![
                    numbers(&[s[0], 32 * s[1]]),
                    Input(Content::Bytes, vec![s[2], 32 * s[1]]),
                    Input(Content::Scales, vec![s[2], s[1]]),
                ]
            },
            |x, _| x[0].dequant_matmul(&x[1], &x[2], QuantFormat::Q8_0),
        ),
    ]
}

fn attention(causal: bool) -> Case {
    // batch, queries, keys, heads, channels
    let inputs = |s: &[usize]| {
        let heads = |seq| numbers(&[s[0], seq, s[3], s[4]]);
        vec![heads(s[1]), heads(s[2]), heads(s[2])]
    };
    let options = AttentionOptions {
        scale: 0.5,
        causal,
        window: None,
        offset: false,
        segments: false,
    };
    case("attention", &[2, 3, 3, 2, 4], inputs, move |x, _| {
        record(Operation::Attention(options), &x[..3])
    })
    .refused(|s| s[3] == 0)
}

fn layers() -> Vec<Case> {
    fn x(sizes: &[usize]) -> Vec<Input> {
        vec![numbers(sizes)]
    }
    let adamw = AdamWOptions {
        beta1: 0.9,
        beta2: 0.99,
        eps: 1e-8,
        weight_decay: 0.1,
    };
    vec![
        one("softmax of rows", &[2, 3], x, |x, _| x[0].softmax(1)),
        one("softmax of columns", &[2, 3], x, |x, _| x[0].softmax(0)),
        one("gelu", &[2, 3], x, |x, _| x[0].gelu(Approximate::None)),
        one("gelu by tanh", &[2, 3], x, |x, _| x[0].gelu(Approximate::Tanh)),
        one(
            "swiglu",
            &[2, 3],
            |s| vec![numbers(s), numbers(s)],
            |x, _| x[0].swiglu(&x[1]),
        ),
        one(
            "rms_norm",
            &[2, 3],
            |s| vec![numbers(s), numbers(&s[1..])],
            |x, _| x[0].rms_norm_weighted(&x[1], 0.5),
        ),
        one(
            "layer_norm",
            &[2, 3],
            |s| vec![numbers(s), numbers(&s[1..]), numbers(&s[1..])],
            |x, _| x[0].layer_norm(&x[1], &x[2], 0.5),
        ),
        one(
            "rope",
            &[2, 3, 4, 2],
            |s| {
                vec![
                    numbers(&[s[0], s[1], s[2], 2 * s[3]]),
                    numbers(&[1, s[1], s[3]]),
                    numbers(&[1, s[1], s[3]]),
                ]
            },
            |x, _| x[0].rope(&x[1], &x[2], false),
        ),
        one(
            "rope of neighbours",
            &[2, 3, 4, 2],
            |s| {
                vec![
                    numbers(&[s[0], s[1], s[2], 2 * s[3]]),
                    numbers(&[1, s[1], s[3]]),
                    numbers(&[1, s[1], s[3]]),
                ]
            },
            |x, _| x[0].rope(&x[1], &x[2], true),
        ),
        attention(true),
        attention(false),
        // rows, width, classes
        case(
            "cross_entropy",
            &[3, 4, 5],
            |s| {
                vec![
                    numbers(&[s[0], s[1]]),
                    numbers(&[s[2], s[1]]),
                    Input(Content::Targets, vec![s[0]]),
                ]
            },
            |x, _| {
                let label_smoothing = 0.1;
                let ignore_index = -100;
                let options = CrossEntropyOptions {
                    ignore_index,
                    label_smoothing,
                };
                record(Operation::CrossEntropy(options), x)
            },
        )
        .refused(|s| s[2] == 0),
        case(
            "adamw",
            &[2, 3],
            |s| vec![numbers(s), numbers(s), numbers(s), numbers(s), numbers(&[4])],
            move |x, _| record(Operation::AdamW(adamw), x),
        ),
    ]
}

/// Operations that only passes create, never users.
fn made_by_passes() -> Vec<Case> {
    let sum = |s: &[usize]| {
        let (a, b) = (numbers(&[s[0], s[1]]), numbers(&[s[1], s[2]]));
        vec![a, b, numbers(&[s[2]]), numbers(&[s[0], s[3]]), numbers(&[s[3], s[2]])]
    };
    vec![
        case(
            "an expression",
            &[2, 3],
            |s| vec![numbers(s), numbers(&s[1..])],
            |x, s| {
                let meta = |dims: &[usize]| Meta::new(Shape::from(dims), DType::F64);
                let term = |operation, operands: &[Operand]| Term {
                    operation,
                    operands: operands.iter().copied().collect(),
                    meta: meta(s),
                };
                let expression = Expression {
                    inputs: vec![meta(s), meta(&s[1..])],
                    terms: vec![
                        term(Operation::Mul, &[Operand::Input(0), Operand::Input(1)]),
                        term(Operation::Tanh, &[Operand::Term(0)]),
                    ],
                };
                record(Operation::Elementwise(Arc::new(expression)), x)
            },
        ),
        case("a sum of products", &[2, 3, 4, 5], sum, |x, _| {
            let terms = vec![SumTerm::Product, SumTerm::Addend, SumTerm::Product];
            let (scale, dtype) = (1.0, DType::F64);
            record(Operation::MatmulSum { terms, scale, dtype }, x)
        }),
        case(
            "products of one factor",
            &[2, 3, 4, 5],
            |s| vec![numbers(&[s[0], s[1]]), numbers(&[s[1], s[2]]), numbers(&[s[1], s[3]])],
            |x, _| {
                let (count, scale, dtype) = (2, 0.5, DType::F64);
                record(Operation::SharedMatmul { count, scale, dtype }, x)
            },
        ),
        case(
            "a loss with its gradient",
            &[3, 4, 5],
            |s| {
                let (hidden, weight) = (numbers(&[s[0], s[1]]), numbers(&[s[2], s[1]]));
                let targets = Input(Content::Targets, vec![s[0]]);
                vec![hidden, weight, targets, numbers(&[s[0]]), numbers(&[s[0]])]
            },
            |x, _| {
                let of = Box::new(Operation::CrossEntropy(CrossEntropyOptions::default()));
                record(Operation::ValueAndVjp { of, wanted: 0b11 }, x)
            },
        )
        .refused(|s| s[2] == 0),
    ]
}
