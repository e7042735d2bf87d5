//! Looking at groups: what a session shows its member, and what people see.

use std::{collections::BTreeSet, sync::Arc};

use rimstone_types::{GroupEpoch, GroupName, MemberId, PartitionIndex, TopicId, TopicName};

use super::{
    assign::Assignor,
    error::GroupError,
    partitions::Partitions,
    record::{AssignmentValue, MemberValue},
    state::{Group, Groups},
};

/// What a member is to know of its membership. Level-triggered: the latest one says it all, and those before
/// may be passed over. Everything in `stopping` is to be told, also what was never started; told at another
/// epoch, it is another stop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberView {
    /// The group's epoch, or an earlier one while there is something to give back.
    pub epoch: GroupEpoch,
    /// What the member holds (`owned`, `stopping`); shared with the state, so that a view costs nothing.
    pub assignment: Arc<AssignmentValue>,
}

/// How a group is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GroupState {
    /// No members.
    Empty,
    /// Every member has what the target gives it.
    Stable,
    /// Partitions are moving between members.
    Reconciling,
}

/// A group in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// The group.
    pub group: GroupName,
    /// How it is.
    pub state: GroupState,
    /// How many members.
    pub members: usize,
    /// Its epoch.
    pub epoch: GroupEpoch,
    /// Topics with committed offsets or assigned partitions.
    pub topics: BTreeSet<TopicName>,
}

/// A group with its members.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// As in a list.
    pub summary: Summary,
    /// What makes the targets.
    pub assignor: Assignor,
    /// In order of their ids.
    pub members: Vec<MemberDescription>,
}

/// A member as people see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberDescription {
    /// Its id.
    pub member: MemberId,
    /// Who it is.
    pub value: MemberValue,
    /// Its epoch.
    pub epoch: GroupEpoch,
    /// What it holds.
    pub assignment: Arc<AssignmentValue>,
    /// What the target gives it.
    pub target: Partitions,
}

impl Groups {
    /// Whether there is such a group.
    pub fn contains(&self, group: &GroupName) -> bool {
        self.groups.contains_key(group)
    }

    /// The names of all groups, in order.
    pub fn names(&self) -> impl Iterator<Item = &GroupName> {
        self.groups.keys()
    }

    /// A group's epoch; `None` if there is no such group.
    pub fn epoch(&self, group: &GroupName) -> Option<GroupEpoch> {
        Some(self.groups.get(group)?.epoch())
    }

    /// The members of a group, in order of their ids.
    pub fn members<'a>(
        &'a self,
        group: &GroupName,
    ) -> impl Iterator<Item = (&'a MemberId, &'a MemberValue)> + use<'a> {
        let members = self.groups.get(group).into_iter().flat_map(Group::live);
        members.map(|(id, _, value)| (id, value))
    }

    /// Who a member is; `None` if it is not one.
    pub fn member(&self, group: &GroupName, member: &MemberId) -> Option<&MemberValue> {
        self.groups.get(group)?.members.get(member)?.value.as_ref()
    }

    /// What a member is to know; `None` if it is not one.
    pub fn view(&self, group: &GroupName, member: &MemberId) -> Option<MemberView> {
        let group = self.groups.get(group)?;
        let member = group.members.get(member).filter(|member| member.value.is_some())?;
        let assignment = member.assignment.clone().unwrap_or_default();
        Some(MemberView { epoch: group.member_epoch(member), assignment })
    }

    /// Whether a partition was made while members of the group were subscribed to its topic: there is nothing in
    /// it that was there before them. Known until nobody is subscribed to the topic.
    pub fn is_later(
        &self,
        group: &GroupName,
        topic: &TopicName,
        topic_id: TopicId,
        partition: PartitionIndex,
    ) -> bool {
        let known = self.groups.get(group).and_then(|group| group.topics.get(topic));
        known.is_some_and(|of| of.id == topic_id && (of.later_from..of.partitions).contains(&partition.0))
    }

    /// The groups whose names begin with this, in order.
    pub fn list(&self, prefix: &str) -> impl Iterator<Item = Summary> {
        self.groups
            .iter()
            .filter(move |(name, _)| name.as_str().starts_with(prefix))
            .map(|(name, group)| group.summary(name))
    }

    /// A group with its members.
    ///
    /// # Errors
    /// [`GroupError::NotFound`].
    pub fn describe(&self, name: &GroupName) -> Result<Description, GroupError> {
        let group = self.group(name)?;
        let members = group.live().map(|(id, member, value)| MemberDescription {
            member: id.clone(),
            value: value.clone(),
            epoch: group.member_epoch(member),
            assignment: member.assignment.clone().unwrap_or_default(),
            target: member.target.partitions.clone(),
        });
        Ok(Description {
            summary: group.summary(name),
            assignor: group.meta.as_ref().map(|meta| meta.assignor).unwrap_or_default(),
            members: members.collect(),
        })
    }
}

impl Group {
    fn summary(&self, name: &GroupName) -> Summary {
        let members = self.live_count();
        let settled = self.live().all(|(_, member, _)| {
            let owned = member.assignment.as_ref().map(|assignment| &assignment.owned);
            !member.is_stopping() && *owned.unwrap_or(&Partitions::default()) == member.target.partitions
        });
        let state = match (members, settled) {
            (0, _) => GroupState::Empty,
            (_, true) => GroupState::Stable,
            (_, false) => GroupState::Reconciling,
        };
        let assigned = self.live().filter_map(|(_, member, _)| member.assignment.as_ref());
        let assigned = assigned.flat_map(|held| held.owned.topics().chain(held.stopping.topics()));
        let topics = self.offsets.keys().chain(assigned.map(|(topic, _)| topic)).cloned().collect();
        Summary { group: name.clone(), state, members, epoch: self.epoch(), topics }
    }
}
