//! Chat templates: the Jinja program of a model that renders a conversation in the format of its training data.
//!
//! Renders the same text as transformers' `apply_chat_template`. Templates are untrusted: they run with limits on work,
//! output and time, read no file, and see only the messages, the tools and the special tokens. The language itself is
//! in [`jinja`](super::jinja).

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value as Json;

use super::jinja::{Budget, Fault, FaultKind, Program, Settings, Value};
use super::{ChatMessage, TextError, clock, deep, first_line};

/// Work limit of one rendering: one unit per operation, and per 64 bytes of text; this limits memory to about 128 MB.
const FUEL: u64 = 2_000_000;
/// Maximum output of one rendering in bytes.
const MAX_OUTPUT: usize = 16 << 20;
/// Maximum size of a template's source in bytes.
pub(super) const MAX_SOURCE: usize = 1 << 20;
/// Time limit of one rendering, if neither work nor output ends it.
const MAX_TIME: Duration = Duration::from_secs(5);

/// A chat template: one program, or one for conversations with tools and one for those without.
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
    /// The template for conversations without tools, or the reason why there is none.
    default: Variant,
    /// The template for conversations with tools, if it is a different one.
    tool_use: Option<Variant>,
    variables: Arc<Vec<(Arc<str>, Arc<str>)>>,
    /// The time for `strftime_now`, in seconds since 1970; the system's clock if absent.
    clock: Option<i64>,
    fuel: u64,
    max_time: Duration,
}

/// A template with the file it comes from.
#[derive(Clone)]
pub(super) struct Variant {
    file: Arc<str>,
    source: Arc<str>,
    program: Result<Program, Fault>,
}

impl Variant {
    /// Compiles a template; an error is reported when it is rendered.
    pub fn new(file: &str, source: &str) -> Self {
        let program = if source.len() > MAX_SOURCE {
            let reason = format!("its source has {} bytes, more than {MAX_SOURCE}", source.len());
            Err(Fault::new(FaultKind::Budget, reason))
        } else {
            let parsed = deep(|| Program::parse(source));
            parsed.unwrap_or_else(|reason| Err(Fault::new(FaultKind::Syntax, reason)))
        };
        Self {
            file: file.into(),
            source: source.into(),
            program,
        }
    }

    /// A template that cannot be used, with the reason.
    pub fn broken(file: &str, reason: &str) -> Self {
        Self {
            file: file.into(),
            source: "".into(),
            program: Err(Fault::new(FaultKind::Syntax, reason)),
        }
    }
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChatTemplate")
            .field("file", &self.default.file)
            .field("source", &self.default.source)
            .finish_non_exhaustive()
    }
}

impl ChatTemplate {
    /// Compiles a template. `file` is its origin for error messages; `variables` are the special tokens by name
    /// (`bos_token`, `eos_token`, ...).
    ///
    /// # Errors
    ///
    /// [`TextError::TemplateSyntax`] if it does not parse, [`TextError::TemplateBudget`] over 1 MiB of source.
    pub fn new<K, V>(file: &str, source: &str, variables: impl IntoIterator<Item = (K, V)>) -> Result<Self, TextError>
    where
        K: Into<String>,
        V: Into<String>,
    {
        let variables = variables
            .into_iter()
            .map(|(name, value)| (name.into().into(), value.into().into()));
        let template = Self::from_variants(Variant::new(file, source), None, variables.collect());
        match &template.default.program {
            Ok(_) => Ok(template),
            Err(fault) => Err(explain(file, fault)),
        }
    }

    /// A template made of compiled variants. One that does not compile fails when it is rendered.
    pub(super) fn from_variants(
        default: Variant,
        tool_use: Option<Variant>,
        variables: Vec<(Arc<str>, Arc<str>)>,
    ) -> Self {
        Self {
            default,
            tool_use,
            variables: Arc::new(variables),
            clock: None,
            fuel: FUEL,
            max_time: MAX_TIME,
        }
    }

    /// The source of the template (of the one for conversations without tools).
    #[must_use]
    pub fn source(&self) -> &str {
        &self.default.source
    }

    /// The same template with the clock of `strftime_now` set to `seconds` since 1970 (UTC).
    #[must_use]
    pub fn with_clock(mut self, seconds: i64) -> Self {
        self.clock = Some(seconds);
        self
    }

    /// Renders the conversation; with `add_generation_prompt`, up to where the assistant's next message begins.
    ///
    /// # Errors
    ///
    /// [`TextError::TemplateRefused`] if the template calls `raise_exception`, [`TextError::TemplateRender`] if it
    /// fails, [`TextError::TemplateBudget`] if it exceeds a limit, and those of [`new`](Self::new) if the template of a
    /// folder does not compile.
    pub fn render(&self, messages: &[ChatMessage], add_generation_prompt: bool) -> Result<String, TextError> {
        self.render_with_tools(messages, None, add_generation_prompt)
    }

    /// [`render`](Self::render) with the descriptions of the tools (a JSON list) that the model may call. If the model
    /// has a separate template for tools (named `tool_use`), it is used.
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
        self.render_settings(messages, tools, add_generation_prompt, None)
    }

    /// [`render_with_tools`](Self::render_with_tools) without a generation prompt, with these strings before and after
    /// the contents of `{% generation %}`.
    pub(super) fn render_marked(
        &self,
        messages: &[ChatMessage],
        tools: Option<&Json>,
        marks: (&str, &str),
    ) -> Result<String, TextError> {
        self.render_settings(messages, tools, false, Some(marks))
    }

    /// Whether the template for such a conversation marks the assistant's text with `{% generation %}`.
    pub(super) fn marks_generation(&self, tools: Option<&Json>) -> bool {
        self.variant(tools)
            .program
            .as_ref()
            .is_ok_and(Program::marks_generation)
    }

    /// The template for conversations with or without tools.
    fn variant(&self, tools: Option<&Json>) -> &Variant {
        let has_tools = tools.is_some_and(|tools| !tools.is_null());
        self.tool_use.as_ref().filter(|_| has_tools).unwrap_or(&self.default)
    }

    fn render_settings(
        &self,
        messages: &[ChatMessage],
        tools: Option<&Json>,
        add_generation_prompt: bool,
        marks: Option<(&str, &str)>,
    ) -> Result<String, TextError> {
        let Variant { file, program, .. } = self.variant(tools);
        let program = program.as_ref().map_err(|fault| explain(file, fault))?;
        let settings = Settings {
            max_output: MAX_OUTPUT,
            now: self.clock.unwrap_or_else(clock::now),
            marks,
        };
        let budget = Budget::new(self.fuel, self.max_time);
        // Values cannot be sent to another thread, so they are created on the one that renders.
        let done = deep(|| {
            let messages = messages
                .iter()
                .map(|message| Value::from_fields(&message.fields()))
                .collect();
            let named = self
                .variables
                .iter()
                .map(|(name, text)| (name.clone(), Value::Str(text.clone())));
            let variables = [
                ("messages".into(), Value::list(messages)),
                ("tools".into(), tools.map_or(Value::None, Value::from_json)),
                ("documents".into(), Value::None),
                ("add_generation_prompt".into(), Value::Bool(add_generation_prompt)),
            ];
            program.render(budget, settings, named.chain(variables))
        });
        match done {
            Ok(rendered) => rendered.map_err(|fault| explain(file, &fault)),
            Err(reason) => Err(TextError::TemplateRender {
                file: file.to_string(),
                line: 1,
                reason,
            }),
        }
    }
}

/// Converts the interpreter's error.
fn explain(file: &str, fault: &Fault) -> TextError {
    let (file, line) = (file.to_owned(), fault.line().unwrap_or(1));
    let message = fault.message();
    match fault.kind() {
        FaultKind::Raised => TextError::TemplateRefused {
            file,
            message: message.to_owned(),
        },
        FaultKind::Budget => TextError::TemplateBudget {
            file,
            reason: message.to_owned(),
        },
        FaultKind::Syntax => TextError::TemplateSyntax {
            file,
            line,
            reason: first_line(message),
        },
        FaultKind::Failed => TextError::TemplateRender {
            file,
            line,
            reason: first_line(message),
        },
    }
}

#[cfg(test)]
#[path = "chat_template_tests.rs"]
mod tests;
