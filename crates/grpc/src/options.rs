//! The bounds of the gRPC doors, each with its default. Who sets them: `rimstone-server`.

use std::time::Duration;

use rimstone_types::ByteCount;

/// The bounds of the gRPC doors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GrpcOptions {
    /// The longest request message. Must hold the largest batch of any topic, and some more for its frame.
    pub request_bytes_max: ByteCount,
    /// Elements (records, headers, batches, names) in one request message: each takes a hundred bytes of memory,
    /// though it may come in two.
    pub items_per_request_max: u64,
    /// The longest response message: a backstop, answers are cut to the broker's bound long before. Must hold a
    /// single record as large as a decompressed batch may be.
    pub response_bytes_max: ByteCount,
    /// Unanswered request bytes that one produce stream may have in flight before the server stops reading it.
    pub stream_window: ByteCount,
    /// Open connections; the next one is closed at once, with a line in the log.
    pub connections_max: usize,
    /// Calls at the same time on one connection; HTTP/2 makes the client wait with the next one.
    pub streams_per_connection_max: u32,
    /// How long a request message may be on its way here, and then how long a unary call may take, long polls
    /// included.
    pub request_timeout: Duration,
    /// How long a connection may be silent before it is pinged.
    pub keepalive_interval: Duration,
    /// How long an answer to the ping may take before the connection is closed.
    pub keepalive_timeout: Duration,
}

impl Default for GrpcOptions {
    fn default() -> Self {
        Self {
            // Eight batches of the default size in one request.
            request_bytes_max: ByteCount::mib(8),
            // As many records as a request may have, with a header each.
            items_per_request_max: 200_000,
            response_bytes_max: ByteCount::mib(96),
            stream_window: ByteCount::mib(8),
            connections_max: 1024,
            streams_per_connection_max: 256,
            // Twice the longest long poll.
            request_timeout: Duration::from_secs(120),
            keepalive_interval: Duration::from_secs(30),
            keepalive_timeout: Duration::from_secs(20),
        }
    }
}
