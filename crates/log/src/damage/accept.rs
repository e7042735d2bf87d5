//! Accepting a loss: the segment is written anew with what is sound of it, and a marker in place of each range that is
//! given up. The old file keeps its bytes under other names, one for each range.
//!
//! What is written looks like a segment of a compaction that has judged nothing, so that recovery, readers, counts and
//! compaction need to know nothing new: a marker is a control batch without records, and takes the range's offsets.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use rimstone_record::Batch;
use rimstone_types::{Offset, Timestamp};

use super::{CheckedSegment, DamagedRange, FoundDamage, SegmentCheck};
use crate::{
    compaction::{CompactionError, Output, Replacement},
    error::FileError,
    files,
    frame::SegmentHeader,
    log::Log,
    reader::LogReader,
    segment::{Access, Segment},
};

/// In the header of a segment that was written around a loss: no number of obstacles reaches it, so that it never
/// counts as compacted.
const NEVER_JUDGED: u32 = u32::MAX;
/// The most offsets of one range: what one batch spans, and more than any segment has.
const RANGE_MAX: u64 = i32::MAX as u64;
/// Damaged ranges of several segments that are given up together; one segment may have more. They are in memory.
const RANGES_AT_ONCE: usize = 100_000;

/// A range that was given up, or all that was damaged in one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AcceptedLoss {
    /// The first offset that is gone.
    pub from: Offset,
    /// The first offset behind it.
    pub until: Offset,
    /// How many of these offsets are gone; the others are as they were.
    pub offsets: u64,
    /// The file as it was, with the damaged bytes.
    pub kept: PathBuf,
    /// Bytes of that file.
    pub bytes: u64,
}

/// Why a loss was not accepted. Nothing was changed, but for `Unknown`.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    /// What is damaged is something else than what was named.
    #[error("what is damaged there is not what was named: {found}")]
    Differs {
        /// What is damaged in the segments that were named.
        found: FoundDamage,
    },
    /// More than is carried out at one time.
    #[error(
        "these are more than {RANGES_AT_ONCE} damaged ranges in several segments: give up those of fewer segments at a time"
    )]
    TooMany,
    /// Nothing is left before it.
    #[error(
        "the log has nothing before offset {first}: move the log start there instead, by deleting the records before it"
    )]
    BeforeFirst {
        /// The first offset that is there.
        first: Offset,
    },
    /// No marker spans it.
    #[error("offsets {from} to {until} are more than the {RANGE_MAX} that one range may have")]
    TooLarge {
        /// The first of them.
        from: Offset,
        /// The first behind them.
        until: Offset,
    },
    /// The log has changed meanwhile: look again.
    #[error("the log has changed meanwhile; look at the damage again")]
    Overtaken,
    /// It is not known whether the new file's name is durable: the partition must not go on.
    #[error("a segment was renamed, and it is not known whether durably: {0}")]
    Unknown(FileError),
    /// An operation on a file failed.
    #[error(transparent)]
    File(#[from] FileError),
}

impl From<CompactionError> for AcceptError {
    fn from(error: CompactionError) -> Self {
        match error {
            CompactionError::File(error) => Self::File(error),
            CompactionError::Unknown(error) => Self::Unknown(error),
            CompactionError::Damaged { .. } | CompactionError::Overtaken | CompactionError::NoSnapshot(_) => {
                Self::Overtaken
            }
        }
    }
}

/// Segments that are to be written anew.
#[derive(Debug)]
pub struct LossPlan(Vec<Lossy>);

#[derive(Debug)]
struct Lossy {
    segment: Arc<Segment>,
    until: Offset,
    /// What is damaged of it.
    ranges: Vec<(Offset, Offset)>,
    named: Vec<Named>,
}

/// A range that was named.
#[derive(Debug)]
struct Named {
    from: Offset,
    until: Offset,
    /// How many of its offsets are damaged.
    offsets: u64,
}

/// A segment that is written anew, and on disk under another name.
#[derive(Debug)]
pub struct PreparedLoss {
    replacement: Replacement,
    segment: Arc<Segment>,
    until: Offset,
    named: Vec<Named>,
}

fn pairs(damage: &[DamagedRange]) -> Vec<(Offset, Offset)> {
    damage.iter().map(|range| (range.from, range.until)).collect()
}

/// What each of the names covers, if together they cover all that is damaged of a segment, and each of them begins and
/// ends with it. Both in order.
fn covered(names: &[(Offset, Offset)], damage: &[DamagedRange]) -> Option<Vec<Named>> {
    let mut rest = damage;
    let mut covered = Vec::new();
    for &(from, until) in names {
        let (inside, behind) = rest.split_at(rest.iter().take_while(|range| range.until <= until).count());
        if inside.first()?.from != from || inside.last()?.until != until {
            return None;
        }
        covered.push(Named { from, until, offsets: inside.iter().map(|range| range.offsets).sum() });
        rest = behind;
    }
    rest.is_empty().then_some(covered)
}

impl LossPlan {
    /// About how many bytes carrying it out writes.
    pub fn bytes(&self) -> u64 {
        self.0.iter().map(|lossy| lossy.segment.end()).sum()
    }
}

impl LogReader {
    /// Looks at the segments in which the ranges lie, from the disk. All that is damaged of them must be named, and nothing
    /// else: each range begins where a damaged one does and ends where one does, the same or a later one of its segment.
    /// What is sound in between is not given up. The segments must be sealed.
    ///
    /// # Errors
    /// [`AcceptError`].
    pub fn plan_loss(&self, ranges: &[(Offset, Offset)]) -> Result<LossPlan, AcceptError> {
        self.plan(ranges, true)
    }

    /// The same look for what may lie in the segment that is written to, without a plan.
    ///
    /// # Errors
    /// [`AcceptError`].
    pub fn check_loss(&self, ranges: &[(Offset, Offset)]) -> Result<(), AcceptError> {
        self.plan(ranges, false).map(drop)
    }

    fn plan(&self, ranges: &[(Offset, Offset)], only_sealed: bool) -> Result<LossPlan, AcceptError> {
        let mut wanted = ranges.to_vec();
        wanted.sort_unstable();
        let (mut plan, mut found, mut planned) = (Vec::new(), FoundDamage::default(), 0);
        let (mut differs, mut rest) = (wanted.is_empty(), &wanted[..]);
        while let Some((from, until)) = rest.first() {
            let Some((segment, end, sealed)) = self.extent(*from) else {
                let first = self.shared().segments.load().first().map_or(*until, |first| first.base);
                return Err(AcceptError::BeforeFirst { first });
            };
            if only_sealed && !sealed {
                return Err(AcceptError::Overtaken);
            }
            let Some(CheckedSegment { damage, .. }) = self.check_segment(*from)? else {
                return Err(AcceptError::Overtaken);
            };
            if let Some(range) = damage.iter().find(|range| range.offsets > RANGE_MAX) {
                return Err(AcceptError::TooLarge { from: range.from, until: range.until });
            }
            found.add(&damage);
            planned += damage.len();
            if !plan.is_empty() && planned > RANGES_AT_ONCE {
                return Err(AcceptError::TooMany);
            }
            let of_segment = rest.iter().take_while(|(from, _)| *from < end).count().max(1);
            let named = covered(&rest[..of_segment], &damage);
            rest = &rest[of_segment..];
            match named {
                Some(named) => plan.push(Lossy { segment, until: end, ranges: pairs(&damage), named }),
                None => differs = true,
            }
        }
        if differs {
            return Err(AcceptError::Differs { found });
        }
        Ok(LossPlan(plan))
    }

    /// When the records around a range without any may have been taken.
    fn time_near(&self, segment: &Segment) -> Option<Timestamp> {
        let segments = self.shared().segments.load_full();
        let number = segments.iter().position(|other| other.base == segment.base)?;
        let totals = |other: &Arc<Segment>| {
            other.broken.is_none().then(|| other.totals(Access::Blocking).ok()).flatten()
        };
        let before = segments[..number].iter().rev().filter_map(totals).map(|totals| totals.last_append);
        let behind = segments[number + 1..].iter().filter_map(totals).map(|totals| totals.first_append);
        before.chain(behind).find(|time| *time > Timestamp::MIN)
    }
}

impl Log {
    /// Rolls the active segment if one of the ranges lies in it.
    pub fn roll_for_loss(&mut self, ranges: &[(Offset, Offset)], now: Timestamp) {
        if ranges.iter().any(|(_, until)| *until > self.active_base()) {
            self.roll(now);
        }
    }

    /// What carrying a plan out needs of the log, beside the plan.
    pub fn loss_writer(&self) -> impl Fn(LossPlan, Timestamp) -> LossWriter + use<> {
        let (directory, reader) = (self.directory().to_owned(), self.reader());
        let (salts, interval) = (self.config().salts.clone(), self.config().index_interval_bytes);
        move |plan, now| LossWriter {
            directory: directory.clone(),
            reader: reader.clone(),
            salt: (salts.0)(),
            interval,
            plan: plan.0,
            now,
        }
    }
}

/// Writes the segments of a plan anew, outside the partition's lock.
#[derive(Debug)]
pub struct LossWriter {
    directory: PathBuf,
    reader: LogReader,
    salt: u32,
    interval: u64,
    plan: Vec<Lossy>,
    now: Timestamp,
}

impl Iterator for LossWriter {
    type Item = Result<PreparedLoss, AcceptError>;

    fn next(&mut self) -> Option<Self::Item> {
        let lossy = self.plan.pop()?;
        Some(self.write(lossy))
    }
}

impl LossWriter {
    fn write(&mut self, lossy: Lossy) -> Result<PreparedLoss, AcceptError> {
        let Lossy { segment, until, ranges, named } = lossy;
        self.salt = self.salt.wrapping_add(1);
        if self.salt == segment.header.salt {
            self.salt = self.salt.wrapping_add(1);
        }
        let header = SegmentHeader {
            partition: self.reader.shared().id,
            base: segment.base,
            range_end: Some(until),
            cleaned: None,
            passed_by: NEVER_JUDGED,
            salt: self.salt,
            created: self.now,
        };
        let mut output = Output::create(&self.directory, header, until, self.interval)?;
        let mut markers = Markers { ranges: &self.whole_ranges(&segment, &ranges), at: self.now, time: None };
        // A marker that comes before all that is sound has the time of what comes next.
        markers.time = self.first_time(&segment, until)?.or_else(|| self.reader.time_near(&segment));
        let mut check = SegmentCheck::begin(&segment, until, true)?.ok_or(AcceptError::Overtaken)?;
        while !check.is_over() {
            check.advance(u64::MAX, |sound| {
                markers.put_before(sound.header.base_offset, &mut output)?;
                markers.time = Some(sound.append_time);
                let horizon = sound.header.has_delete_horizon().then_some(sound.header.base_timestamp);
                output.add(sound.bytes, sound.header, sound.append_time, horizon)
            })?;
        }
        markers.put_before(until, &mut output)?;
        let again = check
            .found()
            .map(|found| CheckedSegment::new(segment.base, until, found, self.reader.start()).damage);
        if again.is_none_or(|again| pairs(&again) != ranges) || output.next_offset() != until {
            return Err(AcceptError::Overtaken);
        }
        output.finish()?;
        let replaces = vec![Arc::clone(&segment)];
        let replacement = Replacement::new(output, replaces, &self.directory);
        Ok(PreparedLoss { replacement, segment, until, named })
    }

    /// The ranges, also where they reach below the log start: the whole place is to be taken.
    fn whole_ranges(&self, segment: &Segment, ranges: &[(Offset, Offset)]) -> Vec<(Offset, Offset)> {
        ranges.iter().map(|(from, until)| ((*from).max(segment.base), *until)).collect()
    }

    /// The append time of the first batch that is sound.
    fn first_time(&self, segment: &Arc<Segment>, until: Offset) -> Result<Option<Timestamp>, AcceptError> {
        let mut first = None;
        let mut check = SegmentCheck::begin(segment, until, true)?.ok_or(AcceptError::Overtaken)?;
        while !check.is_over() && first.is_none() {
            check.advance(1, |sound| {
                first.get_or_insert(sound.append_time);
                Ok(())
            })?;
        }
        Ok(first)
    }
}

/// Puts markers where the ranges lie.
struct Markers<'a> {
    ranges: &'a [(Offset, Offset)],
    /// When the loss is accepted.
    at: Timestamp,
    time: Option<Timestamp>,
}

impl Markers<'_> {
    fn put_before(&mut self, offset: Offset, output: &mut Output) -> Result<(), FileError> {
        while let Some(((from, until), rest)) =
            self.ranges.split_first().filter(|((from, _), _)| *from < offset)
        {
            self.ranges = rest;
            // What lies below the log start is gone anyway, and takes its place with the range.
            let from = output.next_offset().max(*from);
            let Some(marker) = Batch::lost(from, *until, self.at) else { continue };
            let time = self.time.unwrap_or(self.at);
            output.add(marker.bytes(), marker.header(), time, None)?;
        }
        Ok(())
    }
}

impl PreparedLoss {
    /// The offsets of the segment.
    pub fn extent(&self) -> (Offset, Offset) {
        (self.segment.base, self.until)
    }

    /// What [`Log::may_replace`] looks at.
    pub fn replacement(&self) -> &Replacement {
        &self.replacement
    }

    /// Keeps the old file under a name for each range that was named, then gives the new one its name; both durably.
    ///
    /// # Errors
    /// [`AcceptError`].
    pub fn install(
        self,
        directory: &Path,
        durable_snapshot: Offset,
    ) -> Result<(crate::compaction::Replaced, Vec<AcceptedLoss>), AcceptError> {
        let Self { replacement, segment, named, .. } = self;
        let mut accepted = Vec::new();
        for Named { from, until, offsets } in named {
            let kept = files::lost_path(directory, from, until, offsets);
            match files::keep_as(segment.path(), &kept) {
                // There is nothing to keep.
                Err(error) if error.is_missing() => {
                    drop(files::create(&kept).map_err(|error| FileError::new("create", &kept, error))?);
                }
                kept => kept?,
            }
            let bytes = kept.metadata().map_or(0, |metadata| metadata.len());
            accepted.push(AcceptedLoss { from, until, offsets, kept, bytes });
        }
        // Before the name is another's: after a power cut the old bytes must have one.
        files::sync_directory(directory)?;
        let replaced = replacement.install(durable_snapshot)?;
        Ok((replaced, accepted))
    }
}

/// The losses that were accepted in a partition and whose files are still kept, in order.
///
/// # Errors
/// [`FileError`].
pub fn accepted_losses(directory: &Path) -> Result<Vec<AcceptedLoss>, FileError> {
    let entries = fs::read_dir(directory).map_err(|error| FileError::new("list", directory, error))?;
    let mut losses = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|error| FileError::new("list", directory, error))?;
        if let Some((from, until, offsets)) = entry.file_name().to_str().and_then(files::parse_lost_name) {
            let bytes = entry.metadata().map_or(0, |metadata| metadata.len());
            losses.push(AcceptedLoss { from, until, offsets, kept: entry.path(), bytes });
        }
    }
    losses.sort_unstable_by_key(|loss| (loss.from, loss.until));
    Ok(losses)
}
