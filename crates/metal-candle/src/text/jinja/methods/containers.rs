//! The non-mutating methods of lists, tuples, ranges and maps.
//!
//! Mutating methods are not here: the sandbox forbids them (see `changes` in `mod.rs`).

use std::rc::Rc;

use super::search::bounds;
use super::unsupported;
use crate::text::jinja::arguments::{Args, required};
use crate::text::jinja::fault::{Budget, Outcome, failed};
use crate::text::jinja::functions::from_keys;
use crate::text::jinja::value::{Dict, Value, View};

pub(super) fn list(value: &Value, name: &str, args: Args, budget: &Budget) -> Outcome<Value> {
    let items = value.iterate(budget)?;
    match name {
        "copy" => {
            args.none(name)?;
            Ok(Value::list(items))
        }
        "count" => {
            let wanted = args.one(name)?;
            let mut count = 0;
            for item in &items {
                count += usize::from(item.is_same(&wanted) || item.equals(&wanted, budget)?);
            }
            Ok(Value::int(count))
        }
        "index" => {
            let [wanted, start, end] = args.bind(name, ["/", "/", "/"])?;
            let wanted = required(wanted, name)?;
            let range = bounds(start.as_ref(), end.as_ref(), items.len(), name)?;
            let (from, to) = range.unwrap_or_default();
            for (at, item) in items.iter().enumerate().take(to).skip(from) {
                if item.is_same(&wanted) || item.equals(&wanted, budget)? {
                    return Ok(Value::int(at));
                }
            }
            failed(format!(
                "ValueError: {} is not in {}",
                wanted.repr(budget)?,
                value.type_name()
            ))
        }
        _ => unsupported(value, name),
    }
}

pub(super) fn dict(dict: &Rc<Dict>, name: &str, args: Args, budget: &Budget) -> Outcome<Value> {
    let view = |args: Args, view| args.none(name).map(|()| Value::View(view, Rc::clone(dict)));
    match name {
        "keys" => view(args, View::Keys),
        "values" => view(args, View::Values),
        "items" => view(args, View::Items),
        "copy" => {
            args.none(name)?;
            Ok(Value::Dict(Rc::new((**dict).clone())))
        }
        "get" => {
            let [key, default] = args.bind(name, ["/", "/"])?;
            let found = dict.get(&required(key, name)?, budget)?.cloned();
            Ok(found.or(default).unwrap_or(Value::None))
        }
        "fromkeys" => from_keys(args, budget),
        _ => unsupported(&Value::Dict(Rc::clone(dict)), name),
    }
}
