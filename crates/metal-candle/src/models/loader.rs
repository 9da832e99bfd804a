//! Loads a Hugging Face folder: settings, weights and tokenizer, each checked before the next is read.

use std::borrow::Borrow;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use metal_candle_graph::LazyTensor;
use metal_candle_graph::io::Checkpoint;

use super::folder::{existing, without_weights};
use super::weights::{UNTIED, Weights};
use super::{Architecture, CausalLm, GenerationConfig, LoadError, LoadOptions, ModelConfig, QuantFormat, llama, qwen2};
use crate::text::Tokenizer;

/// A model with its tokenizer and settings.
pub struct LoadedModel {
    /// The model.
    pub model: Box<dyn CausalLm>,
    /// Its tokenizer, with its chat template.
    pub tokenizer: Tokenizer,
    /// The generation settings suggested by its authors.
    pub generation: GenerationConfig,
    /// Settings of the folder that are not followed, or followed differently; each a sentence for the user.
    pub warnings: Vec<String>,
}

impl LoadedModel {
    /// Combines separately loaded parts.
    ///
    /// # Errors
    /// [`LoadError::Vocabulary`] if the tokenizer has tokens outside the model's vocabulary.
    pub fn new(
        model: Box<dyn CausalLm>,
        tokenizer: Tokenizer,
        generation: GenerationConfig,
    ) -> Result<Self, LoadError> {
        let (has, fits) = (tokenizer.vocab_size(), model.config().vocab_size);
        if has > fits {
            return Err(LoadError::Vocabulary {
                tokenizer: has,
                model: fits,
            });
        }
        Ok(Self {
            model,
            tokenizer,
            generation,
            warnings: Vec::new(),
        })
    }

    /// End-of-text tokens: those of `generation_config.json`, else of `config.json`, and the tokenizer's.
    #[must_use]
    pub fn stop_tokens(&self) -> Vec<u32> {
        let suggested = &self.generation.eos_token_ids;
        let mut stop = if suggested.is_empty() {
            self.model.config().eos_token_ids.clone()
        } else {
            suggested.clone()
        };
        stop.extend(self.tokenizer.stop_token_ids());
        stop.sort_unstable();
        stop.dedup();
        stop
    }
}

/// Loads a model folder: `config.json`, the weights, `tokenizer.json`, and if present `generation_config.json` and the
/// chat template. Weights are converted to `dtype` while they are read.
///
/// ```no_run
/// use candle_core::DType;
/// use metal_candle::Device;
///
/// let loaded = metal_candle::models::load("path/to/model", DType::F32, &Device::new_cpu())?;
/// println!("{} layers", loaded.model.config().num_hidden_layers);
/// # Ok::<(), metal_candle::models::LoadError>(())
/// ```
///
/// # Errors
/// [`LoadError`] naming the file and the field or tensor.
pub fn load(
    folder: impl AsRef<Path>,
    dtype: DType,
    device: &(impl Borrow<Device> + ?Sized),
) -> Result<LoadedModel, LoadError> {
    load_with(folder, LoadOptions::new(dtype), device)
}

/// Like [`load`], with all options: weights can be quantised while they are read.
///
/// ```no_run
/// use candle_core::DType;
/// use metal_candle::Device;
/// use metal_candle::models::{self, LoadOptions, QuantFormat};
///
/// let options = LoadOptions::new(DType::BF16).quantized(QuantFormat::Q8_0);
/// let loaded = models::load_with("path/to/model", options, &Device::new_cpu())?;
/// # Ok::<(), models::LoadError>(())
/// ```
///
/// # Errors
/// See [`load`]; [`LoadError::Quantize`] naming the tensor.
pub fn load_with(
    folder: impl AsRef<Path>,
    options: LoadOptions,
    device: &(impl Borrow<Device> + ?Sized),
) -> Result<LoadedModel, LoadError> {
    let folder = existing(folder.as_ref())?;
    let config = ModelConfig::read(folder)?;
    let tokenizer = Tokenizer::from_folder(folder)?;
    let generation = GenerationConfig::read(folder)?;
    let mut loaded = LoadedModel::new(read(&config, folder, options, device.borrow())?, tokenizer, generation)?;
    loaded.warnings = warnings(&config, &loaded);
    for warning in &loaded.warnings {
        tracing::warn!("{}: {warning}", folder.display());
    }
    Ok(loaded)
}

/// Warnings about settings of a folder that are not followed.
fn warnings(config: &ModelConfig, loaded: &LoadedModel) -> Vec<String> {
    let mut warnings = config.warnings.clone();
    if is_untied(config, &*loaded.model) {
        warnings.push(format!("config.json: {UNTIED}"));
    }
    let unsupported = &loaded.generation.unsupported;
    if !unsupported.is_empty() {
        let list = unsupported.join(", ");
        warnings.push(format!("generation_config.json: not implemented and left out: {list}"));
    }
    warnings
}

/// Loads `config.json` and the weights of a model folder, without a tokenizer.
///
/// # Errors
/// See [`load`].
pub fn load_model(
    folder: impl AsRef<Path>,
    dtype: DType,
    device: &(impl Borrow<Device> + ?Sized),
) -> Result<Box<dyn CausalLm>, LoadError> {
    load_model_with(folder, LoadOptions::new(dtype), device)
}

/// Like [`load_model`], with all options.
///
/// # Errors
/// See [`load_with`].
pub fn load_model_with(
    folder: impl AsRef<Path>,
    options: LoadOptions,
    device: &(impl Borrow<Device> + ?Sized),
) -> Result<Box<dyn CausalLm>, LoadError> {
    let folder = existing(folder.as_ref())?;
    let config = ModelConfig::read(folder)?;
    let model = read(&config, folder, options, device.borrow())?;
    if is_untied(&config, &*model) {
        tracing::warn!("{}: config.json: {UNTIED}", folder.display());
    }
    Ok(model)
}

/// Whether the settings tie the head to the embedding, but the checkpoint has a different head, which is used.
fn is_untied(config: &ModelConfig, model: &dyn CausalLm) -> bool {
    config.tie_word_embeddings && !model.config().tie_word_embeddings
}

/// Builds a model from tensors in memory, by their names in checkpoints; they are converted to `dtype`.
///
/// # Errors
/// [`LoadError::Tensors`] naming every tensor that is missing, misshapen or unexpected.
pub fn from_parts(
    config: &ModelConfig,
    tensors: impl IntoIterator<Item = (String, Tensor)>,
    dtype: DType,
    device: &(impl Borrow<Device> + ?Sized),
) -> Result<Box<dyn CausalLm>, LoadError> {
    build(config, &Weights::of_tensors(tensors, float(dtype)?, device.borrow())?)
}

/// Builds a model from tensors of the engine, by their names in checkpoints. Inside a compiled function they may be its
/// arguments: this is how all weights of a model are trained.
///
/// # Errors
/// [`LoadError::Tensors`] naming every tensor that is missing, misshapen or unexpected.
pub fn from_recorded(
    config: &ModelConfig,
    tensors: impl IntoIterator<Item = (String, LazyTensor)>,
) -> Result<Box<dyn CausalLm>, LoadError> {
    quantized(config, tensors, None)
}

/// Like [`from_recorded`]; quantised weights are evaluated.
pub(super) fn quantized(
    config: &ModelConfig,
    tensors: impl IntoIterator<Item = (String, LazyTensor)>,
    format: Option<QuantFormat>,
) -> Result<Box<dyn CausalLm>, LoadError> {
    build(config, &Weights::of_recorded(tensors.into_iter().collect(), format))
}

fn read(
    config: &ModelConfig,
    folder: &Path,
    options: LoadOptions,
    device: &Device,
) -> Result<Box<dyn CausalLm>, LoadError> {
    float(options.dtype)?;
    let checkpoint = Checkpoint::open(folder).map_err(|error| without_weights(folder, error))?;
    build(config, &Weights::of_folder(checkpoint, options, device))
}

/// The registry: maps each `model_type` to its builder.
fn build(config: &ModelConfig, weights: &Weights) -> Result<Box<dyn CausalLm>, LoadError> {
    weights.check(config)?;
    Ok(Box::new(match config.architecture {
        Architecture::Llama => llama::build(config, weights)?,
        Architecture::Qwen2 => qwen2::build(config, weights)?,
    }))
}

fn float(dtype: DType) -> Result<DType, LoadError> {
    match dtype {
        DType::F32 | DType::F16 | DType::BF16 | DType::F64 => Ok(dtype),
        found => Err(LoadError::Dtype { found }),
    }
}
