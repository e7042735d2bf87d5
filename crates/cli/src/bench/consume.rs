//! `rimstone bench consume`: how much can be read.

use std::{collections::BTreeMap, path::PathBuf};

use clap::Args;
use rimstone_client::OffsetQuery;
use rimstone_types::{Offset, PartitionIndex};
use serde::Serialize;

use super::{
    bounds::Budget,
    closed::Shared,
    evict::evict,
    options::{Load, Producing, Reading},
    produce::fill,
    read::{self, Span},
    report::Phase,
    session::{Session, Target},
};
use crate::{
    exit::{Failure, Outcome},
    output::note,
};

/// Records that are written first unless -n says otherwise: some hundred MB at 1 KiB.
const RECORDS_DEFAULT: u64 = 300_000;

/// Writes a topic and reads it from its start; with --topic reads what is there.
///
/// Each pass reads everything, or -n records. The first one after writing finds all data in the page cache,
/// unless --evict takes it out.
#[derive(Debug, Clone, Args, Serialize)]
pub(crate) struct Consume {
    #[command(flatten)]
    #[serde(skip)]
    pub(crate) load: Load,
    #[command(flatten)]
    #[serde(flatten)]
    producing: Producing,
    #[command(flatten)]
    #[serde(flatten)]
    reading: Reading,
    /// How often it is read
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    passes: u32,
    /// Makes the data cold before the first pass: the server's data directory, on this machine
    #[arg(long, value_name = "DIRECTORY")]
    evict: Option<PathBuf>,
}

impl Consume {
    pub(crate) async fn go(&self, session: &mut Session) -> Outcome {
        let topic = session.topic().await?;
        let records = session.load.records.unwrap_or(RECORDS_DEFAULT);
        if session.load.topic.is_none() {
            fill(session, &topic, &self.producing, records).await?;
        }
        let spans = everything(session, &topic).await?;
        if let Some(data) = &self.evict {
            let bytes = evict(data, &topic)?;
            note(format!("{bytes} bytes left the page cache"));
        }
        for pass in 1..=self.passes {
            let name = if self.passes == 1 { "read".to_owned() } else { format!("read {pass}") };
            let (meter, _) = session.open_ended();
            // What was written is read whole; of a topic that was there, as much as was asked for.
            let most = session.load.topic.as_ref().and(session.load.records);
            let shared = Shared::new((meter, Budget::new(most, None)));
            let watched = session.watch("read", &shared.meter);
            let outcome = read::read(session, &topic, &spans, &self.reading, &shared).await;
            drop(watched);
            let mut phase = Phase::new(&name, shared.meter.measured());
            phase.bytes_of = read::bytes_of(self.reading.read_via);
            session.measured(phase);
            outcome?;
        }
        Ok(())
    }
}

/// All that a topic has now.
pub(crate) async fn everything(
    session: &Session,
    topic: &Target,
) -> Result<BTreeMap<PartitionIndex, Span>, Failure> {
    let admin = rimstone_client::Admin::over(session.connect()?);
    let ends = admin.list_offsets(&topic.name, &[], OffsetQuery::Latest).await?;
    let starts = admin.list_offsets(&topic.name, &[], OffsetQuery::Earliest).await?;
    let mut spans = BTreeMap::new();
    for (start, end) in starts.into_iter().zip(ends) {
        let end_offset = end.offset.unwrap_or(Offset::ZERO);
        let start_offset = start.offset.unwrap_or(end_offset);
        if start_offset < end_offset {
            spans.insert(start.partition, (start_offset, Some(end_offset)));
        }
    }
    if spans.is_empty() {
        return Err(Failure::failed(format!("topic {} has no records to read", topic.name)));
    }
    Ok(spans)
}
