//! Filters of sequences: `first`, `batch`, `default`, `length`, ...
//!
//! Filters that are generators in Jinja2 return an iterator here too, which can be consumed once.

use crate::text::jinja::arguments::{Args, int_or, required, text, truth_or};
use crate::text::jinja::fault::{Outcome, failed};
use crate::text::jinja::functions::count;
use crate::text::jinja::interpreter::Interpreter;
use crate::text::jinja::value::{Value, View};

/// Maximum size of a `batch` with fill values, and maximum number of parts of `slice`.
const MAX_PARTS: usize = 1 << 20;

pub(super) fn call(run: &mut Interpreter, name: &str, value: Value, args: Args) -> Outcome<Value> {
    match name {
        "attr" => {
            let wanted = args.one(name)?;
            return run.attribute_only(&value, text(&wanted, name)?);
        }
        "batch" => return batch(run, &value, args),
        "slice" => return slice(run, &value, args),
        "d" | "default" => {
            let [default, boolean] = args.bind("default", ["default_value", "boolean"])?;
            let absent = value.is_undefined() || truth_or(boolean.as_ref(), false) && !value.truth();
            return Ok(if absent {
                default.unwrap_or_else(|| Value::from(""))
            } else {
                value
            });
        }
        _ => args.none(name)?,
    }
    let budget = &run.budget;
    match name {
        "count" | "length" => match value.length() {
            Some(length) => Ok(Value::int(length)),
            None => failed(format!(
                "TypeError: object of type '{}' has no len()",
                value.type_name()
            )),
        },
        "first" => {
            let first = match &value {
                Value::Iterator(items) => items.borrow_mut().pop_front(),
                _ => value.iterate(budget)?.into_iter().next(),
            };
            Ok(first.unwrap_or_else(|| Value::undefined("No first item, sequence was empty.")))
        }
        "last" => {
            if matches!(value, Value::Iterator(_)) {
                return failed("TypeError: 'generator' object is not reversible");
            }
            let last = value.iterate(budget)?.pop();
            Ok(last.unwrap_or_else(|| Value::undefined("No last item, sequence was empty.")))
        }
        "items" => match &value {
            Value::Undefined(_) => Ok(Value::iterator(Vec::new())),
            Value::Dict(dict) => Ok(Value::iterator(Value::View(View::Items, dict.clone()).iterate(budget)?)),
            _ => failed("TypeError: Can only get item pairs from a mapping."),
        },
        "reverse" => reverse(run, &value),
        _ => Ok(Value::list(value.iterate(budget)?)),
    }
}

fn reverse(run: &Interpreter, value: &Value) -> Outcome<Value> {
    if let Some(text) = value.as_str() {
        run.budget.bytes(text.len())?;
        let reversed: String = text.chars().rev().collect();
        return Ok(if matches!(value, Value::Safe(_)) {
            Value::Safe(reversed.into())
        } else {
            Value::from(reversed)
        });
    }
    let mut items = value.iterate(&run.budget)?;
    items.reverse();
    // Values that cannot be iterated in reverse become a list first, and stay one.
    Ok(if matches!(value, Value::Iterator(_) | Value::Undefined(_)) {
        Value::list(items)
    } else {
        Value::iterator(items)
    })
}

fn batch(run: &Interpreter, value: &Value, args: Args) -> Outcome<Value> {
    let [size, fill] = args.bind("batch", ["linecount", "fill_with"])?;
    let size = count(Some(&required(size, "batch")?), 0, MAX_PARTS, "batch")?;
    let items = value.iterate(&run.budget)?;
    if size == 0 {
        return failed("batch(): the size must be at least 1");
    }
    let mut parts: Vec<Vec<Value>> = items.chunks(size).map(<[Value]>::to_vec).collect();
    if let (Some(fill), Some(last)) = (fill.filter(|fill| !fill.is_none()), parts.last_mut()) {
        run.budget.slots(size)?;
        last.resize(size, fill);
    }
    Ok(Value::iterator(parts.into_iter().map(Value::list).collect()))
}

fn slice(run: &Interpreter, value: &Value, args: Args) -> Outcome<Value> {
    let [parts, fill] = args.bind("slice", ["slices", "fill_with"])?;
    let parts = required(parts, "slice")?;
    if int_or(Some(&parts), 0, "slice")? == 0 {
        return failed("ZeroDivisionError: integer division or modulo by zero");
    }
    let parts = count(Some(&parts), 0, MAX_PARTS, "slice")?;
    run.budget.slots(parts)?;
    let items = value.iterate(&run.budget)?;
    let (each, longer) = (items.len() / parts.max(1), items.len() % parts.max(1));
    let fill = fill.filter(|fill| !fill.is_none());
    let mut rest = items.into_iter();
    let mut out = Vec::new();
    for index in 0..parts {
        let mut part: Vec<Value> = rest.by_ref().take(each + usize::from(index < longer)).collect();
        if let (true, Some(fill)) = (index >= longer, &fill) {
            part.push(fill.clone());
        }
        out.push(Value::list(part));
    }
    Ok(Value::iterator(out))
}
