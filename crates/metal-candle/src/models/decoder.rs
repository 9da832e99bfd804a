//! A decoder-only language model: embedding, layers, final norm, output head.

use std::sync::Arc;

use metal_candle_graph::{LazyTensor, Result};

use super::weights::Weights;
use super::{LoadError, ModelConfig};
use crate::nn::{Block, Embedding, Pass, Projection, QuantizedLinear, RmsNorm, Rotary};

/// A causal language model.
pub trait CausalLm: Send + Sync {
    /// Its settings.
    fn config(&self) -> &ModelConfig;

    /// `tokens` `(batch, seq)`, u32, to `(batch, seq, hidden)` after the final norm. Extends the cache in `pass`.
    ///
    /// # Errors
    /// When the pass does not fit the tokens or the model. An id outside the vocabulary is reported at run time.
    fn hidden(&self, tokens: &LazyTensor, pass: &mut Pass<'_>) -> Result<LazyTensor>;

    /// The output head `(vocab, hidden)` in the model's dtype; with tied embeddings the embedding itself. For an untied
    /// quantised head, the dequantised weight: recorded, and recomputed at each use.
    fn head(&self) -> &LazyTensor;

    /// `hidden` `(.., hidden)` to logits `(.., vocab)` by the head, in its quantised form if there is one.
    ///
    /// # Errors
    /// When the last dimension of `hidden` does not match.
    fn project(&self, hidden: &LazyTensor) -> Result<LazyTensor> {
        hidden.matmul_t(self.head())
    }

    /// Visits every linear layer except the head, with its name in checkpoints, such as
    /// `model.layers.0.self_attn.q_proj`, in the order in which they run. The visitor may replace the projection.
    fn for_each_linear(&mut self, visit: &mut dyn FnMut(&str, &mut Arc<dyn Projection>));

    /// `tokens` `(batch, seq)` to logits `(batch, seq, vocab)`.
    ///
    /// # Errors
    /// See [`hidden`](Self::hidden).
    fn logits(&self, tokens: &LazyTensor, pass: &mut Pass<'_>) -> Result<LazyTensor> {
        self.project(&self.hidden(tokens, pass)?)
    }
}

/// The part common to all pre-norm decoders with rotary positions; they differ in their layers.
pub(super) struct DecoderStack {
    config: ModelConfig,
    embed_tokens: Embedding,
    layers: Vec<Block>,
    norm: RmsNorm,
    lm_head: LazyTensor,
    quantized_head: Option<QuantizedLinear>,
    rotary: Rotary,
}

impl DecoderStack {
    /// Builds embedding, norm and head; `block` builds layer `i`.
    pub fn build(
        config: &ModelConfig,
        weights: &Weights,
        block: impl Fn(usize) -> std::result::Result<Block, LoadError>,
    ) -> std::result::Result<Self, LoadError> {
        let embed_tokens = Embedding::new(weights.embedding(config)?);
        let own_head = weights.own_head(config, embed_tokens.weight())?;
        let tied = own_head.is_none();
        let mut lm_head = own_head.unwrap_or_else(|| embed_tokens.weight().clone());
        let name = if tied { "model.embed_tokens" } else { "lm_head" };
        let quantized_head = weights.quantized(name, &lm_head, None)?;
        // The embedding is needed for its rows anyway; a separate head is kept in one form only.
        if let (Some(quantized), false) = (&quantized_head, tied) {
            lm_head = quantized.weight(lm_head.dtype())?;
        }
        let rotary = Rotary::new(&config.inverse_frequencies(), embed_tokens.weight().device())?;
        Ok(Self {
            layers: (0..config.num_hidden_layers)
                .map(block)
                .collect::<std::result::Result<_, _>>()?,
            norm: weights.rms_norm("model.norm", config)?,
            rotary: rotary.with_attention_factor(config.rope.attention_factor()),
            embed_tokens,
            lm_head,
            quantized_head,
            config: ModelConfig {
                tie_word_embeddings: tied,
                ..config.clone()
            },
        })
    }
}

impl CausalLm for DecoderStack {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn hidden(&self, tokens: &LazyTensor, pass: &mut Pass<'_>) -> Result<LazyTensor> {
        let mut x = self.embed_tokens.forward(tokens)?;
        let rotation = self.rotary.at(pass.positions(), x.dtype())?;
        for layer in &self.layers {
            x = layer.forward(&x, &rotation, pass)?;
        }
        pass.check_adapters_taken()?;
        self.norm.forward(&x)
    }

    fn head(&self) -> &LazyTensor {
        &self.lm_head
    }

    fn project(&self, hidden: &LazyTensor) -> Result<LazyTensor> {
        match &self.quantized_head {
            Some(head) => head.product(hidden),
            None => hidden.matmul_t(&self.lm_head),
        }
    }

    fn for_each_linear(&mut self, visit: &mut dyn FnMut(&str, &mut Arc<dyn Projection>)) {
        for (i, layer) in self.layers.iter_mut().enumerate() {
            for (name, linear) in layer.linears() {
                visit(&format!("model.layers.{i}.{name}"), linear);
            }
        }
    }
}
