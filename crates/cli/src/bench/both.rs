//! `rimstone bench both`: writing and reading at once.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use clap::Args;
use rimstone_client::{Admin, OffsetQuery};
use rimstone_types::Offset;
use serde::Serialize;
use tokio::time::{Instant, sleep};

use super::{
    arrivals::Arrivals,
    bounds::Budget,
    closed::{self, Shared},
    meter::Meter,
    options::{Load, Producing, Reading},
    produce::latency_of,
    read,
    report::Phase,
    session::{Session, Target},
};
use crate::exit::{Failure, Outcome};

/// How long readers may take for what is still on its way when producers have ended.
const CATCH_UP_MAX: Duration = Duration::from_secs(30);
/// How often it is looked whether they have.
const LOOK: Duration = Duration::from_millis(5);

/// Writes as much as the server takes and reads it at once, as it comes.
///
/// End to end is from the sending of a request (--via client: of a record) to the arrival of its first record at
/// a reader, both by this process's clock.
#[derive(Debug, Clone, Args, Serialize)]
pub(crate) struct Both {
    #[command(flatten)]
    #[serde(skip)]
    pub(crate) load: Load,
    #[command(flatten)]
    #[serde(flatten)]
    producing: Producing,
    #[command(flatten)]
    #[serde(flatten)]
    reading: Reading,
}

impl Both {
    pub(crate) async fn go(&self, session: &mut Session) -> Outcome {
        let topic = session.topic().await?;
        let spans = from_the_end(session, &topic).await?;
        let mut producing = Shared::new(session.bounded());
        let window = producing.meter.window();
        let arrivals = Arc::new(Arrivals::new(topic.partitions.get(), window));
        for (partition, (from, _)) in &spans {
            arrivals.begin(*partition, *from);
        }
        producing.arrivals = Some(arrivals.clone());
        let reading = Shared {
            arrivals: Some(arrivals.clone()),
            ..Shared::new((Meter::new(window), Budget::new(None, None)))
        };
        let watched = session.watch("produce", &producing.meter);
        let outcome = {
            let this: &Session = session;
            let write = async {
                closed::produce(this, &topic, &self.producing, &producing, this.load.records).await?;
                caught_up(&arrivals).await
            };
            tokio::select! {
                written = write => written,
                // Readers without an end only stop with an error.
                read = read::read(this, &topic, &spans, &self.reading, &reading) => read,
            }
        };
        drop(watched);
        let phase = Phase::new("produce", producing.meter.measured());
        session.measured(phase.latency(latency_of(self.producing.via)));
        let mut phase = Phase::new("read", reading.meter.measured());
        phase.bytes_of = read::bytes_of(self.reading.read_via);
        session.measured(phase);
        let (measured, untold) = arrivals.measured(&producing.meter);
        session.measured(Phase::new("end to end", measured).latency("from the sending to a reader"));
        session.report.figures.insert("end to end not told", untold as f64);
        outcome
    }
}

async fn from_the_end(
    session: &Session,
    topic: &Target,
) -> Result<BTreeMap<rimstone_types::PartitionIndex, read::Span>, Failure> {
    let admin = Admin::over(session.connect()?);
    let ends = admin.list_offsets(&topic.name, &[], OffsetQuery::Latest).await?;
    Ok(ends.into_iter().map(|end| (end.partition, (end.offset.unwrap_or(Offset::ZERO), None))).collect())
}

async fn caught_up(arrivals: &Arrivals) -> Outcome {
    let deadline = Instant::now() + CATCH_UP_MAX;
    while !arrivals.is_level() {
        if Instant::now() >= deadline {
            return Err(Failure::failed(format!(
                "readers did not get everything within {CATCH_UP_MAX:?} after it was acknowledged"
            )));
        }
        sleep(LOOK).await;
    }
    Ok(())
}
