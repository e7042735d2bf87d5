//! Options that workloads share. What each of them does with these is not here.

use std::{path::PathBuf, time::Duration};

use clap::{Args, ValueEnum};
use rimstone_client::Compression;
use serde::{Serialize, Serializer};

use super::keys::KeySpec;
use crate::{exit::Failure, topic::key_value};

/// A value larger than any batch of any topic helps nobody.
const SIZE_MAX: u64 = 16 << 20;
/// How long a workload runs if neither a count nor a time is given.
const RUN_DEFAULT: Duration = Duration::from_secs(10);
/// How long a workload that is bounded by time warms up unless told otherwise.
const WARM_UP_DEFAULT: Duration = Duration::from_secs(1);

/// Options of every workload.
#[derive(Debug, Clone, Args, Serialize)]
pub(crate) struct Load {
    /// Uses this topic, which is there, and leaves it there [default: makes one, and deletes it]
    #[arg(long)]
    pub(crate) topic: Option<String>,
    /// Leaves the topics that it makes
    #[arg(long, conflicts_with = "topic")]
    pub(crate) keep: bool,
    /// Partitions of the topic that it makes
    #[arg(long, value_name = "N", default_value_t = 6, conflicts_with = "topic")]
    pub(crate) partitions: u32,
    /// When the topic that it makes acknowledges
    #[arg(long, value_enum, default_value = "durable", conflicts_with = "topic")]
    pub(crate) durability: Durability,
    /// One more setting of the topic that it makes; may be repeated
    #[arg(long = "set", value_name = "NAME=VALUE", value_parser = key_value, conflicts_with = "topic")]
    pub(crate) settings: Vec<(String, String)>,
    /// Bytes of a value, for example 100 or 64KiB
    #[arg(long, value_name = "BYTES", default_value = "1KiB", value_parser = value_size)]
    pub(crate) size: u64,
    /// Values are pieces of this file [default: pseudo-random bytes, which do not compress]
    #[arg(long, value_name = "FILE")]
    pub(crate) payload: Option<PathBuf>,
    /// Values and keys are the same for the same seed [default: another one each time]
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
    /// Keys: none, uniform:N, zipf:N, zipf:N:EXPONENT or sequential:N
    #[arg(long, value_name = "DISTRIBUTION", default_value = "none")]
    pub(crate) keys: KeySpec,
    /// How batches are compressed
    #[arg(long, value_enum, default_value = "none")]
    pub(crate) compression: Squeeze,
    /// Ends after so many records, rounded up to whole requests
    #[arg(short = 'n', long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) records: Option<u64>,
    /// Ends after this time, for example 30s [default: 10s, unless -n is given]
    #[arg(long = "for", value_name = "DURATION", value_parser = humantime::parse_duration)]
    #[serde(serialize_with = "seconds")]
    pub(crate) duration: Option<Duration>,
    /// What happens before is not counted [default: 1s, or nothing with -n]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    #[serde(serialize_with = "seconds")]
    pub(crate) warm_up: Option<Duration>,
    /// Prints one JSON document instead of a table
    #[arg(long)]
    pub(crate) json: bool,
    /// Writes all latencies to this file, as an HdrHistogram log with one tagged line for each phase
    #[arg(long, value_name = "FILE")]
    pub(crate) histograms: Option<PathBuf>,
}

/// Options of those who produce as much as they can.
#[derive(Debug, Clone, Args, Serialize)]
pub(crate) struct Producing {
    /// Producers, each with a connection of its own
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) producers: u32,
    /// Requests that each producer has unanswered at a time (--via client: batches for each partition)
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(crate) in_flight: u32,
    /// What is sent
    #[arg(long, value_enum, default_value = "batches")]
    pub(crate) via: ProduceVia,
    /// Bytes of a batch before compression
    #[arg(long, value_name = "BYTES", default_value = "128KiB", value_parser = value_size)]
    pub(crate) batch_bytes: u64,
    /// Records of a request (--via records)
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) batch_records: u32,
}

/// Options of those who send one record at a time.
#[derive(Debug, Clone, Args, Serialize)]
pub(crate) struct Calling {
    /// How a record is sent
    #[arg(long, value_enum, default_value = "stream")]
    pub(crate) via: CallVia,
    /// Connections
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) connections: u32,
    /// Streams on each connection (--via stream)
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub(crate) streams: u32,
}

/// Options of those who read.
#[derive(Debug, Clone, Args, Serialize)]
pub(crate) struct Reading {
    /// Readers, each with a connection and a share of the partitions of its own
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) readers: u32,
    /// What is done with what comes
    #[arg(long, value_enum, default_value = "batches")]
    pub(crate) read_via: ReadVia,
    /// Bytes of one message [default: as the server likes]
    #[arg(long, value_name = "BYTES", default_value = "0", value_parser = bytes)]
    pub(crate) message_bytes: u64,
}

/// When a topic acknowledges.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Durability {
    /// When a completed sync covers the records
    Durable,
    /// When they are in the page cache
    Written,
}

/// How batches are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Squeeze {
    None,
    Lz4,
}

/// What producers send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ProduceVia {
    /// Batches that were encoded before, on a stream for each producer: costs the least here
    Batches,
    /// Plain records in unary calls, as from a program with generated stubs
    Records,
    /// Records through this project's Rust client, which batches and numbers them
    Client,
}

/// How one record is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum CallVia {
    /// A call for each
    Unary,
    /// A message on a stream for each
    Stream,
    /// This project's Rust client, without lingering
    Client,
}

/// What readers do with what comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ReadVia {
    /// Counts records by the headers of their batches
    Raw,
    /// Verifies batches and decodes every record
    Batches,
    /// Takes records one by one from this project's Rust client
    Client,
}

impl Squeeze {
    pub(crate) fn compression(self) -> Compression {
        match self {
            Self::None => Compression::None,
            Self::Lz4 => Compression::Lz4,
        }
    }
}

impl Load {
    /// How long a run is: a time, or a count alone.
    pub(crate) fn run_time(&self) -> Option<Duration> {
        self.duration.or(self.records.is_none().then_some(RUN_DEFAULT))
    }

    pub(crate) fn warm_up(&self) -> Duration {
        self.warm_up.unwrap_or(if self.records.is_some() { Duration::ZERO } else { WARM_UP_DEFAULT })
    }

    /// For workloads that make several topics.
    pub(crate) fn refuse_topic(&self) -> Result<(), Failure> {
        match self.topic {
            Some(_) => Err(Failure::usage("--topic: this workload makes topics of its own")),
            None => Ok(()),
        }
    }
}

/// Bytes as somebody typed them: a number, or one with B, KiB or MiB.
fn bytes(text: &str) -> Result<u64, String> {
    let units = [("KiB", 10), ("MiB", 20), ("B", 0), ("", 0)];
    let parsed = units.into_iter().find_map(|(unit, shift)| {
        let number = text.strip_suffix(unit)?.trim().parse::<u64>().ok()?;
        number.checked_mul(1 << shift)
    });
    parsed.filter(|bytes| *bytes <= SIZE_MAX).ok_or_else(|| {
        format!("{text:?} is not a size; write bytes up to 16MiB, for example 100, 64KiB or 1MiB")
    })
}

/// The same, and not 0.
fn value_size(text: &str) -> Result<u64, String> {
    bytes(text)
        .and_then(|size| if size == 0 { Err("0 is too small; at least 1".to_owned()) } else { Ok(size) })
}

fn seconds<S: Serializer>(duration: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    duration.map(|duration| duration.as_secs_f64()).serialize(serializer)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Only {
        #[command(flatten)]
        load: Load,
    }

    fn load(flags: &[&str]) -> Load {
        Only::try_parse_from(["bench"].iter().chain(flags)).unwrap().load
    }

    #[test]
    fn sizes_with_and_without_units() {
        for (text, size) in [("100", 100), ("100B", 100), ("64KiB", 65_536), ("1 MiB", 1 << 20)] {
            assert_eq!(bytes(text), Ok(size));
        }
        for bad in ["", "-1", "1.5KiB", "1GiB", "17MiB", "99999999999999999999", "KiB"] {
            assert!(bytes(bad).unwrap_err().contains("64KiB"), "{bad}");
        }
        assert!(value_size("0").is_err());
    }

    #[test]
    fn a_run_is_bounded_by_time_unless_a_count_is_given() {
        let seconds = Duration::from_secs;
        assert_eq!((load(&[]).run_time(), load(&[]).warm_up()), (Some(seconds(10)), seconds(1)));
        let counted = load(&["-n", "5"]);
        assert_eq!((counted.run_time(), counted.warm_up()), (None, Duration::ZERO));
        let both = load(&["-n", "5", "--for", "3s", "--warm-up", "2s"]);
        assert_eq!((both.run_time(), both.warm_up()), (Some(seconds(3)), seconds(2)));
        assert!(Only::try_parse_from(["bench", "-n", "0"]).is_err());
    }

    #[test]
    fn a_topic_that_is_there_has_its_own_settings() {
        for flag in [&["--keep"][..], &["--partitions", "3"], &["--durability", "written"], &["--set", "a=b"]]
        {
            let arguments = ["bench", "--topic", "t"].iter().chain(flag);
            assert!(Only::try_parse_from(arguments).is_err(), "{flag:?}");
        }
    }
}
