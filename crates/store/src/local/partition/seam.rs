//! What the broker asks of a partition: taking batches, reading, trimming, maintenance.
//!
//! Not here: what the flusher does with what was taken (the parent module).

use std::sync::{Arc, atomic::Ordering};

use futures::future::BoxFuture;
use rimstone_log::{
    Access, Extent, Log, LogReadError, LogReader, Offered, ReadRange, StageError,
    planted::{self, Bug},
    producers, write_log_start,
};
use rimstone_types::{ByteCount, LogEnds, Offset, ProducerId, Timestamp, TopicId};

use super::{LocalPartition, Parked};
use crate::{
    local::{Counters, blocking, off_thread, store_error},
    partition::{
        AcceptLossError, AcceptedLoss, AckLevel, Append, Appended, Backpressure, Batches, Compacted,
        DamagedRange, Dirtiness, Maintained, OffsetAt, OffsetRange, PartitionStore, ProducerView, ReadBatch,
        ReadError, ReadLimit, RecordCount, ScrubScope, Scrubbed, StoreInfo, StoreState, Visibility,
    },
    storage::{PartitionConfig, StoreError},
    ticket::{AppendError, AppendTicket},
    waiters::Waiter,
};

/// Bytes of one partition that may wait for the flusher: a few of the largest groups that a disk takes in one
/// sync, so that a slow disk shows as back-pressure and not as memory.
const STAGED_BYTES_MAX: u64 = 32 << 20;

impl LocalPartition {
    fn visible(&self, ends: LogEnds, visibility: Visibility) -> Offset {
        match visibility {
            Visibility::Stable => ends.stable,
            Visibility::Durable => ends.durable,
        }
    }

    /// Moves log start to `start`, which is not below it, and deletes what lies before.
    async fn trim_to(self: &Arc<Self>, start: Offset) -> Result<(Offset, u32, u64), StoreError> {
        let (start, is_due) = self.trim_start(start);
        if !is_due {
            return Ok((start, 0, 0));
        }
        // The state of producers whose batches go must outlive them (semantics, idempotence, rule 6).
        self.barrier(|log| log.stage_snapshot(true)).await?;
        let partition = Arc::clone(self);
        blocking(move || partition.carry_out_trim(start)).await
    }

    /// Where log start would be after a trim, and whether there is anything to do for it.
    fn trim_start(&self, start: Offset) -> (Offset, bool) {
        let log = &self.state.lock().log;
        let start = log.clamp_start(start);
        (start, start > self.reader.start() || log.has_segments_below(start))
    }

    /// The rest of a trim, when what it needs is durable; also if nobody waits for it any more.
    pub(in crate::local) fn carry_out_trim(&self, start: Offset) -> Result<(Offset, u32, u64), StoreError> {
        // Whoever shuts the partition waits for it after that.
        let _not_now = self.compaction.work();
        self.check_serving()?;
        // Another trim may have overtaken this one.
        let (start, is_due) = self.trim_start(start);
        if !is_due {
            return Ok((start, 0, 0));
        }
        write_log_start(&self.directory, start).map_err(store_error)?;
        let trimmed = self.state.lock().log.advance_start(start);
        let (mut count, mut bytes) = (0, 0);
        for freed in trimmed.unlink() {
            match freed {
                Ok(freed) => bytes += freed,
                Err(error) => tracing::warn!(%error, "a deleted segment's file could not be removed"),
            }
            count += 1;
        }
        Counters::add(&self.shared.counters.segments_deleted, u64::from(count));
        Ok((start, count, bytes))
    }

    /// Runs a read: at once if the bytes are in memory, otherwise where it may wait for the disk.
    async fn with_reader<T: Send + 'static>(
        &self,
        read: impl Fn(&LogReader, Access) -> Result<T, LogReadError> + Send + 'static,
    ) -> Result<T, ReadError> {
        let result = match read(&self.reader, Access::Resident) {
            Err(LogReadError::NotResident) => {
                let reader = self.reader.clone();
                let access = if self.shared.is_writing() { Access::InSteps } else { Access::Blocking };
                off_thread(move || read(&reader, access))
                    .await
                    .ok_or(ReadError::Store(StoreError::ShuttingDown))?
            }
            result => result,
        };
        result.map_err(|error| self.read_error(error))
    }

    /// Runs a look-up over several segments on a log whose start stays where it is meanwhile, and that is not
    /// compacted: otherwise segments may have gone under the look-up, and it is made again over what is left.
    async fn settled<T: Send + 'static, F>(
        self: &Arc<Self>,
        look_up: impl Fn(LogEnds) -> F,
    ) -> Result<T, ReadError>
    where
        F: Fn(&LogReader, Access) -> Result<T, LogReadError> + Send + 'static,
    {
        loop {
            let generation = self.reader.generation();
            let ends = self.ends();
            let result = self.with_reader(look_up(ends)).await;
            if self.reader.start() == ends.start && self.reader.generation() == generation {
                return result;
            }
        }
    }

    fn read_error(&self, error: LogReadError) -> ReadError {
        match error {
            LogReadError::OutOfRange { offset, start, end } => ReadError::OutOfRange { offset, start, end },
            LogReadError::Damaged { from, until, reason } => {
                // A topic that is deleted meanwhile takes its files with it: that is nobody's loss.
                if let Err(error) = self.check_open() {
                    return ReadError::Store(error);
                }
                // Told of once, however often it is read.
                let segment = self.reader.segment_of(from).unwrap_or(from);
                if self.damage.met(segment, from, until, &reason) {
                    Counters::add(&self.shared.counters.damaged_ranges, 1);
                    tracing::error!(partition = %self.id, %from, %until, reason, "acknowledged data is damaged");
                }
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
        // The server's own topics live out of the reserve, so that topics can be deleted and offsets committed when
        // the disk is full.
        if ![TopicId::CATALOG, TopicId::CONSUMER_OFFSETS].contains(&self.id.topic) {
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
                let depends_on = if planted::is(Bug::EarlyDuplicate) { Offset::ZERO } else { depends_on };
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
        if self.sees_written.load(Ordering::Acquire) || planted::is(Bug::ServePastDurable) {
            return LogEnds { stable: ends.written, durable: ends.written, ..ends };
        }
        match Offset::new(self.seen_end.load(Ordering::Acquire)) {
            Ok(seen) if seen > ends.durable => {
                let seen = seen.min(ends.written);
                LogEnds { stable: seen, durable: seen, ..ends }
            }
            _ => ends,
        }
    }

    fn generation(&self) -> u64 {
        self.reader.generation()
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
            self.state.lock().log.producers_mut().expire(now);
            self.reader.sweep_maps();
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

    fn dirtiness(&self, now: Timestamp) -> BoxFuture<'_, Result<Dirtiness, StoreError>> {
        Box::pin(self.how_dirty(now))
    }

    fn compact(&self, now: Timestamp, budget: ByteCount) -> BoxFuture<'_, Result<Compacted, StoreError>> {
        Box::pin(async move {
            let _one_at_a_time = self.maintenance.lock().await;
            self.compact_some(now, budget).await
        })
    }

    fn scrub(&self, scope: ScrubScope, budget: ByteCount) -> BoxFuture<'_, Result<Scrubbed, StoreError>> {
        Box::pin(self.scrub_some(scope, budget))
    }

    fn find_damage(&self) -> BoxFuture<'_, Result<Vec<DamagedRange>, StoreError>> {
        Box::pin(self.look_at_damage())
    }

    fn accept_loss(
        &self,
        ranges: Vec<OffsetRange>,
        now: Timestamp,
    ) -> BoxFuture<'_, Result<Vec<AcceptedLoss>, AcceptLossError>> {
        Box::pin(self.give_up(ranges, now))
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
        let mut state = self.state.lock();
        let sees_written = config.ack == AckLevel::Written;
        if !sees_written && self.sees_written.load(Ordering::Acquire) {
            let seen = state.log.written_position().offset.get();
            self.seen_end.store(seen, Ordering::Release);
        }
        self.sees_written.store(sees_written, Ordering::Release);
        state.log.configure(self.shared.log_config(&config));
        drop(state);
        self.compaction.configure(&config);
    }

    fn info(&self) -> StoreInfo {
        let ends = self.ends();
        let compacts = self.compaction.is_on();
        let obstacles = if compacts { self.compaction.obstacles() } else { Vec::new() };
        let state = self.state.lock();
        let (segments, bytes) = state.log.size();
        let (clean_bytes, dirty_bytes) = state.log.cleaned_size(&obstacles);
        StoreInfo {
            dirtiness: compacts.then_some(Dirtiness { clean_bytes, dirty_bytes, due: false }),
            obstacles,
            damage: self.damage.known(ends.start),
            accepted_losses: self.damage.accepted(),
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
