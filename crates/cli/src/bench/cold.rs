//! `rimstone bench cold`: reading cold data beside live producers.

use std::{path::PathBuf, sync::Arc};

use clap::Args;
use serde::Serialize;
use tokio::time::Instant;

use super::{
    caller::Caller,
    closed::{self, Shared},
    consume::everything,
    evict::evict,
    open::{self, Beside, Schedule},
    options::{Load, ProduceVia, Producing, Reading},
    pool::{Pool, Source},
    produce::{fill, latency_of},
    rate, read,
    report::Phase,
    session::{Session, Target},
};
use crate::{
    exit::{Failure, Outcome},
    produce::pace,
};

/// Records that are written first unless -n says otherwise: some hundred MB at 1 KiB.
const RECORDS_DEFAULT: u64 = 300_000;
/// Batches unanswered at a time; beyond that they are sent late.
const IN_FLIGHT: usize = 1000;

/// Reads cold data from its start, alone and beside producers that write at a rate of their own.
///
/// Writes two topics, finds out how much producers can write, and then measures: producers alone at a share of
/// that, a reader alone on the first topic, both at once on the second. Producers are an open loop; their
/// latencies count from when a batch was due.
#[derive(Debug, Clone, Args, Serialize)]
pub(crate) struct Cold {
    #[command(flatten)]
    #[serde(skip)]
    pub(crate) load: Load,
    #[command(flatten)]
    #[serde(flatten)]
    producing: Producing,
    #[command(flatten)]
    #[serde(flatten)]
    reading: Reading,
    /// The producers' share of what they could write
    #[arg(long, value_name = "SHARE", default_value_t = 0.3, conflicts_with = "rate", value_parser = share)]
    share: f64,
    /// The producers' rate in records, instead of a share
    #[arg(long, value_name = "N/s", value_parser = pace::rate)]
    rate: Option<f64>,
    /// Makes the data cold: the server's data directory, on this machine. Without it the data is as cold as it
    /// happens to be
    #[arg(long, value_name = "DIRECTORY")]
    evict: Option<PathBuf>,
}

impl Cold {
    pub(crate) async fn go(&self, session: &mut Session) -> Outcome {
        session.load.refuse_topic()?;
        if self.producing.via != ProduceVia::Batches {
            return Err(Failure::usage("--via: this workload sends batches"));
        }
        let records = session.load.records.unwrap_or(RECORDS_DEFAULT);
        let mut topics = Vec::new();
        for _ in 0..2 {
            let topic = session.topic().await?;
            fill(session, &topic, &self.producing, records).await?;
            if let Some(data) = &self.evict {
                evict(data, &topic)?;
            }
            topics.push(topic);
        }
        let live = session.topic().await?;
        let producers = Producers::new(self, session, &live).await?;
        let rate = match self.rate {
            Some(rate) => rate,
            None => self.share * self.capacity(session, &live).await?,
        };
        let alone = producers.alone(session, rate).await?;
        let reader_alone = self.read(session, &topics[0], "read alone").await?;
        let (beside, reader_beside) = self.at_once(session, &producers, rate, &topics[1]).await?;
        let figures = &mut session.report.figures;
        figures.insert("producers' records/s", rate);
        figures.insert("p99 of producers, beside / alone", beside / alone);
        figures.insert("rate of the reader, beside / alone", reader_beside / reader_alone);
        Ok(())
    }

    /// How many records a second producers can write.
    async fn capacity(&self, session: &mut Session, live: &Target) -> Result<f64, Failure> {
        let time = session.load.run_time().unwrap_or(RUN);
        let shared = Shared::new(session.timed(time));
        let watched = session.watch("producers, all they can", &shared.meter);
        let outcome = closed::produce(session, live, &self.producing, &shared, None).await;
        drop(watched);
        let measured = shared.meter.measured();
        let capacity = measured.per_second(measured.records);
        let phase = Phase::new("producers, all they can", measured);
        session.measured(phase.latency(latency_of(self.producing.via)));
        outcome?;
        if capacity < 1.0 {
            return Err(Failure::failed(
                "producers were not answered in time to find out how much they can write",
            ));
        }
        Ok(capacity)
    }

    /// Reads a topic whole; answers records a second.
    async fn read(&self, session: &mut Session, topic: &Target, name: &'static str) -> Result<f64, Failure> {
        let spans = everything(session, topic).await?;
        let shared = Shared::new(session.open_ended());
        let watched = session.watch(name, &shared.meter);
        let outcome = read::read(session, topic, &spans, &self.reading, &shared).await;
        drop(watched);
        let measured = shared.meter.measured();
        let rate = measured.per_second(measured.records);
        let mut phase = Phase::new(name, measured);
        phase.bytes_of = read::bytes_of(self.reading.read_via);
        session.measured(phase);
        outcome.map(|()| rate)
    }

    /// Producers for as long as a reader reads; answers their p99 and the reader's records a second.
    async fn at_once(
        &self,
        session: &mut Session,
        producers: &Producers,
        rate: f64,
        topic: &Target,
    ) -> Result<(f64, f64), Failure> {
        let shared = Shared::new(session.open_ended());
        let beside = Arc::new(Beside::default());
        let budget = shared.budget.clone();
        let write = producers.send(rate, &shared, &beside);
        let read = async {
            let read = self.read(session, topic, "read beside").await;
            budget.stop();
            read
        };
        let (written, read) = tokio::join!(write, read);
        let p99 = shared.meter.measured().latencies.value_at_quantile(0.99) as f64;
        rate::measured(session, " beside", &shared, &beside);
        written?;
        Ok((p99, read?))
    }
}

/// How long a phase is that is bounded by nothing else.
const RUN: std::time::Duration = std::time::Duration::from_secs(10);

/// Producers that write batches on schedule.
struct Producers {
    callers: Vec<Caller>,
    pool: Arc<Pool>,
}

impl Producers {
    async fn new(cold: &Cold, session: &Session, live: &Target) -> Result<Self, Failure> {
        let mut callers = Vec::new();
        for _ in 0..cold.producing.producers {
            callers.push(Caller::stream(session.connect()?).await?);
        }
        let compression = session.load.compression.compression();
        let mut source = Source::new(session, 2);
        let pool = Pool::of_batches(live, &mut source, cold.producing.batch_bytes, compression, None)?;
        Ok(Self { callers, pool: Arc::new(pool) })
    }

    async fn send(&self, records_per_second: f64, shared: &Shared, beside: &Arc<Beside>) -> Outcome {
        let requests = records_per_second / self.pool.records_per_request();
        let schedule = Schedule::new(Instant::now(), requests);
        open::send(self.callers.clone(), self.pool.clone(), schedule, IN_FLIGHT, shared, beside).await
    }

    /// Answers their p99 in nanoseconds.
    async fn alone(&self, session: &mut Session, rate: f64) -> Result<f64, Failure> {
        let shared = Shared::new(session.timed(session.load.run_time().unwrap_or(RUN)));
        let beside = Arc::new(Beside::default());
        let watched = session.watch("producers alone", &shared.meter);
        let outcome = self.send(rate, &shared, &beside).await;
        drop(watched);
        let p99 = shared.meter.measured().latencies.value_at_quantile(0.99) as f64;
        rate::measured(session, " alone", &shared, &beside);
        outcome.map(|()| p99)
    }
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(share) if share > 0.0 && share <= 1.0 => Ok(share),
        _ => Err(format!("{text:?} is not a share; more than 0 and up to 1 is allowed")),
    }
}
