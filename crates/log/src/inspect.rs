//! Looking at the files of a data directory without a server: what `rimstone inspect` prints.
//!
//! Not here: changing anything. Nothing is opened for writing.

use std::path::{Path, PathBuf};

use rimstone_record::{Batch, BatchHeader, Limits};
use rimstone_types::{Offset, PartitionId, Timestamp};
use uuid::Uuid;

pub use crate::{
    damage::accepted_losses,
    directory::{DirectoryError, list_partitions, partition_path, read_server_id},
    frame::LogPosition,
    snapshot::read_log_start,
    witness::read_witness,
};
use crate::{
    directory,
    error::{FileError, OpenLogError},
    files,
    frame::{Content, SEGMENT_HEADER_LENGTH, SegmentHeader, Totals},
    index::{IndexEntry, IndexFile, IndexHeader},
    producers::{self, ProducerTable},
    reader::STORED,
    segment::{Cold, SCAN_WINDOW, Segment},
    snapshot,
    walk::{Step, Walker},
};

/// A segment file as it lies there.
#[derive(Debug)]
pub struct SegmentView {
    segment: Segment,
    /// Its header; meaningless if `broken` is set.
    pub header: SegmentHeader,
    /// Its length in bytes.
    pub length: u64,
    /// What makes it unreadable as a whole.
    pub broken: Option<String>,
}

/// One thing in a segment file.
#[derive(Debug)]
pub enum Item {
    /// A frame with a batch.
    Batch {
        /// Where the frame begins.
        position: u64,
        /// Bytes of the frame.
        size: u64,
        /// When it was taken.
        append_time: Timestamp,
        /// The durable end that it claims.
        durable: LogPosition,
        /// The batch's header.
        header: BatchHeader,
        /// The batch, or what is wrong with its body.
        batch: Result<Batch, String>,
        /// The frame names the check of the frame before it.
        linked: bool,
    },
    /// The seal.
    Seal {
        /// Where the frame begins.
        position: u64,
        /// What it says.
        totals: Totals,
        /// The durable end that it claims.
        durable: LogPosition,
        /// It says what is there.
        agrees: bool,
    },
    /// Bytes that are no valid frame, up to the next one or the end.
    Invalid {
        /// Where they begin.
        position: u64,
        /// How many.
        bytes: u64,
        /// What is wrong with the first of them.
        reason: String,
    },
}

/// Where the first frame of a segment lies.
pub const FIRST_FRAME: u64 = SEGMENT_HEADER_LENGTH as u64;

/// The bounds under which stored batches are decoded.
pub const LIMITS: Limits = STORED;

impl SegmentView {
    /// Opens a segment file.
    ///
    /// # Errors
    /// [`OpenLogError`].
    pub fn open(directory: &Path, base: Offset) -> Result<Self, OpenLogError> {
        let segment = Segment::open(directory, base)?;
        Ok(Self { header: segment.header, length: segment.end(), broken: segment.broken.clone(), segment })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        self.segment.path()
    }

    /// Shows everything in the file, in order.
    ///
    /// # Errors
    /// [`FileError`] where the file cannot be read.
    pub fn each(&self, mut show: impl FnMut(Item)) -> Result<(), FileError> {
        if self.broken.is_some() {
            return Ok(());
        }
        let start = SEGMENT_HEADER_LENGTH as u64;
        let mut walker = Walker::new(Cold(&self.segment), self.header.salt, start, self.length, SCAN_WINDOW);
        let mut previous = self.header.check();
        let mut totals = Totals::empty(self.header.base);
        loop {
            match walker.step().map_err(file_error)? {
                Step::Frame(position, frame) => {
                    let linked = frame.previous_check == previous;
                    previous = frame.check;
                    match frame.content {
                        Content::Batch(header) => {
                            let payload = walker.payload(position, &frame).map_err(file_error)?;
                            totals.add(&header, header.next_offset(), frame.append_time);
                            show(Item::Batch {
                                position,
                                size: frame.size(),
                                append_time: frame.append_time,
                                durable: frame.durable,
                                header,
                                batch: Batch::verify(payload, &STORED).map_err(|error| error.to_string()),
                                linked,
                            });
                        }
                        Content::Seal(sealed) => {
                            let counted = Totals { delete_horizon: sealed.delete_horizon, ..totals };
                            let (durable, agrees) = (frame.durable, linked && sealed == counted);
                            show(Item::Seal { position, totals: sealed, durable, agrees });
                        }
                    }
                }
                Step::Invalid(position, error) => {
                    let more = walker.resync().map_err(file_error)?;
                    let until = if more { walker.position() } else { self.length };
                    show(Item::Invalid { position, bytes: until - position, reason: error.to_string() });
                    if !more {
                        return Ok(());
                    }
                }
                Step::End => return Ok(()),
            }
        }
    }
}

fn file_error(error: crate::error::LogReadError) -> FileError {
    match error {
        crate::error::LogReadError::File(error) => error,
        other => FileError::new("read", Path::new(""), std::io::Error::other(other.to_string())),
    }
}

/// The base offsets of the segments of a partition: of those that count.
///
/// # Errors
/// [`FileError`].
pub fn segments(directory: &Path) -> Result<Vec<Offset>, FileError> {
    Ok(all_segments(directory)?.0)
}

/// The base offsets of segment files that do not count, for another segment stands for their offsets: the next start
/// removes what a crash has left of a compaction, and sets anything else aside.
///
/// # Errors
/// [`FileError`].
pub fn superseded(directory: &Path) -> Result<Vec<Offset>, FileError> {
    Ok(all_segments(directory)?.1)
}

fn all_segments(directory: &Path) -> Result<(Vec<Offset>, Vec<Offset>), FileError> {
    let mut covered = Offset::ZERO;
    let (mut live, mut superseded) = (Vec::new(), Vec::new());
    for base in files::list_offsets(directory, files::SEGMENT_SUFFIX)? {
        if base < covered {
            superseded.push(base);
            continue;
        }
        live.push(base);
        let path = files::offset_path(directory, base, files::SEGMENT_SUFFIX);
        let mut bytes = [0; SEGMENT_HEADER_LENGTH];
        let read = files::read_at(&files::open_read(&path)?, &path, &mut bytes, 0)?;
        if let Ok(SegmentHeader { range_end: Some(end), .. }) = SegmentHeader::decode(&bytes[..read]) {
            covered = end;
        }
    }
    Ok((live, superseded))
}

/// An index file: its head and entries, or `None` if it is missing or damaged.
///
/// # Errors
/// [`FileError`].
pub fn index(directory: &Path, base: Offset) -> Result<Option<(IndexHeader, Vec<IndexEntry>)>, FileError> {
    let path = files::offset_path(directory, base, files::INDEX_SUFFIX);
    let Some(file) = IndexFile::open(&path)? else { return Ok(None) };
    Ok(file.entries(&path)?.map(|entries| (file.header, entries)))
}

/// The offsets of the producer snapshots in a partition's directory.
///
/// # Errors
/// [`FileError`].
pub fn snapshots(directory: &Path) -> Result<Vec<Offset>, FileError> {
    files::list_offsets(directory, files::PRODUCERS_SUFFIX)
}

/// A producer snapshot, or what is wrong with it.
///
/// # Errors
/// [`FileError`].
pub fn producer_snapshot(
    directory: &Path,
    offset: Offset,
) -> Result<Result<ProducerTable, String>, FileError> {
    let path = files::offset_path(directory, offset, files::PRODUCERS_SUFFIX);
    let Some(bytes) = files::read_small(&path, 1 << 30)? else { return Ok(Err("it is missing".to_owned())) };
    Ok(snapshot::decode(&bytes, &producers::Limits::default()).map(|(_, table)| table))
}

/// Files that starts have set aside in a partition's directory, with their bytes.
///
/// # Errors
/// [`FileError`].
pub fn set_aside(directory: &Path) -> Result<Vec<(PathBuf, u64)>, FileError> {
    let entries = std::fs::read_dir(directory).map_err(|error| FileError::new("list", directory, error))?;
    Ok(entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.file_name().and_then(|name| name.to_str()).is_some_and(files::is_set_aside))
        .map(|path| (path.clone(), path.metadata().map_or(0, |metadata| metadata.len())))
        .collect())
}

/// What a data directory is, and which partitions lie in it.
///
/// # Errors
/// [`DirectoryError`].
pub fn data_directory(path: &Path) -> Result<(Uuid, Vec<PartitionId>), DirectoryError> {
    Ok((directory::read_server_id(path)?, directory::list_partitions(path)?))
}
