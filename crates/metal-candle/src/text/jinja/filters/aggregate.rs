//! Filters that compare items with each other: `sort`, `unique`, `groupby`, `min`, `sum`, ...
//!
//! Text is compared case-insensitively unless requested otherwise. Sorting is stable.

use std::rc::Rc;

use super::select::Path;
use crate::text::jinja::arguments::{Args, required, truth_or};
use crate::text::jinja::arithmetic;
use crate::text::jinja::ast::Binary;
use crate::text::jinja::fault::{Budget, Outcome, failed};
use crate::text::jinja::interpreter::Interpreter;
use crate::text::jinja::value::{Dict, Value, View};

pub(super) fn call(run: &mut Interpreter, name: &str, value: &Value, args: Args) -> Outcome<Value> {
    match name {
        "dictsort" => dictsort(run, value, args),
        "groupby" => groupby(run, value, args),
        "sort" => sort(run, value, args),
        "sum" => sum(run, value, args),
        "unique" => unique(run, value, args),
        _ => extreme(run, name, value, args),
    }
}

/// The sort key of a value: text in lower case unless the comparison is case-sensitive.
fn key(value: Value, case_sensitive: bool, budget: &Budget) -> Outcome<Value> {
    match value.as_str() {
        Some(text) if !case_sensitive => {
            budget.bytes(text.len())?;
            Ok(Value::from(text.to_lowercase()))
        }
        _ => Ok(value),
    }
}

/// Sorts stably by keys, also in reverse.
fn sorted(mut items: Vec<(Value, Value)>, reverse: bool, budget: &Budget) -> Outcome<Vec<Value>> {
    if reverse {
        items.reverse();
    }
    let mut items = merge_sort(items, budget)?;
    if reverse {
        items.reverse();
    }
    Ok(items.into_iter().map(|(_, item)| item).collect())
}

fn merge_sort(mut items: Vec<(Value, Value)>, budget: &Budget) -> Outcome<Vec<(Value, Value)>> {
    if items.len() < 2 {
        return Ok(items);
    }
    budget.slots(items.len())?;
    let right = items.split_off(items.len() / 2);
    let left = merge_sort(items, budget)?;
    let right = merge_sort(right, budget)?;
    let mut merged = Vec::with_capacity(left.len() + right.len());
    let (mut left, mut right) = (left.into_iter().peekable(), right.into_iter().peekable());
    while let (Some(first), Some(second)) = (left.peek(), right.peek()) {
        let smaller = second
            .0
            .order(&first.0, "<", budget)?
            .is_some_and(std::cmp::Ordering::is_lt);
        merged.extend(if smaller { right.next() } else { left.next() });
    }
    merged.extend(left);
    merged.extend(right);
    Ok(merged)
}

fn sort(run: &mut Interpreter, value: &Value, args: Args) -> Outcome<Value> {
    let [reverse, case_sensitive, attribute] = args.bind("sort", ["reverse", "case_sensitive", "attribute"])?;
    let case_sensitive = truth_or(case_sensitive.as_ref(), false);
    let paths: Vec<Path> = match attribute.as_ref().and_then(Value::as_str) {
        Some(several) => several
            .split(',')
            .map(|one| Path::new(Some(&Value::from(one))))
            .collect(),
        None => vec![Path::new(attribute.as_ref())],
    };
    let mut items = Vec::new();
    for item in value.iterate(&run.budget)? {
        let mut keys = Vec::new();
        for path in &paths {
            let found = path.of(run, &item, None)?;
            keys.push(key(found, case_sensitive, &run.budget)?);
        }
        items.push((Value::list(keys), item));
    }
    Ok(Value::list(sorted(
        items,
        truth_or(reverse.as_ref(), false),
        &run.budget,
    )?))
}

fn dictsort(run: &Interpreter, value: &Value, args: Args) -> Outcome<Value> {
    let [case_sensitive, by, reverse] = args.bind("dictsort", ["case_sensitive", "by", "reverse"])?;
    let Value::Dict(dict) = value else {
        return failed(format!(
            "AttributeError: '{}' object has no attribute 'items'",
            value.type_name()
        ));
    };
    let at = match by.as_ref().map(|by| by.as_str()) {
        None | Some(Some("key")) => 0,
        Some(Some("value")) => 1,
        _ => return failed("FilterArgumentError: You can only sort by either \"key\" or \"value\""),
    };
    let case_sensitive = truth_or(case_sensitive.as_ref(), false);
    let mut items = Vec::new();
    for pair in Value::View(View::Items, Rc::clone(dict)).iterate(&run.budget)? {
        let by = pair.as_items().map_or(Value::None, |pair| pair[at].clone());
        items.push((key(by, case_sensitive, &run.budget)?, pair));
    }
    Ok(Value::list(sorted(
        items,
        truth_or(reverse.as_ref(), false),
        &run.budget,
    )?))
}

fn unique(run: &mut Interpreter, value: &Value, args: Args) -> Outcome<Value> {
    let [case_sensitive, attribute] = args.bind("unique", ["case_sensitive", "attribute"])?;
    let case_sensitive = truth_or(case_sensitive.as_ref(), false);
    let path = Path::new(attribute.as_ref());
    let mut seen = Dict::default();
    let mut kept = Vec::new();
    for item in value.iterate(&run.budget)? {
        let found = path.of(run, &item, None)?;
        let found = key(found, case_sensitive, &run.budget)?;
        if seen.get(&found, &run.budget)?.is_none() {
            seen.insert(found, Value::None, &run.budget)?;
            kept.push(item);
        }
    }
    Ok(Value::iterator(kept))
}

fn groupby(run: &mut Interpreter, value: &Value, args: Args) -> Outcome<Value> {
    let [attribute, default, case_sensitive] = args.bind("groupby", ["attribute", "default", "case_sensitive"])?;
    let path = Path::new(Some(&required(attribute, "groupby")?));
    let case_sensitive = truth_or(case_sensitive.as_ref(), false);
    let mut items = Vec::new();
    for item in value.iterate(&run.budget)? {
        let found = path.of(run, &item, default.as_ref())?;
        items.push((key(found, case_sensitive, &run.budget)?, item));
    }
    let mut groups: Vec<(Value, Vec<Value>)> = Vec::new();
    for (key, item) in merge_sort(items, &run.budget)? {
        match groups.last_mut() {
            Some((last, group)) if last.equals(&key, &run.budget)? => group.push(item),
            _ => groups.push((key, vec![item])),
        }
    }
    let mut out = Vec::new();
    for (mut key, group) in groups {
        if let (false, Some(first)) = (case_sensitive, group.first()) {
            key = path.of(run, first, default.as_ref())?;
        }
        out.push(Value::Group(Rc::new(vec![key, Value::list(group)])));
    }
    Ok(Value::list(out))
}

fn sum(run: &mut Interpreter, value: &Value, args: Args) -> Outcome<Value> {
    let [attribute, start] = args.bind("sum", ["attribute", "start"])?;
    let path = Path::new(attribute.as_ref());
    let mut total = start.unwrap_or(Value::Int(0));
    if total.as_str().is_some() {
        return failed("TypeError: sum() can't sum strings [use ''.join(seq) instead]");
    }
    for item in value.iterate(&run.budget)? {
        let item = path.of(run, &item, None)?;
        total = arithmetic::binary(Binary::Add, &total, &item, &run.budget)?;
    }
    Ok(total)
}

fn extreme(run: &mut Interpreter, name: &str, value: &Value, args: Args) -> Outcome<Value> {
    let [case_sensitive, attribute] = args.bind(name, ["case_sensitive", "attribute"])?;
    let case_sensitive = truth_or(case_sensitive.as_ref(), false);
    let path = Path::new(attribute.as_ref());
    let mut best: Option<(Value, Value)> = None;
    for item in value.iterate(&run.budget)? {
        let found = path.of(run, &item, None)?;
        let found = key(found, case_sensitive, &run.budget)?;
        let better = match &best {
            None => true,
            Some((known, _)) if name == "max" => found
                .order(known, ">", &run.budget)?
                .is_some_and(std::cmp::Ordering::is_gt),
            Some((known, _)) => found
                .order(known, "<", &run.budget)?
                .is_some_and(std::cmp::Ordering::is_lt),
        };
        if better {
            best = Some((found, item));
        }
    }
    Ok(best.map_or_else(
        || Value::undefined("No aggregated item, sequence was empty."),
        |(_, item)| item,
    ))
}
