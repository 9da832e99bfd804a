//! Words for the person: results on stdout, everything else on stderr.
//!
//! A closed pipe never ends a run: a training that nobody reads any more still saves its adapter.

use std::io::{Write, stderr, stdout};

/// A line of a result.
pub fn say(line: &str) {
    let _ = writeln!(stdout(), "{line}");
}

/// A line about the run.
pub fn warn(line: &str) {
    let _ = writeln!(stderr(), "{line}");
}
