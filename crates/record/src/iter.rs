//! The records of a batch, one by one.

use bytes::Bytes;
use rimstone_types::{Offset, Timestamp};

use crate::{
    error::{BatchError, RecordFault},
    header::BatchHeader,
    limits::Limits,
    record::{Header, Record},
    varint::{self, VarintError},
};

/// Reads the records of a batch. Ends after the first error.
#[derive(Debug, Clone)]
pub struct RecordIter {
    /// The uncompressed records.
    records: Bytes,
    /// Where the next one begins.
    position: usize,
    /// The number of the next one.
    index: u32,
    /// The least offset delta that the next one may have.
    least_delta: u32,
    /// How many are still to come; at 0 the bytes must be at their end.
    remaining: u32,
    /// After the end, or an error.
    done: bool,
    base_offset: Offset,
    last_offset_delta: u32,
    base_timestamp: Timestamp,
    append_time: Option<Timestamp>,
    headers_max: u32,
}

impl RecordIter {
    pub(crate) fn new(header: &BatchHeader, records: Bytes, limits: &Limits) -> Self {
        Self {
            records,
            position: 0,
            index: 0,
            least_delta: 0,
            remaining: header.record_count,
            done: false,
            base_offset: header.base_offset,
            last_offset_delta: header.last_offset_delta,
            base_timestamp: header.base_timestamp,
            append_time: header.is_append_time().then_some(header.max_timestamp),
            headers_max: limits.headers_per_record,
        }
    }

    /// The bytes of all records of the batch, uncompressed.
    pub fn uncompressed_bytes(&self) -> usize {
        self.records.len()
    }

    fn next_record(&mut self) -> Result<Record, RecordFault> {
        let mut rest = &self.records[self.position..];
        let length = take_length(&mut rest, "length")?;
        let mut body = take_bytes(&mut rest, length, "body")?;
        let after = self.records.len() - rest.len();

        let attributes = take_bytes(&mut body, 1, "attributes")?[0];
        if attributes != 0 {
            return Err(RecordFault::Attributes { got: attributes });
        }
        let time_delta = named(varint::take_i64(&mut body), "time delta")?;
        let delta = self.check_delta(named(varint::take_i32(&mut body), "offset delta")?)?;
        let create_time = self
            .base_timestamp
            .as_millis()
            .checked_add(time_delta)
            .ok_or(RecordFault::Time { delta: time_delta })?;
        let key = self.take_field(&mut body, "key")?;
        let value = self.take_field(&mut body, "value")?;
        let headers = self.take_headers(&mut body)?;
        if !body.is_empty() {
            return Err(RecordFault::Slack { extra: body.len() });
        }

        self.position = after;
        self.least_delta = delta + 1;
        Ok(Record {
            offset: self.base_offset.saturating_add(u64::from(delta)),
            timestamp: self.append_time.unwrap_or(Timestamp(create_time)),
            key,
            value,
            headers,
        })
    }

    fn check_delta(&self, got: i32) -> Result<u32, RecordFault> {
        match u32::try_from(got) {
            Ok(delta) if (self.least_delta..=self.last_offset_delta).contains(&delta) => Ok(delta),
            _ => Err(RecordFault::OffsetDelta { got, least: self.least_delta, most: self.last_offset_delta }),
        }
    }

    /// A field with its length before it; -1 stands for none.
    fn take_field(&self, body: &mut &[u8], field: &'static str) -> Result<Option<Bytes>, RecordFault> {
        let length = named(varint::take_i32(body), field)?;
        if length == -1 {
            return Ok(None);
        }
        let length = usize::try_from(length).map_err(|_| RecordFault::Length { field, got: length })?;
        Ok(Some(self.records.slice_ref(take_bytes(body, length, field)?)))
    }

    fn take_headers(&self, body: &mut &[u8]) -> Result<Vec<Header>, RecordFault> {
        let count = named(varint::take_i32(body), "header count")?;
        if count < 0 {
            return Err(RecordFault::Length { field: "header count", got: count });
        }
        if count as u32 > self.headers_max {
            return Err(RecordFault::TooManyHeaders { got: count, limit: self.headers_max });
        }
        // Grows with what is really there, never by the count.
        let mut headers = Vec::new();
        for header in 0..count as u32 {
            let length = take_length(body, "header name")?;
            let key = str::from_utf8(take_bytes(body, length, "header name")?)
                .map_err(|_| RecordFault::HeaderName { header })?
                .to_owned();
            headers.push(Header { key, value: self.take_field(body, "header value")? });
        }
        Ok(headers)
    }
}

impl Iterator for RecordIter {
    type Item = Result<Record, BatchError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        if self.remaining == 0 {
            self.done = true;
            let extra = self.records.len() - self.position;
            return (extra > 0).then_some(Err(BatchError::TrailingRecordBytes { extra }));
        }
        let index = self.index;
        let result = self.next_record().map_err(|fault| BatchError::Record { index, fault });
        self.done = result.is_err();
        self.index += 1;
        self.remaining -= 1;
        Some(result)
    }
}

impl std::iter::FusedIterator for RecordIter {}

fn named<T>(result: Result<T, VarintError>, field: &'static str) -> Result<T, RecordFault> {
    result.map_err(|error| match error {
        VarintError::Truncated => RecordFault::Truncated { field },
        VarintError::TooLong => RecordFault::Varint { field },
    })
}

/// A length that must not be negative.
fn take_length(bytes: &mut &[u8], field: &'static str) -> Result<usize, RecordFault> {
    let length = named(varint::take_i32(bytes), field)?;
    usize::try_from(length).map_err(|_| RecordFault::Length { field, got: length })
}

fn take_bytes<'a>(bytes: &mut &'a [u8], length: usize, field: &'static str) -> Result<&'a [u8], RecordFault> {
    bytes.split_off(..length).ok_or(RecordFault::Truncated { field })
}
