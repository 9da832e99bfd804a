//! The machine's limits, measured in the same run, and the check that no figure exceeds them.

use metal_candle::graph::limits::{self, Limits, Work};
use serde_json::{Value, json};

use super::row::round;
use crate::error::{Failure, Result};

/// Relative measuring error: a figure may exceed its limit by this much.
const TOLERANCE: f64 = 0.05;
/// How often the limits are measured again before a figure is rejected: the machine may have been busy.
const ATTEMPTS: usize = 3;

/// The limits, measured again on demand.
pub struct Judge {
    limits: Limits,
    measure: fn() -> Limits,
}

impl Judge {
    /// Measures the limits.
    pub fn new() -> Self {
        Self::with(limits::measure)
    }

    fn with(measure: fn() -> Limits) -> Self {
        Self {
            limits: measure(),
            measure,
        }
    }

    /// The least time in which this machine can do `work`, in seconds.
    ///
    /// # Errors
    /// If `seconds`, the shortest measured time, is below it: then the measurement of `what` is wrong.
    pub fn least_seconds(&mut self, what: &str, work: &Work, seconds: f64) -> Result<f64> {
        for _ in 0..ATTEMPTS {
            if self.is_possible(work, seconds) {
                break;
            }
            self.limits = self.limits.clone().or_better(&(self.measure)());
        }
        let least = self.limits.least_seconds(work);
        if self.is_possible(work, seconds) {
            return Ok(least);
        }
        Err(Failure::Run(format!(
            "measuring error: {what} took {:.3} us, but this machine needs at least {:.3} us for it\n\n  \
             {} bytes at {:.1} GB/s, {} FLOP at {:.1} GFLOP/s: something was not computed, or not waited for",
            seconds * 1e6,
            least * 1e6,
            work.bytes,
            self.limits.bytes_per_second(work.bytes) / 1e9,
            work.flops,
            self.limits.flops(work.dtype) / 1e9,
        )))
    }

    fn is_possible(&self, work: &Work, seconds: f64) -> bool {
        seconds > 0.0 && seconds >= self.limits.least_seconds(work) * (1.0 - TOLERANCE)
    }

    /// The best known limits.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The limits in one line of text.
    pub fn describe(&self) -> String {
        let rate = |rate: Option<&limits::ReadingRate>| rate.map_or(f64::NAN, |rate| rate.bytes_per_second / 1e9);
        let bf16 = self
            .limits
            .bf16_flops
            .map_or(String::new(), |flops| format!(", {:.0} GFLOP/s bf16", flops / 1e9));
        let warning = if self.limits.settled {
            ""
        } else {
            " (it was busy: rates of reading may be too low)"
        };
        format!(
            "This machine: {} threads read {:.1} GB/s from memory, {:.0} GB/s from the nearest cache; \
             {:.0} GFLOP/s f32{bf16}{warning}",
            self.limits.threads,
            rate(self.limits.reading.last()),
            rate(self.limits.reading.first()),
            self.limits.f32_flops / 1e9,
        )
    }

    /// The limits as JSON: GB/s by working set size, GFLOP/s by dtype.
    pub fn to_json(&self) -> Value {
        let giga = |x: f64| round(x / 1e9, 1);
        let reading = self.limits.reading.iter();
        let reading: Vec<Value> = reading
            .map(|rate| json!({ "bytes": rate.bytes, "gb_per_s": giga(rate.bytes_per_second) }))
            .collect();
        json!({
            "threads": self.limits.threads,
            "reading": reading,
            "f32_gflop_per_s": giga(self.limits.f32_flops),
            "bf16_gflop_per_s": self.limits.bf16_flops.map(giga),
            "settled": self.limits.settled,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use candle_core::DType;

    use super::*;

    fn machine(flops: f64) -> Limits {
        Limits {
            threads: 1,
            reading: vec![limits::ReadingRate {
                bytes: 1,
                bytes_per_second: 1e9,
            }],
            f32_flops: flops,
            bf16_flops: None,
            settled: true,
        }
    }

    fn work(flops: f64) -> Work {
        Work {
            bytes: 8.0,
            flops,
            dtype: DType::F32,
        }
    }

    #[test]
    fn a_possible_figure_is_judged_by_its_limit() {
        let mut judge = Judge::with(|| machine(1e9));
        assert_eq!(judge.least_seconds("it", &work(1e6), 2e-3).unwrap(), 1e-3);
        // Within the measuring error.
        assert_eq!(judge.least_seconds("it", &work(1e6), 0.96e-3).unwrap(), 1e-3);
    }

    #[test]
    fn a_figure_beyond_the_limit_is_a_measuring_error() {
        let mut judge = Judge::with(|| machine(1e9));
        for seconds in [0.5e-3, 0.0, f64::NAN] {
            let failure = judge.least_seconds("the product", &work(1e6), seconds).unwrap_err();
            assert_eq!(failure.exit_code(), 1);
            let message = failure.to_string();
            assert!(
                message.starts_with("error: measuring error: the product took"),
                "{message}"
            );
        }
    }

    #[test]
    fn a_limit_that_was_measured_on_a_busy_machine_is_measured_again() {
        static CALLS: AtomicUsize = AtomicUsize::new(0);
        let mut judge = Judge::with(|| {
            machine(if CALLS.fetch_add(1, Ordering::Relaxed) == 0 {
                1e9
            } else {
                4e9
            })
        });
        assert_eq!(judge.least_seconds("it", &work(1e6), 0.5e-3).unwrap(), 0.25e-3);
        assert_eq!(CALLS.load(Ordering::Relaxed), 2);
    }
}
