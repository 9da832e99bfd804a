//! `'{} {name[key].attribute!r:>10}'.format(value, name=value)`
//!
//! Fields look attributes and items up in the sandbox, and nest one level deep. Format specifications are in `spec.rs`.

use super::spec;
use crate::text::jinja::arguments::Args;
use crate::text::jinja::fault::{Outcome, failed};
use crate::text::jinja::interpreter::Interpreter;
use crate::text::jinja::print::push_code;
use crate::text::jinja::value::Value;

/// The source of a field's values.
enum FieldSource<'a> {
    Args(&'a Args),
    Map(&'a Value),
}

struct Formatter<'a, 'r, 't> {
    run: &'r mut Interpreter<'t>,
    source: FieldSource<'a>,
    /// The number of the next automatically numbered field.
    next: usize,
    /// Whether some field was numbered explicitly.
    numbered: bool,
}

pub(in crate::text::jinja) fn format(run: &mut Interpreter, pattern: &str, args: &Args) -> Outcome<Value> {
    start(run, pattern, FieldSource::Args(args))
}

pub(in crate::text::jinja) fn format_map(run: &mut Interpreter, pattern: &str, map: &Value) -> Outcome<Value> {
    start(run, pattern, FieldSource::Map(map))
}

fn start(run: &mut Interpreter, pattern: &str, source: FieldSource) -> Outcome<Value> {
    let mut formatter = Formatter {
        run,
        source,
        next: 0,
        numbered: false,
    };
    formatter.format(pattern, 2).map(Value::from)
}

impl Formatter<'_, '_, '_> {
    fn format(&mut self, pattern: &str, depth: usize) -> Outcome<String> {
        let mut out = String::new();
        let mut rest = pattern;
        while let Some(at) = rest.find(['{', '}']) {
            out.push_str(&rest[..at]);
            let (brace, after) = rest[at..].split_at(1);
            if let Some(after) = after.strip_prefix(brace) {
                out.push_str(brace);
                rest = after;
                continue;
            }
            if brace == "}" {
                return failed("ValueError: Single '}' encountered in format string");
            }
            let Some(end) = closing(after) else {
                return failed("ValueError: expected '}' before end of string");
            };
            let text = self.field(&after[..end], depth)?;
            self.run.budget.bytes(text.len())?;
            out.push_str(&text);
            rest = &after[end + 1..];
        }
        out.push_str(rest);
        self.run.budget.bytes(out.len())?;
        Ok(out)
    }

    fn field(&mut self, field: &str, depth: usize) -> Outcome<String> {
        if depth == 0 {
            return failed("ValueError: Max string recursion exceeded");
        }
        let end = name_end(field);
        let (name, after) = field.split_at(end);
        let (conversion, spec) = match after.strip_prefix('!') {
            Some(after) => {
                let (conversion, spec) = after.split_once(':').unwrap_or((after, ""));
                (conversion, spec)
            }
            None => ("", after.strip_prefix(':').unwrap_or("")),
        };
        let value = self.value(name)?;
        let value = self.converted(value, conversion, after.starts_with('!'))?;
        let spec = if spec.contains(['{', '}']) {
            self.format(spec, depth - 1)?
        } else {
            spec.to_owned()
        };
        spec::format(&value, &spec, &self.run.budget)
    }

    fn converted(&self, value: Value, conversion: &str, given: bool) -> Outcome<Value> {
        let budget = &self.run.budget;
        Ok(match conversion {
            "" if !given => value,
            "s" => Value::Str(value.to_text(budget)?),
            "r" => Value::from(value.repr(budget)?),
            "a" => {
                let mut out = String::new();
                for letter in value.repr(budget)?.chars() {
                    if letter.is_ascii() {
                        out.push(letter);
                    } else {
                        push_code(letter, &mut out);
                    }
                }
                Value::from(out)
            }
            _ => return failed(format!("ValueError: Unknown conversion specifier '{conversion}'")),
        })
    }

    /// The value of `first.attribute[key]`.
    fn value(&mut self, name: &str) -> Outcome<Value> {
        let end = name.find(['.', '[']).unwrap_or(name.len());
        let mut value = self.first(&name[..end])?;
        let mut rest = &name[end..];
        while !rest.is_empty() {
            self.run.budget.spend(1)?;
            if let Some(after) = rest.strip_prefix('.') {
                let end = after.find(['.', '[']).unwrap_or(after.len());
                value = self.run.attribute(&value, &after[..end])?;
                rest = &after[end..];
            } else if let Some((key, after)) = rest.strip_prefix('[').and_then(|after| after.split_once(']')) {
                let key = key.parse::<i128>().map_or_else(|_| Value::from(key), Value::Int);
                value = self.run.item(&value, &key)?;
                rest = after;
            } else {
                return failed("ValueError: Missing ']' in format string");
            }
        }
        Ok(value)
    }

    fn first(&mut self, name: &str) -> Outcome<Value> {
        let index = if name.is_empty() {
            self.automatic()?
        } else {
            name.parse::<usize>().ok()
        };
        if !name.is_empty() && index.is_some() {
            if self.next > 0 && !self.numbered {
                return failed(
                    "ValueError: cannot switch from automatic field numbering to manual field specification",
                );
            }
            self.numbered = true;
        }
        match (&self.source, index) {
            (FieldSource::Args(args), Some(index)) => match args.positional.get(index) {
                Some(value) => Ok(value.clone()),
                None => failed(format!(
                    "IndexError: Replacement index {index} out of range for positional args tuple"
                )),
            },
            (FieldSource::Args(args), None) => match args.named.iter().find(|(known, _)| &**known == name) {
                Some((_, value)) => Ok(value.clone()),
                None => failed(format!("KeyError: '{name}'")),
            },
            (FieldSource::Map(_), Some(index)) => failed(format!(
                "IndexError: Replacement index {index} out of range for positional args tuple"
            )),
            (FieldSource::Map(Value::Dict(dict)), None) => match dict.get_text(name) {
                Some(value) => Ok(value.clone()),
                None => failed(format!("KeyError: '{name}'")),
            },
            (FieldSource::Map(other), None) => failed(format!("TypeError: '{}' is no mapping", other.type_name())),
        }
    }

    fn automatic(&mut self) -> Outcome<Option<usize>> {
        if self.numbered {
            return failed("ValueError: cannot switch from manual field specification to automatic field numbering");
        }
        self.next += 1;
        Ok(Some(self.next - 1))
    }
}

/// The position of the brace that ends a field.
fn closing(text: &str) -> Option<usize> {
    let mut depth = 0;
    for (at, letter) in text.char_indices() {
        match letter {
            '{' => depth += 1,
            '}' if depth == 0 => return Some(at),
            '}' => depth -= 1,
            _ => {}
        }
    }
    None
}

/// The end of a field's name: a `!` or `:` outside brackets.
fn name_end(field: &str) -> usize {
    let mut in_brackets = false;
    for (at, letter) in field.char_indices() {
        match letter {
            '[' => in_brackets = true,
            ']' => in_brackets = false,
            '!' | ':' if !in_brackets => return at,
            _ => {}
        }
    }
    field.len()
}
