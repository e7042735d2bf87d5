//! The `rimstone` binary: the server, and everything that is done with one from a shell. One file per noun;
//! data on standard output, everything else on standard error.
//!
//! Not here: what a command does on the server (`rimstone-broker`) and how records travel
//! (`rimstone-client`).
#![forbid(unsafe_code)]

mod bench;
mod completions;
mod config;
mod consume;
mod exit;
mod extract;
mod format;
mod global;
mod group;
mod inspect;
mod lag;
mod logs;
mod offsets;
mod output;
mod position;
mod produce;
mod producers;
mod replay;
mod serve;
mod times;
mod topic;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::{
    exit::{EXIT_CODES, Failure, Outcome},
    global::Global,
};

/// Buffers of requests come and go on other threads than they were made on, which the allocator of the C library is
/// slow at (ADR 0014).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A partitioned append-only log server, and its command line.
#[derive(Debug, Parser)]
#[command(name = "rimstone", version, max_term_width = 110, after_help = EXIT_CODES)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the server
    Serve(serve::Serve),
    /// Makes, shows, changes and deletes topics
    #[command(subcommand)]
    Topic(topic::Topic),
    /// Writes lines of a file or of standard input into a topic
    Produce(produce::Produce),
    /// Reads records of a topic, alone or as a member of a group
    Consume(Box<consume::Consume>),
    /// Shows groups, their members and committed offsets; commits, deletes, clones
    #[command(subcommand)]
    Group(group::Group),
    /// Shows how far behind groups are
    Lag(lag::LagCommand),
    /// Has a group read again: plans, then moves its offsets or those of a clone
    #[command(subcommand)]
    Replay(replay::Replay),
    /// Shows the ends of a topic, or where a time falls
    Offsets(offsets::Offsets),
    /// Shows and deletes producers
    #[command(subcommand)]
    Producers(producers::Producers),
    /// Shows what lies in a data directory, without a server; --verify reads every byte
    Inspect(inspect::Inspect),
    /// Measures a running server
    #[command(subcommand)]
    Bench(bench::Bench),
    /// Checks the server's settings
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Prints a completion script for a shell
    Completions(completions::Completions),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => ExitCode::from(failure.report()),
    }
}

fn run(cli: Cli) -> Outcome {
    let Cli { global, command } = cli;
    if !matches!(command, Command::Serve(_)) {
        logs::begin(&global);
    }
    match command {
        // Without a server there is nothing to wait for.
        Command::Config(command) => command.run(),
        Command::Completions(command) => command.run(),
        Command::Inspect(command) => command.run(),
        Command::Serve(command) => in_runtime(command.run(&global)),
        Command::Bench(command) => in_runtime(command.run(&global)),
        Command::Topic(command) => in_runtime(command.run(&global)),
        Command::Produce(command) => in_runtime(command.run(&global)),
        Command::Consume(command) => in_runtime(command.run(&global)),
        Command::Group(command) => in_runtime(command.run(&global)),
        Command::Lag(command) => in_runtime(command.run(&global)),
        Command::Replay(command) => in_runtime(command.run(&global)),
        Command::Offsets(command) => in_runtime(command.run(&global)),
        Command::Producers(command) => in_runtime(command.run(&global)),
    }
}

fn in_runtime(work: impl Future<Output = Outcome>) -> Outcome {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("cannot start threads: {error}")))?;
    let outcome = runtime.block_on(work);
    // A thread that waits for standard input must not keep the process.
    runtime.shutdown_background();
    outcome
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_holds_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_exit_code_is_documented() {
        let help = Cli::command().render_long_help().to_string();
        for code in [
            "0  done",
            "1  the operation",
            "2  the command line",
            "3  not found",
            "4  the server",
            "5  it",
            "6  stored",
            "7  a group",
            "130  ",
        ] {
            assert!(help.contains(code), "{code}");
        }
    }
}
