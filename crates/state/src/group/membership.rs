//! Joining, stopping and leaving (KIP-848's ConsumerGroupHeartbeat, taken apart), and topics that change.

use std::collections::BTreeSet;

use rimstone_types::{GroupEpoch, GroupName, InstanceId, MemberId, PartitionIndex, Timestamp, TopicName};

use super::{
    GROUPS_PER_SHARD_MAX, LABEL_BYTES_MAX, MEMBERS_MAX, TOPICS_PER_SUBSCRIPTION_MAX,
    assign::Assignor,
    error::{FencedBecause, GroupError},
    partitions::Partitions,
    rebalance::{Change, Put, release},
    record::{AssignmentValue, GroupRecord, MemberValue},
    state::{Decision, Group, Groups, Topics},
};

/// A member that comes, or comes back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Join {
    /// The group; one that does not exist is made.
    pub group: GroupName,
    /// Of the member's choosing, the same across reconnects.
    pub member: MemberId,
    /// Set for a static member.
    pub instance: Option<InstanceId>,
    /// What the member says of itself.
    pub client_id: String,
    /// Where it connects from (without a port, which changes with every connection).
    pub host: String,
    /// What it wants to read; the topics need not exist yet.
    pub topics: BTreeSet<TopicName>,
    /// And topics whose names begin with this, the server's own excepted.
    pub topic_prefix: Option<String>,
    /// Its vote.
    pub assignor: Option<Assignor>,
    /// Milliseconds; within the bounds that the caller keeps.
    pub session_timeout_ms: u32,
    /// Milliseconds; within the bounds that the caller keeps.
    pub max_poll_interval_ms: u32,
    /// The epoch that the member has; 0: a new start, it owns nothing.
    pub epoch: GroupEpoch,
    /// What it reads at present: granted to it, and not confirmed as stopped. Only with an epoch.
    pub owned: Vec<(TopicName, PartitionIndex)>,
}

/// A member has joined, or come back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Joined {
    /// Its epoch.
    pub epoch: GroupEpoch,
    /// It goes on with what it had. False: whatever it owned before is not its own any more.
    pub resumed: bool,
    /// Whose membership has ended by this: another member of the same static instance, or the member's own
    /// earlier life. Its session has to end, as any earlier session under the member's own id.
    pub replaced: Option<MemberId>,
}

/// Why a membership ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    /// It says so. A static member stays until its session times out, unless it leaves for good.
    Leave {
        /// Also a static one.
        for_good: bool,
    },
    /// Nothing was heard from it for its session time-out.
    SessionTimeout,
    /// It made no progress for its poll interval.
    PollTimeout,
}

impl Groups {
    /// Takes a member in, or lets it go on.
    ///
    /// A new start (epoch 0) owns nothing: what an earlier life of this member held, or the other member of
    /// the same static instance, is free, and their sessions have to end. A static member that comes back as
    /// it was, under a new id, takes over the target and raises no epoch.
    ///
    /// Coming back with an epoch is accepted with the current one, and once with an earlier one of this life
    /// (pushes may have been lost, one or several). What the member claims must be its own. What it does not
    /// claim stays its own all the same: a join that was under way for long must not pass for a confirmation.
    ///
    /// # Errors
    /// [`GroupError::Fenced`], [`GroupError::Limit`], [`GroupError::NoSubscription`],
    /// [`GroupError::OtherInstance`], [`GroupError::EpochsUsedUp`].
    pub fn join(
        &self,
        join: &Join,
        topics: &dyn Topics,
        now: Timestamp,
    ) -> Result<Decision<Joined>, GroupError> {
        join.check_bounds()?;
        if join.epoch == GroupEpoch::ZERO {
            self.start_anew(join, topics, now)
        } else {
            self.resume(join, topics)
        }
    }

    fn start_anew(
        &self,
        join: &Join,
        topics: &dyn Topics,
        now: Timestamp,
    ) -> Result<Decision<Joined>, GroupError> {
        let nothing = Group::default();
        let group = match self.groups.get(&join.group) {
            Some(group) => group,
            None => {
                self.check_room(&join.group)?;
                &nothing
            }
        };
        let same_id = group.member(&join.member);
        let instance = join.instance.as_ref().and_then(|instance| group.instances.get(instance));
        let instance =
            instance.filter(|&other| *other != join.member).and_then(|id| Some((id, group.member(id)?)));
        if same_id.is_none() && instance.is_none() {
            let (would_be, limit) = (group.live_count() + 1, MEMBERS_MAX);
            if would_be > limit {
                return Err(GroupError::Limit {
                    group: join.group.clone(),
                    what: "members",
                    would_be,
                    limit,
                });
            }
        }
        let value = join.value(now);
        // As it was, and under an id that fences whoever was it before: nobody else needs to hear of it.
        let unnoticed =
            same_id.is_none() && instance.is_some_and(|(_, (_, before))| before.wants_the_same(&value));
        let epoch = if unnoticed { group.epoch() } else { join.next_epoch(self.last_epoch(group))? };
        let held = AssignmentValue { epoch, previous_epoch: epoch, ..AssignmentValue::default() };
        let instance = instance.map(|(id, _)| id);
        let put = Put { id: &join.member, value, heir_of: instance.unwrap_or(&join.member), held };
        let change = Change::new(&join.group, group).without(instance).with(put);
        let outcome = if unnoticed { change.within_epoch() } else { change.to_epoch(epoch, topics) };
        let replaced = instance.or(same_id.map(|_| &join.member)).cloned();
        let answer = Joined { epoch: outcome.epoch, resumed: false, replaced };
        Ok(Decision { records: outcome.records, answer })
    }

    fn resume(&self, join: &Join, topics: &dyn Topics) -> Result<Decision<Joined>, GroupError> {
        let (name, id) = (&join.group, &join.member);
        let fenced = |because| GroupError::Fenced { group: name.clone(), member: id.clone(), because };
        let unknown = || fenced(FencedBecause::UnknownMember);
        let group = self.groups.get(name).ok_or_else(unknown)?;
        let (member, before) = group.member(id).ok_or_else(unknown)?;
        let (current, given) = (group.member_epoch(member), join.epoch);
        let held = member.assignment.clone().unwrap_or_default();
        if given < held.previous_epoch || given > current {
            return Err(fenced(FencedBecause::StaleEpoch { given, current }));
        }
        if !join.owned.iter().all(|(topic, index)| held.holds(topic, *index)) {
            return Err(fenced(FencedBecause::NotItsPartitions { current }));
        }
        if before.instance_id != join.instance {
            let joined_as = before.instance_id.clone();
            return Err(GroupError::OtherInstance { group: name.clone(), member: id.clone(), joined_as });
        }
        // Accepted once: the next time only what is answered now will do.
        let previous_epoch = if given < current { current } else { held.previous_epoch };
        let value = join.value(before.joined_ms);
        let outcome = if before.wants_the_same(&value) {
            let mut outcome = release(name, group, id, &Partitions::NONE, previous_epoch);
            if *before != value {
                let (group, member, value) = (name.clone(), id.clone(), Some(value));
                outcome.records.push(GroupRecord::Member { group, member, value });
            }
            outcome
        } else {
            let held = AssignmentValue { epoch: current, previous_epoch, ..(*held).clone() };
            let change = Change::new(name, group).with(Put { id, value, heir_of: id, held });
            change.to_epoch(join.next_epoch(self.last_epoch(group))?, topics)
        };
        let answer = Joined { epoch: outcome.epoch, resumed: true, replaced: None };
        Ok(Decision { records: outcome.records, answer })
    }

    /// A member has stopped what it was asked to stop: it goes to whom the target gives it. Partitions that
    /// the member does not hold (any more) are passed over. The answer is the member's epoch.
    ///
    /// # Errors
    /// [`GroupError::Fenced`] unless it comes with the epoch that the stop was told with, and
    /// [`GroupError::NotStopping`] for partitions that it owns and was not asked to stop.
    pub fn confirm_stop(
        &self,
        name: &GroupName,
        id: &MemberId,
        epoch: GroupEpoch,
        partitions: &[(TopicName, PartitionIndex)],
    ) -> Result<Decision<GroupEpoch>, GroupError> {
        let fenced = |because| GroupError::Fenced { group: name.clone(), member: id.clone(), because };
        let unknown = || fenced(FencedBecause::UnknownMember);
        let group = self.groups.get(name).ok_or_else(unknown)?;
        let (member, _) = group.member(id).ok_or_else(unknown)?;
        let (given, current) = (epoch, group.member_epoch(member));
        if given != current {
            return Err(fenced(FencedBecause::StaleEpoch { given, current }));
        }
        let held = member.assignment.clone().unwrap_or_default();
        let mut stopped = Partitions::default();
        for (topic, index) in partitions {
            if held.owned.contains(topic, *index) {
                let (group, member, topic) = (name.clone(), id.clone(), topic.clone());
                return Err(GroupError::NotStopping { group, member, topic, partition: *index });
            }
            if let Some(of) = held.stopping.get(topic).filter(|of| of.partitions.contains(index)) {
                stopped.insert(topic, of.id, *index);
            }
        }
        let outcome = release(name, group, id, &stopped, held.previous_epoch);
        Ok(Decision { records: outcome.records, answer: outcome.epoch })
    }

    /// Ends a membership; what the member held goes to others at once. With the last member goes the group, if it
    /// has no offsets. True if there was a membership to end: not for an unknown member, and not for a static one
    /// that leaves for a while.
    pub fn remove_member(
        &self,
        name: &GroupName,
        id: &MemberId,
        why: Removal,
        topics: &dyn Topics,
    ) -> Decision<bool> {
        let Decision { records, answer } = self.remove_members(name, &[(id, why)], topics);
        Decision { records, answer: answer > 0 }
    }

    /// The same for several of a group, as one: one epoch, one target, however many they are. The answer is how
    /// many memberships end.
    pub fn remove_members(
        &self,
        name: &GroupName,
        members: &[(&MemberId, Removal)],
        topics: &dyn Topics,
    ) -> Decision<usize> {
        let Some(group) = self.groups.get(name) else { return Decision { records: Vec::new(), answer: 0 } };
        let ends = |(id, why): &&(&MemberId, Removal)| {
            let value = group.member(id).map(|(_, value)| value);
            value.is_some_and(|value| {
                *why != (Removal::Leave { for_good: false }) || value.instance_id.is_none()
            })
        };
        let removed: BTreeSet<_> = members.iter().filter(ends).map(|(id, _)| *id).collect();
        if removed.is_empty() {
            return Decision { records: Vec::new(), answer: 0 };
        }
        if group.goes_with(group.live_count() - removed.len(), group.offset_count) {
            return Decision { records: self.forget(name, group), answer: removed.len() };
        }
        let change = Change::new(name, group).without(removed.iter().copied());
        // With epochs used up the last one stays: nobody can join, so nobody can be mistaken for another.
        let epoch = group.epoch().next().unwrap_or(group.epoch());
        Decision { records: change.to_epoch(epoch, topics).records, answer: removed.len() }
    }

    /// The groups that topics have changed for: subscriptions find other topics or other numbers of
    /// partitions, or offsets are of topics that are no more; and groups that nothing keeps. To be asked after
    /// loading and whenever topics change; each is then brought up to date by [`Groups::topics_changed`].
    pub fn outdated(&self, topics: &dyn Topics) -> Vec<GroupName> {
        let outdated = |(_, group): &(_, &Group)| {
            group.is_deserted() || group.has_other_topics(topics) || group.has_lost_offsets(topics)
        };
        self.groups.iter().filter(outdated).map(|(name, _)| name.clone()).collect()
    }

    /// Brings a group up to date with the topics: a new epoch and target where its subscriptions find others,
    /// and no more offsets of topics that are no more. If nobody is in it and that was the last of its offsets, it
    /// goes. No records if nothing has changed.
    pub fn topics_changed(&self, name: &GroupName, topics: &dyn Topics) -> Decision<()> {
        let Some(group) = self.groups.get(name) else { return Decision { records: Vec::new(), answer: () } };
        let lost: Vec<_> = group.lost_offsets(topics).collect();
        let mut records = if group.goes_with(group.live_count(), group.offset_count - lost.len()) {
            self.forget(name, group)
        } else if group.has_other_topics(topics) {
            let epoch = group.epoch().next().unwrap_or(group.epoch());
            Change::new(name, group).to_epoch(epoch, topics).records
        } else {
            Vec::new()
        };
        for (topic, partition) in lost {
            let (group, topic) = (name.clone(), topic.clone());
            records.push(GroupRecord::Offset { group, topic, partition, value: None });
        }
        Decision { records, answer: () }
    }

    pub(super) fn check_room(&self, group: &GroupName) -> Result<(), GroupError> {
        let (would_be, limit) = (self.groups.len() + 1, GROUPS_PER_SHARD_MAX);
        if would_be > limit {
            return Err(GroupError::Limit {
                group: group.clone(),
                what: "groups of the shard",
                would_be,
                limit,
            });
        }
        Ok(())
    }
}

impl Group {
    /// Whether the target was made from other topics than there are now, or records of it were lost.
    fn has_other_topics(&self, topics: &dyn Topics) -> bool {
        let subscriptions: BTreeSet<_> = self.live().map(|(_, _, value)| value.subscription()).collect();
        let present = self.resolved(subscriptions.into_iter(), topics);
        if self.topics != present {
            return true;
        }
        let partitions: u64 = present.values().map(|topic| u64::from(topic.partitions)).sum();
        let given: usize = self.live().map(|(_, member, _)| member.target.partitions.len()).sum();
        given as u64 != partitions || self.members.values().any(|member| member.value.is_none())
    }

    fn has_lost_offsets(&self, topics: &dyn Topics) -> bool {
        self.lost_offsets(topics).next().is_some()
    }

    /// The offsets of topics that are no more.
    fn lost_offsets(&self, topics: &dyn Topics) -> impl Iterator<Item = (&TopicName, PartitionIndex)> {
        self.offsets.iter().flat_map(move |(name, of)| {
            let present = topics.get(name).map(|(id, _)| id);
            let lost = of.iter().filter(move |(_, value)| present != Some(value.topic_id));
            lost.map(move |(&partition, _)| (name, partition))
        })
    }
}

impl MemberValue {
    /// Whether the target does not depend on which of the two it is.
    fn wants_the_same(&self, other: &Self) -> bool {
        self.topics == other.topics
            && self.topic_prefix == other.topic_prefix
            && self.assignor == other.assignor
    }
}

impl Join {
    fn value(&self, joined: Timestamp) -> MemberValue {
        MemberValue {
            instance_id: self.instance.clone(),
            client_id: self.client_id.clone(),
            host: self.host.clone(),
            topics: self.topics.clone(),
            topic_prefix: self.topic_prefix.clone(),
            assignor: self.assignor,
            session_timeout_ms: self.session_timeout_ms,
            max_poll_interval_ms: self.max_poll_interval_ms,
            joined_ms: joined,
        }
    }

    fn next_epoch(&self, last: GroupEpoch) -> Result<GroupEpoch, GroupError> {
        last.next().ok_or_else(|| GroupError::EpochsUsedUp { group: self.group.clone() })
    }

    fn check_bounds(&self) -> Result<(), GroupError> {
        if self.topics.is_empty() && self.topic_prefix.is_none() {
            let (group, member) = (self.group.clone(), self.member.clone());
            return Err(GroupError::NoSubscription { group, member });
        }
        let prefix = self.topic_prefix.as_ref().map_or(0, String::len);
        let bounds = [
            ("topics of a subscription", self.topics.len(), TOPICS_PER_SUBSCRIPTION_MAX),
            ("bytes of a topic prefix", prefix, LABEL_BYTES_MAX),
            ("bytes of a client id", self.client_id.len(), LABEL_BYTES_MAX),
            ("bytes of a host", self.host.len(), LABEL_BYTES_MAX),
        ];
        match bounds.into_iter().find(|&(_, would_be, limit)| would_be > limit) {
            Some((what, would_be, limit)) => {
                Err(GroupError::Limit { group: self.group.clone(), what, would_be, limit })
            }
            None => Ok(()),
        }
    }
}

impl GroupRecord {
    pub(super) fn forget_member(group: &GroupName, member: &MemberId) -> [Self; 3] {
        let (group, member) = (|| group.clone(), || member.clone());
        [
            Self::Member { group: group(), member: member(), value: None },
            Self::Target { group: group(), member: member(), value: None },
            Self::Assignment { group: group(), member: member(), value: None },
        ]
    }
}
