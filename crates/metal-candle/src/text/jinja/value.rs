//! Python's values as templates see them.
//!
//! Lists and maps are immutable, as in transformers' sandbox; only namespaces, loops, iterators and cyclers change.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

use serde_json::{Map, Value as Json};

use super::fault::{Budget, Outcome, failed};
use super::loops::LoopState;
use super::macros::Macro;
use crate::text::python_json;

pub(in crate::text) type Text = Arc<str>;

#[derive(Clone)]
pub(in crate::text) enum Value {
    /// The value of a missing name or attribute, with the error message for using it.
    Undefined(Text),
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Str(Text),
    /// Text marked as safe HTML: it prints unescaped, and escapes what is appended to it.
    Safe(Text),
    List(Rc<Vec<Value>>),
    Tuple(Rc<Vec<Value>>),
    /// A pair of `groupby`: a tuple with the attributes `grouper` and `list`.
    Group(Rc<Vec<Value>>),
    Dict(Rc<Dict>),
    View(View, Rc<Dict>),
    Range(Range),
    /// Items that can be iterated once.
    Iterator(Rc<RefCell<VecDeque<Value>>>),
    Namespace(Rc<RefCell<Dict>>),
    Loop(Rc<LoopState>),
    Macro(Rc<Macro>),
    /// A method bound to a value.
    Method(Rc<(Value, Text)>),
    Function(Function),
    Cycler(Rc<(Vec<Value>, Cell<usize>)>),
    /// A separator, and whether it was called before.
    Joiner(Rc<(Value, Cell<bool>)>),
}

/// The part of a map that a view shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::text) enum View {
    Keys,
    Values,
    Items,
}

/// The global functions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::text) enum Function {
    Range,
    Dict,
    Namespace,
    Cycler,
    Joiner,
    RaiseException,
    StrftimeNow,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::text) struct Range {
    pub start: i64,
    pub stop: i64,
    pub step: i64,
}

impl Range {
    pub fn len(self) -> usize {
        let (from, to) = if self.step > 0 {
            (self.start, self.stop)
        } else {
            (self.stop, self.start)
        };
        let span = (i128::from(to) - i128::from(from)).max(0) as u128;
        span.div_ceil(u128::from(self.step.unsigned_abs())) as usize
    }

    pub fn get(self, index: usize) -> Value {
        Value::Int(i128::from(self.start) + index as i128 * i128::from(self.step))
    }
}

/// A map that keeps insertion order.
#[derive(Clone, Default)]
pub(in crate::text) struct Dict {
    entries: Vec<(Value, Value)>,
    /// Indices of text keys.
    texts: HashMap<Text, usize>,
}

impl Dict {
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn entries(&self) -> &[(Value, Value)] {
        &self.entries
    }

    pub fn get_text(&self, key: &str) -> Option<&Value> {
        self.texts.get(key).map(|at| &self.entries[*at].1)
    }

    fn find(&self, key: &Value, budget: &Budget) -> Outcome<Option<usize>> {
        if let Some(text) = key.as_str() {
            return Ok(self.texts.get(text).copied());
        }
        check_hashable(key)?;
        if self.texts.len() == self.entries.len() {
            return Ok(None);
        }
        for (at, (known, _)) in self.entries.iter().enumerate() {
            if known.equals(key, budget)? {
                return Ok(Some(at));
            }
        }
        Ok(None)
    }

    pub fn get(&self, key: &Value, budget: &Budget) -> Outcome<Option<&Value>> {
        Ok(self.find(key, budget)?.map(|at| &self.entries[at].1))
    }

    pub fn insert(&mut self, key: Value, value: Value, budget: &Budget) -> Outcome<()> {
        budget.slots(4)?;
        if let Some(at) = self.find(&key, budget)? {
            self.entries[at].1 = value;
            return Ok(());
        }
        if let Value::Str(text) | Value::Safe(text) = &key {
            self.texts.insert(text.clone(), self.entries.len());
        }
        self.entries.push((key, value));
        Ok(())
    }

    pub fn insert_text(&mut self, key: &str, value: Value) {
        let key: Text = key.into();
        if let Some(at) = self.texts.get(&key) {
            self.entries[*at].1 = value;
        } else {
            self.texts.insert(key.clone(), self.entries.len());
            self.entries.push((Value::Str(key), value));
        }
    }
}

/// Lists and maps cannot be keys.
pub(super) fn check_hashable(key: &Value) -> Outcome<()> {
    match key {
        Value::List(_) | Value::Dict(_) => failed(format!("TypeError: unhashable type: '{}'", key.type_name())),
        Value::Tuple(items) | Value::Group(items) => items.iter().try_for_each(check_hashable),
        _ => Ok(()),
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Str(text.into())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Str(text.into())
    }
}

impl Value {
    pub fn list(items: Vec<Value>) -> Self {
        Self::List(Rc::new(items))
    }

    pub fn tuple(items: Vec<Value>) -> Self {
        Self::Tuple(Rc::new(items))
    }

    pub fn dict(dict: Dict) -> Self {
        Self::Dict(Rc::new(dict))
    }

    pub fn iterator(items: Vec<Value>) -> Self {
        Self::Iterator(Rc::new(RefCell::new(items.into())))
    }

    pub fn int(number: usize) -> Self {
        Self::Int(number as i128)
    }

    pub fn undefined(message: impl Into<String>) -> Self {
        Self::Undefined(message.into().into())
    }

    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::Str(text) | Self::Safe(text) => Some(text),
            _ => None,
        }
    }

    /// The items of a list or of a tuple.
    pub fn as_items(&self) -> Option<&Rc<Vec<Value>>> {
        match self {
            Self::List(items) | Self::Tuple(items) | Self::Group(items) => Some(items),
            _ => None,
        }
    }

    /// The value as an integer, if it is one (`True` is 1).
    pub fn as_int(&self) -> Option<i128> {
        match self {
            Self::Int(number) => Some(*number),
            Self::Bool(flag) => Some(i128::from(*flag)),
            _ => None,
        }
    }

    /// A number as a float.
    pub fn as_float(&self) -> Option<f64> {
        match self {
            Self::Float(number) => Some(*number),
            _ => self.as_int().map(|number| number as f64),
        }
    }

    pub fn is_none(&self) -> bool {
        matches!(self, Self::None)
    }

    pub fn is_undefined(&self) -> bool {
        matches!(self, Self::Undefined(_))
    }

    /// Python's name of the type.
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::Undefined(_) => "Undefined",
            Self::None => "NoneType",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::Float(_) => "float",
            Self::Str(_) => "str",
            Self::Safe(_) => "Markup",
            Self::List(_) => "list",
            Self::Tuple(_) => "tuple",
            Self::Group(_) => "_GroupTuple",
            Self::Dict(_) => "dict",
            Self::View(View::Keys, _) => "dict_keys",
            Self::View(View::Values, _) => "dict_values",
            Self::View(View::Items, _) => "dict_items",
            Self::Range(_) => "range",
            Self::Iterator(_) => "generator",
            Self::Namespace(_) => "TemplateNamespace",
            Self::Loop(_) => "LoopContext",
            Self::Macro(_) => "Macro",
            Self::Method(_) => "builtin_function_or_method",
            Self::Function(_) => "function",
            Self::Cycler(_) => "Cycler",
            Self::Joiner(_) => "Joiner",
        }
    }

    /// `bool(value)`
    pub fn truth(&self) -> bool {
        match self {
            Self::Undefined(_) | Self::None => false,
            Self::Bool(flag) => *flag,
            Self::Int(number) => *number != 0,
            Self::Float(number) => *number != 0.0,
            _ => self.length().is_none_or(|length| length > 0),
        }
    }

    /// `len(value)`, if it has one.
    pub fn length(&self) -> Option<usize> {
        Some(match self {
            Self::Undefined(_) => 0,
            Self::Str(text) | Self::Safe(text) => text.chars().count(),
            Self::List(items) | Self::Tuple(items) | Self::Group(items) => items.len(),
            Self::Dict(dict) | Self::View(_, dict) => dict.len(),
            Self::Range(range) => range.len(),
            _ => return None,
        })
    }

    /// `list(value)`; consumes an iterator. The interpreter handles the items of a loop.
    pub fn iterate(&self, budget: &Budget) -> Outcome<Vec<Value>> {
        let items: Vec<Value> = match self {
            Self::Undefined(_) => Vec::new(),
            Self::Str(text) | Self::Safe(text) => {
                budget.slots(text.len())?;
                let mut letter = [0; 4];
                text.chars()
                    .map(|c| Value::from(&*c.encode_utf8(&mut letter)))
                    .collect()
            }
            Self::List(items) | Self::Tuple(items) | Self::Group(items) => items.to_vec(),
            Self::Dict(dict) | Self::View(View::Keys, dict) => {
                dict.entries().iter().map(|(key, _)| key.clone()).collect()
            }
            Self::View(View::Values, dict) => dict.entries().iter().map(|(_, value)| value.clone()).collect(),
            Self::View(View::Items, dict) => {
                budget.slots(dict.len() * 2)?;
                let pair = |(key, value): &(Value, Value)| Value::tuple(vec![key.clone(), value.clone()]);
                dict.entries().iter().map(pair).collect()
            }
            Self::Range(range) => {
                budget.slots(range.len())?;
                (0..range.len()).map(|index| range.get(index)).collect()
            }
            Self::Iterator(items) => std::mem::take(&mut *items.borrow_mut()).into(),
            _ => return failed(format!("TypeError: '{}' object is not iterable", self.type_name())),
        };
        budget.slots(items.len())?;
        Ok(items)
    }

    /// A JSON value as Python's parser reads it.
    pub fn from_json(value: &Json) -> Self {
        match value {
            Json::Null => Self::None,
            Json::Bool(flag) => Self::Bool(*flag),
            Json::Number(number) => {
                let whole = number
                    .as_i64()
                    .map(i128::from)
                    .or_else(|| number.as_u64().map(i128::from));
                whole.map_or_else(|| Self::Float(number.as_f64().unwrap_or(f64::NAN)), Self::Int)
            }
            Json::String(text) => Self::from(text.as_str()),
            Json::Array(items) => Self::list(items.iter().map(Self::from_json).collect()),
            Json::Object(fields) => match python_json::number(value) {
                Some(text) => exact(text),
                None => Self::from_fields(fields),
            },
        }
    }

    /// A JSON object; keys keep their order.
    pub fn from_fields(fields: &Map<String, Json>) -> Self {
        let mut dict = Dict::default();
        for (key, value) in fields {
            dict.insert_text(key, Self::from_json(value));
        }
        Self::dict(dict)
    }
}

/// A number that `serde_json` cannot represent: an integer of up to 127 bits, or a non-finite float.
fn exact(text: &str) -> Value {
    let float = || Value::Float(text.parse().unwrap_or(f64::NAN));
    text.parse().map_or_else(|_| float(), Value::Int)
}
