//! `rimstone offsets`: the ends of a topic, or where a time falls.

use clap::Args;
use rimstone_client::{OffsetAt, OffsetQuery};
use rimstone_types::{PartitionIndex, Timestamp};
use serde_json::json;

use crate::{
    exit::Outcome,
    global::Global,
    output::{self, table},
    position::time,
    times::rfc3339,
};

/// Shows the ends of a topic, or where a time falls.
#[derive(Debug, Args)]
pub(crate) struct Offsets {
    /// Its name
    topic: String,
    /// The first record at or after this time, by the topic's time
    #[arg(long, value_name = "TIME", value_parser = time)]
    at: Option<Timestamp>,
    /// The record with the highest time
    #[arg(long, conflicts_with = "at")]
    max_time: bool,
    /// Only this partition; may be repeated
    #[arg(short, long = "partition", value_name = "N")]
    partitions: Vec<u32>,
    /// As JSON
    #[arg(long)]
    json: bool,
}

impl Offsets {
    pub(crate) async fn run(self, global: &Global) -> Outcome {
        let admin = global.admin()?;
        let partitions: Vec<_> = self.partitions.iter().copied().map(PartitionIndex).collect();
        let query = match (self.at, self.max_time) {
            (Some(time), _) => OffsetQuery::At(time),
            (None, true) => OffsetQuery::MaxTime,
            (None, false) => {
                let starts = admin.list_offsets(&self.topic, &partitions, OffsetQuery::Earliest).await?;
                let ends = admin.list_offsets(&self.topic, &partitions, OffsetQuery::Latest).await?;
                return self.ends(&starts, &ends);
            }
        };
        let found = admin.list_offsets(&self.topic, &partitions, query).await?;
        if self.json {
            let found = found.iter().map(|at| {
                json!({
                    "partition": at.partition.0,
                    "offset": at.offset.map(|offset| offset.get()),
                    "time_ms": at.time.map(|time| time.as_millis()),
                })
            });
            return Ok(output::json(&found.collect::<Vec<_>>())?);
        }
        let rows = found.iter().map(|at| {
            [
                at.partition.to_string(),
                at.offset.map_or("none".to_owned(), |offset| offset.to_string()),
                at.time.map(rfc3339).unwrap_or_default(),
            ]
        });
        Ok(table(["PARTITION", "OFFSET", "TIME"], &rows.collect::<Vec<_>>())?)
    }

    fn ends(&self, starts: &[OffsetAt], ends: &[OffsetAt]) -> Outcome {
        // Both are sorted by partition; a partition added in between is in the second only.
        let both = starts.iter().filter_map(|start| {
            let end = ends.iter().find(|end| end.partition == start.partition)?;
            Some((start.partition, start.offset.unwrap_or_default(), end.offset.unwrap_or_default()))
        });
        if self.json {
            let both = both.map(|(partition, start, end)| {
                json!({ "partition": partition.0, "start": start.get(), "end": end.get() })
            });
            return Ok(output::json(&both.collect::<Vec<_>>())?);
        }
        let rows = both.map(|(partition, start, end)| {
            [partition.to_string(), start.to_string(), end.to_string(), end.since(start).to_string()]
        });
        Ok(table(["PARTITION", "START", "END", "OFFSETS"], &rows.collect::<Vec<_>>())?)
    }
}
