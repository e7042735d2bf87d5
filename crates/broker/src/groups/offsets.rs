//! Offsets between the topics that there are and the deciders: what runs within a shard.

use rimstone_state::group::{
    self, CommitOffset, Committer, Decision, Import, ImportOffset, ImportTo, OffsetValue,
};
use rimstone_store::Visibility;
use rimstone_types::{GroupEpoch, GroupName, MemberId, Offset, PartitionIndex, TopicName};

use super::{CommittedOffset, OffsetCommitted, OffsetToCommit};
use crate::{
    broker::Inner,
    coordinator::Now,
    error::{
        CoordinatorLoading, GroupRequestError, OffsetCommitError, PlanChanged, SessionFenced,
        SessionFencedWhy,
    },
    read::visible_end,
};

/// Who commits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Committing {
    /// Nobody in particular.
    Outside,
    /// A member, with the epoch that it says.
    Member(MemberId, GroupEpoch),
    /// A member through a session, which must be its present one.
    Session(MemberId, u64),
}

/// An offset as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GroupOffset {
    pub(crate) topic: TopicName,
    pub(crate) partition: PartitionIndex,
    pub(crate) value: OffsetValue,
}

/// All offsets of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GroupOffsets {
    /// How many members it has.
    pub(crate) members: usize,
    /// In order of topic and partition.
    pub(crate) offsets: Vec<GroupOffset>,
}

/// Offsets to be set from outside.
#[derive(Debug, Clone)]
pub(crate) struct Importing {
    pub(crate) group: GroupName,
    pub(crate) to: ImportTo,
    pub(crate) offsets: Vec<ImportOffset>,
    /// Only if these are still all offsets of the group: [`PlanChanged`] otherwise.
    pub(crate) unchanged: Option<Vec<GroupOffset>>,
}

/// A partition whose reader begins at a committed place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ToBegin {
    pub(crate) topic: TopicName,
    pub(crate) partition: PartitionIndex,
    /// Where it begins if nothing usable is committed: there was no record to choose from. `None`: where the start
    /// policy `latest` says.
    pub(crate) at: Option<Offset>,
}

/// Where reading begins: what is committed, and durable when this is heard of.
#[derive(Debug)]
pub(crate) struct Begun {
    pub(crate) topic: TopicName,
    pub(crate) partition: PartitionIndex,
    pub(crate) result: Result<Offset, OffsetCommitError>,
}

/// Decides where a member begins under the start policy `latest`, and commits it. What is committed and lies
/// in the log stays. A partition that was made while the group was subscribed is read from its start, for all of
/// it came later; any other from its end.
pub(crate) fn begin(
    now: &Now<'_>,
    group: &GroupName,
    (member, token): (&MemberId, u64),
    visibility: Visibility,
    partitions: Vec<ToBegin>,
) -> Result<Decision<Vec<Begun>>, GroupRequestError> {
    now.check_session(group, member, token)?;
    let mut begun = Vec::with_capacity(partitions.len());
    let (mut offsets, mut of) = (Vec::new(), Vec::new());
    for ToBegin { topic, partition, at } in partitions {
        let to_commit =
            OffsetToCommit { topic: topic.clone(), partition, offset: None, metadata: String::new() };
        let result = look_up(now.inner, to_commit).map(|mut found| {
            let (start, end) = (found.ends.start, visible_end(found.ends, visibility));
            let committed = now.groups.offset(group, &topic, found.topic_id, partition);
            let is_later = || now.groups.is_later(group, &topic, found.topic_id, partition);
            match committed.map(|value| value.offset) {
                Some(committed) if start <= committed && committed <= end => return committed,
                None if at.is_none() && is_later() => found.offset = Some(start),
                _ => found.offset = Some(at.unwrap_or(end)),
            }
            let at = found.offset.expect("it was set");
            offsets.push(found);
            of.push(begun.len());
            at
        });
        begun.push(Begun { topic, partition, result });
    }
    let commit = group::Commit { group, by: Committer::Session(member), keeps_place: true, offsets };
    let Decision { records, answer } = now.groups.commit(commit, now.time)?;
    for (judged, index) in answer.into_iter().zip(of) {
        if let Err(refused) = judged {
            begun[index].result = Err(refused.into());
        }
    }
    Ok(Decision { records, answer: begun })
}

/// Decides a commit. Topics are looked up now, so that an offset is never kept for a topic that is gone.
pub(crate) fn commit(
    now: &Now<'_>,
    group: &GroupName,
    by: Committing,
    offsets: Vec<OffsetToCommit>,
) -> Result<Decision<Vec<OffsetCommitted>>, GroupRequestError> {
    let (by, keeps_place) = match &by {
        Committing::Outside => (Committer::Outside, false),
        Committing::Member(member, epoch) => {
            (Committer::Member(member, *epoch), now.reads_latest(group, member))
        }
        Committing::Session(member, token) => {
            now.check_session(group, member, *token)?;
            (Committer::Session(member), now.reads_latest(group, member))
        }
    };
    let (mut named, mut found, mut results) = (Vec::new(), Vec::new(), Vec::new());
    for offset in offsets {
        named.push((offset.topic.clone(), offset.partition));
        results.push(match look_up(now.inner, offset) {
            Ok(offset) => {
                found.push(offset);
                None
            }
            Err(error) => Some(error),
        });
    }
    let Decision { records, answer } =
        now.groups.commit(group::Commit { group, by, keeps_place, offsets: found }, now.time)?;
    let mut judged = answer.into_iter();
    let results = results.into_iter().map(|refused| match refused {
        Some(error) => Err(error),
        None => judged.next().expect("a result for each offset").map_err(OffsetCommitError::from),
    });
    let answer = named
        .into_iter()
        .zip(results)
        .map(|((topic, partition), result)| OffsetCommitted { topic, partition, result })
        .collect();
    Ok(Decision { records, answer })
}

fn look_up(inner: &Inner, offset: OffsetToCommit) -> Result<CommitOffset, OffsetCommitError> {
    let OffsetToCommit { topic, partition, offset, metadata } = offset;
    let found = inner.topics.get(&topic)?;
    let ends = found.partition(partition)?.ends();
    Ok(CommitOffset { topic, topic_id: found.id, partition, offset, metadata, leader_epoch: None, ends })
}

/// What is committed, for the partitions named or for all.
pub(super) fn committed(
    now: &Now<'_>,
    group: &GroupName,
    partitions: Vec<(TopicName, PartitionIndex)>,
) -> Vec<CommittedOffset> {
    let line = |topic: TopicName, partition, value: Option<OffsetValue>| {
        let below = value.as_ref().is_some_and(|value| is_below_start(now.inner, &topic, partition, value));
        CommittedOffset { topic, partition, value, below_log_start: below }
    };
    if partitions.is_empty() {
        let all = now.groups.offsets(group, now.topics());
        return all
            .map(|(topic, partition, value)| line(topic.clone(), partition, Some(value.clone())))
            .collect();
    }
    let named = partitions.into_iter().map(|(topic, partition)| {
        let id = now.topics().get(&topic).map(|(id, _)| id);
        let value = id.and_then(|id| now.groups.offset(group, &topic, id, partition)).cloned();
        line(topic, partition, value)
    });
    named.collect()
}

/// Whether log start has overtaken an offset.
pub(super) fn is_below_start(
    inner: &Inner,
    topic: &TopicName,
    partition: PartitionIndex,
    value: &OffsetValue,
) -> bool {
    let topic = inner.topics.get(topic).ok().filter(|topic| topic.id == value.topic_id);
    let start = topic.and_then(|topic| topic.partition(partition).ok().map(|store| store.ends().start));
    start.is_some_and(|start| value.offset < start)
}

/// All offsets of a group.
pub(super) fn of_group(now: &Now<'_>, group: &GroupName) -> Option<GroupOffsets> {
    now.groups
        .contains(group)
        .then(|| GroupOffsets { members: now.groups.members(group).count(), offsets: all(now, group) })
}

fn all(now: &Now<'_>, group: &GroupName) -> Vec<GroupOffset> {
    let offsets = now.groups.offsets(group, now.topics());
    let kept = |(topic, partition, value): (&TopicName, PartitionIndex, &OffsetValue)| GroupOffset {
        topic: topic.clone(),
        partition,
        value: value.clone(),
    };
    offsets.map(kept).collect()
}

/// Decides an import.
pub(super) fn import(now: &Now<'_>, import: Importing) -> Result<Decision<()>, GroupRequestError> {
    let Importing { group, to, offsets, unchanged } = import;
    if unchanged.is_some_and(|unchanged| unchanged != all(now, &group)) {
        return Err(PlanChanged { group }.into());
    }
    Ok(now.groups.import_offsets(Import { group: &group, to, offsets })?)
}

impl Now<'_> {
    /// Whether a session is still its member's.
    ///
    /// # Errors
    /// [`GroupRequestError`]: [`SessionFenced`], or [`CoordinatorLoading`] where no session has come in its place:
    /// the member may come back.
    pub(crate) fn check_session(
        &self,
        group: &GroupName,
        member: &MemberId,
        token: u64,
    ) -> Result<(), GroupRequestError> {
        if self.is_session(group, member, token) {
            return Ok(());
        }
        let why = match self.groups.member(group, member) {
            Some(_) if !self.is_connected(group, member) => return Err(CoordinatorLoading.into()),
            Some(_) => SessionFencedWhy::Replaced,
            None => SessionFencedWhy::Removed,
        };
        Err(SessionFenced { group: group.clone(), member: member.clone(), why }.into())
    }
}
