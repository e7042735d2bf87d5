//! Joining, stopping and leaving.

use std::collections::BTreeSet;

use rimstone_types::{GroupEpoch, GroupName, InstanceId, MemberId, PartitionIndex, TopicName};

use super::{GROUPS_PER_SHARD_MAX, assign::Assignor, error::GroupError, record::GroupRecord, state::Groups};

/// A member that comes, or comes back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Join {
    /// The group; one that does not exist is made.
    pub group: GroupName,
    /// Of the member's choosing, the same across reconnects.
    pub member: MemberId,
    /// Set for a static member.
    pub instance: Option<InstanceId>,
    /// What the member says of itself.
    pub client_id: String,
    /// Where it connects from (without a port, which changes with every connection).
    pub host: String,
    /// What it wants to read; the topics need not exist yet.
    pub topics: BTreeSet<TopicName>,
    /// And topics whose names begin with this, the server's own excepted.
    pub topic_prefix: Option<String>,
    /// Its vote.
    pub assignor: Option<Assignor>,
    /// Milliseconds; within the bounds that the caller keeps.
    pub session_timeout_ms: u32,
    /// Milliseconds; within the bounds that the caller keeps.
    pub max_poll_interval_ms: u32,
    /// The epoch that the member has; 0: a new start, it owns nothing.
    pub epoch: GroupEpoch,
    /// What it reads at present: granted to it, and not confirmed as stopped. Only with an epoch.
    pub owned: Vec<(TopicName, PartitionIndex)>,
}

/// A member has joined, or come back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Joined {
    /// Its epoch.
    pub epoch: GroupEpoch,
    /// It goes on with what it had. False: whatever it owned before is not its own any more.
    pub resumed: bool,
    /// Whose membership has ended by this: another member of the same static instance, or the member's own
    /// earlier life under the same id. Its session has to end.
    pub replaced: Option<MemberId>,
}

/// Why a membership ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    /// It says so. A static member stays until its session times out, unless it leaves for good.
    Leave {
        /// Also a static one.
        for_good: bool,
    },
    /// Nothing was heard from it for its session time-out.
    SessionTimeout,
    /// It made no progress for its poll interval.
    PollTimeout,
}

impl Groups {
    pub(super) fn check_room(&self, group: &GroupName) -> Result<(), GroupError> {
        let (would_be, limit) = (self.groups.len() + 1, GROUPS_PER_SHARD_MAX);
        if would_be > limit {
            return Err(GroupError::Limit {
                group: group.clone(),
                what: "groups of the shard",
                would_be,
                limit,
            });
        }
        Ok(())
    }
}

impl GroupRecord {
    pub(super) fn forget_member(group: &GroupName, member: &MemberId) -> [Self; 3] {
        let (group, member) = (|| group.clone(), || member.clone());
        [
            Self::Member { group: group(), member: member(), value: None },
            Self::Target { group: group(), member: member(), value: None },
            Self::Assignment { group: group(), member: member(), value: None },
        ]
    }
}
