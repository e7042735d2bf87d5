//! What is kept of what was counted, and how it becomes rows. Not here: when it is counted (`refresh`, `query`, `turns`).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use parking_lot::RwLock;
use rimstone_state::lag::{Lag, Unread};
use rimstone_types::{GroupName, Offset, PartitionId, PartitionIndex, Timestamp, TopicName};

use super::{
    LagUnknown,
    measure::{Measured, Positions},
    turns::Turns,
};
use crate::{
    broker::Inner,
    groups::{Commit, GroupCommits, Owner, PartitionCommit},
    topics::{Topic, TopicTable},
};

/// The maintained table. Filled by one task, a pass at a time; what a question had to count is put in too.
#[derive(Debug, Default)]
pub(crate) struct LagTable {
    published: RwLock<Published>,
    pub(super) turns: Turns,
}

/// The outcome of a pass: who stood where, and what was counted from there.
#[derive(Debug, Default)]
pub(super) struct Published {
    pub(super) standing: Standing,
    pub(super) partitions: BTreeMap<PartitionId, Known>,
}

/// What is known of a partition.
#[derive(Debug, Clone)]
pub(super) struct Known {
    /// Of the last pass, or of a later question.
    pub(super) measured: Arc<Measured>,
    /// Where groups stood in the last pass: what metrics show is counted from there.
    pub(super) positions: Arc<Positions>,
}

/// What groups have committed and who owns what, at one moment.
#[derive(Debug, Default)]
pub(super) struct Standing(BTreeMap<GroupName, Arc<GroupCommits>>);

/// A partition that somebody stands in.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) topic: Arc<Topic>,
    pub(super) partition: PartitionIndex,
    pub(super) positions: Positions,
}

/// One group in one partition.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) group: GroupName,
    pub(crate) topic: TopicName,
    pub(crate) partition: PartitionIndex,
    pub(super) commit: Option<Commit>,
    pub(super) owner: Option<Arc<Owner>>,
    pub(super) counted: Result<Counted, LagUnknown>,
}

/// What was counted for one row.
#[derive(Debug, Clone, Copy)]
pub(super) struct Counted {
    pub(super) start: Offset,
    pub(super) end: Offset,
    pub(super) unread: Unread,
}

impl Row {
    /// The lag at a time; `None` where it is not known.
    pub(crate) fn lag(&self, now: Timestamp) -> Option<Lag> {
        self.counted.as_ref().ok().map(|counted| counted.unread.at(now))
    }
}

impl LagTable {
    /// What a pass found; but what a question has meanwhile counted at a later moment stays.
    pub(super) fn publish(&self, mut published: Published) {
        let mut there = self.published.write();
        for (id, known) in &mut published.partitions {
            if let Some(kept) = there.partitions.get(id).map(|kept| &kept.measured)
                && !Arc::ptr_eq(kept, &known.measured)
                && known.measured.yields_to(kept, &known.positions)
            {
                known.measured = Arc::clone(kept);
            }
        }
        let before = std::mem::replace(&mut *there, published);
        drop(there);
        // Freed without the lock.
        drop(before);
    }

    /// What is known of some partitions.
    pub(super) fn known<'a>(
        &self,
        partitions: impl Iterator<Item = &'a PartitionId>,
    ) -> BTreeMap<PartitionId, Known> {
        let published = self.published.read();
        partitions.filter_map(|id| Some((*id, published.partitions.get(id)?.clone()))).collect()
    }

    /// Puts in what was counted, unless a pass has meanwhile found groups where it was not, or there is better.
    pub(super) fn put(&self, id: PartitionId, measured: &Arc<Measured>) {
        let mut published = self.published.write();
        match published.partitions.get_mut(&id) {
            Some(known) => {
                if measured.covers(&known.positions) && !measured.yields_to(&known.measured, &known.positions)
                {
                    known.measured = Arc::clone(measured);
                }
            }
            None => {
                let known = Known { measured: Arc::clone(measured), positions: Arc::default() };
                published.partitions.insert(id, known);
            }
        }
    }

    /// All rows of the last pass, in order of group, topic and partition. Of a topic that was deleted, or made
    /// anew, nothing is left.
    pub(crate) fn rows(&self, topics: &TopicTable) -> Vec<Row> {
        let published = self.published.read();
        let measured = |id| published.partitions.get(&id).map(|known| &*known.measured);
        published.standing.rows(topics, |_| true, measured)
    }
}

impl Inner {
    /// Who stands where now; `groups` empty: of all groups.
    pub(super) fn standing(&self, groups: &BTreeSet<GroupName>) -> Standing {
        let published = self.lag.published.read();
        let kept = |(name, commits): (&GroupName, &GroupCommits)| {
            let same = published.standing.0.get(name).filter(|known| known.version == commits.version);
            (name.clone(), same.cloned().unwrap_or_else(|| Arc::new(commits.clone())))
        };
        self.commits.read(|all| {
            Standing(match groups.is_empty() {
                true => all.iter().map(kept).collect(),
                false => groups.iter().filter_map(|name| all.get_key_value(name)).map(kept).collect(),
            })
        })
    }
}

impl Standing {
    /// Visits what groups have in topics that exist: an offset in this topic, not in an earlier one of its name,
    /// or an owner.
    fn each(
        &self,
        topics: &TopicTable,
        wanted: impl Fn(&TopicName) -> bool,
        mut visit: impl FnMut(&GroupName, &Arc<Topic>, PartitionIndex, &PartitionCommit),
    ) {
        for (group, commits) in &self.0 {
            for (name, partitions) in &commits.topics {
                if !wanted(name) {
                    continue;
                }
                let Ok(topic) = topics.get(name) else { continue };
                for (&partition, entry) in partitions {
                    let committed = entry.commit.is_some_and(|commit| commit.topic_id == topic.id);
                    if committed || entry.owner.is_some() {
                        visit(group, &topic, partition, entry);
                    }
                }
            }
        }
    }

    /// How many rows there are in the wanted topics.
    pub(super) fn count(&self, topics: &TopicTable, wanted: impl Fn(&TopicName) -> bool) -> usize {
        let mut count = 0;
        self.each(topics, wanted, |_, _, _, _| count += 1);
        count
    }

    /// The partitions of the wanted topics that somebody stands in.
    pub(super) fn partitions(
        &self,
        topics: &TopicTable,
        wanted: impl Fn(&TopicName) -> bool,
    ) -> BTreeMap<PartitionId, Wanted> {
        let mut partitions: BTreeMap<PartitionId, Wanted> = BTreeMap::new();
        self.each(topics, wanted, |_, topic, partition, entry| {
            let commit = entry.commit.filter(|commit| commit.topic_id == topic.id);
            let in_partition = partitions.entry(topic.partition_id(partition)).or_insert_with(|| Wanted {
                topic: Arc::clone(topic),
                partition,
                positions: Positions::new(),
            });
            in_partition.positions.insert(commit.map(|commit| commit.offset));
        });
        partitions
    }

    /// Rows of the wanted topics, in order of group, topic and partition, where something was counted.
    pub(super) fn rows<'a>(
        &self,
        topics: &TopicTable,
        wanted: impl Fn(&TopicName) -> bool,
        measured: impl Fn(PartitionId) -> Option<&'a Measured>,
    ) -> Vec<Row> {
        let mut rows = Vec::new();
        self.each(topics, wanted, |group, topic, partition, entry| {
            let commit = entry.commit.filter(|commit| commit.topic_id == topic.id);
            let position = commit.map(|commit| commit.offset);
            let measured = measured(topic.partition_id(partition));
            if let Some(counted) = measured.and_then(|measured| measured.from(position)) {
                rows.push(Row {
                    group: group.clone(),
                    topic: topic.name.clone(),
                    partition,
                    commit,
                    owner: entry.owner.clone(),
                    counted,
                });
            }
        });
        rows
    }
}
