//! Record batches.

use std::io::Read as _;

use anyhow::{Context as _, bail, ensure};

use super::{
    FileRecord,
    segment::{i64_at, u32_at, u64_at},
};
use crate::value::recognise;

const HEADER: usize = 61;
const CONTROL: u16 = 0x20;
const APPEND_TIME: u16 = 8;
const BY_REQUEST: u16 = 0x100;
/// No test writes a batch that is larger than this; a length that says so is wrong.
const UNCOMPRESSED_MAX: u64 = 64 << 20;

#[derive(Debug)]
pub(super) struct Header {
    pub(super) base: u64,
    pub(super) last_delta: u32,
    pub(super) control: bool,
    attributes: u16,
    base_ms: i64,
    max_ms: i64,
    stamp: Option<(u64, u32, u32, bool)>,
    count: u32,
}

impl Header {
    pub(super) fn decode(batch: &[u8]) -> anyhow::Result<Self> {
        ensure!(batch.len() >= HEADER, "{} bytes are no batch", batch.len());
        let length = u32_at(batch, 8) as usize;
        ensure!(length + 12 == batch.len() && batch[16] == 2, "length and magic of a batch");
        let attributes = u16::from_be_bytes([batch[21], batch[22]]);
        let epoch = u16::from_be_bytes([batch[51], batch[52]]);
        let producer = u64_at(batch, 43);
        let by_request = attributes & BY_REQUEST != 0;
        Ok(Self {
            base: u64_at(batch, 0),
            last_delta: u32_at(batch, 23),
            control: attributes & CONTROL != 0,
            attributes,
            base_ms: i64_at(batch, 27),
            max_ms: i64_at(batch, 35),
            stamp: (producer != u64::MAX)
                .then(|| (producer, u32::from(epoch), u32_at(batch, 53), by_request)),
            count: u32_at(batch, 57),
        })
    }
}

pub(super) fn records(header: &Header, batch: &[u8], compacted: bool) -> anyhow::Result<Vec<FileRecord>> {
    if header.control {
        return Ok(Vec::new());
    }
    let mut decompressed = Vec::new();
    let body = match header.attributes & 7 {
        0 => &batch[HEADER..],
        3 => {
            let decoder = lz4_flex::frame::FrameDecoder::new(&batch[HEADER..]);
            decoder.take(UNCOMPRESSED_MAX).read_to_end(&mut decompressed).context("an lz4 frame")?;
            &decompressed[..]
        }
        other => bail!("compression {other}, which no client of these tests uses"),
    };
    let mut cursor = Cursor(body);
    let mut records = Vec::new();
    for _ in 0..header.count {
        records.push(record(&mut cursor, header, compacted)?);
    }
    ensure!(cursor.0.is_empty(), "nothing behind the last record");
    Ok(records)
}

fn record(cursor: &mut Cursor<'_>, header: &Header, compacted: bool) -> anyhow::Result<FileRecord> {
    let length = cursor.varint()?;
    let mut inner = Cursor(cursor.bytes(length)?);
    inner.bytes(1)?;
    let delta = inner.varint()?;
    let offset = u32::try_from(inner.varint()?).context("offset delta of a record")?;
    let key = inner.field()?;
    let value = inner.field()?;
    let mut headers = Vec::new();
    for _ in 0..inner.varint()? {
        headers.push((inner.field()?.context("a header has a key")?, inner.field()?));
    }
    ensure!(inner.0.is_empty(), "length of a record");
    let stamped = header.attributes & APPEND_TIME != 0;
    let create_ms = if stamped { header.max_ms } else { header.base_ms + delta };
    ensure!(offset <= header.last_delta && create_ms <= header.max_ms, "bounds of a batch");
    Ok(FileRecord {
        offset: header.base + u64::from(offset),
        value: recognise(key, value, headers.into_iter(), compacted),
        stamp: header.stamp,
        create_ms,
        append_ms: 0,
    })
}

struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn bytes(&mut self, count: i64) -> anyhow::Result<&'a [u8]> {
        let count = usize::try_from(count).context("a length is not negative")?;
        let (taken, rest) = self.0.split_at_checked(count).context("a length within the batch")?;
        self.0 = rest;
        Ok(taken)
    }

    fn varint(&mut self) -> anyhow::Result<i64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.bytes(1)?[0];
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok((value >> 1) as i64 ^ -((value & 1) as i64));
            }
        }
        bail!("a varint of at most ten bytes")
    }

    fn field(&mut self) -> anyhow::Result<Option<&'a [u8]>> {
        match self.varint()? {
            -1 => Ok(None),
            length => Ok(Some(self.bytes(length)?)),
        }
    }
}
