//! The table of all settings: section, key, kind with bounds, default, meaning.

use std::time::Duration;

use super::value::Kind;

/// One setting.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Setting {
    pub(crate) section: &'static str,
    pub(crate) key: &'static str,
    pub(crate) kind: Kind,
    pub(crate) default: &'static str,
    pub(crate) about: &'static str,
}

impl Setting {
    /// `section.key`, as the file and the flags have it.
    pub(crate) fn name(&self) -> String {
        format!("{}.{}", self.section, self.key)
    }

    /// `RIMSTONE_SECTION__KEY`; dots of the key become `_`.
    pub(crate) fn environment_name(&self) -> String {
        format!("RIMSTONE_{}__{}", self.section, self.key).to_uppercase().replace('.', "_")
    }
}

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Key, kind with bounds, default, meaning.
type Row = (&'static str, Kind, &'static str, &'static str);

/// All settings, in the order in which they are shown.
pub(crate) fn all() -> Vec<Setting> {
    let mut settings = Vec::new();
    let mut add = |section, rows: &[Row]| {
        settings.extend(rows.iter().map(|&(key, kind, default, about)| Setting {
            section,
            key,
            kind,
            default,
            about,
        }));
    };
    add("server", &server());
    add("storage", &storage());
    add("limits", &door_limits());
    add("limits", &broker_limits());
    add("topic_defaults", &topic_defaults());
    add("metrics", &metrics());
    add("log", &log());
    settings
}

fn server() -> [Row; 4] {
    [
        ("grpc_address", Kind::Address, "127.0.0.1:9190", "Where gRPC listens"),
        ("web_address", Kind::Address, "127.0.0.1:9180", "Where /metrics, /livez and /readyz listen"),
        (
            "allow_unauthenticated_remote",
            Kind::Flag,
            "false",
            "Listen on addresses that other machines can reach, without authentication, on purpose",
        ),
        (
            "shutdown_deadline",
            Kind::Duration { min: Duration::from_millis(100), max: seconds(600) },
            "10s",
            "How long a stop waits for what is in flight before it breaks connections",
        ),
    ]
}

fn storage() -> [Row; 9] {
    [
        (
            "backend",
            Kind::Choice(&["local", "memory"]),
            "local",
            "Where records are kept: files, or memory that is gone when the server stops",
        ),
        ("data_directory", Kind::Path, "./data", "Where the local store keeps everything"),
        (
            "disk_reserve",
            Kind::Bytes { min: 0, max: 1 << 50 },
            "256 MiB",
            "Free space on the data directory's device below which appends are refused",
        ),
        (
            "sync",
            Kind::Choice(&["auto", "fdatasync"]),
            "auto",
            "How appends become durable: auto takes one syncfs for all partitions where it is proven, and \
             fdatasync for each file elsewhere",
        ),
        (
            "producer_expiry",
            Kind::Duration { min: seconds(60 * 60), max: seconds(10 * 365 * 24 * 60 * 60) },
            "1day",
            "How long a producer without a name is remembered after its last batch",
        ),
        (
            "maintenance_interval",
            Kind::Duration { min: Duration::from_millis(100), max: seconds(24 * 60 * 60) },
            "5m",
            "How often retention is applied, segments are rolled by age and idle producers expire",
        ),
        (
            "compaction_interval",
            Kind::Duration { min: Duration::from_millis(100), max: seconds(24 * 60 * 60) },
            "15s",
            "How often compacted topics are looked at; the dirtiest partition that is due is compacted first",
        ),
        (
            "scrub_interval",
            Kind::Duration { min: Duration::from_millis(100), max: seconds(365 * 24 * 60 * 60) },
            "7days",
            "How often all sealed segments are read from the disk and verified; first an hour after the start, or sooner",
        ),
        (
            "scrub_bytes_per_second",
            Kind::Bytes { min: 0, max: 1 << 40 },
            "8 MiB",
            "How much of them in a second, at most; 0 turns it off",
        ),
    ]
}

const fn count(min: u64, max: u64) -> Kind {
    Kind::Count { min, max }
}

const fn bytes(min: u64, max: u64) -> Kind {
    Kind::Bytes { min, max }
}

fn door_limits() -> [Row; 7] {
    [
        ("request_bytes", bytes(64 << 10, 256 << 20), "8 MiB", "The longest gRPC request message"),
        (
            "items_per_request",
            count(1_000, 10_000_000),
            "200000",
            "Records, headers, batches and names in one gRPC request message, counted before it is decoded",
        ),
        (
            "response_bytes",
            bytes(33 << 20, 1 << 30),
            "96 MiB",
            "The longest gRPC response message; a backstop, answers are cut to fetch_bytes long before",
        ),
        (
            "stream_window_bytes",
            bytes(64 << 10, 256 << 20),
            "8 MiB",
            "Unanswered request bytes that one produce stream may have in flight",
        ),
        ("connections", count(1, 65_536), "1024", "Open gRPC connections"),
        ("streams_per_connection", count(1, 10_000), "256", "gRPC calls at the same time on one connection"),
        (
            "request_timeout",
            Kind::Duration { min: seconds(1), max: seconds(3600) },
            "2m",
            "How long a request may be on its way here, and then how long a unary call may take, long polls included",
        ),
    ]
}

fn broker_limits() -> [Row; 24] {
    [
        ("topics", count(1, 1_000_000), "10000", "Topics of this server"),
        ("partitions", count(1, 1_000_000), "10000", "Partitions over all topics"),
        ("partitions_per_topic", count(1, 10_000), "10000", "Partitions of one topic"),
        ("named_producers", count(1, 10_000_000), "100000", "Named producers; they never expire"),
        (
            "producers_per_partition",
            count(1, 10_000_000),
            "10000",
            "Producers that one partition remembers; new ones are refused beyond it",
        ),
        (
            "producer_sessions",
            count(1, 1_000_000),
            "10000",
            "Producers numbered by request that are remembered at one time; the one idle for longest gives way",
        ),
        (
            "open_requests_per_producer",
            count(1, 100_000),
            "1024",
            "Requests of one numbered producer that are open or wait for their turn",
        ),
        (
            "in_flight_bytes",
            bytes(1 << 20, (4 << 30) - 1),
            "256 MiB",
            "Bytes of produce requests from arrival to answer, over all connections",
        ),
        (
            "records_per_request",
            count(1, 1_000_000),
            "100000",
            "Plain records, or encoded batches, in one request",
        ),
        (
            "uncompressed_batch_bytes",
            bytes(1 << 20, 1 << 30),
            "64 MiB",
            "What a client's compressed batch may become",
        ),
        ("partitions_per_fetch", count(1, 10_000), "10000", "Partitions in one fetch"),
        (
            "topics_per_request",
            count(1, 10_000),
            "100",
            "Topics in one InitProducer or one opening of a produce stream",
        ),
        (
            "fetch_bytes",
            bytes(64 << 10, 32 << 20),
            "16 MiB",
            "Bytes in one answer to a fetch; a single larger batch is answered all the same",
        ),
        (
            "fetch_default_bytes",
            bytes(1 << 10, 32 << 20),
            "1 MiB",
            "The same, for a fetch that names no bound",
        ),
        (
            "read_default_bytes",
            bytes(1 << 10, 32 << 20),
            "256 KiB",
            "Bytes in one message of a reader that names no bound",
        ),
        ("waiting_fetches", count(1, 1_000_000), "10000", "Fetches that wait at one time"),
        (
            "fetch_wait",
            Kind::Duration { min: Duration::from_millis(1), max: seconds(3600) },
            "1m",
            "The longest that a fetch may wait",
        ),
        ("readers", count(1, 100_000), "1000", "Read streams at one time"),
        (
            "history_bytes_per_processor",
            bytes(0, 1 << 40),
            "320 MiB",
            "Bytes a second, for each processor, at which what was appended more than 2 s ago is read by all together \
             while somebody writes, or twice what is written, if that is more; 0: no bound",
        ),
        ("offsets_per_request", count(1, 10_000), "10000", "Offsets in one commit or one question for them"),
        ("group_sessions", count(1, 100_000), "4000", "Consume streams at one time"),
        ("listed_groups", count(1, 160_000), "10000", "Groups in one answer to a listing"),
        ("listed_producers", count(1, 1_000_000), "10000", "Producers in one answer to a listing"),
        (
            "lag_partitions",
            count(1, 1_000_000),
            "100000",
            "Partitions, of all groups together, in one answer of lag",
        ),
    ]
}

/// Settings of a topic by Kafka's names; the broker checks the values.
fn topic_defaults() -> [Row; 15] {
    [
        ("partitions", count(1, 10_000), "1", "Partitions of a topic that is created without a number"),
        (
            "cleanup.policy",
            Kind::Topic,
            "delete",
            "What happens to old records: delete (by age and size), compact (the last of each key stays) or \
             compact,delete",
        ),
        (
            "delete.retention.ms",
            Kind::Topic,
            "86400000",
            "How long a tombstone stays after it was first compacted, milliseconds from 0",
        ),
        (
            "index.interval.bytes",
            Kind::Topic,
            "4096",
            "Bytes of log between two index entries, 64 to 16777216",
        ),
        (
            "max.compaction.lag.ms",
            Kind::Topic,
            "9223372036854775807",
            "How long a record may stay uncompacted, milliseconds from 1; the default: for ever",
        ),
        (
            "max.message.bytes",
            Kind::Topic,
            "1048576",
            "The largest batch, in bytes as it is stored, 1024 to 33554432",
        ),
        (
            "message.timestamp.after.max.ms",
            Kind::Topic,
            "3600000",
            "How far in the future a create time may lie, milliseconds from 0",
        ),
        (
            "message.timestamp.type",
            Kind::Topic,
            "CreateTime",
            "A topic's time: CreateTime (the producer's) or LogAppendTime (the server's)",
        ),
        (
            "min.cleanable.dirty.ratio",
            Kind::Topic,
            "0.5",
            "The share of a log that must be dirty before it is compacted, from 0 to 1",
        ),
        (
            "min.compaction.lag.ms",
            Kind::Topic,
            "0",
            "How long a record stays uncompacted at least, milliseconds from 0",
        ),
        ("retention.bytes", Kind::Topic, "-1", "Bytes that each partition keeps at least; -1: no bound"),
        (
            "retention.ms",
            Kind::Topic,
            "604800000",
            "How long records are kept, milliseconds from 1; -1: for ever",
        ),
        (
            "rimstone.ack",
            Kind::Topic,
            "durable",
            "What an acknowledgement means: durable, or written (a power cut can take it back)",
        ),
        (
            "segment.bytes",
            Kind::Topic,
            "134217728",
            "The largest segment file, bytes from 4096 to 2147483648",
        ),
        (
            "segment.ms",
            Kind::Topic,
            "604800000",
            "The age at which a segment is rolled, milliseconds from 1000",
        ),
    ]
}

fn metrics() -> [Row; 1] {
    [(
        "lag_per_partition",
        Kind::Flag,
        "false",
        "Series of lag for each partition of each group too, not only for each topic: many series",
    )]
}

fn log() -> [Row; 3] {
    [
        (
            "filter",
            Kind::Text(1000),
            "info",
            "Which lines are logged: a level (error, warn, info, debug, trace), or levels per crate such as \
             warn,rimstone_store=debug",
        ),
        ("format", Kind::Choice(&["text", "json"]), "text", "How a log line looks"),
        (
            "color",
            Kind::Choice(&["auto", "always", "never"]),
            "auto",
            "Whether log lines are coloured; auto means on a terminal unless NO_COLOR is set",
        ),
    ]
}
