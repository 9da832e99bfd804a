//! Weights derived from a seed and a tensor's name: the same bits as in `scripts/reference_fixtures/seeded_weights.py`.

use candle_core::{Device, Tensor};

/// 64-bit FNV-1a.
fn fnv1a(text: &str) -> u64 {
    let step = |value: u64, byte: u8| (value ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    text.bytes().fold(0xcbf2_9ce4_8422_2325, step)
}

/// The outputs of `SplitMix64` from the state given by seed and name.
fn bits(seed: u64, name: &str) -> impl Iterator<Item = u64> {
    let state = seed ^ fnv1a(name);
    (1u64..).map(move |i| {
        let mut z = state.wrapping_add(i.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    })
}

/// Numbers in `[-1, 1)`.
pub fn fractions(seed: u64, name: &str, count: usize) -> Vec<f32> {
    let fraction = |word: u64| ((word >> 40) as i64 - (1 << 23)) as f32 / 8_388_608.0;
    bits(seed, name).take(count).map(fraction).collect()
}

/// Integers below `below`.
pub fn integers(seed: u64, name: &str, count: usize, below: usize) -> Vec<u32> {
    let whole = |word: u64| ((word >> 11) % below as u64) as u32;
    bits(seed, name).take(count).map(whole).collect()
}

/// The weight of a model with this name and shape, in f32.
pub fn weight(seed: u64, name: &str, shape: &[usize]) -> Tensor {
    let mut values = fractions(seed, name, shape.iter().product());
    let norm = name.contains("norm");
    let scale = match shape {
        [_, inputs, ..] if !norm => match name {
            "model.embed_tokens.weight" | "lm_head.weight" => 0.75,
            _ => (2.5 / (*inputs as f64).sqrt()) as f32,
        },
        _ => 0.3,
    };
    let offset = if norm { 1.0 } else { 0.0 };
    for value in &mut values {
        *value = offset + scale * *value;
    }
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}
