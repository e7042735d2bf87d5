//! Records: what is in a batch, and what goes into one.

use bytes::Bytes;
use rimstone_types::{Offset, Timestamp};

use crate::varint;

/// A record as it is read. Key and values share the memory of the (uncompressed) batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its position in the partition.
    pub offset: Offset,
    /// Its time: the create time, or the batch's append time if the batch says so.
    pub timestamp: Timestamp,
    /// Its key, if it has one.
    pub key: Option<Bytes>,
    /// Its value; `None` deletes the key in a compacted topic.
    pub value: Option<Bytes>,
    /// Its headers, in order; a key may come more than once.
    pub headers: Vec<Header>,
}

/// A header of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Its name.
    pub key: String,
    /// Its value, if it has one.
    pub value: Option<Bytes>,
}

/// A record to be put into a batch.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NewRecord {
    /// Its key, if it has one.
    pub key: Option<Bytes>,
    /// Its value; `None` deletes the key in a compacted topic.
    pub value: Option<Bytes>,
    /// Its headers, in order.
    pub headers: Vec<Header>,
    /// Its create time.
    pub timestamp: Timestamp,
}

impl NewRecord {
    /// An upper bound on the bytes that this record adds to a batch, uncompressed: within 15 bytes of the
    /// truth.
    pub fn encoded_bytes_max(&self) -> usize {
        /// Length (at most 5), attributes (1), time delta (10), offset delta (5).
        const FIXED: usize = 5 + 1 + 10 + 5;
        FIXED
            + tail_bytes(
                self.key.as_ref().map(Bytes::len),
                self.value.as_ref().map(Bytes::len),
                &self.headers,
            )
    }
}

/// The bytes of everything after the offset delta.
pub(crate) fn tail_bytes(key: Option<usize>, value: Option<usize>, headers: &[Header]) -> usize {
    let each = headers.iter().map(|header| {
        field_bytes(Some(header.key.len())) + field_bytes(header.value.as_ref().map(Bytes::len))
    });
    field_bytes(key) + field_bytes(value) + varint::length_i64(headers.len() as i64) + each.sum::<usize>()
}

/// The bytes of a length and what it is the length of.
fn field_bytes(length: Option<usize>) -> usize {
    length.map_or(1, |length| varint::length_i64(length as i64) + length)
}
