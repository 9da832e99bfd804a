//! Developer commands of the workspace: `cargo xtask` with `ci`, `tidy`, `miri`, `asan` or `demo`.
//!
//! Nothing here is part of the library or of the binary people install. The commands read and write only inside the
//! repository and the folder given by `--output`; they need no network.
#![forbid(unsafe_code)]

mod ci;
mod demo;
mod proof;
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
    /// Run every check: format, project rules, clippy (for macOS too), tests, the eager-only build, documentation, licences.
    Ci(ci::Arguments),
    /// Check the project rules and print each offence with its file and line.
    Tidy,
    /// Run the engine's unsafe code under Miri (needs a nightly compiler).
    Miri,
    /// Run the engine's tests under the address sanitizer (needs a nightly compiler).
    Asan,
    /// Make the data of the built-in demonstration.
    Demo(demo::Arguments),
}

fn main() -> miette::Result<()> {
    let root = repository_root();
    match Arguments::parse().command {
        Command::Ci(arguments) => ci::run(&root, &arguments),
        Command::Tidy => tidy::run(&root),
        Command::Miri => proof::miri(&root),
        Command::Asan => proof::asan(&root),
        Command::Demo(arguments) => demo::run(&arguments),
    }
}

/// The workspace folder: the parent of this package's folder, fixed at compile time by cargo.
fn repository_root() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap_or(package).to_path_buf()
}
