//! One partition in memory.

use std::sync::{
    Arc,
    atomic::{AtomicU8, Ordering},
};

use futures::future::{BoxFuture, FutureExt, ready};
use parking_lot::Mutex;
use rimstone_types::{ByteCount, LogEnds, Offset, ProducerId, Timestamp};

use super::{Shared, contents::Contents};
use crate::{
    Append, AppendError, AppendTicket, Appended, Backpressure, Batches, Compacted, Dirtiness, Maintained,
    OffsetAt, PartitionConfig, PartitionStore, ProducerView, ReadError, ReadLimit, RecordCount, StoreError,
    StoreInfo, StoreState, Waiter, waiters::Waiters,
};

/// An open partition. The contents outlive it.
#[derive(Debug)]
pub(super) struct MemoryPartition {
    shared: Arc<Shared>,
    contents: Arc<Mutex<Contents>>,
    waiters: Waiters,
    /// One of the three below.
    state: AtomicU8,
}

const OPEN: u8 = 0;
const CLOSED: u8 = 1;
const DELETED: u8 = 2;

impl MemoryPartition {
    pub(super) fn new(shared: Arc<Shared>, contents: Arc<Mutex<Contents>>) -> Self {
        Self { shared, contents, waiters: Waiters::default(), state: AtomicU8::new(OPEN) }
    }

    pub(super) fn is_open(&self) -> bool {
        self.state.load(Ordering::Acquire) == OPEN
    }

    pub(super) fn close_now(&self) {
        self.leave(CLOSED);
    }

    pub(super) fn delete(&self) {
        self.leave(DELETED);
    }

    /// Stops serving. What holds the lock finishes first, so that nothing is taken afterwards.
    fn leave(&self, state: u8) {
        let contents = self.contents.lock();
        if self.is_open() {
            self.state.store(state, Ordering::Release);
        }
        drop(contents);
        self.waiters.wake();
    }

    /// Does something with the contents of a partition that is open.
    fn with<T>(&self, work: impl FnOnce(&mut Contents) -> T) -> Result<T, StoreError> {
        let mut contents = self.contents.lock();
        match self.state.load(Ordering::Acquire) {
            OPEN => Ok(work(&mut contents)),
            CLOSED => Err(StoreError::ShuttingDown),
            _ => Err(StoreError::Deleted),
        }
    }

    fn submit_now(&self, append: &Append) -> Result<Result<Appended, AppendError>, Backpressure> {
        let held = &self.shared.counters.held_bytes;
        // Held to the end: a fence that is set meanwhile waits, and is seen by every later submit.
        let fences = self.shared.fences.read();
        let answer = self.with(|contents| {
            if held.load(Ordering::Relaxed) >= self.shared.capacity.get() {
                return Err(Backpressure::DiskReserve { free: ByteCount(0), reserve: ByteCount(0) });
            }
            if let Some(stamp) = append.batch.header().producer
                && let Some(&fence) = fences.get(&stamp.id)
                && fence.is_none_or(|fence| stamp.epoch < fence)
            {
                return Ok(Err(AppendError::Fenced { got: stamp.epoch, current: fence }));
            }
            let answer = contents.append(append);
            if matches!(answer, Ok(Appended { duplicate: false, .. })) {
                let bytes = append.batch.bytes().len() as u64;
                held.fetch_add(bytes, Ordering::Relaxed);
                self.shared.counters.written_bytes.fetch_add(bytes, Ordering::Relaxed);
            }
            Ok(answer)
        });
        answer.unwrap_or(Err(Backpressure::Closed))
    }

    fn read_now(&self, from: Offset, limit: ReadLimit) -> Result<Batches, ReadError> {
        self.with(|contents| {
            let LogEnds { start, stable: end, .. } = contents.ends();
            if from < start || from > end {
                return Err(ReadError::OutOfRange { offset: from, start, end });
            }
            Ok(contents.read(from, limit))
        })?
    }

    fn note_deleted(&self, maintained: Maintained) {
        self.shared.counters.held_bytes.fetch_sub(maintained.freed.get(), Ordering::Relaxed);
        self.shared.counters.segments_deleted.fetch_add(u64::from(maintained.deleted), Ordering::Relaxed);
    }
}

impl PartitionStore for MemoryPartition {
    fn submit(&self, append: Append) -> Result<AppendTicket, Backpressure> {
        let answer = self.submit_now(&append)?;
        if matches!(answer, Ok(Appended { duplicate: false, .. })) {
            self.waiters.wake();
        }
        Ok(AppendTicket::resolved(answer))
    }

    fn ends(&self) -> LogEnds {
        self.contents.lock().ends()
    }

    fn generation(&self) -> u64 {
        self.contents.lock().generation
    }

    fn subscribe(&self, waiter: &Waiter) {
        self.waiters.add(waiter);
        if !self.is_open() {
            waiter.wake();
        }
    }

    fn read(&self, from: Offset, limit: ReadLimit) -> BoxFuture<'_, Result<Batches, ReadError>> {
        ready(self.read_now(from, limit)).boxed()
    }

    fn offset_for_time(&self, at: Timestamp) -> BoxFuture<'_, Result<Option<OffsetAt>, ReadError>> {
        ready(self.with(|contents| contents.offset_for_time(at)).map_err(ReadError::from)).boxed()
    }

    fn offset_of_max_time(&self) -> BoxFuture<'_, Result<Option<OffsetAt>, ReadError>> {
        ready(self.with(|contents| contents.offset_of_max_time()).map_err(ReadError::from)).boxed()
    }

    fn count(&self, from: Offset, to: Offset) -> BoxFuture<'_, Result<RecordCount, ReadError>> {
        ready(self.with(|contents| contents.count(from..to)).map_err(ReadError::from)).boxed()
    }

    fn append_time_at(&self, offset: Offset) -> BoxFuture<'_, Result<Option<Timestamp>, ReadError>> {
        ready(self.with(|contents| contents.append_time_at(offset)).map_err(ReadError::from)).boxed()
    }

    fn trim(&self, start: Offset) -> BoxFuture<'_, Result<Offset, StoreError>> {
        let trimmed =
            self.with(|contents| contents.trim(start).map(|trimmed| (trimmed, contents.ends().start)));
        let answer = trimmed.and_then(|trimmed| trimmed).map(|(trimmed, start)| {
            self.note_deleted(trimmed);
            start
        });
        ready(answer).boxed()
    }

    fn maintain(&self, now: Timestamp) -> BoxFuture<'_, Result<Maintained, StoreError>> {
        let maintained = self.with(|contents| contents.maintain(now));
        if let Ok(maintained) = &maintained {
            self.note_deleted(*maintained);
        }
        ready(maintained).boxed()
    }

    fn dirtiness(&self, now: Timestamp) -> BoxFuture<'_, Result<Dirtiness, StoreError>> {
        ready(self.with(|contents| contents.dirtiness(now))).boxed()
    }

    fn compact(&self, now: Timestamp, _budget: ByteCount) -> BoxFuture<'_, Result<Compacted, StoreError>> {
        let compacted = self.with(|contents| contents.compact(now)).map(|(done, before, after)| {
            // A delete horizon may make a batch larger.
            self.shared.counters.held_bytes.fetch_add(after, Ordering::Relaxed);
            self.shared.counters.held_bytes.fetch_sub(before, Ordering::Relaxed);
            done
        });
        ready(compacted).boxed()
    }

    fn producer(&self, id: ProducerId) -> BoxFuture<'_, Result<Option<ProducerView>, StoreError>> {
        let view = |contents: &mut Contents| {
            contents.producers.get(id).and_then(|entry| ProducerView::of(id, entry))
        };
        ready(self.with(view)).boxed()
    }

    fn producers(&self, limit: usize) -> Vec<ProducerView> {
        let contents = self.contents.lock();
        contents.producers.iter().filter_map(|(id, entry)| ProducerView::of(id, entry)).take(limit).collect()
    }

    fn forget_producer(&self, id: ProducerId) -> BoxFuture<'_, Result<(), StoreError>> {
        ready(self.with(|contents| contents.producers.forget(id)).map(|_known| ())).boxed()
    }

    fn configure(&self, config: PartitionConfig) {
        self.contents.lock().configure(config);
    }

    fn info(&self) -> StoreInfo {
        let contents = self.contents.lock();
        StoreInfo {
            ends: contents.ends(),
            segments: contents.segment_count() as u32,
            bytes: ByteCount(contents.bytes()),
            undurable_bytes: ByteCount(0),
            dirtiness: contents.cleaned_size(),
            obstacles: Vec::new(),
            damage: Vec::new(),
            accepted_losses: Vec::new(),
            producers: contents.producers.len() as u32,
            state: if self.is_open() { StoreState::Serving } else { StoreState::Closed },
        }
    }

    fn close(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        // Everything is as durable as it will be, and there are no caches.
        ready(Ok(())).boxed()
    }
}
