//! Compacting one partition, slice by slice, beside the flusher.
//!
//! Not here: what stays and what goes (`rimstone-log`), which partition comes next and how fast (the broker).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use parking_lot::{Mutex, MutexGuard};
use rimstone_log::{
    Log,
    compaction::{
        Compactable, Compaction, CompactionError, CompactionSettings, CompactionStep, Dirtiness, Obstacle,
        Progress,
    },
    planted::{self, Bug},
};
use rimstone_types::{ByteCount, Offset, PartitionId, Timestamp};

use super::{blocking, partition::LocalPartition, store_error};
use crate::{
    partition::Compacted,
    storage::{PartitionConfig, StoreError},
};

/// How much is worked on, and then put on disk, before the flusher is looked at again: the next group's sync meets no
/// more of ours, and ours is short (ADR 0010).
const UNIT_BYTES: u64 = 256 << 10;
/// How long such a piece waits at most for the flusher to have nothing to do. Without a bound a busy server would
/// never be compacted.
const YIELD_MAX: Duration = Duration::from_millis(10);

/// What is known of compacting a partition.
#[derive(Debug)]
pub(super) struct CompactionState {
    /// The topic's settings, if it is compacted.
    settings: Mutex<Option<CompactionSettings>>,
    work: Mutex<Work>,
    obstacles: Mutex<Obstacles>,
}

/// What is in the way of compaction.
#[derive(Debug, Default)]
struct Obstacles {
    /// As the last look found it.
    now: Vec<Obstacle>,
    /// Segments that were told of since the start.
    told: BTreeSet<Offset>,
}

#[derive(Debug)]
pub(super) struct Work {
    pass: Option<Compaction>,
    /// How many syncs of groups had failed when it began.
    failed_syncs: u64,
    /// Segments in which a pass has met damage, and what: they are not looked at until the server is started again.
    damaged: BTreeMap<Offset, String>,
}

impl Work {
    /// Nothing of a pass that is begun is renamed any more.
    pub(super) fn give_up(&mut self) {
        self.pass = None;
    }

    /// The segment was written anew around its damage.
    pub(super) fn forget_damage(&mut self, segment: Offset) {
        self.damaged.remove(&segment);
    }
}

impl CompactionState {
    pub(super) fn new(config: &PartitionConfig) -> Self {
        let work = Work { pass: None, failed_syncs: 0, damaged: BTreeMap::new() };
        Self { settings: Mutex::new(settings(config)), work: Mutex::new(work), obstacles: Mutex::default() }
    }

    /// Settings changed; a pass that is begun ends at its next slice if the topic is not compacted any more.
    pub(super) fn configure(&self, config: &PartitionConfig) {
        *self.settings.lock() = settings(config);
    }

    pub(super) fn is_on(&self) -> bool {
        self.settings.lock().is_some()
    }

    /// What the last look found in the way, oldest first.
    pub(super) fn obstacles(&self) -> Vec<Obstacle> {
        self.obstacles.lock().now.clone()
    }

    /// A look is over; each segment that is in the way is told of once. Answers those.
    fn found(&self, partition: PartitionId, obstacles: &[Obstacle]) -> Vec<Offset> {
        let mut known = self.obstacles.lock();
        let mut new = Vec::new();
        for obstacle in obstacles {
            if known.told.insert(obstacle.segment) {
                new.push(obstacle.segment);
                tracing::warn!(%partition, segment = %obstacle.segment, reason = %obstacle.reason, "compaction passes a segment by, and keeps the tombstones behind it");
            }
        }
        known.now = obstacles.to_vec();
        new
    }

    /// Held while a slice or the end of a trim runs, also if nobody waits for it any more: each must find the
    /// segments that it looked at.
    pub(super) fn work(&self) -> MutexGuard<'_, Work> {
        self.work.lock()
    }
}

fn settings(config: &PartitionConfig) -> Option<CompactionSettings> {
    config.cleanup.compacts().then(|| config.compaction.settings())
}

/// Why a slice ends a pass.
#[derive(Debug)]
enum Stopped {
    By(CompactionError),
    /// A group would eat more than half of the disk reserve.
    NoRoom,
    /// The partition takes nothing any more.
    Poisoned(StoreError),
}

impl From<CompactionError> for Stopped {
    fn from(error: CompactionError) -> Self {
        Self::By(error)
    }
}

impl LocalPartition {
    /// Waits for a slice that runs, and gives the pass up: nothing is renamed any more.
    pub(super) fn stop_compaction(&self) {
        self.compaction.work().pass = None;
    }

    #[cfg(test)]
    pub(super) fn obstacles_found_again(&self) -> usize {
        self.compaction.found(self.id, &self.compaction.obstacles()).len()
    }

    #[cfg(test)]
    pub(super) fn has_pass(&self) -> bool {
        self.compaction.work().pass.is_some()
    }

    /// How dirty it is; without a look at the files where that is known.
    pub(super) async fn how_dirty(self: &Arc<Self>, now: Timestamp) -> Result<Dirtiness, StoreError> {
        let Some(settings) = *self.compaction.settings.lock() else { return Ok(Dirtiness::default()) };
        let clean = {
            let log = &self.state.lock().log;
            (!log.may_be_compactable(&settings, now)).then(|| log.cleaned_size(&[]).0)
        };
        if let Some(clean_bytes) = clean {
            // What was in the way is gone.
            self.compaction.found(self.id, &[]);
            return Ok(Dirtiness { clean_bytes, ..Dirtiness::default() });
        }
        let found = self.compactable(now).await?;
        Ok(found.map(|(found, _)| found.dirtiness()).unwrap_or_default())
    }

    /// What can be compacted now, and by which settings.
    pub(super) async fn compactable(
        self: &Arc<Self>,
        now: Timestamp,
    ) -> Result<Option<(Compactable, CompactionSettings)>, StoreError> {
        let partition = Arc::clone(self);
        blocking(move || {
            let Some(settings) = *partition.compaction.settings.lock() else { return Ok(None) };
            let damaged = partition.compaction.work().damaged.clone();
            let until = partition.state.lock().log.durable_position().segment;
            let found = Log::compactable(&partition.reader, until, &damaged, &settings, now);
            for obstacle in partition.compaction.found(partition.id, found.obstacles()) {
                partition.damage.suspect(obstacle);
            }
            Ok(Some((found, settings)))
        })
        .await
    }

    /// A slice. The caller sees to it that nothing else maintains the partition meanwhile.
    pub(super) async fn compact_some(
        self: &Arc<Self>,
        now: Timestamp,
        budget: ByteCount,
    ) -> Result<Compacted, StoreError> {
        if let Err(error) = self.check_serving() {
            // Nobody else would end it: it holds a table of keys, a file and descriptors.
            let partition = Arc::clone(self);
            blocking(move || {
                partition.stop_compaction();
                Ok(())
            })
            .await?;
            return Err(error);
        }
        let begun = match self.compaction.work.try_lock() {
            // The slice of a call that was dropped still runs.
            None => return Ok(Compacted { more: true, ..Compacted::default() }),
            Some(work) => work.pass.is_some(),
        };
        if !begun && !self.begin(now).await? {
            return Ok(Compacted::default());
        }
        let partition = Arc::clone(self);
        blocking(move || partition.slice(budget.get())).await
    }

    pub(super) fn check_serving(&self) -> Result<(), StoreError> {
        self.check_open()?;
        match &self.state.lock().poisoned {
            Some(reason) => Err(StoreError::Poisoned { reason: reason.clone() }),
            None => Ok(()),
        }
    }

    /// As far as reading goes.
    pub(super) fn check_open(&self) -> Result<(), StoreError> {
        if self.shared.closing.load(Ordering::Acquire) {
            return Err(StoreError::ShuttingDown);
        }
        if self.state.lock().closed.is_some() { Err(StoreError::Deleted) } else { Ok(()) }
    }

    /// Begins a pass if one is due.
    async fn begin(self: &Arc<Self>, now: Timestamp) -> Result<bool, StoreError> {
        let Some((found, settings)) = self.compactable(now).await? else { return Ok(false) };
        if !found.dirtiness().due {
            return Ok(false);
        }
        // A group of neighbours is written anew before the old ones go.
        let segment_bytes = self.state.lock().log.config().segment_bytes;
        if self.shared.guard.spare(ByteCount(found.room_bytes(segment_bytes))).is_err() {
            return Err(self.full());
        }
        // What is known of producers must outlive the records that it came from (semantics, idempotence, rule 6).
        self.barrier(|log| log.stage_snapshot(!planted::is(Bug::ForgottenProducers))).await?;
        let partition = Arc::clone(self);
        blocking(move || {
            let pass = partition.state.lock().log.begin_compaction(found, &settings, now);
            let mut work = partition.compaction.work();
            partition.check_serving()?;
            work.failed_syncs = partition.shared.syncs.failed();
            work.pass = Some(pass);
            Ok(true)
        })
        .await
    }

    fn slice(&self, budget: u64) -> Result<Compacted, StoreError> {
        let mut work = self.compaction.work();
        self.check_serving()?;
        let Some(mut pass) = work.pass.take().filter(|_| self.compaction.is_on()) else {
            return Ok(Compacted::default());
        };
        let before = pass.progress();
        let done = |progress: Progress, finished: bool| Compacted {
            more: !finished,
            finished,
            read: ByteCount(progress.read_bytes - before.read_bytes),
            written: ByteCount(progress.written_bytes - before.written_bytes),
            records_removed: progress.records_removed - before.records_removed,
            segments_before: progress.segments_before - before.segments_before,
            segments_after: progress.segments_after - before.segments_after,
        };
        loop {
            match self.step(&mut pass, work.failed_syncs) {
                Ok(true) => return Ok(done(pass.progress(), true)),
                Ok(false) => {}
                // What is left may still be due: another call looks.
                Err(Stopped::By(CompactionError::Overtaken)) => return Ok(done(pass.progress(), false)),
                // The reserve is for commits. What was written goes with the pass; a later one does it.
                Err(Stopped::NoRoom) => return Err(self.full()),
                Err(Stopped::Poisoned(error)) => return Err(error),
                Err(Stopped::By(error)) => {
                    if let CompactionError::Damaged { segment, reason } = &error {
                        work.damaged.insert(*segment, reason.clone());
                        self.damage.suspect(*segment);
                    }
                    return Err(self.failed(error));
                }
            }
            let progress = pass.progress();
            if done(progress, false).read.get() >= budget || self.shared.closing.load(Ordering::Acquire) {
                work.pass = Some(pass);
                return Ok(done(progress, false));
            }
        }
    }

    /// One piece. `true`: the pass is over.
    fn step(&self, pass: &mut Compaction, failed_syncs: u64) -> Result<bool, Stopped> {
        // Reading makes nobody wait.
        if pass.writes() {
            self.shared.queue.wait_until_idle(YIELD_MAX);
            self.shared.guard.take_spare(ByteCount(UNIT_BYTES)).map_err(|_| Stopped::NoRoom)?;
        }
        match pass.advance(UNIT_BYTES)? {
            CompactionStep::More => Ok(false),
            CompactionStep::Room(bytes) => {
                self.shared.guard.spare(ByteCount(bytes)).map_err(|_| Stopped::NoRoom)?;
                Ok(false)
            }
            CompactionStep::Done => Ok(true),
            CompactionStep::Replace(replacement) => {
                // What was written may be lost, though its own sync did not say so: nothing is replaced by it.
                if !self.shared.syncs.none_failed_since(failed_syncs) {
                    return Err(CompactionError::Overtaken.into());
                }
                let snapshot = self.state.lock().log.may_replace(&replacement)?;
                let replaced = replacement.install(snapshot)?;
                self.state.lock().log.replaced(&replaced);
                self.check_names(failed_syncs).map_err(Stopped::Poisoned)?;
                replaced.clean_up();
                Ok(false)
            }
        }
    }

    /// Before what was replaced goes: a sync of everything that failed meanwhile may have taken the new names with it.
    pub(super) fn check_names(&self, failed_syncs: u64) -> Result<(), StoreError> {
        if self.shared.syncs.none_failed_since(failed_syncs) {
            return Ok(());
        }
        let reason =
            "a sync failed while a segment was replaced: which of the two is there is not known".to_owned();
        self.poison(&reason);
        Err(StoreError::Poisoned { reason })
    }

    pub(super) fn full(&self) -> StoreError {
        StoreError::Full { path: self.directory.display().to_string() }
    }

    fn failed(&self, error: CompactionError) -> StoreError {
        match error {
            CompactionError::File(error) => store_error(error),
            CompactionError::Unknown(error) => {
                let reason = format!("a compacted segment may not be there after a power cut: {error}");
                self.poison(&reason);
                StoreError::Poisoned { reason }
            }
            error @ (CompactionError::Damaged { .. }
            | CompactionError::Overtaken
            | CompactionError::NoSnapshot(_)) => StoreError::Io {
                operation: "compact",
                path: self.directory.display().to_string(),
                reason: error.to_string(),
            },
        }
    }
}
