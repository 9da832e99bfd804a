//! The exchange of an earlier run for the finished one in its subfolder, which a crash at any point leaves recoverable.
//!
//! The finished run stays whole in the subfolder, with a marker beside it, until every file has been copied. As long as
//! there is a marker, the exchange can be done again from its beginning. The folder is an adapter only before its first
//! and after its last file was exchanged.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use metal_candle::graph::io::{sync_folder, write_atomically};

use crate::error::{Failure, Result};

/// The subfolder of a run that overwrites another.
pub const UNFINISHED: &str = "unfinished-run";
/// The file that marks the run in the subfolder as complete; it is written last, and removed first.
pub const COMPLETE: &str = "complete";
/// What makes a folder an adapter.
pub const ADAPTER: &str = "adapter_config.json";
pub const SETTINGS: &str = "training.toml";
pub const METRICS: &str = "metrics.jsonl";
pub const PICTURE: &str = "loss.svg";
/// The files of a run, in the order in which they are copied: settings after the weights, and last what makes it an
/// adapter.
pub const FILES: [&str; 5] = ["adapter_model.safetensors", METRICS, PICTURE, SETTINGS, ADAPTER];

/// The text of the marker, by which it is recognised.
const MARK: &str = "This run of metal-candle is complete; it replaces the one in the folder above.\n";

/// A change of the exchange. To do it again changes nothing.
#[derive(Debug)]
enum Change {
    Remove(PathBuf),
    Copy { from: PathBuf, to: PathBuf },
}

impl Change {
    /// Makes the change, durably.
    fn make(&self) -> Result<()> {
        let (path, made) = match self {
            Self::Remove(path) => (path, fs::remove_file(path)),
            Self::Copy { from, to } => (to, copy(from, to)),
        };
        match made {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(Failure::Run(format!(
                "{}: cannot be replaced: {error}; the next run in this folder tries again",
                path.display()
            ))),
            _ => Ok(path.parent().map_or(Ok(()), sync_folder)?),
        }
    }
}

/// Makes a file available under a second name; by a copy where the file system has no links.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    if fs::hard_link(from, to).is_ok() {
        return Ok(());
    }
    fs::copy(from, to)?;
    fs::OpenOptions::new().write(true).open(to)?.sync_all()
}

/// The changes in their order: the adapter's settings are removed first and copied last.
fn changes(folder: &Path) -> impl Iterator<Item = Change> {
    let run = folder.join(UNFINISHED);
    let remove = |path| Change::Remove(path);
    let earlier = FILES.map(|file| remove(folder.join(file)));
    let copied = FILES.map(|file| Change::Copy {
        from: run.join(file),
        to: folder.join(file),
    });
    let left = FILES.map(|file| remove(run.join(file)));
    let marker = remove(run.join(COMPLETE));
    let earlier = earlier.into_iter().rev();
    earlier.chain(copied).chain([marker]).chain(left)
}

/// Replaces the earlier run in a folder by the finished one in its subfolder.
///
/// # Errors
/// On a system error; the exchange is then done at the [next start](finish).
pub fn publish(folder: &Path) -> Result<()> {
    let marker = folder.join(UNFINISHED).join(COMPLETE);
    write_atomically(&marker, |out| out.write_all(MARK.as_bytes()))?;
    finish(folder).map(|_| ())
}

/// Finishes an exchange that a crash interrupted; returns whether there was one.
///
/// # Errors
/// On a system error.
pub fn finish(folder: &Path) -> Result<bool> {
    let interrupted = is_interrupted(folder);
    if interrupted {
        changes(folder).try_for_each(|change| change.make())?;
        let _ = fs::remove_dir(folder.join(UNFINISHED));
    }
    Ok(interrupted)
}

/// Whether the subfolder of a folder has a complete run.
pub fn is_interrupted(folder: &Path) -> bool {
    let marker = folder.join(UNFINISHED).join(COMPLETE);
    fs::read_to_string(marker).is_ok_and(|text| text == MARK)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder with an earlier run that has every file, and a finished one without a picture.
    fn folder() -> tempfile::TempDir {
        let home = tempfile::tempdir().unwrap();
        let run = home.path().join(UNFINISHED);
        fs::create_dir(&run).unwrap();
        for file in FILES {
            fs::write(home.path().join(file), "old").unwrap();
            fs::write(run.join(file), "new").unwrap();
        }
        fs::remove_file(run.join(PICTURE)).unwrap();
        home
    }

    fn contents(folder: &Path) -> [Option<String>; 5] {
        FILES.map(|file| fs::read_to_string(folder.join(file)).ok())
    }

    fn expected() -> [Option<String>; 5] {
        FILES.map(|file| (file != PICTURE).then(|| "new".to_owned()))
    }

    #[test]
    fn an_exchange_interrupted_at_any_point_can_be_finished() {
        let all = changes(Path::new("")).count();
        for made in 0..=all {
            let home = folder();
            let run = home.path().join(UNFINISHED);
            fs::write(run.join(COMPLETE), MARK).unwrap();
            changes(home.path())
                .take(made)
                .try_for_each(|change| change.make())
                .unwrap();
            // Either the folder or its subfolder has the complete new run.
            let interrupted = is_interrupted(home.path());
            let complete = if interrupted { &run } else { home.path() };
            assert_eq!(contents(complete), expected(), "after {made} changes");
            // An adapter is of one run.
            if made > 0 && home.path().join(ADAPTER).exists() {
                assert_eq!(contents(home.path()), expected(), "after {made} changes");
            }
            assert_eq!(finish(home.path()).unwrap(), interrupted);
            assert_eq!(contents(home.path()), expected(), "after {made} changes");
            assert!(!interrupted || !run.exists(), "after {made} changes");
        }
    }

    #[test]
    fn a_run_without_a_marker_is_not_complete() {
        let home = folder();
        let before = contents(home.path());
        assert!(!finish(home.path()).unwrap());
        fs::write(home.path().join(UNFINISHED).join(COMPLETE), "mine").unwrap();
        assert!(!finish(home.path()).unwrap());
        assert_eq!(contents(home.path()), before);
    }
}
