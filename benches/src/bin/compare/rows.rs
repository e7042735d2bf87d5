//! The experiments: each runs another server and Rimstone one after the other, and gives some rows.

use rimstone_benches::{
    lab::{Lab, figure},
    row::{Goal, Row, Sample, Unit},
};
use serde_json::Value;

use crate::peer::Peer;

/// What has to be known to read the table.
pub(crate) const NOTE: &str = "Rimstone answers when a completed sync covers the records; Redis does so too with \
    `appendfsync always`, and not with `everysec`; Debian's NATS JetStream has no sync before the answer.";

/// Producers, and the chunks of 128 KiB that each has unanswered: the same for all.
const PRODUCERS: u64 = 4;
const IN_FLIGHT: u64 = 8;
const BATCH_BYTES: u64 = 128 << 10;
/// Bytes of a reader's request or message.
const MESSAGE_BYTES: u64 = 1 << 20;
/// Records of 1 KiB: Redis keeps them in memory as well, of which a first touch is slow on virtual machines.
const RECORDS_1K: u64 = 300_000;
/// Records of 100 B.
const RECORDS_100: u64 = 2_000_000;

/// Another server, and what is compared.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Experiment {
    pub(crate) peer: Peer,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Records of 1 KiB in batches, written and read.
    Large,
    /// Records of 100 B in batches, written and read.
    Small,
    /// Single records, each waiting for its answer.
    Single,
}

pub(crate) fn all() -> Vec<Experiment> {
    let mut all = Vec::new();
    for kind in [Kind::Large, Kind::Small, Kind::Single] {
        for peer in Peer::ALL {
            all.push(Experiment { peer, kind });
        }
    }
    all
}

impl Kind {
    fn size(self) -> u64 {
        if self == Self::Small { 100 } else { 1024 }
    }

    fn records(self, lab: &Lab) -> u64 {
        lab.count(if self == Self::Small { RECORDS_100 } else { RECORDS_1K })
    }

    /// What produce and consume are measured in.
    fn unit(self) -> (Unit, &'static str) {
        match self {
            Self::Large => (Unit::BytesPerSecond, "bytes_per_s"),
            Self::Small | Self::Single => (Unit::PerSecond, "records_per_s"),
        }
    }
}

impl Experiment {
    pub(crate) fn key(&self) -> String {
        let kind = match self.kind {
            Kind::Large => "1k",
            Kind::Small => "100",
            Kind::Single => "single",
        };
        format!("{}-{kind}", self.peer.key())
    }

    /// How a server reads does not depend on when it syncs: that is measured once.
    fn reads(&self) -> bool {
        self.peer != Peer::RedisAlways
    }

    pub(crate) fn rows(&self) -> Vec<Row> {
        let unit = self.kind.unit().0;
        let row = |name, unit| Row { name, unit, goal: Goal::Told, reference: Some(self.peer.name()) };
        let (produce, consume) = match self.kind {
            Kind::Large => ("produce 1 KiB, 4 producers", "consume 1 KiB, decoded"),
            Kind::Small => ("produce 100 B, 4 producers", "consume 100 B, decoded"),
            Kind::Single => {
                return vec![
                    row("single records of 1 KiB, 64 callers", Unit::PerSecond),
                    row("single record of 1 KiB, one caller, p50", Unit::Seconds),
                ];
            }
        };
        let mut rows = vec![row(produce, unit)];
        if self.reads() {
            rows.push(row(consume, unit));
        }
        rows
    }

    /// One pair of runs: a sample for each row.
    pub(crate) async fn run(&self, lab: &Lab) -> anyhow::Result<Vec<Sample>> {
        match self.kind {
            Kind::Single => self.single(lab).await,
            Kind::Large | Kind::Small => self.batches(lab).await,
        }
    }

    async fn batches(&self, lab: &Lab) -> anyhow::Result<Vec<Sample>> {
        let (size, records, field) = (self.kind.size(), self.kind.records(lab), self.kind.unit().1);
        let server = self.peer.start(lab).await?;
        let client = self.peer.client();
        let batch = BATCH_BYTES / size;
        let words = format!(
            "{client}-produce --connections {PRODUCERS} --in-flight {IN_FLIGHT} --batch {batch} --size {size} -n {records}"
        );
        let produced = figure(&lab.program("peers", &server, &words).await?, "produce", field)?;
        let mut consumed = None;
        if self.reads() {
            let words = format!("{client}-consume --batch {}", MESSAGE_BYTES / size);
            consumed = Some(figure(&lab.program("peers", &server, &words).await?, "consume", field)?);
        }
        server.end().await?;

        let producing = format!(
            "-n {records} --size {size} --producers {PRODUCERS} --in-flight {IN_FLIGHT} --batch-bytes {BATCH_BYTES}"
        );
        let ours = ours(lab, &format!("produce {producing}")).await?;
        let mut samples = vec![Sample::beside(figure(&ours, "produce", field)?, produced)];
        if let Some(consumed) = consumed {
            let reading = format!("--read-via batches --message-bytes {MESSAGE_BYTES}");
            let ours = self::ours(lab, &format!("consume {producing} {reading}")).await?;
            samples.push(Sample::beside(figure(&ours, "read", field)?, consumed));
        }
        Ok(samples)
    }

    async fn single(&self, lab: &Lab) -> anyhow::Result<Vec<Sample>> {
        let bounds = format!("--size 1024 --for {} --warm-up {}", lab.time(2000), lab.time(300));
        let server = self.peer.start(lab).await?;
        let theirs = |callers: u32| {
            format!("{}-produce --connections {callers} --in-flight 1 --batch 1 {bounds}", self.peer.client())
        };
        let many = lab.program("peers", &server, &theirs(64)).await?;
        let one = lab.program("peers", &server, &theirs(1)).await?;
        server.end().await?;
        let our_many = ours(lab, &format!("latency --callers 64 --via stream --streams 4 {bounds}")).await?;
        let our_one = ours(lab, &format!("latency --callers 1 --via stream {bounds}")).await?;
        Ok(vec![
            Sample::beside(
                figure(&our_many, "latency", "records_per_s")?,
                figure(&many, "produce", "records_per_s")?,
            ),
            Sample::beside(
                figure(&our_one, "latency", "latency.p50_ns")? / 1e9,
                figure(&one, "produce", "latency.p50_ns")? / 1e9,
            ),
        ])
    }
}

/// `rimstone bench` with these words against a server of its own, with nothing else running.
async fn ours(lab: &Lab, words: &str) -> anyhow::Result<Value> {
    let server = lab.server(&lab.disk).await?;
    let document = lab.bench(&server, words).await?;
    server.end().await?;
    Ok(document)
}
