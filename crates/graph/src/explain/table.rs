//! An explanation as text: totals, passes, what was fused, kernels by operation, the slowest single kernels.

use std::fmt;

use super::{Explanation, Kernel};
use crate::graph::Meta;

/// Maximum number of kernels, and of fused expressions, that are listed.
const LISTED: usize = 10;
/// Maximum length of an operation's text, in characters.
const TEXT: usize = 64;

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write_totals(f)?;
        self.write_fused(f)?;
        self.write_groups(f)?;
        self.write_slowest(f)
    }
}

impl Explanation {
    fn write_totals(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Passes: recorded {}", self.recorded)?;
        for (pass, left) in &self.passes {
            write!(f, " -> {pass} {left}")?;
        }
        writeln!(f)?;
        let (seconds, flops, bytes) = (self.seconds(), self.flops(), self.bytes());
        write!(
            f,
            "Kernels: {} in {}; {:.3} GFLOP at {:.1} GFLOP/s, {} at {:.1} GB/s",
            self.kernels.len(),
            time(seconds),
            flops / 1e9,
            rate(flops, seconds),
            size(bytes),
            rate(bytes, seconds)
        )?;
        if let Some(limits) = self.limits() {
            let least: f64 = self.kernels.iter().map(|kernel| kernel.least_seconds(limits)).sum();
            write!(
                f,
                "; the machine's limit is {} ({:.0} % reached)",
                time(least),
                100.0 * least / seconds
            )?;
        }
        let memory = &self.memory;
        let [inputs, outputs, arena, saved] =
            [memory.inputs, memory.outputs, memory.arena, memory.saved()].map(|bytes| size(bytes as f64));
        writeln!(
            f,
            "\nMemory: inputs {inputs}, results {outputs}, arena {arena}; planning saves {saved}"
        )
    }

    fn write_fused(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let expressions = self.grouped(|kernel| &kernel.text);
        let mut fused: Vec<_> = expressions
            .into_iter()
            .filter(|group| group.kernels[0].name == "Elementwise")
            .collect();
        if fused.is_empty() {
            return Ok(());
        }
        fused.sort_by_key(|group| std::cmp::Reverse(group.kernels.len()));
        writeln!(f, "\nFused into one loop each:")?;
        for group in fused.iter().take(LISTED) {
            let terms = group.name.trim_start_matches("Elementwise ");
            writeln!(f, "{:>6} x {}", group.kernels.len(), shortened(terms))?;
        }
        match fused.len().saturating_sub(LISTED) {
            0 => Ok(()),
            more => writeln!(f, "       and {more} other expressions"),
        }
    }

    fn write_groups(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of_limit = if self.limits().is_some() { "  of limit" } else { "" };
        writeln!(
            f,
            "\n{:<24}{:>6}{:>12}{:>8}{:>10}{:>9}{of_limit}",
            "operation", "count", "time", "share", "GFLOP/s", "GB/s"
        )?;
        for group in self.groups() {
            let seconds = group.seconds();
            write!(
                f,
                "{:<24}{:>6}{:>12}{:>6.1} %{:>10.1}{:>9.1}",
                group.name,
                group.kernels.len(),
                time(seconds),
                100.0 * ratio(seconds, self.seconds()),
                rate(group.flops(), seconds),
                rate(group.bytes(), seconds)
            )?;
            if let Some(limits) = self.limits() {
                let least = group.least_seconds(limits);
                write!(f, "{:>8.0} %", 100.0 * ratio(least, seconds))?;
            }
            writeln!(f)?;
        }
        Ok(())
    }

    fn write_slowest(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut kernels: Vec<&Kernel> = self.kernels.iter().collect();
        kernels.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        writeln!(f, "\nThe slowest kernels:")?;
        for kernel in kernels.into_iter().take(LISTED) {
            let join = |metas: &[Meta]| metas.iter().map(Meta::to_string).collect::<Vec<_>>().join(", ");
            writeln!(
                f,
                "{:>12}  {} ({}) -> {}",
                time(kernel.seconds),
                shortened(&kernel.text),
                join(&kernel.inputs),
                join(&kernel.outputs)
            )?;
        }
        Ok(())
    }
}

fn ratio(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}

/// Billions per second.
fn rate(amount: f64, seconds: f64) -> f64 {
    ratio(amount, seconds) / 1e9
}

fn time(seconds: f64) -> String {
    if seconds < 1e-3 {
        format!("{:.1} us", seconds * 1e6)
    } else {
        format!("{:.3} ms", seconds * 1e3)
    }
}

fn size(bytes: f64) -> String {
    match bytes {
        ..1024.0 => format!("{bytes} B"),
        ..1_048_576.0 => format!("{:.1} KiB", bytes / 1024.0),
        _ => format!("{:.1} MiB", bytes / 1_048_576.0),
    }
}

fn shortened(text: &str) -> String {
    if text.chars().count() <= TEXT {
        return text.to_owned();
    }
    let start: String = text.chars().take(TEXT - 3).collect();
    format!("{start}...")
}
