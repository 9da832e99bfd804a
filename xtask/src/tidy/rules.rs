//! Rules for single files. Each is a small function from a file to its offences.
//!
//! A rule for part of the tree checks the path itself, so the list below is complete.

use super::Offence;
use super::source::{Source, has_word};

/// Longest `.rs` file, in lines.
const FILE_LINES: usize = 500;
/// Longest model file, in lines.
const MODEL_LINES: usize = 300;
const GRAPH: &str = "crates/graph/src/";
const MODELS: &str = "crates/metal-candle/src/models/";
/// The files of `models/` that are not models.
const NOT_MODELS: [&str; 4] = ["mod.rs", "config.rs", "loader.rs", "registry.rs"];

/// Runs all rules of this module on `source`.
pub fn check_file(source: &Source) -> Vec<Offence> {
    let rules = [
        header,
        length,
        model_length,
        unfinished,
        machine_paths,
        wildcard_arms,
        storages,
        devices,
        unsafe_place,
        unsafe_reason,
    ];
    rules.iter().flat_map(|rule| rule(source)).collect()
}

/// Every Rust file begins with a module header.
fn header(source: &Source) -> Vec<Offence> {
    let first = source.text.lines().find(|line| !line.starts_with("#!["));
    let missing = source.is_rust() && !first.is_some_and(|line| line.starts_with("//!"));
    offend_if(
        missing,
        source,
        "no module header: begin the file with //! lines that say what it is",
    )
}

fn length(source: &Source) -> Vec<Offence> {
    let lines = source.text.lines().count();
    let message = format!("{lines} lines, at most {FILE_LINES}: split the file");
    offend_if(source.is_rust() && lines > FILE_LINES, source, message)
}

fn model_length(source: &Source) -> Vec<Offence> {
    let Some(name) = source.path.strip_prefix(MODELS) else {
        return Vec::new();
    };
    let lines = source.text.lines().count();
    let message = format!("{lines} lines, at most {MODEL_LINES} for a model: move what is general into nn/");
    let is_model = !NOT_MODELS.contains(&name) && !name.ends_with("_tests.rs");
    offend_if(is_model && lines > MODEL_LINES, source, message)
}

/// No marks of unfinished work.
fn unfinished(source: &Source) -> Vec<Offence> {
    // Written in halves, or this file would offend.
    let marks = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X:")];
    let macros = [
        concat!("to", "do!"),
        concat!("un", "implemented!"),
        concat!("db", "g!("),
    ];
    let in_text = lines_with(source, &source.text, |line| {
        marks.iter().any(|mark| has_word(line, mark))
    });
    let in_code = lines_with(source, &source.code, |line| {
        macros.iter().any(|name| line.contains(name))
    });
    let message = "unfinished work: finish it, or take it out";
    in_text
        .into_iter()
        .chain(in_code)
        .map(|line| Offence::new(&source.path, line, message))
        .collect()
}

/// No absolute paths of a specific machine.
fn machine_paths(source: &Source) -> Vec<Offence> {
    let places = [
        concat!("/ho", "me/"),
        concat!("/Us", "ers/"),
        concat!("/ro", "ot/"),
        concat!("/tm", "p/"),
    ];
    let message = "a path of one machine: use a relative path, or std::env::temp_dir() or the tempfile crate";
    offend_lines(source, &source.text, message, |line| {
        places.iter().any(|place| {
            // `crates/home/x` is a path of the repository; only an absolute path is an offence.
            line.match_indices(place)
                .any(|(at, _)| !line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_'))
        })
    })
}

/// The tables over `Operation` are exhaustive, so that the compiler lists what a new operation needs. A match over
/// something else (a dtype, a device) may have a `_ =>` arm.
fn wildcard_arms(source: &Source) -> Vec<Offence> {
    if !super::layout::is_table(&source.path) {
        return Vec::new();
    }
    let lines: Vec<_> = source.product_lines().map(|(_, line)| line).collect();
    let message = "a `_ =>` arm in a match over Operation: list the operations";
    let is_wildcard = |line: &str| {
        let arm = line.trim_start();
        arm.starts_with("_ =>") || arm.starts_with("_ if ") || line.contains("| _ =>") || line.contains("{ _ =>")
    };
    let wrong = (0..lines.len()).filter(|&at| is_wildcard(lines[at]) && arms_around(&lines, at).any(names_operation));
    wrong.map(|at| Offence::new(&source.path, at + 1, message)).collect()
}

/// The lines of the block that holds line `at`, without the lines of blocks inside it.
fn arms_around<'a>(lines: &'a [&'a str], at: usize) -> impl Iterator<Item = &'a str> {
    let depths: Vec<i32> = lines
        .iter()
        .scan(0, |depth, line| {
            let before = *depth;
            *depth += line.matches('{').count() as i32 - line.matches('}').count() as i32;
            Some(before)
        })
        .collect();
    let depth = depths[at];
    let start = depths[..at].iter().rposition(|&other| other < depth).unwrap_or(0);
    let end = depths[at..]
        .iter()
        .position(|&other| other < depth)
        .map_or(lines.len(), |length| at + length);
    (start..end)
        .filter(move |&line| depths[line] == depth || line == at)
        .map(|line| lines[line])
}

/// Whether the pattern on this line of a match is one of an operation.
fn names_operation(line: &str) -> bool {
    let pattern = line.split("=>").next().unwrap_or(line);
    pattern.contains("Operation::")
        || has_word(pattern, "Self::")
        || has_word(pattern, "Op::")
        || has_word(pattern, "O::")
}

/// Only `backend/` and `io/` of the engine may name storages.
fn storages(source: &Source) -> Vec<Offence> {
    if !inside(source, GRAPH) || inside(source, "crates/graph/src/backend") || inside(source, "crates/graph/src/io") {
        return Vec::new();
    }
    let words = [
        "CpuStorage",
        "CudaStorage",
        "MetalStorage",
        "cudarc",
        "candle_metal_kernels",
        "objc2_metal",
    ];
    offend_product_lines(
        source,
        "candle's storages, cudarc and Metal are named only in backend/ and io/",
        |line| words.iter().any(|word| has_word(line, word)),
    )
}

/// Gradients and passes turn graphs into graphs; they use no data and no device.
fn devices(source: &Source) -> Vec<Offence> {
    if !inside(source, "crates/graph/src/grad") && !inside(source, "crates/graph/src/pass") {
        return Vec::new();
    }
    let words = ["Tensor", "Tensor::", "CpuDevice", "Device::"];
    offend_product_lines(
        source,
        "grad/ and pass/ never touch candle's tensors or a device",
        |line| words.iter().any(|word| has_word(line, word)),
    )
}

fn unsafe_place(source: &Source) -> Vec<Offence> {
    // A test of the engine may count allocations with an allocator of its own.
    if inside(source, "crates/graph/src/backend") || inside(source, "crates/graph/tests/") {
        return Vec::new();
    }
    offend_lines(
        source,
        &source.code,
        "unsafe code belongs in crates/graph/src/backend",
        |line| has_word(line, "unsafe"),
    )
}

/// Each unsafe block has a `SAFETY` comment above it.
fn unsafe_reason(source: &Source) -> Vec<Offence> {
    let text: Vec<_> = source.text.lines().collect();
    let is_reasoned = |line: usize| {
        text[line.saturating_sub(6)..line]
            .iter()
            .any(|line| line.contains("SAFETY:"))
    };
    let is_block = |line: &str| has_word(line, "unsafe") && (line.contains("unsafe {") || line.contains("unsafe impl"));
    let bare = source
        .product_lines()
        .filter(|&(line, text)| is_block(text) && !is_reasoned(line));
    let message = "an unsafe block without a `// SAFETY:` reason above it";
    bare.map(|(line, _)| Offence::new(&source.path, line, message))
        .collect()
}

fn inside(source: &Source, prefix: &str) -> bool {
    source.path.starts_with(prefix)
}

fn offend_if(wrong: bool, source: &Source, message: impl Into<String>) -> Vec<Offence> {
    if wrong {
        vec![Offence::new(&source.path, 0, message)]
    } else {
        Vec::new()
    }
}

fn lines_with(source: &Source, text: &str, wrong: impl Fn(&str) -> bool) -> Vec<usize> {
    debug_assert!(text.is_empty() || text.len() == source.text.len() || text == source.code);
    text.lines()
        .enumerate()
        .filter(|(_, line)| wrong(line))
        .map(|(index, _)| index + 1)
        .collect()
}

fn offend_lines(source: &Source, text: &str, message: &str, wrong: impl Fn(&str) -> bool) -> Vec<Offence> {
    lines_with(source, text, wrong)
        .into_iter()
        .map(|line| Offence::new(&source.path, line, message))
        .collect()
}

fn offend_product_lines(source: &Source, message: &str, wrong: impl Fn(&str) -> bool) -> Vec<Offence> {
    let lines = source.product_lines().filter(|(_, line)| wrong(line));
    lines
        .map(|(line, _)| Offence::new(&source.path, line, message))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASS: &str = "crates/graph/src/pass/cse.rs";
    const NONE: [usize; 0] = [];
    const BACKEND: &str = "crates/graph/src/backend/cpu/mod.rs";

    /// The lines of `text` at `path` that violate `rule`.
    fn lines(rule: fn(&Source) -> Vec<Offence>, path: &str, text: &str) -> Vec<usize> {
        rule(&Source::new(path, text))
            .into_iter()
            .map(|offence| offence.line)
            .collect()
    }

    #[test]
    fn a_file_needs_a_header() {
        assert_eq!(lines(header, "a.rs", "use std::fmt;\n"), [0]);
        assert_eq!(lines(header, "a.rs", ""), [0]);
        assert_eq!(lines(header, "a.rs", "#![forbid(unsafe_code)]\n//! A thing.\n"), NONE);
        assert_eq!(lines(header, "a.py", "import os\n"), NONE);
    }

    #[test]
    fn a_file_has_at_most_500_lines() {
        assert_eq!(lines(length, "a.rs", &"x\n".repeat(501)), [0]);
        assert_eq!(lines(length, "a.rs", &"x\n".repeat(500)), NONE);
        assert_eq!(lines(length, "a.md", &"x\n".repeat(501)), NONE);
    }

    #[test]
    fn a_model_has_at_most_300_lines() {
        let (long, fit) = ("x\n".repeat(301), "x\n".repeat(300));
        assert_eq!(
            lines(model_length, "crates/metal-candle/src/models/qwen2.rs", &long),
            [0]
        );
        assert_eq!(
            lines(model_length, "crates/metal-candle/src/models/qwen2.rs", &fit),
            NONE
        );
        assert_eq!(
            lines(model_length, "crates/metal-candle/src/models/loader.rs", &long),
            NONE
        );
    }

    #[test]
    fn unfinished_work_is_found_in_comments_and_code() {
        let text = concat!(
            "// TO",
            "DO: later\nfn f() { to",
            "do!() }\nfn g() { un",
            "implemented!() }\n"
        );
        assert_eq!(lines(unfinished, "a.rs", text), [1, 2, 3]);
        assert_eq!(lines(unfinished, "a.rs", concat!("f(db", "g!(x));")), [1]);
        assert_eq!(lines(unfinished, "a.rs", "let mastodon = 1;"), NONE);
    }

    #[test]
    fn paths_of_one_machine_are_found() {
        assert_eq!(lines(machine_paths, "a.md", concat!("see /ho", "me/ann/x")), [1]);
        assert_eq!(lines(machine_paths, "a.rs", concat!("let p = \"/tm", "p/x\";")), [1]);
        assert_eq!(
            lines(machine_paths, "a.rs", concat!("let p = \"crates/ro", "ot/x\";")),
            NONE
        );
    }

    #[test]
    fn a_table_has_no_wildcard_arm() {
        let table = "crates/graph/src/graph/infer.rs";
        let direct = "match op {\n    Operation::Add => 2,\n    _ => 1,\n}";
        let after_block = "match op {\n    O::Pad { by } => {\n        2\n    }\n    _ => 1,\n}";
        let inner = "match op {\n    O::Add => match dtype {\n        F32 => 2,\n        _ => 1,\n    },\n}";
        assert_eq!(lines(wildcard_arms, table, direct), [3]);
        assert_eq!(lines(wildcard_arms, table, after_block), [5]);
        assert_eq!(lines(wildcard_arms, table, "match op { O::Add | _ => 1 }"), [1]);
        assert_eq!(lines(wildcard_arms, table, inner), NONE);
        assert_eq!(
            lines(wildcard_arms, table, "match op {\n    (O::Add, _) => 1,\n}"),
            NONE
        );
        assert_eq!(lines(wildcard_arms, table, &format!("#[cfg(test)]\n{direct}")), NONE);
        assert_eq!(lines(wildcard_arms, "crates/graph/src/device.rs", direct), NONE);
    }

    #[test]
    fn storages_stay_in_backend_and_io() {
        let text = "use candle_core::CpuStorage;\n";
        assert_eq!(lines(storages, "crates/graph/src/lazy_tensor.rs", text), [1]);
        assert_eq!(lines(storages, BACKEND, text), NONE);
        assert_eq!(lines(storages, "crates/graph/src/io/gguf.rs", text), NONE);
    }

    #[test]
    fn gradients_and_passes_touch_no_tensor() {
        for text in ["use candle_core::Tensor;", "let x = Tensor::zeros();", "Device::Cpu"] {
            assert_eq!(lines(devices, PASS, text), [1], "{text}");
        }
        assert_eq!(lines(devices, PASS, "let x: LazyTensor = LazyTensor::zeros();"), NONE);
        assert_eq!(lines(devices, BACKEND, "use candle_core::Tensor;"), NONE);
    }

    #[test]
    fn unsafe_code_lives_in_the_backend_with_a_reason() {
        let bare = "unsafe { f() }";
        assert_eq!(lines(unsafe_place, PASS, bare), [1]);
        assert_eq!(lines(unsafe_place, "crates/cli/src/main.rs", bare), [1]);
        assert_eq!(lines(unsafe_place, "crates/graph/tests/memory.rs", bare), NONE);
        assert_eq!(
            lines(unsafe_place, PASS, "#![forbid(unsafe_code)] // no unsafe here"),
            NONE
        );
        assert_eq!(lines(unsafe_reason, BACKEND, bare), [1]);
        assert_eq!(
            lines(
                unsafe_reason,
                BACKEND,
                "// SAFETY: f has no requirement.\nunsafe { f() }"
            ),
            NONE
        );
    }
}
