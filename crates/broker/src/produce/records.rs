//! Records of a request as a program writes them, wherever their bytes lie. What becomes of them is in `prepare`.

use std::fmt::Debug;

use bytes::Bytes;
use rimstone_record::{AsHeader as _, Header, HeaderParts};
use rimstone_types::{PartitionIndex, Timestamp};

use crate::error::ProduceError;

/// What a record costs beside its own bytes while it is in flight: where it went is remembered, and told.
const RECORD_OVERHEAD: usize = 128;
/// The same for a header.
const HEADER_OVERHEAD: usize = 64;

/// The records of a request. A door has them as they came over the wire, so that nothing has to be allocated for each.
pub trait Records: Debug + Send + Sync {
    /// How many there are.
    fn count(&self) -> usize;

    /// How many bytes keys, values and headers have, or somewhat more.
    fn bytes(&self) -> usize;

    /// Goes over all of them, in order, until `visit` fails.
    ///
    /// # Errors
    /// What `visit` answered; [`InvalidRequest`](crate::InvalidRequest) for a record that cannot be read.
    fn each(
        &self,
        visit: &mut dyn FnMut(RecordView<'_>) -> Result<(), ProduceError>,
    ) -> Result<(), ProduceError>;

    /// How much room they take while they are in flight, in bytes.
    fn reserved_bytes(&self) -> usize {
        self.bytes() + self.count() * RECORD_OVERHEAD
    }
}

/// A record of a request, where it lies.
#[derive(Debug, Clone, Copy)]
pub struct RecordView<'a> {
    /// Its key.
    pub key: Option<&'a [u8]>,
    /// Its value.
    pub value: Option<&'a [u8]>,
    /// Its headers, in order.
    pub headers: &'a [HeaderParts<'a>],
    /// Its create time; `None`: the server's clock at arrival.
    pub create_time: Option<Timestamp>,
    /// An explicit partition wins over the key.
    pub partition: Option<PartitionIndex>,
}

/// A record as a program writes it, with what belongs to it.
#[derive(Debug, Clone, Default)]
pub struct PlainRecord {
    /// Its key.
    pub key: Option<Bytes>,
    /// Its value.
    pub value: Option<Bytes>,
    /// Its headers, in order.
    pub headers: Vec<Header>,
    /// Its create time; `None`: the server's clock at arrival.
    pub create_time: Option<Timestamp>,
    /// An explicit partition wins over the key.
    pub partition: Option<PartitionIndex>,
}

impl Records for Vec<PlainRecord> {
    fn count(&self) -> usize {
        self.len()
    }

    fn bytes(&self) -> usize {
        let length = |bytes: &Option<Bytes>| bytes.as_ref().map_or(0, Bytes::len);
        let header = |header: &Header| header.key.len() + length(&header.value) + HEADER_OVERHEAD;
        let record = |record: &PlainRecord| {
            length(&record.key) + length(&record.value) + record.headers.iter().map(header).sum::<usize>()
        };
        self.iter().map(record).sum()
    }

    fn each(
        &self,
        visit: &mut dyn FnMut(RecordView<'_>) -> Result<(), ProduceError>,
    ) -> Result<(), ProduceError> {
        for record in self {
            let headers: Vec<HeaderParts<'_>> = record.headers.iter().map(Header::parts).collect();
            visit(RecordView {
                key: record.key.as_deref(),
                value: record.value.as_deref(),
                headers: &headers,
                create_time: record.create_time,
                partition: record.partition,
            })?;
        }
        Ok(())
    }
}
