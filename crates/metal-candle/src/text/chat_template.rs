//! Chat templates: the Jinja program beside a model that writes a conversation as the text the model was trained on.
//!
//! Renders what transformers' `apply_chat_template` renders (trimmed blocks, `raise_exception`, `strftime_now`, plain
//! `tojson`, Python's string methods). A template is a stranger's program: it runs with a budget of work and output,
//! reads no file, and sees only the messages, the tools and the names of the special tokens. The budget does not cover all:
//! the engine compares and concatenates (`==`, `~`) lists that hold one another many times over without charging. So
//! there is a limit of time too. Whoever renders is free again then, but the thread works on, and `~` takes memory for it,
//! until the program ends; a template that came to this is not rendered again.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Value, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State};
use serde_json::Value as Json;

use super::generation_tags::{FILTER, without_generation_tags};
use super::{ChatMessage, TextError, clock, first_line, guarded_deep, json};

/// Work one rendering may do: instructions, and 64 bytes of text each; so also at most 64 MB of memory.
const FUEL: u64 = 1_000_000;
/// Longest text one rendering may write.
const MAX_OUTPUT: usize = 16 << 20;
/// Longest template that is compiled.
const MAX_SOURCE: usize = 64 << 10;
/// Longest stretch of a template without the end of a tag; the engine's compiler takes quadratic time in an expression.
const MAX_TAG: usize = 8 << 10;
/// Longest time one rendering or compilation may take, where neither work nor output ended it.
const MAX_TIME: Duration = Duration::from_secs(5);
const NAME: &str = "chat_template";
const REFUSED: &str = "raise_exception: ";

/// A compiled chat template.
///
/// ```
/// use metal_candle::text::{ChatMessage, ChatTemplate};
///
/// let source = "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}{{ eos_token }}{% endfor %}";
/// let template = ChatTemplate::new("chat_template.jinja", source, [("eos_token", "</s>")])?;
/// let text = template.render(&[ChatMessage::new("user", " hi ")], false)?;
/// assert_eq!(text, "<user>hi</s>");
/// # Ok::<(), metal_candle::text::TextError>(())
/// ```
#[derive(Clone)]
pub struct ChatTemplate {
    file: String,
    source: String,
    environment: Arc<Environment<'static>>,
    max_time: Duration,
    /// A rendering did not end in time. Shared with clones, so that one template keeps one thread busy at most.
    stuck: Arc<AtomicBool>,
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChatTemplate")
            .field("file", &self.file)
            .field("source", &self.source)
            .finish_non_exhaustive()
    }
}

impl ChatTemplate {
    /// Compiles a template. `file` says in errors where it came from; `variables` are the special tokens by name
    /// (`bos_token`, `eos_token`, ...).
    ///
    /// # Errors
    ///
    /// [`TextError::TemplateSyntax`] where it does not parse, [`TextError::TemplateBudget`] over 64 KiB of source or 8 KiB in a single tag.
    pub fn new<K, V>(file: &str, source: &str, variables: impl IntoIterator<Item = (K, V)>) -> Result<Self, TextError>
    where
        K: Into<String>,
        V: Into<String>,
    {
        let refused = |reason| {
            Err(TextError::TemplateBudget {
                file: file.to_owned(),
                reason,
            })
        };
        if source.len() > MAX_SOURCE {
            return refused(format!("its source has {} bytes, more than {MAX_SOURCE}", source.len()));
        }
        if source
            .split("%}")
            .flat_map(|part| part.split("}}"))
            .any(|part| part.len() > MAX_TAG)
        {
            return refused(format!("a tag or text in it has more than {MAX_TAG} bytes"));
        }
        let mut environment = environment();
        for (name, value) in variables {
            environment.add_global(name.into(), Value::from(value.into()));
        }
        let compiled = without_generation_tags(source);
        let done = guarded_deep(MAX_TIME, move || {
            environment.add_template_owned(NAME, compiled).map(|()| environment)
        });
        match done {
            Ok(Some(Ok(environment))) => Ok(Self {
                file: file.to_owned(),
                source: source.to_owned(),
                environment: Arc::new(environment),
                max_time: MAX_TIME,
                stuck: Arc::default(),
            }),
            Ok(Some(Err(error))) => Err(explain(file, &error)),
            Ok(None) => refused(too_slow(MAX_TIME)),
            Err(reason) => Err(TextError::TemplateSyntax {
                file: file.to_owned(),
                line: 1,
                reason,
            }),
        }
    }

    /// The template as it was written.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The same template with the clock of `strftime_now` stopped at `seconds` since 1970 (UTC).
    #[must_use]
    pub fn with_clock(mut self, seconds: i64) -> Self {
        Arc::make_mut(&mut self.environment)
            .add_function("strftime_now", move |format: &str| strftime(format, seconds));
        self
    }

    /// The same template with another filter of this name.
    pub(super) fn with_filter(
        mut self,
        name: &'static str,
        filter: impl Fn(&str) -> String + Send + Sync + 'static,
    ) -> Self {
        Arc::make_mut(&mut self.environment).add_filter(name, move |body: &str| filter(body));
        self
    }

    /// Writes the conversation; with `add_generation_prompt`, also what stands before the assistant's next words.
    ///
    /// # Errors
    ///
    /// [`TextError::TemplateRefused`] where the template calls `raise_exception`, [`TextError::TemplateRender`] where it
    /// fails, [`TextError::TemplateBudget`] where it works or writes without end, or did so before.
    pub fn render(&self, messages: &[ChatMessage], add_generation_prompt: bool) -> Result<String, TextError> {
        self.render_with_tools(messages, None, add_generation_prompt)
    }

    /// [`render`](Self::render) with the descriptions of the tools (a JSON list) that the model may call.
    ///
    /// # Errors
    ///
    /// Those of [`render`](Self::render).
    pub fn render_with_tools(
        &self,
        messages: &[ChatMessage],
        tools: Option<&Json>,
        add_generation_prompt: bool,
    ) -> Result<String, TextError> {
        let messages: Vec<Value> = messages.iter().map(|message| json::object(&message.fields)).collect();
        let context = Value::from_pairs([
            ("messages", Value::from(messages)),
            ("tools", tools.map_or(Value::from(()), json::to_template)),
            ("documents", Value::from(())),
            ("add_generation_prompt", Value::from(add_generation_prompt)),
        ]);
        let failed = |reason| TextError::TemplateRender {
            file: self.file.clone(),
            line: 1,
            reason,
        };
        let done = if self.stuck.load(Ordering::Relaxed) {
            None
        } else {
            let environment = Arc::clone(&self.environment);
            guarded_deep(self.max_time, move || render(&environment, context)).map_err(failed)?
        };
        let Some(rendered) = done else {
            self.stuck.store(true, Ordering::Relaxed);
            return Err(TextError::TemplateBudget {
                file: self.file.clone(),
                reason: too_slow(self.max_time),
            });
        };
        let bytes = rendered.map_err(|error| explain(&self.file, &error))?;
        String::from_utf8(bytes).map_err(|error| failed(error.to_string()))
    }
}

fn render(environment: &Environment<'static>, context: Value) -> Result<Vec<u8>, Error> {
    let mut out = Limited::default();
    environment.get_template(NAME)?.render_captured_to(context, &mut out)?;
    Ok(out.bytes)
}

fn too_slow(limit: Duration) -> String {
    format!("it took longer than {} s", limit.as_secs_f64())
}

/// The engine's error as ours.
fn explain(file: &str, error: &Error) -> TextError {
    let (file, line) = (file.to_owned(), error.line().unwrap_or(1));
    let detail = error.detail().unwrap_or_default();
    if let Some(message) = detail.strip_prefix(REFUSED) {
        return TextError::TemplateRefused {
            file,
            message: message.to_owned(),
        };
    }
    let reason = if detail.is_empty() {
        error.kind().to_string()
    } else {
        format!("{}: {detail}", error.kind())
    };
    let reason = first_line(&reason);
    match error.kind() {
        ErrorKind::OutOfFuel => {
            let reason = "it did more work than a conversation can need; shorten the conversation or mend the template";
            TextError::TemplateBudget {
                file,
                reason: reason.to_owned(),
            }
        }
        ErrorKind::WriteFailure => TextError::TemplateBudget {
            file,
            reason: format!("it wrote more than {MAX_OUTPUT} bytes"),
        },
        ErrorKind::SyntaxError | ErrorKind::BadEscape => TextError::TemplateSyntax { file, line, reason },
        _ => TextError::TemplateRender { file, line, reason },
    }
}

/// An environment that behaves like the one of transformers.
fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    // Building fails only for odd delimiters, and these are the usual ones.
    environment.set_syntax(
        SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()
            .unwrap_or_default(),
    );
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_fuel(Some(FUEL));
    environment.set_debug(false); // errors would keep (and print) the template's variables
    environment.set_unknown_method_callback(method);
    // Containers are paid for before they are printed; the engine charges only for the text they became.
    environment.set_formatter(|out, state, value| {
        pay_for(state, value, 0)?;
        minijinja::escape_formatter(out, state, value)
    });
    environment.add_filter("tojson", json::tojson);
    environment.add_filter(FILTER, |body: String| body);
    environment.add_function("raise_exception", |message: &str| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, format!("{REFUSED}{message}")))
    });
    environment.add_function("strftime_now", |format: &str| strftime(format, clock::now()));
    environment
}

fn strftime(format: &str, seconds: i64) -> Result<String, Error> {
    clock::strftime(format, seconds).map_err(|reason| Error::new(ErrorKind::InvalidOperation, reason))
}

/// Charges for every element of a container, nested ones each time they occur: a list may hold another many times.
fn pay_for(state: &State, value: &Value, depth: usize) -> Result<(), Error> {
    if !matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::Iterable) {
        return state.consume_fuel(u64::from(depth > 0));
    }
    if depth > json::MAX_DEPTH {
        return Err(Error::new(
            ErrorKind::InvalidOperation,
            "a list is nested too deeply to be printed",
        ));
    }
    for item in value.try_iter()?.checked() {
        let item = item?;
        let inner = if value.kind() == ValueKind::Map {
            value.get_item(&item)?
        } else {
            item
        };
        pay_for(state, &inner, depth + 1)?;
    }
    state.consume_fuel(1)
}

/// Python's methods of strings, maps and lists, each paid for before it runs: some make text far larger than their inputs.
fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    let size = |value: &Value| value.as_str().map_or_else(|| value.len().unwrap_or(1), str::len) as u64;
    let own = size(value);
    let given: u64 = args.iter().map(size).sum();
    let written = match (name, value.as_str()) {
        ("join", Some(_)) => match args.first() {
            Some(list) => joined(state, own, list)?,
            None => 0,
        },
        ("replace", Some(text)) => {
            let found = args
                .first()
                .and_then(Value::as_str)
                .map_or(0, |old| text.matches(old).count());
            (found as u64).saturating_mul(args.get(1).map_or(0, size))
        }
        ("format", Some(text)) => formatted(text, args)?,
        // Lists of pieces: a slot holds more than the byte it stands for.
        ("split" | "splitlines", Some(_)) => own.saturating_mul(24),
        _ => 0,
    };
    state.consume_fuel(1 + own.saturating_add(given).saturating_add(written) / 64)?;
    minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args)
}

/// Bytes that `separator.join(list)` writes.
fn joined(state: &State, separator: u64, list: &Value) -> Result<u64, Error> {
    let mut total = 0u64;
    for item in list.try_iter()?.checked() {
        state.consume_fuel(1)?;
        let item = item?;
        if matches!(item.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::Iterable) {
            return Err(Error::new(
                ErrorKind::InvalidOperation,
                format!("join: expected strings, found {}", item.kind()),
            ));
        }
        total = total
            .saturating_add(separator)
            .saturating_add(item.as_str().map_or(32, str::len) as u64);
    }
    Ok(total)
}

/// Bytes that `text.format(args)` may write; widths and precisions of more than three digits are refused.
fn formatted(text: &str, args: &[Value]) -> Result<u64, Error> {
    let refused = |reason: &str| Err(Error::new(ErrorKind::InvalidOperation, format!("format: {reason}")));
    let mut digits = 0;
    for letter in text.chars() {
        digits = if letter.is_ascii_digit() { digits + 1 } else { 0 };
        if digits > 3 {
            return refused("numbers of more than three digits are not allowed in the pattern");
        }
    }
    let mut widest = 1000u64;
    for value in args {
        match value.kind() {
            ValueKind::String => {
                widest = widest.saturating_add(value.as_str().map_or(0, str::len) as u64);
            }
            ValueKind::Seq | ValueKind::Map | ValueKind::Iterable => {
                return refused("lists and maps are not allowed as arguments");
            }
            _ => {}
        }
    }
    Ok(widest.saturating_mul(text.matches('{').count() as u64))
}

/// Output that refuses to grow past [`MAX_OUTPUT`].
#[derive(Default)]
struct Limited {
    bytes: Vec<u8>,
}

impl io::Write for Limited {
    fn write(&mut self, more: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + more.len() > MAX_OUTPUT {
            return Err(io::Error::other("output too long"));
        }
        self.bytes.extend_from_slice(more);
        Ok(more.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
#[path = "chat_template_tests.rs"]
mod tests;
