//! The global functions of chat templates: `range`, `dict`, `namespace`, `raise_exception`, `strftime_now`, ...
//!
//! Functions that return random text (`lipsum`) are not supported. Nothing here knows a filter or a test.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use super::arguments::{Args, int_or, required, text};
use super::fault::{Budget, Fault, FaultKind, Outcome, failed};
use super::interpreter::Interpreter;
use super::value::{Dict, Function, Range, Value};
use crate::text::clock;

/// Maximum length of a `range`, as in Jinja2's sandbox.
const MAX_RANGE: usize = 100_000;

/// A function by its name in templates.
pub(super) fn builtin(name: &str) -> Option<Value> {
    Some(Value::Function(match name {
        "range" => Function::Range,
        "dict" => Function::Dict,
        "namespace" => Function::Namespace,
        "cycler" => Function::Cycler,
        "joiner" => Function::Joiner,
        "raise_exception" => Function::RaiseException,
        "strftime_now" => Function::StrftimeNow,
        _ => return None,
    }))
}

/// Namespaces refuse names that begin with an underscore.
pub(super) fn check_namespace_name(name: &str) -> Outcome<()> {
    if name.starts_with('_') {
        return failed(format!(
            "SecurityError: chat templates cannot store underscore-prefixed attributes on a namespace, but got '{name}'"
        ));
    }
    Ok(())
}

impl Interpreter<'_> {
    pub(super) fn call_function(&mut self, function: Function, args: Args) -> Outcome<Value> {
        match function {
            Function::Range => range(args),
            Function::Dict => Ok(Value::dict(dict(args, &self.budget)?)),
            Function::Namespace => {
                let fields = dict(args, &self.budget)?;
                for (name, _) in fields.entries() {
                    check_namespace_name(name.as_str().unwrap_or_default())?;
                }
                Ok(Value::Namespace(Rc::new(RefCell::new(fields))))
            }
            Function::Cycler => {
                if args.positional.is_empty() {
                    return failed("RuntimeError: at least one item has to be provided");
                }
                Ok(Value::Cycler(Rc::new((args.positional, Cell::new(0)))))
            }
            Function::Joiner => {
                let [separator] = args.bind("joiner", ["sep"])?;
                let separator = separator.unwrap_or_else(|| Value::from(", "));
                Ok(Value::Joiner(Rc::new((separator, Cell::new(false)))))
            }
            Function::RaiseException => {
                let [message] = args.bind("raise_exception", ["message"])?;
                let message = required(message, "raise_exception")?.to_text(&self.budget)?;
                Err(Fault::new(FaultKind::Raised, &*message))
            }
            Function::StrftimeNow => {
                let [format] = args.bind("strftime_now", ["format"])?;
                let format = required(format, "strftime_now")?;
                let format = text(&format, "strftime_now")?;
                self.budget.bytes(format.len() * 16)?;
                match clock::strftime(format, self.settings.now) {
                    Ok(date) => Ok(Value::from(date)),
                    Err(reason) => failed(reason),
                }
            }
        }
    }
}

fn range(args: Args) -> Outcome<Value> {
    let [first, second, step] = args.bind("range", ["/", "/", "/"])?;
    let first = required(first, "range")?;
    let number = |value: &Value| match value.as_int().map(i64::try_from) {
        Some(Ok(number)) => Ok(number),
        Some(Err(_)) => failed("OverflowError: range is too large"),
        None => failed(format!(
            "TypeError: '{}' object cannot be interpreted as an integer",
            value.type_name()
        )),
    };
    let (start, stop) = match &second {
        Some(stop) => (number(&first)?, number(stop)?),
        None => (0, number(&first)?),
    };
    let step = step.as_ref().map_or(Ok(1), number)?;
    if step == 0 {
        return failed("ValueError: range() arg 3 must not be zero");
    }
    let range = Range { start, stop, step };
    if range.len() > MAX_RANGE {
        return failed(format!(
            "OverflowError: Range too big. The sandbox blocks ranges larger than MAX_RANGE ({MAX_RANGE})."
        ));
    }
    Ok(Value::Range(range))
}

/// `dict(mapping or pairs, **fields)`
pub(super) fn dict(args: Args, budget: &Budget) -> Outcome<Dict> {
    if args.positional.len() > 1 {
        return failed(format!(
            "TypeError: dict expected at most 1 argument, got {}",
            args.positional.len()
        ));
    }
    let mut dict = Dict::default();
    match args.positional.first() {
        None => {}
        Some(Value::Dict(from)) => {
            budget.slots(from.len() * 4)?;
            dict = (**from).clone();
        }
        Some(pairs) => {
            for pair in pairs.iterate(budget)? {
                let items = pair.iterate(budget)?;
                let [key, value] = &items[..] else {
                    return failed(format!(
                        "ValueError: dictionary update sequence element has length {}; 2 is required",
                        items.len()
                    ));
                };
                dict.insert(key.clone(), value.clone(), budget)?;
            }
        }
    }
    for (name, value) in args.named {
        budget.slots(4)?;
        dict.insert_text(&name, value);
    }
    Ok(dict)
}

/// `dict.fromkeys(keys, value)`
pub(super) fn from_keys(args: Args, budget: &Budget) -> Outcome<Value> {
    let [keys, value] = args.bind("fromkeys", ["/", "/"])?;
    let value = value.unwrap_or(Value::None);
    let mut dict = Dict::default();
    for key in required(keys, "fromkeys")?.iterate(budget)? {
        dict.insert(key, value.clone(), budget)?;
    }
    Ok(Value::dict(dict))
}

/// A non-negative number, for widths and sizes.
pub(super) fn count(value: Option<&Value>, default: i128, most: usize, function: &str) -> Outcome<usize> {
    let number = int_or(value, default, function)?.max(0);
    match usize::try_from(number) {
        Ok(number) if number <= most => Ok(number),
        _ => failed(format!(
            "{function}(): {number} is more than the {most} that are supported"
        )),
    }
}
