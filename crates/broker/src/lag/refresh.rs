//! The task that keeps the table: it sleeps until a commit or a log has moved, or somebody waits, and fills the
//! table in one pass.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt, stream};
use rimstone_store::Waiter;
use rimstone_types::{GroupName, PartitionId, PartitionIndex};
use tokio::time::Instant;

use super::{
    measure::{Positions, measure},
    table::Published,
};
use crate::{
    broker::Inner,
    groups::GroupCommits,
    topics::{Topic, TopicTable},
};

/// Partitions that are counted at one time: look-ups may wait for the disk, and must leave it to readers.
const COUNTS_AT_ONCE: usize = 16;

/// The least time between two passes that nobody waits for, so that a busy log is not counted for each batch.
const PAUSE_MIN: Duration = Duration::from_millis(100);

/// The pause is so many times what the last pass took, if that is more: passes take at most a twentieth of a core.
const PAUSE_SHARE: u32 = 19;

/// A pass is made this often even if nothing was heard of: log start moves without a word.
const PASS_EVERY: Duration = Duration::from_secs(1);

/// What the task remembers from pass to pass.
#[derive(Debug, Default)]
struct Watched {
    waiter: Waiter,
    /// Partitions that wake the waiter.
    subscribed: BTreeSet<PartitionId>,
}

/// A partition to count in.
struct Wanted {
    topic: Arc<Topic>,
    partition: PartitionIndex,
    positions: Positions,
}

impl Inner {
    /// Keeps the table until shutdown.
    pub(crate) async fn keep_lag(self: Arc<Self>) {
        let mut watched = Watched::default();
        let mut commits = self.commits.subscribe();
        loop {
            let began = Instant::now();
            commits.mark_unchanged();
            let asked = self.lag.asked();
            let published = self.pass(&mut watched).await;
            self.lag.publish(published, asked);
            let pause = (began.elapsed() * PAUSE_SHARE).max(PAUSE_MIN);
            // A pass that was asked for meanwhile has left its mark, and comes at once.
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.lag.ask.notified() => continue,
                () = self.shutdown.cancelled() => return,
            }
            tokio::select! {
                () = watched.waiter.wait() => {}
                changed = commits.changed() => changed.expect("the table outlives its keeper"),
                () = tokio::time::sleep(PASS_EVERY) => {}
                () = self.lag.ask.notified() => {}
                () = self.shutdown.cancelled() => return,
            }
        }
    }

    async fn pass(&self, watched: &mut Watched) -> Published {
        let before = self.lag.published();
        let version = self.commits.version();
        let groups = self.commits.read(|groups| {
            let kept = |(name, commits): (&GroupName, &GroupCommits)| {
                let same = before.groups.get(name).filter(|known| known.version == commits.version);
                (name.clone(), same.cloned().unwrap_or_else(|| Arc::new(commits.clone())))
            };
            groups.iter().map(kept).collect()
        });
        let mut published = Published { version, groups, partitions: BTreeMap::new() };
        let wanted = self.wanted(&published);
        watched.watch(&self.topics, &wanted);
        let counted = wanted.into_iter().map(|(id, wanted)| {
            let known = before.partitions.get(&id).cloned();
            async move { (id, measure(&wanted.topic, wanted.partition, wanted.positions, known).await) }
        });
        published.partitions = stream::iter(counted).buffer_unordered(COUNTS_AT_ONCE).collect().await;
        published
    }

    fn wanted(&self, published: &Published) -> BTreeMap<PartitionId, Wanted> {
        let mut wanted: BTreeMap<PartitionId, Wanted> = BTreeMap::new();
        published.each(
            &self.topics,
            |_, _| true,
            |_, topic, partition, entry| {
                let commit = entry.commit.filter(|commit| commit.topic_id == topic.id);
                let in_partition = wanted.entry(topic.partition_id(partition)).or_insert_with(|| Wanted {
                    topic: Arc::clone(topic),
                    partition,
                    positions: Positions::new(),
                });
                in_partition.positions.insert(commit.map(|commit| commit.offset));
            },
        );
        wanted
    }
}

impl Watched {
    /// Subscribes before anything is counted, so that no move is missed.
    fn watch(&mut self, topics: &TopicTable, wanted: &BTreeMap<PartitionId, Wanted>) {
        if self.subscribed.len() > wanted.len() {
            // A subscription lasts as long as its partition: one made twice would take room there.
            let topics: BTreeSet<_> = topics.all().iter().map(|topic| topic.id).collect();
            self.subscribed.retain(|id| topics.contains(&id.topic));
        }
        for (id, Wanted { topic, partition, .. }) in wanted {
            if let Ok(store) = topic.partition(*partition)
                && self.subscribed.insert(*id)
            {
                store.subscribe(&self.waiter);
            }
        }
    }
}
