//! From one target to the next: who gives back, who is granted what (KIP-848's reconciliation).
//!
//! Not here: why a group changes.

use std::collections::{BTreeMap, BTreeSet};

use rimstone_types::{GroupEpoch, GroupName, MemberId, PartitionIndex, TopicId, TopicName};

use super::{
    assign::{Candidate, assign, elect},
    partitions::Partitions,
    record::{AssignmentValue, GroupRecord, GroupValue, MemberValue, TargetValue, TopicCount, TopicsValue},
    state::{Group, Member, Topics},
};

/// A change of a group's members.
#[derive(Debug)]
pub(super) struct Change<'a> {
    name: &'a GroupName,
    before: &'a Group,
    /// They are members no more, and what they held is free.
    removed: BTreeSet<&'a MemberId>,
    put: Option<Put<'a>>,
}

/// A member that comes, or changes.
#[derive(Debug)]
pub(super) struct Put<'a> {
    pub(super) id: &'a MemberId,
    pub(super) value: MemberValue,
    /// Whose target it goes on from.
    pub(super) heir_of: &'a MemberId,
    /// What it holds to begin with. What the state says beyond this is free.
    pub(super) held: AssignmentValue,
}

/// What a change comes to.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) records: Vec<GroupRecord>,
    /// Of the member that was put.
    pub(super) epoch: GroupEpoch,
}

/// A member after the change.
#[derive(Debug, Clone, Copy)]
struct Slot<'a> {
    id: &'a MemberId,
    value: &'a MemberValue,
    /// What the target gave it until now.
    target: &'a Partitions,
    held: &'a AssignmentValue,
}

/// What members without a record of it hold.
static NOTHING: AssignmentValue = AssignmentValue {
    epoch: GroupEpoch::ZERO,
    previous_epoch: GroupEpoch::ZERO,
    owned: Partitions::NONE,
    stopping: Partitions::NONE,
};

impl<'a> Change<'a> {
    pub(super) fn new(name: &'a GroupName, before: &'a Group) -> Self {
        // Remains of members, where records were lost, hold nothing that is worth keeping.
        let remains = before.members.iter().filter(|(_, member)| member.value.is_none());
        Self { name, before, removed: remains.map(|(id, _)| id).collect(), put: None }
    }

    /// With a member that comes, or changes.
    pub(super) fn with(mut self, put: Put<'a>) -> Self {
        self.removed.remove(put.id);
        self.put = Some(put);
        self
    }

    /// Without these members.
    pub(super) fn without(mut self, ids: impl IntoIterator<Item = &'a MemberId>) -> Self {
        self.removed.extend(ids);
        self
    }

    /// The change with a new target, made from the topics as they are.
    pub(super) fn to_epoch(&self, epoch: GroupEpoch, topics: &dyn Topics) -> Outcome {
        let slots = self.slots();
        let mut subscriptions: BTreeMap<_, usize> = BTreeMap::new();
        let candidates = slots.iter().map(|slot| {
            let next = subscriptions.len();
            Candidate {
                id: slot.id,
                instance: slot.value.instance_id.as_ref(),
                subscription: *subscriptions.entry(slot.value.subscription()).or_insert(next),
                previous: slot.target,
            }
        });
        let candidates: Vec<_> = candidates.collect();
        let mut subscriptions: Vec<_> = subscriptions.into_iter().collect();
        subscriptions.sort_by_key(|&(_, position)| position);
        let topics =
            self.before.resolved(subscriptions.iter().map(|&(subscription, _)| subscription), topics);
        let wanted: Vec<_> =
            subscriptions.into_iter().map(|(subscription, _)| positions(subscription, &topics)).collect();
        let assignor = elect(slots.iter().filter_map(|slot| slot.value.assignor));
        let targets = assign(assignor, &topics, &wanted, &candidates);
        let group = || self.name.clone();
        let mut records =
            vec![GroupRecord::Group { group: group(), value: Some(GroupValue { epoch, assignor }) }];
        if topics != self.before.topics {
            let value = (!topics.is_empty()).then_some(TopicsValue { topics });
            records.push(GroupRecord::Topics { group: group(), value });
        }
        self.carry_out(epoch, &slots, targets, records)
    }

    /// The change without a new target: somebody takes over what the target gave to another.
    pub(super) fn within_epoch(&self) -> Outcome {
        let slots = self.slots();
        let targets = slots.iter().map(|slot| slot.target.clone()).collect();
        self.carry_out(self.before.epoch(), &slots, targets, Vec::new())
    }

    /// The members after the change, in order of their ids.
    fn slots(&self) -> Vec<Slot<'_>> {
        let put = self.put.as_ref().map(|put| put.id);
        let stay = self.before.live().filter(|&(id, ..)| Some(id) != put && !self.removed.contains(id));
        let stay = stay.map(|(id, member, value)| Slot {
            id,
            value,
            target: &member.target.partitions,
            held: member.assignment.as_deref().unwrap_or(&NOTHING),
        });
        let put = self.put.iter().map(|put| Slot {
            id: put.id,
            value: &put.value,
            target: self.before.members.get(put.heir_of).map_or(&NOTHING.owned, |of| &of.target.partitions),
            held: &put.held,
        });
        let mut slots: Vec<_> = stay.chain(put).collect();
        slots.sort_by_key(|slot| slot.id);
        slots
    }

    /// Whether nobody holds a partition of this name once the removed are gone.
    fn is_free(&self, topic: &TopicName, partition: PartitionIndex) -> bool {
        let Some(holder) = self.before.holders.get(topic, partition) else { return true };
        match &self.put {
            Some(put) if put.id == holder => !put.held.holds(topic, partition),
            _ => self.removed.contains(holder),
        }
    }

    fn carry_out(
        &self,
        epoch: GroupEpoch,
        slots: &[Slot<'_>],
        targets: Vec<Partitions>,
        mut records: Vec<GroupRecord>,
    ) -> Outcome {
        records.extend(self.removed.iter().flat_map(|id| GroupRecord::forget_member(self.name, id)));
        let mut assignments = Vec::new();
        let mut epoch_of_put = epoch;
        for (slot, target) in slots.iter().zip(targets) {
            let (group, member) = (|| self.name.clone(), || slot.id.clone());
            let put = self.put.as_ref().filter(|put| put.id == slot.id);
            let known = self.before.members.get(slot.id);
            if put.is_none() && known.is_some_and(|known| known.has_just(&target)) {
                continue;
            }
            let next = self.next(slot, &target, epoch);
            if let Some(put) = put {
                let value = Some(put.value.clone());
                records.push(GroupRecord::Member { group: group(), member: member(), value });
                epoch_of_put = next.epoch;
            }
            if put.is_some() || !known.is_some_and(|known| known.has_the_same(&next)) {
                let value = Some(next);
                assignments.push(GroupRecord::Assignment { group: group(), member: member(), value });
            }
            if known.map_or(&NOTHING.owned, |known| &known.target.partitions) != &target {
                let value = Some(TargetValue { partitions: target });
                records.push(GroupRecord::Target { group: group(), member: member(), value });
            }
        }
        records.append(&mut assignments);
        Outcome { records, epoch: epoch_of_put }
    }

    /// What a member holds next: it gives back what the target does not give it; only when there is nothing
    /// to give back it goes on to the epoch and gets what is free.
    fn next(&self, slot: &Slot<'_>, target: &Partitions, epoch: GroupEpoch) -> AssignmentValue {
        let held = slot.held;
        let mut stopping = held.stopping.clone();
        stopping.absorb(&held.owned.without(target));
        let mut owned = held.owned.and(target);
        if stopping.is_empty() {
            owned.absorb(&target.filtered(|topic, _, index| self.is_free(topic, index)));
            return AssignmentValue { epoch, previous_epoch: held.previous_epoch, owned, stopping };
        }
        let stays_at = if held.stopping.is_empty() { self.before.epoch() } else { held.epoch };
        AssignmentValue { epoch: stays_at, previous_epoch: held.previous_epoch, owned, stopping }
    }
}

impl Member {
    /// Whether it owns just what the target gave it and gives it again.
    fn has_just(&self, target: &Partitions) -> bool {
        let owns =
            self.assignment.as_ref().is_some_and(|held| held.stopping.is_empty() && held.owned == *target);
        owns && self.target.partitions == *target
    }

    /// Whether a member that holds this needs no record of it.
    fn has_the_same(&self, next: &AssignmentValue) -> bool {
        self.assignment
            .as_ref()
            .is_some_and(|held| held.owned == next.owned && held.stopping == next.stopping)
    }
}

impl AssignmentValue {
    /// Whether it owns or is stopping a partition of a topic of this name.
    pub fn holds(&self, topic: &TopicName, partition: PartitionIndex) -> bool {
        self.owned.contains(topic, partition) || self.stopping.contains(topic, partition)
    }
}

/// A member gives back partitions that it was stopping: they go to whom the target gives them, and the member
/// itself goes on to the group's epoch if this was the last of them. Costs as much as what it touches.
pub(super) fn release(
    name: &GroupName,
    group: &Group,
    id: &MemberId,
    stopped: &Partitions,
    previous_epoch: GroupEpoch,
) -> Outcome {
    let held = group.members.get(id).and_then(|member| member.assignment.as_deref()).unwrap_or(&NOTHING);
    let mut next = AssignmentValue {
        epoch: held.epoch,
        previous_epoch,
        owned: held.owned.clone(),
        stopping: held.stopping.filtered(|topic, _, index| !stopped.contains(topic, index)),
    };
    let given_back: Vec<_> = stopped.iter().map(|(topic, _, index)| (topic, index)).collect();
    let is_free = |topic: &TopicName, index| match group.holders.get(topic, index) {
        None => true,
        Some(holder) => holder == id && stopped.contains(topic, index),
    };
    if next.stopping.is_empty() && !held.stopping.is_empty() {
        next.epoch = group.epoch();
        if let Some(member) = group.members.get(id) {
            let target = &member.target.partitions;
            next.owned.absorb(&target.filtered(|topic, _, index| is_free(topic, index)));
        }
    }
    let epoch = if next.stopping.is_empty() { group.epoch() } else { next.epoch };
    let mut changed = BTreeMap::new();
    for (topic, index) in given_back {
        let Some(to) = group.targets.get(topic, index).filter(|to| *to != id) else { continue };
        let Some(waiting) = group.members.get(to).filter(|to| to.value.is_some() && !to.is_stopping()) else {
            continue;
        };
        let Some(of) = waiting.target.partitions.get(topic) else { continue };
        let grown = changed.entry(to).or_insert_with(|| {
            let mut grown = waiting.assignment.as_deref().unwrap_or(&NOTHING).clone();
            grown.epoch = group.epoch();
            grown
        });
        grown.owned.insert(topic, of.id, index);
    }
    if next != *held {
        changed.insert(id, next);
    }
    let record = |(id, value): (&MemberId, _)| GroupRecord::Assignment {
        group: name.clone(),
        member: id.clone(),
        value: Some(value),
    };
    Outcome { records: changed.into_iter().map(record).collect(), epoch }
}

/// What a member wants to read: topics, and those whose names begin with a prefix.
type Subscription<'a> = (&'a BTreeSet<TopicName>, Option<&'a str>);

impl MemberValue {
    pub(super) fn subscription(&self) -> Subscription<'_> {
        (&self.topics, self.topic_prefix.as_deref())
    }
}

impl Group {
    /// The topics that these subscriptions find, as far as they exist. What the members there were until now
    /// had subscribed to and did not find has been made since.
    pub(super) fn resolved<'a>(
        &self,
        subscriptions: impl Iterator<Item = Subscription<'a>>,
        topics: &dyn Topics,
    ) -> BTreeMap<TopicName, TopicCount> {
        let until_now: BTreeSet<_> = self.live().map(|(_, _, value)| value.subscription()).collect();
        let known = find(subscriptions, topics).into_iter().map(|(name, id, partitions)| {
            let later_from = match self.topics.get(&name) {
                Some(before) if before.id == id => before.later_from.min(before.partitions),
                _ if until_now.iter().any(|subscription| finds(*subscription, &name)) => 0,
                _ => partitions,
            };
            (name, TopicCount { id, partitions, later_from })
        });
        known.collect()
    }
}

/// The topics that subscriptions find.
fn find<'a>(
    subscriptions: impl Iterator<Item = Subscription<'a>>,
    topics: &dyn Topics,
) -> Vec<(TopicName, TopicId, u32)> {
    let (mut names, mut prefixes) = (BTreeSet::new(), BTreeSet::new());
    for (some, prefix) in subscriptions {
        names.extend(some);
        prefixes.extend(prefix);
    }
    let matched: Vec<_> = prefixes.into_iter().flat_map(|prefix| topics.with_prefix(prefix)).collect();
    let all: BTreeSet<_> =
        names.into_iter().chain(matched.iter().filter(|name| !name.is_internal())).collect();
    let known = all.into_iter().filter_map(|name| {
        let (id, partitions) = topics.get(name)?;
        Some((name.clone(), id, partitions))
    });
    known.collect()
}

/// Whether a subscription finds a topic of this name.
fn finds((names, prefix): Subscription<'_>, name: &TopicName) -> bool {
    names.contains(name)
        || (!name.is_internal() && prefix.is_some_and(|prefix| name.as_str().starts_with(prefix)))
}

/// The positions of a subscription's topics among the group's.
fn positions(subscription: Subscription<'_>, topics: &BTreeMap<TopicName, TopicCount>) -> Vec<usize> {
    topics.keys().enumerate().filter(|(_, name)| finds(subscription, name)).map(|(at, _)| at).collect()
}
