//! Consumer groups from outside: committed offsets, members, clones. One method per call of `GroupService`;
//! nothing is retried here.
//!
//! Not here: being a member ([`Consumer`](crate::Consumer)).

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use rimstone_proto::v1;
use rimstone_types::{Offset, PartitionIndex, Timestamp};

use crate::{
    admin::offset,
    call::call,
    connect::Connection,
    error::{ClientError, Code},
};

/// A topic and one of its partitions. Printed as `topic/partition`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicPartition {
    /// The topic.
    pub topic: Arc<str>,
    /// The number of the partition.
    pub partition: PartitionIndex,
}

impl TopicPartition {
    /// A partition of a topic.
    pub fn new(topic: &str, partition: PartitionIndex) -> Self {
        Self { topic: topic.into(), partition }
    }

    pub(crate) fn message(&self) -> v1::TopicPartition {
        v1::TopicPartition { topic: self.topic.to_string(), partition: self.partition.0 }
    }
}

impl fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.topic, self.partition)
    }
}

impl From<v1::TopicPartition> for TopicPartition {
    fn from(place: v1::TopicPartition) -> Self {
        Self::new(&place.topic, PartitionIndex(place.partition))
    }
}

/// How the partitions of a group are shared out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Assignor {
    /// Even shares, and as few partitions as possible move.
    #[default]
    Sticky,
    /// Per topic, a run of neighbouring partitions to each member; partitions of one number stay together.
    Range,
    /// All partitions in turn.
    RoundRobin,
}

impl Assignor {
    pub(crate) fn message(self) -> v1::Assignor {
        match self {
            Self::Sticky => v1::Assignor::Sticky,
            Self::Range => v1::Assignor::Range,
            Self::RoundRobin => v1::Assignor::RoundRobin,
        }
    }

    fn from_message(assignor: i32) -> Self {
        match v1::Assignor::try_from(assignor) {
            Ok(v1::Assignor::Range) => Self::Range,
            Ok(v1::Assignor::RoundRobin) => Self::RoundRobin,
            _ => Self::Sticky,
        }
    }
}

impl fmt::Display for Assignor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sticky => "sticky",
            Self::Range => "range",
            Self::RoundRobin => "round-robin",
        })
    }
}

/// Where a reader begins in a partition without a committed offset, or with one outside the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StartPolicy {
    /// Nowhere: an error that names the choice.
    #[default]
    Error,
    /// The first record there is.
    Earliest,
    /// The end: only what comes later.
    Latest,
}

/// An offset to commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OffsetCommit {
    /// Where.
    pub at: TopicPartition,
    /// The *next* offset to read; `None` takes the committed offset away.
    pub offset: Option<Offset>,
    /// For the reader's own use, at most 4096 bytes.
    pub metadata: String,
}

/// What became of one commit that was not refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CommitFlags {
    /// Retention has overtaken the reader.
    pub below_log_start: bool,
    /// It lies before the offset that was committed until now.
    pub backwards: bool,
}

/// A committed offset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommittedOffset {
    /// Where.
    pub at: TopicPartition,
    /// The next offset to read; `None`: nothing is committed.
    pub offset: Option<Offset>,
    /// What the reader kept with it.
    pub metadata: String,
    /// When it was committed; `None` where nothing is.
    pub committed: Option<Timestamp>,
    /// Log start has overtaken it.
    pub below_log_start: bool,
}

/// Whether the members of a group have what they are to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GroupState {
    /// No members; offsets only.
    Empty,
    /// Every member has what the target gives it.
    Stable,
    /// Partitions are moving between members.
    Reconciling,
    /// A state that this client does not know.
    Unknown,
}

impl fmt::Display for GroupState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "empty",
            Self::Stable => "stable",
            Self::Reconciling => "reconciling",
            Self::Unknown => "unknown",
        })
    }
}

/// A group in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupSummary {
    /// Its name.
    pub group: String,
    /// Its state.
    pub state: GroupState,
    /// How many members it has.
    pub members: u32,
    /// Raised by any change of members, subscriptions or partitions.
    pub epoch: u32,
    /// Topics with committed offsets or assigned partitions.
    pub topics: Vec<String>,
}

/// A group and its members.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupDetails {
    /// What a list shows of it.
    pub summary: GroupSummary,
    /// How its partitions are shared out.
    pub assignor: Assignor,
    /// Its members.
    pub members: Vec<GroupMember>,
    /// Commits of members that went backwards since the server loaded the group.
    pub backward_commits: u64,
}

/// A member of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupMember {
    /// Its id.
    pub id: String,
    /// For a static member: under which name it may come back.
    pub instance_id: Option<String>,
    /// What it says of itself.
    pub client_id: String,
    /// Where it connects from.
    pub host: String,
    /// Up to the group's epoch; below it while the member has yet to give partitions back.
    pub epoch: u32,
    /// What it reads.
    pub topics: Vec<String>,
    /// It reads the topics whose names begin with this, too.
    pub topic_prefix: Option<String>,
    /// What it owns.
    pub owned: Vec<TopicPartition>,
    /// What it has been asked to give back and has not.
    pub stopping: Vec<TopicPartition>,
    /// What it owns, or will once that is free.
    pub target: Vec<TopicPartition>,
    /// Whether its stream is open at the moment.
    pub connected: bool,
    /// Without a word for so long it is no member any more.
    pub session_timeout: Duration,
    /// Since when it is a member.
    pub joined: Timestamp,
}

/// The calls about groups. Cheap to clone.
///
/// A reader that takes its partitions by hand keeps its place under a group's name:
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use rimstone_client::{End, Reader, Start, StartPolicy};
///
/// let start = Start::Committed { group: "report".to_owned(), otherwise: StartPolicy::Earliest };
/// let mut reader = Reader::builder("127.0.0.1:9190", "visits").start(start).end(End::Latest).build()?;
/// while let Some(record) = reader.next().await? {
///     println!("{:?}", record.value);
/// }
/// reader.commit("report").await?; // everything handed out so far has been processed
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Groups {
    connection: Connection,
}

impl Groups {
    /// The calls of the server at `endpoint` (`host:port` or `http://host:port`). Nothing is sent yet. Must be
    /// called within a Tokio runtime.
    ///
    /// # Errors
    /// [`Code::InvalidArgument`] for an address that is not one.
    pub fn new(endpoint: &str) -> Result<Self, ClientError> {
        Ok(Self::over(Connection::new(endpoint)?))
    }

    /// The same over a connection that is there.
    pub fn over(connection: Connection) -> Self {
        Self { connection }
    }

    /// Commits offsets from outside, which a group takes while it has no members; makes the group if there is
    /// none. Answers in the order of the commits, durable; each may be refused by itself.
    ///
    /// # Errors
    /// `GROUP_NOT_EMPTY`, `INVALID_NAME`, `LIMIT_REACHED`. Of one offset: `OFFSET_OUT_OF_RANGE` beyond the end,
    /// `TOPIC_NOT_FOUND`, `PARTITION_NOT_FOUND`.
    pub async fn commit(
        &self,
        group: &str,
        offsets: &[OffsetCommit],
    ) -> Result<Vec<Result<CommitFlags, ClientError>>, ClientError> {
        let request = v1::CommitOffsetsRequest {
            group: group.to_owned(),
            offsets: offsets.iter().map(commit_message).collect(),
            ..Default::default()
        };
        let answer = call(&self.connection, self.connection.groups().commit_offsets(request)).await?;
        if answer.results.len() != offsets.len() {
            return Err(ClientError::protocol("the server answered for other offsets than were committed"));
        }
        Ok(answer.results.into_iter().map(flags).collect())
    }

    /// The committed offsets of a group: of these partitions, or (none named) all that there are. A partition
    /// without one is answered without one, and never with 0.
    ///
    /// # Errors
    /// `GROUP_NOT_FOUND`, when no partitions are named.
    pub async fn offsets(
        &self,
        group: &str,
        partitions: &[TopicPartition],
    ) -> Result<Vec<CommittedOffset>, ClientError> {
        let request = v1::FetchOffsetsRequest {
            group: group.to_owned(),
            partitions: partitions.iter().map(TopicPartition::message).collect(),
        };
        let answer = call(&self.connection, self.connection.groups().fetch_offsets(request)).await?;
        answer.offsets.into_iter().map(committed).collect()
    }

    /// All groups whose name begins with `prefix`, by name.
    ///
    /// # Errors
    /// Only those of the connection.
    pub async fn list(&self, prefix: &str) -> Result<Vec<GroupSummary>, ClientError> {
        let request = v1::ListGroupsRequest { prefix: prefix.to_owned() };
        let answer = call(&self.connection, self.connection.groups().list_groups(request)).await?;
        Ok(answer.groups.into_iter().map(summary).collect())
    }

    /// One group with its members.
    ///
    /// # Errors
    /// `GROUP_NOT_FOUND`.
    pub async fn describe(&self, group: &str) -> Result<GroupDetails, ClientError> {
        let request = v1::DescribeGroupRequest { group: group.to_owned() };
        let answer = call(&self.connection, self.connection.groups().describe_group(request)).await?;
        Ok(GroupDetails {
            summary: summary(answer.group.unwrap_or_default()),
            assignor: Assignor::from_message(answer.assignor),
            members: answer.members.into_iter().map(member).collect(),
            backward_commits: answer.backward_commits,
        })
    }

    /// Forgets a group and its offsets.
    ///
    /// # Errors
    /// `GROUP_NOT_FOUND`, `GROUP_NOT_EMPTY`.
    pub async fn delete(&self, group: &str) -> Result<(), ClientError> {
        let request = v1::DeleteGroupRequest { group: group.to_owned() };
        call(&self.connection, self.connection.groups().delete_group(request)).await?;
        Ok(())
    }

    /// Makes a new group with the offsets of another, of these topics or (none named) of all. The other is
    /// left alone.
    ///
    /// # Errors
    /// `GROUP_NOT_FOUND`, `GROUP_EXISTS`.
    pub async fn clone_group(
        &self,
        source: &str,
        target: &str,
        topics: &[String],
    ) -> Result<Vec<CommittedOffset>, ClientError> {
        let (source, target) = (source.to_owned(), target.to_owned());
        let request = v1::CloneGroupRequest { source, target, topics: topics.to_vec() };
        let answer = call(&self.connection, self.connection.groups().clone_group(request)).await?;
        answer.offsets.into_iter().map(committed).collect()
    }

    /// Commits where a reader of one topic stands; all or the first refusal.
    pub(crate) async fn commit_positions(
        &self,
        group: &str,
        topic: &str,
        positions: &BTreeMap<PartitionIndex, Offset>,
    ) -> Result<(), ClientError> {
        let commits: Vec<_> = positions
            .iter()
            .map(|(partition, offset)| OffsetCommit {
                at: TopicPartition::new(topic, *partition),
                offset: Some(*offset),
                metadata: String::new(),
            })
            .collect();
        for answer in self.commit(group, &commits).await? {
            answer?;
        }
        Ok(())
    }
}

pub(crate) fn commit_message(commit: &OffsetCommit) -> v1::OffsetCommit {
    v1::OffsetCommit {
        topic: commit.at.topic.to_string(),
        partition: commit.at.partition.0,
        offset: commit.offset.map(Offset::get),
        metadata: commit.metadata.clone(),
    }
}

pub(crate) fn flags(result: v1::OffsetCommitResult) -> Result<CommitFlags, ClientError> {
    match result.error {
        Some(error) => {
            let error = ClientError::from(error);
            Err(error.with("topic", result.topic).with("partition", result.partition))
        }
        None => Ok(CommitFlags { below_log_start: result.below_log_start, backwards: result.backwards }),
    }
}

fn committed(message: v1::CommittedOffset) -> Result<CommittedOffset, ClientError> {
    let offset = message.offset.map(offset).transpose()?;
    Ok(CommittedOffset {
        at: TopicPartition::new(&message.topic, PartitionIndex(message.partition)),
        offset,
        metadata: message.metadata,
        committed: offset.map(|_| Timestamp(message.commit_time_ms)),
        below_log_start: message.below_log_start,
    })
}

fn summary(message: v1::GroupSummary) -> GroupSummary {
    let state = match v1::GroupState::try_from(message.state) {
        Ok(v1::GroupState::Empty) => GroupState::Empty,
        Ok(v1::GroupState::Stable) => GroupState::Stable,
        Ok(v1::GroupState::Reconciling) => GroupState::Reconciling,
        _ => GroupState::Unknown,
    };
    GroupSummary {
        group: message.group,
        state,
        members: message.members,
        epoch: message.group_epoch,
        topics: message.topics,
    }
}

fn member(message: v1::GroupMember) -> GroupMember {
    let given = |text: String| (!text.is_empty()).then_some(text);
    let places = |places: Vec<v1::TopicPartition>| places.into_iter().map(TopicPartition::from).collect();
    GroupMember {
        id: message.member_id,
        instance_id: given(message.instance_id),
        client_id: message.client_id,
        host: message.host,
        epoch: message.member_epoch,
        topics: message.topics,
        topic_prefix: given(message.topic_prefix),
        owned: places(message.owned),
        stopping: places(message.stopping),
        target: places(message.target),
        connected: message.connected,
        session_timeout: Duration::from_millis(message.session_timeout_ms.into()),
        joined: Timestamp(message.joined_ms),
    }
}

/// That a partition has no committed offset to begin at, and nobody has said where to begin instead.
pub(crate) fn start_needed(group: &str, topic: &str, partition: PartitionIndex) -> ClientError {
    let message = format!(
        "group {group} has no committed offset within the log of topic {topic}, partition {partition}; choose \
         where to begin: earliest, latest, or commit an offset"
    );
    ClientError::new(Code::FailedPrecondition, crate::reason::START_POSITION_NEEDED, message)
        .with("group", group)
        .with("topic", topic)
        .with("partition", partition)
}
