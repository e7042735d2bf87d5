use std::{collections::BTreeSet, sync::Arc};

use proptest::prelude::*;
use rimstone_state::group::{Join, Joined};
use rimstone_store::{
    Append, LocalOptions, LocalStorage, MemoryStorage, PartitionStore, ReadError, ReadLimit, Storage,
    StoreClock, Visibility,
    conformance::{control, sparse},
};
use rimstone_types::{ByteCount, GroupEpoch, PartitionId, TopicId};

use super::*;
use crate::{
    Clock, CommitRequest, LagRequest, OffsetToCommit,
    coordinator::shard_of,
    testing::{DEADLINE, Fixture, ManualClock, name, soon, still},
};

fn group(name: &str) -> GroupName {
    name.parse().expect("a valid name")
}

fn offset(value: u64) -> Offset {
    Offset::new(value).expect("tests use small offsets")
}

async fn commit(broker: &Broker, who: &str, topic: &str, offsets: &[(u32, u64)]) {
    let room = broker.try_reserve(ByteCount(1)).expect("there is room");
    let commit = |&(partition, at): &(u32, u64)| OffsetToCommit {
        topic: name(topic),
        partition: PartitionIndex(partition),
        offset: Some(offset(at)),
        metadata: String::new(),
    };
    let offsets = offsets.iter().map(commit).collect();
    let request = CommitRequest { group: group(who), member: None, offsets };
    let results = soon("a commit", broker.commit_offsets(request, room)).await.expect("it is taken");
    for committed in results {
        committed.result.expect("it is committed");
    }
}

/// What a group has committed: topic, partition, offset.
async fn offsets(broker: &Broker, who: &str) -> Vec<(String, u32, u64)> {
    let found = soon("offsets", broker.fetch_offsets(&group(who), Vec::new())).await.expect("it is answered");
    let line = |found: crate::CommittedOffset| {
        (found.topic.to_string(), found.partition.0, found.value.expect("only what is there").offset.get())
    };
    found.into_iter().map(line).collect()
}

fn spec(who: &str, to: ReplayTo) -> ReplaySpec {
    ReplaySpec { group: group(who), topics: Vec::new(), partitions: Vec::new(), to, clone_to: None }
}

async fn plan(broker: &Broker, spec: &ReplaySpec) -> ReplayPlan {
    soon("a plan", broker.plan_replay(spec)).await.expect("it can be planned")
}

async fn start(broker: &Broker, spec: &ReplaySpec, fingerprint: &str) -> Result<ReplayPlan, ReplayError> {
    let fingerprint = Some(fingerprint.to_owned()).filter(|fingerprint| !fingerprint.is_empty());
    soon("a replay", broker.start_replay(spec.clone(), fingerprint)).await
}

/// Partition, old and new offset, records, skipped, gone.
type Line = (u32, Option<u64>, Option<u64>, u64, u64, u64);

fn lines(plan: &ReplayPlan) -> Vec<Line> {
    let line = |row: &PlannedPartition| {
        let planned = row.planned.as_ref().expect("it can be planned");
        let new = planned.new.map(Offset::get);
        (row.partition.0, row.old.map(Offset::get), new, planned.records, planned.skipped, planned.gone)
    };
    plan.partitions.iter().map(line).collect()
}

/// Topic `t` of three partitions with ten records each, one a second; what lies below 2 is deleted in the first.
/// Group `g` has committed 8 and 3, and nothing in the third.
async fn ten_records_each() -> Fixture {
    let fixture = Fixture::new().await;
    fixture.topic("t", 3).await;
    for _ in 0..10 {
        for partition in 0..3 {
            fixture.put("t", partition, &["v"]).await;
        }
        fixture.clock.advance(1000);
    }
    let before = [(PartitionIndex(0), offset(2))].into();
    fixture.broker.delete_records(&name("t"), before).await.expect("it is in the log");
    commit(&fixture.broker, "g", "t", &[(0, 8), (1, 3)]).await;
    fixture
}

#[tokio::test]
async fn a_plan_says_what_would_be_and_changes_nothing() {
    let fixture = ten_records_each().await;
    let began = fixture.clock.now().saturating_sub(Duration::from_secs(10));
    let after = |seconds: i64| Timestamp(began.as_millis() + seconds * 1000);
    let each = |to| ReplayTo::Offsets([(PartitionIndex(1), offset(to))].into());
    for (to, expected) in [
        (
            ReplayTo::Earliest,
            vec![
                (0, Some(8), Some(2), 6, 0, 0),
                (1, Some(3), Some(0), 3, 0, 0),
                (2, None, Some(0), 10, 0, 0),
            ],
        ),
        (
            ReplayTo::Latest,
            vec![
                (0, Some(8), Some(10), 0, 2, 0),
                (1, Some(3), Some(10), 0, 7, 0),
                (2, None, Some(10), 0, 0, 0),
            ],
        ),
        (
            ReplayTo::Offset(offset(1)),
            vec![(0, Some(8), Some(2), 6, 0, 1), (1, Some(3), Some(1), 2, 0, 0), (2, None, Some(1), 9, 0, 0)],
        ),
        (
            ReplayTo::Time(after(5)),
            vec![(0, Some(8), Some(5), 3, 0, 0), (1, Some(3), Some(5), 0, 2, 0), (2, None, Some(5), 5, 0, 0)],
        ),
        (
            ReplayTo::Ago(Duration::from_millis(4500)),
            vec![(0, Some(8), Some(6), 2, 0, 0), (1, Some(3), Some(6), 0, 3, 0), (2, None, Some(6), 4, 0, 0)],
        ),
        (
            ReplayTo::Shift(-7),
            vec![(0, Some(8), Some(2), 6, 0, 1), (1, Some(3), Some(0), 3, 0, 0), (2, None, None, 0, 0, 0)],
        ),
        (each(9), vec![(1, Some(3), Some(9), 0, 6, 0)]),
    ] {
        let topics = if matches!(to, ReplayTo::Offsets(_)) { vec![name("t")] } else { Vec::new() };
        let planned = plan(&fixture.broker, &ReplaySpec { topics, ..spec("g", to.clone()) }).await;
        assert_eq!(lines(&planned), expected, "{to:?}");
        let sum = |of: fn(&Line) -> u64| expected.iter().map(of).sum::<u64>();
        assert_eq!((planned.records, planned.gone), (sum(|line| line.3), sum(|line| line.5)), "{to:?}");
        assert_eq!(planned.bytes > 0, planned.records > 0, "{to:?}");
        assert!(planned.obstacle.is_none(), "{to:?}: {:?}", planned.obstacle);
    }
    let some = ReplaySpec { partitions: vec![PartitionIndex(1)], ..spec("g", ReplayTo::Earliest) };
    assert_eq!(lines(&plan(&fixture.broker, &some).await), [(1, Some(3), Some(0), 3, 0, 0)]);
    let before = [("t".to_owned(), 0, 8), ("t".to_owned(), 1, 3)];
    assert_eq!(offsets(&fixture.broker, "g").await, before);
}

#[tokio::test]
async fn a_time_before_the_first_record_there_says_that_some_may_be_gone() {
    let fixture = ten_records_each().await;
    let began = fixture.clock.now().saturating_sub(Duration::from_secs(10));
    let after = |seconds: i64| ReplayTo::Time(Timestamp(began.as_millis() + seconds * 1000));
    let may_be_gone = async |to: ReplayTo| {
        let planned = plan(&fixture.broker, &spec("g", to)).await;
        let flag = |row: &PlannedPartition| row.planned.as_ref().expect("it can be planned").may_be_gone;
        planned.partitions.iter().map(flag).collect::<Vec<_>>()
    };
    // Two records of the first partition were taken, of the first two seconds; nobody knows that any more.
    assert_eq!(may_be_gone(after(1)).await, [true, false, false]);
    assert_eq!(may_be_gone(after(2)).await, [true, false, false]);
    // An older one is left: whatever was taken was older still.
    assert_eq!(may_be_gone(after(3)).await, [false; 3]);
    assert_eq!(may_be_gone(after(60)).await, [false; 3], "there is none, and older ones are there");
    // Other aims know what is gone.
    assert_eq!(may_be_gone(ReplayTo::Offset(offset(1))).await, [false; 3]);
    // Nothing is left at all.
    let all = [(PartitionIndex(0), offset(10))].into();
    fixture.broker.delete_records(&name("t"), all).await.expect("it is in the log");
    assert_eq!(may_be_gone(after(60)).await, [true, false, false]);
}

#[tokio::test]
async fn only_offsets_that_change_count_as_moved() {
    let fixture = ten_records_each().await;
    let mut counts = Vec::new();
    for to in [ReplayTo::Earliest, ReplayTo::Earliest, ReplayTo::Offset(offset(2)), ReplayTo::Shift(0)] {
        counts.push(start(&fixture.broker, &spec("g", to), "").await.expect("it is done").moved());
    }
    assert_eq!(counts, [3, 0, 2, 0], "the first partition begins at 2");
}

#[tokio::test]
async fn what_makes_no_sense_is_refused() {
    let fixture = ten_records_each().await;
    let broker = &fixture.broker;
    let each = || ReplayTo::Offsets([(PartitionIndex(0), offset(5))].into());
    let named = |to| ReplaySpec { topics: vec![name("t")], ..spec("g", to) };
    for (spec, reason) in [
        (spec("nobody", ReplayTo::Earliest), Reason::GroupNotFound),
        (
            ReplaySpec { topics: vec![name("nowhere")], ..spec("g", ReplayTo::Earliest) },
            Reason::TopicNotFound,
        ),
        (spec("g", each()), Reason::InvalidRequest),
        (ReplaySpec { partitions: vec![PartitionIndex(0)], ..named(each()) }, Reason::InvalidRequest),
    ] {
        let refused = soon("an answer", broker.plan_replay(&spec)).await.expect_err("it makes no sense");
        assert_eq!(refused.reason(), reason, "{spec:?}");
        let refused = start(broker, &spec, "").await.expect_err("it makes no sense");
        assert_eq!(refused.reason(), reason, "{spec:?}");
    }
    // These can be looked at; the plan says what stands in the way.
    let damage = ReadError::DataLoss { from: offset(0), until: offset(9), reason: "scripted".to_owned() };
    fixture.store.script(fixture.partition("t", 1), |script| script.read_error = Some(damage));
    fixture.topic("empty", 1).await;
    let later = fixture.clock.now().saturating_add(Duration::from_secs(9));
    for (spec, reason) in [
        (named(ReplayTo::Offset(offset(11))), Reason::OffsetOutOfRange),
        (
            ReplaySpec { partitions: vec![PartitionIndex(9)], ..named(ReplayTo::Earliest) },
            Reason::PartitionNotFound,
        ),
        (named(ReplayTo::Earliest), Reason::DataDamaged),
        (named(ReplayTo::Time(Timestamp(0))), Reason::DataDamaged),
        (ReplaySpec { clone_to: Some(group("g")), ..named(ReplayTo::Latest) }, Reason::GroupExists),
        (
            ReplaySpec { topics: vec![name("empty")], ..spec("g", ReplayTo::Time(later)) },
            Reason::InvalidRequest,
        ),
    ] {
        let obstacle = plan(broker, &spec).await.obstacle.expect("something stands in the way");
        assert_eq!(obstacle.reason(), reason, "{spec:?}: {obstacle}");
        let refused = start(broker, &spec, "").await.expect_err("something stands in the way");
        assert_eq!((refused.reason(), refused.to_string()), (reason, obstacle.to_string()), "{spec:?}");
    }
    assert_eq!(offsets(broker, "g").await, [("t".to_owned(), 0, 8), ("t".to_owned(), 1, 3)]);
}

#[tokio::test]
async fn a_replay_moves_all_offsets_in_one_batch() {
    let fixture = ten_records_each().await;
    let broker = &fixture.broker;
    let shard =
        PartitionId { topic: TopicId::CONSUMER_OFFSETS, partition: PartitionIndex(shard_of(&group("g"))) };
    let topic = broker.inner.topics.get(&name("__consumer_offsets")).expect("it was made");
    let store = topic.partition(shard.partition).expect("it is open");
    let end = store.ends().stable;
    let earliest = spec("g", ReplayTo::Earliest);
    let planned = plan(broker, &earliest).await;
    let done = start(broker, &earliest, &planned.fingerprint).await.expect("it is done");
    assert_eq!(lines(&done), lines(&planned));
    let moved = [("t".to_owned(), 0, 2), ("t".to_owned(), 1, 0), ("t".to_owned(), 2, 0)];
    assert_eq!(offsets(broker, "g").await, moved);
    let limit = ReadLimit { bytes: ByteCount::mib(1), until: None, visibility: Visibility::Stable };
    let written = store.read(end, limit).await.expect("it can be read").batches;
    assert_eq!(written.iter().map(|read| read.batch.header().record_count).collect::<Vec<_>>(), [3]);

    // It was for those offsets that the plan was made.
    let refused = start(broker, &earliest, &planned.fingerprint).await.expect_err("the offsets are others");
    assert_eq!(refused.reason(), Reason::PlanChanged);
    commit(broker, "g", "t", &[(0, 5)]).await;
    let planned = plan(broker, &earliest).await;
    commit(broker, "g", "t", &[(0, 6)]).await;
    let refused = start(broker, &earliest, &planned.fingerprint).await.expect_err("somebody has committed");
    assert_eq!(refused.reason(), Reason::PlanChanged);
    assert_eq!(offsets(broker, "g").await[0].2, 6);
    start(broker, &earliest, "").await.expect("any plan will do");
    assert_eq!(offsets(broker, "g").await, moved);

    // The end may go on under a plan that leads to it.
    let latest = spec("g", ReplayTo::Latest);
    let planned = plan(broker, &latest).await;
    fixture.put("t", 1, &["one more"]).await;
    start(broker, &latest, &planned.fingerprint).await.expect("the plan is the same");
    assert_eq!(offsets(broker, "g").await.iter().map(|line| line.2).collect::<Vec<_>>(), [10, 11, 10]);
    // And it stays so, over a restart.
    let fixture = fixture.restart().await;
    let found = loop {
        match fixture.broker.fetch_offsets(&group("g"), Vec::new()).await {
            Err(error) if error.reason() == Reason::CoordinatorLoading => tokio::task::yield_now().await,
            found => break found.expect("it is answered"),
        }
    };
    assert_eq!(found.len(), 3);
}

/// A member joins, as the coordinator would have it.
async fn join(broker: &Broker, who: &str) {
    let who = group(who);
    let join = Join {
        group: who.clone(),
        member: "m-1".parse().expect("a valid name"),
        instance: None,
        client_id: String::new(),
        host: String::new(),
        topics: BTreeSet::from([name("t")]),
        topic_prefix: None,
        assignor: None,
        session_timeout_ms: 45_000,
        max_poll_interval_ms: 300_000,
        epoch: GroupEpoch::default(),
        owned: Vec::new(),
    };
    let joined =
        broker.inner.decide::<Joined>(&who, move |now| Ok(now.groups.join(&join, now.topics(), now.time)?));
    soon("a member", joined).await.expect("it joins");
}

#[tokio::test]
async fn a_group_with_members_is_left_alone_and_a_clone_of_it_is_not_in_its_way() {
    let fixture = ten_records_each().await;
    let broker = &fixture.broker;
    fixture.topic("u", 1).await;
    fixture.put("u", 0, &["a", "b"]).await;
    commit(broker, "g", "u", &[(0, 1)]).await;
    join(broker, "g").await;
    let rewind = spec("g", ReplayTo::Earliest);
    let planned = plan(broker, &rewind).await;
    assert_eq!(planned.obstacle.as_ref().map(Failure::reason), Some(Reason::GroupNotEmpty));
    let refused = start(broker, &rewind, &planned.fingerprint).await.expect_err("somebody is in it");
    assert_eq!(refused.reason(), Reason::GroupNotEmpty);

    let before = offsets(broker, "g").await;
    let into = ReplaySpec {
        topics: vec![name("t")],
        partitions: vec![PartitionIndex(0)],
        clone_to: Some(group("again")),
        ..rewind
    };
    let planned = plan(broker, &into).await;
    assert!(planned.obstacle.is_none());
    let done = start(broker, &into, &planned.fingerprint).await.expect("it is done");
    assert_eq!(lines(&done), [(0, Some(8), Some(2), 6, 0, 0)]);
    assert_eq!(offsets(broker, "g").await, before, "the first group is left alone");
    // What is not moved goes along; other topics do not.
    assert_eq!(offsets(broker, "again").await, [("t".to_owned(), 0, 2), ("t".to_owned(), 1, 3)]);
    let refused = start(broker, &into, "").await.expect_err("there is one now");
    assert_eq!(refused.reason(), Reason::GroupExists);

    let report =
        soon("lag", broker.lag(LagRequest { groups: vec![group("again")], ..LagRequest::default() }));
    let rows = report.await.expect("it is answered").partitions;
    let records: Vec<_> =
        rows.iter().map(|row| row.measured.as_ref().expect("it is known").lag.records).collect();
    assert_eq!(records, [8, 7], "and the clone has its own lag");
}

// To a time, against a scan by hand.

/// A record batch of one partition: times of its records, or a marker, or one with gaps.
#[derive(Debug, Clone)]
enum Piece {
    Times(Vec<i64>),
    Control(i64),
    Sparse(Vec<(u8, i8)>),
}

fn piece() -> impl Strategy<Value = Piece> {
    prop_oneof![
        4 => prop::collection::vec(0..60i64, 1..12).prop_map(Piece::Times),
        1 => (0..60i64).prop_map(Piece::Control),
        2 => prop::collection::btree_map(0..20u8, 0..60i8, 0..8)
            .prop_map(|there| Piece::Sparse(there.into_iter().collect())),
    ]
}

fn batch(piece: &Piece) -> rimstone_record::Batch {
    match piece {
        Piece::Control(time) => control(*time),
        Piece::Sparse(there) => sparse(20, there),
        Piece::Times(times) => {
            let mut builder = rimstone_record::BatchBuilder::new(rimstone_record::Compression::None);
            for time in times {
                let value = Some(bytes::Bytes::from_static(&[b'v'; 60]));
                let record =
                    rimstone_record::NewRecord { value, timestamp: Timestamp(*time), ..Default::default() };
                builder.push(&record).expect("it fits");
            }
            builder.build()
        }
    }
}

/// Offset and time of every record there is.
async fn scan(store: &dyn PartitionStore) -> Vec<(u64, i64)> {
    let limit = ReadLimit { bytes: ByteCount::mib(64), until: None, visibility: Visibility::Stable };
    let (mut from, start) = (store.ends().start, store.ends().start);
    let mut found = Vec::new();
    loop {
        let read = store.read(from, limit).await.expect("it can be read");
        if read.batches.is_empty() {
            return found;
        }
        for batch in read.batches.iter().map(|read| &read.batch).filter(|batch| !batch.header().is_control())
        {
            let records = batch.records(&rimstone_record::Limits::default()).expect("it can be decoded");
            let records = records.map(|record| record.expect("it can be decoded"));
            let here = records.filter(|record| record.offset >= start);
            found.extend(here.map(|record| (record.offset.get(), record.timestamp.as_millis())));
        }
        from = read.next;
    }
}

async fn replays_to_times(storage: Arc<dyn Storage>, histories: &[Vec<Piece>], trims: &[u8], times: &[i64]) {
    let clock = Arc::new(ManualClock::default());
    let broker = Broker::start(storage, still(), clock.clone()).await.expect("it starts");
    let settings = [("segment.bytes".to_owned(), "4096".to_owned())].into();
    let count = u32::try_from(histories.len()).expect("a few");
    broker.create_topic(name("t"), Some(count), settings).await.expect("it is made");
    let topic = broker.inner.topics.get(&name("t")).expect("it exists");
    let store = |partition| topic.partition(PartitionIndex(partition)).expect("it is open");
    for (partition, history) in (0..).zip(histories) {
        for piece in history {
            let now = clock.now();
            let append = Append { batch: batch(piece), expected_end: None, content_hash: None, now };
            let ticket = store(partition).submit(append).expect("it is taken");
            soon("an answer", ticket).await.expect("it is stored");
        }
        let end = store(partition).ends().stable.get();
        let start = offset(end * u64::from(trims[partition as usize]) / 512);
        store(partition).trim(start).await.expect("it is in the log");
        commit(&broker, "g", "t", &[(partition, end / 2)]).await;
    }
    for at in times {
        let to = ReplayTo::Time(Timestamp(*at));
        let before = offsets(&broker, "g").await;
        let planned = plan(&broker, &spec("g", to.clone())).await;
        for row in &planned.partitions {
            let all = scan(&**store(row.partition.0)).await;
            let planned = row.planned.as_ref().expect("it can be planned");
            let first = all.iter().find(|(_, time)| time >= at).map(|(offset, _)| *offset);
            assert_eq!(planned.new.map(Offset::get), first, "partition {} to {at}", row.partition);
            let old = row.old.expect("each has one").get();
            let within = |from, to| all.iter().filter(|(at, _)| (from..to).contains(at)).count() as u64;
            let (again, skipped) = first.map_or((0, 0), |new| (within(new, old), within(old, new)));
            assert_eq!((planned.records, planned.skipped), (again, skipped), "partition {}", row.partition);
        }
        let started = start(&broker, &spec("g", to), &planned.fingerprint).await;
        let none = planned.partitions.iter().all(|row| row.planned.as_ref().expect("checked").new.is_none());
        assert_eq!(started.is_err(), none, "{started:?}");
        let expected: Vec<_> = planned
            .partitions
            .iter()
            .zip(before)
            .map(|(row, old)| row.planned.as_ref().expect("checked").new.map_or(old.2, Offset::get))
            .collect();
        let reached: Vec<_> = offsets(&broker, "g").await.into_iter().map(|line| line.2).collect();
        assert_eq!(reached, expected);
    }
    broker.finish_shutdown(DEADLINE).await.expect("it stops");
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("it is built")
}

fn histories() -> impl Strategy<Value = (Vec<Vec<Piece>>, Vec<u8>, Vec<i64>)> {
    let histories = prop::collection::vec(prop::collection::vec(piece(), 0..40), 2);
    (histories, prop::collection::vec(any::<u8>(), 2), prop::collection::vec(0..62i64, 1..5))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn a_time_in_the_middle_is_reached_as_a_scan_finds_it(world in histories()) {
        let (histories, trims, times) = world;
        runtime().block_on(replays_to_times(Arc::new(MemoryStorage::new()), &histories, &trims, &times));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4, ..ProptestConfig::default() })]

    #[test]
    fn a_time_in_the_middle_is_reached_over_files(world in histories()) {
        let (histories, trims, times) = world;
        runtime().block_on(async {
            let directory = tempfile::tempdir().expect("a directory is made");
            let options = LocalOptions {
                directory: directory.path().to_owned(),
                disk_reserve: ByteCount(0),
                sync: Default::default(),
                producers: Default::default(),
                clock: StoreClock(Arc::new(|| crate::SystemClock.now())),
            };
            let opened = tokio::task::spawn_blocking(move || LocalStorage::open(options)).await;
            let storage = opened.expect("it ends").expect("the directory can be used");
            replays_to_times(storage, &histories, &trims, &times).await;
        });
    }
}
