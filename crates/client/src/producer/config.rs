//! The settings of a producer, each with its bounds.

use std::{fmt, time::Duration};

use rimstone_record::Compression;
use rimstone_types::ProducerName;

use crate::{
    connect::Connection,
    error::ClientError,
    producer::{Producer, queue::QueueConfig},
};

/// The server remembers at least this many batches per partition and producer, with their offsets. With no
/// more on the wire, whatever is sent again is answered with its original offsets.
const IN_FLIGHT_MAX: usize = 64;
/// A batch that is larger than any server takes helps nobody.
const BATCH_BYTES_MAX: usize = 16 << 20;
/// A semaphore counts bytes in 32 bits.
const BUFFER_BYTES_MAX: usize = 1 << 30;
/// Smaller, and no batch would fit.
const BUFFER_BYTES_MIN: usize = 64 << 10;

/// Makes a [`Producer`]. The defaults suit a program that writes at full speed to a server nearby.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
/// use rimstone_client::{Producer, ProducerRecord};
///
/// let producer = Producer::builder("127.0.0.1:9190").name("importer")?.linger(Duration::from_millis(20)).build()?;
/// let pending = producer.send("logs", ProducerRecord::new("hello").key("greeting")).await?;
/// println!("stored at {:?}", pending.await?.offset);
/// producer.close().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct ProducerBuilder {
    endpoint: String,
    pub(crate) name: Option<ProducerName>,
    linger: Duration,
    batch_bytes: usize,
    compression: Compression,
    in_flight: usize,
    pub(crate) buffer_bytes: usize,
    pub(crate) deadline: Duration,
}

impl ProducerBuilder {
    pub(crate) fn new(endpoint: &str) -> Self {
        Self {
            endpoint: endpoint.to_owned(),
            name: None,
            linger: Duration::from_millis(5),
            batch_bytes: 128 << 10,
            compression: Compression::Lz4,
            in_flight: 16,
            buffer_bytes: 32 << 20,
            deadline: Duration::from_secs(120),
        }
    }

    /// A name: the same producer id each time, fencing every older instance of that name. Without one the
    /// producer has an id of its own that the server forgets after 24 idle hours.
    ///
    /// # Errors
    /// `INVALID_NAME` outside 1 to 249 characters of `[a-zA-Z0-9._-]`.
    pub fn name(mut self, name: &str) -> Result<Self, ClientError> {
        self.name = Some(name.parse()?);
        Ok(self)
    }

    /// How long a batch may wait for more records. Default 5 ms; 0 sends at once what is there.
    #[must_use]
    pub fn linger(mut self, linger: Duration) -> Self {
        self.linger = linger;
        self
    }

    /// When a batch is full: bytes before compression. Default 128 KiB, at most 16 MiB; never more than the
    /// topic takes.
    #[must_use]
    pub fn batch_bytes(mut self, bytes: usize) -> Self {
        self.batch_bytes = bytes;
        self
    }

    /// How batches are compressed: [`Compression::Lz4`] (the default) or [`Compression::None`].
    #[must_use]
    pub fn compression(mut self, compression: Compression) -> Self {
        self.compression = compression;
        self
    }

    /// How many batches per partition may be unanswered at once: 1 to 64, default 16.
    #[must_use]
    pub fn in_flight(mut self, batches: usize) -> Self {
        self.in_flight = batches;
        self
    }

    /// How many bytes of records may be unanswered in all; [`Producer::send`] waits while it is full.
    /// Default 32 MiB; 64 KiB to 1 GiB.
    #[must_use]
    pub fn buffer_bytes(mut self, bytes: usize) -> Self {
        self.buffer_bytes = bytes;
        self
    }

    /// How long a record may take from [`Producer::send`] to its answer, retries included. Default 2 minutes.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// The producer. Connects when the first record is sent. Must be called within a Tokio runtime.
    ///
    /// # Errors
    /// [`Code::InvalidArgument`](crate::Code::InvalidArgument) for a setting outside its bounds, naming it.
    pub fn build(self) -> Result<Producer, ClientError> {
        let check = |what: &str, value: usize, least: usize, most: usize| {
            if (least..=most).contains(&value) {
                return Ok(());
            }
            Err(ClientError::invalid(format!("{what} is {value}; {least} to {most} is allowed")))
        };
        check("in_flight", self.in_flight, 1, IN_FLIGHT_MAX)?;
        check("batch_bytes", self.batch_bytes, 1, BATCH_BYTES_MAX)?;
        check("buffer_bytes", self.buffer_bytes, BUFFER_BYTES_MIN, BUFFER_BYTES_MAX)?;
        if !matches!(self.compression, Compression::None | Compression::Lz4) {
            return Err(ClientError::invalid(format!(
                "compression is {}; none and lz4 are written",
                self.compression
            )));
        }
        let connection = Connection::new(&self.endpoint)?;
        Ok(Producer::start(connection, self))
    }

    pub(crate) fn queue(&self) -> QueueConfig {
        QueueConfig {
            compression: self.compression,
            linger: self.linger,
            batch_bytes: self.batch_bytes,
            in_flight: self.in_flight,
            deadline: self.deadline,
        }
    }
}

impl fmt::Debug for ProducerBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProducerBuilder")
            .field("endpoint", &self.endpoint)
            .field("name", &self.name)
            .field("linger", &self.linger)
            .field("batch_bytes", &self.batch_bytes)
            .field("compression", &self.compression)
            .field("in_flight", &self.in_flight)
            .field("buffer_bytes", &self.buffer_bytes)
            .field("deadline", &self.deadline)
            .finish()
    }
}
