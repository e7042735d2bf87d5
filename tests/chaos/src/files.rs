//! Reads the files of a partition by docs/format.md alone; shares no code with the server.
//!
//! What contradicts the document is an error. Damage and torn tails are no contradictions: they are told.
//! Not here: indexes and snapshots, which are caches (`tests/format/read_segment.py` checks indexes).

mod batch;
mod segment;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, ensure};

use segment::{Frame, Seal, Segment};

/// A record in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileRecord {
    /// Its offset.
    pub offset: u64,
    /// Its number; `None` if a byte of it is not as it was sent.
    pub value: Option<u64>,
    /// Producer id, epoch and base sequence of its batch, if it has a producer, and whether that is a request's.
    pub stamp: Option<(u64, u32, u32, bool)>,
    /// Its create time, Unix milliseconds.
    pub create_ms: i64,
    /// Its append time, Unix milliseconds.
    pub append_ms: i64,
}

/// A partition as its files have it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FileLog {
    /// The log start.
    pub start: u64,
    /// The offset that comes next.
    pub next: u64,
    /// The attested end: nothing below it may be missing.
    pub attested: u64,
    /// The records from the log start on.
    pub records: Vec<FileRecord>,
    /// Acknowledged offsets that cannot be read.
    pub damaged: Vec<(u64, u64)>,
    /// Files with a tail that was never acknowledged.
    pub torn: Vec<String>,
}

/// A position in a log: base offset of a segment, position in its file, offset of the record behind it.
type Place = (u64, u64, u64);

/// The folders of all partitions: topic id, partition, folder.
///
/// # Errors
/// Those of the file system.
pub fn partitions(data: &Path) -> anyhow::Result<Vec<(String, u32, PathBuf)>> {
    let mut found = Vec::new();
    for topic in fs::read_dir(data.join("topics")).context("the folder of topics")? {
        let topic = topic?;
        for partition in fs::read_dir(topic.path())? {
            let partition = partition?;
            let number = partition.file_name().to_string_lossy().parse();
            let number = number.with_context(|| format!("{}", partition.path().display()))?;
            found.push((topic.file_name().to_string_lossy().into_owned(), number, partition.path()));
        }
    }
    found.sort();
    Ok(found)
}

/// A partition of the data directory. `compacted` says which records were sent to it.
///
/// # Errors
/// What contradicts docs/format.md, and the errors of the file system.
pub fn read(data: &Path, topic: &str, partition: u32, compacted: bool) -> anyhow::Result<FileLog> {
    let id = u128::from_str_radix(&topic.replace('-', ""), 16).context("a topic's id is a UUID")?;
    let folder = data.join("topics").join(topic).join(partition.to_string());
    let mut paths: Vec<_> =
        fs::read_dir(&folder)?.map(|entry| Ok(entry?.path())).collect::<anyhow::Result<_>>()?;
    paths.retain(|path| path.extension().is_some_and(|suffix| suffix == "log"));
    paths.sort();
    let mut segments = Vec::new();
    let mut covered = 0;
    for path in &paths {
        let segment = Segment::open(path, id, partition).with_context(|| path.display().to_string())?;
        // One inside the range of an earlier one is superseded.
        if segment.base >= covered {
            covered = covered.max(segment.range_end);
            segments.push(segment);
        }
    }
    ensure!(!segments.is_empty(), "{}: a partition has a segment", folder.display());
    let frames: Vec<Vec<(usize, Option<Frame>)>> = segments.iter().map(Segment::frames).collect();
    let mut attested = witness(&fs::read(data.join("witness")).unwrap_or_default(), id, partition);
    for (segment, frames) in segments.iter().zip(&frames) {
        let claims = frames.iter().filter_map(|(_, frame)| Some(frame.as_ref()?.claim));
        attested = claims.chain([attested]).max().unwrap_or(attested);
        if segment.range_end > 0 {
            attested = attested.max((segment.range_end, segment::HEADER as u64, segment.range_end));
        }
    }
    let mut walk = Walk {
        log: FileLog {
            start: log_start(&folder, segments[0].base),
            attested: attested.2,
            ..Default::default()
        },
        attested,
        compacted,
        next: segments[0].base,
        last_time: i64::MIN,
        lost_from: None,
    };
    let count = segments.len();
    for (number, (segment, frames)) in segments.iter().zip(frames).enumerate() {
        let ended = walk
            .segment(segment, frames, number + 1 == count)
            .with_context(|| format!("{}/{}", folder.display(), segment.name))?;
        if ended {
            break;
        }
    }
    if let Some(from) = walk.lost_from {
        walk.log.damaged.push((from, attested.2.max(from)));
    }
    walk.log.next = walk.next;
    let start = walk.log.start;
    walk.log.records.retain(|record| record.offset >= start);
    Ok(walk.log)
}

struct Walk {
    log: FileLog,
    attested: Place,
    compacted: bool,
    next: u64,
    last_time: i64,
    lost_from: Option<u64>,
}

impl Walk {
    /// Whether the log ends in this segment.
    fn segment(
        &mut self,
        segment: &Segment,
        frames: Vec<(usize, Option<Frame>)>,
        last: bool,
    ) -> anyhow::Result<bool> {
        if segment.base > self.next && !self.compacted && self.lost_from.is_none() {
            self.lost_from = Some(self.next);
        }
        let (mut link, mut whole, mut sealed) = (Some(segment.check), true, false);
        let mut totals = Seal::default();
        for (position, frame) in frames {
            let linked = frame.as_ref().is_some_and(|frame| link.is_none_or(|link| link == frame.link));
            if !linked {
                if (segment.base, position as u64) >= (self.attested.0, self.attested.1) {
                    self.log.torn.push(segment.name.clone());
                    return Ok(true);
                }
                (whole, link) = (false, None);
                self.lost_from.get_or_insert(self.next);
            }
            let Some(frame) = frame else { continue };
            ensure!(!sealed, "nothing lies behind a seal");
            ensure!(frame.time >= self.last_time, "append times never decrease");
            self.last_time = frame.time;
            link = Some(frame.check);
            if frame.kind == segment::SEAL {
                sealed = true;
                let seal = Seal::decode(&frame.payload)?;
                ensure!(!whole || seal.agrees(&totals, self.next), "{seal:?}, but there are {totals:?}");
                continue;
            }
            self.batch(segment, &frame, &mut totals)?;
        }
        ensure!(sealed || !whole || last, "a segment that is not the last is sealed");
        let short = whole && segment.range_end > 0 && self.next != segment.range_end;
        ensure!(!short, "a range is covered to its end");
        Ok(false)
    }

    fn batch(&mut self, segment: &Segment, frame: &Frame, totals: &mut Seal) -> anyhow::Result<()> {
        let header = batch::Header::decode(&frame.payload)?;
        if let Some(from) = self.lost_from.take() {
            self.log.damaged.push((from, header.base));
        } else if segment.range_end > 0 {
            ensure!(header.base >= self.next, "offsets rise");
        } else {
            ensure!(header.base == self.next, "offsets are dense: {} and then {}", self.next, header.base);
        }
        self.next = header.base + u64::from(header.last_delta) + 1;
        let records = batch::records(&header, &frame.payload, self.compacted)?;
        let dense =
            segment.range_end > 0 || header.control || records.len() as u64 == self.next - header.base;
        ensure!(dense, "a batch that was not compacted is dense");
        totals.add(frame.time, &records);
        self.log
            .records
            .extend(records.into_iter().map(|record| FileRecord { append_ms: frame.time, ..record }));
        Ok(())
    }
}

fn log_start(folder: &Path, first: u64) -> u64 {
    let Ok(bytes) = fs::read(folder.join("log-start")) else { return 0 };
    let valid = bytes.len() == 20
        && bytes.starts_with(b"RIMSTLST")
        && crc32fast::hash(&bytes[..16]).to_be_bytes() == bytes[16..];
    if valid { segment::u64_at(&bytes, 8) } else { first }
}

/// The durable end that the witness has for a partition.
fn witness(bytes: &[u8], topic: u128, partition: u32) -> Place {
    const SLOT: usize = 64;
    let whole = bytes.len() >= 512
        && bytes.starts_with(b"RIMSTWIT")
        && crc32fast::hash(&bytes[..508]).to_be_bytes() == bytes[508..512];
    if !whole {
        return (0, 0, 0);
    }
    let slots = bytes[512..].chunks_exact(SLOT).filter(|slot| {
        slot[..16] == topic.to_be_bytes()
            && slot[16..20] == partition.to_be_bytes()
            && crc32fast::hash(&slot[..60]).to_be_bytes() == slot[60..]
    });
    let newest = slots.max_by_key(|slot| segment::u64_at(slot, 20));
    newest.map_or((0, 0, 0), |slot| {
        (segment::u64_at(slot, 28), segment::u64_at(slot, 36), segment::u64_at(slot, 44))
    })
}

#[cfg(test)]
mod tests;
