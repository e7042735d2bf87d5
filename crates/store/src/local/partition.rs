//! One partition on local disk: the lock around its log, the tickets that wait, the waiters that wake.

use std::{
    collections::VecDeque,
    fs::File,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use futures::future::BoxFuture;
use parking_lot::Mutex;
use rimstone_log::{
    Access, AfterWrite, Extent, FileError, Log, LogPosition, LogReadError, LogReader, Offered, ReadRange,
    SnapshotsWritten, StageError, WriteFailure, WritePlan, producers, write_log_start,
};
use rimstone_types::{ByteCount, LogEnds, Offset, PartitionId, ProducerId, Timestamp, TopicId};
use tokio::sync::oneshot;

use super::{Counters, Shared, blocking, store_error};
use crate::{
    partition::{
        AckLevel, Append, Appended, Backpressure, Batches, Maintained, OffsetAt, PartitionStore,
        ProducerView, ReadBatch, ReadError, ReadLimit, RecordCount, StoreInfo, StoreState, Visibility,
        Waiter,
    },
    storage::{PartitionConfig, StoreError},
    ticket::{AppendError, AppendTicket, TicketSender},
    waiters::Waiters,
};

/// Bytes of one partition that may wait for the flusher: a few of the largest groups that a disk takes in one
/// sync, so that a slow disk shows as back-pressure and not as memory.
const STAGED_BYTES_MAX: u64 = 32 << 20;

/// A partition.
#[derive(Debug)]
pub(crate) struct LocalPartition {
    pub(crate) id: PartitionId,
    pub(crate) directory: PathBuf,
    /// In the flusher's queue.
    pub(crate) queued: AtomicBool,
    shared: Arc<Shared>,
    reader: LogReader,
    /// The topic's readers see what is written.
    sees_written: AtomicBool,
    state: Mutex<State>,
    waiters: Waiters,
    /// One trim or maintenance pass at a time.
    maintenance: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct State {
    log: Log,
    /// In the order in which they were given; resolved in that order.
    tickets: VecDeque<Parked>,
    /// Wait until what was staged when they came is durable, and what was asked for with it is done.
    barriers: Vec<Barrier>,
    /// Barriers of the plan that is being written or synced.
    barriers_out: Vec<Barrier>,
    poisoned: Option<String>,
    closed: Option<&'static str>,
}

type Barrier = oneshot::Sender<Result<(), StoreError>>;

#[derive(Debug)]
struct Parked {
    /// What its answer rests on.
    rests_on: Offset,
    /// Told when everything below this is as durable as the topic asks: at or above what it rests on, for answers
    /// are told in order.
    until: Offset,
    answer: Result<Appended, AppendError>,
    sender: TicketSender,
}

impl State {
    /// Told in order: a duplicate's answer may wait for those before it, never for those behind.
    fn park(&mut self, parked: Parked) {
        let before = self.tickets.back().map_or(parked.rests_on, |last| last.until);
        self.tickets.push_back(Parked { until: parked.rests_on.max(before), ..parked });
    }
}

/// What the flusher takes from a partition.
pub(crate) struct Taken {
    pub(crate) plan: Option<WritePlan>,
    pub(crate) wants_sync: bool,
}

impl LocalPartition {
    pub(super) fn new(
        shared: Arc<Shared>,
        id: PartitionId,
        directory: PathBuf,
        log: Log,
        ack: AckLevel,
    ) -> Arc<Self> {
        Arc::new(Self {
            id,
            directory,
            queued: AtomicBool::new(false),
            shared,
            reader: log.reader(),
            sees_written: AtomicBool::new(ack == AckLevel::Written),
            state: Mutex::new(State {
                log,
                tickets: VecDeque::new(),
                barriers: Vec::new(),
                barriers_out: Vec::new(),
                poisoned: None,
                closed: None,
            }),
            waiters: Waiters::default(),
            maintenance: tokio::sync::Mutex::new(()),
        })
    }

    /// The flusher takes what is staged; `None` if there is nothing to do.
    pub(crate) fn take(&self) -> Option<Taken> {
        let mut state = self.state.lock();
        if state.poisoned.is_some() || state.closed.is_some() {
            return None;
        }
        let plan = state.log.take_plan();
        if plan.is_none() && state.barriers.is_empty() {
            return None;
        }
        let barriers = std::mem::take(&mut state.barriers);
        let wants_sync = !barriers.is_empty() || !self.sees_written.load(Ordering::Acquire);
        state.barriers_out.extend(barriers);
        Some(Taken { plan, wants_sync })
    }

    /// The plan is in the files.
    pub(crate) fn written(&self, plan: WritePlan) -> AfterWrite {
        let mut state = self.state.lock();
        let after = state.log.plan_succeeded(plan);
        if self.sees_written.load(Ordering::Acquire) {
            let end = state.log.written_position().offset;
            resolve(&mut state.tickets, end);
            drop(state);
            self.waiters.wake();
        }
        after
    }

    /// What followed the plan is done. Without its snapshot, what waits for it cannot go on; the log can.
    pub(crate) fn snapshots_written(&self, written: SnapshotsWritten) {
        let mut state = self.state.lock();
        state.log.snapshots_written(&written);
        let Some(error) = written.failure else { return };
        let barriers = std::mem::take(&mut state.barriers_out);
        drop(state);
        tracing::error!(partition = %self.id, %error, "a producer snapshot was not written");
        let error = store_error(error);
        for barrier in barriers {
            drop(barrier.send(Err(error.clone())));
        }
    }

    /// The plan failed: what is not written did not happen, or, if the files could not be put back, is unknown.
    pub(crate) fn write_failed(&self, plan: WritePlan, failure: &WriteFailure) {
        tracing::error!(partition = %self.id, error = %failure, undone = ?failure.undone, "a write failed");
        if let Err(why) = &failure.undone {
            self.poison(&format!("a write failed ({failure}) and could not be undone ({why})"));
            return;
        }
        let mut state = self.state.lock();
        state.log.plan_failed(plan, failure);
        let end = state.log.written_position().offset;
        let disk_full = failure.cause.is_full();
        // Everything that rests on what was rolled back goes with it; what was written before stays parked.
        let kept = state.tickets.iter().take_while(|parked| parked.until <= end).count();
        let behind = state.tickets.split_off(kept);
        // A duplicate may only have waited behind it: what its answer rests on is there.
        let (stays, gone): (Vec<_>, Vec<_>) = behind.into_iter().partition(|parked| parked.rests_on <= end);
        for parked in stays {
            state.park(parked);
        }
        let acknowledged = self.acknowledged(&state.log);
        resolve(&mut state.tickets, acknowledged);
        let mut barriers = std::mem::take(&mut state.barriers_out);
        barriers.append(&mut state.barriers);
        drop(state);
        for parked in gone {
            parked.sender.resolve(Err(AppendError::DidNotHappen { reason: failure.to_string(), disk_full }));
        }
        for barrier in barriers {
            let error = if disk_full {
                StoreError::Full { path: failure.cause.path.clone() }
            } else {
                StoreError::Io {
                    operation: failure.cause.operation,
                    path: failure.cause.path.clone(),
                    reason: failure.cause.source.to_string(),
                }
            };
            drop(barrier.send(Err(error)));
        }
    }

    pub(crate) fn written_position(&self) -> LogPosition {
        self.state.lock().log.written_position()
    }

    /// A completed sync covers everything up to `point`. `false`: the partition was given up meanwhile, and
    /// nothing is to be said of its end.
    pub(crate) fn synced(&self, point: LogPosition) -> bool {
        let mut state = self.state.lock();
        if state.poisoned.is_some() || state.closed.is_some() {
            return false;
        }
        state.log.synced(point);
        resolve(&mut state.tickets, point.offset);
        let barriers = std::mem::take(&mut state.barriers_out);
        drop(state);
        for barrier in barriers {
            drop(barrier.send(Ok(())));
        }
        self.waiters.wake();
        true
    }

    /// Refuses writes from now on; whatever waits is unknown. Reads go on, up to what was durable.
    pub(crate) fn poison(&self, reason: &str) {
        let mut state = self.state.lock();
        // A topic that was deleted under a write is no failure of the device.
        if state.poisoned.is_some() || state.closed.is_some() {
            return;
        }
        self.shared.note_failure(reason);
        state.poisoned = Some(reason.to_owned());
        let (tickets, barriers) = drain(&mut state);
        drop(state);
        for ticket in tickets {
            ticket.sender.resolve(Err(AppendError::Unknown { reason: reason.to_owned() }));
        }
        for barrier in barriers {
            drop(barrier.send(Err(StoreError::Poisoned { reason: reason.to_owned() })));
        }
        self.waiters.wake();
    }

    pub(crate) fn poison_if_undurable(&self, reason: &str) {
        let undurable = {
            let state = self.state.lock();
            state.log.is_dirty() || !state.tickets.is_empty() || !state.barriers_out.is_empty()
        };
        if undurable {
            self.poison(reason);
        }
    }

    /// Nothing more comes in or out.
    pub(crate) fn shut(&self, why: &'static str, error: &StoreError) {
        let mut state = self.state.lock();
        state.closed.get_or_insert(why);
        let (tickets, barriers) = drain(&mut state);
        drop(state);
        for ticket in tickets {
            ticket.sender.resolve(Err(AppendError::Unknown { reason: why.to_owned() }));
        }
        for barrier in barriers {
            drop(barrier.send(Err(error.clone())));
        }
        self.waiters.wake();
    }

    pub(crate) fn release_writer(&self) {
        let state = self.state.lock();
        if !state.log.is_dirty() {
            state.log.release_writer();
        }
    }

    /// Writes the caches for the next start. `false`: the partition is not clean.
    pub(super) fn write_caches(&self) -> Result<bool, StoreError> {
        let mut state = self.state.lock();
        if state.poisoned.is_some() || state.log.is_dirty() {
            return Ok(false);
        }
        state.log.write_caches().map_err(store_error)?;
        Ok(true)
    }

    /// The directory, open.
    pub(crate) fn open_directory(&self) -> Result<File, FileError> {
        File::open(&self.directory).map_err(|source| FileError {
            operation: "open",
            path: self.directory.display().to_string(),
            source,
        })
    }

    pub(super) fn sync_caches(&self) -> Result<(), StoreError> {
        let io = |error: std::io::Error| StoreError::Io {
            operation: "sync",
            path: self.directory.display().to_string(),
            reason: error.to_string(),
        };
        for entry in std::fs::read_dir(&self.directory).map_err(io)? {
            std::fs::File::open(entry.map_err(io)?.path()).and_then(|file| file.sync_all()).map_err(io)?;
        }
        rimstone_log::sync_directory(&self.directory).map_err(store_error)
    }

    fn visible(&self, ends: LogEnds, visibility: Visibility) -> Offset {
        match visibility {
            Visibility::Stable => ends.stable,
            Visibility::Durable => ends.durable,
        }
    }

    /// Below this, tickets are told.
    fn acknowledged(&self, log: &Log) -> Offset {
        if self.sees_written.load(Ordering::Acquire) {
            log.written_position().offset
        } else {
            log.durable_position().offset
        }
    }

    /// Waits until everything staged is durable, and what `stage` asks for with it is done.
    async fn barrier(self: &Arc<Self>, stage: impl FnOnce(&mut Log)) -> Result<(), StoreError> {
        let waiting = {
            let mut state = self.state.lock();
            if self.shared.closing.load(Ordering::Acquire) {
                return Err(StoreError::ShuttingDown);
            }
            if let Some(reason) = &state.poisoned {
                return Err(StoreError::Poisoned { reason: reason.clone() });
            }
            if state.closed.is_some() {
                return Err(StoreError::Deleted);
            }
            stage(&mut state.log);
            let (sender, receiver) = oneshot::channel();
            state.barriers.push(sender);
            receiver
        };
        self.shared.queue.push(self);
        waiting.await.unwrap_or(Err(StoreError::ShuttingDown))
    }

    /// Moves log start to `start`, which is not below it, and deletes what lies before.
    async fn trim_to(self: &Arc<Self>, start: Offset) -> Result<(Offset, u32, u64), StoreError> {
        let start = {
            let state = self.state.lock();
            let clamped = state.log.clamp_start(start);
            if clamped <= self.reader.start() && !state.log.has_segments_below(clamped) {
                return Ok((clamped, 0, 0));
            }
            clamped
        };
        // The state of producers whose batches go must outlive them (semantics, idempotence, rule 6).
        self.barrier(|log| log.stage_snapshot(true)).await?;
        let partition = Arc::clone(self);
        blocking(move || {
            write_log_start(&partition.directory, start).map_err(store_error)?;
            let removed = partition.state.lock().log.advance_start(start);
            let (mut count, mut bytes) = (0, 0);
            for segment in removed {
                match segment.unlink() {
                    Ok(freed) => bytes += freed,
                    Err(error) => tracing::warn!(%error, "a deleted segment's file could not be removed"),
                }
                count += 1;
            }
            Counters::add(&partition.shared.counters.segments_deleted, u64::from(count));
            Ok((start, count, bytes))
        })
        .await
    }

    /// Runs a read: at once if the bytes are in memory, otherwise where it may wait for the disk.
    async fn with_reader<T: Send + 'static>(
        &self,
        read: impl Fn(&LogReader, Access) -> Result<T, LogReadError> + Send + 'static,
    ) -> Result<T, ReadError> {
        let result = match read(&self.reader, Access::Resident) {
            Err(LogReadError::NotResident) => {
                let reader = self.reader.clone();
                tokio::task::spawn_blocking(move || read(&reader, Access::Blocking))
                    .await
                    .map_err(|_| ReadError::Store(StoreError::ShuttingDown))?
            }
            result => result,
        };
        result.map_err(|error| self.read_error(error))
    }

    /// Runs a look-up over several segments on a log whose start stays where it is meanwhile: if it moved, segments
    /// may have gone under the look-up, and it is made again over what is left.
    async fn settled<T: Send + 'static, F>(
        self: &Arc<Self>,
        look_up: impl Fn(LogEnds) -> F,
    ) -> Result<T, ReadError>
    where
        F: Fn(&LogReader, Access) -> Result<T, LogReadError> + Send + 'static,
    {
        loop {
            let ends = self.ends();
            let result = self.with_reader(look_up(ends)).await;
            if self.reader.start() == ends.start {
                return result;
            }
        }
    }

    fn read_error(&self, error: LogReadError) -> ReadError {
        match error {
            LogReadError::OutOfRange { offset, start, end } => ReadError::OutOfRange { offset, start, end },
            LogReadError::Damaged { from, until, reason } => {
                Counters::add(&self.shared.counters.damaged_ranges, 1);
                tracing::error!(partition = %self.id, %from, %until, reason, "acknowledged data is damaged");
                ReadError::DataLoss { from, until, reason }
            }
            LogReadError::File(error) => ReadError::Store(store_error(error)),
            LogReadError::NotResident => ReadError::Store(StoreError::Io {
                operation: "read",
                path: self.directory.display().to_string(),
                reason: "the bytes did not come from the disk".to_owned(),
            }),
        }
    }
}

fn drain(state: &mut State) -> (Vec<Parked>, Vec<Barrier>) {
    let mut barriers = std::mem::take(&mut state.barriers_out);
    barriers.append(&mut state.barriers);
    (std::mem::take(&mut state.tickets).into(), barriers)
}

/// Tells everything that rests on nothing above `end`, in order.
fn resolve(tickets: &mut VecDeque<Parked>, end: Offset) {
    while tickets.front().is_some_and(|parked| parked.until <= end) {
        if let Some(parked) = tickets.pop_front() {
            parked.sender.resolve(parked.answer);
        }
    }
}

fn refusal(error: StageError) -> AppendError {
    match error {
        StageError::ExpectedEndNotMet { expected, actual } => {
            AppendError::ExpectedEndNotMet { expected, actual }
        }
        StageError::OffsetsExhausted => AppendError::OffsetsExhausted,
        StageError::Producer(refusal) => refusal.into(),
    }
}

impl PartitionStore for Arc<LocalPartition> {
    fn submit(&self, append: Append) -> Result<AppendTicket, Backpressure> {
        // The catalog lives out of the reserve, so that topics can be deleted when the disk is full.
        if self.id.topic != TopicId::CATALOG {
            let bytes = ByteCount(append.batch.bytes().len() as u64);
            let taken = self.shared.guard.take(bytes);
            taken.map_err(|(free, reserve)| Backpressure::DiskReserve { free, reserve })?;
        }
        let claim = producers::Claim::of(append.batch.header(), append.content_hash);
        let mut state = self.state.lock();
        // Under the lock: the flusher's last round takes it after this is set, and finds what is staged before.
        if self.shared.closing.load(Ordering::Acquire) {
            return Err(Backpressure::Closed);
        }
        if let Some(reason) = &state.poisoned {
            return Err(Backpressure::Poisoned { reason: reason.clone() });
        }
        if state.closed.is_some() {
            return Err(Backpressure::Closed);
        }
        let waiting = state.log.staged_bytes();
        if waiting > 0 && waiting + append.batch.bytes().len() as u64 > STAGED_BYTES_MAX {
            return Err(Backpressure::Staging {
                waiting: ByteCount(waiting),
                limit: ByteCount(STAGED_BYTES_MAX),
            });
        }
        // Held until the batch is staged: once `fence` has returned, nothing of an older epoch gets in.
        let fences = self.shared.fences();
        if let Some(claim) = &claim
            && let Some(fence) = fences.get(&claim.stamp.id)
            && fence.is_none_or(|epoch| claim.stamp.epoch < epoch)
        {
            let error = AppendError::Fenced { got: claim.stamp.epoch, current: *fence };
            return Ok(AppendTicket::resolved(Err(error)));
        }
        let offered = state.log.offer(&append.batch, claim.as_ref(), append.expected_end, append.now);
        drop(fences);
        let (until, answer, staged) = match offered {
            Ok(Offered::Staged { base, last, append_time }) => {
                let appended = Appended { offsets: Some((base, last)), append_time, duplicate: false };
                (last.saturating_add(1), Ok(appended), true)
            }
            Ok(Offered::Duplicate { offsets, append_time, depends_on }) => {
                (depends_on, Ok(Appended { offsets, append_time, duplicate: true }), false)
            }
            Err(error) => (state.log.staged_end(), Err(refusal(error)), false),
        };
        if until <= self.acknowledged(&state.log) {
            return Ok(AppendTicket::resolved(answer));
        }
        let (sender, ticket) = AppendTicket::new();
        state.park(Parked { rests_on: until, until, answer, sender });
        drop(state);
        if staged {
            self.shared.queue.push(self);
        }
        Ok(ticket)
    }

    fn ends(&self) -> LogEnds {
        let ends = self.reader.ends();
        if self.sees_written.load(Ordering::Acquire) {
            return LogEnds { stable: ends.written, durable: ends.written, ..ends };
        }
        ends
    }

    fn subscribe(&self, waiter: &Waiter) {
        self.waiters.add(waiter);
    }

    fn read(&self, from: Offset, limit: ReadLimit) -> BoxFuture<'_, Result<Batches, ReadError>> {
        Box::pin(async move {
            let ends = self.ends();
            let end = self.visible(ends, limit.visibility);
            if from < ends.start || from > end {
                return Err(ReadError::OutOfRange { offset: from, start: ends.start, end });
            }
            let until = limit.until.map_or(end, |until| until.min(end));
            if from >= until {
                return Ok(Batches { batches: Vec::new(), next: from, ends });
            }
            let bytes = usize::try_from(limit.bytes.get()).unwrap_or(usize::MAX);
            let range = ReadRange { from, until, bytes };
            let stored = self.with_reader(move |reader, access| reader.read(range, access)).await?;
            let batches: Vec<_> = stored
                .into_iter()
                .map(|stored| ReadBatch { batch: stored.batch, append_time: stored.append_time })
                .collect();
            let next = batches.last().map_or(until, |last| last.batch.next_offset());
            Ok(Batches { batches, next, ends })
        })
    }

    fn offset_for_time(&self, at: Timestamp) -> BoxFuture<'_, Result<Option<OffsetAt>, ReadError>> {
        Box::pin(async move {
            let found = self
                .settled(move |ends| {
                    move |reader: &LogReader, access| reader.find_time(at, ends.durable, access)
                })
                .await?;
            Ok(found.map(|found| OffsetAt { offset: found.offset, time: found.time }))
        })
    }

    fn offset_of_max_time(&self) -> BoxFuture<'_, Result<Option<OffsetAt>, ReadError>> {
        Box::pin(async move {
            let found = self
                .settled(move |LogEnds { durable: end, .. }| {
                    move |reader: &LogReader, access| match reader.max_time(end, access)? {
                        Some(time) => reader.find_time(time, end, access),
                        None => Ok(None),
                    }
                })
                .await?;
            Ok(found.map(|found| OffsetAt { offset: found.offset, time: found.time }))
        })
    }

    fn count(&self, from: Offset, to: Offset) -> BoxFuture<'_, Result<RecordCount, ReadError>> {
        Box::pin(async move {
            let counted = self.settled(move |ends| {
                let (from, to) = (from.max(ends.start), to.min(ends.durable));
                move |reader: &LogReader, access| match from < to {
                    true => reader.count(from, to, access),
                    false => Ok(Extent::default()),
                }
            });
            let extent = counted.await?;
            Ok(RecordCount { records: extent.records, bytes: ByteCount(extent.bytes) })
        })
    }

    fn append_time_at(&self, offset: Offset) -> BoxFuture<'_, Result<Option<Timestamp>, ReadError>> {
        Box::pin(self.settled(move |ends| {
            let offset = offset.max(ends.start);
            move |reader: &LogReader, access| match offset < ends.durable {
                true => reader.append_time_at(offset, ends.durable, access),
                false => Ok(None),
            }
        }))
    }

    fn trim(&self, start: Offset) -> BoxFuture<'_, Result<Offset, StoreError>> {
        Box::pin(async move {
            let ends = self.ends();
            if start > ends.durable {
                return Err(StoreError::OutOfRange { offset: start, start: ends.start, end: ends.durable });
            }
            let _one_at_a_time = self.maintenance.lock().await;
            // On a `written` topic the visible end may lie above what a sync covers: nothing may go before it is.
            self.barrier(|_| {}).await?;
            self.trim_to(start).await.map(|(start, ..)| start)
        })
    }

    fn maintain(&self, now: Timestamp) -> BoxFuture<'_, Result<Maintained, StoreError>> {
        Box::pin(async move {
            let _one_at_a_time = self.maintenance.lock().await;
            let mut rolled = false;
            {
                let mut state = self.state.lock();
                state.log.producers_mut().expire(now);
                state.log.sweep_maps();
            }
            if self.state.lock().log.is_old(now) {
                self.barrier(|log| rolled = log.roll_if_old(now)).await?;
            }
            let (reader, config) = (self.reader.clone(), self.state.lock().log.config().clone());
            let plan = blocking(move || Ok(Log::plan_retention(&reader, &config, now))).await?;
            let mut maintained =
                Maintained { rolled: u32::from(rolled), more: plan.more, ..Maintained::default() };
            if plan.segments > 0 {
                let (_, deleted, freed) = self.trim_to(plan.start).await?;
                maintained.deleted = deleted;
                maintained.freed = ByteCount(freed);
                tracing::info!(partition = %self.id, deleted, freed_bytes = freed, start = %plan.start, more = plan.more, "retention");
            }
            Ok(maintained)
        })
    }

    fn producer(&self, id: ProducerId) -> BoxFuture<'_, Result<Option<ProducerView>, StoreError>> {
        Box::pin(async move {
            let (view, dirty) = {
                let state = self.state.lock();
                let view = state.log.producer(id).and_then(|entry| ProducerView::of(id, entry));
                (view, state.log.is_dirty())
            };
            if view.is_some() && dirty {
                self.barrier(|_| {}).await?;
            }
            Ok(view)
        })
    }

    fn producers(&self, limit: usize) -> Vec<ProducerView> {
        let state = self.state.lock();
        let mut all: Vec<_> =
            state.log.producers().iter().filter_map(|(id, entry)| ProducerView::of(id, entry)).collect();
        drop(state);
        all.sort_unstable_by_key(|view| view.id);
        all.truncate(limit);
        all
    }

    fn forget_producer(&self, id: ProducerId) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            let forgotten = self.state.lock().log.producers_mut().forget(id);
            if forgotten {
                self.barrier(|log| log.stage_snapshot(true)).await?;
            }
            Ok(())
        })
    }

    fn configure(&self, config: PartitionConfig) {
        self.sees_written.store(config.ack == AckLevel::Written, Ordering::Release);
        self.state.lock().log.configure(self.shared.log_config(&config));
    }

    fn info(&self) -> StoreInfo {
        let ends = self.ends();
        let state = self.state.lock();
        let (segments, bytes) = state.log.size();
        StoreInfo {
            ends,
            segments,
            bytes: ByteCount(bytes),
            undurable_bytes: ByteCount(state.log.undurable_bytes()),
            producers: u32::try_from(state.log.producers().len()).unwrap_or(u32::MAX),
            state: match (&state.poisoned, state.closed) {
                (_, Some(_)) => StoreState::Closed,
                (Some(reason), None) => StoreState::Poisoned { reason: reason.clone() },
                (None, None) => StoreState::Serving,
            },
        }
    }

    fn close(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            self.barrier(|_| {}).await?;
            let partition = Arc::clone(self);
            blocking(move || partition.write_caches().map(|_| ())).await
        })
    }
}
