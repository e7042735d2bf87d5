//! `rimstone bench produce`: how much can be written.

use clap::Args;
use serde::Serialize;

use super::{
    closed::{self, Shared},
    options::{Load, ProduceVia, Producing},
    report::Phase,
    session::{Session, Target},
};
use crate::exit::{Failure, Outcome};

/// Writes as much as the server takes.
///
/// A latency is from the sending of a request to its answer (--via client: from the sending of a record).
#[derive(Debug, Clone, Args, Serialize)]
pub(crate) struct Produce {
    #[command(flatten)]
    #[serde(skip)]
    pub(crate) load: Load,
    #[command(flatten)]
    #[serde(flatten)]
    producing: Producing,
}

impl Produce {
    pub(crate) async fn go(&self, session: &mut Session) -> Outcome {
        let topic = session.topic().await?;
        let shared = Shared::new(session.bounded());
        let watched = session.watch("produce", &shared.meter);
        let records = session.load.records;
        let outcome = closed::produce(session, &topic, &self.producing, &shared, records).await;
        drop(watched);
        let phase = Phase::new("produce", shared.meter.measured());
        session.measured(phase.latency(latency_of(self.producing.via)));
        outcome
    }
}

/// What a producer's latency is.
pub(crate) fn latency_of(via: ProduceVia) -> &'static str {
    match via {
        ProduceVia::Batches | ProduceVia::Records => "from a request to its answer",
        ProduceVia::Client => "from a record to its answer",
    }
}

/// Fills a topic with so many records as fast as possible.
pub(crate) async fn fill(
    session: &mut Session,
    topic: &Target,
    producing: &Producing,
    records: u64,
) -> Result<(), Failure> {
    let shared = Shared::new(session.counted(records));
    let watched = session.watch("fill", &shared.meter);
    let outcome = closed::produce(session, topic, producing, &shared, Some(records)).await;
    drop(watched);
    let phase = Phase::new("fill", shared.meter.measured());
    session.measured(phase.latency(latency_of(producing.via)));
    outcome
}
