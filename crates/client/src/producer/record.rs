//! What goes into a producer, and what comes out of it.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use rimstone_record::{Header, NewRecord};
use rimstone_types::{Offset, PartitionIndex, Timestamp};
use tokio::sync::oneshot;

use crate::error::{ClientError, Code, reason};

/// A record to be sent.
///
/// ```
/// use rimstone_client::ProducerRecord;
/// use rimstone_types::Timestamp;
///
/// let record = ProducerRecord::new("GET /index.html").key("83.149.9.216").header("line", "1").time(Timestamp(0));
/// assert_eq!(record.key.as_deref(), Some(&b"83.149.9.216"[..]));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ProducerRecord {
    /// The key: records of one key go to one partition, in order.
    pub key: Option<Bytes>,
    /// The value; `None` deletes the key in a compacted topic.
    pub value: Option<Bytes>,
    /// Headers, in order; a key may come more than once.
    pub headers: Vec<Header>,
    /// The create time; `None`: this machine's clock when it is sent.
    pub time: Option<Timestamp>,
    /// The partition; wins over the key.
    pub partition: Option<PartitionIndex>,
}

impl ProducerRecord {
    /// A record with this value.
    pub fn new(value: impl Into<Bytes>) -> Self {
        Self { value: Some(value.into()), ..Self::default() }
    }

    /// A record without a value: it deletes the key in a compacted topic.
    pub fn tombstone(key: impl Into<Bytes>) -> Self {
        Self { key: Some(key.into()), ..Self::default() }
    }

    /// With this key.
    #[must_use]
    pub fn key(mut self, key: impl Into<Bytes>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// With one more header.
    #[must_use]
    pub fn header(mut self, key: impl Into<String>, value: impl Into<Bytes>) -> Self {
        self.headers.push(Header { key: key.into(), value: Some(value.into()) });
        self
    }

    /// With this create time.
    #[must_use]
    pub fn time(mut self, time: Timestamp) -> Self {
        self.time = Some(time);
        self
    }

    /// To this partition, whatever the key.
    #[must_use]
    pub fn partition(mut self, partition: PartitionIndex) -> Self {
        self.partition = Some(partition);
        self
    }

    pub(crate) fn into_new(self, now: Timestamp) -> NewRecord {
        NewRecord {
            key: self.key,
            value: self.value,
            headers: self.headers,
            timestamp: self.time.unwrap_or(now),
        }
    }
}

/// Where a record was stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delivery {
    /// The partition.
    pub partition: PartitionIndex,
    /// The offset; `None` only for a record that an earlier try had stored so long ago that the server
    /// remembers it but not where.
    pub offset: Option<Offset>,
    /// When the server took it.
    pub append_time: Timestamp,
    /// An earlier try had stored it already.
    pub duplicate: bool,
}

/// Whether a record that was not acknowledged may be stored all the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is not stored and will not be.
    NotStored,
    /// It may be stored, or may yet be: a try was never answered.
    Unknown,
}

/// Why a record was not acknowledged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct DeliveryError {
    /// Whether it may be stored all the same.
    pub outcome: Outcome,
    /// What went wrong.
    #[source]
    pub cause: ClientError,
}

impl fmt::Display for DeliveryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.outcome {
            Outcome::NotStored => write!(f, "not stored: {}", self.cause),
            Outcome::Unknown => write!(f, "it is not known whether it is stored: {}", self.cause),
        }
    }
}

/// What a record's sender waits for.
pub(crate) type Answer = Result<Delivery, DeliveryError>;

/// The delivery of one record that the producer has taken. Resolves when the record is as durable as its
/// topic asks, or is given up. Dropping it does not take the record back.
#[derive(Debug)]
#[must_use = "the record is delivered all the same, but nobody learns of a failure before flush"]
pub struct Pending {
    pub(crate) answer: oneshot::Receiver<Answer>,
}

impl Future for Pending {
    type Output = Result<Delivery, DeliveryError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.answer).poll(context).map(|answer| {
            answer.unwrap_or_else(|_| {
                let cause = ClientError::new(
                    Code::Cancelled,
                    reason::CLOSED,
                    "the producer ended before the record was answered",
                );
                Err(DeliveryError { outcome: Outcome::Unknown, cause })
            })
        })
    }
}
