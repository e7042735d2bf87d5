//! A shard's partition of `__consumer_offsets`: read whole when loading, and the end that the shard writes to.
//! Not here: what the records mean (`rimstone-state`).

use std::sync::Arc;

use rimstone_record::{Batch, BatchBuilder, Compression, Limits as RecordLimits, NewRecord};
use rimstone_state::group::{GroupRecord, Groups};
use rimstone_store::{
    Append, AppendTicket, Backpressure, PartitionStore, ReadError, ReadLimit, StoreState, Visibility,
};
use rimstone_types::{ByteCount, Offset, Timestamp};

/// Loading holds this much of the log at a time.
const LOAD_BYTES: ByteCount = ByteCount::mib(1);

/// The writing end. A shard is the only writer of its partition, and says with each batch where it must go: if
/// one is undone, those behind it are refused.
#[derive(Debug)]
pub(super) struct ShardLog {
    store: Arc<dyn PartitionStore>,
    /// Where the next batch goes.
    end: Offset,
}

/// Why a shard could not be loaded.
#[derive(Debug, thiserror::Error)]
pub(super) enum LoadError {
    /// The log could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A record is none that this server writes. Nothing is served from a log that is not understood whole:
    /// what is skipped could be a member that holds partitions.
    #[error("the record at offset {offset} is not understood: {why}")]
    Record {
        /// Which record.
        offset: Offset,
        /// What is wrong.
        why: String,
    },
}

impl ShardLog {
    /// Reads the durable log whole.
    pub(super) async fn load(store: Arc<dyn PartitionStore>) -> Result<(Self, Groups), LoadError> {
        let mut groups = Groups::default();
        let ends = store.ends();
        let mut at = ends.start;
        while at < ends.durable {
            let limit = ReadLimit { bytes: LOAD_BYTES, until: None, visibility: Visibility::Durable };
            let read = store.read(at, limit).await?;
            for read in &read.batches {
                apply(&mut groups, &read.batch)?;
            }
            if read.next <= at {
                let why = format!("nothing can be read below the end {}", ends.durable);
                return Err(LoadError::Record { offset: at, why });
            }
            at = read.next;
            // Understanding a piece takes milliseconds, and what is in memory is read without waiting.
            tokio::task::yield_now().await;
        }
        Ok((Self { store, end: at }, groups))
    }

    /// Why it takes no records until the server is started again; `None`: it takes them.
    pub(super) fn poisoned(&self) -> Option<String> {
        match self.store.info().state {
            StoreState::Poisoned { reason } => Some(reason),
            StoreState::Serving | StoreState::Closed => None,
        }
    }

    pub(super) fn store(&self) -> &Arc<dyn PartitionStore> {
        &self.store
    }

    /// Appends a batch behind everything that was submitted before.
    pub(super) fn submit(
        &mut self,
        batch: &EncodedRecords,
        now: Timestamp,
    ) -> Result<AppendTicket, Backpressure> {
        let append =
            Append { batch: batch.batch.clone(), expected_end: Some(self.end), content_hash: None, now };
        let ticket = self.store.submit(append)?;
        self.end = self.end.saturating_add(batch.records);
        Ok(ticket)
    }
}

fn apply(groups: &mut Groups, batch: &Batch) -> Result<(), LoadError> {
    let unread = |offset, why: String| LoadError::Record { offset, why };
    if batch.header().is_control() {
        return Ok(());
    }
    let base = batch.base_offset();
    let records = batch.records(&RecordLimits::default());
    for record in records.map_err(|error| unread(base, error.to_string()))? {
        let record = record.map_err(|error| unread(base, error.to_string()))?;
        let decoded = GroupRecord::decode(record.key.as_deref(), record.value.as_deref());
        groups.replay(decoded.map_err(|error| unread(record.offset, error.to_string()))?);
    }
    Ok(())
}

/// Records on their way to the log, as one batch.
#[derive(Debug)]
pub(super) struct EncodedRecords {
    batch: Batch,
    records: u64,
}

/// Gathers decisions into a batch.
#[derive(Debug)]
pub(super) struct Gathered {
    builder: BatchBuilder,
}

impl Gathered {
    pub(super) fn new() -> Self {
        Self { builder: BatchBuilder::new(Compression::None) }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.builder.is_empty()
    }

    pub(super) fn bytes(&self) -> usize {
        self.builder.estimated_bytes()
    }

    /// Adds a record. A decision is bounded far below what a batch holds.
    pub(super) fn push(&mut self, record: &GroupRecord, now: Timestamp) {
        let (key, value) = record.encode();
        let record = NewRecord {
            key: Some(key.into()),
            value: value.map(Into::into),
            timestamp: now,
            ..NewRecord::default()
        };
        self.builder.push(&record).expect("a decision is bounded below what a batch holds");
    }

    pub(super) fn take(&mut self) -> EncodedRecords {
        let builder = std::mem::replace(self, Self::new()).builder;
        EncodedRecords { records: builder.len() as u64, batch: builder.build() }
    }
}
