//! Output for the user: results on stdout, everything else on stderr.
//!
//! A broken pipe never ends a run: training without a reader still saves its adapter.

use std::io::{Write, stderr, stdout};

/// Prints a line of a result.
pub fn say(line: &str) {
    let _ = writeln!(stdout(), "{line}");
}

/// Prints a line about the run.
pub fn warn(line: &str) {
    let _ = writeln!(stderr(), "{line}");
}
