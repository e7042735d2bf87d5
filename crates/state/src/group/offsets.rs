//! Committing, importing and deleting offsets.

use std::collections::BTreeMap;

use rimstone_types::{
    GroupEpoch, GroupName, LogEnds, MemberId, Offset, PartitionIndex, Timestamp, TopicId, TopicName,
};

use super::{
    DECISION_BYTES_MAX, METADATA_BYTES_MAX, OFFSETS_PER_GROUP_MAX,
    error::{CommitError, FencedBecause, GroupError},
    record::{GroupRecord, OffsetValue},
    state::{Decision, Group, Groups, Member, Topics},
};

/// Who commits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Committer<'a> {
    /// Nobody in particular: allowed while the group has no members.
    Outside,
    /// A member on its stream. The caller vouches that this stream is the member's present session.
    Session(&'a MemberId),
    /// A member with its epoch, which must be the current one.
    Member(&'a MemberId, GroupEpoch),
}

/// A commit of one or more offsets; each is judged by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit<'a> {
    /// The group; from outside, one that does not exist is made.
    pub group: &'a GroupName,
    /// Who commits.
    pub by: Committer<'a>,
    /// Who commits reads under the start policy `latest`: what it commits below log start does not replace a place in
    /// the log, which is where that policy has said to go on.
    pub keeps_place: bool,
    /// What. A partition that is named twice gets the last.
    pub offsets: Vec<CommitOffset>,
}

/// One offset to commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommitOffset {
    /// The topic.
    pub topic: TopicName,
    /// The topic of this name at present.
    pub topic_id: TopicId,
    /// The partition; it exists.
    pub partition: PartitionIndex,
    /// The next offset to read. `None`: what is committed is taken away.
    pub offset: Option<Offset>,
    /// For the reader's own use.
    pub metadata: String,
    /// Of the leader that the record before it was read from, where the reader says so.
    pub leader_epoch: Option<u32>,
    /// The log at present.
    pub ends: LogEnds,
}

/// What became of one offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Committed {
    /// It lies below log start.
    pub below_log_start: bool,
    /// It lies before what was committed until now (in this topic, not in an earlier one of its name).
    pub backwards: bool,
}

/// Which groups offsets may be imported into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImportTo {
    /// Only one that does not exist.
    New,
    /// One without members, or one that does not exist.
    NoMembers,
}

/// Sets offsets of a group without looking at the log: clones, replays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Import<'a> {
    /// The group.
    pub group: &'a GroupName,
    /// Which groups it may be.
    pub to: ImportTo,
    /// Offsets that are not named stay as they are.
    pub offsets: Vec<ImportOffset>,
}

/// One offset to import.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportOffset {
    /// The topic.
    pub topic: TopicName,
    /// The partition.
    pub partition: PartitionIndex,
    /// `None` takes away what is committed.
    pub value: Option<OffsetValue>,
}

impl Groups {
    /// Judges a commit offset by offset, results in their order. Costs as much as its offsets, however large
    /// the group. The rules are Kafka's GroupCoordinator's (a commit may lie below log start; beyond the end
    /// it is refused), but for [`Commit::keeps_place`].
    ///
    /// # Errors
    /// [`GroupError::NotEmpty`] from outside while there are members, [`GroupError::Fenced`] for an unknown
    /// member or a stale epoch, [`GroupError::Limit`].
    pub fn commit(
        &self,
        commit: Commit<'_>,
        now: Timestamp,
    ) -> Result<Decision<Vec<Result<Committed, CommitError>>>, GroupError> {
        let group = self.groups.get(commit.group);
        let member = self.committer(group, &commit)?;
        if group.is_none() {
            self.check_room(commit.group)?;
        }
        let mut records = BTreeMap::new();
        let mut count = group.map_or(0, |group| group.offset_count);
        let mut answer = Vec::with_capacity(commit.offsets.len());
        for offset in commit.offsets {
            let before = group.and_then(|group| group.offsets.get(&offset.topic)?.get(&offset.partition));
            let result = judge(&offset, member, before).and_then(|committed| {
                let key = (offset.topic.clone(), offset.partition);
                let until_now = records.get(&key).map_or(before, Option::as_ref);
                if commit.keeps_place && keeps(until_now, &offset) {
                    return Ok(committed);
                }
                let is_there = match records.get(&key) {
                    Some(value) => Option::is_some(value),
                    None => before.is_some(),
                };
                match (is_there, offset.offset.is_some()) {
                    (false, true) if count >= OFFSETS_PER_GROUP_MAX => return Err(too_many(&offset)),
                    (false, true) => count += 1,
                    (true, false) => count -= 1,
                    _ => {}
                }
                let value = offset.offset.map(|at| OffsetValue {
                    topic_id: offset.topic_id,
                    offset: at,
                    leader_epoch: offset.leader_epoch,
                    metadata: offset.metadata,
                    commit_time_ms: now,
                });
                records.insert(key, value);
                Ok(committed)
            });
            answer.push(result);
        }
        let records = records
            .into_iter()
            .filter(|((topic, partition), value)| {
                value.is_some() || group.is_some_and(|group| group.has_offset(topic, *partition))
            })
            .map(|((topic, partition), value)| (topic, partition, value));
        let mut records = offset_records(commit.group, records)?;
        records.extend(self.forget_without_offsets(commit.group, count));
        Ok(Decision { records, answer })
    }

    /// The records that forget a group that nobody is in, if this many offsets are none.
    fn forget_without_offsets(&self, name: &GroupName, offsets: usize) -> Vec<GroupRecord> {
        match self.groups.get(name).filter(|group| group.goes_with(group.live_count(), offsets)) {
            Some(group) => self.forget(name, group),
            None => Vec::new(),
        }
    }

    /// The member that commits, if it is one.
    fn committer<'g>(
        &self,
        group: Option<&'g Group>,
        commit: &Commit<'_>,
    ) -> Result<Option<&'g Member>, GroupError> {
        let (id, given) = match commit.by {
            Committer::Outside => match group.map_or(0, Group::live_count) {
                0 => return Ok(None),
                members => return Err(GroupError::NotEmpty { group: commit.group.clone(), members }),
            },
            Committer::Session(id) => (id, None),
            Committer::Member(id, epoch) => (id, Some(epoch)),
        };
        let fenced =
            |because| GroupError::Fenced { group: commit.group.clone(), member: id.clone(), because };
        let (group, member) = group
            .and_then(|group| Some((group, group.members.get(id).filter(|member| member.value.is_some())?)))
            .ok_or_else(|| fenced(FencedBecause::UnknownMember))?;
        let current = group.member_epoch(member);
        match given {
            Some(given) if given != current => Err(fenced(FencedBecause::StaleEpoch { given, current })),
            _ => Ok(Some(member)),
        }
    }

    /// Sets offsets of a group that nobody is in, all or none.
    ///
    /// # Errors
    /// [`GroupError::Exists`], [`GroupError::NotEmpty`], [`GroupError::Limit`].
    pub fn import_offsets(&self, import: Import<'_>) -> Result<Decision<()>, GroupError> {
        let group = self.groups.get(import.group);
        match group {
            Some(_) if import.to == ImportTo::New => {
                return Err(GroupError::Exists { group: import.group.clone() });
            }
            Some(group) if group.live_count() > 0 => {
                let members = group.live_count();
                return Err(GroupError::NotEmpty { group: import.group.clone(), members });
            }
            Some(_) => {}
            None => self.check_room(import.group)?,
        }
        let offsets: BTreeMap<_, _> = import
            .offsets
            .into_iter()
            .map(|offset| ((offset.topic, offset.partition), offset.value))
            .collect();
        let is_there =
            |topic: &TopicName, partition| group.is_some_and(|group| group.has_offset(topic, partition));
        let added = offsets
            .iter()
            .filter(|((topic, index), value)| value.is_some() && !is_there(topic, *index))
            .count();
        let taken = offsets
            .iter()
            .filter(|((topic, index), value)| value.is_none() && is_there(topic, *index))
            .count();
        let would_be = group.map_or(0, |group| group.offset_count) + added - taken;
        if added > 0 && would_be > OFFSETS_PER_GROUP_MAX {
            let limit = OFFSETS_PER_GROUP_MAX;
            return Err(GroupError::Limit { group: import.group.clone(), what: "offsets", would_be, limit });
        }
        let records = offsets
            .into_iter()
            .filter(|((topic, index), value)| value.is_some() || is_there(topic, *index))
            .map(|((topic, partition), value)| (topic, partition, value));
        let mut records = offset_records(import.group, records)?;
        records.extend(self.forget_without_offsets(import.group, would_be));
        Ok(Decision { records, answer: () })
    }

    /// Forgets a group and its offsets.
    ///
    /// # Errors
    /// [`GroupError::NotFound`], [`GroupError::NotEmpty`].
    pub fn delete_group(&self, name: &GroupName) -> Result<Decision<()>, GroupError> {
        let group = self.group(name)?;
        match group.live_count() {
            0 => {}
            members => return Err(GroupError::NotEmpty { group: name.clone(), members }),
        }
        let offsets = group
            .offsets
            .iter()
            .flat_map(|(topic, of)| of.keys().map(|&partition| (topic.clone(), partition, None)));
        let mut records = offset_records(name, offsets)?;
        records.extend(self.forget(name, group));
        Ok(Decision { records, answer: () })
    }

    /// A committed offset; `None` too if it was committed to another topic of this name.
    pub fn offset(
        &self,
        group: &GroupName,
        topic: &TopicName,
        topic_id: TopicId,
        partition: PartitionIndex,
    ) -> Option<&OffsetValue> {
        let value = self.groups.get(group)?.offsets.get(topic)?.get(&partition)?;
        (value.topic_id == topic_id).then_some(value)
    }

    /// All committed offsets of a group in order, without those of topics that are no more.
    pub fn offsets<'a>(
        &'a self,
        group: &GroupName,
        topics: &'a dyn Topics,
    ) -> impl Iterator<Item = (&'a TopicName, PartitionIndex, &'a OffsetValue)> + use<'a> {
        let by_topic = self.groups.get(group).into_iter().flat_map(|group| &group.offsets);
        by_topic.flat_map(move |(name, of)| {
            let present = topics.get(name).map(|(id, _)| id);
            of.iter()
                .filter(move |(_, value)| present == Some(value.topic_id))
                .map(move |(&partition, value)| (name, partition, value))
        })
    }
}

impl Group {
    pub(super) fn has_offset(&self, topic: &TopicName, partition: PartitionIndex) -> bool {
        self.offsets.get(topic).is_some_and(|of| of.contains_key(&partition))
    }
}

fn too_many(offset: &CommitOffset) -> CommitError {
    let (topic, partition) = (offset.topic.clone(), offset.partition);
    CommitError::TooMany { topic, partition, limit: OFFSETS_PER_GROUP_MAX }
}

/// Whether one offset may be committed, over what is there `before`.
fn judge(
    offset: &CommitOffset,
    member: Option<&Member>,
    before: Option<&OffsetValue>,
) -> Result<Committed, CommitError> {
    let topic = || offset.topic.clone();
    let partition = offset.partition;
    if let Some(member) = member {
        let held = member.assignment.as_ref().is_some_and(|assignment| {
            assignment.owned.contains_id(&offset.topic, offset.topic_id, partition)
                || assignment.stopping.contains_id(&offset.topic, offset.topic_id, partition)
        });
        if !held {
            return Err(CommitError::NotOwned { topic: topic(), partition });
        }
    }
    let bytes = offset.metadata.len();
    if bytes > METADATA_BYTES_MAX {
        let limit = METADATA_BYTES_MAX;
        return Err(CommitError::MetadataTooLong { topic: topic(), partition, bytes, limit });
    }
    let Some(at) = offset.offset else { return Ok(Committed::default()) };
    if at > offset.ends.durable {
        return Err(CommitError::BeyondEnd { topic: topic(), partition, offset: at, ends: offset.ends });
    }
    let backwards = before.is_some_and(|before| before.topic_id == offset.topic_id && at < before.offset);
    Ok(Committed { below_log_start: at < offset.ends.start, backwards })
}

/// Whether a place in the log stays where it is, for what is to be committed lies below log start.
fn keeps(place: Option<&OffsetValue>, offset: &CommitOffset) -> bool {
    let LogEnds { start, durable, .. } = offset.ends;
    let is_below = offset.offset.is_some_and(|at| at < start);
    let is_in_the_log = |place: &OffsetValue| {
        place.topic_id == offset.topic_id && start <= place.offset && place.offset <= durable
    };
    is_below && place.is_some_and(is_in_the_log)
}

/// The records for offsets, if they fit one decision.
fn offset_records(
    group: &GroupName,
    offsets: impl Iterator<Item = (TopicName, PartitionIndex, Option<OffsetValue>)>,
) -> Result<Vec<GroupRecord>, GroupError> {
    let mut bytes = 0;
    let mut records = Vec::new();
    for (topic, partition, value) in offsets {
        bytes += OFFSET_BYTES + group.as_str().len() + topic.as_str().len();
        bytes += value.as_ref().map_or(0, |value| escaped_bytes(&value.metadata));
        records.push(GroupRecord::Offset { group: group.clone(), topic, partition, value });
    }
    if bytes > DECISION_BYTES_MAX {
        let (what, limit) = ("bytes of offsets in one decision", DECISION_BYTES_MAX);
        return Err(GroupError::Limit { group: group.clone(), what, would_be: bytes, limit });
    }
    Ok(records)
}

/// Upper bound of what the record of an offset takes beside names and metadata: the fields' names (about 100
/// bytes), a topic id (36), four numbers (at most 20 each), and the record's own framing (about 20).
pub(super) const OFFSET_BYTES: usize = 250;

/// The bytes of a text in JSON.
fn escaped_bytes(text: &str) -> usize {
    text.bytes()
        .map(|byte| match byte {
            0..0x20 => 6,
            b'"' | b'\\' => 2,
            _ => 1,
        })
        .sum()
}
