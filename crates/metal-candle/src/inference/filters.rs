//! Sampling filters: which tokens may be sampled at all.
//!
//! Each follows the warper of `transformers` for the same setting, ties included, and keeps at least one token. Filters
//! on lists take and return tokens in order of ascending probability.

/// A token and its logit or probability.
type Kept = (u32, f32);

/// Number of tokens that [`top_h`] considers, as in transformers.
const MOST_BY_ENTROPY: usize = 100;

/// Excludes all but the most likely tokens whose contributions to the entropy add up to `share` of it. The largest
/// logit is 0.
pub(super) fn top_h(logits: &mut [f32], share: f64) {
    let mut order: Vec<Kept> = (0u32..).zip(logits.iter().copied()).collect();
    order.sort_unstable_by(|(a, x), (b, y)| y.total_cmp(x).then(a.cmp(b)));
    order.truncate(MOST_BY_ENTROPY);
    let sum: f32 = order.iter().map(|(_, logit)| logit.exp()).sum();
    let term = |logit: f32| {
        let probability = logit.exp() / sum;
        -probability * probability.ln()
    };
    let terms: Vec<f32> = order.iter().map(|&(_, logit)| term(logit)).collect();
    let entropy: f32 = terms.iter().filter(|term| term.is_finite()).sum();
    let (most, mut reached) = (entropy * share as f32, 0.0);
    let kept = terms.iter().take_while(|&&term| {
        reached += term;
        reached <= most
    });
    let kept = kept.count().max(1);
    logits.fill(f32::NEG_INFINITY);
    for &(id, logit) in &order[..kept.min(order.len())] {
        logits[id as usize] = logit;
    }
}

/// Tokens with a logit of at least the `k`-th largest, including ties; 0 keeps all.
pub(super) fn top_k(logits: &[f32], k: usize) -> Vec<Kept> {
    let mut edge = f32::NEG_INFINITY;
    if k > 0 && k < logits.len() {
        let mut order = logits.to_vec();
        edge = *order.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a)).1;
    }
    let ids = (0u32..).zip(logits.iter().copied());
    ids.filter(|&(_, l)| l >= edge && l > f32::NEG_INFINITY).collect()
}

/// Turns logits into probabilities: softmax. The largest logit is 0.
pub(super) fn softmax(kept: &mut [Kept]) {
    for (_, logit) in kept.iter_mut() {
        *logit = logit.exp();
    }
    let sum: f32 = kept.iter().map(|(_, p)| p).sum();
    for (_, probability) in kept.iter_mut() {
        *probability /= sum;
    }
}

/// Drops the least likely tokens while their total probability is at most `1 - p`; keeps at least one.
pub(super) fn top_p(kept: &mut Vec<Kept>, p: f64) {
    if p >= 1.0 {
        return;
    }
    let (mut sum, spare) = (0.0, (1.0 - p) as f32);
    let dropped = kept.iter().take_while(|(_, probability)| {
        sum += probability;
        sum <= spare
    });
    let dropped = dropped.count().min(kept.len() - 1);
    kept.drain(..dropped);
}

/// Drops tokens with less than `p` times the probability of the most likely one.
pub(super) fn min_p(kept: &mut Vec<Kept>, p: f64) {
    let edge = p as f32 * kept.last().map_or(0.0, |&(_, largest)| largest);
    kept.retain(|&(_, probability)| probability >= edge);
}

/// Drops the tokens whose surprisal is farthest from the entropy, while the kept ones have probability `mass`.
pub(super) fn typical_p(kept: &mut Vec<Kept>, mass: f64) {
    if mass >= 1.0 {
        return;
    }
    normalise(kept);
    let entropy = entropy(kept);
    let distance = |&(_, p): &Kept| (-p.ln() - entropy).abs();
    let mut order: Vec<(f32, f32)> = kept.iter().map(|k| (distance(k), k.1)).collect();
    order.sort_by(|(a, _), (b, _)| a.total_cmp(b));
    let mut sum = 0.0;
    let before = order.iter().take_while(|(_, p)| {
        sum += p;
        sum < mass as f32
    });
    let last = before.count().min(order.len() - 1);
    let edge = order[last].0;
    kept.retain(|k| distance(k) <= edge);
}

/// Drops tokens with a probability below `epsilon`, but never the most likely one.
pub(super) fn epsilon(kept: &mut Vec<Kept>, epsilon: f64) {
    if epsilon > 0.0 {
        normalise(kept);
        at_least(kept, epsilon as f32);
    }
}

/// Like [`epsilon`], with a lower threshold if the entropy is high.
pub(super) fn eta(kept: &mut Vec<Kept>, epsilon: f64) {
    if epsilon > 0.0 {
        normalise(kept);
        let epsilon = epsilon as f32;
        let by_entropy = epsilon.sqrt() * (-entropy(kept)).exp();
        at_least(kept, epsilon.min(by_entropy));
    }
}

fn at_least(kept: &mut Vec<Kept>, edge: f32) {
    let largest = kept.last().map_or(0.0, |&(_, p)| p);
    kept.retain(|&(_, p)| p >= edge || p >= largest);
}

/// Normalises probabilities to a sum of 1.
fn normalise(kept: &mut [Kept]) {
    let sum: f32 = kept.iter().map(|(_, p)| p).sum();
    for (_, probability) in kept.iter_mut() {
        *probability /= sum;
    }
}

fn entropy(kept: &[Kept]) -> f32 {
    let term = |&(_, p): &Kept| if p > 0.0 { -p * p.ln() } else { 0.0 };
    kept.iter().map(term).sum()
}
