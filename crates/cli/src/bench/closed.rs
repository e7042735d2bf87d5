//! Closed loops: so many requests unanswered at a time, the next one when an answer has come. They find out
//! how much a server does; for how long it takes at a given rate see `open`.

use std::{sync::Arc, time::Duration};

use rimstone_client::{ClientError, Pending, Producer};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep},
};

use super::{
    arrivals::Arrivals,
    bounds::Budget,
    caller::{Caller, goes_on, producer},
    meter::Meter,
    options::{ProduceVia, Producing},
    pool::{Pool, Source},
    session::{Session, Target},
};
use crate::exit::{Failure, Outcome};

/// How long a task waits after "not now" if the server does not say.
const PAUSE: Duration = Duration::from_millis(10);
/// Records of one producer that wait here for their answers; the producer's own buffer is bounded by bytes.
const PENDING_MAX: usize = 65_536;
/// The client's producer has at most so many batches unanswered for a partition.
const CLIENT_IN_FLIGHT_MAX: u32 = 64;

/// What the tasks of a phase share.
#[derive(Debug, Clone)]
pub(crate) struct Shared {
    pub(crate) meter: Arc<Meter>,
    pub(crate) budget: Arc<Budget>,
    /// Who wants to know where records are.
    pub(crate) arrivals: Option<Arc<Arrivals>>,
}

impl Shared {
    pub(crate) fn new((meter, budget): (Meter, Budget)) -> Self {
        Self { meter: Arc::new(meter), budget: Arc::new(budget), arrivals: None }
    }

    /// Counts an error; what ends the run is given back.
    pub(crate) async fn failed(&self, error: ClientError) -> Result<(), ClientError> {
        self.meter.failed(&error);
        if !goes_on(&error) {
            self.budget.stop();
            return Err(error);
        }
        sleep(error.retry_after.unwrap_or(PAUSE)).await;
        Ok(())
    }
}

/// Produces as the options ask for, until the budget is spent.
pub(crate) async fn produce(
    session: &Session,
    topic: &Target,
    producing: &Producing,
    shared: &Shared,
    records: Option<u64>,
) -> Outcome {
    let mut callers = Vec::new();
    let pool = match producing.via {
        ProduceVia::Batches => {
            for _ in 0..producing.producers {
                callers.push(Caller::stream(session.connect()?).await?);
            }
            Pool::of_batches(
                topic,
                &mut Source::new(session, 1),
                producing.batch_bytes,
                session.load.compression.compression(),
                records,
            )?
        }
        ProduceVia::Records => {
            for _ in 0..producing.producers {
                callers.push(Caller::Unary(rimstone_client::bare::Calls::over(session.connect()?)));
            }
            Pool::of_records(topic, &mut Source::new(session, 1), producing.batch_records)
        }
        ProduceVia::Client => return clients(session, topic, producing, shared).await,
    };
    closed(callers, producing.in_flight as usize, Arc::new(pool), shared).await
}

/// Sends requests of the pool through each caller, `in_flight` at a time, until the budget is spent.
pub(crate) async fn closed(
    callers: Vec<Caller>,
    in_flight: usize,
    pool: Arc<Pool>,
    shared: &Shared,
) -> Outcome {
    let mut tasks = JoinSet::new();
    for slot in 0..in_flight {
        for (number, caller) in callers.iter().enumerate() {
            let task = slot * callers.len() + number;
            tasks.spawn(one_after_another(task, caller.clone(), pool.clone(), shared.clone()));
        }
    }
    all(tasks).await
}

async fn one_after_another(
    task: usize,
    caller: Caller,
    pool: Arc<Pool>,
    shared: Shared,
) -> Result<(), ClientError> {
    loop {
        let prepared = pool.next();
        let sent = Instant::now();
        if !shared.budget.claim(prepared.records, sent) {
            return Ok(());
        }
        match caller.call(prepared).await {
            Ok(places) => {
                let now = Instant::now();
                shared.meter.answered(task, prepared.records, prepared.bytes, now - sent, now);
                if let Some(arrivals) = &shared.arrivals {
                    arrivals.sent(&places, sent);
                }
            }
            Err(error) => shared.failed(error).await?,
        }
    }
}

/// The client's producers, each fed as fast as it takes records.
async fn clients(session: &Session, topic: &Target, producing: &Producing, shared: &Shared) -> Outcome {
    let mut tasks = JoinSet::new();
    for number in 0..producing.producers {
        let in_flight = producing.in_flight.min(CLIENT_IN_FLIGHT_MAX) as usize;
        let producer = producer(session.server(), &session.load, in_flight)?
            .batch_bytes(producing.batch_bytes as usize)
            .build()?;
        let source = Source::new(session, u64::from(number) + 1);
        let (sent, answers) = mpsc::channel(PENDING_MAX);
        tasks.spawn(feed(producer, topic.name.clone(), source, sent, shared.clone()));
        tasks.spawn(collect(number as usize, answers, shared.clone()));
    }
    all(tasks).await
}

/// A record under way.
struct Sent {
    at: Instant,
    bytes: u64,
    pending: Pending,
}

async fn feed(
    producer: Producer,
    topic: String,
    mut source: Source,
    sent: mpsc::Sender<Sent>,
    shared: Shared,
) -> Result<(), ClientError> {
    loop {
        let at = Instant::now();
        if !shared.budget.claim(1, at) {
            break;
        }
        let (key, value) = source.next();
        let bytes = (key.as_ref().map_or(0, bytes::Bytes::len) + value.len()) as u64;
        let record = rimstone_client::ProducerRecord { key, value: Some(value), ..Default::default() };
        let pending = match producer.send(&topic, record).await {
            Ok(pending) => pending,
            Err(error) => {
                shared.failed(error).await?;
                continue;
            }
        };
        if sent.send(Sent { at, bytes, pending }).await.is_err() {
            break;
        }
    }
    drop(sent);
    // What failed is seen by the collector.
    let _ = producer.close().await;
    Ok(())
}

async fn collect(task: usize, mut answers: mpsc::Receiver<Sent>, shared: Shared) -> Result<(), ClientError> {
    while let Some(Sent { at, bytes, pending }) = answers.recv().await {
        match pending.await {
            Ok(delivery) => {
                let now = Instant::now();
                shared.meter.answered(task, 1, bytes, now - at, now);
                if let (Some(arrivals), Some(offset)) = (&shared.arrivals, delivery.offset) {
                    arrivals.sent_one(delivery.partition, offset, at);
                }
            }
            Err(error) => shared.failed(error.cause).await?,
        }
    }
    Ok(())
}

/// Waits for every task; the first error is the outcome.
pub(crate) async fn all(mut tasks: JoinSet<Result<(), ClientError>>) -> Outcome {
    let mut outcome = Ok(());
    while let Some(ended) = tasks.join_next().await {
        let ended = ended.map_err(|error| Failure::failed(format!("a task of the load ended: {error}")));
        match ended {
            Ok(Ok(())) => {}
            Ok(Err(error)) if outcome.is_ok() => outcome = Err(error.into()),
            Ok(Err(_)) => {}
            Err(failure) => return Err(failure),
        }
    }
    outcome
}
