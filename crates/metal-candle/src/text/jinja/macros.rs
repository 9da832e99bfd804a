//! Macros and the bodies of call blocks: functions written in a template.
//!
//! A macro reads the scope in which it was defined, at the time of the call. Its own variables are local.

use std::rc::Rc;
use std::sync::Arc;

use super::arguments::Args;
use super::ast::{MacroBody, Name};
use super::fault::{Outcome, failed};
use super::interpreter::{Interpreter, Scope};
use super::value::{Dict, Value};

pub(in crate::text) struct Macro {
    pub(super) body: Arc<MacroBody>,
    /// The enclosing scope.
    pub scope: Rc<Scope>,
}

impl Interpreter<'_> {
    pub(super) fn call_macro(&mut self, called: &Macro, args: Args) -> Outcome<Value> {
        let scope = Scope::inside(&called.scope);
        self.bind_parameters(called, args, &scope)?;
        self.budget.enter()?;
        let text = self.capture(|run| run.statements(&called.body.body, &scope).map(|_| ()));
        self.budget.leave();
        Ok(Value::from(text?))
    }

    fn bind_parameters(&mut self, called: &Macro, args: Args, scope: &Rc<Scope>) -> Outcome<()> {
        let (body, signature) = (&called.body, &called.body.signature);
        let Args {
            mut positional,
            mut named,
        } = args;
        let extra = positional.split_off(signature.names.len().min(positional.len()));
        let mut take = |name: &str| {
            let at = named.iter().position(|(known, _)| &**known == name)?;
            Some(named.remove(at).1)
        };
        let mut values: Vec<Option<Value>> = positional.into_iter().map(Some).collect();
        for name in &signature.names[values.len()..] {
            values.push(take(name));
        }
        let explicit_caller = signature.names.iter().any(|name| &**name == "caller");
        if body.uses_caller && !explicit_caller {
            let caller = take("caller").unwrap_or_else(|| Value::undefined("No caller defined"));
            scope.set("caller", caller);
        }
        if body.uses_kwargs {
            let mut rest = Dict::default();
            named.drain(..).for_each(|(name, value)| rest.insert_text(&name, value));
            scope.set("kwargs", Value::dict(rest));
        }
        if let Some((name, _)) = named.first() {
            return failed(format!(
                "TypeError: macro '{}' takes no keyword argument '{name}'",
                body.name
            ));
        }
        if body.uses_varargs {
            scope.set("varargs", Value::tuple(extra));
        } else if !extra.is_empty() {
            let most = signature.names.len();
            return failed(format!(
                "TypeError: macro '{}' takes not more than {most} argument(s)",
                body.name
            ));
        }
        self.set_parameters(called, &signature.names, values, scope)
    }

    /// Binds the parameters in order; a default may read preceding ones.
    fn set_parameters(
        &mut self,
        called: &Macro,
        names: &[Name],
        values: Vec<Option<Value>>,
        scope: &Rc<Scope>,
    ) -> Outcome<()> {
        let defaults = &called.body.signature.defaults;
        let without = names.len() - defaults.len();
        for (index, (name, value)) in names.iter().zip(values).enumerate() {
            let value = match value {
                Some(value) => value,
                None if index >= without => self.evaluate(&defaults[index - without], scope)?,
                None => Value::undefined(format!("parameter '{name}' was not provided")),
            };
            scope.set(name, value);
        }
        Ok(())
    }
}
