//! The partition log on local disk: synchronous, one writer, memory-mapped readers. The only crate with unsafe
//! code, all of it in one module (`map`).
//!
//! A [`Log`] decides under its owner's lock and returns the slow work (write this, unlink those) to be done
//! outside it. [`LogReader`]s see what is published and verify what they read.
//!
//! Not here: threads, syncing, tickets, waiting (`rimstone-store`); the clock and randomness, which are
//! passed in.

#![deny(unsafe_code)]

mod buffers;
mod checkpoint;
pub mod compaction;
mod config;
pub mod damage;
mod directory;
mod error;
pub mod files;
mod frame;
mod index;
pub mod inspect;
mod log;
mod lookup;
mod map;
pub mod planted;
pub mod producers;
mod reader;
#[cfg(any(test, feature = "recording"))]
pub mod recording;
mod recovery;
mod retention;
mod segment;
mod snapshot;
mod staging;
#[cfg(test)]
mod tests;
mod versions;
mod walk;
mod witness;

pub use checkpoint::{Checkpoint, Checkpoints};
pub use config::{LogConfig, SaltSource};
pub use directory::{
    CHECKPOINTS_FILE, DIRECTORY_VERSION, DataDirectory, DirectoryError, WITNESS_FILE, list_partitions,
    partition_path,
};
pub use error::{FileError, LogReadError, OpenLogError, StageError};
pub use frame::{FORMAT_VERSION, LogPosition};
pub use log::{Caches, Log, Offered, Trimmed};
pub use lookup::{Extent, TimedOffset};
pub use reader::{LogReader, ReadRange, StoredBatch};
pub use recovery::{OpenOptions, OpenReport};
pub use retention::RetentionPlan;
pub use segment::Access;
pub use snapshot::write_log_start;
pub use staging::{AfterWrite, SnapshotsWritten, UndoFailure, WriteFailure, WritePlan};
pub use versions::{Judgement, RecordJudge};
pub use witness::Witness;
