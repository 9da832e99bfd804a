//! Atomic file writes: to a temporary file in the same folder, synced, renamed over the target, folder synced.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::{FileError, Result};

/// Distinguishes temporary files of one process.
static COUNTER: AtomicU64 = AtomicU64::new(0);

/// Writes the file at `path` with `fill`, so that it exists completely or not at all.
///
/// The bytes go to a hidden temporary file in the same folder, are synced to disk and renamed over `path`; then the
/// folder is synced. If any step or `fill` fails, the temporary file is removed and the file at `path` is unchanged.
/// Replacing a file that is open for reading is fine: the reader keeps the old one.
///
/// ```
/// # let folder = std::env::temp_dir().join(format!("mc-atomic-doc-{}", std::process::id()));
/// # std::fs::create_dir_all(&folder)?;
/// let path = folder.join("note.txt");
/// metal_candle_graph::io::write_atomically(&path, |out| out.write_all(b"all or nothing"))?;
/// assert_eq!(std::fs::read(&path)?, b"all or nothing");
/// # std::fs::remove_dir_all(&folder)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// [`FileError::Io`] with the step that failed.
pub fn write_atomically(path: &Path, fill: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    let fault = |action| {
        move |source| FileError::Io {
            path: path.to_owned(),
            action,
            source,
        }
    };
    let (temporary, file) = create_beside(path).map_err(fault("create a file beside"))?;
    let mut out = BufWriter::with_capacity(1 << 20, file);
    fill(&mut out).map_err(fault("write"))?;
    let file = out.into_inner().map_err(|e| fault("write")(e.into_error()))?;
    file.sync_all().map_err(fault("sync"))?;
    drop(file);
    fs::rename(&temporary.0, path).map_err(fault("rename the finished file to"))?;
    sync_folder(folder_of(path))
}

/// Syncs a folder's entries to disk, so that a rename survives a power failure. Does nothing on systems without such a
/// call.
///
/// # Errors
/// [`FileError::Io`] if the folder cannot be opened or synced.
pub fn sync_folder(folder: &Path) -> Result<()> {
    if cfg!(unix) {
        let sync = File::open(folder).and_then(|handle| handle.sync_all());
        sync.map_err(|source| FileError::Io {
            path: folder.to_owned(),
            action: "sync the folder",
            source,
        })?;
    }
    Ok(())
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// A path that is removed when dropped; after the rename there is nothing left to remove.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        // Best effort: after a successful rename the file is gone, and a failed clean-up must not mask the first error.
        let _ = fs::remove_file(&self.0);
    }
}

/// A new file in the folder of `path`, with a name made of the file's name, the process id and a counter.
fn create_beside(path: &Path) -> io::Result<(Temporary, File)> {
    let name = path
        .file_name()
        .ok_or_else(|| io::Error::new(ErrorKind::InvalidInput, "the path names no file"))?;
    loop {
        let mut hidden = OsString::from(".");
        hidden.push(name);
        hidden.push(format!(
            ".{}-{}.tmp",
            std::process::id(),
            COUNTER.fetch_add(1, Ordering::Relaxed)
        ));
        let beside = folder_of(path).join(hidden);
        match OpenOptions::new().write(true).create_new(true).open(&beside) {
            Ok(file) => return Ok((Temporary(beside), file)),
            // Left by a killed process with the same id; tries the next counter value.
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_the_old_file_and_nothing_beside() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.bin");
        write_atomically(&path, |out| out.write_all(b"old")).unwrap();
        let result = write_atomically(&path, |out| {
            out.write_all(b"half of the ne")?;
            Err(io::Error::new(ErrorKind::StorageFull, "disk full"))
        });
        assert!(matches!(result, Err(FileError::Io { action: "write", .. })));
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_missing_folder_and_a_path_without_name_are_errors() {
        let folder = tempfile::tempdir().unwrap();
        assert!(write_atomically(&folder.path().join("no/such/file"), |_| Ok(())).is_err());
        assert!(write_atomically(&folder.path().join(".."), |_| Ok(())).is_err());
    }

    #[test]
    fn a_relative_name_goes_to_the_current_folder() {
        assert_eq!(folder_of(Path::new("x")), Path::new("."));
        assert_eq!(folder_of(Path::new("a/x")), Path::new("a"));
    }
}
