//! The header of a safetensors file: 8 bytes of little-endian length, then one JSON object.
//!
//! The `safetensors` crate validates a header only together with the whole file in memory and keeps the last of two
//! entries with the same name; this reader needs the header alone, and rejects duplicates. It allocates at most a few
//! times the header's size, which is capped, and never touches tensor data.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use safetensors::Dtype;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::safetensors::TensorInfo;
use super::{FileError, Result};

/// Largest header accepted, in bytes. The largest unsharded models need about 11 MB; with this limit the parsed header
/// stays within the documented memory bound even for the densest malicious input.
pub(super) const MAX_HEADER: u64 = 16 << 20;
/// Maximum number of dimensions.
const MAX_DIMENSIONS: usize = 16;
/// Maximum number of metadata entries.
const MAX_METADATA: usize = 1 << 16;

/// The contents of the header, checked against the size of the data that follows it.
#[derive(Debug, Default)]
pub(super) struct Header {
    pub(super) tensors: BTreeMap<String, TensorInfo>,
    pub(super) metadata: BTreeMap<String, String>,
}

impl Header {
    /// Parses and validates the JSON part. `available` is the number of data bytes in the file.
    pub(super) fn parse(path: &Path, json: &[u8], available: u64) -> Result<Self> {
        let text = std::str::from_utf8(json).map_err(|e| FileError::HeaderNotUtf8 {
            path: path.to_owned(),
            position: e.valid_up_to(),
        })?;
        let state = State {
            path,
            header: RefCell::default(),
            fault: RefCell::default(),
        };
        let mut reader = serde_json::Deserializer::from_str(text);
        let outcome = (&state).deserialize(&mut reader).and_then(|()| reader.end());
        if let Some(fault) = state.fault.into_inner() {
            return Err(fault);
        }
        outcome.map_err(|e| FileError::HeaderField {
            path: path.to_owned(),
            reason: e.to_string(),
        })?;
        let header = state.header.into_inner();
        header.check_ranges(path, available)?;
        Ok(header)
    }

    /// Checks that every tensor's byte range is in bounds and matches its shape, and that the ranges cover the data
    /// without overlap.
    fn check_ranges(&self, path: &Path, available: u64) -> Result<()> {
        let path = || path.to_owned();
        let mut order = Vec::with_capacity(self.tensors.len());
        for (name, info) in &self.tensors {
            let range = info.range.clone();
            if range.start > range.end || range.end > available {
                return Err(FileError::OutOfRange {
                    path: path(),
                    name: name.clone(),
                    range,
                    available,
                });
            }
            let expected = info.byte_len().ok_or_else(|| FileError::ShapeOverflow {
                path: path(),
                name: name.clone(),
                shape: info.shape.clone(),
            })?;
            if expected != range.end - range.start {
                return Err(FileError::SizeMismatch {
                    path: path(),
                    name: name.clone(),
                    dtype: info.dtype.to_string(),
                    shape: info.shape.clone(),
                    expected,
                    found: range.end - range.start,
                });
            }
            order.push((range.start, range.end, name));
        }
        order.sort_unstable();
        let mut previous: (u64, Option<&String>) = (0, None);
        for &(start, end, name) in &order {
            if start > previous.0 {
                return Err(FileError::Gap {
                    path: path(),
                    range: previous.0..start,
                });
            }
            if let (true, Some(first)) = (start < previous.0, previous.1) {
                return Err(FileError::Overlap {
                    path: path(),
                    first: first.clone(),
                    second: name.clone(),
                });
            }
            previous = (end, Some(name));
        }
        if previous.0 != available {
            return Err(FileError::Gap {
                path: path(),
                range: previous.0..available,
            });
        }
        Ok(())
    }
}

/// Carries a typed error out of serde, whose errors are text.
struct State<'p> {
    path: &'p Path,
    header: RefCell<Header>,
    fault: RefCell<Option<FileError>>,
}

impl State<'_> {
    fn fail<E: serde::de::Error>(&self, fault: FileError) -> E {
        let error = E::custom(&fault);
        *self.fault.borrow_mut() = Some(fault);
        error
    }

    fn too_many<E: serde::de::Error>(&self, what: &'static str, limit: usize) -> E {
        self.fail(FileError::TooMany {
            path: self.path.to_owned(),
            what,
            limit,
        })
    }

    fn duplicate<E: serde::de::Error>(&self, name: String) -> E {
        self.fail(FileError::DuplicateName {
            path: self.path.to_owned(),
            name,
        })
    }
}

impl<'de> DeserializeSeed<'de> for &State<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for &State<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> std::result::Result<(), M::Error> {
        let mut metadata_seen = false;
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                if metadata_seen {
                    return Err(self.duplicate(name));
                }
                metadata_seen = true;
                map.next_value_seed(Metadata(self))?;
                continue;
            }
            if self.header.borrow().tensors.contains_key(&name) {
                return Err(self.duplicate(name));
            }
            let info = map.next_value_seed(TensorEntry {
                state: self,
                name: &name,
            })?;
            self.header.borrow_mut().tensors.insert(name, info);
        }
        Ok(())
    }
}

/// The `__metadata__` object, which maps strings to strings.
struct Metadata<'s, 'p>(&'s State<'p>);

impl<'de> DeserializeSeed<'de> for Metadata<'_, '_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Metadata<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("`__metadata__`: an object of strings")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> std::result::Result<(), M::Error> {
        while let Some(key) = map.next_key::<String>()? {
            let value = map
                .next_value::<String>()
                .map_err(|e| M::Error::custom(format_args!("`__metadata__`, key `{}`: {e}", key.escape_debug())))?;
            let metadata = &mut self.0.header.borrow_mut().metadata;
            if metadata.len() == MAX_METADATA {
                return Err(self.0.too_many("metadata entries", MAX_METADATA));
            }
            if metadata.contains_key(&key) {
                return Err(self.0.duplicate(format!("__metadata__.{key}")));
            }
            metadata.insert(key, value);
        }
        Ok(())
    }
}

/// One tensor: `{"dtype": .., "shape": [..], "data_offsets": [begin, end]}`.
struct TensorEntry<'s, 'p> {
    state: &'s State<'p>,
    name: &'s str,
}

impl TensorEntry<'_, '_> {
    /// Prefixes a message from serde with the tensor and the field.
    fn field<E: serde::de::Error>(&self, field: &str, reason: impl fmt::Display) -> E {
        E::custom(format_args!("tensor `{}`, {field}: {reason}", self.name.escape_debug()))
    }

    fn dtype<E: serde::de::Error>(&self, text: String) -> std::result::Result<Dtype, E> {
        dtype_named(&text).ok_or_else(|| {
            self.state.fail(FileError::UnknownDtype {
                path: self.state.path.to_owned(),
                name: self.name.to_owned(),
                dtype: text,
            })
        })
    }
}

impl<'de> DeserializeSeed<'de> for TensorEntry<'_, '_> {
    type Value = TensorInfo;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<TensorInfo, D::Error> {
        let name = self.name.escape_debug();
        deserializer.deserialize_map(self).map_err(|e| {
            let text = e.to_string();
            if text.starts_with("tensor `") {
                e
            } else {
                D::Error::custom(format_args!("tensor `{name}`: {text}"))
            }
        })
    }
}

impl<'de> Visitor<'de> for TensorEntry<'_, '_> {
    type Value = TensorInfo;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with dtype, shape and data_offsets")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> std::result::Result<TensorInfo, M::Error> {
        let (mut dtype, mut shape, mut offsets) = (None, None, None);
        while let Some(key) = map.next_key::<String>()? {
            let twice = match key.as_str() {
                "dtype" => {
                    let text = map.next_value::<String>().map_err(|e| self.field("dtype", e))?;
                    dtype.replace(self.dtype(text)?).is_some()
                }
                "shape" => {
                    let dims = map.next_value_seed(IntegerList { limit: MAX_DIMENSIONS });
                    shape.replace(dims.map_err(|e| self.field("shape", e))?).is_some()
                }
                "data_offsets" => {
                    let pair = map.next_value_seed(IntegerList { limit: 2 });
                    offsets
                        .replace(pair.map_err(|e| self.field("data_offsets", e))?)
                        .is_some()
                }
                _ => {
                    map.next_value::<IgnoredAny>()?;
                    false
                }
            };
            if twice {
                return Err(self.state.duplicate(format!("{}.{key}", self.name)));
            }
        }
        let dtype = dtype.ok_or_else(|| self.field("dtype", "missing"))?;
        let shape = shape.ok_or_else(|| self.field("shape", "missing"))?;
        let offsets = offsets.ok_or_else(|| self.field("data_offsets", "missing"))?;
        let [start, end] = offsets[..] else {
            return Err(self.field("data_offsets", "must be [begin, end]"));
        };
        let shape = shape
            .iter()
            .map(|&d| usize::try_from(d))
            .collect::<std::result::Result<_, _>>();
        let shape = shape.map_err(|e| self.field("shape", e))?;
        Ok(TensorInfo {
            dtype,
            shape,
            range: start..end,
        })
    }
}

/// A short list of integers; stops reading at `limit`, so that a long list allocates nothing.
struct IntegerList {
    limit: usize,
}

impl<'de> DeserializeSeed<'de> for IntegerList {
    type Value = Vec<u64>;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<Vec<u64>, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for IntegerList {
    type Value = Vec<u64>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of at most {} whole numbers", self.limit)
    }

    fn visit_seq<S: SeqAccess<'de>>(self, mut seq: S) -> std::result::Result<Vec<u64>, S::Error> {
        let mut numbers = Vec::new();
        while let Some(number) = seq.next_element::<u64>()? {
            if numbers.len() == self.limit {
                return Err(S::Error::custom(format_args!("more than {} numbers", self.limit)));
            }
            numbers.push(number);
        }
        numbers.shrink_to_fit();
        Ok(numbers)
    }
}

/// The format's dtype with this name, parsed by the crate that defines the names.
fn dtype_named(text: &str) -> Option<Dtype> {
    use serde::Deserialize;
    use serde::de::IntoDeserializer;
    let name: serde::de::value::StrDeserializer<'_, serde::de::value::Error> = text.into_deserializer();
    Dtype::deserialize(name).ok()
}
