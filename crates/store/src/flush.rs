//! Group commit: one thread per data directory takes everything staged since the last round, writes each
//! partition's gathered frames, makes them durable with one sync for all, and resolves all tickets. While one
//! sync runs the next group gathers, so that nobody waits on a timer and everybody shares the cost.
//!
//! Only this thread writes segments, publishes ends and resolves tickets of appends.

mod writers;

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
    thread,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex, MutexGuard};
use rimstone_log::{
    Checkpoint, LogPosition, UndoFailure, WriteFailure, WritePlan,
    planted::{self, Bug},
};
use rimstone_types::PartitionId;

use self::writers::Writers;
use crate::{
    local::{Counters, LocalPartition, Shared},
    partition::WRITTEN_SYNC_INTERVAL,
    storage::StoreError,
    sync::Dirty,
};

/// How long an idle store waits until it makes the witness of the last group durable by itself.
const WITNESS_IDLE: Duration = Duration::from_millis(100);
/// How long a durable end may wait for the witness while groups follow each other. What is written behind it attests
/// it as well (a frame tells the durable end), so this is for partitions that are not written to any more.
const WITNESS_WAIT: Duration = Duration::from_millis(10);

/// Partitions that have something for the flusher.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    inner: Mutex<Waiting>,
    arrived: Condvar,
    idle: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    partitions: Vec<Arc<LocalPartition>>,
    /// Durable ends that recovery found, for the witness.
    ends: Vec<(PartitionId, LogPosition)>,
    /// The flusher is writing or syncing.
    busy: bool,
    stop: bool,
}

impl Queue {
    /// Adds a partition once, however often it is asked for before it is taken.
    pub(crate) fn push(&self, partition: &Arc<LocalPartition>) {
        if partition.queued.swap(true, Ordering::AcqRel) {
            return;
        }
        self.inner.lock().partitions.push(Arc::clone(partition));
        self.arrived.notify_one();
    }

    /// Hands a durable end to the witness.
    pub(crate) fn witness(&self, id: PartitionId, end: LogPosition) {
        self.inner.lock().ends.push((id, end));
        self.arrived.notify_one();
    }

    /// Waits until nobody waits for the flusher, but no longer than this: work that can wait lets a group through.
    pub(crate) fn wait_until_idle(&self, most: Duration) {
        #[cfg(any(test, feature = "recording"))]
        if crate::local::STEPPED.get() {
            return;
        }
        let deadline = Instant::now() + most;
        let mut waiting = self.inner.lock();
        while (waiting.busy || !waiting.partitions.is_empty()) && !waiting.stop {
            if self.idle.wait_until(&mut waiting, deadline).timed_out() {
                return;
            }
        }
    }

    /// The thread ends after one more round.
    pub(crate) fn stop(&self) {
        self.inner.lock().stop = true;
        self.arrived.notify_one();
    }
}

/// A partition with bytes that are written and not known to be durable.
struct Undurable {
    partition: Arc<LocalPartition>,
    dirty: Dirty,
    /// The newest one due, of a place that the next sync covers.
    checkpoint: Option<Checkpoint>,
}

/// The flush thread's own state. In order of partitions, so that the same appends are synced in the same order.
pub(crate) struct Flusher {
    shared: Arc<Shared>,
    undurable: BTreeMap<PartitionId, Undurable>,
    /// When the oldest bytes of a `written` topic that wait for a sync were written.
    oldest_written: Option<Instant>,
    /// Ends that a completed sync covers, to be written to the witness with a group that follows; and since when.
    ends: BTreeMap<PartitionId, LogPosition>,
    ends_since: Option<Instant>,
    writers: Writers,
    /// The time, where somebody else than a thread of its own takes the steps.
    #[cfg(any(test, feature = "recording"))]
    stepped: Option<Instant>,
}

/// Starts the thread.
pub(crate) fn start(shared: Arc<Shared>) -> std::io::Result<thread::JoinHandle<()>> {
    thread::Builder::new().name("flush".to_owned()).spawn(move || {
        // Whoever waits must not wait for ever for a thread that died of a bug.
        let last_words = LastWords(Arc::clone(&shared));
        let mut flusher = Flusher::new(shared);
        while flusher.round() {}
        drop(last_words);
    })
}

/// Fails everything that waits if the flush thread panics.
pub(crate) struct LastWords(pub(crate) Arc<Shared>);

impl Drop for LastWords {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.closing.store(true, Ordering::Release);
            self.0.syncs.end(true);
            self.0.device_failed("the flush thread panicked");
            for partition in self.0.all() {
                partition.shut("the flush thread panicked", &StoreError::ShuttingDown);
            }
        }
    }
}

impl std::fmt::Debug for Flusher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Flusher")
    }
}

impl Flusher {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            undurable: BTreeMap::new(),
            oldest_written: None,
            ends: BTreeMap::new(),
            ends_since: None,
            writers: Writers::new(writers::most()),
            #[cfg(any(test, feature = "recording"))]
            stepped: None,
        }
    }

    fn now(&self) -> Instant {
        #[cfg(any(test, feature = "recording"))]
        if let Some(now) = self.stepped {
            return now;
        }
        Instant::now()
    }

    fn has_waited(&self, since: Option<Instant>, most: Duration) -> bool {
        since.is_some_and(|since| self.now().saturating_duration_since(since) >= most)
    }

    /// A round at a time of the caller's, without waiting. `false`: there was nothing to write.
    #[cfg(any(test, feature = "recording"))]
    pub(crate) fn step(&mut self, now: Instant) -> bool {
        self.stepped = Some(now);
        let shared = Arc::clone(&self.shared);
        let (partitions, stop) = self.take(shared.queue.inner.lock());
        let found = !partitions.is_empty();
        self.work(partitions, stop);
        shared.queue.inner.lock().busy = false;
        found
    }

    /// The round that a stop asks for, at the time of the last one.
    #[cfg(any(test, feature = "recording"))]
    pub(crate) fn last_step(&mut self) {
        let now = self.now();
        self.step(now);
    }

    /// One round. `false`: the thread is to end.
    fn round(&mut self) -> bool {
        let (partitions, stop) = self.wait();
        self.work(partitions, stop);
        !stop
    }

    fn work(&mut self, mut partitions: Vec<Arc<LocalPartition>>, stop: bool) {
        if stop {
            // One that was staged to while the store began to close may not have come to the queue yet.
            partitions = self.shared.all();
        }
        if !partitions.is_empty() && !stop {
            self.shared.writes();
        }
        let mut sync_now = false;
        for partition in partitions {
            sync_now |= self.write(partition);
        }
        let written_is_due = self.has_waited(self.oldest_written, WRITTEN_SYNC_INTERVAL);
        if sync_now || written_is_due || (stop && !self.undurable.is_empty()) {
            self.sync();
        } else if stop || self.has_waited(self.ends_since, WITNESS_IDLE) {
            self.sync_witness();
        }
        self.writers.give_back(self.now());
    }

    fn wait(&mut self) -> (Vec<Arc<LocalPartition>>, bool) {
        let deadline = [
            self.ends_since.map(|since| since + WITNESS_IDLE),
            self.oldest_written.map(|since| since + WRITTEN_SYNC_INTERVAL),
            self.writers.look_at(),
        ]
        .into_iter()
        .flatten()
        .min();
        let shared = Arc::clone(&self.shared);
        let queue = &shared.queue;
        let mut waiting = queue.inner.lock();
        if waiting.partitions.is_empty() {
            waiting.busy = false;
            queue.idle.notify_all();
        }
        while waiting.partitions.is_empty() && waiting.ends.is_empty() && !waiting.stop {
            match deadline {
                None => queue.arrived.wait(&mut waiting),
                Some(deadline) => {
                    if queue.arrived.wait_until(&mut waiting, deadline).timed_out() {
                        break;
                    }
                }
            }
        }
        self.take(waiting)
    }

    fn take(&mut self, mut waiting: MutexGuard<'_, Waiting>) -> (Vec<Arc<LocalPartition>>, bool) {
        let now = self.now();
        for (id, end) in waiting.ends.drain(..) {
            self.ends.insert(id, end);
            self.ends_since.get_or_insert(now);
        }
        waiting.busy = !waiting.partitions.is_empty();
        (std::mem::take(&mut waiting.partitions), waiting.stop)
    }

    /// Writes what one partition has staged. `true`: somebody waits for it to be durable.
    fn write(&mut self, partition: Arc<LocalPartition>) -> bool {
        // Before the plan is taken: what is staged from here on queues the partition again.
        partition.queued.store(false, Ordering::Release);
        let Some(taken) = partition.take() else { return false };
        let (mut dirty, mut checkpoint) = (Dirty::default(), None);
        if let Some(mut plan) = taken.plan {
            let result = self.execute(&partition, &mut plan, &mut dirty);
            let bytes = plan.bytes();
            if let Err(failure) = result {
                Counters::add(&self.shared.counters.write_failures, 1);
                partition.write_failed(plan, &failure);
                if let Err(UndoFailure { cause, in_sync: true }) = &failure.undone {
                    Counters::add(&self.shared.counters.sync_failures, 1);
                    self.shared.device_failed(&cause.to_string());
                }
                // It may be open all the same.
                let now = self.now();
                self.writers.used(&partition, now);
                return false;
            }
            Counters::add(&self.shared.counters.written_bytes, bytes);
            let mut after = partition.written(plan);
            checkpoint = after.checkpoint.take();
            partition.snapshots_written(after.execute());
            let now = self.now();
            self.writers.used(&partition, now);
        }
        let undurable = self.undurable.entry(partition.id).or_insert_with(|| Undurable {
            partition: Arc::clone(&partition),
            dirty: Dirty::default(),
            checkpoint: None,
        });
        undurable.checkpoint = checkpoint.or(undurable.checkpoint.take());
        // A topic that was deleted and made again has another identity, so the partition is the same one.
        undurable.dirty.files.append(&mut dirty.files);
        undurable.dirty.directories.append(&mut dirty.directories);
        if !taken.wants_sync {
            let now = self.now();
            self.oldest_written.get_or_insert(now);
        }
        taken.wants_sync
    }

    fn execute(
        &self,
        partition: &LocalPartition,
        plan: &mut WritePlan,
        dirty: &mut Dirty,
    ) -> Result<(), WriteFailure> {
        let wants_names = self.shared.syncer.wants_directories() && !planted::is(Bug::NoDirectorySync);
        if plan.creates() && wants_names {
            // Before anything is written: without it, what is written could not be made durable.
            let directory = partition.open_directory();
            dirty.directories.push(directory.map_err(|cause| WriteFailure { cause, undone: Ok(()) })?);
        }
        plan.execute()?;
        dirty.files = plan.files();
        Ok(())
    }

    /// One sync for all partitions with undurable bytes. What was written before it began is durable after it.
    fn sync(&mut self) {
        #[cfg(test)]
        drop(self.shared.gate.lock());
        let mut group: Vec<Undurable> = std::mem::take(&mut self.undurable).into_values().collect();
        self.oldest_written = None;
        let points: Vec<LogPosition> =
            group.iter().map(|member| member.partition.written_position()).collect();
        if self.has_waited(self.ends_since, WITNESS_WAIT) {
            self.record_ends();
        }
        let mut dirty = Dirty::default();
        for member in &mut group {
            dirty.files.append(&mut member.dirty.files);
            dirty.directories.append(&mut member.dirty.directories);
        }
        let began = Instant::now();
        self.shared.syncs.begin();
        let result = {
            let witness = self.shared.witness.lock();
            let sync = || self.shared.syncer.sync(&dirty, Some(witness.file()));
            sync().or_else(|reason| if planted::is(Bug::RetrySync) { sync() } else { Err(reason) })
        };
        self.shared.syncs.end(result.is_err());
        let counters = &self.shared.counters;
        Counters::add(&counters.groups, 1);
        Counters::add(&counters.group_partitions, group.len() as u64);
        match result {
            Ok(()) => {
                counters.synced(began.elapsed());
                let mut checkpoints = Vec::new();
                for (member, point) in group.into_iter().zip(points) {
                    let id = member.partition.id;
                    if member.partition.synced(point) {
                        self.ends.insert(id, point);
                        checkpoints.extend(member.checkpoint.map(|checkpoint| (id, checkpoint)));
                    }
                }
                let now = self.now();
                self.ends_since.get_or_insert(now);
                if !checkpoints.is_empty() {
                    self.shared.checkpoints.lock().add(&checkpoints, |id| self.shared.is_open(id));
                }
            }
            Err(reason) => {
                Counters::add(&counters.sync_failures, 1);
                // What was staged while the sync ran has not been written; it is on the same device and follows
                // what is in doubt, so it goes too, on every partition that has anything undurable.
                self.shared.device_failed(&reason);
            }
        }
    }

    /// Writes the last groups' ends to the witness, into the page cache: the next sync covers them.
    fn record_ends(&mut self) {
        self.ends_since = None;
        let mut witness = self.shared.witness.lock();
        for (id, end) in std::mem::take(&mut self.ends) {
            if !self.shared.is_open(id) {
                continue;
            }
            if let Err(error) = witness.record(id, end) {
                tracing::warn!(%error, "the witness was not written; recovery will read more");
                return;
            }
        }
    }

    /// Nothing was appended for a while: the witness of the last group becomes durable by itself.
    fn sync_witness(&mut self) {
        if self.ends.is_empty() {
            return;
        }
        self.record_ends();
        if let Err(error) = self.shared.witness.lock().sync() {
            tracing::warn!(%error, "the witness was not synced; recovery will read more");
        }
    }
}
