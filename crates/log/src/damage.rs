//! Damage: acknowledged bytes that are not what was written. A segment is checked from the disk, frame by frame; what
//! is found is a range of offsets with a reason. A range whose loss is accepted is replaced by a marker.
//!
//! Not here: repairing, cutting (nothing does); when to look (`rimstone-store`, `rimstone-broker`).

mod accept;
mod found;
mod scrub;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use rimstone_record::{Batch, BatchHeader};
use rimstone_types::{Offset, Timestamp};

pub use self::{
    accept::{AcceptError, AcceptedLoss, LossPlan, PreparedLoss, accepted_losses},
    found::FoundDamage,
    scrub::{CheckedSegment, Scrub, ScrubStep},
};
use crate::{
    error::{FileError, LogReadError},
    files::disk::DiskFile,
    frame::{Content, Frame, SEGMENT_HEADER_LENGTH, Totals},
    reader::{LogReader, STORED, last_offset},
    segment::Segment,
    walk::{Source, Step, Walker},
};

/// How much is loaded at a time: little, for others wait for the disk too.
const WINDOW: usize = 256 << 10;

/// Damaged ranges of one segment that are found with a reason each: a disk that has more of them needs no more reasons.
const REASONS_MAX: usize = 1_000;

/// Offsets whose records cannot be read, within one segment; or several such ranges as one, with what is sound between them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DamagedRange {
    /// The first damaged offset.
    pub from: Offset,
    /// The first offset after the damage.
    pub until: Offset,
    /// How many damaged ranges these are: with more than one, what is sound between them is served.
    pub ranges: u64,
    /// How many of the offsets are damaged.
    pub offsets: u64,
    /// The base offset of the segment that it lies in, or behind.
    pub segment: Offset,
    /// What was found, with file and position.
    pub reason: String,
}

/// A batch that is as it was written.
pub(crate) struct Sound<'a> {
    pub(crate) header: &'a BatchHeader,
    pub(crate) bytes: &'a [u8],
    pub(crate) append_time: Timestamp,
}

/// The check of one segment, in pieces.
#[derive(Debug)]
pub(crate) struct SegmentCheck {
    segment: Arc<Segment>,
    /// Offsets up to here are to be there; a sealed segment ends there.
    until: Offset,
    sealed: bool,
    end: u64,
    file: Option<DiskFile>,
    position: u64,
    /// The offset that comes next.
    next: Offset,
    /// What is wrong since there.
    open: Option<String>,
    totals: Totals,
    over: bool,
    damage: Vec<DamagedRange>,
}

impl Source for &DiskFile {
    fn load(&self, at: u64, length: usize) -> Result<bytes::Bytes, LogReadError> {
        Ok(self.read(at, length)?)
    }
}

impl SegmentCheck {
    /// Begins the check of a segment. `None`: another file has its name by now.
    pub(crate) fn begin(
        segment: &Arc<Segment>,
        until: Offset,
        sealed: bool,
    ) -> Result<Option<Self>, FileError> {
        let opened = DiskFile::open(segment.path());
        // Its name goes to another only after this is so: what was opened is the segment's own file.
        if segment.is_replaced() {
            return Ok(None);
        }
        let mut check = Self {
            until,
            sealed,
            end: segment.end(),
            file: None,
            position: SEGMENT_HEADER_LENGTH as u64,
            next: segment.base,
            open: None,
            totals: Totals::empty(segment.base),
            over: false,
            damage: Vec::new(),
            segment: Arc::clone(segment),
        };
        match (opened, &segment.broken) {
            (Err(error), _) if error.is_missing() => check.lose_rest("the segment file is missing"),
            (Err(error), _) => return Err(error),
            (Ok(_), Some(reason)) => {
                let reason = format!("{}: {reason}", segment.path().display());
                check.lose_rest(&reason);
            }
            (Ok(file), None) => check.begin_with(file)?,
        }
        Ok(Some(check))
    }

    fn begin_with(&mut self, file: DiskFile) -> Result<(), FileError> {
        let header = file.read(0, SEGMENT_HEADER_LENGTH)?;
        if header[..] == self.segment.header.encode() {
            self.file = Some(file);
        } else {
            let reason = format!("{}: its header is not what was written", self.segment.path().display());
            self.lose_rest(&reason);
        }
        Ok(())
    }

    /// Nothing more of the segment can be read.
    fn lose_rest(&mut self, reason: &str) {
        self.lose(self.next, self.until, reason);
        self.over = true;
    }

    fn lose(&mut self, from: Offset, until: Offset, reason: &str) {
        if from >= until {
            return;
        }
        match self.damage.last_mut() {
            // What lies side by side is one.
            Some(last) if last.until == from => {
                last.until = until;
                last.offsets = until.since(last.from);
            }
            _ => {
                let reason = if self.damage.len() < REASONS_MAX { reason.to_owned() } else { String::new() };
                self.damage.push(DamagedRange::new(from, until, self.segment.base, reason));
            }
        }
    }

    /// Goes over about so many bytes more; shows each batch that is sound. Answers how many bytes went by.
    pub(crate) fn advance(
        &mut self,
        budget: u64,
        mut sound: impl FnMut(Sound<'_>) -> Result<(), FileError>,
    ) -> Result<u64, FileError> {
        let Some(file) = self.file.take() else { return Ok(0) };
        let begun = self.position;
        let mut walker = Walker::new(&file, self.segment.header.salt, begun, self.end, WINDOW);
        while !self.over && walker.position() - begun < budget {
            match walker.step().map_err(file_error)? {
                Step::Frame(at, frame) => self.frame(&mut walker, at, &frame, &mut sound)?,
                Step::Invalid(at, error) => {
                    let reason = format!("{} at byte {at}: {error}", self.segment.path().display());
                    self.open.get_or_insert(reason);
                    if !walker.resync().map_err(file_error)? {
                        self.end_of_file();
                    }
                }
                Step::End => self.end_of_file(),
            }
        }
        let went_by = if self.over { self.end.saturating_sub(begun) } else { walker.position() - begun };
        self.position = walker.position();
        self.file = Some(file).filter(|_| !self.over);
        Ok(went_by)
    }

    fn frame(
        &mut self,
        walker: &mut Walker<&DiskFile>,
        at: u64,
        frame: &Frame,
        sound: &mut impl FnMut(Sound<'_>) -> Result<(), FileError>,
    ) -> Result<(), FileError> {
        let header = match &frame.content {
            Content::Batch(header) if header.base_offset < self.until => header,
            Content::Batch(_) => {
                self.end_of_file();
                return Ok(());
            }
            Content::Seal(seal) => {
                self.seal(seal);
                return Ok(());
            }
        };
        let missing = match self.open.take() {
            // In what compaction wrote, offsets have gaps; elsewhere what is missing was cut out.
            None if self.segment.header.range_end.is_none() => Some(format!(
                "{} at byte {at}: offset {} should come here, and {} does",
                self.segment.path().display(),
                self.next,
                header.base_offset
            )),
            open => open,
        };
        if let Some(reason) = missing {
            self.lose(self.next, header.base_offset, &reason);
        }
        let last = last_offset(header);
        let payload = walker.payload(at, frame).map_err(file_error)?;
        match Batch::verify(payload, &STORED) {
            Ok(batch) => {
                self.totals.add(header, header.next_offset(), frame.append_time);
                sound(Sound { header, bytes: batch.bytes(), append_time: frame.append_time })?;
            }
            Err(error) => {
                let reason = format!("{} at byte {at}: {error}", self.segment.path().display());
                self.lose(self.next.max(header.base_offset), last.saturating_add(1), &reason);
            }
        }
        self.next = last.saturating_add(1);
        Ok(())
    }

    fn seal(&mut self, seal: &Totals) {
        if let Some(reason) = self.open.take() {
            self.lose(self.next, seal.next_offset, &reason);
        }
        let path = self.segment.path().display();
        let counted = Totals { delete_horizon: seal.delete_horizon, ..self.totals };
        if self.damage.is_empty() && *seal != counted {
            tracing::error!(segment = %path, "a seal says something else than what is there, and nothing that is there is damaged");
        }
        let reason = format!("{path} ends at offset {}", seal.next_offset);
        self.next = self.next.max(seal.next_offset);
        self.lose_rest(&reason);
    }

    fn end_of_file(&mut self) {
        let path = self.segment.path().display();
        let reason = match self.open.take() {
            Some(reason) => reason,
            None => format!("{path} ends behind offset {}, without a seal", self.next),
        };
        if self.sealed && self.next >= self.until {
            tracing::error!(segment = %path, reason, "a seal is damaged; no record is");
        }
        self.lose_rest(&reason);
    }

    /// What was found, once all of it was gone over.
    pub(crate) fn found(self) -> Option<Vec<DamagedRange>> {
        self.over.then_some(self.damage)
    }

    pub(crate) fn is_over(&self) -> bool {
        self.over
    }
}

impl LogReader {
    /// The segment that an offset lies in or behind, with the offset up to which it is to be there, and whether it is
    /// sealed. `None`: before all segments.
    pub(crate) fn extent(&self, offset: Offset) -> Option<(Arc<Segment>, Offset, bool)> {
        // Before the segments: what is below it was in their files by then.
        let durable = self.ends().durable;
        let segments = self.shared().segments.load_full();
        let number = segments.partition_point(|segment| segment.base <= offset).checked_sub(1)?;
        let next = segments.get(number + 1).map(|next| next.base);
        Some((Arc::clone(&segments[number]), next.unwrap_or(durable), next.is_some()))
    }

    /// The base offset of the segment that an offset lies in or behind. `None`: before all segments.
    pub fn segment_of(&self, offset: Offset) -> Option<Offset> {
        self.extent(offset).map(|(segment, ..)| segment.base)
    }

    /// Damage that shows without a look into the files: segments that opening found broken, and files that are gone
    /// from the start of the log.
    pub fn evident_damage(&self) -> Vec<DamagedRange> {
        let start = self.start();
        let durable = self.ends().durable;
        let segments = self.shared().segments.load_full();
        let mut damage = Vec::new();
        if let Some(first) = segments.first().filter(|first| first.base > start) {
            let reason = "the segment file that held it is missing".to_owned();
            damage.push(DamagedRange::new(start, first.base, start, reason));
        }
        for (number, segment) in segments.iter().enumerate() {
            let until = segments.get(number + 1).map_or(durable, |next| next.base);
            let from = segment.base.max(start);
            if let Some(reason) = &segment.broken
                && from < until
            {
                let reason = format!("{}: {reason}", segment.path().display());
                damage.push(DamagedRange::new(from, until, segment.base, reason));
            }
        }
        damage
    }

    /// Checks the whole segment that an offset lies in or behind, from the disk. `None`: there is none, or it has
    /// another file by now.
    ///
    /// # Errors
    /// [`FileError`] other than a disk that cannot read: that is damage.
    pub fn check_segment(&self, offset: Offset) -> Result<Option<CheckedSegment>, FileError> {
        let Some((segment, until, sealed)) = self.extent(offset) else { return Ok(None) };
        let Some(mut check) = SegmentCheck::begin(&segment, until, sealed)? else { return Ok(None) };
        while !check.is_over() {
            check.advance(u64::MAX, |_| Ok(()))?;
        }
        let found = check.found().filter(|_| self.stands(&segment));
        Ok(found.map(|found| CheckedSegment::new(segment.base, until, found, self.start())))
    }

    /// Whether a segment is still part of the log: what was found in one that was deleted or replaced is nobody's loss.
    pub(crate) fn stands(&self, segment: &Arc<Segment>) -> bool {
        self.extent(segment.base).is_some_and(|(now, ..)| Arc::ptr_eq(&now, segment))
    }
}

fn file_error(error: LogReadError) -> FileError {
    match error {
        LogReadError::File(error) => error,
        other => FileError::new("read", std::path::Path::new(""), std::io::Error::other(other.to_string())),
    }
}
