//! Jinja2 for chat templates: the language, Python's values and their methods, in the sandbox that transformers uses.
//!
//! Supported templates render exactly as in Jinja2; an unsupported construct is an error, never a different text. A
//! template reads no file, sees only its inputs, and all its work is charged to a [`Budget`].

mod arguments;
mod arithmetic;
mod ast;
mod attributes;
mod compare;
mod escapes;
mod evaluate;
mod expressions;
mod fault;
mod filters;
mod format;
mod functions;
mod interpreter;
mod lexer;
mod loops;
mod macros;
mod methods;
mod names;
mod parser;
mod predicates;
mod print;
mod unicode;
mod value;

use std::sync::Arc;

pub(super) use arguments::Args;
pub(super) use fault::{Budget, Fault, FaultKind, Outcome};
pub(super) use interpreter::{Interpreter, Settings};
pub(super) use print::float;
pub(super) use value::Value;

/// A parsed template.
#[derive(Clone)]
pub(super) struct Program(Arc<Vec<ast::Statement>>);

impl Program {
    pub fn parse(source: &str) -> Outcome<Self> {
        parser::parse(source).map(|body| Self(Arc::new(body)))
    }

    /// Whether the template marks the assistant's text with `{% generation %}`.
    pub fn marks_generation(&self) -> bool {
        names::has_generation(&self.0)
    }

    pub fn render(
        &self,
        budget: Budget,
        settings: Settings,
        variables: impl IntoIterator<Item = (Arc<str>, Value)>,
    ) -> Outcome<String> {
        Interpreter::new(budget, settings).run(&self.0, variables)
    }
}
