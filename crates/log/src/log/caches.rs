//! What makes the next start quick: taken from the log under its lock, written outside it.
//!
//! Not here: checkpoints, which are for a start after a kill (`checkpoint`).

use std::{path::PathBuf, sync::Arc};

use super::Log;
use crate::{
    error::FileError,
    files,
    segment::{KnownIndex, Segment},
    snapshot::{self, KeptSnapshots},
    staging::Snapshot,
};

/// The caches of a log as of one moment.
#[derive(Debug)]
#[must_use = "they are still to be written"]
pub struct Caches {
    segment: Arc<Segment>,
    index: Option<KnownIndex>,
    snapshot: Snapshot,
    directory: PathBuf,
    kept: KeptSnapshots,
}

impl Log {
    /// The caches that make the next start quick. Only when nothing is dirty; and nothing may be staged until they are
    /// written, for a snapshot that something rests on has the same name perhaps.
    pub fn caches(&self) -> Caches {
        let Self { head, directory, .. } = self;
        let kept = self.kept_snapshots();
        let offset = head.next_offset();
        let snapshot = Snapshot {
            offset,
            path: files::offset_path(directory, offset, files::PRODUCERS_SUFFIX),
            content: snapshot::encode(offset, &self.producers),
            durable: kept.keeps(offset),
        };
        Caches {
            segment: Arc::clone(&head.segment),
            index: head.segment.known_index(head.frames.previous_check),
            snapshot,
            directory: directory.clone(),
            kept,
        }
    }
}

impl Caches {
    /// Writes them.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn write(self) -> Result<(), FileError> {
        let Self { segment, index, snapshot, directory, kept } = self;
        if let Some(index) = index {
            segment.write_index(index);
        }
        files::replace_file(&snapshot.path, &snapshot.content, snapshot.durable)?;
        snapshot::remove_old(&directory, kept);
        Ok(())
    }
}
