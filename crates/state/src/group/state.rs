//! The state of a shard, and the one function that changes it.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    sync::Arc,
};

use rimstone_types::{GroupEpoch, GroupName, InstanceId, MemberId, PartitionIndex, TopicId, TopicName};

use super::{
    error::GroupError,
    partitions::Partitions,
    record::{AssignmentValue, GroupRecord, GroupValue, MemberValue, OffsetValue, TargetValue, TopicCount},
};

/// What a decider answers: records, to be written as one batch and replayed, and what to say once they (and
/// everything that was replayed before) are durable.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "the records have to be replayed and written"]
pub struct Decision<A> {
    /// In the order in which they are to be replayed. None: nothing changes, but the answer still rests on
    /// what was replayed before.
    pub records: Vec<GroupRecord>,
    /// What to say.
    pub answer: A,
}

/// The topics there are. It must know all of them: what it does not know is taken for deleted.
pub trait Topics {
    /// Id and number of partitions.
    fn get(&self, name: &TopicName) -> Option<(TopicId, u32)>;
    /// The topics whose names begin with this, without the server's own.
    fn with_prefix(&self, prefix: &str) -> Vec<TopicName>;
}

/// The groups of one shard.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Groups {
    pub(super) groups: BTreeMap<GroupName, Group>,
    /// The highest epoch of groups that are no more.
    pub(super) epochs_used: GroupEpoch,
}

/// One group: the latest value of each key, and look-ups that follow from them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Group {
    pub(super) meta: Option<GroupValue>,
    /// What the targets were made from.
    pub(super) topics: BTreeMap<TopicName, TopicCount>,
    pub(super) members: BTreeMap<MemberId, Member>,
    pub(super) offsets: BTreeMap<TopicName, BTreeMap<PartitionIndex, OffsetValue>>,
    /// How many offsets.
    pub(super) offset_count: usize,
    /// Who is which static member.
    pub(super) instances: BTreeMap<InstanceId, MemberId>,
    /// Whom the target gives a partition.
    pub(super) targets: ByPartition,
    /// Who holds a partition: owns it or is stopping it.
    pub(super) holders: ByPartition,
}

/// What is known of a member. All three are there while it is one; each alone where records are missing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Member {
    pub(super) value: Option<MemberValue>,
    pub(super) target: TargetValue,
    pub(super) assignment: Option<Arc<AssignmentValue>>,
}

/// A member for each partition, by the topic's name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct ByPartition(BTreeMap<TopicName, BTreeMap<PartitionIndex, MemberId>>);

impl ByPartition {
    pub(super) fn get(&self, topic: &TopicName, partition: PartitionIndex) -> Option<&MemberId> {
        self.0.get(topic)?.get(&partition)
    }

    /// Takes away what is the member's. What another member was given since is left alone: records of one
    /// decision come in any order.
    fn release(&mut self, member: &MemberId, partitions: &Partitions) {
        for (name, of) in partitions.topics() {
            let Entry::Occupied(mut topic) = self.0.entry(name.clone()) else { continue };
            for partition in &of.partitions {
                if topic.get().get(partition) == Some(member) {
                    topic.get_mut().remove(partition);
                }
            }
            if topic.get().is_empty() {
                topic.remove();
            }
        }
    }

    fn take(&mut self, member: &MemberId, partitions: &Partitions) {
        for (name, of) in partitions.topics() {
            let topic = self.0.entry(name.clone()).or_default();
            topic.extend(of.partitions.iter().map(|&partition| (partition, member.clone())));
        }
    }
}

impl Member {
    fn is_nothing(&self) -> bool {
        self.value.is_none() && self.target.partitions.is_empty() && self.assignment.is_none()
    }

    /// Whether it has something to give back before it can go on to the group's epoch.
    pub(super) fn is_stopping(&self) -> bool {
        self.assignment.as_ref().is_some_and(|assignment| !assignment.stopping.is_empty())
    }
}

impl Group {
    pub(super) fn epoch(&self) -> GroupEpoch {
        self.meta.as_ref().map_or(GroupEpoch::ZERO, |meta| meta.epoch)
    }

    /// The members, without remains of such.
    pub(super) fn live(&self) -> impl Iterator<Item = (&MemberId, &Member, &MemberValue)> {
        self.members.iter().filter_map(|(id, member)| Some((id, member, member.value.as_ref()?)))
    }

    /// A member, with what it said when it joined.
    pub(super) fn member(&self, id: &MemberId) -> Option<(&Member, &MemberValue)> {
        let member = self.members.get(id)?;
        Some((member, member.value.as_ref()?))
    }

    pub(super) fn live_count(&self) -> usize {
        self.live().count()
    }

    /// A member's epoch: that of the group, unless it has something to give back.
    pub(super) fn member_epoch(&self, member: &Member) -> GroupEpoch {
        match &member.assignment {
            Some(assignment) if !assignment.stopping.is_empty() => assignment.epoch,
            _ => self.epoch(),
        }
    }

    fn is_nothing(&self) -> bool {
        self.meta.is_none() && self.topics.is_empty() && self.members.is_empty() && self.offsets.is_empty()
    }

    fn replay(&mut self, record: GroupRecord) {
        match record {
            GroupRecord::Group { value, .. } => self.meta = value,
            GroupRecord::Topics { value, .. } => {
                self.topics = value.map(|value| value.topics).unwrap_or_default();
            }
            GroupRecord::Member { member, value, .. } => self.set_member(member, value),
            GroupRecord::Target { member, value, .. } => self.set_target(member, value),
            GroupRecord::Assignment { member, value, .. } => self.set_assignment(member, value),
            GroupRecord::Offset { topic, partition, value, .. } => self.set_offset(topic, partition, value),
            GroupRecord::Epochs { .. } => {}
        }
    }

    fn set_member(&mut self, id: MemberId, value: Option<MemberValue>) {
        let member = self.members.entry(id.clone()).or_default();
        if let Some(before) = member.value.as_ref().and_then(|value| value.instance_id.as_ref())
            && self.instances.get(before) == Some(&id)
        {
            self.instances.remove(before);
        }
        if let Some(now) = value.as_ref().and_then(|value| value.instance_id.as_ref()) {
            self.instances.insert(now.clone(), id.clone());
        }
        member.value = value;
        self.forget_if_nothing(id);
    }

    fn set_target(&mut self, id: MemberId, value: Option<TargetValue>) {
        let member = self.members.entry(id.clone()).or_default();
        self.targets.release(&id, &member.target.partitions);
        member.target = value.unwrap_or_default();
        self.targets.take(&id, &member.target.partitions);
        self.forget_if_nothing(id);
    }

    fn set_assignment(&mut self, id: MemberId, value: Option<AssignmentValue>) {
        let member = self.members.entry(id.clone()).or_default();
        if let Some(before) = &member.assignment {
            self.holders.release(&id, &before.owned);
            self.holders.release(&id, &before.stopping);
        }
        if let Some(now) = &value {
            self.holders.take(&id, &now.owned);
            self.holders.take(&id, &now.stopping);
        }
        member.assignment = value.map(Arc::new);
        self.forget_if_nothing(id);
    }

    fn forget_if_nothing(&mut self, id: MemberId) {
        if let Entry::Occupied(member) = self.members.entry(id)
            && member.get().is_nothing()
        {
            member.remove();
        }
    }

    fn set_offset(&mut self, topic: TopicName, partition: PartitionIndex, value: Option<OffsetValue>) {
        match value {
            Some(value) => {
                let before = self.offsets.entry(topic).or_default().insert(partition, value);
                self.offset_count += usize::from(before.is_none());
            }
            None => {
                if let Entry::Occupied(mut of) = self.offsets.entry(topic) {
                    self.offset_count -= usize::from(of.get_mut().remove(&partition).is_some());
                    if of.get().is_empty() {
                        of.remove();
                    }
                }
            }
        }
    }
}

impl Groups {
    /// Applies a record: the only thing that changes the state, live and when loading. Total: it takes any
    /// record in any order. What it makes of records depends on the latest of each key alone, as long as they
    /// come in the order in which they were written, so it does not matter what compaction has taken.
    pub fn replay(&mut self, record: GroupRecord) {
        if let GroupRecord::Epochs { value } = &record {
            self.epochs_used = value.unwrap_or_default().used;
        }
        let Some(name) = record.group().cloned() else { return };
        self.groups.entry(name.clone()).or_default().replay(record);
        if let Entry::Occupied(group) = self.groups.entry(name)
            && group.get().is_nothing()
        {
            group.remove();
        }
    }

    pub(super) fn group(&self, name: &GroupName) -> Result<&Group, GroupError> {
        self.groups.get(name).ok_or_else(|| GroupError::NotFound { group: name.clone() })
    }
}
