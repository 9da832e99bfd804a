//! The limits of this machine, measured now: bytes read per second by working set size, and floating-point operations
//! per second. Benchmarks report each result as a share of them.
//!
//! The loops touch registers and their own memory only. They use no kernel and no thread pool of the engine, and
//! contain no constants of any specific machine.

#[cfg(target_arch = "aarch64")]
mod aarch64;
#[cfg(not(target_arch = "aarch64"))]
mod portable;
#[cfg(target_arch = "x86_64")]
mod x86_64;

use std::hint::black_box;
use std::num::NonZero;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use candle_core::DType;

#[cfg(target_arch = "aarch64")]
use self::aarch64 as machine;
#[cfg(not(any(target_arch = "aarch64", target_arch = "x86_64")))]
use self::portable as machine;
#[cfg(target_arch = "x86_64")]
use self::x86_64 as machine;

/// Bytes that one thread reads, to fit the first, second and third level of a cache.
const CACHED: [usize; 3] = [16 << 10, 512 << 10, 4 << 20];
/// Bytes that all threads read from memory together: more than the caches hold, and much more.
const UNCACHED: [usize; 3] = [64 << 20, 128 << 20, 256 << 20];
/// Bytes that one thread reads per round: about half a millisecond.
const ROUND: usize = 16 << 20;
/// Iterations of a register loop per round: about as long.
const ITERATIONS: usize = 1 << 17;
/// Number of rounds, of which the fastest counts, as other processes use the machine too.
const ROUNDS: usize = 64;
/// How often reading is measured on a busy machine, until all threads were seen to run concurrently.
const ATTEMPTS: usize = 3;
/// Pause between attempts.
const PAUSE: Duration = Duration::from_millis(30);
/// Threads ran concurrently if a round took all of them together at most this multiple of each thread's own best time.
const TOGETHER: f64 = 1.1;

/// The limits of a machine, of all its threads together.
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    /// Number of threads used: as many as the machine runs at once.
    pub threads: usize,
    /// Read bandwidth by working set size, smallest first; it never rises with the size.
    pub reading: Vec<ReadingRate>,
    /// f32 operations per second; a fused multiply-add is two.
    pub f32_flops: f64,
    /// bf16 operations per second with f32 accumulation, if the machine has such instructions and this crate uses them.
    pub bf16_flops: Option<f64>,
    /// Whether all threads were seen to read concurrently. If not, because the machine was busy, the read bandwidths
    /// may be too low.
    pub settled: bool,
}

/// The read bandwidth for a working set size.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ReadingRate {
    /// Working set of all threads together, in bytes.
    pub bytes: usize,
    /// Bytes per second.
    pub bytes_per_second: f64,
}

/// The least work of a computation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Work {
    /// Bytes that must be read or written.
    pub bytes: f64,
    /// Floating-point operations.
    pub flops: f64,
    /// The dtype of the factors.
    pub dtype: DType,
}

/// Measures the limits; takes less than a second (a few if the machine is busy) and a quarter of a gibibyte.
///
/// ```
/// use candle_core::DType;
/// use metal_candle_graph::limits::{self, Work};
///
/// let limits = limits::measure();
/// // No machine multiplies two 1024 x 1024 matrices in a microsecond.
/// let work = Work { bytes: 3.0 * 4.0 * 1024f64.powi(2), flops: 2.0 * 1024f64.powi(3), dtype: DType::F32 };
/// assert!(limits.least_seconds(&work) > 1e-6);
/// ```
#[must_use]
pub fn measure() -> Limits {
    let threads = thread::available_parallelism().map_or(1, NonZero::get);
    let (reading, settled) = reading(threads);
    Limits {
        threads,
        reading,
        settled,
        f32_flops: flops(threads, &machine::f32_loop()),
        bf16_flops: machine::bf16_loop().map(|bf16| flops(threads, &bf16)),
    }
}

impl Limits {
    /// The least time for this work, in seconds: that of its bytes or of its operations, whichever is longer. Work that
    /// fits in a cache is assumed to be there.
    #[must_use]
    pub fn least_seconds(&self, work: &Work) -> f64 {
        (work.bytes / self.bytes_per_second(work.bytes)).max(work.flops / self.flops(work.dtype))
    }

    /// The read bandwidth for a working set of `bytes`: that of the largest measured size that is not larger.
    #[must_use]
    pub fn bytes_per_second(&self, bytes: f64) -> f64 {
        let fits = self.reading.iter().rev().find(|rate| rate.bytes as f64 <= bytes);
        fits.or(self.reading.first())
            .map_or(f64::INFINITY, |rate| rate.bytes_per_second)
    }

    /// Operations per second on operands of this dtype; for a dtype without instructions of its own, those on f32.
    #[must_use]
    pub fn flops(&self, dtype: DType) -> f64 {
        match (dtype, self.bf16_flops) {
            (DType::BF16, Some(bf16)) => bf16.max(self.f32_flops),
            _ => self.f32_flops,
        }
    }

    /// The better of two measurements in each respect, as a busy machine may have slowed down either.
    #[must_use]
    pub fn or_better(mut self, other: &Self) -> Self {
        for (rate, other) in self.reading.iter_mut().zip(&other.reading) {
            rate.bytes_per_second = rate.bytes_per_second.max(other.bytes_per_second);
        }
        self.f32_flops = self.f32_flops.max(other.f32_flops);
        self.bf16_flops = match (self.bf16_flops, other.bf16_flops) {
            (Some(a), Some(b)) => Some(a.max(b)),
            (a, b) => a.or(b),
        };
        self.settled |= other.settled;
        self
    }
}

/// A loop over registers, and its operations per iteration.
struct FlopLoop {
    run: fn(iterations: usize),
    flops: usize,
}

/// The sum of each thread's best rate: registers are not shared, so the rounds need not be the same.
fn flops(threads: usize, measured: &FlopLoop) -> f64 {
    let seconds = race(threads, 1, || (), |(), _, _| (measured.run)(ITERATIONS))[0].apart;
    (threads * ITERATIONS * measured.flops) as f64 / seconds
}

/// Memory is shared, so only rounds count in which all threads read. Also returns whether there were any.
fn reading(threads: usize) -> (Vec<ReadingRate>, bool) {
    let sizes = sizes(threads);
    let mut paces = read(threads, &sizes);
    let settled = |paces: &[Pace]| paces.iter().all(|pace| pace.together <= TOGETHER * pace.apart);
    for _ in 1..ATTEMPTS {
        if settled(&paces) {
            break;
        }
        thread::sleep(PAUSE);
        let again = read(threads, &sizes);
        paces = paces.iter().zip(&again).map(|(a, b)| a.or_better(b)).collect();
    }
    let mut rates: Vec<_> = sizes
        .iter()
        .zip(&paces)
        .map(|(bytes, pace)| ReadingRate {
            bytes: threads * bytes,
            bytes_per_second: (threads * ROUND) as f64 / pace.together,
        })
        .collect();
    for larger in (1..rates.len()).rev() {
        rates[larger - 1].bytes_per_second = rates[larger - 1].bytes_per_second.max(rates[larger].bytes_per_second);
    }
    (rates, settled(&paces))
}

/// The working sets of each thread, in bytes; those above [`ROUND`] are multiples of it.
fn sizes(threads: usize) -> Vec<usize> {
    let largest = CACHED[CACHED.len() - 1];
    let uncached = UNCACHED.map(|size| (size / threads).max(2 * largest).next_multiple_of(ROUND));
    let mut sizes: Vec<usize> = CACHED.into_iter().chain(uncached).collect();
    sizes.dedup();
    sizes
}

/// The time to read [`ROUND`] bytes on each thread, by working set size.
fn read(threads: usize, sizes: &[usize]) -> Vec<Pace> {
    let sum = machine::reader();
    let most = sizes.iter().max().map_or(0, |&size| size as u64);
    // Initialised, so that pages are allocated and do not all map to the zero page.
    let numbers = || (0..most / 8).map(|i| i.wrapping_mul(0x9E37_79B9_7F4A_7C15)).collect();
    // A small working set is read several times per round, a large one in parts, round after round.
    let read = |numbers: &mut Vec<u64>, task: usize, round: usize| {
        let part = sizes[task].min(ROUND);
        let start = round * part % sizes[task];
        for _ in 0..ROUND / part {
            black_box(sum(black_box(&numbers[start / 8..(start + part) / 8])));
        }
    };
    race(threads, sizes.len(), numbers, read)
}

/// The time of a round, in seconds.
#[derive(Debug, Clone, Copy)]
struct Pace {
    /// The shortest time from the first thread's start to the last one's end.
    together: f64,
    /// The shortest time of each thread, as if these had coincided.
    apart: f64,
}

impl Pace {
    fn or_better(&self, other: &Self) -> Self {
        Self {
            together: self.together.min(other.together),
            apart: self.apart.min(other.apart),
        }
    }
}

/// Runs each task on all threads at once, round after round.
fn race<S>(
    threads: usize,
    tasks: usize,
    prepare: impl Fn() -> S + Sync,
    run: impl Fn(&mut S, usize, usize) + Sync,
) -> Vec<Pace> {
    let arrived = AtomicUsize::new(0);
    let one_thread = || {
        let mut state = prepare();
        let round = |at: usize| {
            barrier(&arrived, (at + 1) * threads);
            let start = Instant::now();
            run(&mut state, at / ROUNDS, at % ROUNDS);
            (start, Instant::now())
        };
        (0..tasks * ROUNDS).map(round).collect::<Vec<_>>()
    };
    let times: Vec<Vec<(Instant, Instant)>> = thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(one_thread)).collect();
        threads.into_iter().filter_map(|thread| thread.join().ok()).collect()
    });
    let of_task = |task: usize| task * ROUNDS..(task + 1) * ROUNDS;
    (0..tasks).map(|task| pace(&times, of_task(task))).collect()
}

/// The times of some rounds, from each thread's starts and ends.
fn pace(times: &[Vec<(Instant, Instant)>], rounds: Range<usize>) -> Pace {
    let together = |round: usize| {
        let start = times.iter().map(|thread| thread[round].0).min();
        let end = times.iter().map(|thread| thread[round].1).max();
        start
            .zip(end)
            .map_or(f64::INFINITY, |(start, end)| (end - start).as_secs_f64())
    };
    let least = |seconds: &mut dyn Iterator<Item = f64>| seconds.fold(f64::INFINITY, f64::min);
    let alone = |thread: &Vec<(Instant, Instant)>| {
        least(
            &mut thread[rounds.clone()]
                .iter()
                .map(|(start, end)| (*end - *start).as_secs_f64()),
        )
    };
    let rate: f64 = times.iter().map(|thread| 1.0 / alone(thread)).sum();
    Pace {
        together: least(&mut rounds.clone().map(together)),
        apart: times.len() as f64 / rate,
    }
}

/// A spinning barrier for `expected` threads. Waking a sleeping thread takes longer than rounds may differ.
fn barrier(arrived: &AtomicUsize, expected: usize) {
    arrived.fetch_add(1, Ordering::AcqRel);
    for spin in 0u32.. {
        if arrived.load(Ordering::Acquire) >= expected {
            return;
        }
        if spin.is_multiple_of(1 << 12) {
            thread::yield_now();
        } else {
            std::hint::spin_loop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        let rate = |bytes, bytes_per_second| ReadingRate {
            bytes,
            bytes_per_second,
        };
        Limits {
            threads: 2,
            reading: vec![rate(1 << 10, 1000.0), rate(1 << 20, 100.0)],
            f32_flops: 10.0,
            bf16_flops: Some(20.0),
            settled: false,
        }
    }

    #[test]
    fn a_working_set_has_the_rate_of_the_next_smaller_size() {
        let rates = [0.0, 1e3, 1e4, 2e6].map(|bytes| limits().bytes_per_second(bytes));
        assert_eq!(rates, [1000.0, 1000.0, 1000.0, 100.0]);
    }

    #[test]
    fn the_slower_of_bytes_and_operations_counts() {
        let work = |bytes, flops, dtype| Work { bytes, flops, dtype };
        assert_eq!(limits().least_seconds(&work(1000.0, 5.0, DType::F32)), 1.0);
        assert_eq!(limits().least_seconds(&work(1000.0, 50.0, DType::F32)), 5.0);
        assert_eq!(limits().least_seconds(&work(1000.0, 50.0, DType::BF16)), 2.5);
    }

    #[test]
    fn the_better_half_of_each_measurement_is_kept() {
        let mut other = limits();
        (other.f32_flops, other.bf16_flops, other.settled) = (12.0, None, true);
        other.reading[1].bytes_per_second = 200.0;
        let both = limits().or_better(&other);
        assert_eq!(
            (both.f32_flops, both.bf16_flops, both.settled),
            (12.0, Some(20.0), true)
        );
        assert_eq!(
            both.reading.iter().map(|r| r.bytes_per_second).collect::<Vec<_>>(),
            [1000.0, 200.0]
        );
    }

    #[test]
    fn alternating_threads_are_not_taken_for_concurrent_ones() {
        let start = Instant::now();
        let span = |from, to| (start + Duration::from_millis(from), start + Duration::from_millis(to));
        let at_once = pace(
            &[vec![span(0, 10), span(20, 40)], vec![span(0, 10), span(20, 40)]],
            0..2,
        );
        assert_eq!((at_once.together, at_once.apart), (0.01, 0.01));
        let in_turns = pace(&[vec![span(0, 10)], vec![span(10, 20)]], 0..1);
        assert_eq!((in_turns.together, in_turns.apart), (0.02, 0.01));
    }

    #[test]
    fn the_reader_reads_every_word() {
        let numbers: Vec<u64> = (0..1000u64).map(|i| i.wrapping_mul(0x9E37_79B9_7F4A_7C15)).collect();
        for count in [0, 1, 63, 64, 65, 1000] {
            let plain = numbers[..count].iter().fold(0u64, |sum, &word| sum.wrapping_add(word));
            assert_eq!(machine::reader()(&numbers[..count]), plain, "{count} words");
        }
    }

    #[test]
    fn a_machine_has_plausible_limits() {
        let limits = measure();
        assert!(limits.f32_flops > 1e8 && limits.f32_flops < 1e15, "{limits:?}");
        assert!(
            limits.bf16_flops.is_none_or(|bf16| bf16 > 1e8 && bf16 < 1e15),
            "{limits:?}"
        );
        let rates: Vec<f64> = limits.reading.iter().map(|rate| rate.bytes_per_second).collect();
        assert!(rates.is_sorted_by(|near, far| near >= far), "{limits:?}");
        assert!(rates.iter().all(|rate| *rate > 1e8 && *rate < 1e14), "{limits:?}");
    }
}
