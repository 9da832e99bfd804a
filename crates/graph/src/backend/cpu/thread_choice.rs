//! Tunes the number of threads of a program at run time. Beside busy processes fewer threads are often faster: a
//! preempted thread delays all others at the end of each loop. The fastest number is measured on the program's own
//! runs, by trying an adjacent number now and then. Results never depend on it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, TryLockError};
use std::time::Instant;

use smallvec::SmallVec;

use super::kernels::pool::{default_threads, with_threads};

/// The candidate numbers, in quarters of all threads.
const QUARTERS: [usize; 4] = [4, 3, 2, 1];
/// A candidate is adopted if its run took at most this share of the expected time.
const FASTER: f64 = 0.93;
/// A run that takes more than this multiple of the expected time means that the machine's load has changed.
const SLOWER: f64 = 1.3;
/// Runs between two trials, initially and at most. The interval doubles with each trial that was not faster.
const FIRST_PAUSE: u32 = 3;
const LONGEST_PAUSE: u32 = 96;

/// The number that a program adopted last: the initial number of new programs.
static LATEST: AtomicUsize = AtomicUsize::new(0);

/// The number of threads of one program.
pub(super) struct ThreadChoice(Mutex<Search>);

impl ThreadChoice {
    pub fn new() -> Self {
        Self(Mutex::new(Search::from(LATEST.load(Ordering::Relaxed))))
    }

    /// Runs `f` with the fastest known number of threads, and learns from the time it takes.
    pub fn run<R>(&self, f: impl FnOnce() -> R) -> R {
        let mut search = match self.0.try_lock() {
            Ok(search) => search,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            // The program is already running on another thread.
            Err(TryLockError::WouldBlock) => return f(),
        };
        let Some(numbers) = default_threads().map(numbers).filter(|numbers| numbers.len() > 1) else {
            return f();
        };
        let number = search.next(numbers.len());
        let start = Instant::now();
        let result = with_threads(numbers[number], f);
        if search.took(start.elapsed().as_secs_f64(), numbers.len()) {
            LATEST.store(search.chosen, Ordering::Relaxed);
        }
        result
    }
}

/// The candidate numbers of threads out of `all`, largest first.
fn numbers(all: usize) -> SmallVec<[usize; 4]> {
    let mut numbers: SmallVec<[usize; 4]> = QUARTERS.iter().map(|quarters| (all * quarters).div_ceil(4)).collect();
    numbers.dedup();
    numbers
}

/// A local search over indices into a list of numbers for the one with the fastest runs.
#[derive(Debug)]
struct Search {
    chosen: usize,
    /// The candidate of the current run, if it is a trial.
    tried: Option<usize>,
    /// Expected seconds of a run with the chosen number; `None` before the first.
    expected: Option<f64>,
    /// Runs left before the next trial, and the length of this interval.
    left: u32,
    pause: u32,
    /// Whether the next trial uses fewer threads.
    fewer: bool,
    slow_runs: u32,
}

impl Search {
    fn from(chosen: usize) -> Self {
        Self {
            chosen,
            tried: None,
            expected: None,
            left: FIRST_PAUSE,
            pause: FIRST_PAUSE,
            fewer: true,
            slow_runs: 0,
        }
    }

    /// The index for the next run, out of `count`.
    fn next(&mut self, count: usize) -> usize {
        self.chosen = self.chosen.min(count - 1);
        if self.left > 0 {
            self.left -= 1;
            self.tried = None;
            return self.chosen;
        }
        if self.chosen == 0 {
            self.fewer = true;
        } else if self.chosen == count - 1 {
            self.fewer = false;
        }
        let tried = if self.fewer { self.chosen + 1 } else { self.chosen - 1 };
        self.tried = Some(tried);
        tried
    }

    /// Records the seconds of a run; returns whether another number was chosen.
    fn took(&mut self, seconds: f64, count: usize) -> bool {
        let expected = self.expected.unwrap_or(seconds);
        let Some(tried) = self.tried.take() else {
            self.expect(seconds, expected);
            return false;
        };
        if seconds < FASTER * expected {
            (self.chosen, self.expected) = (tried, Some(seconds));
            // Tries the next number in the same direction after one confirming run.
            (self.left, self.pause) = (1, FIRST_PAUSE);
            return true;
        }
        self.fewer = !self.fewer;
        let other_is_left = !self.fewer && self.chosen > 0 && self.chosen < count - 1;
        if !other_is_left {
            self.pause = (2 * self.pause).min(LONGEST_PAUSE);
        }
        self.left = self.pause;
        false
    }

    /// Records a run with the chosen number, against the expected time.
    fn expect(&mut self, seconds: f64, expected: f64) {
        if seconds > SLOWER * expected {
            self.slow_runs += 1;
        } else {
            self.slow_runs = 0;
        }
        if self.slow_runs == 2 {
            (self.slow_runs, self.left, self.pause) = (0, 0, FIRST_PAUSE);
            self.expected = Some(seconds);
        } else {
            // The first runs are slow for other reasons; later ones are averaged.
            self.expected = Some(if seconds < expected {
                0.5 * (seconds + expected)
            } else {
                0.8 * expected + 0.2 * seconds
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Simulates runs with these seconds per index; returns the final index, and the number of runs with another one.
    fn walk(search: &mut Search, seconds: &[f64], runs: usize) -> (usize, usize) {
        let mut others = 0;
        for _ in 0..runs {
            let position = search.next(seconds.len());
            search.took(seconds[position], seconds.len());
            others += usize::from(position != search.chosen);
        }
        (search.chosen, others)
    }

    #[test]
    fn numbers_are_quarters_each_once() {
        let expected: [&[usize]; 5] = [&[1], &[2, 1], &[3, 2, 1], &[4, 3, 2, 1], &[16, 12, 8, 4]];
        for (all, expected) in [1, 2, 3, 4, 16].into_iter().zip(expected) {
            assert_eq!(numbers(all).as_slice(), expected);
        }
    }

    #[test]
    fn the_fastest_is_found_from_anywhere() {
        let shapes = [
            [1.0, 1.3, 1.9, 3.5],
            [2.0, 1.5, 1.0, 1.8],
            [4.0, 3.0, 2.0, 1.0],
            [2.0, 1.0, 1.5, 2.5],
        ];
        for (seconds, best) in shapes.iter().zip([0, 2, 3, 1]) {
            for start in 0..4 {
                assert_eq!(
                    walk(&mut Search::from(start), seconds, 40).0,
                    best,
                    "{seconds:?} from {start}"
                );
            }
        }
    }

    #[test]
    fn few_trials_where_nothing_changes() {
        let (chosen, others) = walk(&mut Search::from(0), &[1.0, 1.3, 1.9, 3.5], 1000);
        assert_eq!(chosen, 0);
        assert!(others <= 16, "{others} of 1000 runs");
    }

    #[test]
    fn a_load_that_comes_and_goes_is_followed() {
        let mut search = Search::from(0);
        let (idle, beside_others) = ([1.0, 1.3, 1.9, 3.5], [3.0, 2.2, 1.9, 3.5]);
        walk(&mut search, &idle, 500);
        assert_eq!(walk(&mut search, &beside_others, 12).0, 2);
        assert_eq!(walk(&mut search, &idle, 110).0, 0);
    }

    #[test]
    fn a_fixed_number_stays() {
        let choice = ThreadChoice::new();
        let seen = with_threads(3, || {
            (0..20)
                .map(|_| choice.run(super::super::kernels::pool::threads))
                .collect::<Vec<_>>()
        });
        assert_eq!(seen, [3; 20]);
    }
}
