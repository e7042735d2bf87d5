//! Whether a data directory holds anything that a later build has written: looked at before anything is written.
//! Versions and flags count only where the check over them is right, so that rot is not taken for the future.
//! Records have versions as well, in the topics that the server writes itself: who knows them judges them here.
//!
//! Not here: what the files hold otherwise; whoever opens them judges that.

use std::{fs, path::Path};

use rimstone_types::TopicId;

use crate::{
    directory::{DirectoryError, topic_path},
    error::FileError,
    files,
    frame::{FORMAT_VERSION, u32_at},
    inspect::{self, Item, SegmentView},
};

/// Of a record with this key and value in a topic, in words why a directory that holds it is refused.
pub type Judgement = fn(TopicId, Option<&[u8]>, Option<&[u8]>) -> Result<(), String>;

/// Which records a build looks at before it writes anything in a directory, and whether it understands them.
#[derive(Debug, Clone, Copy)]
pub struct RecordJudge {
    /// The topics that they are in.
    pub topics: &'static [TopicId],
    /// What it says of one.
    pub judge: Judgement,
}

impl RecordJudge {
    /// Refuses a data directory with a record that is not understood. Nothing is changed. What cannot be read is not
    /// judged: whoever opens the partition names it.
    ///
    /// # Errors
    /// [`DirectoryError::Record`].
    pub(crate) fn check(&self, data: &Path) -> Result<(), DirectoryError> {
        for topic in self.topics {
            let mut partitions = list(&topic_path(data, *topic)).unwrap_or_default();
            partitions.sort_unstable();
            for directory in partitions {
                for base in inspect::segments(&directory).unwrap_or_default() {
                    if let Ok(view) = SegmentView::open(&directory, base) {
                        self.check_segment(*topic, &view)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn check_segment(&self, topic: TopicId, view: &SegmentView) -> Result<(), DirectoryError> {
        let mut refused = None;
        let read = view.each(|item| {
            let Item::Batch { header, batch: Ok(batch), .. } = item else { return };
            if refused.is_some() || header.is_control() {
                return;
            }
            let Ok(records) = batch.records(&inspect::LIMITS) else { return };
            refused = records.flatten().find_map(|record| {
                let judged = (self.judge)(topic, record.key.as_deref(), record.value.as_deref());
                Some((record.offset, judged.err()?))
            });
        });
        if let Err(error) = read {
            tracing::warn!(%error, "records could not be looked at before the start");
        }
        let Some((offset, why)) = refused else { return Ok(()) };
        Err(DirectoryError::Record { path: view.path().display().to_string(), offset, why })
    }
}

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
