//! The log of one partition: ordered segments, one writer. It decides under the lock and returns the slow work
//! (write this, unlink those) to be done outside it.
//!
//! Not here: syncing, tickets, waiting (`rimstone-store`); reading (`reader`).

mod caches;
mod trim;

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use arc_swap::ArcSwap;
use rimstone_record::Batch;
use rimstone_types::{Offset, PartitionId, ProducerId, Timestamp};

pub use self::{caches::Caches, trim::Trimmed};
use crate::{
    checkpoint::{self, Checkpoint},
    config::LogConfig,
    error::{FileError, StageError},
    files,
    frame::{
        FRAME_HEADER_LENGTH, FrameWriter, LogPosition, SEAL_FRAME_LENGTH, SEGMENT_HEADER_LENGTH,
        SegmentHeader,
    },
    planted::{self, Bug},
    producers::{Claim, ProducerTable, Verdict},
    reader::LogReader,
    segment::{IndexBuilder, Segment},
    snapshot::{self, KeptSnapshots},
    staging::{
        AfterWrite, Head, Snapshot, SnapshotsWritten, Staged, Step, WriteFailure, WritePlan, capacity,
    },
};

/// What the writer and all readers share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) id: PartitionId,
    pub(crate) segments: ArcSwap<Vec<Arc<Segment>>>,
    /// Goes up when compaction has put other segments in the place of some, after that.
    pub(crate) generation: AtomicU64,
    pub(crate) start: AtomicU64,
    pub(crate) durable: AtomicU64,
    pub(crate) written: AtomicU64,
}

/// What became of a batch that was offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offered {
    /// It is staged, and has its offsets.
    Staged {
        /// The first offset.
        base: Offset,
        /// The last offset.
        last: Offset,
        /// Its append time.
        append_time: Timestamp,
    },
    /// It is stored, or staged, already.
    Duplicate {
        /// Its offsets, if they are still known.
        offsets: Option<(Offset, Offset)>,
        /// Its append time.
        append_time: Timestamp,
        /// The original must be durable up to here before this is told.
        depends_on: Offset,
    },
}

/// The log of one partition.
#[derive(Debug)]
pub struct Log {
    pub(crate) shared: Arc<Shared>,
    directory: PathBuf,
    config: LogConfig,
    head: Head,
    written: Head,
    staged: Staged,
    durable: LogPosition,
    /// A plan was taken and its outcome is not known yet.
    plan_is_out: bool,
    producers: ProducerTable,
    /// The snapshot that deleted records rest on.
    durable_snapshot: Option<Offset>,
    /// The newest that was there when the log was opened, until another one is durable.
    found_snapshot: Option<Offset>,
    /// One that is written and synced, and counts once the log below it is durable too.
    pending_snapshot: Option<Offset>,
    /// The segment and the position of the last checkpoint, and its size.
    checkpointed: (Offset, u64, u64),
}

/// What recovery, or a clean start, found.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) segments: Vec<Arc<Segment>>,
    pub(crate) head: Head,
    pub(crate) start: Offset,
    pub(crate) producers: ProducerTable,
    pub(crate) durable_snapshot: Option<Offset>,
    pub(crate) found_snapshot: Option<Offset>,
}

impl Log {
    /// Makes a new partition in a directory that exists and is empty, with its first segment. The caller
    /// syncs the file and the directory.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn create(
        directory: &Path,
        id: PartitionId,
        config: LogConfig,
        now: Timestamp,
    ) -> Result<Self, FileError> {
        let (segment, frames) = new_segment(directory, id, Offset::ZERO, &config, now);
        let path = segment.path().to_owned();
        let segment = Arc::new(segment);
        let write = || -> std::io::Result<()> {
            let file = files::create_new(&path)?;
            files::write_at(&file, &segment.header.encode(), 0)?;
            files::sync_all(&file)
        };
        write().map_err(|error| FileError::new("create", &path, error))?;
        files::sync_directory(directory)?;
        let head = Head {
            frames,
            index: IndexBuilder::new(Offset::ZERO, config.index_interval_bytes),
            last_append: Timestamp::MIN,
            must_roll: false,
            segment,
        };
        let producers = ProducerTable::new(config.producers.clone());
        let segments = vec![Arc::clone(&head.segment)];
        let found = Found {
            segments,
            head,
            start: Offset::ZERO,
            producers,
            durable_snapshot: None,
            found_snapshot: None,
        };
        Ok(Self::assemble(directory, id, config, found))
    }

    pub(crate) fn assemble(directory: &Path, id: PartitionId, config: LogConfig, found: Found) -> Self {
        let end = found.head.next_offset().get();
        let shared = Shared {
            id,
            segments: ArcSwap::from_pointee(found.segments),
            generation: AtomicU64::new(0),
            start: AtomicU64::new(found.start.get()),
            durable: AtomicU64::new(end),
            written: AtomicU64::new(end),
        };
        Self {
            shared: Arc::new(shared),
            directory: directory.to_owned(),
            config,
            written: found.head.clone(),
            durable: found.head.position(),
            head: found.head,
            staged: Staged::default(),
            plan_is_out: false,
            producers: found.producers,
            durable_snapshot: found.durable_snapshot,
            found_snapshot: found.found_snapshot,
            pending_snapshot: None,
            checkpointed: (Offset::ZERO, 0, 0),
        }
    }

    /// The next checkpoint is due as long after this one as ever.
    pub(crate) fn resume_checkpoints(&mut self, last: &Checkpoint) {
        self.checkpointed = (last.at.segment, last.at.position, last.size());
    }

    /// A checkpoint of everything staged, if the segment has grown so much since the last one.
    fn checkpoint_if_due(&mut self) -> Option<Checkpoint> {
        let at = self.head.position();
        let (segment, position, size) = self.checkpointed;
        let last = if segment == at.segment { position } else { 0 };
        if at.position.saturating_sub(last) < checkpoint::interval(at.position, size) {
            return None;
        }
        let Head { frames, index, .. } = &self.head;
        let made = Checkpoint::new(at, frames.salt, frames.previous_check, index.totals, &self.producers);
        self.checkpointed = (at.segment, at.position, made.size());
        Some(made)
    }

    /// Readers of this log.
    pub fn reader(&self) -> LogReader {
        LogReader::new(Arc::clone(&self.shared))
    }

    /// The offset behind everything staged.
    pub fn staged_end(&self) -> Offset {
        self.head.next_offset()
    }

    /// The position behind everything written: what a sync that begins now makes durable.
    pub fn written_position(&self) -> LogPosition {
        self.written.position()
    }

    /// The durable end.
    pub fn durable_position(&self) -> LogPosition {
        self.durable
    }

    /// Bytes staged and not yet taken by a plan.
    pub fn staged_bytes(&self) -> u64 {
        self.staged.bytes
    }

    /// Whether anything is staged, being written, or written and not durable.
    pub fn is_dirty(&self) -> bool {
        self.plan_is_out || self.has_staged() || self.durable != self.written.position()
    }

    /// Whether there is anything for a plan.
    pub fn has_staged(&self) -> bool {
        !self.staged.steps.is_empty() || !self.staged.snapshots.is_empty()
    }

    /// The producers.
    pub fn producers(&self) -> &ProducerTable {
        &self.producers
    }

    /// The producers, to forget or expire some.
    pub fn producers_mut(&mut self) -> &mut ProducerTable {
        &mut self.producers
    }

    /// Changes the settings; they count from the next roll, look-up or pass on.
    pub fn configure(&mut self, config: LogConfig) {
        self.config = config;
    }

    /// Where it goes on.
    #[cfg(test)]
    pub(crate) fn head(&self) -> &Head {
        &self.head
    }

    /// Its segments.
    #[cfg(test)]
    pub(crate) fn segments(&self) -> Arc<Vec<Arc<Segment>>> {
        self.shared.segments.load_full()
    }

    /// Where it lies.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// The snapshot of the producers that is known to be durable, if one was asked for.
    pub(crate) fn durable_snapshot(&self) -> Option<Offset> {
        self.durable_snapshot
    }

    /// The settings.
    pub fn config(&self) -> &LogConfig {
        &self.config
    }

    /// Looks at a batch's numbering and, if it is new, stages it with its offsets. Nothing is written.
    ///
    /// # Errors
    /// [`StageError`]: nothing is staged. What it cites is durable once everything below
    /// [`Log::staged_end`] is.
    pub fn offer(
        &mut self,
        batch: &Batch,
        claim: Option<&Claim>,
        expected_end: Option<Offset>,
        now: Timestamp,
    ) -> Result<Offered, StageError> {
        if let Some(claim) = claim {
            match self.producers.check(claim, now).map_err(StageError::Producer)? {
                Verdict::Append => {}
                Verdict::Duplicate { offsets, append_time, depends_on } => {
                    return Ok(Offered::Duplicate { offsets, append_time, depends_on });
                }
            }
        }
        let base = self.head.next_offset();
        if let Some(expected) = expected_end
            && expected != base
        {
            return Err(StageError::ExpectedEndNotMet { expected, actual: base });
        }
        let delta = u64::from(batch.header().last_offset_delta);
        let last = base.checked_add(delta).ok_or(StageError::OffsetsExhausted)?;
        last.checked_add(1).ok_or(StageError::OffsetsExhausted)?;
        let append_time = now.max(self.head.last_append);
        let restamped;
        let batch = if self.config.append_time_stamps {
            restamped = batch.with_append_time(append_time);
            &restamped
        } else {
            batch
        };
        let size = FRAME_HEADER_LENGTH as u64 + batch.bytes().len() as u64;
        if self.roll_is_due(size, now) {
            self.stage_roll(now);
        }
        let durable = self.durable;
        let Self { head, staged, .. } = self;
        current_step(staged, head).add_batch(head, batch, base, append_time, durable);
        staged.bytes += size;
        if let Some(claim) = claim {
            let undo = self.producers.apply(claim, base, last, append_time);
            self.staged.undos.push((claim.stamp.id, undo));
        }
        Ok(Offered::Staged { base, last, append_time })
    }

    fn roll_is_due(&self, size: u64, now: Timestamp) -> bool {
        let totals = &self.head.index.totals;
        if totals.frames == 0 {
            // Of a segment that recovery goes on from perhaps nothing can be read.
            return self.head.must_roll && self.head.next_offset() > self.head.segment.base;
        }
        let end = self.head.frames.position + size + SEAL_FRAME_LENGTH as u64;
        self.head.must_roll
            || end > self.config.segment_bytes.min(u64::from(u32::MAX))
            || totals.next_offset.since(self.head.segment.base) > u64::from(u32::MAX / 2)
            || now.millis_since(totals.first_append) >= self.config.segment_age.as_millis() as i64
    }

    /// Whether the active segment is old enough to be rolled, so that retention can have it.
    pub fn is_old(&self, now: Timestamp) -> bool {
        let totals = &self.head.index.totals;
        let age = match self.config.retention_age {
            Some(retention) if self.config.retention => retention.min(self.config.segment_age),
            _ => self.config.segment_age,
        };
        totals.frames > 0 && now.millis_since(totals.first_append) >= age.as_millis() as i64
    }

    /// Stages a seal and a new segment if the active one is old enough.
    pub fn roll_if_old(&mut self, now: Timestamp) -> bool {
        let due = self.is_old(now);
        if due {
            self.stage_roll(now);
        }
        due
    }

    /// The base offset of the segment that is written to.
    pub(crate) fn active_base(&self) -> Offset {
        self.head.segment.base
    }

    /// Stages a seal and a new segment, unless nothing is in the active one.
    pub(crate) fn roll(&mut self, now: Timestamp) {
        if self.head.index.totals.frames > 0 || self.head.frames.position > SEGMENT_HEADER_LENGTH as u64 {
            self.stage_roll(now);
        }
    }

    fn stage_roll(&mut self, now: Timestamp) {
        let durable = self.durable;
        let Self { head, staged, .. } = self;
        current_step(staged, head).seal(head, durable);
        staged.bytes += SEAL_FRAME_LENGTH as u64;
        self.stage_snapshot(false);
        let base = self.head.next_offset();
        let (segment, frames) = new_segment(&self.directory, self.shared.id, base, &self.config, now);
        self.head = Head {
            segment: Arc::new(segment),
            frames,
            index: IndexBuilder::new(base, self.config.index_interval_bytes),
            last_append: self.head.last_append,
            must_roll: false,
        };
        self.staged.steps.push(Step::new(&self.head, true));
        self.staged.bytes += SEGMENT_HEADER_LENGTH as u64;
    }

    /// Stages a snapshot of the producers as of the staged end; it is written when that is.
    pub fn stage_snapshot(&mut self, durable: bool) {
        let offset = self.head.next_offset();
        self.staged.snapshots.push(Snapshot {
            offset,
            path: files::offset_path(&self.directory, offset, files::PRODUCERS_SUFFIX),
            content: snapshot::encode(offset, &self.producers),
            durable,
        });
    }

    /// Takes everything staged, to be written outside the lock. One plan at a time.
    pub fn take_plan(&mut self) -> Option<WritePlan> {
        if self.plan_is_out || !self.has_staged() {
            return None;
        }
        self.plan_is_out = true;
        let checkpoint = self.checkpoint_if_due();
        if planted::is(Bug::PublishBeforeWrite) {
            self.publish_written(self.head.clone());
        }
        Some(WritePlan { staged: std::mem::take(&mut self.staged), head: self.head.clone(), checkpoint })
    }

    /// The plan is in the files: publishes it. What is returned is to be done outside the lock, before the sync.
    pub fn plan_succeeded(&mut self, plan: WritePlan) -> AfterWrite {
        self.plan_is_out = false;
        let mut after = AfterWrite { directory: self.directory.clone(), ..AfterWrite::default() };
        let mut added = Vec::new();
        for step in plan.staged.steps {
            step.segment.publish(step.end, &step.entries, step.totals);
            if step.create {
                added.push(Arc::clone(&step.segment));
            }
            if let Some(check) = step.sealed {
                after.sealed.push((step.segment, check));
            }
        }
        if !added.is_empty() {
            let mut segments = Vec::clone(&self.shared.segments.load());
            segments.extend(added);
            self.shared.segments.store(Arc::new(segments));
        }
        for (id, _) in plan.staged.undos {
            self.producers.settle(id);
        }
        after.snapshots = plan.staged.snapshots;
        after.checkpoint = plan.checkpoint;
        after.kept = self.kept_snapshots();
        self.publish_written(plan.head);
        after
    }

    fn publish_written(&mut self, head: Head) {
        self.written = head;
        self.shared.written.store(self.written.next_offset().get(), Ordering::Release);
    }

    /// What followed the plan is done: a snapshot that is synced counts once the log below it is durable too.
    pub fn snapshots_written(&mut self, written: &SnapshotsWritten) {
        self.pending_snapshot = written.durable.or(self.pending_snapshot);
    }

    /// The plan failed and was undone in the files: everything staged, behind it too, is rolled back, for its
    /// offsets follow from what failed.
    pub fn plan_failed(&mut self, plan: WritePlan, failure: &WriteFailure) {
        debug_assert!(failure.undone.is_ok(), "a plan that could not be undone poisons the partition");
        self.plan_is_out = false;
        let later = std::mem::take(&mut self.staged);
        for (_, undo) in plan.staged.undos.into_iter().chain(later.undos).rev() {
            self.producers.undo(undo);
        }
        self.head = self.written.clone();
    }

    /// A completed sync that began after `position` was the written position covers it.
    pub fn synced(&mut self, position: LogPosition) {
        self.durable = position;
        if self.pending_snapshot.is_some_and(|offset| offset <= position.offset) {
            self.durable_snapshot = self.pending_snapshot.take();
            self.found_snapshot = None;
        }
        self.shared.durable.store(position.offset.get(), Ordering::Release);
    }

    fn kept_snapshots(&self) -> KeptSnapshots {
        KeptSnapshots {
            durable: self.durable_snapshot,
            pending: self.pending_snapshot,
            found: self.found_snapshot,
            durable_end: self.durable.offset,
        }
    }

    /// Gives the active segment's descriptor back. Only when nothing is dirty.
    pub fn release_writer(&self) -> bool {
        self.head.segment.release_writer()
    }

    /// Segments and their bytes.
    pub fn size(&self) -> (u32, u64) {
        let segments = self.shared.segments.load();
        (segments.len() as u32, segments.iter().map(|segment| segment.end()).sum())
    }

    /// Bytes staged or written and not known to be durable: exact within a segment, and all of what lies behind
    /// the durable one's end otherwise.
    pub fn undurable_bytes(&self) -> u64 {
        let written = self.written.position();
        let behind = if written.segment == self.durable.segment {
            written.position.saturating_sub(self.durable.position)
        } else {
            let segments = self.shared.segments.load();
            segments
                .iter()
                .filter(|segment| segment.base >= self.durable.segment)
                .map(|segment| segment.end())
                .sum::<u64>()
                .saturating_sub(self.durable.position)
        };
        behind + self.staged.bytes
    }

    /// The last number of a producer here, as of everything staged.
    pub fn producer(&self, id: ProducerId) -> Option<&crate::producers::Entry> {
        self.producers.get(id)
    }
}

fn current_step<'a>(staged: &'a mut Staged, head: &Head) -> &'a mut Step {
    let fits = staged.steps.last().is_some_and(|step| Arc::ptr_eq(&step.segment, &head.segment));
    if !fits {
        staged.steps.push(Step::new(head, false));
    }
    staged.steps.last_mut().expect("a step was pushed if there was none")
}

pub(crate) fn new_segment(
    directory: &Path,
    id: PartitionId,
    base: Offset,
    config: &LogConfig,
    now: Timestamp,
) -> (Segment, FrameWriter) {
    let header = SegmentHeader {
        partition: id,
        base,
        range_end: None,
        cleaned: None,
        passed_by: 0,
        salt: (config.salts.0)(),
        created: now,
    };
    let frames = FrameWriter {
        salt: header.salt,
        position: SEGMENT_HEADER_LENGTH as u64,
        previous_check: header.check(),
    };
    (Segment::new(directory, header, capacity(config.segment_bytes)), frames)
}
