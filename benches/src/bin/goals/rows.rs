//! The experiments: each gives some rows by one pair of runs, the reference first.

use std::path::Path;

use anyhow::Context as _;
use rimstone_benches::{
    lab::{Lab, figure},
    row::{Goal, Row, Sample, Unit},
};
use serde_json::Value;

use crate::resources;

/// Which rows, and how one pair of runs measures them.
#[derive(Debug)]
pub(crate) struct Experiment {
    /// What chooses it on the command line.
    pub(crate) key: &'static str,
    pub(crate) rows: &'static [Row],
    pub(crate) kind: Kind,
}

/// What is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Produce1K,
    ProduceInMemory,
    Produce100,
    /// Plain records of so many bytes.
    Plain(u32),
    Unary,
    Streams,
    OneCaller,
    Partitions,
    Consume1K,
    Consume100,
    ConsumeCold,
    ColdBeside,
    IdlePartitions,
    IdleServer,
}

const BARE_PATH: Option<&str> = Some("the bare produce path");
const BARE_TONIC: Option<&str> = Some("bare tonic");
const ONE_PARTITION: Option<&str> = Some("1 partition");

const fn row(name: &'static str, unit: Unit, goal: Goal, reference: Option<&'static str>) -> Row {
    Row { name, unit, goal, reference }
}

/// All of them, in the order of the table.
pub(crate) const ALL: &[Experiment] = &[
    Experiment {
        key: "produce-1k",
        kind: Kind::Produce1K,
        rows: &[
            row("produce 1 KiB, 4 producers", Unit::BytesPerSecond, Goal::AtLeast(0.9), BARE_PATH),
            row(
                "produce 1 KiB, against the disk",
                Unit::BytesPerSecond,
                Goal::AtLeast(0.8),
                Some("the disk, synced every 4 MiB"),
            ),
        ],
    },
    Experiment {
        key: "produce-tmpfs",
        kind: Kind::ProduceInMemory,
        rows: &[row("produce 1 KiB, data on tmpfs", Unit::BytesPerSecond, Goal::AtLeast(1.2e9), None)],
    },
    Experiment {
        key: "produce-100",
        kind: Kind::Produce100,
        rows: &[
            row("produce 100 B, 4 producers", Unit::PerSecond, Goal::AtLeast(5e6), None),
            row("produce 100 B, server CPU a record", Unit::Seconds, Goal::AtMost(0.3e-6), None),
        ],
    },
    Experiment {
        key: "plain-1k",
        kind: Kind::Plain(1024),
        rows: &[row("plain 1 KiB, calls of 100", Unit::PerSecond, Goal::AtLeast(0.6), BARE_TONIC)],
    },
    Experiment {
        key: "plain-100",
        kind: Kind::Plain(100),
        rows: &[row("plain 100 B, calls of 100", Unit::PerSecond, Goal::AtLeast(0.6), BARE_TONIC)],
    },
    Experiment {
        key: "single-unary",
        kind: Kind::Unary,
        rows: &[row("single records, 64 unary callers", Unit::PerSecond, Goal::AtLeast(0.9), BARE_PATH)],
    },
    Experiment {
        key: "single-streams",
        kind: Kind::Streams,
        rows: &[
            row("single records, 64 callers on 4 streams", Unit::PerSecond, Goal::AtLeast(0.9), BARE_PATH),
            row("single records, 64 callers on 4 streams", Unit::PerSecond, Goal::AtLeast(66_000.0), None),
        ],
    },
    Experiment {
        key: "single-one",
        kind: Kind::OneCaller,
        rows: &[row(
            "single record, one caller, p50",
            Unit::Seconds,
            Goal::AtMost(1.2),
            Some("bare ping-pong + bare sync"),
        )],
    },
    Experiment {
        key: "partitions",
        kind: Kind::Partitions,
        rows: &[
            row("20,000/s, p50 over 16 partitions", Unit::Seconds, Goal::AtMost(1.5), ONE_PARTITION),
            row("20,000/s, p50 over 256 partitions", Unit::Seconds, Goal::Told, ONE_PARTITION),
            row("20,000/s, p50 over 1,000 partitions", Unit::Seconds, Goal::AtMost(4.0), ONE_PARTITION),
        ],
    },
    Experiment {
        key: "consume-1k",
        kind: Kind::Consume1K,
        rows: &[
            row("consume 1 KiB, warm", Unit::BytesPerSecond, Goal::AtLeast(1.0), BARE_TONIC),
            row("consume 1 KiB, warm", Unit::BytesPerSecond, Goal::AtLeast(2e9), None),
        ],
    },
    Experiment {
        key: "consume-100",
        kind: Kind::Consume100,
        rows: &[row("consume 100 B, warm, decoded", Unit::PerSecond, Goal::AtLeast(10e6), None)],
    },
    Experiment {
        key: "consume-cold",
        kind: Kind::ConsumeCold,
        rows: &[row("consume 1 KiB, cold", Unit::BytesPerSecond, Goal::AtLeast(0.8), Some("a cold pread"))],
    },
    Experiment {
        key: "cold-beside",
        kind: Kind::ColdBeside,
        rows: &[
            row("cold reader: p99 of producers, beside / alone", Unit::Plain, Goal::AtMost(1.1), None),
            row("cold reader: its rate, beside / alone", Unit::Plain, Goal::AtLeast(0.4), None),
        ],
    },
    Experiment {
        key: "idle-partitions",
        kind: Kind::IdlePartitions,
        rows: &[
            row("1,000 idle partitions: memory each", Unit::Bytes, Goal::AtMost(8192.0), None),
            // None each; the server may have opened one or another for itself.
            row("1,000 idle partitions: descriptors each", Unit::Plain, Goal::AtMost(0.05), None),
            row("1,000 idle partitions: processors busy", Unit::Plain, Goal::AtMost(0.01), None),
            row("1,000 idle partitions: restart", Unit::Seconds, Goal::AtMost(0.150), None),
        ],
    },
    Experiment {
        key: "idle-server",
        kind: Kind::IdleServer,
        rows: &[
            row("server, idle: memory", Unit::Bytes, Goal::AtMost(12.0 * 1_048_576.0), None),
            row("binary", Unit::Bytes, Goal::AtMost(20.0 * 1_048_576.0), None),
            row("start to ready, empty directory", Unit::Seconds, Goal::AtMost(0.030), None),
        ],
    },
];

/// Records of 1 KiB: 0.7 GB, since a first touch of more memory is slow on virtual machines.
const RECORDS_1K: u64 = 700_000;
/// Records of 100 B: about as much on disk.
const RECORDS_100: u64 = 5_000_000;
/// Producers, and what each has unanswered, in Rimstone as in the reference.
const PRODUCERS: u64 = 4;
const IN_FLIGHT: u64 = 8;
/// What the Rust client gathers by default.
const BATCH_BYTES: u64 = 128 << 10;
/// Messages of this size are what readers get, in Rimstone as in the reference.
const MESSAGE_BYTES: u64 = 1 << 20;
/// Plain records in a call.
const PER_CALL: u64 = 100;

impl Experiment {
    /// One pair of runs: a sample for each row.
    pub(crate) async fn run(&self, lab: &Lab) -> anyhow::Result<Vec<Sample>> {
        match self.kind {
            Kind::Produce1K => produce_1k(lab).await,
            Kind::ProduceInMemory => produce_in_memory(lab).await,
            Kind::Produce100 => produce_100(lab).await,
            Kind::Plain(size) => plain(lab, size).await,
            Kind::Unary => callers(lab, "unary").await.map(|sample| vec![sample]),
            Kind::Streams => {
                let sample = callers(lab, "stream").await?;
                Ok(vec![sample, Sample::alone(sample.figure)])
            }
            Kind::OneCaller => one_caller(lab).await,
            Kind::Partitions => partitions(lab).await,
            Kind::Consume1K => consume_1k(lab).await,
            Kind::Consume100 => consume_100(lab).await,
            Kind::ConsumeCold => consume_cold(lab).await,
            Kind::ColdBeside => cold_beside(lab).await,
            Kind::IdlePartitions => resources::idle_partitions(lab).await,
            Kind::IdleServer => resources::idle_server(lab).await,
        }
    }
}

/// Words of `rimstone bench produce` for batches of records of this size.
fn producing(lab: &Lab, size: u64, records: u64) -> String {
    let records = lab.count(records);
    format!(
        "produce -n {records} --size {size} --producers {PRODUCERS} --in-flight {IN_FLIGHT} --batch-bytes {BATCH_BYTES}"
    )
}

/// Our server on a directory of its own, with nothing else running; `rimstone bench` with these words.
async fn alone(lab: &Lab, place: &Path, words: &str) -> anyhow::Result<Value> {
    let server = lab.server(place).await?;
    let document = lab.bench(&server, words).await?;
    server.end().await?;
    Ok(document)
}

async fn produce_1k(lab: &Lab) -> anyhow::Result<Vec<Sample>> {
    let disk = lab.disk(&format!("append --step {} --bytes {}", 4 << 20, lab.count(300 << 20))).await?;
    let server = lab.reference_server(true).await?;
    let requests = (lab.count(RECORDS_1K) * 1024).div_ceil(BATCH_BYTES);
    let words = format!(
        "call --kind bidi --connections {PRODUCERS} --in-flight {IN_FLIGHT} --size {BATCH_BYTES} -n {requests}"
    );
    let bare = lab.reference(&server, &words).await?;
    server.end().await?;
    let ours = alone(lab, &lab.disk, &producing(lab, 1024, RECORDS_1K)).await?;
    let ours = figure(&ours, "produce", "bytes_per_s")?;
    Ok(vec![
        Sample::beside(ours, figure(&bare, "call", "bytes_per_s")?),
        Sample::beside(ours, figure(&disk, "append", "bytes_per_s")?),
    ])
}

async fn produce_in_memory(lab: &Lab) -> anyhow::Result<Vec<Sample>> {
    let ours = alone(lab, &lab.memory, &producing(lab, 1024, RECORDS_1K)).await?;
    Ok(vec![Sample::alone(figure(&ours, "produce", "bytes_per_s")?)])
}

async fn produce_100(lab: &Lab) -> anyhow::Result<Vec<Sample>> {
    let server = lab.server(&lab.disk).await?;
    let before = server.cpu()?;
    let ours = lab.bench(&server, &producing(lab, 100, RECORDS_100)).await?;
    let busy = (server.cpu()? - before).as_secs_f64();
    server.end().await?;
    let records = figure(&ours, "produce", "records")?;
    Ok(vec![Sample::alone(figure(&ours, "produce", "records_per_s")?), Sample::alone(busy / records)])
}

async fn plain(lab: &Lab, size: u32) -> anyhow::Result<Vec<Sample>> {
    let records = lab.count(if size >= 1024 { 300_000 } else { 1_000_000 });
    let server = lab.reference_server(false).await?;
    let words = format!(
        "call --kind unary --connections {PRODUCERS} --in-flight {IN_FLIGHT} --records {PER_CALL} --size {size} -n {}",
        records.div_ceil(PER_CALL)
    );
    let bare = lab.reference(&server, &words).await?;
    server.end().await?;
    let words = format!(
        "produce --via records --batch-records {PER_CALL} -n {records} --size {size} --producers {PRODUCERS} --in-flight {IN_FLIGHT}"
    );
    let ours = alone(lab, &lab.disk, &words).await?;
    Ok(vec![Sample::beside(
        figure(&ours, "produce", "records_per_s")?,
        figure(&bare, "call", "records_per_s")?,
    )])
}

/// 64 callers of single records, each by a call of its own or all on 4 streams; one connection.
async fn callers(lab: &Lab, via: &str) -> anyhow::Result<Sample> {
    let (time, warm_up) = (lab.time(3000), lab.time(500));
    let reference = match via {
        "unary" => "--kind unary --in-flight 64",
        _ => "--kind bidi --streams 4 --in-flight 16",
    };
    let server = lab.reference_server(true).await?;
    let words = format!("call {reference} --records 1 --size 1024 --for {time} --warm-up {warm_up}");
    let bare = lab.reference(&server, &words).await?;
    server.end().await?;
    let words =
        format!("latency --callers 64 --via {via} --streams 4 --size 1024 --for {time} --warm-up {warm_up}");
    let ours = alone(lab, &lab.disk, &words).await?;
    Ok(Sample::beside(figure(&ours, "latency", "requests_per_s")?, figure(&bare, "call", "requests_per_s")?))
}

async fn one_caller(lab: &Lab) -> anyhow::Result<Vec<Sample>> {
    let (time, warm_up) = (lab.time(2000), lab.time(300));
    let server = lab.reference_server(false).await?;
    let words = format!("call --kind bidi --records 1 --size 1024 --for {time} --warm-up {warm_up}");
    let ping = seconds(&lab.reference(&server, &words).await?, "call")?;
    server.end().await?;
    let sync = lab.disk(&format!("append --step 4096 --for {time}")).await?;
    let sync = seconds(&sync, "append")?;
    let words = format!("latency --callers 1 --via stream --size 1024 --for {time} --warm-up {warm_up}");
    let ours = seconds(&alone(lab, &lab.disk, &words).await?, "latency")?;
    Ok(vec![Sample::beside(ours, ping + sync)])
}

async fn partitions(lab: &Lab) -> anyhow::Result<Vec<Sample>> {
    let rate = if lab.quick { 500 } else { 20_000 };
    let (time, warm_up) = (lab.time(3000), lab.time(1000));
    let mut medians = Vec::new();
    for partitions in [1, 16, 256, 1000] {
        let words = format!(
            "rate --rate {rate} --partitions {partitions} --streams 4 --size 1024 --for {time} --warm-up {warm_up}"
        );
        medians.push(seconds(&alone(lab, &lab.disk, &words).await?, "rate")?);
    }
    Ok(medians[1..].iter().map(|median| Sample::beside(*median, medians[0])).collect())
}

async fn consume_1k(lab: &Lab) -> anyhow::Result<Vec<Sample>> {
    let records = lab.count(500_000);
    let server = lab.reference_server(false).await?;
    let words = format!("read --bytes {} --piece-bytes {MESSAGE_BYTES}", records * 1024);
    let bare = lab.reference(&server, &words).await?;
    server.end().await?;
    // The second pass: the first one touches the server's maps for the first time.
    let words =
        format!("consume -n {records} --size 1024 --read-via raw --message-bytes {MESSAGE_BYTES} --passes 2");
    let ours = figure(&alone(lab, &lab.disk, &words).await?, "read 2", "bytes_per_s")?;
    Ok(vec![Sample::beside(ours, figure(&bare, "read", "bytes_per_s")?), Sample::alone(ours)])
}

async fn consume_100(lab: &Lab) -> anyhow::Result<Vec<Sample>> {
    let words = format!(
        "consume -n {} --size 100 --read-via batches --message-bytes {MESSAGE_BYTES} --passes 2",
        lab.count(RECORDS_100)
    );
    let ours = alone(lab, &lab.disk, &words).await?;
    Ok(vec![Sample::alone(figure(&ours, "read 2", "records_per_s")?)])
}

async fn consume_cold(lab: &Lab) -> anyhow::Result<Vec<Sample>> {
    let records = lab.count(500_000);
    let bare = lab.disk(&format!("read --cold --block {MESSAGE_BYTES} --bytes {}", records * 1024)).await?;
    let server = lab.server(&lab.disk).await?;
    let words = format!(
        "consume -n {records} --size 1024 --read-via raw --message-bytes {MESSAGE_BYTES} --evict {}",
        server.data().display()
    );
    let ours = lab.bench(&server, &words).await?;
    server.end().await?;
    Ok(vec![Sample::beside(figure(&ours, "read", "bytes_per_s")?, figure(&bare, "read", "bytes_per_s")?)])
}

async fn cold_beside(lab: &Lab) -> anyhow::Result<Vec<Sample>> {
    let server = lab.server(&lab.disk).await?;
    let words = format!(
        "cold -n {} --size 1024 --producers {PRODUCERS} --in-flight {IN_FLIGHT} --batch-bytes {BATCH_BYTES} --read-via raw \
         --message-bytes {MESSAGE_BYTES} --for {} --warm-up {} --evict {}",
        lab.count(400_000),
        lab.time(3000),
        lab.time(500),
        server.data().display()
    );
    let ours = lab.bench(&server, &words).await?;
    server.end().await?;
    let told = |name: &str| ours["figures"][name].as_f64().with_context(|| format!("no figure {name}"));
    Ok(vec![
        Sample::alone(told("p99 of producers, beside / alone")?),
        Sample::alone(told("rate of the reader, beside / alone")?),
    ])
}

/// The median latency of a phase.
fn seconds(document: &Value, phase: &str) -> anyhow::Result<f64> {
    Ok(figure(document, phase, "latency.p50_ns")? / 1e9)
}
