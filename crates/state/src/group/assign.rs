//! Making targets: who is to read which partition.

use serde::{Deserialize, Serialize};

/// How the partitions of a group are shared out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Assignor {
    /// Even shares, and as few partitions as possible move.
    #[default]
    Sticky,
    /// Per topic, a run of neighbouring partitions to each member; partitions of one number stay together.
    Range,
    /// All partitions in turn.
    RoundRobin,
}
