//! Segment headers, frames and seals.

use std::path::Path;

use anyhow::{Context as _, ensure};

use super::{FileRecord, Place};

pub(super) const HEADER: usize = 72;
const FRAME_HEADER: usize = 60;
const FRAME_MAGIC: u32 = 0x5249_4d46;
/// The first bytes of a payload that the frame's check covers.
const COVERED: usize = 61;
const BATCH: u32 = 1;
pub(super) const SEAL: u32 = 2;

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

pub(super) fn i64_at(bytes: &[u8], at: usize) -> i64 {
    u64_at(bytes, at) as i64
}

#[derive(Debug)]
pub(super) struct Segment {
    pub(super) name: String,
    pub(super) base: u64,
    /// 0 unless compaction wrote it.
    pub(super) range_end: u64,
    pub(super) check: u32,
    salt: u32,
    bytes: Vec<u8>,
}

#[derive(Debug)]
pub(super) struct Frame {
    pub(super) kind: u32,
    pub(super) link: u32,
    pub(super) time: i64,
    pub(super) claim: Place,
    pub(super) check: u32,
    pub(super) payload: Vec<u8>,
}

impl Segment {
    pub(super) fn open(path: &Path, topic: u128, partition: u32) -> anyhow::Result<Self> {
        let bytes = std::fs::read(path)?;
        ensure!(bytes.len() >= HEADER, "{} bytes are no segment", bytes.len());
        ensure!(bytes.starts_with(b"RIMSTSEG") && bytes[8..10] == [0, 1], "magic and version of a segment");
        let check = u32_at(&bytes, 68);
        ensure!(check == crc32fast::hash(&bytes[..68]), "check of a segment header");
        let here = bytes[16..32] == topic.to_be_bytes() && u32_at(&bytes, 32) == partition;
        ensure!(here, "a segment lies where its header says");
        let base = u64_at(&bytes, 40);
        let name = path.file_name().context("a file has a name")?.to_string_lossy().into_owned();
        ensure!(name == format!("{base:020}.log"), "a segment is named by its base offset");
        Ok(Self { name, base, range_end: u64_at(&bytes, 48), check, salt: u32_at(&bytes, 12), bytes })
    }

    /// The valid frame at a position.
    fn frame(&self, at: usize) -> Option<Frame> {
        let header = self.bytes.get(at..at.checked_add(FRAME_HEADER)?)?;
        if u32_at(header, 0) != FRAME_MAGIC ^ self.salt || u64_at(header, 8) != at as u64 {
            return None;
        }
        let kind = u32_at(header, 4);
        let length = u32_at(header, 16) as usize;
        let payload = self.bytes.get(at + FRAME_HEADER..(at + FRAME_HEADER).checked_add(length)?)?;
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&header[..56]);
        hasher.update(&payload[..payload.len().min(COVERED)]);
        let check = u32_at(header, 56);
        let body = kind == SEAL
            || kind == BATCH
                && payload.len() >= COVERED
                && u32_at(payload, 17) == crc32c::crc32c(&payload[21..]);
        let claim = (u64_at(header, 32), u64_at(header, 40), u64_at(header, 48));
        let (link, time) = (u32_at(header, 20), i64_at(header, 24));
        (check == hasher.finalize() && body).then(|| Frame {
            kind,
            link,
            time,
            claim,
            check,
            payload: payload.to_vec(),
        })
    }

    /// Each valid frame with its position, and `None` for each gap between them.
    pub(super) fn frames(&self) -> Vec<(usize, Option<Frame>)> {
        let mut frames = Vec::new();
        let mut at = HEADER;
        while at < self.bytes.len() {
            match self.frame(at) {
                Some(frame) => {
                    let length = FRAME_HEADER + frame.payload.len();
                    frames.push((at, Some(frame)));
                    at += length;
                }
                None => {
                    frames.push((at, None));
                    let following = (at + 1..self.bytes.len()).find(|at| self.frame(*at).is_some());
                    at = following.unwrap_or(self.bytes.len());
                }
            }
        }
        frames
    }
}

/// The totals of a segment, as its seal says them or as they were counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seal {
    next: u64,
    records: u64,
    frames: u32,
    first_ms: i64,
    last_ms: i64,
    largest_ms: i64,
}

impl Default for Seal {
    fn default() -> Self {
        Self { next: 0, records: 0, frames: 0, first_ms: i64::MIN, last_ms: i64::MIN, largest_ms: i64::MIN }
    }
}

impl Seal {
    pub(super) fn decode(payload: &[u8]) -> anyhow::Result<Self> {
        ensure!(payload.len() == 52, "a seal of {} bytes", payload.len());
        Ok(Self {
            next: u64_at(payload, 0),
            records: u64_at(payload, 8),
            frames: u32_at(payload, 16),
            first_ms: i64_at(payload, 20),
            last_ms: i64_at(payload, 28),
            largest_ms: i64_at(payload, 36),
        })
    }

    pub(super) fn add(&mut self, time: i64, records: &[FileRecord]) {
        if self.frames == 0 {
            self.first_ms = time;
        }
        self.last_ms = time;
        self.frames += 1;
        self.records += records.len() as u64;
        let largest = records.iter().map(|record| record.create_ms).max();
        self.largest_ms = self.largest_ms.max(largest.unwrap_or(i64::MIN));
    }

    /// Whether this seal says what was counted.
    pub(super) fn agrees(&self, counted: &Self, next: u64) -> bool {
        let next = if counted.frames == 0 { self.next } else { next };
        *self == Self { next, ..counted.clone() }
    }
}
