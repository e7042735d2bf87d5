//! The segment that compaction writes: under another name until it is whole and synced.

use std::{
    fs::File,
    path::{Path, PathBuf},
};

use rimstone_record::{BatchHeader, HEADER_LENGTH};
use rimstone_types::{Offset, Timestamp};

use super::CompactionError;
use crate::{
    error::FileError,
    files,
    frame::{FrameWriter, LogPosition, SEGMENT_HEADER_LENGTH, SegmentHeader},
    segment::{IndexBuilder, Segment},
};

/// What is gathered before it is written: large pieces, as the flusher writes them.
const PIECE: usize = 256 << 10;

/// A segment file that is being written. Dropped before it is installed, it is removed.
#[derive(Debug)]
pub(crate) struct Output {
    file: File,
    path: PathBuf,
    target: PathBuf,
    header: SegmentHeader,
    /// What every frame claims as durable: the end of the range, which was durable before it was compacted.
    claim: LogPosition,
    frames: FrameWriter,
    index: IndexBuilder,
    buffer: Vec<u8>,
    /// Bytes that are in the file.
    written: u64,
    /// Bytes that are on disk.
    settled: u64,
    installed: bool,
}

impl Output {
    /// A new file beside the segment that it will stand for.
    pub(crate) fn create(
        directory: &Path,
        header: SegmentHeader,
        range_end: Offset,
        index_interval: u64,
    ) -> Result<Self, FileError> {
        let target = files::offset_path(directory, header.base, files::SEGMENT_SUFFIX);
        let mut name = target.file_name().unwrap_or_default().to_owned();
        name.push(".");
        name.push(files::TEMPORARY_SUFFIX);
        let path = target.with_file_name(name);
        let file = files::create(&path).map_err(|error| FileError::new("create", &path, error))?;
        let position = SEGMENT_HEADER_LENGTH as u64;
        Ok(Self {
            file,
            path,
            target,
            claim: LogPosition { segment: range_end, position, offset: range_end },
            frames: FrameWriter { salt: header.salt, position, previous_check: header.check() },
            index: IndexBuilder::new(header.base, index_interval),
            buffer: header.encode().to_vec(),
            written: 0,
            settled: 0,
            header,
            installed: false,
        })
    }

    /// Adds a batch, its offsets stamped. Its tombstones may go at `horizon`.
    pub(crate) fn add(
        &mut self,
        batch: &[u8],
        header: &BatchHeader,
        append_time: Timestamp,
        horizon: Option<Timestamp>,
    ) -> Result<(), FileError> {
        let stamped = batch.first_chunk::<HEADER_LENGTH>().expect("a batch has a whole header");
        let at = self.frames.position;
        let entry = self.index.entry(at, header.base_offset, append_time);
        self.index.entries.extend(entry);
        let frame = self.frames.batch(batch.len() as u32, stamped, append_time, self.claim);
        let totals = &mut self.index.totals;
        totals.add(header, header.next_offset(), append_time);
        totals.delete_horizon = totals.delete_horizon.into_iter().chain(horizon).min();
        self.buffer.extend_from_slice(&frame);
        self.buffer.extend_from_slice(batch);
        if self.buffer.len() >= PIECE { self.flush() } else { Ok(()) }
    }

    /// The offset behind what was added.
    pub(crate) fn next_offset(&self) -> Offset {
        self.index.totals.next_offset
    }

    /// Bytes written, or gathered.
    pub(crate) fn bytes(&self) -> u64 {
        self.written + self.buffer.len() as u64
    }

    fn flush(&mut self) -> Result<(), FileError> {
        files::write_at(&self.file, &self.buffer, self.written)
            .map_err(|error| FileError::new("write", &self.path, error))?;
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    /// Puts what was added so far on disk, so that a sync of everything does not wait for it.
    pub(crate) fn settle(&mut self) -> Result<(), FileError> {
        self.flush()?;
        if self.settled < self.written {
            files::sync_data(&self.file).map_err(|error| FileError::new("sync", &self.path, error))?;
            self.settled = self.written;
        }
        Ok(())
    }

    /// Ends the segment, and puts all of it on disk.
    pub(crate) fn finish(&mut self) -> Result<(), FileError> {
        let seal = self.frames.seal(&self.index.totals, self.claim);
        self.buffer.extend_from_slice(&seal);
        self.flush()?;
        files::sync_all(&self.file).map_err(|error| FileError::new("sync", &self.path, error))
    }

    /// Gives the finished file its name, durably, in place of what has it, and answers the segment with the check
    /// of its last frame.
    pub(crate) fn install(mut self) -> Result<(Segment, u32), CompactionError> {
        // Opened before: only a sync that fails leaves it unknown whether the name is durable.
        let directory = self.target.parent().unwrap_or(Path::new("."));
        let names = files::open_read(directory)?;
        files::rename(&self.path, &self.target)
            .map_err(|error| FileError::new("rename", &self.path, error))?;
        self.installed = true;
        files::sync_names(&names)
            .map_err(|error| CompactionError::Unknown(FileError::new("sync directory", directory, error)))?;
        let entries = std::mem::take(&mut self.index.entries);
        let segment = Segment::compacted(
            self.target.clone(),
            self.header,
            self.frames.position,
            entries,
            self.index.totals,
        );
        Ok((segment, self.frames.previous_check))
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if !self.installed
            && let Err(error) = files::remove_file(&self.path)
        {
            tracing::warn!(%error, "an unfinished segment of a compaction was not removed; the next start does");
        }
    }
}
