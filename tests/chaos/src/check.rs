//! What must be true of a run, whatever was done to the server:
//!
//! 1. One offset, one value, among acknowledgements, polls, the final read and the files.
//! 2. Offsets rise; a gap has a compaction to show for it. The files and the server agree.
//! 3. Every acknowledged record is in the log unless retention or compaction may have taken it; none that was refused
//!    is; no value is there twice; none that nobody sent. What was deleted does not come back.
//! 4. Per producer and epoch the order of the log is that of the sequences, without holes; nothing of an older epoch
//!    comes after a newer one.
//! 5. If one record was acknowledged before another was sent, its offset is lower.
//! 6. Polls of a session are contiguous and leave nothing out.
//! 7. What a poll saw is in the final log.
//! 8. Committed offsets are those that were acknowledged, never older ones, never some that nobody committed.
//! 9. Lag is what is counted in the final log; a look-up by time is what a scan finds.
//! 10. When the faults have ended, everything settles within 30 s.
//!
//! Topics are kept by rule 3: one that was made is there, one that was deleted is not.
//! Not here: how the events came about.

mod gather;
mod kept;
mod offsets;
mod order;
mod polls;
mod settle;
#[cfg(test)]
mod tests;

use std::fmt;

use crate::{
    event::What,
    facts::{At, Facts},
};
pub use gather::{Counts, Gathered, Sent};
pub use settle::SETTLE_NS;

/// What must not be.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Anomaly {
    /// The number of the rule.
    pub rule: u8,
    /// Where.
    pub at: Option<At>,
    /// At which offset.
    pub offset: Option<u64>,
    /// Which record.
    pub value: Option<u64>,
    /// What is wrong.
    pub what: String,
}

impl Anomaly {
    fn new(rule: u8, at: &At, offset: Option<u64>, value: Option<u64>, what: impl Into<String>) -> Self {
        Self { rule, at: Some(at.clone()), offset, value, what: what.into() }
    }

    fn bare(rule: u8, what: impl Into<String>) -> Self {
        Self { rule, at: None, offset: None, value: None, what: what.into() }
    }
}

impl fmt::Display for Anomaly {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rule {}", self.rule)?;
        if let Some((topic, partition)) = &self.at {
            write!(f, ", {topic}/{partition}")?;
        }
        if let Some(offset) = self.offset {
            write!(f, ", offset {offset}")?;
        }
        if let Some(value) = self.value {
            write!(f, ", value {value}")?;
        }
        write!(f, ": {}", self.what)
    }
}

/// Everything that is wrong, and how much was looked at.
pub fn check(facts: &Facts) -> (Vec<Anomaly>, Counts) {
    let mut wrong = Vec::new();
    let gathered = gather::gather(facts, &mut wrong);
    for event in &facts.events {
        if let What::Violation { rule, what } = &event.what {
            wrong.push(Anomaly::bare(*rule, format!("{}: {what}", event.process)));
        }
    }
    kept::check(facts, &gathered, &mut wrong);
    order::check(facts, &gathered, &mut wrong);
    polls::check(facts, &gathered, &mut wrong);
    offsets::check(facts, &mut wrong);
    settle::check(facts, &mut wrong);
    wrong.sort();
    wrong.dedup();
    (wrong, gathered.counts)
}
