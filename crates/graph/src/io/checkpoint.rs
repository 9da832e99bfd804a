//! A folder of weights: one `model.safetensors`, or shards with an index.
//!
//! The index maps tensors to shards. Its shard names are untrusted: anything but the plain name of a `.safetensors`
//! file is refused before any shard is opened.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};

use super::safetensors::open_regular;
use super::{FileError, Result, SafetensorsFile, TensorInfo};

/// The unsharded file.
const WHOLE: &str = "model.safetensors";
/// The index of a sharded checkpoint.
const INDEX: &str = "model.safetensors.index.json";
/// Largest index read, in bytes; the largest published ones have 9 MB.
const MAX_INDEX: u64 = 10 << 20;
/// The command that converts a pickle file.
const ADVICE: &str = "python -c \"from transformers import AutoModelForCausalLM as M; \
     M.from_pretrained('FOLDER').save_pretrained('NEW_FOLDER')\"";

/// The weights of a model folder, as one set of names.
#[derive(Debug)]
pub struct Checkpoint {
    folder: PathBuf,
    files: Vec<SafetensorsFile>,
    /// Maps a tensor's name to the index of its file in `files`.
    location: BTreeMap<String, usize>,
}

impl Checkpoint {
    /// Opens `model.safetensors`, or every shard of `model.safetensors.index.json`; reads headers only.
    ///
    /// # Errors
    /// Those of [`SafetensorsFile::open`]; for an index [`FileError::BadIndex`], [`FileError::UnsafeShardName`],
    /// [`FileError::MissingShard`] and [`FileError::TensorNotInShard`]; [`FileError::PickleRefused`] if there are only
    /// pickled weights, [`FileError::NoWeights`] if there are none.
    pub fn open(folder: impl Into<PathBuf>) -> Result<Self> {
        let folder = folder.into();
        let whole = folder.join(WHOLE);
        if exists(&whole) {
            let file = SafetensorsFile::open(whole)?;
            let location = file.names().map(|name| (name.to_owned(), 0)).collect();
            return Ok(Self {
                folder,
                files: vec![file],
                location,
            });
        }
        let index = folder.join(INDEX);
        if exists(&index) {
            return Self::open_shards(folder, &index);
        }
        Err(nothing_to_read(folder))
    }

    fn open_shards(folder: PathBuf, index: &Path) -> Result<Self> {
        let map = read_index(index)?;
        // One tensor per shard according to the index, to name it in an error.
        let mut witness: BTreeMap<&str, &str> = BTreeMap::new();
        for (tensor, shard) in &map {
            if !is_plain_name(shard) {
                return Err(FileError::UnsafeShardName {
                    index: index.to_owned(),
                    tensor: tensor.clone(),
                    shard: shard.clone(),
                });
            }
            witness.entry(shard).or_insert(tensor);
        }
        let mut files = Vec::with_capacity(witness.len());
        let mut number = BTreeMap::new();
        for (shard, tensor) in witness {
            let path = folder.join(shard);
            if !exists(&path) {
                return Err(FileError::MissingShard {
                    index: index.to_owned(),
                    shard: shard.to_owned(),
                    tensor: tensor.to_owned(),
                });
            }
            number.insert(shard.to_owned(), files.len());
            files.push(SafetensorsFile::open(path)?);
        }
        let mut location = BTreeMap::new();
        for (tensor, shard) in map {
            let at = number[&shard];
            if files[at].info(&tensor).is_err() {
                return Err(FileError::TensorNotInShard {
                    index: index.to_owned(),
                    shard,
                    tensor,
                });
            }
            location.insert(tensor, at);
        }
        Ok(Self {
            folder,
            files,
            location,
        })
    }

    /// The folder it was opened from.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The tensors' names, sorted.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.location.keys().map(String::as_str)
    }

    /// Whether there is a tensor with this name.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.location.contains_key(name)
    }

    /// The file that holds a tensor.
    ///
    /// # Errors
    /// [`FileError::NoSuchTensor`].
    pub fn file(&self, name: &str) -> Result<&SafetensorsFile> {
        let missing = || FileError::NoSuchTensor {
            path: self.folder.clone(),
            name: name.to_owned(),
        };
        self.location
            .get(name)
            .and_then(|&at| self.files.get(at))
            .ok_or_else(missing)
    }

    /// Dtype, shape and byte range of one tensor.
    ///
    /// # Errors
    /// [`FileError::NoSuchTensor`].
    pub fn info(&self, name: &str) -> Result<&TensorInfo> {
        self.file(name)?.info(name)
    }

    /// Reads one tensor in its stored dtype; see [`SafetensorsFile::load`].
    ///
    /// # Errors
    /// As [`SafetensorsFile::load`].
    pub fn load(&self, name: &str, device: &Device) -> Result<Tensor> {
        self.file(name)?.load(name, device)
    }

    /// Reads one tensor as `dtype`; see [`SafetensorsFile::load_as`].
    ///
    /// # Errors
    /// As [`SafetensorsFile::load_as`].
    pub fn load_as(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        self.file(name)?.load_as(name, dtype, device)
    }
}

/// Whether anything exists at the path, including a dangling link, so that opening it reports the actual reason.
fn exists(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

/// Whether a file name stays in its folder on any system: no separators, drive letters, NUL or dots alone.
fn is_plain_name(name: &str) -> bool {
    let stem = name.strip_suffix(".safetensors").unwrap_or_default();
    !stem.is_empty() && !name.starts_with('.') && !name.contains(['/', '\\', ':', '\0'])
}

fn nothing_to_read(folder: PathBuf) -> FileError {
    let entries = match std::fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(source) => {
            return FileError::Io {
                path: folder,
                action: "open the folder",
                source,
            };
        }
    };
    let pickle = |path: &PathBuf| {
        let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
        ["bin", "pth", "pt"].contains(&extension)
    };
    match entries.flatten().map(|entry| entry.path()).filter(pickle).min() {
        Some(path) => FileError::PickleRefused { path, advice: ADVICE },
        None => FileError::NoWeights { folder },
    }
}

/// The `weight_map` of an index: tensor name to shard name.
fn read_index(path: &Path) -> Result<BTreeMap<String, String>> {
    let bad = |reason: String| FileError::BadIndex {
        path: path.to_owned(),
        reason,
    };
    let (file, size) = open_regular(path)?;
    if size > MAX_INDEX {
        return Err(bad(format!(
            "{size} bytes is too large for an index, the limit is {MAX_INDEX}"
        )));
    }
    let mut text = String::new();
    file.take(MAX_INDEX)
        .read_to_string(&mut text)
        .map_err(|source| FileError::Io {
            path: path.to_owned(),
            action: "read",
            source,
        })?;
    let index: ShardIndex = serde_json::from_str(&text).map_err(|e| bad(e.to_string()))?;
    if index.weight_map.0.is_empty() {
        return Err(bad("weight_map is empty".to_owned()));
    }
    Ok(index.weight_map.0)
}

#[derive(serde::Deserialize)]
struct ShardIndex {
    weight_map: WeightMap,
}

/// A map that rejects duplicate keys; serde's own would keep the last.
struct WeightMap(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for WeightMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_map(Unique)
    }
}

struct Unique;

impl<'de> Visitor<'de> for Unique {
    type Value = WeightMap;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("weight_map: an object of tensor names and shard names")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> std::result::Result<WeightMap, M::Error> {
        let mut entries = BTreeMap::new();
        while let Some(tensor) = map.next_key::<String>()? {
            let name = tensor.escape_debug().to_string();
            let shard = map.next_value::<String>();
            let shard = shard.map_err(|e| M::Error::custom(format_args!("weight_map[`{name}`]: {e}")))?;
            if entries.insert(tensor, shard).is_some() {
                return Err(M::Error::custom(format_args!("weight_map[`{name}`] appears twice")));
            }
        }
        Ok(WeightMap(entries))
    }
}
