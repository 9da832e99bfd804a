//! `value.name`, `value[index]` and `value[a:b:c]`, as Jinja2's sandbox looks them up.
//!
//! A dot looks up an attribute first and an item second; brackets do the reverse. Mutating methods of lists and maps,
//! and names that begin with an underscore, give an undefined value.

use super::fault::{Outcome, failed};
use super::interpreter::Interpreter;
use super::value::{Range, Value};
use super::{methods, print};

/// The result of an attribute lookup.
enum AttributeLookup {
    Value(Value),
    Unsafe,
    Nothing,
}

impl Interpreter<'_> {
    /// `value.name`
    pub(in crate::text) fn attribute(&mut self, value: &Value, name: &str) -> Outcome<Value> {
        if let Value::Undefined(message) = value {
            return failed(&**message);
        }
        match self.own_attribute(value, name)? {
            AttributeLookup::Value(found) => Ok(found),
            AttributeLookup::Unsafe => Ok(unsafe_attribute(value, name)),
            AttributeLookup::Nothing => {
                let item = match value {
                    Value::Dict(dict) => dict.get_text(name).cloned(),
                    _ => None,
                };
                Ok(item.unwrap_or_else(|| missing_attribute(value, name)))
            }
        }
    }

    /// `value.name`, without looking at items.
    pub(super) fn attribute_only(&mut self, value: &Value, name: &str) -> Outcome<Value> {
        if let Value::Undefined(message) = value {
            return failed(&**message);
        }
        Ok(match self.own_attribute(value, name)? {
            AttributeLookup::Value(found) => found,
            AttributeLookup::Unsafe => unsafe_attribute(value, name),
            AttributeLookup::Nothing => missing_attribute(value, name),
        })
    }

    /// `value[index]`
    pub(in crate::text) fn item(&mut self, value: &Value, index: &Value) -> Outcome<Value> {
        if let Value::Undefined(message) = value {
            return failed(&**message);
        }
        if let Some(item) = self.subscript(value, index)? {
            return Ok(item);
        }
        let Some(name) = index.as_str() else {
            let index = index.repr(&self.budget)?;
            return Ok(Value::undefined(format!("{} has no element {index}", object(value))));
        };
        Ok(match self.own_attribute(value, name)? {
            AttributeLookup::Value(found) => found,
            AttributeLookup::Unsafe => unsafe_attribute(value, name),
            AttributeLookup::Nothing => missing_attribute(value, name),
        })
    }

    /// `value[index]` in Python, `None` if it raises `TypeError` or `LookupError`.
    fn subscript(&mut self, value: &Value, index: &Value) -> Outcome<Option<Value>> {
        if let Value::Dict(dict) = value {
            if super::value::check_hashable(index).is_err() {
                return Ok(None);
            }
            return Ok(dict.get(index, &self.budget)?.cloned());
        }
        let (Some(index), Some(length)) = (index.as_int(), value.length()) else {
            return Ok(None);
        };
        let at = if index < 0 { index + length as i128 } else { index };
        let Some(at) = usize::try_from(at).ok().filter(|at| *at < length) else {
            return Ok(None);
        };
        Ok(match value {
            Value::Str(text) | Value::Safe(text) => {
                self.budget.bytes(at)?;
                text.chars().nth(at).map(|letter| Value::from(letter.to_string()))
            }
            Value::List(items) | Value::Tuple(items) | Value::Group(items) => Some(items[at].clone()),
            Value::Range(range) => Some(range.get(at)),
            _ => None,
        })
    }

    /// An attribute of the Python object itself.
    fn own_attribute(&mut self, value: &Value, name: &str) -> Outcome<AttributeLookup> {
        let special = match (value, name) {
            (Value::Namespace(fields), _) => {
                let found = fields.borrow().get_text(name).cloned();
                return Ok(found.map_or(AttributeLookup::Nothing, AttributeLookup::Value));
            }
            (Value::Loop(state), _) => self.loop_attribute(state, name)?,
            (Value::Group(items), "grouper") => items.first().cloned(),
            (Value::Group(items), "list") => items.get(1).cloned(),
            (Value::Cycler(cycler), "current") => cycler.0.get(cycler.1.get()).cloned(),
            (Value::Range(range), "start") => Some(Value::Int(range.start.into())),
            (Value::Range(range), "stop") => Some(Value::Int(range.stop.into())),
            (Value::Range(range), "step") => Some(Value::Int(range.step.into())),
            (Value::Int(_) | Value::Bool(_), "real" | "numerator") => value.as_int().map(Value::Int),
            (Value::Int(_) | Value::Bool(_), "imag") => Some(Value::Int(0)),
            (Value::Int(_) | Value::Bool(_), "denominator") => Some(Value::Int(1)),
            (Value::Float(_), "real") => Some(value.clone()),
            (Value::Float(_), "imag") => Some(Value::Float(0.0)),
            (Value::Macro(called), "name") => Some(Value::Str(called.body.name.clone())),
            (Value::Macro(called), "arguments") => {
                let names = called.body.signature.names.iter().map(|name| Value::Str(name.clone()));
                Some(Value::tuple(names.collect()))
            }
            (Value::Macro(called), "caller") => Some(Value::Bool(called.body.uses_caller)),
            (Value::Macro(called), "catch_kwargs") => Some(Value::Bool(called.body.uses_kwargs)),
            (Value::Macro(called), "catch_varargs") => Some(Value::Bool(called.body.uses_varargs)),
            _ => None,
        };
        if let Some(found) = special {
            return Ok(AttributeLookup::Value(found));
        }
        if methods::changes(value, name) || name.starts_with("__") && name.ends_with("__") {
            return Ok(AttributeLookup::Unsafe);
        }
        if methods::exists(value, name) {
            return Ok(AttributeLookup::Value(Value::Method(std::rc::Rc::new((
                value.clone(),
                name.into(),
            )))));
        }
        Ok(AttributeLookup::Nothing)
    }

    /// `value[start:stop:step]`
    pub(super) fn slice(&mut self, value: &Value, bounds: &[Option<Value>; 3]) -> Outcome<Value> {
        if let Value::Undefined(message) = value {
            return failed(&**message);
        }
        let length = match value {
            Value::Dict(_) | Value::View(..) | Value::Iterator(_) => None,
            _ => value.length(),
        };
        let Some(length) = length else {
            return failed(format!("TypeError: '{}' object cannot be sliced", value.type_name()));
        };
        let Some(bounds) = indices(bounds) else {
            return failed("TypeError: slice indices must be integers or None");
        };
        let (start, count, step) = positions(bounds, length as i128)?;
        if let Value::Range(range) = value {
            let at = |index: i128| i128::from(range.start) + index * i128::from(range.step);
            let whole = |number: i128| i64::try_from(number).unwrap_or(i64::MAX);
            return Ok(Value::Range(Range {
                start: whole(at(start)),
                stop: whole(at(start + step * count)),
                step: whole(i128::from(range.step) * step),
            }));
        }
        self.budget.slots(count as usize)?;
        let indices = (0..count).map(|nth| (start + nth * step) as usize);
        Ok(match value {
            Value::Str(text) | Value::Safe(text) => {
                self.budget.bytes(text.len())?;
                let letters: Vec<char> = text.chars().collect();
                let sliced: String = indices.map(|index| letters[index]).collect();
                if matches!(value, Value::Safe(_)) {
                    Value::Safe(sliced.into())
                } else {
                    Value::from(sliced)
                }
            }
            _ => {
                let items = value.iterate(&self.budget)?;
                let sliced: Vec<Value> = indices.map(|index| items[index].clone()).collect();
                if matches!(value, Value::List(_)) {
                    Value::list(sliced)
                } else {
                    Value::tuple(sliced)
                }
            }
        })
    }
}

/// The bounds of a slice as integers, if they are integers or absent.
fn indices(bounds: &[Option<Value>; 3]) -> Option<[Option<i128>; 3]> {
    let mut out = [None; 3];
    for (index, bound) in out.iter_mut().zip(bounds) {
        *index = match bound {
            None | Some(Value::None) => None,
            Some(value) => Some(value.as_int()?.clamp(-(1 << 62), 1 << 62)),
        };
    }
    Some(out)
}

/// First index, number of items and step of a slice.
fn positions([start, stop, step]: [Option<i128>; 3], length: i128) -> Outcome<(i128, i128, i128)> {
    let step = step.unwrap_or(1);
    if step == 0 {
        return failed("ValueError: slice step cannot be zero");
    }
    let (lowest, highest) = if step > 0 { (0, length) } else { (-1, length - 1) };
    let clip = |bound: Option<i128>, default: i128| match bound {
        None => default,
        Some(index) if index < 0 => (index + length).max(lowest),
        Some(index) => index.min(highest),
    };
    let (first, last) = if step > 0 { (lowest, highest) } else { (highest, lowest) };
    let start = clip(start, first);
    let stop = clip(stop, last);
    let span = if step > 0 { stop - start } else { start - stop };
    Ok((start, (span.max(0) + step.abs() - 1) / step.abs(), step))
}

/// The name of an object in messages.
fn object(value: &Value) -> String {
    if value.is_none() {
        "None".to_owned()
    } else {
        format!("{} object", value.type_name())
    }
}

fn missing_attribute(value: &Value, name: &str) -> Value {
    let mut quoted = String::new();
    print::quote(name, &mut quoted);
    Value::undefined(format!("'{}' has no attribute {quoted}", object(value)))
}

fn unsafe_attribute(value: &Value, name: &str) -> Value {
    Value::undefined(format!(
        "access to attribute '{name}' of '{}' object is unsafe",
        value.type_name()
    ))
}
