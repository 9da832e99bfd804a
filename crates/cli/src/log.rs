//! `METAL_CANDLE_LOG`: what the engine is doing, on stderr.
//!
//! The value is a list as `tracing` has it (`metal_candle_graph=trace,info`); the word `graph` stands for
//! `metal_candle_graph`, and alone for its passes and plans (`debug`).

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::error::{Failure, Result};

const VARIABLE: &str = "METAL_CANDLE_LOG";

/// Begins logging where the variable asks for it.
pub fn start() -> Result<()> {
    let Ok(value) = std::env::var(VARIABLE) else {
        return Ok(());
    };
    let filter = EnvFilter::try_new(directives(&value)).map_err(|error| {
        Failure::with_tip(
            format!("{VARIABLE}={value}: {error}"),
            format!("for example {VARIABLE}=graph shows passes and plans, {VARIABLE}=graph=trace every evaluation"),
        )
    })?;
    let colour = std::io::stderr().is_terminal();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(colour)
        .init();
    Ok(())
}

/// The list with our word spelled out.
fn directives(value: &str) -> String {
    let spelled = |directive: &str| match directive.trim().split_once('=') {
        None if directive.trim() == "graph" => "metal_candle_graph=debug".to_owned(),
        Some(("graph", level)) => format!("metal_candle_graph={level}"),
        _ => directive.trim().to_owned(),
    };
    value.split(',').map(spelled).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::directives;

    #[test]
    fn graph_is_a_word() {
        assert_eq!(directives("graph"), "metal_candle_graph=debug");
        assert_eq!(directives("graph=trace, info"), "metal_candle_graph=trace,info");
        assert_eq!(directives("metal_candle=debug"), "metal_candle=debug");
    }
}
