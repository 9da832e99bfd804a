//! The folder that a training run writes: chosen and checked first, made only once everything else was found good.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use metal_candle::graph::io::write_atomically;

use crate::args::Settings;
use crate::config_file;
use crate::error::{Failure, Result};

const DEFAULT: &str = "metal-candle-output";

/// An output folder.
#[derive(Debug)]
pub struct Output {
    /// Where.
    pub folder: PathBuf,
    /// The folders on the way that were not there, the innermost first.
    missing: Vec<PathBuf>,
}

impl Output {
    /// Decides on the folder; nothing is left behind.
    ///
    /// # Errors
    /// A given folder that is not empty (unless `overwrite`), or is or cannot be a folder, or that nothing can be written in.
    pub fn choose(given: Option<&Path>, overwrite: bool) -> Result<Self> {
        let Some(folder) = given else {
            return Self::try_out(first_free(Path::new(DEFAULT)));
        };
        let name = folder.display();
        if folder.as_os_str().is_empty() || (folder.exists() && !folder.is_dir()) {
            return Err(Failure::with_tip(
                format!("output `{name}` is not a folder"),
                "name a new folder with --output",
            ));
        }
        if let Err(error) = fs::read_dir(folder)
            && error.kind() != ErrorKind::NotFound
        {
            return Err(Failure::with_tip(
                format!("output `{name}` cannot be used: {error}"),
                "name a new folder with --output",
            ));
        }
        if !overwrite && !is_free(folder) {
            let tip = "name a new folder with --output, or write over it with --overwrite-output";
            return Err(Failure::with_tip(
                format!("{name}: the output folder is not empty"),
                tip,
            ));
        }
        Self::try_out(folder.to_owned())
    }

    /// Makes a file in the folder and takes back what was made: better now than after the model is loaded.
    fn try_out(folder: PathBuf) -> Result<Self> {
        let absent = |path: &&Path| !path.as_os_str().is_empty() && !path.exists();
        let missing = folder.ancestors().take_while(absent).map(Path::to_owned).collect();
        let output = Self { folder, missing };
        let file = output.folder.join(format!(".metal-candle-{}", std::process::id()));
        let outcome = fs::create_dir_all(&output.folder)
            .and_then(|()| File::create_new(&file))
            .and_then(|_| fs::remove_file(&file));
        output.remove_folders();
        outcome.map_err(|error| refused(&output.folder, &error))?;
        Ok(output)
    }

    /// Takes back the folders that were made, but for those in which there is something.
    fn remove_folders(&self) {
        for made in &self.missing {
            let _ = fs::remove_dir(made);
        }
    }

    /// Makes the folder, with the settings in it, and the file for the metrics.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn create(&self, settings: &Settings) -> Result<File> {
        fs::create_dir_all(&self.folder).map_err(|error| refused(&self.folder, &error))?;
        let text = describe(settings)?;
        write_atomically(&self.settings(), |out| out.write_all(text.as_bytes()))?;
        File::create(self.metrics()).map_err(|error| refused(&self.metrics(), &error))
    }

    /// Takes back what [`create`](Self::create) made: the run never began.
    pub fn discard(&self) {
        for file in [self.settings(), self.metrics()] {
            let _ = fs::remove_file(file);
        }
        self.remove_folders();
    }

    /// The settings of the run.
    pub fn settings(&self) -> PathBuf {
        self.folder.join("training.toml")
    }

    /// One JSON object for each step and evaluation.
    pub fn metrics(&self) -> PathBuf {
        self.folder.join("metrics.jsonl")
    }

    /// The picture of the loss.
    pub fn picture(&self) -> PathBuf {
        self.folder.join("loss.svg")
    }
}

/// The settings as a file that `--config` takes; where the output went is left out, so that a second run goes elsewhere.
fn describe(settings: &Settings) -> Result<String> {
    let mut table = config_file::table(settings)?;
    table.remove("output");
    table.remove("overwrite_output");
    let version = env!("CARGO_PKG_VERSION");
    Ok(format!(
        "# The settings of this run of metal-candle {version}.\n# Again: metal-candle train --config training.toml\n\n{table}"
    ))
}

fn refused(path: &Path, error: &std::io::Error) -> Failure {
    Failure::input(format!("{}: cannot be made: {error}", path.display()))
}

/// The folder, or the first of `folder-2`, `folder-3` ... that is absent or empty.
fn first_free(folder: &Path) -> PathBuf {
    let numbered = (2..).map(|number| PathBuf::from(format!("{}-{number}", folder.display())));
    std::iter::once(folder.to_owned())
        .chain(numbered)
        .find(|folder| is_free(folder))
        .unwrap_or_else(|| folder.to_owned())
}

/// Absent, or an empty folder.
fn is_free(folder: &Path) -> bool {
    match fs::read_dir(folder) {
        Ok(mut entries) => entries.next().is_none(),
        Err(error) => error.kind() == ErrorKind::NotFound,
    }
}

#[cfg(test)]
mod tests {
    use clap::{Args, FromArgMatches};

    use super::*;

    #[test]
    fn the_default_name_counts_on() {
        let home = tempfile::tempdir().unwrap();
        let name = home.path().join("out");
        assert_eq!(first_free(&name), name);
        fs::create_dir(&name).unwrap();
        assert_eq!(first_free(&name), name);
        fs::write(name.join("a"), "").unwrap();
        fs::create_dir(home.path().join("out-2")).unwrap();
        fs::write(home.path().join("out-2/a"), "").unwrap();
        assert_eq!(first_free(&name), home.path().join("out-3"));
    }

    #[test]
    fn a_folder_in_use_is_refused_and_nothing_is_made() {
        let home = tempfile::tempdir().unwrap();
        let absent = home.path().join("new/deep");
        assert_eq!(Output::choose(Some(&absent), false).unwrap().folder, absent);
        assert!(!home.path().join("new").exists());
        fs::write(home.path().join("a"), "").unwrap();
        assert!(Output::choose(Some(home.path()), false).is_err());
        assert!(Output::choose(Some(home.path()), true).is_ok());
        assert!(Output::choose(Some(&home.path().join("a")), true).is_err());
        let below_a_file = Output::choose(Some(&home.path().join("a/b")), false).unwrap_err();
        assert!(
            below_a_file.to_string().contains("a/b` cannot be used"),
            "{below_a_file}"
        );
    }

    #[test]
    fn a_run_that_never_began_leaves_what_was_there_before() {
        let home = tempfile::tempdir().unwrap();
        let command = Settings::augment_args(clap::Command::new("train"));
        let settings = Settings::from_arg_matches(&command.get_matches_from(["train"])).unwrap();
        for (name, stays) in [("new/deep", false), ("old", true)] {
            fs::create_dir_all(home.path().join("old")).unwrap();
            let output = Output::choose(Some(&home.path().join(name)), false).unwrap();
            output.create(&settings).unwrap();
            assert!(output.settings().exists() && output.metrics().exists());
            output.discard();
            assert_eq!(output.folder.exists(), stays);
        }
        assert!(!home.path().join("new").exists() && is_free(&home.path().join("old")));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_folder_that_the_system_refuses_is_noticed_at_once() {
        let refused = Output::choose(Some(Path::new("/proc/out/deep")), false).unwrap_err();
        assert!(
            refused.to_string().contains("/proc/out/deep: cannot be made"),
            "{refused}"
        );
    }
}
