//! The thread pool of the kernels. Starting a parallel loop costs about a microsecond while the workers are awake: they
//! spin for a moment before they sleep. Free threads take the next piece, and a loop never waits for a worker that has
//! not joined.
//!
//! One loop runs at a time. A loop started from inside another, or while another thread's loop runs, stays on its own
//! thread; so does everything under [`with_threads`]`(1, ..)`. How work is split never depends on any of this.

use super::tuning::programs::{PATIENCE, POLL_INTERVAL, SPIN};
use std::any::Any;
use std::cell::Cell;
use std::hint::spin_loop;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

/// Polls of the state between two readings of the clock.
const POLLS: u32 = 64;
/// Maximum number of workers.
const MAX_WORKERS: usize = 255;

thread_local! {
    static LIMIT: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// Runs `f` with at most `threads` threads in each parallel loop that this thread starts.
///
/// Results never depend on the number of threads: it is for measuring, and for leaving cores to other processes. The
/// environment variable `METAL_CANDLE_THREADS` sets it for a whole process.
pub fn with_threads<R>(threads: usize, f: impl FnOnce() -> R) -> R {
    struct Restore(usize);
    impl Drop for Restore {
        fn drop(&mut self) {
            LIMIT.set(self.0);
        }
    }
    let _restore = Restore(LIMIT.replace(threads.max(1)));
    f()
}

/// Threads of a loop that this thread starts: as set by [`with_threads`], else by the environment, else one per core.
#[must_use]
pub fn threads() -> usize {
    match LIMIT.get() {
        usize::MAX => from_environment().unwrap_or_else(cores),
        limit => limit,
    }
}

/// Like [`threads`], but `None` if a number was set.
pub(crate) fn default_threads() -> Option<usize> {
    (LIMIT.get() == usize::MAX && from_environment().is_none()).then(cores)
}

/// The number set in the environment.
fn from_environment() -> Option<usize> {
    static ASKED: OnceLock<Option<usize>> = OnceLock::new();
    let read = || std::env::var("METAL_CANDLE_THREADS").ok()?.parse().ok();
    *ASKED.get_or_init(|| read().filter(|&threads| threads > 0))
}

fn cores() -> usize {
    static CORES: OnceLock<usize> = OnceLock::new();
    *CORES.get_or_init(|| thread::available_parallelism().map_or(1, usize::from))
}

/// Calls `f(0)` to `f(count - 1)`, each once, in any order, spread over the threads.
///
/// # Panics
/// When `f` does.
pub(crate) fn run(count: usize, f: &(dyn Fn(usize) + Sync)) {
    let workers = threads().min(count).saturating_sub(1).min(MAX_WORKERS);
    if workers == 0 || !POOL.try_run(workers, count, f) {
        (0..count).for_each(f);
    }
}

/// The current loop and its participants.
struct ThreadPool {
    /// Whether a loop is being set up or running.
    busy: AtomicBool,
    /// The loop's number in the high bits; in the low bits whether it is open and how many workers have joined.
    state: AtomicU64,
    /// Workers with a lower index may join: always the same ones, so that others sleep and leave their cores free.
    admitted: AtomicUsize,
    /// The loop's function; valid while the loop is open or a worker has joined.
    function: FunctionCell,
    count: AtomicUsize,
    next: AtomicUsize,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    /// Workers started so far; changed only by the thread that set `busy`.
    started: AtomicUsize,
    workers: [Worker; MAX_WORKERS],
}

/// The shared state of a worker.
struct Worker {
    asleep: AtomicBool,
    thread: OnceLock<Thread>,
}

static POOL: ThreadPool = ThreadPool {
    busy: AtomicBool::new(false),
    state: AtomicU64::new(0),
    admitted: AtomicUsize::new(0),
    function: FunctionCell(Cell::new(None)),
    count: AtomicUsize::new(0),
    next: AtomicUsize::new(0),
    panic: Mutex::new(None),
    started: AtomicUsize::new(0),
    workers: [const {
        Worker {
            asleep: AtomicBool::new(false),
            thread: OnceLock::new(),
        }
    }; MAX_WORKERS],
};

type Function = *const (dyn Fn(usize) + Sync);

struct FunctionCell(Cell<Option<Function>>);

// SAFETY: written only by the thread that set `busy` while no worker has joined, read only by workers that joined
// afterwards; `state` synchronises both. The function itself is Sync.
unsafe impl Sync for FunctionCell {}

const OPEN: u64 = 1 << 31;
const INSIDE: u64 = OPEN - 1;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No update under these locks can be left incomplete.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ThreadPool {
    /// Returns false if another loop is running.
    fn try_run(&'static self, workers: usize, count: usize, f: &(dyn Fn(usize) + Sync)) -> bool {
        if self
            .busy
            .compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed)
            .is_err()
        {
            return false;
        }
        self.start_workers(workers);
        self.open(workers, count, f);
        self.wake(workers);
        self.work(f, count);
        self.close();
        let panic = lock(&self.panic).take();
        self.busy.store(false, Ordering::Release);
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
        true
    }

    fn open(&self, workers: usize, count: usize, f: &(dyn Fn(usize) + Sync)) {
        // SAFETY: only the lifetime changes; `close` waits until no worker uses the function.
        let function: Function = unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), Function>(f) };
        self.function.0.set(Some(function));
        self.count.store(count, Ordering::Relaxed);
        self.next.store(0, Ordering::Relaxed);
        self.admitted.store(workers, Ordering::Relaxed);
        let number = (self.state.load(Ordering::Relaxed) >> 32) + 1;
        self.state.store(number << 32 | OPEN, Ordering::Release);
    }

    /// Wakes sleeping workers that may join.
    fn wake(&self, workers: usize) {
        // Either the sleeper sees the open loop, or this thread sees the sleeper.
        fence(Ordering::SeqCst);
        for worker in &self.workers[..workers.min(self.started.load(Ordering::Relaxed))] {
            if worker.asleep.load(Ordering::Relaxed) {
                worker.thread.get().into_iter().for_each(Thread::unpark);
            }
        }
    }

    /// Runs pieces until none are left. A panic is kept for the thread that started the loop, and ends the loop.
    fn work(&self, f: &(dyn Fn(usize) + Sync), count: usize) {
        let pieces = || {
            loop {
                let i = self.next.fetch_add(1, Ordering::Relaxed);
                if i >= count {
                    break;
                }
                f(i);
            }
        };
        if let Err(panic) = catch_unwind(AssertUnwindSafe(pieces)) {
            self.next.store(count, Ordering::Relaxed);
            *lock(&self.panic) = Some(panic);
        }
    }

    /// Closes the loop to new workers and waits for those that have joined.
    fn close(&self) {
        self.state.fetch_and(!OPEN, Ordering::AcqRel);
        let empty = || (self.state.load(Ordering::Acquire) & INSIDE == 0).then_some(());
        while spin(PATIENCE, empty).is_none() {
            thread::sleep(POLL_INTERVAL);
        }
    }

    fn start_workers(&'static self, workers: usize) {
        for number in self.started.load(Ordering::Relaxed)..workers {
            let builder = thread::Builder::new().name(format!("metal-candle-{number}"));
            let Ok(handle) = builder.spawn(move || self.serve(number)) else {
                // The remaining threads do all the work.
                break;
            };
            // Set once: no other thread starts this worker.
            let _ = self.workers[number].thread.set(handle.thread().clone());
            self.started.store(number + 1, Ordering::Relaxed);
        }
    }

    /// The main loop of a worker.
    fn serve(&self, number: usize) {
        let mut done = 0;
        loop {
            let state = self.wait(number, done);
            done = state >> 32;
            if !self.join(state) {
                continue;
            }
            if let Some(function) = self.function.0.get() {
                // SAFETY: `close` waits for this worker, so the function is alive.
                self.work(unsafe { &*function }, self.count.load(Ordering::Relaxed));
            }
            self.state.fetch_sub(1, Ordering::Release);
        }
    }

    /// Waits for an open loop, other than loop `done`, that admits this worker.
    fn wait(&self, number: usize, done: u64) -> u64 {
        let news = || {
            let state = self.state.load(Ordering::Acquire);
            let is_new = state & OPEN != 0 && state >> 32 != done;
            (is_new && number < self.admitted.load(Ordering::Relaxed)).then_some(state)
        };
        if let Some(state) = spin(SPIN, news) {
            return state;
        }
        let asleep = &self.workers[number].asleep;
        asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        loop {
            if let Some(state) = news() {
                asleep.store(false, Ordering::Relaxed);
                return state;
            }
            thread::park();
        }
    }

    /// Joins the loop of `state`; false if it is over.
    fn join(&self, mut state: u64) -> bool {
        let number = state >> 32;
        while state & OPEN != 0 && state >> 32 == number {
            match self
                .state
                .compare_exchange_weak(state, state + 1, Ordering::AcqRel, Ordering::Acquire)
            {
                Ok(_) => return true,
                Err(now) => state = now,
            }
        }
        false
    }
}

/// Polls `look` for up to `time`.
fn spin<R>(time: Duration, look: impl Fn() -> Option<R>) -> Option<R> {
    let mut start = None;
    loop {
        for _ in 0..POLLS {
            if let Some(found) = look() {
                return Some(found);
            }
            spin_loop();
        }
        if start.get_or_insert_with(Instant::now).elapsed() >= time {
            return None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(threads: usize, count: usize) -> Vec<usize> {
        let counts: Vec<AtomicUsize> = (0..count).map(|_| AtomicUsize::new(0)).collect();
        with_threads(threads, || {
            run(count, &|i| {
                counts[i].fetch_add(1, Ordering::Relaxed);
            });
        });
        counts.into_iter().map(AtomicUsize::into_inner).collect()
    }

    #[test]
    fn every_piece_runs_once() {
        for round in 0..if cfg!(miri) { 40 } else { 300 } {
            let count = round % 37;
            assert_eq!(counts(1 + round % 5, count), vec![1; count]);
        }
    }

    #[test]
    fn nested_and_concurrent_loops() {
        let rounds = if cfg!(miri) { 5 } else { 50 };
        let total = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for _ in 0..rounds {
                        run(8, &|_| {
                            run(5, &|_| {
                                total.fetch_add(1, Ordering::Relaxed);
                            });
                        });
                    }
                });
            }
        });
        assert_eq!(total.into_inner(), 3 * rounds * 8 * 5);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_survives() {
        let caught = catch_unwind(|| {
            with_threads(3, || run(100, &|i| assert_ne!(i, 57, "piece 57")));
        });
        assert!(caught.is_err());
        assert_eq!(counts(3, 20), vec![1; 20]);
    }

    #[test]
    fn the_limit_ends_with_its_scope() {
        let before = threads();
        assert_eq!(with_threads(3, || (threads(), with_threads(1, threads))), (3, 1));
        assert_eq!(threads(), before);
    }
}
