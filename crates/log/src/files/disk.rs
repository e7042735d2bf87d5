//! Reading past the page cache: what lies on the disk, also where memory has better.
//!
//! A direct read asks the device. It does not see past the device's own cache, and on a file system without direct
//! reads (the page cache is asked to forget the range then) not past pages that somebody has mapped.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use rustix::{
    fs::{Advice, Mode, OFlags, fadvise},
    io::Errno,
};

use crate::error::FileError;

/// Direct reads begin and end at multiples of this, and so does their memory: the largest sector of any disk.
const ALIGNMENT: usize = 4096;

/// A file that is read from the disk.
#[derive(Debug)]
pub(crate) struct DiskFile {
    file: File,
    path: PathBuf,
    direct: bool,
}

impl DiskFile {
    /// Opens it.
    pub(crate) fn open(path: &Path) -> Result<Self, FileError> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::DIRECT;
        let (file, direct) = match rustix::fs::open(path, flags, Mode::empty()) {
            Ok(file) => (File::from(file), true),
            // The file system has none.
            Err(Errno::INVAL) => (super::open_read(path)?, false),
            Err(error) => return Err(FileError::new("open", path, error.into())),
        };
        Ok(Self { file, path: path.to_owned(), direct })
    }

    /// The bytes from `at` on: `length` of them, fewer only at the end of the file. Zeros where the disk cannot read.
    pub(crate) fn read(&self, at: u64, length: usize) -> Result<Bytes, FileError> {
        let skip = usize::try_from(at % ALIGNMENT as u64).unwrap_or_default();
        let wanted = (skip + length).next_multiple_of(ALIGNMENT);
        let mut memory = vec![0; wanted + ALIGNMENT];
        let from = memory.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
        let begin = at - skip as u64;
        if !self.direct {
            // Failing is no harm: what is read may come from memory.
            let _ = fadvise(&self.file, begin, std::num::NonZeroU64::new(wanted as u64), Advice::DontNeed);
        }
        let read = self.fill(&mut memory[from..from + wanted], begin)?;
        let until = read.min(skip + length);
        Ok(Bytes::from(memory).slice(from + skip.min(until)..from + until))
    }

    fn fill(&self, buffer: &mut [u8], begin: u64) -> Result<usize, FileError> {
        match self.pieces(buffer, begin, buffer.len()) {
            Err(error) if error.is_unreadable() => {
                tracing::error!(%error, position = begin, bytes = buffer.len(), "the disk cannot read a part of a file");
                self.pieces(buffer, begin, ALIGNMENT)
            }
            read => read,
        }
    }

    /// Reads so much at a time. A piece of the smallest size that cannot be read is zeros.
    fn pieces(&self, buffer: &mut [u8], begin: u64, piece: usize) -> Result<usize, FileError> {
        let mut done = 0;
        while done < buffer.len() {
            let (at, end) = (begin + done as u64, (done + piece).min(buffer.len()));
            let read = self.read_once(&mut buffer[done..end], at);
            match read {
                Ok(read) if read < end - done && read % ALIGNMENT != 0 => return Ok(done + read),
                Ok(0) => return Ok(done),
                Ok(read) => done += read,
                Err(error) if piece == ALIGNMENT && error.is_unreadable() => {
                    buffer[done..end].fill(0);
                    done = end;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn read_once(&self, buffer: &mut [u8], at: u64) -> Result<usize, FileError> {
        #[cfg(test)]
        super::bad_sectors::hit(&self.path, at, buffer.len())?;
        loop {
            match self.file.read_at(buffer, at) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => return read.map_err(|error| FileError::new("read", &self.path, error)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every place and length around the bounds of pages and of the file, on a disk and in memory.
    #[test]
    fn any_range_is_read_as_it_was_written() {
        let content: Vec<u8> = (0..20_000u32).map(|n| (n * 7 / 3) as u8).collect();
        let memory = Some(PathBuf::from("/dev/shm")).filter(|memory| memory.is_dir());
        for folder in [std::env::temp_dir()].into_iter().chain(memory) {
            let home = tempfile::tempdir_in(folder).unwrap();
            let path = home.path().join("f");
            std::fs::write(&path, &content).unwrap();
            let file = DiskFile::open(&path).unwrap();
            for at in [0, 1, 4095, 4096, 4097, 8191, 15_000, 19_999, 20_000, 20_001, 30_000] {
                for length in [0, 1, 100, 4096, 5000, 8192, 40_000] {
                    let expected = &content[at.min(content.len())..(at + length).min(content.len())];
                    assert_eq!(
                        &file.read(at as u64, length).unwrap()[..],
                        expected,
                        "{length} bytes at {at}"
                    );
                }
            }
            // What is changed later is seen, though nobody has synced it.
            crate::files::write_at(&crate::files::change::open(&path).unwrap(), b"changed", 5000).unwrap();
            assert_eq!(&file.read(5000, 7).unwrap()[..], b"changed");
        }
    }

    /// A direct read is told what the device said, a buffered one always `EIO`.
    #[test]
    fn what_cannot_be_read_is_zeros_and_the_rest_is_there() {
        for errno in [Errno::IO, Errno::NODATA, Errno::ILSEQ, Errno::REMOTEIO, Errno::BADMSG] {
            let home = tempfile::tempdir().unwrap();
            let path = home.path().join("f");
            std::fs::write(&path, [7; 20_000]).unwrap();
            let file = DiskFile::open(&path).unwrap();
            crate::files::bad_sectors::add_with(&path, 8192..8200, errno);
            let read = file.read(100, 30_000).unwrap_or_else(|error| panic!("{errno:?}: {error}"));
            assert_eq!(read.len(), 19_900);
            for (at, byte) in read.iter().enumerate() {
                let bad = (8192..12_288).contains(&(at + 100));
                assert_eq!(*byte, if bad { 0 } else { 7 }, "{errno:?}: {at}");
            }
        }
    }
}
