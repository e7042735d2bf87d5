//! A pass over the sealed segments of a log, in pieces. It reads; it changes nothing.

use std::collections::BTreeSet;

use rimstone_types::Offset;

use super::{DamagedRange, SegmentCheck};
use crate::{error::FileError, reader::LogReader};

/// A segment that was gone over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckedSegment {
    /// Its base offset.
    pub base: Offset,
    /// What was looked for goes up to here.
    pub until: Offset,
    /// What is damaged of it, at or above the log start, in order.
    pub damage: Vec<DamagedRange>,
}

impl CheckedSegment {
    pub(super) fn new(base: Offset, until: Offset, mut damage: Vec<DamagedRange>, start: Offset) -> Self {
        damage.retain(|range| range.until > start);
        for range in &mut damage {
            range.clip(start);
        }
        Self { base, until, damage }
    }
}

/// What one piece of a pass did.
#[derive(Debug, Default)]
pub struct ScrubStep {
    /// Bytes gone over.
    pub read: u64,
    /// A segment that is through.
    pub checked: Option<CheckedSegment>,
    /// The pass is over.
    pub done: bool,
}

/// A pass.
#[derive(Debug)]
pub struct Scrub {
    reader: LogReader,
    /// Segments from here on are still to come.
    from: Offset,
    /// Only these, by base offset; `None`: all that are sealed.
    only: Option<BTreeSet<Offset>>,
    current: Option<(Offset, SegmentCheck)>,
}

impl Scrub {
    /// Over all sealed segments.
    pub fn whole(reader: LogReader) -> Self {
        Self { reader, from: Offset::ZERO, only: None, current: None }
    }

    /// Over those in which some offsets lie, sealed or not.
    pub fn of(reader: LogReader, offsets: BTreeSet<Offset>) -> Self {
        Self { reader, from: Offset::ZERO, only: Some(offsets), current: None }
    }

    /// Whether it goes over all segments.
    pub fn is_whole(&self) -> bool {
        self.only.is_none()
    }

    /// Goes over about so many bytes, of one segment.
    ///
    /// # Errors
    /// [`FileError`] other than a disk that cannot read: the segment is passed by.
    pub fn advance(&mut self, budget: u64) -> Result<ScrubStep, FileError> {
        let Some((until, mut check)) = self.current.take() else { return self.next() };
        let read = check.advance(budget, |_| Ok(()))?;
        if !check.is_over() {
            self.current = Some((until, check));
            return Ok(ScrubStep { read, ..ScrubStep::default() });
        }
        let base = check.segment.base;
        let stands = self.reader.stands(&check.segment);
        let found = check.found().filter(|_| stands);
        let start = self.reader.start();
        let checked = found.map(|found| CheckedSegment::new(base, until, found, start));
        Ok(ScrubStep { read, checked, done: false })
    }

    /// Opens the next segment; nothing of it is read yet.
    fn next(&mut self) -> Result<ScrubStep, FileError> {
        let done = ScrubStep { done: true, ..ScrubStep::default() };
        let extent = match &mut self.only {
            Some(only) => match only.pop_first() {
                None => return Ok(done),
                Some(offset) => self.reader.extent(offset),
            },
            None => {
                let segments = self.reader.shared().segments.load_full();
                let next = segments.iter().find(|segment| segment.base >= self.from);
                let Some(next) = next else { return Ok(done) };
                self.from = next.base.saturating_add(1);
                match self.reader.extent(next.base) {
                    Some((_, _, false)) => return Ok(done),
                    extent => extent,
                }
            }
        };
        if let Some((segment, until, sealed)) = extent {
            self.current = SegmentCheck::begin(&segment, until, sealed)?.map(|check| (until, check));
        }
        Ok(ScrubStep::default())
    }
}
