//! What one partition holds, and the decisions on it. Pure: the lock, waking and counting are above.

mod compact;

use std::{collections::VecDeque, ops::Range, time::Duration};

use rimstone_log::producers::{Claim, Limits as ProducerLimits, ProducerTable, Verdict};
use rimstone_record::{Limits, Record};
use rimstone_types::{LogEnds, Offset, Timestamp};

use crate::{
    Append, AppendError, Appended, Batches, Maintained, OffsetAt, PartitionConfig, ReadBatch, ReadLimit,
    RecordCount, StoreError, TimestampType,
};

/// One pass deletes by age at most one in so many segments (and always at least one), so that a clock that
/// jumps does not empty a log before anybody has noticed.
const SHARE_PER_PASS: usize = 4;

#[derive(Debug)]
pub(super) struct Contents {
    pub(super) config: PartitionConfig,
    pub(super) producers: ProducerTable,
    /// Goes up when compaction has taken records.
    pub(super) generation: u64,
    batches: VecDeque<ReadBatch>,
    /// Oldest first, never empty; the last one is active.
    segments: VecDeque<Segment>,
    start: Offset,
    end: Offset,
    last_append: Timestamp,
}

/// Batches that are deleted together, as if they lay in one file.
#[derive(Debug, Clone)]
struct Segment {
    base: Offset,
    batches: usize,
    bytes: u64,
    first_append: Timestamp,
    last_append: Timestamp,
    /// Of its records; `Timestamp::MIN` without any.
    max_time: Timestamp,
    /// What compaction has judged; the base if nothing.
    cleaned: Offset,
    /// When the first of the tombstones that compaction has met may go.
    horizon: Option<Timestamp>,
}

impl Segment {
    fn new(base: Offset) -> Self {
        let (first_append, last_append, max_time) = (Timestamp::MIN, Timestamp::MIN, Timestamp::MIN);
        let (cleaned, horizon) = (base, None);
        Self { base, batches: 0, bytes: 0, first_append, last_append, max_time, cleaned, horizon }
    }

    fn count(&mut self, read: &ReadBatch) {
        if self.batches == 0 {
            self.first_append = read.append_time;
        }
        self.batches += 1;
        self.bytes += read.batch.bytes().len() as u64;
        self.last_append = read.append_time;
        if read.batch.header().has_records() {
            self.max_time = self.max_time.max(read.batch.header().max_timestamp);
        }
    }

    /// What retention by age goes by: without a record, when its batches were taken.
    fn age(&self) -> Timestamp {
        if self.max_time == Timestamp::MIN { self.last_append } else { self.max_time }
    }
}

impl Contents {
    pub(super) fn new(config: PartitionConfig) -> Self {
        Self {
            config,
            producers: ProducerTable::new(ProducerLimits::default()),
            generation: 0,
            batches: VecDeque::new(),
            segments: VecDeque::from([Segment::new(Offset::ZERO)]),
            start: Offset::ZERO,
            end: Offset::ZERO,
            last_append: Timestamp::MIN,
        }
    }

    /// What a restart leaves: everything but what is only known to the running process.
    pub(super) fn after_restart(&self) -> Self {
        let producers = ProducerTable::decode(&self.producers.encode(), ProducerLimits::default())
            .expect("what the table has encoded can be decoded");
        Self {
            config: self.config.clone(),
            producers,
            batches: self.batches.clone(),
            segments: self.segments.clone(),
            ..*self
        }
    }

    pub(super) fn configure(&mut self, config: PartitionConfig) {
        self.config = config;
    }

    pub(super) fn ends(&self) -> LogEnds {
        LogEnds { start: self.start, stable: self.end, durable: self.end, written: self.end }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.bytes).sum()
    }

    pub(super) fn segment_count(&self) -> usize {
        self.segments.len()
    }

    /// Decides on a batch and appends it, in the order of the seam: duplicates first, then the expected end.
    pub(super) fn append(&mut self, append: &Append) -> Result<Appended, AppendError> {
        let claim = Claim::of(append.batch.header(), append.content_hash);
        if let Some(claim) = &claim
            && let Verdict::Duplicate { offsets, append_time, .. } =
                self.producers.check(claim, append.now)?
        {
            return Ok(Appended { offsets, append_time, duplicate: true });
        }
        if let Some(expected) = append.expected_end
            && expected != self.end
        {
            return Err(AppendError::ExpectedEndNotMet { expected, actual: self.end });
        }
        let base = self.end;
        let next = base
            .checked_add(u64::from(append.batch.header().last_offset_delta) + 1)
            .ok_or(AppendError::OffsetsExhausted)?;
        let append_time = append.now.max(self.last_append);
        let batch = match self.config.timestamp_type {
            TimestampType::CreateTime => append.batch.with_base_offset(base, 0),
            TimestampType::AppendTime => append.batch.with_append_time(append_time).with_base_offset(base, 0),
        };
        let last = batch.last_offset();
        if let Some(claim) = &claim {
            self.producers.replay(claim, base, last, append_time);
        }
        self.push(ReadBatch { batch, append_time });
        self.end = next;
        self.last_append = append_time;
        Ok(Appended { offsets: Some((base, last)), append_time, duplicate: false })
    }

    fn push(&mut self, read: ReadBatch) {
        let bytes = read.batch.bytes().len() as u64;
        let full = self.active().bytes + bytes > self.config.segment_bytes.get();
        if self.active().batches > 0 && (full || self.active_is_old(read.append_time, self.segment_age())) {
            self.segments.push_back(Segment::new(read.batch.base_offset()));
        }
        self.active_mut().count(&read);
        self.batches.push_back(read);
    }

    fn active(&self) -> &Segment {
        self.segments.back().expect("there is always an active segment")
    }

    fn active_mut(&mut self) -> &mut Segment {
        self.segments.back_mut().expect("there is always an active segment")
    }

    /// What is in the active segment cannot be compacted.
    fn segment_age(&self) -> Duration {
        let lag = self.config.compaction.max_lag.filter(|_| self.config.cleanup.compacts());
        lag.unwrap_or(Duration::MAX).min(self.config.segment_age)
    }

    fn active_is_old(&self, now: Timestamp, age: Duration) -> bool {
        self.active().first_append.saturating_add(age) <= now
    }

    /// Whole batches from the one that holds `from` on. The caller has checked that `from` is in the log.
    pub(super) fn read(&self, from: Offset, limit: ReadLimit) -> Batches {
        let mut batches = Vec::new();
        let mut bytes = 0;
        for read in self.batches.range(self.place(from)..) {
            if limit.until.is_some_and(|until| read.batch.base_offset() >= until) {
                break;
            }
            bytes += read.batch.bytes().len() as u64;
            if !batches.is_empty() && bytes > limit.bytes.get() {
                break;
            }
            batches.push(read.clone());
        }
        // Nothing may be left between here and the end.
        let until = limit.until.map_or(self.end, |until| until.min(self.end)).max(from);
        let next = batches.last().map_or(until, |read| read.batch.next_offset());
        Batches { batches, next, ends: self.ends() }
    }

    /// Where the batch that holds `offset` is, or the next one.
    fn place(&self, offset: Offset) -> usize {
        self.batches.partition_point(|read| read.batch.last_offset() < offset)
    }

    pub(super) fn offset_for_time(&self, at: Timestamp) -> Option<OffsetAt> {
        let candidates = self.batches.range(self.place(self.start)..);
        candidates.filter(|read| read.batch.header().max_timestamp >= at).find_map(|read| {
            self.records(read)
                .find(|record| record.timestamp >= at)
                .map(|record| OffsetAt { offset: record.offset, time: record.timestamp })
        })
    }

    pub(super) fn offset_of_max_time(&self) -> Option<OffsetAt> {
        let batches = self.batches.range(self.place(self.start)..);
        let records = batches.flat_map(|read| self.records(read));
        // `max_by_key` would answer the last of those that are equal.
        records.fold(None, |max: Option<OffsetAt>, record| match max {
            Some(max) if max.time >= record.timestamp => Some(max),
            _ => Some(OffsetAt { offset: record.offset, time: record.timestamp }),
        })
    }

    /// The records of a batch that are in the log: of a control batch none. Records that cannot be decoded have no times to be found
    /// by, and do not stand in the way of those that have.
    fn records(&self, read: &ReadBatch) -> impl Iterator<Item = Record> {
        let limits = Limits { ratio: u32::MAX, headers_per_record: u32::MAX, ..Limits::default() };
        let start = self.start;
        let readable = read.batch.header().has_records();
        let records = readable.then(|| read.batch.records(&limits)).into_iter().flatten().flatten();
        records.map_while(Result::ok).skip_while(move |record| record.offset < start)
    }

    pub(super) fn count(&self, range: Range<Offset>) -> RecordCount {
        let (from, to) = (range.start.max(self.start), range.end.min(self.end));
        let batches = self.batches.range(self.place(from)..);
        let mut count = RecordCount::default();
        for read in batches.take_while(|read| from < to && read.batch.base_offset() < to) {
            count.records += self.count_in(read, from, to);
            count.bytes.0 += read.batch.bytes().len() as u64;
        }
        count
    }

    /// Records of a batch from `from` up to, not including, `to`: decoded only where the header does not tell.
    fn count_in(&self, read: &ReadBatch, from: Offset, to: Offset) -> u64 {
        let batch = &read.batch;
        let (from, to) = (from.max(batch.base_offset()), to.min(batch.next_offset()));
        let offsets = batch.next_offset().since(batch.base_offset());
        let there = batch.header().records_there();
        if there == 0 || to.since(from) == offsets {
            return there;
        }
        if there == offsets {
            return to.since(from);
        }
        self.records(read).filter(|record| (from..to).contains(&record.offset)).count() as u64
    }

    pub(super) fn append_time_at(&self, offset: Offset) -> Option<Timestamp> {
        let offset = offset.max(self.start);
        let mut batches = self.batches.range(self.place(offset)..);
        let found = batches.find(|read| self.count_in(read, offset, self.end) > 0);
        found.map(|read| read.append_time)
    }

    pub(super) fn trim(&mut self, start: Offset) -> Result<Maintained, StoreError> {
        if start > self.end {
            return Err(StoreError::OutOfRange { offset: start, start: self.start, end: self.end });
        }
        self.start = self.start.max(start);
        let below =
            (1..self.segments.len()).take_while(|&next| self.segments[next].base <= self.start).count();
        Ok(self.delete(below))
    }

    pub(super) fn maintain(&mut self, now: Timestamp) -> Maintained {
        let mut rolled = 0;
        // Also when retention would have it, which never takes the active segment.
        let retention_age = self.config.retention_age.filter(|_| self.deletes());
        let age = retention_age.unwrap_or(Duration::MAX).min(self.segment_age());
        if self.active().batches > 0 && self.active_is_old(now, age) {
            self.segments.push_back(Segment::new(self.end));
            rolled = 1;
        }
        self.producers.expire(now);
        let (gone, more) = self.due(now);
        if gone > 0 {
            self.start = self.start.max(self.segments[gone].base);
        }
        Maintained { rolled, more, ..self.delete(gone) }
    }

    fn deletes(&self) -> bool {
        self.config.cleanup.deletes()
    }

    /// How many segments are to go, and whether more are due than one pass takes. By size only while what
    /// remains is at least the limit; then by the segment's largest time; never the active one.
    fn due(&self, now: Timestamp) -> (usize, bool) {
        let sealed = self.segments.len() - 1;
        if !self.deletes() {
            return (0, false);
        }
        let mut gone = 0;
        if let Some(limit) = self.config.retention_bytes {
            let mut rest = self.bytes();
            while gone < sealed && rest - self.segments[gone].bytes >= limit.get() {
                rest -= self.segments[gone].bytes;
                gone += 1;
            }
        }
        let Some(age) = self.config.retention_age else { return (gone, false) };
        let oldest_kept = now.saturating_sub(age);
        let due = self.segments.range(gone..sealed).take_while(|segment| segment.age() < oldest_kept).count();
        let most = (sealed / SHARE_PER_PASS).max(1);
        (gone + due.min(most), due > most)
    }

    fn delete(&mut self, segments: usize) -> Maintained {
        let gone: Vec<Segment> = self.segments.drain(..segments).collect();
        self.batches.drain(..gone.iter().map(|segment| segment.batches).sum::<usize>());
        let freed = rimstone_types::ByteCount(gone.iter().map(|segment| segment.bytes).sum());
        Maintained { deleted: gone.len() as u32, freed, ..Maintained::default() }
    }
}
