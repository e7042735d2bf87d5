//! Reading: a snapshot of the segments, lock-free towards the writer, and every byte verified.
//!
//! An index entry or a hint only says where to look; what lies there is judged by its own checks. An invalid
//! frame below the published end is damage, never the end of the log.

use std::sync::{Arc, atomic::Ordering};

use bytes::Bytes;
use rimstone_record::{Batch, BatchHeader, Limits};
use rimstone_types::{LogEnds, Offset, Timestamp};

use crate::{
    error::LogReadError,
    frame::{Content, FRAME_PROBE_LENGTH},
    log::Shared,
    planted::{self, Bug},
    segment::{Access, Segment},
    walk::{Step, Walker},
};

/// The most that is loaded in one piece for one read; a single larger batch is loaded on its own.
const WINDOW_MAX: usize = 64 << 20;

/// Stored batches were bounded when they were taken; decoding them needs no smaller bound than memory.
pub(crate) const STORED: Limits = Limits {
    batch_bytes: i32::MAX as usize,
    records: i32::MAX as u32,
    uncompressed_bytes: 256 << 20,
    ratio: u32::MAX,
    headers_per_record: u32::MAX,
};

/// A batch that was read.
#[derive(Debug, Clone)]
pub struct StoredBatch {
    /// The batch, verified, its offsets stamped.
    pub batch: Batch,
    /// When it was taken.
    pub append_time: Timestamp,
}

/// What of a log is read.
#[derive(Debug, Clone, Copy)]
pub struct ReadRange {
    /// The first offset wanted.
    pub from: Offset,
    /// Batches that begin here or later are not wanted.
    pub until: Offset,
    /// About this many bytes; at least one batch.
    pub bytes: usize,
}

/// Reads one partition.
#[derive(Debug, Clone)]
pub struct LogReader(Arc<Shared>);

/// A place in the log: a segment with its published end, and what comes behind it.
pub(crate) struct Place {
    segment: Arc<Segment>,
    end: u64,
    next_base: Option<Offset>,
}

impl LogReader {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self(shared)
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.0
    }

    /// The ends. Each is loaded after the one that it must not exceed, and none of them goes back, so that
    /// the order holds. Here `durable` is what a sync covers, whatever the topic's readers see.
    pub fn ends(&self) -> LogEnds {
        let load = |end: &std::sync::atomic::AtomicU64| {
            Offset::new(end.load(Ordering::Acquire)).unwrap_or(Offset::MAX)
        };
        let start = load(&self.0.start);
        let durable = load(&self.0.durable);
        let written = load(&self.0.written);
        LogEnds { start, stable: durable, durable, written }
    }

    /// Another number whenever compaction has put other segments in the place of some.
    pub fn generation(&self) -> u64 {
        self.0.generation.load(Ordering::Acquire)
    }

    /// Log start.
    pub fn start(&self) -> Offset {
        self.ends().start
    }

    /// Gives back maps that nobody has read through since the last call.
    pub fn sweep_maps(&self) {
        for segment in self.0.segments.load_full().iter() {
            segment.sweep_map();
        }
    }

    /// Reads whole batches of one segment, from the one that holds `range.from` on. Empty only if nothing lies
    /// between `from` and `until`.
    ///
    /// # Errors
    /// [`LogReadError`]; `Damaged` only if the damage lies at `from`, so that what is before it is served.
    pub fn read(&self, range: ReadRange, access: Access) -> Result<Vec<StoredBatch>, LogReadError> {
        let mut from = range.from;
        while from < range.until {
            let place = self.place(from, range.until)?;
            let collected = match place.read(from, range, access) {
                Err(LogReadError::File(error)) if error.is_missing() => {
                    return Err(self.gone(&place, from, range.until));
                }
                collected => collected?,
            };
            match collected {
                Collected::Batches(batches) => return Ok(batches),
                Collected::Nothing => match place.next_base {
                    Some(next) => from = from.max(next),
                    None => break,
                },
            }
        }
        Ok(Vec::new())
    }

    /// What it means that a segment's file is not there. Deleted between the look at the segments and the read: that is out
    /// of range. Otherwise it is lost.
    fn gone(&self, place: &Place, from: Offset, until: Offset) -> LogReadError {
        let start = self.start();
        if from < start {
            return LogReadError::OutOfRange { offset: from, start, end: until };
        }
        LogReadError::Damaged {
            from,
            until: place.next_base.unwrap_or(until).min(until),
            reason: format!("{}: the segment file is missing", place.segment.path().display()),
        }
    }

    /// The segment that covers `from`, or the damage that lies in its place.
    pub(crate) fn place(&self, from: Offset, until: Offset) -> Result<Place, LogReadError> {
        let segments = self.0.segments.load_full();
        // Loaded after the segments, so that a segment that was deleted meanwhile shows as out of range.
        let start = self.start();
        if from < start {
            return Err(LogReadError::OutOfRange { offset: from, start, end: until });
        }
        let count = segments.partition_point(|segment| segment.base <= from);
        let Some(number) = count.checked_sub(1) else {
            let next = segments.first().map_or(until, |segment| segment.base);
            return Err(LogReadError::Damaged {
                from,
                until: next.min(until),
                reason: "the segment file that held it is missing".to_owned(),
            });
        };
        let segment = Arc::clone(&segments[number]);
        let next_base = segments.get(number + 1).map(|next| next.base);
        if let Some(reason) = &segment.broken {
            return Err(LogReadError::Damaged {
                from,
                until: next_base.unwrap_or(until).min(until),
                reason: format!("{}: {reason}", segment.path().display()),
            });
        }
        Ok(Place { end: segment.end(), segment, next_base })
    }
}

enum Collected {
    Batches(Vec<StoredBatch>),
    /// Nothing from here to the end of the segment.
    Nothing,
}

impl Place {
    /// Judges damage only by what the file itself has: bytes that came through a map may be zeros in place of
    /// a page that could not be read.
    fn read(&self, from: Offset, range: ReadRange, access: Access) -> Result<Collected, LogReadError> {
        let was_damaged = self.segment.map_is_damaged();
        let place = self.locate(from, access)?;
        match self.collect(place, from, range, access) {
            Err(LogReadError::Damaged { .. }) if access == Access::Resident => Err(LogReadError::NotResident),
            Err(LogReadError::Damaged { .. }) if !was_damaged && self.segment.map_is_damaged() => {
                self.collect(place, from, range, access)
            }
            result => result,
        }
    }

    fn locate(&self, from: Offset, access: Access) -> Result<Pointed, LogReadError> {
        if let Some(position) = self.segment.hint(from) {
            return Ok(Pointed { position, may_skip: true, by: Pointer::Hint });
        }
        self.indexed(from, access)
    }

    fn indexed(&self, from: Offset, access: Access) -> Result<Pointed, LogReadError> {
        let delta = from.since(self.segment.base);
        let found = self.segment.search(access, |entry| u64::from(entry.offset_delta) <= delta)?;
        let pointed = Pointed::at(found.position, Pointer::Index);
        Ok(Pointed { may_skip: pointed.may_skip || planted::is(Bug::TrustIndex), ..pointed })
    }

    /// Where to look instead, when there was nothing where something pointed: each time further ahead of it.
    fn instead(&self, Pointed { position, by, .. }: Pointed, from: Offset) -> Result<Pointed, LogReadError> {
        match by {
            Pointer::Hint => {
                self.segment.forget_hint(from);
                self.indexed(from, Access::Blocking)
            }
            Pointer::Index => {
                tracing::warn!(segment = %self.segment.path().display(), position, "an index entry was wrong, or damage lies where it points");
                let delta = from.since(self.segment.base);
                let within = |entry: &crate::index::IndexEntry| u64::from(entry.offset_delta) <= delta;
                Ok(Pointed::at(self.segment.search_before(position, within)?.position, Pointer::Start))
            }
            Pointer::Start => Ok(Pointed::at(START, Pointer::Start)),
        }
    }

    fn collect(
        &self,
        pointed: Pointed,
        from: Offset,
        range: ReadRange,
        access: Access,
    ) -> Result<Collected, LogReadError> {
        let mut pointed = pointed;
        loop {
            match self.walk(pointed, from, range, access)? {
                Walked::Done(collected) => return Ok(collected),
                Walked::Misled if pointed.position == START => return Ok(Collected::Nothing),
                Walked::Misled if access == Access::Resident => return Err(LogReadError::NotResident),
                // It pointed behind the batch, or at no frame at all: it is wrong, or damage lies there.
                Walked::Misled => pointed = self.instead(pointed, from)?,
            }
        }
    }

    fn walk(
        &self,
        Pointed { position, may_skip, .. }: Pointed,
        from: Offset,
        range: ReadRange,
        access: Access,
    ) -> Result<Walked, LogReadError> {
        let source = self.segment.source(access, self.end);
        let window = range.bytes.saturating_add(FRAME_PROBE_LENGTH).min(WINDOW_MAX);
        let mut walker = Walker::new(source, self.segment.header.salt, position, self.end, window);
        let mut batches: Vec<StoredBatch> = Vec::new();
        let (mut bytes, mut next, mut first) = (0, from, true);
        let mut resume = position;
        let mut damage: Option<String> = None;
        loop {
            let (at, frame) = match walker.step()? {
                Step::Frame(at, frame) => (at, frame),
                // An entry points at a batch at or before what is looked for, never at the end.
                Step::End if first && !may_skip => return Ok(Walked::Misled),
                Step::End => break,
                Step::Invalid(at, error) => {
                    if std::mem::take(&mut first) && position != START {
                        return Ok(Walked::Misled);
                    }
                    if !batches.is_empty() {
                        break;
                    }
                    let reason = format!("{} at byte {at}: {error}", self.segment.path().display());
                    if !walker.resync()? {
                        let until = self.next_base.unwrap_or(range.until).min(range.until);
                        return Err(LogReadError::Damaged { from: next, until, reason });
                    }
                    damage.get_or_insert(reason);
                    continue;
                }
            };
            let header = match frame.content {
                Content::Batch(header) => header,
                Content::Seal(_) if first && !may_skip => return Ok(Walked::Misled),
                Content::Seal(totals) => match damage {
                    // The damage reaches up to the seal, which says where the segment ended.
                    Some(reason) if totals.next_offset > next => {
                        return Err(LogReadError::Damaged { from: next, until: totals.next_offset, reason });
                    }
                    _ => break,
                },
            };
            if std::mem::take(&mut first) && header.base_offset > from && !may_skip {
                return Ok(Walked::Misled);
            }
            if header.base_offset >= range.until {
                match damage {
                    Some(reason) if next < range.until => {
                        return Err(LogReadError::Damaged { from: next, until: range.until, reason });
                    }
                    _ => break,
                }
            }
            let last = last_offset(&header);
            if last < from {
                continue;
            }
            if let Some(reason) = damage.take()
                && header.base_offset > next
            {
                return Err(LogReadError::Damaged { from: next, until: header.base_offset, reason });
            }
            let size = frame.length as usize;
            if !batches.is_empty() && bytes + size > range.bytes {
                break;
            }
            let payload = walker.payload(at, &frame)?;
            match self.verify(payload, &header, at, access) {
                Ok(batch) => {
                    next = last.saturating_add(1);
                    resume = at + frame.size();
                    bytes += size;
                    batches.push(StoredBatch { batch, append_time: frame.append_time });
                }
                Err(_) if !batches.is_empty() => break,
                Err(reason) => {
                    let from = from.max(header.base_offset);
                    return Err(LogReadError::Damaged { from, until: last.saturating_add(1), reason });
                }
            }
        }
        if batches.is_empty() {
            return self.nothing(next, range.until, access);
        }
        self.segment.remember(next, resume);
        Ok(Walked::Done(Collected::Batches(batches)))
    }

    /// Nothing was found up to the end of the segment: fine, if the next one goes on where this one ends. Behind the
    /// last one there is nothing to go on with.
    fn nothing(&self, next: Offset, until: Offset, access: Access) -> Result<Walked, LogReadError> {
        if self.next_base.is_none() && next < until {
            // The last segment has no gaps, and what is asked for was published.
            return Err(LogReadError::Damaged {
                from: next,
                until,
                reason: format!("{} ends before the log does", self.segment.path().display()),
            });
        }
        if let Some(next_base) = self.next_base {
            let ends_at = self.segment.totals(access)?.next_offset;
            let missing = ends_at.max(next);
            if missing < next_base.min(until) {
                return Err(LogReadError::Damaged {
                    from: missing,
                    until: next_base.min(until),
                    reason: format!("{} ends at offset {ends_at}", self.segment.path().display()),
                });
            }
        }
        Ok(Walked::Done(Collected::Nothing))
    }

    fn verify(&self, payload: Bytes, header: &BatchHeader, at: u64, access: Access) -> Result<Batch, String> {
        let named = |error: &dyn std::fmt::Display| {
            format!("{} at byte {at}, offset {}: {error}", self.segment.path().display(), header.base_offset)
        };
        match Batch::verify(payload, &STORED) {
            Ok(batch) => Ok(batch),
            Err(error) if access != Access::Resident => {
                // Once more from the file itself: a page under the map may have been replaced by zeros.
                let at = at + crate::frame::FRAME_HEADER_LENGTH as u64;
                let again =
                    crate::walk::Source::load(&crate::segment::Cold(&self.segment), at, header.length)
                        .map_err(|error| named(&error))?;
                Batch::verify(again, &STORED).map_err(|_| named(&error))
            }
            Err(error) => Err(named(&error)),
        }
    }
}

/// Where an index entry or a hint says to look.
#[derive(Debug, Clone, Copy)]
struct Pointed {
    position: u64,
    /// The first frame there may begin behind what is looked for: compaction took what was in between. An index
    /// entry lies at or before it.
    may_skip: bool,
    by: Pointer,
}

impl Pointed {
    fn at(position: u64, by: Pointer) -> Self {
        Self { position, may_skip: position == START, by }
    }
}

/// What says where to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pointer {
    /// Where a reader stopped.
    Hint,
    Index,
    /// An index that was looked at again; behind it there is only the start.
    Start,
}

/// The first frame's place.
const START: u64 = crate::frame::SEGMENT_HEADER_LENGTH as u64;

enum Walked {
    Done(Collected),
    /// What was pointed at does not hold what the pointer promised.
    Misled,
}

pub(crate) fn last_offset(header: &BatchHeader) -> Offset {
    header.base_offset.saturating_add(u64::from(header.last_offset_delta))
}
