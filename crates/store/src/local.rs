//! The store on local disk.
//!
//! Not here: the bytes and their recovery (`rimstone-log`), the thread that writes (`flush`).

mod compact;
mod counters;
mod damage;
mod disk;
mod openers;
mod partition;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use futures::future::BoxFuture;
use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use rimstone_log::{
    CHECKPOINTS_FILE, Checkpoint, Checkpoints, DataDirectory, DirectoryError, FileError, Log, LogConfig,
    LogPosition, OpenLogError, OpenOptions, OpenReport, RecordJudge, SaltSource, WITNESS_FILE, Witness,
    files, producers,
};
use rimstone_types::{ByteCount, Offset, PartitionId, ProducerEpoch, ProducerId, Timestamp, TopicId};
use uuid::Uuid;

pub(crate) use self::{counters::Counters, partition::LocalPartition};
use self::{damage::DamageState, disk::DiskGuard, openers::Openers};
use crate::{
    flush,
    partition::PartitionStore,
    storage::{
        Health, OpenError, OpenMode, PartitionConfig, RecoverySummary, Storage, StoreError, StoreStatistics,
        SyncMethod, TimestampType,
    },
    sync::{SyncPreference, Syncer, Syncs},
};

/// `max.compaction.lag.ms` makes segments roll, so that what is in them can be compacted; a shorter age than this
/// would make a segment of every group of batches. The lower bound of `segment.ms`.
const SEGMENT_AGE_MIN: Duration = Duration::from_secs(1);

/// So long after a group the next one is expected: longer than between the batches of producers at work.
const WRITING_MILLIS: u64 = 50;

/// Where the store gets the time.
#[derive(Clone)]
pub struct StoreClock(pub Arc<dyn Fn() -> Timestamp + Send + Sync>);

impl std::fmt::Debug for StoreClock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("StoreClock")
    }
}

/// How a local store is opened.
#[derive(Debug, Clone)]
pub struct LocalOptions {
    /// The data directory; made if it is not there.
    pub directory: PathBuf,
    /// Appends are refused while less than this is free on the device.
    pub disk_reserve: ByteCount,
    /// How appends become durable.
    pub sync: SyncPreference,
    /// Producers remembered per partition, and for how long.
    pub producers: producers::Limits,
    /// The clock.
    pub clock: StoreClock,
}

/// Why a local store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum LocalOpenError {
    /// The data directory cannot be used.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// An operation on a file failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// The system refused something else.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
}

/// The lowest epoch that is taken of each fenced producer; `None`: none is.
pub(crate) type Fences = HashMap<ProducerId, Option<ProducerEpoch>>;

/// What all partitions share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) directory: DataDirectory,
    pub(crate) queue: flush::Queue,
    pub(crate) witness: Mutex<Witness>,
    pub(crate) checkpoints: Mutex<Checkpoints>,
    /// Of partitions that are not open yet.
    checkpointed: Mutex<HashMap<PartitionId, Checkpoint>>,
    pub(crate) syncer: Syncer,
    pub(crate) syncs: Syncs,
    pub(crate) counters: Counters,
    pub(crate) guard: DiskGuard,
    fences: RwLock<Fences>,
    partitions: RwLock<HashMap<PartitionId, Arc<LocalPartition>>>,
    first_failure: Mutex<Option<String>>,
    pub(crate) closing: AtomicBool,
    clock: StoreClock,
    producers: producers::Limits,
    /// Durable ends as the last run's witness has them.
    witnessed: HashMap<PartitionId, LogPosition>,
    opened: Instant,
    /// When a group was last written, in milliseconds since `opened`, and one more; 0: never.
    wrote_at: AtomicU64,
    /// Bytes that the process had read before.
    read_before: u64,
    recovery: Mutex<RecoverySummary>,
    /// Whoever holds it keeps the flusher from its next sync.
    #[cfg(test)]
    pub(crate) gate: Mutex<()>,
}

impl Shared {
    pub(crate) fn is_open(&self, id: PartitionId) -> bool {
        self.partitions.read().contains_key(&id)
    }

    /// A group is written now.
    pub(crate) fn writes(&self) {
        self.wrote_at.store(1 + self.millis(), Ordering::Relaxed);
    }

    /// Whether somebody writes: then reads of cold bytes leave the disk to syncs in between.
    pub(crate) fn is_writing(&self) -> bool {
        let wrote_at = self.wrote_at.load(Ordering::Relaxed);
        wrote_at > 0 && self.millis() < wrote_at + WRITING_MILLIS
    }

    fn millis(&self) -> u64 {
        u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// All partitions that are open, in order.
    pub(crate) fn all(&self) -> Vec<Arc<LocalPartition>> {
        let mut all: Vec<_> = self.partitions.read().values().cloned().collect();
        all.sort_unstable_by_key(|partition| partition.id);
        all
    }

    /// The fences, held as they are: whoever stages a batch holds them until it is staged, so that a fence that
    /// is up when `fence` returns is known to every submit that is ordered after it.
    pub(crate) fn fences(&self) -> RwLockReadGuard<'_, Fences> {
        self.fences.read()
    }

    /// A sync failed: every partition on the device that has bytes not yet durable is poisoned, what was
    /// gathered meanwhile included. The sync is never tried again.
    pub(crate) fn device_failed(&self, reason: &str) {
        tracing::error!(
            reason,
            "a sync failed; partitions with undurable bytes refuse writes until the server is started again"
        );
        self.first_failure.lock().get_or_insert_with(|| reason.to_owned());
        for partition in self.partitions.read().values() {
            partition.poison_if_undurable(reason);
        }
    }

    pub(crate) fn note_failure(&self, reason: &str) {
        self.first_failure.lock().get_or_insert_with(|| reason.to_owned());
    }

    fn count_recovery(&self, report: &OpenReport) {
        Counters::add(&self.counters.torn_tail_bytes, report.torn_bytes);
        let mut sum = self.recovery.lock();
        sum.partitions += 1;
        sum.from_caches += u64::from(report.from_caches);
        sum.read_bytes = files::bytes_read() - self.read_before;
        sum.torn_partitions += u64::from(report.torn_bytes > 0);
        sum.scanned_bytes += report.scanned_bytes;
        sum.rewritten_bytes += report.rewritten_bytes;
        sum.torn_bytes += report.torn_bytes;
        sum.damaged_ranges += u64::from(report.damaged_ranges);
        sum.took = self.opened.elapsed();
    }

    fn log_config(&self, config: &PartitionConfig) -> LogConfig {
        LogConfig {
            segment_bytes: config.segment_bytes.get(),
            // What is in the active segment cannot be compacted.
            segment_age: match config.compaction.max_lag {
                Some(lag) if config.cleanup.compacts() => config.segment_age.min(lag.max(SEGMENT_AGE_MIN)),
                _ => config.segment_age,
            },
            index_interval_bytes: config.index_interval.get(),
            retention_age: config.retention_age,
            retention_bytes: config.retention_bytes.map(ByteCount::get),
            retention: config.cleanup.deletes(),
            append_time_stamps: config.timestamp_type == TimestampType::AppendTime,
            producers: self.producers.clone(),
            salts: SaltSource(Arc::new(random_salt)),
        }
    }
}

/// Thirty-two random bits: four bytes of a version 4 UUID that hold nothing but randomness.
fn random_salt() -> u32 {
    let bytes = Uuid::new_v4().into_bytes();
    u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

/// The store on local disk: partitions in one data directory that share one flusher.
#[derive(Debug)]
pub struct LocalStorage {
    shared: Arc<Shared>,
    flusher: Mutex<Option<JoinHandle<()>>>,
    /// In place of the thread, where somebody else takes the steps.
    #[cfg(any(test, feature = "recording"))]
    stepped: Mutex<Option<flush::Flusher>>,
    openers: Openers,
}

impl LocalStorage {
    /// Opens a data directory, or makes it. Blocks on the disk; partitions are opened later, one by one.
    ///
    /// # Errors
    /// [`LocalOpenError`]; a directory that cannot be used is left as it is.
    pub fn open(options: LocalOptions) -> Result<Arc<Self>, LocalOpenError> {
        Self::open_judged(options, None)
    }

    /// The same, if the records that the judge looks at are understood.
    ///
    /// # Errors
    /// [`LocalOpenError`]; a directory that cannot be used is left as it is.
    pub fn open_judged(
        options: LocalOptions,
        judge: Option<&RecordJudge>,
    ) -> Result<Arc<Self>, LocalOpenError> {
        let shared = Self::open_shared(options, judge)?;
        let flusher = flush::start(Arc::clone(&shared))
            .map_err(|source| LocalOpenError::System { what: "start the flush thread", source })?;
        Ok(Arc::new(Self {
            shared,
            flusher: Mutex::new(Some(flusher)),
            #[cfg(any(test, feature = "recording"))]
            stepped: Mutex::new(None),
            openers: Openers::default(),
        }))
    }

    /// As [`LocalStorage::open`], without a flush thread: nothing is written but by [`LocalStorage::step`].
    ///
    /// # Errors
    /// [`LocalOpenError`].
    #[cfg(any(test, feature = "recording"))]
    pub fn open_stepped(options: LocalOptions) -> Result<Arc<Self>, LocalOpenError> {
        let shared = Self::open_shared(options, None)?;
        let flusher = flush::Flusher::new(Arc::clone(&shared));
        let (flusher, stepped) = (Mutex::new(None), Mutex::new(Some(flusher)));
        Ok(Arc::new(Self { shared, flusher, stepped, openers: Openers::default() }))
    }

    /// One round of the flusher. `false`: there was nothing to write, or a round is running.
    #[cfg(any(test, feature = "recording"))]
    pub fn step(&self, now: Instant) -> bool {
        self.stepped
            .try_lock()
            .is_some_and(|mut flusher| flusher.as_mut().is_some_and(|flusher| flusher.step(now)))
    }

    fn open_shared(
        options: LocalOptions,
        judge: Option<&RecordJudge>,
    ) -> Result<Arc<Shared>, LocalOpenError> {
        let (opened, read_before) = (Instant::now(), files::bytes_read());
        let system = |what| move |source| LocalOpenError::System { what, source };
        files::make_directories_durably(&options.directory)?;
        // The descriptor that sees write-back errors is opened before the first write.
        let syncer =
            Syncer::detect(&options.directory, options.sync).map_err(system("look at the device"))?;
        let now = (options.clock.0)();
        let directory = DataDirectory::open_judged(&options.directory, Uuid::new_v4(), now, judge)?;
        let (witness, witnessed) = Witness::open(&directory.path().join(WITNESS_FILE))?;
        let (checkpoints, checkpointed) = Checkpoints::open(&directory.path().join(CHECKPOINTS_FILE))?;
        let guard =
            DiskGuard::new(directory.path(), options.disk_reserve).map_err(system("look at the device"))?;
        let shared = Arc::new(Shared {
            directory,
            queue: flush::Queue::default(),
            witness: Mutex::new(witness),
            checkpoints: Mutex::new(checkpoints),
            checkpointed: Mutex::new(checkpointed),
            syncer,
            syncs: Syncs::default(),
            counters: Counters::default(),
            guard,
            fences: RwLock::default(),
            partitions: RwLock::default(),
            first_failure: Mutex::default(),
            closing: AtomicBool::new(false),
            clock: options.clock,
            producers: options.producers,
            witnessed,
            opened,
            wrote_at: AtomicU64::new(0),
            read_before,
            recovery: Mutex::default(),
            #[cfg(test)]
            gate: Mutex::default(),
        });
        Ok(shared)
    }

    /// The data directory, resolved.
    pub fn directory(&self) -> &std::path::Path {
        self.shared.directory.path()
    }

    /// Whether the last run stopped cleanly.
    pub fn was_clean(&self) -> bool {
        self.shared.directory.was_clean()
    }
}

/// The partition, and its durable end.
fn open_partition(
    shared: &Arc<Shared>,
    id: PartitionId,
    config: &PartitionConfig,
    mode: OpenMode,
) -> Result<(Arc<LocalPartition>, LogPosition), OpenError> {
    let log_config = shared.log_config(config);
    let now = (shared.clock.0)();
    let (log, path, suspects) = match mode {
        OpenMode::CreateNew => {
            let failed = |error: FileError| match error.source.kind() {
                std::io::ErrorKind::AlreadyExists => OpenError::Exists(id),
                _ => store_error(error).into(),
            };
            let path = shared.directory.create_partition(id).map_err(failed)?;
            // One that was durable up to 0 held nothing: a kill came before anybody knew of it.
            if let Some(end) = shared.witnessed.get(&id).filter(|end| end.offset > Offset::ZERO) {
                let reason = format!(
                    "{} is empty, and the log in it was durable up to {}",
                    path.display(),
                    end.offset
                );
                return Err(OpenError::Unusable { id, reason });
            }
            (Log::create(&path, id, log_config, now).map_err(failed)?, path, Vec::new())
        }
        OpenMode::MustExist => {
            let path = shared.directory.partition_path(id);
            if !shared.directory.was_clean() && !shared.witnessed.contains_key(&id) && path.is_dir() {
                // Nothing says that its names were ever synced: a kill may have come while it was made.
                shared.directory.sync_partition(id).map_err(store_error)?;
            }
            let options = OpenOptions {
                clean: shared.directory.was_clean(),
                witness: shared.witnessed.get(&id).copied(),
                now,
            };
            let checkpoint = shared.checkpointed.lock().remove(&id);
            let opened = Log::open_from(&path, id, log_config, options, checkpoint);
            let (log, report) = opened.map_err(|error| match error {
                OpenLogError::Missing(_) => OpenError::Missing(id),
                OpenLogError::File(error) => store_error(error).into(),
                other => OpenError::Unusable { id, reason: other.to_string() },
            })?;
            shared.count_recovery(&report);
            if !report.from_caches {
                tracing::debug!(
                    partition = %id, end = %log.staged_end(), scanned_bytes = report.scanned_bytes,
                    rewritten_bytes = report.rewritten_bytes, torn_bytes = report.torn_bytes,
                    damaged_ranges = report.damaged_ranges, "a partition was recovered"
                );
            }
            (log, path, report.suspects)
        }
    };
    match shared.syncer.covers(&path) {
        Ok(true) => {}
        Ok(false) => {
            let reason = format!("{} lies on another device, which syncfs does not cover", path.display());
            return Err(OpenError::Unusable { id, reason });
        }
        Err(source) => {
            return Err(store_error(FileError {
                operation: "stat",
                path: path.display().to_string(),
                source,
            })
            .into());
        }
    }
    let accepted = rimstone_log::damage::accepted_losses(&path).map_err(store_error)?;
    let evident = log.reader().evident_damage();
    Counters::add(&shared.counters.damaged_ranges, evident.len() as u64);
    let damage = DamageState::new(evident, suspects, accepted);
    let end = log.durable_position();
    Ok((LocalPartition::new(Arc::clone(shared), id, path, log, config, damage), end))
}

pub(crate) fn store_error(error: FileError) -> StoreError {
    if error.is_full() {
        return StoreError::Full { path: error.path };
    }
    StoreError::Io { operation: error.operation, path: error.path, reason: error.source.to_string() }
}

/// Runs blocking work away from the async threads.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    off_thread(work).await.unwrap_or(Err(StoreError::ShuttingDown))
}

/// Runs work on the pool of threads that may block; `None` if the runtime is shutting down.
pub(crate) async fn off_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    #[cfg(any(test, feature = "recording"))]
    if STEPPED.get() {
        return Some(work());
    }
    tokio::task::spawn_blocking(work).await.ok()
}

#[cfg(any(test, feature = "recording"))]
thread_local! {
    /// On this thread everything happens one after the other, so that a run is the same each time.
    pub(crate) static STEPPED: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

impl Storage for LocalStorage {
    fn open(
        &self,
        id: PartitionId,
        config: PartitionConfig,
        mode: OpenMode,
    ) -> BoxFuture<'_, Result<Arc<dyn PartitionStore>, OpenError>> {
        let shared = Arc::clone(&self.shared);
        Box::pin(async move {
            if shared.closing.load(Ordering::Acquire) {
                return Err(StoreError::ShuttingDown.into());
            }
            if let Some(open) = shared.partitions.read().get(&id) {
                return match mode {
                    OpenMode::CreateNew => Err(OpenError::Exists(id)),
                    OpenMode::MustExist => Ok(Arc::new(Arc::clone(open)) as Arc<dyn PartitionStore>),
                };
            }
            let opened = self.openers.run(move || {
                let (partition, end) = open_partition(&shared, id, &config, mode)?;
                shared.partitions.write().insert(id, Arc::clone(&partition));
                // Only now: of a partition that is not open no end is written.
                if shared.witnessed.get(&id) != Some(&end) {
                    shared.queue.witness(id, end);
                }
                Ok::<_, OpenError>(partition)
            });
            let partition = opened.await.unwrap_or(Err(StoreError::ShuttingDown.into()))?;
            Ok(Arc::new(partition) as Arc<dyn PartitionStore>)
        })
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<PartitionId>, StoreError>> {
        let shared = Arc::clone(&self.shared);
        Box::pin(blocking(move || shared.directory.partitions().map_err(store_error)))
    }

    fn delete(&self, topic: TopicId) -> BoxFuture<'_, Result<(), StoreError>> {
        let shared = Arc::clone(&self.shared);
        Box::pin(blocking(move || {
            let removed: Vec<_> = {
                let mut partitions = shared.partitions.write();
                let ids: Vec<_> = partitions.keys().filter(|id| id.topic == topic).copied().collect();
                ids.into_iter().filter_map(|id| partitions.remove(&id)).collect()
            };
            for partition in &removed {
                partition.shut("the topic was deleted", &StoreError::Deleted);
                shared.witness.lock().forget(partition.id);
            }
            shared.checkpointed.lock().retain(|id, _| id.topic != topic);
            shared.directory.delete_topic(topic).map_err(store_error)
        }))
    }

    fn fence(&self, producer: ProducerId, epoch: Option<ProducerEpoch>) {
        self.shared.fences.write().insert(producer, epoch);
    }

    fn identity(&self) -> Uuid {
        self.shared.directory.server_id()
    }

    fn health(&self) -> Health {
        if let Some(reason) = &*self.shared.first_failure.lock() {
            return Health::Poisoned { reason: reason.clone() };
        }
        match self.shared.guard.below_reserve() {
            Some((free, reserve)) => Health::DiskReserveReached { free, reserve },
            None => Health::Healthy,
        }
    }

    fn statistics(&self) -> StoreStatistics {
        self.shared.counters.snapshot()
    }

    fn recovery(&self) -> Option<RecoverySummary> {
        let sum = self.shared.recovery.lock().clone();
        let directory = self.directory().to_owned();
        let was_clean = self.was_clean();
        (sum.partitions > 0).then_some(RecoverySummary { directory, was_clean, ..sum })
    }

    fn sync_method(&self) -> SyncMethod {
        self.shared.syncer.method().clone()
    }

    fn close(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        let shared = Arc::clone(&self.shared);
        let flusher = self.flusher.lock().take();
        #[cfg(any(test, feature = "recording"))]
        let stepped = self.stepped.lock().take();
        Box::pin(blocking(move || {
            shared.closing.store(true, Ordering::Release);
            shared.queue.stop();
            #[cfg(any(test, feature = "recording"))]
            if let Some(mut flusher) = stepped {
                flusher.last_step();
            }
            if let Some(flusher) = flusher
                && flusher.join().is_err()
            {
                shared.note_failure("the flush thread panicked");
            }
            let closed = close_files(&shared);
            shared.directory.release();
            closed
        }))
    }
}

impl Drop for LocalStorage {
    /// Without `close` the directory is left as a crash would leave it; the thread must not outlive the store.
    fn drop(&mut self) {
        self.shared.closing.store(true, Ordering::Release);
        self.shared.queue.stop();
        if let Some(flusher) = self.flusher.lock().take() {
            drop(flusher.join());
        }
        // Partitions and what they share hold each other.
        let partitions = std::mem::take(&mut *self.shared.partitions.write());
        for partition in partitions.values() {
            partition.stop_compaction();
            partition.stop_scrub();
        }
        self.shared.directory.release();
    }
}

/// After the last sync: caches, the witness, and, if all is well, the clean mark.
fn close_files(shared: &Shared) -> Result<(), StoreError> {
    let partitions = shared.all();
    let (mut clean, mut failure) = (true, None);
    for partition in &partitions {
        match partition.write_caches() {
            Ok(whole) => clean &= whole,
            Err(error) => failure = failure.or(Some(error)),
        }
        // Each of them, whatever fails: nobody may wait for a flusher that is gone.
        partition.shut("the store is closed", &StoreError::ShuttingDown);
    }
    if let Some(failure) = failure {
        return Err(failure);
    }
    let failed = shared.first_failure.lock().clone();
    if !clean || failed.is_some() {
        let reason =
            failed.unwrap_or_else(|| "a partition has bytes that are not known to be durable".to_owned());
        return Err(StoreError::Poisoned { reason });
    }
    let mut witness = shared.witness.lock();
    for partition in &partitions {
        witness.record(partition.id, partition.written_position()).map_err(store_error)?;
    }
    let dirty = crate::sync::Dirty::default();
    shared.syncer.sync(&dirty, Some(witness.file())).map_err(|reason| StoreError::Poisoned { reason })?;
    // The caches are believed only if the mark is there, and the mark is durable only after they are: where
    // there is no sync for all, the mark's own directory sync does not cover them, so they are synced too.
    if shared.syncer.method().name != "syncfs" {
        for partition in &partitions {
            partition.sync_caches()?;
        }
    }
    shared.directory.mark_clean().map_err(store_error)
}
