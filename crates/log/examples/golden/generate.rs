//! What is in the golden directories. Everything is given: salts, times, records; so the same build writes the same
//! bytes each time, and a test of what this build writes is a comparison (`tests/golden.rs`).
//!
//! | kind | directories |
//! |---|---|
//! | `plain` | `clean`; `trimmed`, with a log start; `torn`, killed; `rotten`, with a flipped bit |
//! | `compacted` | a whole pass; killed between a rename and an unlink; with little memory |
//! | `given-up` | a loss that was accepted |
//! | `codecs` | every compression of the batch format, a batch with append times, a control batch |
//! | `passed-by` | compacted behind a segment that is rotten |
//! | `checkpoint` | killed, with a checkpoint of the active segment |

use std::{
    collections::BTreeMap,
    error::Error,
    fmt::Write as _,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use rimstone_log::{
    CHECKPOINTS_FILE, Checkpoint, Checkpoints, DataDirectory, Log, LogConfig, LogPosition, SaltSource,
    WITNESS_FILE, Witness,
    compaction::{CompactionError, CompactionSettings, CompactionStep},
    inspect, producers,
    producers::Claim,
    write_log_start,
};
use rimstone_record::{Batch, BatchBuilder, Compression, Header, Limits, NewRecord, ProducerStamp};
use rimstone_types::{
    Numbering, Offset, PartitionId, PartitionIndex, ProducerEpoch, ProducerId, Timestamp, TopicId,
};
use uuid::Uuid;

/// 2026-01-01T00:00:00Z.
const BEGAN: i64 = 1_767_225_600_000;

fn config() -> LogConfig {
    let salt = AtomicU32::new(0x5EED_0001);
    LogConfig {
        segment_bytes: 1200,
        segment_age: Duration::from_secs(3600),
        index_interval_bytes: 256,
        retention_age: None,
        retention_bytes: None,
        retention: true,
        append_time_stamps: false,
        producers: producers::Limits::default(),
        salts: SaltSource(Arc::new(move || salt.fetch_add(0x1000_0001, Ordering::Relaxed))),
    }
}

struct Writer {
    log: Log,
    path: PathBuf,
    expected: String,
    /// Offset, key and value of all records.
    records: Vec<(u64, String, Option<String>)>,
    serial: i64,
    /// The last one that was due.
    checkpoint: Option<Checkpoint>,
}

impl Writer {
    /// One batch of two records; which kind goes by the serial number, so that every kind is there.
    fn batch(&mut self) -> Result<(), Box<dyn Error>> {
        self.padded_batch(0, Ok)
    }

    /// The same with a header of so many bytes more in each record, and changed before it is offered.
    fn padded_batch(
        &mut self,
        padding: usize,
        change: impl FnOnce(Batch) -> Result<Batch, Box<dyn Error>>,
    ) -> Result<(), Box<dyn Error>> {
        self.serial += 1;
        let serial = self.serial;
        let compression = if serial % 3 == 0 { Compression::Lz4 } else { Compression::None };
        let mut builder = BatchBuilder::new(compression);
        let numbering = if serial % 2 == 0 { Numbering::ByRequest } else { Numbering::Dense };
        let numbered = serial % 5 != 0;
        if numbered {
            let (id, base) = match numbering {
                Numbering::ByRequest => (ProducerId::NAMED_BIT | 9, serial as u64),
                Numbering::Dense => (1000 + serial as u64, 0),
            };
            builder = builder.producer(ProducerStamp {
                id: ProducerId::new(id)?,
                epoch: ProducerEpoch::ZERO,
                base: base as u32,
                numbering,
            });
        }
        for number in 0..2 {
            let value = (serial % 7 != 0 || number == 0).then(|| format!("value {serial}.{number}"));
            let mut headers =
                vec![Header { key: "line".to_owned(), value: Some(Bytes::from(serial.to_string())) }];
            if padding > 0 {
                headers.push(Header { key: "padding".to_owned(), value: Some(vec![b'x'; padding].into()) });
            }
            builder.push(&NewRecord {
                key: Some(Bytes::from(format!("key {}", serial % 4))),
                value: value.clone().map(Bytes::from),
                headers,
                timestamp: Timestamp(BEGAN + serial * 1000 - number * 500),
            })?;
            let offset = self.log.staged_end().get() + number as u64;
            writeln!(self.expected, "{offset} {}", value.as_deref().unwrap_or("null"))?;
            self.records.push((offset, format!("key {}", serial % 4), value));
        }
        let batch = change(builder.build())?;
        let hash =
            (numbered && numbering == Numbering::ByRequest).then(|| batch.content_hash(&Limits::default()));
        let claim = Claim::of(batch.header(), hash.transpose()?);
        self.log.offer(&batch, claim.as_ref(), None, Timestamp(BEGAN + serial * 1000 + 7))?;
        Ok(())
    }

    fn write(&mut self) -> Result<(), Box<dyn Error>> {
        if let Some(mut plan) = self.log.take_plan() {
            plan.execute()?;
            let mut after = self.log.plan_succeeded(plan);
            self.checkpoint = after.checkpoint.take().or(self.checkpoint.take());
            let written = after.execute();
            self.log.snapshots_written(&written);
        }
        Ok(())
    }

    /// A pass over all sealed segments, within so much memory for keys. Stops after so many groups; the files that
    /// the last one replaced stay then, as a kill would leave them.
    fn compact(&mut self, map_bytes: usize, groups: usize) -> Result<(), Box<dyn Error>> {
        let settings = CompactionSettings {
            dirty_ratio: 0.0,
            min_lag: Duration::ZERO,
            max_lag: None,
            delete_retention: Duration::from_secs(24 * 3600),
            map_bytes,
        };
        // Neighbours become one.
        self.log.configure(LogConfig { segment_bytes: 3000, ..self.log.config().clone() });
        self.log.stage_snapshot(true);
        let until = self.sync()?.segment;
        let now = Timestamp(BEGAN + 3_600_000);
        // What a pass cannot read the next one passes by.
        let mut damaged = BTreeMap::new();
        let (mut found, mut pass);
        let mut done = 0;
        'passes: loop {
            found = Log::compactable(&self.log.reader(), until, &damaged, &settings, now);
            pass = self.log.begin_compaction(found, &settings, now);
            loop {
                match pass.advance(1 << 20) {
                    Err(CompactionError::Damaged { segment, reason }) => {
                        damaged.insert(segment, reason);
                        break;
                    }
                    Err(error) => return Err(error.into()),
                    Ok(CompactionStep::More | CompactionStep::Room(_)) => {}
                    Ok(CompactionStep::Done) => break 'passes,
                    Ok(CompactionStep::Replace(replacement)) => {
                        let snapshot = self.log.may_replace(&replacement)?;
                        let replaced = replacement.install(snapshot)?;
                        self.log.replaced(&replaced);
                        done += 1;
                        if done == groups {
                            break 'passes;
                        }
                        replaced.clean_up();
                    }
                }
            }
        }
        // What is expected follows from the rule, and from how far the pass came, which is in the headers. What it
        // learned reaches further where it stopped in between.
        let (mut cleaned, mut first) = (0, u64::MAX);
        for base in inspect::segments(&self.path)? {
            let header = inspect::SegmentView::open(&self.path, base)?.header;
            if header.range_end.is_some() {
                first = first.min(base.get());
                cleaned = cleaned.max(header.cleaned_end().get());
            }
        }
        let learned = if map_bytes == 1 { cleaned } else { until.get() };
        let records = &self.records;
        let is_last = |(offset, key, _): &(u64, String, Option<String>)| {
            let later = |(other, same, _): &(u64, String, Option<String>)| {
                same == key && other > offset && *other < learned
            };
            *offset < first || *offset >= cleaned || !records.iter().any(later)
        };
        self.expected.clear();
        for (offset, _, value) in records.iter().filter(|record| is_last(record)) {
            writeln!(self.expected, "{offset} {}", value.as_deref().unwrap_or("null"))?;
        }
        Ok(())
    }

    /// Flips a bit in the body of the first batch.
    fn rot_first(&mut self) -> Result<(), Box<dyn Error>> {
        let segment = self.path.join(format!("{:020}.log", 0));
        let mut content = fs::read(&segment)?;
        content[72 + 60 + 61 + 12] ^= 0x10;
        fs::write(&segment, &content)?;
        self.expected = self.expected.lines().skip(2).map(|line| format!("{line}\n")).collect();
        Ok(())
    }

    fn sync(&mut self) -> Result<LogPosition, Box<dyn Error>> {
        self.write()?;
        let position = self.log.written_position();
        self.log.synced(position);
        Ok(position)
    }
}

fn partition() -> PartitionId {
    PartitionId { topic: TopicId(Uuid::from_u128(0x601d)), partition: PartitionIndex(0) }
}

/// A data directory with one partition; `finish` ends it one way or another.
fn directory(
    root: &Path,
    name: &str,
    finish: impl FnOnce(&mut Writer, &mut Witness, &DataDirectory) -> Result<(), Box<dyn Error>>,
) -> Result<(), Box<dyn Error>> {
    let path = root.join(name);
    let data = DataDirectory::open(&path.join("data"), Uuid::from_u128(0xda7a), Timestamp(BEGAN))?;
    let (mut witness, _) = Witness::open(&data.path().join(WITNESS_FILE))?;
    let partition_path = data.create_partition(partition())?;
    let log = Log::create(&partition_path, partition(), config(), Timestamp(BEGAN))?;
    let mut writer = Writer {
        log,
        path: partition_path,
        expected: String::new(),
        records: Vec::new(),
        serial: 0,
        checkpoint: None,
    };
    for _ in 0..20 {
        writer.batch()?;
        let end = writer.sync()?;
        witness.record(partition(), end)?;
    }
    finish(&mut writer, &mut witness, &data)?;
    fs::write(path.join("expected.txt"), &writer.expected)?;
    // The process id in it would be another each time.
    fs::write(data.path().join("lock"), "")?;
    fs::remove_dir(data.path().join("trash"))?;
    Ok(())
}

fn newest_segment(directory: &Path) -> Result<PathBuf, Box<dyn Error>> {
    let mut all: Vec<_> = fs::read_dir(directory)?.flatten().map(|entry| entry.path()).collect();
    all.retain(|path| path.extension().is_some_and(|suffix| suffix == "log"));
    all.sort();
    all.pop().ok_or_else(|| "there is a segment".into())
}

/// Writes the directories of a kind, and the list of their hashes.
pub(crate) fn run(root: &Path, kind: &str) -> Result<(), Box<dyn Error>> {
    fs::create_dir_all(root)?;
    match kind {
        "plain" => plain(root)?,
        "compacted" => compacted(root)?,
        "given-up" => given_up(root)?,
        "codecs" => codecs(root)?,
        "passed-by" => passed_by(root)?,
        "checkpoint" => checkpoint(root)?,
        other => return Err(format!("no kind {other:?} of golden directories").into()),
    }
    let mut hashes = String::new();
    hash_files(root, root, &mut hashes)?;
    fs::write(root.join("HASHES"), hashes)?;
    Ok(())
}

/// After a whole pass and a clean stop; after a kill between a rename and the removal of what it replaced; and after
/// a pass whose memory was full.
fn compacted(root: &Path) -> Result<(), Box<dyn Error>> {
    directory(root, "clean", |writer, _, data| {
        writer.compact(1 << 20, usize::MAX)?;
        writer.log.caches().write()?;
        data.mark_clean()?;
        Ok(())
    })?;
    directory(root, "superseded", |writer, _, _| writer.compact(1 << 20, 1))?;
    directory(root, "partial", |writer, _, _| writer.compact(1, usize::MAX))
}

/// What was rotten is given up: its segment is written anew around it.
fn given_up(root: &Path) -> Result<(), Box<dyn Error>> {
    directory(root, "given-up", |writer, _, _| {
        writer.rot_first()?;
        writer.log.stage_snapshot(true);
        writer.sync()?;
        let plan = writer.log.reader().plan_loss(&[(Offset::ZERO, Offset::new(2)?)])?;
        for prepared in writer.log.loss_writer()(plan, Timestamp(BEGAN + 3_600_000)) {
            let prepared = prepared?;
            let snapshot = writer.log.may_replace(prepared.replacement())?;
            let (replaced, _) = prepared.install(&writer.path, snapshot)?;
            writer.log.replaced(&replaced);
            replaced.clean_up();
        }
        Ok(())
    })
}

fn plain(root: &Path) -> Result<(), Box<dyn Error>> {
    directory(root, "clean", |writer, _, data| {
        writer.log.caches().write()?;
        data.mark_clean()?;
        Ok(())
    })?;
    directory(root, "trimmed", |writer, _, data| {
        writer.log.stage_snapshot(true);
        writer.sync()?;
        let start = writer.log.clamp_start(Offset::new(17)?);
        write_log_start(&writer.path, start)?;
        for freed in writer.log.advance_start(start).unlink() {
            freed?;
        }
        writer.expected = writer.expected.lines().skip(17).map(|line| format!("{line}\n")).collect();
        writer.log.caches().write()?;
        data.mark_clean()?;
        Ok(())
    })?;
    // Killed: a batch above the attested end is whole and kept, the one behind it is torn.
    directory(root, "torn", |writer, _, _| {
        writer.batch()?;
        writer.write()?;
        let kept = writer.expected.clone();
        writer.batch()?;
        writer.write()?;
        writer.expected = kept;
        let segment = newest_segment(&writer.path)?;
        let content = fs::read(&segment)?;
        fs::write(&segment, &content[..content.len() - 9])?;
        Ok(())
    })?;
    // A flipped bit in the body of acknowledged data: its batch, and nothing else, is lost.
    directory(root, "rotten", |writer, _, _| writer.rot_first())?;
    Ok(())
}

/// Bytes that each codec makes fewer of.
const COMPRESSIBLE: usize = 200;

/// Each compression that the batch format knows, as clients send it; a batch stamped with the append time; and, at the
/// end, a control batch such as one that ends a transaction.
fn codecs(root: &Path) -> Result<(), Box<dyn Error>> {
    directory(root, "codecs", |writer, witness, data| {
        let mut keep = |writer: &mut Writer| -> Result<(), Box<dyn Error>> {
            let end = writer.sync()?;
            Ok(witness.record(partition(), end)?)
        };
        writer.padded_batch(COMPRESSIBLE, Ok)?; // 21: LZ4
        keep(writer)?;
        writer.padded_batch(COMPRESSIBLE, |batch| {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
            encoder.write_all(&batch.bytes()[BATCH_HEADER..])?;
            recompressed(&batch, Compression::Gzip, encoder.finish()?)
        })?;
        keep(writer)?;
        writer.padded_batch(COMPRESSIBLE, |batch| {
            let block = snap::raw::Encoder::new().compress_vec(&batch.bytes()[BATCH_HEADER..])?;
            recompressed(&batch, Compression::Snappy, block)
        })?;
        keep(writer)?;
        let settings = writer.log.config().clone();
        writer.log.configure(LogConfig { append_time_stamps: true, ..settings.clone() });
        writer.padded_batch(COMPRESSIBLE, Ok)?; // 24: LZ4
        keep(writer)?;
        writer.log.configure(settings);
        writer.padded_batch(COMPRESSIBLE, |batch| {
            // As Kafka's Java client frames it, here in two blocks: magic, version, compatible version.
            let mut body = b"\x82SNAPPY\0\0\0\0\x01\0\0\0\x01".to_vec();
            for piece in batch.bytes()[BATCH_HEADER..].chunks(COMPRESSIBLE) {
                let block = snap::raw::Encoder::new().compress_vec(piece)?;
                body.extend_from_slice(&(block.len() as u32).to_be_bytes());
                body.extend_from_slice(&block);
            }
            recompressed(&batch, Compression::Snappy, body)
        })?;
        keep(writer)?;
        writer.padded_batch(COMPRESSIBLE, |batch| {
            let level = ruzstd::encoding::CompressionLevel::Fastest;
            let body = ruzstd::encoding::compress_to_vec(&batch.bytes()[BATCH_HEADER..], level);
            recompressed(&batch, Compression::Zstd, body)
        })?;
        keep(writer)?;
        writer.log.offer(&end_of_transaction()?, None, None, Timestamp(BEGAN + 30_000))?;
        writer.log.configure(LogConfig { segment_age: Duration::ZERO, ..writer.log.config().clone() });
        writer.log.roll_if_old(Timestamp(BEGAN + 31_000));
        keep(writer)?;
        writer.log.caches().write()?;
        data.mark_clean()?;
        Ok(())
    })
}

const BATCH_HEADER: usize = 61;
const TRANSACTIONAL_AND_CONTROL: u8 = 0x30;

/// A batch that is not compressed, with its body compressed.
fn recompressed(batch: &Batch, compression: Compression, body: Vec<u8>) -> Result<Batch, Box<dyn Error>> {
    let mut bytes = batch.bytes()[..BATCH_HEADER].to_vec();
    if bytes[22] & 7 != 0 || body.len() >= batch.bytes().len() - BATCH_HEADER {
        return Err("it was compressed already, or does not compress".into());
    }
    bytes[22] |= compression.code();
    bytes.extend_from_slice(&body);
    sealed(bytes)
}

/// Length and checksum made right.
fn sealed(mut bytes: Vec<u8>) -> Result<Batch, Box<dyn Error>> {
    let length = bytes.len() as u32 - 12;
    bytes[8..12].copy_from_slice(&length.to_be_bytes());
    let check = crc32c::crc32c(&bytes[21..]);
    bytes[17..21].copy_from_slice(&check.to_be_bytes());
    Ok(Batch::verify(Bytes::from(bytes), &Limits::default())?)
}

/// A commit marker, as Kafka writes it: key version 0, type 1; value version 0, epoch 0; no sequence.
fn end_of_transaction() -> Result<Batch, Box<dyn Error>> {
    let mut builder = BatchBuilder::new(Compression::None).producer(ProducerStamp {
        id: ProducerId::new(1001)?,
        epoch: ProducerEpoch::ZERO,
        base: 0,
        numbering: Numbering::Dense,
    });
    builder.push(&NewRecord {
        key: Some(Bytes::from_static(&[0, 0, 0, 1])),
        value: Some(Bytes::from_static(&[0; 6])),
        headers: Vec::new(),
        timestamp: Timestamp(BEGAN + 30_000),
    })?;
    let mut bytes = builder.build().bytes().to_vec();
    bytes[22] |= TRANSACTIONAL_AND_CONTROL;
    bytes[53..57].fill(0xff);
    sealed(bytes)
}

/// What is rotten is passed by, and what is written behind it says so.
fn passed_by(root: &Path) -> Result<(), Box<dyn Error>> {
    directory(root, "passed-by", |writer, _, _| {
        writer.rot_first()?;
        writer.compact(1 << 20, usize::MAX)?;
        writer.expected = writer.expected.lines().skip(2).map(|line| format!("{line}\n")).collect();
        Ok(())
    })
}

/// A checkpoint is due every 64 KiB.
const CHECKPOINT_PADDING: usize = 33 << 10;

/// Killed behind a checkpoint: what lies behind it is walked over, a batch that nothing attests among it.
fn checkpoint(root: &Path) -> Result<(), Box<dyn Error>> {
    directory(root, "checkpoint", |writer, witness, data| {
        let path = data.path().join(CHECKPOINTS_FILE);
        let (mut checkpoints, _) = Checkpoints::open(&path)?;
        writer.batch()?;
        writer.log.configure(LogConfig { segment_bytes: 1 << 20, ..writer.log.config().clone() });
        for padding in [CHECKPOINT_PADDING, 0] {
            writer.padded_batch(padding, Ok)?;
            let end = writer.sync()?;
            witness.record(partition(), end)?;
            if let Some(due) = writer.checkpoint.take() {
                checkpoints.add(&[(partition(), due)], |_| true);
            }
        }
        writer.batch()?;
        writer.write()
    })
}

fn hash_files(root: &Path, directory: &Path, out: &mut String) -> Result<(), Box<dyn Error>> {
    let mut entries: Vec<_> = fs::read_dir(directory)?.flatten().map(|entry| entry.path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            hash_files(root, &path, out)?;
        } else {
            let name = path.strip_prefix(root)?.display().to_string();
            writeln!(out, "{:08x} {name}", crc32fast::hash(&fs::read(&path)?))?;
        }
    }
    Ok(())
}
