//! Output: a row of figures, as a JSON line or as a line of a table.

use serde_json::Value;

use super::judge::Judge;
use crate::console::say;

/// Keys that are constant within a command's table.
const ONLY_IN_JSON: [&str; 7] = ["peer", "device", "compile", "liger", "checkpoint", "static", "machine"];
/// Width of the first column, which names the case.
const NAMES: usize = 26;
/// Width of a column, unless its heading is wider.
const COLUMN: usize = 9;

/// Named figures in order.
pub struct Row(Vec<Cell>);

struct Cell {
    key: String,
    value: Value,
    /// The text in a table.
    text: String,
}

impl Row {
    /// A row that names the library and the device.
    pub fn new() -> Self {
        Self(Vec::new()).with("peer", "metal-candle").with("device", "cpu")
    }

    /// Adds a name, a count or a flag.
    pub fn with(self, key: &str, value: impl Into<Value>) -> Self {
        let value = value.into();
        let text = match &value {
            Value::Null => "-".to_owned(),
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        self.cell(key, value, text)
    }

    /// Adds a figure with this many decimals; without decimals it is an integer, as in the peers' rows.
    pub fn figure(self, key: &str, value: f64, places: usize) -> Self {
        let json = match places {
            0 if value.is_finite() => Value::from(value.round() as i64),
            _ => round(value, places as i32).into(),
        };
        self.cell(key, json, format!("{value:.places$}"))
    }

    /// Adds a limit, whose name ends with `limit`, and the share of it that was reached.
    pub fn limit(self, key: &str, limit: f64, share: f64) -> Self {
        let share_key = key.replace("limit", "share");
        self.with(key, significant(limit))
            .cell(&share_key, round(share, 4).into(), format!("{:.1} %", 100.0 * share))
    }

    fn cell(mut self, key: &str, value: Value, text: String) -> Self {
        let key = key.to_owned();
        self.0.push(Cell { key, value, text });
        self
    }

    fn into_json(self) -> Value {
        Value::Object(self.0.into_iter().map(|cell| (cell.key, cell.value)).collect())
    }
}

/// The output of rows, each printed as soon as it is known.
pub struct RowOutput {
    json: bool,
    /// Columns of the printed heading.
    headed: Vec<String>,
}

impl RowOutput {
    /// Prints JSON lines or a table.
    pub fn new(json: bool) -> Self {
        Self {
            json,
            headed: Vec::new(),
        }
    }

    /// Prints a row; in a table, before the first, the machine's limits and a heading.
    pub fn row(&mut self, row: Row, judge: &Judge) {
        if self.json {
            say(&row.with("machine", judge.to_json()).into_json().to_string());
            return;
        }
        let shown = || row.0.iter().filter(|cell| !ONLY_IN_JSON.contains(&cell.key.as_str()));
        let columns: Vec<String> = shown().map(|cell| cell.key.clone()).collect();
        if columns != self.headed {
            if self.headed.is_empty() {
                say(&judge.describe());
            }
            say("");
            say(&line(columns.iter().map(|key| (key.as_str(), key.as_str()))));
            self.headed = columns;
        }
        say(&line(shown().map(|cell| (cell.key.as_str(), cell.text.as_str()))));
    }
}

/// A line of a table: the first cell is a left-aligned name, the others are right-aligned.
fn line<'a>(cells: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let mut line = String::new();
    for (at, (key, text)) in cells.enumerate() {
        if at == 0 {
            line = format!("{text:<NAMES$}");
        } else {
            let width = key.len().max(COLUMN);
            line = format!("{line}  {text:>width$}");
        }
    }
    line
}

/// Rounds to this many decimals.
pub fn round(value: f64, places: i32) -> f64 {
    let unit = 10f64.powi(places);
    (value * unit).round() / unit
}

/// Rounds to four significant digits: limits span many orders of magnitude.
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
            .figure("tokens_per_s", 99.6, 0)
            .figure("latency_us", 12.345, 2)
            .limit("prefill_limit", 1.5, 0.25);
        let json = r#"{"peer":"metal-candle","device":"cpu","tokens_per_s":100,"latency_us":12.35,"prefill_limit":1.5,"prefill_share":0.25}"#;
        assert_eq!(row.into_json().to_string(), json);
    }

    #[test]
    fn cells_are_aligned_with_their_headings() {
        let row = Row::new()
            .figure("step_ms", 1.5, 2)
            .limit("limit", 3.0, 0.5)
            .with("peak_gib", ());
        let texts: Vec<&str> = row.0[2..].iter().map(|cell| cell.text.as_str()).collect();
        assert_eq!(texts, ["1.50", "3.0", "50.0 %", "-"]);
        let heads = line(row.0.iter().map(|cell| (cell.key.as_str(), cell.key.as_str())));
        let cells = line(row.0.iter().map(|cell| (cell.key.as_str(), cell.text.as_str())));
        assert_eq!(heads.len(), cells.len());
        assert!(cells.starts_with("metal-candle  "), "{cells}");
    }
}
