//! Stored batches to records, in pieces of bounded size. Not here: reading them (`fetch`, `read`).

use std::{collections::VecDeque, iter::Peekable};

use rimstone_record::{Limits, Record, RecordIter};
use rimstone_store::ReadBatch;
use rimstone_types::{ByteCount, Offset, Timestamp};

use crate::error::Undecodable;

/// A record as it was stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredRecord {
    /// The record.
    pub record: Record,
    /// When the server took it.
    pub append_time: Timestamp,
}

/// Records decoded from batches.
#[derive(Debug, Clone, Default)]
pub struct Decoded {
    /// In order of offset.
    pub records: Vec<StoredRecord>,
    /// `Some(offset)`: the bound on bytes cut the batches off before this offset; go on there.
    pub cut_at: Option<Offset>,
}

/// What a record costs in an answer beside its key, value and headers: offset, times, tags and lengths.
const RECORD_OVERHEAD: usize = 48;
/// The same for a header.
const HEADER_OVERHEAD: usize = 12;

/// Decodes the records of batches from `from` up to, not including, `until`: as many as make about
/// `bytes_max`, at least one. Control batches are never shown.
///
/// # Errors
/// [`Undecodable`].
pub fn decode(
    batches: &[ReadBatch],
    from: Offset,
    until: Option<Offset>,
    bytes_max: ByteCount,
    limits: &Limits,
) -> Result<Decoded, Undecodable> {
    let mut decoder = Decoder::new(from, until);
    decoder.hold(batches.to_vec());
    let records = decoder.take(bytes_max, limits)?;
    Ok(Decoded { records, cut_at: decoder.has_more().then_some(decoder.next) })
}

/// Decodes batches piece by piece; each is decompressed once.
#[derive(Debug)]
pub(crate) struct Decoder {
    /// The first offset that was not taken yet.
    pub(crate) next: Offset,
    until: Option<Offset>,
    batches: VecDeque<ReadBatch>,
    current: Option<Current>,
}

/// Records that were taken.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    pub(crate) records: Vec<StoredRecord>,
    /// About what they take in an answer.
    pub(crate) bytes: u64,
}

/// The batch that is being decoded.
#[derive(Debug)]
struct Current {
    base: Offset,
    end: Offset,
    append_time: Timestamp,
    records: Peekable<RecordIter>,
}

impl Decoder {
    pub(crate) fn new(next: Offset, until: Option<Offset>) -> Self {
        Self { next, until, batches: VecDeque::new(), current: None }
    }

    /// Batches to be decoded behind those that are held.
    pub(crate) fn hold(&mut self, batches: Vec<ReadBatch>) {
        self.batches.extend(batches);
    }

    /// Whether something is held.
    pub(crate) fn has_more(&self) -> bool {
        self.current.is_some() || !self.batches.is_empty()
    }

    /// The next records: as many as make about `bytes_max`, at least one if there is one.
    pub(crate) fn take(
        &mut self,
        bytes_max: ByteCount,
        limits: &Limits,
    ) -> Result<Vec<StoredRecord>, Undecodable> {
        Ok(self.take_some(bytes_max, usize::MAX, limits)?.records)
    }

    /// The same, at most `records_max` of them and at least one.
    pub(crate) fn take_some(
        &mut self,
        bytes_max: ByteCount,
        records_max: usize,
        limits: &Limits,
    ) -> Result<Taken, Undecodable> {
        let mut taken = Taken::default();
        while let Some(current) = self.current(limits)? {
            let (base, end, append_time) = (current.base, current.end, current.append_time);
            let (from, until) = (self.next, self.until);
            let Some(current) = &mut self.current else { break };
            let undecodable = |error| Undecodable { from: base, until: end, error };
            match current.records.peek() {
                None => {
                    self.current = None;
                    self.next = self.next.max(end);
                }
                Some(Err(error)) => return Err(undecodable(error.clone())),
                Some(Ok(record)) if record.offset < from => drop(current.records.next()),
                Some(Ok(record)) if until.is_some_and(|until| record.offset >= until) => {
                    self.next = until.unwrap_or(from);
                    self.current = None;
                    self.batches.clear();
                }
                Some(Ok(record)) => {
                    let bytes = taken.bytes + size(record);
                    let is_full = bytes > bytes_max.get() || taken.records.len() >= records_max;
                    if is_full && !taken.records.is_empty() {
                        return Ok(taken);
                    }
                    if let Some(Ok(record)) = current.records.next() {
                        self.next = record.offset.saturating_add(1);
                        taken.bytes = bytes;
                        taken.records.push(StoredRecord { record, append_time });
                    }
                }
            }
        }
        Ok(taken)
    }

    /// The batch to decode from, the next one if the last is finished.
    fn current(&mut self, limits: &Limits) -> Result<Option<&Current>, Undecodable> {
        while self.current.is_none() {
            let Some(ReadBatch { batch, append_time }) = self.batches.pop_front() else { return Ok(None) };
            let (base, end) = (batch.base_offset(), batch.next_offset());
            if end <= self.next {
                continue;
            }
            if batch.header().is_control() {
                self.next = end;
                continue;
            }
            let undecodable = |error| Undecodable { from: base, until: end, error };
            let records = batch.records(limits).map_err(undecodable)?.peekable();
            self.current = Some(Current { base, end, append_time, records });
        }
        Ok(self.current.as_ref())
    }
}

/// About how many bytes a record takes in an answer.
fn size(record: &Record) -> u64 {
    let optional = |bytes: &Option<bytes::Bytes>| bytes.as_ref().map_or(0, bytes::Bytes::len);
    let headers =
        record.headers.iter().map(|header| header.key.len() + optional(&header.value) + HEADER_OVERHEAD);
    (optional(&record.key) + optional(&record.value) + headers.sum::<usize>() + RECORD_OVERHEAD) as u64
}

#[cfg(test)]
mod tests {
    use rimstone_record::{BatchBuilder, Compression, NewRecord};

    use super::*;

    fn batch(base: u64, values: &[&'static str]) -> ReadBatch {
        let mut builder = BatchBuilder::new(Compression::None);
        for value in values {
            let value = Some((*value).into());
            builder.push(&NewRecord { value, ..NewRecord::default() }).unwrap();
        }
        let batch = builder.build().with_base_offset(Offset::new(base).unwrap(), 0);
        ReadBatch { batch, append_time: Timestamp(7) }
    }

    fn offsets(decoded: &Decoded) -> Vec<u64> {
        decoded.records.iter().map(|stored| stored.record.offset.get()).collect()
    }

    #[test]
    fn bounds_cut_within_batches() {
        let batches = [batch(10, &["a", "b", "c"]), batch(13, &["d"]), batch(20, &["e", "f"])];
        let at = |offset| Offset::new(offset).unwrap();
        let all = ByteCount::mib(1);
        let decode = |from, until: Option<u64>, bytes| {
            decode(&batches, at(from), until.map(at), bytes, &Limits::default()).unwrap()
        };
        assert_eq!(offsets(&decode(0, None, all)), [10, 11, 12, 13, 20, 21]);
        assert_eq!(offsets(&decode(12, Some(21), all)), [12, 13, 20]);
        assert_eq!(offsets(&decode(14, Some(20), all)), [] as [u64; 0]);
        assert_eq!(decode(12, None, all).records[0].append_time, Timestamp(7));

        let one = decode(11, None, ByteCount(1));
        assert_eq!((offsets(&one), one.cut_at), (vec![11], Some(at(12))), "at least one");
        let two = decode(13, None, ByteCount(2 * (RECORD_OVERHEAD as u64 + 1)));
        assert_eq!((offsets(&two), two.cut_at), (vec![13, 20], Some(at(21))));
        let last = decode(21, None, ByteCount(1));
        assert_eq!((offsets(&last), last.cut_at), (vec![21], None), "nothing was cut off");
    }
}
