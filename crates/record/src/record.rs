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
        self.parts().encoded_bytes_max()
    }

    /// The same record, borrowed.
    pub fn parts(&self) -> RecordParts<'_, Header> {
        RecordParts {
            key: self.key.as_deref(),
            value: self.value.as_deref(),
            headers: &self.headers,
            timestamp: self.timestamp,
        }
    }
}

/// A record to be put into a batch from where its bytes lie.
#[derive(Debug, Clone, Copy)]
pub struct RecordParts<'a, H> {
    /// Its key, if it has one.
    pub key: Option<&'a [u8]>,
    /// Its value; `None` deletes the key in a compacted topic.
    pub value: Option<&'a [u8]>,
    /// Its headers, in order.
    pub headers: &'a [H],
    /// Its create time.
    pub timestamp: Timestamp,
}

impl<H: AsHeader> RecordParts<'_, H> {
    /// An upper bound on the bytes that this record adds to a batch, uncompressed: within 15 bytes of the
    /// truth.
    pub fn encoded_bytes_max(&self) -> usize {
        /// Length (at most 5), attributes (1), time delta (10), offset delta (5).
        const FIXED: usize = 5 + 1 + 10 + 5;
        FIXED + tail_bytes(self.key.map(<[u8]>::len), self.value.map(<[u8]>::len), self.headers)
    }
}

/// A header of a record, borrowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeaderParts<'a> {
    /// Its name.
    pub key: &'a str,
    /// Its value, if it has one.
    pub value: Option<&'a [u8]>,
}

/// What can be written as a header.
pub trait AsHeader {
    /// Its name and its value.
    fn parts(&self) -> HeaderParts<'_>;
}

impl AsHeader for Header {
    fn parts(&self) -> HeaderParts<'_> {
        HeaderParts { key: &self.key, value: self.value.as_deref() }
    }
}

impl AsHeader for HeaderParts<'_> {
    fn parts(&self) -> HeaderParts<'_> {
        *self
    }
}

/// The bytes of everything after the offset delta.
pub(crate) fn tail_bytes(key: Option<usize>, value: Option<usize>, headers: &[impl AsHeader]) -> usize {
    let each = headers.iter().map(|header| {
        let HeaderParts { key, value } = header.parts();
        field_bytes(Some(key.len())) + field_bytes(value.map(<[u8]>::len))
    });
    field_bytes(key) + field_bytes(value) + varint::length_i64(headers.len() as i64) + each.sum::<usize>()
}

/// The bytes of a length and what it is the length of.
fn field_bytes(length: Option<usize>) -> usize {
    length.map_or(1, |length| varint::length_i64(length as i64) + length)
}
