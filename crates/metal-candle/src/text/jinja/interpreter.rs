//! The interpreter of statements.
//!
//! Bodies of loops, blocks and macros have their own scope, as in Jinja2; those of `if` have none.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::{Rc, Weak};
use std::sync::Arc;

use super::arguments::Args;
use super::ast::{Expr, Kind, MacroBody, Name, Statement, Target};
use super::fault::{Budget, Fault, FaultKind, Outcome, failed};
use super::macros::Macro;
use super::value::Value;

/// Variables, and the enclosing scope.
#[derive(Default)]
pub(in crate::text) struct Scope {
    variables: RefCell<HashMap<Name, Value>>,
    outer: Option<Rc<Scope>>,
}

impl Scope {
    pub fn inside(outer: &Rc<Scope>) -> Rc<Self> {
        Rc::new(Self {
            variables: RefCell::default(),
            outer: Some(Rc::clone(outer)),
        })
    }

    pub fn set(&self, name: &str, value: Value) {
        self.variables.borrow_mut().insert(name.into(), value);
    }

    pub fn get(&self, name: &str) -> Option<Value> {
        let mut scope = self;
        loop {
            if let Some(value) = scope.variables.borrow().get(name) {
                return Some(value.clone());
            }
            scope = scope.outer.as_deref()?;
        }
    }
}

/// How a statement ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flow {
    Next,
    Break,
    Continue,
}

/// Settings of a rendering besides its variables.
#[derive(Clone, Copy)]
pub(in crate::text) struct Settings<'t> {
    /// Maximum output in bytes.
    pub max_output: usize,
    /// Seconds since 1970 for `strftime_now`.
    pub now: i64,
    /// Strings written before and after the contents of `{% generation %}`.
    pub marks: Option<(&'t str, &'t str)>,
}

pub(in crate::text) struct Interpreter<'t> {
    pub(super) budget: Budget,
    pub(super) settings: Settings<'t>,
    /// A stack of the output and captured texts.
    out: Vec<String>,
    /// Scopes that may be part of a reference cycle.
    scopes: Vec<Weak<Scope>>,
    line: usize,
}

impl<'t> Interpreter<'t> {
    pub fn new(budget: Budget, settings: Settings<'t>) -> Self {
        Self {
            budget,
            settings,
            out: vec![String::new()],
            scopes: Vec::new(),
            line: 1,
        }
    }

    /// Runs a template with these variables and returns its output.
    pub(super) fn run(
        mut self,
        body: &[Statement],
        variables: impl IntoIterator<Item = (Name, Value)>,
    ) -> Outcome<String> {
        let root = Rc::new(Scope::default());
        root.variables.borrow_mut().extend(variables);
        self.remember(&root);
        let result = self.statements(body, &root);
        // Macros and their scopes refer to each other: clearing the scopes breaks the cycles.
        for scope in self.scopes.drain(..).filter_map(|scope| scope.upgrade()) {
            let variables = std::mem::take(&mut *scope.variables.borrow_mut());
            drop(variables);
        }
        match result {
            Ok(_) => Ok(self.out.pop().unwrap_or_default()),
            Err(fault) => Err(fault.at(self.line)),
        }
    }

    pub(super) fn remember(&mut self, scope: &Rc<Scope>) {
        self.scopes.push(Rc::downgrade(scope));
    }

    pub(super) fn statements(&mut self, body: &[Statement], scope: &Rc<Scope>) -> Outcome<Flow> {
        for statement in body {
            self.budget.spend(1)?;
            self.line = statement.line;
            let flow = self.statement(&statement.kind, scope)?;
            if flow != Flow::Next {
                return Ok(flow);
            }
        }
        Ok(Flow::Next)
    }

    fn statement(&mut self, kind: &Kind, scope: &Rc<Scope>) -> Outcome<Flow> {
        match kind {
            Kind::Data(text) => self.write(text)?,
            Kind::Print(value) => {
                let text = self.evaluate(value, scope)?.to_text(&self.budget)?;
                self.write(&text)?;
            }
            Kind::If(branches, otherwise) => {
                for (test, body) in branches {
                    if self.evaluate(test, scope)?.truth() {
                        return self.statements(body, scope);
                    }
                }
                return self.statements(otherwise, scope);
            }
            Kind::For(node) => self.for_loop(node, scope)?,
            Kind::Break => return Ok(Flow::Break),
            Kind::Continue => return Ok(Flow::Continue),
            Kind::Set(target, value) => {
                let value = self.evaluate(value, scope)?;
                self.assign(target, value, scope)?;
            }
            Kind::SetBlock(target, filter, body) => {
                let text = self.block(body, scope)?;
                let value = self.filtered(filter.as_ref(), text, scope)?;
                self.assign(target, value, scope)?;
            }
            Kind::With(bindings, body) => return self.with(bindings, body, scope),
            Kind::FilterBlock(filter, body) => {
                let text = self.block(body, scope)?;
                let text = self.filtered(Some(filter), text, scope)?.to_text(&self.budget)?;
                self.write(&text)?;
            }
            Kind::Macro(body) => {
                let value = self.closure(body, scope);
                scope.set(&body.name, value);
            }
            Kind::CallBlock(call, body) => self.call_block(call, body, scope)?,
            Kind::Generation(body) => {
                let text = self.block(body, scope)?;
                self.write_marked(&text)?;
            }
        }
        Ok(Flow::Next)
    }

    /// The output of a body with its own scope.
    fn block(&mut self, body: &[Statement], scope: &Rc<Scope>) -> Outcome<String> {
        self.capture(|run| run.statements(body, &Scope::inside(scope)).map(|_| ()))
    }

    fn filtered(&mut self, filter: Option<&Expr>, text: String, scope: &Rc<Scope>) -> Outcome<Value> {
        match filter {
            Some(filter) => self.apply_filters(filter, Value::from(text), scope),
            None => Ok(Value::from(text)),
        }
    }

    fn with(&mut self, bindings: &[(Target, Expr)], body: &[Statement], scope: &Rc<Scope>) -> Outcome<Flow> {
        let inner = Scope::inside(scope);
        for (target, value) in bindings {
            let value = self.evaluate(value, scope)?;
            self.assign(target, value, &inner)?;
        }
        self.statements(body, &inner)
    }

    fn closure(&mut self, body: &Arc<MacroBody>, scope: &Rc<Scope>) -> Value {
        self.remember(scope);
        Value::Macro(Rc::new(Macro {
            body: Arc::clone(body),
            scope: Rc::clone(scope),
        }))
    }

    fn call_block(&mut self, call: &Expr, body: &Arc<MacroBody>, scope: &Rc<Scope>) -> Outcome<()> {
        let Expr::Call(function, arguments) = call else {
            return failed("expected a call");
        };
        let caller = self.closure(body, scope);
        let function = self.evaluate(function, scope)?;
        let mut args: Args = self.arguments(arguments, scope)?;
        args.named.push(("caller".into(), caller));
        let text = self.call(&function, args)?.to_text(&self.budget)?;
        self.write(&text)
    }

    pub(super) fn assign(&mut self, target: &Target, value: Value, scope: &Rc<Scope>) -> Outcome<()> {
        match target {
            Target::Name(name) => scope.set(name, value),
            Target::Attribute(name, attribute) => {
                let Some(Value::Namespace(fields)) = scope.get(name) else {
                    return failed("cannot assign attribute on non-namespace object");
                };
                super::functions::check_namespace_name(attribute)?;
                fields.borrow_mut().insert_text(attribute, value);
            }
            Target::Tuple(targets) => {
                let items = value.iterate(&self.budget)?;
                if items.len() != targets.len() {
                    return failed(format!(
                        "ValueError: expected {} values to unpack, got {}",
                        targets.len(),
                        items.len()
                    ));
                }
                for (target, item) in targets.iter().zip(items) {
                    self.assign(target, item, scope)?;
                }
            }
        }
        Ok(())
    }

    pub(super) fn write(&mut self, text: &str) -> Outcome<()> {
        self.budget.bytes(text.len())?;
        let limit = self.settings.max_output;
        let Some(out) = self.out.last_mut() else {
            return Ok(());
        };
        if out.len() + text.len() > limit {
            return Err(Fault::new(
                FaultKind::Budget,
                format!("it wrote more than {limit} bytes"),
            ));
        }
        out.push_str(text);
        Ok(())
    }

    fn write_marked(&mut self, text: &str) -> Outcome<()> {
        let (open, close) = self.settings.marks.unwrap_or_default();
        self.write(open)?;
        self.write(text)?;
        self.write(close)
    }

    /// Captures the output of `work`.
    pub(super) fn capture(&mut self, work: impl FnOnce(&mut Self) -> Outcome<()>) -> Outcome<String> {
        self.out.push(String::new());
        let result = work(self);
        let text = self.out.pop().unwrap_or_default();
        result.map(|()| text)
    }
}
