//! A bound on everything that clients can make the broker hold, each with the reason for its value.

use std::time::Duration;

use rimstone_types::ByteCount;

/// The bounds. Over a bound the answer is an error that names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Topics of this server: each costs a few hundred bytes of catalog and memory.
    pub topics: u32,
    /// Partitions of this server over all topics: each costs descriptors, a map and about 10 KiB.
    pub partitions: u32,
    /// Partitions of one topic: an answer about a topic names them all and must fit a message of 4 MiB.
    pub partitions_per_topic: u32,
    /// Named producers: they never expire, and the catalog is held in memory.
    pub named_producers: u32,
    /// Producers numbered by request that have a session at one time: about 1 KiB each. At the bound the one
    /// idle for longest gives way; it then has to send its last request again first.
    pub sessions: usize,
    /// Requests of one numbered producer that are open or wait for their turn: far more than a round trip to
    /// a disk can hide.
    pub open_requests_per_producer: usize,
    /// Bytes of produce requests in flight, from arrival to answer, over all connections.
    pub in_flight: ByteCount,
    /// The longest request message that the doors take: no topic is told to take larger batches than it carries.
    pub request: ByteCount,
    /// Plain records, or encoded batches, in one request: bounds the answer, which lists each.
    pub records_per_request: usize,
    /// What a client's compressed batch may become: verification holds this much for a moment.
    pub uncompressed_batch: ByteCount,
    /// Partitions in one fetch.
    pub partitions_per_fetch: usize,
    /// Topics in one InitProducer or in the opening of one produce stream.
    pub topics_per_request: usize,
    /// Bytes in one answer to a fetch (a single larger batch is answered all the same).
    pub response: ByteCount,
    /// Bytes in one answer to a fetch that names no bound.
    pub response_default: ByteCount,
    /// Bytes in one message of a reader that names no bound.
    pub read_message_default: ByteCount,
    /// Fetches that wait at one time: each holds a task and its subscriptions.
    pub waiting_fetches: usize,
    /// The longest that a fetch may wait: below the minute after which proxies cut idle connections.
    pub fetch_wait: Duration,
    /// Readers at one time: each holds a task, its subscriptions and up to one message.
    pub readers: usize,
    /// Bytes a second at which all readers together read what was appended more than 2 s ago, while somebody writes: they
    /// would take the processors from producers. Never less than twice the rate of what is written; 0: no bound.
    pub history_rate: ByteCount,
    /// Offsets in one commit, or partitions in one question for them: as many as a server has partitions.
    pub offsets_per_request: usize,
    /// Groups in one answer to a listing.
    pub listed_groups: usize,
    /// Sessions of group members at one time: each holds a task, its subscriptions and up to one message.
    pub group_sessions: usize,
    /// Producers in one answer to a listing.
    pub listed_producers: usize,
    /// Partitions, of all groups together, in one answer of lag: about 100 bytes each.
    pub lag_partitions: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            topics: 10_000,
            partitions: 10_000,
            partitions_per_topic: 10_000,
            named_producers: 100_000,
            sessions: 10_000,
            open_requests_per_producer: 1_024,
            in_flight: ByteCount::mib(256),
            request: ByteCount::mib(8),
            records_per_request: 100_000,
            uncompressed_batch: ByteCount::mib(64),
            partitions_per_fetch: 10_000,
            topics_per_request: 100,
            response: ByteCount::mib(16),
            response_default: ByteCount::mib(1),
            read_message_default: ByteCount::kib(256),
            waiting_fetches: 10_000,
            fetch_wait: Duration::from_secs(60),
            readers: 1_000,
            history_rate: ByteCount::mib(640),
            offsets_per_request: 10_000,
            listed_groups: 10_000,
            group_sessions: 4_000,
            listed_producers: 10_000,
            lag_partitions: 100_000,
        }
    }
}
