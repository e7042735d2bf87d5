//! Compaction: of each key the last record stays. A pure plan over facts about segments, then an executor that
//! writes new segments beside the old ones, in slices. The rules are those of Kafka's `LogCleaner`.
//!
//! What of a log is cleaned already is in its segments' headers, so that there is no checkpoint to lose: a
//! segment that compaction wrote names the end of its range and how far it was cleaned. Segments are replaced
//! from the oldest on, so whatever a crash leaves, the cleaned part is a prefix in which each key is the last. What
//! was passed by is not known at the next start, and may be back: a segment that was written behind some counts as
//! cleaned only while as many lie before it.
//!
//! Not here: which log comes next, pacing, the byte budget (`rimstone-store`, `rimstone-broker`).

mod job;
mod keys;
mod obstacle;
mod output;
mod sieve;
pub(crate) mod startup;
mod swap;
#[cfg(test)]
mod tests;

use std::{ops::Range, time::Duration};

use rimstone_types::{Offset, Timestamp};

pub use job::{Compaction, CompactionError, CompactionStep, Progress};
pub use obstacle::{Obstacle, ObstacleReason};
pub(crate) use output::Output;
pub use sieve::{Judged, Sieve};
pub use swap::{Compactable, Replaced, Replacement};

/// When a log is to be compacted, and what may go.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CompactionSettings {
    /// Due when at least this share of the bytes is dirty (`min.cleanable.dirty.ratio`).
    pub dirty_ratio: f64,
    /// Records younger than this, by append time, stay as they are (`min.compaction.lag.ms`).
    pub min_lag: Duration,
    /// Due when something was dirty for longer than this (`max.compaction.lag.ms`); `None`: never by time.
    pub max_lag: Option<Duration>,
    /// How long a tombstone stays after it was first cleaned (`delete.retention.ms`).
    pub delete_retention: Duration,
    /// Bytes of memory for the keys of one pass; what does not fit is for the next.
    pub map_bytes: usize,
}

/// A pass for nothing but tombstones waits for this share of `delete.retention.ms` more, so that however they come it
/// is made so often in that time at most.
const TOMBSTONE_PASSES: u32 = 10;

impl CompactionSettings {
    /// Whether a tombstone that may go since then is worth a pass.
    pub(crate) fn is_overdue(&self, horizon: Timestamp, now: Timestamp) -> bool {
        let wait = self.delete_retention / TOMBSTONE_PASSES;
        horizon.saturating_add(self.max_lag.map_or(wait, |lag| lag.min(wait))) <= now
    }
}

/// How much of a log is cleaned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Dirtiness {
    /// Bytes of segments that were cleaned.
    pub clean_bytes: u64,
    /// Bytes of segments that were not, and can be now.
    pub dirty_bytes: u64,
    /// A pass is due.
    pub due: bool,
}

impl Dirtiness {
    /// Dirty bytes over all that can be cleaned; 0 for nothing.
    pub fn ratio(&self) -> f64 {
        let total = self.clean_bytes + self.dirty_bytes;
        if total == 0 { 0.0 } else { self.dirty_bytes as f64 / total as f64 }
    }
}

/// A sealed segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// Its first offset.
    pub base: Offset,
    /// The first offset of the next segment.
    pub next: Offset,
    /// Its bytes.
    pub bytes: u64,
    /// Append time of its first batch.
    pub first_append: Timestamp,
    /// Append time of its last batch.
    pub last_append: Timestamp,
    /// What lies below is cleaned; the base if nothing is.
    pub cleaned: Offset,
    /// When the first of its tombstones that may go at all may do so.
    pub horizon: Option<Timestamp>,
}

/// What a pass would do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// So many of the sealed segments, from the oldest on, can be compacted.
    pub segments: usize,
    /// Everything below is cleaned already.
    pub dirty_from: Offset,
    /// Nothing dirty is to be looked at: only tombstones whose time is over go, from segments that are clean.
    pub tombstones_only: bool,
    /// How much there is to do.
    pub dirtiness: Dirtiness,
}

/// A segment covers at most so many offsets: entries of the index have 32 bits for them.
const RANGE_MAX: u64 = (u32::MAX / 2) as u64;

/// So many segments become one at most: their files are all open when the new one takes their place.
const MEMBERS_MAX: usize = 128;

/// Plans over the sealed segments, oldest first, up to the first one that cannot be compacted: it reaches above
/// the stable end or, not cleaned yet, has a batch that is too young.
pub fn plan(sealed: &[Facts], stable: Offset, settings: &CompactionSettings, now: Timestamp) -> Plan {
    let young = now.saturating_sub(settings.min_lag);
    let can =
        |facts: &&Facts| facts.next <= stable && (facts.cleaned == facts.next || facts.last_append <= young);
    let segments = sealed.iter().take_while(can).count();
    let clean = sealed[..segments].iter().take_while(|facts| facts.cleaned == facts.next).count();
    let (clean, dirty) = sealed[..segments].split_at(clean);
    let bytes = |facts: &[Facts]| facts.iter().map(|facts| facts.bytes).sum();
    let overdue = |facts: &Facts| facts.horizon.is_some_and(|horizon| settings.is_overdue(horizon, now));
    let mut dirtiness = Dirtiness { clean_bytes: bytes(clean), dirty_bytes: bytes(dirty), due: false };
    let clean_until = clean.last().map_or(Offset::ZERO, |last| last.next);
    let dirty_from = dirty.first().map_or(clean_until, |first| first.cleaned);
    dirtiness.due = dirty.first().is_some_and(|first| {
        let late = settings.max_lag.is_some_and(|lag| first.first_append <= now.saturating_sub(lag));
        late || dirtiness.ratio() >= settings.dirty_ratio
    });
    if !dirtiness.due && clean.iter().any(overdue) {
        dirtiness.due = true;
        return Plan { segments: clean.len(), dirty_from: clean_until, tombstones_only: true, dirtiness };
    }
    Plan { segments, dirty_from, tombstones_only: false, dirtiness }
}

/// Which neighbours become one segment: as many as stay within the bounds of a segment, at least one (Kafka's
/// `Cleaner.groupSegmentsBySize`).
pub fn groups(sealed: &[Facts], segment_bytes: u64) -> Vec<Range<usize>> {
    let mut groups = Vec::new();
    let mut first = 0;
    while first < sealed.len() {
        let end = first + group(&sealed[first..], segment_bytes);
        groups.push(first..end);
        first = end;
    }
    groups
}

/// How many of the first segments are the first group; 0 of none.
fn group(sealed: &[Facts], segment_bytes: u64) -> usize {
    let Some(first) = sealed.first() else { return 0 };
    // Positions in the index have 32 bits.
    let segment_bytes = segment_bytes.min(u64::from(u32::MAX));
    let (mut bytes, mut end) = (first.bytes, first.next);
    let joins = |next: &&Facts| {
        // Between them may be one that cannot be compacted.
        let neighbours = next.base == end;
        (bytes, end) = (bytes + next.bytes, next.next);
        neighbours && bytes <= segment_bytes && end.since(first.base) <= RANGE_MAX
    };
    1 + sealed[1..].iter().take(MEMBERS_MAX - 1).take_while(joins).count()
}
