//! Target modules: which linear layers get an adapter, by PEFT's rules.

use std::collections::BTreeSet;

use regex::{Regex, RegexBuilder};

use super::AdapterError;
use super::error::Result;

/// A predicate over the names of modules.
type Matcher<'t> = Box<dyn Fn(&str) -> bool + 't>;

/// Which linear layers to adapt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetModules {
    /// Layers whose full name is an entry or ends with `.` and an entry, such as `q_proj`.
    Names(Vec<String>),
    /// Every linear layer but the output head.
    AllLinear,
    /// Layers whose full name matches the regular expression.
    Pattern(String),
}

impl TargetModules {
    /// Parses one text: `all-linear` in any case is the shorthand, anything else is a pattern.
    #[must_use]
    pub fn from_text(text: &str) -> Self {
        if text.eq_ignore_ascii_case("all-linear") {
            Self::AllLinear
        } else {
            Self::Pattern(text.to_owned())
        }
    }

    /// Whether a module is a target, by its full name. `head` is the name of the output head.
    pub(super) fn matcher<'t>(&'t self, head: &'t str) -> Result<Matcher<'t>> {
        Ok(match self {
            Self::Names(entries) => Box::new(|name| entries.iter().any(|entry| ends_with(name, entry))),
            Self::AllLinear => Box::new(move |name| name != head),
            Self::Pattern(pattern) => {
                let regex = full_match("target_modules", pattern, "")?;
                Box::new(move |name| regex.is_match(name))
            }
        })
    }

    /// The description in messages.
    fn describe(&self) -> String {
        match self {
            Self::Names(entries) if entries.is_empty() => "an empty list".to_owned(),
            Self::Names(entries) => entries
                .iter()
                .map(|entry| quoted(entry))
                .collect::<Vec<_>>()
                .join(" or "),
            Self::AllLinear => "`all-linear`".to_owned(),
            Self::Pattern(pattern) => format!("the pattern `{}`", pattern.escape_debug()),
        }
    }
}

/// The names in `linears` that `targets` selects, in the order of `linears`. `head` is the name of the output head,
/// which only an explicit name or pattern can select.
///
/// ```
/// use metal_candle::adapters::{TargetModules, select};
///
/// let linears = ["model.layers.0.self_attn.q_proj", "model.layers.0.mlp.up_proj", "lm_head"].map(String::from);
/// let picked = select(&linears, &TargetModules::Names(vec!["q_proj".into()]), "lm_head")?;
/// assert_eq!(picked, ["model.layers.0.self_attn.q_proj"]);
/// assert_eq!(select(&linears, &TargetModules::AllLinear, "lm_head")?.len(), 2);
/// # Ok::<(), metal_candle::adapters::AdapterError>(())
/// ```
///
/// # Errors
/// [`AdapterError::NothingMatched`] for the first entry without a matching layer (stricter than PEFT, which accepts a
/// misspelt entry next to a correct one), [`AdapterError::Pattern`].
pub fn select(linears: &[String], targets: &TargetModules, head: &str) -> Result<Vec<String>> {
    let Selection { picked, unmatched } = select_any(linears, targets, head)?;
    match unmatched.first() {
        None => Ok(picked),
        Some(entry) => Err(nothing_matched(linears, quoted(entry))),
    }
}

/// The layers that the targets select, and the entries that select none.
#[derive(Debug)]
pub(super) struct Selection {
    pub picked: Vec<String>,
    pub unmatched: Vec<String>,
}

/// Like [`select`], but with PEFT's rule: one matching entry of a list is enough. Lists in files are often written for
/// several architectures.
pub(super) fn select_any(linears: &[String], targets: &TargetModules, head: &str) -> Result<Selection> {
    let wanted = targets.matcher(head)?;
    let picked: Vec<String> = linears.iter().filter(|name| wanted(name)).cloned().collect();
    if picked.is_empty() {
        return Err(nothing_matched(linears, targets.describe()));
    }
    let TargetModules::Names(entries) = targets else {
        let unmatched = Vec::new();
        return Ok(Selection { picked, unmatched });
    };
    let matches_none = |entry: &&String| !linears.iter().any(|name| ends_with(name, entry));
    let unmatched = entries.iter().filter(matches_none).cloned().collect();
    Ok(Selection { picked, unmatched })
}

fn nothing_matched(linears: &[String], target: String) -> AdapterError {
    AdapterError::NothingMatched {
        target,
        available: suffixes(linears),
    }
}

pub(super) fn quoted(entry: &str) -> String {
    format!("`{}`", entry.escape_debug())
}

/// PEFT's rule for names: the whole name, or its last dot-separated parts.
fn ends_with(name: &str, entry: &str) -> bool {
    name.strip_suffix(entry)
        .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// The distinct last parts of the names.
fn suffixes(names: &[String]) -> Vec<String> {
    let last = |name: &String| name.rsplit('.').next().unwrap_or_default().to_owned();
    names.iter().map(last).collect::<BTreeSet<_>>().into_iter().collect()
}

/// A pattern that must match the full name, after an optional `prefix` pattern. Bounded in size.
pub(super) fn full_match(field: &'static str, pattern: &str, prefix: &str) -> Result<Regex> {
    let fault = |reason: String| AdapterError::Pattern {
        field,
        pattern: pattern.to_owned(),
        reason,
    };
    // Compiled separately first: `a)(b` must not close the surrounding group.
    let build = |text: &str| RegexBuilder::new(text).size_limit(1 << 20).build();
    let last_line = |e: regex::Error| e.to_string().lines().last().unwrap_or_default().to_owned();
    build(pattern).map_err(|e| fault(last_line(e)))?;
    build(&format!(r"\A{prefix}(?:{pattern})\z")).map_err(|e| fault(last_line(e)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn linears() -> Vec<String> {
        let mut names = Vec::new();
        for layer in [0, 1, 10] {
            for linear in [
                "self_attn.q_proj",
                "self_attn.v_proj",
                "mlp.up_proj",
                "mlp.gate_up_proj",
            ] {
                names.push(format!("model.layers.{layer}.{linear}"));
            }
        }
        names.push("lm_head".to_owned());
        names
    }

    fn picked(targets: &TargetModules) -> Vec<usize> {
        let all = linears();
        let chosen = select(&all, targets, "lm_head").unwrap();
        chosen
            .iter()
            .map(|c| all.iter().position(|n| n == c).unwrap())
            .collect()
    }

    fn names(entries: &[&str]) -> TargetModules {
        TargetModules::Names(entries.iter().map(|&e| e.to_owned()).collect())
    }

    #[test]
    fn rules_are_those_of_peft() {
        let every_linear: Vec<usize> = (0..12).collect();
        for (targets, expected) in [
            (names(&["q_proj"]), vec![0, 4, 8]),
            (names(&["v_proj", "q_proj"]), vec![0, 1, 4, 5, 8, 9]),
            // `gate_up_proj` ends with `up_proj`, but not after a dot.
            (names(&["up_proj"]), vec![2, 6, 10]),
            (names(&["self_attn.q_proj"]), vec![0, 4, 8]),
            (names(&["layers.0.self_attn.q_proj", "lm_head"]), vec![0, 12]),
            (names(&["model.layers.1.mlp.up_proj"]), vec![6]),
            (TargetModules::from_text("ALL-linear"), every_linear),
            (TargetModules::from_text(r".*\.1\..*_proj"), vec![4, 5, 6, 7]),
            (TargetModules::from_text(r".*q_proj|lm_head"), vec![0, 4, 8, 12]),
            (
                TargetModules::from_text(r".*layers\.\d\..*\.(q|v)_proj"),
                vec![0, 1, 4, 5],
            ),
        ] {
            assert_eq!(picked(&targets), expected, "{targets:?}");
        }
    }

    #[test]
    fn unmatched_targets_are_named_with_the_available_layers() {
        for targets in [
            names(&["query"]),
            names(&["q_proj", "query"]),
            names(&["proj"]),
            names(&[]),
            TargetModules::from_text("q_proj"),
            TargetModules::from_text("Q_PROJ"),
        ] {
            let fault = select(&linears(), &targets, "lm_head").unwrap_err().to_string();
            assert!(
                fault.ends_with("gate_up_proj, lm_head, q_proj, up_proj, v_proj"),
                "{fault}"
            );
        }
        let only_head = select(&["lm_head".to_owned()], &TargetModules::AllLinear, "lm_head");
        assert!(matches!(only_head, Err(AdapterError::NothingMatched { .. })));
    }

    #[test]
    fn patterns_that_cannot_run_are_errors() {
        for pattern in ["(", "a)(b", "(?=q)q_proj", r"(a)\1", "(((a{1000}){1000}){1000})"] {
            let fault = select(&linears(), &TargetModules::Pattern(pattern.to_owned()), "lm_head").unwrap_err();
            assert!(
                matches!(&fault, AdapterError::Pattern { pattern: p, .. } if p == pattern),
                "{fault}"
            );
        }
    }
}
