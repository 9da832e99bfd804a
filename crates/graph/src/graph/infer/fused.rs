//! Shape inference of the fused operations that need more than a line.

use candle_core::DType;
use smallvec::smallvec;

use super::{accumulator, broadcast, check_rank, infer, matmul, one, same};
use crate::error::{Error, Result};
use crate::fused::matmul_sum::SumTerm;
use crate::graph::node::{Meta, Outputs};
use crate::graph::operation::{AttentionOptions, Operation};

/// All products must have the same shape, to which the addends broadcast.
pub(super) fn matmul_sum(name: &'static str, terms: &[SumTerm], dtype: DType, inputs: &[&Meta]) -> Result<Outputs> {
    let mut rest = inputs.iter();
    let mut next = || rest.next().map_or(&[][..], |meta| meta.shape.dims());
    let mut products: Option<Vec<usize>> = None;
    let mut addends = Vec::new();
    for term in terms {
        if *term == SumTerm::Addend {
            addends.push(next());
            continue;
        }
        let (a, b) = (next(), next());
        check_rank(name, 2, b)?;
        let product = matmul(name, a, b)?;
        let shape = products.get_or_insert_with(|| product.clone());
        same(name, "a product", &product, shape)?;
    }
    let Some(shape) = products else {
        return Err(Error::shape(name, "at least one product is required"));
    };
    for addend in addends {
        same(
            name,
            "a sum with an addend",
            &broadcast(name, &[addend, &shape])?,
            &shape,
        )?;
    }
    one(shape, sum_dtype(name, inputs, dtype)?)
}

/// The result dtypes of a sum of products: the inputs' dtype, or f32 if that is their accumulation type.
pub(super) fn sum_dtype(name: &'static str, inputs: &[&Meta], dtype: DType) -> Result<DType> {
    let own = inputs[0].dtype;
    if dtype == own || dtype == accumulator(own) {
        return Ok(dtype);
    }
    Err(Error::shape(
        name,
        format!("a sum of products of {own:?} cannot be cast to {dtype:?}"),
    ))
}

pub(super) fn check_rope(name: &'static str, x: &[usize], cos: &[usize], sin: &[usize]) -> Result<()> {
    check_rank(name, 4, x)?;
    check_rank(name, 3, cos)?;
    same(name, "sin", sin, cos)?;
    let fits = (cos[0] == x[0] || cos[0] == 1) && cos[1] == x[1] && 2 * cos[2] <= x[3];
    if fits {
        return Ok(());
    }
    let message =
        format!("x {x:?} (batch, seq, heads, head_dim) and cos {cos:?} (batch or 1, seq, at most head_dim / 2)");
    Err(Error::shape(name, message))
}

pub(super) fn attention(name: &'static str, inputs: &[&Meta], options: &AttentionOptions) -> Result<Outputs> {
    let (q, k, v) = (inputs[0].shape.dims(), inputs[1].shape.dims(), inputs[2].shape.dims());
    let fits =
        q.len() == 4 && k.len() == 4 && v == k && q[0] == k[0] && q[3] == k[3] && k[2] > 0 && q[2].is_multiple_of(k[2]);
    if !fits {
        let message = format!(
            "q {q:?}, k {k:?}, v {v:?}: expected (batch, seq, heads, head_dim) with heads of q a multiple of k's"
        );
        return Err(Error::shape(name, message));
    }
    if options.window.is_some() && !options.causal {
        return Err(Error::shape(name, "a sliding window needs causal attention"));
    }
    if options.window == Some(0) {
        return Err(Error::shape(name, "a sliding window must be at least 1"));
    }
    let mut rest = inputs[3..].iter();
    if options.offset {
        same(name, "offset", rest.next().map_or(&[], |m| m.shape.dims()), &[1])?;
        if q[1] > k[1] {
            return Err(Error::shape(
                name,
                format!("{} queries with an offset do not fit {} keys", q[1], k[1]),
            ));
        }
    }
    if options.segments {
        same(
            name,
            "query segments",
            rest.next().map_or(&[], |m| m.shape.dims()),
            &q[..2],
        )?;
        same(
            name,
            "key segments",
            rest.next().map_or(&[], |m| m.shape.dims()),
            &k[..2],
        )?;
    }
    let lse = Meta::new(q[..3].to_vec(), accumulator(inputs[0].dtype));
    Ok(smallvec![inputs[0].clone(), lse])
}

pub(super) fn vjp(name: &'static str, of: &Operation, wanted: u32, inputs: &[&Meta]) -> Result<Outputs> {
    if !of.is_fused() || matches!(of, Operation::Vjp { .. } | Operation::ValueAndVjp { .. }) {
        return Err(Error::shape(name, format!("{} is not a fused operation", of.name())));
    }
    let outputs = of.output_count();
    let Some(count) = inputs.len().checked_sub(2 * outputs) else {
        return Err(Error::shape(name, format!("{} inputs for {}", inputs.len(), of.name())));
    };
    let primal = infer(of, &inputs[..count])?;
    for (i, meta) in primal.iter().enumerate() {
        for given in [inputs[count + i], inputs[count + outputs + i]] {
            if given != meta {
                return Err(Error::shape(
                    name,
                    format!("output {i} of {} is {meta}, got {given}", of.name()),
                ));
            }
        }
    }
    if wanted == 0 || wanted >> count != 0 {
        return Err(Error::shape(
            name,
            format!("wanted {wanted:#b} of {count} inputs of {}", of.name()),
        ));
    }
    Ok((0..count)
        .filter(|i| wanted >> i & 1 == 1)
        .map(|i| inputs[i].clone())
        .collect())
}
