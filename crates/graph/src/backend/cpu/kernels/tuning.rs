//! The tuning parameters of the kernels: block sizes and thresholds. They were chosen by timing on x86-64 (AMD Zen 4
//! and Zen 3, Intel with AVX-512 and AMX) with `metal-candle bench` and `explain`, which show the effect of a change.
//! How work is split changes no result; which kernel runs (the numbers of rows and terms of products) may change how
//! sums are rounded. Sizes that fix the order of a sum are not here.

/// Loops over elements.
pub(crate) mod loops {
    /// Calls with fewer element operations stay on the caller's thread: waking others costs microseconds.
    pub(crate) const PARALLEL_WORK: usize = if cfg!(miri) { 1 << 8 } else { 1 << 16 };
    /// Minimum element operations of a piece of work: large enough to be worth a task, small enough to balance.
    pub(crate) const PIECE_WORK: usize = if cfg!(miri) { 1 << 6 } else { 1 << 14 };
    /// Maximum number of pieces.
    pub(crate) const MAX_PIECES: usize = 64;
    /// Elements per piece of a fused elementwise loop.
    pub(crate) const PIECE: usize = 1 << 14;
}

/// Matrix products, including those with quantised weights.
pub(crate) mod matmul {
    /// Minimum multiply-adds of a product that is spread over threads.
    pub(crate) const PARALLEL_MACS: usize = if cfg!(miri) { 1 << 9 } else { 1 << 18 };
    /// A row with fewer multiply-adds is one piece.
    pub(crate) const PIECE_MACS: usize = 1 << 15;
    /// Maximum rows of A for which a row-major B is read in place, without packing.
    pub(crate) const FEW_ROWS: usize = 48;
    /// The same where 16-bit elements could instead be multiplied in pairs, or widened once.
    pub(crate) const VERY_FEW_ROWS: usize = 8;
    /// Maximum rows of activations that are quantised for products with quantised weights.
    pub(crate) const QUANTISED_ROWS: usize = 8;
    /// Maximum inner dimension for which a row-major B is read in place.
    pub(crate) const FEW_TERMS: usize = 32;
    /// Maximum rows (or columns) for which contiguous operands are multiplied as dot products.
    pub(crate) const DOT_ROWS: usize = 12;
    /// Approximate bytes of weights per task of a memory-bound product: long sequential reads are faster.
    pub(crate) const TASK_BYTES: usize = 1 << 18;
    /// Maximum rows of A that are packed at a time.
    pub(crate) const CHUNK: usize = 1024;
    /// Approximate bytes of A that are packed at a time.
    pub(crate) const CHUNK_BYTES: usize = 8 << 20;
    /// Approximate minimum number of tasks per thread, if the rows allow it. More would balance better, but each task
    /// packs its panel of B.
    pub(crate) const TASKS: usize = 4;
    /// Approximate minimum rows per task, as each task packs its panel of B.
    pub(crate) const TASK_ROWS: usize = 128;
    /// Approximate maximum bytes of B panels that a task of a matrix unit packs, to stay in the L2 cache.
    pub(crate) const PANEL_BYTES: usize = 1 << 20;
    /// Approximate rows per task with a single panel.
    pub(crate) const NARROW_ROWS: usize = 32;
    /// Maximum inner dimension (with at most [`ROW_BYTES`] of B) for which writing C dominates, which is fastest row by
    /// row.
    pub(crate) const ROW_TERMS: usize = 64;
    /// See [`ROW_TERMS`].
    pub(crate) const ROW_BYTES: usize = 256 << 10;
    /// Prefetch distance in rows for packing.
    pub(crate) const AHEAD: usize = 32;
}

/// Attention.
pub(crate) mod attention {
    /// Maximum rows for which attention is bound by reading keys and values; tasks are then split along the keys.
    pub(crate) const FEW_ROWS: usize = 16;
    /// Approximate minimum number of tasks of the gradient, if its queries allow it.
    pub(crate) const TASKS: usize = 12;
}

/// The loss over a vocabulary.
pub(crate) mod cross_entropy {
    /// Cost of an exponential, in element operations.
    pub(crate) const EXP_WORK: usize = 16;
    /// Approximate maximum bytes of exponentials saved for the gradient. Tests see several blocks.
    pub(crate) const SAVED_BYTES: usize = if cfg!(test) { 1 << 18 } else { 48 << 20 };
    /// Minimum rows per block with saved exponentials: fewer would read the weight too often.
    pub(crate) const LEAST_ROWS: usize = 32;
}

/// Programs and threads.
pub(crate) mod programs {
    use std::time::Duration;

    /// Minimum work of a step whose kernel is spread over threads.
    pub(crate) const LARGE_STEP: f64 = (1u32 << 18) as f64;
    /// Minimum total work of small steps that are spread over threads.
    pub(crate) const WORTH_THREADS: f64 = (1u32 << 16) as f64;
    /// Approximate maximum number of tasks into which groups of small steps are bundled.
    pub(crate) const TASKS: f64 = 32.0;
    /// Minimum element operations of a program whose number of threads is tuned: about a millisecond.
    pub(crate) const LONG_WORK: f64 = (1u32 << 25) as f64;
    /// How long an idle worker spins before it sleeps.
    pub(crate) const SPIN: Duration = Duration::from_micros(200);
    /// How long the end of a loop is polled continuously, before it is polled in intervals. A worker may be preempted
    /// for some milliseconds; sleeping or yielding meanwhile would give up this core too, and wait as long to get it
    /// back.
    pub(crate) const PATIENCE: Duration = Duration::from_millis(10);
    /// The interval of these polls.
    pub(crate) const POLL_INTERVAL: Duration = Duration::from_micros(100);
}
