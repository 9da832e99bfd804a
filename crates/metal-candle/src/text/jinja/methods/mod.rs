//! The methods of Python's types.
//!
//! A method that exists in Python but is not supported gives an error when it is called, never an undefined value.

pub(super) mod cases;
mod containers;
mod search;
mod split;
mod text;

pub(super) use split::whole_lines as lines;
pub(super) use text::replace;

use super::arguments::Args;
use super::fault::{Budget, Outcome, failed};
use super::functions::from_keys;
use super::interpreter::Interpreter;
use super::value::{Function, Value};

const TEXT: [&str; 47] = [
    "capitalize",
    "casefold",
    "center",
    "count",
    "encode",
    "endswith",
    "expandtabs",
    "find",
    "format",
    "format_map",
    "index",
    "isalnum",
    "isalpha",
    "isascii",
    "isdecimal",
    "isdigit",
    "isidentifier",
    "islower",
    "isnumeric",
    "isprintable",
    "isspace",
    "istitle",
    "isupper",
    "join",
    "ljust",
    "lower",
    "lstrip",
    "maketrans",
    "partition",
    "removeprefix",
    "removesuffix",
    "replace",
    "rfind",
    "rindex",
    "rjust",
    "rpartition",
    "rsplit",
    "rstrip",
    "split",
    "splitlines",
    "startswith",
    "strip",
    "swapcase",
    "title",
    "translate",
    "upper",
    "zfill",
];
const DICT: [&str; 6] = ["copy", "fromkeys", "get", "items", "keys", "values"];
const INT: [&str; 8] = [
    "as_integer_ratio",
    "bit_count",
    "bit_length",
    "conjugate",
    "from_bytes",
    "to_bytes",
    "is_integer",
    "numerator",
];
const FLOAT: [&str; 5] = ["as_integer_ratio", "conjugate", "fromhex", "hex", "is_integer"];

/// Whether the Python type has this method.
pub(super) fn exists(value: &Value, name: &str) -> bool {
    match value {
        Value::Str(_) => TEXT.contains(&name),
        Value::Safe(_) => TEXT.contains(&name) || matches!(name, "striptags" | "unescape" | "escape"),
        Value::List(_) => matches!(name, "copy" | "count" | "index"),
        Value::Tuple(_) | Value::Group(_) | Value::Range(_) => matches!(name, "count" | "index"),
        Value::Dict(_) => DICT.contains(&name),
        Value::View(..) => matches!(name, "isdisjoint" | "mapping"),
        Value::Int(_) | Value::Bool(_) => INT[..6].contains(&name),
        Value::Float(_) => FLOAT.contains(&name),
        Value::Loop(_) => matches!(name, "cycle" | "changed"),
        Value::Cycler(_) => matches!(name, "next" | "reset"),
        Value::Function(Function::Dict) => name == "fromkeys",
        Value::Iterator(_) => matches!(name, "send" | "throw" | "close"),
        _ => false,
    }
}

/// Whether the method mutates a list or a map, which the sandbox forbids.
pub(super) fn changes(value: &Value, name: &str) -> bool {
    match value {
        Value::List(_) => matches!(
            name,
            "append" | "clear" | "extend" | "insert" | "pop" | "remove" | "reverse" | "sort"
        ),
        Value::Dict(_) => matches!(name, "clear" | "pop" | "popitem" | "setdefault" | "update"),
        _ => false,
    }
}

pub(super) fn call(run: &mut Interpreter, value: &Value, name: &str, args: Args) -> Outcome<Value> {
    match value {
        Value::Str(of) => {
            run.budget.bytes(of.len())?;
            text_method(run, of, name, args)
        }
        Value::Safe(_) => failed(format!(
            "the method '{name}' of text that is marked safe is not supported"
        )),
        Value::List(_) | Value::Tuple(_) | Value::Group(_) | Value::Range(_) => {
            containers::list(value, name, args, &run.budget)
        }
        Value::Dict(dict) => containers::dict(dict, name, args, &run.budget),
        Value::Loop(state) => run.loop_method(state, name, args),
        Value::Function(_) => from_keys(args, &run.budget),
        Value::Int(_) | Value::Bool(_) => integer(value, name, args),
        Value::Float(number) if name == "is_integer" => {
            args.none(name)?;
            Ok(Value::Bool(number.is_finite() && number.fract() == 0.0))
        }
        Value::Cycler(cycler) => {
            args.none(name)?;
            let at = cycler.1.get();
            cycler.1.set(if name == "next" { (at + 1) % cycler.0.len() } else { 0 });
            Ok(if name == "next" {
                cycler.0[at].clone()
            } else {
                Value::None
            })
        }
        _ => unsupported(value, name),
    }
}

/// `str.strip`
pub(super) fn strip<'t>(of: &'t str, letters: Option<&Value>, budget: &Budget) -> Outcome<&'t str> {
    text::strip(of, "strip", letters, budget)
}

pub(super) fn unsupported<T>(value: &Value, name: &str) -> Outcome<T> {
    failed(format!("the method '{name}' of {} is not supported", value.type_name()))
}

fn integer(value: &Value, name: &str, args: Args) -> Outcome<Value> {
    let Some(number) = value.as_int() else {
        return unsupported(value, name);
    };
    args.none(name)?;
    match name {
        "bit_length" => Ok(Value::Int((128 - number.unsigned_abs().leading_zeros()).into())),
        "bit_count" => Ok(Value::Int(number.unsigned_abs().count_ones().into())),
        "conjugate" => Ok(Value::Int(number)),
        _ => unsupported(value, name),
    }
}

fn text_method(run: &mut Interpreter, of: &str, name: &str, args: Args) -> Outcome<Value> {
    match name {
        "format" => return super::format::braces::format(run, of, &args),
        "format_map" => {
            let map = args.one(name)?;
            return super::format::braces::format_map(run, of, &map);
        }
        _ => {}
    }
    let budget = &run.budget;
    match name {
        "count" | "endswith" | "find" | "index" | "rfind" | "rindex" | "startswith" => {
            search::call(of, name, args, budget)
        }
        "partition" | "rpartition" | "rsplit" | "split" | "splitlines" => split::call(of, name, args, budget),
        "capitalize" | "casefold" | "lower" | "swapcase" | "title" | "upper" => {
            args.none(name)?;
            budget.bytes(of.len() * 3)?;
            Ok(Value::from(cases::changed(of, name)))
        }
        _ if name.starts_with("is") => {
            args.none(name)?;
            Ok(Value::Bool(cases::is(of, name)))
        }
        _ => text::call(of, name, args, budget),
    }
}
