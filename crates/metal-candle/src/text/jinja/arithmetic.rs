//! `+ - * / // % **` and signs, as in Python.
//!
//! Integers have 127 bits; a result that does not fit is an error, never a rounded number.

use super::ast::Binary;
use super::fault::{Budget, Outcome, failed};
use super::filters::escape;
use super::format::percent;
use super::value::Value;

/// Maximum length of a text or list created by `*`.
const MAX_REPEATED: usize = 16 << 20;

pub(super) fn binary(operator: Binary, left: &Value, right: &Value, budget: &Budget) -> Outcome<Value> {
    if let Value::Undefined(message) = left {
        return failed(&**message);
    }
    if operator == Binary::Mod && left.as_str().is_some() {
        return percent::format(left, right, budget);
    }
    if let Value::Undefined(message) = right {
        return failed(&**message);
    }
    match operator {
        Binary::Add => add(left, right, budget),
        Binary::Mul => multiply(left, right, budget),
        _ => numbers(operator, left, right),
    }
}

fn unsupported<T>(operator: Binary, left: &Value, right: &Value) -> Outcome<T> {
    let sign = match operator {
        Binary::Add => "+",
        Binary::Sub => "-",
        Binary::Mul => "*",
        Binary::Div => "/",
        Binary::FloorDiv => "//",
        Binary::Mod => "%",
        Binary::Pow => "** or pow()",
    };
    failed(format!(
        "TypeError: unsupported operand type(s) for {sign}: '{}' and '{}'",
        left.type_name(),
        right.type_name()
    ))
}

fn add(left: &Value, right: &Value, budget: &Budget) -> Outcome<Value> {
    if let (Some(first), Some(second)) = (left.as_str(), right.as_str()) {
        budget.bytes(first.len() + second.len())?;
        return Ok(match (left, right) {
            (Value::Safe(_), Value::Safe(_)) => Value::Safe(format!("{first}{second}").into()),
            (Value::Safe(_), _) => Value::Safe(format!("{first}{}", escape(second)).into()),
            (_, Value::Safe(_)) => Value::Safe(format!("{}{second}", escape(first)).into()),
            _ => Value::Str(format!("{first}{second}").into()),
        });
    }
    match (left, right) {
        (Value::List(first), Value::List(second)) => {
            budget.slots(first.len() + second.len())?;
            Ok(Value::list(first.iter().chain(second.iter()).cloned().collect()))
        }
        (Value::Tuple(first) | Value::Group(first), Value::Tuple(second) | Value::Group(second)) => {
            budget.slots(first.len() + second.len())?;
            Ok(Value::tuple(first.iter().chain(second.iter()).cloned().collect()))
        }
        (Value::Str(_) | Value::Safe(_), other) => failed(format!(
            "TypeError: can only concatenate str (not \"{}\") to str",
            other.type_name()
        )),
        _ => numbers(Binary::Add, left, right),
    }
}

fn multiply(left: &Value, right: &Value, budget: &Budget) -> Outcome<Value> {
    let (sequence, count) = match (left.as_int(), right.as_int()) {
        (Some(count), None) => (right, count),
        (None, Some(count)) => (left, count),
        _ => return numbers(Binary::Mul, left, right),
    };
    let count = usize::try_from(count.max(0)).unwrap_or(usize::MAX);
    let fits = |length: usize| match length.checked_mul(count) {
        Some(total) if total <= MAX_REPEATED => Ok(total),
        _ => failed("MemoryError: a repeated text or list is too long"),
    };
    match sequence {
        Value::Str(text) => {
            budget.bytes(fits(text.len())?)?;
            Ok(Value::from(text.repeat(count)))
        }
        Value::Safe(text) => {
            budget.bytes(fits(text.len())?)?;
            Ok(Value::Safe(text.repeat(count).into()))
        }
        Value::List(items) | Value::Tuple(items) | Value::Group(items) => {
            let total = fits(items.len())?;
            budget.slots(total)?;
            let repeated: Vec<Value> = items.iter().cycle().take(total).cloned().collect();
            Ok(if matches!(sequence, Value::List(_)) {
                Value::list(repeated)
            } else {
                Value::tuple(repeated)
            })
        }
        _ => numbers(Binary::Mul, left, right),
    }
}

fn numbers(operator: Binary, left: &Value, right: &Value) -> Outcome<Value> {
    if let (Some(first), Some(second)) = (left.as_int(), right.as_int()) {
        return integers(operator, first, second);
    }
    let (Some(first), Some(second)) = (left.as_float(), right.as_float()) else {
        return unsupported(operator, left, right);
    };
    floats(operator, first, second).map(Value::Float)
}

fn integers(operator: Binary, left: i128, right: i128) -> Outcome<Value> {
    if right == 0 && matches!(operator, Binary::Div | Binary::FloorDiv | Binary::Mod) {
        let what = match operator {
            Binary::Div => "division by zero",
            _ => "integer division or modulo by zero",
        };
        return failed(format!("ZeroDivisionError: {what}"));
    }
    let result = match operator {
        Binary::Add => left.checked_add(right),
        Binary::Sub => left.checked_sub(right),
        Binary::Mul => left.checked_mul(right),
        Binary::Div => return Ok(Value::Float(divide(left, right))),
        Binary::FloorDiv => floor_div(left, right),
        Binary::Mod => floor_div(left, right).and_then(|quotient| left.checked_sub(quotient * right)),
        Binary::Pow if right < 0 => return floats(operator, left as f64, right as f64).map(Value::Float),
        Binary::Pow => match u32::try_from(right) {
            Ok(power) => left.checked_pow(power),
            Err(_) if left == 0 || left == 1 => Some(left),
            Err(_) if left == -1 => Some(if right % 2 == 0 { 1 } else { -1 }),
            Err(_) => None,
        },
    };
    match result {
        Some(number) => Ok(Value::Int(number)),
        None => failed("an integer grows beyond 127 bits, which is not supported"),
    }
}

fn floor_div(left: i128, right: i128) -> Option<i128> {
    let quotient = left.checked_div(right)?;
    let inexact = left.checked_rem(right)? != 0;
    Some(if inexact && (left < 0) != (right < 0) {
        quotient - 1
    } else {
        quotient
    })
}

/// The quotient, rounded once if both numbers are exact as floats.
fn divide(left: i128, right: i128) -> f64 {
    left as f64 / right as f64
}

fn floats(operator: Binary, left: f64, right: f64) -> Outcome<f64> {
    if right == 0.0 && matches!(operator, Binary::Div | Binary::FloorDiv | Binary::Mod) {
        let what = match operator {
            Binary::Div => "float division by zero",
            Binary::FloorDiv => "float floor division by zero",
            _ => "float modulo",
        };
        return failed(format!("ZeroDivisionError: {what}"));
    }
    Ok(match operator {
        Binary::Add => left + right,
        Binary::Sub => left - right,
        Binary::Mul => left * right,
        Binary::Div => left / right,
        Binary::Mod => float_mod(left, right),
        Binary::FloorDiv => {
            let quotient = (left - float_mod(left, right)) / right;
            let floor = quotient.floor();
            if quotient - floor > 0.5 { floor + 1.0 } else { floor }
        }
        Binary::Pow if left == 0.0 && right < 0.0 => {
            return failed("ZeroDivisionError: 0.0 cannot be raised to a negative power");
        }
        Binary::Pow if left < 0.0 && left.is_finite() && right.is_finite() && right.fract() != 0.0 => {
            return failed("a negative number to a fractional power is complex, which is not supported");
        }
        Binary::Pow => {
            let power = left.powf(right);
            if power.is_infinite() && left.is_finite() && right.is_finite() {
                return failed("OverflowError: (34, 'Numerical result out of range')");
            }
            power
        }
    })
}

/// The remainder with the sign of the divisor.
fn float_mod(left: f64, right: f64) -> f64 {
    let rest = left % right;
    if rest == 0.0 {
        0.0f64.copysign(right)
    } else if (rest < 0.0) == (right < 0.0) {
        rest
    } else {
        rest + right
    }
}

/// `-value` or `+value`
pub(super) fn sign(negative: bool, value: &Value) -> Outcome<Value> {
    match value {
        Value::Undefined(message) => failed(&**message),
        Value::Float(number) => Ok(Value::Float(if negative { -number } else { *number })),
        _ => match value.as_int() {
            Some(number) => Ok(Value::Int(if negative { -number } else { number })),
            None => failed(format!(
                "TypeError: bad operand type for unary {}: '{}'",
                if negative { '-' } else { '+' },
                value.type_name()
            )),
        },
    }
}
