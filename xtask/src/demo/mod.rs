//! `cargo xtask demo`: the data of the demonstration that `metal-candle train` runs without arguments.
//!
//! A seeded program writes an English-like corpus for a small base model, an instruction set for a skill the base lacks,
//! and the model folder around them. Nothing is downloaded and no text is anybody's: every sentence is made here.

mod codes;
mod corpus;
mod echoes;
mod fact;
mod folder;
mod instructions;
mod phrases;
mod pretrain;
mod rng;
mod tokenizer;
mod words;

use std::path::PathBuf;

use clap::Subcommand;
use miette::{Result, bail};

pub use corpus::corpus;
pub use folder::write_folder;
pub use instructions::instructions;

/// Arguments of `cargo xtask demo`.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Write the corpus, the instruction sets and the model folder (all but the weights).
    Corpus {
        /// Folder to write into; it must be empty or absent.
        #[arg(long, value_name = "DIR")]
        output: PathBuf,
        /// Everything follows from this number.
        #[arg(long, default_value_t = SEED)]
        seed: u64,
        /// Documents of the corpus.
        #[arg(long, default_value_t = DOCUMENTS)]
        documents: usize,
    },
    /// Write all of that and pre-train the base model: makes what the binary embeds.
    Build {
        /// Folder to write into; it must be empty or absent.
        #[arg(long, value_name = "DIR")]
        output: PathBuf,
        /// Everything follows from this number.
        #[arg(long, default_value_t = SEED)]
        seed: u64,
        /// Documents of the corpus.
        #[arg(long, default_value_t = DOCUMENTS)]
        documents: usize,
        /// Optimizer steps of 16 documents each.
        #[arg(long, default_value_t = STEPS)]
        steps: usize,
    },
}

/// The seed of the data that the binary embeds.
pub const SEED: u64 = 2;
/// The number of documents that the embedded base model is pre-trained on.
pub const DOCUMENTS: usize = 180_000;

/// The number of steps that the embedded base model is pre-trained for.
pub const STEPS: usize = 21_440;

/// Runs the command.
///
/// # Errors
///
/// An output folder that is not empty, or a file that cannot be written.
pub fn run(arguments: &Arguments) -> Result<()> {
    let (output, seed, documents) = match &arguments.command {
        Command::Corpus {
            output,
            seed,
            documents,
        }
        | Command::Build {
            output,
            seed,
            documents,
            ..
        } => (output, *seed, *documents),
    };
    if std::fs::read_dir(output).is_ok_and(|mut entries| entries.next().is_some()) {
        bail!("{} is not empty: name a new folder with --output", output.display());
    }
    let statistics = write_folder(output, seed, documents)?;
    println!(
        "{}: {} documents, {} tokens",
        output.display(),
        statistics.documents,
        statistics.corpus_tokens
    );
    println!(
        "{} training examples, {} tokens without chat markup; {} held-out examples",
        statistics.training, statistics.training_tokens, statistics.held_out
    );
    if let Command::Build { steps, .. } = &arguments.command {
        pretrain::pretrain(&output.join("model"), seed, documents, *steps)?;
    }
    Ok(())
}
