//! The report of a run at its beginning and end: text, numbers, and commands to continue with.

use clap::ValueEnum;
use metal_candle::adapters::AdapterParameters;
use metal_candle::data::{Dataset, DatasetStats};
use metal_candle::training::Summary;

use crate::args::Settings;
use crate::choices::DtypeChoice;
use crate::console::{say, warn};
use crate::demo::{Question, Score};
use crate::output::Output;

/// Longest answer shown in full.
const WIDTH: usize = 110;

/// Describes the run; `written` is the detected format of the data.
pub fn beginning(
    model: &str,
    adapter: &AdapterParameters,
    train: &Dataset,
    validation: Option<&Dataset>,
    written: &str,
) {
    let stats = train.stats();
    let held = validation.map_or(String::new(), |set| {
        format!("; {} for validation", count(set.stats().examples))
    });
    let (rank, layers) = (adapter.config().r, adapter.modules().len());
    say(&format!("  model    {model}"));
    say(&format!(
        "  data     {}, {}, {} of them trained on{held}",
        counted(stats.examples, "example"),
        counted(stats.tokens, "token"),
        count(stats.supervised_tokens)
    ));
    say(&format!("  rows     {written}"));
    say(&format!(
        "  adapter  rank {rank} on {}, {}",
        counted(layers, "layer"),
        counted(adapter.num_parameters(), "weight")
    ));
    say("");
    for warning in train.warnings() {
        warn(&format!("warning: {warning}"));
    }
}

/// Reports truncated and dropped examples.
pub fn cuts(stats: &DatasetStats, max_length: usize) -> Vec<String> {
    let cut = (stats.truncated > 0).then(|| {
        format!(
            "{} longer than {} (--max-length), cut",
            counted(stats.truncated, "example"),
            counted(max_length, "token")
        )
    });
    let dropped = (stats.dropped > 0).then(|| {
        let first = stats
            .first_dropped
            .map_or(String::new(), |line| format!(", the first at line {line}"));
        let cut_off = match stats.cut_off {
            0 => String::new(),
            rows => format!(
                " ({} train on nothing within {max_length} tokens: raise --max-length)",
                count(rows)
            ),
        };
        let rows = counted(stats.dropped, "row");
        format!("{rows} with nothing to train on, dropped{first}{cut_off}")
    });
    cut.into_iter().chain(dropped).collect()
}

/// Prints warnings before the run.
pub fn warnings(warnings: &[String]) {
    for warning in warnings {
        warn(&format!("warning: {warning}"));
    }
}

/// Reports the result of training.
pub fn training(run: &Summary) {
    let speed = if run.seconds > 0.0 {
        run.tokens as f64 / run.seconds
    } else {
        0.0
    };
    if run.skipped_steps > 0 {
        warn(&format!(
            "warning: {} skipped, because loss or gradient was not finite",
            counted(run.skipped_steps, "step")
        ));
    }
    let evaluation = run
        .evaluation_loss
        .map_or(String::new(), |loss| format!(", validation loss {loss:.4}"));
    say(&format!(
        "Trained {} in {}, {} tokens/s: loss {:.4} to {:.4}{evaluation}",
        counted(run.steps, "step"),
        duration(run.seconds),
        count(speed as usize),
        run.first_loss,
        run.last_loss
    ));
}

/// Reports correct answers and examples of the demonstration, before and after.
pub fn comparison(questions: &[Question], before: &Score, after: &Score) {
    let share = |score: &Score| format!("{:5.1} %", 100.0 * score.right as f64 / score.asked.max(1) as f64);
    say("");
    say(&format!(
        "Correct answers to {} held-out orders (exact match)",
        after.asked
    ));
    say(&format!("  before   {}", share(before)));
    say(&format!("  after    {}", share(after)));
    for ((question, old), new) in questions.iter().zip(&before.answers).zip(&after.answers) {
        say("");
        say(&format!("  order    {}", one_line(question.text())));
        say(&format!("  before   {}", one_line(old)));
        say(&format!("  after    {}", one_line(new)));
    }
}

/// Lists the written files, and the next commands.
pub fn ending(output: &Output, settings: &Settings, prompt: Option<&str>, picture: bool) {
    let folder = output.folder.display().to_string();
    say("");
    say(&format!("Written to {folder}"));
    let mut files = vec![
        (
            "adapter_model.safetensors",
            "the adapter, with adapter_config.json in PEFT's format",
        ),
        (
            "metrics.jsonl",
            "every step: loss, gradient norm, learning rate, tokens, seconds",
        ),
    ];
    files.extend(picture.then_some(("loss.svg", "the loss curve")));
    files.push(("training.toml", "the settings, to run it again with --config"));
    for (file, what) in files {
        say(&format!("  {file:<27}{what}"));
    }
    let program = quoted(&std::env::args().next().unwrap_or_else(|| "metal-candle".to_owned()));
    let prompt = quoted(prompt.unwrap_or("Hello"));
    say("");
    say("Next");
    say(&format!(
        "  {program} generate{} --adapter {} --prompt {prompt}",
        base_flags(settings),
        quoted(&folder)
    ));
    if settings.model.is_none() {
        say(&format!("  {program} train --model DIR --data FILE.jsonl"));
    }
    say(&format!("  {program} train --help"));
}

/// The flags that load the base model as it was in training: an adapter fits those weights best.
fn base_flags(settings: &Settings) -> String {
    let model = settings.model.as_ref().map(|model| model.display().to_string());
    let dtype = Some(settings.dtype).filter(|dtype| *dtype != DtypeChoice::Auto);
    let flags = [
        ("--model", model),
        ("--dtype", dtype.as_ref().and_then(name_of)),
        ("--quantize", settings.quantize.as_ref().and_then(name_of)),
    ];
    let given = flags.into_iter().filter_map(|(flag, value)| Some((flag, value?)));
    let words: Vec<String> = given
        .flat_map(|(flag, value)| [format!(" {flag} "), quoted(&value)])
        .collect();
    words.concat()
}

/// The name of a flag's value.
fn name_of<V: ValueEnum>(value: &V) -> Option<String> {
    value.to_possible_value().map(|value| value.get_name().to_owned())
}

/// `1 step`, `2 steps`.
pub fn counted(number: usize, what: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{} {what}{plural}", count(number))
}

/// A number with commas: `12,345`.
pub fn count(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A duration in words: `0.42 s`, `12 s`, `3 min 05 s`, `2 h 07 min`.
pub fn duration(seconds: f64) -> String {
    let whole = seconds.max(0.0).round() as u64;
    match whole {
        0..10 => format!("{:.2} s", seconds.max(0.0)),
        10..60 => format!("{whole} s"),
        60..3600 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} min", whole / 3600, whole % 3600 / 60),
    }
}

/// A remaining time, without fractions of a second.
pub fn time_left(seconds: f64) -> String {
    if seconds < 59.5 {
        format!("{:.0} s", seconds.max(0.0))
    } else {
        duration(seconds)
    }
}

/// A text on one line, truncated to the width of the screen.
fn one_line(text: &str) -> String {
    let flat = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if flat.is_empty() {
        return "(nothing)".to_owned();
    }
    match flat.char_indices().nth(WIDTH) {
        Some((end, _)) => format!("{}…", &flat[..end]),
        None => flat,
    }
}

/// A word quoted for a shell.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./:=@%+,".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_readable() {
        assert_eq!([0, 999, 1000, 1_234_567].map(count), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!(
            [0, 1, 1200].map(|n| counted(n, "row")),
            ["0 rows", "1 row", "1,200 rows"]
        );
        assert_eq!(
            [0.4, 12.4, 65.0, 7621.0].map(duration),
            ["0.40 s", "12 s", "1 min 05 s", "2 h 07 min"]
        );
        assert_eq!(duration(-1.0), "0.00 s");
        assert_eq!([0.4, 8.9, 59.7].map(time_left), ["0 s", "9 s", "1 min 00 s"]);
    }

    #[test]
    fn words_are_quoted_for_the_shell() {
        assert_eq!(quoted("target/release/metal-candle"), "target/release/metal-candle");
        assert_eq!(quoted("it's"), r"'it'\''s'");
        assert_eq!(quoted(""), "''");
    }

    #[test]
    fn long_answers_are_cut_between_characters() {
        assert_eq!(one_line("a\n b"), "a b");
        assert_eq!(one_line(" \n"), "(nothing)");
        assert_eq!(one_line(&"é".repeat(200)).chars().count(), WIDTH + 1);
    }
}
