//! What the tests share: topics, joins, and a state shown as text.

use std::collections::BTreeMap;

use rimstone_types::{
    GroupEpoch, GroupName, LogEnds, MemberId, Offset, PartitionIndex, Timestamp, TopicId, TopicName,
};
use uuid::Uuid;

use crate::group::{Assignor, CommitOffset, Decision, Groups, Join, Partitions, Topics};

/// Topics of a test.
#[derive(Debug, Clone, Default)]
pub(super) struct TestTopics {
    pub(super) topics: BTreeMap<TopicName, (TopicId, u32)>,
    made: u128,
}

impl TestTopics {
    pub(super) fn new(topics: &[(&str, u32)]) -> Self {
        let mut this = Self::default();
        for (name, partitions) in topics {
            this.make(name, *partitions);
        }
        this
    }

    /// Makes a topic, anew if there is one of this name.
    pub(super) fn make(&mut self, name: &str, partitions: u32) {
        self.made += 1;
        self.topics.insert(topic(name), (TopicId(Uuid::from_u128(1_000 + self.made)), partitions));
    }

    pub(super) fn grow(&mut self, name: &str, partitions: u32) {
        self.topics.get_mut(&topic(name)).expect("there").1 = partitions;
    }

    pub(super) fn delete(&mut self, name: &str) {
        self.topics.remove(&topic(name));
    }

    pub(super) fn id(&self, name: &str) -> TopicId {
        self.topics[&topic(name)].0
    }
}

impl Topics for TestTopics {
    fn get(&self, name: &TopicName) -> Option<(TopicId, u32)> {
        self.topics.get(name).copied()
    }

    fn with_prefix(&self, prefix: &str) -> Vec<TopicName> {
        let names =
            self.topics.keys().filter(|name| name.as_str().starts_with(prefix) && !name.is_internal());
        names.cloned().collect()
    }
}

pub(super) fn group() -> GroupName {
    "g".parse().expect("a name")
}

pub(super) fn member(id: &str) -> MemberId {
    id.parse().expect("a name")
}

pub(super) fn topic(name: &str) -> TopicName {
    name.parse().expect("a name")
}

/// `t:0` and the like.
pub(super) fn places(places: &[&str]) -> Vec<(TopicName, PartitionIndex)> {
    let place = |place: &&str| {
        let (name, index) = place.split_once(':').expect("topic:partition");
        (topic(name), PartitionIndex(index.parse().expect("a number")))
    };
    places.iter().map(place).collect()
}

/// A new start with a subscription to topics.
pub(super) fn join(id: &str, topics: &[&str]) -> Join {
    Join {
        group: group(),
        member: member(id),
        instance: None,
        client_id: "test".to_owned(),
        host: "127.0.0.1".to_owned(),
        topics: topics.iter().map(|name| topic(name)).collect(),
        topic_prefix: None,
        assignor: None,
        session_timeout_ms: 45_000,
        max_poll_interval_ms: 300_000,
        epoch: GroupEpoch::ZERO,
        owned: Vec::new(),
    }
}

impl Join {
    pub(super) fn by(mut self, assignor: Assignor) -> Self {
        self.assignor = Some(assignor);
        self
    }

    pub(super) fn instance(mut self, instance: &str) -> Self {
        self.instance = Some(instance.parse().expect("a name"));
        self
    }

    pub(super) fn back(mut self, epoch: u32, owned: &[&str]) -> Self {
        self.epoch = GroupEpoch(epoch);
        self.owned = places(owned);
        self
    }

    pub(super) fn prefix(mut self, prefix: &str) -> Self {
        self.topic_prefix = Some(prefix.to_owned());
        self
    }
}

/// An offset to commit, of a log 100..200.
pub(super) fn offset(topics: &TestTopics, place: &str, at: u64) -> CommitOffset {
    let (name, partition) = places(&[place]).remove(0);
    let end = Offset::new(200).expect("in bounds");
    CommitOffset {
        topic_id: topics.topics.get(&name).map_or(TopicId(Uuid::nil()), |topic| topic.0),
        topic: name,
        partition,
        offset: Some(Offset::new(at).expect("in bounds")),
        metadata: String::new(),
        leader_epoch: None,
        ends: LogEnds {
            start: Offset::new(100).expect("in bounds"),
            stable: end,
            durable: end,
            written: end,
        },
    }
}

pub(super) fn at(ms: i64) -> Timestamp {
    Timestamp(ms)
}

/// `t:0,1 u:3`.
pub(super) fn shown(partitions: &Partitions) -> String {
    let topics = partitions.topics().map(|(name, of)| {
        let indexes: Vec<_> = of.partitions.iter().map(ToString::to_string).collect();
        format!("{name}:{}", indexes.join(","))
    });
    topics.collect::<Vec<_>>().join(" ")
}

/// A line for the group and one for each member: `m @3 [owned] stop [stopping] want [what is missing]`.
pub(super) fn lines(groups: &Groups) -> Vec<String> {
    let Ok(described) = groups.describe(&group()) else { return vec!["none".to_owned()] };
    let mut lines = vec![format!("epoch {}", described.summary.epoch)];
    for member in described.members {
        let mut line = format!("{} @{} [{}]", member.member, member.epoch, shown(&member.assignment.owned));
        let waiting = member.target.without(&member.assignment.owned);
        if !member.assignment.stopping.is_empty() {
            line += &format!(" stop [{}]", shown(&member.assignment.stopping));
        }
        if !waiting.is_empty() {
            line += &format!(" want [{}]", shown(&waiting));
        }
        lines.push(line);
    }
    lines
}

/// Replays a decision; the keys of its records and its answer.
pub(super) fn apply<A>(groups: &mut Groups, decision: Decision<A>) -> (Vec<String>, A) {
    let keys = decision.records.iter().map(|record| record.key()).collect();
    decision.records.into_iter().for_each(|record| groups.replay(record));
    (keys, decision.answer)
}
