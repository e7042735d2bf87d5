//! The client: requests in a closed loop, unary or on streams; or a reader.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};
use rimstone_benches::{
    payload::Values,
    stats::Meter,
    wire::{Answer, Batch, ReadRequest, Record, Request, reference_client::ReferenceClient},
};
use serde_json::Value;
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Streaming,
    transport::{Channel, Endpoint},
};

/// The same as Rimstone's client has.
const STREAM_WINDOW: u32 = 8 << 20;
const CONNECTION_WINDOW: u32 = 32 << 20;
const FRAME_BYTES: u32 = 256 << 10;
const MESSAGE_BYTES_MAX: usize = 32 << 20;
/// Requests between those who send and the connection.
const REQUESTS_QUEUED: usize = 64;
/// Bytes of the requests that are made before the clock runs.
const POOL_BYTES_MAX: usize = 32 << 20;
/// Requests that a pool has at most.
const POOL_REQUESTS_MAX: usize = 4096;
/// Partitions that requests name in turn, as many as `rimstone bench` makes.
const PARTITIONS: usize = 6;

/// How requests travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// A call for each
    Unary,
    /// Streams with an answer for each message
    Bidi,
}

/// Sends requests and waits for their answers.
#[derive(Debug, Args)]
pub(crate) struct Call {
    /// Where the server listens
    #[arg(long)]
    pub(crate) server: String,
    /// How requests travel
    #[arg(long, value_enum, default_value = "bidi")]
    pub(crate) kind: Kind,
    /// Connections
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) connections: u32,
    /// Streams on each connection (bidi)
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub(crate) streams: u32,
    /// Unanswered requests on each stream, or on each connection (unary)
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(crate) in_flight: u32,
    /// Bytes of a record's value, or of the whole request without --records
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u64).range(1..=16 << 20))]
    pub(crate) size: u64,
    /// Plain records in a request; 0: one piece of --size bytes, as an encoded batch is
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=100_000))]
    pub(crate) records: u32,
    /// Ends after so many requests
    #[arg(short = 'n', long)]
    pub(crate) requests: Option<u64>,
    /// Ends after this time [default: 10s, unless -n is given]
    #[arg(long = "for", value_parser = humantime::parse_duration)]
    pub(crate) duration: Option<Duration>,
    /// What happens before is not counted
    #[arg(long, default_value = "0s", value_parser = humantime::parse_duration)]
    pub(crate) warm_up: Duration,
}

/// Reads a stream.
#[derive(Debug, Args)]
pub(crate) struct Read {
    /// Where the server listens
    #[arg(long)]
    pub(crate) server: String,
    /// Bytes in all
    #[arg(long, default_value_t = 300 << 20)]
    pub(crate) bytes: u64,
    /// Bytes of one message
    #[arg(long, default_value_t = 1 << 20, value_parser = clap::value_parser!(u32).range(1..=16 << 20))]
    pub(crate) piece_bytes: u32,
}

/// What all callers share.
struct Shared {
    meter: Meter,
    pool: Vec<Request>,
    sent: AtomicU64,
    most: Option<u64>,
    records: u64,
    bytes: u64,
}

impl Shared {
    /// The next request, if there is to be one.
    fn claim(&self, now: Instant) -> Option<&Request> {
        if self.meter.is_over(now) {
            return None;
        }
        let number = self.sent.fetch_add(1, Ordering::Relaxed);
        if self.most.is_some_and(|most| number >= most) {
            return None;
        }
        Some(&self.pool[(number % self.pool.len() as u64) as usize])
    }
}

#[derive(Clone)]
enum Caller {
    Unary(ReferenceClient<Channel>),
    Stream(Arc<Mux>),
}

impl Caller {
    async fn call(&mut self, request: &Request) -> anyhow::Result<()> {
        match self {
            Self::Unary(client) => drop(client.unary(request.clone()).await?),
            Self::Stream(mux) => drop(mux.call(request.clone()).await?),
        }
        Ok(())
    }
}

impl Call {
    pub(crate) async fn run(self) -> anyhow::Result<Value> {
        let mut callers = Vec::new();
        for _ in 0..self.connections {
            let client = connect(&self.server).await?;
            match self.kind {
                Kind::Unary => callers.push(Caller::Unary(client)),
                Kind::Bidi => {
                    for _ in 0..self.streams {
                        callers.push(Caller::Stream(Arc::new(Mux::open(client.clone()).await?)));
                    }
                }
            }
        }
        let pool = self.pool();
        let from = Instant::now() + self.warm_up;
        let time = self.duration.or(self.requests.is_none().then_some(Duration::from_secs(10)));
        let count = u64::from(self.records.max(1));
        let shared = Arc::new(Shared {
            meter: Meter::new(from, time.map(|time| from + time)),
            pool,
            sent: AtomicU64::new(0),
            most: self.requests,
            records: count,
            bytes: count * self.size,
        });
        let mut tasks = JoinSet::new();
        for slot in 0..self.in_flight as usize {
            for (number, caller) in callers.iter().enumerate() {
                let task = slot * callers.len() + number;
                tasks.spawn(one_after_another(task, caller.clone(), shared.clone()));
            }
        }
        while let Some(ended) = tasks.join_next().await {
            ended??;
        }
        Ok(shared.meter.phase("call"))
    }

    /// Requests that are made before the clock runs.
    fn pool(&self) -> Vec<Request> {
        let size = self.size as usize;
        let request_bytes = size * self.records.max(1) as usize;
        let requests = (POOL_BYTES_MAX / request_bytes).clamp(PARTITIONS, POOL_REQUESTS_MAX);
        let mut values = Values::new(size, 1);
        let make = |number: usize| {
            let partition = (number % PARTITIONS) as u32;
            let mut request = Request { topic: "a-topic-of-some-length".to_owned(), ..Default::default() };
            if self.records == 0 {
                request.batches = vec![Batch { partition, data: values.value(size) }];
            } else {
                let partition = (self.records == 1).then_some(partition);
                let record = |_| Record { key: None, value: Some(values.value(size)), partition };
                request.records = (0..self.records).map(record).collect();
            }
            request
        };
        (0..requests).map(make).collect()
    }
}

async fn one_after_another(task: usize, mut caller: Caller, shared: Arc<Shared>) -> anyhow::Result<()> {
    loop {
        let sent = Instant::now();
        let Some(request) = shared.claim(sent) else { return Ok(()) };
        caller.call(request).await?;
        let now = Instant::now();
        shared.meter.answered(task, shared.records, shared.bytes, Some(now - sent), now);
    }
}

impl Read {
    pub(crate) async fn run(self) -> anyhow::Result<Value> {
        let mut client = connect(&self.server).await?;
        let meter = Meter::new(Instant::now(), None);
        let request = ReadRequest { bytes: self.bytes, piece_bytes: self.piece_bytes };
        let mut pieces = client.read(request).await?.into_inner();
        while let Some(piece) = pieces.message().await? {
            let bytes = piece.batches.iter().map(|batch| batch.data.len() as u64).sum();
            meter.answered(0, 1, bytes, None, Instant::now());
        }
        Ok(meter.phase("read"))
    }
}

async fn connect(server: &str) -> anyhow::Result<ReferenceClient<Channel>> {
    let channel = Endpoint::from_shared(format!("http://{server}"))?
        .tcp_nodelay(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME_BYTES)
        .connect()
        .await
        .with_context(|| format!("no reference listens at {server}"))?;
    Ok(ReferenceClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX))
}

/// A stream with an answer for each message, in order, shared by many callers.
struct Mux {
    requests: mpsc::Sender<Request>,
    waiting: Arc<Mutex<VecDeque<oneshot::Sender<Answer>>>>,
}

impl Mux {
    async fn open(mut client: ReferenceClient<Channel>) -> anyhow::Result<Self> {
        let (requests, outgoing) = mpsc::channel(REQUESTS_QUEUED);
        let answers = client.bidi(ReceiverStream::new(outgoing)).await?.into_inner();
        let waiting = Arc::new(Mutex::new(VecDeque::new()));
        tokio::spawn(answer(answers, waiting.clone()));
        Ok(Self { requests, waiting })
    }

    async fn call(&self, request: Request) -> anyhow::Result<Answer> {
        let Ok(room) = self.requests.reserve().await else { bail!("the stream has ended") };
        let (sender, answer) = oneshot::channel();
        {
            let mut waiting = lock(&self.waiting);
            room.send(request);
            waiting.push_back(sender);
        }
        answer.await.context("the stream has ended")
    }
}

async fn answer(mut answers: Streaming<Answer>, waiting: Arc<Mutex<VecDeque<oneshot::Sender<Answer>>>>) {
    while let Ok(Some(answer)) = answers.message().await {
        let sender = lock(&waiting).pop_front();
        if let Some(sender) = sender {
            // Whoever waited may have gone.
            let _ = sender.send(answer);
        }
    }
    // Those who still wait learn that nothing will come.
    lock(&waiting).clear();
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
