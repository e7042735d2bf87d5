//! The Rust client's consumer against a real server that is killed: nothing committed that was not processed,
//! nothing left out, and nothing twice where only a connection was lost.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use rimstone_client::{
    CommitMode, Connection, Consumer, ConsumerBuilder, End, Event, Groups, Producer, ProducerRecord, Reader,
    SeekTo, Start, StartPolicy, TopicChange, TopicPartition, lag, reason,
};
use rimstone_tests::{
    server::{Server, Setup},
    wait::{soon, until},
};
use rimstone_types::{Offset, PartitionIndex};

const TOPIC: &str = "visits";
const PARTITIONS: u32 = 6;
/// The shortest that a server allows: a member that is killed is missed soon.
const SESSION: Duration = Duration::from_secs(1);

/// What was processed: partition, offset, and by whom.
type Log = Arc<Mutex<Vec<(u32, u64, &'static str)>>>;

async fn started(home: &Path) -> Server {
    let server = Setup::new(home).start().await;
    server.admin().create_topic(TOPIC, PARTITIONS, &[]).await.unwrap();
    server
}

/// Writes records `from..to` of 97 keys.
async fn produce(server: &Server, from: u64, to: u64) {
    let producer = Producer::builder(&server.endpoint()).build().unwrap();
    for number in from..to {
        let record = ProducerRecord::new(number.to_string()).key(format!("key-{}", number % 97));
        drop(soon(producer.send(TOPIC, record)).await.unwrap());
    }
    soon(producer.close()).await.unwrap();
}

/// A member that fails the test if it does not hear of the server for long.
fn builder(server: &Server, group: &str) -> ConsumerBuilder {
    Consumer::builder(&server.endpoint(), group)
        .topics([TOPIC])
        .start(StartPolicy::Earliest)
        .session_timeout(SESSION * 15)
}

fn offset(offset: u64) -> Offset {
    Offset::new(offset).unwrap()
}

fn at(partition: u32) -> TopicPartition {
    TopicPartition::new(TOPIC, PartitionIndex(partition))
}

async fn committed(server: &Server, group: &str) -> BTreeMap<u32, u64> {
    let groups = Groups::new(&server.endpoint()).unwrap();
    let offsets = soon(groups.offsets(group, &[])).await.unwrap_or_default();
    offsets.into_iter().filter_map(|found| Some((found.at.partition.0, found.offset?.get()))).collect()
}

async fn records_behind(server: &Server, group: &str) -> Option<u64> {
    let connection = Connection::new(&server.endpoint()).unwrap();
    let lag = soon(lag(&connection, &[group], &[])).await.ok()?;
    (!lag.partitions.is_empty()).then(|| lag.partitions.iter().map(|partition| partition.records).sum())
}

/// Reads and commits by hand until it is told to end; then it is gone without a word of its last commits.
async fn work(consumer: Consumer, name: &'static str, log: Log) {
    let mut consumer = consumer;
    loop {
        let record = consumer.next().await.unwrap();
        log.lock().unwrap().push((record.partition.0, record.offset.get(), name));
        drop(consumer.commit(&record));
        // Slow enough that members come and go in the middle.
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn members_share_the_work_through_the_kill_of_their_server() {
    const RECORDS: u64 = 6_000;
    let home = tempfile::tempdir().unwrap();
    let mut server = started(home.path()).await;
    produce(&server, 0, RECORDS / 2).await;
    let log = Log::default();
    let start = |name: &'static str, server: &Server| {
        let consumer = builder(server, "crew").member_id(name).prefetch(64 << 10, 200).build().unwrap();
        tokio::spawn(work(consumer, name, log.clone()))
    };
    let by = |name: &str| log.lock().unwrap().iter().filter(|(.., by)| *by == name).count();
    let first = start("a", &server);
    until("a works", async || (by("a") > 300).then_some(())).await;
    let second = start("b", &server);
    until("b works", async || (by("b") > 300).then_some(())).await;
    server.kill();
    let mut server = server.start_again().await;
    produce(&server, RECORDS / 2, RECORDS).await;
    first.abort();
    let third = start("c", &server);
    until("nothing is left", async || (records_behind(&server, "crew").await? == 0).then_some(())).await;
    second.abort();
    third.abort();

    let log = log.lock().unwrap().clone();
    let processed: BTreeSet<_> = log.iter().map(|(partition, offset, _)| (*partition, *offset)).collect();
    assert_eq!(processed.len() as u64, RECORDS, "everything was processed");
    let committed = committed(&server, "crew").await;
    assert_eq!(committed.values().sum::<u64>(), RECORDS);
    // In order in each partition as long as one member has it.
    let mut last: BTreeMap<u32, (&str, u64)> = BTreeMap::new();
    for (partition, offset, by) in log {
        if let Some((before, last)) = last.insert(partition, (by, offset)) {
            assert!(before != by || offset == last + 1, "{by} took {partition}/{offset} after {last}");
        }
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_outlives_its_server_gets_nothing_twice() {
    let home = tempfile::tempdir().unwrap();
    let mut server = started(home.path()).await;
    produce(&server, 0, 2_000).await;
    let automatic = CommitMode::Automatic(Duration::from_millis(20));
    let mut consumer = builder(&server, "one").commit(automatic).prefetch(32 << 10, 100).build().unwrap();
    let mut read: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
    for number in 0..4_000 {
        if number == 500 || number == 1_500 {
            server.kill();
            server = server.start_again().await;
        }
        if number == 2_000 {
            produce(&server, 2_000, 4_000).await;
        }
        let record = soon(consumer.next()).await.unwrap();
        read.entry(record.partition.0).or_default().push(record.offset.get());
    }
    soon(consumer.close()).await.unwrap();
    assert_eq!(read.values().map(Vec::len).sum::<usize>(), 4_000);
    for (partition, offsets) in &read {
        let expected: Vec<u64> = (0..offsets.len() as u64).collect();
        assert_eq!(*offsets, expected, "partition {partition}");
    }
    let ends = read.iter().map(|(partition, offsets)| (*partition, offsets.len() as u64)).collect();
    assert_eq!(committed(&server, "one").await, ends);
    assert_eq!(records_behind(&server, "one").await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_move_only_when_the_application_has_let_go() {
    let home = tempfile::tempdir().unwrap();
    let server = started(home.path()).await;
    produce(&server, 0, 600).await;
    let mut first = builder(&server, "moving").member_id("a").build().unwrap();
    let mut caught_up = BTreeSet::new();
    while caught_up.len() < PARTITIONS as usize {
        if let Event::CaughtUp(at) = soon(first.next_event()).await.unwrap() {
            caught_up.insert(at);
        }
    }
    let mut second = builder(&server, "moving").member_id("b").build().unwrap();
    let other = tokio::spawn(async move {
        loop {
            if let Event::Assigned(assigned) = second.next_event().await.unwrap() {
                return (assigned, second);
            }
        }
    });
    let stopping = loop {
        if let Event::Stopping(stopping) = soon(first.next_event()).await.unwrap() {
            break stopping;
        }
    };
    assert_eq!(stopping.partitions().len(), PARTITIONS as usize / 2);
    let groups = Groups::new(&server.endpoint()).unwrap();
    let details = soon(groups.describe("moving")).await.unwrap();
    let owned = |id: &str| details.members.iter().find(|member| member.id == id).unwrap().owned.len();
    assert_eq!((owned("a"), owned("b")), (3, 0), "{details:?}");
    soon(first.commit_all()).await.unwrap();
    let moved: BTreeSet<_> = stopping.partitions().iter().cloned().collect();
    stopping.confirm();
    let asking = async {
        loop {
            first.next_event().await.unwrap();
        }
    };
    let (assigned, _second) = tokio::select! {
        moved = soon(other) => moved.unwrap(),
        () = asking => unreachable!(),
    };
    assert_eq!(assigned.iter().map(|assignment| assignment.at.clone()).collect::<BTreeSet<_>>(), moved);
    for assignment in assigned {
        assert_eq!(assignment.start, Some(assignment.end), "it goes on behind the commit: {assignment:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_static_member_comes_back_without_anybody_else_moving() {
    let home = tempfile::tempdir().unwrap();
    let server = started(home.path()).await;
    produce(&server, 0, 600).await;
    let member = |instance: &str| builder(&server, "static").instance_id(instance).build().unwrap();
    let (mut first, mut other) = (member("one"), member("two"));
    // Both are asked in turn: what one has in hand goes to the other only when it asks for more.
    until("each has half", async || {
        for consumer in [&mut first, &mut other] {
            let event = tokio::time::timeout(Duration::from_millis(20), consumer.next_event()).await;
            event
                .is_ok_and(|event| matches!(event.unwrap(), Event::Lost(_)))
                .then(|| panic!("nobody is fenced"));
        }
        let half = |consumer: &Consumer| consumer.positions().len() == PARTITIONS as usize / 2;
        (half(&first) && half(&other)).then_some(())
    })
    .await;
    let before: Vec<_> = first.positions().into_keys().collect();
    soon(first.close()).await.unwrap();
    let mut again = member("one");
    drop(soon(again.next()).await.unwrap());
    assert_eq!(again.positions().into_keys().collect::<Vec<_>>(), before);
    // What the other one was told in the meantime: nothing.
    while let Ok(event) = tokio::time::timeout(Duration::from_millis(200), other.next_event()).await {
        let event = event.unwrap();
        assert!(matches!(event, Event::Record(_) | Event::CaughtUp(_)), "{event:?}");
    }
    soon(again.close_for_good()).await.unwrap();
    let everything = async {
        while other.positions().len() < PARTITIONS as usize {
            other.next_event().await.unwrap();
        }
    };
    soon(everything).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prefix_finds_topics_and_partitions_that_are_made_later() {
    let home = tempfile::tempdir().unwrap();
    let server = Setup::new(home.path()).start().await;
    let consumer =
        Consumer::builder(&server.endpoint(), "prefix").topic_prefix("vis").start(StartPolicy::Earliest);
    let mut consumer = consumer.build().unwrap();
    let assigned = async |consumer: &mut Consumer| loop {
        if let Event::Assigned(assigned) = soon(consumer.next_event()).await.unwrap() {
            return assigned.into_iter().map(|assignment| assignment.at).collect::<Vec<_>>();
        }
    };
    let admin = server.admin();
    let made = async {
        until("the group is there", async || {
            let groups = Groups::new(&server.endpoint()).unwrap();
            groups.describe("prefix").await.ok().filter(|details| details.members.len() == 1)
        })
        .await;
        admin.create_topic("other", 1, &[]).await.unwrap();
        admin.create_topic(TOPIC, 2, &[]).await.unwrap();
    };
    let (found, ()) = tokio::join!(assigned(&mut consumer), made);
    assert_eq!(found, [at(0), at(1)]);
    let more = TopicChange { partitions: Some(3), ..TopicChange::default() };
    soon(admin.alter_topic(TOPIC, more)).await.unwrap();
    assert_eq!(assigned(&mut consumer).await, [at(2)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn seeks_and_pauses_reach_the_server() {
    let home = tempfile::tempdir().unwrap();
    let server = Setup::new(home.path()).start().await;
    server.admin().create_topic(TOPIC, 1, &[]).await.unwrap();
    produce(&server, 0, 1_000).await;
    let mut consumer = builder(&server, "seeks").start(StartPolicy::Error).build().unwrap();
    let error = soon(consumer.next()).await.unwrap_err();
    assert!(error.is(reason::START_POSITION_NEEDED), "{error:?}");
    for target in [500, 3, 999, 0] {
        soon(consumer.seek(&at(0), SeekTo::Offset(offset(target)))).await.unwrap();
        assert_eq!(soon(consumer.next()).await.unwrap().offset.get(), target);
    }
    consumer.pause(&[at(0)]).unwrap();
    let paused = tokio::time::timeout(Duration::from_millis(200), consumer.next()).await;
    assert!(paused.is_err(), "{paused:?}");
    consumer.resume(&[at(0)]).unwrap();
    assert_eq!(soon(consumer.next()).await.unwrap().offset.get(), 1);
    soon(consumer.seek(&at(0), SeekTo::Latest)).await.unwrap();
    produce(&server, 1_000, 1_001).await;
    assert_eq!(soon(consumer.next()).await.unwrap().offset.get(), 1_000);
    soon(consumer.seek(&at(0), SeekTo::Earliest)).await.unwrap();
    assert_eq!(soon(consumer.next()).await.unwrap().offset.get(), 0);
    // Retention overtakes the reader, and its policy is to be asked.
    let before = BTreeMap::from([(PartitionIndex(0), offset(900))]);
    soon(server.admin().delete_records(TOPIC, &before)).await.unwrap();
    soon(consumer.seek(&at(0), SeekTo::Offset(offset(10)))).await.unwrap();
    let error = loop {
        if let Err(error) = soon(consumer.next()).await {
            break error;
        }
    };
    assert_eq!(error.number("log_start_offset"), Some(900), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_by_hand_keeps_its_place_under_a_groups_name() {
    let home = tempfile::tempdir().unwrap();
    let server = started(home.path()).await;
    produce(&server, 0, 300).await;
    let reader = |otherwise| {
        let start = Start::Committed { group: "report".to_owned(), otherwise };
        Reader::builder(&server.endpoint(), TOPIC).start(start).end(End::Latest).build().unwrap()
    };
    let error = soon(reader(StartPolicy::Error).next()).await.unwrap_err();
    assert!(error.is(reason::START_POSITION_NEEDED), "{error:?}");
    let mut first = reader(StartPolicy::Earliest);
    for _ in 0..100 {
        soon(first.next()).await.unwrap().unwrap();
    }
    soon(first.commit("report")).await.unwrap();
    let mut rest = reader(StartPolicy::Error);
    let mut count = 0;
    while soon(rest.next()).await.unwrap().is_some() {
        count += 1;
    }
    assert_eq!(count, 200);
    soon(rest.commit("report")).await.unwrap();
    assert_eq!(records_behind(&server, "report").await, Some(0));
    assert_eq!(soon(reader(StartPolicy::Error).next()).await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_stuck_loses_its_partitions_and_says_so() {
    let home = tempfile::tempdir().unwrap();
    let server = started(home.path()).await;
    produce(&server, 0, 600).await;
    let stuck = builder(&server, "stuck").max_poll_interval(Duration::from_secs(1));
    let mut stuck = stuck.member_id("stuck").build().unwrap();
    let held = loop {
        if let Event::Record(record) = soon(stuck.next_event()).await.unwrap() {
            break record;
        }
    };
    // Busy with one record for longer than it may; in the meantime another one takes everything over.
    let mut other = builder(&server, "stuck").member_id("other").build().unwrap();
    let mut read = BTreeSet::new();
    while read.len() < 600 {
        let record = soon(other.next()).await.unwrap();
        read.insert((record.partition.0, record.offset.get()));
        drop(other.commit(&record));
    }
    let lost = loop {
        match soon(stuck.next_event()).await.unwrap() {
            Event::Lost(lost) => break lost,
            // Told before, and not let go of in time.
            Event::Stopping(_) | Event::Record(_) | Event::CaughtUp(_) => {}
            other => panic!("{other:?}"),
        }
    };
    assert!(!lost.is_empty());
    let refused = soon(stuck.commit(&held)).await.unwrap_err();
    assert!(refused.is(reason::PARTITION_NOT_OWNED), "{refused:?}");
    soon(other.close()).await.unwrap();
}
