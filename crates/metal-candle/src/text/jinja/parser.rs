//! The parser of statements.
//!
//! Statements that read other templates (`include`, `import`, `extends`) are refused: a chat template is
//! self-contained.

use std::sync::Arc;

use super::ast::{Arguments, Expr, Kind, Loop, MacroBody, Name, Signature, Statement, Target};
use super::fault::Outcome;
use super::lexer::{Token, syntax, tokens};
use super::names::reads;

/// Maximum nesting of statements and expressions in a template.
const MAX_DEPTH: usize = 150;
/// Maximum number of operators in one tag: a chain of them nests to the left.
const MAX_LINKS: usize = 5000;

pub(super) struct Parser {
    tokens: Vec<(Token, usize)>,
    at: usize,
    depth: usize,
    /// Number of operators in the current tag.
    links: usize,
    /// Whether `break` and `continue` are inside a loop.
    in_loop: bool,
}

/// Parses a template.
pub(super) fn parse(source: &str) -> Outcome<Vec<Statement>> {
    let mut parser = Parser {
        tokens: tokens(source)?,
        at: 0,
        depth: 0,
        links: 0,
        in_loop: false,
    };
    let body = parser.statements(&[])?;
    Ok(body)
}

impl Parser {
    pub fn peek(&self) -> &Token {
        &self.tokens[self.at].0
    }

    pub fn peek_second(&self) -> &Token {
        let at = (self.at + 1).min(self.tokens.len() - 1);
        &self.tokens[at].0
    }

    pub fn line(&self) -> usize {
        self.tokens[self.at].1
    }

    pub fn next(&mut self) -> Token {
        let token = self.tokens[self.at].0.clone();
        self.at = (self.at + 1).min(self.tokens.len() - 1);
        token
    }

    pub fn fail<T>(&self, message: impl Into<String>) -> Outcome<T> {
        syntax(self.line(), message)
    }

    pub fn is_op(&self, operator: &str) -> bool {
        matches!(self.peek(), Token::Op(found) if *found == operator)
    }

    pub fn is_name(&self, name: &str) -> bool {
        matches!(self.peek(), Token::Name(found) if &**found == name)
    }

    pub fn skip_op(&mut self, operator: &str) -> bool {
        let found = self.is_op(operator);
        if found {
            self.next();
        }
        found
    }

    pub fn skip_name(&mut self, name: &str) -> bool {
        let found = self.is_name(name);
        if found {
            self.next();
        }
        found
    }

    pub fn expect_op(&mut self, operator: &str) -> Outcome<()> {
        if self.skip_op(operator) {
            return Ok(());
        }
        self.fail(format!("expected '{operator}', got {}", describe(self.peek())))
    }

    pub fn expect_name(&mut self) -> Outcome<Name> {
        match self.next() {
            Token::Name(name) => Ok(name),
            other => {
                self.at -= usize::from(self.at > 0 && other != Token::End);
                self.fail(format!("expected a name, got {}", describe(&other)))
            }
        }
    }

    fn expect_word(&mut self, word: &str) -> Outcome<()> {
        if self.skip_name(word) {
            return Ok(());
        }
        self.fail(format!("expected '{word}', got {}", describe(self.peek())))
    }

    fn expect_block_end(&mut self) -> Outcome<()> {
        if *self.peek() == Token::BlockEnd {
            self.next();
            return Ok(());
        }
        self.fail(format!("expected the end of the tag, got {}", describe(self.peek())))
    }

    /// Parses one level deeper.
    pub fn deeper<T>(&mut self, parse: impl FnOnce(&mut Self) -> Outcome<T>) -> Outcome<T> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return self.fail(format!("nested more than {MAX_DEPTH} levels deep"));
        }
        let parsed = parse(self)?;
        self.depth -= 1;
        Ok(parsed)
    }

    /// Counts an operator of the current tag.
    pub fn link(&mut self) -> Outcome<()> {
        self.links += 1;
        if self.links > MAX_LINKS {
            return self.fail(format!("a tag has more than {MAX_LINKS} operators"));
        }
        Ok(())
    }

    /// Parses statements up to a tag with one of these names, which becomes the current token; without names, up to the
    /// end.
    fn statements(&mut self, ends: &[&str]) -> Outcome<Vec<Statement>> {
        let mut body = Vec::new();
        loop {
            let line = self.line();
            self.links = 0;
            match self.next() {
                Token::Data(text) => body.push(Statement {
                    kind: Kind::Data(text),
                    line,
                }),
                Token::VariableBegin => {
                    let value = self.tuple(true, None)?;
                    if *self.peek() != Token::VariableEnd {
                        return self.fail(format!(
                            "expected the end of the expression, got {}",
                            describe(self.peek())
                        ));
                    }
                    self.next();
                    body.push(Statement {
                        kind: Kind::Print(value),
                        line,
                    });
                }
                Token::BlockBegin => {
                    if ends.iter().any(|end| self.is_name(end)) {
                        return Ok(body);
                    }
                    self.deeper(|parser| parser.statement(&mut body))?;
                    self.expect_block_end()?;
                }
                _ if ends.is_empty() => return Ok(body),
                _ => {
                    let wanted = ends
                        .iter()
                        .map(|end| format!("'{end}'"))
                        .collect::<Vec<_>>()
                        .join(" or ");
                    return self.fail(format!("unexpected end of template; expected {wanted}"));
                }
            }
        }
    }

    /// The body of a statement, from the end of its tag to one of these tags.
    fn body(&mut self, ends: &[&str]) -> Outcome<Vec<Statement>> {
        self.skip_op(":");
        self.expect_block_end()?;
        self.statements(ends)
    }

    /// [`body`](Self::body), and skips the name of its end tag.
    fn whole_body(&mut self, end: &str) -> Outcome<Vec<Statement>> {
        let body = self.body(&[end])?;
        self.next();
        Ok(body)
    }

    /// A body that runs as a function: `break` cannot leave it.
    fn function_body(&mut self, end: &str) -> Outcome<Vec<Statement>> {
        let outer = std::mem::replace(&mut self.in_loop, false);
        let body = self.whole_body(end)?;
        self.in_loop = outer;
        Ok(body)
    }

    fn statement(&mut self, out: &mut Vec<Statement>) -> Outcome<()> {
        let line = self.line();
        let Token::Name(name) = self.peek().clone() else {
            return self.fail(format!("expected the name of a tag, got {}", describe(self.peek())));
        };
        self.next();
        let kind = match &*name {
            "for" => self.for_loop()?,
            "if" => self.condition()?,
            "set" => self.set()?,
            "macro" => {
                let name = self.expect_name()?;
                let signature = self.signature()?;
                let body = self.function_body("endmacro")?;
                Kind::Macro(Arc::new(macro_body(name, signature, body)))
            }
            "call" => self.call_block()?,
            "filter" => {
                let filter = self.filters(None, true)?;
                Kind::FilterBlock(filter, self.whole_body("endfilter")?)
            }
            "with" => self.with()?,
            "generation" => Kind::Generation(self.function_body("endgeneration")?),
            "print" => return self.print(line, out),
            "break" | "continue" if !self.in_loop => {
                return syntax(line, format!("'{name}' outside of a loop"));
            }
            "break" => Kind::Break,
            "continue" => Kind::Continue,
            "include" | "import" | "from" | "extends" | "block" | "autoescape" => {
                let reason = "is not supported: a chat template must be self-contained";
                return syntax(line, format!("the tag '{name}' {reason}"));
            }
            _ => return syntax(line, format!("unknown tag '{name}'")),
        };
        out.push(Statement { kind, line });
        Ok(())
    }

    fn print(&mut self, line: usize, out: &mut Vec<Statement>) -> Outcome<()> {
        let mut first = true;
        while *self.peek() != Token::BlockEnd {
            if !std::mem::take(&mut first) {
                self.expect_op(",")?;
            }
            let kind = Kind::Print(self.expression()?);
            out.push(Statement { kind, line });
        }
        Ok(())
    }

    fn for_loop(&mut self) -> Outcome<Kind> {
        let target = self.target(Some("in"))?;
        self.expect_word("in")?;
        let items = self.tuple(false, Some("recursive"))?;
        let test = if self.skip_name("if") {
            Some(self.expression()?)
        } else {
            None
        };
        let recursive = self.skip_name("recursive");
        let outer = std::mem::replace(&mut self.in_loop, true);
        let body = self.body(&["endfor", "else"])?;
        self.in_loop = outer;
        let has_else = self.is_name("else");
        self.next();
        let otherwise = if has_else {
            self.whole_body("endfor")?
        } else {
            Vec::new()
        };
        Ok(Kind::For(Arc::new(Loop {
            target,
            items,
            test,
            recursive,
            body,
            otherwise,
        })))
    }

    fn condition(&mut self) -> Outcome<Kind> {
        let mut branches = Vec::new();
        loop {
            let test = self.tuple(false, None)?;
            let body = self.body(&["elif", "else", "endif"])?;
            branches.push((test, body));
            let Token::Name(end) = self.next() else {
                return self.fail("expected 'elif', 'else' or 'endif'");
            };
            match &*end {
                "elif" => {}
                "else" => {
                    let otherwise = self.whole_body("endif")?;
                    return Ok(Kind::If(branches, otherwise));
                }
                _ => return Ok(Kind::If(branches, Vec::new())),
            }
        }
    }

    fn set(&mut self) -> Outcome<Kind> {
        let target = self.target(None)?;
        if self.skip_op("=") {
            return Ok(Kind::Set(target, self.tuple(true, None)?));
        }
        let filter = if self.is_op("|") {
            Some(self.filters(None, false)?)
        } else {
            None
        };
        let body = self.whole_body("endset")?;
        Ok(Kind::SetBlock(target, filter, body))
    }

    fn with(&mut self) -> Outcome<Kind> {
        let mut bindings = Vec::new();
        while *self.peek() != Token::BlockEnd {
            if !bindings.is_empty() {
                self.expect_op(",")?;
            }
            let target = self.target(None)?;
            self.expect_op("=")?;
            bindings.push((target, self.expression()?));
        }
        Ok(Kind::With(bindings, self.whole_body("endwith")?))
    }

    fn call_block(&mut self) -> Outcome<Kind> {
        let signature = if self.is_op("(") {
            self.signature()?
        } else {
            Signature::default()
        };
        let call = self.expression()?;
        if !matches!(call, Expr::Call(..)) {
            return self.fail("expected a call");
        }
        let body = self.function_body("endcall")?;
        Ok(Kind::CallBlock(
            call,
            Arc::new(macro_body("caller".into(), signature, body)),
        ))
    }

    fn signature(&mut self) -> Outcome<Signature> {
        let mut signature = Signature::default();
        self.expect_op("(")?;
        while !self.is_op(")") {
            if !signature.names.is_empty() {
                self.expect_op(",")?;
            }
            let name = self.expect_name()?;
            if signature.names.contains(&name) {
                return self.fail(format!("the parameter '{name}' occurs twice"));
            }
            signature.names.push(name);
            if self.skip_op("=") {
                signature.defaults.push(self.expression()?);
            } else if !signature.defaults.is_empty() {
                return self.fail("a parameter without a default follows one with a default");
            } else if signature.names.last().is_some_and(|name| &**name == "caller") {
                return self.fail("the parameter 'caller' needs a default");
            }
        }
        self.expect_op(")")?;
        Ok(signature)
    }

    /// An assignment target: names, attributes of namespaces, and tuples of them.
    fn target(&mut self, end: Option<&str>) -> Outcome<Target> {
        let mut targets = Vec::new();
        let mut is_tuple = false;
        loop {
            let ended =
                matches!(self.peek(), Token::BlockEnd) || self.is_op(")") || end.is_some_and(|end| self.is_name(end));
            if ended && !targets.is_empty() {
                break;
            }
            targets.push(self.deeper(Self::single_target)?);
            if !self.skip_op(",") {
                break;
            }
            is_tuple = true;
        }
        match targets.pop() {
            Some(single) if !is_tuple => Ok(single),
            last => {
                targets.extend(last);
                Ok(Target::Tuple(targets))
            }
        }
    }

    fn single_target(&mut self) -> Outcome<Target> {
        if self.skip_op("(") {
            let target = self.target(None)?;
            self.expect_op(")")?;
            return Ok(target);
        }
        let name = self.expect_name()?;
        if matches!(&*name, "true" | "false" | "none" | "True" | "False" | "None") {
            return self.fail(format!("cannot assign to '{name}'"));
        }
        if self.skip_op(".") {
            return Ok(Target::Attribute(name, self.expect_name()?));
        }
        Ok(Target::Name(name))
    }

    /// `| name(arguments) | ...` after a value; with `bare`, the first name has no bar before it.
    pub fn filters(&mut self, value: Option<Expr>, mut bare: bool) -> Outcome<Expr> {
        let mut value = value.map(Box::new);
        while bare || self.skip_op("|") {
            bare = false;
            self.link()?;
            let mut name = self.expect_name()?;
            while self.skip_op(".") {
                name = format!("{name}.{}", self.expect_name()?).into();
            }
            let arguments = if self.is_op("(") {
                self.arguments()?
            } else {
                Arguments::default()
            };
            value = Some(Box::new(Expr::Filter(value, name, Box::new(arguments))));
        }
        match value {
            Some(value) => Ok(*value),
            None => self.fail("expected a filter"),
        }
    }
}

fn macro_body(name: Name, signature: Signature, body: Vec<Statement>) -> MacroBody {
    let uses = |name: &str| reads(&body, name);
    MacroBody {
        uses_caller: uses("caller"),
        uses_kwargs: uses("kwargs"),
        uses_varargs: uses("varargs"),
        name,
        signature,
        body,
    }
}

/// A token in words.
pub(super) fn describe(token: &Token) -> String {
    match token {
        Token::Data(_) => "text".to_owned(),
        Token::VariableBegin => "'{{'".to_owned(),
        Token::VariableEnd => "the end of the expression".to_owned(),
        Token::BlockBegin => "'{%'".to_owned(),
        Token::BlockEnd => "the end of the tag".to_owned(),
        Token::Name(name) => format!("'{name}'"),
        Token::Text(text) => format!("the string {:?}", super::super::first_line(text)),
        Token::Int(value) => value.to_string(),
        Token::Float(value) => value.to_string(),
        Token::Op(operator) => format!("'{operator}'"),
        Token::End => "the end of the template".to_owned(),
    }
}
