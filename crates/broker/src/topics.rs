//! The table of topics: from a name to partitions that are open, or to the reason why they are not. Not here:
//! what the catalog keeps of a topic (`catalog`), what settings there are (`settings`).

mod change;

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::RwLock;
use rimstone_store::{PartitionStore, StoreInfo};
use rimstone_types::{PartitionId, PartitionIndex, ProducerId, Timestamp, TopicId, TopicName};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::{
    broker::Broker,
    error::{
        DeleteRecordsError, FindDamageError, LossError, OffsetCommitError, PartitionNotFound,
        PartitionReadError, PartitionUnavailable, ProduceError, TopicNotFound,
    },
    metrics::TopicCounters,
    settings::{Overrides, TopicSetting, TopicSettings},
};

/// A topic in short.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicSummary {
    /// Its name.
    pub name: TopicName,
    /// Its identity, also the name of its directory.
    pub id: TopicId,
    /// How many partitions.
    pub partitions: u32,
    /// Whether it belongs to the server.
    pub internal: bool,
    /// When it was made.
    pub created: Timestamp,
}

/// A topic with its partitions and settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicDescription {
    /// In short.
    pub topic: TopicSummary,
    /// In order.
    pub partitions: Vec<PartitionDescription>,
    /// All settings, in order of their names.
    pub settings: Vec<TopicSetting>,
}

/// A partition as it is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionDescription {
    /// Which one.
    pub partition: PartitionIndex,
    /// What it looks like inside, or why it could not be opened.
    pub state: Result<StoreInfo, String>,
}

/// How many partitions a topic had, and for whom: requests of a producer are spread over a count that stays
/// the same for its whole epoch, so that a request sent again goes where it went before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CountSince {
    /// The generation of the catalog that made it so: holds for named producers whose epoch is younger.
    pub(crate) generation: u64,
    /// Holds for unnamed producers from this id on.
    pub(crate) from_unnamed_id: u64,
    /// How many.
    pub(crate) count: u32,
}

/// A topic as it is at one moment; a change makes a new one.
#[derive(Debug)]
pub(crate) struct Topic {
    pub(crate) name: TopicName,
    pub(crate) id: TopicId,
    pub(crate) created: Timestamp,
    pub(crate) overrides: Overrides,
    pub(crate) settings: TopicSettings,
    pub(crate) slots: Vec<Slot>,
    /// Oldest first, never empty.
    pub(crate) counts: Vec<CountSince>,
    pub(crate) counters: TopicCounters,
}

/// The place of a partition.
#[derive(Debug, Clone)]
pub(crate) enum Slot {
    Open(Arc<dyn PartitionStore>),
    /// Why it could not be opened.
    Unavailable(String),
}

/// Why a partition cannot be used.
#[derive(Debug)]
pub(crate) enum SlotError {
    NotFound(PartitionNotFound),
    Unavailable(PartitionUnavailable),
}

/// The bound that a producer's requests are compared with: the age of its epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ProducerAge {
    /// A named producer: the generation of the catalog that gave it its epoch.
    Named { generation: u64 },
    /// An unnamed one: its id.
    Unnamed { id: ProducerId },
}

impl Topic {
    pub(crate) fn partition_count(&self) -> u32 {
        u32::try_from(self.slots.len()).expect("bounded by Limits::partitions_per_topic")
    }

    pub(crate) fn partition_id(&self, partition: PartitionIndex) -> PartitionId {
        PartitionId { topic: self.id, partition }
    }

    pub(crate) fn partition(&self, partition: PartitionIndex) -> Result<&Arc<dyn PartitionStore>, SlotError> {
        match self.slots.get(partition.0 as usize) {
            Some(Slot::Open(store)) => Ok(store),
            Some(Slot::Unavailable(why)) => Err(SlotError::Unavailable(PartitionUnavailable {
                topic: self.name.clone(),
                partition,
                why: why.clone(),
            })),
            None => Err(SlotError::NotFound(PartitionNotFound {
                topic: self.name.clone(),
                partition,
                partitions: self.partition_count(),
            })),
        }
    }

    /// All partitions, by index.
    pub(crate) fn partitions(&self) -> impl Iterator<Item = (PartitionIndex, &Slot)> {
        (0..).map(PartitionIndex).zip(&self.slots)
    }

    /// Those that are open.
    pub(crate) fn open_partitions(&self) -> impl Iterator<Item = (PartitionIndex, &Arc<dyn PartitionStore>)> {
        self.partitions().filter_map(|(partition, slot)| match slot {
            Slot::Open(store) => Some((partition, store)),
            Slot::Unavailable(_) => None,
        })
    }

    /// The partition count for the requests of a producer of this age. A topic younger than the producer has
    /// its first count for it.
    pub(crate) fn count_for(&self, age: ProducerAge) -> u32 {
        let holds = |since: &&CountSince| match age {
            ProducerAge::Named { generation } => since.generation < generation,
            ProducerAge::Unnamed { id } => since.from_unnamed_id <= id.get(),
        };
        let since = self.counts.iter().rev().find(holds).or(self.counts.first());
        since.expect("a topic is made with its first count").count
    }

    pub(crate) fn summary(&self) -> TopicSummary {
        TopicSummary {
            name: self.name.clone(),
            id: self.id,
            partitions: self.partition_count(),
            internal: self.name.is_internal(),
            created: self.created,
        }
    }

    pub(crate) fn describe(&self) -> TopicDescription {
        let describe = |(partition, slot): (PartitionIndex, &Slot)| PartitionDescription {
            partition,
            state: match slot {
                Slot::Open(store) => Ok(store.info()),
                Slot::Unavailable(why) => Err(why.clone()),
            },
        };
        TopicDescription {
            topic: self.summary(),
            partitions: self.partitions().map(describe).collect(),
            settings: self.settings.describe(&self.overrides),
        }
    }
}

/// All topics, internal ones too.
#[derive(Debug, Default)]
pub(crate) struct TopicTable {
    topics: RwLock<BTreeMap<TopicName, Arc<Topic>>>,
    /// Goes up with every change, after the change can be read.
    version: watch::Sender<u64>,
}

impl TopicTable {
    pub(crate) fn get(&self, name: &TopicName) -> Result<Arc<Topic>, TopicNotFound> {
        self.topics.read().get(name).cloned().ok_or_else(|| TopicNotFound { topic: name.clone() })
    }

    pub(crate) fn all(&self) -> Vec<Arc<Topic>> {
        self.topics.read().values().cloned().collect()
    }

    pub(crate) fn put(&self, topic: Arc<Topic>) {
        self.topics.write().insert(topic.name.clone(), topic);
        self.version.send_modify(|version| *version += 1);
    }

    fn remove(&self, name: &TopicName) {
        self.topics.write().remove(name);
        self.version.send_modify(|version| *version += 1);
    }

    /// Resolves on changes.
    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// The topics whose names begin so, without the server's own.
    pub(crate) fn names_with_prefix(&self, prefix: &str) -> Vec<TopicName> {
        let topics = self.topics.read();
        let names = topics.keys().filter(|name| name.as_str().starts_with(prefix) && !name.is_internal());
        names.cloned().collect()
    }

    /// Topics and partitions there are, internal ones not counted.
    pub(crate) fn count(&self) -> (u32, u32) {
        let table = self.topics.read();
        let users = table.values().filter(|topic| !topic.name.is_internal());
        users.fold((0, 0), |(topics, partitions), topic| (topics + 1, partitions + topic.partition_count()))
    }
}

impl Broker {
    /// All topics in order of their names.
    pub fn list_topics(&self, include_internal: bool) -> Vec<TopicSummary> {
        let topics = self.inner.topics.all();
        let shown = topics.iter().filter(|topic| include_internal || !topic.name.is_internal());
        shown.map(|topic| topic.summary()).collect()
    }

    /// A topic with its partitions and settings.
    ///
    /// # Errors
    /// [`TopicNotFound`].
    pub fn describe_topic(&self, name: &TopicName) -> Result<TopicDescription, TopicNotFound> {
        self.counted(self.inner.topics.get(name).map(|topic| topic.describe()))
    }
}

macro_rules! from_slot_error {
    ($($error:ident :: $not_found:ident),+) => {
        $(impl From<SlotError> for $error {
            fn from(error: SlotError) -> Self {
                match error {
                    SlotError::NotFound(error) => Self::$not_found(error),
                    SlotError::Unavailable(error) => Self::Unavailable(error),
                }
            }
        })+
    };
}

from_slot_error!(
    ProduceError::PartitionNotFound,
    DeleteRecordsError::PartitionNotFound,
    FindDamageError::PartitionNotFound,
    LossError::PartitionNotFound,
    OffsetCommitError::PartitionNotFound,
    PartitionReadError::NotFound
);

#[cfg(test)]
mod tests {
    use super::*;

    fn topic(counts: &[(u64, u64, u32)]) -> Topic {
        let since = |(generation, from_unnamed_id, count): &(u64, u64, u32)| CountSince {
            generation: *generation,
            from_unnamed_id: *from_unnamed_id,
            count: *count,
        };
        Topic {
            name: "t".parse().unwrap(),
            id: TopicId::CATALOG,
            created: Timestamp(0),
            overrides: Overrides::new(),
            settings: TopicSettings::default(),
            slots: Vec::new(),
            counts: counts.iter().map(since).collect(),
            counters: crate::metrics::Metrics::new().topic(&"t".parse().unwrap()),
        }
    }

    #[test]
    fn the_partition_count_is_the_one_of_the_producers_age() {
        let topic = topic(&[(5, 1000, 3), (9, 2000, 6), (12, 2000, 8)]);
        let named = |generation| topic.count_for(ProducerAge::Named { generation });
        // Older than the topic: the first count. The generation of the change itself is not younger.
        for (generation, count) in [(1, 3), (5, 3), (6, 3), (9, 3), (10, 6), (12, 6), (13, 8), (99, 8)] {
            assert_eq!(named(generation), count, "generation {generation}");
        }
        let unnamed = |id| topic.count_for(ProducerAge::Unnamed { id: ProducerId::new(id).unwrap() });
        for (id, count) in [(1, 3), (999, 3), (1000, 3), (1999, 3), (2000, 8), (5000, 8)] {
            assert_eq!(unnamed(id), count, "id {id}");
        }
    }
}
