//! Frames gathered in memory and not yet written, and writing them.
//!
//! A plan is taken under the partition's lock, executed outside it, and its outcome is told to the log under
//! the lock again. Nothing of it is visible to anybody before that.

use std::{fs::File, path::PathBuf, sync::Arc};

use bytes::{Bytes, BytesMut};
use rimstone_record::Batch;
use rimstone_types::{Offset, ProducerId, Timestamp};

use crate::{
    checkpoint::Checkpoint,
    error::FileError,
    files,
    frame::{FrameWriter, LogPosition, SEGMENT_HEADER_LENGTH, Totals},
    index::IndexEntry,
    producers::Undo,
    segment::{IndexBuilder, Segment},
    snapshot::{self, KeptSnapshots},
};

/// Batches of at least this many bytes are written from where they are; smaller ones are copied together, so
/// that one system call has fewer and larger pieces.
const COPY_BELOW: usize = 16 << 10;

/// Where the log goes on: the state behind the last frame staged (or written, or recovered).
#[derive(Debug, Clone)]
pub(crate) struct Head {
    pub(crate) segment: Arc<Segment>,
    pub(crate) frames: FrameWriter,
    pub(crate) index: IndexBuilder,
    /// Of the partition, not of the segment.
    pub(crate) last_append: Timestamp,
    /// The segment takes no more batches: it was written by a run that did not stop cleanly.
    pub(crate) must_roll: bool,
}

impl Head {
    pub(crate) fn next_offset(&self) -> Offset {
        self.index.totals.next_offset
    }

    pub(crate) fn position(&self) -> LogPosition {
        LogPosition { segment: self.segment.base, position: self.frames.position, offset: self.next_offset() }
    }
}

/// What is to be written to one segment.
#[derive(Debug)]
pub(crate) struct Step {
    pub(crate) segment: Arc<Segment>,
    /// The file is made, and its header written.
    pub(crate) create: bool,
    /// The file, once it was opened, or made, for writing. Without it there is nothing to undo: what stood in its
    /// place before is not ours to remove.
    file: Option<Arc<File>>,
    /// Where the file ends before.
    pub(crate) position: u64,
    chunks: Vec<Bytes>,
    tail: BytesMut,
    pub(crate) entries: Vec<IndexEntry>,
    /// The segment's end and totals after.
    pub(crate) end: u64,
    pub(crate) totals: Totals,
    /// It ends with a seal, whose check this is.
    pub(crate) sealed: Option<u32>,
    /// Its directory, where it is made: to unmake it durably.
    names: Option<File>,
}

impl Step {
    pub(crate) fn new(head: &Head, create: bool) -> Self {
        let mut tail = BytesMut::new();
        if create {
            tail.extend_from_slice(&head.segment.header.encode());
        }
        let position = if create { 0 } else { head.frames.position };
        let totals = head.index.totals;
        Self {
            segment: Arc::clone(&head.segment),
            create,
            file: None,
            position,
            chunks: Vec::new(),
            tail,
            names: None,
            entries: Vec::new(),
            end: head.frames.position,
            totals,
            sealed: None,
        }
    }

    /// Adds a batch behind the head, which moves on.
    pub(crate) fn add_batch(
        &mut self,
        head: &mut Head,
        batch: &Batch,
        base: Offset,
        append_time: Timestamp,
        durable: LogPosition,
    ) {
        let header = batch.stamped_header(base, 0);
        let at = head.frames.position;
        self.entries.extend(head.index.entry(at, base, append_time));
        let frame = head.frames.batch(batch.bytes().len() as u32, &header, append_time, durable);
        self.tail.extend_from_slice(&frame);
        self.tail.extend_from_slice(&header);
        let body = batch.body();
        if body.len() < COPY_BELOW {
            self.tail.extend_from_slice(&body);
        } else {
            self.chunks.push(self.tail.split().freeze());
            self.chunks.push(body);
        }
        let next = base.saturating_add(u64::from(batch.header().last_offset_delta) + 1);
        head.index.totals.add(batch.header(), next, append_time);
        head.last_append = append_time;
        self.end = head.frames.position;
        self.totals = head.index.totals;
    }

    /// Ends the segment.
    pub(crate) fn seal(&mut self, head: &mut Head, durable: LogPosition) {
        let seal = head.frames.seal(&head.index.totals, durable);
        self.tail.extend_from_slice(&seal);
        self.end = head.frames.position;
        self.sealed = Some(head.frames.previous_check);
    }

    fn write(&mut self) -> Result<(), FileError> {
        if !self.tail.is_empty() {
            self.chunks.push(self.tail.split().freeze());
        }
        let path = self.segment.path();
        let file = if self.create {
            // Before anything is made: without a descriptor to be had, it could not be unmade durably.
            if let Some(directory) = path.parent() {
                let names = File::open(directory);
                self.names = Some(names.map_err(|error| FileError::new("open directory", directory, error))?);
            }
            let file =
                Arc::new(files::create_new(path).map_err(|error| FileError::new("create", path, error))?);
            self.segment.set_writer(Arc::clone(&file));
            file
        } else {
            self.segment.writer()?
        };
        self.file = Some(Arc::clone(&file));
        files::write_chunks_at(&file, self.position, &self.chunks)
            .map_err(|error| FileError::new("write", path, error))
    }

    /// Puts the file back as it was, durably: it is told that nothing of this is stored, so that no power cut may bring
    /// it back.
    fn undo(&self) -> Result<(), UndoFailure> {
        let Some(file) = &self.file else { return Ok(()) };
        let path = self.segment.path();
        if self.create {
            self.segment.release_writer();
            files::remove_file(path).map_err(UndoFailure::call)?;
            let Some(names) = &self.names else { return Ok(()) };
            return files::sync_names(names)
                .map_err(|error| UndoFailure::sync(FileError::new("sync directory of", path, error)));
        }
        files::truncate(file, self.position)
            .map_err(|error| UndoFailure::call(FileError::new("truncate", path, error)))?;
        files::sync_data(file).map_err(|error| UndoFailure::sync(FileError::new("sync", path, error)))
    }
}

/// A producer snapshot that goes with a plan: it is written when the frames before it are.
#[derive(Debug)]
pub(crate) struct Snapshot {
    pub(crate) offset: Offset,
    pub(crate) path: PathBuf,
    pub(crate) content: Vec<u8>,
    /// Something waits for it to be durable.
    pub(crate) durable: bool,
}

/// Everything staged since the last plan.
#[derive(Debug, Default)]
pub(crate) struct Staged {
    pub(crate) steps: Vec<Step>,
    pub(crate) undos: Vec<(ProducerId, Undo)>,
    pub(crate) snapshots: Vec<Snapshot>,
    pub(crate) bytes: u64,
}

/// What is to be written, all of it or nothing.
#[derive(Debug)]
pub struct WritePlan {
    pub(crate) staged: Staged,
    pub(crate) head: Head,
    /// As of the head, if one is due.
    pub(crate) checkpoint: Option<Checkpoint>,
}

/// A write that failed.
#[derive(Debug, thiserror::Error)]
#[error("{cause}")]
pub struct WriteFailure {
    /// What failed.
    pub cause: FileError,
    /// The files are as they were before, durably. If not, nobody knows what they hold, and the partition is poisoned.
    pub undone: Result<(), UndoFailure>,
}

/// Files could not be put back.
#[derive(Debug, thiserror::Error)]
#[error("{cause}")]
pub struct UndoFailure {
    /// What failed.
    pub cause: FileError,
    /// It was a sync: everything on the device that is not durable is in doubt.
    pub in_sync: bool,
}

impl UndoFailure {
    fn call(cause: FileError) -> Self {
        Self { cause, in_sync: false }
    }

    fn sync(cause: FileError) -> Self {
        Self { cause, in_sync: true }
    }
}

impl WritePlan {
    /// Bytes to write.
    pub fn bytes(&self) -> u64 {
        self.staged.bytes
    }

    /// Whether a new name appears in the directory.
    pub fn creates(&self) -> bool {
        self.staged.steps.iter().any(|step| step.create)
    }

    /// Writes everything, or undoes what it wrote.
    ///
    /// # Errors
    /// [`WriteFailure`]; it says whether the files are as before.
    pub fn execute(&mut self) -> Result<(), WriteFailure> {
        for number in 0..self.staged.steps.len() {
            if let Err(cause) = self.staged.steps[number].write() {
                let undone = self.staged.steps[..=number].iter().rev().try_for_each(Step::undo);
                return Err(WriteFailure { cause, undone });
            }
        }
        Ok(())
    }

    /// The descriptors that the plan wrote through: to be kept open until a sync has covered them, and to be
    /// synced one by one where there is no sync for all.
    pub fn files(&self) -> Vec<Arc<File>> {
        self.staged.steps.iter().filter_map(|step| step.file.clone()).collect()
    }
}

/// Slow work that follows a plan, outside the lock: index files of sealed segments, producer snapshots.
#[derive(Debug, Default)]
pub struct AfterWrite {
    pub(crate) sealed: Vec<(Arc<Segment>, u32)>,
    pub(crate) snapshots: Vec<Snapshot>,
    pub(crate) directory: PathBuf,
    pub(crate) kept: KeptSnapshots,
    /// To be taken out before this is executed, and kept once a sync has covered the plan.
    pub checkpoint: Option<Checkpoint>,
}

impl AfterWrite {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.sealed.is_empty() && self.snapshots.is_empty()
    }

    /// Writes the caches. They are not needed for correctness but where a snapshot must be durable; that one is
    /// told about with [`Log::snapshots_written`](crate::Log::snapshots_written).
    pub fn execute(self) -> SnapshotsWritten {
        let mut written = SnapshotsWritten { durable: None, failure: None };
        for (segment, check) in &self.sealed {
            segment.finish(*check);
        }
        if self.snapshots.is_empty() {
            return written;
        }
        for snapshot in &self.snapshots {
            let taken = self.kept.keeps(snapshot.offset) || written.durable == Some(snapshot.offset);
            if taken && !snapshot.durable {
                // What is there says the same, and something rests on it.
                continue;
            }
            match files::replace_file(&snapshot.path, &snapshot.content, snapshot.durable) {
                Err(error) if snapshot.durable => {
                    written.failure.get_or_insert(error);
                }
                Err(error) => tracing::warn!(%error, "a producer snapshot was not written"),
                Ok(()) if snapshot.durable => written.durable = Some(snapshot.offset),
                Ok(()) => {}
            }
        }
        snapshot::remove_old(&self.directory, self.kept);
        written
    }
}

/// What became of the snapshots that something waits for.
#[derive(Debug)]
#[must_use = "a snapshot counts only once the log knows that it was written"]
pub struct SnapshotsWritten {
    /// The newest one that is written and synced.
    pub(crate) durable: Option<Offset>,
    /// Why one was not. The log itself is whole: only what waits for the snapshot cannot go on.
    pub failure: Option<FileError>,
}

/// Room that every map has beyond `segment.bytes`, for the last batch: batches are smaller than this.
pub(crate) const MAP_SLACK: u64 = 64 << 20;

/// The address range of a segment that is written to.
pub(crate) fn capacity(segment_bytes: u64) -> u64 {
    segment_bytes.saturating_add(MAP_SLACK).max(SEGMENT_HEADER_LENGTH as u64)
}
