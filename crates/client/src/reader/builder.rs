//! The settings of a reader.

use std::time::Duration;

use rimstone_types::PartitionIndex;

use crate::{
    connect::Connection,
    error::ClientError,
    reader::{End, Filter, Reader, Start},
    retry::Backoff,
};

/// Makes a [`Reader`].
#[derive(Debug, Clone)]
pub struct ReaderBuilder {
    endpoint: String,
    topic: String,
    partitions: Vec<PartitionIndex>,
    start: Option<Start>,
    end: End,
    count: Option<u64>,
    filter: Filter,
    retry_for: Duration,
}

impl ReaderBuilder {
    pub(crate) fn new(endpoint: &str, topic: &str) -> Self {
        Self {
            endpoint: endpoint.to_owned(),
            topic: topic.to_owned(),
            partitions: Vec::new(),
            start: None,
            end: End::Never,
            count: None,
            filter: Filter::default(),
            retry_for: Duration::from_secs(120),
        }
    }

    /// Reads only these partitions. Default: all that there are when reading begins.
    #[must_use]
    pub fn partitions(mut self, partitions: impl IntoIterator<Item = PartitionIndex>) -> Self {
        self.partitions = partitions.into_iter().collect();
        self
    }

    /// Where to begin. There is no default: the reader chooses.
    #[must_use]
    pub fn start(mut self, start: Start) -> Self {
        self.start = Some(start);
        self
    }

    /// Where to end. Default: never.
    #[must_use]
    pub fn end(mut self, end: End) -> Self {
        self.end = end;
        self
    }

    /// Ends after this many records over all partitions.
    #[must_use]
    pub fn count(mut self, records: u64) -> Self {
        self.count = Some(records);
        self
    }

    /// Reads only records that meet this.
    #[must_use]
    pub fn filter(mut self, filter: Filter) -> Self {
        self.filter = filter;
        self
    }

    /// How long to go on trying without a word from the server. Default 2 minutes.
    #[must_use]
    pub fn retry_for(mut self, patience: Duration) -> Self {
        self.retry_for = patience;
        self
    }

    /// The reader. Nothing is sent yet. Must be called within a Tokio runtime.
    ///
    /// # Errors
    /// [`Code::InvalidArgument`](crate::Code::InvalidArgument) without a start, or for an address that is not one.
    pub fn build(self) -> Result<Reader, ClientError> {
        let start = self.start.ok_or_else(|| {
            ClientError::invalid("a reader needs a start: earliest, latest, an offset or a time")
        })?;
        Ok(Reader {
            connection: Connection::new(&self.endpoint)?,
            topic: self.topic,
            partitions: self.partitions,
            start,
            end: self.end,
            remaining: self.count,
            filter: self.filter,
            retry_for: self.retry_for,
            cursors: None,
            stream: None,
            chunk: None,
            progress: false,
            silent_since: None,
            backoff: Backoff::default(),
            retry_at: None,
        })
    }
}
