//! `rimstone-fuzz TARGET SECONDS [--seed N]`: runs a target, or `all` of them, for so long each.
#![forbid(unsafe_code)]

use std::{process::ExitCode, time::Duration};

use clap::Parser;
use rand::RngExt as _;
use rimstone_fuzz::{TARGETS, runner};

/// Fuzzes what decodes.
#[derive(Debug, Parser)]
struct Options {
    /// batch, recovery, flip, change, index, group-record, catalog-record, grpc or all
    target: String,
    /// For how long each
    #[arg(default_value_t = 60)]
    seconds: u64,
    /// Where to begin [default: anywhere]
    #[arg(long)]
    seed: Option<u64>,
    /// At most so many inputs: 1, with --seed, repeats one
    #[arg(long, default_value_t = u64::MAX)]
    inputs: u64,
}

fn main() -> anyhow::Result<ExitCode> {
    let options = Options::parse();
    runner::limit_memory()?;
    let chosen: Vec<_> =
        TARGETS.iter().filter(|target| options.target == "all" || options.target == target.name).collect();
    anyhow::ensure!(!chosen.is_empty(), "no target {:?}", options.target);
    let first = options.seed.unwrap_or_else(|| rand::rng().random_range(0..1 << 48));
    for target in chosen {
        if target.name == "flip" {
            println!("flip: {} bits there are", rimstone_fuzz::targets::flip::total());
        }
        match runner::run(target, first, options.inputs, Duration::from_secs(options.seconds)) {
            Ok(done) => println!(
                "{}: {} inputs from seed {first} on, {} of them taken for valid; nothing found",
                target.name, done.inputs, done.valid
            ),
            Err(seed) => {
                println!("{}: FOUND: rimstone-fuzz {} --inputs 1 --seed {seed}", target.name, target.name);
                return Ok(ExitCode::FAILURE);
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
