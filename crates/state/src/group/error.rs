//! Why a decision was refused.

use rimstone_types::{
    GroupEpoch, GroupName, InstanceId, LogEnds, MemberId, Offset, PartitionIndex, TopicName,
};

/// Why a request was refused whole.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GroupError {
    /// No members, no offsets, never seen or deleted.
    #[error("group {group} does not exist")]
    NotFound {
        /// The group.
        group: GroupName,
    },
    /// It was to be a new one.
    #[error("group {group} exists")]
    Exists {
        /// The group.
        group: GroupName,
    },
    /// Only for groups without members.
    #[error("group {group} has {members} members; it must have none")]
    NotEmpty {
        /// The group.
        group: GroupName,
        /// How many members it has.
        members: usize,
    },
    /// The member must drop everything and join again.
    #[error("member {member} of group {group} is fenced: {because}")]
    Fenced {
        /// The group.
        group: GroupName,
        /// The member.
        member: MemberId,
        /// Why.
        because: FencedBecause,
    },
    /// Over a bound.
    #[error("{what} of group {group} would be {would_be}; the limit is {limit}")]
    Limit {
        /// The group.
        group: GroupName,
        /// What is bounded.
        what: &'static str,
        /// How many there would be.
        would_be: usize,
        /// The bound.
        limit: usize,
    },
    /// A resuming member names another instance than it joined with.
    #[error("member {member} of group {group} joined as another instance; a new instance needs a new start")]
    OtherInstance {
        /// The group.
        group: GroupName,
        /// The member.
        member: MemberId,
        /// What it joined as.
        joined_as: Option<InstanceId>,
    },
    /// A subscription without a topic or a prefix.
    #[error("member {member} of group {group} subscribes to nothing; name a topic or a prefix")]
    NoSubscription {
        /// The group.
        group: GroupName,
        /// The member.
        member: MemberId,
    },
    /// 2^32 - 1 epochs are used up; the group takes no new members.
    #[error("group {group} has used up its epochs; delete it, or use another name")]
    EpochsUsedUp {
        /// The group.
        group: GroupName,
    },
    /// A member says that it has stopped what it was not asked to stop.
    #[error("member {member} of group {group} was not asked to stop {topic}-{partition}")]
    NotStopping {
        /// The group.
        group: GroupName,
        /// The member.
        member: MemberId,
        /// The topic.
        topic: TopicName,
        /// The partition.
        partition: PartitionIndex,
    },
}

/// Why a member is fenced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FencedBecause {
    /// It left, was timed out or replaced, or never was.
    #[error("it is not a member of the group")]
    UnknownMember,
    /// It has another epoch.
    #[error("it came with epoch {given}; its epoch is {current}")]
    StaleEpoch {
        /// What it came with.
        given: GroupEpoch,
        /// What it has.
        current: GroupEpoch,
    },
    /// It claims partitions that it does not hold.
    #[error("it claims partitions that are not its own; its epoch is {current}")]
    NotItsPartitions {
        /// Its epoch.
        current: GroupEpoch,
    },
}

/// Why one offset of a commit was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommitError {
    /// The member neither owns the partition nor is about to stop it.
    #[error("{topic}-{partition} is not the member's")]
    NotOwned {
        /// The topic.
        topic: TopicName,
        /// The partition.
        partition: PartitionIndex,
    },
    /// Beyond what readers see.
    #[error(
        "offset {offset} of {topic}-{partition} is beyond the end: the log is {}..{}", ends.start, ends.durable
    )]
    BeyondEnd {
        /// The topic.
        topic: TopicName,
        /// The partition.
        partition: PartitionIndex,
        /// What was to be committed.
        offset: Offset,
        /// The log.
        ends: LogEnds,
    },
    /// Over [`METADATA_BYTES_MAX`](super::METADATA_BYTES_MAX).
    #[error("the metadata for {topic}-{partition} has {bytes} bytes; {limit} are allowed")]
    MetadataTooLong {
        /// The topic.
        topic: TopicName,
        /// The partition.
        partition: PartitionIndex,
        /// What was given.
        bytes: usize,
        /// The bound.
        limit: usize,
    },
    /// Over [`OFFSETS_PER_GROUP_MAX`](super::OFFSETS_PER_GROUP_MAX).
    #[error("no offset of {topic}-{partition}: the group has {limit} offsets, the most there can be")]
    TooMany {
        /// The topic.
        topic: TopicName,
        /// The partition.
        partition: PartitionIndex,
        /// The bound.
        limit: usize,
    },
}
