//! The clients of a run: tasks that ask the server for things until they are told to end, and write down what comes
//! of it. They go on through everything that is done to the server.
//!
//! | room | what |
//! |---|---|
//! | [`dense`] | producers that number every record; resends, epochs, zombies |
//! | [`requests`] | producers that number requests of plain records |
//! | [`library`] | the project's own producer and group member |
//! | [`tail`] | readers at the very end, with commits |
//! | [`topics`] | making and deleting topics, trimming |
//!
//! Not here: faults.

pub mod answer;
pub mod dense;
pub mod library;
pub mod requests;
pub mod tail;
pub mod topics;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures::future::Either;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use rimstone_proto::v1::{
    admin_service_client::AdminServiceClient, consume_service_client::ConsumeServiceClient,
    group_service_client::GroupServiceClient, lag_service_client::LagServiceClient,
    produce_service_client::ProduceServiceClient,
};
use tokio::sync::watch;
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};

use crate::{
    event::{Recorder, What},
    facts::Topic,
};

/// How long a client waits for an answer until it takes it for lost. Longer than any delay that a schedule makes.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// What an answer that did not come in time is called.
pub const LATE: &str = "no answer in time";

/// How long a connection may take to come about, on loopback.
const CONNECT: Duration = Duration::from_secs(2);

/// Where a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Everybody works.
    Work,
    /// Producers bring to an end what they have begun, and end.
    Drain,
    /// Readers read to the end, and end.
    Finish,
}

/// What all clients of a run share. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Load {
    /// Where they write down everything.
    pub recorder: Recorder,
    /// The topics that are there from the beginning to the end.
    pub topics: Arc<BTreeMap<String, Topic>>,
    /// Where the server is, `HOST:PORT`.
    pub endpoint: String,
    /// Where producers reach it: there, or behind a proxy.
    pub producing_endpoint: String,
    phase: watch::Receiver<Phase>,
    numbers: Arc<AtomicU64>,
    sent: Arc<AtomicU64>,
    acknowledged: Arc<AtomicU64>,
    rounds: Arc<Mutex<Rounds>>,
}

/// How much producers may begin, where that is bounded: so much in each round, and what is left over is forgotten.
#[derive(Debug, Default)]
struct Rounds {
    /// 0: there are none, and everybody begins as much as he likes.
    current: u64,
    units: u64,
    /// Who has done all that a round allows him, and which.
    done: BTreeMap<String, u64>,
}

impl Load {
    /// Of a run that begins; the phase is set by who holds the other end.
    pub fn new(
        topics: BTreeMap<String, Topic>,
        endpoint: String,
        producing_endpoint: String,
        phase: watch::Receiver<Phase>,
    ) -> Self {
        Self {
            recorder: Recorder::default(),
            topics: Arc::new(topics),
            endpoint,
            producing_endpoint,
            phase,
            numbers: Arc::new(AtomicU64::new(1)),
            sent: Arc::default(),
            acknowledged: Arc::default(),
            rounds: Arc::default(),
        }
    }

    /// The same with another hand at the phase, and without rounds.
    #[must_use]
    pub fn watching(self, phase: watch::Receiver<Phase>) -> Self {
        Self { phase, rounds: Arc::default(), ..self }
    }

    /// From now on each producer may begin so many batches, requests or changes of topics, and waits for the next
    /// round then. The number of the round.
    pub fn begin_round(&self, units: u64) -> u64 {
        let mut rounds = self.rounds();
        rounds.current += 1;
        rounds.units = units;
        rounds.current
    }

    /// How many producers have done all that a round allows.
    pub fn done_with(&self, round: u64) -> usize {
        self.rounds().done.values().filter(|done| **done == round).count()
    }

    fn rounds(&self) -> MutexGuard<'_, Rounds> {
        self.rounds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many records were sent; not again.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// How many records are acknowledged.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// Where the run is.
    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Numbers for so many new records; the first.
    pub fn take_numbers(&self, count: u32) -> u64 {
        self.sent.fetch_add(count.into(), Ordering::Relaxed);
        self.numbers.fetch_add(count.into(), Ordering::Relaxed)
    }

    fn count_acknowledged(&self, records: usize) {
        self.acknowledged.fetch_add(records as u64, Ordering::Relaxed);
    }

    /// A pause before the next try, or the next phase, whichever is first.
    async fn pause(&self, random: &mut StdRng) {
        let pause = Duration::from_millis(random.random_range(3..25));
        let mut phase = self.phase.clone();
        let now = *phase.borrow_and_update();
        let next = phase.wait_for(|phase| *phase != now);
        futures::pin_mut!(next);
        let sleep = tokio::time::sleep(pause);
        futures::pin_mut!(sleep);
        match futures::future::select(sleep, next).await {
            Either::Left(_) | Either::Right(_) => {}
        }
    }
}

/// Connections that come about when they are needed, and again after the server was away.
#[derive(Debug, Clone)]
pub struct Doors {
    /// Topics.
    pub admin: AdminServiceClient<Channel>,
    /// Writing.
    pub produce: ProduceServiceClient<Channel>,
    /// Reading.
    pub consume: ConsumeServiceClient<Channel>,
    /// Commits.
    pub groups: GroupServiceClient<Channel>,
    /// Lag.
    pub lag: LagServiceClient<Channel>,
}

impl Doors {
    /// To `HOST:PORT`.
    ///
    /// # Panics
    /// If that is no address.
    pub fn to(endpoint: &str) -> Self {
        let endpoint = Endpoint::from_shared(format!("http://{endpoint}")).expect("the driver knows where");
        let channel = endpoint.connect_timeout(CONNECT).tcp_nodelay(true).connect_lazy();
        Self {
            admin: AdminServiceClient::new(channel.clone()),
            produce: ProduceServiceClient::new(channel.clone()),
            consume: ConsumeServiceClient::new(channel.clone()),
            groups: GroupServiceClient::new(channel.clone()),
            lag: LagServiceClient::new(channel),
        }
    }
}

/// The outcome of a call, or that there was none in time.
///
/// # Errors
/// What the server said, or `DEADLINE_EXCEEDED`.
pub async fn within<T>(call: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    let late = || Status::deadline_exceeded(LATE);
    tokio::time::timeout(PATIENCE, call).await.unwrap_or_else(|_| Err(late()))
}

/// A client of its own: its name, its dice.
#[derive(Debug)]
pub struct Client {
    /// What it is called in the history.
    pub name: String,
    /// What all share.
    pub load: Load,
    /// Its dice.
    pub random: StdRng,
    /// The round that it is in, and what it may still begin in it.
    turns: (u64, u64),
}

impl Client {
    /// Number `index` of a kind; its dice are thrown from the seed of the run.
    pub fn new(load: &Load, kind: &str, index: u64, seed: u64) -> Self {
        let name = format!("{kind}-{index}");
        let own = name.bytes().fold(seed, |mixed, byte| crate::value::mix(mixed ^ u64::from(byte)));
        Self { name, load: load.clone(), random: StdRng::seed_from_u64(own), turns: (0, 0) }
    }

    fn ask(&self, what: What) -> u64 {
        self.load.recorder.ask(&self.name, what)
    }

    fn answer(&self, op: u64, what: What) {
        self.load.recorder.answer(&self.name, op, what);
    }

    fn note(&self, what: What) {
        self.load.recorder.note(&self.name, what);
    }

    fn violation(&self, rule: u8, what: impl Into<String>) {
        self.note(What::Violation { rule, what: what.into() });
    }

    /// Whether rounds bound what may be begun.
    fn is_bounded(&self) -> bool {
        self.load.rounds().current > 0
    }

    /// Whether it may begin something.
    fn has_turn(&mut self) -> bool {
        let rounds = self.load.rounds();
        if self.turns.0 != rounds.current {
            self.turns = (rounds.current, rounds.units);
        }
        rounds.current == 0 || self.turns.1 > 0
    }

    /// Whether it may begin something, which it does.
    fn take_turn(&mut self) -> bool {
        let has = self.has_turn();
        self.turns.1 = self.turns.1.saturating_sub(u64::from(has));
        has
    }

    /// Nothing is open: if there is nothing more to begin either, it has done its part of the round.
    fn rests(&mut self) {
        if !self.has_turn() {
            self.load.rounds().done.insert(self.name.clone(), self.turns.0);
        }
    }

    async fn pause(&mut self) {
        self.load.pause(&mut self.random).await;
    }
}

/// Unix milliseconds: the create time of what is sent now.
pub fn unix_ms() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is after 1970");
    i64::try_from(now.as_millis()).expect("it is not that late")
}
