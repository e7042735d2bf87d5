//! The coordinator of consumer groups: what a decision costs with the encoding and the replay of its records, what
//! loading costs, and a commit through the broker on a store in memory.
//! `cargo bench -p rimstone-benches --bench coordinator`

use std::{
    collections::{BTreeMap, BTreeSet},
    hint::black_box,
    sync::Arc,
    time::{Duration, Instant},
};

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use rimstone_broker::{Broker, BrokerConfig, CommitRequest, OffsetToCommit, SystemClock};
use rimstone_state::group::{Commit, CommitOffset, Committer, Decision, GroupRecord, Groups, Join, Topics};
use rimstone_store::MemoryStorage;
use rimstone_types::{
    ByteCount, GroupEpoch, GroupName, LogEnds, Offset, PartitionIndex, Timestamp, TopicId, TopicName,
};

/// Partitions of the topic that is read.
const PARTITIONS: u32 = 1000;
/// Offsets of one commit: one partition, and the share of a member of ten.
const OFFSETS: [u32; 2] = [1, 100];
/// Members of a group before the one that joins.
const MEMBERS: [u32; 3] = [1, 10, 100];
/// A broker is made anew after so many commits: its store keeps them in memory.
const COMMITS_OF_A_BROKER: u64 = 500;
const NOW: Timestamp = Timestamp(1_700_000_000_000);

fn topic() -> TopicName {
    "a-topic-of-some-length".parse().expect("a name")
}

fn group_name() -> GroupName {
    "a-group".parse().expect("a name")
}

struct OneTopic;

impl Topics for OneTopic {
    fn get(&self, name: &TopicName) -> Option<(TopicId, u32)> {
        (*name == topic()).then_some((TopicId(uuid::Uuid::from_u128(7)), PARTITIONS))
    }

    fn with_prefix(&self, prefix: &str) -> Vec<TopicName> {
        if topic().as_str().starts_with(prefix) { vec![topic()] } else { Vec::new() }
    }
}

/// What the broker does with a decision, but for the log: its records are encoded and replayed.
fn apply<A>(groups: &mut Groups, decision: Decision<A>) -> A {
    for record in decision.records {
        black_box(record.encode());
        groups.replay(record);
    }
    decision.answer
}

fn joining(member: u32) -> Join {
    Join {
        group: group_name(),
        member: format!("member-{member:04}").parse().expect("a name"),
        instance: None,
        client_id: "bench".to_owned(),
        host: "127.0.0.1".to_owned(),
        topics: BTreeSet::from([topic()]),
        topic_prefix: None,
        assignor: None,
        session_timeout_ms: 45_000,
        max_poll_interval_ms: 300_000,
        epoch: GroupEpoch::ZERO,
        owned: Vec::new(),
    }
}

fn offsets(count: u32, at: u64) -> Vec<CommitOffset> {
    let end = Offset::new(u64::MAX >> 8).expect("it is small enough");
    let topic_id = OneTopic.get(&topic()).expect("it is there").0;
    (0..count)
        .map(|partition| CommitOffset {
            topic: topic(),
            topic_id,
            partition: PartitionIndex(partition),
            offset: Some(Offset::new(at).expect("it is small")),
            metadata: String::new(),
            leader_epoch: None,
            ends: LogEnds { start: Offset::ZERO, stable: end, durable: end, written: end },
        })
        .collect()
}

fn commit(groups: &mut Groups, count: u32, at: u64) {
    let name = group_name();
    let commit =
        Commit { group: &name, by: Committer::Outside, keeps_place: false, offsets: offsets(count, at) };
    let decision = groups.commit(commit, NOW).expect("the group has no members");
    let answer = apply(groups, decision);
    assert!(answer.len() == count as usize && answer.iter().all(Result::is_ok));
}

fn deciding(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("coordinator");
    for count in OFFSETS {
        group.throughput(Throughput::Elements(u64::from(count)));
        group.bench_function(BenchmarkId::new("commit", count), |bencher| {
            let (mut groups, mut at) = (Groups::default(), 0);
            bencher.iter(|| {
                at += 1;
                commit(&mut groups, count, at);
            });
        });
    }
    group.throughput(Throughput::Elements(1));
    for members in MEMBERS {
        let mut groups = Groups::default();
        for member in 0..members {
            let decision = groups.join(&joining(member), &OneTopic, NOW).expect("there is room");
            apply(&mut groups, decision);
        }
        // One more: a new target for all partitions.
        group.bench_function(BenchmarkId::new("join_1000_partitions", members), |bencher| {
            bencher.iter_batched(
                || groups.clone(),
                |mut groups| {
                    let join = joining(members);
                    let decision = groups.join(&join, &OneTopic, NOW).expect("there is room");
                    assert!(!decision.records.is_empty());
                    apply(&mut groups, decision);
                    groups
                },
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

/// Reading what was written, as after a start.
fn loading(criterion: &mut Criterion) {
    let name = group_name();
    let by_partition =
        Commit { group: &name, by: Committer::Outside, keeps_place: false, offsets: offsets(PARTITIONS, 5) };
    let decision = Groups::default().commit(by_partition, NOW).expect("the group has no members");
    let encoded: Vec<_> = decision.records.iter().map(GroupRecord::encode).collect();
    assert!(encoded.len() >= PARTITIONS as usize);
    let mut group = criterion.benchmark_group("coordinator");
    group.throughput(Throughput::Elements(encoded.len() as u64));
    group.bench_function("load", |bencher| {
        bencher.iter(|| {
            let mut groups = Groups::default();
            for (key, value) in &encoded {
                let record = GroupRecord::decode(Some(key), value.as_deref()).expect("it was encoded");
                groups.replay(record);
            }
            groups
        });
    });
    group.finish();
}

async fn broker() -> Broker {
    let storage = Arc::new(MemoryStorage::new());
    let broker = Broker::start(storage, BrokerConfig::default(), Arc::new(SystemClock)).await;
    let broker = broker.expect("it starts on nothing");
    broker.create_topic(topic(), Some(PARTITIONS), BTreeMap::new()).await.expect("it is new");
    broker
}

async fn commit_through(broker: &Broker, count: u32) {
    let offset = |partition| OffsetToCommit {
        topic: topic(),
        partition: PartitionIndex(partition),
        offset: Some(Offset::ZERO),
        metadata: String::new(),
    };
    let request =
        CommitRequest { group: group_name(), member: None, offsets: (0..count).map(offset).collect() };
    let room = broker.try_reserve(ByteCount(1)).expect("there is room");
    let answer = broker.commit_offsets(request, room).await.expect("it is taken");
    assert!(answer.iter().all(|offset| offset.result.is_ok()));
}

/// With the shard's lock, the append, and the wait for it.
fn through_the_broker(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let mut group = criterion.benchmark_group("coordinator");
    for count in OFFSETS {
        group.throughput(Throughput::Elements(u64::from(count)));
        group.bench_function(BenchmarkId::new("commit_through_broker", count), |bencher| {
            bencher.iter_custom(|rounds| {
                let (mut left, mut spent) = (rounds, Duration::ZERO);
                while left > 0 {
                    let now = left.min(COMMITS_OF_A_BROKER);
                    spent += runtime.block_on(async {
                        let broker = broker().await;
                        // The first one makes the topic of offsets and loads the shard.
                        commit_through(&broker, count).await;
                        let began = Instant::now();
                        for _ in 0..now {
                            commit_through(&broker, count).await;
                        }
                        let spent = began.elapsed();
                        broker.begin_shutdown();
                        broker.finish_shutdown(Duration::from_secs(10)).await.expect("it stops");
                        spent
                    });
                    left -= now;
                }
                spent
            });
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).measurement_time(Duration::from_secs(3)).warm_up_time(Duration::from_millis(500));
    targets = deciding, loading, through_the_broker
}
criterion_main!(benches);
