//! The sparse index of a segment: an entry about every `index.interval.bytes` of log, by offset and by time in
//! one. A cache: never evidence about the log, rebuilt when missing or wrong. `docs/format.md` has the bytes.
//!
//! Not here: judging the frame that an entry points at (`reader` does, each time).

use std::{fs::File, path::Path};

use rimstone_types::{Offset, Timestamp};

use crate::{
    error::FileError,
    files,
    frame::{FrameError, Totals, i64_at, offset_at, u32_at, u64_at},
    planted::{self, Bug},
};

const MAGIC: [u8; 8] = *b"RIMSTIDX";
const VERSION: u16 = 1;
pub(crate) const INDEX_HEADER_LENGTH: usize = 96;
pub(crate) const ENTRY_LENGTH: usize = 32;

/// One entry: a frame, and what lies before it in the segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IndexEntry {
    /// Base offset of the frame's batch, less the segment's base.
    pub offset_delta: u32,
    /// Where the frame begins.
    pub position: u32,
    /// Records in the segment before it.
    pub records_before: u32,
    /// The largest record time in the segment before it; `Timestamp::MIN` for the first.
    pub max_time_before: Timestamp,
    /// The frame's append time.
    pub append_time: Timestamp,
}

/// The head of an index file: the segment as it was when the file was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IndexHeader {
    /// The segment's salt, so that the index of an older file of the same name is not taken for this one's.
    pub salt: u32,
    /// The segment's base offset.
    pub base: Offset,
    /// Where its frames ended.
    pub end: u64,
    /// The check of its last frame.
    pub last_check: u32,
    /// Entries in the file.
    pub entries: u32,
    /// Totals up to `end`.
    pub totals: Totals,
}

impl IndexEntry {
    fn encode(&self, salt: u32) -> [u8; ENTRY_LENGTH] {
        let mut out = [0; ENTRY_LENGTH];
        out[0..4].copy_from_slice(&self.offset_delta.to_be_bytes());
        out[4..8].copy_from_slice(&self.position.to_be_bytes());
        out[8..12].copy_from_slice(&self.records_before.to_be_bytes());
        out[16..24].copy_from_slice(&self.max_time_before.0.to_be_bytes());
        out[24..32].copy_from_slice(&self.append_time.0.to_be_bytes());
        let check = entry_check(&out, salt);
        out[12..16].copy_from_slice(&check.to_be_bytes());
        out
    }

    fn decode(bytes: &[u8], salt: u32) -> Option<Self> {
        (planted::is(Bug::TrustIndex) || u32_at(bytes, 12) == entry_check(bytes, salt)).then(|| Self {
            offset_delta: u32_at(bytes, 0),
            position: u32_at(bytes, 4),
            records_before: u32_at(bytes, 8),
            max_time_before: Timestamp(i64_at(bytes, 16)),
            append_time: Timestamp(i64_at(bytes, 24)),
        })
    }
}

fn entry_check(bytes: &[u8], salt: u32) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&salt.to_be_bytes());
    hasher.update(&bytes[..12]);
    hasher.update(&bytes[16..ENTRY_LENGTH]);
    hasher.finalize()
}

impl IndexHeader {
    fn encode(&self) -> [u8; INDEX_HEADER_LENGTH] {
        let mut out = [0; INDEX_HEADER_LENGTH];
        out[0..8].copy_from_slice(&MAGIC);
        out[8..10].copy_from_slice(&VERSION.to_be_bytes());
        out[12..16].copy_from_slice(&self.salt.to_be_bytes());
        out[16..24].copy_from_slice(&self.base.get().to_be_bytes());
        out[24..32].copy_from_slice(&self.end.to_be_bytes());
        out[32..36].copy_from_slice(&self.last_check.to_be_bytes());
        out[36..40].copy_from_slice(&self.entries.to_be_bytes());
        out[40..92].copy_from_slice(&self.totals.encode());
        let check = crc32fast::hash(&out[..92]);
        out[92..96].copy_from_slice(&check.to_be_bytes());
        out
    }

    /// Reads the head of an index file.
    ///
    /// # Errors
    /// [`FrameError`], naming what is wrong.
    pub fn decode(bytes: &[u8]) -> Result<Self, FrameError> {
        if bytes.len() < INDEX_HEADER_LENGTH {
            return Err(FrameError::Short { have: bytes.len(), need: INDEX_HEADER_LENGTH });
        }
        let expected = crc32fast::hash(&bytes[..92]);
        let found = u32_at(bytes, 92);
        if found != expected {
            return Err(FrameError::Check { found, expected });
        }
        let version = u16::from_be_bytes([bytes[8], bytes[9]]);
        if bytes[0..8] != MAGIC || version != VERSION {
            return Err(FrameError::Field(format!("not an index of version {VERSION}")));
        }
        Ok(Self {
            salt: u32_at(bytes, 12),
            base: offset_at(bytes, 16)?,
            end: u64_at(bytes, 24),
            last_check: u32_at(bytes, 32),
            entries: u32_at(bytes, 36),
            totals: Totals::decode(&bytes[40..92])?,
        })
    }
}

/// The content of an index file.
pub(crate) fn encode(header: IndexHeader, entries: &[IndexEntry]) -> Vec<u8> {
    let header = IndexHeader { entries: entries.len() as u32, ..header };
    let mut out = Vec::with_capacity(INDEX_HEADER_LENGTH + entries.len() * ENTRY_LENGTH);
    out.extend_from_slice(&header.encode());
    for entry in entries {
        out.extend_from_slice(&entry.encode(header.salt));
    }
    out
}

/// An index file that was opened, its head verified; entries are verified one by one as they are read.
#[derive(Debug)]
pub(crate) struct IndexFile {
    file: File,
    pub(crate) header: IndexHeader,
}

impl IndexFile {
    /// Opens one; `None` if it is missing or its head is wrong, or does not fit its own length.
    pub(crate) fn open(path: &Path) -> Result<Option<Self>, FileError> {
        let Ok(file) = files::open_read(path) else { return Ok(None) };
        let mut head = [0; INDEX_HEADER_LENGTH];
        let read = files::read_around(&file, path, &mut head, 0)?;
        let Ok(header) = IndexHeader::decode(&head[..read]) else { return Ok(None) };
        let length = file.metadata().map_err(|error| FileError::new("stat", path, error))?.len();
        let needed = INDEX_HEADER_LENGTH as u64 + u64::from(header.entries) * ENTRY_LENGTH as u64;
        Ok((length == needed).then_some(Self { file, header }))
    }

    /// All entries, or `None` if one is wrong. Bounded by the file's real length, which `open` has checked.
    pub(crate) fn entries(&self, path: &Path) -> Result<Option<Vec<IndexEntry>>, FileError> {
        let mut bytes = vec![0; self.header.entries as usize * ENTRY_LENGTH];
        if files::read_around(&self.file, path, &mut bytes, INDEX_HEADER_LENGTH as u64)? < bytes.len() {
            return Ok(None);
        }
        Ok(bytes
            .chunks_exact(ENTRY_LENGTH)
            .map(|entry| IndexEntry::decode(entry, self.header.salt))
            .collect())
    }

    /// The last entry of the prefix for which `within` holds. `Err(())`: an entry is wrong.
    pub(crate) fn search(
        &self,
        path: &Path,
        within: impl Fn(&IndexEntry) -> bool,
    ) -> Result<Result<Option<IndexEntry>, ()>, FileError> {
        let (mut low, mut high) = (0u64, u64::from(self.header.entries));
        let mut found = None;
        while low < high {
            let middle = low + (high - low) / 2;
            let mut bytes = [0; ENTRY_LENGTH];
            let at = INDEX_HEADER_LENGTH as u64 + middle * ENTRY_LENGTH as u64;
            if files::read_around(&self.file, path, &mut bytes, at)? < ENTRY_LENGTH {
                return Ok(Err(()));
            }
            let Some(entry) = IndexEntry::decode(&bytes, self.header.salt) else { return Ok(Err(())) };
            if within(&entry) {
                found = Some(entry);
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        Ok(Ok(found))
    }
}

/// The last entry of the prefix for which `within` holds.
pub(crate) fn search(entries: &[IndexEntry], within: impl Fn(&IndexEntry) -> bool) -> Option<IndexEntry> {
    let count = entries.partition_point(within);
    count.checked_sub(1).map(|last| entries[last])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(n: u32) -> IndexEntry {
        IndexEntry {
            offset_delta: n * 10,
            position: 72 + n * 4096,
            records_before: n * 10,
            max_time_before: Timestamp(i64::from(n)),
            append_time: Timestamp(i64::from(n)),
        }
    }

    fn header() -> IndexHeader {
        IndexHeader {
            salt: 9,
            base: Offset::ZERO,
            end: 1,
            last_check: 2,
            entries: 0,
            totals: Totals::empty(Offset::ZERO),
        }
    }

    #[test]
    fn the_file_answers_as_the_memory_does() {
        let entries: Vec<_> = (0..100).map(entry).collect();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("i");
        std::fs::write(&path, encode(header(), &entries)).unwrap();
        let file = IndexFile::open(&path).unwrap().unwrap();
        assert_eq!(file.entries(&path).unwrap().unwrap(), entries);
        for delta in [0, 5, 10, 994, 5000] {
            let within = |entry: &IndexEntry| entry.offset_delta <= delta;
            assert_eq!(file.search(&path, within).unwrap().unwrap(), search(&entries, within), "{delta}");
        }
        assert_eq!(search(&entries, |_| false), None);
    }

    #[test]
    fn every_flipped_byte_and_every_length_is_noticed() {
        let entries: Vec<_> = (0..5).map(entry).collect();
        let good = encode(header(), &entries);
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("i");
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x40;
            std::fs::write(&path, &bad).unwrap();
            let read = IndexFile::open(&path).unwrap().and_then(|file| file.entries(&path).unwrap());
            assert_ne!(read.as_ref(), Some(&entries), "byte {at}");
            std::fs::write(&path, &good[..at]).unwrap();
            assert!(IndexFile::open(&path).unwrap().is_none(), "length {at}");
        }
    }
}
