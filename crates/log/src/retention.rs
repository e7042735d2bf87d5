//! Which segments are to go: a pure plan over facts about segments. The rules are those of Kafka's
//! `UnifiedLog.deleteOldSegments`, with a bound on what one pass takes by time.
//!
//! Not here: the active segment (it never goes), making log start durable, unlinking.

use rimstone_types::{Offset, Timestamp};

use crate::config::LogConfig;

/// One pass deletes by time at most this share of the segments (and always at least one), so that a clock
/// that jumps does not empty a log before anybody has noticed.
const SHARE_PER_PASS: f64 = 0.25;

/// A sealed segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SegmentFacts {
    /// Its first offset.
    pub(crate) base: Offset,
    /// The first offset of the next segment.
    pub(crate) next: Offset,
    /// Its bytes.
    pub(crate) bytes: u64,
    /// Its largest record time, by the topic's time; `None`: not known.
    pub(crate) max_time: Option<Timestamp>,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetentionPlan {
    /// The new log start; segments that lie below it go.
    pub start: Offset,
    /// How many segments go.
    pub segments: u32,
    /// More is due by time than one pass takes.
    pub more: bool,
}

/// Plans over the sealed segments, oldest first: below log start, then by size (only while what remains is at
/// least the limit), then by time (the segment's largest record time).
pub(crate) fn plan(
    sealed: &[SegmentFacts],
    active_bytes: u64,
    start: Offset,
    config: &LogConfig,
    now: Timestamp,
) -> RetentionPlan {
    let below = sealed.iter().take_while(|segment| segment.next <= start).count();
    let mut gone = below;
    if config.retention
        && let Some(limit) = config.retention_bytes
    {
        let mut rest: u64 = active_bytes + sealed[gone..].iter().map(|segment| segment.bytes).sum::<u64>();
        while gone < sealed.len() && rest - sealed[gone].bytes >= limit {
            rest -= sealed[gone].bytes;
            gone += 1;
        }
    }
    let mut more = false;
    if config.retention
        && let Some(age) = config.retention_age
    {
        let oldest_kept = now.saturating_sub(age);
        let most = ((sealed.len() as f64 * SHARE_PER_PASS) as usize).max(1);
        let mut by_time = 0;
        while gone < sealed.len() && sealed[gone].max_time.is_some_and(|time| time < oldest_kept) {
            if by_time == most {
                more = true;
                break;
            }
            by_time += 1;
            gone += 1;
        }
    }
    let start = match gone.checked_sub(1) {
        Some(last) => start.max(sealed[last].next),
        None => start,
    };
    RetentionPlan { start, segments: gone as u32, more }
}
