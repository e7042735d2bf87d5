//! What a question needs and the table does not have: it is counted at once, in the partitions asked for and in no
//! other, by one question at a time per partition.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures::{StreamExt, stream};
use parking_lot::Mutex;
use rimstone_types::PartitionId;
use tokio::{
    sync::{OwnedMutexGuard, Semaphore},
    time::{Instant, timeout_at},
};

use super::{
    measure::{Measured, Moment, measure},
    table::{Known, Wanted},
};
use crate::broker::Inner;

/// A question that needs a count waits for it no longer than this: less than the 10 s after which what scrapes and
/// draws gives up by default, so that the partitions that can be counted are told.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// Partitions that all questions together count in at one time: look-ups may wait for the disk, and must leave it
/// to readers.
const COUNTS_AT_ONCE: usize = 16;

/// Who counts in which partition for a question.
#[derive(Debug)]
pub(super) struct Turns {
    /// An entry for each partition that somebody counts in, or waits to.
    by_partition: Mutex<BTreeMap<PartitionId, Arc<tokio::sync::Mutex<()>>>>,
    counts: Semaphore,
}

/// The turn to count in a partition, or the place of one who waits for it.
#[derive(Debug)]
struct Turn<'a> {
    turns: &'a Turns,
    id: PartitionId,
    guard: Option<OwnedMutexGuard<()>>,
}

impl Default for Turns {
    fn default() -> Self {
        Self { by_partition: Mutex::default(), counts: Semaphore::new(COUNTS_AT_ONCE) }
    }
}

impl Turns {
    async fn take(&self, id: PartitionId) -> Turn<'_> {
        let mut turn = Turn { turns: self, id, guard: None };
        let lock = Arc::clone(self.by_partition.lock().entry(id).or_default());
        turn.guard = Some(lock.lock_owned().await);
        turn
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut by_partition = self.turns.by_partition.lock();
        self.guard = None;
        if by_partition.get(&self.id).is_some_and(|lock| Arc::strong_count(lock) == 1) {
            by_partition.remove(&self.id);
        }
    }
}

impl Inner {
    /// What was counted in these partitions, all of it at a moment after the call; partitions that could not be
    /// counted in time say so. Those that have not moved since they were counted cost a look at their ends.
    pub(super) async fn measured(
        &self,
        wanted: BTreeMap<PartitionId, Wanted>,
    ) -> BTreeMap<PartitionId, Arc<Measured>> {
        let deadline = Instant::now() + ANSWER_WITHIN;
        let mut known = self.lag.known(wanted.keys());
        let mut measured = BTreeMap::new();
        let mut moved = Vec::new();
        for (id, wanted) in wanted {
            let asked = Moment::now(&wanted.topic, wanted.partition);
            match known.remove(&id).filter(|known| known.measured.answers(asked, &wanted.positions)) {
                Some(Known { measured: known, .. }) => drop(measured.insert(id, known)),
                None => moved.push((id, wanted, asked)),
            }
        }
        let counted = moved.into_iter().map(|(id, wanted, asked)| async move {
            match timeout_at(deadline, self.measure_in_turn(id, &wanted, asked)).await {
                Ok(measured) => (id, measured),
                Err(_) => (id, Arc::new(Measured::late(&wanted.topic, wanted.partition, ANSWER_WITHIN))),
            }
        });
        let counted: Vec<_> = counted.collect();
        let mut counted = stream::iter(counted).buffer_unordered(COUNTS_AT_ONCE);
        while let Some((id, counted)) = counted.next().await {
            measured.insert(id, counted);
        }
        measured
    }

    async fn measure_in_turn(
        &self,
        id: PartitionId,
        wanted: &Wanted,
        asked: Option<Moment>,
    ) -> Arc<Measured> {
        let _turn = self.lag.turns.take(id).await;
        let known = self.lag.known([id].iter()).remove(&id);
        // Whoever had the turn before may have counted just this.
        if let Some(known) = known.as_ref().filter(|known| known.measured.answers(asked, &wanted.positions)) {
            return Arc::clone(&known.measured);
        }
        let _count = self.lag.turns.counts.acquire().await.expect("it is never closed");
        let mut positions = wanted.positions.clone();
        let before = known.map(|known| {
            positions.extend(&*known.positions);
            known.measured
        });
        let measured = measure(&wanted.topic, wanted.partition, positions, before).await;
        self.lag.put(id, &measured);
        measured
    }
}
