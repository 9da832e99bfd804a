//! From tokens to logits: prompts are read in a few long passes (prefill), then each row token by token (decoding).
//!
//! Both are one compiled step. Prompts are padded to a multiple of 32 tokens and read at most 512 at a time, and the
//! cache's capacity is a power of two, so that few plans serve all prompts. The cache is donated to each step. Nothing
//! here handles text or chooses tokens.

use candle_core::DType;
use metal_candle_graph::{Compiled, Error, Explanation, LazyTensor, Result, compile};

use super::KvCache;
use crate::models::CausalLm;
use crate::nn::{Cache, Pass};

/// Prompts are padded to a multiple of this, in tokens.
const BUCKET: usize = 32;
/// Maximum number of tokens per row in one pass: a multiple of [`BUCKET`].
const LONGEST: usize = 512;

type Step<'m> = Box<dyn Fn(&[LazyTensor]) -> Result<Vec<LazyTensor>> + Send + Sync + 'm>;

/// Runs a model on tokens. Creating a decoder costs nothing; the first tokens trace the steps, later ones replay them.
///
/// ```
/// use candle_core::{DType, Device};
/// use metal_candle::inference::Decoder;
/// use metal_candle::models::{self, ModelConfig};
///
/// let json = serde_json::json!({
///     "model_type": "llama", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 48,
///     "num_hidden_layers": 2, "num_attention_heads": 4,
/// });
/// let config = ModelConfig::from_json("config.json".as_ref(), json.as_object().unwrap())?;
/// let model = models::random(&config, DType::F32, 42, &Device::Cpu)?;
/// let decoder = Decoder::new(&*model);
/// // Two rows of three tokens, then one more token for each.
/// let mut cache = decoder.cache(2)?;
/// let logits = decoder.read(&mut cache, &[&[1, 2, 3], &[4, 5, 6]])?;
/// assert_eq!((logits.len(), cache.len()), (2 * 32, 3));
/// decoder.next(&mut cache, &[7, 8])?;
/// assert_eq!(cache.len(), 4);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Decoder<'m> {
    model: &'m dyn CausalLm,
    adapters: Vec<LazyTensor>,
    step: Compiled<Step<'m>>,
}

impl<'m> Decoder<'m> {
    /// A decoder for a model.
    #[must_use]
    pub fn new(model: &'m dyn CausalLm) -> Self {
        let step: Step<'m> = Box::new(move |arguments| step(model, arguments));
        Self {
            model,
            adapters: Vec::new(),
            step: compile(step),
        }
    }

    /// The model.
    #[must_use]
    pub fn model(&self) -> &'m dyn CausalLm {
        self.model
    }

    /// Sets the factors of the model's adapters for all following steps; see
    /// [`AdapterParameters::tensors`](crate::adapters::AdapterParameters::tensors).
    pub fn set_adapters(&mut self, adapters: &[LazyTensor]) {
        self.adapters = adapters.to_vec();
    }

    /// An empty cache for `rows` rows.
    ///
    /// # Errors
    /// When the engine does not support the model's dtype.
    pub fn cache(&self, rows: usize) -> Result<KvCache> {
        let head = self.model.head();
        KvCache::for_rows(rows, self.model.config(), head.dtype(), head.device())
    }

    /// Reads one prompt for each row of the cache, all of equal length; returns the logits after the last token of each
    /// row, `(rows, vocab)`. On an error the cache is unchanged.
    ///
    /// # Errors
    /// When the number of prompts is not that of the rows, their lengths differ, or a token is outside the vocabulary.
    pub fn read(&self, cache: &mut KvCache, prompts: &[&[u32]]) -> Result<Vec<f32>> {
        let length = prompts.first().map_or(0, |prompt| prompt.len());
        if prompts.iter().any(|prompt| prompt.len() != length) {
            return Err(refused("the prompts differ in length".to_owned()));
        }
        let before = cache.len();
        let mut logits = Vec::new();
        for start in (0..length).step_by(LONGEST) {
            let end = (start + LONGEST).min(length);
            let parts: Vec<&[u32]> = prompts.iter().map(|prompt| &prompt[start..end]).collect();
            let read = self.run(cache, &parts, (end - start).next_multiple_of(BUCKET));
            // Discards what earlier parts have written.
            logits = read.inspect_err(|_| cache.rewind(before))?;
        }
        Ok(logits)
    }

    /// Reads the next token of each row; returns the logits after it, `(rows, vocab)`. On an error the cache is
    /// unchanged.
    ///
    /// # Errors
    /// When the number of tokens is not that of the rows, or a token is outside the vocabulary.
    pub fn next(&self, cache: &mut KvCache, tokens: &[u32]) -> Result<Vec<f32>> {
        let rows: Vec<&[u32]> = tokens.chunks(1).collect();
        self.run(cache, &rows, 1)
    }

    /// Profiles the reading of the next token of each row; the cache is unchanged, except for its capacity.
    ///
    /// # Errors
    /// See [`Self::next`].
    pub fn explain(&self, cache: &mut KvCache, tokens: &[u32]) -> Result<Explanation> {
        let rows: Vec<&[u32]> = tokens.chunks(1).collect();
        let arguments = self.arguments(cache, &rows, 1)?;
        let explained = self.step.explain(&arguments);
        self.put_back(cache, arguments);
        explained
    }

    /// One step: reads `rows` of equal length, padded to `width`, into the cache; returns the logits after the last
    /// token of each row. On an error the cache is unchanged.
    fn run(&self, cache: &mut KvCache, rows: &[&[u32]], width: usize) -> Result<Vec<f32>> {
        let length = rows.first().map_or(0, |row| row.len());
        // Further handles of the tensors would prevent the step from overwriting them.
        let before = cache.grows_for(width).then(|| cache.clone());
        let arguments = self.arguments(cache, rows, width)?;
        match self.step.call(arguments) {
            Ok(mut results) => {
                cache.put(results.split_off(1), length);
                results[0].to_vec()
            }
            Err(failed) => {
                let (error, arguments) = failed.into_parts();
                match before {
                    Some(before) => *cache = before,
                    None => self.put_back(cache, arguments),
                }
                Err(error)
            }
        }
    }

    /// Moves the tensors of the cache back from the arguments of a step.
    fn put_back(&self, cache: &mut KvCache, mut arguments: Vec<LazyTensor>) {
        arguments.truncate(arguments.len() - self.adapters.len());
        cache.put(arguments.split_off(3), 0);
    }

    /// The arguments of a step; the tensors of the cache are moved into it.
    fn arguments(&self, cache: &mut KvCache, rows: &[&[u32]], width: usize) -> Result<Vec<LazyTensor>> {
        if rows.len() != cache.rows() {
            return Err(refused(format!("{} rows for a cache of {}", rows.len(), cache.rows())));
        }
        cache.reserve(width)?;
        let device = self.model.head().device();
        let length = rows.first().map_or(0, |row| row.len());
        // Entries written for padding are beyond the cache's length: never visible, and overwritten later.
        let padding = |row: &&[u32]| std::iter::repeat_n(0, width - row.len());
        let padded: Vec<u32> = rows
            .iter()
            .flat_map(|row| row.iter().copied().chain(padding(row)))
            .collect();
        let number = |n: usize| LazyTensor::from_data(&[n as u32], &[1], device);
        let mut arguments = vec![
            LazyTensor::from_data(&padded, &[rows.len(), width], device)?,
            number(cache.len())?,
            number(length.saturating_sub(1))?,
        ];
        arguments.extend(cache.take());
        arguments.extend(self.adapters.iter().cloned());
        Ok(arguments)
    }
}

fn refused(message: String) -> Error {
    Error::Shape {
        operation: "decoder",
        message,
    }
}

/// The compiled function: `[tokens (rows, seq), offset (1), last (1), keys and values of each layer.., adapters..]` to
/// `[logits (rows, vocab) after token `last`, keys and values of each layer..]`.
fn step(model: &dyn CausalLm, arguments: &[LazyTensor]) -> Result<Vec<LazyTensor>> {
    let count = 2 * model.config().num_hidden_layers;
    let (Some([tokens, offset, last]), Some(caches)) = (arguments.first_chunk(), arguments.get(3..3 + count)) else {
        return Err(Error::Arity {
            operation: "step",
            expected: format!("{} arguments", 3 + count),
            found: arguments.len(),
        });
    };
    let layers = caches
        .chunks_exact(2)
        .map(|kv| (kv[0].clone(), kv[1].clone()))
        .collect();
    let cache = Cache {
        layers,
        offset: offset.clone(),
    };
    let [rows, width] = [0, 1].map(|i| tokens.dims()[i]);
    let mut pass = Pass::after(cache, width)?.with_adapters(&arguments[3 + count..]);
    let hidden = model.hidden(tokens, &mut pass)?.dynamic_slice(1, last, 1)?;
    let vocab = model.head().dims()[0];
    let mut results = vec![model.project(&hidden)?.cast(DType::F32)?.reshape(&[rows, vocab])?];
    let layers = pass.into_cache().map_or_else(Vec::new, |cache| cache.layers);
    results.extend(layers.into_iter().flat_map(|(k, v)| [k, v]));
    Ok(results)
}
