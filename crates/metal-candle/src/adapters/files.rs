//! The folder of an adapter: settings and weights, read and written together.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use metal_candle_graph::io::{FileError, SafetensorsFile, safetensors, sync_folder};

use super::config::FILE as SETTINGS;
use super::error::Result;
use super::{AdapterConfig, AdapterError};

/// Full names of the modules that take no adapter.
pub(super) const HEAD_AND_EMBEDDING: [&str; 2] = ["lm_head", "model.embed_tokens"];
/// Name of the weights file in an adapter's folder.
const FILE: &str = "adapter_model.safetensors";
/// Maximum number of modules.
const MAX_MODULES: usize = 8192;
/// The weights file of old versions of PEFT.
const PICKLE: &str = "adapter_model.bin";
const ADVICE: &str = "python -c \"import torch, safetensors.torch as s; \
     s.save_file(torch.load('adapter_model.bin', weights_only=True), 'adapter_model.safetensors')\"";

/// The two factors of one module's low-rank term `B A`.
#[derive(Debug, Clone)]
pub struct LoraPair {
    /// `(r, in)`.
    pub a: Tensor,
    /// `(out, r)`.
    pub b: Tensor,
}

/// An adapter read from its folder.
#[derive(Debug, Clone)]
pub struct Adapter {
    /// Its settings.
    pub config: AdapterConfig,
    /// Its factors in f32, by the full name of the module they adapt, such as `model.layers.0.self_attn.q_proj`.
    pub pairs: BTreeMap<String, LoraPair>,
    path: PathBuf,
}

/// A summary of a valid adapter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdapterReport {
    /// Number of adapted modules.
    pub modules: usize,
    /// Number of weights.
    pub parameters: usize,
    /// Whether the adapter has no effect: each low-rank term has a factor of zeros.
    pub all_deltas_zero: bool,
}

impl Adapter {
    /// Reads `adapter_config.json` and `adapter_model.safetensors`. Names, pairs and ranks are checked before any
    /// weight is read; [`check_against`](Self::check_against) checks whether they match a model.
    ///
    /// # Errors
    /// [`AdapterError`] naming the file and the field or tensor; pickled weights are refused.
    pub fn read(folder: &Path, device: &Device) -> Result<Self> {
        let config = AdapterConfig::read(folder)?;
        let path = folder.join(FILE);
        let pickle = folder.join(PICKLE);
        if path.symlink_metadata().is_err() && pickle.symlink_metadata().is_ok() {
            return Err(FileError::PickleRefused {
                path: pickle,
                advice: ADVICE,
            }
            .into());
        }
        let file = SafetensorsFile::open(&path)?;
        let modules = modules(&path, &file)?;
        let each = config.per_module()?;
        for module in &modules {
            check_rank(&path, &file, module, each.rank_of(module))?;
        }
        let mut pairs = BTreeMap::new();
        for module in modules {
            let a = file.load_as(&key(&module, 'A'), DType::F32, device)?;
            let b = file.load_as(&key(&module, 'B'), DType::F32, device)?;
            for (half, tensor) in [('A', &a), ('B', &b)] {
                if !values(&module, half, tensor)?.iter().all(|v| v.is_finite()) {
                    return Err(AdapterError::NotFiniteWeight {
                        path,
                        name: key(&module, half),
                    });
                }
            }
            pairs.insert(module, LoraPair { a, b });
        }
        Ok(Self { config, pairs, path })
    }

    /// Compares the adapter with the adapted modules of a model: name, input size, output size.
    ///
    /// # Errors
    /// [`AdapterError::MissingTensor`], [`AdapterError::UnexpectedTensor`] and [`AdapterError::Shape`] for the first
    /// tensor that differs.
    pub fn check_against(&self, expected: &[(String, usize, usize)]) -> Result<()> {
        let known: BTreeSet<&str> = expected.iter().map(|(module, ..)| module.as_str()).collect();
        if let Some(extra) = self.pairs.keys().find(|module| !known.contains(module.as_str())) {
            return Err(AdapterError::UnexpectedTensor {
                path: self.path.clone(),
                name: key(extra, 'A'),
            });
        }
        let each = self.config.per_module()?;
        for (module, input, output) in expected {
            let Some(pair) = self.pairs.get(module) else {
                return Err(AdapterError::MissingTensor {
                    path: self.path.clone(),
                    name: key(module, 'A'),
                });
            };
            let rank = each.rank_of(module);
            self.check_shape(module, 'A', &pair.a, [rank, *input])?;
            self.check_shape(module, 'B', &pair.b, [*output, rank])?;
        }
        Ok(())
    }

    fn check_shape(&self, module: &str, half: char, tensor: &Tensor, expected: [usize; 2]) -> Result<()> {
        if tensor.dims() == expected {
            return Ok(());
        }
        Err(AdapterError::Shape {
            path: self.path.clone(),
            name: key(module, half),
            expected: format!("{expected:?}"),
            found: tensor.dims().to_vec(),
        })
    }

    /// Counts modules and weights, and tells whether the adapter has any effect.
    ///
    /// # Errors
    /// [`AdapterError::Tensor`] if a weight cannot be read from its device.
    pub fn report(&self) -> Result<AdapterReport> {
        let mut report = AdapterReport {
            modules: self.pairs.len(),
            parameters: 0,
            all_deltas_zero: true,
        };
        for (module, pair) in &self.pairs {
            report.parameters += pair.a.elem_count() + pair.b.elem_count();
            let zero = |half, tensor| Ok::<_, AdapterError>(values(module, half, tensor)?.iter().all(|&v| v == 0.0));
            report.all_deltas_zero &= zero('B', &pair.b)? || zero('A', &pair.a)?;
        }
        Ok(report)
    }
}

/// Writes an adapter's folder, creating it if needed, so that PEFT can load it. Both files are complete on disk before
/// either replaces an old one, and the folder never mixes settings and weights of two adapters: a crash between the two
/// renames leaves a folder without settings, which is not an adapter.
///
/// # Errors
/// [`AdapterError`] if settings, shapes or values are invalid, or a file cannot be written, for example because the
/// disk is full; the folder is unchanged then.
pub fn write_adapter(folder: &Path, config: &AdapterConfig, pairs: &BTreeMap<String, LoraPair>) -> Result<()> {
    config.validate()?;
    let path = folder.join(FILE);
    if pairs.is_empty() {
        return Err(AdapterError::Empty { path });
    }
    let each = config.per_module()?;
    let mut tensors = Vec::with_capacity(2 * pairs.len());
    for (module, pair) in pairs {
        let rank = each.rank_of(module);
        for (half, tensor, at) in [('A', &pair.a, 0), ('B', &pair.b, 1)] {
            expect_rank(&path, module, half, tensor.dims(), (rank, at))?;
            if !values(module, half, tensor)?.iter().all(|v| v.is_finite()) {
                return Err(AdapterError::NotFinite {
                    name: key(module, half),
                });
            }
            tensors.push((key(module, half), tensor.clone()));
        }
    }
    create(folder)?;
    let beside = tempfile::Builder::new().prefix(".adapter-").tempdir_in(folder);
    let beside = beside.map_err(io_fault(folder, "create a folder in"))?;
    // PEFT's own metadata, which its loaders require.
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::write(&beside.path().join(FILE), &tensors, &metadata).map_err(|fault| fault_at(fault, &path))?;
    config.write(beside.path(), folder)?;
    move_into_place(beside.path(), folder)
}

/// Moves finished files into place: removes the old settings before moving the weights, and moves the new settings
/// last.
fn move_into_place(beside: &Path, folder: &Path) -> Result<()> {
    let (new, old) = (beside.join(SETTINGS), folder.join(SETTINGS));
    let differs = match (fs::read(&new), fs::read(&old)) {
        (_, Err(error)) if error.kind() == ErrorKind::NotFound => false,
        (Ok(new), Ok(old)) => new != old,
        _ => true,
    };
    if differs {
        fs::remove_file(&old).map_err(io_fault(&old, "remove"))?;
        sync_folder(folder)?;
    }
    for file in [FILE, SETTINGS] {
        let place = folder.join(file);
        fs::rename(beside.join(file), &place).map_err(io_fault(&place, "rename the finished file to"))?;
    }
    Ok(sync_folder(folder)?)
}

fn io_fault(path: &Path, action: &'static str) -> impl FnOnce(std::io::Error) -> AdapterError {
    let path = path.to_owned();
    move |source| AdapterError::Io { path, action, source }
}

/// The same error, with the path of the final file.
pub(super) fn fault_at(fault: FileError, path: &Path) -> FileError {
    match fault {
        FileError::Io { action, source, .. } => FileError::Io {
            path: path.to_owned(),
            action,
            source,
        },
        other => other,
    }
}

/// Creates the folder and its parents, and syncs them.
fn create(folder: &Path) -> Result<()> {
    let absent = |path: &&Path| !path.as_os_str().is_empty() && !path.is_dir();
    let missing: Vec<&Path> = folder.ancestors().take_while(absent).collect();
    fs::create_dir_all(folder).map_err(io_fault(folder, "create the folder"))?;
    for made in missing {
        match made.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => sync_folder(parent)?,
            _ => sync_folder(Path::new("."))?,
        }
    }
    Ok(())
}

/// The name of one of a module's factors in PEFT's files.
fn key(module: &str, half: char) -> String {
    format!("base_model.model.{module}.lora_{half}.weight")
}

/// The modules of a file; every tensor must be a factor, and every module must have both.
fn modules(path: &Path, file: &SafetensorsFile) -> Result<BTreeSet<String>> {
    let mut modules = BTreeSet::new();
    for name in file.names() {
        let inner = name.strip_prefix("base_model.model.");
        if let Some(module) = inner.and_then(head_or_embedding) {
            return Err(AdapterError::HeadOrEmbedding {
                place: format!("{}: tensor `{}`", path.display(), name.escape_debug()),
                module: module.escape_debug().to_string(),
                advice: "",
            });
        }
        let module = inner
            .and_then(|n| {
                n.strip_suffix(".lora_A.weight")
                    .or_else(|| n.strip_suffix(".lora_B.weight"))
            })
            .ok_or_else(|| AdapterError::NotALoraWeight {
                path: path.to_owned(),
                name: name.to_owned(),
            })?;
        modules.insert(module.to_owned());
        if modules.len() > MAX_MODULES {
            let (path, what) = (path.to_owned(), "adapted modules");
            return Err(FileError::TooMany {
                path,
                what,
                limit: MAX_MODULES,
            }
            .into());
        }
    }
    if modules.is_empty() {
        return Err(AdapterError::Empty { path: path.to_owned() });
    }
    Ok(modules)
}

/// The output head or the embedding, if the tensor belongs to one: PEFT saves factors of both (embeddings under other
/// names), and their full weights if they are trained or the vocabulary was resized.
fn head_or_embedding(name: &str) -> Option<&str> {
    let endings = [
        ".lora_A.weight",
        ".lora_B.weight",
        ".lora_embedding_A",
        ".lora_embedding_B",
        ".base_layer.weight",
        ".weight",
    ];
    let (ending, module) = endings
        .iter()
        .find_map(|ending| Some((ending, name.strip_suffix(ending)?)))?;
    let last = module.rsplit('.').next().unwrap_or_default();
    let is_one = ending.starts_with(".lora_embedding_")
        || HEAD_AND_EMBEDDING
            .iter()
            .any(|known| known.rsplit('.').next() == Some(last));
    is_one.then_some(module)
}

/// Checks that both factors exist and have the module's rank.
fn check_rank(path: &Path, file: &SafetensorsFile, module: &str, rank: usize) -> Result<()> {
    for (half, at) in [('A', 0), ('B', 1)] {
        let name = key(module, half);
        let Ok(info) = file.info(&name) else {
            return Err(AdapterError::MissingTensor {
                path: path.to_owned(),
                name,
            });
        };
        expect_rank(path, module, half, &info.shape, (rank, at))?;
    }
    Ok(())
}

/// Checks that dimension `at` of a matrix is the rank.
fn expect_rank(path: &Path, module: &str, half: char, shape: &[usize], (rank, at): (usize, usize)) -> Result<()> {
    if shape.len() == 2 && shape[at] == rank {
        return Ok(());
    }
    let expected = if at == 0 {
        format!("[{rank}, in]")
    } else {
        format!("[out, {rank}]")
    };
    Err(AdapterError::Shape {
        path: path.to_owned(),
        name: key(module, half),
        expected,
        found: shape.to_vec(),
    })
}

/// The elements of a tensor on the host.
fn values(module: &str, half: char, tensor: &Tensor) -> Result<Vec<f32>> {
    let read = tensor
        .to_dtype(DType::F32)
        .and_then(|t| t.flatten_all())
        .and_then(|t| t.to_vec1());
    read.map_err(|e| AdapterError::Tensor {
        name: key(module, half),
        source: Box::new(e),
    })
}

#[cfg(test)]
#[path = "files_tests.rs"]
mod tests;
