//! Errors of templates, and the budget of work with which they run.
//!
//! Every loop of the interpreter spends from the budget, so that a malicious template ends with a [`Fault`]. Nothing
//! here knows a template.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// The kind of a [`Fault`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::text) enum FaultKind {
    /// The template does not parse, or uses an unsupported construct.
    Syntax,
    /// The template called `raise_exception`.
    Raised,
    /// The limit of work, output or time is exceeded.
    Budget,
    /// Any other error that Python would raise.
    Failed,
}

/// An error with its line in the template.
#[derive(Clone, Debug)]
pub(in crate::text) struct Fault(Box<Details>);

#[derive(Clone, Debug)]
struct Details {
    kind: FaultKind,
    message: String,
    line: Option<usize>,
}

pub(in crate::text) type Outcome<T> = Result<T, Fault>;

impl Fault {
    pub fn new(kind: FaultKind, message: impl Into<String>) -> Self {
        Self(Box::new(Details {
            kind,
            message: message.into(),
            line: None,
        }))
    }

    pub fn kind(&self) -> FaultKind {
        self.0.kind
    }

    pub fn message(&self) -> &str {
        &self.0.message
    }

    pub fn line(&self) -> Option<usize> {
        self.0.line
    }

    /// The same error at this line, unless it already has one.
    pub fn at(mut self, line: usize) -> Self {
        self.0.line.get_or_insert(line);
        self
    }
}

/// A run-time error.
pub(super) fn failed<T>(message: impl Into<String>) -> Outcome<T> {
    Err(Fault::new(FaultKind::Failed, message))
}

/// Maximum nesting of values, calls and statements.
const MAX_DEPTH: usize = 200;
/// Units of work between readings of the clock.
const CLOCK_EVERY: u64 = 4096;

/// The remaining budget of a rendering: units of work (an operation, or 64 bytes of text), time, nesting.
pub(in crate::text) struct Budget {
    work: Cell<u64>,
    until_clock: Cell<u64>,
    deadline: Instant,
    time: Duration,
    depth: Cell<usize>,
}

impl Budget {
    pub fn new(work: u64, time: Duration) -> Self {
        Self {
            work: Cell::new(work),
            until_clock: Cell::new(CLOCK_EVERY),
            deadline: Instant::now() + time,
            time,
            depth: Cell::new(0),
        }
    }

    /// Charges units of work.
    pub fn spend(&self, units: u64) -> Outcome<()> {
        let Some(left) = self.work.get().checked_sub(units) else {
            self.work.set(0);
            let reason = "it exceeded the work limit; shorten the conversation or fix the template";
            return Err(Fault::new(FaultKind::Budget, reason));
        };
        self.work.set(left);
        let next = self.until_clock.get().saturating_sub(units);
        if next > 0 {
            self.until_clock.set(next);
            return Ok(());
        }
        self.until_clock.set(CLOCK_EVERY);
        if Instant::now() > self.deadline {
            let reason = format!("it took longer than {} s", self.time.as_secs_f64());
            return Err(Fault::new(FaultKind::Budget, reason));
        }
        Ok(())
    }

    /// Charges text that is read or written.
    pub fn bytes(&self, count: usize) -> Outcome<()> {
        self.spend(1 + count as u64 / 64)
    }

    /// Charges list slots, which take more memory than bytes of text.
    pub fn slots(&self, count: usize) -> Outcome<()> {
        self.spend(1 + count as u64)
    }

    /// Runs `work` one level deeper.
    pub fn nested<T>(&self, work: impl FnOnce() -> Outcome<T>) -> Outcome<T> {
        self.enter()?;
        let result = work();
        self.leave();
        result
    }

    /// Enters a level of nesting; [`leave`](Self::leave) leaves it.
    pub fn enter(&self) -> Outcome<()> {
        let depth = self.depth.get();
        if depth >= MAX_DEPTH {
            return failed(format!("RecursionError: nested more than {MAX_DEPTH} levels deep"));
        }
        self.depth.set(depth + 1);
        Ok(())
    }

    pub fn leave(&self) {
        self.depth.set(self.depth.get().saturating_sub(1));
    }
}
