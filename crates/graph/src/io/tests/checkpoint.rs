//! Checkpoint folders: shards, malformed indices, pickles.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use tempfile::TempDir;

use super::super::safetensors::write;
use super::super::{Checkpoint, FileError, Result};

fn sharded(weight_map: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (shard, name, value) in [("one", "a", 1f32), ("two", "b", 2.)] {
        let path = folder.path().join(format!("{shard}.safetensors"));
        write(
            &path,
            &[(name, Tensor::new(&[value], &Device::Cpu).unwrap())],
            &BTreeMap::new(),
        )
        .unwrap();
    }
    let index = folder.path().join("model.safetensors.index.json");
    fs::write(
        index,
        format!(r#"{{"metadata":{{"total_size":8}},"weight_map":{weight_map}}}"#),
    )
    .unwrap();
    folder
}

fn open_sharded(weight_map: &str) -> Result<Checkpoint> {
    Checkpoint::open(sharded(weight_map).path())
}

#[test]
fn shards_are_one_checkpoint() {
    let folder = sharded(r#"{"a":"one.safetensors","b":"two.safetensors"}"#);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    assert!(checkpoint.names().eq(["a", "b"]) && checkpoint.contains("b") && !checkpoint.contains("c"));
    assert_eq!(
        checkpoint.load("b", &Device::Cpu).unwrap().to_vec1::<f32>().unwrap(),
        [2.]
    );
    assert_eq!(
        checkpoint
            .load_as("a", DType::F64, &Device::Cpu)
            .unwrap()
            .to_vec1::<f64>()
            .unwrap(),
        [1.]
    );
    assert!(matches!(checkpoint.info("c"), Err(FileError::NoSuchTensor { .. })));
}

#[test]
fn path_traversal_in_shard_names_is_refused_before_opening() {
    for name in [
        "../x.safetensors",
        "/etc/x.safetensors",
        "C:x.safetensors",
        "C:\\\\x.safetensors",
        "sub/x.safetensors",
        "sub\\\\x.safetensors",
        "x\\u0000.safetensors",
        "..",
        ".safetensors",
        "",
        "weights.bin",
    ] {
        // The valid shard comes first but is missing: the unsafe name must be reported.
        let map = format!(r#"{{"a":"absent.safetensors","z":"{name}"}}"#);
        assert!(
            matches!(open_sharded(&map), Err(FileError::UnsafeShardName { .. })),
            "{name}"
        );
    }
}

#[test]
fn missing_shards_and_tensors_are_errors() {
    let missing = open_sharded(r#"{"a":"one.safetensors","c":"three.safetensors"}"#).unwrap_err();
    assert!(
        matches!(&missing, FileError::MissingShard { shard, tensor, .. } if shard == "three.safetensors" && tensor == "c")
    );
    let lacking = open_sharded(r#"{"a":"one.safetensors","c":"two.safetensors"}"#).unwrap_err();
    assert!(
        matches!(&lacking, FileError::TensorNotInShard { shard, tensor, .. } if shard == "two.safetensors" && tensor == "c")
    );
}

#[test]
fn a_bad_index_names_the_field() {
    for (map, needle) in [
        ("{}", "weight_map is empty"),
        ("5", "weight_map"),
        (r#"{"a":1}"#, "weight_map[`a`]"),
        (
            r#"{"a":"one.safetensors","a":"two.safetensors"}"#,
            "weight_map[`a`] appears twice",
        ),
    ] {
        match open_sharded(map) {
            Err(FileError::BadIndex { reason, .. }) => assert!(reason.contains(needle), "{reason}"),
            other => panic!("{map}: {other:?}"),
        }
    }
}

#[test]
fn pickles_and_empty_folders() {
    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(
        Checkpoint::open(folder.path()),
        Err(FileError::NoWeights { .. })
    ));
    fs::write(folder.path().join("pytorch_model.bin"), b"x").unwrap();
    let fault = Checkpoint::open(folder.path()).unwrap_err();
    assert!(fault.to_string().contains("save_pretrained"), "{fault}");
    let absent = Checkpoint::open(Path::new("no-such-folder")).unwrap_err();
    assert!(matches!(
        absent,
        FileError::Io {
            action: "open the folder",
            ..
        }
    ));
}
