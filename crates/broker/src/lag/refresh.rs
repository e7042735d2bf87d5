//! The task that keeps the table: it sleeps until a commit or a log has moved, and fills the table in one pass.
//! Nobody waits for a pass, and nobody can make one come sooner. A partition that is not counted in time does not hold
//! one up.

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
    measure::{Measured, Moment},
    table::{Known, Published, Wanted},
    turns::{ANSWER_WITHIN, COUNTS_AT_ONCE},
};
use crate::{broker::Inner, topics::TopicTable};

/// The least time between two passes, so that a busy log is not counted for each batch.
const PAUSE_MIN: Duration = Duration::from_millis(100);

/// The pause is so many times what the last pass took, if that is more: passes take at most a twentieth of a core.
const PAUSE_SHARE: u32 = 19;

/// A pass that would make the pause longer than this has waited for disks: what it left is to be counted soon.
const PAUSE_MAX: Duration = Duration::from_secs(10);

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
            let pause = (began.elapsed() * PAUSE_SHARE).clamp(PAUSE_MIN, PAUSE_MAX);
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
        let deadline = Instant::now() + ANSWER_WITHIN;
        let counted = wanted.into_iter().map(|(id, wanted)| {
            let known = before.remove(&id).map(|known| known.measured);
            async move {
                let measured = self.measure_for_pass(id, &wanted, known, deadline).await;
                (id, Known { measured, positions: Arc::new(wanted.positions) })
            }
        });
        let counted: Vec<_> = counted.collect();
        let partitions = stream::iter(counted).buffer_unordered(COUNTS_AT_ONCE).collect().await;
        Published { standing, partitions }
    }

    async fn measure_for_pass(
        &self,
        id: PartitionId,
        wanted: &Wanted,
        known: Option<Arc<Measured>>,
        deadline: Instant,
    ) -> Arc<Measured> {
        let now = Moment::now(&wanted.topic, wanted.partition);
        if let Some(known) = known
            && (known.serves(now, &wanted.positions)
                // A pass has waited for this count before.
                || (known.is_late() && self.lag.is_being_counted(id)))
        {
            return known;
        }
        let counted = async {
            let turn = self.lag.turn(id, deadline).await?;
            let before = self.lag.known([id].iter()).remove(&id).map(|known| known.measured);
            turn.count(wanted, wanted.positions.clone(), before, deadline).await
        };
        let late = || Arc::new(Measured::late(&wanted.topic, wanted.partition, ANSWER_WITHIN, now));
        counted.await.unwrap_or_else(late)
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
