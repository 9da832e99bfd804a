//! Jinja2 for chat templates: the language, Python's values and their methods, in the sandbox that transformers uses.
//!
//! What is supported renders as Jinja2 renders it, and what is not is an error, never another text. A template reads no
//! file, sees only what it is given, and pays from a [`Budget`] for all it does.

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

/// A template that has been parsed.
#[derive(Clone)]
pub(super) struct Program(Arc<Vec<ast::Statement>>);

impl Program {
    pub fn parse(source: &str) -> Outcome<Self> {
        parser::parse(source).map(|body| Self(Arc::new(body)))
    }

    /// Whether the template marks what the assistant writes with `{% generation %}`.
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
