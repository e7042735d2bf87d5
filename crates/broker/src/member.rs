//! The session of a group member: what it is given, what it is sent, what it says. One session is one stream; a
//! membership may have several, one after the other.
//!
//! Not here: who is given what (`rimstone-state`), members and their deadlines (`coordinator`), the messages of
//! a protocol (the doors).

mod begin;
mod cursor;
mod events;
mod look_up;
mod outbox;
mod ready;
mod session;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use rimstone_state::group::{Assignor, Committed, Join};
use rimstone_store::{LogEnds, Visibility};
use rimstone_types::{
    ByteCount, GroupEpoch, GroupName, InstanceId, MemberId, Offset, PartitionIndex, Timestamp, TopicName,
};
use uuid::Uuid;

pub use session::MemberSession;

use crate::{
    broker::{Broker, Inner},
    coordinator::{Command, Joining, Pulse, shard_of},
    error::{GroupRequestError, InvalidRequest, LimitReached, SessionCommitError, SessionProblem},
    read::{ChunkContent, ReadFormat},
};

/// Kafka's `session.timeout.ms`.
const SESSION_TIMEOUT_DEFAULT: Duration = Duration::from_secs(45);
/// Below this a busy network ends sessions by itself.
const SESSION_TIMEOUT_MIN: Duration = Duration::from_secs(1);
/// Kafka's `group.max.session.timeout.ms`.
const SESSION_TIMEOUT_MAX: Duration = Duration::from_secs(30 * 60);
/// Kafka's `max.poll.interval.ms`.
const POLL_INTERVAL_DEFAULT: Duration = Duration::from_secs(5 * 60);
/// Below this every slow record looks like a hang.
const POLL_INTERVAL_MIN: Duration = Duration::from_secs(1);
/// A day: what works longer than that on what it was sent commits in between.
const POLL_INTERVAL_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// The longest time between two heartbeats that members are told.
const HEARTBEAT_MAX: Duration = Duration::from_secs(5);

/// A member that wants to join, or to come back.
#[derive(Debug, Clone)]
pub struct JoinRequest {
    /// The group; one that does not exist is made.
    pub group: GroupName,
    /// `None`: the server makes one.
    pub member: Option<MemberId>,
    /// A static member.
    pub instance: Option<InstanceId>,
    /// What it says of itself.
    pub client_id: String,
    /// Where it connects from.
    pub host: String,
    /// What to read; the topics need not exist yet.
    pub topics: BTreeSet<TopicName>,
    /// And topics whose names begin so.
    pub topic_prefix: Option<String>,
    /// Its vote.
    pub assignor: Option<Assignor>,
    /// Where to begin without a usable committed offset.
    pub start: StartPolicy,
    /// What is seen.
    pub visibility: Visibility,
    /// Records or whole batches.
    pub format: ReadFormat,
    /// `None`: 45 s.
    pub session_timeout: Option<Duration>,
    /// `None`: 5 minutes.
    pub max_poll_interval: Option<Duration>,
    /// What may be sent at once.
    pub credit: Credit,
    /// The epoch that the member has; 0: a new start.
    pub epoch: GroupEpoch,
    /// What it reads, and the next offset that it wants of each. Only with an epoch.
    pub positions: Vec<(TopicName, PartitionIndex, Offset)>,
    /// Records are sent in messages of about this many bytes; `None`: the server's default.
    pub message_bytes: Option<ByteCount>,
}

/// Where to begin in a partition without a committed offset, or with one outside the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StartPolicy {
    /// Nowhere: the member is told, and seeks.
    #[default]
    Error,
    /// The first record there is.
    Earliest,
    /// The end, committed before anybody hears of it; the start of a partition that was made while the group was
    /// subscribed.
    Latest,
}

/// What may be sent, or was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Credit {
    /// Bytes of records: a batch counts as it is stored, a record with its key, value and headers, 48 bytes
    /// for itself and 12 for each header.
    pub bytes: u64,
    /// Records.
    pub records: u64,
}

/// Where a member wants to read on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SeekTo {
    /// This offset.
    Offset(Offset),
    /// The first record there is.
    Earliest,
    /// The end.
    Latest,
    /// The first record at or after this time; the end if there is none.
    Time(Timestamp),
}

/// What a session begins with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionFacts {
    /// The member.
    pub member: MemberId,
    /// Its epoch.
    pub epoch: GroupEpoch,
    /// In force.
    pub session_timeout: Duration,
    /// How often to send a heartbeat.
    pub heartbeat_interval: Duration,
    /// In force.
    pub max_poll_interval: Duration,
    /// False: whatever the member owned before is not its own any more.
    pub resumed: bool,
}

/// Something for the member.
#[derive(Debug)]
pub enum SessionEvent {
    /// Partitions that are its own from now on.
    Start {
        /// Its epoch.
        epoch: GroupEpoch,
        /// Which, and where reading begins.
        partitions: Vec<StartedPartition>,
    },
    /// Partitions to give back.
    Stop {
        /// Its epoch.
        epoch: GroupEpoch,
        /// Which.
        partitions: Vec<(TopicName, PartitionIndex)>,
    },
    /// Records.
    Records(SessionRecords),
    /// The answer to a commit, durable.
    Committed {
        /// As it was given.
        correlation: u64,
        /// In the order of the commit.
        results: Vec<SessionCommitted>,
    },
    /// The answer to a heartbeat.
    Alive {
        /// Its epoch.
        epoch: GroupEpoch,
    },
    /// A partition cannot be read; it waits for a seek.
    Problem {
        /// The topic.
        topic: TopicName,
        /// The partition.
        partition: PartitionIndex,
        /// Why.
        error: SessionProblem,
    },
}

/// A partition that a member was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartedPartition {
    /// The topic.
    pub topic: TopicName,
    /// The partition.
    pub partition: PartitionIndex,
    /// Where reading begins; `None`: a [`SessionEvent::Problem`] follows.
    pub offset: Option<Offset>,
    /// What is committed.
    pub committed: Option<Offset>,
    /// The log; `None`: it is unavailable.
    pub ends: Option<LogEnds>,
}

/// Records of one partition.
#[derive(Debug, Clone)]
pub struct SessionRecords {
    /// The topic.
    pub topic: TopicName,
    /// The partition.
    pub partition: PartitionIndex,
    /// What was read.
    pub content: ChunkContent,
    /// Where to go on.
    pub next: Offset,
    /// The ends, taken before the read.
    pub ends: LogEnds,
    /// Of the last seek; 0 before the first.
    pub seek_id: u64,
    /// What it costs.
    pub used: Credit,
}

/// What became of one offset of a commit through a session.
#[derive(Debug)]
pub struct SessionCommitted {
    /// The topic.
    pub topic: TopicName,
    /// The partition.
    pub partition: PartitionIndex,
    /// What became of it.
    pub result: Result<Committed, SessionCommitError>,
}

impl Broker {
    /// Joins a group, or comes back to it; the membership is durable when this answers. A session that is
    /// dropped leaves the membership alone until it times out.
    ///
    /// # Errors
    /// [`GroupRequestError`].
    pub async fn join_group(&self, request: JoinRequest) -> Result<MemberSession, GroupRequestError> {
        self.counted(self.inner.join_group(request).await)
    }
}

impl Inner {
    async fn join_group(self: &Arc<Self>, request: JoinRequest) -> Result<MemberSession, GroupRequestError> {
        self.refuse_when_stopping()?;
        let timeout = SESSION_TIMEOUT_MIN..=SESSION_TIMEOUT_MAX;
        let timeout = bounded("session_timeout", request.session_timeout, SESSION_TIMEOUT_DEFAULT, timeout)?;
        let poll = POLL_INTERVAL_MIN..=POLL_INTERVAL_MAX;
        let poll = bounded("max_poll_interval", request.max_poll_interval, POLL_INTERVAL_DEFAULT, poll)?;
        if request.epoch == GroupEpoch::ZERO && !request.positions.is_empty() {
            return Err(InvalidRequest::new("a new start (epoch 0) owns nothing").into());
        }
        if request.epoch > GroupEpoch::ZERO && request.member.is_none() {
            return Err(InvalidRequest::new("who comes back with an epoch names its member id").into());
        }
        let limits = &self.config.limits;
        if request.positions.len() > limits.partitions as usize {
            let limit = u64::from(limits.partitions);
            return Err(LimitReached { what: "positions of a member", limit }.into());
        }
        let limit = limits.group_sessions as u64;
        let one_of_many = Arc::clone(&self.member_sessions)
            .try_acquire_owned()
            .map_err(|_| LimitReached { what: "sessions of group members at one time", limit })?;
        self.ensure_coordinator().await?;

        let member = request.member.clone().unwrap_or_else(made_up_id);
        let owned = request.positions.iter().map(|(topic, partition, _)| (topic.clone(), *partition));
        let join = Join {
            group: request.group.clone(),
            member: member.clone(),
            instance: request.instance.clone(),
            client_id: request.client_id.clone(),
            host: request.host.clone(),
            topics: request.topics.clone(),
            topic_prefix: request.topic_prefix.clone(),
            assignor: request.assignor,
            session_timeout_ms: millis(timeout),
            max_poll_interval_ms: millis(poll),
            epoch: request.epoch,
            owned: owned.collect(),
        };
        let pulse = Arc::new(Pulse::new(timeout, poll));
        let reads_latest = request.start == StartPolicy::Latest;
        let of = Arc::clone(&pulse);
        let joining = |reply| Command::Join(Box::new(Joining { join, pulse: of, reads_latest, reply }));
        let start = self.ask_shard(shard_of(&request.group), joining).await?;
        let facts = SessionFacts {
            member,
            epoch: start.joined.epoch,
            session_timeout: timeout,
            heartbeat_interval: HEARTBEAT_MAX.min(timeout / 3),
            max_poll_interval: poll,
            resumed: start.joined.resumed,
        };
        Ok(MemberSession::new(Arc::clone(self), request, facts, start, pulse, one_of_many))
    }
}

fn made_up_id() -> MemberId {
    Uuid::new_v4().to_string().parse().expect("a UUID is a valid name")
}

fn bounded(
    what: &str,
    given: Option<Duration>,
    default: Duration,
    bounds: std::ops::RangeInclusive<Duration>,
) -> Result<Duration, InvalidRequest> {
    let given = given.unwrap_or(default);
    if bounds.contains(&given) {
        return Ok(given);
    }
    let (least, most) = (bounds.start().as_millis(), bounds.end().as_millis());
    let given = given.as_millis();
    Err(InvalidRequest::new(format!("{what} of {given} ms; {least} to {most} ms are allowed")))
}

fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
