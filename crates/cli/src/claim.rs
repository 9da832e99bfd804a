//! A run's claim on its output folder: a lock file that the system locks while the process lives.
//!
//! The lock ends with the process in any case, so a killed run leaves no claim, only the file. What was created for a
//! claim (the file, missing parent folders) is removed when it is withdrawn, unless something else is in it. If several
//! runs create a folder at once, it may stay, empty.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use same_file::Handle;

/// Name of the lock file within the folder.
pub const LOCK: &str = ".metal-candle.lock";
/// Maximum number of retries if the folder disappears while it is being claimed.
const ATTEMPTS: usize = 100;

/// A claimed folder.
#[derive(Debug)]
pub struct Claim {
    lock: PathBuf,
    /// Holds the lock while it is open.
    _file: File,
    /// Created parent folders, innermost first.
    made: Vec<PathBuf>,
    withdrawn: AtomicBool,
}

/// The reason why a folder cannot be claimed.
#[derive(Debug)]
pub enum Refusal {
    /// Another process holds it: its id, if the file contains it.
    Held(Option<u32>),
    /// A system error.
    System(io::Error),
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Self::System(error)
    }
}

impl Claim {
    /// Claims the folder, creating it if needed.
    pub fn take(folder: &Path) -> Result<Self, Refusal> {
        let absent = |path: &&Path| !path.as_os_str().is_empty() && !path.exists();
        let made: Vec<PathBuf> = folder.ancestors().take_while(absent).map(Path::to_owned).collect();
        let taken = locked(folder);
        if taken.is_err() {
            remove_empty(&made);
        }
        let (lock, file) = (folder.join(LOCK), taken?);
        let withdrawn = AtomicBool::new(false);
        Ok(Self {
            lock,
            _file: file,
            made,
            withdrawn,
        })
    }

    /// Releases the folder, and removes the traces of the claim. Further calls do nothing.
    pub fn withdraw(&self) {
        if !self.withdrawn.swap(true, Ordering::SeqCst) {
            let _ = fs::remove_file(&self.lock);
            remove_empty(&self.made);
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.withdraw();
    }
}

/// Opens and locks the lock file of a folder.
fn locked(folder: &Path) -> Result<File, Refusal> {
    let path = folder.join(LOCK);
    for _ in 0..ATTEMPTS {
        fs::create_dir_all(folder)?;
        let opened = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path);
        let mut file = match opened {
            // The previous run has just removed the folder.
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            other => other?,
        };
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(Refusal::Held(holder(&mut file))),
            // A file system without locks: other runs do not see the claim, but a run is possible.
            Err(TryLockError::Error(error)) if error.kind() == ErrorKind::Unsupported => {}
            Err(TryLockError::Error(error)) => return Err(error.into()),
        }
        // The previous run may have removed the file between the two calls; a lock on it would not protect the folder.
        if Handle::from_file(file.try_clone()?).ok() == Handle::from_path(&path).ok() {
            file.set_len(0)?;
            write!(file, "{}", std::process::id())?;
            return Ok(file);
        }
    }
    Err(io::Error::other("the folder keeps disappearing").into())
}

/// The process id in a lock file.
fn holder(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.rewind().ok()?;
    file.take(32).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

/// Removes the created folders, unless they are not empty.
fn remove_empty(folders: &[PathBuf]) {
    for folder in folders {
        let _ = fs::remove_dir(folder);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_many_claims_the_folder_and_leaves_no_file() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join("new/out");
        for _ in 0..20 {
            let claims: Vec<_> = std::thread::scope(|scope| {
                let runs: Vec<_> = (0..8).map(|_| scope.spawn(|| Claim::take(&folder))).collect();
                runs.into_iter().map(|run| run.join().unwrap()).collect()
            });
            assert_eq!(claims.iter().filter(|claim| claim.is_ok()).count(), 1, "{claims:?}");
            let mine = std::process::id();
            let held = |claim: &Result<Claim, Refusal>| {
                matches!(claim, Ok(_) | Err(Refusal::Held(None)))
                    || matches!(claim, Err(Refusal::Held(Some(pid))) if *pid == mine)
            };
            assert!(claims.iter().all(held), "{claims:?}");
            drop(claims);
            let left = fs::read_dir(&folder).map_or(0, Iterator::count);
            assert_eq!(left, 0, "a file is left");
            let _ = fs::remove_dir_all(home.path().join("new"));
        }
    }

    #[test]
    fn a_claim_leaves_no_folder_that_it_created() {
        let home = tempfile::tempdir().unwrap();
        drop(Claim::take(&home.path().join("new/out")).unwrap());
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 0);
    }

    #[test]
    fn concurrent_claims_never_overlap() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join("out");
        let inside = AtomicBool::new(false);
        let taken = std::sync::atomic::AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..300 {
                        if let Ok(claim) = Claim::take(&folder) {
                            assert!(!inside.swap(true, Ordering::SeqCst), "two hold the folder");
                            taken.fetch_add(1, Ordering::SeqCst);
                            inside.store(false, Ordering::SeqCst);
                            drop(claim);
                        }
                    }
                });
            }
        });
        assert!(taken.load(Ordering::SeqCst) > 10);
    }

    #[test]
    fn a_lock_file_left_by_a_killed_run_is_not_a_claim() {
        let home = tempfile::tempdir().unwrap();
        fs::write(home.path().join(LOCK), "4194999").unwrap();
        drop(Claim::take(home.path()).unwrap());
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 0);
        fs::write(home.path().join("precious"), "").unwrap();
        drop(Claim::take(home.path()).unwrap());
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 1);
    }
}
