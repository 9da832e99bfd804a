//! Scaled dot-product attention, `o = softmax(scale q k^T + mask) v`, and the logsumexp of each row of scores.
//! q, o `(batch, seq, heads, head_dim)`; k, v `(batch, keys, kv_heads, head_dim)`; lse `(batch, seq, heads)`. Query head
//! `h` reads key head `h / (heads / kv_heads)`. A query that sees no key gives o = 0 and lse = -inf. Kernels work in
//! blocks with an online softmax (Dao et al. 2022) and never hold all scores.

use candle_core::DType;

use super::accumulate;
use crate::error::Result;
use crate::graph::AttentionOptions;
use crate::lazy_tensor::LazyTensor;

/// The definition in primitives; `rest` holds the offset and the segments, as far as the options use them.
///
/// # Errors
/// When the shapes are incompatible.
pub fn fallback(
    q: &LazyTensor,
    k: &LazyTensor,
    v: &LazyTensor,
    rest: &[LazyTensor],
    options: &AttentionOptions,
) -> Result<Vec<LazyTensor>> {
    let [batch, seq, heads, width] = [0, 1, 2, 3].map(|i| q.dims()[i]);
    let (keys, kv_heads) = (k.dims()[1], k.dims()[2]);
    let group = heads / kv_heads;
    // (batch, kv_heads, group, seq, head_dim) against (batch, kv_heads, 1, head_dim, keys)
    let by_head = |x: &LazyTensor| accumulate(x)?.permute(&[0, 2, 1, 3]);
    let queries = by_head(q)?.reshape(&[batch, kv_heads, group, seq, width])?;
    let (k, v) = (by_head(k)?.unsqueeze(2)?, by_head(v)?.unsqueeze(2)?);
    let scores = queries.matmul_t(&k)?.mul_scalar(options.scale)?;

    let (powers, top) = if keys == 0 {
        (scores.exp()?, scores.scalar_like(0.0)?)
    } else if let Some(mask) = visible(q, keys, rest, options)? {
        let scores = mask.where_cond(&scores, &scores.scalar_like(-1e30)?)?;
        let top = scores.max_keepdim(&[4])?.stop_gradient()?;
        let powers = scores.sub(&top)?.exp()?;
        (mask.where_cond(&powers, &powers.scalar_like(0.0)?)?, top)
    } else {
        let top = scores.max_keepdim(&[4])?.stop_gradient()?;
        (scores.sub(&top)?.exp()?, top)
    };
    let sum = powers.sum_keepdim(&[4])?;
    let nothing = sum.equal(&sum.scalar_like(0.0)?)?;
    let divisor = nothing.where_cond(&sum.scalar_like(1.0)?, &sum)?;
    let out = powers.matmul(&v)?.div(&divisor)?;
    let out = out
        .reshape(&[batch, heads, seq, width])?
        .permute(&[0, 2, 1, 3])?
        .cast(q.dtype())?;
    let lse = sum
        .log()?
        .add(&top)?
        .reshape(&[batch, heads, seq])?
        .permute(&[0, 2, 1])?;
    Ok(vec![out, lse])
}

/// The mask of visible keys, broadcasting to `(batch, kv_heads, group, seq, keys)`; none when every key is visible.
fn visible(q: &LazyTensor, keys: usize, rest: &[LazyTensor], options: &AttentionOptions) -> Result<Option<LazyTensor>> {
    let (batch, seq) = (q.dims()[0], q.dims()[1]);
    let mut rest = rest.iter();
    let offset = options.offset.then(|| rest.next()).flatten();
    let mut masks = Vec::new();
    if options.causal {
        // Positions stay below 2^24, where f32 counts exactly.
        let key = LazyTensor::iota(1, &[1, keys], DType::F32, q.device())?;
        let query = match offset {
            // Reports queries whose positions are not among the keys.
            Some(offset) => LazyTensor::iota(0, &[keys, 1], DType::F32, q.device())?.dynamic_slice(0, offset, seq)?,
            None => LazyTensor::iota(0, &[seq, 1], DType::F32, q.device())?,
        };
        masks.push(key.less_equal(&query)?);
        if let Some(window) = options.window {
            masks.push(query.less(&key.add_scalar(window as f32)?)?);
        }
    }
    if let (true, Some(of_query), Some(of_key)) = (options.segments, rest.next(), rest.next()) {
        let (of_query, of_key) = (of_query.unsqueeze(2)?, of_key.unsqueeze(1)?);
        masks.push(of_query.equal(&of_key)?.reshape(&[batch, 1, 1, seq, keys])?);
    }
    let mut masks = masks.into_iter();
    let Some(first) = masks.next() else { return Ok(None) };
    masks.try_fold(first, |all, mask| all.mul(&mask)).map(Some)
}
