//! Rules for the whole tree: required files, and declarations in crate roots.

use std::collections::BTreeSet;

use super::Offence;
use super::source::Source;

/// The tables over `Operation`, each a file `NAME.rs` or a folder `NAME/`.
const TABLES: [&str; 5] = [
    "crates/graph/src/graph/infer",
    "crates/graph/src/graph/verify",
    "crates/graph/src/graph/print",
    "crates/graph/src/grad/rules",
    "crates/graph/src/backend/candle",
];
const FUSED: &str = "crates/graph/src/fused/";

/// Whether the file at `path` is one of the tables over `Operation`, or part of one.
pub fn is_table(path: &str) -> bool {
    TABLES.iter().any(|table| {
        path.strip_prefix(table)
            .is_some_and(|rest| rest == ".rs" || rest.starts_with('/'))
    })
}

/// Runs all rules of this module on the whole tree.
pub fn check_tree(sources: &[Source]) -> Vec<Offence> {
    [tables_exist, fused_folders, roots_forbid_unsafe]
        .iter()
        .flat_map(|rule| rule(sources))
        .collect()
}

/// A renamed table must stay subject to the rule about wildcard arms.
fn tables_exist(sources: &[Source]) -> Vec<Offence> {
    let is_absent = |table: &&&str| {
        let (file, folder) = (format!("{table}.rs"), format!("{table}/"));
        !sources
            .iter()
            .any(|source| source.path == file || source.path.starts_with(&folder))
    };
    let absent = TABLES.iter().filter(is_absent);
    let message = "this table over Operation is gone: if it moved, name its new place in xtask/src/tidy/layout.rs";
    absent
        .map(|table| Offence::new(format!("{table}.rs"), 0, message))
        .collect()
}

/// Every fused operation is a folder with a `mod.rs`.
fn fused_folders(sources: &[Source]) -> Vec<Offence> {
    let inner = sources.iter().filter_map(|source| source.path.strip_prefix(FUSED));
    let folders: BTreeSet<_> = inner
        .filter_map(|path| path.split_once('/'))
        .map(|(folder, _)| folder)
        .collect();
    let has_module = |folder: &str| {
        let module = format!("{FUSED}{folder}/mod.rs");
        sources.iter().any(|source| source.path == module)
    };
    let bare = folders.into_iter().filter(|folder| !has_module(folder));
    bare.map(|folder| Offence::new(format!("{FUSED}{folder}"), 0, "a fused operation without a mod.rs"))
        .collect()
}

/// Every crate but the engine forbids unsafe code in its root file.
fn roots_forbid_unsafe(sources: &[Source]) -> Vec<Offence> {
    let roots = sources.iter().filter(|source| is_crate_root(&source.path));
    let lax = roots.filter(|source| !source.code.contains("#![forbid(unsafe_code)]"));
    lax.map(|source| Offence::new(&source.path, 0, "the crate root lacks #![forbid(unsafe_code)]"))
        .collect()
}

fn is_crate_root(path: &str) -> bool {
    let is_root = path.ends_with("/src/lib.rs") || path.ends_with("/src/main.rs") || path.contains("/src/bin/");
    is_root && !path.starts_with("crates/graph/")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(rule: fn(&[Source]) -> Vec<Offence>, files: &[(&str, &str)]) -> Vec<String> {
        let sources: Vec<_> = files.iter().map(|&(path, text)| Source::new(path, text)).collect();
        rule(&sources).into_iter().map(|offence| offence.path).collect()
    }

    #[test]
    fn a_table_may_be_a_file_or_a_folder() {
        assert!(is_table("crates/graph/src/graph/infer.rs"));
        assert!(is_table("crates/graph/src/backend/candle/mod.rs"));
        assert!(!is_table("crates/graph/src/backend/candle_helpers.rs"));
    }

    #[test]
    fn an_absent_table_is_an_offence() {
        let present: Vec<_> = TABLES.iter().map(|table| format!("{table}.rs")).collect();
        let files: Vec<_> = present.iter().map(|path| (path.as_str(), "")).collect();
        assert_eq!(paths(tables_exist, &files), Vec::<String>::new());
        assert_eq!(paths(tables_exist, &files[1..]), ["crates/graph/src/graph/infer.rs"]);
    }

    #[test]
    fn a_fused_operation_needs_its_module() {
        let module = ("crates/graph/src/fused/rope/mod.rs", "");
        let kernel = ("crates/graph/src/fused/gelu/kernel.cu", "");
        assert_eq!(paths(fused_folders, &[module, kernel]), ["crates/graph/src/fused/gelu"]);
        assert_eq!(
            paths(fused_folders, &[module, ("crates/graph/src/fused/mod.rs", "")]),
            Vec::<String>::new()
        );
    }

    #[test]
    fn crate_roots_forbid_unsafe_code() {
        let lax = ("crates/cli/src/main.rs", "// #![forbid(unsafe_code)]\nfn main() {}");
        let strict = ("crates/metal-candle/src/lib.rs", "#![forbid(unsafe_code)]");
        let engine = ("crates/graph/src/lib.rs", "");
        assert_eq!(
            paths(roots_forbid_unsafe, &[lax, strict, engine]),
            ["crates/cli/src/main.rs"]
        );
    }
}
