//! The arguments of a call, bound like those of a Python function.
//!
//! A wrong number of arguments, or an unknown name, is the `TypeError` that Python raises.

use super::ast::Name;
use super::fault::{Outcome, failed};
use super::value::Value;

#[derive(Clone, Default)]
pub(in crate::text) struct Args {
    pub positional: Vec<Value>,
    pub named: Vec<(Name, Value)>,
}

impl Args {
    /// Binds the values of these parameters, positional ones first. A name that ends in `/` is positional only.
    pub fn bind<const N: usize>(self, function: &str, names: [&str; N]) -> Outcome<[Option<Value>; N]> {
        if self.positional.len() > N {
            return failed(format!(
                "TypeError: {function}() takes at most {N} arguments ({} given)",
                self.positional.len()
            ));
        }
        let mut bound = [const { None }; N];
        let given = self.positional.len();
        for (slot, value) in bound.iter_mut().zip(self.positional) {
            *slot = Some(value);
        }
        for (name, value) in self.named {
            let Some(at) = names.iter().position(|known| *known == &*name) else {
                return failed(format!(
                    "TypeError: {function}() got an unexpected keyword argument '{name}'"
                ));
            };
            if at < given {
                return failed(format!(
                    "TypeError: {function}() got multiple values for argument '{name}'"
                ));
            }
            bound[at] = Some(value);
        }
        Ok(bound)
    }

    /// No arguments at all.
    pub fn none(self, function: &str) -> Outcome<()> {
        self.bind(function, []).map(|[]| ())
    }

    /// Exactly one argument, by position.
    pub fn one(self, function: &str) -> Outcome<Value> {
        let [value] = self.bind(function, ["/"])?;
        required(value, function)
    }

    /// The same arguments without the first `count` positional ones.
    pub fn after(mut self, count: usize) -> Self {
        self.positional.drain(..count.min(self.positional.len()));
        self
    }
}

pub(super) fn required(value: Option<Value>, function: &str) -> Outcome<Value> {
    match value {
        Some(value) => Ok(value),
        None => failed(format!("TypeError: {function}() is missing an argument")),
    }
}

/// A text argument.
pub(super) fn text<'v>(value: &'v Value, function: &str) -> Outcome<&'v str> {
    if let Value::Undefined(message) = value {
        return failed(&**message);
    }
    match value.as_str() {
        Some(text) => Ok(text),
        None => failed(format!(
            "TypeError: {function}() argument must be str, not {}",
            value.type_name()
        )),
    }
}

/// An integer argument; a missing one and None give the default.
pub(super) fn int_or(value: Option<&Value>, default: i128, function: &str) -> Outcome<i128> {
    match value {
        None | Some(Value::None) => Ok(default),
        Some(Value::Undefined(message)) => failed(&**message),
        Some(value) => match value.as_int() {
            Some(number) => Ok(number),
            None => failed(format!(
                "TypeError: {function}(): '{}' object cannot be interpreted as an integer",
                value.type_name()
            )),
        },
    }
}

pub(super) fn truth_or(value: Option<&Value>, default: bool) -> bool {
    value.map_or(default, Value::truth)
}
