//! Consumer groups: the rules of KIP-848 over one stream per member, committed offsets, and the records of
//! `__consumer_offsets` that all of it is kept in.
//!
//! [`Groups`] is the state of one shard. Deciders look at it (`&self`) and answer with a [`Decision`]: records
//! and what to say. [`Groups::replay`] applies records, and nothing else changes the state; it is used live
//! and when loading. The records of one decision belong together and are written as one batch.
//!
//! How a group moves: any change of members, subscriptions or partitions raises the group's epoch and makes a
//! new target. A member that holds what the target does not give it is asked to stop (`stopping`) and stays at
//! its epoch until it has confirmed; then it reaches the group's epoch and is granted what the target gives it
//! and nobody holds; the rest follows as others release it, in the same decision that frees it.
//!
//! Not here: sessions, timers, waiting for durability, reading, log ends (they are passed in), and the numbers
//! of lag.

mod assign;
mod error;
mod forget;
mod membership;
mod offsets;
mod partitions;
mod query;
mod rebalance;
mod record;
mod state;
#[cfg(test)]
mod tests;

pub use assign::Assignor;
pub use error::{CommitError, FencedBecause, GroupError};
pub use membership::{Join, Joined, Removal};
pub use offsets::{Commit, CommitOffset, Committed, Committer, Import, ImportOffset, ImportTo};
pub use partitions::{OfTopic, Partitions};
pub use query::{Description, GroupState, MemberDescription, MemberView, Summary};
pub use record::{
    AssignmentValue, EpochsValue, GroupRecord, GroupValue, MemberValue, OffsetValue, RecordError,
    TargetValue, TopicCount, TopicsValue,
};
pub use state::{Decision, Groups, Topics};

/// Members of one group: their records are rewritten together when the target changes, and one decision must
/// fit one batch.
pub const MEMBERS_MAX: usize = 1_000;
/// Groups of one shard: they are held in memory, about 1 KiB each with a few offsets.
pub const GROUPS_PER_SHARD_MAX: usize = 10_000;
/// Topics named in one subscription: they are kept in the member's record.
pub const TOPICS_PER_SUBSCRIPTION_MAX: usize = 1_000;
/// Offsets of one group: all of them move in one decision when a group is cloned or deleted. As many as a
/// server has partitions.
pub const OFFSETS_PER_GROUP_MAX: usize = 10_000;
/// Bytes of metadata beside an offset; Kafka's `offset.metadata.max.bytes`.
pub const METADATA_BYTES_MAX: usize = 4_096;
/// Bytes of what a member says of itself (client id, host, topic prefix); Kafka's bound for names.
pub const LABEL_BYTES_MAX: usize = 249;
/// Bytes of the records of one decision: `max.message.bytes` of `__consumer_offsets` must not be lower.
/// Membership needs at most about 17 MiB (10,000 partitions of as many topics whose names are as long as
/// they can be); commits and clones are refused above it.
pub const DECISION_BYTES_MAX: usize = 24 << 20;
