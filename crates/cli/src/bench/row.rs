//! What is printed: a row of figures, as a JSON line or as a line of a table.

use serde_json::{Map, Value};

use super::judge::Judge;
use crate::console::say;

/// Keys that say nothing in a table of one command's rows.
const ONLY_IN_JSON: [&str; 7] = ["peer", "device", "compile", "liger", "checkpoint", "static", "machine"];
/// Width of the first column, which names the case.
const NAMES: usize = 26;
/// Width of a column, unless its heading is wider.
const COLUMN: usize = 9;

/// Named figures in their order.
pub struct Row(Map<String, Value>);

impl Row {
    /// A row that says who was measured, and where.
    pub fn new() -> Self {
        Self(Map::new()).with("peer", "metal-candle").with("device", "cpu")
    }

    /// Adds a name, a count or a switch.
    pub fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.0.insert(key.to_owned(), value.into());
        self
    }

    /// Adds a figure with so many decimals.
    pub fn figure(self, key: &str, value: f64, places: i32) -> Self {
        self.with(key, round(value, places))
    }

    /// Adds a limit and the share of it that was reached.
    pub fn limit(self, key: &str, limit: f64, share: f64) -> Self {
        let share_key = key.replace("limit", "share");
        let key = key.to_owned();
        self.with(&key, significant(limit)).figure(&share_key, share, 4)
    }
}

/// Where rows go, one as soon as it is known.
pub struct Output {
    json: bool,
    /// Columns of the table whose heading was printed.
    headed: Vec<String>,
}

impl Output {
    /// JSON lines or a table.
    pub fn new(json: bool) -> Self {
        Self {
            json,
            headed: Vec::new(),
        }
    }

    /// Prints a row; before the first, in a table, the machine's limits and a heading.
    pub fn row(&mut self, row: Row, judge: &Judge) {
        if self.json {
            say(&Value::Object(row.with("machine", judge.to_json()).0).to_string());
            return;
        }
        let shown = || row.0.iter().filter(|(key, _)| !ONLY_IN_JSON.contains(&key.as_str()));
        let columns: Vec<String> = shown().map(|(key, _)| key.clone()).collect();
        if columns != self.headed {
            if self.headed.is_empty() {
                say(&judge.describe());
            }
            say("");
            say(&line(columns.iter().map(|key| (key.as_str(), key.clone()))));
            self.headed = columns;
        }
        say(&line(shown().map(|(key, value)| (key.as_str(), text(key, value)))));
    }
}

/// The cells of a table's line: the first is a name, the others stand to the right of their columns.
fn line<'a>(cells: impl Iterator<Item = (&'a str, String)>) -> String {
    let mut line = String::new();
    for (at, (key, cell)) in cells.enumerate() {
        if at == 0 {
            line = format!("{cell:<NAMES$}");
        } else {
            let width = key.len().max(COLUMN);
            line = format!("{line}  {cell:>width$}");
        }
    }
    line
}

fn text(key: &str, value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Number(share) if key.ends_with("share") => share
            .as_f64()
            .map_or_else(String::new, |share| format!("{:.1} %", 100.0 * share)),
        other => other.to_string(),
    }
}

/// With so many decimals; null for what is no number.
pub fn round(value: f64, places: i32) -> f64 {
    let unit = 10f64.powi(places);
    (value * unit).round() / unit
}

/// With four significant digits: limits span many orders of magnitude.
fn significant(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return value;
    }
    round(value, 3 - value.abs().log10().floor() as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_rounded() {
        assert_eq!(round(1.2345, 2), 1.23);
        assert_eq!(round(1234.5, -2), 1200.0);
        assert_eq!(
            [0.001_234_56, 12_345.6, 0.0].map(significant),
            [0.001_235, 12_350.0, 0.0]
        );
    }

    #[test]
    fn keys_keep_their_order() {
        let row = Row::new()
            .figure("latency_us", 12.345, 2)
            .limit("prefill_limit", 1.5, 0.25);
        let keys: Vec<&str> = row.0.keys().map(String::as_str).collect();
        assert_eq!(keys, ["peer", "device", "latency_us", "prefill_limit", "prefill_share"]);
    }

    #[test]
    fn cells_stand_below_their_headings() {
        let head = line([("case", "case".to_owned()), ("step_ms", "step_ms".to_owned())].into_iter());
        let cells = line([("case", "a".to_owned()), ("step_ms", text("step_ms", &1.5.into()))].into_iter());
        assert_eq!(head.len(), cells.len());
        assert!(cells.ends_with(" 1.5"), "{cells}");
        assert_eq!(text("share", &0.1234.into()), "12.3 %");
        assert_eq!(text("peak_gib", &Value::Null), "-");
    }
}
