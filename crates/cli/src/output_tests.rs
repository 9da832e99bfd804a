//! Output folders that are chosen, refused, overwritten and left unchanged.

use clap::{Args, FromArgMatches};

use super::*;
use crate::exchange::ADAPTER;

fn choose(folder: &Path, overwrite: bool) -> Result<Output> {
    Output::choose(Some(folder), overwrite, &[])
}

fn settings(flags: &[&str]) -> Settings {
    let command = Settings::augment_args(clap::Command::new("train"));
    Settings::from_arg_matches(&command.get_matches_from([&["train"], flags].concat())).unwrap()
}

fn names(folder: &Path) -> Vec<String> {
    let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
    let mut names: Vec<String> = fs::read_dir(folder).unwrap().map(name).collect();
    names.sort();
    names
}

#[test]
fn the_default_name_gets_a_number() {
    let home = tempfile::tempdir().unwrap();
    let name = home.path().join("out");
    let first = || Output::first_free(&name).unwrap();
    assert_eq!(first().folder, name);
    fs::create_dir(&name).unwrap();
    let held = first();
    assert_eq!(held.folder, name);
    // A second run at the same time has its own.
    assert_eq!(first().folder, home.path().join("out-2"));
    drop(held);
    fs::write(name.join("a"), "").unwrap();
    fs::create_dir(home.path().join("out-2")).unwrap();
    fs::write(home.path().join("out-2/a"), "").unwrap();
    assert_eq!(first().folder, home.path().join("out-3"));
}

#[test]
fn a_folder_in_use_is_refused_and_nothing_is_made() {
    let home = tempfile::tempdir().unwrap();
    let absent = home.path().join("new/deep");
    let output = choose(&absent, false).unwrap();
    assert_eq!(output.folder, absent);
    for overwrite in [false, true] {
        let message = choose(&absent, overwrite).unwrap_err().to_string();
        let process = format!("new/deep: another run (process {}) is writing", std::process::id());
        assert!(message.contains(&process), "{message}");
    }
    drop(output);
    assert!(!home.path().join("new").exists());
    fs::write(home.path().join("a"), "").unwrap();
    assert!(choose(home.path(), false).is_err());
    assert!(choose(home.path(), true).is_ok());
    assert!(choose(&home.path().join("a"), true).is_err());
    let below_a_file = choose(&home.path().join("a/b"), false).unwrap_err();
    assert!(
        below_a_file.to_string().contains("a/b` cannot be used"),
        "{below_a_file}"
    );
    assert_eq!(names(home.path()), ["a"]);
}

#[test]
fn a_run_that_never_began_leaves_the_folder_unchanged() {
    let home = tempfile::tempdir().unwrap();
    for (name, stays) in [("new/deep", false), ("old", true)] {
        fs::create_dir_all(home.path().join("old")).unwrap();
        let output = choose(&home.path().join(name), false).unwrap();
        output.create(&settings(&[])).unwrap();
        assert!(output.settings().exists() && output.metrics().exists());
        output.discard();
        let folder = output.folder.clone();
        drop(output);
        assert_eq!(folder.exists(), stays);
    }
    assert!(!home.path().join("new").exists() && names(&home.path().join("old")).is_empty());
}

#[test]
fn an_overwriting_run_replaces_the_earlier_one_at_its_end() {
    let home = tempfile::tempdir().unwrap();
    let write = |folder: &Path, text: &str| {
        for file in FILES.into_iter().chain(["precious.txt"]) {
            fs::write(folder.join(file), text).unwrap();
        }
    };
    write(home.path(), "old");
    let old = names(home.path());
    for publishes in [false, true] {
        let mut output = choose(home.path(), true).unwrap();
        output.create(&settings(&["--seed", "7"])).unwrap();
        fs::write(output.run().join("adapter_model.safetensors"), "new").unwrap();
        fs::write(output.run().join(ADAPTER), "new").unwrap();
        let content = |file: &str| fs::read_to_string(home.path().join(file)).unwrap();
        assert!(
            FILES.iter().all(|file| content(file) == "old"),
            "the earlier run is touched"
        );
        if publishes {
            output.publish().unwrap();
            drop(output);
            // There was no new picture, and the old one is not of this run.
            let kept: Vec<_> = old.iter().filter(|name| *name != PICTURE).cloned().collect();
            assert_eq!(names(home.path()), kept);
            assert_eq!(
                (content(ADAPTER), content("precious.txt")),
                ("new".to_owned(), "old".to_owned())
            );
            assert!(content(SETTINGS).contains("seed = 7"));
        }
    }
}

#[test]
fn inputs_are_never_overwritten() {
    let home = tempfile::tempdir().unwrap();
    let out = home.path().join("out");
    fs::create_dir_all(out.join(UNFINISHED)).unwrap();
    let data = home.path().join("data.jsonl");
    fs::write(&data, "precious").unwrap();
    let choose = |input: &Path| Output::choose(Some(&out), true, &[("the data", input)]);
    let refused = |input: &Path| {
        let message = choose(input).unwrap_err().to_string();
        assert!(message.contains("the run would overwrite the data"), "{message}");
    };
    choose(&data).unwrap();
    fs::hard_link(&data, out.join(METRICS)).unwrap();
    refused(&data);
    refused(&out.join(METRICS));
    fs::remove_file(out.join(METRICS)).unwrap();
    fs::hard_link(&data, out.join(UNFINISHED).join(SETTINGS)).unwrap();
    refused(&data);
    fs::remove_file(out.join(UNFINISHED).join(SETTINGS)).unwrap();
    let message = choose(&out).unwrap_err().to_string();
    assert!(message.contains("the output folder is the data itself"), "{message}");
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(&data, out.join(PICTURE)).unwrap();
        refused(&data);
        fs::remove_file(out.join(PICTURE)).unwrap();
        std::os::unix::fs::symlink(&out, home.path().join("link")).unwrap();
        fs::write(out.join(METRICS), "precious").unwrap();
        refused(&home.path().join("link").join(METRICS));
    }
    // Data with any other name may be in the folder; settings written by a run may be run again in place.
    fs::write(out.join("mine.jsonl"), "precious").unwrap();
    choose(&out.join("mine.jsonl")).unwrap();
    fs::write(out.join(SETTINGS), format!("{HEADER} 2.\nseed = 1")).unwrap();
    choose(&out.join(SETTINGS)).unwrap();
    fs::write(out.join(SETTINGS), "# Mine.\nseed = 1").unwrap();
    refused(&out.join(SETTINGS));
}

#[test]
#[cfg(target_os = "linux")]
fn an_unusable_folder_is_reported_at_once() {
    let refused = choose(Path::new("/proc/out/deep"), false).unwrap_err();
    assert!(
        refused.to_string().contains("/proc/out/deep: cannot be made"),
        "{refused}"
    );
}

#[test]
fn a_folder_without_permission_is_not_writable() {
    let home = tempfile::tempdir().unwrap();
    let denied = std::io::Error::from(ErrorKind::PermissionDenied);
    let said = |path: &Path| cannot_be_made(path, &denied).to_string();
    let writable = format!("error: {}: is not writable", home.path().display());
    assert!(said(home.path()).starts_with(&writable), "{}", said(home.path()));
    let below = said(&home.path().join("new/deep"));
    let parent = format!(
        "new/deep: cannot be made, as `{}` is not writable",
        home.path().display()
    );
    assert!(
        below.contains(&parent) && below.contains("tip: name a new folder"),
        "{below}"
    );
}

#[test]
#[cfg(unix)]
fn a_link_to_nothing_is_no_folder() {
    let home = tempfile::tempdir().unwrap();
    let link = home.path().join("link");
    std::os::unix::fs::symlink(home.path().join("absent"), &link).unwrap();
    for folder in [link.clone(), link.join("deep")] {
        let said = choose(&folder, true).unwrap_err().to_string();
        assert!(said.contains("link` is a link to nothing"), "{said}");
    }
    assert_eq!(names(home.path()), ["link"]);
}

#[test]
fn a_file_with_the_name_of_the_subfolder_is_refused_before_anything_changes() {
    let home = tempfile::tempdir().unwrap();
    for file in FILES.into_iter().chain([UNFINISHED]) {
        fs::write(home.path().join(file), "mine").unwrap();
    }
    let before = names(home.path());
    let said = choose(home.path(), true).unwrap_err().to_string();
    assert!(
        said.contains("unfinished-run: is not a folder") && said.contains("tip: move it"),
        "{said}"
    );
    assert_eq!(names(home.path()), before);
    // Other files in a subfolder stay.
    fs::remove_file(home.path().join(UNFINISHED)).unwrap();
    fs::create_dir(home.path().join(UNFINISHED)).unwrap();
    fs::write(home.path().join(UNFINISHED).join("notes"), "mine").unwrap();
    let output = choose(home.path(), true).unwrap();
    output.create(&settings(&[])).unwrap();
    output.discard();
    assert_eq!(names(&home.path().join(UNFINISHED)), ["notes"]);
}
