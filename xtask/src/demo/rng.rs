//! The random numbers of the demonstration's data: a hash of (seed, stream, counter).
//!
//! Each document and each example draws from its own stream, so making more of them changes none of the earlier ones.
//! Not for anything that must be secret.

/// A stream of random numbers.
pub struct Rng {
    key: u64,
    counter: u64,
}

impl Rng {
    /// The stream numbered `stream` of `seed`.
    pub fn new(seed: u64, stream: u64) -> Self {
        Self {
            key: hash(hash(seed) ^ stream),
            counter: 0,
        }
    }

    /// The next 64 random bits.
    pub fn next(&mut self) -> u64 {
        self.counter += 1;
        hash(self.key ^ hash(self.counter))
    }

    /// A number in `0..bound`, which must not be empty. The bias, below `bound / 2^64`, does not matter here.
    pub fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.next()) * bound as u128) >> 64) as usize
    }

    /// True once in `times` draws on average.
    pub fn one_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    /// One of `choices`, which must not be empty.
    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    /// `count` different members of `choices` in random order (all of them if there are fewer).
    pub fn sample<'a, T>(&mut self, choices: &'a [T], count: usize) -> Vec<&'a T> {
        let mut all: Vec<_> = choices.iter().collect();
        let count = count.min(all.len());
        for place in 0..count {
            let other = place + self.below(all.len() - place);
            all.swap(place, other);
        }
        all.truncate(count);
        all
    }
}

/// A bijection on 64 bits whose output bits all depend on every input bit (the finaliser of `SplitMix64`).
pub fn hash(value: u64) -> u64 {
    let mut x = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_splitmix64() {
        // The first outputs of the published generator for seed 0: its state after k steps is k times the constant.
        assert_eq!(hash(0), 0xE220_A839_7B1D_CDAF);
        assert_eq!(hash(0x9E37_79B9_7F4A_7C15), 0x6E78_9E6A_A1B9_65F4);
    }

    #[test]
    fn draws_are_even_and_streams_differ() {
        let mut rng = Rng::new(7, 0);
        let mut counts = [0_u32; 10];
        for _ in 0..100_000 {
            counts[rng.below(10)] += 1;
        }
        // Standard deviation 95; five of them.
        assert!(counts.iter().all(|count| count.abs_diff(10_000) < 475), "{counts:?}");
        assert_ne!(Rng::new(7, 0).next(), Rng::new(7, 1).next());
        assert_ne!(Rng::new(7, 0).next(), Rng::new(8, 0).next());
    }

    #[test]
    fn a_sample_has_no_repeats() {
        let choices: Vec<_> = (0..9).collect();
        let mut sample = Rng::new(1, 2).sample(&choices, 9);
        sample.sort_unstable();
        assert_eq!(sample, choices.iter().collect::<Vec<_>>());
    }
}
