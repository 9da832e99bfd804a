//! The speed of f32 products, and of bf16 products in pairs and in tiles, measured once with the kernels themselves and
//! stored in a file by processor: the choice affects how sums are rounded, so it must not change from run to run.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use etcetera::BaseStrategy;
use serde::{Deserialize, Serialize};

use super::super::scratch::Filled;
use super::kernel::{Kernel, Tile};

/// Inner dimension of the timed tiles, whose operands fit in the L1 cache.
const STEPS: usize = 128;
/// Tiles per round, and number of rounds, of which the fastest counts, as the machine may be busy. About a millisecond
/// in all.
const TILES: usize = 16;
const ROUNDS: usize = 32;
/// Maximum size of the file in bytes.
const MAX_FILE: u64 = 1 << 16;

/// Operations per second of one thread; a multiply-add is two.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) struct Rates {
    /// For f32.
    pub f32: f64,
    /// For pairs of bf16, accumulated in f32.
    pub bf16_pairs: f64,
    /// For tiles of bf16 pairs, if the machine has a matrix unit.
    pub bf16_tiles: Option<f64>,
}

impl Rates {
    /// Whether pairs are enough faster to be worth their packing.
    pub fn favour_pairs(&self) -> bool {
        self.bf16_pairs > 1.1 * self.f32
    }

    /// Whether tiles are enough faster.
    pub fn favour_tiles(&self) -> bool {
        self.bf16_tiles
            .is_some_and(|tiles| tiles > 1.1 * self.f32.max(self.bf16_pairs))
    }

    fn are_plausible(&self) -> bool {
        [self.f32, self.bf16_pairs]
            .iter()
            .chain(&self.bf16_tiles)
            .all(|rate| rate.is_finite() && *rate > 0.0)
    }
}

/// The rates from this user's cache file; measured and written if they are missing.
pub(super) fn of_this_machine(processor: &str, has_tiles: bool, measure: impl FnOnce() -> Rates) -> Rates {
    // The operating system may not enable the processor's matrix unit.
    let unit = if has_tiles { "with tiles" } else { "without tiles" };
    from_file(file().as_deref(), &format!("{processor}, {unit}"), measure)
}

fn file() -> Option<PathBuf> {
    let folders = etcetera::choose_base_strategy().ok()?;
    Some(folders.cache_dir().join("metal-candle").join("kernel-rates.json"))
}

fn from_file(file: Option<&Path>, processor: &str, measure: impl FnOnce() -> Rates) -> Rates {
    // Other versions may have other kernels.
    let key = format!("{processor}, {}", env!("CARGO_PKG_VERSION"));
    let mut known = file.and_then(read).unwrap_or_default();
    if let Some(rates) = known.get(&key).filter(|rates| rates.are_plausible()) {
        return *rates;
    }
    let rates = measure();
    known.insert(key, rates);
    if let Some(Err(error)) = file.map(|file| write(file, &known)) {
        tracing::debug!("the measured rates of kernels are not kept: {error}");
    }
    rates
}

fn read(file: &Path) -> Option<BTreeMap<String, Rates>> {
    let is_small = fs::metadata(file).is_ok_and(|metadata| metadata.len() <= MAX_FILE);
    let bytes = is_small.then(|| fs::read(file).ok()).flatten()?;
    serde_json::from_slice(&bytes).ok()
}

fn write(file: &Path, known: &BTreeMap<String, Rates>) -> Result<(), Box<dyn std::error::Error>> {
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder)?;
    }
    let text = serde_json::to_vec_pretty(known)?;
    Ok(crate::io::write_atomically(file, |out| out.write_all(&text))?)
}

/// Operations per second of a kernel on entries of `terms` terms each.
///
/// # Safety
/// The machine has the kernel's instructions.
pub(super) unsafe fn measure<P: Copy>(kernel: &Kernel<P, f32>, entry: P, terms: usize) -> f64 {
    let columns = kernel.lanes * kernel.vectors;
    let a = Filled::new(kernel.rows * STEPS, entry);
    let b = Filled::new(STEPS * columns, entry);
    let mut sums = Filled::new(kernel.rows * columns, 0.0f32);
    let mut best = f64::INFINITY;
    for _ in 0..ROUNDS {
        let start = Instant::now();
        for _ in 0..TILES {
            let tile = Tile {
                steps: STEPS,
                a: a.as_ptr(),
                a_row: (STEPS * size_of::<P>()) as isize,
                a_step: 1,
                rows: kernel.rows,
                b: b.as_ptr(),
                b_step: columns,
                cols: columns,
                add: false,
                out: sums.as_mut_ptr(),
                out_row: columns,
            };
            // SAFETY: the operands have these sizes; the rest is guaranteed by the caller.
            unsafe { (kernel.tile)(&tile) };
        }
        best = best.min(start.elapsed().as_secs_f64());
        std::hint::black_box(&mut sums);
    }
    if let Some(release) = kernel.release {
        // SAFETY: guaranteed by the caller.
        unsafe { release() };
    }
    (TILES * 2 * kernel.rows * columns * STEPS * terms) as f64 / best
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOW: Rates = Rates {
        f32: 2.0,
        bf16_pairs: 1.0,
        bf16_tiles: None,
    };
    const FAST: Rates = Rates {
        f32: 1.0,
        bf16_pairs: 2.0,
        bf16_tiles: Some(3.0),
    };

    #[test]
    fn what_is_measured_once_stays() -> Result<(), Box<dyn std::error::Error>> {
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("new").join("rates.json");
        assert_eq!(from_file(Some(&file), "one", || FAST), FAST);
        assert_eq!(from_file(Some(&file), "one", || SLOW), FAST);
        assert_eq!(from_file(Some(&file), "another", || SLOW), SLOW);
        assert_eq!(from_file(Some(&file), "one", || SLOW), FAST);
        Ok(())
    }

    #[test]
    fn a_malformed_file_or_none_is_measured_again() -> Result<(), Box<dyn std::error::Error>> {
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("rates.json");
        let large = " ".repeat(MAX_FILE as usize + 1);
        let key = format!("one, {}", env!("CARGO_PKG_VERSION"));
        let absurd = format!("{{\"{key}\": {{\"f32\": -1.0, \"bf16_pairs\": 2.0, \"bf16_tiles\": null}}}}");
        for text in ["", "not JSON", "{\"one\": 3}", &large, &absurd] {
            fs::write(&file, text)?;
            assert_eq!(from_file(Some(&file), "one", || SLOW), SLOW, "{text:.20}");
            assert_eq!(from_file(Some(&file), "one", || FAST), SLOW, "written after {text:.20}");
        }
        assert_eq!(from_file(None, "one", || SLOW), SLOW);
        // The path is a folder: measured each time, without an error.
        assert_eq!(from_file(Some(folder.path()), "one", || FAST), FAST);
        Ok(())
    }

    #[test]
    fn pairs_and_tiles_must_gain_something() {
        let rates = |bf16_pairs, bf16_tiles| Rates {
            f32: 10.0,
            bf16_pairs,
            bf16_tiles,
        };
        let pairs = |bf16_pairs| rates(bf16_pairs, None).favour_pairs();
        assert_eq!([pairs(5.0), pairs(10.5), pairs(20.0)], [false, false, true]);
        let tiles = |bf16_tiles| rates(12.0, bf16_tiles).favour_tiles();
        assert_eq!(
            [None, Some(12.5), Some(f64::NAN), Some(50.0)].map(tiles),
            [false, false, false, true]
        );
    }
}
