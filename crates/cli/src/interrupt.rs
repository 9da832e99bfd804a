//! Ctrl-C, SIGTERM and SIGHUP (a closed terminal): while training holds them, the first is recorded and the run ends
//! after its step; otherwise, and from the second on, the program ends at once. Exit codes are those of shells: 128
//! plus the signal.

use std::io::{IsTerminal, stderr};
use std::process::exit;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex};

use crate::console::warn;
use crate::error::{Failure, Result};

/// An action before the program ends.
type CleanUp = Box<dyn FnOnce() + Send>;

/// The signals received.
#[derive(Default)]
struct State {
    held: AtomicBool,
    /// The exit code of the recorded signal; 0 for none.
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
        // On a separate thread: it may block if nobody reads stderr, and must not delay the second signal.
        std::thread::spawn(|| {
            // The terminal has just printed ^C in the line of the progress bar.
            let line = if stderr().is_terminal() { "\n" } else { "" };
            warn(&format!(
                "{line}stopping after this step, to save the adapter; once more stops at once, without saving"
            ));
        });
    }
}

/// The signals of this process.
#[derive(Clone, Default)]
pub struct Interrupts(Arc<State>);

impl Interrupts {
    /// Starts listening. Must be called before other threads are started, which inherit the signal mask.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn listen() -> Result<Self> {
        let interrupts = Self::default();
        listen(Arc::clone(&interrupts.0)).map_err(|why| Failure::Run(format!("cannot listen for Ctrl-C: {why}")))?;
        Ok(interrupts)
    }

    /// Sets the action to run before a signal ends the program at once.
    pub fn clean_up(&self, action: impl FnOnce() + Send + 'static) {
        if let Ok(mut held) = self.0.clean_up.lock() {
            *held = Some(Box::new(action));
        }
    }

    /// From now on the first signal is only recorded.
    pub fn hold(&self) {
        self.0.held.store(true, Ordering::SeqCst);
    }

    /// From now on a signal ends the program at once.
    pub fn release(&self) {
        self.0.held.store(false, Ordering::SeqCst);
    }

    /// The exit code of the recorded signal.
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
    // `nohup` ignores it, to outlive the terminal.
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

/// Whether a signal is ignored. On Linux a waiting thread would receive even an ignored signal; on other systems it is
/// not delivered, so this need not be known.
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
    fn a_held_signal_is_recorded() {
        let interrupts = Interrupts::default();
        interrupts.hold();
        assert_eq!(interrupts.noted(), None);
        interrupts.0.receive(143);
        assert_eq!(interrupts.noted(), Some(143));
    }
}
