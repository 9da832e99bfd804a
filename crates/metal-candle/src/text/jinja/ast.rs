//! The syntax tree of a template: statements and expressions.
//!
//! Trees are immutable and shared between threads. Nothing here runs.

use std::sync::Arc;

pub(super) type Name = Arc<str>;

#[derive(Clone, Debug)]
pub(super) enum Literal {
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Text(Arc<str>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Binary {
    Add,
    Sub,
    Mul,
    Div,
    FloorDiv,
    Mod,
    Pow,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Comparison {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    In,
    NotIn,
}

#[derive(Debug)]
pub(super) enum Expr {
    Literal(Literal),
    Name(Name),
    Tuple(Vec<Expr>),
    List(Vec<Expr>),
    Dict(Vec<(Expr, Expr)>),
    Neg(Box<Expr>),
    Pos(Box<Expr>),
    Not(Box<Expr>),
    Binary(Binary, Box<Expr>, Box<Expr>),
    Concat(Vec<Expr>),
    Compare(Box<Expr>, Vec<(Comparison, Expr)>),
    And(Box<Expr>, Box<Expr>),
    Or(Box<Expr>, Box<Expr>),
    Condition(Box<Condition>),
    Attribute(Box<Expr>, Name),
    Item(Box<Expr>, Box<Expr>),
    Slice(Box<Expr>, Box<[Option<Expr>; 3]>),
    Call(Box<Expr>, Box<Arguments>),
    /// The value is absent in `{% filter name %}`: it is the block's text.
    Filter(Option<Box<Expr>>, Name, Box<Arguments>),
    Test(Box<Expr>, Name, Box<Arguments>),
}

/// `yes if test else no`
#[derive(Debug)]
pub(super) struct Condition {
    pub test: Expr,
    pub yes: Expr,
    pub no: Option<Expr>,
    pub line: usize,
}

/// The arguments of a call.
#[derive(Debug, Default)]
pub(super) struct Arguments {
    pub positional: Vec<Expr>,
    pub named: Vec<(Name, Expr)>,
    pub list: Option<Expr>,
    pub map: Option<Expr>,
}

/// The target of an assignment.
#[derive(Debug)]
pub(super) enum Target {
    Name(Name),
    Attribute(Name, Name),
    Tuple(Vec<Target>),
}

/// The parameters of a macro or of a call block; the last ones have defaults.
#[derive(Debug, Default)]
pub(super) struct Signature {
    pub names: Vec<Name>,
    pub defaults: Vec<Expr>,
}

#[derive(Debug)]
pub(super) struct MacroBody {
    pub name: Name,
    pub signature: Signature,
    pub body: Vec<Statement>,
    /// Whether the body reads `caller`, `kwargs`, `varargs`, which are passed only then.
    pub uses_caller: bool,
    pub uses_kwargs: bool,
    pub uses_varargs: bool,
}

#[derive(Debug)]
pub(super) struct Loop {
    pub target: Target,
    pub items: Expr,
    pub test: Option<Expr>,
    pub recursive: bool,
    pub body: Vec<Statement>,
    pub otherwise: Vec<Statement>,
}

#[derive(Debug)]
pub(super) struct Statement {
    pub kind: Kind,
    pub line: usize,
}

#[derive(Debug)]
pub(super) enum Kind {
    Data(Arc<str>),
    Print(Expr),
    If(Vec<(Expr, Vec<Statement>)>, Vec<Statement>),
    For(Arc<Loop>),
    Break,
    Continue,
    Set(Target, Expr),
    SetBlock(Target, Option<Expr>, Vec<Statement>),
    With(Vec<(Target, Expr)>, Vec<Statement>),
    FilterBlock(Expr, Vec<Statement>),
    Macro(Arc<MacroBody>),
    /// The call, and the body that it can call as `caller`.
    CallBlock(Expr, Arc<MacroBody>),
    Generation(Vec<Statement>),
}
