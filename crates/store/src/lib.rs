//! The seam between the broker and where the bytes are. Above it nobody knows of segments, maps, sync
//! policy, indexes, the witness or recovery; below it nobody knows of topics' names, clients or protocols.
//! This is the only room where synchronous code meets asynchronous code.
//!
//! Not here: which partition a record goes to, who may write, how long a fetch waits (`rimstone-broker`).

#![forbid(unsafe_code)]

#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
mod convert;
mod flush;
mod local;
mod memory;
mod partition;
#[cfg(any(test, feature = "recording"))]
pub mod sectors;
mod storage;
mod sync;
mod ticket;
mod waiters;

pub use local::{LocalOpenError, LocalOptions, LocalStorage, StoreClock};
pub use memory::MemoryStorage;
pub use partition::{
    AcceptLossError, AcceptedLoss, AckLevel, Append, Appended, Backpressure, Batches, Compacted,
    DamagedRange, Dirtiness, FoundDamage, LogEnds, Maintained, Obstacle, ObstacleReason, OffsetAt,
    OffsetRange, PartitionStore, ProducerView, ReadBatch, ReadError, ReadLimit, RecordCount, ScrubScope,
    Scrubbed, StoreInfo, StoreState, Visibility, WRITTEN_SYNC_INTERVAL,
};
pub use rimstone_log::{RecordJudge, planted};
pub use storage::{
    CleanupPolicy, CompactionConfig, Health, OpenError, OpenMode, PartitionConfig, RecoverySummary, Share,
    Storage, StoreError, StoreStatistics, SyncMethod, TimestampType,
};
pub use sync::SyncPreference;
pub use ticket::{AppendError, AppendTicket, FenceEpoch, TicketSender};
pub use waiters::{Moved, Waiter};
