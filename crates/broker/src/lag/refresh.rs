//! The task that keeps the table: it sleeps until a commit or a log has moved, and fills the table in one pass.
//! Nobody waits for a pass, and nobody can make one come sooner.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt, stream};
use rimstone_store::Waiter;
use rimstone_types::PartitionId;
use tokio::time::Instant;

use super::{
    measure::measure,
    table::{Known, Published, Wanted},
};
use crate::{broker::Inner, topics::TopicTable};

/// Partitions that a pass counts in at one time: look-ups may wait for the disk, and must leave it to readers.
const COUNTS_AT_ONCE: usize = 16;

/// The least time between two passes, so that a busy log is not counted for each batch.
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

impl Inner {
    /// Keeps the table until shutdown.
    pub(crate) async fn keep_lag(self: Arc<Self>) {
        let mut watched = Watched::default();
        let mut commits = self.commits.subscribe();
        loop {
            let began = Instant::now();
            commits.mark_unchanged();
            tokio::select! {
                published = self.pass(&mut watched) => self.lag.publish(published),
                () = self.shutdown.cancelled() => return,
            }
            let pause = (began.elapsed() * PAUSE_SHARE).max(PAUSE_MIN);
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.shutdown.cancelled() => return,
            }
            tokio::select! {
                () = watched.waiter.wait() => {}
                changed = commits.changed() => changed.expect("the table outlives its keeper"),
                () = tokio::time::sleep(PASS_EVERY) => {}
                () = self.shutdown.cancelled() => return,
            }
        }
    }

    async fn pass(&self, watched: &mut Watched) -> Published {
        let standing = self.standing(&BTreeSet::new());
        let wanted = standing.partitions(&self.topics, |_| true);
        watched.watch(&self.topics, &wanted);
        let mut before = self.lag.known(wanted.keys());
        let counted = wanted.into_iter().map(|(id, Wanted { topic, partition, positions })| {
            let known = before.remove(&id).map(|known| known.measured);
            async move {
                let measured = measure(&topic, partition, positions.clone(), known).await;
                (id, Known { measured, positions: Arc::new(positions) })
            }
        });
        let counted: Vec<_> = counted.collect();
        let partitions = stream::iter(counted).buffer_unordered(COUNTS_AT_ONCE).collect().await;
        Published { standing, partitions }
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
