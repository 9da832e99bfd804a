//! The output folder of a training run: claimed at once, written only after all inputs were checked.
//!
//! A run that overwrites an earlier one works in a subfolder and replaces the earlier run at its end, so that the
//! settings in a folder are always those of its weights.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use metal_candle::graph::io::write_atomically;

use crate::args::Settings;
use crate::claim::{Claim, LOCK, Refusal};
use crate::config_file;
use crate::console::warn;
use crate::error::{Failure, Result};
use crate::exchange::{self, COMPLETE, FILES, METRICS, PICTURE, SETTINGS, UNFINISHED};

const DEFAULT: &str = "metal-candle-output";
/// Maximum suffix of the default name.
const MOST_FOLDERS: usize = 9999;
/// The first line of a run's settings.
const HEADER: &str = "# The settings of this run of metal-candle";

/// Advice about a folder that cannot be used.
const NEW_FOLDER: &str = "name a new folder with --output";

/// An output folder.
#[derive(Debug)]
pub struct Output {
    /// Where.
    pub folder: PathBuf,
    claim: Arc<Claim>,
    /// Whether an earlier run is replaced at the end.
    replaces: bool,
}

/// The input files of a run, with their names in messages.
pub type Inputs<'a> = [(&'static str, &'a Path)];

impl Output {
    /// Chooses the folder and claims it; if the claim is withdrawn, nothing is left behind.
    ///
    /// # Errors
    /// A given folder that is not empty (unless `overwrite`), that another run writes to, in which one of the `inputs`
    /// would be overwritten, that is or cannot be a folder, or that is not writable.
    pub fn choose(given: Option<&Path>, overwrite: bool, inputs: &Inputs<'_>) -> Result<Self> {
        let Some(folder) = given else {
            return Self::first_free(Path::new(DEFAULT));
        };
        refuse_what_is_no_folder(folder)?;
        refuse_inputs(folder, inputs)?;
        let not_empty = || {
            let tip = "name a new folder with --output, or overwrite it with --overwrite-output";
            Failure::with_tip(format!("{}: the output folder is not empty", folder.display()), tip)
        };
        // If a run is active there, that is the better message.
        let is_idle = !folder.join(LOCK).exists() && !exchange::is_interrupted(folder);
        if !overwrite && !is_free(folder) && is_idle {
            return Err(not_empty());
        }
        let claim = Claim::take(folder).map_err(|refusal| refused(folder, &refusal))?;
        if exchange::finish(folder)? {
            let name = folder.display();
            warn(&format!(
                "{name}: the finished run in {UNFINISHED} has replaced the earlier one, as it would have without a crash"
            ));
        }
        if !overwrite && !is_free(folder) {
            return Err(not_empty());
        }
        let output = Self::of(folder.to_owned(), claim);
        output.refuse_blocked()?;
        Ok(output)
    }

    /// Refuses a subfolder's name that is taken by something else.
    fn refuse_blocked(&self) -> Result<()> {
        let run = self.run();
        if self.replaces && run.symlink_metadata().is_ok_and(|found| !found.is_dir()) {
            let message = format!(
                "{}: is not a folder, but a run that overwrites another needs it",
                run.display()
            );
            return Err(Failure::with_tip(
                message,
                "move it elsewhere, or name another folder with --output",
            ));
        }
        Ok(())
    }

    /// The folder, or the first of `folder-2`, `folder-3` ... that is absent or empty, and not claimed.
    fn first_free(folder: &Path) -> Result<Self> {
        let numbered = (2..=MOST_FOLDERS).map(|number| PathBuf::from(format!("{}-{number}", folder.display())));
        for folder in std::iter::once(folder.to_owned()).chain(numbered) {
            if !is_free(&folder) {
                continue;
            }
            match Claim::take(&folder) {
                Ok(claim) if is_free(&folder) => return Ok(Self::of(folder, claim)),
                Ok(_) | Err(Refusal::Held(_)) => {}
                Err(refusal @ Refusal::System(_)) => return Err(refused(&folder, &refusal)),
            }
        }
        Err(Failure::Run(format!(
            "there is no free name after {}",
            folder.display()
        )))
    }

    fn of(folder: PathBuf, claim: Claim) -> Self {
        let replaces = FILES.iter().any(|file| folder.join(file).symlink_metadata().is_ok());
        Self {
            folder,
            claim: Arc::new(claim),
            replaces,
        }
    }

    /// The claim, to be withdrawn if the process ends without dropping this.
    pub fn claim(&self) -> Arc<Claim> {
        Arc::clone(&self.claim)
    }

    /// Whether there is an earlier run whose replacement has not begun.
    pub fn has_earlier(&self) -> bool {
        self.replaces && !exchange::is_interrupted(&self.folder)
    }

    /// The folder that the run writes to until [`publish`](Self::publish).
    pub fn run(&self) -> PathBuf {
        if self.replaces {
            self.folder.join(UNFINISHED)
        } else {
            self.folder.clone()
        }
    }

    /// Writes the settings, and creates the metrics file.
    ///
    /// # Errors
    /// On a system error.
    pub fn create(&self, settings: &Settings) -> Result<File> {
        if self.replaces {
            self.discard();
            // It may hold files that are not of a run.
            fs::create_dir_all(self.run()).map_err(|error| cannot_be_made(&self.run(), &error))?;
        }
        let text = describe(settings)?;
        write_atomically(&self.settings(), |out| out.write_all(text.as_bytes()))?;
        File::create_new(self.metrics()).map_err(|error| cannot_be_made(&self.metrics(), &error))
    }

    /// Removes the files of the run.
    pub fn discard(&self) {
        for file in FILES {
            let _ = fs::remove_file(self.run().join(file));
        }
        if self.replaces {
            let _ = fs::remove_dir(self.run());
        }
    }

    /// Replaces the earlier run, if any, by the finished one. A crash in between leaves the finished run complete in the
    /// subfolder, and never an adapter with the settings of another.
    ///
    /// # Errors
    /// On a system error.
    pub fn publish(&mut self) -> Result<()> {
        if self.replaces {
            exchange::publish(&self.folder)?;
            self.replaces = false;
        }
        Ok(())
    }

    /// The settings of the run.
    pub fn settings(&self) -> PathBuf {
        self.run().join(SETTINGS)
    }

    /// The metrics: one JSON object per step and evaluation.
    pub fn metrics(&self) -> PathBuf {
        self.run().join(METRICS)
    }

    /// The plot of the loss.
    pub fn picture(&self) -> PathBuf {
        self.run().join(PICTURE)
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        // Other holders of the claim only wait for a signal.
        self.claim.withdraw();
    }
}

fn refuse_what_is_no_folder(folder: &Path) -> Result<()> {
    let (name, tip) = (folder.display(), NEW_FOLDER);
    let dangles = |path: &&Path| path.is_symlink() && !path.exists();
    if let Some(link) = folder.ancestors().find(dangles) {
        let message = format!("output `{name}`: `{}` is a link to nothing", link.display());
        return Err(Failure::with_tip(
            message,
            "name a folder with --output, or make the link's target",
        ));
    }
    if folder.as_os_str().is_empty() || (folder.exists() && !folder.is_dir()) {
        return Err(Failure::with_tip(format!("output `{name}` is not a folder"), tip));
    }
    match fs::read_dir(folder) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Failure::with_tip(
            format!("output `{name}` cannot be used: {error}"),
            tip,
        )),
        _ => Ok(()),
    }
}

/// Input files are never overwritten, under whatever name: the same path, a link, another name of the same file.
fn refuse_inputs(folder: &Path, inputs: &Inputs<'_>) -> Result<()> {
    let same = |one: &Path, other: &Path| same_file::is_same_file(one, other).unwrap_or(false);
    for (what, input) in inputs {
        let written = [folder.to_owned(), folder.join(UNFINISHED)];
        let files = written.iter().flat_map(|folder| FILES.map(|file| folder.join(file)));
        let files = files.chain([folder.join(UNFINISHED).join(COMPLETE)]);
        if let Some(place) = written.iter().cloned().chain(files).find(|place| same(place, input)) {
            if place.ends_with(SETTINGS) && is_ours(&place) {
                continue;
            }
            let name = place.display();
            let message = if place == folder {
                format!("{name}: the output folder is {what} itself")
            } else {
                format!("{name}: the run would overwrite {what}")
            };
            return Err(Failure::with_tip(message, "name another folder with --output"));
        }
    }
    Ok(())
}

/// Whether a settings file was written by a run, so that its contents are written again.
fn is_ours(settings: &Path) -> bool {
    fs::read_to_string(settings).is_ok_and(|text| text.starts_with(HEADER))
}

/// The settings as a file for `--config`, without the output folder, so that a second run chooses another.
fn describe(settings: &Settings) -> Result<String> {
    let mut table = config_file::table(settings)?;
    table.remove("output");
    table.remove("overwrite_output");
    let version = env!("CARGO_PKG_VERSION");
    Ok(format!(
        "{HEADER} {version}.\n# Again: metal-candle train --config training.toml\n\n{table}"
    ))
}

fn refused(folder: &Path, refusal: &Refusal) -> Failure {
    match refusal {
        Refusal::System(error) => cannot_be_made(folder, error),
        Refusal::Held(process) => {
            let who = process.map_or(String::new(), |number| format!(" (process {number})"));
            Failure::with_tip(
                format!("{}: another run{who} is writing in this folder", folder.display()),
                "wait for its end, or name another folder with --output",
            )
        }
    }
}

/// The reason why a folder or a file cannot be made.
fn cannot_be_made(path: &Path, error: &std::io::Error) -> Failure {
    let name = path.display();
    match error.kind() {
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
            let place = path.ancestors().find(|place| place.exists()).unwrap_or(Path::new("."));
            let message = if place == path {
                format!("{name}: is not writable: {error}")
            } else {
                format!(
                    "{name}: cannot be made, as `{}` is not writable: {error}",
                    place.display()
                )
            };
            Failure::with_tip(message, NEW_FOLDER)
        }
        _ => Failure::with_tip(format!("{name}: cannot be made: {error}"), NEW_FOLDER),
    }
}

/// Whether a folder is absent, or empty except for what a killed run may have left of its claim.
fn is_free(folder: &Path) -> bool {
    match fs::read_dir(folder) {
        Ok(mut entries) => entries.all(|entry| entry.is_ok_and(|entry| entry.file_name() == LOCK)),
        Err(error) => error.kind() == ErrorKind::NotFound,
    }
}

#[cfg(test)]
#[path = "output_tests.rs"]
mod tests;
