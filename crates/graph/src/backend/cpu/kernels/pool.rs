//! The threads that kernels share. Starting a parallel loop costs about a microsecond while the workers are awake: they
//! watch for work a moment before they sleep, and a loop never waits for a worker that has not begun.
//!
//! One loop runs at a time. A loop started from inside another, or while another thread's loop runs, stays on its own
//! thread; so does everything under [`with_threads`]`(1, ..)`. How work is cut never depends on any of this.

use std::any::Any;
use std::cell::Cell;
use std::hint::spin_loop;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How long a worker watches for the next loop before it sleeps.
const WATCH: Duration = Duration::from_micros(200);
/// Looks at the state between two looks at the clock.
const LOOKS: u32 = 64;

thread_local! {
    static LIMIT: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// Runs `f` with at most `threads` threads in each parallel loop that this thread starts.
///
/// Results never depend on the number: it is for measuring, and for leaving cores to others. For a whole process the
/// environment variable `METAL_CANDLE_THREADS` does the same.
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

/// Threads of a loop that this thread starts: what [`with_threads`] says, else the environment, else one per core.
#[must_use]
pub fn threads() -> usize {
    static DEFAULT: OnceLock<usize> = OnceLock::new();
    let default = || {
        let asked = std::env::var("METAL_CANDLE_THREADS").ok().and_then(|n| n.parse().ok());
        asked
            .filter(|&n| n > 0)
            .unwrap_or_else(|| thread::available_parallelism().map_or(1, usize::from))
    };
    match LIMIT.get() {
        usize::MAX => *DEFAULT.get_or_init(default),
        limit => limit,
    }
}

/// Calls `f(0)` to `f(count - 1)`, each once, in any order, spread over the threads. `wake`: whether the work is worth
/// waking workers that sleep.
///
/// # Panics
/// When `f` does.
pub(crate) fn run(count: usize, wake: bool, f: &(dyn Fn(usize) + Sync)) {
    let workers = threads().min(count).saturating_sub(1);
    if workers == 0 || !POOL.try_run(workers, count, wake, f) {
        (0..count).for_each(f);
    }
}

/// The loop that runs, and who takes part.
struct Pool {
    /// A loop is set up or runs.
    busy: AtomicBool,
    /// The number of the loop above; below whether it is open, and how many workers are in it.
    state: AtomicU64,
    /// Workers that may still join.
    places: AtomicUsize,
    /// The loop's function; valid while the loop is open or a worker is in it.
    function: FunctionCell,
    count: AtomicUsize,
    next: AtomicUsize,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    sleepers: AtomicUsize,
    sleep: Mutex<()>,
    bell: Condvar,
    /// Workers started so far.
    started: Mutex<usize>,
}

static POOL: Pool = Pool {
    busy: AtomicBool::new(false),
    state: AtomicU64::new(0),
    places: AtomicUsize::new(0),
    function: FunctionCell(Cell::new(None)),
    count: AtomicUsize::new(0),
    next: AtomicUsize::new(0),
    panic: Mutex::new(None),
    sleepers: AtomicUsize::new(0),
    sleep: Mutex::new(()),
    bell: Condvar::new(),
    started: Mutex::new(0),
};

type Function = *const (dyn Fn(usize) + Sync);

struct FunctionCell(Cell<Option<Function>>);

// SAFETY: written only by the thread that made the pool busy while no worker is in the loop, read only by workers that
// joined it afterwards; both sides meet in `state`. The function itself is Sync.
unsafe impl Sync for FunctionCell {}

const OPEN: u64 = 1 << 31;
const INSIDE: u64 = OPEN - 1;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing under these locks can be left half done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    /// False where another loop runs.
    fn try_run(&'static self, workers: usize, count: usize, wake: bool, f: &(dyn Fn(usize) + Sync)) -> bool {
        if self
            .busy
            .compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed)
            .is_err()
        {
            return false;
        }
        self.start_workers(workers);
        self.open(workers, count, f);
        if wake {
            self.wake();
        }
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
        // SAFETY: only the lifetime changes; `close` waits until nobody uses it.
        let function: Function = unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), Function>(f) };
        self.function.0.set(Some(function));
        self.count.store(count, Ordering::Relaxed);
        self.next.store(0, Ordering::Relaxed);
        self.places.store(workers, Ordering::Relaxed);
        let number = (self.state.load(Ordering::Relaxed) >> 32) + 1;
        self.state.store(number << 32 | OPEN, Ordering::Release);
    }

    /// Takes pieces until there are none. A panic is kept for the thread that started the loop, and ends it.
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

    /// Lets nobody in any more and waits for those who are.
    fn close(&self) {
        let mut state = self.state.fetch_and(!OPEN, Ordering::AcqRel);
        let mut looks = 0u32;
        while state & INSIDE != 0 {
            looks += 1;
            if looks.is_multiple_of(1 << 12) {
                thread::yield_now();
            }
            spin_loop();
            state = self.state.load(Ordering::Acquire);
        }
    }

    fn wake(&self) {
        // Either the sleeper sees the open loop, or this sees the sleeper.
        fence(Ordering::SeqCst);
        if self.sleepers.load(Ordering::Relaxed) > 0 {
            drop(lock(&self.sleep));
            self.bell.notify_all();
        }
    }

    fn start_workers(&'static self, workers: usize) {
        let mut started = lock(&self.started);
        while *started < workers {
            let worker = thread::Builder::new().name(format!("metal-candle-{}", *started));
            if worker.spawn(move || self.serve()).is_err() {
                // Fewer threads do the same work.
                break;
            }
            *started += 1;
        }
    }

    /// A worker's life.
    fn serve(&self) {
        let mut done = 0;
        loop {
            let state = self.wait(done);
            done = state >> 32;
            if !self.join(state) {
                continue;
            }
            if let Some(function) = self.function.0.get() {
                // SAFETY: `close` waits for this worker, so the function lives.
                self.work(unsafe { &*function }, self.count.load(Ordering::Relaxed));
            }
            self.state.fetch_sub(1, Ordering::Release);
        }
    }

    /// Waits for a loop that is open and not number `done`.
    fn wait(&self, done: u64) -> u64 {
        let news = |state: u64| state & OPEN != 0 && state >> 32 != done;
        loop {
            let start = Instant::now();
            while start.elapsed() < WATCH {
                for _ in 0..LOOKS {
                    let state = self.state.load(Ordering::Acquire);
                    if news(state) {
                        return state;
                    }
                    spin_loop();
                }
            }
            let mut guard = lock(&self.sleep);
            self.sleepers.fetch_add(1, Ordering::Relaxed);
            fence(Ordering::SeqCst);
            while !news(self.state.load(Ordering::Acquire)) {
                guard = self.bell.wait(guard).unwrap_or_else(PoisonError::into_inner);
            }
            self.sleepers.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Enters the loop of `state`; false where it is over or full.
    fn join(&self, mut state: u64) -> bool {
        let number = state >> 32;
        while state & OPEN != 0 && state >> 32 == number {
            match self
                .state
                .compare_exchange_weak(state, state + 1, Ordering::AcqRel, Ordering::Acquire)
            {
                Ok(_) => {
                    let place = |n: usize| n.checked_sub(1);
                    let admitted = self.places.fetch_update(Ordering::Relaxed, Ordering::Relaxed, place);
                    if admitted.is_err() {
                        self.state.fetch_sub(1, Ordering::Release);
                    }
                    return admitted.is_ok();
                }
                Err(now) => state = now,
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(threads: usize, count: usize) -> Vec<usize> {
        let counts: Vec<AtomicUsize> = (0..count).map(|_| AtomicUsize::new(0)).collect();
        with_threads(threads, || {
            run(count, true, &|i| {
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
    fn loops_inside_loops_and_beside_loops() {
        let rounds = if cfg!(miri) { 5 } else { 50 };
        let total = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for _ in 0..rounds {
                        run(8, true, &|_| {
                            run(5, true, &|_| {
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
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let caught = catch_unwind(|| {
            with_threads(3, || run(100, true, &|i| assert_ne!(i, 57, "piece 57")));
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
