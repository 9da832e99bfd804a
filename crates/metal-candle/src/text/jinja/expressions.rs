//! The parser of expressions, with Jinja2's precedence.
//!
//! From lowest to highest: `if else`, `or`, `and`, `not`, comparisons, `+ -`, `~`, `* / // %`, `**` (left-associative),
//! signs, postfixes, filters and tests.

use super::ast::{Arguments, Binary, Comparison, Condition, Expr, Literal};
use super::fault::Outcome;
use super::lexer::Token;
use super::parser::{Parser, describe};

impl Parser {
    pub fn expression(&mut self) -> Outcome<Expr> {
        self.deeper(|parser| {
            let line = parser.line();
            let mut value = parser.or()?;
            while parser.skip_name("if") {
                parser.link()?;
                let test = parser.or()?;
                let no = if parser.skip_name("else") {
                    Some(parser.expression()?)
                } else {
                    None
                };
                value = Expr::Condition(Box::new(Condition {
                    test,
                    yes: value,
                    no,
                    line,
                }));
            }
            Ok(value)
        })
    }

    /// One expression, or a tuple of several; `conditional` allows `a if b`, and the word `end` ends it.
    pub fn tuple(&mut self, conditional: bool, end: Option<&str>) -> Outcome<Expr> {
        match self.items(conditional, end)? {
            Some(value) => Ok(value),
            None => self.fail(format!("expected an expression, got {}", describe(self.peek()))),
        }
    }

    fn items(&mut self, conditional: bool, end: Option<&str>) -> Outcome<Option<Expr>> {
        let mut items = Vec::new();
        let mut is_tuple = false;
        loop {
            let ended = matches!(self.peek(), Token::VariableEnd | Token::BlockEnd)
                || self.is_op(")")
                || end.is_some_and(|end| self.is_name(end));
            if ended {
                break;
            }
            items.push(if conditional {
                self.expression()?
            } else {
                self.deeper(Self::or)?
            });
            if !self.skip_op(",") {
                break;
            }
            is_tuple = true;
        }
        if is_tuple {
            return Ok(Some(Expr::Tuple(items)));
        }
        Ok(items.pop())
    }

    fn or(&mut self) -> Outcome<Expr> {
        let mut left = self.and()?;
        while self.skip_name("or") {
            self.link()?;
            left = Expr::Or(Box::new(left), Box::new(self.and()?));
        }
        Ok(left)
    }

    fn and(&mut self) -> Outcome<Expr> {
        let mut left = self.not()?;
        while self.skip_name("and") {
            self.link()?;
            left = Expr::And(Box::new(left), Box::new(self.not()?));
        }
        Ok(left)
    }

    fn not(&mut self) -> Outcome<Expr> {
        if self.skip_name("not") {
            return self.deeper(|parser| Ok(Expr::Not(Box::new(parser.not()?))));
        }
        self.comparison()
    }

    fn comparison(&mut self) -> Outcome<Expr> {
        let first = self.sum()?;
        let mut links = Vec::new();
        while let Some(operator) = self.comparison_operator() {
            self.link()?;
            links.push((operator, self.sum()?));
        }
        Ok(if links.is_empty() {
            first
        } else {
            Expr::Compare(Box::new(first), links)
        })
    }

    fn comparison_operator(&mut self) -> Option<Comparison> {
        let operator = match self.peek() {
            Token::Op("==") => Comparison::Eq,
            Token::Op("!=") => Comparison::Ne,
            Token::Op("<") => Comparison::Lt,
            Token::Op("<=") => Comparison::Le,
            Token::Op(">") => Comparison::Gt,
            Token::Op(">=") => Comparison::Ge,
            Token::Name(name) if &**name == "in" => Comparison::In,
            Token::Name(name) if &**name == "not" => {
                if !matches!(self.peek_second(), Token::Name(name) if &**name == "in") {
                    return None;
                }
                self.next();
                Comparison::NotIn
            }
            _ => return None,
        };
        self.next();
        Some(operator)
    }

    fn binary(&mut self, operators: &[(&str, Binary)], operand: impl Fn(&mut Self) -> Outcome<Expr>) -> Outcome<Expr> {
        let mut left = operand(self)?;
        while let Some((sign, operator)) = operators.iter().find(|(sign, _)| self.is_op(sign)) {
            self.expect_op(sign)?;
            self.link()?;
            left = Expr::Binary(*operator, Box::new(left), Box::new(operand(self)?));
        }
        Ok(left)
    }

    fn sum(&mut self) -> Outcome<Expr> {
        self.binary(&[("+", Binary::Add), ("-", Binary::Sub)], Self::concat)
    }

    fn concat(&mut self) -> Outcome<Expr> {
        let mut parts = vec![self.product()?];
        while self.skip_op("~") {
            parts.push(self.product()?);
        }
        match parts.pop() {
            Some(single) if parts.is_empty() => Ok(single),
            last => {
                parts.extend(last);
                Ok(Expr::Concat(parts))
            }
        }
    }

    fn product(&mut self) -> Outcome<Expr> {
        let operators = [
            ("*", Binary::Mul),
            ("/", Binary::Div),
            ("//", Binary::FloorDiv),
            ("%", Binary::Mod),
        ];
        self.binary(&operators, Self::power)
    }

    fn power(&mut self) -> Outcome<Expr> {
        self.binary(&[("**", Binary::Pow)], |parser| parser.unary(true))
    }

    fn unary(&mut self, with_filters: bool) -> Outcome<Expr> {
        let value = if self.skip_op("-") {
            Expr::Neg(Box::new(self.deeper(|parser| parser.unary(false))?))
        } else if self.skip_op("+") {
            Expr::Pos(Box::new(self.deeper(|parser| parser.unary(false))?))
        } else {
            self.primary()?
        };
        let value = self.postfix(value)?;
        if with_filters {
            self.filters_and_tests(value)
        } else {
            Ok(value)
        }
    }

    fn primary(&mut self) -> Outcome<Expr> {
        let line = self.line();
        let token = self.next();
        Ok(match token {
            Token::Name(name) => match &*name {
                "true" | "True" => Expr::Literal(Literal::Bool(true)),
                "false" | "False" => Expr::Literal(Literal::Bool(false)),
                "none" | "None" => Expr::Literal(Literal::None),
                _ => Expr::Name(name),
            },
            Token::Text(first) => {
                let mut text = first;
                while let Token::Text(more) = self.peek() {
                    text = format!("{text}{more}").into();
                    self.next();
                }
                Expr::Literal(Literal::Text(text))
            }
            Token::Int(value) => Expr::Literal(Literal::Int(value)),
            Token::Float(value) => Expr::Literal(Literal::Float(value)),
            Token::Op("(") => {
                let value = self.items(true, None)?.unwrap_or(Expr::Tuple(Vec::new()));
                self.expect_op(")")?;
                value
            }
            Token::Op("[") => Expr::List(self.list()?),
            Token::Op("{") => self.dict()?,
            other => return super::lexer::syntax(line, format!("unexpected {}", describe(&other))),
        })
    }

    fn list(&mut self) -> Outcome<Vec<Expr>> {
        let mut items = Vec::new();
        while !self.is_op("]") {
            if !items.is_empty() {
                self.expect_op(",")?;
                if self.is_op("]") {
                    break;
                }
            }
            items.push(self.expression()?);
        }
        self.expect_op("]")?;
        Ok(items)
    }

    fn dict(&mut self) -> Outcome<Expr> {
        let mut items = Vec::new();
        while !self.is_op("}") {
            if !items.is_empty() {
                self.expect_op(",")?;
                if self.is_op("}") {
                    break;
                }
            }
            let key = self.expression()?;
            self.expect_op(":")?;
            items.push((key, self.expression()?));
        }
        self.expect_op("}")?;
        Ok(Expr::Dict(items))
    }

    fn postfix(&mut self, mut value: Expr) -> Outcome<Expr> {
        loop {
            self.link()?;
            value = if self.skip_op(".") {
                self.attribute(value)?
            } else if self.skip_op("[") {
                self.subscript(value)?
            } else if self.is_op("(") {
                Expr::Call(Box::new(value), Box::new(self.arguments()?))
            } else {
                return Ok(value);
            };
        }
    }

    fn attribute(&mut self, value: Expr) -> Outcome<Expr> {
        match self.next() {
            Token::Name(name) => Ok(Expr::Attribute(Box::new(value), name)),
            Token::Int(index) => {
                let index = Expr::Literal(Literal::Int(index));
                Ok(Expr::Item(Box::new(value), Box::new(index)))
            }
            other => self.fail(format!("expected a name or a number, got {}", describe(&other))),
        }
    }

    fn subscript(&mut self, value: Expr) -> Outcome<Expr> {
        if self.is_op("]") {
            return self.fail("expected an index");
        }
        let start = if self.is_op(":") {
            None
        } else {
            Some(self.expression()?)
        };
        if !self.skip_op(":") {
            let Some(index) = start else {
                return self.fail("expected an index");
            };
            let index = if self.is_op(",") {
                self.index_tuple(index)?
            } else {
                index
            };
            self.expect_op("]")?;
            return Ok(Expr::Item(Box::new(value), Box::new(index)));
        }
        let part = |parser: &mut Self| {
            let absent = parser.is_op(":") || parser.is_op("]");
            if absent {
                Ok(None)
            } else {
                parser.expression().map(Some)
            }
        };
        let stop = part(self)?;
        let step = if self.skip_op(":") { part(self)? } else { None };
        self.expect_op("]")?;
        Ok(Expr::Slice(Box::new(value), Box::new([start, stop, step])))
    }

    fn index_tuple(&mut self, first: Expr) -> Outcome<Expr> {
        let mut items = vec![first];
        while self.skip_op(",") {
            items.push(self.expression()?);
        }
        Ok(Expr::Tuple(items))
    }

    pub fn arguments(&mut self) -> Outcome<Arguments> {
        self.expect_op("(")?;
        let mut arguments = Arguments::default();
        let mut first = true;
        while !self.is_op(")") {
            if !std::mem::take(&mut first) {
                self.expect_op(",")?;
                if self.is_op(")") {
                    break;
                }
            }
            self.argument(&mut arguments)?;
        }
        self.expect_op(")")?;
        Ok(arguments)
    }

    fn argument(&mut self, arguments: &mut Arguments) -> Outcome<()> {
        let misplaced = arguments.map.is_some();
        let is_named = matches!(self.peek(), Token::Name(_)) && matches!(self.peek_second(), Token::Op("="));
        let ordered = if self.skip_op("*") {
            let ordered = arguments.list.is_none() && !misplaced;
            arguments.list = Some(self.expression()?);
            ordered
        } else if self.skip_op("**") {
            arguments.map = Some(self.expression()?);
            !misplaced
        } else if is_named {
            let name = self.expect_name()?;
            self.expect_op("=")?;
            if arguments.named.iter().any(|(known, _)| *known == name) {
                return self.fail(format!("the argument '{name}' occurs twice"));
            }
            arguments.named.push((name, self.expression()?));
            !misplaced
        } else {
            arguments.positional.push(self.expression()?);
            arguments.list.is_none() && arguments.named.is_empty() && !misplaced
        };
        if ordered {
            Ok(())
        } else {
            self.fail("the arguments of a call are out of order")
        }
    }

    fn filters_and_tests(&mut self, mut value: Expr) -> Outcome<Expr> {
        loop {
            value = if self.is_op("|") {
                self.filters(Some(value), false)?
            } else if self.skip_name("is") {
                self.link()?;
                self.test(value)?
            } else if self.is_op("(") {
                self.link()?;
                Expr::Call(Box::new(value), Box::new(self.arguments()?))
            } else {
                return Ok(value);
            };
        }
    }

    fn test(&mut self, value: Expr) -> Outcome<Expr> {
        let negated = self.skip_name("not");
        let mut name = self.expect_name()?;
        while self.skip_op(".") {
            name = format!("{name}.{}", self.expect_name()?).into();
        }
        let arguments = if self.is_op("(") {
            self.arguments()?
        } else if self.starts_test_argument() {
            if self.is_name("is") {
                return self.fail("tests cannot be chained with 'is'");
            }
            let argument = self.primary()?;
            Arguments {
                positional: vec![self.postfix(argument)?],
                ..Arguments::default()
            }
        } else {
            Arguments::default()
        };
        let test = Expr::Test(Box::new(value), name, Box::new(arguments));
        Ok(if negated { Expr::Not(Box::new(test)) } else { test })
    }

    fn starts_test_argument(&self) -> bool {
        match self.peek() {
            Token::Name(name) => !matches!(&**name, "else" | "or" | "and"),
            Token::Text(_) | Token::Int(_) | Token::Float(_) | Token::Op("[" | "{") => true,
            _ => false,
        }
    }
}
