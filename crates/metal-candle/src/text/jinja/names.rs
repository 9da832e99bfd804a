//! Finds the names that a part of a template reads.
//!
//! A macro gets `caller`, `kwargs` and `varargs` only if it reads them, and a loop `loop`.

use super::ast::{Arguments, Expr, Kind, Statement};

/// Whether the statements read a variable of this name.
pub(super) fn reads(body: &[Statement], name: &str) -> bool {
    body.iter().any(|statement| statement_reads(&statement.kind, name))
}

fn statement_reads(kind: &Kind, name: &str) -> bool {
    let read = |value: &Expr| expression_reads(value, name);
    match kind {
        Kind::Data(_) | Kind::Break | Kind::Continue => false,
        Kind::Print(value) | Kind::Set(_, value) => read(value),
        Kind::If(branches, otherwise) => {
            branches.iter().any(|(test, body)| read(test) || reads(body, name)) || reads(otherwise, name)
        }
        Kind::For(node) => {
            read(&node.items)
                || node.test.as_ref().is_some_and(read)
                || reads(&node.body, name)
                || reads(&node.otherwise, name)
        }
        Kind::SetBlock(_, filter, body) => filter.as_ref().is_some_and(read) || reads(body, name),
        Kind::With(bindings, body) => bindings.iter().any(|(_, value)| read(value)) || reads(body, name),
        Kind::FilterBlock(filter, body) => read(filter) || reads(body, name),
        Kind::Macro(node) => node.signature.defaults.iter().any(read) || reads(&node.body, name),
        Kind::CallBlock(call, node) => read(call) || reads(&node.body, name),
        Kind::Generation(body) => reads(body, name),
    }
}

fn expression_reads(value: &Expr, name: &str) -> bool {
    let read = |value: &Expr| expression_reads(value, name);
    match value {
        Expr::Literal(_) => false,
        Expr::Name(found) => &**found == name,
        Expr::Tuple(items) | Expr::List(items) | Expr::Concat(items) => items.iter().any(read),
        Expr::Dict(items) => items.iter().any(|(key, value)| read(key) || read(value)),
        Expr::Neg(value) | Expr::Pos(value) | Expr::Not(value) | Expr::Attribute(value, _) => read(value),
        Expr::Binary(_, left, right) | Expr::And(left, right) | Expr::Or(left, right) | Expr::Item(left, right) => {
            read(left) || read(right)
        }
        Expr::Compare(first, links) => read(first) || links.iter().any(|(_, value)| read(value)),
        Expr::Condition(node) => read(&node.test) || read(&node.yes) || node.no.as_ref().is_some_and(read),
        Expr::Slice(value, parts) => read(value) || parts.iter().flatten().any(read),
        Expr::Call(value, arguments) | Expr::Test(value, _, arguments) => {
            read(value) || arguments_read(arguments, name)
        }
        Expr::Filter(value, _, arguments) => value.as_deref().is_some_and(read) || arguments_read(arguments, name),
    }
}

fn arguments_read(arguments: &Arguments, name: &str) -> bool {
    let named = arguments.named.iter().map(|(_, value)| value);
    let mut all = arguments
        .positional
        .iter()
        .chain(named)
        .chain(&arguments.list)
        .chain(&arguments.map);
    all.any(|value| expression_reads(value, name))
}

/// Whether there is a `{% generation %}` tag.
pub(super) fn has_generation(body: &[Statement]) -> bool {
    body.iter().any(|statement| match &statement.kind {
        Kind::Generation(_) => true,
        Kind::Data(_) | Kind::Print(_) | Kind::Break | Kind::Continue | Kind::Set(..) => false,
        Kind::If(branches, otherwise) => {
            branches.iter().any(|(_, body)| has_generation(body)) || has_generation(otherwise)
        }
        Kind::For(node) => has_generation(&node.body) || has_generation(&node.otherwise),
        Kind::SetBlock(_, _, body) | Kind::With(_, body) | Kind::FilterBlock(_, body) => has_generation(body),
        Kind::Macro(node) | Kind::CallBlock(_, node) => has_generation(&node.body),
    })
}
