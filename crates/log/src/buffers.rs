//! Buffers of cold reads, used again. The kernel clears new memory page by page when it is first touched, which takes
//! about as long as reading it does.

use bytes::Bytes;
use parking_lot::Mutex;

/// Buffers that wait to be used again: as many as cold readers that a disk serves well at one time.
const KEPT_MAX: usize = 8;
/// Smaller ones cost little, larger ones are rare.
const KEPT_BYTES_MIN: usize = 64 << 10;
const KEPT_BYTES_MAX: usize = 4 << 20;

static FREE: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

/// Goes back when the last of the bytes that were made of it is dropped.
struct Buffer {
    bytes: Vec<u8>,
    filled: usize,
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.filled]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if (KEPT_BYTES_MIN..=KEPT_BYTES_MAX).contains(&self.bytes.len()) {
            let mut free = FREE.lock();
            if free.len() < KEPT_MAX {
                free.push(std::mem::take(&mut self.bytes));
            }
        }
    }
}

/// Bytes that `read` has put into a buffer of this length; it answers how many.
///
/// # Errors
/// Those of `read`.
pub(crate) fn fill<E>(length: usize, read: impl FnOnce(&mut [u8]) -> Result<usize, E>) -> Result<Bytes, E> {
    if length < KEPT_BYTES_MIN {
        let mut bytes = vec![0; length];
        let filled = read(&mut bytes)?;
        bytes.truncate(filled);
        return Ok(bytes.into());
    }
    let used = {
        let mut free = FREE.lock();
        // The shortest that is long enough, and not so long that much of it would be held for nothing; or none: growing
        // would touch new memory and copy the old.
        let fits = |bytes: &Vec<u8>| (length..=length * 2).contains(&bytes.len());
        let found =
            free.iter().enumerate().filter(|(_, bytes)| fits(bytes)).min_by_key(|(_, bytes)| bytes.len());
        let at = found.map(|(at, _)| at);
        at.map(|at| free.swap_remove(at))
    };
    let mut buffer = Buffer { bytes: used.unwrap_or_else(|| vec![0; length]), filled: 0 };
    buffer.filled = read(&mut buffer.bytes[..length])?.min(length);
    Ok(Bytes::from_owner(buffer))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_that_is_used_again_shows_nothing_of_before() {
        let read = |length: usize, byte: u8, count: usize| {
            fill(length, |bytes| {
                bytes[..count].fill(byte);
                Ok::<_, ()>(count)
            })
        };
        let length = KEPT_BYTES_MAX - 1;
        for round in 0..(2 * KEPT_MAX as u8) {
            let long = read(length, round, length).unwrap();
            assert!(long.len() == length && long.iter().all(|byte| *byte == round));
            let part = long.slice(1..3);
            drop(long);
            let short = read(KEPT_BYTES_MIN, !round, 70).unwrap();
            assert_eq!(&short[..], &[!round; 70]);
            assert_eq!(&part[..], [round; 2], "in use until the last part of it is dropped");
        }
        assert!(FREE.lock().len() <= KEPT_MAX);
        assert_eq!(fill(KEPT_BYTES_MIN, |_| Err::<usize, _>("why")), Err("why"));
        assert_eq!(read(10, 1, 3).unwrap(), [1; 3][..]);
    }
}
