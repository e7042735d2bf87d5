//! What the tests share: a broker over a memory store whose failures are scripted, and short ways to ask it.

use std::{
    collections::{BTreeMap, VecDeque},
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt, ready};
use parking_lot::Mutex;
use rimstone_record::{Batch, BatchBuilder, Compression, NewRecord, ProducerStamp};
use rimstone_store::{
    Append, AppendError, AppendTicket, Appended, Backpressure, Batches, Compacted, Dirtiness, Health,
    LogEnds, Maintained, MemoryStorage, OffsetAt, OpenError, OpenMode, PartitionConfig, PartitionStore,
    ProducerView, ReadError, ReadLimit, RecordCount, ScrubScope, Scrubbed, Storage, StoreError, StoreInfo,
    StoreStatistics, SyncMethod, TicketSender, Visibility, Waiter,
};
use rimstone_types::{
    ByteCount, Numbering, Offset, PartitionId, PartitionIndex, ProducerEpoch, ProducerId, RequestNumber,
    Timestamp, TopicId, TopicName,
};

use crate::*;

/// A test that waits longer than this waits for something that does not come: a sync of a file system to which others
/// write gigabytes takes half a minute.
pub(crate) const DEADLINE: Duration = Duration::from_secs(120);

/// Waits for something that must come.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(DEADLINE, future).await {
        Ok(done) => done,
        Err(_) => panic!("{what} did not come"),
    }
}

/// Waits until a condition holds.
pub(crate) async fn until(what: &str, condition: impl Fn() -> bool) {
    soon(what, async {
        while !condition() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// A clock that stands still until it is moved.
#[derive(Debug)]
pub(crate) struct ManualClock(pub(crate) AtomicI64);

impl Default for ManualClock {
    fn default() -> Self {
        Self(AtomicI64::new(1_700_000_000_000))
    }
}

impl ManualClock {
    pub(crate) fn advance(&self, millis: i64) {
        self.0.fetch_add(millis, Ordering::Relaxed);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        Timestamp(self.0.load(Ordering::Relaxed))
    }
}

/// What is to go wrong with a partition.
#[derive(Debug, Default)]
pub(crate) struct Script {
    /// Submits are not taken.
    pub(crate) refuse: Option<Backpressure>,
    /// The next submit is not taken.
    pub(crate) refuse_next: Option<Backpressure>,
    /// Submits wait here, as for a flusher, until [`Faulty::release`].
    pub(crate) hold: bool,
    /// What waits.
    pub(crate) held: VecDeque<(Append, TicketSender)>,
    /// It says that it refuses writes until it is opened again.
    pub(crate) poisoned: Option<String>,
    /// Reads find nothing, whatever the ends say.
    pub(crate) blind: bool,
    /// Reads fail so.
    pub(crate) read_error: Option<ReadError>,
    /// Opening fails so.
    pub(crate) open_error: Option<String>,
    /// Reads and look-ups by time wait for a permit each.
    pub(crate) read_permits: Option<Arc<tokio::sync::Semaphore>>,
    /// Comes in right behind the next read, before its caller knows what it read.
    pub(crate) after_read: Option<Append>,
    /// How often it was read.
    pub(crate) reads: u32,
    /// How often something was counted or looked up in it.
    pub(crate) look_ups: u32,
    /// Counting takes a permit from here.
    pub(crate) counts: Option<Arc<tokio::sync::Semaphore>>,
    /// What maintenance answers.
    pub(crate) maintained: Maintained,
    maintained_at: Vec<Timestamp>,
    /// The budgets of slices of compaction.
    slices: Vec<ByteCount>,
    /// What compacting it is to fail with.
    pub(crate) compact_error: Option<StoreError>,
    /// Slices that the next pass of the scrub over everything takes, and what each of them says.
    pub(crate) sealed_slices: usize,
    pub(crate) scrubbed: Scrubbed,
    /// What was gone over, slice by slice.
    pub(crate) scrubs: Vec<ScrubScope>,
}

type Scripts = Arc<Mutex<BTreeMap<PartitionId, Script>>>;

/// What is to happen to partitions that are opened from now on.
#[derive(Debug, Default)]
pub(crate) struct Opens {
    /// This one fails, once there is a permit for it.
    pub(crate) fail: Option<(PartitionIndex, Arc<tokio::sync::Semaphore>)>,
    /// Others wait for a permit each. What is begun goes on, as on a disk, though nobody waits for it any more.
    pub(crate) permits: Option<Arc<tokio::sync::Semaphore>>,
    /// How many were begun.
    pub(crate) begun: usize,
}

/// A memory store with scripted failures.
#[derive(Debug)]
pub(crate) struct Faulty {
    memory: Arc<MemoryStorage>,
    scripts: Scripts,
    pub(crate) opens: Mutex<Opens>,
    pub(crate) health: Mutex<Health>,
    pub(crate) statistics: Mutex<StoreStatistics>,
    fences: Mutex<Vec<(ProducerId, Option<ProducerEpoch>)>>,
    partitions: Mutex<BTreeMap<PartitionId, Arc<dyn PartitionStore>>>,
}

#[derive(Debug)]
struct FaultyPartition {
    id: PartitionId,
    inner: Arc<dyn PartitionStore>,
    scripts: Scripts,
}

impl Faulty {
    pub(crate) fn new(memory: MemoryStorage) -> Arc<Self> {
        Arc::new(Self {
            memory: Arc::new(memory),
            scripts: Scripts::default(),
            opens: Mutex::default(),
            health: Mutex::new(Health::Healthy),
            statistics: Mutex::default(),
            fences: Mutex::default(),
            partitions: Mutex::default(),
        })
    }

    /// The same bytes, as after a stop and a start.
    pub(crate) fn reopen(&self) -> Arc<Self> {
        Self::new(self.memory.reopen())
    }

    /// Changes what is to go wrong.
    pub(crate) fn script<T>(&self, id: PartitionId, change: impl FnOnce(&mut Script) -> T) -> T {
        change(self.scripts.lock().entry(id).or_default())
    }

    pub(crate) fn held(&self, id: PartitionId) -> usize {
        self.script(id, |script| script.held.len())
    }

    pub(crate) fn slices(&self, id: PartitionId) -> usize {
        self.script(id, |script| script.slices.len())
    }

    pub(crate) fn maintained_at(&self, id: PartitionId) -> Vec<Timestamp> {
        self.script(id, |script| script.maintained_at.clone())
    }

    pub(crate) fn fences(&self) -> Vec<(ProducerId, Option<ProducerEpoch>)> {
        self.fences.lock().clone()
    }

    /// The flusher does its work on the oldest that waits: it is stored, or fails.
    pub(crate) async fn release(&self, id: PartitionId, error: Option<AppendError>) {
        let (append, ticket) = self.script(id, |script| script.held.pop_front()).expect("something waits");
        let answer = match error {
            Some(error) => Err(error),
            None => {
                let inner = self.partitions.lock().get(&id).cloned().expect("it is open");
                inner.submit(append).expect("the memory store takes it").await
            }
        };
        ticket.resolve(answer);
    }
}

impl Storage for Faulty {
    fn open(
        &self,
        id: PartitionId,
        config: PartitionConfig,
        mode: OpenMode,
    ) -> BoxFuture<'_, Result<Arc<dyn PartitionStore>, OpenError>> {
        async move {
            if let Some(reason) = self.script(id, |script| script.open_error.clone()) {
                return Err(OpenError::Unusable { id, reason });
            }
            let (fail, permits) = {
                let mut opens = self.opens.lock();
                opens.begun += 1;
                (
                    opens.fail.clone().filter(|(partition, _)| *partition == id.partition),
                    opens.permits.clone(),
                )
            };
            if let Some((_, permit)) = fail {
                permit.acquire().await.expect("it is never closed").forget();
                return Err(StoreError::Full { path: id.to_string() }.into());
            }
            let memory = Arc::clone(&self.memory);
            let open = async move { memory.open(id, config, mode).await };
            let inner = match permits {
                None => open.await?,
                Some(permits) => {
                    let opened = tokio::spawn(async move {
                        permits.acquire().await.expect("it is never closed").forget();
                        open.await
                    });
                    opened.await.expect("it ends")?
                }
            };
            self.partitions.lock().insert(id, Arc::clone(&inner));
            Ok(Arc::new(FaultyPartition { id, inner, scripts: Arc::clone(&self.scripts) })
                as Arc<dyn PartitionStore>)
        }
        .boxed()
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<PartitionId>, StoreError>> {
        self.memory.list()
    }

    fn delete(&self, topic: TopicId) -> BoxFuture<'_, Result<(), StoreError>> {
        self.memory.delete(topic)
    }

    fn fence(&self, producer: ProducerId, epoch: Option<ProducerEpoch>) {
        self.fences.lock().push((producer, epoch));
        self.memory.fence(producer, epoch);
    }

    fn health(&self) -> Health {
        self.health.lock().clone()
    }

    fn statistics(&self) -> StoreStatistics {
        self.statistics.lock().clone()
    }

    fn identity(&self) -> uuid::Uuid {
        self.memory.identity()
    }

    fn sync_method(&self) -> SyncMethod {
        SyncMethod { name: "memory", reason: "a \"test\"".to_owned() }
    }

    fn close(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        self.memory.close()
    }
}

impl FaultyPartition {
    /// Counts a look-up; what reads are to fail with, it fails with too.
    fn look_up(&self) -> Option<ReadError> {
        let mut scripts = self.scripts.lock();
        let script = scripts.entry(self.id).or_default();
        script.look_ups += 1;
        script.read_error.clone()
    }
}

impl PartitionStore for FaultyPartition {
    fn submit(&self, append: Append) -> Result<AppendTicket, Backpressure> {
        let mut scripts = self.scripts.lock();
        let script = scripts.entry(self.id).or_default();
        if let Some(refusal) = script.refuse_next.take().or(script.refuse.clone()) {
            return Err(refusal);
        }
        if script.hold {
            let (sender, ticket) = AppendTicket::new();
            script.held.push_back((append, sender));
            return Ok(ticket);
        }
        drop(scripts);
        self.inner.submit(append)
    }

    fn ends(&self) -> LogEnds {
        self.inner.ends()
    }

    fn generation(&self) -> u64 {
        self.inner.generation()
    }

    fn subscribe(&self, waiter: &Waiter) {
        self.inner.subscribe(waiter);
    }

    fn read(&self, from: Offset, limit: ReadLimit) -> BoxFuture<'_, Result<Batches, ReadError>> {
        let mut scripts = self.scripts.lock();
        let script = scripts.entry(self.id).or_default();
        script.reads += 1;
        if let Some(error) = &script.read_error {
            return ready(Err(error.clone())).boxed();
        }
        if script.blind {
            let found = Batches { batches: Vec::new(), next: from, ends: self.inner.ends() };
            return ready(Ok(found)).boxed();
        }
        let after = script.after_read.take();
        let permits = script.read_permits.clone();
        drop(scripts);
        async move {
            if let Some(permits) = permits {
                permits.acquire().await.expect("it is never closed").forget();
            }
            let read = self.inner.read(from, limit).await;
            if let Some(append) = after {
                self.inner.submit(append).expect("the memory store takes it").await.expect("it is appended");
            }
            read
        }
        .boxed()
    }

    fn offset_for_time(&self, at: Timestamp) -> BoxFuture<'_, Result<Option<OffsetAt>, ReadError>> {
        match self.look_up() {
            Some(error) => ready(Err(error)).boxed(),
            None => {
                let permits = self.scripts.lock().entry(self.id).or_default().read_permits.clone();
                async move {
                    if let Some(permits) = permits {
                        permits.acquire().await.expect("it is never closed").forget();
                    }
                    self.inner.offset_for_time(at).await
                }
                .boxed()
            }
        }
    }

    fn offset_of_max_time(&self) -> BoxFuture<'_, Result<Option<OffsetAt>, ReadError>> {
        self.inner.offset_of_max_time()
    }

    fn count(&self, from: Offset, to: Offset) -> BoxFuture<'_, Result<RecordCount, ReadError>> {
        if let Some(error) = self.look_up() {
            return ready(Err(error)).boxed();
        }
        let permits = self.scripts.lock().get(&self.id).and_then(|script| script.counts.clone());
        async move {
            if let Some(permits) = permits {
                permits.acquire().await.expect("it is never closed").forget();
            }
            self.inner.count(from, to).await
        }
        .boxed()
    }

    fn append_time_at(&self, offset: Offset) -> BoxFuture<'_, Result<Option<Timestamp>, ReadError>> {
        match self.look_up() {
            Some(error) => ready(Err(error)).boxed(),
            None => self.inner.append_time_at(offset),
        }
    }

    fn trim(&self, start: Offset) -> BoxFuture<'_, Result<Offset, StoreError>> {
        self.inner.trim(start)
    }

    fn maintain(&self, now: Timestamp) -> BoxFuture<'_, Result<Maintained, StoreError>> {
        let mut scripts = self.scripts.lock();
        let script = scripts.entry(self.id).or_default();
        script.maintained_at.push(now);
        ready(Ok(script.maintained)).boxed()
    }

    fn dirtiness(&self, now: Timestamp) -> BoxFuture<'_, Result<Dirtiness, StoreError>> {
        self.inner.dirtiness(now)
    }

    fn compact(&self, now: Timestamp, budget: ByteCount) -> BoxFuture<'_, Result<Compacted, StoreError>> {
        let mut scripts = self.scripts.lock();
        let script = scripts.entry(self.id).or_default();
        script.slices.push(budget);
        if let Some(error) = &script.compact_error {
            return ready(Err(error.clone())).boxed();
        }
        drop(scripts);
        self.inner.compact(now, budget)
    }

    fn scrub(&self, scope: ScrubScope, _budget: ByteCount) -> BoxFuture<'_, Result<Scrubbed, StoreError>> {
        let mut scripts = self.scripts.lock();
        let script = scripts.entry(self.id).or_default();
        script.scrubs.push(scope);
        if scope == ScrubScope::Suspects {
            return ready(Ok(Scrubbed::default())).boxed();
        }
        script.sealed_slices = script.sealed_slices.saturating_sub(1);
        ready(Ok(Scrubbed { more: script.sealed_slices > 0, ..script.scrubbed })).boxed()
    }

    fn producer(&self, id: ProducerId) -> BoxFuture<'_, Result<Option<ProducerView>, StoreError>> {
        self.inner.producer(id)
    }

    fn producers(&self, limit: usize) -> Vec<ProducerView> {
        self.inner.producers(limit)
    }

    fn forget_producer(&self, id: ProducerId) -> BoxFuture<'_, Result<(), StoreError>> {
        self.inner.forget_producer(id)
    }

    fn configure(&self, config: PartitionConfig) {
        self.inner.configure(config);
    }

    fn info(&self) -> StoreInfo {
        let mut info = self.inner.info();
        if let Some(reason) = self.scripts.lock().entry(self.id).or_default().poisoned.clone() {
            info.state = StoreState::Poisoned { reason };
        }
        info
    }

    fn close(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        self.inner.close()
    }
}

/// A broker under test.
pub(crate) struct Fixture {
    pub(crate) broker: Broker,
    pub(crate) store: Arc<Faulty>,
    pub(crate) clock: Arc<ManualClock>,
}

pub(crate) fn name(text: &str) -> TopicName {
    text.parse().expect("a valid name")
}

/// A configuration in which nothing happens by itself.
pub(crate) fn still() -> BrokerConfig {
    BrokerConfig {
        maintenance_interval: Duration::ZERO,
        compaction_interval: Duration::ZERO,
        scrub_pace: ByteCount(0),
        ..BrokerConfig::default()
    }
}

impl Fixture {
    pub(crate) async fn new() -> Self {
        Self::with(still()).await
    }

    pub(crate) async fn with(config: BrokerConfig) -> Self {
        Self::over(Faulty::new(MemoryStorage::new()), config).await
    }

    pub(crate) async fn over(store: Arc<Faulty>, config: BrokerConfig) -> Self {
        let clock = Arc::new(ManualClock::default());
        let broker = Broker::start(store.clone(), config, clock.clone()).await.expect("it starts");
        Self { broker, store, clock }
    }

    /// Stops cleanly and starts again.
    pub(crate) async fn restart(self) -> Self {
        self.broker.finish_shutdown(DEADLINE).await.expect("it stops");
        Self::over(self.store.reopen(), still()).await
    }

    pub(crate) async fn topic(&self, topic: &str, partitions: u32) -> TopicId {
        let made = self.broker.create_topic(name(topic), Some(partitions), BTreeMap::new()).await;
        made.expect("the topic is made").id
    }

    pub(crate) fn partition(&self, topic: &str, partition: u32) -> PartitionId {
        let topic = self.broker.inner.topics.get(&name(topic)).expect("it exists").id;
        PartitionId { topic, partition: PartitionIndex(partition) }
    }

    /// Sends a request without waiting for its fate.
    pub(crate) fn send(&self, request: ProduceRequest) -> Result<PendingProduce, ProduceError> {
        let room = self.broker.try_reserve(request.reserved_bytes()).expect("there is room");
        self.broker.produce(request, room)
    }

    /// Sends a request and waits for its fate.
    pub(crate) async fn produce(&self, request: ProduceRequest) -> Result<ProduceOutcome, ProduceError> {
        soon("the answer to a produce", self.send(request)?).await
    }

    /// Appends values to a partition; answers the first offset.
    pub(crate) async fn put(&self, topic: &str, partition: u32, values: &[&str]) -> u64 {
        let records = values.iter().map(|value| to_partition(partition, value)).collect();
        let outcome = self.produce(plain(topic, records)).await.expect("it is taken");
        let appended = appended(&outcome, 0);
        appended.offsets.expect("it is new").0.get()
    }

    pub(crate) fn ends(&self, topic: &str, partition: u32) -> LogEnds {
        let topic = self.broker.inner.topics.get(&name(topic)).expect("it exists");
        topic.partition(PartitionIndex(partition)).expect("it is open").ends()
    }

    /// The ends of any partition.
    pub(crate) fn ends_of(&self, id: PartitionId) -> LogEnds {
        self.store.partitions.lock().get(&id).expect("it is open").ends()
    }

    /// A value that comes in right behind the next read of a partition.
    pub(crate) fn put_after_read(&self, topic: &str, partition: u32, value: &str) {
        let bytes = encoded(None, &[value], Timestamp(0));
        let batch = Batch::verify(bytes, &rimstone_record::Limits::default()).expect("it is a batch");
        let append = Append { batch, expected_end: None, content_hash: None, now: self.clock.now() };
        self.store.script(self.partition(topic, partition), |script| script.after_read = Some(append));
    }

    /// Everything in a partition, as text.
    pub(crate) async fn values(&self, topic: &str, partition: u32) -> Vec<String> {
        let request = ReadRequest {
            partitions: vec![PartitionIndex(partition)],
            end: ReadEnd::Latest,
            ..read_from(topic, ReadStart::Earliest)
        };
        let mut reader = self.broker.read(request).await.expect("it can be read");
        let mut values = Vec::new();
        while let Some(chunk) = soon("the next chunk", reader.next()).await {
            values.extend(texts(&chunk.expect("it can be read")));
        }
        values
    }
}

/// The values of a chunk of records.
pub(crate) fn texts(chunk: &ReadChunk) -> Vec<String> {
    let ChunkContent::Records(records) = &chunk.content else { panic!("records were asked for") };
    let text = |stored: &StoredRecord| {
        String::from_utf8(stored.record.value.clone().unwrap_or_default().to_vec()).expect("tests write text")
    };
    records.iter().map(text).collect()
}

pub(crate) fn appended(outcome: &ProduceOutcome, index: usize) -> Appended {
    match &outcome.appends[index].result {
        Ok(appended) => *appended,
        Err(error) => panic!("append {index} failed: {error}"),
    }
}

/// A read of a whole topic, decoded, on and on.
pub(crate) fn read_from(topic: &str, start: ReadStart) -> ReadRequest {
    ReadRequest {
        topic: name(topic),
        partitions: Vec::new(),
        start,
        end: ReadEnd::Never,
        max_records: None,
        filter: ReadFilter::default(),
        visibility: Visibility::Stable,
        format: ReadFormat::Records,
        chunk_bytes: None,
    }
}

pub(crate) fn plain(topic: &str, records: Vec<PlainRecord>) -> ProduceRequest {
    ProduceRequest {
        topic: name(topic),
        payload: Payload::Records(Arc::new(records)),
        numbering: None,
        expected_end: None,
    }
}

pub(crate) fn to_partition(partition: u32, value: &str) -> PlainRecord {
    PlainRecord {
        value: Some(Bytes::copy_from_slice(value.as_bytes())),
        partition: Some(PartitionIndex(partition)),
        ..PlainRecord::default()
    }
}

/// A request numbered so, its records to the partitions named.
pub(crate) fn numbered(
    topic: &str,
    (id, epoch): (ProducerId, ProducerEpoch),
    number: u64,
    records: &[(u32, &str)],
) -> ProduceRequest {
    let records = records.iter().map(|(partition, value)| to_partition(*partition, value)).collect();
    let number = RequestNumber::new(number).expect("in bounds");
    ProduceRequest { numbering: Some(RequestNumbering { id, epoch, number }), ..plain(topic, records) }
}

/// An encoded batch of some values, numbered densely if there is a producer.
pub(crate) fn encoded(
    producer: Option<(ProducerId, ProducerEpoch, u32)>,
    values: &[&str],
    at: Timestamp,
) -> Bytes {
    let mut builder = BatchBuilder::new(Compression::None);
    if let Some((id, epoch, base)) = producer {
        builder = builder.producer(ProducerStamp { id, epoch, base, numbering: Numbering::Dense });
    }
    for value in values {
        let value = Some(Bytes::copy_from_slice(value.as_bytes()));
        builder.push(&NewRecord { value, timestamp: at, ..NewRecord::default() }).expect("it fits");
    }
    builder.build().bytes().clone()
}

/// A request of encoded batches.
pub(crate) fn batches(topic: &str, batches: Vec<(u32, Bytes)>) -> ProduceRequest {
    let batch = |(partition, bytes)| PartitionBatch {
        partition: PartitionIndex(partition),
        bytes,
        expected_end: None,
    };
    let payload = Payload::Batches(batches.into_iter().map(batch).collect());
    ProduceRequest { topic: name(topic), payload, numbering: None, expected_end: None }
}

pub(crate) fn undone() -> AppendError {
    AppendError::DidNotHappen { reason: "scripted".to_owned(), disk_full: false }
}
