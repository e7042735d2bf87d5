//! Record batches.

use std::{borrow::Cow, io::Read};

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
    let body = decompressed(header.attributes & 7, &batch[HEADER..])?;
    let mut cursor = Cursor(&body);
    let mut records = Vec::new();
    for _ in 0..header.count {
        records.push(record(&mut cursor, header, compacted)?);
    }
    ensure!(cursor.0.is_empty(), "nothing behind the last record");
    Ok(records)
}

fn decompressed(compression: u16, body: &[u8]) -> anyhow::Result<Cow<'_, [u8]>> {
    let mut out = Vec::new();
    let mut read =
        |from: &mut dyn Read, what| from.take(UNCOMPRESSED_MAX).read_to_end(&mut out).context(what);
    match compression {
        0 => return Ok(Cow::Borrowed(body)),
        1 => drop(read(&mut flate2::bufread::MultiGzDecoder::new(body), "gzip")?),
        2 => out = unsnappy(body).context("snappy")?,
        3 => drop(read(&mut lz4_flex::frame::FrameDecoder::new(body), "an lz4 frame")?),
        4 => drop(read(&mut ruzstd::decoding::StreamingDecoder::new(body)?, "a zstd frame")?),
        other => bail!("compression {other}, which there is not"),
    }
    Ok(Cow::Owned(out))
}

/// Without framing, or in that of Kafka's Java client: 16 bytes, then blocks with their lengths before them.
fn unsnappy(body: &[u8]) -> anyhow::Result<Vec<u8>> {
    let block = |bytes: &[u8]| -> anyhow::Result<Vec<u8>> {
        ensure!(snap::raw::decompress_len(bytes)? as u64 <= UNCOMPRESSED_MAX, "a block that is too large");
        Ok(snap::raw::Decoder::new().decompress_vec(bytes)?)
    };
    if !body.starts_with(b"\x82SNAPPY\0") {
        return block(body);
    }
    let (mut out, mut at) = (Vec::new(), 16);
    while at < body.len() {
        ensure!(at + 4 <= body.len(), "the framing is cut off");
        let end = at + 4 + u32_at(body, at) as usize;
        out.extend(block(body.get(at + 4..end).context("a block is cut off")?)?);
        at = end;
    }
    Ok(out)
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
