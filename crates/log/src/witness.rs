//! The witness: one small file per data directory that has, for each partition, a durable end. It is written
//! with the group that follows and made durable with it, so that what it says was durable before it said so.
//!
//! Each partition has a slot in each of two banks that lie in different sectors and are written in turn: a
//! torn write spoils at most the newer of the two. `docs/format.md` has the bytes.

use std::{
    collections::HashMap,
    fs::File,
    path::{Path, PathBuf},
};

use rimstone_types::{PartitionId, PartitionIndex, TopicId};

use crate::{
    error::FileError,
    files,
    frame::{LogPosition, SEGMENT_HEADER_LENGTH, offset_at, u32_at, u64_at},
};

const MAGIC: [u8; 8] = *b"RIMSTWIT";
const VERSION: u16 = 1;
/// The unit that a disk writes whole.
const SECTOR: usize = 512;
const SLOT: usize = 64;
const SLOTS_PER_SECTOR: usize = SECTOR / SLOT;
/// The largest witness that is read: more slots than there may be partitions.
const WITNESS_BYTES_MAX: u64 = 256 << 20;

#[derive(Debug, Clone, Copy)]
struct Slot {
    index: usize,
    sequence: u64,
}

/// The witness file, open.
#[derive(Debug)]
pub struct Witness {
    file: File,
    path: PathBuf,
    slots: HashMap<PartitionId, Slot>,
    free: Vec<usize>,
    used: usize,
}

fn place(index: usize, sequence: u64) -> u64 {
    let pair = index / SLOTS_PER_SECTOR;
    let bank = (sequence & 1) as usize;
    (SECTOR + (pair * 2 + bank) * SECTOR + (index % SLOTS_PER_SECTOR) * SLOT) as u64
}

fn encode(partition: PartitionId, sequence: u64, end: LogPosition) -> [u8; SLOT] {
    let mut out = [0; SLOT];
    out[0..16].copy_from_slice(partition.topic.as_bytes());
    out[16..20].copy_from_slice(&partition.partition.0.to_be_bytes());
    out[20..28].copy_from_slice(&sequence.to_be_bytes());
    out[28..36].copy_from_slice(&end.segment.get().to_be_bytes());
    out[36..44].copy_from_slice(&end.position.to_be_bytes());
    out[44..52].copy_from_slice(&end.offset.get().to_be_bytes());
    // 52..60: reserved, 0.
    let check = crc32fast::hash(&out[..60]);
    out[60..64].copy_from_slice(&check.to_be_bytes());
    out
}

fn decode(slot: &[u8]) -> Option<(PartitionId, u64, LogPosition)> {
    if slot.iter().all(|byte| *byte == 0) || u32_at(slot, 60) != crc32fast::hash(&slot[..60]) {
        return None;
    }
    let mut topic = [0; 16];
    topic.copy_from_slice(&slot[0..16]);
    let partition = PartitionId {
        topic: TopicId(uuid::Uuid::from_bytes(topic)),
        partition: PartitionIndex(u32_at(slot, 16)),
    };
    let end = LogPosition {
        segment: offset_at(slot, 28).ok()?,
        position: u64_at(slot, 36),
        offset: offset_at(slot, 44).ok()?,
    };
    // No end lies before its segment begins: believing it would give offsets out again.
    let is_one = end.offset >= end.segment && end.position >= SEGMENT_HEADER_LENGTH as u64;
    is_one.then_some((partition, u64_at(slot, 20), end))
}

/// What a witness file says: the newest readable slot of each partition, and which slot that is. Each has a check of its
/// own, so that damage of the header is no reason to doubt it; a header that is right and says something else is.
fn read(bytes: &[u8]) -> HashMap<PartitionId, (Slot, LogPosition)> {
    let mut found: HashMap<PartitionId, (Slot, LogPosition)> = HashMap::new();
    if is_another_kind(bytes) {
        return found;
    }
    for (sector, content) in bytes.chunks(SECTOR).enumerate().skip(1) {
        for (number, slot) in content.chunks_exact(SLOT).enumerate() {
            let Some((partition, sequence, end)) = decode(slot) else { continue };
            let index = (sector - 1) / 2 * SLOTS_PER_SECTOR + number;
            let newer = found.get(&partition).is_none_or(|(known, _)| known.sequence < sequence);
            if newer {
                found.insert(partition, (Slot { index, sequence }, end));
            }
        }
    }
    found
}

/// Reads a witness file without opening it for writing: for `inspect`.
///
/// # Errors
/// [`FileError`].
pub fn read_witness(path: &Path) -> Result<Vec<(PartitionId, LogPosition)>, FileError> {
    let (bytes, _) = files::read_small_around(path, WITNESS_BYTES_MAX)?.unwrap_or_default();
    let mut all: Vec<_> = read(&bytes).into_iter().map(|(partition, (_, end))| (partition, end)).collect();
    all.sort_unstable();
    Ok(all)
}

fn header() -> [u8; SECTOR] {
    let mut out = [0; SECTOR];
    out[0..8].copy_from_slice(&MAGIC);
    out[8..10].copy_from_slice(&VERSION.to_be_bytes());
    let check = crc32fast::hash(&out[..508]);
    out[508..512].copy_from_slice(&check.to_be_bytes());
    out
}

/// Whether the header is right, and not ours: another version has written it.
fn is_another_kind(bytes: &[u8]) -> bool {
    bytes.len() >= SECTOR && !header_is_valid(bytes) && u32_at(bytes, 508) == crc32fast::hash(&bytes[..508])
}

fn header_is_valid(bytes: &[u8]) -> bool {
    bytes.len() >= SECTOR && bytes[..SECTOR] == header()
}

impl Witness {
    /// Opens the witness, or makes it, and answers the ends that it has. Where it is damaged it is made anew, with all
    /// slots that are right; recovery reads whole logs of partitions without one.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn open(path: &Path) -> Result<(Self, HashMap<PartitionId, LogPosition>), FileError> {
        let found = files::read_small_around(path, WITNESS_BYTES_MAX)?;
        let is_new = found.is_none();
        let (mut bytes, readable) = found.unwrap_or_default();
        let known = read(&bytes);
        if is_new || !readable || !header_is_valid(&bytes) {
            if !is_new {
                let slots = known.len();
                tracing::warn!(path = %path.display(), slots, "the witness is damaged; where it has no slot whole logs are read instead");
            }
            if bytes.len() < SECTOR || is_another_kind(&bytes) {
                bytes.clear();
                bytes.resize(SECTOR, 0);
            }
            bytes[..SECTOR].copy_from_slice(&header());
            // In another file: into a page that cannot be read no slot can be written.
            files::replace_file(path, &bytes, true)?;
        }
        let file = files::open_read_write(path)?;
        let used = bytes.len().saturating_sub(SECTOR).div_ceil(2 * SECTOR) * SLOTS_PER_SECTOR;
        let taken: std::collections::HashSet<usize> = known.values().map(|(slot, _)| slot.index).collect();
        let witness = Self {
            file,
            path: path.to_owned(),
            free: (0..used).filter(|index| !taken.contains(index)).collect(),
            used,
            slots: known.iter().map(|(partition, (slot, _))| (*partition, *slot)).collect(),
        };
        Ok((witness, known.into_iter().map(|(partition, (_, end))| (partition, end)).collect()))
    }

    /// Writes durable ends, into the page cache. They count once a sync has covered them.
    ///
    /// # Errors
    /// [`FileError`]; what was there before still counts.
    pub fn record(&mut self, partition: PartitionId, end: LogPosition) -> Result<(), FileError> {
        let slot = match self.slots.get(&partition) {
            Some(slot) => Slot { sequence: slot.sequence + 1, ..*slot },
            None => {
                let index = self.free.pop().unwrap_or_else(|| {
                    self.used += 1;
                    self.used - 1
                });
                Slot { index, sequence: 1 }
            }
        };
        let content = encode(partition, slot.sequence, end);
        files::write_at(&self.file, &content, place(slot.index, slot.sequence))
            .map_err(|error| FileError::new("write", &self.path, error))?;
        self.slots.insert(partition, slot);
        Ok(())
    }

    /// Makes it durable on its own.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn sync(&self) -> Result<(), FileError> {
        files::sync_data(&self.file).map_err(|error| FileError::new("sync", &self.path, error))
    }

    /// The partition is deleted; its slot is for another.
    pub fn forget(&mut self, partition: PartitionId) {
        if let Some(slot) = self.slots.remove(&partition) {
            self.free.push(slot.index);
        }
    }

    /// The file, to be synced with others where there is no sync for all.
    pub fn file(&self) -> &File {
        &self.file
    }
}

#[cfg(test)]
mod tests {
    use rimstone_types::Offset;

    use super::*;

    fn partition(n: u32) -> PartitionId {
        PartitionId { topic: TopicId::CATALOG, partition: PartitionIndex(n) }
    }

    fn end(n: u64) -> LogPosition {
        LogPosition { segment: Offset::ZERO, position: 72 + n, offset: Offset::new(n).unwrap() }
    }

    #[test]
    fn an_end_that_none_can_be_does_not_count() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("witness");
        let (mut witness, _) = Witness::open(&path).unwrap();
        witness.record(partition(0), end(5)).unwrap();
        let before_its_segment = LogPosition { segment: Offset::new(9).unwrap(), ..end(8) };
        witness.record(partition(0), before_its_segment).unwrap();
        witness.record(partition(1), LogPosition { position: 71, ..end(8) }).unwrap();
        drop(witness);
        let (_, known) = Witness::open(&path).unwrap();
        assert_eq!(known.into_iter().collect::<Vec<_>>(), [(partition(0), end(5))]);
    }

    #[test]
    fn ends_survive_and_slots_are_used_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("witness");
        let (mut witness, known) = Witness::open(&path).unwrap();
        assert!(known.is_empty());
        for n in 0..20 {
            witness.record(partition(n), end(u64::from(n))).unwrap();
            witness.record(partition(n), end(u64::from(n) + 100)).unwrap();
        }
        witness.forget(partition(3));
        witness.record(partition(99), end(7)).unwrap();
        drop(witness);
        let (_, known) = Witness::open(&path).unwrap();
        assert_eq!(known[&partition(19)], end(119));
        assert_eq!(known[&partition(99)], end(7));
        assert_eq!(read_witness(&path).unwrap().len(), known.len());
    }

    #[test]
    fn a_torn_sector_leaves_the_end_before() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("witness");
        let (mut witness, _) = Witness::open(&path).unwrap();
        witness.record(partition(0), end(1)).unwrap();
        witness.record(partition(0), end(2)).unwrap();
        drop(witness);
        let good = std::fs::read(&path).unwrap();
        for at in SECTOR..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            std::fs::write(&path, &bad).unwrap();
            let (_, known) = Witness::open(&path).unwrap();
            let found = known.get(&partition(0)).copied();
            assert!(found == Some(end(1)) || found == Some(end(2)), "byte {at}: {found:?}");
        }
    }

    /// Two partitions with two ends each in different sectors.
    fn filled(path: &Path) -> Vec<u8> {
        let (mut witness, _) = Witness::open(path).unwrap();
        for n in 0..200 {
            witness.record(partition(n), end(u64::from(n))).unwrap();
            witness.record(partition(n), end(u64::from(n) + 1000)).unwrap();
        }
        drop(witness);
        std::fs::read(path).unwrap()
    }

    #[test]
    fn a_damaged_header_costs_no_slot() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("witness");
        let good = filled(&path);
        for at in 0..SECTOR {
            let mut bad = good.clone();
            bad[at] ^= 1 << (at % 8);
            std::fs::write(&path, &bad).unwrap();
            assert_eq!(read_witness(&path).unwrap().len(), 200, "byte {at}");
            let (mut witness, known) = Witness::open(&path).unwrap();
            assert_eq!((known.len(), known[&partition(7)]), (200, end(1007)), "byte {at}");
            assert_eq!(std::fs::read(&path).unwrap(), good, "byte {at}: the header is mended");
            witness.record(partition(7), end(5000)).unwrap();
            assert_eq!(Witness::open(&path).unwrap().1[&partition(7)], end(5000));
        }
        // A file that is none of it is made anew.
        for other in [&b""[..], &[7; 100], &good[..300]] {
            std::fs::write(&path, other).unwrap();
            assert!(Witness::open(&path).unwrap().1.is_empty());
            assert_eq!(std::fs::read(&path).unwrap(), header());
        }
    }

    #[test]
    fn a_sector_that_cannot_be_read_costs_its_slots_and_no_start() {
        for bad in [0..1, 4096..4097, 8192..8200] {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("witness");
            filled(&path);
            files::bad_sectors::add(&path, bad.clone());
            let before = files::bad_sectors::inode(&path);
            assert!(read_witness(&path).is_ok());
            let (mut witness, known) = Witness::open(&path).unwrap();
            assert!((100..200).contains(&known.len()), "{bad:?}: {}", known.len());
            for (partition, found) in &known {
                let number = u64::from(partition.partition.0);
                assert!([end(number), end(number + 1000)].contains(found), "{bad:?}: {number}: {found:?}");
            }
            assert_ne!(
                files::bad_sectors::inode(&path),
                before,
                "nothing is written in place where it cannot be read"
            );
            for n in 0..200 {
                witness.record(partition(n), end(u64::from(n) + 2000)).unwrap();
            }
            files::bad_sectors::heal();
            let (_, known) = Witness::open(&path).unwrap();
            assert_eq!((known.len(), known[&partition(150)]), (200, end(2150)), "{bad:?}");
        }
    }
}
