mod turns;

use std::{
    collections::BTreeMap,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use proptest::prelude::*;
use rimstone_store::{
    Append, LocalOptions, LocalStorage, MemoryStorage, PartitionStore, ReadError, ReadLimit, Storage,
    StoreClock, StoreError,
    conformance::{control, sparse},
};
use rimstone_types::{ByteCount, PartitionId, TopicId};

use super::*;
use crate::{
    Clock,
    groups::{Commit, CommitChange, Owner},
    testing::{DEADLINE, Fixture, ManualClock, encoded, name, soon, still, until},
};

fn group(name: &str) -> GroupName {
    name.parse().expect("a valid name")
}

fn offset(value: u64) -> Offset {
    Offset::new(value).expect("tests use small offsets")
}

fn commit_to(inner: &Inner, who: &str, topic: &str, partition: u32, at: Option<u64>) {
    let topic = inner.topics.get(&name(topic)).expect("it exists");
    let commit = at.map(|at| Commit { topic_id: topic.id, offset: offset(at), time: inner.clock.now() });
    let partition = PartitionIndex(partition);
    inner.commits.apply([CommitChange::Offset {
        group: group(who),
        topic: topic.name.clone(),
        partition,
        commit,
    }]);
}

fn own(inner: &Inner, who: &str, topic: &str, partitions: &[u32]) {
    let owner = |client: &str| {
        Arc::new(Owner {
            member: "m-1".parse().expect("a valid name"),
            client_id: client.to_owned(),
            host: "host-1".to_owned(),
        })
    };
    let owned: BTreeMap<_, _> =
        partitions.iter().map(|partition| (PartitionIndex(*partition), owner("client-1"))).collect();
    let owners = if owned.is_empty() { BTreeMap::new() } else { [(name(topic), owned)].into() };
    inner.commits.apply([CommitChange::Owners { group: group(who), owners }]);
}

async fn lag_of(broker: &Broker, groups: &[&str]) -> LagReport {
    let request =
        || LagRequest { groups: groups.iter().map(|name| group(name)).collect(), topics: Vec::new() };
    let began = tokio::time::Instant::now();
    loop {
        let report = soon("an answer", broker.lag(request())).await.expect("it is answered");
        let late = |row: &PartitionLag| {
            row.measured.as_ref().is_err_and(|error| error.to_string().contains("was not counted within"))
        };
        // A machine that stood still for that long says nothing of the count.
        if began.elapsed() > DEADLINE || !report.partitions.iter().any(late) {
            return report;
        }
    }
}

/// Group, partition, committed offset, records, milliseconds, and whether retention has overtaken it.
type Line = (String, u32, Option<u64>, u64, u64, bool);

fn lines(report: &LagReport) -> Vec<Line> {
    let line = |row: &PartitionLag| {
        let measured = row.measured.as_ref().expect("it is known");
        let committed = row.committed.map(|(offset, _)| offset.get());
        let (records, millis) = (measured.lag.records, measured.lag.millis);
        (row.group.to_string(), row.partition.0, committed, records, millis, measured.below_log_start)
    };
    report.partitions.iter().map(line).collect()
}

#[tokio::test]
async fn what_is_committed_or_owned_has_a_lag_and_nothing_else() {
    let fixture = Fixture::new().await;
    let inner = &fixture.broker.inner;
    fixture.topic("t", 3).await;
    fixture.put("t", 0, &["a", "b", "c"]).await;
    fixture.clock.advance(250);
    fixture.put("t", 0, &["d"]).await;
    fixture.put("t", 1, &["a", "b"]).await;
    assert_eq!(lines(&lag_of(&fixture.broker, &[]).await), []);

    commit_to(inner, "g", "t", 0, Some(1));
    own(inner, "g", "t", &[0, 1]);
    commit_to(inner, "h", "t", 0, Some(4));
    fixture.clock.advance(1000);
    let report = lag_of(&fixture.broker, &[]).await;
    let expected = [
        ("g".to_owned(), 0, Some(1), 3, 1250, false),
        ("g".to_owned(), 1, None, 2, 1000, false),
        ("h".to_owned(), 0, Some(4), 0, 0, false),
    ];
    assert_eq!(lines(&report), expected);
    let owner = report.partitions[0].owner.as_ref().expect("a member owns it");
    assert_eq!(
        (owner.member.as_str(), owner.client_id.as_str(), owner.host.as_str()),
        ("m-1", "client-1", "host-1")
    );
    assert_eq!(report.partitions[2].owner, None);
    let sums: Vec<_> = report.topics.iter().map(|sum| (sum.group.as_str(), sum.lag)).collect();
    let sum = |records, millis, partitions| TopicLag { records, millis, partitions };
    assert_eq!(sums, [("g", sum(5, 1250, 2)), ("h", sum(0, 0, 1))]);
    assert_eq!(lines(&lag_of(&fixture.broker, &["h"]).await), expected[2..]);

    // Caught up is no lag, however long nothing comes; retention that overtakes the commit is told.
    commit_to(inner, "g", "t", 1, Some(2));
    let before = [(PartitionIndex(0), offset(3))].into();
    fixture.broker.delete_records(&name("t"), before).await.expect("it is in the log");
    fixture.clock.advance(60_000);
    let expected = [("g".to_owned(), 0, Some(1), 1, 61_000, true), ("g".to_owned(), 1, Some(2), 0, 0, false)];
    assert_eq!(lines(&lag_of(&fixture.broker, &["g"]).await), expected);
    let unknown =
        fixture.broker.lag(LagRequest { topics: vec![name("nowhere")], ..LagRequest::default() }).await;
    assert_eq!(unknown.expect_err("there is no such topic").reason(), Reason::TopicNotFound);
    let unknown =
        fixture.broker.lag(LagRequest { groups: vec![group("nobody")], ..LagRequest::default() }).await;
    assert_eq!(unknown.expect_err("there is no such group").reason(), Reason::GroupNotFound);
    let many = LagRequest { groups: vec![group("g"); NAMES_MAX + 1], ..LagRequest::default() };
    assert_eq!(fixture.broker.lag(many).await.expect_err("too many").reason(), Reason::LimitReached);
}

#[tokio::test(start_paused = true)]
async fn a_question_reads_the_table_and_not_the_log() {
    let fixture = Fixture::new().await;
    let inner = &fixture.broker.inner;
    fixture.topic("t", 1).await;
    let partition = fixture.partition("t", 0);
    fixture.put("t", 0, &["a", "b", "c"]).await;
    for reader in 0..50 {
        commit_to(inner, &format!("g{reader}"), "t", 0, Some(reader % 3));
    }
    let look_ups = || fixture.store.script(partition, |script| script.look_ups);
    assert_eq!(lag_of(&fixture.broker, &[]).await.partitions.len(), 50);
    let filled = look_ups();
    for _ in 0..20 {
        assert_eq!(lag_of(&fixture.broker, &[]).await.partitions.len(), 50);
        fixture.broker.metrics_text();
    }
    assert_eq!(look_ups(), filled, "questions cost no look-ups");
    // What is appended is counted once, not once for each group.
    fixture.put("t", 0, &["d"]).await;
    assert_eq!(
        lag_of(&fixture.broker, &["g2"]).await.partitions[0].measured.as_ref().unwrap().lag.records,
        2
    );
    assert!(look_ups() <= filled + 2, "{filled}, then {}", look_ups());
    let reads = fixture.store.script(partition, |script| script.reads);
    assert_eq!(reads, 0, "and nothing is read");
}

/// Look-ups in each partition of topic `t`.
fn look_ups(fixture: &Fixture, partitions: u32) -> Vec<u32> {
    let of = |partition| fixture.store.script(fixture.partition("t", partition), |script| script.look_ups);
    (0..partitions).map(of).collect()
}

/// Time stands still here, so that no pass comes between: what is counted is counted for a question.
#[tokio::test(start_paused = true)]
async fn a_question_counts_in_those_of_its_partitions_that_have_moved_and_in_no_other() {
    let fixture = Fixture::new().await;
    let inner = &fixture.broker.inner;
    fixture.topic("t", 4).await;
    for partition in 0..4 {
        fixture.put("t", partition, &["a", "b"]).await;
        commit_to(inner, &format!("g{}", partition / 2), "t", partition, Some(1));
    }
    lag_of(&fixture.broker, &[]).await;
    let before = look_ups(&fixture, 4);
    for partition in [0, 2, 3] {
        fixture.put("t", partition, &["c"]).await;
    }
    // Of the first group one partition has moved; the other group's are busy too, and none of its concern.
    let expected = [("g0".to_owned(), 0, Some(1), 2, 0, false), ("g0".to_owned(), 1, Some(1), 1, 0, false)];
    for _ in 0..20 {
        assert_eq!(lines(&lag_of(&fixture.broker, &["g0"]).await), expected);
    }
    let after = look_ups(&fixture, 4);
    assert_eq!((after[0], &after[1..]), (before[0] + 2, &before[1..]), "a count and an append time");
    // Only a topic of a group, and nothing anew of what a commit leaves behind.
    let request = LagRequest { groups: vec![group("g1")], topics: vec![name("t")] };
    assert_eq!(fixture.broker.lag(request).await.expect("it is answered").partitions.len(), 2);
    commit_to(inner, "g1", "t", 3, Some(3));
    assert_eq!(lines(&lag_of(&fixture.broker, &["g1"]).await)[1].3, 0);
    let [zero, one, ..] = look_ups(&fixture, 4)[..] else { panic!("there are four") };
    assert_eq!((zero, one), (after[0], after[1]));
    let all = look_ups(&fixture, 4);
    for _ in 0..20 {
        lag_of(&fixture.broker, &[]).await;
        lag_of(&fixture.broker, &["g1"]).await;
    }
    assert_eq!(look_ups(&fixture, 4), all, "where nothing moves nothing is counted");
}

#[tokio::test]
async fn groups_that_are_not_loaded_yet_do_not_pass_for_groups_without_lag() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 1).await;
    fixture.put("t", 0, &["a", "b"]).await;
    let room = fixture.broker.try_reserve(ByteCount(1)).expect("there is room");
    let commit = crate::OffsetToCommit {
        topic: name("t"),
        partition: PartitionIndex(0),
        offset: Some(offset(1)),
        metadata: String::new(),
    };
    let request = crate::CommitRequest { group: group("g"), member: None, offsets: vec![commit] };
    soon("a commit", fixture.broker.commit_offsets(request, room)).await.expect("it is taken");
    let expected = lines(&lag_of(&fixture.broker, &[]).await);
    assert_eq!(expected.len(), 1);

    fixture.broker.finish_shutdown(DEADLINE).await.expect("it stops");
    let store = fixture.store.reopen();
    let shard = PartitionIndex(crate::coordinator::shard_of(&group("g")));
    let shard = PartitionId { topic: TopicId::CONSUMER_OFFSETS, partition: shard };
    let reason = "scripted".to_owned();
    let slow = StoreError::Io { operation: "read", path: "d".to_owned(), reason };
    store.script(shard, |script| script.read_error = Some(slow.into()));
    let fixture = Fixture::over(store, still()).await;
    for groups in [vec![], vec![group("g")]] {
        let asked = LagRequest { groups, ..LagRequest::default() };
        let refused = soon("an answer", fixture.broker.lag(asked)).await.expect_err("it is not loaded");
        assert_eq!(refused.reason(), Reason::CoordinatorLoading);
    }
    fixture.store.script(shard, |script| script.read_error = None);
    soon("the groups", async {
        loop {
            match fixture.broker.lag(LagRequest::default()).await {
                Err(error) => assert_eq!(error.reason(), Reason::CoordinatorLoading),
                Ok(report) => {
                    assert_eq!(lines(&report), expected);
                    break;
                }
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
}

fn series(broker: &Broker) -> Vec<String> {
    let text = broker.metrics_text();
    text.lines()
        .filter(|line| line.starts_with("rimstone_group_") && line.contains("_lag_"))
        .map(str::to_owned)
        .collect()
}

#[tokio::test]
async fn what_is_deleted_leaves_no_series() {
    let fixture = Fixture::new().await;
    let inner = &fixture.broker.inner;
    let old = fixture.topic("t", 1).await;
    fixture.topic("u", 1).await;
    fixture.put("t", 0, &["a", "b"]).await;
    for (who, topic) in [("g", "t"), ("g", "u"), ("h", "t")] {
        commit_to(inner, who, topic, 0, Some(0));
    }
    fixture.clock.advance(1500);
    // Metrics show the last pass.
    until("a pass", || series(&fixture.broker).len() == 9).await;
    assert_eq!(
        series(&fixture.broker),
        [
            r#"rimstone_group_lag_records{group="g",topic="t"} 2"#,
            r#"rimstone_group_lag_records{group="g",topic="u"} 0"#,
            r#"rimstone_group_lag_records{group="h",topic="t"} 2"#,
            r#"rimstone_group_lag_seconds{group="g",topic="t"} 1.5"#,
            r#"rimstone_group_lag_seconds{group="g",topic="u"} 0"#,
            r#"rimstone_group_lag_seconds{group="h",topic="t"} 1.5"#,
            r#"rimstone_group_lag_unknown_partitions{group="g",topic="t"} 0"#,
            r#"rimstone_group_lag_unknown_partitions{group="g",topic="u"} 0"#,
            r#"rimstone_group_lag_unknown_partitions{group="h",topic="t"} 0"#,
        ]
    );
    // A group that is deleted is gone from the commits; its series go with the next pass.
    commit_to(inner, "h", "t", 0, None);
    until("the group's series are gone", || {
        !series(&fixture.broker).iter().any(|line| line.contains("\"h\""))
    })
    .await;
    // A topic's series are gone at once, whatever the commits still say, and one made anew begins with nothing.
    fixture.broker.delete_topic(&name("t")).await.expect("it is deleted");
    assert!(!series(&fixture.broker).iter().any(|line| line.contains("\"t\"")));
    assert_ne!(fixture.topic("t", 1).await, old);
    assert!(lag_of(&fixture.broker, &[]).await.partitions.iter().all(|row| row.topic != name("t")));
    own(inner, "g", "t", &[0]);
    let rows = lag_of(&fixture.broker, &["g"]).await;
    assert_eq!(lines(&rows)[0], ("g".to_owned(), 0, None, 0, 0, false), "the old topic's offset is none");
    assert_eq!(TopicId::CATALOG, inner.topics.get(&name("__catalog")).unwrap().id);
}

#[tokio::test]
async fn a_partition_that_cannot_be_counted_says_so_and_hides_no_other() {
    let fixture = Fixture::new().await;
    let inner = &fixture.broker.inner;
    fixture.topic("t", 2).await;
    let broken = fixture.partition("t", 0);
    let damage = ReadError::DataLoss { from: offset(0), until: offset(9), reason: "scripted".to_owned() };
    fixture.store.script(broken, |script| script.read_error = Some(damage));
    for partition in [0, 1] {
        fixture.put("t", partition, &["a", "b"]).await;
        commit_to(inner, "g", "t", partition, Some(1));
    }
    let report = lag_of(&fixture.broker, &["g"]).await;
    assert_eq!(report.partitions[0].measured.as_ref().unwrap_err().reason(), Reason::DataDamaged);
    assert_eq!(report.partitions[1].measured.as_ref().unwrap().lag.records, 1);
    assert_eq!(report.topics[0].lag, TopicLag { records: 1, millis: 0, partitions: 1 });
    assert_eq!(report.topics[0].unknown, 1);
    let unknown = r#"rimstone_group_lag_unknown_partitions{group="g",topic="t"} 1"#.to_owned();
    until("a pass", || series(&fixture.broker).contains(&unknown)).await;
    // It heals when the partition moves.
    fixture.store.script(broken, |script| script.read_error = None);
    fixture.put("t", 0, &["c"]).await;
    assert_eq!(lines(&lag_of(&fixture.broker, &["g"]).await)[0].3, 2);
}

#[tokio::test]
async fn partitions_have_series_of_their_own_where_the_setting_says_so() {
    let config = crate::BrokerConfig { lag_per_partition: true, ..still() };
    let fixture = Fixture::with(config).await;
    fixture.topic("t", 2).await;
    fixture.put("t", 1, &["a", "b"]).await;
    commit_to(&fixture.broker.inner, "g", "t", 1, Some(1));
    fixture.clock.advance(2000);
    for expected in [
        r#"rimstone_group_partition_lag_records{group="g",partition="1",topic="t"} 1"#,
        r#"rimstone_group_partition_lag_seconds{group="g",partition="1",topic="t"} 2"#,
    ] {
        until(expected, || series(&fixture.broker).contains(&expected.to_owned())).await;
    }
}

// Against counting by hand.

const GROUPS: [&str; 3] = ["g0", "g1", "g2"];
const PARTITIONS: u32 = 2;

/// One step of a history. Shares are in 256ths of what there is.
#[derive(Debug, Clone)]
enum Step {
    Append {
        partition: u32,
        records: u8,
    },
    /// Records with one of a few keys, for compaction to judge.
    Keyed {
        partition: u32,
        keys: Vec<u8>,
    },
    /// A marker of the server's.
    Control {
        partition: u32,
    },
    /// A batch as compaction leaves one: records only where a bit is set, perhaps nowhere.
    Sparse {
        partition: u32,
        there: u32,
    },
    Commit {
        group: usize,
        partition: u32,
        share: u8,
    },
    Uncommit {
        group: usize,
        partition: u32,
    },
    Own {
        group: usize,
        partitions: u8,
    },
    DeleteRecords {
        partition: u32,
        share: u8,
    },
    /// Time passes, and maintenance comes: retention deletes what is old.
    Pass {
        seconds: u16,
    },
    /// Compaction, until nothing is due.
    Compact,
    Ask,
}

fn step() -> impl Strategy<Value = Step> {
    let partition = 0..PARTITIONS;
    let group = 0..GROUPS.len();
    prop_oneof![
        6 => (partition.clone(), 1..20u8).prop_map(|(partition, records)| Step::Append { partition, records }),
        6 => (partition.clone(), prop::collection::vec(0..5u8, 1..20))
            .prop_map(|(partition, keys)| Step::Keyed { partition, keys }),
        2 => partition.clone().prop_map(|partition| Step::Control { partition }),
        4 => (partition.clone(), any::<u32>(), any::<u32>(), any::<bool>()).prop_map(|(partition, one, two, some)|
            Step::Sparse { partition, there: if some { one & two } else { 0 } }),
        5 => (group.clone(), partition.clone(), any::<u8>())
            .prop_map(|(group, partition, share)| Step::Commit { group, partition, share }),
        1 => (group.clone(), partition.clone()).prop_map(|(group, partition)| Step::Uncommit { group, partition }),
        1 => (group, 0..4u8).prop_map(|(group, partitions)| Step::Own { group, partitions }),
        1 => (partition, any::<u8>()).prop_map(|(partition, share)| Step::DeleteRecords { partition, share }),
        2 => (0..900u16).prop_map(|seconds| Step::Pass { seconds }),
        2 => Just(Step::Compact),
        4 => Just(Step::Ask),
    ]
}

/// A broker with one topic that is compacted, small segments and short retention.
struct World {
    broker: Broker,
    clock: Arc<ManualClock>,
}

impl World {
    async fn over(storage: Arc<dyn Storage>) -> Self {
        let clock = Arc::new(ManualClock::default());
        let broker = Broker::start(storage, still(), clock.clone()).await.expect("it starts");
        let settings = [
            ("cleanup.policy", "compact,delete"),
            ("min.cleanable.dirty.ratio", "0"),
            ("segment.bytes", "4096"),
            ("retention.ms", "1000000"),
            ("segment.ms", "300000"),
        ];
        let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        broker.create_topic(name("t"), Some(PARTITIONS), settings).await.expect("it is made");
        Self { broker, clock }
    }

    fn store(&self, partition: u32) -> Arc<dyn PartitionStore> {
        let topic = self.broker.inner.topics.get(&name("t")).expect("it exists");
        Arc::clone(topic.partition(PartitionIndex(partition)).expect("it is open"))
    }

    async fn append(&self, partition: u32, batch: rimstone_record::Batch) {
        let now = self.clock.now();
        let append = Append { batch, expected_end: None, content_hash: None, now };
        let ticket = self.store(partition).submit(append).expect("it is taken");
        soon("an answer", ticket).await.expect("it is stored");
    }

    fn at_share(&self, partition: u32, share: u8) -> u64 {
        self.store(partition).ends().stable.get() * u64::from(share) / 255
    }

    async fn run(&self, step: &Step) {
        let inner = &self.broker.inner;
        match step.clone() {
            Step::Append { partition, records } => {
                let values = vec!["a value of some length, so that segments fill"; records.into()];
                let bytes = encoded(None, &values, self.clock.now());
                let batch = rimstone_record::Batch::verify(bytes, &rimstone_record::Limits::default());
                self.append(partition, batch.expect("it is a batch")).await;
            }
            Step::Keyed { partition, keys } => self.append(partition, keyed(&keys, self.clock.now())).await,
            Step::Control { partition } => {
                self.append(partition, control(self.clock.now().as_millis())).await
            }
            Step::Sparse { partition, there } => {
                let there: Vec<_> =
                    (0..32u8).filter(|bit| there & (1 << bit) != 0).map(|bit| (bit, 0)).collect();
                self.append(partition, sparse(32, &there)).await;
            }
            Step::Commit { group, partition, share } => {
                commit_to(inner, GROUPS[group], "t", partition, Some(self.at_share(partition, share)));
            }
            Step::Uncommit { group, partition } => commit_to(inner, GROUPS[group], "t", partition, None),
            Step::Own { group, partitions } => {
                let owned: Vec<_> = (0..PARTITIONS).filter(|bit| partitions & (1 << bit) != 0).collect();
                own(inner, GROUPS[group], "t", &owned);
            }
            Step::DeleteRecords { partition, share } => {
                let before = [(PartitionIndex(partition), offset(self.at_share(partition, share)))].into();
                self.broker.delete_records(&name("t"), before).await.expect("it is in the log");
            }
            Step::Pass { seconds } => {
                self.clock.advance(i64::from(seconds) * 1000);
                self.broker.maintain(self.clock.now()).await;
            }
            Step::Compact => drop(self.compact().await),
            Step::Ask => self.check().await,
        }
        self.clock.advance(7);
    }

    /// How many records went.
    async fn compact(&self) -> u64 {
        let mut removed = 0;
        loop {
            let did = self.broker.compact(self.clock.now()).await;
            assert!(!did.failed, "{did:?}");
            removed += did.records_removed;
            if !did.more {
                return removed;
            }
        }
    }

    /// Every answer against what reading everything finds.
    async fn check(&self) {
        let report = lag_of(&self.broker, &[]).await;
        let mut rows = report.partitions.iter();
        for who in GROUPS {
            let Some(commits) = self.broker.inner.commits.group(&group(who)) else { continue };
            for (partition, entry) in commits.topics.into_values().flatten() {
                let row = rows.next().expect("each commit and each owner has a row");
                assert_eq!((&row.group, row.partition), (&group(who), partition));
                let committed = entry.commit.map(|commit| commit.offset);
                assert_eq!(row.committed.map(|(offset, _)| offset), committed);
                let store = self.store(partition.0);
                let ends = store.ends();
                let measured = row.measured.as_ref().expect("it is known");
                assert_eq!((measured.log_start, measured.end), (ends.start, ends.stable));
                let from = committed.map_or(0, Offset::get);
                let unread = unread(&*store, from..u64::MAX).await;
                let millis = unread.first().map_or(0, |first| report.measured.millis_since(first.1));
                let expected = Lag { records: unread.len() as u64, millis: millis as u64 };
                assert_eq!(measured.lag, expected, "{who} in {partition} from {from}, {ends:?}");
                assert_eq!(measured.below_log_start, committed.is_some_and(|offset| offset < ends.start));
            }
        }
        assert!(rows.next().is_none(), "nothing else has a row");
    }
}

fn keyed(keys: &[u8], now: Timestamp) -> rimstone_record::Batch {
    let mut builder = rimstone_record::BatchBuilder::new(rimstone_record::Compression::None);
    for key in keys {
        let key = Some(bytes::Bytes::from(format!("key-{key}")));
        let value = Some(bytes::Bytes::from_static(b"a value of some length, so that segments fill"));
        let record = rimstone_record::NewRecord { key, value, timestamp: now, ..Default::default() };
        builder.push(&record).expect("it fits");
    }
    builder.build()
}

/// Offset and append time of the records in a range, by reading the whole log.
async fn unread(store: &dyn PartitionStore, range: Range<u64>) -> Vec<(u64, Timestamp)> {
    let limit = ReadLimit { bytes: ByteCount::mib(64), until: None, visibility: crate::Visibility::Stable };
    let mut from = store.ends().start;
    let start = from.get();
    let mut found = Vec::new();
    loop {
        let read = store.read(from, limit).await.expect("it can be read");
        if read.batches.is_empty() {
            return found;
        }
        for read in &read.batches {
            if read.batch.header().is_control() {
                continue;
            }
            for record in read.batch.records(&rimstone_record::Limits::default()).expect("it can be decoded")
            {
                let offset = record.expect("it can be decoded").offset.get();
                if offset >= start && range.contains(&offset) {
                    found.push((offset, read.append_time));
                }
            }
        }
        from = read.next;
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("it is built")
}

async fn local(directory: &std::path::Path) -> Arc<dyn Storage> {
    let options = LocalOptions {
        directory: directory.to_owned(),
        disk_reserve: ByteCount(0),
        sync: Default::default(),
        producers: Default::default(),
        clock: StoreClock(Arc::new(|| crate::SystemClock.now())),
    };
    let opened = tokio::task::spawn_blocking(move || LocalStorage::open(options)).await;
    opened.expect("it ends").expect("the directory can be used")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn lag_agrees_with_counting_over_memory(history in prop::collection::vec(step(), 1..120)) {
        runtime().block_on(async {
            let world = World::over(Arc::new(MemoryStorage::new())).await;
            for step in &history {
                world.run(step).await;
            }
            world.check().await;
            world.broker.finish_shutdown(DEADLINE).await.expect("it stops");
        });
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6, ..ProptestConfig::default() })]

    #[test]
    fn lag_agrees_with_counting_over_files(history in prop::collection::vec(step(), 60..120)) {
        runtime().block_on(async {
            let directory = tempfile::tempdir().expect("a directory is made");
            let world = World::over(local(directory.path()).await).await;
            for step in &history {
                world.run(step).await;
            }
            world.check().await;
            world.broker.finish_shutdown(DEADLINE).await.expect("it stops");
        });
    }
}

/// Compaction makes lag smaller without anybody reading, also for those who had been counted before.
async fn compaction_is_counted(storage: Arc<dyn Storage>) {
    let world = World::over(storage).await;
    for round in 0..60u8 {
        world.run(&Step::Keyed { partition: 0, keys: vec![round % 3; 10] }).await;
    }
    commit_to(&world.broker.inner, "g0", "t", 0, Some(0));
    commit_to(&world.broker.inner, "g1", "t", 0, Some(25));
    world.check().await;
    let before = lines(&lag_of(&world.broker, &[]).await);
    let removed = world.compact().await;
    assert!(removed > 300, "{removed}");
    world.check().await;
    let after = lines(&lag_of(&world.broker, &[]).await);
    assert_eq!(before[0].3 - after[0].3, removed);
    assert!(after[1].3 < before[1].3 - 200, "{before:?}, then {after:?}");
    world.broker.finish_shutdown(DEADLINE).await.expect("it stops");
}

#[tokio::test]
async fn compaction_is_counted_over_memory() {
    compaction_is_counted(Arc::new(MemoryStorage::new())).await;
}

#[tokio::test]
async fn compaction_is_counted_over_files() {
    let directory = tempfile::tempdir().expect("a directory is made");
    compaction_is_counted(local(directory.path()).await).await;
}

/// While records come in, an answer is exact for the end that it names.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_load_an_answer_is_exact_for_the_end_it_names() {
    let directory = tempfile::tempdir().expect("a directory is made");
    let world = Arc::new(World::over(local(directory.path()).await).await);
    commit_to(&world.broker.inner, "g0", "t", 0, Some(3));
    let seen_ends = Arc::new(AtomicUsize::new(0));
    let writer = {
        let (world, seen_ends) = (Arc::clone(&world), Arc::clone(&seen_ends));
        tokio::spawn(async move {
            let began = tokio::time::Instant::now();
            // So many, and until several ends have been seen.
            for round in 0u32.. {
                if round >= 150 && seen_ends.load(Ordering::Relaxed) > 3 {
                    break;
                }
                assert!(began.elapsed() < DEADLINE, "nobody has asked at several ends");
                let step = match round % 3 {
                    0 => Step::Control { partition: 0 },
                    1 => Step::Sparse { partition: 0, there: round.wrapping_mul(0x0101_0101) },
                    _ => Step::Append { partition: 0, records: 5 },
                };
                world.run(&step).await;
                commit_to(&world.broker.inner, "g1", "t", 0, Some(world.at_share(0, 128)));
            }
        })
    };
    let mut answers = Vec::new();
    while !writer.is_finished() {
        let report = lag_of(&world.broker, &[]).await;
        answers.extend(report.partitions.into_iter().map(|row| {
            let measured = row.measured.expect("it is known");
            (row.committed.expect("both have committed").0.get(), measured.end.get(), measured.lag.records)
        }));
        let ends: BTreeSet<_> = answers.iter().map(|answer| answer.1).collect();
        seen_ends.store(ends.len(), Ordering::Relaxed);
        tokio::task::yield_now().await;
    }
    writer.await.expect("it writes to the end");
    let all = unread(&*world.store(0), 0..u64::MAX).await;
    for (committed, end, records) in answers {
        let expected = all.iter().filter(|(offset, _)| (committed..end).contains(offset)).count() as u64;
        assert_eq!(records, expected, "from {committed} to {end}");
    }
    world.broker.finish_shutdown(DEADLINE).await.expect("it stops");
}
