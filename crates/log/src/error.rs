//! What can go wrong in a log.

use std::{io, path::Path};

use rimstone_types::Offset;
use rustix::io::Errno;

use crate::producers::Refusal;

/// What says that these bytes cannot be read, and no more. A read through the page cache is told `EIO` whatever the
/// device said; a direct one is told that (the kernel's `blk_errors`): a medium error, a wrong protection tag, a target that
/// failed. `EBADMSG` is a check of the file system.
const UNREADABLE: [Errno; 5] = [Errno::IO, Errno::NODATA, Errno::ILSEQ, Errno::REMOTEIO, Errno::BADMSG];

/// An operation on a file failed.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {path}: {source}")]
pub struct FileError {
    /// What was tried.
    pub operation: &'static str,
    /// On which file.
    pub path: String,
    /// What the system said.
    pub source: io::Error,
}

impl FileError {
    pub(crate) fn new(operation: &'static str, path: &Path, source: io::Error) -> Self {
        Self { operation, path: path.display().to_string(), source }
    }

    /// The file is not there.
    pub fn is_missing(&self) -> bool {
        self.source.kind() == io::ErrorKind::NotFound
    }

    /// The disk could not read it.
    pub(crate) fn is_unreadable(&self) -> bool {
        self.source
            .raw_os_error()
            .is_some_and(|code| UNREADABLE.iter().any(|errno| errno.raw_os_error() == code))
    }

    /// The disk could not read it, or it is larger than any that was ever written: what it held is gone.
    pub(crate) fn is_lost(&self) -> bool {
        self.is_unreadable() || self.source.kind() == io::ErrorKind::InvalidData
    }

    /// No space, or no quota, is left.
    pub fn is_full(&self) -> bool {
        matches!(self.source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
    }
}

/// Why a partition's directory cannot be opened or made.
#[derive(Debug, thiserror::Error)]
pub enum OpenLogError {
    /// It is not there.
    #[error("{0} is not there")]
    Missing(String),
    /// It is there already.
    #[error("{0} is there already")]
    Exists(String),
    /// What is there cannot be used.
    #[error("{path}: {reason}")]
    Unusable {
        /// Which file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// An operation on a file failed.
    #[error(transparent)]
    File(#[from] FileError),
}

/// Why a batch was not staged. `depends_on` is the offset below which everything must be durable before the
/// refusal may be told: it cites state that is based on it.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// The producer's numbering refuses it.
    #[error(transparent)]
    Producer(Refusal),
    /// `expected_end` was not met.
    #[error("expected the end {expected}, it is {actual}")]
    ExpectedEndNotMet {
        /// What was expected.
        expected: Offset,
        /// What it is.
        actual: Offset,
    },
    /// No more offsets.
    #[error("the partition has no offsets left")]
    OffsetsExhausted,
}

/// Why a read failed.
#[derive(Debug, thiserror::Error)]
pub enum LogReadError {
    /// Outside the log.
    #[error("offset {offset} is outside {start}..={end}")]
    OutOfRange {
        /// What was asked for.
        offset: Offset,
        /// Log start.
        start: Offset,
        /// The visible end.
        end: Offset,
    },
    /// Acknowledged bytes are damaged.
    #[error("offsets {from} to {until} are damaged: {reason}")]
    Damaged {
        /// The first damaged offset.
        from: Offset,
        /// The first offset after the damage.
        until: Offset,
        /// What was found, with file and position.
        reason: String,
    },
    /// The bytes are not in memory, and the caller asked not to wait for the disk.
    #[error("the bytes are not in memory")]
    NotResident,
    /// An operation on a file failed.
    #[error(transparent)]
    File(#[from] FileError),
}
