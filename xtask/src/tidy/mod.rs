//! `cargo xtask tidy`: checks the repository's rules.
//!
//! The rules read files and nothing else: no compiler, no network, no version control. Every offence is printed as
//! `path:line: what is wrong and what to do`; any offence is a failure.

mod layout;
mod rules;
mod source;

use std::path::Path;

use miette::{IntoDiagnostic, Result, WrapErr, bail};

use source::Source;

/// The folders that are checked recursively; of the repository's root only its files are checked.
const FOLDERS: [&str; 6] = ["crates", "xtask", "scripts", "fuzz", ".ci", ".cargo"];
/// The kinds of files that are checked.
const EXTENSIONS: [&str; 8] = ["rs", "toml", "md", "py", "sh", "cu", "metal", "h"];

/// One offence against a rule.
#[derive(Debug, PartialEq, Eq)]
struct Offence {
    path: String,
    /// Counted from 1; 0 for a whole file or folder.
    line: usize,
    message: String,
}

impl Offence {
    fn new(path: impl Into<String>, line: usize, message: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            line,
            message: message.into(),
        }
    }
}

/// Checks the repository at `root`.
///
/// # Errors
///
/// The number of offences, after each has been printed; or the file that cannot be read.
pub fn run(root: &Path) -> Result<()> {
    let sources = read(root)?;
    let offences = check(&sources);
    for Offence { path, line, message } in &offences {
        eprintln!("{path}:{line}: {message}");
    }
    if !offences.is_empty() {
        bail!("tidy: {} offences in {} files", offences.len(), sources.len());
    }
    println!("tidy: {} files, no offence", sources.len());
    Ok(())
}

fn check(sources: &[Source]) -> Vec<Offence> {
    let mut offences: Vec<_> = sources.iter().flat_map(rules::check_file).collect();
    offences.extend(layout::check_tree(sources));
    offences.sort_by(|a, b| (&a.path, a.line).cmp(&(&b.path, b.line)));
    offences
}

/// All checked files of [`FOLDERS`] and of the root itself.
fn read(root: &Path) -> Result<Vec<Source>> {
    let mut pending: Vec<_> = FOLDERS
        .iter()
        .map(|folder| root.join(folder))
        .filter(|path| path.is_dir())
        .collect();
    let mut sources = Vec::new();
    read_folder(root, root, &mut sources, |_| ())?;
    while let Some(folder) = pending.pop() {
        read_folder(root, &folder, &mut sources, |inner| pending.push(inner))?;
    }
    sources.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(sources)
}

fn read_folder(
    root: &Path,
    folder: &Path,
    sources: &mut Vec<Source>,
    mut enter: impl FnMut(std::path::PathBuf),
) -> Result<()> {
    for entry in std::fs::read_dir(folder)
        .into_diagnostic()
        .wrap_err_with(|| folder.display().to_string())?
    {
        let path = entry.into_diagnostic()?.path();
        if path.is_dir() {
            // fuzz/ is a separate workspace with its own build outputs.
            if path
                .file_name()
                .is_some_and(|name| name != "target" && name != "corpus")
            {
                enter(path);
            }
            continue;
        }
        let extension = path.extension().and_then(|extension| extension.to_str());
        if extension.is_some_and(|extension| EXTENSIONS.contains(&extension)) || path.ends_with(".ci/run") {
            let text = std::fs::read_to_string(&path)
                .into_diagnostic()
                .wrap_err_with(|| path.display().to_string())?;
            let name = path
                .strip_prefix(root)
                .unwrap_or(&path)
                .to_string_lossy()
                .replace('\\', "/");
            sources.push(Source::new(name, text));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_walk_finds_this_file_and_no_build_output() {
        let sources = read(&crate::repository_root()).unwrap();
        assert!(sources.iter().any(|source| source.path == "xtask/src/tidy/mod.rs"));
        assert!(sources.iter().any(|source| source.path == ".ci/run"));
        assert!(!sources.iter().any(|source| source.path.starts_with("target/")));
    }

    #[test]
    fn this_package_keeps_its_own_rules() {
        let sources = read(&crate::repository_root()).unwrap();
        let own = sources.iter().filter(|source| source.path.starts_with("xtask/"));
        assert!(own.flat_map(rules::check_file).collect::<Vec<_>>().is_empty());
    }
}
