//! Groups as clients ask for them: commits, committed offsets, listings, deletion, clones. Not here: deciding
//! (`rimstone-state`), the shards that drive it (`coordinator`), sessions of members (`member`).

mod commits;
mod offsets;

use std::{collections::BTreeSet, sync::Arc};

use rimstone_state::group::{Description, GroupError, ImportOffset, ImportTo, OffsetValue, Summary};
use rimstone_types::{GroupEpoch, GroupName, MemberId, Offset, PartitionIndex, TopicName};

pub(crate) use commits::{Commit, CommitChange, CommitTable, GroupCommits, Owner, Owners, PartitionCommit};
pub(crate) use offsets::{Begun, Committing, GroupOffset, GroupOffsets, Importing, ToBegin, begin, commit};

use crate::{
    broker::{Broker, Inner},
    coordinator::{SHARDS, shard_of},
    error::{GroupRequestError, InvalidRequest, LimitReached, OffsetCommitError},
    reserve::Reservation,
};

/// An offset to commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OffsetToCommit {
    /// The topic.
    pub topic: TopicName,
    /// The partition.
    pub partition: PartitionIndex,
    /// The next offset to read; `None`: what is committed is taken away.
    pub offset: Option<Offset>,
    /// For the reader's own use.
    pub metadata: String,
}

/// A commit without a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommitRequest {
    /// The group.
    pub group: GroupName,
    /// The member that commits, and its epoch; `None`: from outside.
    pub member: Option<(MemberId, GroupEpoch)>,
    /// What.
    pub offsets: Vec<OffsetToCommit>,
}

/// What became of one offset.
#[derive(Debug)]
pub struct OffsetCommitted {
    /// The topic.
    pub topic: TopicName,
    /// The partition.
    pub partition: PartitionIndex,
    /// Durable, or why it was refused.
    pub result: Result<rimstone_state::group::Committed, OffsetCommitError>,
}

/// What is committed for a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommittedOffset {
    /// The topic.
    pub topic: TopicName,
    /// The partition.
    pub partition: PartitionIndex,
    /// `None`: nothing is.
    pub value: Option<OffsetValue>,
    /// Log start has overtaken it.
    pub below_log_start: bool,
}

/// A group with its members.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupDescription {
    /// What is decided.
    pub group: Description,
    /// The members whose stream is open.
    pub connected: BTreeSet<MemberId>,
    /// Commits of members that went backwards since the group was loaded.
    pub backward_commits: u64,
}

impl Broker {
    /// Commits offsets, each judged by itself; results in the order of the request, durable. From outside it
    /// makes the group if there is none. `room`: for the request's bytes, held until the answer.
    ///
    /// # Errors
    /// [`GroupRequestError`]; with [`GroupRequestError::Append`] some or all may be committed.
    pub async fn commit_offsets(
        &self,
        request: CommitRequest,
        room: Reservation,
    ) -> Result<Vec<OffsetCommitted>, GroupRequestError> {
        let committed = self.counted(self.inner.commit_offsets(request).await);
        drop(room);
        committed
    }

    /// The committed offsets of a group, for the partitions named and in their order; `partitions` empty: all
    /// that there are, in order of topic and partition. A group that does not exist has none.
    ///
    /// # Errors
    /// [`GroupRequestError`].
    pub async fn fetch_offsets(
        &self,
        group: &GroupName,
        partitions: Vec<(TopicName, PartitionIndex)>,
    ) -> Result<Vec<CommittedOffset>, GroupRequestError> {
        self.counted(self.inner.fetch_offsets(group, partitions).await)
    }

    /// The groups whose names begin with `prefix`, in order of their names.
    ///
    /// # Errors
    /// [`GroupRequestError`], [`GroupRequestError::Limit`] if they are too many for one answer.
    pub async fn list_groups(&self, prefix: &str) -> Result<Vec<Summary>, GroupRequestError> {
        self.counted(self.inner.list_groups(prefix).await)
    }

    /// A group with its members.
    ///
    /// # Errors
    /// [`GroupRequestError`].
    pub async fn describe_group(&self, group: &GroupName) -> Result<GroupDescription, GroupRequestError> {
        self.counted(self.inner.describe_group(group).await)
    }

    /// Forgets a group and its offsets.
    ///
    /// # Errors
    /// [`GroupRequestError`]; a group with members is refused.
    pub async fn delete_group(&self, group: &GroupName) -> Result<(), GroupRequestError> {
        self.counted(self.inner.delete_group(group).await)
    }

    /// Makes the group `target` with the offsets of `source`, which is left alone; `topics` empty: of all.
    /// Answers what was copied.
    ///
    /// # Errors
    /// [`GroupRequestError`].
    pub async fn clone_group(
        &self,
        source: &GroupName,
        target: &GroupName,
        topics: &[TopicName],
    ) -> Result<Vec<CommittedOffset>, GroupRequestError> {
        self.counted(self.inner.clone_group(source, target, topics).await)
    }
}

impl Inner {
    fn check_count(&self, count: usize) -> Result<(), GroupRequestError> {
        let limit = self.config.limits.offsets_per_request;
        if count > limit {
            return Err(LimitReached { what: "offsets in one request", limit: limit as u64 }.into());
        }
        Ok(())
    }

    async fn commit_offsets(
        self: &Arc<Self>,
        request: CommitRequest,
    ) -> Result<Vec<OffsetCommitted>, GroupRequestError> {
        self.refuse_when_stopping()?;
        self.check_count(request.offsets.len())?;
        self.ensure_coordinator().await?;
        let CommitRequest { group, member, offsets } = request;
        let by = member.map_or(Committing::Outside, |(member, epoch)| Committing::Member(member, epoch));
        let asked = group.clone();
        let committed = self.decide(&group, move |now| commit(now, &asked, by, offsets)).await?;
        self.count_commits(&group, &committed);
        Ok(committed)
    }

    /// Counts what was committed, once it is durable.
    pub(crate) fn count_commits(&self, group: &GroupName, committed: &[OffsetCommitted]) {
        let done = committed.iter().filter_map(|offset| offset.result.as_ref().ok());
        let backwards = done.clone().filter(|committed| committed.backwards).count() as u64;
        self.metrics.groups.commits.inc_by(done.count() as u64);
        if backwards > 0 {
            self.metrics.groups.backward_commits.inc_by(backwards);
            self.coordinator.count_backwards(group, backwards);
        }
        for error in committed.iter().filter_map(|offset| offset.result.as_ref().err()) {
            self.metrics.error(error);
        }
    }

    async fn fetch_offsets(
        &self,
        group: &GroupName,
        partitions: Vec<(TopicName, PartitionIndex)>,
    ) -> Result<Vec<CommittedOffset>, GroupRequestError> {
        self.refuse_when_stopping()?;
        self.check_count(partitions.len())?;
        if !self.coordinator.is_used() {
            let none = |(topic, partition)| CommittedOffset {
                topic,
                partition,
                value: None,
                below_log_start: false,
            };
            return Ok(partitions.into_iter().map(none).collect());
        }
        let asked = group.clone();
        self.look(shard_of(group), move |now| Ok(offsets::committed(now, &asked, partitions))).await
    }

    async fn list_groups(&self, prefix: &str) -> Result<Vec<Summary>, GroupRequestError> {
        self.refuse_when_stopping()?;
        if !self.coordinator.is_used() {
            return Ok(Vec::new());
        }
        let limit = self.config.limits.listed_groups;
        let list = |shard| {
            let prefix = prefix.to_owned();
            self.look(shard, move |now| Ok(now.groups.list(&prefix).take(limit + 1).collect::<Vec<_>>()))
        };
        let mut groups = futures::future::try_join_all((0..SHARDS.get()).map(list)).await?.concat();
        if groups.len() > limit {
            let what = "groups in one answer (name a longer prefix)";
            return Err(LimitReached { what, limit: limit as u64 }.into());
        }
        groups.sort_by(|a, b| a.group.cmp(&b.group));
        Ok(groups)
    }

    async fn describe_group(&self, group: &GroupName) -> Result<GroupDescription, GroupRequestError> {
        self.refuse_when_stopping()?;
        self.refuse_unused(group)?;
        let asked = group.clone();
        let look = self.look(shard_of(group), move |now| {
            let description = now.groups.describe(&asked)?;
            let members = description.members.iter().map(|member| &member.member);
            let connected = members.filter(|member| now.is_connected(&asked, member)).cloned().collect();
            Ok((description, connected))
        });
        let (description, connected) = look.await?;
        let backward_commits = self.coordinator.backwards(group);
        Ok(GroupDescription { group: description, connected, backward_commits })
    }

    /// Where there never was a group, there is not this one.
    fn refuse_unused(&self, group: &GroupName) -> Result<(), GroupError> {
        if self.coordinator.is_used() { Ok(()) } else { Err(GroupError::NotFound { group: group.clone() }) }
    }

    async fn delete_group(&self, group: &GroupName) -> Result<(), GroupRequestError> {
        self.refuse_when_stopping()?;
        self.refuse_unused(group)?;
        let asked = group.clone();
        self.decide(group, move |now| Ok(now.groups.delete_group(&asked)?)).await
    }

    async fn clone_group(
        self: &Arc<Self>,
        source: &GroupName,
        target: &GroupName,
        topics: &[TopicName],
    ) -> Result<Vec<CommittedOffset>, GroupRequestError> {
        self.check_count(topics.len())?;
        let wanted = |topic: &TopicName| topics.is_empty() || topics.contains(topic);
        let found = self.group_offsets(source).await?;
        let found = found.ok_or_else(|| GroupError::NotFound { group: source.clone() })?;
        let copied: Vec<_> = found.offsets.into_iter().filter(|offset| wanted(&offset.topic)).collect();
        if copied.is_empty() {
            let of = if topics.is_empty() { "" } else { " of these topics" };
            let why = format!("group {source} has committed no offsets{of}: there is nothing to clone");
            return Err(InvalidRequest::new(why).into());
        }
        let import = |offset: &GroupOffset| ImportOffset {
            topic: offset.topic.clone(),
            partition: offset.partition,
            value: Some(offset.value.clone()),
        };
        let offsets = copied.iter().map(import).collect();
        self.import_offsets(Importing { group: target.clone(), to: ImportTo::New, offsets, unchanged: None })
            .await?;
        Ok(copied.into_iter().map(|offset| self.as_committed(offset)).collect())
    }

    fn as_committed(&self, GroupOffset { topic, partition, value }: GroupOffset) -> CommittedOffset {
        let below_log_start = offsets::is_below_start(self, &topic, partition, &value);
        CommittedOffset { topic, partition, value: Some(value), below_log_start }
    }

    /// All offsets of a group, and how many members it has; `None` if it does not exist.
    pub(crate) async fn group_offsets(
        &self,
        group: &GroupName,
    ) -> Result<Option<GroupOffsets>, GroupRequestError> {
        self.refuse_when_stopping()?;
        if !self.coordinator.is_used() {
            return Ok(None);
        }
        let asked = group.clone();
        self.look(shard_of(group), move |now| Ok(offsets::of_group(now, &asked))).await
    }

    /// Sets offsets of a group without looking at the log, all or none.
    pub(crate) async fn import_offsets(self: &Arc<Self>, import: Importing) -> Result<(), GroupRequestError> {
        self.refuse_when_stopping()?;
        self.ensure_coordinator().await?;
        let group = import.group.clone();
        self.decide(&group, move |now| offsets::import(now, import)).await
    }
}

#[cfg(test)]
mod tests;
