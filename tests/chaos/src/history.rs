//! Much data in little memory: a topic of some GiB is written, a group reads all of it again, and every byte is
//! compared, by a server in a memory cgroup a fraction of that, page cache included. It is killed once in between. Meanwhile somebody
//! appends.
//!
//! Not here: faults, the ten rules; nobody sends anything twice.

use std::{
    fs,
    path::Path,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use bytes::{BufMut as _, Bytes, BytesMut};
use rimstone_client::{
    Admin, Connection, Consumer, Groups, OffsetCommit, ReplaySpec, ReplayTo, StartPolicy, TopicPartition,
    lag, plan_replay, start_replay,
};
use rimstone_proto::v1;
use rimstone_tests::server::{Server, Setup, free_ports};
use rimstone_types::{Offset, PartitionIndex};
use tokio::task::JoinSet;

use crate::{
    clients::{Doors, unix_ms, within},
    encode::batch_of,
    schedule::Cgroup,
    value::{Content, mix},
};

const TOPIC: &str = "history";
const GROUP: &str = "readers";
const PARTITIONS: u32 = 4;
/// Bytes of a record's value.
const VALUE: usize = 16 << 10;
/// Records in a batch: half a MiB.
const BATCH: u64 = 32;
/// Where values are cut from.
static NOISE: LazyLock<Vec<u8>> =
    LazyLock::new(|| (0..VALUE as u64 / 4).flat_map(|at| mix(at).to_be_bytes()).collect());

/// What was seen.
#[derive(Debug, Clone, Copy, Default)]
pub struct Seen {
    /// Records read again, each compared.
    pub records: u64,
    /// Their values' bytes.
    pub bytes: u64,
    /// From the first to the last of them.
    pub reading: Duration,
    /// From the kill to the start that was ready.
    pub start: Duration,
    /// The most that the server had of its own, bytes: what no page cache is.
    pub own_max: u64,
    /// How often the cgroup was at its limit, and pages were taken back.
    pub at_limit: u64,
    /// Records that were appended meanwhile, one at a time.
    pub appended: u64,
    /// The longest of these appends.
    pub append_max: Duration,
}

/// Writes and reads so many GiB with so many MiB of memory, in a folder that is emptied first.
///
/// # Errors
/// If anything is missing, other than it was written, or if the server ends.
pub async fn run(home: &Path, gib: u64, mib: u64) -> anyhow::Result<Seen> {
    if home.exists() {
        fs::remove_dir_all(home)?;
    }
    fs::create_dir_all(home)?;
    let group = Cgroup::new(mib << 20)?;
    let (grpc, web) = free_ports();
    let setup = group.around(Setup::new(home).ports(grpc, web));
    let mut server = setup.start().await;
    let admin = Admin::new(&server.endpoint())?;
    admin.create_topic(TOPIC, PARTITIONS, &[("retention.ms", "-1")]).await?;
    admin.create_topic("live", 1, &[]).await?;
    let records = (gib << 30) / VALUE as u64 / u64::from(PARTITIONS) / BATCH * BATCH;
    write(&server, records).await?;
    let killed = Instant::now();
    server.kill();
    let mut server = server.start_again().await;
    let mut seen = Seen { start: killed.elapsed(), ..Seen::default() };
    rewind(&server, records).await?;
    let ended = Arc::new(AtomicBool::new(false));
    let live = tokio::spawn(append(server.endpoint(), ended.clone()));
    let read = read_again(&server, &group, records, &mut seen).await;
    ended.store(true, Ordering::Relaxed);
    (seen.appended, seen.append_max) = live.await??;
    ensure!(server.has_ended().is_none(), "the server has ended by itself");
    read?;
    seen.at_limit = group.number("memory.failcnt")?;
    server.stop().await;
    fs::remove_dir_all(home)?;
    Ok(seen)
}

/// What a record holds that lies there.
fn content(partition: u32, offset: u64) -> Content {
    let number = u64::from(partition) << 40 | offset;
    let mut value = BytesMut::with_capacity(VALUE);
    value.put_u64(number);
    let from = (mix(number) % VALUE as u64) as usize;
    value.extend_from_slice(&NOISE[from..from + VALUE - 8]);
    let number = Bytes::from(format!("{number:016x}"));
    Content { key: number.clone(), value: Some(value.freeze()), number }
}

async fn append_batch(doors: &mut Doors, topic: &str, partition: u32, data: Bytes) -> anyhow::Result<u64> {
    let batch = v1::EncodedBatch { data, append_time_ms: 0 };
    let batches = vec![v1::PartitionBatch { partition, batch: Some(batch), expected_end: None }];
    let request = v1::ProduceRequest { topic: topic.to_owned(), batches, ..Default::default() };
    let answer = within(doors.produce.produce(request)).await?.into_inner();
    let append = answer.appends.into_iter().next().context("one batch was sent")?;
    ensure!(append.error.is_none(), "{:?}", append.error);
    append.base_offset.context("an append has an offset")
}

async fn write(server: &Server, records: u64) -> anyhow::Result<()> {
    let mut tasks = JoinSet::new();
    for partition in 0..PARTITIONS {
        let mut doors = Doors::to(&server.endpoint());
        tasks.spawn(async move {
            for first in (0..records).step_by(BATCH as usize) {
                let contents = (first..first + BATCH).map(|offset| content(partition, offset));
                let data = batch_of(contents, None, unix_ms());
                let at = append_batch(&mut doors, TOPIC, partition, data).await?;
                ensure!(at == first, "offset {at} where {first} is due");
            }
            anyhow::Ok(())
        });
    }
    while let Some(written) = tasks.join_next().await {
        written??;
    }
    Ok(())
}

/// The group has read everything, and is to read it again.
async fn rewind(server: &Server, records: u64) -> anyhow::Result<()> {
    let connection = Connection::new(&server.endpoint())?;
    let at = |partition| TopicPartition::new(TOPIC, PartitionIndex(partition));
    let commit = |partition| OffsetCommit {
        at: at(partition),
        offset: Offset::new(records).ok(),
        metadata: String::new(),
    };
    let commits: Vec<_> = (0..PARTITIONS).map(commit).collect();
    for outcome in Groups::over(connection.clone()).commit(GROUP, &commits).await? {
        outcome?;
    }
    let spec = ReplaySpec {
        group: GROUP.to_owned(),
        topics: Vec::new(),
        partitions: Vec::new(),
        to: ReplayTo::Earliest,
        clone_to: None,
    };
    let plan = plan_replay(&connection, &spec).await?;
    ensure!(plan.records == records * u64::from(PARTITIONS), "planned are {} records", plan.records);
    start_replay(&connection, &spec, Some(&plan.fingerprint)).await?;
    Ok(())
}

/// Appends one record after the other until it is told to end: how many, and the longest.
async fn append(endpoint: String, ended: Arc<AtomicBool>) -> anyhow::Result<(u64, Duration)> {
    let mut doors = Doors::to(&endpoint);
    let (mut appended, mut longest) = (0, Duration::ZERO);
    while !ended.load(Ordering::Relaxed) {
        let begun = Instant::now();
        let data = batch_of([content(0, appended)].into_iter(), None, unix_ms());
        append_batch(&mut doors, "live", 0, data).await.context("an append while others read")?;
        longest = longest.max(begun.elapsed());
        appended += 1;
    }
    Ok((appended, longest))
}

async fn read_again(server: &Server, group: &Cgroup, records: u64, seen: &mut Seen) -> anyhow::Result<()> {
    /// How often somebody looks at the memory.
    const LOOK: u64 = 1_000;
    let begun = Instant::now();
    let consumer = Consumer::builder(&server.endpoint(), GROUP).topics([TOPIC]).start(StartPolicy::Error);
    let mut consumer = consumer.build()?;
    let mut next = [0; PARTITIONS as usize];
    let all = records * u64::from(PARTITIONS);
    while seen.records < all {
        let record = consumer.next().await?;
        let (partition, offset) = (record.partition.0, record.offset.get());
        let due = next.get_mut(partition as usize).context("a partition that is not there")?;
        ensure!(offset == *due, "partition {partition}: offset {offset} where {due} is due");
        *due += 1;
        let sent = content(partition, offset);
        ensure!(
            record.value == sent.value && record.key.as_ref() == Some(&sent.key),
            "partition {partition}, offset {offset} is not what was sent"
        );
        seen.records += 1;
        seen.bytes += VALUE as u64;
        if seen.records.is_multiple_of(LOOK) {
            seen.own_max = seen.own_max.max(group.own()?);
        }
    }
    seen.reading = begun.elapsed();
    consumer.commit_all().await?;
    consumer.close().await?;
    let connection = Connection::new(&server.endpoint())?;
    let behind = lag(&connection, &[GROUP], &[]).await?;
    ensure!(behind.topics.iter().map(|topic| topic.records).sum::<u64>() == 0, "a lag is left: {behind:?}");
    Ok(())
}
