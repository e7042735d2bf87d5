//! Who counts where: one at a time in a partition, and so many together. A look-up in a log cannot be stopped half-way,
//! so a count goes on when nobody waits for it any more, and keeps its turn until it has ended.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use rimstone_types::PartitionId;
use tokio::{
    sync::{OwnedMutexGuard, Semaphore},
    time::{Instant, timeout_at},
};

use super::{
    measure::{Measured, Positions, measure},
    table::{LagTable, Wanted},
};

/// Whoever needs a count waits for it no longer than this: less than the 10 s after which what scrapes and draws gives
/// up by default, so that the partitions that can be counted are told.
pub(super) const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// Partitions that are counted in at one time: look-ups may wait for the disk, and must leave it to readers.
pub(super) const COUNTS_AT_ONCE: usize = 16;

/// Who counts in which partition.
#[derive(Debug)]
pub(super) struct Turns {
    /// An entry for each partition that somebody counts in, or waits to.
    by_partition: Mutex<BTreeMap<PartitionId, Arc<tokio::sync::Mutex<()>>>>,
    counts: Arc<Semaphore>,
}

/// The turn to count in a partition, or the place of one who waits for it.
#[derive(Debug)]
pub(super) struct Turn {
    table: Arc<LagTable>,
    id: PartitionId,
    guard: Option<OwnedMutexGuard<()>>,
}

impl Default for Turns {
    fn default() -> Self {
        Self { by_partition: Mutex::default(), counts: Arc::new(Semaphore::new(COUNTS_AT_ONCE)) }
    }
}

impl LagTable {
    /// The turn to count in a partition; `None`: it did not come in time.
    pub(super) async fn turn(self: &Arc<Self>, id: PartitionId, deadline: Instant) -> Option<Turn> {
        let take = async {
            let mut turn = Turn { table: Arc::clone(self), id, guard: None };
            let lock = Arc::clone(self.turns.by_partition.lock().entry(id).or_default());
            turn.guard = Some(lock.lock_owned().await);
            turn
        };
        in_time(deadline, take).await
    }

    /// Whether somebody counts in a partition.
    pub(super) fn is_being_counted(&self, id: PartitionId) -> bool {
        self.turns.by_partition.lock().contains_key(&id)
    }
}

impl Turn {
    /// Counts, and puts into the table what was counted, in time or not; `None`: not in time.
    pub(super) async fn count(
        self,
        wanted: &Wanted,
        positions: Positions,
        before: Option<Arc<Measured>>,
        deadline: Instant,
    ) -> Option<Arc<Measured>> {
        let counts = Arc::clone(&self.table.turns.counts);
        let permit = in_time(deadline, counts.acquire_owned()).await?.expect("it is never closed");
        let (topic, partition) = (Arc::clone(&wanted.topic), wanted.partition);
        let counted = tokio::spawn(async move {
            let measured = measure(&topic, partition, positions, before).await;
            self.table.put(self.id, &measured);
            drop((permit, self));
            measured
        });
        match timeout_at(deadline, counted).await.ok()? {
            Ok(measured) => Some(measured),
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // Nobody aborts it: the runtime itself goes away, and whoever waits with it.
                Err(_) => std::future::pending().await,
            },
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut by_partition = self.table.turns.by_partition.lock();
        self.guard = None;
        if by_partition.get(&self.id).is_some_and(|lock| Arc::strong_count(lock) == 1) {
            by_partition.remove(&self.id);
        }
    }
}

/// A time-out alone lets through what is there already, also when the time is over.
async fn in_time<T>(deadline: Instant, future: impl Future<Output = T>) -> Option<T> {
    let done = timeout_at(deadline, future).await.ok()?;
    (Instant::now() < deadline).then_some(done)
}
