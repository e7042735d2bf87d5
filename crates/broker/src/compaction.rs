//! Which log is compacted next: the dirtiest that is due, one at a time, slice by slice.
//!
//! Not here: what stays and what goes, yielding to the flusher (the store).

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use rimstone_store::{Compacted, PartitionStore, StoreError, StoreState};
use rimstone_types::{ByteCount, PartitionId, PartitionIndex, Timestamp, TopicName};
use tokio::time::MissedTickBehavior;

use crate::broker::{Broker, Inner};

/// Log that is gone over before anything else gets its turn: a slice holds up a trim of the same partition.
const SLICE: ByteCount = ByteCount::mib(4);
/// After a slice the loop rests for as long as it took, in tenths: so that it takes a bounded share of a processor
/// and of the disk (ADR 0010).
const REST_TENTHS: u32 = 10;

/// What one tick of compaction did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CompactionReport {
    /// Bytes of log read.
    pub read: ByteCount,
    /// Bytes of log written anew.
    pub written: ByteCount,
    /// Records that went.
    pub records_removed: u64,
    /// A pass over a partition ended.
    pub finished: bool,
    /// A pass failed; that was logged, and the partition is left alone until the next round.
    pub failed: bool,
    /// There is more to do: another tick would do it.
    pub more: bool,
}

/// Where the compaction of this server stands.
#[derive(Debug, Default)]
pub(crate) struct Compacting {
    current: Option<Candidate>,
    /// Failed, or gone, in this round.
    failed: BTreeSet<PartitionId>,
}

#[derive(Debug, Clone)]
struct Candidate {
    topic: TopicName,
    partition: PartitionIndex,
    id: PartitionId,
    store: Arc<dyn PartitionStore>,
}

impl Broker {
    /// One slice of compaction: goes on with the partition that is being compacted, or takes the dirtiest one that
    /// is due, as if the time were `now`.
    pub async fn compact(&self, now: Timestamp) -> CompactionReport {
        self.inner.compact(now).await
    }
}

impl Inner {
    pub(crate) async fn compact(&self, now: Timestamp) -> CompactionReport {
        let mut compacting = self.compacting.lock().await;
        if self.shutdown.is_cancelled() {
            return CompactionReport::default();
        }
        let candidate = match compacting.current.take() {
            Some(candidate) => candidate,
            None => match self.dirtiest(&compacting.failed, now).await {
                Some(candidate) => candidate,
                None => {
                    // The next round tries again what failed in this one.
                    compacting.failed.clear();
                    return CompactionReport::default();
                }
            },
        };
        let began = Instant::now();
        let result = candidate.store.compact(now, SLICE).await;
        self.metrics.compaction.slice(&result, began.elapsed());
        match result {
            Ok(done) => {
                tell(&candidate, &done);
                if done.more {
                    compacting.current = Some(candidate);
                }
                CompactionReport {
                    read: done.read,
                    written: done.written,
                    records_removed: done.records_removed,
                    finished: done.finished,
                    failed: false,
                    // What was due and is not begun would be tried for ever.
                    more: done.more || done.finished,
                }
            }
            // The store takes no more work: not even from the others.
            Err(StoreError::ShuttingDown) => CompactionReport::default(),
            Err(StoreError::Deleted) => {
                // It may still be in the list for a moment.
                compacting.failed.insert(candidate.id);
                CompactionReport { more: true, ..CompactionReport::default() }
            }
            Err(error) => {
                let Candidate { topic, partition, id, .. } = candidate;
                tracing::warn!(%topic, %partition, %error, "a log was not compacted");
                compacting.failed.insert(id);
                CompactionReport { failed: true, more: true, ..CompactionReport::default() }
            }
        }
    }

    /// The dirtiest partition that is due.
    async fn dirtiest(&self, failed: &BTreeSet<PartitionId>, now: Timestamp) -> Option<Candidate> {
        let mut dirtiest: Option<(f64, Candidate)> = None;
        for topic in self.topics.all() {
            if !topic.settings.partition.cleanup.compacts() {
                continue;
            }
            for (partition, store) in topic.open_partitions() {
                let id = topic.partition_id(partition);
                // Nothing can be done.
                if store.info().state != StoreState::Serving || failed.contains(&id) {
                    continue;
                }
                let dirtiness = match store.dirtiness(now).await {
                    Ok(dirtiness) if dirtiness.due => dirtiness,
                    Ok(_) => continue,
                    Err(error) => {
                        tracing::warn!(topic = %topic.name, %partition, %error, "how dirty a log is cannot be told");
                        continue;
                    }
                };
                let ratio = dirtiness.ratio();
                if dirtiest.as_ref().is_none_or(|(dirtier, _)| *dirtier < ratio) {
                    let (topic, store) = (topic.name.clone(), Arc::clone(store));
                    dirtiest = Some((ratio, Candidate { topic, partition, id, store }));
                }
            }
        }
        dirtiest.map(|(_, candidate)| candidate)
    }

    /// Compacts whatever is due, every so often, until shutdown.
    pub(crate) async fn run_compaction(self: Arc<Self>, every: Duration) {
        let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + every, every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = self.shutdown.cancelled() => return,
            }
            loop {
                let began = Instant::now();
                if !self.compact(self.clock.now()).await.more {
                    break;
                }
                tokio::select! {
                    () = tokio::time::sleep(began.elapsed() * REST_TENTHS / 10) => {}
                    () = self.shutdown.cancelled() => return,
                }
            }
        }
    }
}

fn tell(candidate: &Candidate, done: &Compacted) {
    if done.finished {
        let Candidate { topic, partition, .. } = candidate;
        tracing::info!(%topic, %partition, "compacted");
    }
}

#[cfg(test)]
mod tests;
