//! Where a member reads in one partition.

use std::{fmt, sync::Arc};

use futures::future::BoxFuture;
use rimstone_store::{
    Batches, LogEnds, PartitionStore, ReadBatch, ReadError, ReadLimit, StoreError, Visibility,
};
use rimstone_types::{ByteCount, Offset, PartitionIndex, TopicId, TopicName};

use super::{
    Credit, SeekTo, SessionRecords, StartPolicy, StartedPartition, begin::Held, look_up::Found, ready::Seat,
};
use crate::{
    broker::Inner,
    decode::Decoder,
    error::{
        OutOfRange, PartitionReadError, PartitionUnavailable, SessionProblem, StartPositionNeeded,
        Undecodable,
    },
    read::{ChunkContent, ReadFormat, visible_end},
    topics::{SlotError, Topic},
};

/// How a session reads.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reading {
    pub(super) policy: StartPolicy,
    pub(super) visibility: Visibility,
    pub(super) format: ReadFormat,
}

/// A partition that the member has been given.
#[derive(Debug)]
pub(super) struct Cursor {
    name: TopicName,
    pub(super) id: TopicId,
    partition: PartitionIndex,
    source: Result<(Arc<Topic>, Arc<dyn PartitionStore>), PartitionUnavailable>,
    /// The member has been asked to give it back.
    pub(super) stopping: bool,
    pub(super) paused: bool,
    pub(super) seek_id: u64,
    /// `None`: nowhere, it waits for a seek.
    next: Option<Offset>,
    /// Its place among the partitions of the session.
    pub(super) seat: Seat,
    /// A read that is under way: what the member says meanwhile does not begin it anew.
    under_way: Option<UnderWay>,
    /// Records that were read and not yet sent.
    decoder: Decoder,
    ends: LogEnds,
    /// The end of what was sent.
    sent: Option<Offset>,
    /// Up to where the member has said that it is done.
    done: Option<Offset>,
    /// Waits for where it begins.
    pub(super) held: Option<Held>,
}

/// A read of a partition.
struct UnderWay {
    from: Offset,
    read: BoxFuture<'static, Result<Batches, ReadError>>,
}

impl fmt::Debug for UnderWay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UnderWay").field("from", &self.from).finish_non_exhaustive()
    }
}

/// Where a seek leads to.
pub(super) enum LookUp {
    Found(Found),
    /// The log is searched.
    UnderWay(BoxFuture<'static, Found>),
}

/// Where a partition begins.
#[derive(Debug)]
pub(super) enum Beginning {
    /// Here, or nowhere: the problem says why.
    Told(StartedPartition, Option<SessionProblem>),
    /// Where the shard commits; it is held until that is durable.
    Held,
}

/// What a position is worth.
enum Placed {
    There,
    /// The place is to be committed first: this one, or where the start policy `latest` says.
    Unkept(Option<Offset>),
}

/// What a turn came to.
#[derive(Debug)]
pub(super) enum Turn {
    /// There is nothing.
    Nothing,
    Records(SessionRecords),
    /// It cannot be read, and waits for a seek.
    Problem(SessionProblem),
    /// It is held until the start policy has said where to go on.
    ByLatest,
    /// The store is closing.
    Closing,
}

/// Why nothing was read.
enum Unread {
    Problem(SessionProblem),
    /// The start policy `latest` is to say where to go on.
    ByLatest,
    /// The topic is gone.
    Gone,
    /// The store is closing.
    Closing,
}

impl Cursor {
    /// A partition that is now the member's.
    pub(super) fn new(
        inner: &Inner,
        (name, id, partition): (&TopicName, TopicId, PartitionIndex),
        seat: Seat,
    ) -> Self {
        let unavailable = |why: String| PartitionUnavailable { topic: name.clone(), partition, why };
        let topic = inner.topics.get(name).ok().filter(|topic| topic.id == id);
        let topic = topic.ok_or_else(|| unavailable("the topic was deleted".to_owned()));
        let source = topic.and_then(|topic| match topic.partition(partition).map(Arc::clone) {
            Ok(store) => Ok((topic, store)),
            Err(SlotError::Unavailable(error)) => Err(error),
            Err(SlotError::NotFound(error)) => Err(unavailable(error.to_string())),
        });
        if let Ok((_, store)) = &source {
            store.subscribe(&seat.waiter);
        }
        let ends = source.as_ref().map(|(_, store)| store.ends()).unwrap_or_default();
        Self {
            name: name.clone(),
            id,
            partition,
            source,
            stopping: false,
            paused: false,
            seek_id: 0,
            next: None,
            seat,
            under_way: None,
            decoder: Decoder::new(Offset::ZERO, None),
            ends,
            sent: None,
            done: None,
            held: None,
        }
    }

    pub(super) fn store(&self) -> Option<&Arc<dyn PartitionStore>> {
        self.source.as_ref().ok().map(|(_, store)| store)
    }

    /// Why nothing of it can be read, for as long as the session lasts.
    pub(super) fn unavailable(&self) -> Option<SessionProblem> {
        let unavailable = self.source.as_ref().err()?;
        Some(PartitionReadError::from(unavailable.clone()).into())
    }

    /// Begins at the committed offset, or where the policy says.
    pub(super) fn begin(&mut self, committed: Option<Offset>, reading: Reading) -> Beginning {
        self.done = committed;
        let problem = match &self.source {
            Ok((_, store)) => {
                self.ends = store.ends();
                match self.begin_within(committed, reading) {
                    Ok(Placed::There) => None,
                    Ok(Placed::Unkept(at)) => {
                        self.held = Some(Held::new(false, at));
                        return Beginning::Held;
                    }
                    Err(problem) => Some(problem.into()),
                }
            }
            Err(_) => self.unavailable(),
        };
        Beginning::Told(self.started(committed), problem)
    }

    /// Whether the member does not know yet that it is its own.
    pub(super) fn is_untold(&self) -> bool {
        self.held.is_some_and(|held| !held.told)
    }

    /// How the member is told of it.
    pub(super) fn started(&self, committed: Option<Offset>) -> StartedPartition {
        let (topic, partition) = (self.name.clone(), self.partition);
        let ends = self.source.is_ok().then_some(self.ends);
        StartedPartition { topic, partition, offset: self.next, committed, ends }
    }

    fn begin_within(
        &mut self,
        wanted: Option<Offset>,
        reading: Reading,
    ) -> Result<Placed, StartPositionNeeded> {
        let (start, end) = (self.ends.start, visible_end(self.ends, reading.visibility));
        let at = match (wanted, reading.policy) {
            (Some(at), _) if start <= at && at <= end => at,
            (_, StartPolicy::Earliest) => start,
            // Nothing is there to be read or left out: earliest and latest are the same place. Whoever has the
            // partition next is to find it too, when it is not empty any more.
            (None, StartPolicy::Error) if start == end => {
                self.next = None;
                return Ok(Placed::Unkept(Some(start)));
            }
            (_, StartPolicy::Latest) => {
                self.next = None;
                return Ok(Placed::Unkept(None));
            }
            (committed, StartPolicy::Error) => {
                self.next = None;
                let (topic, partition) = (self.name.clone(), self.partition);
                return Err(StartPositionNeeded { topic, partition, committed, start, end });
            }
        };
        self.go_to(at);
        Ok(Placed::There)
    }

    /// Begins, or goes on, where the start policy `latest` has said, which is committed.
    pub(super) fn begin_at(&mut self, at: Offset) {
        let was = self.held.take();
        if let Some(store) = self.store() {
            self.ends = store.ends();
        }
        if !was.is_some_and(|held| held.told) {
            self.done = Some(at);
        }
        self.go_to(at);
    }

    /// Reads on at an offset.
    pub(super) fn go_to(&mut self, at: Offset) {
        self.next = Some(at);
        self.let_go();
    }

    /// Whether something was read and not sent.
    pub(super) fn holds(&self) -> bool {
        self.decoder.has_more()
    }

    /// Drops what was read and not sent; it is read again.
    pub(super) fn let_go(&mut self) {
        self.under_way = None;
        self.decoder = Decoder::new(self.next.unwrap_or(Offset::ZERO), None);
    }

    /// Stops reading; what was read and not sent is dropped.
    pub(super) fn stop(&mut self) {
        self.stopping = true;
        self.held = None;
        self.let_go();
    }

    /// Reads elsewhere, once that is looked up.
    pub(super) fn seek(&mut self, seek_id: u64) {
        self.seek_id = seek_id;
        self.held = None;
        self.next = None;
        self.let_go();
        // What was sent before is not wanted any more.
        self.sent = None;
        self.done = None;
    }

    /// Where a seek leads to.
    pub(super) fn look_up(&self, to: SeekTo, visibility: Visibility) -> LookUp {
        let store = match &self.source {
            Ok((_, store)) => Arc::clone(store),
            Err(unavailable) => {
                return LookUp::Found(Err(PartitionReadError::from(unavailable.clone()).into()));
            }
        };
        let ends = store.ends();
        let (start, end) = (ends.start, visible_end(ends, visibility));
        match to {
            SeekTo::Earliest => LookUp::Found(Ok(start)),
            SeekTo::Latest => LookUp::Found(Ok(end)),
            SeekTo::Offset(offset) if start <= offset && offset <= end => LookUp::Found(Ok(offset)),
            SeekTo::Offset(offset) => {
                let (topic, partition) = (self.name.clone(), self.partition);
                LookUp::Found(Err(OutOfRange { topic, partition, offset, start, end }.into()))
            }
            SeekTo::Time(time) => LookUp::UnderWay(Box::pin(async move {
                let found = store.offset_for_time(time).await.map_err(PartitionReadError::from)?;
                // Retention may have been faster.
                let start = store.ends().start;
                Ok(found.map_or(end, |found| found.offset.min(end)).max(start))
            })),
        }
    }

    /// Whether something was sent that the member has not said to be done with.
    pub(super) fn is_worked_on(&self) -> bool {
        self.sent.is_some_and(|sent| self.done.is_none_or(|done| done < sent))
    }

    /// The member commits this offset: it is done with what lies before.
    pub(super) fn done(&mut self, up_to: Offset) {
        self.done = Some(up_to);
    }

    /// The next records, as many as are allowed. Nothing is lost if this is dropped before it answers.
    pub(super) async fn turn(&mut self, inner: &Inner, reading: Reading, allowed: Credit) -> Turn {
        loop {
            let Some(at) = self.next.filter(|_| !self.stopping && !self.paused) else { return Turn::Nothing };
            let mut batches = Vec::new();
            if !self.decoder.has_more() {
                batches = match self.fetch(inner, at, reading, allowed).await {
                    Ok(Some(batches)) => batches,
                    // It has moved on over a gap, or begins elsewhere.
                    Ok(None) if self.next != Some(at) => continue,
                    Ok(None) => return Turn::Nothing,
                    Err(Unread::Problem(problem)) => return Turn::Problem(problem),
                    Err(Unread::ByLatest) => return Turn::ByLatest,
                    Err(Unread::Gone) => return Turn::Nothing,
                    Err(Unread::Closing) => return Turn::Closing,
                };
            }
            let (content, used) = match self.content(inner, at, batches, reading.format, allowed) {
                Ok(content) => content,
                Err(error) => return Turn::Problem(self.fail(error.into())),
            };
            if used != Credit::default() {
                return self.records(content, used);
            }
        }
    }

    /// Reads from the log. `None`: there is nothing at this position.
    async fn fetch(
        &mut self,
        inner: &Inner,
        at: Offset,
        reading: Reading,
        allowed: Credit,
    ) -> Result<Option<Vec<ReadBatch>>, Unread> {
        let Ok((topic, store)) = self.source.clone() else { return Ok(None) };
        if self.under_way.as_ref().is_none_or(|under_way| under_way.from != at) {
            let ends = store.ends();
            let end = visible_end(ends, reading.visibility);
            if at == end {
                return Ok(None);
            }
            if at < ends.start || at > end {
                return self.overtaken(inner, ends, reading);
            }
            let bytes = ByteCount(allowed.bytes);
            let limit = ReadLimit { bytes, until: None, visibility: reading.visibility };
            let store = Arc::clone(&store);
            let (pace, now) = (Arc::clone(&inner.pace), inner.clock.now());
            let read = Box::pin(async move {
                let read = store.read(at, limit).await?;
                pace.give_way(&read.batches, now).await;
                Ok(read)
            });
            self.under_way = Some(UnderWay { from: at, read });
        }
        let Some(under_way) = &mut self.under_way else { return Ok(None) };
        let read = under_way.read.as_mut().await;
        self.under_way = None;
        let read = match read {
            Ok(read) => read,
            Err(ReadError::OutOfRange { .. }) => return self.overtaken(inner, store.ends(), reading),
            Err(ReadError::Store(StoreError::ShuttingDown)) => return Err(Unread::Closing),
            // The topic is gone; the member is about to be told to stop.
            Err(ReadError::Store(StoreError::Deleted)) => {
                self.next = None;
                return Err(Unread::Gone);
            }
            Err(error) => return Err(Unread::Problem(self.fail(error.into()))),
        };
        self.ends = read.ends;
        if read.batches.is_empty() {
            self.next = Some(read.next.max(at));
            return Ok(None);
        }
        topic.counters.fetched(&read.batches);
        Ok(Some(read.batches))
    }

    /// What of it is sent, and what that costs. Moves on.
    fn content(
        &mut self,
        inner: &Inner,
        at: Offset,
        mut batches: Vec<ReadBatch>,
        format: ReadFormat,
        allowed: Credit,
    ) -> Result<(ChunkContent, Credit), Undecodable> {
        if format == ReadFormat::Batches {
            let used = cut_to(&mut batches, allowed.records);
            self.next = Some(batches.last().map_or(at, |read| read.batch.next_offset()));
            batches.retain(|read| !read.batch.header().is_control());
            return Ok((ChunkContent::Batches(batches), used));
        }
        self.decoder.hold(batches);
        let most = usize::try_from(allowed.records).unwrap_or(usize::MAX);
        let taken = self.decoder.take_some(ByteCount(allowed.bytes), most, &inner.record_limits())?;
        self.next = Some(self.decoder.next);
        let used = Credit { bytes: taken.bytes, records: taken.records.len() as u64 };
        Ok((ChunkContent::Records(taken.records), used))
    }

    fn records(&mut self, content: ChunkContent, used: Credit) -> Turn {
        let Some(next) = self.next else { return Turn::Nothing };
        self.sent = Some(next);
        Turn::Records(SessionRecords {
            topic: self.name.clone(),
            partition: self.partition,
            content,
            next,
            ends: self.ends,
            seek_id: self.seek_id,
            used,
        })
    }

    /// The position is outside the log: the start policy says again where to begin.
    fn overtaken(
        &mut self,
        inner: &Inner,
        ends: LogEnds,
        reading: Reading,
    ) -> Result<Option<Vec<ReadBatch>>, Unread> {
        inner.metrics.groups.overtaken.inc();
        let was = self.next;
        self.ends = ends;
        match self.begin_within(was, reading) {
            Ok(Placed::There) => Ok(None),
            Ok(Placed::Unkept(at)) => {
                self.held = Some(Held::new(true, at));
                Err(Unread::ByLatest)
            }
            Err(problem) => Err(Unread::Problem(problem.into())),
        }
    }

    fn fail(&mut self, error: PartitionReadError) -> SessionProblem {
        self.next = None;
        self.let_go();
        error.into()
    }
}

/// Drops the batches behind the one that reaches the number of records; what the rest costs.
fn cut_to(batches: &mut Vec<ReadBatch>, records_max: u64) -> Credit {
    let mut used = Credit::default();
    let mut kept = 0;
    for read in batches.iter() {
        if used.records >= records_max {
            break;
        }
        kept += 1;
        if !read.batch.header().is_control() {
            used.records += u64::from(read.batch.header().record_count);
            used.bytes += read.batch.bytes().len() as u64;
        }
    }
    batches.truncate(kept);
    used
}
