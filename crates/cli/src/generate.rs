//! `metal-candle generate`: prints the text to stdout as it is generated, and statistics to stderr.

use std::io::{ErrorKind, Write, stdout};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use candle_core::Device;
use metal_candle::adapters::{self, Adapter, AdapterError};
use metal_candle::inference::{
    FinishReason, Generation, GenerationOptions, Generator, LogitsProcessors, Prompt, SamplingConfig,
};
use metal_candle::models::{GenerationConfig, LoadedModel};
use metal_candle::text::ChatMessage;

use crate::args::GenerateArgs;
use crate::base::Base;
use crate::console::warn;
use crate::demo;
use crate::error::{Failure, Result};
use crate::exchange::{self, ADAPTER, UNFINISHED};
use crate::report::{count, duration};

/// Maximum number of generated tokens if neither the flags nor the model set one.
const MAX_NEW_TOKENS: usize = 256;

/// Runs the command; returns the exit code.
pub fn run(arguments: &GenerateArgs) -> Result<u8> {
    let device = arguments.device.device()?;
    if arguments.prompt.is_empty() {
        return Err(Failure::input("the prompt is empty: give a text with --prompt TEXT"));
    }
    let sampling = |generation: &GenerationConfig| sampling(arguments, generation);
    sampling(&GenerationConfig::default())
        .validate()
        .map_err(|error| Failure::input(error.to_string()))?;
    let adapter = arguments
        .adapter
        .as_deref()
        .map(|folder| read_adapter(folder, &device))
        .transpose()?;
    let folder = model_of(arguments.model.as_deref(), adapter.as_ref())?;
    let mut base = Base::load(folder.as_deref(), arguments.dtype.options(arguments.quantize), &device)?;
    if let Some(adapter) = &adapter {
        adapters::attach(&mut *base.loaded.model, adapter).map_err(|error| misfit(error, adapter, &base.name))?;
    }
    let generator = Generator::new(&base.loaded);
    let tokens = generator.encode(as_prompt(arguments, &base.loaded, &messages(arguments))?)?;
    let options = GenerationOptions {
        max_new_tokens: max_new_tokens(arguments, &base.loaded, tokens.len()),
        sampling: sampling(&base.loaded.generation),
        processors: LogitsProcessors::suggested_by(&base.loaded.generation),
        stop_strings: arguments.stop.clone(),
        stop_tokens: Some([generator.stop_tokens(), &arguments.stop_token_ids].concat()),
    };
    let mut out = TextOutput {
        stream: arguments.stream,
        ends_line: false,
        failure: None,
    };
    let answer = generator.generate(Prompt::Tokens(&tokens), &options, &mut |piece| out.piece(piece))?;
    out.finish(&answer.text)?;
    statistics(&answer);
    Ok(0)
}

fn read_adapter(folder: &Path, device: &Device) -> Result<Adapter> {
    if !folder.is_dir() {
        let tip =
            "give a folder as `metal-candle train` or PEFT writes it: adapter_config.json, adapter_model.safetensors";
        return Err(Failure::with_tip(format!("{}: no such folder", folder.display()), tip));
    }
    if exchange::is_interrupted(folder) && !folder.join(ADAPTER).exists() {
        let (name, run) = (folder.display(), folder.join(UNFINISHED));
        let tip = format!(
            "use it there: --adapter {}; the next run with --output {name} moves it",
            run.display()
        );
        let message = format!("{name}: a crash has left the complete run in {}", run.display());
        return Err(Failure::with_tip(message, tip));
    }
    let adapter = Adapter::read(folder, device).map_err(Failure::checking)?;
    if adapter.report().map_err(Failure::checking)?.all_deltas_zero {
        warn(&format!(
            "warning: {}: the adapter has no effect: all its deltas are zero",
            folder.display()
        ));
    }
    Ok(adapter)
}

/// The error of an adapter that does not match the model; if it names another base model, that is the likely reason.
fn misfit(error: AdapterError, adapter: &Adapter, model: &str) -> Failure {
    match (Failure::checking(error), &adapter.config.base_model_name_or_path) {
        (Failure::Input { message, tip: None }, Some(base)) if base != model => {
            let tip = format!("the adapter was trained on `{}`: use that model", base.escape_debug());
            Failure::with_tip(message, tip)
        }
        (failure, _) => failure,
    }
}

/// The model's folder: the given one, else the adapter's base model; `None` is the built-in model.
fn model_of(given: Option<&Path>, adapter: Option<&Adapter>) -> Result<Option<PathBuf>> {
    if let Some(folder) = given {
        return Ok(Some(folder.to_owned()));
    }
    let Some(adapter) = adapter else { return Ok(None) };
    match adapter.config.base_model_name_or_path.as_deref() {
        Some(demo::NAME) => Ok(None),
        Some(folder) if Path::new(folder).is_dir() => Ok(Some(folder.into())),
        other => {
            let name = other.map_or("another model".to_owned(), |name| format!("`{}`", name.escape_debug()));
            Err(Failure::with_tip(
                format!("the adapter was trained on {name}, which is not here"),
                "give its folder with --model",
            ))
        }
    }
}

fn messages(arguments: &GenerateArgs) -> Vec<ChatMessage> {
    let system = arguments.system.iter().map(|text| ChatMessage::new("system", text));
    system.chain([ChatMessage::new("user", &arguments.prompt)]).collect()
}

/// The prompt as a conversation if the model has a chat template, unless `--raw` is given.
fn as_prompt<'p>(arguments: &'p GenerateArgs, loaded: &LoadedModel, messages: &'p [ChatMessage]) -> Result<Prompt<'p>> {
    let can = loaded.tokenizer.chat_template().is_some();
    if !can && (arguments.chat || arguments.system.is_some()) {
        let message = "the model has no chat template, so --chat and --system cannot be used";
        return Err(Failure::with_tip(
            message,
            "leave them out, or add a chat_template.jinja to the model's folder",
        ));
    }
    Ok(if can && !arguments.raw {
        Prompt::Chat(messages)
    } else {
        Prompt::Text(&arguments.prompt)
    })
}

/// The requested maximum; a default is reduced to fit a short context.
fn max_new_tokens(arguments: &GenerateArgs, loaded: &LoadedModel, prompt: usize) -> usize {
    let room = loaded
        .model
        .config()
        .max_position_embeddings
        .saturating_sub(prompt)
        .max(1);
    let suggested = || loaded.generation.max_new_tokens.unwrap_or(MAX_NEW_TOKENS).min(room);
    arguments.max_new_tokens.unwrap_or_else(suggested)
}

/// The model's suggestions, overridden by flags.
fn sampling(arguments: &GenerateArgs, generation: &GenerationConfig) -> SamplingConfig {
    let suggested = SamplingConfig::suggested_by(generation, arguments.seed);
    let draws = arguments.top_k.is_some() || arguments.top_p.is_some() || arguments.min_p.is_some();
    let warm = if draws && suggested.temperature == 0.0 {
        1.0
    } else {
        suggested.temperature
    };
    SamplingConfig {
        temperature: arguments.temperature.unwrap_or(warm),
        top_k: arguments.top_k.unwrap_or(suggested.top_k),
        top_p: arguments.top_p.unwrap_or(suggested.top_p),
        min_p: arguments.min_p.unwrap_or(suggested.min_p),
        repetition_penalty: arguments.repetition_penalty.unwrap_or(suggested.repetition_penalty),
        seed: arguments.seed,
        ..suggested
    }
}

/// The text on its way to stdout.
struct TextOutput {
    stream: bool,
    ends_line: bool,
    failure: Option<std::io::Error>,
}

impl TextOutput {
    fn piece(&mut self, piece: &str) -> ControlFlow<()> {
        if !self.stream {
            return ControlFlow::Continue(());
        }
        self.write(piece);
        if self.failure.is_some() {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    }

    fn write(&mut self, text: &str) {
        let mut out = stdout().lock();
        if let Err(error) = out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            self.failure.get_or_insert(error);
        }
        self.ends_line = text.ends_with('\n');
    }

    /// Prints the text unless it was streamed, and ends the line.
    fn finish(mut self, text: &str) -> Result<()> {
        if !self.stream {
            self.write(text);
        }
        if !self.ends_line && self.failure.is_none() {
            self.write("\n");
        }
        match self.failure {
            // A broken pipe: the reader has seen enough.
            Some(error) if error.kind() != ErrorKind::BrokenPipe => {
                Err(Failure::Run(format!("the text cannot be written: {error}")))
            }
            _ => Ok(()),
        }
    }
}

fn statistics(answer: &Generation) {
    let reason = match answer.finish_reason {
        FinishReason::StopToken => "ended by the model",
        FinishReason::StopString => "ended by a stop string",
        FinishReason::Length => "ended by the maximum number of tokens",
        FinishReason::Cancelled => "ended by the reader",
    };
    let (seconds, made) = (answer.decode_time.as_secs_f64(), answer.tokens.len());
    let speed = if seconds > 0.0 { made as f64 / seconds } else { 0.0 };
    warn(&format!(
        "{} prompt tokens in {}, {} tokens in {} ({speed:.0} tokens/s), {reason}",
        count(answer.prompt_tokens),
        duration(answer.prompt_time.as_secs_f64()),
        count(made),
        duration(seconds),
    ));
}

#[cfg(test)]
#[allow(clippy::float_cmp, reason = "settings are passed on, not computed")]
mod tests {
    use super::*;
    use crate::args::{Cli, Command};
    use clap::Parser;

    fn sampling_of(flags: &[&str], generation: &GenerationConfig) -> SamplingConfig {
        let fixed = ["metal-candle", "generate", "--prompt", "x"];
        let Command::Generate(arguments) = Cli::parse_from(fixed.iter().chain(flags)).command else {
            panic!("generate")
        };
        sampling(&arguments, generation)
    }

    #[test]
    fn flags_change_what_the_model_suggests() {
        let greedy = GenerationConfig::default();
        assert_eq!(
            sampling_of(&[], &greedy),
            SamplingConfig {
                seed: 42,
                ..SamplingConfig::default()
            }
        );
        let drawn = sampling_of(&["--top-p", "0.9"], &greedy);
        assert_eq!((drawn.temperature, drawn.top_p), (1.0, 0.9));
        let suggests = GenerationConfig {
            do_sample: Some(true),
            temperature: Some(0.7),
            ..GenerationConfig::default()
        };
        assert_eq!(sampling_of(&["--top-p", "0.9"], &suggests).temperature, 0.7);
        assert_eq!(sampling_of(&["--temperature", "0"], &suggests).temperature, 0.0);
    }
}
