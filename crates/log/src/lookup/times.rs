//! The first record at or after a time, and whether damage stands before it.
//!
//! Nobody knows the times of what cannot be read. So a record is only answered if what lies directly before it is known:
//! earlier records, or the log start. Otherwise the answer is the damage, named as a read there names it.

use rimstone_types::{Offset, Timestamp};

use super::{START, TimedOffset, if_there, offsets_and_times, records, walker};
use crate::{
    error::LogReadError,
    frame::{Content, Totals},
    reader::{LogReader, ReadRange},
    segment::{Access, Segment},
    walk::Step,
};

/// How far a search has come.
#[derive(Debug, Clone, Copy)]
struct Seen {
    /// What lies below was looked at, or has earlier records behind it.
    known: Offset,
    /// Behind that, something could not be read, and no records were met since.
    damaged: bool,
}

impl Seen {
    /// There are records up to here, all of them earlier.
    fn earlier(&mut self, next: Offset) {
        *self = Self { known: self.known.max(next), damaged: false };
    }

    /// There is no record up to here.
    fn nothing(&mut self, next: Offset) {
        if !self.damaged {
            self.known = self.known.max(next);
        }
    }

    /// The segment ends here; it should at `end`.
    fn ends(&mut self, next: Offset, end: Offset) {
        self.nothing(next);
        self.damaged |= next < end;
    }
}

/// What a segment came to.
enum Outcome {
    /// Nothing.
    Passed(Seen),
    /// A record, and the base offset of its batch.
    Hit(Seen, Offset, TimedOffset),
    /// A batch from there on says that it has one, and cannot be read.
    Unreadable(Seen, Offset),
}

/// What a walk over frames came to.
enum Walked {
    Outcome(Outcome),
    /// It came to a record, or to the end, without having met an earlier one: it has to begin further ahead.
    Blind,
}

/// A search.
struct Search<'a> {
    reader: &'a LogReader,
    at: Timestamp,
    start: Offset,
    until: Offset,
    access: Access,
}

impl LogReader {
    /// The first record at or after a time with an offset below `until`.
    ///
    /// Exact where times never go back (append times). Where they do (create times), damage counts by its neighbours: with
    /// an earlier record between it and the record that is found, it is taken to be earlier too.
    ///
    /// # Errors
    /// [`LogReadError`]; `Damaged` if that record may lie in a range that is damaged.
    pub fn find_time(
        &self,
        at: Timestamp,
        until: Offset,
        access: Access,
    ) -> Result<Option<TimedOffset>, LogReadError> {
        let segments = self.shared().segments.load_full();
        // Loaded after the segments: what is missing below it was deleted.
        let start = self.start();
        let search = Search { reader: self, at, start, until, access };
        let mut seen =
            Seen { known: start, damaged: segments.first().is_some_and(|first| first.base > start) };
        for (number, segment) in segments.iter().enumerate() {
            let end = segments.get(number + 1).map_or(until, |next| next.base.min(until));
            if end <= start {
                continue;
            }
            if segment.base >= until {
                break;
            }
            let outcome = match segment.broken {
                Some(_) => None,
                None => if_there(search.segment(segment, end, seen))?,
            };
            match outcome {
                None => seen.damaged = true,
                Some(Outcome::Passed(now)) => seen = now,
                Some(Outcome::Hit(seen, base, hit)) => {
                    return Ok(search.behind(seen, base)?.or(Some(hit)));
                }
                Some(Outcome::Unreadable(before, base)) => {
                    let from = if before.damaged { before.known } else { base.max(start) };
                    if let Some(hit) = search.by_reading(from, end)? {
                        return Ok(Some(hit));
                    }
                    seen.earlier(end);
                }
            }
        }
        search.behind(seen, until)
    }
}

impl Search<'_> {
    /// What lies between what is known and here: nothing, or damage, or after all a record.
    fn behind(&self, seen: Seen, to: Offset) -> Result<Option<TimedOffset>, LogReadError> {
        if seen.damaged { self.by_reading(seen.known, to) } else { Ok(None) }
    }

    /// Goes over it as readers do, who name what is damaged.
    fn by_reading(&self, from: Offset, to: Offset) -> Result<Option<TimedOffset>, LogReadError> {
        let mut from = from;
        while from < to {
            let read = self.reader.read(ReadRange { from, until: to, bytes: 1 }, self.access)?;
            for stored in &read {
                let header = stored.batch.header();
                from = stored.batch.next_offset();
                if !header.has_records() || header.max_timestamp < self.at {
                    continue;
                }
                let hit =
                    offsets_and_times(&stored.batch).ok().and_then(|mut all| all.find_map(self.picks()));
                if hit.is_some() {
                    return Ok(hit);
                }
            }
            if read.is_empty() {
                break;
            }
        }
        Ok(None)
    }

    fn picks(&self) -> impl Fn((Offset, Timestamp)) -> Option<TimedOffset> + use<> {
        let (at, start) = (self.at, self.start);
        move |(offset, time)| (time >= at && offset >= start).then_some(TimedOffset { offset, time })
    }

    /// `end`: where the segment is to end, or the search.
    fn segment(&self, segment: &Segment, end: Offset, seen: Seen) -> Result<Outcome, LogReadError> {
        let totals = segment.totals(self.access)?;
        if totals.max_time < self.at && tells_all(segment, &totals) {
            let mut seen = seen;
            if totals.records > 0 {
                seen.earlier(totals.next_offset.min(self.until));
            }
            seen.ends(totals.next_offset, end);
            return Ok(Outcome::Passed(seen));
        }
        let mut position = segment.search(self.access, |entry| entry.max_time_before < self.at)?.position;
        let mut step = 1;
        loop {
            match self.walk(segment, position, end, seen)? {
                Walked::Outcome(outcome) => return Ok(outcome),
                Walked::Blind => {
                    let ahead = position.saturating_sub(step);
                    let found = segment.search(self.access, |entry| u64::from(entry.position) <= ahead)?;
                    position = found.position.min(ahead).max(START);
                    step = step.saturating_mul(4).max(super::WALK_WINDOW as u64);
                }
            }
        }
    }

    fn walk(
        &self,
        segment: &Segment,
        position: u64,
        end: Offset,
        mut seen: Seen,
    ) -> Result<Walked, LogReadError> {
        let mut walker = walker(segment, position, self.access);
        // From the middle on nothing is known of what lies before.
        let mut sighted = position == START;
        let mut next = segment.base;
        loop {
            let (at, frame) = match walker.step()? {
                Step::Frame(at, frame) => (at, frame),
                Step::Invalid(..) => {
                    seen.damaged = true;
                    if walker.resync()? {
                        continue;
                    }
                    break;
                }
                Step::End => {
                    seen.ends(next, end);
                    break;
                }
            };
            let header = match frame.content {
                Content::Batch(header) if header.base_offset >= self.until => break,
                Content::Batch(header) => header,
                Content::Seal(totals) => {
                    seen.ends(totals.next_offset, end);
                    break;
                }
            };
            next = header.next_offset();
            if !header.has_records() {
                seen.nothing(next);
                continue;
            }
            if header.max_timestamp >= self.at && next > self.start {
                if !sighted {
                    return Ok(Walked::Blind);
                }
                let payload = walker.payload(at, &frame)?;
                match records(segment, &payload) {
                    Ok(mut all) => {
                        let first = all.find(|(offset, _)| *offset >= self.start);
                        let hit = first.and_then(self.picks());
                        if hit.is_none() && first.is_some() {
                            // In the batch itself there is an earlier record.
                            seen.earlier(header.base_offset);
                        }
                        if let Some(hit) = hit.or_else(|| all.find_map(self.picks())) {
                            return Ok(Walked::Outcome(Outcome::Hit(seen, header.base_offset, hit)));
                        }
                    }
                    Err(LogReadError::Damaged { .. }) => {
                        return Ok(Walked::Outcome(Outcome::Unreadable(seen, header.base_offset)));
                    }
                    Err(error) => return Err(error),
                }
            }
            sighted = true;
            seen.earlier(next);
        }
        Ok(if sighted { Walked::Outcome(Outcome::Passed(seen)) } else { Walked::Blind })
    }
}

/// Whether the totals count everything that was written up to their end, what is damaged by now included: those that a
/// start has made over damage do not.
fn tells_all(segment: &Segment, totals: &Totals) -> bool {
    let dense = totals.records == totals.next_offset.since(segment.base);
    !segment.is_pieced() && (dense || segment.header.range_end.is_some())
}
