//! Reading on and on: many partitions, from somewhere to somewhere. Not here: the long poll (`fetch`), groups.

mod reader;

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use rimstone_store::{LogEnds, PartitionStore, ReadBatch, Visibility};
use rimstone_types::{ByteCount, Offset, PartitionIndex, Timestamp, TopicName};

pub use reader::Reader;

use crate::{
    broker::Broker,
    decode::StoredRecord,
    error::{Details, Failure, PartitionReadError, ReadError, Reason},
};

/// What to read.
#[derive(Debug, Clone)]
pub struct ReadRequest {
    /// The topic.
    pub topic: TopicName,
    /// Which partitions; empty: all.
    pub partitions: Vec<PartitionIndex>,
    /// Where to begin.
    pub start: ReadStart,
    /// Where to end.
    pub end: ReadEnd,
    /// Stop after this many records over all partitions. With [`ReadFormat::Batches`] the batch that reaches
    /// the number is answered whole.
    pub max_records: Option<u64>,
    /// Which records; only with [`ReadFormat::Records`].
    pub filter: ReadFilter,
    /// What is seen.
    pub visibility: Visibility,
    /// Records or whole batches.
    pub format: ReadFormat,
    /// One chunk has at most about this many bytes; `None`: the server's default.
    pub chunk_bytes: Option<ByteCount>,
}

/// Where to begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReadStart {
    /// The first record there is.
    Earliest,
    /// The end: only what comes later.
    Latest,
    /// This offset in every partition.
    Offset(Offset),
    /// The first record at or after a time; in a partition without one, its end.
    Time(Timestamp),
    /// An offset per partition; partitions that are not named are not read.
    Offsets(BTreeMap<PartitionIndex, Offset>),
}

/// Where to end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReadEnd {
    /// On and on.
    Never,
    /// The end as it is at the start.
    Latest,
    /// Before this offset in every partition.
    Offset(Offset),
    /// Before the first record at or after a time, as it is at the start.
    Time(Timestamp),
    /// Before an offset per partition; partitions that are not named are read on and on.
    Offsets(BTreeMap<PartitionIndex, Offset>),
}

/// Which records: all conditions that are set must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReadFilter {
    /// The key is exactly this.
    pub key: Option<Bytes>,
    /// The key begins with this.
    pub key_prefix: Option<Bytes>,
    /// A header of this name is there, with this value if one is given.
    pub header: Option<(String, Option<Bytes>)>,
}

/// What a reader answers with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ReadFormat {
    /// Decoded records.
    #[default]
    Records,
    /// Whole batches as they are stored.
    Batches,
}

/// A piece of one partition.
#[derive(Debug, Clone)]
pub struct ReadChunk {
    /// Which one.
    pub partition: PartitionIndex,
    /// Records of the first batch before this offset are not wanted (whole batches only).
    pub from: Offset,
    /// Records of the last batch from this offset on are not wanted (whole batches only).
    pub until: Option<Offset>,
    /// What was read.
    pub content: ChunkContent,
    /// Where to go on.
    pub next: Offset,
    /// The ends, taken before the read.
    pub ends: LogEnds,
}

/// Where the bytes of a chunk come from: whoever keeps them keeps the segments that they are in.
#[derive(Debug, Clone)]
pub struct Origin {
    store: Arc<dyn PartitionStore>,
    next: Offset,
    generation: u64,
}

impl Origin {
    /// Whether the segments may be gone by now, so that only those who keep bytes of them keep their space from being
    /// used again.
    pub fn may_be_gone(&self) -> bool {
        self.store.ends().start >= self.next || self.store.generation() != self.generation
    }
}

/// What was read.
#[derive(Debug, Clone)]
pub enum ChunkContent {
    /// Decoded, filtered, cut to the bounds.
    Records(Vec<StoredRecord>),
    /// Whole batches.
    Batches(Vec<ReadBatch>),
}

/// A partition could not be read.
#[derive(Debug, thiserror::Error)]
#[error("partition {partition} of topic {topic}: {error}")]
pub struct PartitionFailed {
    /// The topic.
    pub topic: TopicName,
    /// The partition.
    pub partition: PartitionIndex,
    /// Why.
    #[source]
    pub error: PartitionReadError,
}

impl Failure for PartitionFailed {
    fn reason(&self) -> Reason {
        self.error.reason()
    }

    fn details(&self) -> Details {
        let mut details = self.error.details();
        details.retain(|(name, _)| !matches!(*name, "topic" | "partition"));
        details.push(("topic", self.topic.to_string()));
        details.push(("partition", self.partition.to_string()));
        details
    }
}

impl Broker {
    /// Opens a reader. Positions are looked up now; the reader reads when it is asked.
    ///
    /// # Errors
    /// [`ReadError`]; a start offset outside the log of any partition is one.
    pub async fn read(&self, request: ReadRequest) -> Result<Reader, ReadError> {
        self.counted(Reader::open(&self.inner, request).await)
    }
}

/// The end of what is seen.
pub(crate) fn visible_end(ends: LogEnds, visibility: Visibility) -> Offset {
    match visibility {
        Visibility::Stable => ends.stable,
        Visibility::Durable => ends.durable,
    }
}

#[cfg(test)]
mod tests;
