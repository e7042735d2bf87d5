//! What is published of the last pass, and the questions that it answers without asking the store for more than
//! its ends.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use parking_lot::RwLock;
use rimstone_state::lag::{Lag, Unread};
use rimstone_types::{GroupName, Offset, PartitionId, PartitionIndex, Timestamp, TopicName};
use tokio::sync::{Notify, watch};

use super::{LagUnknown, measure::Measured};
use crate::{
    broker::Inner,
    groups::{Commit, GroupCommits, Owner, PartitionCommit},
    topics::{Topic, TopicTable},
};

/// The maintained table. Filled by one task, a pass at a time.
#[derive(Debug)]
pub(crate) struct LagTable {
    published: RwLock<Arc<Published>>,
    /// The number of the last pass that was asked for.
    asked: AtomicU64,
    pub(super) ask: Notify,
    /// The number of the last pass that was asked for before the last pass began.
    filled: watch::Sender<u64>,
}

/// The outcome of a pass: commits, and what was counted from each of them.
#[derive(Debug, Default)]
pub(super) struct Published {
    /// The version of the commits, read before them.
    pub(super) version: u64,
    pub(super) groups: BTreeMap<GroupName, Arc<GroupCommits>>,
    pub(super) partitions: BTreeMap<PartitionId, Arc<Measured>>,
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

impl Default for LagTable {
    fn default() -> Self {
        Self {
            published: RwLock::default(),
            asked: AtomicU64::new(0),
            ask: Notify::new(),
            filled: watch::Sender::new(0),
        }
    }
}

impl LagTable {
    pub(super) fn published(&self) -> Arc<Published> {
        Arc::clone(&self.published.read())
    }

    /// To be told to [`LagTable::publish`]: what is asked for until now is answered by a pass that begins now.
    pub(super) fn asked(&self) -> u64 {
        self.asked.load(Ordering::Acquire)
    }

    pub(super) fn publish(&self, published: Published, asked: u64) {
        *self.published.write() = Arc::new(published);
        self.filled.send_replace(asked);
    }

    /// Resolves when a pass that began after the call is published.
    pub(super) async fn filled(&self) {
        let mut filled = self.filled.subscribe();
        let number = self.asked.fetch_add(1, Ordering::AcqRel) + 1;
        self.ask.notify_one();
        // The sender lives as long as the table.
        drop(filled.wait_for(|filled| *filled >= number).await);
    }

    /// Whether nothing that is wanted has moved since the table was filled. Costs a look at the ends.
    pub(super) fn is_current(
        &self,
        inner: &Inner,
        groups: &BTreeSet<GroupName>,
        wanted: impl Fn(&GroupName, &TopicName) -> bool,
    ) -> bool {
        let published = self.published();
        if published.version != inner.commits.version() {
            let same = |group: &GroupName| {
                let now = inner.commits.read(|groups| groups.get(group).map(|commits| commits.version));
                now == published.groups.get(group).map(|commits| commits.version)
            };
            if groups.is_empty() || !groups.iter().all(same) {
                return false;
            }
        }
        let mut current = true;
        published.each(&inner.topics, wanted, |_, topic, partition, _| {
            let measured = published.partitions.get(&topic.partition_id(partition));
            current &= measured.is_some_and(|measured| measured.is_of(topic, partition));
        });
        current
    }

    /// All rows that are wanted, in order of group, topic and partition. Of a topic that was deleted, or made
    /// anew, nothing is left.
    pub(crate) fn rows(
        &self,
        topics: &TopicTable,
        wanted: impl Fn(&GroupName, &TopicName) -> bool,
    ) -> Vec<Row> {
        let published = self.published();
        let mut rows = Vec::new();
        published.each(topics, wanted, |group, topic, partition, entry| {
            let commit = entry.commit.filter(|commit| commit.topic_id == topic.id);
            let position = commit.map(|commit| commit.offset);
            let measured = published.partitions.get(&topic.partition_id(partition));
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

impl Published {
    /// Visits what groups have in topics that exist: an offset in this topic, not in an earlier one of its name,
    /// or an owner.
    pub(super) fn each(
        &self,
        topics: &TopicTable,
        wanted: impl Fn(&GroupName, &TopicName) -> bool,
        mut visit: impl FnMut(&GroupName, &Arc<Topic>, PartitionIndex, &PartitionCommit),
    ) {
        for (group, commits) in &self.groups {
            for (name, partitions) in &commits.topics {
                if !wanted(group, name) {
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
}
