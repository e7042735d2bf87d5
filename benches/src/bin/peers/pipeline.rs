//! Producers: each writes chunks of requests that were encoded before, and counts as many answers as it wrote requests.
//! Not here: what a request or an answer looks like.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use bytes::{Buf as _, Bytes, BytesMut};
use clap::Args;
use rimstone_benches::{payload::Values, stats::Meter};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{Semaphore, mpsc},
    task::JoinSet,
};

use crate::READ_BYTES;

/// Bytes of the chunks that all connections have together, made before the clock runs.
const POOL_BYTES_MAX: u64 = 32 << 20;
/// Chunks that a connection has at most.
const POOL_CHUNKS_MAX: u64 = 1024;

/// Writes as much as the server takes.
#[derive(Debug, Clone, Args)]
pub(crate) struct Produce {
    /// Where the server listens
    #[arg(long)]
    pub(crate) server: String,
    /// Connections
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) connections: u32,
    /// Chunks of requests that each connection has unanswered
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(crate) in_flight: u32,
    /// Requests of a chunk, each with one record: written at once
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) batch: u32,
    /// Bytes of a value
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    pub(crate) size: u64,
    /// Ends after so many records, rounded up to whole chunks
    #[arg(short = 'n', long)]
    pub(crate) records: Option<u64>,
    /// Ends after this time [default: 10s, unless -n is given]
    #[arg(long = "for", value_parser = humantime::parse_duration)]
    pub(crate) duration: Option<Duration>,
    /// What happens before is not counted
    #[arg(long, default_value = "0s", value_parser = humantime::parse_duration)]
    pub(crate) warm_up: Duration,
}

/// What a server's answers look like.
pub(crate) trait Answers: Send + 'static {
    /// Takes what is whole at the start of `bytes`: how many answers, and how many bytes.
    ///
    /// # Errors
    /// The server refused a request, or speaks another protocol.
    fn take(&mut self, bytes: &[u8]) -> anyhow::Result<(u64, usize)>;
}

/// One producer's connection and what it sends.
pub(crate) struct Producer<A> {
    pub(crate) stream: TcpStream,
    pub(crate) chunks: Vec<Bytes>,
    pub(crate) answers: A,
}

struct Shared {
    meter: Meter,
    sent: AtomicU64,
    chunks_max: Option<u64>,
    batch: u64,
    bytes: u64,
}

impl Shared {
    fn claim(&self) -> bool {
        !self.meter.is_over(Instant::now())
            && self.chunks_max.is_none_or(|most| self.sent.fetch_add(1, Ordering::Relaxed) < most)
    }
}

impl Produce {
    /// Chunks of one connection. `encode` appends a request for the value of this number.
    pub(crate) fn chunks(
        &self,
        seed: u64,
        mut encode: impl FnMut(&mut BytesMut, usize, &Bytes),
    ) -> Vec<Bytes> {
        let chunk_bytes = self.size * u64::from(self.batch);
        let count =
            (POOL_BYTES_MAX / u64::from(self.connections) / chunk_bytes).clamp(2, POOL_CHUNKS_MAX) as usize;
        let mut values = Values::new(self.size as usize, seed);
        let mut number = seed as usize;
        let mut chunk = || {
            let mut chunk = BytesMut::with_capacity(chunk_bytes as usize * 2);
            for _ in 0..self.batch {
                encode(&mut chunk, number, &values.value(self.size as usize));
                number += 1;
            }
            chunk.freeze()
        };
        (0..count).map(|_| chunk()).collect()
    }

    /// Runs all producers until the end that was asked for.
    pub(crate) async fn run<A: Answers>(&self, producers: Vec<Producer<A>>) -> anyhow::Result<Value> {
        let time = self.duration.or(self.records.is_none().then_some(Duration::from_secs(10)));
        let from = Instant::now() + self.warm_up;
        let batch = u64::from(self.batch);
        let shared = Arc::new(Shared {
            meter: Meter::new(from, time.map(|time| from + time)),
            sent: AtomicU64::new(0),
            chunks_max: self.records.map(|records| records.div_ceil(batch)),
            batch,
            bytes: batch * self.size,
        });
        let mut tasks = JoinSet::new();
        for (number, producer) in producers.into_iter().enumerate() {
            let (read, write) = producer.stream.into_split();
            let window = Arc::new(Semaphore::new(self.in_flight as usize));
            let (sent, written) = mpsc::channel(self.in_flight as usize);
            tasks.spawn(write_chunks(write, producer.chunks, sent, window.clone(), shared.clone()));
            tasks.spawn(count_answers(number, read, producer.answers, written, window, shared.clone()));
        }
        // A half that is closed before all is answered would tell the server that nobody waits.
        let mut open = Vec::new();
        while let Some(ended) = tasks.join_next().await {
            open.extend(ended??);
        }
        drop(open);
        Ok(shared.meter.phase("produce"))
    }
}

async fn write_chunks(
    mut write: OwnedWriteHalf,
    chunks: Vec<Bytes>,
    sent: mpsc::Sender<Instant>,
    window: Arc<Semaphore>,
    shared: Arc<Shared>,
) -> anyhow::Result<Option<OwnedWriteHalf>> {
    for chunk in chunks.iter().cycle() {
        window.acquire().await?.forget();
        if !shared.claim() {
            break;
        }
        sent.send(Instant::now()).await.context("nobody counts answers any more")?;
        write.write_all(chunk).await?;
    }
    Ok(Some(write))
}

async fn count_answers(
    task: usize,
    mut read: OwnedReadHalf,
    mut answers: impl Answers,
    mut written: mpsc::Receiver<Instant>,
    window: Arc<Semaphore>,
    shared: Arc<Shared>,
) -> anyhow::Result<Option<OwnedWriteHalf>> {
    let mut buffer = BytesMut::with_capacity(READ_BYTES);
    let mut waiting = 0;
    while let Some(sent) = written.recv().await {
        while waiting < shared.batch {
            buffer.reserve(READ_BYTES / 2);
            ensure!(read.read_buf(&mut buffer).await? > 0, "the server closed the connection");
            let (count, bytes) = answers.take(&buffer)?;
            buffer.advance(bytes);
            waiting += count;
        }
        waiting -= shared.batch;
        let now = Instant::now();
        shared.meter.answered(task, shared.batch, shared.bytes, Some(now - sent), now);
        window.add_permits(1);
    }
    Ok(None)
}
