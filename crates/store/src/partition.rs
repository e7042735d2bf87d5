//! One partition as the broker sees it.

use std::time::Duration;

use futures::future::BoxFuture;
use rimstone_record::Batch;
pub use rimstone_types::LogEnds;
use rimstone_types::{ByteCount, Numbering, Offset, ProducerEpoch, ProducerId, Timestamp};

pub use rimstone_log::{
    compaction::{Dirtiness, Obstacle, ObstacleReason},
    damage::{AcceptedLoss, DamagedRange, FoundDamage},
};

use crate::{
    storage::{PartitionConfig, StoreError},
    ticket::AppendTicket,
    waiters::Waiter,
};

/// One partition. Deduplication of producers happens inside; segments, maps, sync policy, indexes, witness
/// and recovery stay inside.
pub trait PartitionStore: Send + Sync + std::fmt::Debug {
    /// Fixes the order among this server's submits. Offsets, the verdict on duplicates and on `expected_end`
    /// come with the ticket, which resolves once what it says is as durable as the topic asks, or fails as
    /// *did not happen* or as *unknown*. Never blocks.
    ///
    /// # Errors
    /// [`Backpressure`]: the batch was not taken, nothing of it is or will be stored.
    fn submit(&self, append: Append) -> Result<AppendTicket, Backpressure>;

    /// An atomic snapshot: `start <= stable <= durable <= written`.
    fn ends(&self) -> LogEnds;

    /// Another number whenever records between log start and the end have gone, by compaction: what was counted
    /// under an earlier one may be wrong now. Costs nothing.
    fn generation(&self) -> u64;

    /// Calls the waiter whenever the visible end moves, and when the partition is closed or deleted.
    /// Lasts until the waiter is dropped. One waiter can span many partitions.
    fn subscribe(&self, waiter: &Waiter);

    /// Reads whole batches from the one that holds `from`, up to the limit and the visible end; at least one
    /// batch if there is one. Empty at the end. The first batch may begin before `from`.
    fn read(&self, from: Offset, limit: ReadLimit) -> BoxFuture<'_, Result<Batches, ReadError>>;

    /// The first record at or after a time, by the topic's time; `None` if there is none. `DataLoss` if it may lie in a range
    /// that is damaged.
    fn offset_for_time(&self, at: Timestamp) -> BoxFuture<'_, Result<Option<OffsetAt>, ReadError>>;

    /// The first record with the highest time, of those that can be read; `None` in an empty log.
    fn offset_of_max_time(&self) -> BoxFuture<'_, Result<Option<OffsetAt>, ReadError>>;

    /// What is really there from `from` up to, not including, `to`: gaps and control batches are no records.
    /// Both are held within the log. Cheap: counts are cumulative.
    fn count(&self, from: Offset, to: Offset) -> BoxFuture<'_, Result<RecordCount, ReadError>>;

    /// The append time of the first record really there at or after an offset; `None` if there is none up to the
    /// end. An offset below log start stands for log start.
    fn append_time_at(&self, offset: Offset) -> BoxFuture<'_, Result<Option<Timestamp>, ReadError>>;

    /// Moves log start forward (never back) and answers the log start once it is durable.
    fn trim(&self, start: Offset) -> BoxFuture<'_, Result<Offset, StoreError>>;

    /// Rolls and deletes what is due at `now`; expires producers.
    fn maintain(&self, now: Timestamp) -> BoxFuture<'_, Result<Maintained, StoreError>>;

    /// How dirty the log is, and whether a compaction is due. Nothing where `cleanup.policy` does not ask for it.
    fn dirtiness(&self, now: Timestamp) -> BoxFuture<'_, Result<Dirtiness, StoreError>>;

    /// Compacts over about `budget` bytes of log: goes on with the pass that is begun, or begins one if it is due.
    /// It yields to the flusher. What it has taken away was superseded below the stable end; offsets and append
    /// times stay. A call that is dropped does no harm.
    ///
    /// # Errors
    /// [`StoreError`]: the pass is given up; what was there before is there.
    fn compact(&self, now: Timestamp, budget: ByteCount) -> BoxFuture<'_, Result<Compacted, StoreError>>;

    /// Goes over about `budget` bytes of log, from the disk, to find damage: goes on with the pass that is begun, or begins
    /// one. It reads and changes nothing, and yields to the flusher. A store that cannot rot has nothing to do.
    fn scrub(&self, _scope: ScrubScope, _budget: ByteCount) -> BoxFuture<'_, Result<Scrubbed, StoreError>> {
        Box::pin(async { Ok(Scrubbed::default()) })
    }

    /// The damage that is known, looked at once more on the disk, oldest first; of a segment with many ranges, all as one.
    fn find_damage(&self) -> BoxFuture<'_, Result<Vec<DamagedRange>, StoreError>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    /// Gives damaged offsets up for ever: all that is damaged of the segments in which the ranges lie, and nothing that is
    /// sound. Each range must begin where a damaged one does, and end where one does of the same segment. The damaged bytes are set aside, readers go over the ranges, and their offsets are never used again. Durable once it answers.
    fn accept_loss(
        &self,
        _ranges: Vec<OffsetRange>,
        _now: Timestamp,
    ) -> BoxFuture<'_, Result<Vec<AcceptedLoss>, AcceptLossError>> {
        Box::pin(async { Err(AcceptLossError::Differs { found: FoundDamage::default() }) })
    }

    /// What is known of a producer here, once everything it is based on is durable.
    fn producer(&self, id: ProducerId) -> BoxFuture<'_, Result<Option<ProducerView>, StoreError>>;

    /// What is known of all producers here, at most `limit`, lowest id first.
    fn producers(&self, limit: usize) -> Vec<ProducerView>;

    /// Forgets a producer (its name was deleted).
    fn forget_producer(&self, id: ProducerId) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Settings changed.
    fn configure(&self, config: PartitionConfig);

    /// What it looks like inside, for `describe` and metrics.
    fn info(&self) -> StoreInfo;

    /// Makes everything durable and writes caches.
    fn close(&self) -> BoxFuture<'_, Result<(), StoreError>>;
}

/// When an append is acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AckLevel {
    /// A completed sync covers the batch.
    #[default]
    Durable,
    /// The batch is in the page cache; a sync follows within a second.
    Written,
}

/// What to append.
#[derive(Debug, Clone)]
pub struct Append {
    /// A verified batch; its base offset is stamped by the store.
    pub batch: Batch,
    /// Append only if this is the partition's end.
    pub expected_end: Option<Offset>,
    /// For a batch numbered by request: the hash of its content ([`Batch::content_hash`]), by which a repeated
    /// number is told from a reused one. Must be `Some` for those and is not looked at for others.
    pub content_hash: Option<u64>,
    /// The server's clock at arrival. The append time is this or the last append time, if that is later.
    pub now: Timestamp,
}

/// What became of an append.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appended {
    /// The offsets of the first and the last record; `None` only for a duplicate older than the window.
    pub offsets: Option<(Offset, Offset)>,
    /// When the batch was taken.
    pub append_time: Timestamp,
    /// It had been stored before; nothing was appended now.
    pub duplicate: bool,
}

/// Why a batch was not taken at all.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Backpressure {
    /// Too many bytes of this partition wait for the flusher.
    #[error("{waiting} wait to be written in this partition; the limit is {limit}")]
    Staging {
        /// Bytes that wait.
        waiting: ByteCount,
        /// The bound.
        limit: ByteCount,
    },
    /// Free space is below the reserve.
    #[error("{free} free on the data directory's device, the reserve is {reserve}")]
    DiskReserve {
        /// Free bytes.
        free: ByteCount,
        /// The reserve.
        reserve: ByteCount,
    },
    /// The partition refuses writes until it is recovered.
    #[error("the partition refuses writes: {reason}")]
    Poisoned {
        /// The first failure, in words.
        reason: String,
    },
    /// The store is closed or closing, or the partition was deleted.
    #[error("the partition is closed")]
    Closed,
}

/// What a reader may see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Visibility {
    /// Below the stable end.
    #[default]
    Stable,
    /// Below the durable end (the written end, on a topic whose owner asked for `written`).
    Durable,
}

/// How much to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadLimit {
    /// Whole batches up to about this many bytes, at least one.
    pub bytes: ByteCount,
    /// Stop before batches that begin at or after this offset.
    pub until: Option<Offset>,
    /// What is seen.
    pub visibility: Visibility,
}

/// A batch as it is stored.
#[derive(Debug, Clone)]
pub struct ReadBatch {
    /// The batch, its offsets stamped, verified.
    pub batch: Batch,
    /// When the server took it.
    pub append_time: Timestamp,
}

/// The result of a read.
#[derive(Debug, Clone)]
pub struct Batches {
    /// In order of offset.
    pub batches: Vec<ReadBatch>,
    /// Where to go on: behind the last batch, or, where nothing was found up to the visible end, that end.
    pub next: Offset,
    /// The ends, taken before the read.
    pub ends: LogEnds,
}

impl Batches {
    /// The bytes of all batches.
    pub fn bytes(&self) -> u64 {
        self.batches.iter().map(|read| read.batch.bytes().len() as u64).sum()
    }
}

/// A record found by time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OffsetAt {
    /// Its offset.
    pub offset: Offset,
    /// Its time, by the topic's time.
    pub time: Timestamp,
}

/// What lies between two offsets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RecordCount {
    /// Records really there.
    pub records: u64,
    /// Their bytes as stored, rounded up to whole batches, with what the store keeps around them.
    pub bytes: ByteCount,
}

/// What maintenance did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Maintained {
    /// Segments rolled by age.
    pub rolled: u32,
    /// Segments deleted.
    pub deleted: u32,
    /// Bytes freed.
    pub freed: ByteCount,
    /// More is due; a bound on one pass held it back.
    pub more: bool,
}

/// What a call of [`PartitionStore::compact`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Compacted {
    /// The pass is not over.
    pub more: bool,
    /// A pass ended with this call.
    pub finished: bool,
    /// Bytes of log read.
    pub read: ByteCount,
    /// Bytes of log written anew.
    pub written: ByteCount,
    /// Records that went.
    pub records_removed: u64,
    /// Segments that were replaced.
    pub segments_before: u32,
    /// Segments that stand in their place.
    pub segments_after: u32,
}

/// What a scrub goes over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScrubScope {
    /// All sealed segments.
    Sealed,
    /// Only those in which a read, compaction or a start has met damage, to learn all of it.
    Suspects,
}

/// What a call of [`PartitionStore::scrub`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Scrubbed {
    /// The pass is not over.
    pub more: bool,
    /// Bytes gone over.
    pub read: ByteCount,
    /// Segments that are through.
    pub segments: u32,
    /// Damaged ranges that were not known.
    pub found: u32,
    /// Segments that could not be gone over, damaged or not; each was logged.
    pub failed: u32,
}

/// Offsets from one up to, not including, another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct OffsetRange {
    /// The first.
    pub from: Offset,
    /// The first that is not meant.
    pub until: Offset,
}

impl std::fmt::Display for OffsetRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}..{}", self.from, self.until)
    }
}

/// Why a loss was not accepted.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AcceptLossError {
    /// What is damaged is something else than what was named.
    #[error("what was named is not what is damaged there: {found}")]
    Differs {
        /// What is damaged in the segments that were named.
        found: FoundDamage,
    },
    /// It cannot be replaced.
    #[error("{reason}")]
    Refused {
        /// Why not, and what can be done.
        reason: String,
    },
    /// The store could not do it.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What is known of a producer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProducerView {
    /// Who.
    pub id: ProducerId,
    /// The epoch of its last batch here.
    pub epoch: ProducerEpoch,
    /// What its numbers count.
    pub numbering: Numbering,
    /// The last sequence, or the last request number.
    pub last: u32,
    /// The offset of its last record, if known.
    pub last_offset: Option<Offset>,
    /// When its last batch was taken.
    pub last_append: Timestamp,
}

/// What a partition looks like inside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreInfo {
    /// The ends.
    pub ends: LogEnds,
    /// How many segments.
    pub segments: u32,
    /// Their bytes.
    pub bytes: ByteCount,
    /// Written or waiting to be written, and not known to be durable.
    pub undurable_bytes: ByteCount,
    /// Producers remembered.
    pub producers: u32,
    /// How dirty it is, young records not told apart; `None` where it is not compacted.
    pub dirtiness: Option<Dirtiness>,
    /// Segments that compaction passes by, as it last found them, oldest first.
    pub obstacles: Vec<Obstacle>,
    /// Ranges of acknowledged offsets that are known to be damaged, oldest first; of a segment with many, all as one.
    pub damage: Vec<DamagedRange>,
    /// Ranges that were given up and whose damaged bytes are still kept aside, oldest first.
    pub accepted_losses: Vec<AcceptedLoss>,
    /// Whether it serves.
    pub state: StoreState,
}

/// Whether a partition serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreState {
    /// Reads and writes.
    Serving,
    /// Reads only, until recovered.
    Poisoned {
        /// The first failure, in words.
        reason: String,
    },
    /// Neither.
    Closed,
}

/// Why a read failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ReadError {
    /// Outside the log.
    #[error("offset {offset} is outside {start}..={end}")]
    OutOfRange {
        /// What was asked for.
        offset: Offset,
        /// Log start.
        start: Offset,
        /// The visible end.
        end: Offset,
    },
    /// Acknowledged bytes are damaged.
    #[error("offsets {from} to {until} are damaged: {reason}")]
    DataLoss {
        /// The first damaged offset.
        from: Offset,
        /// The first offset after the damage that can be read.
        until: Offset,
        /// What was found, with file and position.
        reason: String,
    },
    /// The store could not read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The longest that a store may let written bytes wait for a sync on a topic with [`AckLevel::Written`].
pub const WRITTEN_SYNC_INTERVAL: Duration = Duration::from_secs(1);
