//! What others can do on this machine: bare tonic, a bare produce path, the disk. The rows of `goals` are compared
//! with these. Server and client are separate processes, as with Rimstone; no code of its server is used.
//!
//! | room | what |
//! |---|---|
//! | `serve` | a tonic server that answers at once, or when what came is synced |
//! | `gather` | one thread that writes what has come to one file and syncs it for all who wait |
//! | `load` | callers, unary or on streams; a reader |
//! | `disk` | `pwrite` and sync by step; reading cold and hot |
//!
//! Not here: batches, offsets, recovery, anything that a log needs. It is a bound, not a product.
#![forbid(unsafe_code)]

mod disk;
mod gather;
mod load;
mod serve;

use clap::{Parser, Subcommand};

/// What others can do on this machine.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serves; prints where it listens
    Serve(serve::Serve),
    /// Sends requests and waits for their answers
    Call(load::Call),
    /// Reads a stream
    Read(load::Read),
    /// Measures the disk
    #[command(subcommand)]
    Disk(disk::Disk),
}

fn main() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let document = match Arguments::parse().command {
        Command::Serve(serve) => return runtime.block_on(serve.run()),
        Command::Call(call) => runtime.block_on(call.run())?,
        Command::Read(read) => runtime.block_on(read.run())?,
        Command::Disk(disk) => disk.run()?,
    };
    println!("{}", serde_json::json!({"phases": [document]}));
    Ok(())
}

#[cfg(test)]
mod tests;
