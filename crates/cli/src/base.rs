//! The base model of a command: a model folder, or the built-in model.

use std::path::Path;

use candle_core::Device;
use metal_candle::models::{self, LoadOptions, LoadedModel, QuantFormat};
use metal_candle::nn::QuantizedLinear;

use crate::demo;
use crate::error::{Failure, Result};

const TIP: &str = "give a folder in Hugging Face's layout: config.json, model.safetensors, tokenizer.json";

/// A model and its name.
pub struct Base {
    /// The model.
    pub loaded: LoadedModel,
    /// Its folder as given, or the name of the built-in one.
    pub name: String,
    /// How its weights are quantised.
    quantization: Option<QuantFormat>,
}

impl Base {
    /// Loads the model of a folder, or the built-in one.
    ///
    /// # Errors
    /// Bad input that names the file and the field that is wrong.
    pub fn load(folder: Option<&Path>, options: LoadOptions, device: &Device) -> Result<Self> {
        let quantization = options.quantization;
        let Some(folder) = folder else {
            return Ok(Self {
                loaded: demo::load(options, device)?,
                name: demo::NAME.to_owned(),
                quantization,
            });
        };
        let name = folder.display().to_string();
        if !folder.exists() {
            return Err(Failure::with_tip(format!("{name}: no such folder"), TIP));
        }
        let loaded = models::load_with(folder, options, device).map_err(Failure::checking)?;
        Ok(Self {
            loaded,
            name,
            quantization,
        })
    }

    /// A short description: `qwen2, 4 layers, 1.3 M parameters`.
    pub fn describe(&mut self) -> String {
        let mut weights = 0;
        self.loaded
            .model
            .for_each_linear(&mut |_, linear| weights += linear.in_features() * linear.out_features());
        let config = self.loaded.model.config();
        let tables = if config.tie_word_embeddings { 1 } else { 2 };
        weights += tables * config.vocab_size * config.hidden_size;
        let (kind, layers) = (config.architecture.model_type(), config.num_hidden_layers);
        let millions = weights as f64 / 1e6;
        let places = usize::from(millions < 10.0);
        let format = self
            .quantization
            .map_or_else(String::new, |format| format!(" in {}", format.name()));
        format!("{kind}, {layers} layers, {millions:.places$} M parameters{format}")
    }

    /// Number of linear layers that cannot be quantised, and of all.
    pub fn unquantized(&mut self) -> (usize, usize) {
        let (mut left, mut all) = (0, 0);
        self.loaded.model.for_each_linear(&mut |_, linear| {
            all += 1;
            left += usize::from(!QuantizedLinear::fits(linear.in_features()));
        });
        (left, all)
    }

    /// The padding token.
    pub fn pad_token(&self) -> u32 {
        let tokenizer = &self.loaded.tokenizer;
        tokenizer.pad_token_id().or(tokenizer.eos_token_id()).unwrap_or(0)
    }
}
