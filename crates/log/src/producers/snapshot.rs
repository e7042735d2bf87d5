//! The body of a snapshot; its layout is in the module above.

use std::collections::VecDeque;

use rimstone_types::{Numbering, Offset, ProducerEpoch, ProducerId, Timestamp};

use super::{
    Limits, ProducerTable, WINDOW,
    entry::{Entry, OLDER_MAX, StoredBatch},
};

/// Bytes of a producer before its batches.
const PRODUCER_BYTES: usize = 8 + 1 + 4 + 1;
/// Bytes of a batch.
const BATCH_BYTES: usize = 2 + 4 + 4 + 8 + 4 + 8 + 1 + 8;

/// Why bytes are not the body of a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes end too early.
    #[error("cut off at byte {position}")]
    Truncated {
        /// Where.
        position: usize,
    },
    /// More bytes than there should be.
    #[error("{extra} bytes follow the last producer")]
    TrailingBytes {
        /// How many.
        extra: usize,
    },
    /// A field has a value that it cannot have.
    #[error("{field} before byte {position} is out of bounds or out of order")]
    Field {
        /// Which one.
        field: &'static str,
        /// The position behind it.
        position: usize,
    },
}

impl ProducerTable {
    /// The body of a snapshot of everything applied: at most [`WINDOW`] batches of each producer. That a
    /// request was undone is not in it, for it is not in the log.
    pub fn encode(&self) -> Vec<u8> {
        let entries = || self.producers.values().filter(|entry| !entry.window.is_empty());
        let batches: usize = entries().map(|entry| entry.window.len().min(WINDOW)).sum();
        let mut out = Vec::with_capacity(4 + entries().count() * PRODUCER_BYTES + batches * BATCH_BYTES);
        out.extend((entries().count() as u32).to_be_bytes());
        for entry in entries() {
            if entry.window.len() > WINDOW {
                let mut entry = entry.clone();
                while entry.window.len() > WINDOW {
                    entry.forget_oldest();
                }
                encode_entry(&mut out, &entry);
            } else {
                encode_entry(&mut out, entry);
            }
        }
        out
    }

    /// Reads the body of a snapshot. Takes more producers than the limits allow: they have been taken once.
    ///
    /// # Errors
    /// [`DecodeError`]; nothing is allocated by a number that was not checked against the bytes.
    pub fn decode(bytes: &[u8], limits: Limits) -> Result<Self, DecodeError> {
        let mut reader = Reader { bytes, position: 0 };
        let count = u32::from_be_bytes(reader.take()?);
        let mut table = Self::new(limits);
        for _ in 0..count {
            let entry = decode_entry(&mut reader)?;
            if table.producers.last_key_value().is_some_and(|(&last, _)| last >= entry.id) {
                return Err(reader.wrong("producer id"));
            }
            let id = entry.id;
            table.producers.insert(id, entry);
            table.note_age(id);
        }
        match bytes.len() - reader.position {
            0 => Ok(table),
            extra => Err(DecodeError::TrailingBytes { extra }),
        }
    }
}

fn encode_entry(out: &mut Vec<u8>, entry: &Entry) {
    out.extend(entry.id.get().to_be_bytes());
    out.push(match entry.numbering {
        Numbering::Dense => 0,
        Numbering::ByRequest => 1,
    });
    out.extend(entry.older.to_be_bytes());
    out.push(entry.window.len() as u8);
    for batch in &entry.window {
        out.extend(batch.epoch.get().to_be_bytes());
        out.extend(batch.first.to_be_bytes());
        out.extend(batch.record_count.to_be_bytes());
        out.extend(batch.base_offset.get().to_be_bytes());
        out.extend((batch.last_offset.since(batch.base_offset) as u32).to_be_bytes());
        out.extend(batch.append_time.as_millis().to_be_bytes());
        out.push(u8::from(batch.content_hash.is_some()));
        out.extend(batch.content_hash.unwrap_or(0).to_be_bytes());
    }
}

fn decode_entry(reader: &mut Reader<'_>) -> Result<Entry, DecodeError> {
    let id = ProducerId::new(u64::from_be_bytes(reader.take()?)).map_err(|_| reader.wrong("producer id"))?;
    let numbering = match reader.take::<1>()? {
        [0] => Numbering::Dense,
        [1] => Numbering::ByRequest,
        _ => return Err(reader.wrong("numbering")),
    };
    let older = u32::from_be_bytes(reader.take()?);
    if older > OLDER_MAX {
        return Err(reader.wrong("count of what lies before the window"));
    }
    let [count] = reader.take::<1>()?;
    if !(1..=WINDOW).contains(&usize::from(count)) {
        return Err(reader.wrong("batch count"));
    }
    let first = decode_batch(reader)?;
    let mut entry = Entry {
        id,
        epoch: first.epoch,
        numbering,
        window: VecDeque::from([first]),
        older,
        resend: None,
        staged: 0,
        last_append: first.append_time,
    };
    for _ in 1..count {
        let batch = decode_batch(reader)?;
        if !entry.restore(batch) {
            return Err(reader.wrong("batch"));
        }
    }
    Ok(entry)
}

fn decode_batch(reader: &mut Reader<'_>) -> Result<StoredBatch, DecodeError> {
    /// Numbers of the batch format have 31 bits.
    const NUMBER_MAX: u32 = i32::MAX as u32;
    const COUNT_MAX: u32 = 1 << 31;
    let epoch = u16::from_be_bytes(reader.take()?);
    let epoch = ProducerEpoch::new(epoch.into()).map_err(|_| reader.wrong("producer epoch"))?;
    let first = u32::from_be_bytes(reader.take()?);
    let record_count = u32::from_be_bytes(reader.take()?);
    if first > NUMBER_MAX || record_count > COUNT_MAX {
        return Err(reader.wrong("sequence or record count"));
    }
    let base = u64::from_be_bytes(reader.take()?);
    let base_offset = Offset::new(base).map_err(|_| reader.wrong("offset"))?;
    let delta = u32::from_be_bytes(reader.take()?);
    let last_offset = base_offset.checked_add(delta.into()).ok_or_else(|| reader.wrong("last offset"))?;
    let append_time = Timestamp(i64::from_be_bytes(reader.take()?));
    let [flag] = reader.take::<1>()?;
    let hash = u64::from_be_bytes(reader.take()?);
    let content_hash = match (flag, hash) {
        (0, 0) => None,
        (1, hash) => Some(hash),
        _ => return Err(reader.wrong("content hash")),
    };
    Ok(StoredBatch { epoch, first, record_count, base_offset, last_offset, append_time, content_hash })
}

/// Takes fields off the front.
struct Reader<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let field = self.bytes[self.position..]
            .first_chunk::<N>()
            .ok_or(DecodeError::Truncated { position: self.position })?;
        self.position += N;
        Ok(*field)
    }

    fn wrong(&self, field: &'static str) -> DecodeError {
        DecodeError::Field { field, position: self.position }
    }
}
