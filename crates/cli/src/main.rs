//! The binary `metal-candle`: fine-tunes language models with `LoRA` and generates text with the adapters.
//!
//! Everything that computes is in the library; here are flags, settings files, progress, pictures and messages.
//! Exit codes: 0 done, 1 failed, 2 bad input, 130 and 143 ended by SIGINT and SIGTERM.

#![forbid(unsafe_code)]

mod args;
mod base;
mod config_file;
mod console;
mod demo;
mod error;
mod generate;
mod interrupt;
mod log;
mod output;
mod plot;
mod progress;
mod recorder;
mod report;
mod train;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};

use args::{Cli, Command};

fn main() -> ExitCode {
    let matches = Cli::command().get_matches();
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let given = matches.subcommand().map(|(_, given)| given);
    let done = log::start().and_then(|()| match (cli.command, given) {
        (Command::Train(arguments), Some(given)) => train::run(arguments, given),
        (Command::Train(_), None) => Ok(0),
        (Command::Generate(arguments), _) => generate::run(&arguments),
    });
    match done {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            console::warn(&failure.to_string());
            ExitCode::from(failure.exit_code())
        }
    }
}
