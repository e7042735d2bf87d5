//! What a log needs to know.

use std::{sync::Arc, time::Duration};

use crate::producers;

/// Where salts come from. The log itself draws no random numbers.
#[derive(Clone)]
pub struct SaltSource(pub Arc<dyn Fn() -> u32 + Send + Sync>);

impl std::fmt::Debug for SaltSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SaltSource")
    }
}

/// The settings of one partition's log.
#[derive(Debug, Clone)]
pub struct LogConfig {
    /// A segment is rolled before it grows beyond this many bytes.
    pub segment_bytes: u64,
    /// A segment is rolled when its first batch is this old.
    pub segment_age: Duration,
    /// About how many bytes of log lie between two index entries.
    pub index_interval_bytes: u64,
    /// Segments whose largest record time is older than this are deleted; `None`: never.
    pub retention_age: Option<Duration>,
    /// The oldest segments are deleted while what remains is at least this; `None`: never.
    pub retention_bytes: Option<u64>,
    /// Whether old segments are deleted by age and size at all.
    pub retention: bool,
    /// Batches are re-stamped with the append time.
    pub append_time_stamps: bool,
    /// Bounds of the producer table.
    pub producers: producers::Limits,
    /// Where salts come from.
    pub salts: SaltSource,
}
