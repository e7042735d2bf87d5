//! Records in a batch, and who waits for them. When they are sent is not decided here.

use rimstone_record::{Batch, BatchBuilder, Compression, Limits, NewRecord};
use rimstone_types::{Offset, PartitionIndex, Timestamp};
use tokio::{
    sync::{OwnedSemaphorePermit, oneshot},
    time::Instant,
};

use crate::{
    error::ClientError,
    producer::{
        record::{Answer, Delivery, DeliveryError, Outcome},
        tracker::Token,
    },
};

/// Records in a batch, and who waits for them.
#[derive(Debug)]
pub(crate) struct Parcel {
    pub(crate) content: Content,
    pub(crate) count: u32,
    pub(crate) deadline: Instant,
    pub(crate) waiters: Vec<oneshot::Sender<Answer>>,
    /// Dropped when the waiters are answered.
    pub(crate) token: Option<Token>,
    /// Room in the producer's buffer, given back with the parcel.
    pub(crate) room: OwnedSemaphorePermit,
}

#[derive(Debug)]
pub(crate) enum Content {
    Gathered(BatchBuilder),
    Encoded(Batch),
    /// Given up; only its place in the numbering matters.
    Gone,
}

impl Parcel {
    pub(crate) fn stored(
        self,
        partition: PartitionIndex,
        base: Option<Offset>,
        append_time: Timestamp,
        duplicate: bool,
    ) {
        let _token = self.token;
        for (delta, waiter) in (0u64..).zip(self.waiters) {
            let offset = base.and_then(|base| base.checked_add(delta));
            // The sender may have dropped its handle.
            let _ = waiter.send(Ok(Delivery { partition, offset, append_time, duplicate }));
        }
    }

    pub(crate) fn failed(&mut self, outcome: Outcome, cause: ClientError) {
        let error = DeliveryError { outcome, cause };
        let token = self.token.take();
        if let Some(token) = &token {
            token.failed(&error);
        }
        for waiter in self.waiters.drain(..) {
            let _ = waiter.send(Err(error.clone()));
        }
    }
}

/// The records of a batch of our own, to be numbered anew.
pub(crate) fn unpack(batch: &Batch, compression: Compression) -> BatchBuilder {
    let limits = Limits { batch_bytes: usize::MAX, ratio: u32::MAX, ..Limits::default() };
    let mut builder = BatchBuilder::new(compression);
    let records = batch.records(&limits).expect("a batch that was built here can be read");
    for record in records {
        let record = record.expect("a record that was written here can be read");
        let record = NewRecord {
            key: record.key,
            value: record.value,
            headers: record.headers,
            timestamp: record.timestamp,
        };
        builder.push(&record).expect("what fitted once fits again");
    }
    builder
}
