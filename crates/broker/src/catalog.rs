//! `__catalog`: topics, named producers, blocks of producer ids and the server's identity, as records of an
//! internal topic on the same log. It is never taken for an empty one when it cannot be read.
//!
//! Compacted: offsets have gaps, and its end alone says how many mutations there were.
//!
//! Not here: tables that are asked while serving (`topics`, `producer_ids`).

mod records;

use std::sync::Arc;

use rimstone_record::{BatchBuilder, Compression, Limits as RecordLimits, NewRecord};
use rimstone_store::{
    Append, AppendError, CleanupPolicy, OpenMode, PartitionConfig, PartitionStore, ReadError, ReadLimit,
    Storage, Visibility,
    planted::{self, Bug},
};
use rimstone_types::{ByteCount, Offset, PartitionId, PartitionIndex, Timestamp, TopicId};

pub(crate) use records::{
    CatalogRecord, DeletedValue, IdsValue, Loaded, ProducerValue, ServerValue, TopicValue,
};

use crate::error::{CatalogError, CatalogUnreadable, StartError};

/// Its name.
pub(crate) const CATALOG_TOPIC: &str = "__catalog";
/// Its only partition.
pub(crate) const CATALOG_PARTITION: PartitionId =
    PartitionId { topic: TopicId::CATALOG, partition: PartitionIndex(0) };
/// Loading holds this much of it at a time.
const LOAD_BYTES: ByteCount = ByteCount::mib(1);

/// It is read whole at each start, and only what is not in its last segment is compacted.
const SEGMENT_BYTES: ByteCount = ByteCount::mib(1);

/// The settings of its partition: nothing is deleted by age or size, and of each key the last record stays.
pub(crate) fn catalog_config() -> PartitionConfig {
    PartitionConfig {
        retention_age: None,
        retention_bytes: None,
        cleanup: CleanupPolicy::Compact,
        segment_bytes: SEGMENT_BYTES,
        ..PartitionConfig::default()
    }
}

/// The writing end. One mutation at a time: it lies behind an asynchronous mutex.
#[derive(Debug)]
pub(crate) struct Catalog {
    store: Arc<dyn PartitionStore>,
    /// Where the next record goes: also the generation of the next mutation.
    end: Offset,
    /// An append ended without anybody knowing what became of it: the next start may find it.
    in_doubt: bool,
}

impl Catalog {
    /// Opens the catalog and reads it whole; makes it in a storage that holds nothing.
    pub(crate) async fn open(
        storage: &dyn Storage,
        partitions: &[PartitionId],
    ) -> Result<(Self, Loaded), StartError> {
        let mode = match (partitions.contains(&CATALOG_PARTITION), partitions.len()) {
            (true, _) => OpenMode::MustExist,
            (false, 0) => OpenMode::CreateNew,
            (false, partitions) => return Err(StartError::CatalogMissing { partitions }),
        };
        let opened = storage.open(CATALOG_PARTITION, catalog_config(), mode).await;
        let store = opened.map_err(StartError::CatalogOpen)?;
        let mut catalog = Self { store, end: Offset::ZERO, in_doubt: false };
        let loaded = match catalog.load().await {
            Err(_) if planted::is(Bug::EmptyCatalog) => {
                catalog.end = catalog.store.ends().durable;
                Loaded::default()
            }
            loaded => loaded?,
        };
        Ok((catalog, loaded))
    }

    pub(crate) fn store(&self) -> &Arc<dyn PartitionStore> {
        &self.store
    }

    /// The generation of the next mutation; higher than that of every one before it, also after a restart.
    pub(crate) fn generation(&self) -> u64 {
        self.end.get()
    }

    /// Whether there may be more in it than was said.
    pub(crate) fn is_in_doubt(&self) -> bool {
        self.in_doubt
    }

    async fn load(&mut self) -> Result<Loaded, CatalogUnreadable> {
        let mut loaded = Loaded::default();
        let ends = self.store.ends();
        if ends.start > Offset::ZERO {
            let why = format!("it begins at offset {}, not at 0", ends.start);
            return Err(CatalogUnreadable { offset: Offset::ZERO, why });
        }
        let limit = ReadLimit { bytes: LOAD_BYTES, until: None, visibility: Visibility::Durable };
        while self.end < ends.durable {
            let at = self.end;
            let read = self.store.read(at, limit).await.map_err(|error| match error {
                ReadError::DataLoss { from, .. } => {
                    CatalogUnreadable { offset: from, why: error.to_string() }
                }
                error => CatalogUnreadable { offset: at, why: error.to_string() },
            })?;
            for read in &read.batches {
                let unreadable = |offset, why| CatalogUnreadable { offset, why };
                let base = read.batch.base_offset();
                let records = read.batch.records(&RecordLimits::default());
                for record in records.map_err(|error| unreadable(base, error.to_string()))? {
                    let record = record.map_err(|error| unreadable(base, error.to_string()))?;
                    let decoded = CatalogRecord::decode(record.key.as_deref(), record.value.as_deref());
                    loaded.apply(decoded.map_err(|why| unreadable(record.offset, why))?);
                }
            }
            if read.next <= at {
                let why = format!("nothing can be read below its end {}", ends.durable);
                return Err(CatalogUnreadable { offset: at, why });
            }
            self.end = read.next;
        }
        Ok(loaded)
    }

    /// Appends records as one batch: all of them or none. They are durable when it answers.
    pub(crate) async fn append(
        &mut self,
        records: &[CatalogRecord],
        now: Timestamp,
    ) -> Result<(), CatalogError> {
        let mut builder = BatchBuilder::new(Compression::None);
        for record in records {
            let (key, value) = record.encode();
            let record = NewRecord {
                key: Some(key.into()),
                value: value.map(Into::into),
                timestamp: now,
                ..NewRecord::default()
            };
            builder.push(&record).expect("a catalog record is far below the bounds of a batch");
        }
        let append = Append { batch: builder.build(), expected_end: Some(self.end), content_hash: None, now };
        let appended = self.store.submit(append)?.await;
        self.in_doubt |= matches!(appended, Err(AppendError::Unknown { .. }));
        appended?;
        self.end = self.end.saturating_add(records.len() as u64);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
