//! Counter-based random numbers: Philox 4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1,
//! 2, 3", 2011). A number is a pure function of key and counter, so streams need no state and can be split anywhere.
//!
//! The `i`-th number of a stream comes from the block with counter `(i / 4, c2, c3)`, lane `i % 4`.

/// Ten rounds of Philox with four 32-bit words.
///
/// ```
/// use metal_candle_graph::random::philox4x32;
///
/// assert_eq!(philox4x32([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
/// ```
#[must_use]
pub fn philox4x32(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let (mut c, mut k) = (counter, key);
    for round in 0..10 {
        if round > 0 {
            k = [k[0].wrapping_add(0x9E37_79B9), k[1].wrapping_add(0xBB67_AE85)];
        }
        let left = u64::from(c[0]) * 0xD251_1F53;
        let right = u64::from(c[2]) * 0xCD9E_8D57;
        c = [
            (right >> 32) as u32 ^ c[1] ^ k[0],
            right as u32,
            (left >> 32) as u32 ^ c[3] ^ k[1],
            left as u32,
        ];
    }
    c
}

/// The block with the numbers `4 index ..4 index + 4` of a stream.
#[must_use]
pub fn block(key: [u32; 2], stream: [u32; 2], index: u64) -> [u32; 4] {
    philox4x32([index as u32, (index >> 32) as u32, stream[0], stream[1]], key)
}

/// Raw bits.
pub fn bits(key: [u32; 2], stream: [u32; 2]) -> impl Iterator<Item = u32> {
    (0u64..).flat_map(move |index| block(key, stream, index))
}

/// Uniform in `[0, 1)` with 24 bits.
pub fn uniform32(key: [u32; 2], stream: [u32; 2]) -> impl Iterator<Item = f32> {
    bits(key, stream).map(unit)
}

/// Uniform in `[0, 1)` with 32 bits.
pub fn uniform64(key: [u32; 2], stream: [u32; 2]) -> impl Iterator<Item = f64> {
    bits(key, stream).map(|word| f64::from(word) / 4_294_967_296.0)
}

/// Standard normal, in f32.
pub fn normal32(key: [u32; 2], stream: [u32; 2]) -> impl Iterator<Item = f32> {
    normal64(key, stream).map(|value| value as f32)
}

/// Standard normal by the Box-Muller transform (1958).
pub fn normal64(key: [u32; 2], stream: [u32; 2]) -> impl Iterator<Item = f64> {
    (0u64..).flat_map(move |index| normal_block(key, stream, index))
}

/// Standard normal numbers `4 index ..4 index + 4` of a stream: lanes (0, 1) and (2, 3) of the block each give two.
#[must_use]
pub fn normal_block(key: [u32; 2], stream: [u32; 2], index: u64) -> [f64; 4] {
    let [a, b, c, d] = block(key, stream, index);
    let ((w, x), (y, z)) = (pair(a, b), pair(c, d));
    [w, x, y, z]
}

fn unit(word: u32) -> f32 {
    (word >> 8) as f32 / 16_777_216.0
}

/// Two standard normal numbers from two words.
pub(crate) fn pair(a: u32, b: u32) -> (f64, f64) {
    // Avoids the logarithm of zero.
    let radius = (-2.0 * libm::log((f64::from(a) + 1.0) / 4_294_967_296.0)).sqrt();
    let angle = std::f64::consts::TAU * f64::from(b) / 4_294_967_296.0;
    (radius * libm::cos(angle), radius * libm::sin(angle))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_answers_of_the_papers_library() {
        let pi = [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344];
        let cases = [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            (
                [u32::MAX; 4],
                [u32::MAX; 2],
                [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd],
            ),
            (
                pi,
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ];
        for (counter, key, expected) in cases {
            assert_eq!(philox4x32(counter, key), expected);
        }
    }

    #[test]
    fn moments_are_those_of_the_distribution() {
        let n = 100_000;
        let moments = |values: Vec<f64>| {
            let mean = values.iter().sum::<f64>() / f64::from(n);
            (
                mean,
                values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / f64::from(n),
            )
        };
        let (mean, variance) = moments(normal64([1, 2], [3, 4]).take(n as usize).collect());
        assert!(mean.abs() < 0.01 && (variance - 1.0).abs() < 0.02, "{mean} {variance}");
        let (mean, variance) = moments(uniform64([1, 2], [3, 4]).take(n as usize).collect());
        assert!(
            (mean - 0.5).abs() < 0.005 && (variance - 1.0 / 12.0).abs() < 0.002,
            "{mean} {variance}"
        );
    }
}
