//! How far behind groups are, in records and in time, exactly: a table that is kept up behind the requests, and
//! the questions that read it.
//!
//! The table holds, for each partition that some group has committed in or owns, the ends of its log and what was
//! counted from each committed offset up to that end. Metrics show the commits and counts of one pass. A question
//! takes the commits as they are, and counts in those of its partitions that have moved since the table was filled:
//! an answer is exact for the end that it names, which is not older than the question. Not here: counting (the
//! store), what the numbers mean (`rimstone-state`), what is committed (`groups`).

mod measure;
mod query;
mod refresh;
mod table;
mod turns;

use std::{collections::BTreeSet, fmt, sync::Arc};

use rimstone_state::group::GroupError;
use rimstone_state::lag::{Lag, TopicLag, is_overtaken};
use rimstone_types::{GroupName, MemberId, Offset, PartitionIndex, Timestamp, TopicName};

pub(crate) use table::{LagTable, Row};

use crate::{
    broker::{Broker, Inner},
    error::{
        Details, Failure, GroupRequestError, LagError, LimitReached, PartitionReadError, Reason, ShuttingDown,
    },
};

/// Groups or topics that one request may name: far more than anybody types.
const NAMES_MAX: usize = 1_000;

/// Which lag.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LagRequest {
    /// Of which groups; empty: of all.
    pub groups: Vec<GroupName>,
    /// In which topics; empty: in all.
    pub topics: Vec<TopicName>,
}

/// An answer, in order of group, topic and partition.
#[derive(Debug, Clone)]
pub struct LagReport {
    /// Each partition.
    pub partitions: Vec<PartitionLag>,
    /// Sums per group and topic.
    pub topics: Vec<TopicSum>,
    /// The time that lag in time was taken at.
    pub measured: Timestamp,
}

/// The lag of a group in a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicSum {
    /// The group.
    pub group: GroupName,
    /// The topic.
    pub topic: TopicName,
    /// Over the partitions whose lag is known.
    pub lag: TopicLag,
    /// Partitions whose lag is not known.
    pub unknown: u32,
}

/// The lag of a group in a partition.
#[derive(Debug, Clone)]
pub struct PartitionLag {
    /// The group.
    pub group: GroupName,
    /// The topic.
    pub topic: TopicName,
    /// The partition.
    pub partition: PartitionIndex,
    /// What is committed, and when it was; `None`: nothing, and everything there is counts.
    pub committed: Option<(Offset, Timestamp)>,
    /// Who owns it at the moment.
    pub owner: Option<PartitionOwner>,
    /// The numbers, or why they are not known.
    pub measured: Result<MeasuredLag, LagUnknown>,
}

/// A member that owns a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionOwner {
    /// Its id.
    pub member: MemberId,
    /// What it says of itself; may be empty.
    pub client_id: String,
    /// Where it connects from; may be empty.
    pub host: String,
}

/// The numbers of one partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MeasuredLag {
    /// Log start.
    pub log_start: Offset,
    /// The end that readers see, for which the lag is exact.
    pub end: Offset,
    /// The lag.
    pub lag: Lag,
    /// Retention has overtaken the commit.
    pub below_log_start: bool,
}

/// Why the lag in a partition is not known: it is damaged, or unavailable, or was not counted in time.
#[derive(Debug, Clone)]
pub struct LagUnknown(pub(crate) Arc<PartitionReadError>);

impl fmt::Display for LagUnknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for LagUnknown {}

impl Failure for LagUnknown {
    fn reason(&self) -> Reason {
        self.0.reason()
    }

    fn details(&self) -> Details {
        self.0.details()
    }
}

impl Broker {
    /// The lag of groups. Reads the table, and counts in those partitions asked for that have moved since it was
    /// filled, so that what was committed or appended before the question is in the answer.
    ///
    /// # Errors
    /// [`LagError`]; partitions whose lag is not known, also because it was not counted within 5 s, say so in the
    /// answer.
    pub async fn lag(&self, request: LagRequest) -> Result<LagReport, LagError> {
        self.counted(self.inner.lag_report(request).await)
    }
}

impl Inner {
    async fn lag_report(&self, request: LagRequest) -> Result<LagReport, LagError> {
        self.refuse_when_stopping()?;
        if request.groups.len() > NAMES_MAX || request.topics.len() > NAMES_MAX {
            return Err(LimitReached { what: "names in one request", limit: NAMES_MAX as u64 }.into());
        }
        for topic in &request.topics {
            self.topics.get(topic)?;
        }
        let groups: BTreeSet<_> = request.groups.into_iter().collect();
        let topics: BTreeSet<_> = request.topics.into_iter().collect();
        let wanted = |topic: &TopicName| topics.is_empty() || topics.contains(topic);
        if groups.is_empty() {
            // Groups that nobody knows of yet must not pass for groups without lag.
            for shard in self.coordinator.not_loaded() {
                self.look(shard, |_| Ok(())).await?;
            }
        }
        for group in &groups {
            // One without offsets and without partitions has no rows; one that is being loaded has none yet.
            if !self.commits.read(|groups| groups.contains_key(group))
                && self.group_offsets(group).await?.is_none()
            {
                return Err(GroupRequestError::from(GroupError::NotFound { group: group.clone() }).into());
            }
        }
        let standing = self.standing(&groups);
        let limit = self.config.limits.lag_partitions;
        if standing.count(&self.topics, wanted) > limit {
            return Err(LimitReached { what: "partitions in one answer of lag", limit: limit as u64 }.into());
        }
        let measured = tokio::select! {
            measured = self.measured(standing.partitions(&self.topics, wanted)) => measured,
            () = self.shutdown.cancelled() => return Err(ShuttingDown.into()),
        };
        let rows = standing.rows(&self.topics, wanted, |id| measured.get(&id).map(|measured| &**measured));
        let now = self.clock.now();
        let topics = topic_sums(&rows, now);
        let partitions = rows.into_iter().map(|row| partition_lag(row, now)).collect();
        Ok(LagReport { partitions, topics, measured: now })
    }
}

/// Sums over rows in order.
pub(crate) fn topic_sums(rows: &[Row], now: Timestamp) -> Vec<TopicSum> {
    let mut sums: Vec<TopicSum> = Vec::new();
    for row in rows {
        if sums.last().is_none_or(|sum| (&sum.group, &sum.topic) != (&row.group, &row.topic)) {
            let (group, topic) = (row.group.clone(), row.topic.clone());
            sums.push(TopicSum { group, topic, lag: TopicLag::default(), unknown: 0 });
        }
        let sum = sums.last_mut().expect("one was pushed if there was none");
        match row.lag(now) {
            Some(lag) => sum.lag.add(lag),
            None => sum.unknown += 1,
        }
    }
    sums
}

fn partition_lag(row: Row, now: Timestamp) -> PartitionLag {
    let committed = row.commit.map(|commit| (commit.offset, commit.time));
    let measured = row.counted.map(|counted| MeasuredLag {
        log_start: counted.start,
        end: counted.end,
        lag: counted.unread.at(now),
        below_log_start: is_overtaken(committed.map(|(offset, _)| offset), counted.start),
    });
    let owner = row.owner.map(|owner| PartitionOwner {
        member: owner.member.clone(),
        client_id: owner.client_id.clone(),
        host: owner.host.clone(),
    });
    let Row { group, topic, partition, .. } = row;
    PartitionLag { group, topic, partition, committed, owner, measured }
}

#[cfg(test)]
mod tests;
