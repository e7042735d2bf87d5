//! Bytes to record batches and back. The layout is that of Kafka's record batch, version 2: a header of 61
//! bytes, big-endian, then records of variable-length integers.
//!
//! Everything here is pure. Every length that comes from outside is checked before anything is allocated by
//! it, and a [`Batch`] exists only if its bytes were verified.
//!
//! Not here: where batches are stored and how they are framed there (`rimstone-log`), what a topic allows
//! (`rimstone-broker`), clocks, files and sockets.
#![forbid(unsafe_code)]

mod batch;
mod builder;
mod compression;
mod error;
mod header;
mod iter;
mod limits;
pub mod partitioner;
mod record;
mod rules;
mod thin;
mod varint;

pub use batch::Batch;
pub use builder::BatchBuilder;
pub use compression::Compression;
pub use error::{BatchError, BuildError, RecordFault};
pub use header::{BatchHeader, HEADER_LENGTH, ProducerStamp};
pub use iter::RecordIter;
pub use limits::Limits;
pub use record::{AsHeader, Header, HeaderParts, NewRecord, Record, RecordParts};
pub use rules::RecordRules;
