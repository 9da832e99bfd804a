//! The filters of Jinja2: `value | name(arguments)`.
//!
//! A filter that exists in Jinja2 but is not supported gives an error when it runs.

mod aggregate;
mod numbers;
mod select;
mod sequences;
mod text;

pub(super) use text::escape;

use super::arguments::Args;
use super::fault::{Outcome, failed};
use super::interpreter::Interpreter;
use super::value::Value;
use crate::text::json;

const TEXT: [&str; 22] = [
    "capitalize",
    "center",
    "e",
    "escape",
    "filesizeformat",
    "forceescape",
    "format",
    "indent",
    "join",
    "lower",
    "replace",
    "safe",
    "string",
    "striptags",
    "title",
    "trim",
    "truncate",
    "upper",
    "urlencode",
    "wordcount",
    "pprint",
    "tojson",
];
const NUMBERS: [&str; 4] = ["abs", "float", "int", "round"];
const SELECT: [&str; 5] = ["map", "reject", "rejectattr", "select", "selectattr"];
const AGGREGATE: [&str; 7] = ["dictsort", "groupby", "max", "min", "sort", "sum", "unique"];
const SEQUENCES: [&str; 12] = [
    "attr", "batch", "count", "d", "default", "first", "items", "last", "length", "list", "reverse", "slice",
];
const UNSUPPORTED: [&str; 4] = ["random", "urlize", "wordwrap", "xmlattr"];

/// Whether Jinja2 has this filter.
pub(super) fn exists(name: &str) -> bool {
    let tables: [&[&str]; 6] = [&TEXT, &NUMBERS, &SELECT, &AGGREGATE, &SEQUENCES, &UNSUPPORTED];
    tables.iter().any(|table| table.contains(&name))
}

pub(super) fn call(run: &mut Interpreter, name: &str, value: Value, args: Args) -> Outcome<Value> {
    if name == "tojson" {
        return json::tojson(&run.budget, &value, args);
    }
    if matches!(name, "striptags" | "pprint") || UNSUPPORTED.contains(&name) {
        return failed(format!("the filter '{name}' is not supported"));
    }
    if SELECT.contains(&name) {
        select::call(run, name, &value, args)
    } else if SEQUENCES.contains(&name) {
        sequences::call(run, name, value, args)
    } else if AGGREGATE.contains(&name) {
        aggregate::call(run, name, &value, args)
    } else if NUMBERS.contains(&name) {
        numbers::call(run, name, &value, args)
    } else if TEXT.contains(&name) {
        text::call(run, name, &value, args)
    } else {
        failed(format!("No filter named '{name}'."))
    }
}
