//! `for` loops and the variable `loop`.
//!
//! The condition of `for x in xs if test` is evaluated when an item is reached, or for all when `loop.length` is read.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use super::arguments::Args;
use super::ast::Loop;
use super::fault::{Outcome, failed};
use super::interpreter::{Flow, Interpreter, Scope};
use super::value::Value;

pub(in crate::text) struct LoopState {
    node: Arc<Loop>,
    scope: Rc<Scope>,
    depth: usize,
    waiting: RefCell<VecDeque<Value>>,
    tested: RefCell<VecDeque<Value>>,
    taken: Cell<usize>,
    previous: RefCell<Option<Value>>,
    current: RefCell<Option<Value>>,
    changed: RefCell<Option<Vec<Value>>>,
}

impl LoopState {
    fn index0(&self) -> usize {
        self.taken.get().saturating_sub(1)
    }
}

impl Interpreter<'_> {
    pub(super) fn for_loop(&mut self, node: &Arc<Loop>, scope: &Rc<Scope>) -> Outcome<()> {
        let items = self.evaluate(&node.items, scope)?;
        self.run_loop(node, &items, scope, 0)
    }

    fn run_loop(&mut self, node: &Arc<Loop>, items: &Value, scope: &Rc<Scope>, depth: usize) -> Outcome<()> {
        let state = Rc::new(LoopState {
            node: Arc::clone(node),
            scope: Rc::clone(scope),
            depth,
            waiting: RefCell::new(items.iterate(&self.budget)?.into()),
            tested: RefCell::default(),
            taken: Cell::new(0),
            previous: RefCell::default(),
            current: RefCell::default(),
            changed: RefCell::default(),
        });
        self.remember(scope);
        let mut any_completed = false;
        while self.fill(&state)? {
            let Some(item) = state.tested.borrow_mut().pop_front() else {
                break;
            };
            state.taken.set(state.taken.get() + 1);
            let before = state.current.replace(Some(item.clone()));
            state.previous.replace(before);
            let inner = Scope::inside(scope);
            inner.set("loop", Value::Loop(Rc::clone(&state)));
            self.assign(&node.target, item, &inner)?;
            match self.statements(&node.body, &inner)? {
                Flow::Next => any_completed = true,
                Flow::Continue => {}
                Flow::Break => break,
            }
        }
        // As in Jinja2: also if `continue` or `break` ended every iteration early.
        if !any_completed {
            self.statements(&node.otherwise, &Scope::inside(scope))?;
        }
        Ok(())
    }

    /// Fetches the next item that satisfies the loop's condition, if there is one.
    fn fill(&mut self, state: &LoopState) -> Outcome<bool> {
        if !state.tested.borrow().is_empty() {
            return Ok(true);
        }
        self.test_next(state)
    }

    fn test_next(&mut self, state: &LoopState) -> Outcome<bool> {
        loop {
            self.budget.spend(1)?;
            let Some(item) = state.waiting.borrow_mut().pop_front() else {
                return Ok(false);
            };
            let passes = match &state.node.test {
                None => true,
                Some(test) => {
                    let inner = Scope::inside(&state.scope);
                    self.assign(&state.node.target, item.clone(), &inner)?;
                    self.evaluate(test, &inner)?.truth()
                }
            };
            if passes {
                state.tested.borrow_mut().push_back(item);
                return Ok(true);
            }
        }
    }

    fn loop_length(&mut self, state: &LoopState) -> Outcome<usize> {
        if state.node.test.is_some() {
            while self.test_next(state)? {}
        }
        Ok(state.taken.get() + state.tested.borrow().len() + state.waiting.borrow().len())
    }

    /// An attribute of `loop` that is not a method.
    pub(super) fn loop_attribute(&mut self, state: &LoopState, name: &str) -> Outcome<Option<Value>> {
        Ok(Some(match name {
            "index" => Value::int(state.taken.get()),
            "index0" => Value::int(state.index0()),
            "first" => Value::Bool(state.taken.get() == 1),
            "last" => Value::Bool(!self.fill(state)?),
            "length" => Value::int(self.loop_length(state)?),
            "revindex" => Value::int(self.loop_length(state)? - state.index0()),
            "revindex0" => Value::int(self.loop_length(state)? - state.taken.get()),
            "depth" => Value::int(state.depth + 1),
            "depth0" => Value::int(state.depth),
            "previtem" => {
                let previous = state.previous.borrow().clone();
                previous.unwrap_or_else(|| Value::undefined("there is no previous item"))
            }
            "nextitem" => {
                self.fill(state)?;
                let next = state.tested.borrow().front().cloned();
                next.unwrap_or_else(|| Value::undefined("there is no next item"))
            }
            _ => return Ok(None),
        }))
    }

    /// `loop.cycle(...)` and `loop.changed(...)`
    pub(super) fn loop_method(&mut self, state: &LoopState, name: &str, args: Args) -> Outcome<Value> {
        if let Some((name, _)) = args.named.first() {
            return failed(format!("TypeError: got an unexpected keyword argument '{name}'"));
        }
        let values = args.positional;
        if name == "cycle" {
            if values.is_empty() {
                return failed("TypeError: no items for cycling given");
            }
            return Ok(values[state.index0() % values.len()].clone());
        }
        let now = Value::tuple(values.clone());
        let same = match &*state.changed.borrow() {
            Some(before) => Value::tuple(before.clone()).equals(&now, &self.budget)?,
            None => false,
        };
        if !same {
            state.changed.replace(Some(values));
        }
        Ok(Value::Bool(!same))
    }

    /// `loop(items)`: runs the loop's body recursively over inner items.
    pub(super) fn recurse(&mut self, state: &LoopState, args: Args) -> Outcome<Value> {
        let items = args.one("loop")?;
        if !state.node.recursive {
            return failed("TypeError: The loop must have the 'recursive' marker to be called recursively.");
        }
        self.budget.enter()?;
        let text = self.capture(|run| run.run_loop(&state.node, &items, &state.scope, state.depth + 1));
        self.budget.leave();
        Ok(Value::from(text?))
    }
}
