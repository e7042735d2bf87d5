//! Looking up without reading: by time, by count, by rank. The sparse index and the seals have cumulative counts,
//! so that what lies between two index entries is all that is walked, and a batch is only decoded where its header
//! does not tell: one with gaps, or one that log start or a bound lies in.
//!
//! A control batch is not records, and neither is a batch that compaction has emptied. Not here: reading batches
//! (`reader`).

mod times;

use bytes::Bytes;
use rimstone_record::{Batch, BatchHeader};
use rimstone_types::{Offset, Timestamp};

use crate::{
    error::LogReadError,
    frame::{Content, Frame, SEGMENT_HEADER_LENGTH},
    reader::{LogReader, ReadRange, STORED, last_offset},
    segment::{Access, Found, Published, Segment},
    walk::{Step, Walker},
};

/// How much is loaded at a time while frames are walked over without their bodies.
const WALK_WINDOW: usize = 16 << 10;

/// The first frame's place.
const START: u64 = SEGMENT_HEADER_LENGTH as u64;

/// A record that was found by its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimedOffset {
    /// Its offset.
    pub offset: Offset,
    /// Its time.
    pub time: Timestamp,
}

/// What lies between two offsets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Extent {
    /// Records really there.
    pub records: u64,
    /// Bytes in the files, rounded up to whole batches, frames and seals included.
    pub bytes: u64,
}

impl LogReader {
    /// The largest record time below `until` of what can be read, and of what seals count; `None` in an empty log. The
    /// record that has it is the first that [`LogReader::find_time`] finds, if it can be read.
    ///
    /// # Errors
    /// [`LogReadError`].
    pub fn max_time(&self, until: Offset, access: Access) -> Result<Option<Timestamp>, LogReadError> {
        let start = self.start();
        let mut largest = None;
        for segment in self.shared().segments.load().iter().filter(|segment| segment.broken.is_none()) {
            if segment.base >= until {
                break;
            }
            let Some(totals) = if_there(segment.totals(access))? else { continue };
            if totals.records == 0 || totals.next_offset <= start || Some(totals.max_time) <= largest {
                continue;
            }
            if segment.base >= start && totals.next_offset <= until {
                largest = largest.max(Some(totals.max_time));
                continue;
            }
            // Only a part of the segment counts.
            largest = largest.max(if_there(max_time_within(segment, start, until, access))?.flatten());
        }
        Ok(largest)
    }

    /// What is really there from `from` up to, not including, `to`.
    ///
    /// # Errors
    /// [`LogReadError`].
    pub fn count(&self, from: Offset, to: Offset, access: Access) -> Result<Extent, LogReadError> {
        let segments = self.shared().segments.load_full();
        let mut extent = Extent::default();
        for (number, segment) in segments.iter().enumerate() {
            let next = segments.get(number + 1).map_or(Offset::MAX, |next| next.base);
            if next <= from || segment.base >= to || segment.broken.is_some() {
                continue;
            }
            let ranks = || -> Result<_, LogReadError> {
                let below = if next <= to {
                    (segment.totals(access)?.records, segment.end())
                } else {
                    let rank = rank(segment, to, access)?;
                    (rank.records, rank.behind)
                };
                let before = if segment.base >= from {
                    (0, START)
                } else {
                    let rank = rank(segment, from, access)?;
                    (rank.records, rank.position)
                };
                Ok((below, before))
            };
            let Some(((records_below, bytes_below), (records_before, bytes_before))) = if_there(ranks())?
            else {
                continue;
            };
            extent.records = extent.records.saturating_add(records_below.saturating_sub(records_before));
            extent.bytes += bytes_below.saturating_sub(bytes_before);
        }
        Ok(extent)
    }

    /// The append time of the first record at or after `offset` and below `until`.
    ///
    /// # Errors
    /// [`LogReadError`]; `Damaged` if that record may lie in a range that is damaged.
    pub fn append_time_at(
        &self,
        offset: Offset,
        until: Offset,
        access: Access,
    ) -> Result<Option<Timestamp>, LogReadError> {
        let segments = self.shared().segments.load_full();
        for (number, segment) in segments.iter().enumerate() {
            let next = segments.get(number + 1).map_or(Offset::MAX, |next| next.base);
            if next <= offset {
                continue;
            }
            if segment.base >= until {
                break;
            }
            let numbered = match segment.broken {
                Some(_) => None,
                None => if_there(first_at(segment, offset, until, access))?,
            };
            match numbered {
                Some(Numbered::At(append_time)) => return Ok(Some(append_time)),
                Some(Numbered::Beyond) => return Ok(None),
                Some(Numbered::NotHere) => {}
                Some(Numbered::Damaged) | None => {
                    return self.append_time_by_reading(offset.max(segment.base), until, access);
                }
            }
        }
        Ok(None)
    }

    /// The same where counts do not help: what is damaged is named as a read names it.
    fn append_time_by_reading(
        &self,
        offset: Offset,
        until: Offset,
        access: Access,
    ) -> Result<Option<Timestamp>, LogReadError> {
        let mut from = offset;
        loop {
            let read = self.read(ReadRange { from, until, bytes: 1 }, access)?;
            let Some(stored) = read.first() else { return Ok(None) };
            let header = stored.batch.header();
            let there = header.has_records()
                && (header.base_offset >= offset
                    || is_dense(header)
                    || offsets_and_times(&stored.batch).is_ok_and(|mut all| all.any(|(at, _)| at >= offset)));
            if there {
                return Ok(Some(stored.append_time));
            }
            from = stored.batch.next_offset();
        }
    }
}

/// `None`: the file is not there. It was deleted, and who asked looks again from the new start; or it is lost, and holds
/// as much as one that cannot be read.
fn if_there<T>(found: Result<T, LogReadError>) -> Result<Option<T>, LogReadError> {
    match found {
        Err(LogReadError::File(error)) if error.is_missing() => Ok(None),
        found => found.map(Some),
    }
}

fn walker(segment: &Segment, position: u64, access: Access) -> Walker<Published<'_>> {
    let end = segment.end();
    Walker::new(segment.source(access, end), segment.header.salt, position, end, WALK_WINDOW)
}

/// Whether every offset of the batch has a record.
fn is_dense(header: &BatchHeader) -> bool {
    u64::from(header.record_count) == u64::from(header.last_offset_delta) + 1
}

/// Where an offset stands in its segment.
struct Rank {
    /// Records before it.
    records: u64,
    /// Where the first frame that is not wholly before it begins.
    position: u64,
    /// Where the first frame that begins at it or behind it begins.
    behind: u64,
    /// Bytes on the way were no frames, so that the number may be wrong.
    over_damage: bool,
}

fn rank(segment: &Segment, offset: Offset, access: Access) -> Result<Rank, LogReadError> {
    let delta = offset.since(segment.base);
    let Found { position, records_before } =
        segment.search(access, |entry| u64::from(entry.offset_delta) <= delta)?;
    let mut rank = Rank { records: records_before, position, behind: position, over_damage: false };
    let mut walker = walker(segment, position, access);
    loop {
        match walker.step()? {
            Step::Frame(at, frame) => {
                let Content::Batch(header) = frame.content else { break };
                if header.base_offset >= offset {
                    break;
                }
                rank.behind = at + frame.size();
                if last_offset(&header) < offset {
                    rank.position = rank.behind;
                    rank.records = rank.records.saturating_add(header.records_there());
                    continue;
                }
                if !header.has_records() {
                    break;
                }
                let inside = if is_dense(&header) {
                    offset.since(header.base_offset)
                } else {
                    let payload = walker.payload(at, &frame)?;
                    records(segment, &payload)?.filter(|(found, _)| *found < offset).count() as u64
                };
                rank.records = rank.records.saturating_add(inside);
                break;
            }
            Step::Invalid(..) => {
                rank.over_damage = true;
                if !walker.resync()? {
                    break;
                }
            }
            Step::End => break,
        }
    }
    Ok(rank)
}

/// The first record of a segment at or after an offset.
fn first_at(
    segment: &Segment,
    offset: Offset,
    until: Offset,
    access: Access,
) -> Result<Numbered, LogReadError> {
    let mut before = 0;
    if segment.base < offset {
        let rank = rank(segment, offset, access)?;
        if rank.over_damage {
            return Ok(Numbered::Damaged);
        }
        before = rank.records;
    }
    if segment.totals(access)?.records <= before {
        return Ok(Numbered::NotHere);
    }
    record_number(segment, before, until, access)
}

/// Where a record was looked for by its number.
enum Numbered {
    /// The append time of its frame.
    At(Timestamp),
    /// At or behind the bound.
    Beyond,
    /// Not in this segment.
    NotHere,
    /// Bytes on the way were no frames.
    Damaged,
}

/// The record of a segment that so many others lie before. Nothing is decoded.
fn record_number(
    segment: &Segment,
    number: u64,
    until: Offset,
    access: Access,
) -> Result<Numbered, LogReadError> {
    let found = segment.search(access, |entry| u64::from(entry.records_before) <= number)?;
    let mut before = found.records_before;
    let mut walker = walker(segment, found.position, access);
    loop {
        match walker.step()? {
            Step::Frame(_, Frame { content: Content::Batch(header), append_time, .. }) => {
                if header.base_offset >= until {
                    return Ok(Numbered::Beyond);
                }
                before = before.saturating_add(header.records_there());
                if before > number {
                    return Ok(Numbered::At(append_time));
                }
            }
            Step::Invalid(..) => return Ok(Numbered::Damaged),
            Step::Frame(..) | Step::End => return Ok(Numbered::Beyond),
        }
    }
}

/// The largest time of the records of a segment within two offsets.
fn max_time_within(
    segment: &Segment,
    start: Offset,
    until: Offset,
    access: Access,
) -> Result<Option<Timestamp>, LogReadError> {
    let mut largest = None;
    let mut walker = walker(segment, START, access);
    loop {
        match walker.step()? {
            Step::Frame(at, frame) => {
                let Content::Batch(header) = frame.content else { continue };
                if header.base_offset >= until {
                    return Ok(largest);
                }
                if !header.has_records()
                    || last_offset(&header) < start
                    || Some(header.max_timestamp) <= largest
                {
                    continue;
                }
                if header.base_offset >= start {
                    largest = Some(header.max_timestamp);
                    continue;
                }
                // Log start lies in the batch: the record that had its largest time may be gone.
                let payload = walker.payload(at, &frame)?;
                let left = records(segment, &payload)?.filter(|(offset, _)| *offset >= start);
                largest = largest.max(left.map(|(_, time)| time).max());
            }
            Step::Invalid(..) if walker.resync()? => {}
            Step::Invalid(..) | Step::End => return Ok(largest),
        }
    }
}

/// Offsets and times of the records of a stored batch.
fn records(
    segment: &Segment,
    payload: &Bytes,
) -> Result<impl Iterator<Item = (Offset, Timestamp)> + use<>, LogReadError> {
    let damaged = |error: rimstone_record::BatchError| {
        let header = BatchHeader::parse(payload).ok();
        let (from, until) = header.map_or((segment.base, segment.base), |header| {
            (header.base_offset, last_offset(&header).saturating_add(1))
        });
        LogReadError::Damaged { from, until, reason: format!("{}: {error}", segment.path().display()) }
    };
    let batch = Batch::verify(payload.clone(), &STORED).map_err(damaged)?;
    offsets_and_times(&batch).map_err(damaged)
}

fn offsets_and_times(
    batch: &Batch,
) -> Result<impl Iterator<Item = (Offset, Timestamp)> + use<>, rimstone_record::BatchError> {
    Ok(batch.records(&STORED)?.map_while(Result::ok).map(|record| (record.offset, record.timestamp)))
}
