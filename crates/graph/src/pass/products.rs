//! Fuses products with the additions that follow them: `x W + (x A) B + x` is one sum whose terms never reach memory.
//! Additions keep their order. A term with another user stays as it is. A cast of the sum to f32, its accumulation
//! type, is fused as well.

use candle_core::DType;
use smallvec::SmallVec;

use crate::fused::matmul_sum::SumTerm;
use crate::graph::verify::is_float;
use crate::graph::{Graph, GraphNode, Operation, ValueRef};

/// Maximum number of addends of a sum: a bias and a residual.
const ADDENDS: usize = 2;
/// Maximum number of products of a sum: a long chain of additions becomes several sums, which shortens the live ranges
/// of their operands.
const PRODUCTS: usize = 8;

/// The terms of the sum that a node computes.
#[derive(Clone)]
struct Sum {
    terms: Vec<SumTerm>,
    inputs: SmallVec<[ValueRef; 3]>,
    scale: f32,
    dtype: DType,
}

impl Sum {
    fn count(&self, kind: SumTerm) -> usize {
        self.terms.iter().filter(|&&term| term == kind).count()
    }

    fn is_plain(&self) -> bool {
        self.scale.to_bits() == 1f32.to_bits()
    }

    /// Whether terms can be added: not after a scale or a cast.
    fn is_open(&self, graph: &Graph) -> bool {
        self.is_plain() && self.dtype == graph.meta(self.inputs[0]).dtype
    }

    /// Whether the sum is a single product.
    fn is_product(&self) -> bool {
        self.terms == [SumTerm::Product] && self.is_plain()
    }
}

pub(super) fn run(mut graph: Graph) -> Graph {
    let alone = alone(&graph);
    let mut sums: Vec<Option<Sum>> = Vec::with_capacity(graph.nodes.len());
    for node in &graph.nodes {
        let sum = sum_of(&graph, node, &sums, &alone);
        sums.push(sum);
    }
    // Nodes that became part of another node's sum have no users left.
    for (node, sum) in graph.nodes.iter_mut().zip(sums) {
        let more = |sum: &Sum| sum.terms.len() > 1 || !sum.is_plain() || !matches!(node.operation, Operation::Matmul);
        if let Some(sum) = sum.filter(more) {
            node.operation = Operation::MatmulSum {
                terms: sum.terms,
                scale: sum.scale,
                dtype: sum.dtype,
            };
            node.inputs = sum.inputs;
        }
    }
    graph
}

/// For each node, whether it has a single user, as exactly one of its inputs.
fn alone(graph: &Graph) -> Vec<bool> {
    let mut uses = vec![0usize; graph.nodes.len()];
    let inputs = graph.nodes.iter().flat_map(|node| &node.inputs);
    inputs.for_each(|input| uses[input.node as usize] += 1);
    graph.outputs.iter().for_each(|output| uses[output.node as usize] += 2);
    uses.into_iter().map(|uses| uses == 1).collect()
}

fn sum_of(graph: &Graph, node: &GraphNode, sums: &[Option<Sum>], alone: &[bool]) -> Option<Sum> {
    let made = &node.outputs[0];
    let used_here = |value: ValueRef| {
        sums[value.node as usize]
            .as_ref()
            .filter(|_| alone[value.node as usize])
    };
    let free = |value: ValueRef| {
        let same = graph.meta(value) == made;
        used_here(value).filter(|sum| same && sum.is_open(graph))
    };
    match (&node.operation, &*node.inputs) {
        (Operation::Matmul, &[a, b]) if graph.meta(b).shape.rank() == 2 && graph.meta(a).shape.rank() >= 2 => {
            Some(Sum {
                terms: vec![SumTerm::Product],
                inputs: SmallVec::from_slice(&[a, b]),
                scale: 1.0,
                dtype: made.dtype,
            })
        }
        (&Operation::MulScalar { value }, &[x]) => free(x).filter(|sum| sum.is_product()).map(|sum| Sum {
            scale: value,
            ..sum.clone()
        }),
        (&Operation::Cast { dtype: DType::F32 }, &[x]) if is_narrow(graph.meta(x).dtype) => {
            let sum = used_here(x).filter(|sum| sum.count(SumTerm::Addend) == 0)?;
            Some(Sum {
                dtype: DType::F32,
                ..sum.clone()
            })
        }
        (Operation::Add, &[x, y]) if is_float(made.dtype) => {
            // Addition is commutative, bit for bit: the longer sum comes first.
            let length = |value| free(value).map_or(0, |sum| sum.terms.len());
            let (first, then) = if length(x) < length(y) { (y, x) } else { (x, y) };
            extended(graph, node, free(first)?, then, free(then))
        }
        _ => None,
    }
}

/// Whether products of this dtype accumulate in a wider one, f32.
fn is_narrow(dtype: DType) -> bool {
    matches!(dtype, DType::BF16 | DType::F16)
}

/// A sum extended by another value.
fn extended(graph: &Graph, node: &GraphNode, sum: &Sum, value: ValueRef, other: Option<&Sum>) -> Option<Sum> {
    let mut sum = sum.clone();
    if let Some(product) = other.filter(|other| other.is_product()) {
        if sum.count(SumTerm::Product) == PRODUCTS {
            return None;
        }
        sum.terms.push(SumTerm::Product);
        sum.inputs.extend_from_slice(&product.inputs);
        return Some(sum);
    }
    let (dims, made) = (graph.meta(value).shape.dims(), node.outputs[0].shape.dims());
    let row = dims.iter().product::<usize>() == made[made.len() - 1] && dims.last() == made.last();
    if sum.count(SumTerm::Addend) == ADDENDS || !(row || dims == made) {
        return None;
    }
    sum.terms.push(SumTerm::Addend);
    sum.inputs.push(value);
    Some(sum)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{input, of, operations};
    use super::*;
    use crate::{LazyTensor, Result};

    /// The optimised outputs of `f(x, w, bias)` as text, with `x (5, 4)`, `w (4, 4)` and `bias (4)`.
    fn left(f: impl Fn(&LazyTensor, &LazyTensor, &LazyTensor) -> Result<Vec<LazyTensor>>) -> String {
        operations(&f(&input(&[5, 4]), &input(&[4, 4]), &input(&[4])).unwrap(), run)
    }

    #[test]
    fn a_linear_layer_with_its_low_rank_term_bias_and_residual_is_one_sum() {
        let expected = "\
%3 = MatmulSum terms=[Product] scale=0.5(%0, %2) : f32[5, 2]
%6 = MatmulSum terms=[Product, Product, Addend, Addend] scale=1(%0, %1, %3, %4, %5, %0) : f32[5, 4]
return %6
";
        let found = left(|x, w, bias| {
            let (a, b) = (input(&[4, 2]), input(&[2, 4]));
            let low_rank = x.matmul(&a)?.mul_scalar(0.5)?.matmul(&b)?;
            Ok(vec![x.matmul(w)?.add(&low_rank)?.add(bias)?.add(x)?])
        });
        assert_eq!(found, expected);
    }

    #[test]
    fn terms_keep_their_order_and_the_longer_sum_goes_first() {
        let order = |f: fn(&LazyTensor, &LazyTensor, &LazyTensor) -> Result<LazyTensor>| {
            let text = left(|x, w, bias| Ok(vec![f(x, w, bias)?]));
            let terms = text
                .split_once("MatmulSum terms=")
                .map(|(_, rest)| rest.split(" scale"));
            terms
                .and_then(|mut parts| parts.next().map(String::from))
                .unwrap_or_default()
        };
        assert_eq!(order(|x, w, bias| bias.add(&x.matmul(w)?)), "[Product, Addend]");
        assert_eq!(
            order(|x, w, bias| x.matmul(w)?.add(bias)?.add(&x.matmul(&w.t()?)?)),
            "[Product, Addend, Product]"
        );
        assert_eq!(
            order(|x, w, bias| x.matmul(&w.t()?)?.add(&x.matmul(w)?.add(bias)?)),
            "[Product, Addend, Product]"
        );
    }

    #[test]
    fn at_most_two_addends_and_not_a_sum_as_a_whole() {
        let text = left(|x, w, bias| Ok(vec![x.matmul(w)?.add(bias)?.add(x)?.add(&x.exp()?)?]));
        assert!(text.contains("MatmulSum terms=[Product, Addend, Addend] "), "{text}");
        assert_eq!(text.matches(" = Add(").count(), 1, "{text}");
        // Of two sums, one becomes an addend of the other.
        let text = left(|x, w, bias| {
            let sum = x.matmul(w)?.add(bias)?;
            Ok(vec![sum.add(&x.matmul(&w.t()?)?.add(x)?)?])
        });
        assert_eq!(text.matches("MatmulSum terms=[Product, Addend]").count(), 1, "{text}");
        assert_eq!(
            text.matches("MatmulSum terms=[Product, Addend, Addend]").count(),
            1,
            "{text}"
        );
    }

    #[test]
    fn a_long_chain_becomes_several_sums() {
        let text = left(|x, w, _| {
            let mut total = x.matmul(w)?;
            for _ in 1..20 {
                total = total.add(&x.matmul(&input(&[4, 4]))?)?;
            }
            Ok(vec![total])
        });
        let products = |line: &str| line.matches("Product").count() + line.matches(" = Matmul(").count();
        assert_eq!(text.lines().map(products).sum::<usize>(), 20, "{text}");
        assert!(text.lines().all(|line| products(line) <= PRODUCTS), "{text}");
        assert_eq!(text.matches("MatmulSum").count(), 3, "{text}");
    }

    #[test]
    fn values_with_other_users_are_kept() {
        let two_users = left(|x, w, bias| {
            let product = x.matmul(w)?;
            Ok(vec![product.add(bias)?, product.exp()?])
        });
        let twice = left(|x, w, _| {
            let product = x.matmul(w)?;
            Ok(vec![product.add(&product)?])
        });
        let an_output = left(|x, w, bias| {
            let product = x.matmul(w)?;
            Ok(vec![product.add(bias)?, product])
        });
        for text in [two_users, twice, an_output] {
            assert!(text.contains(" = Matmul(") && text.contains(" = Add("), "{text}");
            assert!(!text.contains("MatmulSum"), "{text}");
        }
    }

    #[test]
    fn a_scale_goes_with_one_product_and_closes_the_sum() {
        let text = left(|x, w, bias| Ok(vec![x.matmul(w)?.mul_scalar(0.5)?.add(bias)?]));
        assert!(text.contains("MatmulSum terms=[Product] scale=0.5("), "{text}");
        assert!(text.contains(" = Add("), "{text}");
        // The rounded sum is scaled, not its terms.
        let text = left(|x, w, bias| Ok(vec![x.matmul(w)?.add(bias)?.mul_scalar(0.5)?]));
        assert!(text.contains("MatmulSum terms=[Product, Addend] scale=1("), "{text}");
        assert!(text.contains(" = MulScalar value=0.5("), "{text}");
    }

    #[test]
    fn a_cast_to_f32_is_part_of_products_and_closes_the_sum() {
        let bf16 = |dims: &[usize]| of(dims, DType::BF16);
        let (x, w, bias) = (bf16(&[5, 4]), bf16(&[4, 4]), bf16(&[4]));
        let text = |value: Result<LazyTensor>| operations(&[value.unwrap()], run);
        let wide = |value: Result<LazyTensor>| value.and_then(|value| value.cast(DType::F32));
        let expected = "%2 = MatmulSum terms=[Product] scale=0.5(%0, %1) : f32[5, 4]\nreturn %2\n";
        assert_eq!(text(wide(x.matmul(&w).and_then(|y| y.mul_scalar(0.5)))), expected);
        let sum = text(wide(x.matmul(&w).and_then(|y| y.add(&x.matmul(&w.t()?)?))));
        assert!(sum.contains("MatmulSum terms=[Product, Product] scale=1("), "{sum}");
        assert!(!sum.contains("Cast"), "{sum}");
        // Addends have the result's dtype, and so have later ones.
        let biased = text(wide(x.matmul(&w).and_then(|y| y.add(&bias))));
        assert!(biased.contains(" = Cast to=f32("), "{biased}");
        let later = wide(x.matmul(&w)).and_then(|y| y.add(&input(&[4])));
        assert!(text(later).contains(" = Add("));
        let narrower = x.matmul(&w).and_then(|y| y.cast(DType::F16));
        assert!(text(narrower).contains(" = Cast to=f16("));
    }

    #[test]
    fn an_addend_with_another_broadcast_is_not_fused() {
        let addends = [input(&[5, 1]), input(&[1, 1]), input(&[]), input(&[3, 5, 4])];
        for addend in addends {
            let text = left(|x, w, _| Ok(vec![x.matmul(w)?.add(&addend)?]));
            assert!(
                text.contains(" = Matmul(") && text.contains(" = Add("),
                "{:?}: {text}",
                addend.dims()
            );
        }
        for row in [input(&[4]), input(&[1, 4])] {
            let text = left(|x, w, _| Ok(vec![x.matmul(w)?.add(&row)?]));
            assert!(
                text.contains("MatmulSum terms=[Product, Addend] "),
                "{:?}: {text}",
                row.dims()
            );
        }
    }

    #[test]
    fn batches_of_matrices_and_integers_stay() {
        let batch = input(&[3, 4, 4]);
        let text = left(|x, _, bias| Ok(vec![x.matmul(&batch)?.add(bias)?]));
        assert!(text.contains(" = Matmul(") && text.contains(" = Add("), "{text}");
        // A batch on the left becomes more rows.
        let text = left(|_, w, bias| Ok(vec![batch.matmul(w)?.add(bias)?]));
        assert!(text.contains("MatmulSum terms=[Product, Addend] "), "{text}");
        let whole = of(&[5, 4], DType::I64);
        assert!(!operations(&[whole.add(&whole).unwrap()], run).contains("MatmulSum"));
    }
}
