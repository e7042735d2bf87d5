//! The file around a producer snapshot, and the file that holds the log start.

use std::path::Path;

use rimstone_types::Offset;

use crate::{
    error::FileError,
    files,
    frame::{offset_at, u32_at},
    producers::{Limits, ProducerTable},
};

const MAGIC: [u8; 8] = *b"RIMSTPRD";
const VERSION: u16 = 1;
/// Bytes before the body: magic, version, reserved, body length, offset.
const HEADER_LENGTH: usize = 24;
/// The largest snapshot that is read; far above what the bounds of the table allow.
const SNAPSHOT_BYTES_MAX: u64 = 1 << 30;
const LOG_START_MAGIC: [u8; 8] = *b"RIMSTLST";

/// A snapshot of the producers as of `offset`.
pub(crate) fn encode(offset: Offset, producers: &ProducerTable) -> Vec<u8> {
    let body = producers.encode();
    let mut out = Vec::with_capacity(HEADER_LENGTH + body.len() + 4);
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&VERSION.to_be_bytes());
    out.extend_from_slice(&[0; 2]);
    out.extend_from_slice(&(body.len() as u32).to_be_bytes());
    out.extend_from_slice(&offset.get().to_be_bytes());
    out.extend_from_slice(&body);
    let check = crc32fast::hash(&out);
    out.extend_from_slice(&check.to_be_bytes());
    out
}

/// Reads a snapshot; `Err` says in words what is wrong with it.
pub(crate) fn decode(bytes: &[u8], limits: &Limits) -> Result<(Offset, ProducerTable), String> {
    let body_end = bytes.len().checked_sub(4).filter(|end| *end >= HEADER_LENGTH).ok_or("too short")?;
    if u32_at(bytes, body_end) != crc32fast::hash(&bytes[..body_end]) {
        return Err("its check is wrong".to_owned());
    }
    if bytes[..8] != MAGIC || bytes[8..10] != VERSION.to_be_bytes() {
        return Err(format!("not a producer snapshot of version {VERSION}"));
    }
    if u32_at(bytes, 12) as usize != body_end - HEADER_LENGTH {
        return Err("its length is wrong".to_owned());
    }
    let offset = offset_at(bytes, 16).map_err(|error| error.to_string())?;
    let table = ProducerTable::decode(&bytes[HEADER_LENGTH..body_end], limits.clone())
        .map_err(|error| error.to_string())?;
    Ok((offset, table))
}

/// The newest readable snapshot at or below `at_most`; damaged ones are passed over.
pub(crate) fn newest(
    directory: &Path,
    at_most: Offset,
    limits: &Limits,
) -> Result<Option<(Offset, ProducerTable)>, FileError> {
    for offset in files::list_offsets(directory, files::PRODUCERS_SUFFIX)?.into_iter().rev() {
        if offset > at_most {
            continue;
        }
        let path = files::offset_path(directory, offset, files::PRODUCERS_SUFFIX);
        let bytes = match files::read_small(&path, SNAPSHOT_BYTES_MAX) {
            Err(error) if error.is_lost() => {
                tracing::warn!(%error, "a producer snapshot is not readable");
                continue;
            }
            read => read?,
        };
        let Some(bytes) = bytes else { continue };
        match decode(&bytes, limits) {
            Ok((named, table)) if named == offset => return Ok(Some((offset, table))),
            Ok((named, _)) => {
                tracing::warn!(path = %path.display(), %named, "a producer snapshot names another offset");
            }
            Err(reason) => {
                tracing::warn!(path = %path.display(), reason, "a producer snapshot is not readable")
            }
        }
    }
    Ok(None)
}

/// Snapshots at or below the durable end that are kept beside the one that deleted records rest on: the newest,
/// and one more in case it is damaged.
const RECENT_KEPT: usize = 2;

/// Which snapshots must stay.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct KeptSnapshots {
    /// The one that was made durable before records were deleted: state of theirs is nowhere else. `None`:
    /// nothing was deleted.
    pub(crate) durable: Option<Offset>,
    /// One that is synced and will be that one.
    pub(crate) pending: Option<Offset>,
    /// The newest that was there when the log was opened. Records that were deleted before may rest on any of those up
    /// to it, until another one is durable: after a crash nothing tells on which.
    pub(crate) found: Option<Offset>,
    /// Snapshots above it may be ahead of what a crash leaves, so they do not stand in for those below.
    pub(crate) durable_end: Offset,
}

impl KeptSnapshots {
    /// Whether the one at this offset must stay, and stay as it is: a file that is not synced must not take its
    /// name.
    pub(crate) fn keeps(&self, offset: Offset) -> bool {
        [self.durable, self.pending].contains(&Some(offset))
            || self.found.is_some_and(|found| offset <= found)
    }
}

/// Removes snapshots that nothing needs. Failing is no harm.
pub(crate) fn remove_old(directory: &Path, kept: KeptSnapshots) {
    let Ok(all) = files::list_offsets(directory, files::PRODUCERS_SUFFIX) else { return };
    let below: Vec<_> = all.into_iter().filter(|offset| *offset <= kept.durable_end).collect();
    for old in below.iter().rev().skip(RECENT_KEPT).filter(|offset| !kept.keeps(**offset)) {
        drop(files::remove_file(&files::offset_path(directory, *old, files::PRODUCERS_SUFFIX)));
    }
}

/// Removes everything older than a snapshot that is durable.
pub(crate) fn remove_before(directory: &Path, durable: Offset) {
    let Ok(all) = files::list_offsets(directory, files::PRODUCERS_SUFFIX) else { return };
    for old in all.into_iter().filter(|offset| *offset < durable) {
        drop(files::remove_file(&files::offset_path(directory, old, files::PRODUCERS_SUFFIX)));
    }
}

/// Removes the snapshots above the end that a recovery has found, durably: they speak of batches that are gone,
/// and would be believed again as soon as other batches have taken their offsets.
///
/// # Errors
/// [`FileError`].
pub(crate) fn remove_ahead(directory: &Path, end: Offset) -> Result<(), FileError> {
    let mut ahead = files::list_offsets(directory, files::PRODUCERS_SUFFIX)?;
    ahead.retain(|offset| *offset > end);
    for offset in &ahead {
        files::remove_file(&files::offset_path(directory, *offset, files::PRODUCERS_SUFFIX))?;
    }
    if ahead.is_empty() { Ok(()) } else { files::sync_directory(directory) }
}

/// The first and the last snapshot in a directory.
pub(crate) fn ends(directory: &Path) -> Result<(Option<Offset>, Option<Offset>), FileError> {
    let all = files::list_offsets(directory, files::PRODUCERS_SUFFIX)?;
    Ok((all.first().copied(), all.last().copied()))
}

/// Makes a log start durable, before anything below it is deleted.
///
/// # Errors
/// [`FileError`].
pub fn write_log_start(directory: &Path, start: Offset) -> Result<(), FileError> {
    let mut out = LOG_START_MAGIC.to_vec();
    out.extend_from_slice(&start.get().to_be_bytes());
    let check = crc32fast::hash(&out);
    out.extend_from_slice(&check.to_be_bytes());
    files::replace_file(&directory.join(files::LOG_START_FILE), &out, true)
}

/// The log start: 0 without the file, which is made before the log start first moves; `None` if the file is not
/// readable.
///
/// # Errors
/// [`FileError`].
pub fn read_log_start(directory: &Path) -> Result<Option<Offset>, FileError> {
    let path = directory.join(files::LOG_START_FILE);
    let bytes = match files::read_small(&path, 64) {
        // As if it were damaged.
        Err(error) if error.is_lost() => Vec::new(),
        read => match read? {
            Some(bytes) => bytes,
            None => return Ok(Some(Offset::ZERO)),
        },
    };
    if bytes.len() == 20
        && bytes[..8] == LOG_START_MAGIC
        && u32_at(&bytes, 16) == crc32fast::hash(&bytes[..16])
    {
        return Ok(offset_at(&bytes, 8).ok());
    }
    tracing::warn!(path = %path.display(), "the log start is not readable; the first segment's base counts");
    Ok(None)
}
