//! What compaction cannot go over.

use rimstone_types::Offset;

/// A sealed segment that stays as it is, or the place of those that are gone: compaction passes it by. Records on both
/// sides are compacted, but no tombstone behind it goes: what it holds back may be older records of the same keys.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("segment {segment}: {reason}")]
pub struct Obstacle {
    /// The segment's base offset.
    pub segment: Offset,
    /// What is wrong with it.
    pub reason: ObstacleReason,
}

/// Why a segment cannot be compacted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ObstacleReason {
    /// Its header is not one.
    #[error("{0}")]
    Header(String),
    /// The segments that came behind it are gone, or it is not whole; or they are gone from the start of the log on.
    #[error("it ends at offset {end}, and the next one begins at {next}")]
    Hole {
        /// Where it ends.
        end: Offset,
        /// Where the next one begins.
        next: Offset,
    },
    /// Something in it is not what was written.
    #[error("it is damaged: {0}")]
    Damaged(String),
    /// The system does not let it be read, now.
    #[error("it cannot be read: {0}")]
    Unreadable(String),
}
