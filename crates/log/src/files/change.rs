//! Every change that log and store make to the disk, one function for each kind. Nobody else in the two crates calls
//! the system for one; a test looks after that (`tests/tests/all/layering.rs`).
//!
//! Not here: what is written where and why, and what a failure means.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, IoSlice},
    os::{fd::AsFd, unix::fs::FileExt},
    path::Path,
};

use bytes::{Buf, Bytes};

/// Does it, and in tests tells the recorder of the directory what is done.
macro_rules! observed {
    ($call:expr, $done:expr) => {{
        #[cfg(any(test, feature = "recording"))]
        {
            use crate::recording::Call::*;
            crate::recording::observe($call, || $done)
        }
        #[cfg(not(any(test, feature = "recording")))]
        {
            $done
        }
    }};
}

/// The most pieces of one vectored write; the kernel's IOV_MAX.
const PIECES_MAX: usize = 1024;

/// Makes a file that must not be there, for reading and writing.
pub(crate) fn create_new(path: &Path) -> io::Result<File> {
    observed!(Create { path }, OpenOptions::new().read(true).write(true).create_new(true).open(path))
}

/// Makes a file for writing; one that is there is emptied.
pub(crate) fn create(path: &Path) -> io::Result<File> {
    observed!(Create { path }, File::create(path))
}

/// Opens a file for reading and writing as it is; one that is not there is made.
pub(crate) fn open_or_create(path: &Path) -> io::Result<File> {
    observed!(
        Open { path },
        OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)
    )
}

/// Opens a file that is there for reading and writing.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
}

/// Writes all of it at a position.
pub(crate) fn write_at(file: &File, bytes: &[u8], position: u64) -> io::Result<()> {
    observed!(Write { file, chunks: &[bytes], position }, file.write_all_at(bytes, position))
}

/// Writes all chunks one after the other at a position, gathered into as few calls as the kernel allows.
pub(crate) fn write_chunks_at(file: &File, position: u64, chunks: &[Bytes]) -> io::Result<()> {
    observed!(
        Write { file, chunks: &chunks.iter().map(|chunk| &chunk[..]).collect::<Vec<_>>(), position },
        write_gathered(file, position, chunks)
    )
}

fn write_gathered(file: &File, mut position: u64, chunks: &[Bytes]) -> io::Result<()> {
    let mut rest: Vec<Bytes> = chunks.iter().filter(|chunk| !chunk.is_empty()).cloned().collect();
    let mut first = 0;
    while first < rest.len() {
        let last = rest.len().min(first + PIECES_MAX);
        let pieces: Vec<IoSlice<'_>> = rest[first..last].iter().map(|chunk| IoSlice::new(chunk)).collect();
        let mut written = match rustix::io::pwritev(file, &pieces, position) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => written,
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        };
        position += written as u64;
        while written > 0 {
            let chunk = &mut rest[first];
            let step = written.min(chunk.len());
            chunk.advance(step);
            written -= step;
            if chunk.is_empty() {
                first += 1;
            }
        }
    }
    Ok(())
}

/// Cuts a file, or makes it longer by zeros.
pub(crate) fn truncate(file: &File, length: u64) -> io::Result<()> {
    observed!(Truncate { file, length }, file.set_len(length))
}

/// Gives a file or a directory another name, in place of what has it.
pub(crate) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    observed!(Rename { from, to }, fs::rename(from, to))
}

/// Gives a file a second name.
pub(crate) fn link(from: &Path, to: &Path) -> io::Result<()> {
    observed!(Link { from, to }, fs::hard_link(from, to))
}

/// Takes a file's name away.
pub(crate) fn unlink(path: &Path) -> io::Result<()> {
    observed!(Unlink { path }, fs::remove_file(path))
}

/// Makes a directory that must not be there.
pub(crate) fn make_directory(path: &Path) -> io::Result<()> {
    observed!(MakeDirectory { path }, fs::create_dir(path))
}

/// Makes a directory and those that lead to it, where they are not there.
///
/// # Errors
/// Those of the system; what was made stays.
pub fn make_directories(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        make_directories(parent)?;
    }
    match make_directory(path) {
        // Somebody else was quicker.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        made => made,
    }
}

/// Removes a directory that is empty.
pub(crate) fn remove_directory(path: &Path) -> io::Result<()> {
    observed!(RemoveDirectory { path }, fs::remove_dir(path))
}

/// Removes a directory and all that is in it. Links are removed, not followed.
pub(crate) fn remove_tree(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() { remove_tree(&entry.path())? } else { unlink(&entry.path())? }
    }
    remove_directory(path)
}

/// Makes a file durable: its bytes and all that is known of it, but not its name.
///
/// # Errors
/// Those of the system. A failure is final: no later sync proves anything.
pub fn sync_all(file: &File) -> io::Result<()> {
    observed!(Sync { on: file }, file.sync_all())
}

/// Makes a file's bytes and its length durable.
///
/// # Errors
/// Those of the system. A failure is final: no later sync proves anything.
pub fn sync_data(file: &File) -> io::Result<()> {
    observed!(Sync { on: file }, file.sync_data())
}

/// Makes the names in an open directory durable.
///
/// # Errors
/// Those of the system. A failure is final: no later sync proves anything.
pub fn sync_names(directory: &File) -> io::Result<()> {
    observed!(Sync { on: directory }, directory.sync_all())
}

/// Makes everything durable that was written to a file system before the call; `on` is anything on it.
///
/// # Errors
/// Those of the system. A failure is final: no later sync proves anything.
pub fn sync_file_system(on: &File) -> io::Result<()> {
    observed!(SyncFileSystem { on }, Ok(rustix::fs::syncfs(on.as_fd())?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_chunks_land_in_order() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("f");
        let file = create(&path).unwrap();
        let chunks: Vec<Bytes> = (0..3000u32).map(|n| Bytes::copy_from_slice(&n.to_be_bytes())).collect();
        write_chunks_at(&file, 8, &chunks).unwrap();
        let content = fs::read(&path).unwrap();
        assert_eq!(content.len(), 8 + 12_000);
        assert!(content[8..].chunks(4).enumerate().all(|(n, chunk)| chunk == (n as u32).to_be_bytes()));
    }

    #[test]
    fn a_tree_goes_with_all_that_is_in_it_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let tree = directory.path().join("a/b/c");
        make_directories(&tree).unwrap();
        make_directories(&tree).unwrap();
        create_new(&tree.join("f")).unwrap();
        let outside = directory.path().join("outside");
        make_directory(&outside).unwrap();
        create_new(&outside.join("g")).unwrap();
        std::os::unix::fs::symlink(&outside, tree.join("link")).unwrap();
        remove_tree(&directory.path().join("a")).unwrap();
        assert!(!directory.path().join("a").exists());
        assert!(outside.join("g").exists());
    }
}
