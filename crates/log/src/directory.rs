//! The data directory: its lock, its identity, its clean mark, and where partitions lie in it.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use parking_lot::Mutex;
use rimstone_types::{Offset, PartitionId, PartitionIndex, Timestamp, TopicId};
use uuid::Uuid;

use crate::{
    error::FileError,
    files,
    frame::u32_at,
    versions::{self, RecordJudge},
};

const META_MAGIC: [u8; 8] = *b"RIMSTDIR";
/// The version of the directory's layout that this build writes and reads.
pub const DIRECTORY_VERSION: u16 = 1;
const CLEAN_MAGIC: [u8; 8] = *b"RIMSTCLN";
const META_FILE: &str = "rimstone.meta";
const LOCK_FILE: &str = "lock";
const CLEAN_FILE: &str = "clean";
const TOPICS: &str = "topics";
const TRASH: &str = "trash";
/// The witness's name in a data directory.
pub const WITNESS_FILE: &str = "witness";
/// The name of the file with checkpoints.
pub const CHECKPOINTS_FILE: &str = "checkpoints";

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// Another server has it.
    #[error("{path} is in use by another server (process {holder}); one directory belongs to one server")]
    Locked {
        /// The directory.
        path: String,
        /// What the lock file names.
        holder: String,
    },
    /// Something in it is of a later version.
    #[error(
        "{path} has format version {found}, which a newer Rimstone wrote; this build reads version {DIRECTORY_VERSION}; nothing was changed"
    )]
    Newer {
        /// The file.
        path: String,
        /// Its version.
        found: u16,
    },
    /// Something in it has flags of a later build.
    #[error(
        "{path} has flags {found:#06x}, which a newer Rimstone wrote; this build knows none of version {DIRECTORY_VERSION}; nothing was changed"
    )]
    Flags {
        /// The file.
        path: String,
        /// Its flags.
        found: u16,
    },
    /// A record in it is not one that this build understands.
    #[error("{path}, offset {offset}: {why}; nothing was changed")]
    Record {
        /// The segment.
        path: String,
        /// The record.
        offset: Offset,
        /// What it is, and what is understood.
        why: String,
    },
    /// It is damaged, or something else.
    #[error("{path}: {reason}")]
    Unusable {
        /// The file.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// An operation on a file failed.
    #[error(transparent)]
    File(#[from] FileError),
}

/// A data directory that this process holds.
#[derive(Debug)]
pub struct DataDirectory {
    path: PathBuf,
    /// Held until the directory is released.
    lock: Mutex<Option<File>>,
    server_id: Uuid,
    was_clean: bool,
}

impl DataDirectory {
    /// Opens a data directory, or makes it, and takes the clean mark away.
    ///
    /// # Errors
    /// [`DirectoryError`].
    pub fn open(path: &Path, new_id: Uuid, now: Timestamp) -> Result<Self, DirectoryError> {
        Self::open_judged(path, new_id, now, None)
    }

    /// The same, if somebody understands the records that it judges. A directory that is refused is left as it is.
    ///
    /// # Errors
    /// [`DirectoryError`].
    pub fn open_judged(
        path: &Path,
        new_id: Uuid,
        now: Timestamp,
        judge: Option<&RecordJudge>,
    ) -> Result<Self, DirectoryError> {
        files::make_directories_durably(path)?;
        let path = path.canonicalize().map_err(|error| FileError::new("resolve", path, error))?;
        let topics = path.join(TOPICS);
        let look = || -> Result<(), DirectoryError> {
            versions::check(&path, &topics)?;
            judge.map_or(Ok(()), |judge| judge.check(&path))
        };
        if !path.join(LOCK_FILE).exists() {
            // Not even the lock is made in what is refused; nobody has it as long as it is not there.
            look()?;
        }
        let lock = lock(&path)?;
        look()?;
        let meta_path = path.join(META_FILE);
        // Only now.
        name_holder(&path, &lock)?;
        let server_id = match files::read_small(&meta_path, 1024)? {
            Some(bytes) => decode_meta(&meta_path, &bytes)?,
            None if topics.exists() => {
                return Err(DirectoryError::Unusable {
                    path: meta_path.display().to_string(),
                    reason:
                        "it is missing, but there are topics; this directory is not taken for an empty one"
                            .to_owned(),
                });
            }
            None => {
                files::replace_file(&meta_path, &encode_meta(new_id, now), true)?;
                new_id
            }
        };
        for folder in [&topics, &path.join(TRASH)] {
            files::make_directories(folder).map_err(|error| FileError::new("create", folder, error))?;
        }
        files::sync_directory(&path)?;
        let clean_path = path.join(CLEAN_FILE);
        let mark = files::read_small(&clean_path, 1024).unwrap_or_else(|error| {
            tracing::warn!(%error, "the clean mark cannot be read; this is a start after a kill");
            None
        });
        let was_clean = mark.is_some_and(|bytes| bytes.len() == 28 && bytes == encode_clean(server_id));
        if clean_path.exists() {
            // Before anything else is written, so that a crash from here on is seen as one.
            files::remove_file(&clean_path)?;
            files::sync_directory(&path)?;
        }
        let directory = Self { path, lock: Mutex::new(Some(lock)), server_id, was_clean };
        directory.empty_trash();
        Ok(directory)
    }

    /// The directory, resolved.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The identity that was made with the directory.
    pub fn server_id(&self) -> Uuid {
        self.server_id
    }

    /// Whether the last run stopped cleanly.
    pub fn was_clean(&self) -> bool {
        self.was_clean
    }

    /// Leaves the clean mark, durable. The last thing that a run does.
    ///
    /// # Errors
    /// [`FileError`]; the next start recovers then.
    pub fn mark_clean(&self) -> Result<(), FileError> {
        files::replace_file(&self.path.join(CLEAN_FILE), &encode_clean(self.server_id), true)
    }

    /// Lets another server have the directory. Nobody may write in it through this one afterwards.
    pub fn release(&self) {
        *self.lock.lock() = None;
    }

    /// Where a partition lies.
    pub fn partition_path(&self, id: PartitionId) -> PathBuf {
        partition_path(&self.path, id)
    }

    /// Makes the directory of a partition, durable with all that leads to it. One that is there already is taken
    /// if it holds nothing: a kill has left it.
    ///
    /// # Errors
    /// [`FileError`]; `AlreadyExists` if it holds something.
    pub fn create_partition(&self, id: PartitionId) -> Result<PathBuf, FileError> {
        let topic = self.path.join(TOPICS).join(id.topic.to_string());
        files::make_directories(&topic).map_err(|error| FileError::new("create", &topic, error))?;
        let path = topic.join(id.partition.to_string());
        match files::change::make_directory(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && holds_nothing(&path)? => {}
            made => made.map_err(|error| FileError::new("create", &path, error))?,
        }
        self.sync_partition(id)?;
        Ok(path)
    }

    /// Makes the names in a partition's directory durable, and those that lead to it.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn sync_partition(&self, id: PartitionId) -> Result<(), FileError> {
        let topics = self.path.join(TOPICS);
        files::sync_directory(&self.partition_path(id))?;
        files::sync_directory(&topics.join(id.topic.to_string()))?;
        files::sync_directory(&topics)
    }

    /// All partitions whose directories are there and hold something; names that are not ours are left alone.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn partitions(&self) -> Result<Vec<PartitionId>, FileError> {
        list_partitions(&self.path)
    }

    /// Takes a topic away: its directory is renamed durably, then deleted. What a crash leaves is deleted at
    /// the next start.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn delete_topic(&self, topic: TopicId) -> Result<(), FileError> {
        let from = self.path.join(TOPICS).join(topic.to_string());
        let to = self.path.join(TRASH).join(topic.to_string());
        match files::rename(&from, &to) {
            // It went before, perhaps just before a kill: that has to be durable as well.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(FileError::new("rename", &from, error)),
            Ok(()) => {}
        }
        files::sync_directory(&self.path.join(TOPICS))?;
        files::sync_directory(&self.path.join(TRASH))?;
        match files::remove_tree(&to) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(FileError::new("delete", &to, error))
            }
            _ => Ok(()),
        }
    }

    fn empty_trash(&self) {
        let Ok(entries) = fs::read_dir(self.path.join(TRASH)) else { return };
        let entries: Vec<_> = entries.flatten().collect();
        if entries.is_empty() {
            return;
        }
        // A kill, or a sync that failed, may have come behind the rename: a topic that comes back must not have lost a part.
        let synced = [TOPICS, TRASH].iter().try_for_each(|name| files::sync_directory(&self.path.join(name)));
        if let Err(error) = synced {
            tracing::warn!(%error, "what was deleted before could not be removed");
            return;
        }
        for entry in entries {
            if let Err(error) = files::remove_tree(&entry.path()) {
                tracing::warn!(path = %entry.path().display(), %error, "what was deleted before could not be removed");
            }
        }
    }
}

/// Where a topic lies in a data directory.
pub(crate) fn topic_path(data: &Path, topic: TopicId) -> PathBuf {
    data.join(TOPICS).join(topic.to_string())
}

/// Where a partition lies in a data directory.
pub fn partition_path(data: &Path, id: PartitionId) -> PathBuf {
    topic_path(data, id.topic).join(id.partition.to_string())
}

/// Whether a directory holds no more than temporary files: a kill came before the partition was made in it.
fn holds_nothing(path: &Path) -> Result<bool, FileError> {
    let list_error = |error| FileError::new("list", path, error);
    let entries = match fs::read_dir(path) {
        // Not a directory: recovery says so.
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => return Ok(false),
        entries => entries.map_err(list_error)?,
    };
    for entry in entries {
        let path = entry.map_err(list_error)?.path();
        if path.extension().is_none_or(|suffix| suffix != files::TEMPORARY_SUFFIX) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// All partitions in a data directory, without holding it: for `inspect`.
///
/// # Errors
/// [`FileError`].
pub fn list_partitions(data: &Path) -> Result<Vec<PartitionId>, FileError> {
    let topics = data.join(TOPICS);
    let mut found = Vec::new();
    for topic in fs::read_dir(&topics).map_err(|error| FileError::new("list", &topics, error))?.flatten() {
        let Some(id) = topic.file_name().to_str().and_then(|name| Uuid::parse_str(name).ok()) else {
            continue;
        };
        let path = topic.path();
        for partition in fs::read_dir(&path).map_err(|error| FileError::new("list", &path, error))?.flatten()
        {
            if let Some(number) = partition.file_name().to_str().and_then(|name| name.parse().ok())
                && !holds_nothing(&partition.path())?
            {
                found.push(PartitionId { topic: TopicId(id), partition: PartitionIndex(number) });
            }
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// The server's identity in a data directory, without holding it: for `inspect`.
///
/// # Errors
/// [`DirectoryError`].
pub fn read_server_id(data: &Path) -> Result<Uuid, DirectoryError> {
    let path = data.join(META_FILE);
    match files::read_small(&path, 1024)? {
        Some(bytes) => decode_meta(&path, &bytes),
        None => Err(DirectoryError::Unusable {
            path: path.display().to_string(),
            reason: "it is missing; is this a data directory?".to_owned(),
        }),
    }
}

fn lock(path: &Path) -> Result<File, DirectoryError> {
    let lock_path = path.join(LOCK_FILE);
    let file =
        files::open_or_create(&lock_path).map_err(|error| FileError::new("open", &lock_path, error))?;
    if rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err() {
        let holder = fs::read_to_string(&lock_path).unwrap_or_default();
        return Err(DirectoryError::Locked {
            path: path.display().to_string(),
            holder: holder.trim().chars().take(20).collect(),
        });
    }
    Ok(file)
}

/// Says in the lock file whose it is.
fn name_holder(path: &Path, lock: &File) -> Result<(), FileError> {
    let holder = format!("{}\n", std::process::id());
    files::truncate(lock, 0)
        .and_then(|()| files::write_at(lock, holder.as_bytes(), 0))
        .map_err(|error| FileError::new("write", &path.join(LOCK_FILE), error))
}

fn encode_meta(server_id: Uuid, now: Timestamp) -> Vec<u8> {
    let mut out = META_MAGIC.to_vec();
    out.extend_from_slice(&DIRECTORY_VERSION.to_be_bytes());
    out.extend_from_slice(&[0; 2]);
    out.extend_from_slice(server_id.as_bytes());
    out.extend_from_slice(&now.0.to_be_bytes());
    let check = crc32fast::hash(&out);
    out.extend_from_slice(&check.to_be_bytes());
    out
}

fn decode_meta(path: &Path, bytes: &[u8]) -> Result<Uuid, DirectoryError> {
    let unusable = |reason: &str| DirectoryError::Unusable {
        path: path.display().to_string(),
        reason: reason.to_owned(),
    };
    if bytes.len() < 10 || bytes[..8] != META_MAGIC {
        return Err(unusable("it is not the mark of a Rimstone data directory"));
    }
    // The check is at the same place in every version, so that a flipped bit is not taken for the future.
    if bytes.len() < 40 || u32_at(bytes, 36) != crc32fast::hash(&bytes[..36]) {
        return Err(unusable("it is damaged: its check is wrong"));
    }
    let version = u16::from_be_bytes([bytes[8], bytes[9]]);
    if version > DIRECTORY_VERSION {
        return Err(DirectoryError::Newer { path: path.display().to_string(), found: version });
    }
    let mut id = [0; 16];
    id.copy_from_slice(&bytes[12..28]);
    Ok(Uuid::from_bytes(id))
}

fn encode_clean(server_id: Uuid) -> Vec<u8> {
    let mut out = CLEAN_MAGIC.to_vec();
    out.extend_from_slice(server_id.as_bytes());
    let check = crc32fast::hash(&out);
    out.extend_from_slice(&check.to_be_bytes());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clean_mark_that_cannot_be_read_is_none() {
        let home = tempfile::tempdir().unwrap();
        let open = || DataDirectory::open(home.path(), Uuid::from_u128(1), Timestamp(0));
        let directory = open().unwrap();
        directory.mark_clean().unwrap();
        drop(directory);
        let mark = home.path().canonicalize().unwrap().join(CLEAN_FILE);
        files::bad_sectors::add(&mark, 0..1);
        let directory = open().unwrap();
        assert!(!directory.was_clean());
        assert!(!mark.exists());
        files::bad_sectors::heal();
        directory.mark_clean().unwrap();
        drop(directory);
        assert!(open().unwrap().was_clean());
    }
}
