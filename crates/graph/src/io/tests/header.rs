//! Malformed headers and single files.

use std::fs;

use candle_core::{DType, Device};

use super::super::{FileError, SafetensorsFile};
use super::{file, raw};

fn fault(header: &str, data: usize) -> FileError {
    let (_folder, path) = file(header, data);
    let fault = SafetensorsFile::open(&path).unwrap_err();
    assert!(
        fault.to_string().contains("model.safetensors"),
        "{fault} names the file"
    );
    fault
}

macro_rules! attack {
    ($($name:ident: $header:expr, $data:expr => $pattern:pat $(if $guard:expr)?),* $(,)?) => {$(
        #[test]
        fn $name() {
            let fault = fault($header, $data);
            assert!(matches!(&fault, $pattern $(if $guard)?), "{fault:?}");
        }
    )*};
}

attack! {
    not_json: "once upon a time", 0 => FileError::HeaderField { .. },
    json_but_a_list: "[1, 2]", 0 => FileError::HeaderField { .. },
    trailing_text: "{} {}", 0 => FileError::HeaderField { .. },
    entry_is_a_number: r#"{"w": 5}"#, 0 => FileError::HeaderField { reason, .. } if reason.contains("tensor `w`"),
    dtype_missing: r#"{"w":{"shape":[1],"data_offsets":[0,4]}}"#, 4
        => FileError::HeaderField { reason, .. } if reason.contains("tensor `w`, dtype: missing"),
    shape_missing: r#"{"w":{"dtype":"F32","data_offsets":[0,4]}}"#, 4
        => FileError::HeaderField { reason, .. } if reason.contains("tensor `w`, shape: missing"),
    offsets_missing: r#"{"w":{"dtype":"F32","shape":[1]}}"#, 4
        => FileError::HeaderField { reason, .. } if reason.contains("tensor `w`, data_offsets: missing"),
    dtype_is_a_number: r#"{"w":{"dtype":32,"shape":[1],"data_offsets":[0,4]}}"#, 4
        => FileError::HeaderField { reason, .. } if reason.contains("tensor `w`, dtype"),
    negative_size: r#"{"w":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}"#, 4
        => FileError::HeaderField { reason, .. } if reason.contains("tensor `w`, shape"),
    fractional_offset: r#"{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4.5]}}"#, 4
        => FileError::HeaderField { reason, .. } if reason.contains("tensor `w`, data_offsets"),
    offset_beyond_u64: r#"{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,18446744073709551616]}}"#, 4
        => FileError::HeaderField { reason, .. } if reason.contains("data_offsets"),
    three_offsets: r#"{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4,8]}}"#, 8
        => FileError::HeaderField { reason, .. } if reason.contains("data_offsets"),
    one_offset: r#"{"w":{"dtype":"F32","shape":[1],"data_offsets":[0]}}"#, 4
        => FileError::HeaderField { reason, .. } if reason.contains("[begin, end]"),
    seventeen_dimensions: r#"{"w":{"dtype":"U8","shape":[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1],"data_offsets":[0,1]}}"#, 1
        => FileError::HeaderField { reason, .. } if reason.contains("shape: more than 16"),
    metadata_is_not_text: r#"{"__metadata__":{"a":1}}"#, 0
        => FileError::HeaderField { reason, .. } if reason.contains("`__metadata__`, key `a`"),
    unknown_dtype: r#"{"w":{"dtype":"F31","shape":[1],"data_offsets":[0,4]}}"#, 4
        => FileError::UnknownDtype { name, dtype, .. } if name == "w" && dtype == "F31",
    // The reference reader keeps the last of two equal names.
    duplicate_tensor: r#"{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#, 1
        => FileError::DuplicateName { name, .. } if name == "w",
    duplicate_field: r#"{"w":{"dtype":"U8","shape":[1],"shape":[1],"data_offsets":[0,1]}}"#, 1
        => FileError::DuplicateName { name, .. } if name == "w.shape",
    duplicate_metadata: r#"{"__metadata__":{},"__metadata__":{}}"#, 0
        => FileError::DuplicateName { name, .. } if name == "__metadata__",
    duplicate_metadata_key: r#"{"__metadata__":{"a":"1","a":"2"}}"#, 0
        => FileError::DuplicateName { name, .. } if name == "__metadata__.a",
    shape_overflows: r#"{"w":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4]}}"#, 4
        => FileError::ShapeOverflow { name, .. } if name == "w",
    strides_overflow_behind_a_zero: r#"{"w":{"dtype":"F32","shape":[0,4294967296,4294967296],"data_offsets":[0,0]}}"#, 0
        => FileError::ShapeOverflow { name, .. } if name == "w",
    shape_larger_than_bytes: r#"{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}"#, 4
        => FileError::SizeMismatch { expected: 8, found: 4, .. },
    dtype_smaller_than_bytes: r#"{"w":{"dtype":"F16","shape":[1],"data_offsets":[0,4]}}"#, 4
        => FileError::SizeMismatch { expected: 2, found: 4, .. },
    offsets_reversed: r#"{"w":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}"#, 4
        => FileError::OutOfRange { .. },
    offsets_beyond_the_file: r#"{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, 4
        => FileError::OutOfRange { available: 4, .. },
    absurdly_sized_tensor: r#"{"w":{"dtype":"U8","shape":[1099511627776],"data_offsets":[0,1099511627776]}}"#, 4
        => FileError::OutOfRange { .. },
    overlap: r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}}"#, 6
        => FileError::Overlap { first, second, .. } if first == "a" && second == "b",
    same_bytes_twice: r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}"#, 4
        => FileError::Overlap { .. },
    gap: r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}}"#, 3
        => FileError::Gap { range, .. } if *range == (1..2),
    gap_at_the_start: r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[3,4]}}"#, 4
        => FileError::Gap { range, .. } if *range == (0..3),
    trailing_bytes: r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#, 9
        => FileError::Gap { range, .. } if *range == (1..9),
}

#[test]
fn short_prefix() {
    let (_folder, path) = raw(&[1, 2, 3]);
    assert!(matches!(
        SafetensorsFile::open(path),
        Err(FileError::TooShort { size: 3, .. })
    ));
}

#[test]
fn header_longer_than_the_file() {
    for length in [3_u64, 1 << 40, u64::MAX] {
        let (_folder, path) = raw(&[&length.to_le_bytes()[..], b"{}"].concat());
        assert!(
            matches!(SafetensorsFile::open(path), Err(FileError::HeaderBeyondFile { .. })),
            "{length}"
        );
    }
}

#[test]
fn oversized_header_in_a_large_file() {
    let (_folder, path) = raw(&(17_u64 << 20).to_le_bytes());
    fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(18 << 20)
        .unwrap();
    assert!(matches!(
        SafetensorsFile::open(path),
        Err(FileError::HeaderTooLarge { .. })
    ));
}

#[test]
fn header_not_utf8() {
    let (_folder, path) = raw(&[&4_u64.to_le_bytes()[..], b"{\"\xff}"].concat());
    assert!(matches!(
        SafetensorsFile::open(path),
        Err(FileError::HeaderNotUtf8 { position: 2, .. })
    ));
}

#[test]
fn nested_json_does_not_overflow_the_stack() {
    let deep = format!(r#"{{"w":{{"x":{}"#, "[".repeat(1 << 20));
    assert!(matches!(fault(&deep, 0), FileError::HeaderField { .. }));
}

#[test]
fn too_much_metadata() {
    let entries: Vec<String> = (0..70_000).map(|i| format!(r#""{i}":"""#)).collect();
    let header = format!(r#"{{"__metadata__":{{{}}}}}"#, entries.join(","));
    assert!(matches!(fault(&header, 0), FileError::TooMany { limit: 65_536, .. }));
}

#[test]
fn a_folder_is_not_a_file() {
    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(
        SafetensorsFile::open(folder.path()),
        Err(FileError::NotAFile { .. })
    ));
    let missing = folder.path().join("x");
    assert!(matches!(
        SafetensorsFile::open(missing),
        Err(FileError::Io { action: "open", .. })
    ));
}

#[test]
fn a_file_cut_after_opening_is_an_error_on_loading() {
    let (_folder, path) = file(r#"{"w":{"dtype":"F32","shape":[1024],"data_offsets":[0,4096]}}"#, 4096);
    let open = SafetensorsFile::open(&path).unwrap();
    fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(200)
        .unwrap();
    assert!(matches!(open.load("w", &Device::Cpu), Err(FileError::Io { .. })));
}

#[test]
fn known_but_unsupported_dtypes_open_and_do_not_load() {
    let (_folder, path) = file(r#"{"w":{"dtype":"I32","shape":[1],"data_offsets":[0,4]}}"#, 4);
    let open = SafetensorsFile::open(&path).unwrap();
    let fault = open.load("w", &Device::Cpu).unwrap_err();
    assert!(
        matches!(&fault, FileError::UnsupportedDtype { dtype, .. } if dtype == "I32"),
        "{fault:?}"
    );
    assert!(matches!(
        open.load("v", &Device::Cpu),
        Err(FileError::NoSuchTensor { .. })
    ));
}

#[test]
fn integers_do_not_convert() {
    let (_folder, path) = file(r#"{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#, 1);
    let open = SafetensorsFile::open(&path).unwrap();
    let result = open.load_as("w", DType::F32, &Device::Cpu);
    assert!(matches!(
        result,
        Err(FileError::UnsupportedConversion {
            from: DType::U8,
            to: DType::F32,
            ..
        })
    ));
}
