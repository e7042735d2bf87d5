//! Whether a data directory holds anything that a later build has written: looked at before anything is written.
//! Versions and flags count only where the check over them is right, so that rot is not taken for the future.
//!
//! Not here: what the files hold otherwise; whoever opens them judges that.

use std::{fs, path::Path};

use crate::{
    directory::DirectoryError,
    error::FileError,
    files,
    frame::{FORMAT_VERSION, u32_at},
};

/// Magic, version and flags, at the same place in each kind of file.
const HEAD: usize = 12;
/// The largest file whose check covers it whole that is read for it.
const WHOLE_BYTES_MAX: u64 = 1 << 30;

/// Where the check is that covers the head.
#[derive(Debug, Clone, Copy)]
enum Check {
    At(usize),
    AtEnd,
}

/// A kind of file with a version of its own.
#[derive(Debug, Clone, Copy)]
struct Kind {
    magic: &'static [u8; 8],
    check: Check,
}

/// The kind of a file of a data directory, by its name; `None`: it has no version of its own.
fn kind(path: &Path) -> Option<Kind> {
    let name = path.file_name()?.to_str()?;
    let (magic, check) = match (name, path.extension().and_then(|suffix| suffix.to_str())) {
        ("rimstone.meta", _) => (b"RIMSTDIR", Check::At(36)),
        ("witness", _) => (b"RIMSTWIT", Check::At(508)),
        ("checkpoints", _) => (b"RIMSTCKP", Check::At(12)),
        (_, Some(files::SEGMENT_SUFFIX)) => (b"RIMSTSEG", Check::At(68)),
        (_, Some(files::INDEX_SUFFIX)) => (b"RIMSTIDX", Check::At(92)),
        (_, Some(files::PRODUCERS_SUFFIX)) => (b"RIMSTPRD", Check::AtEnd),
        _ => return None,
    };
    Some(Kind { magic, check })
}

/// Refuses a data directory in which anything is newer than this build. Nothing is changed.
///
/// # Errors
/// [`DirectoryError::Newer`] and [`DirectoryError::Flags`]; [`DirectoryError::File`] if it cannot be listed.
pub(crate) fn check(data: &Path, topics: &Path) -> Result<(), DirectoryError> {
    look_at_all(data)?;
    if !topics.is_dir() {
        return Ok(());
    }
    for topic in list(topics)? {
        for partition in if topic.is_dir() { list(&topic)? } else { Vec::new() } {
            if partition.is_dir() {
                look_at_all(&partition)?;
            }
        }
    }
    Ok(())
}

fn list(directory: &Path) -> Result<Vec<std::path::PathBuf>, FileError> {
    let entries = fs::read_dir(directory).map_err(|error| FileError::new("list", directory, error))?;
    Ok(entries.flatten().map(|entry| entry.path()).collect())
}

fn look_at_all(directory: &Path) -> Result<(), DirectoryError> {
    for path in list(directory)? {
        if let Some(kind) = kind(&path) {
            look_at(&path, kind)?;
        }
    }
    Ok(())
}

/// What cannot be read is not judged here.
fn look_at(path: &Path, kind: Kind) -> Result<(), DirectoryError> {
    let Ok(file) = files::open_read(path) else { return Ok(()) };
    let mut head = [0; HEAD];
    if !matches!(files::read_at(&file, path, &mut head, 0), Ok(HEAD)) || head[..8] != *kind.magic {
        return Ok(());
    }
    let version = u16::from_be_bytes([head[8], head[9]]);
    let flags = u16::from_be_bytes([head[10], head[11]]);
    if version <= FORMAT_VERSION && flags == 0 {
        return Ok(());
    }
    let bytes = match kind.check {
        Check::At(at) => {
            let mut bytes = vec![0; at + 4];
            let Ok(read) = files::read_at(&file, path, &mut bytes, 0) else { return Ok(()) };
            bytes.truncate(read);
            bytes
        }
        Check::AtEnd => files::read_small(path, WHOLE_BYTES_MAX).ok().flatten().unwrap_or_default(),
    };
    let Some(at) = bytes.len().checked_sub(4).filter(|at| *at >= HEAD) else { return Ok(()) };
    if u32_at(&bytes, at) != crc32fast::hash(&bytes[..at]) {
        return Ok(());
    }
    let path = path.display().to_string();
    if version > FORMAT_VERSION {
        return Err(DirectoryError::Newer { path, found: version });
    }
    Err(DirectoryError::Flags { path, found: flags })
}
