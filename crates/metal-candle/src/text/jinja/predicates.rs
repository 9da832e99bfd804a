//! The tests of Jinja2: `value is name(arguments)`.
//!
//! An unknown test, or one that depends on object identity in Python, is an error.

use super::arguments::{Args, required};
use super::arithmetic;
use super::ast::{Binary, Comparison};
use super::fault::{Outcome, failed};
use super::filters;
use super::interpreter::Interpreter;
use super::methods::cases::is_cased;
use super::value::Value;

const NAMES: [&str; 39] = [
    "odd",
    "even",
    "divisibleby",
    "defined",
    "undefined",
    "filter",
    "test",
    "none",
    "boolean",
    "false",
    "true",
    "integer",
    "float",
    "lower",
    "upper",
    "string",
    "mapping",
    "number",
    "sequence",
    "iterable",
    "callable",
    "sameas",
    "escaped",
    "in",
    "==",
    "eq",
    "equalto",
    "!=",
    "ne",
    ">",
    "gt",
    "greaterthan",
    "ge",
    ">=",
    "<",
    "lt",
    "lessthan",
    "<=",
    "le",
];

pub(super) fn call(run: &mut Interpreter, name: &str, value: &Value, args: Args) -> Outcome<bool> {
    if let Some(comparison) = comparison(name) {
        let other = args.one(name)?;
        return run.compare_values(comparison, value, &other);
    }
    match name {
        "sameas" => return same(value, &args.one(name)?),
        "divisibleby" => {
            let [divisor] = args.bind(name, ["num"])?;
            let rest = arithmetic::binary(Binary::Mod, value, &required(divisor, name)?, &run.budget)?;
            return rest.equals(&Value::Int(0), &run.budget);
        }
        "odd" | "even" => {
            args.none(name)?;
            let rest = arithmetic::binary(Binary::Mod, value, &Value::Int(2), &run.budget)?;
            return rest.equals(&Value::Int(i128::from(name == "odd")), &run.budget);
        }
        "lower" | "upper" => {
            args.none(name)?;
            let text = value.to_text(&run.budget)?;
            return Ok(is_cased(&text, name == "upper"));
        }
        _ => {}
    }
    args.none(name)?;
    match kind(name, value) {
        Some(answer) => Ok(answer),
        None => failed(format!("No test named '{name}'.")),
    }
}

fn comparison(name: &str) -> Option<Comparison> {
    Some(match name {
        "==" | "eq" | "equalto" => Comparison::Eq,
        "!=" | "ne" => Comparison::Ne,
        "<" | "lt" | "lessthan" => Comparison::Lt,
        "<=" | "le" => Comparison::Le,
        ">" | "gt" | "greaterthan" => Comparison::Gt,
        ">=" | "ge" => Comparison::Ge,
        "in" => Comparison::In,
        _ => return None,
    })
}

/// Tests of a value's type.
fn kind(name: &str, value: &Value) -> Option<bool> {
    let is_text = value.as_str().is_some();
    Some(match name {
        "defined" => !value.is_undefined(),
        "undefined" => value.is_undefined(),
        "none" => value.is_none(),
        "boolean" => matches!(value, Value::Bool(_)),
        "true" => matches!(value, Value::Bool(true)),
        "false" => matches!(value, Value::Bool(false)),
        "integer" => matches!(value, Value::Int(_)),
        "float" => matches!(value, Value::Float(_)),
        "number" => value.as_float().is_some(),
        "string" => is_text,
        "mapping" => matches!(value, Value::Dict(_)),
        "sequence" => value.length().is_some() && !matches!(value, Value::View(..)),
        "iterable" => value.length().is_some() || matches!(value, Value::Iterator(_) | Value::Loop(_)),
        "callable" => is_callable(value),
        "escaped" => matches!(value, Value::Safe(_)),
        "filter" => value.as_str().is_some_and(filters::exists),
        "test" => value.as_str().is_some_and(|name| NAMES.contains(&name)),
        _ => return None,
    })
}

fn is_callable(value: &Value) -> bool {
    matches!(
        value,
        Value::Macro(_)
            | Value::Method(_)
            | Value::Function(_)
            | Value::Joiner(_)
            | Value::Loop(_)
            | Value::Undefined(_)
    )
}

/// `value is other`, if that does not depend on Python's interning.
fn same(value: &Value, other: &Value) -> Outcome<bool> {
    let copied = |value: &Value| matches!(value, Value::Int(_) | Value::Float(_) | Value::Str(_) | Value::Safe(_));
    let alike = copied(value) && value.type_name() == other.type_name();
    if alike && !value.is_same(other) {
        return failed("the test 'sameas' of two numbers or strings depends on Python's memory; compare with ==");
    }
    Ok(value.is_same(other))
}
