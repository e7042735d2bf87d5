//! The bare produce path: one thread takes all that has come, writes it to one file, syncs once, and tells all
//! who wait. Meanwhile the next lot gathers.

use std::{
    collections::VecDeque,
    fs::{self, File},
    io::{self, IoSlice},
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
};

use bytes::{Bytes, BytesMut};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

/// Bytes that may wait: more than all requests in flight of any load here.
const GATHERED_BYTES_MAX: usize = 256 << 20;
/// The next file is begun after so many bytes, as a log does with its segments.
const FILE_BYTES_MAX: u64 = 128 << 20;
/// Files that are kept; older ones are removed, so that a long run does not fill the disk.
const FILES_KEPT: usize = 4;
/// Smaller pieces are copied together: one large write is faster than many slices.
const COPIED_BYTES_MAX: usize = 16 << 10;
/// Slices that the system takes in one call.
const SLICES_MAX: usize = 1024;
/// What stands before each piece in the file, as a log's frame does: its length, and room.
const FRAME_BYTES: usize = 64;

struct Waiting {
    pieces: Vec<Bytes>,
    done: oneshot::Sender<()>,
    _room: OwnedSemaphorePermit,
}

#[derive(Default)]
struct Gathered {
    waiting: Vec<Waiting>,
    ended: bool,
}

struct Shared {
    gathered: Mutex<Gathered>,
    come: Condvar,
}

/// Writes and syncs what it is given.
pub(crate) struct Gatherer {
    shared: Arc<Shared>,
    room: Arc<Semaphore>,
    thread: Option<thread::JoinHandle<io::Result<()>>>,
}

impl Gatherer {
    /// Writes files in this directory.
    pub(crate) fn start(directory: &Path) -> io::Result<Self> {
        let shared = Arc::new(Shared { gathered: Mutex::default(), come: Condvar::new() });
        let mut files = Files::begin(directory, FILE_BYTES_MAX)?;
        let theirs = shared.clone();
        let thread = thread::Builder::new().name("gather".to_owned()).spawn(move || {
            while let Some(lot) = theirs.next() {
                files.append(&lot)?;
                for waiting in lot {
                    // Whoever waited may have gone.
                    let _ = waiting.done.send(());
                }
            }
            Ok(())
        })?;
        let room = Arc::new(Semaphore::new(GATHERED_BYTES_MAX));
        Ok(Self { shared, room, thread: Some(thread) })
    }

    /// Takes pieces, in the order of the calls; what it answers resolves when they are synced.
    pub(crate) async fn take(&self, pieces: Vec<Bytes>) -> oneshot::Receiver<()> {
        let bytes: usize = pieces.iter().map(Bytes::len).sum();
        let share = bytes.clamp(1, GATHERED_BYTES_MAX) as u32;
        let room = self.room.clone().acquire_many_owned(share).await.expect("it is never closed");
        let (done, answer) = oneshot::channel();
        self.shared.gathered().waiting.push(Waiting { pieces, done, _room: room });
        self.shared.come.notify_one();
        answer
    }
}

impl Shared {
    fn gathered(&self) -> MutexGuard<'_, Gathered> {
        self.gathered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All that has come; waits until something has. `None` at the end.
    fn next(&self) -> Option<Vec<Waiting>> {
        let mut gathered = self.gathered();
        while gathered.waiting.is_empty() {
            if gathered.ended {
                return None;
            }
            gathered = self.come.wait(gathered).unwrap_or_else(PoisonError::into_inner);
        }
        Some(std::mem::take(&mut gathered.waiting))
    }
}

impl Drop for Gatherer {
    fn drop(&mut self) {
        self.shared.gathered().ended = true;
        self.shared.come.notify_one();
        if let Some(thread) = self.thread.take() {
            match thread.join() {
                Ok(Ok(())) => {}
                Ok(Err(error)) => eprintln!("writing failed: {error}"),
                Err(_) => eprintln!("the gathering thread panicked"),
            }
        }
    }
}

/// The file that is written, and those before it.
struct Files {
    directory: PathBuf,
    number: u64,
    file: File,
    length: u64,
    length_max: u64,
    kept: VecDeque<PathBuf>,
}

impl Files {
    fn begin(directory: &Path, length_max: u64) -> io::Result<Self> {
        fs::create_dir_all(directory)?;
        let path = directory.join("0");
        let file = File::create(&path)?;
        let kept = VecDeque::from([path]);
        Ok(Self { directory: directory.to_path_buf(), number: 0, file, length: 0, length_max, kept })
    }

    fn roll(&mut self) -> io::Result<()> {
        self.number += 1;
        let path = self.directory.join(self.number.to_string());
        self.file = File::create(&path)?;
        self.length = 0;
        self.kept.push_back(path);
        if self.kept.len() > FILES_KEPT
            && let Some(old) = self.kept.pop_front()
        {
            fs::remove_file(old)?;
        }
        Ok(())
    }

    fn append(&mut self, lot: &[Waiting]) -> io::Result<()> {
        if self.length >= self.length_max {
            self.roll()?;
        }
        let mut parts: Vec<Bytes> = Vec::new();
        let mut copied = BytesMut::new();
        for piece in lot.iter().flat_map(|waiting| &waiting.pieces) {
            let mut frame = [0xA5; FRAME_BYTES];
            frame[..8].copy_from_slice(&(piece.len() as u64).to_le_bytes());
            copied.extend_from_slice(&frame);
            if piece.len() < COPIED_BYTES_MAX {
                copied.extend_from_slice(piece);
            } else {
                parts.push(copied.split().freeze());
                parts.push(piece.clone());
            }
        }
        parts.push(copied.freeze());
        for parts in parts.chunks(SLICES_MAX) {
            self.write(parts)?;
        }
        self.file.sync_data()
    }

    fn write(&mut self, parts: &[Bytes]) -> io::Result<()> {
        let mut slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
        let mut rest = slices.as_mut_slice();
        IoSlice::advance_slices(&mut rest, 0);
        while !rest.is_empty() {
            let written = rustix::io::pwritev(&self.file, rest, self.length)?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            self.length += written as u64;
            IoSlice::advance_slices(&mut rest, written);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_taken_is_in_the_file_when_it_is_said_to_be() {
        let directory = tempfile::tempdir().expect("a directory");
        let gatherer = Gatherer::start(directory.path()).expect("it starts");
        let piece = |byte: u8, length: usize| Bytes::from(vec![byte; length]);
        let lots = [
            vec![piece(1, 100), piece(2, 20_000)],
            vec![piece(3, 0), piece(4, 16 << 10)],
            vec![piece(5, 5), piece(6, 70_000), piece(7, 7)],
        ];
        let mut expected = Vec::new();
        for (number, lot) in lots.into_iter().enumerate() {
            for piece in &lot {
                let mut frame = [0xA5; FRAME_BYTES];
                frame[..8].copy_from_slice(&(piece.len() as u64).to_le_bytes());
                expected.extend_from_slice(&frame);
                expected.extend_from_slice(piece);
            }
            gatherer.take(lot).await.await.expect("it is synced");
            let written = fs::read(directory.path().join("0")).expect("it is there");
            assert_eq!(written, expected, "{number}");
        }
    }

    fn lot(pieces: impl IntoIterator<Item = Bytes>) -> [Waiting; 1] {
        let room = Arc::new(Semaphore::new(1)).try_acquire_owned().expect("there is room");
        [Waiting { pieces: pieces.into_iter().collect(), done: oneshot::channel().0, _room: room }]
    }

    #[test]
    fn more_slices_than_the_system_takes_at_once_are_written_whole() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut files = Files::begin(directory.path(), u64::MAX).expect("it begins");
        let pieces = (0..700u32).map(|n| Bytes::from(vec![n as u8; COPIED_BYTES_MAX]));
        files.append(&lot(pieces)).expect("there is space");
        let written = fs::read(directory.path().join("0")).expect("it is there");
        assert_eq!(written.len(), 700 * (FRAME_BYTES + COPIED_BYTES_MAX));
        for (n, piece) in written.chunks(FRAME_BYTES + COPIED_BYTES_MAX).enumerate() {
            assert!(piece[FRAME_BYTES..].iter().all(|byte| *byte == n as u8), "{n}");
        }
    }

    #[test]
    fn a_full_file_is_followed_by_another_and_old_ones_go() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut files = Files::begin(directory.path(), 100).expect("it begins");
        for _ in 0..11 {
            files.append(&lot([Bytes::from_static(b"piece")])).expect("there is space");
        }
        // Two lots of 69 bytes fill a file.
        assert_eq!(files.number, 5);
        let left: Vec<_> = (0..8).filter(|n| directory.path().join(n.to_string()).exists()).collect();
        assert_eq!(left, [2, 3, 4, 5]);
        assert_eq!(fs::metadata(directory.path().join("5")).expect("it is there").len(), 69);
    }
}
