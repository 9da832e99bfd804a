//! `==`, `<` and `in`, as in Python.
//!
//! Every compared element is charged to the budget: lists may contain one another many times over.

use std::cmp::Ordering;
use std::rc::Rc;

use super::fault::{Budget, Outcome, failed};
use super::value::{Dict, Value, View};

impl Value {
    /// `self == other`
    pub fn equals(&self, other: &Value, budget: &Budget) -> Outcome<bool> {
        budget.spend(1)?;
        if let (Some(left), Some(right)) = (self.as_str(), other.as_str()) {
            budget.bytes(left.len().min(right.len()))?;
            return Ok(left == right);
        }
        if let (Some(_), Some(_)) = (self.as_float(), other.as_float()) {
            return Ok(order_numbers(self, other) == Some(Ordering::Equal));
        }
        Ok(match (self, other) {
            (Self::Undefined(_), Self::Undefined(_)) | (Self::None, Self::None) => true,
            (Self::List(left), Self::List(right))
            | (Self::Tuple(left) | Self::Group(left), Self::Tuple(right) | Self::Group(right)) => {
                left.len() == right.len() && equal_items(left, right, budget)?
            }
            (Self::Dict(left), Self::Dict(right)) => left.len() == right.len() && equal_dicts(left, right, budget)?,
            (Self::View(View::Values, left), Self::View(View::Values, right)) => Rc::ptr_eq(left, right),
            (Self::View(left_kind, left), Self::View(right_kind, right)) if left_kind == right_kind => {
                let keys_only = *left_kind == View::Keys;
                left.len() == right.len()
                    && if keys_only {
                        same_keys(left, right, budget)?
                    } else {
                        equal_dicts(left, right, budget)?
                    }
            }
            (Self::Range(left), Self::Range(right)) => {
                let length = left.len();
                length == right.len()
                    && (length == 0 || left.start == right.start && (length == 1 || left.step == right.step))
            }
            _ => self.is_same(other),
        })
    }

    /// `self is other`, for values with an identity.
    pub fn is_same(&self, other: &Value) -> bool {
        match (self, other) {
            (Self::None, Self::None) => true,
            (Self::Bool(left), Self::Bool(right)) => left == right,
            (Self::Str(left), Self::Str(right)) => std::sync::Arc::ptr_eq(left, right),
            (Self::List(left), Self::List(right)) | (Self::Tuple(left), Self::Tuple(right)) => Rc::ptr_eq(left, right),
            (Self::Dict(left), Self::Dict(right)) => Rc::ptr_eq(left, right),
            (Self::Iterator(left), Self::Iterator(right)) => Rc::ptr_eq(left, right),
            (Self::Namespace(left), Self::Namespace(right)) => Rc::ptr_eq(left, right),
            (Self::Loop(left), Self::Loop(right)) => Rc::ptr_eq(left, right),
            (Self::Macro(left), Self::Macro(right)) => Rc::ptr_eq(left, right),
            (Self::Cycler(left), Self::Cycler(right)) => Rc::ptr_eq(left, right),
            (Self::Joiner(left), Self::Joiner(right)) => Rc::ptr_eq(left, right),
            (Self::Function(left), Self::Function(right)) => left == right,
            _ => false,
        }
    }

    /// The order of two values; `None` with NaN, an error for types without an order.
    pub fn order(&self, other: &Value, sign: &str, budget: &Budget) -> Outcome<Option<Ordering>> {
        budget.spend(1)?;
        if let (Some(left), Some(right)) = (self.as_str(), other.as_str()) {
            budget.bytes(left.len().min(right.len()))?;
            return Ok(Some(left.cmp(right))); // bytes of UTF-8 are in the order of the characters
        }
        if self.as_float().is_some() && other.as_float().is_some() {
            return Ok(order_numbers(self, other));
        }
        let (left, right) = match (self, other) {
            (Self::Undefined(message), _) | (_, Self::Undefined(message)) => return failed(&**message),
            (Self::List(left), Self::List(right))
            | (Self::Tuple(left) | Self::Group(left), Self::Tuple(right) | Self::Group(right)) => (left, right),
            _ => {
                return failed(format!(
                    "TypeError: '{sign}' not supported between instances of '{}' and '{}'",
                    self.type_name(),
                    other.type_name()
                ));
            }
        };
        for (left, right) in left.iter().zip(right.iter()) {
            if !budget.nested(|| left.equals(right, budget))? {
                return budget.nested(|| left.order(right, sign, budget));
            }
        }
        Ok(Some(left.len().cmp(&right.len())))
    }

    /// `item in self`
    pub fn contains(&self, item: &Value, budget: &Budget) -> Outcome<bool> {
        match self {
            Self::Str(text) | Self::Safe(text) => {
                budget.bytes(text.len())?;
                let Some(item) = item.as_str() else {
                    return failed(format!(
                        "TypeError: 'in <string>' requires string as left operand, not {}",
                        item.type_name()
                    ));
                };
                Ok(text.contains(item))
            }
            Self::Dict(dict) | Self::View(View::Keys, dict) => Ok(dict.get(item, budget)?.is_some()),
            Self::None | Self::Bool(_) | Self::Int(_) | Self::Float(_) | Self::Macro(_) | Self::Function(_) => failed(
                format!("TypeError: argument of type '{}' is not iterable", self.type_name()),
            ),
            _ => {
                for known in self.iterate(budget)? {
                    if known.is_same(item) || known.equals(item, budget)? {
                        return Ok(true);
                    }
                }
                Ok(false)
            }
        }
    }
}

fn equal_items(left: &[Value], right: &[Value], budget: &Budget) -> Outcome<bool> {
    for (left, right) in left.iter().zip(right) {
        if !left.is_same(right) && !budget.nested(|| left.equals(right, budget))? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn equal_dicts(left: &Dict, right: &Dict, budget: &Budget) -> Outcome<bool> {
    for (key, value) in left.entries() {
        let equal = match right.get(key, budget)? {
            Some(other) => value.is_same(other) || budget.nested(|| value.equals(other, budget))?,
            None => false,
        };
        if !equal {
            return Ok(false);
        }
    }
    Ok(true)
}

fn same_keys(left: &Dict, right: &Dict, budget: &Budget) -> Outcome<bool> {
    for (key, _) in left.entries() {
        if right.get(key, budget)?.is_none() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Exact for integers; an integer and a float are compared as floats unless the float is a whole number.
fn order_numbers(left: &Value, right: &Value) -> Option<Ordering> {
    match (left.as_int(), right.as_int()) {
        (Some(left), Some(right)) => Some(left.cmp(&right)),
        (Some(left), None) => order_mixed(left, right.as_float()?),
        (None, Some(right)) => order_mixed(right, left.as_float()?).map(Ordering::reverse),
        (None, None) => left.as_float()?.partial_cmp(&right.as_float()?),
    }
}

fn order_mixed(whole: i128, float: f64) -> Option<Ordering> {
    // Larger floats are far from any integer that fits.
    const LARGEST: f64 = 1.7e38;
    if float.is_nan() || float.abs() > LARGEST {
        return 0.0.partial_cmp(&float);
    }
    let floor = float.floor();
    Some(
        whole
            .cmp(&(floor as i128))
            .then(if float > floor { Ordering::Less } else { Ordering::Equal }),
    )
}
