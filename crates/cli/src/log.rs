//! `METAL_CANDLE_LOG`: logs of the engine on stderr. Without it, only the library's warnings, in plain text.
//!
//! The value is a list of `tracing` directives (`metal_candle_graph=trace,info`); `graph` is short for
//! `metal_candle_graph`, and alone for its passes and plans (`debug`).

use std::fmt;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use crate::error::{Failure, Result};

const VARIABLE: &str = "METAL_CANDLE_LOG";

/// The directives without the variable.
const WARNINGS: &str = "off,metal_candle=warn,metal_candle_graph=warn";

/// Starts logging, as set by the variable.
pub fn start() -> Result<()> {
    let Ok(value) = std::env::var(VARIABLE) else {
        tracing_subscriber::fmt()
            .with_env_filter(EnvFilter::new(WARNINGS))
            .with_writer(std::io::stderr)
            .with_ansi(false)
            .event_format(Plain)
            .init();
        return Ok(());
    };
    let filter = EnvFilter::try_new(directives(&value)).map_err(|error| {
        Failure::with_tip(
            format!("{VARIABLE}={value}: {error}"),
            format!("for example {VARIABLE}=graph shows passes and plans, {VARIABLE}=graph=trace every evaluation"),
        )
    })?;
    let colour = ::console::colors_enabled_stderr();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(colour)
        .init();
    Ok(())
}

/// Formats events like the program's own warnings.
struct Plain;

impl<S, N> FormatEvent<S, N> for Plain
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut out: Writer<'_>,
        event: &tracing::Event<'_>,
    ) -> fmt::Result {
        write!(out, "warning: ")?;
        context.field_format().format_fields(out.by_ref(), event)?;
        writeln!(out)
    }
}

/// The list with `graph` expanded.
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
    fn graph_is_expanded_to_the_crate() {
        assert_eq!(directives("graph"), "metal_candle_graph=debug");
        assert_eq!(directives("graph=trace, info"), "metal_candle_graph=trace,info");
        assert_eq!(directives("metal_candle=debug"), "metal_candle=debug");
    }
}
