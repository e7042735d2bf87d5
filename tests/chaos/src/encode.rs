//! Writes a record batch by docs/format.md, uncompressed. Shares no code with the server.

use bytes::Bytes;

use crate::{
    event::Stamp,
    value::{Content, NUMBER_HEADER, content},
};

/// The bytes from the attributes on are covered by the batch's CRC.
const COVERED_FROM: usize = 21;

/// A batch of the records `first..first + count`, all of this create time.
pub fn batch(first: u64, count: u32, compacted: bool, stamp: Option<Stamp>, time_ms: i64) -> Bytes {
    let contents = (first..first + u64::from(count)).map(|number| content(number, compacted));
    batch_of(contents, stamp, time_ms)
}

/// A batch of these records.
pub fn batch_of(contents: impl Iterator<Item = Content>, stamp: Option<Stamp>, time_ms: i64) -> Bytes {
    let (mut body, mut count) = (Vec::new(), 0);
    for (index, sent) in contents.enumerate() {
        count = index + 1;
        let mut record = vec![0];
        varint(&mut record, 0);
        varint(&mut record, index as i64);
        field(&mut record, Some(&sent.key));
        field(&mut record, sent.value.as_deref());
        varint(&mut record, 1);
        field(&mut record, Some(NUMBER_HEADER.as_bytes()));
        field(&mut record, Some(&sent.number));
        varint(&mut body, record.len() as i64);
        body.extend_from_slice(&record);
    }
    let (id, epoch, sequence) = match stamp {
        Some(stamp) => (stamp.producer as i64, stamp.epoch as i16, stamp.sequence as i32),
        None => (-1, -1, -1),
    };
    let mut covered = Vec::new();
    covered.extend_from_slice(&0u16.to_be_bytes());
    covered.extend_from_slice(&(count as i32 - 1).to_be_bytes());
    covered.extend_from_slice(&time_ms.to_be_bytes());
    covered.extend_from_slice(&time_ms.to_be_bytes());
    covered.extend_from_slice(&id.to_be_bytes());
    covered.extend_from_slice(&epoch.to_be_bytes());
    covered.extend_from_slice(&sequence.to_be_bytes());
    covered.extend_from_slice(&(count as i32).to_be_bytes());
    covered.extend_from_slice(&body);
    let mut batch = Vec::with_capacity(COVERED_FROM + covered.len());
    batch.extend_from_slice(&0i64.to_be_bytes());
    batch.extend_from_slice(&((COVERED_FROM - 12 + covered.len()) as i32).to_be_bytes());
    batch.extend_from_slice(&0i32.to_be_bytes());
    batch.push(2);
    batch.extend_from_slice(&crc32c::crc32c(&covered).to_be_bytes());
    batch.extend_from_slice(&covered);
    Bytes::from(batch)
}

fn field(out: &mut Vec<u8>, field: Option<&[u8]>) {
    match field {
        None => varint(out, -1),
        Some(field) => {
            varint(out, field.len() as i64);
            out.extend_from_slice(field);
        }
    }
}

/// Zigzag, seven bits a byte, least significant first.
fn varint(out: &mut Vec<u8>, value: i64) {
    let mut rest = ((value << 1) ^ (value >> 63)) as u64;
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}
