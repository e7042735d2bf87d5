//! One pass over a log, in slices: learn the keys of the dirty part, then write each group of neighbours anew and
//! put it in their place. Runs outside the partition's lock over segments that nothing changes; the log is
//! asked again before a group is replaced.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use rimstone_record::{Batch, BatchHeader};
use rimstone_types::{Offset, PartitionId, Timestamp};

use super::{
    Facts, Judged, Sieve, group,
    output::Output,
    swap::{Compactable, Replacement},
};
use crate::{
    config::{LogConfig, SaltSource},
    error::{FileError, LogReadError},
    frame::{Content, SEGMENT_HEADER_LENGTH, SegmentHeader},
    reader::{LogReader, STORED},
    segment::{Cold, SCAN_WINDOW, Segment},
    walk::{Step as Walked, Walker},
};

/// Why a pass stopped. Nothing was replaced that is not whole and durable.
#[derive(Debug, thiserror::Error)]
pub enum CompactionError {
    /// Acknowledged bytes are damaged: the segment stays as it is.
    #[error("segment {segment} cannot be compacted: {reason}")]
    Damaged {
        /// The segment's base offset.
        segment: Offset,
        /// What was found.
        reason: String,
    },
    /// The log start moved over segments of the pass.
    #[error("the pass is given up: its segments were deleted meanwhile")]
    Overtaken,
    /// State of producers would be lost with the records that it came from.
    #[error("no snapshot of the producers is durable up to offset {0}")]
    NoSnapshot(Offset),
    /// The name was given and it is not known whether that is durable: the partition must not go on.
    #[error("a compacted segment was renamed, and it is not known whether durably: {0}")]
    Unknown(FileError),
    /// An operation on a file failed; what was there before is there.
    #[error(transparent)]
    File(#[from] FileError),
}

/// What a pass has done so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// Bytes of frames read.
    pub read_bytes: u64,
    /// Bytes of segments written.
    pub written_bytes: u64,
    /// Records that went.
    pub records_removed: u64,
    /// Segments that were replaced.
    pub segments_before: u32,
    /// Segments that stand in their place.
    pub segments_after: u32,
}

/// What is to be done next.
#[derive(Debug)]
pub enum CompactionStep {
    /// Go on when it suits.
    More,
    /// Go on if there is room for about so many bytes: the next piece of work begins to write a group of that size,
    /// and what it replaces goes only when it is whole. Otherwise the pass is to be dropped; nothing is open.
    Room(u64),
    /// A group is written and on disk: put it in place.
    Replace(Box<Replacement>),
    /// The pass is over.
    Done,
}

/// A pass.
#[derive(Debug)]
pub struct Compaction {
    id: PartitionId,
    directory: PathBuf,
    salts: SaltSource,
    index_interval: u64,
    now: Timestamp,
    reader: LogReader,
    /// What is still to be gone over; what is done or trimmed is let go of, so that its files can go.
    segments: Vec<Arc<Segment>>,
    /// Of these segments.
    facts: Vec<Facts>,
    /// Where what is passed by begins, oldest first.
    obstacles: Vec<Offset>,
    dirty_from: Offset,
    tombstones_only: bool,
    segment_bytes: u64,
    sieve: Sieve,
    phase: Phase,
    progress: Progress,
}

#[derive(Debug)]
enum Phase {
    Learning(Place),
    /// The first segments become the next group.
    Choosing,
    /// Whether anything goes from a segment that was cleaned before and has no neighbour to be merged with.
    Looking(Place),
    /// So many of the first segments are about to become one.
    Opening(usize),
    /// So many of the first segments become one.
    Writing(usize, Place, Box<Writing>),
    Done,
}

#[derive(Debug)]
struct Writing {
    output: Output,
    removed: u64,
    /// The last batch that went: the last of a range stays, empty, so that a segment ends where its range does and
    /// append times never go back.
    gone: Option<(Batch, Timestamp)>,
}

/// How far a walk over segments has come.
#[derive(Debug, Clone, Copy)]
struct Place {
    segment: usize,
    position: u64,
    /// The check of the frame before; a frame that does not name it does not belong there.
    link: u32,
}

impl Place {
    fn at(segments: &[Arc<Segment>], segment: usize) -> Self {
        let link = segments.get(segment).map_or(0, |segment| segment.header.check());
        Self { segment, position: SEGMENT_HEADER_LENGTH as u64, link }
    }

    /// After so many of the first segments were let go of: where it was, or at the first one that is left.
    fn without(self, gone: usize, left: &[Arc<Segment>]) -> Self {
        match self.segment.checked_sub(gone) {
            Some(segment) => Self { segment, ..self },
            None => Self::at(left, 0),
        }
    }
}

/// What a walk does with a batch.
enum Visit {
    On,
    /// The batch was not taken; the walk ends before it.
    Stop,
}

impl Compaction {
    pub(super) fn new(
        id: PartitionId,
        directory: &Path,
        config: &LogConfig,
        reader: LogReader,
        found: Compactable,
        sieve: Sieve,
        now: Timestamp,
    ) -> Self {
        let Compactable { segments, facts, plan, obstacles } = found;
        let first_dirty = facts.iter().take_while(|facts| facts.cleaned == facts.next).count();
        Self {
            id,
            directory: directory.to_owned(),
            salts: config.salts.clone(),
            index_interval: config.index_interval_bytes,
            now,
            reader,
            dirty_from: plan.dirty_from,
            tombstones_only: plan.tombstones_only,
            segment_bytes: config.segment_bytes,
            sieve,
            phase: Phase::Learning(Place::at(&segments, first_dirty)),
            progress: Progress::default(),
            segments,
            facts,
            obstacles: obstacles.into_iter().map(|obstacle| obstacle.segment).collect(),
        }
    }

    /// What the pass has done so far.
    pub fn progress(&self) -> Progress {
        self.progress
    }

    /// Whether the next piece of work writes.
    pub fn writes(&self) -> bool {
        matches!(self.phase, Phase::Writing(..))
    }

    /// Works over about so many bytes of segments. What is written is on disk when it answers.
    ///
    /// # Errors
    /// [`CompactionError`]: the pass is over, and is to be dropped.
    pub fn advance(&mut self, budget: u64) -> Result<CompactionStep, CompactionError> {
        let phase = std::mem::replace(&mut self.phase, Phase::Done);
        match (phase, self.let_go_of_trimmed()) {
            (Phase::Learning(place), trimmed) => self.learn(place.without(trimmed, &self.segments), budget),
            // A group that lost a member is begun anew without it, and so is the file that was written.
            (Phase::Choosing, _) | (Phase::Looking(_) | Phase::Opening(_) | Phase::Writing(..), 1..) => {
                Ok(self.next_group())
            }
            (Phase::Looking(place), 0) => self.look(place, budget),
            (Phase::Opening(members), 0) => {
                self.begin_group(members)?;
                Ok(CompactionStep::More)
            }
            (Phase::Writing(members, place, writing), 0) => self.write(members, place, writing, budget),
            (Phase::Done, _) => Ok(CompactionStep::Done),
        }
    }

    /// What lies wholly below the log start is gone, and its files are. Answers how many segments that were.
    fn let_go_of_trimmed(&mut self) -> usize {
        let start = self.reader.start();
        let trimmed = self.facts.iter().take_while(|facts| facts.next <= start).count();
        self.let_go_of(trimmed);
        trimmed
    }

    fn let_go_of(&mut self, first: usize) -> Vec<Arc<Segment>> {
        self.facts.drain(..first);
        self.segments.drain(..first).collect()
    }

    fn learn(&mut self, mut place: Place, budget: u64) -> Result<CompactionStep, CompactionError> {
        let (until, dirty_from) = (self.segments.len(), self.dirty_from);
        let sieve = &mut self.sieve;
        sieve.order();
        let walked = walk(&self.segments, &mut place, until, budget, |segment, header, _, payload| {
            if header.next_offset() <= dirty_from {
                return Ok(Visit::On);
            }
            let batch = verified(segment, payload)?;
            let learned = sieve.learn(&batch).map_err(|error| damaged(segment, &error))?;
            Ok(if learned { Visit::On } else { Visit::Stop })
        })?;
        self.progress.read_bytes += walked.bytes;
        if !walked.over {
            self.phase = Phase::Learning(place);
            return Ok(CompactionStep::More);
        }
        let end = self.sieve.end();
        let count = self.facts.iter().take_while(|facts| facts.base < end).count();
        self.facts.truncate(count);
        self.segments.truncate(count);
        self.phase = Phase::Choosing;
        Ok(CompactionStep::More)
    }

    fn next_group(&mut self) -> CompactionStep {
        let mut members = group(&self.facts, self.segment_bytes);
        if self.tombstones_only {
            // No more is read and written than what has some that go.
            let stays = |facts: &&Facts| facts.horizon.is_none_or(|horizon| horizon > self.now);
            let count = self.facts.iter().take_while(stays).count();
            self.let_go_of(count);
            members = 1;
        }
        match self.facts.first() {
            None => self.phase = Phase::Done,
            Some(first) if members == 1 && first.cleaned == first.next && !self.tombstones_only => {
                self.phase = Phase::Looking(Place::at(&self.segments, 0));
            }
            Some(_) => return self.ask_for_room(members),
        }
        CompactionStep::More
    }

    fn ask_for_room(&mut self, members: usize) -> CompactionStep {
        self.phase = Phase::Opening(members);
        CompactionStep::Room(self.facts[..members].iter().map(|facts| facts.bytes).sum())
    }

    fn begin_group(&mut self, members: usize) -> Result<(), CompactionError> {
        let base = self.facts[0].base;
        let end = self.facts[members - 1].next;
        let learned = self.sieve.end();
        let replaced: Vec<u32> = self.segments[..members].iter().map(|segment| segment.header.salt).collect();
        let mut salt = (self.salts.0)();
        while replaced.contains(&salt) {
            salt = salt.wrapping_add(1);
        }
        let passed_by = self.obstacles.iter().filter(|obstacle| **obstacle < base).count();
        let header = SegmentHeader {
            partition: self.id,
            base,
            range_end: Some(end),
            cleaned: (learned < end).then_some(learned),
            passed_by: u32::try_from(passed_by).unwrap_or(u32::MAX),
            salt,
            created: self.now,
        };
        let output = Output::create(&self.directory, header, end, self.index_interval)?;
        let writing = Box::new(Writing { output, removed: 0, gone: None });
        self.phase = Phase::Writing(members, Place::at(&self.segments, 0), writing);
        Ok(())
    }

    fn look(&mut self, mut place: Place, budget: u64) -> Result<CompactionStep, CompactionError> {
        let sieve = &self.sieve;
        let mut changes = false;
        let walked = walk(&self.segments, &mut place, 1, budget, |segment, _, _, payload| {
            let batch = verified(segment, payload)?;
            // An emptied batch that nobody remembers any more is not worth a segment.
            changes = match sieve.judge(&batch).map_err(|error| damaged(segment, &error))? {
                Judged::Same { .. } | Judged::Gone { removed: 0 } => false,
                Judged::Changed { .. } | Judged::Gone { .. } => true,
            };
            Ok(if changes { Visit::Stop } else { Visit::On })
        })?;
        self.progress.read_bytes += walked.bytes;
        if changes {
            return Ok(self.ask_for_room(1));
        }
        if walked.over {
            self.let_go_of(1);
            self.phase = Phase::Choosing;
        } else {
            self.phase = Phase::Looking(place);
        }
        Ok(CompactionStep::More)
    }

    fn write(
        &mut self,
        members: usize,
        mut place: Place,
        mut writing: Box<Writing>,
        budget: u64,
    ) -> Result<CompactionStep, CompactionError> {
        let sieve = &self.sieve;
        let before = writing.output.bytes();
        let walked = walk(&self.segments, &mut place, members, budget, |segment, header, time, payload| {
            let batch = verified(segment, payload)?;
            match sieve.judge(&batch).map_err(|error| damaged(segment, &error))? {
                Judged::Same { horizon } => writing.output.add(batch.bytes(), header, time, horizon)?,
                Judged::Changed { batch, removed, horizon } => {
                    writing.removed += u64::from(removed);
                    writing.output.add(batch.bytes(), batch.header(), time, horizon)?;
                }
                Judged::Gone { removed } => {
                    writing.removed += u64::from(removed);
                    writing.gone = Some((batch.emptied(), time));
                }
            }
            Ok(Visit::On)
        })?;
        self.progress.read_bytes += walked.bytes;
        if !walked.over {
            writing.output.settle()?;
            self.progress.written_bytes += writing.output.bytes() - before;
            self.phase = Phase::Writing(members, place, writing);
            return Ok(CompactionStep::More);
        }
        let Writing { mut output, removed, gone } = *writing;
        let last = self.facts[members - 1];
        let end = last.next;
        if output.next_offset() < end
            && let Some((batch, time)) = gone
        {
            output.add(batch.bytes(), batch.header(), time, None)?;
        }
        if output.next_offset() != end {
            let reason = format!("it ends at offset {} instead of {end}", output.next_offset());
            return Err(CompactionError::Damaged { segment: last.base, reason });
        }
        output.finish()?;
        self.progress.written_bytes += output.bytes() - before;
        self.progress.records_removed += removed;
        self.progress.segments_before += members as u32;
        self.progress.segments_after += 1;
        let replaces = self.let_go_of(members);
        self.phase = Phase::Choosing;
        Ok(CompactionStep::Replace(Box::new(Replacement {
            output,
            replaces,
            directory: self.directory.clone(),
            may_be_missing: false,
        })))
    }
}

fn damaged(segment: &Segment, error: &dyn std::fmt::Display) -> CompactionError {
    CompactionError::Damaged { segment: segment.base, reason: error.to_string() }
}

fn unreadable(segment: &Segment, error: LogReadError) -> CompactionError {
    match error {
        // Not trimmed, or it would not be looked at.
        LogReadError::File(error) if error.is_missing() => damaged(segment, &error),
        LogReadError::File(error) => CompactionError::File(error),
        other => damaged(segment, &other),
    }
}

fn verified(segment: &Segment, payload: bytes::Bytes) -> Result<Batch, CompactionError> {
    Batch::verify(payload, &STORED).map_err(|error| damaged(segment, &error))
}

struct WalkedOver {
    bytes: u64,
    /// Up to the end, or stopped by the visitor.
    over: bool,
}

/// Visits the batches of whole, linked frames from a place on, up to the segment `until`, until about `budget`
/// bytes have gone by.
fn walk(
    segments: &[Arc<Segment>],
    place: &mut Place,
    until: usize,
    budget: u64,
    mut visit: impl FnMut(&Segment, &BatchHeader, Timestamp, bytes::Bytes) -> Result<Visit, CompactionError>,
) -> Result<WalkedOver, CompactionError> {
    let mut bytes = 0;
    while place.segment < until {
        let segment = &*segments[place.segment];
        let (salt, end) = (segment.header.salt, segment.end());
        // No more is loaded than is gone over, but for the last frame.
        let window = usize::try_from(budget).unwrap_or(usize::MAX).min(SCAN_WINDOW);
        let mut walker = Walker::new(Cold(segment), salt, place.position, end, window);
        loop {
            if bytes >= budget {
                return Ok(WalkedOver { bytes, over: false });
            }
            let (at, frame) = match walker.step().map_err(|error| unreadable(segment, error))? {
                Walked::Frame(at, frame) => (at, frame),
                Walked::Invalid(at, error) => {
                    return Err(damaged(segment, &format!("no valid frame at byte {at}: {error}")));
                }
                Walked::End => return Err(damaged(segment, &"it has no seal")),
            };
            if frame.previous_check != place.link {
                return Err(damaged(
                    segment,
                    &format!("the frame at byte {at} is not linked to the one before"),
                ));
            }
            let Content::Batch(header) = frame.content else { break };
            let payload = walker.payload(at, &frame).map_err(|error| unreadable(segment, error))?;
            if let Visit::Stop = visit(segment, &header, frame.append_time, payload)? {
                return Ok(WalkedOver { bytes, over: true });
            }
            place.position = at + frame.size();
            place.link = frame.check;
            bytes += frame.size();
        }
        *place = Place::at(segments, place.segment + 1);
    }
    Ok(WalkedOver { bytes, over: true })
}
