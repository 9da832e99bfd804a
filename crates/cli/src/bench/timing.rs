//! Timing of repeated calls.

use std::time::Instant;

use crate::error::Result;

/// Times of one case, in seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Timing {
    /// Median time of calls that were awaited one by one.
    pub latency: f64,
    /// The shortest of them.
    pub best: f64,
    /// Time per call of a sequence of calls whose results are all kept until the end.
    pub throughput: f64,
}

impl Timing {
    /// The shortest of the times, to be compared with a limit.
    pub fn least(&self) -> f64 {
        self.best.min(self.throughput)
    }
}

/// Calls `call`, which returns when its result is ready: `warmup` times without timing, then `runs` times timed one by
/// one and `runs` times timed together.
///
/// # Errors
/// The first error of `call`.
pub fn measure<R>(warmup: usize, runs: usize, mut call: impl FnMut() -> Result<R>) -> Result<Timing> {
    for _ in 0..warmup {
        call()?;
    }
    let mut samples = Vec::with_capacity(runs);
    for _ in 0..runs {
        let start = Instant::now();
        let result = call()?;
        samples.push(start.elapsed().as_secs_f64());
        drop(result);
    }
    let mut results = Vec::with_capacity(runs);
    let start = Instant::now();
    for _ in 0..runs {
        results.push(call()?);
    }
    let throughput = start.elapsed().as_secs_f64() / runs as f64;
    Ok(Timing {
        latency: median(&mut samples),
        best: samples[0],
        throughput,
    })
}

/// Sorts the samples; for an even number, returns the upper of the two in the middle, like the peers' scripts.
pub fn median(samples: &mut [f64]) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples.get(samples.len() / 2).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Failure;

    #[test]
    fn the_median_is_the_middle_sample() {
        assert_eq!(median(&mut [3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&mut [4.0, 1.0, 3.0, 2.0]), 3.0);
        assert!(median(&mut []).is_nan());
    }

    #[test]
    fn calls_are_counted_and_their_times_make_sense() {
        let mut calls = 0;
        let timing = measure(2, 5, || {
            calls += 1;
            std::thread::sleep(std::time::Duration::from_millis(1));
            Ok(())
        });
        let timing = timing.unwrap();
        assert_eq!(calls, 2 + 5 + 5);
        assert!(timing.best >= 1e-3 && timing.best <= timing.latency, "{timing:?}");
        assert!(timing.throughput >= 1e-3 && timing.least() >= 1e-3, "{timing:?}");
    }

    #[test]
    fn the_first_error_ends_it() {
        let mut calls = 0;
        let outcome = measure(0, 5, || {
            calls += 1;
            if calls == 3 { Err(Failure::input("no")) } else { Ok(()) }
        });
        assert!(outcome.is_err());
        assert_eq!(calls, 3);
    }
}
