//! The sizes that decide how kernels are cut and which of them run, on the CPU. They were chosen by timing on x86-64 (AMD
//! Zen 4 and Zen 3, Intel with AVX-512 and AMX) with `metal-candle bench` and `explain`, which show what a change of one
//! does. How work is cut changes no result; which kernel runs (the numbers of rows and terms of products) may round sums
//! differently. Sizes that fix the order of a sum are not here.

/// Loops over elements.
pub(crate) mod loops {
    /// Below this many element operations a call stays on the caller's thread: waking others costs microseconds.
    pub(crate) const PARALLEL_WORK: usize = if cfg!(miri) { 1 << 8 } else { 1 << 16 };
    /// A piece of work is at least this many element operations: large enough to be worth a task, small enough to balance.
    pub(crate) const PIECE_WORK: usize = if cfg!(miri) { 1 << 6 } else { 1 << 14 };
    /// And there are at most this many pieces.
    pub(crate) const MAX_PIECES: usize = 64;
    /// Elements of a piece of a fused elementwise loop.
    pub(crate) const PIECE: usize = 1 << 14;
}

/// Matrix products, those with quantised weights too.
pub(crate) mod matmul {
    /// From this many multiply-adds on, a product is spread over threads.
    pub(crate) const PARALLEL_MACS: usize = if cfg!(miri) { 1 << 9 } else { 1 << 18 };
    /// A row with fewer multiply-adds is one piece.
    pub(crate) const PIECE_MACS: usize = 1 << 15;
    /// Up to so many rows of A, a B that lies row by row is read as it lies.
    pub(crate) const FEW_ROWS: usize = 48;
    /// Up to so many, if elements of 16 bits could be multiplied in pairs, or widened once, instead.
    pub(crate) const VERY_FEW_ROWS: usize = 8;
    /// Up to so many rows, activations are quantised where weights are.
    pub(crate) const QUANTISED_ROWS: usize = 8;
    /// A B that lies row by row is read so where the sums have at most so many terms.
    pub(crate) const FEW_TERMS: usize = 32;
    /// Up to so many rows (or columns), contiguous operands are multiplied as dot products.
    pub(crate) const DOT_ROWS: usize = 12;
    /// Bytes of weights that a task reads, about, where reading them takes longest: memory gives long runs faster.
    pub(crate) const TASK_BYTES: usize = 1 << 18;
    /// Rows of A that are packed at a time, at most.
    pub(crate) const CHUNK: usize = 1024;
    /// And about how many bytes of them.
    pub(crate) const CHUNK_BYTES: usize = 8 << 20;
    /// A product has at least about so many tasks for each thread, if its rows give them. More would even out threads
    /// better, but each packs its panel of B.
    pub(crate) const TASKS: usize = 4;
    /// Rows of a task, about, at least: each packs its panel of B.
    pub(crate) const TASK_ROWS: usize = 128;
    /// Bytes of the panels of B that a task of a matrix unit packs, about, at most: they stay in the second cache.
    pub(crate) const PANEL_BYTES: usize = 1 << 20;
    /// Rows of a task, about, where there is a single panel.
    pub(crate) const NARROW_ROWS: usize = 32;
    /// Up to so many terms, and [`ROW_BYTES`] of B, writing C takes longest, which memory takes row by row best.
    pub(crate) const ROW_TERMS: usize = 64;
    /// See [`ROW_TERMS`].
    pub(crate) const ROW_BYTES: usize = 256 << 10;
    /// Rows that memory is asked for before they are packed.
    pub(crate) const AHEAD: usize = 32;
}

/// Attention.
pub(crate) mod attention {
    /// Up to so many rows, keys and values are waited for more than computed with, and tasks are cut along them.
    pub(crate) const FEW_ROWS: usize = 16;
    /// The gradient has at least about so many tasks, if its queries give them.
    pub(crate) const TASKS: usize = 12;
}

/// The loss over a vocabulary.
pub(crate) mod cross_entropy {
    /// What an exponential costs, in plain operations.
    pub(crate) const EXP_WORK: usize = 16;
    /// Bytes of logits that are kept for the gradient, about, at most. Tests see several blocks.
    pub(crate) const KEPT_BYTES: usize = if cfg!(test) { 1 << 18 } else { 48 << 20 };
    /// Rows of a block whose logits are kept, at least: fewer would read the weight too often.
    pub(crate) const LEAST_ROWS: usize = 32;
}

/// Programs and threads.
pub(crate) mod programs {
    use std::time::Duration;

    /// A step of this much work is spread over threads by its kernel.
    pub(crate) const LARGE_STEP: f64 = (1u32 << 18) as f64;
    /// Work of small steps that is worth several threads.
    pub(crate) const WORTH_THREADS: f64 = (1u32 << 16) as f64;
    /// Groups of small steps are bundled into about so many tasks, at most.
    pub(crate) const TASKS: f64 = 32.0;
    /// Element operations of a program whose number of threads is worth choosing: it takes about a millisecond.
    pub(crate) const LONG_WORK: f64 = (1u32 << 25) as f64;
    /// How long a worker watches for the next loop before it sleeps.
    pub(crate) const WATCH: Duration = Duration::from_micros(200);
    /// How long the end of a loop is watched for before it is only looked at now and then. A worker's core may be taken
    /// for some milliseconds; whoever sleeps or yields meanwhile gives its own away too and waits as long for it again.
    pub(crate) const PATIENCE: Duration = Duration::from_millis(10);
    /// Between two looks then.
    pub(crate) const NAP: Duration = Duration::from_micros(100);
}
