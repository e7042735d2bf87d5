//! Clients of the servers that Rimstone is compared with: Redis Streams and NATS JetStream, over bare sockets. They
//! are made so that they do not hold a server back: requests are encoded before the clock runs, many are written at
//! once, several connections keep as much unanswered as Rimstone's producers do.
//!
//! | room | what |
//! |---|---|
//! | `pipeline` | producers: chunks of requests, and as many answers |
//! | `redis` | `XADD`; `XRANGE` from the start |
//! | `nats` | publishing with an answer of JetStream each; pull consumers |
//!
//! Not here: starting servers, and the comparison itself (`compare`).
#![forbid(unsafe_code)]

mod nats;
mod pipeline;
mod redis;

use clap::{Args, Parser, Subcommand};

/// Streams that stand beside Rimstone's partitions: as many as `rimstone bench` makes.
const STREAMS: usize = 6;
/// What is read from a socket at once.
const READ_BYTES: usize = 256 << 10;

/// Loads other servers as `rimstone bench` loads Rimstone.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Appends to streams of Redis
    RedisProduce(pipeline::Produce),
    /// Reads all streams of Redis
    RedisConsume(Consume),
    /// Publishes to streams of JetStream
    NatsProduce(pipeline::Produce),
    /// Reads all streams of JetStream
    NatsConsume(Consume),
}

/// Reads all streams from their start, one connection for each.
#[derive(Debug, Args)]
struct Consume {
    /// Where the server listens
    #[arg(long)]
    server: String,
    /// Records of one request
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    batch: u32,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let phase = match Arguments::parse().command {
        Command::RedisProduce(produce) => redis::produce(produce).await?,
        Command::RedisConsume(consume) => redis::consume(&consume.server, consume.batch).await?,
        Command::NatsProduce(produce) => nats::produce(produce).await?,
        Command::NatsConsume(consume) => nats::consume(&consume.server, consume.batch).await?,
    };
    println!("{}", serde_json::json!({"phases": [phase]}));
    Ok(())
}

/// A number of ASCII digits.
fn number(text: &[u8]) -> anyhow::Result<usize> {
    std::str::from_utf8(text)
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| anyhow::anyhow!("{:?} is not a number", String::from_utf8_lossy(text)))
}

/// The line at the start of `bytes`, without its end, if it is whole.
fn line(bytes: &[u8]) -> Option<&[u8]> {
    let end = bytes.iter().position(|byte| *byte == b'\r')?;
    (bytes.get(end + 1) == Some(&b'\n')).then(|| &bytes[..end])
}
