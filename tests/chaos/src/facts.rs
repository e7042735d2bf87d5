//! Everything that is known of a run in the end: what its clients wrote down, what the server shows after two more
//! starts, and what the files hold.
//!
//! Not here: what must be true of it ([`crate::check`]).

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::{
    event::{Event, Seen},
    files::FileLog,
};

/// A topic and the number of a partition.
pub type At = (String, u32);

/// What a topic may do with records.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Topic {
    /// Its partitions.
    pub partitions: u32,
    /// Of each key the last record stays.
    pub compacted: bool,
    /// Tombstones go too.
    pub tombstones_go: bool,
    /// Old records go.
    pub retention: bool,
}

/// A partition as the server shows it in the end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FinalLog {
    /// The log start.
    pub start: u64,
    /// The high watermark.
    pub end: u64,
    /// Offset and number of each record, in the order in which the server gave them.
    pub records: Vec<Seen>,
    /// Create and append time of each record.
    pub times: Vec<(i64, i64)>,
    /// Ranges that the server says are lost.
    pub lost: Vec<(u64, u64)>,
}

/// What the server says of a group's lag in a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lag {
    /// The group.
    pub group: String,
    /// Where.
    pub at: At,
    /// What is committed.
    pub committed: Option<u64>,
    /// How many records lie behind that.
    pub records: u64,
}

/// The answer to a look-up by time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimeLookup {
    /// Where.
    pub at: At,
    /// The time asked for, Unix milliseconds.
    pub time_ms: i64,
    /// The first record at or after it.
    pub offset: Option<u64>,
}

/// Everything.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// The topics that clients write to from the beginning to the end, by name.
    pub topics: BTreeMap<String, Topic>,
    /// The history.
    pub events: Vec<Event>,
    /// What the server shows in the end.
    pub finals: BTreeMap<At, FinalLog>,
    /// What the files hold.
    pub files: BTreeMap<At, FileLog>,
    /// Groups, and what they have committed in the end.
    pub committed: BTreeMap<String, BTreeMap<At, u64>>,
    /// Lag of groups in the end.
    pub lag: Vec<Lag>,
    /// Look-ups by time in the end.
    pub lookups: Vec<TimeLookup>,
    /// The names of all topics that the server lists in the end.
    pub listed: BTreeSet<String>,
    /// The schedule destroys stored bytes: what the server names as lost may be missing.
    pub damage: bool,
}
