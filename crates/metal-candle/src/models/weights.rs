//! The tensors from which a model is built: a folder's files or tensors in memory, as one set of names.
//!
//! Names and shapes are compared with those of the settings before any weight is read, so a mismatch is reported at
//! once.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use metal_candle_graph::io::Checkpoint;
use metal_candle_graph::{LazyTensor, QuantFormat};

use super::{LoadError, LoadOptions, ModelConfig, TensorFaults};
use crate::nn::{Linear, Projection, QuantizedLinear, RmsNorm};

/// A source of weights, and their conversion.
pub(super) struct Weights {
    source: WeightSource,
    dtype: DType,
    quantization: Option<QuantFormat>,
    device: Device,
}

enum WeightSource {
    Folder(Checkpoint),
    Memory(HashMap<String, LazyTensor>),
    /// May be placeholders of a traced function, which have no values.
    Recorded(HashMap<String, LazyTensor>),
}

const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";
/// The warning for a checkpoint whose head differs from the embedding although the settings tie them.
pub(super) const UNTIED: &str =
    "tie_word_embeddings is true, but lm_head.weight has values of its own: it is used, as in transformers";
/// Number of elements compared at a time.
const PIECE: usize = 1 << 22;

impl Weights {
    pub fn of_folder(checkpoint: Checkpoint, options: LoadOptions, device: &Device) -> Self {
        Self {
            source: WeightSource::Folder(checkpoint),
            dtype: options.dtype,
            quantization: options.quantization,
            device: device.clone(),
        }
    }

    pub fn of_tensors(
        tensors: impl IntoIterator<Item = (String, Tensor)>,
        dtype: DType,
        device: &Device,
    ) -> Result<Self, LoadError> {
        let converted = |(name, tensor): (String, Tensor)| {
            let moved = tensor.to_device(device).and_then(|t| t.to_dtype(dtype));
            let moved = moved.map_err(|e| LoadError::Tensor {
                name: name.clone(),
                source: Box::new(e),
            })?;
            Ok((name, LazyTensor::from_tensor(moved)?))
        };
        let tensors = tensors.into_iter().map(converted).collect::<Result<_, LoadError>>()?;
        Ok(Self {
            source: WeightSource::Memory(tensors),
            dtype,
            quantization: None,
            device: device.clone(),
        })
    }

    /// Tensors of the engine, which may be placeholders of a traced function unless they are quantised; they keep their
    /// dtypes.
    pub fn of_recorded(tensors: HashMap<String, LazyTensor>, quantization: Option<QuantFormat>) -> Self {
        // Not used without conversion.
        Self {
            source: WeightSource::Recorded(tensors),
            dtype: DType::F32,
            quantization,
            device: Device::Cpu,
        }
    }

    /// One tensor in the dtype and on the device of the model.
    pub fn get(&self, name: &str) -> Result<LazyTensor, LoadError> {
        match &self.source {
            WeightSource::Folder(checkpoint) => Ok(LazyTensor::from_tensor(checkpoint.load_as(
                name,
                self.dtype,
                &self.device,
            )?)?),
            WeightSource::Memory(tensors) | WeightSource::Recorded(tensors) => {
                tensors.get(name).cloned().ok_or_else(|| {
                    self.faults(TensorFaults {
                        missing: vec![name.to_owned()],
                        ..TensorFaults::default()
                    })
                })
            }
        }
    }

    fn contains(&self, name: &str) -> bool {
        match &self.source {
            WeightSource::Folder(checkpoint) => checkpoint.contains(name),
            WeightSource::Memory(tensors) | WeightSource::Recorded(tensors) => tensors.contains_key(name),
        }
    }

    /// The embedding; for tied weights that were saved as the head alone, the head.
    pub fn embedding(&self, config: &ModelConfig) -> Result<LazyTensor, LoadError> {
        let only_head = config.tie_word_embeddings && !self.contains(EMBEDDING) && self.contains(HEAD);
        self.get(if only_head { HEAD } else { EMBEDDING })
    }

    /// The output head, unless it is the embedding. As in transformers, weights that contain both with different values
    /// are not tied, whatever the settings say.
    pub fn own_head(&self, config: &ModelConfig, embedding: &LazyTensor) -> Result<Option<LazyTensor>, LoadError> {
        if !config.tie_word_embeddings {
            return self.get(HEAD).map(Some);
        }
        if !self.contains(HEAD) || !self.contains(EMBEDDING) {
            return Ok(None);
        }
        let head = self.get(HEAD)?;
        if !matches!(self.source, WeightSource::Recorded(_)) && same_values(&head, embedding)? {
            return Ok(None);
        }
        Ok(Some(head))
    }

    /// The linear layer with this name.
    pub fn linear(&self, name: &str, bias: bool) -> Result<Arc<dyn Projection>, LoadError> {
        let bias = bias.then(|| self.get(&format!("{name}.bias"))).transpose()?;
        let weight = self.get(&format!("{name}.weight"))?;
        Ok(match self.quantized(name, &weight, bias.as_ref())? {
            Some(quantized) => Arc::new(quantized),
            None => Arc::new(Linear::new(weight, bias)?),
        })
    }

    /// The linear layer with this name, quantised if requested and possible.
    pub fn quantized(
        &self,
        name: &str,
        weight: &LazyTensor,
        bias: Option<&LazyTensor>,
    ) -> Result<Option<QuantizedLinear>, LoadError> {
        let format = self.quantization.filter(|_| QuantizedLinear::fits(weight.dims()[1]));
        let quantized = format.map(|format| QuantizedLinear::new(weight, bias.cloned(), format));
        quantized.transpose().map_err(|source| LoadError::Quantize {
            name: name.to_owned(),
            source: Box::new(source),
        })
    }

    /// The norm with this name.
    pub fn rms_norm(&self, name: &str, config: &ModelConfig) -> Result<RmsNorm, LoadError> {
        Ok(RmsNorm::new(
            self.get(&format!("{name}.weight"))?,
            config.rms_norm_eps as f32,
        ))
    }

    /// Compares names and shapes with those that the settings imply, before any weight is read.
    pub fn check(&self, config: &ModelConfig) -> Result<(), LoadError> {
        let found = self.shapes()?;
        let mut expected: BTreeMap<String, Vec<usize>> = config.parameter_shapes().into_iter().collect();
        if config.tie_word_embeddings && found.contains_key(HEAD) {
            // The head may exist beside the embedding, or in its place.
            expected.insert(HEAD.to_owned(), vec![config.vocab_size, config.hidden_size]);
            if !found.contains_key(EMBEDDING) {
                expected.remove(EMBEDDING);
            }
        }
        let mut faults = TensorFaults::default();
        for (name, shape) in &expected {
            match found.get(name) {
                None => faults.missing.push(name.clone()),
                Some(other) if other != shape => {
                    faults.misshapen.push((name.clone(), other.clone(), shape.clone()));
                }
                Some(_) => {}
            }
        }
        let unexpected = found
            .keys()
            .filter(|name| !expected.contains_key(*name) && !is_redundant(name));
        faults.unexpected = unexpected.cloned().collect();
        if faults.is_empty() {
            Ok(())
        } else {
            Err(self.faults(faults))
        }
    }

    fn shapes(&self) -> Result<BTreeMap<String, Vec<usize>>, LoadError> {
        match &self.source {
            WeightSource::Folder(checkpoint) => {
                let shape = |name: &str| Ok((name.to_owned(), checkpoint.info(name)?.shape.clone()));
                checkpoint.names().map(shape).collect()
            }
            WeightSource::Memory(tensors) | WeightSource::Recorded(tensors) => {
                Ok(tensors.iter().map(|(n, t)| (n.clone(), t.dims().to_vec())).collect())
            }
        }
    }

    fn faults(&self, faults: TensorFaults) -> LoadError {
        let source = match &self.source {
            WeightSource::Folder(checkpoint) => checkpoint.folder().to_owned(),
            WeightSource::Memory(_) | WeightSource::Recorded(_) => PathBuf::from("tensors in memory"),
        };
        LoadError::Tensors {
            source_name: source,
            faults,
        }
    }
}

/// Tensors that some exporters write although they follow from the settings.
fn is_redundant(name: &str) -> bool {
    name.ends_with(".rotary_emb.inv_freq")
}

/// Whether two tables `(rows, columns)` have equal elements.
fn same_values(a: &LazyTensor, b: &LazyTensor) -> Result<bool, LoadError> {
    let (a, b) = (a.eval()?, b.eval()?);
    let compare = || {
        let (rows, columns) = a.dims2()?;
        // In pieces, so that large tables are not copied as a whole.
        let piece = (PIECE / columns.max(1)).max(1);
        for first in (0..rows).step_by(piece) {
            let count = piece.min(rows - first);
            let differ = a.narrow(0, first, count)?.ne(&b.narrow(0, first, count)?)?;
            if differ.to_dtype(DType::U32)?.sum_all()?.to_scalar::<u32>()? > 0 {
                return Ok(false);
            }
        }
        Ok(true)
    };
    compare().map_err(|source: candle_core::Error| LoadError::Tensor {
        name: HEAD.to_owned(),
        source: Box::new(source),
    })
}
