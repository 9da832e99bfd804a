//! The cost of an operation according to its formula: floating-point operations, from shapes alone. A function such as
//! `exp` counts one, a multiply-add two. Recomputation inside a kernel (scores in a backward pass) does not count, so
//! that the figure is comparable between kernels. Nothing here runs or measures anything.

use super::node::Meta;
use super::operation::{AttentionOptions, Operation};
use crate::fused::matmul_sum::SumTerm;

/// Floating-point operations of one node. `inputs` are those of the node, also for a `Vjp`.
#[must_use]
pub fn flops(operation: &Operation, inputs: &[&Meta], outputs: &[Meta]) -> f64 {
    use Operation as O;
    let size = |meta: Option<&Meta>| meta.map_or(0.0, |meta| meta.shape.elem_count() as f64);
    let (read, made) = (size(inputs.first().copied()), size(outputs.first()));
    match operation {
        O::Input
        | O::Constant { .. }
        | O::Iota { .. }
        | O::Cast { .. }
        | O::Where
        | O::Reshape { .. }
        | O::Permute { .. }
        | O::Broadcast { .. }
        | O::Slice { .. }
        | O::Concat { .. }
        | O::Pad { .. }
        | O::IndexSelect { .. }
        | O::Gather { .. }
        | O::DynamicSlice { .. }
        | O::SliceUpdate { .. }
        | O::StopGradient => 0.0,
        O::Random { .. }
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
        | O::Floor
        | O::MulScalar { .. }
        | O::AddScalar { .. }
        | O::Add
        | O::Sub
        | O::Mul
        | O::Div
        | O::Pow
        | O::Maximum
        | O::Minimum
        | O::Equal
        | O::Less
        | O::LessEqual => made,
        O::Sigmoid => 4.0 * made,
        O::Sum { .. } | O::Max { .. } | O::ArgMax { .. } => read,
        O::IndexAdd { .. } | O::ScatterAdd { .. } => size(inputs.get(2).copied()),
        O::Matmul | O::DequantMatmul { .. } => 2.0 * made * last_dim(inputs.first().copied()),
        // The maximum, the difference, exp, the sum, the quotient.
        O::Softmax { .. } => 5.0 * read,
        // Square, sum, the two factors.
        O::RMSNorm { .. } => 4.0 * read,
        // Sum, difference, square, sum, factor, weight, bias.
        O::LayerNorm { .. } => 7.0 * read,
        // Two products and a sum for each element.
        O::Rope { .. } => 3.0 * read,
        // A sigmoid and two products.
        O::SwiGLU => 6.0 * made,
        O::GELU { .. } => 8.0 * made,
        O::LoRA { .. } => lora(inputs, 0b111, true),
        O::Attention(options) => 4.0 * attended(inputs, options),
        O::CrossEntropy(_) => cross_entropy(inputs),
        // The factor, two moments of three operations each, corrections, root, quotient, decay and update.
        O::AdamW(_) => 15.0 * made,
        O::Elementwise(expression) => {
            let terms = expression.terms.iter().enumerate();
            terms
                .map(|(index, term)| {
                    // Only a reduction counts its operand: the preceding term.
                    let read: &[&Meta] = match index {
                        0 => &[],
                        _ => &[&expression.terms[index - 1].meta],
                    };
                    flops(&term.operation, read, std::slice::from_ref(&term.meta))
                })
                .sum()
        }
        O::MatmulSum { terms, scale, .. } => {
            let scaled = if scale.to_bits() == 1f32.to_bits() { 0.0 } else { made };
            scaled + sum(terms, inputs, made)
        }
        O::SharedMatmul { scale, .. } => {
            let scaled = f64::from(u8::from(scale.to_bits() != 1f32.to_bits()));
            let made: f64 = outputs.iter().map(|meta| meta.shape.elem_count() as f64).sum();
            made * (scaled + 2.0 * last_dim(inputs.first().copied()))
        }
        O::Vjp { of, wanted } => vjp(of, *wanted, inputs),
        O::ValueAndVjp { of, wanted } => flops(of, inputs, outputs) + vjp(of, *wanted, inputs),
    }
}

/// The products, and one addition for each term after the first.
fn sum(terms: &[SumTerm], inputs: &[&Meta], made: f64) -> f64 {
    let mut at = 0;
    let mut total = made * terms.len().saturating_sub(1) as f64;
    for term in terms {
        if *term == SumTerm::Product {
            total += 2.0 * made * last_dim(inputs.get(at).copied());
        }
        at += term.inputs();
    }
    total
}

/// Products of a gradient are counted one by one; otherwise a backward pass is taken to cost two forward passes.
fn vjp(of: &Operation, wanted: u32, inputs: &[&Meta]) -> f64 {
    match of {
        Operation::LoRA { .. } => lora(inputs, wanted, false),
        Operation::CrossEntropy(_) => f64::from((wanted & 0b11).count_ones()) * cross_entropy(inputs),
        other => 2.0 * flops(other, inputs, &inputs.first().map_or(Vec::new(), |&x| vec![x.clone()])),
    }
}

/// `(x a) b`, or the gradients of x, a and b whose bits are set.
fn lora(inputs: &[&Meta], wanted: u32, forward: bool) -> f64 {
    let [x, a, b, ..] = inputs else { return 0.0 };
    let columns = last_dim(Some(x));
    let rows = x.shape.elem_count() as f64 / columns.max(1.0);
    let narrow = 2.0 * rows * a.shape.elem_count() as f64;
    let wide = 2.0 * rows * b.shape.elem_count() as f64;
    if forward {
        return narrow + wide;
    }
    // The gradients of x and a share `dy b^T`.
    let [of_x, of_a, of_b] = [1, 2, 4].map(|bit| f64::from(u32::from(wanted & bit != 0)));
    (of_x + of_a) * narrow + of_x.max(of_a) * wide + of_b * wide
}

/// `hidden weight^T`.
fn cross_entropy(inputs: &[&Meta]) -> f64 {
    let [hidden, weight, ..] = inputs else { return 0.0 };
    2.0 * hidden.shape.elem_count() as f64 * weight.shape.dims().first().map_or(0, |&vocab| vocab) as f64
}

/// The number of visible (query, key) pairs over all heads, times the head dimension. With an offset, known only at run
/// time, all keys count.
fn attended(inputs: &[&Meta], options: &AttentionOptions) -> f64 {
    let [q, k, ..] = inputs else { return 0.0 };
    let (&[batch, queries, heads, size], &[_, keys, ..]) = (q.shape.dims(), k.shape.dims()) else {
        return 0.0;
    };
    let seen = |query: usize| {
        let last = if options.causal && !options.offset {
            (query + 1).min(keys)
        } else {
            keys
        };
        options.window.map_or(last, |window| last.min(window))
    };
    let pairs: usize = (0..queries).map(seen).sum();
    (batch * heads * size) as f64 * pairs as f64
}

fn last_dim(meta: Option<&Meta>) -> f64 {
    meta.and_then(|meta| meta.shape.dims().last())
        .map_or(1.0, |&size| size as f64)
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Shape};

    use super::*;

    fn meta(dims: &[usize]) -> Meta {
        Meta {
            shape: Shape::from(dims),
            dtype: DType::F32,
        }
    }

    #[test]
    fn products_count_two_for_each_pair() {
        let cost = |operation: &Operation, inputs: &[&[usize]], output: &[usize]| {
            let inputs: Vec<Meta> = inputs.iter().map(|dims| meta(dims)).collect();
            flops(operation, &inputs.iter().collect::<Vec<_>>(), &[meta(output)])
        };
        assert_eq!(cost(&Operation::Matmul, &[&[7, 2, 3], &[3, 5]], &[7, 2, 5]), 420.0);
        let lora = Operation::LoRA { scale: 1.0 };
        let shapes: [&[usize]; 3] = [&[10, 6], &[6, 2], &[2, 4]];
        assert_eq!(cost(&lora, &shapes, &[10, 4]), 2.0 * 10.0 * (12.0 + 8.0));
        let backward = |wanted| Operation::Vjp {
            of: Box::new(lora.clone()),
            wanted,
        };
        assert_eq!(cost(&backward(0b110), &shapes, &[6, 2]), 20.0 * (12.0 + 8.0 + 8.0));
        let ce = Operation::CrossEntropy(crate::CrossEntropyOptions::default());
        assert_eq!(cost(&ce, &[&[3, 4], &[9, 4], &[3]], &[3]), 2.0 * 3.0 * 4.0 * 9.0);
    }

    #[test]
    fn a_causal_query_sees_what_came_before() {
        let options = AttentionOptions {
            scale: 1.0,
            causal: true,
            window: None,
            offset: false,
            segments: false,
        };
        let (q, k) = (meta(&[1, 4, 2, 8]), meta(&[1, 4, 1, 8]));
        let pairs = |options| attended(&[&q, &k, &k], &options) / 16.0;
        assert_eq!(pairs(options), 10.0);
        assert_eq!(
            pairs(AttentionOptions {
                window: Some(2),
                ..options
            }),
            7.0
        );
        assert_eq!(
            pairs(AttentionOptions {
                causal: false,
                ..options
            }),
            16.0
        );
    }
}
