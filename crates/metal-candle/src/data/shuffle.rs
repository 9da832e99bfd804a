//! Seeded order: Philox random numbers, and permutations made of them.
//!
//! Philox is counter-based: the n-th number is a function of the key and n, without state, so an order can be
//! recomputed at any time, on any machine, from a seed and an epoch. Nothing here reads a clock or a system's
//! generator.

use metal_candle_graph::random::philox4x32;

/// The 64-bit random number at an index of a seed's stream.
fn random(seed: u64, stream: u64, index: u64) -> u64 {
    let counter = [index as u32, (index >> 32) as u32, stream as u32, (stream >> 32) as u32];
    let [low, high, ..] = philox4x32(counter, [seed as u32, (seed >> 32) as u32]);
    u64::from(high) << 32 | u64::from(low)
}

/// A permutation of `0..n`, by the seed and a stream number (an epoch): a Fisher-Yates shuffle from the last position
/// down, where position `i` swaps with `floor(random(i) (i + 1) / 2^64)`; the bias of that division is below `n /
/// 2^64`.
///
/// ```
/// use metal_candle::data::permutation;
///
/// assert_eq!(permutation(8, 42, 0), permutation(8, 42, 0));
/// assert_ne!(permutation(8, 42, 0), permutation(8, 42, 1));
/// ```
#[must_use]
pub fn permutation(n: usize, seed: u64, stream: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..n).collect();
    for i in (1..n).rev() {
        let below = (u128::from(random(seed, stream, i as u64)) * (i as u128 + 1)) >> 64;
        order.swap(i, below as usize);
    }
    order
}

/// The stream number of splits, distinct from every epoch's.
const SPLIT: u64 = u64::MAX;

/// Chooses `round(n * fraction)` of `0..n` for validation by a seed: the training indices and the validation indices,
/// each ascending. With two or more items and a fraction above 0 both have at least one.
///
/// `fraction` is clamped to `0..1`.
#[must_use]
pub fn split_indices(n: usize, fraction: f64, seed: u64) -> (Vec<usize>, Vec<usize>) {
    let wanted = (n as f64 * fraction.clamp(0.0, 1.0)).round() as usize;
    let count = if fraction > 0.0 && n >= 2 {
        wanted.clamp(1, n - 1)
    } else {
        0
    };
    let order = permutation(n, seed, SPLIT);
    let (mut validate, mut train) = (order[..count].to_vec(), order[count..].to_vec());
    validate.sort_unstable();
    train.sort_unstable();
    (train, validate)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The known answers published with the generator.
    #[test]
    fn philox_gives_the_known_answers() {
        let cases = [
            ([0; 4], [0; 2], [0x6627_E8D5, 0xE169_C58D, 0xBC57_AC4C, 0x9B00_DBD8]),
            (
                [u32::MAX; 4],
                [u32::MAX; 2],
                [0x408F_276D, 0x41C8_3B0E, 0xA20B_C7C6, 0x6D54_51FD],
            ),
            (
                [0x243F_6A88, 0x85A3_08D3, 0x1319_8A2E, 0x0370_7344],
                [0xA409_3822, 0x299F_31D0],
                [0xD16C_FE09, 0x94FD_CCEB, 0x5001_E420, 0x2412_6EA1],
            ),
        ];
        for (counter, key, expected) in cases {
            assert_eq!(philox4x32(counter, key), expected);
        }
    }

    /// Expected values come from an independent program (Python integers).
    #[test]
    fn orders_are_reproducible() {
        assert_eq!(permutation(10, 42, 0), [7, 0, 6, 2, 4, 8, 5, 9, 1, 3]);
        assert_eq!(split_indices(10, 0.3, 42), (vec![0, 1, 2, 3, 4, 5, 7], vec![6, 8, 9]));
    }

    /// Each item comes to each position about equally often: chi-squared with 25 degrees of freedom (99.99 %: 59).
    #[test]
    fn permutations_are_uniform() {
        let mut seen = [[0f64; 6]; 6];
        let draws = 6000;
        for stream in 0..draws {
            for (place, item) in permutation(6, 7, stream).into_iter().enumerate() {
                seen[place][item] += 1.0;
            }
        }
        let expected = draws as f64 / 6.0;
        let chi: f64 = seen.iter().flatten().map(|n| (n - expected).powi(2) / expected).sum();
        assert!(chi < 59.0, "{chi}");
    }

    #[test]
    fn tiny_splits_keep_both_sides() {
        assert_eq!(split_indices(2, 0.01, 0).1.len(), 1);
        assert_eq!(split_indices(2, 0.99, 0).0.len(), 1);
        assert_eq!(split_indices(1, 0.5, 0), (vec![0], vec![]));
        assert!(split_indices(9, 0.0, 0).1.is_empty());
    }

    proptest! {
        #[test]
        fn permutations_hold_every_item_once(n in 0usize..300, seed: u64, stream: u64) {
            let mut order = permutation(n, seed, stream);
            order.sort_unstable();
            prop_assert_eq!(order, (0..n).collect::<Vec<_>>());
        }

        #[test]
        fn splits_hold_every_item_once(n in 0usize..300, fraction in 0.0..1.0f64, seed: u64) {
            let (train, validate) = split_indices(n, fraction, seed);
            let mut all = [train, validate].concat();
            all.sort_unstable();
            prop_assert_eq!(all, (0..n).collect::<Vec<_>>());
        }
    }
}
