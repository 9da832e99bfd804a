//! `map`, `select`, `reject`, `selectattr`, `rejectattr`, and attributes of items by path.
//!
//! In Jinja2 these are generators; here they are evaluated eagerly, and can be iterated once.

use crate::text::jinja::arguments::Args;
use crate::text::jinja::fault::{Outcome, failed};
use crate::text::jinja::interpreter::Interpreter;
use crate::text::jinja::value::Value;
use crate::text::jinja::{filters, predicates};

/// A path to an attribute of an attribute: `message.content.0`.
pub(super) struct Path(Vec<Value>);

impl Path {
    pub fn new(attribute: Option<&Value>) -> Self {
        let part = |part: &str| match part.parse::<i128>() {
            Ok(index) if part.bytes().all(|digit| digit.is_ascii_digit()) => Value::Int(index),
            _ => Value::from(part),
        };
        Self(match attribute {
            None | Some(Value::None) => Vec::new(),
            Some(other) => match other.as_str() {
                Some(text) => text.split('.').map(part).collect(),
                None => vec![other.clone()],
            },
        })
    }

    /// The value at the path; `default` replaces an undefined one.
    pub fn of(&self, run: &mut Interpreter, item: &Value, default: Option<&Value>) -> Outcome<Value> {
        let mut item = item.clone();
        for part in &self.0 {
            run.budget.spend(1)?;
            item = run.item(&item, part)?;
            if let (true, Some(default)) = (item.is_undefined(), default.filter(|default| !default.is_none())) {
                item = default.clone();
            }
        }
        Ok(item)
    }
}

pub(super) fn call(run: &mut Interpreter, name: &str, value: &Value, args: Args) -> Outcome<Value> {
    if !value.truth() {
        return Ok(Value::iterator(Vec::new()));
    }
    let items = value.iterate(&run.budget)?;
    let kept = if name == "map" {
        map(run, &items, args)?
    } else {
        select(run, name, items, args)?
    };
    Ok(Value::iterator(kept))
}

fn map(run: &mut Interpreter, items: &[Value], mut args: Args) -> Outcome<Vec<Value>> {
    let by_attribute = args.positional.is_empty() && args.named.iter().any(|(name, _)| &**name == "attribute");
    if by_attribute {
        let [attribute, default] = args.bind("map", ["attribute", "default"])?;
        let path = Path::new(attribute.as_ref());
        return items.iter().map(|item| path.of(run, item, default.as_ref())).collect();
    }
    let Some(name) = args.positional.first().cloned() else {
        return failed("FilterArgumentError: map requires a filter argument");
    };
    args = args.after(1);
    let name = name.to_text(&run.budget)?;
    let apply = |item: &Value| {
        run.budget.slots(1 + args.positional.len())?;
        filters::call(run, &name, item.clone(), args.clone())
    };
    items.iter().map(apply).collect()
}

fn select(run: &mut Interpreter, name: &str, items: Vec<Value>, args: Args) -> Outcome<Vec<Value>> {
    let wanted = name.starts_with("select");
    let by_attribute = name.ends_with("attr");
    if by_attribute && args.positional.is_empty() {
        return failed("FilterArgumentError: Missing parameter for attribute name");
    }
    let path = Path::new(args.positional.first().filter(|_| by_attribute));
    let args = args.after(usize::from(by_attribute));
    let test = match args.positional.first() {
        Some(test) => Some(test.to_text(&run.budget)?),
        None => None,
    };
    let args = args.after(1);
    let mut kept = Vec::new();
    for item in items {
        run.budget.slots(1 + args.positional.len())?;
        let value = path.of(run, &item, None)?;
        let passes = match &test {
            Some(test) => predicates::call(run, test, &value, args.clone())?,
            None => value.truth(),
        };
        if passes == wanted {
            kept.push(item);
        }
    }
    Ok(kept)
}
