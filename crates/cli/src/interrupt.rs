//! Ctrl-C, SIGTERM and SIGHUP (a terminal that was closed): while training holds them, the first is noted and the run ends after
//! its step; otherwise, and from the second on, the program ends at once. Exit codes are the shell's: 128 and the signal's number.

use std::io::{IsTerminal, stderr};
use std::process::exit;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex};

use crate::console::warn;
use crate::error::{Failure, Result};

/// What is to be done before the program ends.
type CleanUp = Box<dyn FnOnce() + Send>;

/// What has come.
#[derive(Default)]
struct State {
    held: AtomicBool,
    /// The exit code of the signal noted; 0 for none.
    noted: AtomicU8,
    clean_up: Mutex<Option<CleanUp>>,
}

impl State {
    fn receive(&self, code: u8) {
        let first = self
            .noted
            .compare_exchange(0, code, Ordering::SeqCst, Ordering::SeqCst)
            .is_ok();
        if !first || !self.held.load(Ordering::SeqCst) {
            if let Some(clean_up) = self.clean_up.try_lock().ok().and_then(|mut held| held.take()) {
                clean_up();
            }
            exit(i32::from(code));
        }
        // On a thread of its own: where nobody reads stderr it would wait, and the second signal with it.
        std::thread::spawn(|| {
            // A terminal has just shown ^C in the line of the progress bar.
            let line = if stderr().is_terminal() { "\n" } else { "" };
            warn(&format!(
                "{line}stopping after this step, to save the adapter; once more stops at once, without saving"
            ));
        });
    }
}

/// Signals of this process.
#[derive(Clone, Default)]
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

    /// Has this done before a signal ends the program at once.
    pub fn clean_up(&self, action: impl FnOnce() + Send + 'static) {
        if let Ok(mut held) = self.0.clean_up.lock() {
            *held = Some(Box::new(action));
        }
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
    // `nohup` has it ignored, to outlive the terminal.
    if !is_ignored(Signal::SIGHUP as u32) {
        signals.add(Signal::SIGHUP);
    }
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

/// Whether a signal is ignored. Linux would hand an ignored signal to those who wait for it; elsewhere it never comes, so
/// there it need not be known.
#[cfg(unix)]
fn is_ignored(signal: u32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
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
