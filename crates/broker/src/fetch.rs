//! Fetching: a long poll over partitions of one topic. Not here: endless reading (`read`), decoding
//! (`decode`).

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use rimstone_store::{LogEnds, PartitionStore, ReadBatch, ReadLimit, Visibility, Waiter};
use rimstone_types::{ByteCount, Offset, PartitionIndex, TopicName};

use crate::{
    broker::{Broker, Inner},
    error::{FetchError, InvalidRequest, LimitReached, PartitionReadError},
    topics::Topic,
};

/// A request to read from an offset in each of some partitions.
#[derive(Debug, Clone)]
pub struct FetchRequest {
    /// The topic.
    pub topic: TopicName,
    /// Where from.
    pub partitions: Vec<FetchPartition>,
    /// Wait until there are this many bytes (0 means 1).
    pub min_bytes: ByteCount,
    /// Answer at most about this many; at least one batch if there is one. `None`: the server's default.
    pub max_bytes: Option<ByteCount>,
    /// Wait at most this long; zero: not at all.
    pub max_wait: Duration,
    /// What is seen.
    pub visibility: Visibility,
}

/// Where to read in one partition.
#[derive(Debug, Clone, Copy)]
pub struct FetchPartition {
    /// Which one.
    pub partition: PartitionIndex,
    /// The first offset wanted.
    pub offset: Offset,
    /// At most about this many bytes from here; `None`: as the whole request.
    pub max_bytes: Option<ByteCount>,
}

/// The answer to a fetch: one item per partition asked for, in the same order.
#[derive(Debug)]
pub struct FetchAnswer {
    /// The items.
    pub partitions: Vec<FetchedPartition>,
}

/// What one partition answered.
#[derive(Debug)]
pub struct FetchedPartition {
    /// Which one.
    pub partition: PartitionIndex,
    /// The offset asked for: earlier records of the first batch are not wanted ([`crate::decode`] drops them).
    pub from: Offset,
    /// Batches, or why there are none.
    pub result: Result<Fetched, PartitionReadError>,
}

/// Batches of one partition.
#[derive(Debug, Clone)]
pub struct Fetched {
    /// Whole batches in order; the first may begin before the offset asked for.
    pub batches: Vec<ReadBatch>,
    /// Where to go on.
    pub next: Offset,
    /// The ends, taken before the read.
    pub ends: LogEnds,
}

impl Broker {
    /// Reads from some partitions; waits for `min_bytes`, at most for `max_wait`. Answers at once when a
    /// partition has an error, and early when the server stops. Which partition is read first changes from
    /// call to call, so that none starves when the bound on bytes is reached.
    ///
    /// # Errors
    /// [`FetchError`]: nothing was read. Errors of single partitions are in the answer.
    pub async fn fetch(&self, request: FetchRequest) -> Result<FetchAnswer, FetchError> {
        self.counted(self.inner.fetch(request).await)
    }
}

/// A partition of a fetch, and what was read of it so far.
#[derive(Debug)]
struct Slice {
    partition: PartitionIndex,
    /// `None` once nothing more is to be read from it.
    store: Option<Arc<dyn PartitionStore>>,
    from: Offset,
    bytes_max: u64,
    bytes: u64,
    result: Result<Fetched, PartitionReadError>,
}

impl Inner {
    async fn fetch(&self, request: FetchRequest) -> Result<FetchAnswer, FetchError> {
        self.refuse_when_stopping()?;
        let topic = self.topics.get(&request.topic)?;
        self.check_fetch(&request)?;
        let limits = &self.config.limits;
        let bytes_max = request.max_bytes.map_or(limits.response_default, |max| max.min(limits.response));
        let limit = limits.waiting_fetches as u64;
        let _one_of_many = self
            .waiting_fetches
            .try_acquire()
            .map_err(|_| LimitReached { what: "fetches at one time", limit })?;

        let mut slices: Vec<Slice> =
            request.partitions.iter().map(|asked| Slice::new(&topic, asked, bytes_max)).collect();
        // Subscribed before the first read: nothing that comes in between is missed.
        let waiter = Waiter::new();
        if !request.max_wait.is_zero() {
            for store in slices.iter().filter_map(|slice| slice.store.as_ref()) {
                store.subscribe(&waiter);
            }
        }
        let deadline = tokio::time::Instant::now() + request.max_wait;
        let enough = request.min_bytes.get().clamp(1, bytes_max.get());
        // Cannot matter that it wraps.
        let first = self.fetch_turn.fetch_add(1, Ordering::Relaxed) as usize % slices.len();
        let mut reading = Duration::ZERO;
        loop {
            let started = Instant::now();
            let failed = read_more(&mut slices, first, bytes_max.get(), request.visibility).await;
            reading += started.elapsed();
            let bytes: u64 = slices.iter().map(|slice| slice.bytes).sum();
            if failed || bytes >= enough || request.max_wait.is_zero() {
                break;
            }
            tokio::select! {
                () = waiter.wait() => {}
                () = tokio::time::sleep_until(deadline) => break,
                () = self.shutdown.cancelled() => break,
            }
        }
        self.metrics.fetch_seconds.observe(reading.as_secs_f64());
        let now = self.clock.now();
        // One turn for all of them: who asks for many partitions waits no longer than others.
        let fetched = slices.iter().filter_map(|slice| slice.result.as_ref().ok());
        self.pace.give_way(fetched.flat_map(|fetched| &fetched.batches), now).await;
        Ok(FetchAnswer { partitions: slices.into_iter().map(|slice| slice.answer(self, &topic)).collect() })
    }

    fn check_fetch(&self, request: &FetchRequest) -> Result<(), FetchError> {
        let limits = &self.config.limits;
        if request.partitions.is_empty() {
            return Err(InvalidRequest::new("the request names no partition").into());
        }
        let limit = limits.partitions_per_fetch;
        if request.partitions.len() > limit {
            return Err(LimitReached { what: "partitions in one fetch", limit: limit as u64 }.into());
        }
        if request.max_wait > limits.fetch_wait {
            let why = format!("a fetch waits at most {} ms", limits.fetch_wait.as_millis());
            return Err(InvalidRequest::new(why).into());
        }
        Ok(())
    }
}

impl Slice {
    fn new(topic: &Topic, asked: &FetchPartition, bytes_max: ByteCount) -> Self {
        let FetchPartition { partition, offset, max_bytes } = *asked;
        let (store, result) = match topic.partition(partition) {
            Ok(store) => {
                let nothing = Fetched { batches: Vec::new(), next: offset, ends: store.ends() };
                (Some(Arc::clone(store)), Ok(nothing))
            }
            Err(error) => (None, Err(error.into())),
        };
        let bytes_max = max_bytes.unwrap_or(bytes_max).get().max(1);
        Self { partition, store, from: offset, bytes_max, bytes: 0, result }
    }

    /// Reads on behind what was read before. Answers the bytes read, or nothing after an error.
    async fn read(&mut self, room: u64, visibility: Visibility) -> Option<u64> {
        let store = self.store.as_ref()?;
        let fetched = self.result.as_mut().ok()?;
        let bytes = ByteCount(room.min(self.bytes_max.saturating_sub(self.bytes)));
        match store.read(fetched.next, ReadLimit { bytes, until: None, visibility }).await {
            Ok(read) => {
                let more = read.bytes();
                self.bytes += more;
                fetched.batches.extend(read.batches);
                fetched.next = read.next;
                fetched.ends = read.ends;
                Some(more)
            }
            Err(error) => {
                self.store = None;
                // What was read before is answered; the next fetch meets the error.
                if fetched.batches.is_empty() {
                    self.result = Err(error.into());
                }
                None
            }
        }
    }

    fn answer(self, inner: &Inner, topic: &Topic) -> FetchedPartition {
        let Self { partition, from, result, .. } = self;
        match &result {
            Ok(fetched) => topic.counters.fetched(&fetched.batches),
            Err(error) => inner.metrics.error(error),
        }
        FetchedPartition { partition, from, result }
    }
}

/// Reads all slices on, beginning with `first`, up to the bound on all. Answers whether one has an error.
async fn read_more(slices: &mut [Slice], first: usize, bytes_max: u64, visibility: Visibility) -> bool {
    let mut bytes: u64 = slices.iter().map(|slice| slice.bytes).sum();
    let mut failed = false;
    let (later, earlier) = slices.split_at_mut(first);
    for slice in earlier.iter_mut().chain(later) {
        let full = bytes >= bytes_max || slice.bytes >= slice.bytes_max;
        if slice.store.is_some() && full {
            continue;
        }
        match slice.read(bytes_max.saturating_sub(bytes), visibility).await {
            Some(more) => bytes += more,
            None => failed = true,
        }
    }
    failed
}

#[cfg(test)]
mod tests;
