//! What opens, lists and deletes partitions.

use std::{path::PathBuf, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use rimstone_types::{ByteCount, PartitionId, ProducerEpoch, ProducerId, TopicId};
use uuid::Uuid;

use crate::partition::PartitionStore;

/// Opens, lists and deletes partitions; what they share (flusher, sync, disk health) lives behind it.
pub trait Storage: Send + Sync + std::fmt::Debug {
    /// Opens a partition, or makes it. Once it answers, the partition itself (its directory) is durable.
    fn open(
        &self,
        id: PartitionId,
        config: PartitionConfig,
        mode: OpenMode,
    ) -> BoxFuture<'_, Result<Arc<dyn PartitionStore>, OpenError>>;

    /// All partitions there are, open or not, whether the catalog knows them or not.
    fn list(&self) -> BoxFuture<'_, Result<Vec<PartitionId>, StoreError>>;

    /// Deletes every partition of a topic. Those that are open are closed first: their tickets fail as
    /// unknown, their readers keep the bytes that they hold.
    fn delete(&self, topic: TopicId) -> BoxFuture<'_, Result<(), StoreError>>;

    /// From the return of this call on no `submit` of any partition takes a batch of `producer` with an
    /// epoch below `epoch`, or of any epoch for `None`. The caller has made the fence durable itself.
    fn fence(&self, producer: ProducerId, epoch: Option<ProducerEpoch>);

    /// The identity that was made with the store, and that it keeps.
    fn identity(&self) -> Uuid;

    /// How the device is.
    fn health(&self) -> Health;

    /// Counters since the start, for metrics.
    fn statistics(&self) -> StoreStatistics;

    /// What opening partitions has cost so far; `None` if none was there to open.
    fn recovery(&self) -> Option<RecoverySummary> {
        None
    }

    /// How appends become durable here.
    fn sync_method(&self) -> SyncMethod;

    /// Makes everything durable, writes caches and the clean mark, stops the flusher. Later calls fail as
    /// shutting down.
    fn close(&self) -> BoxFuture<'_, Result<(), StoreError>>;
}

/// Whether a partition must be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenMode {
    /// It must not exist; it is made.
    CreateNew,
    /// It must exist: an absent one is an error, never an empty log.
    MustExist,
}

/// Which time a topic goes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TimestampType {
    /// The producer's.
    #[default]
    CreateTime,
    /// The server's: batches are re-stamped.
    AppendTime,
}

/// What happens to old records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CleanupPolicy {
    /// Whole segments are deleted by age and size.
    #[default]
    Delete,
    /// The latest record of each key is kept.
    Compact,
    /// Both.
    CompactAndDelete,
}

impl CleanupPolicy {
    /// Whether old segments are deleted by age and size.
    pub const fn deletes(self) -> bool {
        !matches!(self, Self::Compact)
    }

    /// Whether the latest record of each key is kept.
    pub const fn compacts(self) -> bool {
        !matches!(self, Self::Delete)
    }
}

/// A share, in millionths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Share(u32);

impl Share {
    /// The share of so many millionths; `None` above one.
    pub const fn from_millionths(millionths: u32) -> Option<Self> {
        if millionths <= 1_000_000 { Some(Self(millionths)) } else { None }
    }

    /// As a number from 0 to 1.
    pub fn as_f64(self) -> f64 {
        f64::from(self.0) / 1e6
    }
}

impl std::fmt::Display for Share {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.as_f64().fmt(f)
    }
}

/// When a log is compacted, and what may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CompactionConfig {
    /// Due when at least this share is dirty (`min.cleanable.dirty.ratio`).
    pub min_dirty_ratio: Share,
    /// Records younger than this, by append time, stay as they are (`min.compaction.lag.ms`).
    pub min_lag: Duration,
    /// Due when something was dirty for longer than this (`max.compaction.lag.ms`); `None`: never by time.
    pub max_lag: Option<Duration>,
    /// How long a tombstone stays after it was first cleaned (`delete.retention.ms`).
    pub delete_retention: Duration,
}

impl Default for CompactionConfig {
    /// Kafka's.
    fn default() -> Self {
        Self {
            min_dirty_ratio: Share(500_000),
            min_lag: Duration::ZERO,
            max_lag: None,
            delete_retention: Duration::from_secs(24 * 60 * 60),
        }
    }
}

impl CompactionConfig {
    /// In the words of the log.
    pub(crate) fn settings(&self) -> rimstone_log::compaction::CompactionSettings {
        /// Keys of one pass: 1.4 million of them. One pass runs at a time.
        const MAP_BYTES: usize = 48 << 20;
        rimstone_log::compaction::CompactionSettings {
            dirty_ratio: self.min_dirty_ratio.as_f64(),
            min_lag: self.min_lag,
            max_lag: self.max_lag,
            delete_retention: self.delete_retention,
            map_bytes: MAP_BYTES,
        }
    }
}

/// What a partition needs to know of its topic's settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionConfig {
    /// A segment is rolled before it grows beyond this (`segment.bytes`).
    pub segment_bytes: ByteCount,
    /// A segment is rolled when its first batch is this old (`segment.ms`).
    pub segment_age: Duration,
    /// Retention by age of the segment's largest topic time; `None`: for ever (`retention.ms`).
    pub retention_age: Option<Duration>,
    /// Retention by size of the partition; `None`: no bound (`retention.bytes`).
    pub retention_bytes: Option<ByteCount>,
    /// Which time retention and look-ups go by (`message.timestamp.type`).
    pub timestamp_type: TimestampType,
    /// `cleanup.policy`.
    pub cleanup: CleanupPolicy,
    /// When a log is compacted, and what may go.
    pub compaction: CompactionConfig,
    /// What an acknowledgement means (`rimstone.ack`), and what readers see.
    pub ack: crate::AckLevel,
    /// About how much log lies between two index entries (`index.interval.bytes`).
    pub index_interval: ByteCount,
}

impl Default for PartitionConfig {
    fn default() -> Self {
        const DAY: Duration = Duration::from_secs(24 * 60 * 60);
        Self {
            segment_bytes: ByteCount::mib(128),
            segment_age: DAY * 7,
            retention_age: Some(DAY * 7),
            retention_bytes: None,
            timestamp_type: TimestampType::CreateTime,
            cleanup: CleanupPolicy::Delete,
            compaction: CompactionConfig::default(),
            ack: crate::AckLevel::Durable,
            index_interval: ByteCount::kib(4),
        }
    }
}

/// How appends become durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyncMethod {
    /// `syncfs`, `fdatasync` or `memory`.
    pub name: &'static str,
    /// Why this method and not another, in words.
    pub reason: String,
}

/// How the device is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// As it should be.
    Healthy,
    /// Less free space than the reserve: appends are refused until space returns.
    DiskReserveReached {
        /// Free bytes.
        free: ByteCount,
        /// The reserve.
        reserve: ByteCount,
    },
    /// A sync failed: what was not durable then is unknown until the server is started again.
    Poisoned {
        /// The first failure, in words.
        reason: String,
    },
}

/// What a start has done, over all partitions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RecoverySummary {
    /// The data directory.
    pub directory: PathBuf,
    /// The last run stopped cleanly.
    pub was_clean: bool,
    /// Partitions that were opened.
    pub partitions: u64,
    /// Partitions that were opened from the caches that a clean stop leaves.
    pub from_caches: u64,
    /// Bytes that this process has read with system calls from files of data directories since the store was opened.
    pub read_bytes: u64,
    /// Partitions that had a torn tail.
    pub torn_partitions: u64,
    /// Bytes of segment files that were walked over.
    pub scanned_bytes: u64,
    /// Bytes that nothing attested, and that were written and synced again.
    pub rewritten_bytes: u64,
    /// Bytes of torn tails that were set aside.
    pub torn_bytes: u64,
    /// Damaged ranges of acknowledged data.
    pub damaged_ranges: u64,
    /// From opening the store until the last of them was open.
    pub took: Duration,
}

/// Counters since the start.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StoreStatistics {
    /// Completed syncs.
    pub syncs: u64,
    /// Failed syncs.
    pub sync_failures: u64,
    /// Seconds per sync: (upper bound, how many at or below it), cumulative; then the sum of all.
    pub sync_seconds_buckets: Vec<(f64, u64)>,
    /// Sum of the seconds of all syncs.
    pub sync_seconds_sum: f64,
    /// Bytes written by the flusher.
    pub written_bytes: u64,
    /// Write failures that were rolled back.
    pub write_failures: u64,
    /// Groups flushed (one sync covers one group of partitions).
    pub groups: u64,
    /// Partitions flushed, over all groups.
    pub group_partitions: u64,
    /// Torn tails set aside at start, in bytes.
    pub torn_tail_bytes: u64,
    /// Damaged ranges met, at start or when read.
    pub damaged_ranges: u64,
    /// Segments deleted.
    pub segments_deleted: u64,
}

/// Why a partition could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// `MustExist`, and it does not.
    #[error("partition {0} is not there")]
    Missing(PartitionId),
    /// `CreateNew`, and it does.
    #[error("partition {0} exists")]
    Exists(PartitionId),
    /// What lies there cannot be used.
    #[error("partition {id} cannot be opened: {reason}")]
    Unusable {
        /// Which one.
        id: PartitionId,
        /// What is wrong, with the file.
        reason: String,
    },
    /// The store is full, closed, or the device failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A failure of the store itself.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// An operation on a file failed.
    #[error("{operation} {path}: {reason}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On which file.
        path: String,
        /// What the system said.
        reason: String,
    },
    /// No space.
    #[error("no space left for {path}")]
    Full {
        /// On which file.
        path: String,
    },
    /// The partition refuses writes until it is recovered.
    #[error("poisoned: {reason}")]
    Poisoned {
        /// The first failure, in words.
        reason: String,
    },
    /// The store is closed or closing.
    #[error("the store is shutting down")]
    ShuttingDown,
    /// The partition was deleted.
    #[error("the partition was deleted")]
    Deleted,
    /// The operation's argument is outside the log.
    #[error("offset {offset} is outside {start}..={end}")]
    OutOfRange {
        /// What was asked for.
        offset: rimstone_types::Offset,
        /// Log start.
        start: rimstone_types::Offset,
        /// The visible end.
        end: rimstone_types::Offset,
    },
    /// A bound of the store was reached.
    #[error("the limit of {limit} {what} is reached")]
    Limit {
        /// What is bounded.
        what: &'static str,
        /// The bound.
        limit: u64,
    },
}
