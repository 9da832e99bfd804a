//! Recognises files that contain no JSON rows, and tells how to convert them.
//!
//! Looks at the first bytes only, never at the file's name, and reads nothing.

use crate::text::python_json;

/// First bytes, the file type, and what to do.
const KNOWN: [(&[u8], &str, &str); 19] = [
    (b"\x1F\x8B", "a gzip archive", "unpack it first: gunzip FILE"),
    (
        b"PK\x03\x04",
        "a zip archive (or an Excel file)",
        "unpack it first: unzip FILE",
    ),
    (
        b"\x28\xB5\x2F\xFD",
        "a Zstandard archive",
        "unpack it first: unzstd FILE",
    ),
    (b"BZh", "a bzip2 archive", "unpack it first: bunzip2 FILE"),
    (b"\xFD7zXZ\0", "an xz archive", "unpack it first: unxz FILE"),
    (b"PAR1", "a Parquet file", PARQUET),
    (b"ARROW1", "an Arrow file", ARROW),
    (b"\xFF\xFF\xFF\xFF", "an Arrow stream", ARROW),
    (
        b"SQLite format 3",
        "a SQLite database",
        "write its rows as JSON, one object a line",
    ),
    (b"\x89HDF", "an HDF5 file", "write its rows as JSON, one object a line"),
    (b"%PDF", "a PDF document", "write its texts as rows {\"text\": ...}"),
    (
        b"GGUF",
        "a GGUF model",
        "give the data with --data and the model with --model",
    ),
    (
        b"version https://git-lfs",
        "a Git LFS pointer, not the file itself",
        "fetch it: git lfs pull",
    ),
    (
        b"\xFF\xFE\0\0",
        "UTF-32 text",
        "convert it: iconv -f UTF-32 -t UTF-8 FILE > FILE.utf8",
    ),
    (b"\xFF\xFE", "UTF-16 text", UTF_16),
    (b"\xFE\xFF", "UTF-16 text", UTF_16),
    (
        b"{\0",
        "UTF-16 text",
        "convert it: iconv -f UTF-16LE -t UTF-8 FILE > FILE.utf8",
    ),
    (
        b"\0{",
        "UTF-16 text",
        "convert it: iconv -f UTF-16BE -t UTF-8 FILE > FILE.utf8",
    ),
    (b"<", "an HTML or XML page", "write its texts as rows {\"text\": ...}"),
];
const PARQUET: &str = "convert it with pandas: pandas.read_parquet(FILE).to_json(\"rows.jsonl\", orient=\"records\", \
    lines=True)";
const ARROW: &str = "convert it with datasets: Dataset.from_file(FILE).to_json(\"rows.jsonl\")";
const CSV: &str = "convert it with pandas: pandas.read_csv(FILE).to_json(\"rows.jsonl\", orient=\"records\", \
    lines=True), with columns that have the fields' names";
const UTF_16: &str = "convert it: iconv -f UTF-16 -t UTF-8 FILE > FILE.utf8";

/// The file type for these first bytes, and what to do; `None` if the file may contain JSON rows.
pub(super) fn recognise(head: &[u8]) -> Option<String> {
    let told = |what: &str, how: &str| {
        let wanted = if what.starts_with("UTF") { "UTF-8" } else { "JSON rows" };
        Some(format!("{what}, not {wanted}; {how}"))
    };
    if let Some((_, what, how)) = KNOWN.iter().find(|(magic, ..)| head.starts_with(magic)) {
        return told(what, how);
    }
    let first = head.iter().find(|byte| !byte.is_ascii_whitespace())?;
    if matches!(first, b'{' | b'[') {
        return None;
    }
    let is_control = |byte: &u8| *byte < b' ' && !byte.is_ascii_whitespace();
    if head.iter().take(1024).any(is_control) {
        return told("a binary file", "give a file of JSON objects, one a line");
    }
    text(&String::from_utf8_lossy(head)).and_then(|(what, how)| told(what, how))
}

/// The type of a text that does not begin with JSON; `None` if it may contain rows or other JSON.
fn text(head: &str) -> Option<(&'static str, &'static str)> {
    let lines = || {
        head.lines()
            .map(str::trim_start)
            .filter(|line| !line.is_empty())
            .take(5)
    };
    if lines().any(|line| line.starts_with(['{', '['])) {
        return None;
    }
    let mut fields = lines().map(|line| line.matches([',', '\t', ';']).count());
    let header = fields.next().unwrap_or(0);
    if header > 0 && fields.next().is_none_or(|second| second >= header) {
        return Some(("a table of text (CSV)", CSV));
    }
    let is_json = |line: &str| python_json::parse(line.as_bytes()).is_ok();
    if lines().any(is_json) || lines().any(|line| line.starts_with('"')) {
        return None;
    }
    Some(("plain text", "write each text as a line {\"text\": ...}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_not_mistaken() {
        let rows: [&[u8]; 8] = [
            b"",
            b" \n",
            b"{\"a\": 1}",
            b"\n\n[",
            b"// a comment, really\n{\"text\": \"a\"}\n",
            b"\"a\"\n",
            b"12\n13\n",
            b"{\"a\": \"\x01\"}",
        ];
        for head in rows {
            assert_eq!(recognise(head), None, "{}", head.escape_ascii());
        }
    }

    #[test]
    fn other_files_are_named() {
        let cases: [(&[u8], &str); 12] = [
            (b"\x1F\x8B\x08\0", "gzip"),
            (b"PAR1\x15", "read_parquet"),
            (b"\xFF\xFE{\0", "UTF-16"),
            (b"{\0\"\0", "UTF-16LE"),
            (b"\0{\0\"", "UTF-16BE"),
            (b"prompt,completion\na,b\n", "read_csv"),
            (b"\"prompt\",\"completion\"\n\"a\",\"b\"\n", "read_csv"),
            (b"prompt\tcompletion\n", "CSV"),
            (b"\n\x0E\n\x05<unk>\x15\0\0\0\0\x18\x02", "binary"),
            (b"Once upon a time\nthere was\n", "plain text"),
            (b"<!doctype html>", "HTML"),
            (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ];
        for (head, expected) in cases {
            let said = recognise(head).unwrap_or_default();
            assert!(said.contains(expected), "{}: {said}", head.escape_ascii());
        }
    }
}
