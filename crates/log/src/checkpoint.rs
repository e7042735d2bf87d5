//! Checkpoints: what a start needs to know of active segments without reading them. One small file per data
//! directory to which, every so often, a partition's totals and producers are added as of a place that is
//! durable. A cache, never evidence about the log: a start uses one only where the log's own checks lead on from
//! it, and reads the segment where none does. `docs/format.md` has the bytes.
//!
//! Not here: when one is due (`log`), what is done with it (`recovery`).

use std::{
    collections::HashMap,
    fs::File,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use rimstone_types::{PartitionId, PartitionIndex, TopicId};

use crate::{
    error::FileError,
    files,
    frame::{LogPosition, SEAL_LENGTH, Totals, offset_at, u32_at, u64_at},
    producers::ProducerTable,
};

const MAGIC: [u8; 8] = *b"RIMSTCKP";
const VERSION: u16 = 1;
const HEADER_LENGTH: usize = 16;
/// Bytes of a record before the producers, and behind them.
const RECORD_HEADER: usize = 48 + SEAL_LENGTH;
const RECORD_CHECK: usize = 4;
/// The largest file that is read or written. Beyond it a partition goes without, and a start reads more.
const FILE_BYTES_MAX: u64 = 256 << 20;
/// A file is written anew, without what is out of date, when it is larger than this and than ...
const REWRITE_BYTES_MIN: u64 = 4 << 20;
/// ... so many times what is not.
const REWRITE_FACTOR: u64 = 4;

/// How much of an active segment a start may have to read although it was durable long ago.
const INTERVAL_BYTES_MIN: u64 = 64 << 10;
/// ... or this part of what the segment has, if that is more: so what is read stays below a hundredth of the data.
const INTERVAL_PART: u64 = 64;
/// ... or so many times the checkpoint itself, so that checkpoints stay a small part of what is written.
const INTERVAL_CHECKPOINTS: u64 = 16;

/// How far a segment grows from one checkpoint of so many bytes to the next.
pub(crate) fn interval(position: u64, checkpoint_bytes: u64) -> u64 {
    INTERVAL_BYTES_MIN.max(position / INTERVAL_PART).max(checkpoint_bytes * INTERVAL_CHECKPOINTS)
}

/// What is known of a partition behind all frames up to a place in its active segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// Where.
    pub(crate) at: LogPosition,
    /// The segment's salt.
    pub(crate) salt: u32,
    /// The check of the frame that ends there.
    pub(crate) last_check: u32,
    /// What the segment holds up to there.
    pub(crate) totals: Totals,
    /// The body of a producer snapshot.
    pub(crate) producers: Bytes,
}

impl Checkpoint {
    pub(crate) fn new(
        at: LogPosition,
        salt: u32,
        last_check: u32,
        totals: Totals,
        table: &ProducerTable,
    ) -> Self {
        Self { at, salt, last_check, totals, producers: table.encode().into() }
    }

    /// Bytes in the file.
    pub(crate) fn size(&self) -> u64 {
        (RECORD_HEADER + self.producers.len() + RECORD_CHECK) as u64
    }

    /// The producers, if that is what the bytes are.
    pub(crate) fn producers(&self, limits: &crate::producers::Limits) -> Option<ProducerTable> {
        ProducerTable::decode(&self.producers, limits.clone()).ok()
    }

    fn encode(&self, id: PartitionId, out: &mut Vec<u8>) {
        let begin = out.len();
        out.extend_from_slice(&(self.size() as u32).to_be_bytes());
        out.extend_from_slice(id.topic.as_bytes());
        out.extend_from_slice(&id.partition.0.to_be_bytes());
        out.extend_from_slice(&self.at.segment.get().to_be_bytes());
        out.extend_from_slice(&self.at.position.to_be_bytes());
        out.extend_from_slice(&self.salt.to_be_bytes());
        out.extend_from_slice(&self.last_check.to_be_bytes());
        out.extend_from_slice(&self.totals.encode());
        out.extend_from_slice(&self.producers);
        let check = crc32fast::hash(&out[begin..]);
        out.extend_from_slice(&check.to_be_bytes());
    }

    /// One record from the front of the bytes, and how long it is; `None`: there is no whole one.
    fn decode(bytes: &Bytes) -> Option<(PartitionId, Self, usize)> {
        if bytes.len() < RECORD_HEADER + RECORD_CHECK {
            return None;
        }
        let length = u32_at(bytes, 0) as usize;
        if length < RECORD_HEADER + RECORD_CHECK || length > bytes.len() {
            return None;
        }
        let checked = length - RECORD_CHECK;
        if u32_at(bytes, checked) != crc32fast::hash(&bytes[..checked]) {
            return None;
        }
        let mut topic = [0; 16];
        topic.copy_from_slice(&bytes[4..20]);
        let id = PartitionId {
            topic: TopicId(uuid::Uuid::from_bytes(topic)),
            partition: PartitionIndex(u32_at(bytes, 20)),
        };
        let totals = Totals::decode(&bytes[48..RECORD_HEADER]).ok()?;
        let segment = offset_at(bytes, 24).ok()?;
        let checkpoint = Self {
            at: LogPosition { segment, position: u64_at(bytes, 32), offset: totals.next_offset },
            salt: u32_at(bytes, 40),
            last_check: u32_at(bytes, 44),
            totals,
            producers: bytes.slice(RECORD_HEADER..checked),
        };
        Some((id, checkpoint, length))
    }
}

/// Where the newest record of a partition lies.
#[derive(Debug, Clone, Copy)]
struct Place {
    at: u64,
    length: u32,
}

/// The file, open.
#[derive(Debug)]
pub struct Checkpoints {
    path: PathBuf,
    file: File,
    end: u64,
    places: HashMap<PartitionId, Place>,
}

fn header() -> [u8; HEADER_LENGTH] {
    let mut out = [0; HEADER_LENGTH];
    out[0..8].copy_from_slice(&MAGIC);
    out[8..10].copy_from_slice(&VERSION.to_be_bytes());
    let check = crc32fast::hash(&out[..12]);
    out[12..16].copy_from_slice(&check.to_be_bytes());
    out
}

impl Checkpoints {
    /// Opens the file, or makes it, and answers the newest checkpoint of each partition. What is behind an
    /// invalid record does not count.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn open(path: &Path) -> Result<(Self, HashMap<PartitionId, Checkpoint>), FileError> {
        let bytes = match files::read_small(path, FILE_BYTES_MAX) {
            Ok(bytes) => Bytes::from(bytes.unwrap_or_default()),
            Err(error) => {
                tracing::warn!(%error, "checkpoints cannot be read; logs are read instead");
                Bytes::new()
            }
        };
        let (mut newest, mut places, mut at) = (HashMap::new(), HashMap::new(), HEADER_LENGTH);
        if bytes.get(..HEADER_LENGTH) == Some(&header()[..]) {
            while let Some((id, checkpoint, length)) = Checkpoint::decode(&bytes.slice(at..)) {
                newest.insert(id, checkpoint);
                places.insert(id, Place { at: at as u64, length: length as u32 });
                at += length;
            }
        } else {
            files::replace_file(path, &header(), false)?;
        }
        let file = files::open_read_write(path)?;
        if bytes.len() > at {
            // So that what comes does not make old records count again that lie behind it.
            files::truncate(&file, at as u64).map_err(|error| FileError::new("truncate", path, error))?;
        }
        Ok((Self { path: path.to_owned(), file, end: at as u64, places }, newest))
    }

    /// Adds checkpoints of places that are durable, into the page cache. A partition for which `keep` does not
    /// hold is forgotten when the file is written anew. What cannot be written is no harm, but that a start reads more.
    pub fn add(&mut self, added: &[(PartitionId, Checkpoint)], keep: impl Fn(PartitionId) -> bool) {
        if let Err(error) = self.try_add(added, keep) {
            tracing::warn!(%error, "checkpoints were not written; a start after a crash will read more");
        }
    }

    fn try_add(
        &mut self,
        added: &[(PartitionId, Checkpoint)],
        keep: impl Fn(PartitionId) -> bool,
    ) -> Result<(), FileError> {
        let live = || self.places.values().map(|place| u64::from(place.length)).sum::<u64>();
        if self.end > REWRITE_BYTES_MIN && self.end > live() * REWRITE_FACTOR {
            self.rewrite(keep)?;
        }
        let mut out = Vec::new();
        let mut places = Vec::with_capacity(added.len());
        for (id, checkpoint) in added {
            let at = self.end + out.len() as u64;
            if at + checkpoint.size() > FILE_BYTES_MAX {
                break;
            }
            checkpoint.encode(*id, &mut out);
            places.push((*id, Place { at, length: checkpoint.size() as u32 }));
        }
        files::write_at(&self.file, &out, self.end)
            .map_err(|error| FileError::new("write", &self.path, error))?;
        self.end += out.len() as u64;
        self.places.extend(places);
        Ok(())
    }

    /// Only the newest record of each partition, under a name of its own until it is whole.
    fn rewrite(&mut self, keep: impl Fn(PartitionId) -> bool) -> Result<(), FileError> {
        let mut kept: Vec<(PartitionId, Place)> =
            self.places.iter().map(|(id, place)| (*id, *place)).filter(|(id, _)| keep(*id)).collect();
        kept.sort_unstable_by_key(|(_, place)| place.at);
        let mut out = header().to_vec();
        let mut places = HashMap::with_capacity(kept.len());
        for (id, place) in kept {
            let at = out.len();
            out.resize(at + place.length as usize, 0);
            let read = files::read_at(&self.file, &self.path, &mut out[at..], place.at)?;
            if read < place.length as usize {
                out.truncate(at);
                continue;
            }
            places.insert(id, Place { at: at as u64, ..place });
        }
        files::replace_file(&self.path, &out, false)?;
        self.file = files::open_read_write(&self.path)?;
        self.end = out.len() as u64;
        self.places = places;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use rimstone_types::{Offset, Timestamp};

    use super::*;
    use crate::producers::Limits;

    fn partition(n: u32) -> PartitionId {
        PartitionId { topic: TopicId::CATALOG, partition: PartitionIndex(n) }
    }

    fn checkpoint(position: u64) -> Checkpoint {
        let next = Offset::new(position).unwrap();
        let totals =
            Totals { records: position, frames: 3, last_append: Timestamp(7), ..Totals::empty(next) };
        let at = LogPosition { segment: Offset::ZERO, position, offset: next };
        Checkpoint::new(at, 5, 6, totals, &ProducerTable::new(Limits::default()))
    }

    #[test]
    fn the_newest_of_each_partition_comes_back_also_when_the_file_was_written_anew() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("c");
        let (mut file, known) = Checkpoints::open(&path).unwrap();
        assert!(known.is_empty());
        let rounds = 2 * REWRITE_BYTES_MIN / (checkpoint(1).size() * 100);
        for round in 1..=rounds {
            let added: Vec<_> = (0..100).map(|n| (partition(n), checkpoint(round + u64::from(n)))).collect();
            file.add(&added, |id| id != partition(7));
            assert!(
                std::fs::metadata(&path).unwrap().len() <= REWRITE_BYTES_MIN + 100 * checkpoint(1).size()
            );
        }
        file.rewrite(|id| id != partition(7)).unwrap();
        file.add(&[(partition(9), checkpoint(99))], |_| true);
        drop(file);
        let (_, known) = Checkpoints::open(&path).unwrap();
        assert_eq!(known.len(), 99, "one is not kept");
        assert_eq!(known[&partition(3)], checkpoint(rounds + 3));
        assert_eq!(known[&partition(9)], checkpoint(99));
    }

    #[test]
    fn of_a_damaged_file_only_what_is_whole_comes_back() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("c");
        let (mut file, _) = Checkpoints::open(&path).unwrap();
        let written =
            [(partition(0), checkpoint(1)), (partition(1), checkpoint(2)), (partition(0), checkpoint(3))];
        file.add(&written, |_| true);
        drop(file);
        let good = std::fs::read(&path).unwrap();
        let judge = |bytes: &[u8], what: &str| {
            std::fs::write(&path, bytes).unwrap();
            let (mut file, known) = Checkpoints::open(&path).unwrap();
            for found in &known {
                let found = (*found.0, found.1.clone());
                assert!(written.contains(&found), "{what}: {found:?}");
            }
            // And it is gone on with.
            file.add(&[(partition(2), checkpoint(4))], |_| true);
            drop(file);
            let (_, again) = Checkpoints::open(&path).unwrap();
            assert_eq!(again.len(), known.len() + 1, "{what}");
        };
        for at in 0..good.len() {
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[at] ^= 1 << bit;
                judge(&bad, &format!("byte {at}, bit {bit}"));
            }
            judge(&good[..at], &format!("length {at}"));
        }
    }
}
