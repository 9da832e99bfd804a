//! The evaluator of expressions.
//!
//! Each part is charged to the budget, and evaluated in Python's order. Expressions never change values, except through
//! the methods of cyclers, joiners and loops.

use std::rc::Rc;

use super::arguments::Args;
use super::arithmetic;
use super::ast::{Arguments, Comparison, Condition, Expr, Literal};
use super::fault::{Outcome, failed};
use super::functions::builtin;
use super::interpreter::{Interpreter, Scope};
use super::value::{Dict, Value};
use super::{filters, methods, predicates};

impl Interpreter<'_> {
    pub(super) fn evaluate(&mut self, expression: &Expr, scope: &Rc<Scope>) -> Outcome<Value> {
        self.budget.spend(1)?;
        Ok(match expression {
            Expr::Literal(literal) => constant(literal),
            Expr::Name(name) => match scope.get(name).or_else(|| builtin(name)) {
                Some(value) => value,
                None if matches!(&**name, "lipsum" | "self") => {
                    return failed(format!("'{name}' is not supported in chat templates"));
                }
                None => Value::undefined(format!("'{name}' is undefined")),
            },
            Expr::Tuple(items) => Value::tuple(self.all(items, scope)?),
            Expr::List(items) => Value::list(self.all(items, scope)?),
            Expr::Dict(items) => self.dict(items, scope)?,
            Expr::Neg(value) => arithmetic::sign(true, &self.evaluate(value, scope)?)?,
            Expr::Pos(value) => arithmetic::sign(false, &self.evaluate(value, scope)?)?,
            Expr::Not(value) => Value::Bool(!self.evaluate(value, scope)?.truth()),
            Expr::Binary(operator, left, right) => {
                let left = self.evaluate(left, scope)?;
                let right = self.evaluate(right, scope)?;
                arithmetic::binary(*operator, &left, &right, &self.budget)?
            }
            Expr::Concat(parts) => self.concat(parts, scope)?,
            Expr::Compare(first, links) => Value::Bool(self.compare(first, links, scope)?),
            Expr::And(left, right) => {
                let left = self.evaluate(left, scope)?;
                if left.truth() {
                    self.evaluate(right, scope)?
                } else {
                    left
                }
            }
            Expr::Or(left, right) => {
                let left = self.evaluate(left, scope)?;
                if left.truth() {
                    left
                } else {
                    self.evaluate(right, scope)?
                }
            }
            Expr::Condition(node) => self.condition(node, scope)?,
            Expr::Attribute(value, name) => {
                let value = self.evaluate(value, scope)?;
                self.attribute(&value, name)?
            }
            Expr::Item(value, index) => {
                let value = self.evaluate(value, scope)?;
                let index = self.evaluate(index, scope)?;
                self.item(&value, &index)?
            }
            Expr::Slice(value, parts) => self.slice_of(value, parts, scope)?,
            Expr::Call(function, arguments) => {
                let function = self.evaluate(function, scope)?;
                let args = self.arguments(arguments, scope)?;
                self.call(&function, args)?
            }
            Expr::Filter(..) => self.apply_filters(expression, Value::None, scope)?,
            Expr::Test(value, name, arguments) => {
                let value = self.evaluate(value, scope)?;
                let args = self.arguments(arguments, scope)?;
                Value::Bool(predicates::call(self, name, &value, args)?)
            }
        })
    }

    fn all(&mut self, items: &[Expr], scope: &Rc<Scope>) -> Outcome<Vec<Value>> {
        self.budget.slots(items.len())?;
        items.iter().map(|item| self.evaluate(item, scope)).collect()
    }

    fn dict(&mut self, items: &[(Expr, Expr)], scope: &Rc<Scope>) -> Outcome<Value> {
        let mut dict = Dict::default();
        for (key, value) in items {
            let key = self.evaluate(key, scope)?;
            let value = self.evaluate(value, scope)?;
            dict.insert(key, value, &self.budget)?;
        }
        Ok(Value::dict(dict))
    }

    fn concat(&mut self, parts: &[Expr], scope: &Rc<Scope>) -> Outcome<Value> {
        let mut text = String::new();
        for part in parts {
            let part = self.evaluate(part, scope)?.to_text(&self.budget)?;
            self.budget.bytes(part.len())?;
            text.push_str(&part);
        }
        Ok(Value::from(text))
    }

    fn condition(&mut self, node: &Condition, scope: &Rc<Scope>) -> Outcome<Value> {
        if self.evaluate(&node.test, scope)?.truth() {
            return self.evaluate(&node.yes, scope);
        }
        match &node.no {
            Some(no) => self.evaluate(no, scope),
            None => Ok(Value::undefined(format!(
                "the inline if-expression on line {} evaluated to false and no else section was defined.",
                node.line
            ))),
        }
    }

    /// `a < b < c`: evaluates each pair, until one is false.
    fn compare(&mut self, first: &Expr, links: &[(Comparison, Expr)], scope: &Rc<Scope>) -> Outcome<bool> {
        let mut left = self.evaluate(first, scope)?;
        for (comparison, right) in links {
            let right = self.evaluate(right, scope)?;
            if !self.compare_values(*comparison, &left, &right)? {
                return Ok(false);
            }
            left = right;
        }
        Ok(true)
    }

    pub(super) fn compare_values(&self, comparison: Comparison, left: &Value, right: &Value) -> Outcome<bool> {
        let budget = &self.budget;
        let order = |sign| left.order(right, sign, budget);
        Ok(match comparison {
            Comparison::Eq => left.equals(right, budget)?,
            Comparison::Ne => !left.equals(right, budget)?,
            Comparison::Lt => order("<")?.is_some_and(std::cmp::Ordering::is_lt),
            Comparison::Le => order("<=")?.is_some_and(std::cmp::Ordering::is_le),
            Comparison::Gt => order(">")?.is_some_and(std::cmp::Ordering::is_gt),
            Comparison::Ge => order(">=")?.is_some_and(std::cmp::Ordering::is_ge),
            Comparison::In => right.contains(left, budget)?,
            Comparison::NotIn => !right.contains(left, budget)?,
        })
    }

    fn slice_of(&mut self, value: &Expr, parts: &[Option<Expr>; 3], scope: &Rc<Scope>) -> Outcome<Value> {
        let value = self.evaluate(value, scope)?;
        let mut bounds = [const { None }; 3];
        for (bound, part) in bounds.iter_mut().zip(parts) {
            if let Some(part) = part {
                *bound = Some(self.evaluate(part, scope)?);
            }
        }
        self.slice(&value, &bounds)
    }

    /// A chain of filters; `inner` is the value of the innermost one if that has no operand.
    pub(super) fn apply_filters(&mut self, filter: &Expr, inner: Value, scope: &Rc<Scope>) -> Outcome<Value> {
        let Expr::Filter(value, name, arguments) = filter else {
            return self.evaluate(filter, scope);
        };
        let value = match value {
            Some(value) => self.apply_filters(value, inner, scope)?,
            None => inner,
        };
        let args = self.arguments(arguments, scope)?;
        self.budget.spend(1)?;
        filters::call(self, name, value, args)
    }

    pub(super) fn arguments(&mut self, arguments: &Arguments, scope: &Rc<Scope>) -> Outcome<Args> {
        let mut args = Args {
            positional: self.all(&arguments.positional, scope)?,
            named: Vec::new(),
        };
        for (name, value) in &arguments.named {
            args.named.push((name.clone(), self.evaluate(value, scope)?));
        }
        if let Some(list) = &arguments.list {
            let items = self.evaluate(list, scope)?.iterate(&self.budget)?;
            args.positional.extend(items);
        }
        if let Some(map) = &arguments.map {
            let Value::Dict(map) = self.evaluate(map, scope)? else {
                return failed("TypeError: the argument after ** must be a mapping");
            };
            for (name, value) in map.entries() {
                let Value::Str(name) = name else {
                    return failed("TypeError: keywords must be strings");
                };
                if args.named.iter().any(|(known, _)| known == name) {
                    return failed(format!("TypeError: got multiple values for keyword argument '{name}'"));
                }
                args.named.push((name.clone(), value.clone()));
            }
        }
        Ok(args)
    }

    pub(super) fn call(&mut self, function: &Value, args: Args) -> Outcome<Value> {
        self.budget.spend(1)?;
        match function {
            Value::Undefined(message) => failed(&**message),
            Value::Macro(called) => self.call_macro(called, args),
            Value::Method(method) => methods::call(self, &method.0, &method.1, args),
            Value::Function(function) => self.call_function(*function, args),
            Value::Loop(state) => self.recurse(state, args),
            Value::Joiner(joiner) => {
                args.none("joiner")?;
                Ok(if joiner.1.replace(true) {
                    joiner.0.clone()
                } else {
                    Value::from("")
                })
            }
            _ => failed(format!("TypeError: '{}' object is not callable", function.type_name())),
        }
    }
}

fn constant(literal: &Literal) -> Value {
    match literal {
        Literal::None => Value::None,
        Literal::Bool(flag) => Value::Bool(*flag),
        Literal::Int(number) => Value::Int(*number),
        Literal::Float(number) => Value::Float(*number),
        Literal::Text(text) => Value::Str(text.clone()),
    }
}
