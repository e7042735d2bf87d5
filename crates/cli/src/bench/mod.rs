//! `rimstone bench`: a generator of load, and what it measures. It is a process of its own beside the server.
//!
//! | room | what |
//! |---|---|
//! | `options` | what workloads have in common on the command line |
//! | `session` | the server, the topics that are made and deleted, the report |
//! | `payload`, `keys`, `pool` | what is sent, made before the clock runs |
//! | `caller` | one request and its answer: unary, on a stream, by the client |
//! | `closed`, `open` | so many unanswered at a time; so many a second, whatever the server does |
//! | `read`, `arrivals` | readers; from a producer to a reader |
//! | `bounds`, `meter` | when a run ends; what counts |
//! | `report`, `progress` | table, JSON, histograms; the line on the terminal |
//! | `produce`, `consume`, `both`, `latency`, `rate`, `cold` | the workloads |
//!
//! Not here: what others can do (`benches/`), and whether a figure is good.

mod arrivals;
mod both;
mod bounds;
mod caller;
mod closed;
mod cold;
mod consume;
mod evict;
mod keys;
mod latency;
mod meter;
mod open;
mod options;
mod payload;
mod pool;
mod produce;
mod progress;
mod rate;
mod read;
mod report;
mod session;

use clap::Subcommand;
use serde::Serialize;

use self::{options::Load, session::Session};
use crate::{
    consume::interrupted,
    exit::{Exit, Failure, Outcome},
    global::Global,
};

/// Measures a running server.
///
/// Makes topics of its own and deletes them at the end. Values are pseudo-random bytes unless a file is given, and
/// nothing is compressed unless asked for. Client and server share a machine only if you let them: what the client
/// takes of the processors is told.
#[derive(Debug, Clone, Subcommand, Serialize)]
#[serde(untagged)]
pub(crate) enum Bench {
    /// Writes as much as the server takes
    Produce(produce::Produce),
    /// Writes a topic and reads it from its start
    Consume(consume::Consume),
    /// Writes and reads at once; from producer to reader
    Both(both::Both),
    /// One record at a time for each of some callers
    Latency(latency::Latency),
    /// Single records at a rate, whatever the server does
    Rate(rate::Rate),
    /// Reads cold data beside live producers
    Cold(cold::Cold),
}

impl Bench {
    pub(crate) async fn run(self, global: &Global) -> Outcome {
        let mut session = Session::begin(global, self.load().clone()).await?;
        session.report.workload = self.name();
        session.report.options = serde_json::to_value(&self)
            .map_err(|error| Failure::failed(format!("options cannot be told: {error}")))?;
        let outcome = tokio::select! {
            outcome = self.go(&mut session) => outcome,
            () = interrupted() => Err(Failure::new(Exit::Interrupted, "interrupted")),
        };
        session.end(outcome).await
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Produce(_) => "produce",
            Self::Consume(_) => "consume",
            Self::Both(_) => "both",
            Self::Latency(_) => "latency",
            Self::Rate(_) => "rate",
            Self::Cold(_) => "cold",
        }
    }

    fn load(&self) -> &Load {
        match self {
            Self::Produce(produce) => &produce.load,
            Self::Consume(consume) => &consume.load,
            Self::Both(both) => &both.load,
            Self::Latency(latency) => &latency.load,
            Self::Rate(rate) => &rate.load,
            Self::Cold(cold) => &cold.load,
        }
    }

    async fn go(&self, session: &mut Session) -> Outcome {
        match self {
            Self::Produce(produce) => produce.go(session).await,
            Self::Consume(consume) => consume.go(session).await,
            Self::Both(both) => both.go(session).await,
            Self::Latency(latency) => latency.go(session).await,
            Self::Rate(rate) => rate.go(session).await,
            Self::Cold(cold) => cold.go(session).await,
        }
    }
}
