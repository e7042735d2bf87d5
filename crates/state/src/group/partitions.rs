//! Sets of partitions by topic.

use std::collections::{BTreeMap, BTreeSet};

use rimstone_types::{PartitionIndex, TopicId, TopicName};
use serde::{Deserialize, Serialize};

/// Partitions of one topic.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OfTopic {
    /// The topic: one made later under the same name is another.
    pub id: TopicId,
    /// Never empty.
    pub partitions: BTreeSet<PartitionIndex>,
}

/// A set of partitions by topic, names in order.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(from = "BTreeMap<TopicName, OfTopic>")]
pub struct Partitions(BTreeMap<TopicName, OfTopic>);

impl From<BTreeMap<TopicName, OfTopic>> for Partitions {
    fn from(mut topics: BTreeMap<TopicName, OfTopic>) -> Self {
        topics.retain(|_, of| !of.partitions.is_empty());
        Self(topics)
    }
}

impl Serialize for Partitions {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(to)
    }
}

impl Partitions {
    /// The empty set.
    pub const NONE: Self = Self(BTreeMap::new());

    /// What is in the set of a topic of this name.
    pub fn get(&self, topic: &TopicName) -> Option<&OfTopic> {
        self.0.get(topic)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many partitions.
    pub fn len(&self) -> usize {
        self.0.values().map(|of| of.partitions.len()).sum()
    }

    /// The topics, with what is in the set of each.
    pub fn topics(&self) -> impl Iterator<Item = (&TopicName, &OfTopic)> {
        self.0.iter()
    }

    /// The partitions, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&TopicName, TopicId, PartitionIndex)> {
        self.0.iter().flat_map(|(name, of)| of.partitions.iter().map(move |&index| (name, of.id, index)))
    }

    /// Whether a partition of a topic of this name is in the set.
    pub fn contains(&self, topic: &TopicName, partition: PartitionIndex) -> bool {
        self.0.get(topic).is_some_and(|of| of.partitions.contains(&partition))
    }

    /// Whether a partition of this very topic is in the set.
    pub fn contains_id(&self, topic: &TopicName, id: TopicId, partition: PartitionIndex) -> bool {
        self.0.get(topic).is_some_and(|of| of.id == id && of.partitions.contains(&partition))
    }

    /// Adds a partition. One set holds partitions of one topic per name: false, and nothing is added, if it
    /// holds partitions of another topic of this name.
    pub fn insert(&mut self, topic: &TopicName, id: TopicId, partition: PartitionIndex) -> bool {
        match self.0.get_mut(topic) {
            Some(of) if of.id == id => drop(of.partitions.insert(partition)),
            Some(_) => return false,
            None => {
                let of = OfTopic { id, partitions: BTreeSet::from([partition]) };
                self.0.insert(topic.clone(), of);
            }
        }
        true
    }

    /// Takes a partition away; whether it was there.
    pub fn remove(&mut self, topic: &TopicName, partition: PartitionIndex) -> bool {
        let Some(of) = self.0.get_mut(topic) else { return false };
        let was = of.partitions.remove(&partition);
        if of.partitions.is_empty() {
            self.0.remove(topic);
        }
        was
    }

    /// What is in this set and not in `other`. Partitions of different topics of one name are different.
    pub fn without(&self, other: &Self) -> Self {
        self.filtered(|name, id, partition| !other.contains_id(name, id, partition))
    }

    /// What is in both sets. Partitions of different topics of one name are different.
    pub fn and(&self, other: &Self) -> Self {
        self.filtered(|name, id, partition| other.contains_id(name, id, partition))
    }

    /// Adds what is in `other`. Where it has partitions of another topic of one name, they go by this set's
    /// topic: to hold a partition is to hold its name.
    pub(super) fn absorb(&mut self, other: &Self) {
        for (name, of) in other.topics() {
            match self.0.get_mut(name) {
                Some(mine) => mine.partitions.extend(&of.partitions),
                None => drop(self.0.insert(name.clone(), of.clone())),
            }
        }
    }

    /// What of this set is to be kept.
    pub(super) fn filtered(&self, keep: impl Fn(&TopicName, TopicId, PartitionIndex) -> bool) -> Self {
        let topics = self.0.iter().filter_map(|(name, of)| {
            let partitions: BTreeSet<_> =
                of.partitions.iter().copied().filter(|&partition| keep(name, of.id, partition)).collect();
            (!partitions.is_empty()).then(|| (name.clone(), OfTopic { id: of.id, partitions }))
        });
        Self(topics.collect())
    }
}
