//! Developer commands of the workspace: `cargo xtask ci` and `cargo xtask tidy`.
//!
//! Nothing here is part of the library or of the binary people install. The commands read and write only inside the
//! repository; they need no network.
#![forbid(unsafe_code)]

mod ci;
mod tidy;

use std::path::{Path, PathBuf};

use clap::{Parser, Subcommand};

/// Developer commands of the metal-candle workspace.
#[derive(Parser)]
#[command(name = "xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run every check: format, house rules, clippy, tests, the eager-only build, documentation, licences.
    Ci(ci::Arguments),
    /// Check the house rules a machine can check and print each offence with its file and line.
    Tidy,
}

fn main() -> miette::Result<()> {
    let root = repository_root();
    match Arguments::parse().command {
        Command::Ci(arguments) => ci::run(&root, &arguments),
        Command::Tidy => tidy::run(&root),
    }
}

/// The workspace folder: the parent of this package's folder, fixed at compile time by cargo.
fn repository_root() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap_or(package).to_path_buf()
}
