//! What groups answer where they refuse: the deciders' errors, and what the coordinator adds to them.

use std::{sync::Arc, time::Duration};

use rimstone_state::group::{CommitError, FencedBecause, GroupError};
use rimstone_store::{AppendError, Backpressure};
use rimstone_types::{GroupName, MemberId, Offset, PartitionIndex, TopicName};

use super::{
    CreateTopicError, Details, Failure, InvalidRequest, LimitReached, NoRoom, OutOfRange, PartitionNotFound,
    PartitionReadError, PartitionUnavailable, Reason, ShuttingDown, TopicNotFound,
};

/// The group's shard is being read from its log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the coordinator of the group is loading; try again in a moment")]
pub struct CoordinatorLoading;

/// A session has ended; the member must drop everything and join again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("member {member} of group {group} is fenced: {why}")]
pub struct SessionFenced {
    /// The group.
    pub group: GroupName,
    /// The member.
    pub member: MemberId,
    /// What ended it.
    pub why: SessionFencedWhy,
}

/// What ended a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SessionFencedWhy {
    /// Another stream has joined as this member, or as this static instance.
    #[error("another session of it was opened")]
    Replaced,
    /// Nothing was heard from it for so long that its partitions went to others.
    #[error("nothing was heard from it for its session time-out")]
    SessionTimeout,
    /// It showed no progress, or did not answer a stop.
    #[error("it made no progress for its poll interval")]
    PollTimeout,
    /// It is not a member, for another reason.
    #[error("it is not a member of the group any more")]
    Removed,
}

/// A partition without a usable committed offset, and a start policy that leaves the choice to the reader.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}; seek, or join with the start policy earliest or latest", what_is_missing(*committed, *start, *end))]
pub struct StartPositionNeeded {
    /// The topic.
    pub topic: TopicName,
    /// The partition.
    pub partition: PartitionIndex,
    /// What is committed, or where reading stood.
    pub committed: Option<Offset>,
    /// Log start.
    pub start: Offset,
    /// The visible end.
    pub end: Offset,
}

fn what_is_missing(committed: Option<Offset>, start: Offset, end: Offset) -> String {
    match committed {
        None => "no offset is committed".to_owned(),
        Some(at) => format!("offset {at} is outside the log, which is {start}..={end}"),
    }
}

/// A member named a partition that it does not own.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("partition {partition} of topic {topic} is not the member's")]
pub struct PartitionNotOwned {
    /// The topic.
    pub topic: TopicName,
    /// The partition.
    pub partition: PartitionIndex,
}

/// The offsets are not those that a plan was made from.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the offsets of group {group} have changed since the plan was made; make a new one")]
pub struct PlanChanged {
    /// The group.
    pub group: GroupName,
}

failures_of! {
    /// Why a request about a group was refused, or has an unknown fate.
    GroupRequestError {
        /// The group's rules.
        Group(GroupError),
        /// The request contradicts itself.
        Invalid(InvalidRequest),
        /// The offsets have moved under a plan.
        PlanChanged(PlanChanged),
        /// The session is not the member's any more.
        Fenced(SessionFenced),
        /// A bound on the request.
        Limit(LimitReached),
        /// Too many requests wait for the coordinator.
        NoRoom(NoRoom),
        /// The coordinator is being loaded.
        Loading(CoordinatorLoading),
        /// The coordinator cannot be loaded.
        Unavailable(PartitionUnavailable),
        /// `__consumer_offsets` could not be made.
        Create(CreateTopicError),
        /// The log did not take it: nothing has changed.
        Refused(Backpressure),
        /// The append failed: undone, or unknown.
        Append(AppendError),
        /// The server stops.
        ShuttingDown(ShuttingDown),
    }
}

failures_of! {
    /// Why one offset was not committed.
    OffsetCommitError {
        /// There is no such topic.
        TopicNotFound(TopicNotFound),
        /// There is no such partition.
        PartitionNotFound(PartitionNotFound),
        /// The partition could not be opened: nobody can tell whether the offset is in its log.
        Unavailable(PartitionUnavailable),
        /// The group's rules.
        Commit(CommitError),
    }
}

failures_of! {
    /// Why an offset of a session's commit was not committed.
    SessionCommitError {
        /// This offset was refused.
        Offset(OffsetCommitError),
        /// The whole commit was, or has an unknown fate.
        Request(Arc<GroupRequestError>),
    }
}

failures_of! {
    /// Why a partition cannot be read.
    SessionProblem {
        /// No usable committed offset, and the policy is to ask.
        Start(StartPositionNeeded),
        /// The store could not, or the partition is unavailable.
        Read(PartitionReadError),
        /// Sought outside the log.
        OutOfRange(OutOfRange),
        /// Sought in what is not the member's.
        NotOwned(PartitionNotOwned),
        /// The place to begin at could not be committed.
        Begin(OffsetCommitError),
    }
}

failures_of! {
    /// Why a session ends.
    SessionError {
        /// The member must drop everything and join again.
        Fenced(SessionFenced),
        /// An append of the coordinator failed, and what was to become of the session with it: reconnect, the
        /// membership stays.
        Loading(CoordinatorLoading),
        /// The server stops: reconnect, the membership stays.
        ShuttingDown(ShuttingDown),
    }
}

impl Failure for CoordinatorLoading {
    fn reason(&self) -> Reason {
        Reason::CoordinatorLoading
    }
}

impl SessionFencedWhy {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Replaced, Self::SessionTimeout, Self::PollTimeout, Self::Removed];

    /// As machines read it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Replaced => "replaced",
            Self::SessionTimeout => "session_timeout",
            Self::PollTimeout => "poll_timeout",
            Self::Removed => "removed",
        }
    }
}

impl Failure for SessionFenced {
    fn reason(&self) -> Reason {
        Reason::MemberFenced
    }

    fn details(&self) -> Details {
        vec![
            ("group", self.group.to_string()),
            ("member", self.member.to_string()),
            ("why", self.why.as_str().to_owned()),
        ]
    }
}

impl Failure for StartPositionNeeded {
    fn reason(&self) -> Reason {
        Reason::StartPositionNeeded
    }

    fn details(&self) -> Details {
        let mut details = vec![
            ("topic", self.topic.to_string()),
            ("partition", self.partition.to_string()),
            ("log_start_offset", self.start.to_string()),
            ("high_watermark", self.end.to_string()),
        ];
        details.extend(self.committed.map(|at| ("committed_offset", at.to_string())));
        details
    }
}

impl Failure for PartitionNotOwned {
    fn reason(&self) -> Reason {
        Reason::PartitionNotOwned
    }

    fn details(&self) -> Details {
        vec![("topic", self.topic.to_string()), ("partition", self.partition.to_string())]
    }
}

impl Failure for PlanChanged {
    fn reason(&self) -> Reason {
        Reason::PlanChanged
    }

    fn details(&self) -> Details {
        vec![("group", self.group.to_string())]
    }
}

impl Failure for GroupError {
    fn reason(&self) -> Reason {
        match self {
            Self::NotFound { .. } => Reason::GroupNotFound,
            Self::Exists { .. } => Reason::GroupExists,
            Self::NotEmpty { .. } => Reason::GroupNotEmpty,
            Self::Fenced { .. } => Reason::MemberFenced,
            Self::Limit { .. } | Self::EpochsUsedUp { .. } => Reason::LimitReached,
            Self::OtherInstance { .. } | Self::NoSubscription { .. } | Self::NotStopping { .. } => {
                Reason::InvalidRequest
            }
        }
    }

    fn details(&self) -> Details {
        match self {
            Self::NotFound { group } | Self::Exists { group } => vec![("group", group.to_string())],
            Self::NotEmpty { group, members } => {
                vec![("group", group.to_string()), ("members", members.to_string())]
            }
            Self::Fenced { group, member, because } => {
                let mut details = vec![("group", group.to_string()), ("member", member.to_string())];
                details.extend(because_details(*because));
                details
            }
            Self::Limit { group, what, limit, .. } => {
                vec![("group", group.to_string()), ("what", (*what).to_owned()), ("limit", limit.to_string())]
            }
            Self::EpochsUsedUp { group } => vec![
                ("group", group.to_string()),
                ("what", "epochs of the group".to_owned()),
                ("limit", u32::MAX.to_string()),
            ],
            Self::OtherInstance { group, member, .. } | Self::NoSubscription { group, member } => {
                vec![("group", group.to_string()), ("member", member.to_string())]
            }
            Self::NotStopping { group, member, topic, partition } => vec![
                ("group", group.to_string()),
                ("member", member.to_string()),
                ("topic", topic.to_string()),
                ("partition", partition.to_string()),
            ],
        }
    }
}

fn because_details(because: FencedBecause) -> Details {
    match because {
        FencedBecause::UnknownMember => vec![("why", "unknown_member".to_owned())],
        FencedBecause::StaleEpoch { current, .. } => {
            vec![("why", "stale_epoch".to_owned()), ("current_epoch", current.to_string())]
        }
        FencedBecause::NotItsPartitions { current } => {
            vec![("why", "not_its_partitions".to_owned()), ("current_epoch", current.to_string())]
        }
    }
}

impl Failure for CommitError {
    fn reason(&self) -> Reason {
        match self {
            Self::NotOwned { .. } => Reason::PartitionNotOwned,
            Self::BeyondEnd { .. } => Reason::OffsetOutOfRange,
            Self::MetadataTooLong { .. } => Reason::InvalidRequest,
            Self::TooMany { .. } => Reason::LimitReached,
        }
    }

    fn details(&self) -> Details {
        let (Self::NotOwned { topic, partition }
        | Self::BeyondEnd { topic, partition, .. }
        | Self::MetadataTooLong { topic, partition, .. }
        | Self::TooMany { topic, partition, .. }) = self;
        let mut details = vec![("topic", topic.to_string()), ("partition", partition.to_string())];
        match self {
            Self::NotOwned { .. } => {}
            Self::BeyondEnd { ends, .. } => details.extend([
                ("log_start_offset", ends.start.to_string()),
                ("high_watermark", ends.durable.to_string()),
            ]),
            Self::MetadataTooLong { limit, .. } => details.push(("limit", limit.to_string())),
            Self::TooMany { limit, .. } => {
                details.extend([("what", "offsets of the group".to_owned()), ("limit", limit.to_string())]);
            }
        }
        details
    }
}
