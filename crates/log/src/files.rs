//! Names of files, reading them, and writing them so that a crash leaves the old or the new. Every change that log and
//! store make to the disk goes through `change`.

pub(crate) mod change;
pub(crate) mod disk;

use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use rimstone_types::Offset;

pub(crate) use self::change::{
    create, create_new, link, open_or_create, remove_tree, rename, truncate, write_at, write_chunks_at,
};
pub use self::change::{make_directories, sync_all, sync_data, sync_file_system, sync_names};
use crate::error::FileError;

/// Bytes that this process has read with system calls from files of data directories.
static BYTES_READ: AtomicU64 = AtomicU64::new(0);

/// Bytes that this process has read with system calls from files of data directories. What is looked at through
/// maps is not among them.
pub fn bytes_read() -> u64 {
    BYTES_READ.load(Ordering::Relaxed)
}

fn count_read(bytes: usize) {
    BYTES_READ.fetch_add(bytes as u64, Ordering::Relaxed);
    #[cfg(test)]
    READ_HERE.with(|here| here.set(here.get() + bytes as u64));
}

#[cfg(test)]
thread_local! {
    /// What this thread has read: other tests read beside it.
    pub(crate) static READ_HERE: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

/// The end of a segment file's name.
pub(crate) const SEGMENT_SUFFIX: &str = "log";
/// The end of an index file's name.
pub(crate) const INDEX_SUFFIX: &str = "idx";
/// The end of a producer snapshot's name.
pub(crate) const PRODUCERS_SUFFIX: &str = "producers";
/// The end of the name of what recovery set aside.
pub(crate) const TORN_SUFFIX: &str = "torn";
/// The end of the name of a file that keeps the bytes of a loss that was accepted.
pub(crate) const LOST_SUFFIX: &str = "lost";
/// The file that holds the log start.
pub(crate) const LOG_START_FILE: &str = "log-start";
/// Added to a name while the file is written; such files are removed at open.
pub(crate) const TEMPORARY_SUFFIX: &str = "tmp";

/// `<offset, 20 digits>.<suffix>` in a directory.
pub(crate) fn offset_path(directory: &Path, offset: Offset, suffix: &str) -> PathBuf {
    directory.join(format!("{:020}.{suffix}", offset.get()))
}

/// The offset in a name that [`offset_path`] made, if it is one with this suffix.
pub(crate) fn parse_offset_name(name: &str, suffix: &str) -> Option<Offset> {
    let digits = name.strip_suffix(suffix)?.strip_suffix('.')?;
    if digits.len() != 20 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Offset::new(digits.parse().ok()?).ok()
}

/// `<from>-<until>.lost` in a directory, 20 digits each; `<from>-<until>-<offsets>.lost` where only so many of the offsets
/// are lost.
pub(crate) fn lost_path(directory: &Path, from: Offset, until: Offset, offsets: u64) -> PathBuf {
    let among = if offsets == until.since(from) { String::new() } else { format!("-{offsets:020}") };
    directory.join(format!("{:020}-{:020}{among}.{LOST_SUFFIX}", from.get(), until.get()))
}

/// The offsets in a name that [`lost_path`] made, and how many of them are lost.
pub(crate) fn parse_lost_name(name: &str) -> Option<(Offset, Offset, u64)> {
    let numbers = name.strip_suffix(LOST_SUFFIX)?.strip_suffix('.')?;
    let mut numbers =
        numbers.split('-').map(|number| parse_offset_name(&format!("{number}.{LOST_SUFFIX}"), LOST_SUFFIX));
    let (from, until) = (numbers.next()??, numbers.next()??);
    let offsets = match numbers.next() {
        Some(offsets) => offsets?.get(),
        None => until.since(from),
    };
    numbers.next().is_none().then_some((from, until, offsets))
}

/// The offsets of all files with a suffix, in order.
pub(crate) fn list_offsets(directory: &Path, suffix: &str) -> Result<Vec<Offset>, FileError> {
    let entries = fs::read_dir(directory).map_err(|error| FileError::new("list", directory, error))?;
    let mut offsets = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|error| FileError::new("list", directory, error))?;
        if let Some(offset) = entry.file_name().to_str().and_then(|name| parse_offset_name(name, suffix)) {
            offsets.push(offset);
        }
    }
    offsets.sort_unstable();
    Ok(offsets)
}

/// Makes the names in a directory durable.
///
/// # Errors
/// [`FileError`].
pub fn sync_directory(directory: &Path) -> Result<(), FileError> {
    File::open(directory)
        .and_then(|handle| sync_names(&handle))
        .map_err(|error| FileError::new("sync directory", directory, error))
}

/// Makes a directory and those that lead to it, where they are not there, durable by name.
///
/// # Errors
/// [`FileError`].
pub fn make_directories_durably(path: &Path) -> Result<(), FileError> {
    if path.is_dir() {
        return Ok(());
    }
    let parent = match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => Path::new("/"),
    };
    make_directories_durably(parent)?;
    make_directories(path).map_err(|error| FileError::new("create", path, error))?;
    sync_directory(parent)
}

/// Writes a whole file under another name and renames it; durable if asked for (file, then directory).
pub(crate) fn replace_file(path: &Path, content: &[u8], durable: bool) -> Result<(), FileError> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".");
    name.push(TEMPORARY_SUFFIX);
    let temporary = path.with_file_name(name);
    let write = || -> io::Result<()> {
        let file = create(&temporary)?;
        write_at(&file, content, 0)?;
        if durable { sync_all(&file) } else { Ok(()) }
    };
    if let Err(error) = write() {
        drop(change::unlink(&temporary));
        return Err(FileError::new("write", &temporary, error));
    }
    rename(&temporary, path).map_err(|error| FileError::new("rename", &temporary, error))?;
    match path.parent() {
        Some(directory) if durable => sync_directory(directory),
        _ => Ok(()),
    }
}

/// Reads a small file whole, or refuses it beyond `limit` bytes.
pub(crate) fn read_small(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, FileError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(FileError::new("open", path, error)),
    };
    #[cfg(test)]
    bad_sectors::hit(path, 0, usize::MAX)?;
    let mut content = Vec::new();
    file.take(limit + 1).read_to_end(&mut content).map_err(|error| FileError::new("read", path, error))?;
    count_read(content.len());
    if content.len() as u64 > limit {
        let error = io::Error::new(io::ErrorKind::InvalidData, format!("larger than {limit} bytes"));
        return Err(FileError::new("read", path, error));
    }
    Ok(Some(content))
}

/// As [`read_small`]; what the disk cannot read is zeros. Answers also whether all of it could be read.
pub(crate) fn read_small_around(path: &Path, limit: u64) -> Result<Option<(Vec<u8>, bool)>, FileError> {
    match read_small(path, limit) {
        Err(error) if error.is_unreadable() => {}
        read => return Ok(read?.map(|content| (content, true))),
    }
    let file = open_read(path)?;
    let length = file.metadata().map_err(|error| FileError::new("stat", path, error))?.len().min(limit);
    let mut content = vec![0; usize::try_from(length).unwrap_or_default()];
    let read = read_around(&file, path, &mut content, 0)?;
    content.truncate(read);
    Ok(Some((content, false)))
}

/// Removes a file; one that is not there is fine.
pub(crate) fn remove_file(path: &Path) -> Result<(), FileError> {
    match change::unlink(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(FileError::new("unlink", path, error)),
        _ => Ok(()),
    }
}

/// Opens a file for reading and writing.
pub(crate) fn open_read_write(path: &Path) -> Result<File, FileError> {
    change::open(path).map_err(|error| FileError::new("open", path, error))
}

/// Opens a file for reading.
pub(crate) fn open_read(path: &Path) -> Result<File, FileError> {
    File::open(path).map_err(|error| FileError::new("open", path, error))
}

/// Reads up to `buffer.len()` bytes at a position; fewer only at the end of the file.
pub(crate) fn read_at(
    file: &File,
    path: &Path,
    buffer: &mut [u8],
    position: u64,
) -> Result<usize, FileError> {
    let mut done = 0;
    while done < buffer.len() {
        #[cfg(test)]
        bad_sectors::hit(path, position + done as u64, buffer.len() - done)?;
        match file.read_at(&mut buffer[done..], position + done as u64) {
            Ok(0) => break,
            Ok(read) => {
                done += read;
                count_read(read);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(FileError::new("read", path, error)),
        }
    }
    Ok(done)
}

/// Removes what a crash left of files that were being written.
pub(crate) fn remove_temporary_files(directory: &Path) -> Result<(), FileError> {
    let entries = fs::read_dir(directory).map_err(|error| FileError::new("list", directory, error))?;
    for entry in entries.flatten() {
        let path = entry.path();
        if path.extension().is_some_and(|suffix| suffix == TEMPORARY_SUFFIX) {
            remove_file(&path)?;
        }
    }
    Ok(())
}

/// Gives a file a name under which nobody reads it. Another file that has this name keeps it: this one gets a number
/// behind it. Answers the name, which is not durable yet.
pub(crate) fn set_aside(path: &Path) -> Result<PathBuf, FileError> {
    let numbered = |number: u64| path.with_extension(format!("{TORN_SUFFIX}.{number}"));
    let names = std::iter::once(path.with_extension(TORN_SUFFIX)).chain((1..).map(numbered));
    let free = |name: &PathBuf| fs::symlink_metadata(name).is_err();
    let aside = names.into_iter().find(free).expect("there is a number without a file");
    rename(path, &aside).map_err(|error| FileError::new("rename", path, error))?;
    Ok(aside)
}

/// Whether a name is one that [`set_aside`], or recovery, has given.
pub(crate) fn is_set_aside(name: &str) -> bool {
    let (name, suffix) = name.rsplit_once('.').unwrap_or_default();
    let numbered = suffix.parse::<u64>().is_ok() && name.ends_with(&format!(".{TORN_SUFFIX}"));
    suffix == TORN_SUFFIX || numbered
}

/// Gives a file a second name, for its own is about to be another's.
pub(crate) fn keep_aside(path: &Path) -> Result<(), FileError> {
    let aside = path.with_extension(TORN_SUFFIX);
    // Left by an attempt that was killed.
    remove_file(&aside)?;
    second_name(path, &aside)
}

/// The same, under a name of the caller's. Another file that has that name already keeps a number behind it.
pub(crate) fn keep_as(path: &Path, aside: &Path) -> Result<(), FileError> {
    let identity = |path: &Path| fs::symlink_metadata(path).map(|found| (found.dev(), found.ino()));
    match (identity(path), identity(aside)) {
        (Err(error), _) => return Err(FileError::new("set aside", path, error)),
        (Ok(_), Err(_)) => {}
        (Ok(this), Ok(other)) if this == other => remove_file(aside)?,
        (Ok(_), Ok(_)) => {
            let numbered = |number: u64| aside.with_extension(format!("{LOST_SUFFIX}.{number}"));
            let free =
                (1..).map(numbered).find(|path| !path.exists()).expect("there is a number without a file");
            rename(aside, &free).map_err(|error| FileError::new("rename", aside, error))?;
        }
    }
    second_name(path, aside)
}

fn second_name(path: &Path, name: &Path) -> Result<(), FileError> {
    // Not every file system has second names.
    link(path, name)
        .or_else(|_| copy_tail(&File::open(path)?, 0, name))
        .map_err(|error| FileError::new("set aside", path, error))
}

/// Copies the bytes behind `position` to a file of their own, durably but for its name.
pub(crate) fn copy_tail(file: &File, position: u64, to: &Path) -> io::Result<()> {
    let target = create(to)?;
    let mut buffer = vec![0; COPY_PIECE];
    let mut done = 0;
    loop {
        match file.read_at(&mut buffer, position + done) {
            Ok(0) => return sync_all(&target),
            Ok(read) => {
                write_at(&target, &buffer[..read], done)?;
                done += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// How much is copied at a time.
const COPY_PIECE: usize = 256 << 10;

/// What a disk gives up at a time at the least, however small its sectors are: a page of the page cache.
const UNREADABLE_PIECE: u64 = 4096;

/// How much is read at a time while others write: a disk serves it in some hundred microseconds, and a sync that comes
/// meanwhile waits no longer.
const STEP: usize = 256 << 10;

/// A way to read as [`read_around`] does.
pub(crate) type ReadFile = fn(&File, &Path, &mut [u8], u64) -> Result<usize, FileError>;

/// As [`read_around`], one small piece after the other and nothing ahead, through a descriptor that is used for nothing
/// else. What the kernel reads ahead fills the disk's queue, and syncs wait behind it.
pub(crate) fn read_in_steps(
    file: &File,
    path: &Path,
    buffer: &mut [u8],
    position: u64,
) -> Result<usize, FileError> {
    // Not every file system knows this advice; then it reads ahead.
    let _ = rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::Random);
    let mut done = 0;
    for piece in buffer.chunks_mut(STEP) {
        let read = read_around(file, path, piece, position + done as u64)?;
        done += read;
        if read < piece.len() {
            break;
        }
    }
    Ok(done)
}

/// As [`read_at`]; pieces that the disk cannot read are zeros, and the checks over what was read name their range.
pub(crate) fn read_around(
    file: &File,
    path: &Path,
    buffer: &mut [u8],
    position: u64,
) -> Result<usize, FileError> {
    let whole = match read_at(file, path, buffer, position) {
        Err(error) if error.is_unreadable() => error,
        result => return result,
    };
    let (mut done, mut unreadable) = (0, 0);
    while done < buffer.len() {
        let at = position + done as u64;
        let piece = usize::try_from(UNREADABLE_PIECE - at % UNREADABLE_PIECE).unwrap_or(usize::MAX);
        let piece = piece.min(buffer.len() - done);
        match read_at(file, path, &mut buffer[done..done + piece], at) {
            Ok(read) if read < piece => {
                done += read;
                break;
            }
            Ok(_) => {}
            Err(error) if error.is_unreadable() => {
                buffer[done..done + piece].fill(0);
                unreadable += piece;
            }
            Err(error) => return Err(error),
        }
        done += piece;
    }
    tracing::error!(error = %whole, position, bytes = done, unreadable, "the disk cannot read a part of a file");
    Ok(done)
}

/// Files that this thread cannot read, in part.
#[cfg(test)]
pub(crate) mod bad_sectors {
    use std::{cell::RefCell, ops::Range};

    use super::*;

    use rustix::io::Errno;

    type Bad = (PathBuf, Range<u64>, Errno);

    thread_local!(static BAD: RefCell<Vec<Bad>> = const { RefCell::new(Vec::new()) });

    pub(crate) fn add(path: &Path, range: Range<u64>) {
        add_with(path, range, Errno::IO);
    }

    /// What a disk says to direct reads; others are always told `EIO`.
    pub(crate) fn add_with(path: &Path, range: Range<u64>, errno: Errno) {
        BAD.with_borrow_mut(|bad| bad.push((path.to_owned(), range, errno)));
    }

    /// Nothing is bad any more.
    pub(crate) fn heal() {
        BAD.with_borrow_mut(Vec::clear);
    }

    pub(crate) fn inode(path: &Path) -> u64 {
        fs::metadata(path).map_or(0, |found| found.ino())
    }

    pub(crate) fn hit(path: &Path, at: u64, length: usize) -> Result<(), FileError> {
        let end = at.saturating_add(length as u64);
        let is_bad = |(bad, range, _): &&Bad| bad == path && range.start < end && at < range.end;
        match BAD.with_borrow(|bad| bad.iter().find(is_bad).map(|(.., errno)| *errno)) {
            Some(errno) => Err(FileError::new("read", path, errno.into())),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_in_steps_is_what_is_read_at_once() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("file");
        let content: Vec<u8> = (0..3 * STEP + 1000).map(|at| (at / 100) as u8).collect();
        std::fs::write(&path, &content).unwrap();
        let file = open_read(&path).unwrap();
        for (at, length) in
            [(0, content.len()), (7, STEP), (STEP - 1, STEP + 2), (0, 1), (500, 0), (5, 9 * STEP)]
        {
            let mut read = [vec![1; length], vec![1; length]];
            let [whole, steps] = &mut read;
            let expected = read_around(&file, &path, whole, at as u64).unwrap();
            assert_eq!(read_in_steps(&file, &path, steps, at as u64).unwrap(), expected);
            assert_eq!(expected, length.min(content.len() - at));
            assert!(whole == steps, "{length} bytes at {at}");
        }
    }

    #[test]
    fn names_have_twenty_digits_and_nothing_else() {
        let path = offset_path(Path::new("d"), Offset::new(42).unwrap(), SEGMENT_SUFFIX);
        assert_eq!(path, Path::new("d/00000000000000000042.log"));
        assert_eq!(parse_offset_name("00000000000000000042.log", "log"), Some(Offset::new(42).unwrap()));
        for other in
            ["42.log", "00000000000000000042.idx", "0000000000000000004x.log", "99999999999999999999.log"]
        {
            assert_eq!(parse_offset_name(other, "log"), None, "{other}");
        }
    }
}
