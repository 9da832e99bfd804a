//! Merges settings: flags take precedence over the `--config` file, the file over the defaults (in the demonstration,
//! over the demonstration's settings).
//!
//! Keys of a file are the names of flags with underscores. An unknown key is an error that suggests the nearest name.

use std::path::Path;

use clap::{Args, Command};
use toml::{Table, Value};

use crate::args::{Settings, TrainArgs};
use crate::demo;
use crate::error::{Failure, Result};

/// The merged settings of a run. `by_flag` tells which settings were given as flags.
pub fn settings(arguments: TrainArgs, by_flag: &dyn Fn(&str) -> bool) -> Result<Settings> {
    let file = match &arguments.config {
        Some(path) => read(path)?,
        None => Table::new(),
    };
    let name = arguments
        .config
        .map(|path| path.display().to_string())
        .unwrap_or_default();
    let known = |key: &str| file.contains_key(key) || by_flag(key);
    let mut settings = arguments.settings;
    if !known("model") && !known("data") {
        settings = merge(settings, "demo", demo::settings(), by_flag)?;
    }
    let asked = known("eval_steps");
    let mut settings = merge(settings, &name, file, by_flag)?;
    // The demonstration evaluates from time to time, if there is validation data.
    if !asked && settings.validation_split == 0.0 && settings.validation.is_none() {
        settings.eval_steps = None;
    }
    Ok(settings)
}

/// `settings` as a table, without absent values.
pub fn table(settings: &Settings) -> Result<Table> {
    Table::try_from(settings).map_err(|error| Failure::Run(format!("settings cannot be written as TOML: {error}")))
}

/// Replaces the keys in `over`, except those given as flags.
fn merge(settings: Settings, file: &str, over: Table, by_flag: &dyn Fn(&str) -> bool) -> Result<Settings> {
    let mut merged = table(&settings)?;
    let mut settings = settings;
    for (key, value) in over.into_iter().filter(|(key, _)| !by_flag(key)) {
        merged.insert(key.clone(), value);
        let wrong = |error: toml::de::Error| Failure::input(format!("{file}: `{key}`: {}", plain(error.message())));
        settings = merged.clone().try_into().map_err(wrong)?;
    }
    Ok(settings)
}

/// The table of a file, under the names of the flags.
fn read(path: &Path) -> Result<Table> {
    let name = path.display();
    let text =
        std::fs::read_to_string(path).map_err(|error| Failure::input(format!("{name}: cannot be read: {error}")))?;
    let parsed: Table = text.parse().map_err(|error: toml::de::Error| {
        let line = error
            .span()
            .map_or(1, |span| 1 + text[..span.start.min(text.len())].matches('\n').count());
        Failure::input(format!(
            "{name}:{line}: not TOML: {}",
            error.message().lines().next().unwrap_or_default()
        ))
    })?;
    let names = Names::of_flags();
    let mut file = Table::new();
    for (key, value) in parsed {
        let Some(flag) = names.flag(&key) else {
            let tip = format!(
                "did you mean `{}`? `metal-candle train --help` lists all names",
                names.nearest(&key)
            );
            return Err(Failure::with_tip(format!("{name}: unknown setting `{key}`"), tip));
        };
        if file
            .insert(flag.clone(), absent(&name.to_string(), &flag, value)?)
            .is_some()
        {
            return Err(Failure::input(format!(
                "{name}: `{flag}` is given twice, the second time as `{key}`"
            )));
        }
    }
    Ok(file)
}

/// Rejects values that no setting accepts: TOML has no unsigned numbers, and an empty string is not a name.
fn absent(file: &str, key: &str, value: Value) -> Result<Value> {
    let refused = |what: &str| {
        Err(Failure::input(format!(
            "{file}: `{key}` is {what}; leave it out to have the default"
        )))
    };
    match value {
        Value::Integer(number) if number < 0 => refused(&number.to_string()),
        Value::String(text) if text.is_empty() => refused("empty"),
        other => Ok(other),
    }
}

/// A message without the names of Rust types.
fn plain(message: &str) -> String {
    let (number, whole) = ("expected a number", "expected a whole number that is not negative");
    message
        .replace("expected f64", number)
        .replace("expected usize", whole)
        .replace("expected u64", whole)
        .replace("expected path string", "expected a path in quotes")
}

/// The names of the settings: `(name in a file, name of the flag)`.
struct Names(Vec<(String, String)>);

impl Names {
    fn of_flags() -> Self {
        let command = Settings::augment_args(Command::new("train"));
        let mut names = Vec::new();
        for argument in command.get_arguments() {
            let id = argument.get_id().to_string();
            let aliases = argument.get_all_aliases().unwrap_or_default();
            names.extend(aliases.into_iter().map(|alias| (alias.replace('-', "_"), id.clone())));
            names.push((id.clone(), id));
        }
        Self(names)
    }

    fn flag(&self, key: &str) -> Option<String> {
        self.0
            .iter()
            .find(|(name, _)| name == key)
            .map(|(_, flag)| flag.clone())
    }

    fn nearest(&self, key: &str) -> &str {
        let key = key.replace('-', "_");
        self.0
            .iter()
            .map(|(name, _)| name)
            .min_by_key(|name| distance(name, &key))
            .map_or("", String::as_str)
    }
}

/// The Levenshtein distance of `a` and `b`.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.chars().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.chars().count()]
}

#[cfg(test)]
#[allow(clippy::float_cmp, reason = "settings are passed on, not computed")]
mod tests {
    use super::*;
    use crate::args::{Cli, Command as Commands};
    use clap::{CommandFactory, FromArgMatches};

    fn resolve(file: &str, flags: &[&str]) -> Result<Settings> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.toml");
        std::fs::write(&path, file).unwrap();
        let fixed = ["metal-candle", "train", "--config", path.to_str().unwrap()];
        let matches = Cli::command().try_get_matches_from(fixed.iter().chain(flags)).unwrap();
        let Commands::Train(arguments) = Cli::from_arg_matches(&matches).unwrap().command else {
            panic!("train")
        };
        settings(*arguments, &|key| crate::by_flag(&matches, key))
    }

    #[test]
    fn flags_win_over_the_file_and_the_file_over_defaults() {
        let file = "model = \"m\"\nlearning_rate = 1\nrank = 4\npacking = true\nseed = 1\ntarget_modules = \"q_proj\"";
        let settings = resolve(file, &["--seed", "42", "--packing=false"]).unwrap();
        assert_eq!(
            (settings.learning_rate, settings.r, settings.seed, settings.packing),
            (1.0, 4, 42, false)
        );
        assert_eq!(settings.target_modules, ["q_proj"]);
        assert_eq!(settings.lora_alpha, 8.0);
    }

    #[test]
    fn the_demonstration_has_its_own_settings() {
        let own = demo::settings();
        let rate = own["learning_rate"].as_float().unwrap();
        assert_eq!(resolve("", &[]).unwrap().learning_rate, rate);
        assert_eq!(resolve("", &["--learning-rate", "3"]).unwrap().learning_rate, 3.0);
        assert_eq!(resolve("learning_rate = 2.0", &[]).unwrap().learning_rate, 2.0);
        assert_eq!(resolve("data = \"d\"", &[]).unwrap().learning_rate, 2e-4);
    }

    #[test]
    fn a_wrong_file_is_explained() {
        let message = |file: &str| resolve(file, &[]).unwrap_err().to_string();
        let unknown = message("learning_rat = 1.0");
        assert!(
            unknown.contains("unknown setting `learning_rat`") && unknown.contains("`learning_rate`"),
            "{unknown}"
        );
        assert!(message("batch-size = 3").contains("`batch_size`"));
        assert!(message("r = 8\nrank = 8").contains("twice"));
        assert!(message("\nr = = 8").contains("run.toml:2: not TOML"));
        let mistyped = message("learning_rate = \"fast\"");
        assert!(mistyped.contains("`learning_rate`: invalid type: string"), "{mistyped}");
        assert!(message("max_steps = -1").contains("leave it out"));
        assert!(message("lr_scheduler_type = \"wavy\"").contains("cosine"));
    }

    #[test]
    fn all_settings_round_trip_through_a_file() {
        let before = resolve("model = \"m\"\nmax_steps = 3\nlr_scheduler_type = \"linear\"", &[]).unwrap();
        let text = toml::to_string(&table(&before).unwrap()).unwrap();
        assert_eq!(table(&resolve(&text, &[]).unwrap()).unwrap(), table(&before).unwrap());
    }

    #[test]
    fn distances_are_levenshtein_s() {
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("r", "r"), 0);
    }
}
