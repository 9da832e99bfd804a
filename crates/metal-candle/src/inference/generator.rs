//! From a prompt to text: encodes the prompt, runs the decoder on it, then samples token after token and streams the
//! text as its characters are complete.

use std::cell::RefCell;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use metal_candle_graph::LazyTensor;

use super::stop::StopText;
use super::stream_token::{Chooser, Listener, StreamToken};
use super::{Decoder, GenerateError, KvCache, LogitsProcessors, Sampler, SamplingConfig};
use crate::models::LoadedModel;
use crate::text::{ChatMessage, TextStream, Tokenizer, end_of_turn_tokens};

/// The prompt.
#[derive(Debug, Clone, Copy)]
pub enum Prompt<'p> {
    /// Text; the tokenizer adds its special tokens.
    Text(&'p str),
    /// A conversation, rendered by the model's chat template with a generation prompt.
    Chat(&'p [ChatMessage]),
    /// Token ids, used unchanged.
    Tokens(&'p [u32]),
}

/// Options of a generation.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerationOptions {
    /// Maximum number of generated tokens.
    pub max_new_tokens: usize,
    /// How each token is sampled.
    pub sampling: SamplingConfig,
    /// Which tokens are forbidden.
    pub processors: LogitsProcessors,
    /// Strings that end the answer; they are not part of it. Special tokens, which are not part of the answer's text,
    /// are matched as the vocabulary spells them.
    pub stop_strings: Vec<String>,
    /// Tokens that end the answer; `None` for [`Generator::stop_tokens`].
    pub stop_tokens: Option<Vec<u32>>,
}

impl Default for GenerationOptions {
    /// Greedy, up to 256 tokens, with the model's own stop tokens.
    fn default() -> Self {
        Self {
            max_new_tokens: 256,
            sampling: SamplingConfig::default(),
            processors: LogitsProcessors::default(),
            stop_strings: Vec::new(),
            stop_tokens: None,
        }
    }
}

/// The reason why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// A stop token, which is the last of the tokens and not part of the text.
    StopToken,
    /// A stop string, which is not part of the text.
    StopString,
    /// The maximum number of tokens was reached.
    Length,
    /// The callback asked to stop.
    Cancelled,
}

/// A generated answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Generation {
    /// The text, without special tokens.
    pub text: String,
    /// The generated tokens, a stop token included.
    pub tokens: Vec<u32>,
    /// The reason why it ended.
    pub finish_reason: FinishReason,
    /// Number of tokens of the prompt.
    pub prompt_tokens: usize,
    /// Time spent reading the prompt.
    pub prompt_time: Duration,
    /// Time spent on decoding.
    pub decode_time: Duration,
}

/// Generates text with a model. The first prompt traces the steps, later ones replay them.
///
/// ```no_run
/// use std::ops::ControlFlow;
///
/// use candle_core::DType;
/// use metal_candle::Device;
/// use metal_candle::inference::{GenerationOptions, Generator, Prompt};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let loaded = metal_candle::models::load("path/to/model", DType::F32, &Device::new_cpu())?;
/// let generator = Generator::new(&loaded);
/// let answer = generator.generate(Prompt::Text("Once upon"), &GenerationOptions::default(), &mut |piece| {
///     print!("{piece}");
///     ControlFlow::Continue(())
/// })?;
/// println!("\n{} tokens", answer.tokens.len());
/// # Ok(())
/// # }
/// ```
pub struct Generator<'m> {
    decoder: Decoder<'m>,
    tokenizer: &'m Tokenizer,
    stop_tokens: Vec<u32>,
}

impl<'m> Generator<'m> {
    /// A generator for a loaded model.
    #[must_use]
    pub fn new(loaded: &'m LoadedModel) -> Self {
        let mut stop_tokens = loaded.stop_tokens();
        let turn = end_of_turn_tokens(&loaded.tokenizer);
        stop_tokens.extend(turn.into_iter().filter(|token| !loaded.stop_tokens().contains(token)));
        Self {
            decoder: Decoder::new(&*loaded.model),
            tokenizer: &loaded.tokenizer,
            stop_tokens,
        }
    }

    /// The stop tokens used if the options name none: those of [`LoadedModel::stop_tokens`], and those with which the
    /// chat template ends the assistant's turn ([`end_of_turn_tokens`]).
    #[must_use]
    pub fn stop_tokens(&self) -> &[u32] {
        &self.stop_tokens
    }

    /// Sets the factors of the model's adapters for all following generations; see
    /// [`AdapterParameters::tensors`](crate::adapters::AdapterParameters::tensors).
    pub fn set_adapters(&mut self, adapters: &[LazyTensor]) {
        self.decoder.set_adapters(adapters);
    }

    /// Continues a prompt. `on_text` receives the text in pieces of whole characters, and may end the generation by
    /// returning `Break`.
    ///
    /// # Errors
    /// [`GenerateError`], before any work if possible: an empty prompt, a token outside the vocabulary, a context that
    /// is too short, a setting out of range.
    pub fn generate(
        &self,
        prompt: Prompt<'_>,
        options: &GenerationOptions,
        on_text: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Generation, GenerateError> {
        self.run(prompt, options, on_text, None)
    }

    /// Continues a prompt like [`generate`](Self::generate), token by token: `on_token` receives each token as soon as
    /// it is sampled, with its text and probability, and may end the generation by returning `Break`.
    ///
    /// ```no_run
    /// # use std::ops::ControlFlow;
    /// # use metal_candle::inference::{GenerationOptions, Generator, Prompt};
    /// # fn stream(generator: &Generator) -> Result<(), metal_candle::Error> {
    /// generator.generate_stream(Prompt::Text("Once upon"), &GenerationOptions::default(), &mut |token| {
    ///     println!("{} {:?} {:.3}", token.token_id, token.text, token.log_probability);
    ///     ControlFlow::Continue(())
    /// })?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`generate`](Self::generate).
    pub fn generate_stream(
        &self,
        prompt: Prompt<'_>,
        options: &GenerationOptions,
        on_token: &mut dyn FnMut(&StreamToken) -> ControlFlow<()>,
    ) -> Result<Generation, GenerateError> {
        let text = RefCell::new(String::new());
        let mut collect = |piece: &str| {
            text.borrow_mut().push_str(piece);
            ControlFlow::Continue(())
        };
        let listener = Listener {
            on_token,
            text: &text,
            stop_tokens: options.stop_tokens.as_ref().unwrap_or(&self.stop_tokens),
        };
        self.run(prompt, options, &mut collect, Some(listener))
    }

    fn run(
        &self,
        prompt: Prompt<'_>,
        options: &GenerationOptions,
        on_text: &mut dyn FnMut(&str) -> ControlFlow<()>,
        listener: Option<Listener<'_>>,
    ) -> Result<Generation, GenerateError> {
        let prompt = self.encode(prompt)?;
        self.check(&prompt, options)?;
        let sampler = Chooser::new(Sampler::new(options.sampling.clone())?, listener);
        let start = Instant::now();
        let mut cache = self.decoder.cache(1)?;
        let logits = self.decoder.read(&mut cache, &[&prompt])?;
        let prompt_time = start.elapsed();
        let start = Instant::now();
        let output = AnswerText::new(self.tokenizer, &options.stop_strings, on_text);
        let (text, tokens, finish_reason) = self.decode(&mut cache, logits, &prompt, options, sampler, output)?;
        let decode_time = start.elapsed();
        Ok(Generation {
            text,
            tokens,
            finish_reason,
            prompt_tokens: prompt.len(),
            prompt_time,
            decode_time,
        })
    }

    /// The tokens of a prompt.
    ///
    /// # Errors
    /// [`GenerateError::NoChatTemplate`] and [`GenerateError::Text`].
    pub fn encode(&self, prompt: Prompt<'_>) -> Result<Vec<u32>, GenerateError> {
        Ok(match prompt {
            Prompt::Text(text) => self.tokenizer.encode(text, true)?,
            Prompt::Chat(messages) => {
                let template = self.tokenizer.chat_template().ok_or(GenerateError::NoChatTemplate)?;
                self.tokenizer.encode(&template.render(messages, true)?, false)?
            }
            Prompt::Tokens(tokens) => tokens.to_vec(),
        })
    }

    fn check(&self, prompt: &[u32], options: &GenerationOptions) -> Result<(), GenerateError> {
        let config = self.decoder.model().config();
        let (vocab_size, limit) = (config.vocab_size, config.max_position_embeddings);
        if prompt.is_empty() {
            return Err(GenerateError::EmptyPrompt);
        }
        if options.stop_strings.iter().any(String::is_empty) {
            return Err(GenerateError::EmptyStopString);
        }
        if let Some(&id) = options
            .stop_tokens
            .iter()
            .flatten()
            .find(|&&id| id as usize >= vocab_size)
        {
            return Err(GenerateError::StopTokenOutOfVocabulary { id, vocab_size });
        }
        if let Some(position) = prompt.iter().position(|&id| id as usize >= vocab_size) {
            return Err(GenerateError::TokenOutOfVocabulary {
                id: prompt[position],
                position,
                vocab_size,
            });
        }
        let max_new_tokens = options.max_new_tokens;
        if prompt.len().saturating_add(max_new_tokens) > limit {
            return Err(GenerateError::ContextTooLong {
                prompt: prompt.len(),
                max_new_tokens,
                limit,
            });
        }
        Ok(())
    }

    /// The decoding loop.
    fn decode(
        &self,
        cache: &mut KvCache,
        mut logits: Vec<f32>,
        prompt: &[u32],
        options: &GenerationOptions,
        mut sampler: Chooser<'_>,
        mut output: AnswerText<'_>,
    ) -> Result<(String, Vec<u32>, FinishReason), GenerateError> {
        let stop_tokens = options.stop_tokens.as_ref().unwrap_or(&self.stop_tokens);
        let mut history = prompt.to_vec();
        let mut reason = None;
        while reason.is_none() && history.len() < prompt.len() + options.max_new_tokens {
            if history.len() > prompt.len() {
                if sampler.tell().is_break() {
                    reason = Some(FinishReason::Cancelled);
                    break;
                }
                logits = self.decoder.next(cache, &history[history.len() - 1..])?;
            }
            let process = |logits: &mut [f32]| {
                options.processors.apply(logits, &history, prompt.len(), stop_tokens);
            };
            let token = sampler.sample(&mut logits, &history, process)?;
            history.push(token);
            reason = if stop_tokens.contains(&token) {
                Some(FinishReason::StopToken)
            } else {
                output.token(token)?
            };
        }
        let (text, reason) = output.finish(reason.unwrap_or(FinishReason::Length))?;
        // The last token gets the text that was held back; there is nothing left to cancel.
        let _ended = sampler.tell();
        Ok((text, history.split_off(prompt.len()), reason))
    }
}

/// Assembles the text of an answer and streams it to the caller.
struct AnswerText<'o> {
    tokenizer: &'o Tokenizer,
    stream: TextStream<'o>,
    stop: StopText<'o>,
    on_text: &'o mut dyn FnMut(&str) -> ControlFlow<()>,
    text: String,
}

impl<'o> AnswerText<'o> {
    fn new(tokenizer: &'o Tokenizer, stops: &'o [String], on_text: &'o mut dyn FnMut(&str) -> ControlFlow<()>) -> Self {
        Self {
            tokenizer,
            stream: TextStream::new(tokenizer, true),
            stop: StopText::new(stops),
            on_text,
            text: String::new(),
        }
    }

    /// Adds a token; returns the reason if it ends the text.
    fn token(&mut self, token: u32) -> Result<Option<FinishReason>, GenerateError> {
        let piece = self.stream.push(token)?;
        if let Some(reason) = piece.and_then(|piece| self.piece(&piece)) {
            return Ok(Some(reason));
        }
        let special = self
            .tokenizer
            .is_special(token)
            .then(|| self.tokenizer.token(token))
            .flatten();
        Ok(special.and_then(|special| {
            let looked_at = self.stop.push_hidden(&special);
            self.ready(looked_at)
        }))
    }

    fn piece(&mut self, piece: &str) -> Option<FinishReason> {
        let looked_at = self.stop.push(piece);
        self.ready(looked_at)
    }

    /// Streams the complete text; returns the reason if the text ends with it.
    fn ready(&mut self, (ready, stopped): (String, bool)) -> Option<FinishReason> {
        let cancelled = self.hand_out(&ready);
        if stopped {
            Some(FinishReason::StopString)
        } else {
            cancelled
        }
    }

    fn hand_out(&mut self, ready: &str) -> Option<FinishReason> {
        if ready.is_empty() {
            return None;
        }
        self.text.push_str(ready);
        (self.on_text)(ready).is_break().then_some(FinishReason::Cancelled)
    }

    /// Streams the text that was held back, unless the text was cut off; it may contain a stop string.
    fn finish(mut self, reason: FinishReason) -> Result<(String, FinishReason), GenerateError> {
        let mut reason = reason;
        if matches!(reason, FinishReason::StopToken | FinishReason::Length) {
            let rest = self.stream.clone().finish()?;
            if self.piece(&rest) == Some(FinishReason::StopString) {
                reason = FinishReason::StopString;
            } else {
                let held = self.stop.finish();
                self.hand_out(&held);
            }
        }
        Ok((self.text, reason))
    }
}
