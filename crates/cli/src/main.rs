//! The binary `metal-candle`: fine-tunes language models with `LoRA` and generates text with the adapters.
//!
//! All computation is in the library; here are flags, settings files, progress, plots and messages. Exit codes: 0
//! success, 1 failure, 2 bad input, 129, 130 and 143 ended by SIGHUP, SIGINT and SIGTERM.

#![forbid(unsafe_code)]

mod args;
mod base;
mod bench;
mod choices;
mod claim;
mod config_file;
mod console;
mod demo;
mod error;
mod exchange;
mod explain;
mod generate;
mod interrupt;
mod log;
mod output;
mod plot;
mod progress;
mod recorder;
mod remarks;
mod report;
mod train;

use std::process::ExitCode;

use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, CommandFactory, FromArgMatches};

use args::{Cli, Command};

fn main() -> ExitCode {
    let matches = command().get_matches();
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let done = log::start().and_then(|()| match cli.command {
        Command::Train(arguments) => train::run(*arguments, &|setting| by_flag(&matches, setting)),
        Command::Generate(arguments) => generate::run(&arguments),
        Command::Bench(arguments) => bench::run(&arguments),
        Command::Explain(arguments) => explain::run(&arguments),
    });
    match done {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            console::warn(&failure.to_string());
            ExitCode::from(failure.exit_code())
        }
    }
}

/// The command line. Negative numbers are parsed as values (out of range), not as unknown flags.
fn command() -> clap::Command {
    let value = |arg: Arg| {
        if arg.get_action().takes_values() {
            arg.allow_negative_numbers(true)
        } else {
            arg
        }
    };
    Cli::command().mut_subcommands(|command| command.mut_args(value))
}

/// Whether a setting of the command was given as a flag, not by default.
fn by_flag(matches: &ArgMatches, setting: &str) -> bool {
    let given = matches.subcommand().map(|(_, given)| given);
    given.and_then(|given| given.value_source(setting)) == Some(ValueSource::CommandLine)
}
