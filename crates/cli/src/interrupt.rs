//! Ctrl-C and SIGTERM: while training holds them, the first is noted and the run ends after its step; otherwise, and from
//! the second on, the program ends at once. Exit codes are the shell's: 128 and the signal's number.

use std::io::{IsTerminal, stderr};
use std::process::exit;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use crate::console::warn;
use crate::error::{Failure, Result};

/// What has come.
#[derive(Debug, Default)]
struct State {
    held: AtomicBool,
    /// The exit code of the signal noted; 0 for none.
    noted: AtomicU8,
}

impl State {
    fn receive(&self, code: u8) {
        let first = self
            .noted
            .compare_exchange(0, code, Ordering::SeqCst, Ordering::SeqCst)
            .is_ok();
        if !first || !self.held.load(Ordering::SeqCst) {
            exit(i32::from(code));
        }
        // A terminal has just shown ^C in the line of the progress bar.
        let line = if stderr().is_terminal() { "\n" } else { "" };
        warn(&format!(
            "{line}stopping after this step, to save the adapter; once more stops at once, without saving"
        ));
    }
}

/// Signals of this process.
#[derive(Debug, Clone, Default)]
pub struct Interrupts(Arc<State>);

impl Interrupts {
    /// Begins to listen. To be called before any other thread exists: threads inherit which signals they leave alone.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn listen() -> Result<Self> {
        let interrupts = Self::default();
        listen(Arc::clone(&interrupts.0)).map_err(|why| Failure::Run(format!("cannot listen for Ctrl-C: {why}")))?;
        Ok(interrupts)
    }

    /// From now on the first signal is only noted.
    pub fn hold(&self) {
        self.0.held.store(true, Ordering::SeqCst);
    }

    /// From now on a signal ends the program at once.
    pub fn release(&self) {
        self.0.held.store(false, Ordering::SeqCst);
    }

    /// The exit code of the signal that was noted.
    pub fn noted(&self) -> Option<u8> {
        Some(self.0.noted.load(Ordering::SeqCst)).filter(|code| *code != 0)
    }
}

#[cfg(unix)]
fn listen(state: Arc<State>) -> std::result::Result<(), String> {
    use nix::sys::signal::{SigSet, Signal};

    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    signals.thread_block().map_err(|error| error.to_string())?;
    let wait = move || {
        while let Ok(signal) = signals.wait() {
            state.receive(128 + signal as u8);
        }
    };
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(wait)
        .map_err(|error| error.to_string())?;
    Ok(())
}

#[cfg(not(unix))]
fn listen(state: Arc<State>) -> std::result::Result<(), String> {
    ctrlc::set_handler(move || state.receive(130)).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_held_signal_is_noted() {
        let interrupts = Interrupts::default();
        interrupts.hold();
        assert_eq!(interrupts.noted(), None);
        interrupts.0.receive(143);
        assert_eq!(interrupts.noted(), Some(143));
    }
}
