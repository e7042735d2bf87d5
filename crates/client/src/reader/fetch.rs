//! One `Fetch`: a single long poll over some partitions of a topic, for whoever keeps offsets himself.

use std::time::Duration;

use rimstone_proto::v1;
use rimstone_types::{LogEnds, Offset, PartitionIndex};

use crate::{
    admin::{ends, offset},
    connect::Connection,
    error::ClientError,
    reader::{Received, decode::Chunk},
};

/// What to fetch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetch {
    /// The topic.
    pub topic: String,
    /// The first offset to read, by partition.
    pub from: Vec<(PartitionIndex, Offset)>,
    /// Wait until this many bytes are there.
    pub min_bytes: u32,
    /// Answer about this many at most; at least one batch is answered. 0: the server's default.
    pub max_bytes: u32,
    /// Wait at most this long; at most 60 s.
    pub max_wait: Duration,
}

/// What one partition gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// The partition.
    pub partition: PartitionIndex,
    /// Its records, from the offset asked for.
    pub records: Vec<Received>,
    /// Where to go on.
    pub next: Offset,
    /// The ends of the partition.
    pub ends: LogEnds,
}

/// Fetches once. One answer for each partition asked for, in the same order; an error of one partition
/// (`OFFSET_OUT_OF_RANGE`, `DATA_DAMAGED`) is in its place.
///
/// # Errors
/// `TOPIC_NOT_FOUND`, `INVALID_REQUEST`, and those of the connection. Nothing is retried.
pub async fn fetch(
    connection: &Connection,
    fetch: &Fetch,
) -> Result<Vec<Result<Fetched, ClientError>>, ClientError> {
    let partitions = fetch.from.iter();
    let request = v1::FetchRequest {
        topic: fetch.topic.clone(),
        partitions: partitions
            .map(|(partition, offset)| v1::FetchPartition {
                partition: partition.0,
                offset: offset.get(),
                max_bytes: 0,
            })
            .collect(),
        min_bytes: fetch.min_bytes,
        max_bytes: fetch.max_bytes,
        max_wait_ms: u32::try_from(fetch.max_wait.as_millis()).unwrap_or(u32::MAX),
        format: v1::RecordFormat::Batches.into(),
        ..Default::default()
    };
    let answer = connection.consume().fetch(request).await?.into_inner();
    if answer.partitions.len() != fetch.from.len() {
        return Err(ClientError::protocol("the server answered for other partitions than were asked for"));
    }
    let answers = fetch.from.iter().zip(answer.partitions);
    Ok(answers.map(|((_, from), records)| fetched(*from, records)).collect())
}

fn fetched(from: Offset, message: v1::PartitionRecords) -> Result<Fetched, ClientError> {
    if let Some(error) = message.error {
        return Err(error.into());
    }
    let (partition, next) = (PartitionIndex(message.partition), offset(message.next_offset)?);
    let ends = ends(message.ends.unwrap_or_default())?;
    let mut chunk = Chunk::new(message)?;
    let mut records = Vec::new();
    while let Some(record) = chunk.next()? {
        if record.offset >= from {
            records.push(record);
        }
    }
    Ok(Fetched { partition, records, next, ends })
}
