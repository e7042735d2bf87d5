//! The frame: the unit on local disk, one around each batch, and the seal that ends a sealed segment.
//! `docs/format.md` has the byte tables. All integers are big-endian.
//!
//! Not here: where frames go (`staging`), what an invalid one means (`recovery`, `reader`).

use rimstone_record::{BatchHeader, HEADER_LENGTH};
use rimstone_types::{Offset, PartitionId, PartitionIndex, Timestamp, TopicId};

/// The version of the segment, frame and seal layout that this build writes.
pub const FORMAT_VERSION: u16 = 1;
/// Bytes before the first frame of a segment file.
pub(crate) const SEGMENT_HEADER_LENGTH: usize = 72;
/// Bytes of a frame before its payload.
pub(crate) const FRAME_HEADER_LENGTH: usize = 60;
/// Bytes of a seal's payload.
pub(crate) const SEAL_LENGTH: usize = 52;
/// Bytes of a whole seal frame.
pub(crate) const SEAL_FRAME_LENGTH: usize = FRAME_HEADER_LENGTH + SEAL_LENGTH;
/// The check covers the frame header and at most this much of the payload: a whole batch header (whose own
/// CRC-32C covers the rest of the batch), or a whole seal.
pub(crate) const CHECKED_PAYLOAD: usize = HEADER_LENGTH;
/// What the reader must have in hand to judge any frame.
pub(crate) const FRAME_PROBE_LENGTH: usize = FRAME_HEADER_LENGTH + CHECKED_PAYLOAD;

const SEGMENT_MAGIC: [u8; 8] = *b"RIMSTSEG";
/// Exclusive-or of this and the segment's salt begins each frame, so that bytes of an older file that lay at
/// the same place, or bytes of a record, are not taken for a frame.
const FRAME_MAGIC: u32 = 0x5249_4d46;
const KIND_BATCH: u32 = 1;
const KIND_SEAL: u32 = 2;

/// A point in a partition's files: where frames end, and the offset that comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct LogPosition {
    /// The base offset of the segment.
    pub segment: Offset,
    /// Bytes from the start of the segment file.
    pub position: u64,
    /// The offset of the record that comes after it.
    pub offset: Offset,
}

/// The header of a segment file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Of which partition.
    pub partition: PartitionId,
    /// The first offset of the range that the segment covers; also its name.
    pub base: Offset,
    /// The end of that range for a segment that compaction wrote; `None`: up to the next segment's base.
    pub range_end: Option<Offset>,
    /// What compaction has judged: records below this; `None`: as far as `range_end`, if there is one.
    pub cleaned: Option<Offset>,
    /// So many obstacles lay before it when compaction wrote it: what they hold was not judged with it.
    pub passed_by: u32,
    /// Random; part of each frame's magic.
    pub salt: u32,
    /// When it was made.
    pub created: Timestamp,
}

/// Why bytes are not what they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Too few bytes.
    #[error("{have} bytes where at least {need} are needed")]
    Short {
        /// What is there.
        have: usize,
        /// What is needed.
        need: usize,
    },
    /// Not the magic that begins one.
    #[error("no magic: {found:#010x} instead of {expected:#010x}")]
    Magic {
        /// What is there.
        found: u32,
        /// What should be there.
        expected: u32,
    },
    /// A format version of the future.
    #[error("format version {found} is newer than {FORMAT_VERSION}, which this build reads")]
    Version {
        /// What is there.
        found: u16,
    },
    /// The check does not match.
    #[error("check {found:#010x} instead of {expected:#010x}")]
    Check {
        /// What is there.
        found: u32,
        /// What the bytes give.
        expected: u32,
    },
    /// It belongs to another place.
    #[error("it names position {found}, and lies at {expected}")]
    Position {
        /// What it says.
        found: u64,
        /// Where it is.
        expected: u64,
    },
    /// A field makes no sense.
    #[error("{0}")]
    Field(String),
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(array(bytes, at))
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(array(bytes, at))
}

pub(crate) fn i64_at(bytes: &[u8], at: usize) -> i64 {
    i64::from_be_bytes(array(bytes, at))
}

pub(crate) fn offset_at(bytes: &[u8], at: usize) -> Result<Offset, FrameError> {
    Offset::new(u64_at(bytes, at)).map_err(|error| FrameError::Field(error.to_string()))
}

impl SegmentHeader {
    /// The bytes at the start of the file.
    pub fn encode(&self) -> [u8; SEGMENT_HEADER_LENGTH] {
        let mut out = [0; SEGMENT_HEADER_LENGTH];
        out[0..8].copy_from_slice(&SEGMENT_MAGIC);
        out[8..10].copy_from_slice(&FORMAT_VERSION.to_be_bytes());
        // 10..12: reserved, 0.
        out[12..16].copy_from_slice(&self.salt.to_be_bytes());
        out[16..32].copy_from_slice(self.partition.topic.as_bytes());
        out[32..36].copy_from_slice(&self.partition.partition.0.to_be_bytes());
        out[36..40].copy_from_slice(&self.passed_by.to_be_bytes());
        out[40..48].copy_from_slice(&self.base.get().to_be_bytes());
        out[48..56].copy_from_slice(&self.range_end.map_or(0, Offset::get).to_be_bytes());
        out[56..64].copy_from_slice(&self.created.0.to_be_bytes());
        // Less than 2^32: the bound on the offsets of a segment that compaction writes.
        let cleaned = self.cleaned.map_or(0, |cleaned| cleaned.since(self.base) as u32);
        out[64..68].copy_from_slice(&cleaned.to_be_bytes());
        let check = crc32fast::hash(&out[..68]);
        out[68..72].copy_from_slice(&check.to_be_bytes());
        out
    }

    /// Reads the bytes at the start of a file.
    ///
    /// # Errors
    /// [`FrameError`], naming what is wrong. A newer format version is told from damage.
    pub fn decode(bytes: &[u8]) -> Result<Self, FrameError> {
        if bytes.len() < SEGMENT_HEADER_LENGTH {
            return Err(FrameError::Short { have: bytes.len(), need: SEGMENT_HEADER_LENGTH });
        }
        if bytes[0..8] != SEGMENT_MAGIC {
            return Err(FrameError::Magic {
                found: u32_at(bytes, 0),
                expected: u32::from_be_bytes([b'R', b'I', b'M', b'S']),
            });
        }
        let expected = crc32fast::hash(&bytes[..68]);
        let found = u32_at(bytes, 68);
        // In every version of the format, so that a flipped bit is not taken for a version of the future.
        if found != expected {
            return Err(FrameError::Check { found, expected });
        }
        let version = u16::from_be_bytes([bytes[8], bytes[9]]);
        if version > FORMAT_VERSION {
            return Err(FrameError::Version { found: version });
        }
        let range_end = match u64_at(bytes, 48) {
            0 => None,
            _ => Some(offset_at(bytes, 48)?),
        };
        let base = offset_at(bytes, 40)?;
        let cleaned = match u32_at(bytes, 64) {
            0 => None,
            offsets => Some(base.saturating_add(offsets.into())),
        };
        Ok(Self {
            partition: PartitionId {
                topic: TopicId(uuid::Uuid::from_bytes(array(bytes, 16))),
                partition: PartitionIndex(u32_at(bytes, 32)),
            },
            base,
            range_end,
            cleaned,
            passed_by: u32_at(bytes, 36),
            salt: u32_at(bytes, 12),
            created: Timestamp(i64_at(bytes, 56)),
        })
    }

    /// In place of a header that cannot be read.
    pub(crate) fn unknown(base: Offset) -> Self {
        let partition = PartitionId { topic: TopicId(uuid::Uuid::nil()), partition: PartitionIndex(0) };
        let (range_end, cleaned, created) = (None, None, Timestamp::MIN);
        Self { partition, base, range_end, cleaned, passed_by: 0, salt: 0, created }
    }

    /// The end of what compaction has judged; the base if it was never there. Where it has passed something by, no more
    /// than that: it counts only while what it passed by is in the way.
    pub fn cleaned_end(&self) -> Offset {
        match (self.range_end, self.cleaned) {
            (None, _) => self.base,
            (Some(end), None) => end,
            (Some(end), Some(cleaned)) => cleaned.min(end),
        }
    }

    /// The same, where so many obstacles lie before it: nothing if one of those that it was judged without is back.
    pub(crate) fn cleaned_behind(&self, obstacles: usize) -> Offset {
        let all = usize::try_from(self.passed_by).is_ok_and(|passed_by| passed_by <= obstacles);
        if all { self.cleaned_end() } else { self.base }
    }

    /// The check of the header, which the first frame names as its previous one.
    pub(crate) fn check(&self) -> u32 {
        u32_at(&self.encode(), 68)
    }
}

/// The totals of a segment, as its seal has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Totals {
    /// The offset after the last record.
    pub next_offset: Offset,
    /// Records really there: control batches have none.
    pub records: u64,
    /// Batch frames.
    pub frames: u32,
    /// Append time of the first frame; `Timestamp::MIN` if there is none.
    pub first_append: Timestamp,
    /// Append time of the last frame; `Timestamp::MIN` if there is none.
    pub last_append: Timestamp,
    /// The largest record time; `Timestamp::MIN` if there is none.
    pub max_time: Timestamp,
    /// When the first of the tombstones that compaction has met may go. Not told by the frames themselves.
    pub delete_horizon: Option<Timestamp>,
}

impl Totals {
    /// Of a segment without frames.
    pub(crate) const fn empty(base: Offset) -> Self {
        Self {
            next_offset: base,
            records: 0,
            frames: 0,
            first_append: Timestamp::MIN,
            last_append: Timestamp::MIN,
            max_time: Timestamp::MIN,
            delete_horizon: None,
        }
    }

    /// Counts a batch. Control batches are no records, and batches that compaction has emptied have no times.
    pub(crate) fn add(&mut self, batch: &BatchHeader, next_offset: Offset, append_time: Timestamp) {
        self.next_offset = next_offset;
        if batch.has_records() {
            self.records = self.records.saturating_add(batch.records_there());
            self.max_time = self.max_time.max(batch.max_timestamp);
        }
        self.frames = self.frames.saturating_add(1);
        if self.first_append == Timestamp::MIN {
            self.first_append = append_time;
        }
        self.last_append = append_time;
    }

    pub(crate) fn encode(&self) -> [u8; SEAL_LENGTH] {
        let mut out = [0; SEAL_LENGTH];
        out[0..8].copy_from_slice(&self.next_offset.get().to_be_bytes());
        out[8..16].copy_from_slice(&self.records.to_be_bytes());
        out[16..20].copy_from_slice(&self.frames.to_be_bytes());
        out[20..28].copy_from_slice(&self.first_append.0.to_be_bytes());
        out[28..36].copy_from_slice(&self.last_append.0.to_be_bytes());
        out[36..44].copy_from_slice(&self.max_time.0.to_be_bytes());
        out[44..52].copy_from_slice(&self.delete_horizon.map_or(0, |horizon| horizon.0).to_be_bytes());
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, FrameError> {
        Ok(Self {
            next_offset: offset_at(bytes, 0)?,
            records: u64_at(bytes, 8),
            frames: u32_at(bytes, 16),
            first_append: Timestamp(i64_at(bytes, 20)),
            last_append: Timestamp(i64_at(bytes, 28)),
            max_time: Timestamp(i64_at(bytes, 36)),
            delete_horizon: Some(Timestamp(i64_at(bytes, 44))).filter(|horizon| horizon.0 != 0),
        })
    }
}

/// What a frame holds.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Content {
    /// A batch, of which this is the header; the records behind it are vouched for by its own CRC.
    Batch(BatchHeader),
    /// The end of a sealed segment.
    Seal(Totals),
}

/// A frame whose check is right.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Frame {
    /// Bytes of the payload.
    pub(crate) length: u32,
    /// The check of the frame before it, or of the segment header.
    pub(crate) previous_check: u32,
    /// When the batch was taken; never decreasing within a partition.
    pub(crate) append_time: Timestamp,
    /// The partition's durable end as it was known when the frame was staged.
    pub(crate) durable: LogPosition,
    /// The frame's own check.
    pub(crate) check: u32,
    /// What it holds.
    pub(crate) content: Content,
}

impl Frame {
    /// Bytes of the whole frame.
    pub(crate) fn size(&self) -> u64 {
        FRAME_HEADER_LENGTH as u64 + u64::from(self.length)
    }

    /// Judges the bytes at `position`: magic, place, check and the fields. `probe` holds at least the frame's
    /// first [`FRAME_PROBE_LENGTH`] bytes, or all that there are. The body of a batch is not looked at.
    ///
    /// # Errors
    /// [`FrameError`], naming what is wrong.
    pub(crate) fn decode(probe: &[u8], salt: u32, position: u64) -> Result<Self, FrameError> {
        if probe.len() < FRAME_HEADER_LENGTH {
            return Err(FrameError::Short { have: probe.len(), need: FRAME_HEADER_LENGTH });
        }
        let (found, expected) = (u32_at(probe, 0), FRAME_MAGIC ^ salt);
        if found != expected {
            return Err(FrameError::Magic { found, expected });
        }
        let found = u64_at(probe, 8);
        if found != position {
            return Err(FrameError::Position { found, expected: position });
        }
        let length = u32_at(probe, 16);
        let checked = FRAME_HEADER_LENGTH + CHECKED_PAYLOAD.min(length as usize);
        if probe.len() < checked {
            return Err(FrameError::Short { have: probe.len(), need: checked });
        }
        let expected = check(&probe[..56], &probe[FRAME_HEADER_LENGTH..checked]);
        let found = u32_at(probe, 56);
        if found != expected {
            return Err(FrameError::Check { found, expected });
        }
        let payload = &probe[FRAME_HEADER_LENGTH..checked];
        let content = match u32_at(probe, 4) {
            KIND_BATCH => {
                let header =
                    BatchHeader::parse(payload).map_err(|error| FrameError::Field(error.to_string()))?;
                if header.length as u64 != u64::from(length) {
                    return Err(FrameError::Field(format!(
                        "the batch says {} bytes, its frame {length}",
                        header.length
                    )));
                }
                Content::Batch(header)
            }
            KIND_SEAL if length as usize == SEAL_LENGTH => Content::Seal(Totals::decode(payload)?),
            other => {
                return Err(FrameError::Field(format!("frame kind {other} of {length} bytes is not known")));
            }
        };
        Ok(Self {
            length,
            previous_check: u32_at(probe, 20),
            append_time: Timestamp(i64_at(probe, 24)),
            durable: LogPosition {
                segment: offset_at(probe, 32)?,
                position: u64_at(probe, 40),
                offset: offset_at(probe, 48)?,
            },
            check: found,
            content,
        })
    }
}

fn check(header: &[u8], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(header);
    hasher.update(payload);
    hasher.finalize()
}

/// What the frames of one segment have in common, and what links each to the one before.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FrameWriter {
    pub(crate) salt: u32,
    pub(crate) position: u64,
    pub(crate) previous_check: u32,
}

impl FrameWriter {
    /// The header of the next frame, which begins with `payload` (a batch header, stamped).
    pub(crate) fn batch(
        &mut self,
        length: u32,
        batch_header: &[u8; HEADER_LENGTH],
        append_time: Timestamp,
        durable: LogPosition,
    ) -> [u8; FRAME_HEADER_LENGTH] {
        self.frame(KIND_BATCH, length, batch_header, append_time, durable)
    }

    /// The whole seal frame.
    pub(crate) fn seal(&mut self, totals: &Totals, durable: LogPosition) -> [u8; SEAL_FRAME_LENGTH] {
        let payload = totals.encode();
        let append_time = totals.last_append.max(Timestamp(0));
        let header = self.frame(KIND_SEAL, SEAL_LENGTH as u32, &payload, append_time, durable);
        let mut out = [0; SEAL_FRAME_LENGTH];
        out[..FRAME_HEADER_LENGTH].copy_from_slice(&header);
        out[FRAME_HEADER_LENGTH..].copy_from_slice(&payload);
        out
    }

    fn frame(
        &mut self,
        kind: u32,
        length: u32,
        checked: &[u8],
        append_time: Timestamp,
        durable: LogPosition,
    ) -> [u8; FRAME_HEADER_LENGTH] {
        let mut out = [0; FRAME_HEADER_LENGTH];
        out[0..4].copy_from_slice(&(FRAME_MAGIC ^ self.salt).to_be_bytes());
        out[4..8].copy_from_slice(&kind.to_be_bytes());
        out[8..16].copy_from_slice(&self.position.to_be_bytes());
        out[16..20].copy_from_slice(&length.to_be_bytes());
        out[20..24].copy_from_slice(&self.previous_check.to_be_bytes());
        out[24..32].copy_from_slice(&append_time.0.to_be_bytes());
        out[32..40].copy_from_slice(&durable.segment.get().to_be_bytes());
        out[40..48].copy_from_slice(&durable.position.to_be_bytes());
        out[48..56].copy_from_slice(&durable.offset.get().to_be_bytes());
        let check = check(&out[..56], checked);
        out[56..60].copy_from_slice(&check.to_be_bytes());
        self.previous_check = check;
        self.position += FRAME_HEADER_LENGTH as u64 + u64::from(length);
        out
    }
}

/// The place of the next salted magic in `bytes` at or after `from`.
pub(crate) fn find_magic(bytes: &[u8], from: usize, salt: u32) -> Option<usize> {
    let magic = (FRAME_MAGIC ^ salt).to_be_bytes();
    bytes.get(from..)?.windows(4).position(|window| window == magic).map(|at| from + at)
}
