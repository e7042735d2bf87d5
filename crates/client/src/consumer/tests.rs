//! The consumer against a server whose sessions break: at least once always, once where nothing was lost but
//! connections, one owner at a time, and stops that wait for what is in hand.

mod stops;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use futures::StreamExt as _;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use rimstone_record::{BatchBuilder, Compression, NewRecord, ProducerStamp};
use rimstone_types::{Numbering, Offset, PartitionIndex, ProducerEpoch, ProducerId, Timestamp};

use super::{CommitMode, Consumer, ConsumerBuilder, ConsumerRecord, Event, SeekTo};
use crate::{
    error::{ClientError, reason},
    fake::{Fake, Faults, Place, Said, SessionFaults},
    groups::{OffsetCommit, StartPolicy, TopicPartition},
};

const HUNG: Duration = Duration::from_secs(60);
/// The shortest session that the client allows.
const SESSION: Duration = Duration::from_secs(1);

async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(HUNG, work).await.expect("hung")
}

/// Waits for something that the fake server is to know.
async fn until(what: &str, mut met: impl FnMut() -> bool) {
    let met = async {
        while !met() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(HUNG, met).await.unwrap_or_else(|_| panic!("waited in vain: {what}"));
}

fn append(fake: &Fake, partition: usize, offset: u64, count: u64) {
    let mut builder = BatchBuilder::new(Compression::Lz4).producer(ProducerStamp {
        id: ProducerId::new(1).unwrap(),
        epoch: ProducerEpoch::ZERO,
        base: offset as u32,
        numbering: Numbering::Dense,
    });
    for number in offset..offset + count {
        let value = Some(format!("{partition}-{number}").into());
        let timestamp = Timestamp(number as i64 * 1000);
        builder.push(&NewRecord { value, timestamp, ..NewRecord::default() }).unwrap();
    }
    fake.world.lock().topics.get_mut("logs").unwrap()[partition].append(&builder.build()).unwrap();
}

/// Fills a topic with batches of 1 to 9 records.
async fn filled(seed: u64, partitions: usize, records: u64) -> Fake {
    let fake = Fake::start(seed, &[("logs", partitions)], Faults::default()).await;
    let mut rng = StdRng::seed_from_u64(seed);
    for partition in 0..partitions {
        let mut offset = 0;
        while offset < records {
            let count = rng.random_range(1..10).min(records - offset);
            append(&fake, partition, offset, count);
            offset += count;
        }
    }
    fake
}

fn builder(fake: &Fake, member: &str) -> ConsumerBuilder {
    Consumer::builder(&fake.endpoint(), "g")
        .topics(["logs"])
        .start(StartPolicy::Earliest)
        .member_id(member)
        .session_timeout(SESSION * 20)
}

fn automatic() -> CommitMode {
    CommitMode::Automatic(Duration::from_millis(5))
}

fn faults(cut: u32, lose_commit: u32, refuse_commit: u32) -> SessionFaults {
    SessionFaults { cut, lose_commit, refuse_commit, ..SessionFaults::default() }
}

fn place(partition: u32) -> Place {
    ("logs".to_owned(), partition)
}

fn at(partition: u32) -> TopicPartition {
    TopicPartition::new("logs", PartitionIndex(partition))
}

fn offset(offset: u64) -> Offset {
    Offset::new(offset).unwrap()
}

fn committed(fake: &Fake, partition: u32) -> Option<u64> {
    fake.world.lock().group("g").offsets.get(&place(partition)).copied()
}

fn said(fake: &Fake) -> Vec<Said> {
    fake.world.lock().group("g").said.clone()
}

fn has_stopped(fake: &Fake, partition: u32) -> bool {
    said(fake)
        .iter()
        .any(|said| matches!(said, Said::Stopped { places, .. } if places.contains(&place(partition))))
}

/// That the record is what lies at its place, and that its member owns the place at this moment.
fn check(fake: &Fake, member: &str, record: &ConsumerRecord) {
    let expected = format!("{}-{}", record.partition, record.offset);
    assert_eq!(record.value.as_deref(), Some(expected.as_bytes()));
    let mut world = fake.world.lock();
    let owner = world.group("g").members.get(member);
    let owned = owner.is_some_and(|owner| {
        let here = place(record.partition.0);
        owner.owned.contains(&here) || owner.stopping.contains(&here)
    });
    assert!(owned, "{member} was handed {expected}, which is not its own");
}

async fn record(consumer: &mut Consumer) -> ConsumerRecord {
    within(consumer.next()).await.unwrap()
}

/// The next event that is no record.
async fn event(consumer: &mut Consumer) -> Event {
    loop {
        match within(consumer.next_event()).await.unwrap() {
            Event::Record(_) => {}
            event => return event,
        }
    }
}

#[tokio::test]
async fn everything_once_through_broken_sessions() {
    let mut fired = 0;
    for seed in 1..=8 {
        println!("seed {seed}");
        let fake = filled(seed, 3, 120).await;
        fake.world.lock().session_faults = faults(12, 6, 6);
        let mode = if seed % 2 == 0 { automatic() } else { CommitMode::ByHand };
        let mut consumer = builder(&fake, "a").commit(mode).prefetch(300, 40).build().unwrap();
        let mut read: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
        for _ in 0..3 * 120 {
            let record = record(&mut consumer).await;
            check(&fake, "a", &record);
            read.entry(record.partition.0).or_default().push(record.offset.get());
            if mode == CommitMode::ByHand {
                drop(consumer.commit(&record));
            }
        }
        let all: Vec<u64> = (0..120).collect();
        assert_eq!(read, (0..3).map(|partition| (partition, all.clone())).collect());
        within(consumer.close()).await.unwrap();
        for partition in 0..3 {
            assert_eq!(committed(&fake, partition), Some(120), "partition {partition}");
        }
        fired += fake.world.lock().fired;
        assert!(fake.world.lock().group("g").members.is_empty(), "it has left");
        // A commit that was lost or refused is sent again, but never one that is behind another.
        let mut last = BTreeMap::new();
        for said in said(&fake) {
            if let Said::Committed { place, offset, .. } = said {
                let before = last.insert(place, offset);
                assert!(before <= Some(offset), "{before:?} {offset}");
            }
        }
        fake.kill().await;
    }
    assert!(fired > 20, "{fired} faults fired");
}

/// A member that reads until it is told to end, or is killed.
async fn work(fake: Fake, member: &'static str, session: Duration, mode: CommitMode, read: log::Log) {
    let mut consumer = builder(&fake, member).session_timeout(session).commit(mode).build().unwrap();
    loop {
        let record = consumer.next().await.unwrap();
        check(&fake, member, &record);
        tokio::task::yield_now().await;
        read.lock().push((member, record.partition.0, record.offset.get()));
        if mode == CommitMode::ByHand {
            drop(consumer.commit(&record));
        }
    }
}

/// What members have processed, in order.
mod log {
    use std::sync::Arc;

    pub(super) type Log = Arc<parking_lot::Mutex<Vec<(&'static str, u32, u64)>>>;
}

#[tokio::test]
async fn members_come_and_die_and_every_record_is_processed() {
    for seed in 1..=4 {
        println!("seed {seed}");
        let fake = filled(seed, 6, 400).await;
        fake.world.lock().session_faults = faults(60, 20, 20);
        let read = log::Log::default();
        let mode = if seed % 2 == 0 { automatic() } else { CommitMode::ByHand };
        let start = |member, session| tokio::spawn(work(fake.clone(), member, session, mode, read.clone()));
        // Only of the one that dies a session is to end.
        let first = start("a", SESSION);
        until("a reads", || read.lock().len() > 200).await;
        let second = start("b", SESSION * 10);
        until("b reads", || read.lock().iter().filter(|(member, ..)| *member == "b").count() > 100).await;
        // As a process dies: without a word.
        first.abort();
        let third = start("c", SESSION * 10);
        let done = || (0..6).all(|partition| committed(&fake, partition) == Some(400));
        until("everything is committed", done).await;
        let read = read.lock().clone();
        let all: BTreeSet<_> = read.iter().map(|(_, partition, offset)| (*partition, *offset)).collect();
        assert_eq!(all.len(), 6 * 400);
        // In order within each time that a member has a partition: it only falls back where another had it, or
        // where it began anew.
        let mut last: BTreeMap<u32, (&str, u64)> = BTreeMap::new();
        for (member, partition, offset) in read {
            let before = last.insert(partition, (member, offset));
            let fine = before.is_none_or(|(owner, last)| owner != member || offset == last + 1);
            assert!(fine, "{member} {partition} {offset} after {before:?}");
        }
        second.abort();
        third.abort();
        fake.kill().await;
    }
}

#[tokio::test]
async fn automatic_commits_stay_behind_what_may_be_in_work() {
    let fake = filled(3, 1, 10).await;
    let mut consumer = builder(&fake, "a").commit(automatic()).build().unwrap();
    let first = record(&mut consumer).await;
    drop(record(&mut consumer).await);
    drop(record(&mut consumer).await);
    // Three were handed out. The first is held: nothing may be committed.
    for _ in 0..50 {
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(committed(&fake, 0).unwrap_or(0), 0);
    }
    drop(first);
    // The third may still be in work, though it was dropped: nobody has asked for the fourth.
    until("two are committed", || committed(&fake, 0) == Some(2)).await;
    for _ in 0..50 {
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(committed(&fake, 0), Some(2));
    }
    let fourth = record(&mut consumer).await;
    until("three are committed", || committed(&fake, 0) == Some(3)).await;
    drop(fourth);
    // As when an error ends the program: the fourth may not have been processed.
    drop(consumer);
    until("it has left", || fake.world.lock().group("g").members.is_empty()).await;
    assert_eq!(committed(&fake, 0), Some(3));

    let mut consumer = builder(&fake, "a").commit(automatic()).build().unwrap();
    for _ in 0..2 {
        drop(record(&mut consumer).await);
    }
    within(consumer.close()).await.unwrap();
    assert_eq!(committed(&fake, 0), Some(5), "closing says that everything is processed");
}

#[tokio::test]
async fn many_in_work_at_once_are_committed_only_when_all_before_them_are_done() {
    let fake = filled(4, 2, 200).await;
    let mut consumer = builder(&fake, "a").commit(automatic()).build().unwrap();
    let done: parking_lot::Mutex<BTreeSet<(u32, u64)>> = parking_lot::Mutex::default();
    let mut rng = StdRng::seed_from_u64(4);
    let mut work = std::pin::pin!(
        consumer
            .stream()
            .map(|record| {
                let (pause, done, fake) = (rng.random_range(0..4), &done, &fake);
                async move {
                    let record = record.unwrap();
                    let (partition, offset) = (record.partition.0, record.offset.get());
                    let below = committed(fake, partition).unwrap_or(0);
                    assert!(below <= offset, "{partition}/{offset} is in work and {below} is committed");
                    tokio::time::sleep(Duration::from_millis(pause)).await;
                    done.lock().insert((partition, offset));
                    let below = committed(fake, partition).unwrap_or(0);
                    assert!(below <= offset, "{partition}/{offset} is in work and {below} is committed");
                }
            })
            .buffer_unordered(16)
    );
    while done.lock().len() < 400 {
        let _ = tokio::time::timeout(Duration::from_millis(50), work.next()).await;
    }
    let all = || committed(&fake, 0) == Some(200) && committed(&fake, 1) == Some(200);
    let asking = async { while work.next().await.is_some() {} };
    tokio::select! {
        () = until("everything is committed", all) => {}
        () = asking => panic!("the stream has ended"),
    }
}

#[tokio::test]
async fn a_fenced_member_drops_everything_and_joins_again() {
    let fake = filled(5, 1, 300).await;
    let mut consumer = builder(&fake, "a").prefetch(1 << 20, 10_000).build().unwrap();
    let mut last = None;
    for _ in 0..10 {
        last = Some(record(&mut consumer).await);
    }
    within(consumer.commit(last.as_ref().unwrap())).await.unwrap();
    let ahead = record(&mut consumer).await;
    let Event::Record(_) = within(consumer.next_event()).await.unwrap() else { panic!("a record") };
    fake.world.lock().fence("g", "a", "session_timeout");
    let lost = loop {
        match within(consumer.next_event()).await.unwrap() {
            Event::Lost(lost) => break lost,
            Event::Record(_) => {}
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(lost, [at(0)]);
    assert!(within(consumer.commit(&ahead)).await.unwrap_err().is(reason::PARTITION_NOT_OWNED));
    // From the commit on, under the same id, with nothing claimed.
    let again = record(&mut consumer).await;
    check(&fake, "a", &again);
    assert_eq!(again.offset.get(), 10);
    // A record of the time before counts no more, also now that the partition is the member's again.
    assert!(within(consumer.commit(&ahead)).await.unwrap_err().is(reason::PARTITION_NOT_OWNED));
    assert_eq!(committed(&fake, 0), Some(10));
    let joins =
        said(&fake).into_iter().filter(|said| matches!(said, Said::Joined { .. })).collect::<Vec<_>>();
    assert_eq!(joins[1], Said::Joined { member: "a".to_owned(), epoch: 0, owned: BTreeMap::new() });
}

#[tokio::test]
async fn whoever_is_stuck_joins_again_only_when_it_asks() {
    let fake = filled(5, 1, 30).await;
    let mut consumer = builder(&fake, "a").session_timeout(SESSION).build().unwrap();
    drop(record(&mut consumer).await);
    fake.world.lock().fence("g", "a", "poll_timeout");
    let joins = |fake: &Fake| said(fake).iter().filter(|said| matches!(said, Said::Joined { .. })).count();
    // It hears of it by itself; then it must not come back by itself.
    until("it owns nothing any more", || consumer.shared.state.lock().owned.is_empty()).await;
    tokio::time::sleep(SESSION / 2).await;
    assert_eq!(joins(&fake), 1);
    assert_eq!(record(&mut consumer).await.offset.get(), 0);
    assert_eq!(joins(&fake), 2);
}

#[tokio::test]
async fn a_member_whose_place_is_taken_ends() {
    let fake = filled(5, 1, 30).await;
    let mut consumer = builder(&fake, "a").build().unwrap();
    drop(record(&mut consumer).await);
    let mut newer = builder(&fake, "a").build().unwrap();
    drop(record(&mut newer).await);
    let error = within(async {
        loop {
            if let Err(error) = consumer.next().await {
                return error;
            }
        }
    })
    .await;
    assert!(error.is(reason::MEMBER_FENCED), "{error:?}");
    assert_eq!(within(consumer.next()).await.unwrap_err(), error, "and it stays so");
    drop(record(&mut newer).await);
}

#[tokio::test]
async fn without_a_word_from_the_server_nothing_is_handed_out_after_the_session_time() {
    // Long enough to have come so far before there is silence.
    const SESSION: Duration = Duration::from_secs(3);
    let fake = filled(6, 1, 200).await;
    let mut consumer =
        builder(&fake, "a").session_timeout(SESSION).prefetch(1 << 20, 10_000).build().unwrap();
    drop(record(&mut consumer).await);
    until("everything is here", || consumer.shared.state.lock().owned[&at(0)].fetched == Some(offset(200)))
        .await;
    fake.world.lock().session_faults.silent = true;
    let silent = tokio::time::Instant::now();
    let mut handed_out = 0;
    // Slowly, so that something is left when the time is over.
    while let Ok(record) = tokio::time::timeout(SESSION, consumer.next()).await {
        drop(record.unwrap());
        handed_out += 1;
        assert!(
            silent.elapsed() < SESSION + Duration::from_secs(1),
            "handed out after {:?}",
            silent.elapsed()
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!((1..100).contains(&handed_out), "{handed_out}");
    fake.world.lock().session_faults.silent = false;
    // The group has given it up in the meantime: it begins at what is committed, which is nothing.
    assert_eq!(record(&mut consumer).await.offset.get(), 0);
}

#[tokio::test]
async fn heartbeats_are_honest_about_progress() {
    let fake = filled(7, 1, 30).await;
    let mut consumer = builder(&fake, "a").session_timeout(SESSION).build().unwrap();
    let held = record(&mut consumer).await;
    let beats = |fake: &Fake| {
        let said = said(fake);
        let beats = said.into_iter().filter_map(|said| match said {
            Said::Heartbeat { progress, .. } => Some(progress),
            _ => None,
        });
        beats.collect::<Vec<_>>()
    };
    // The next one may tell of the record that was asked for before it.
    let from = beats(&fake).len() + 1;
    until("three heartbeats", || beats(&fake).len() >= from + 2).await;
    assert_eq!(beats(&fake)[from..from + 2], [false, false], "busy with one record, and more are here");
    drop(held);
    for _ in 0..29 {
        drop(record(&mut consumer).await);
    }
    let before = beats(&fake).len();
    {
        let asking = consumer.next();
        let mut asking = std::pin::pin!(asking);
        tokio::select! {
            record = &mut asking => panic!("{record:?}"),
            () = until("two more", || beats(&fake).len() >= before + 2) => {}
        }
    }
    assert_eq!(beats(&fake)[before + 1..][..1], [true], "it waits for records");
}

#[tokio::test]
async fn paused_partitions_keep_the_others_going_and_go_on_where_they_stood() {
    let fake = filled(8, 2, 100).await;
    fake.world.lock().session_faults = faults(15, 0, 0);
    let mut consumer = builder(&fake, "a").prefetch(200, 20).build().unwrap();
    let mut read: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
    while !read.contains_key(&0) {
        let record = record(&mut consumer).await;
        read.entry(record.partition.0).or_default().push(record.offset.get());
    }
    consumer.pause(&[at(0)]).unwrap();
    while read.get(&1).is_none_or(|read| read.len() < 100) {
        let record = record(&mut consumer).await;
        assert_eq!(record.partition.0, 1, "the other one is paused");
        read.entry(1).or_default().push(record.offset.get());
    }
    assert!(consumer.positions()[&at(0)].paused);
    consumer.resume(&[at(0)]).unwrap();
    while read[&0].len() < 100 {
        let record = record(&mut consumer).await;
        read.entry(record.partition.0).or_default().push(record.offset.get());
    }
    assert_eq!(read, (0..2).map(|partition| (partition, (0..100).collect())).collect());
    assert!(consumer.pause(&[at(7)]).unwrap_err().is(reason::PARTITION_NOT_OWNED));
}

#[tokio::test]
async fn after_a_seek_nothing_of_the_old_place_comes() {
    for seed in 1..=4 {
        let fake = filled(seed, 1, 200).await;
        // Without breaks everything that is thrown away must give its credit back.
        let cut = if seed % 2 == 0 { 20 } else { 0 };
        fake.world.lock().session_faults = faults(cut, 0, 0);
        let mut consumer = builder(&fake, "a").commit(automatic()).prefetch(1000, 60).build().unwrap();
        let before = record(&mut consumer).await;
        let mut rng = StdRng::seed_from_u64(seed);
        for _ in 0..20 {
            let target = rng.random_range(0..190);
            let to = match rng.random_range(0..2) {
                0 => SeekTo::Offset(offset(target)),
                _ => SeekTo::Time(Timestamp(target as i64 * 1000 - 500)),
            };
            within(consumer.seek(&at(0), to)).await.unwrap();
            for expected in target..target + 5 {
                assert_eq!(record(&mut consumer).await.offset.get(), expected, "seed {seed}");
            }
            // One of the five may be in work.
            let expected = target + 4;
            until("the position is committed", || committed(&fake, 0) == Some(expected)).await;
        }
        assert!(within(consumer.commit(&before)).await.unwrap_err().is(reason::INVALID));
        within(consumer.seek(&at(0), SeekTo::Latest)).await.unwrap();
        append(&fake, 0, 200, 1);
        assert_eq!(record(&mut consumer).await.offset.get(), 200);
        within(consumer.seek(&at(0), SeekTo::Earliest)).await.unwrap();
        assert_eq!(record(&mut consumer).await.offset.get(), 0);
        fake.kill().await;
    }
}

/// Breaks the connection, and answers no join until `meanwhile` has happened while one was under way.
async fn while_joining(fake: &Fake, meanwhile: impl AsyncFnOnce()) {
    fake.kill().await;
    fake.world.lock().session_faults.hold_joins = true;
    fake.revive();
    until("a join is held", || fake.world.lock().joins_held > 0).await;
    meanwhile().await;
    fake.world.lock().session_faults.hold_joins = false;
}

#[tokio::test]
async fn what_is_asked_while_a_join_is_under_way_counts() {
    let fake = filled(14, 2, 500).await;
    let mut consumer = builder(&fake, "a").build().unwrap();
    let mut next = [0; 2];
    while next.contains(&0) {
        let record = record(&mut consumer).await;
        next[record.partition.0 as usize] += 1;
    }
    // All of it is here, and thrown away: the join says that it goes on behind.
    consumer.pause(&[at(0)]).unwrap();
    while_joining(&fake, async || {
        consumer.resume(&[at(0)]).unwrap();
        within(consumer.seek(&at(1), SeekTo::Offset(offset(3)))).await.unwrap();
    })
    .await;
    next[1] = 3;
    while next != [500, 500] {
        let record = record(&mut consumer).await;
        let next = &mut next[record.partition.0 as usize];
        assert_eq!(record.offset.get(), *next, "{:?}", record.partition);
        *next += 1;
    }
}

#[tokio::test]
async fn a_seek_while_a_join_is_under_way_outweighs_where_the_server_would_begin() {
    let fake = filled(15, 1, 50).await;
    let mut consumer = builder(&fake, "a").start(StartPolicy::Error).build().unwrap();
    assert!(within(consumer.next()).await.unwrap_err().is(reason::START_POSITION_NEEDED));
    while_joining(&fake, async || {
        within(consumer.seek(&at(0), SeekTo::Offset(offset(7)))).await.unwrap();
    })
    .await;
    let next = async {
        loop {
            if let Ok(record) = consumer.next().await {
                return record.offset.get();
            }
        }
    };
    assert_eq!(within(next).await, 7);
}

#[tokio::test]
async fn a_partition_without_a_place_to_begin_is_an_error_and_waits_for_a_seek() {
    let fake = filled(9, 2, 10).await;
    fake.world.lock().group("g").offsets.insert(place(1), 4);
    let mut consumer = builder(&fake, "a").start(StartPolicy::Error).build().unwrap();
    let mut problem = None;
    let mut read = Vec::new();
    while problem.is_none() || read.len() < 6 {
        match within(consumer.next()).await {
            Ok(record) => read.push((record.partition.0, record.offset.get())),
            Err(error) => assert!(problem.replace(error).is_none(), "once"),
        }
    }
    let problem: ClientError = problem.unwrap();
    assert!(problem.is(reason::START_POSITION_NEEDED), "{problem:?}");
    assert_eq!((problem.number("partition"), &*problem.metadata["topic"]), (Some(0), "logs"));
    assert_eq!(read, (4..10).map(|offset| (1, offset)).collect::<Vec<_>>(), "the other one goes on");
    within(consumer.seek(&at(0), SeekTo::Earliest)).await.unwrap();
    assert_eq!(record(&mut consumer).await.offset.get(), 0);
}

#[tokio::test]
async fn commits_are_exact_when_they_are_meant_so() {
    let fake = filled(10, 1, 50).await;
    let mut consumer = builder(&fake, "a").build().unwrap();
    let mut records = Vec::new();
    for _ in 0..20 {
        records.push(record(&mut consumer).await);
    }
    within(records[9].commit()).await.unwrap();
    assert_eq!(committed(&fake, 0), Some(10));
    within(consumer.commit(&records[4])).await.unwrap();
    assert_eq!(committed(&fake, 0), Some(10), "a record never moves the commit back");
    within(consumer.commit_all()).await.unwrap();
    assert_eq!(committed(&fake, 0), Some(20));
    let back = OffsetCommit { at: at(0), offset: Some(offset(3)), metadata: "mine".to_owned() };
    within(consumer.commit_offsets(&[back])).await.unwrap();
    assert_eq!(committed(&fake, 0), Some(3));
    let foreign = OffsetCommit { at: at(9), offset: Some(offset(3)), metadata: String::new() };
    let refused = within(consumer.commit_offsets(&[foreign])).await.unwrap_err();
    assert!(refused.is(reason::PARTITION_NOT_OWNED));
}

#[tokio::test]
async fn a_restart_of_the_server_goes_unnoticed() {
    let fake = filled(11, 2, 40).await;
    let mut consumer = builder(&fake, "a").commit(automatic()).build().unwrap();
    let mut read: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
    for _ in 0..30 {
        let record = record(&mut consumer).await;
        read.entry(record.partition.0).or_default().push(record.offset.get());
    }
    fake.kill().await;
    for partition in 0..2 {
        append(&fake, partition, 40, 10);
    }
    fake.revive();
    for _ in 0..70 {
        let record = record(&mut consumer).await;
        read.entry(record.partition.0).or_default().push(record.offset.get());
    }
    assert_eq!(read, (0..2).map(|partition| (partition, (0..50).collect())).collect());
    within(consumer.close()).await.unwrap();
}

#[tokio::test]
async fn a_server_that_is_away_is_told_and_waited_for() {
    let fake = filled(12, 1, 10).await;
    let mut consumer = builder(&fake, "a").retry_for(Duration::from_millis(200)).build().unwrap();
    let first = record(&mut consumer).await;
    for _ in 1..10 {
        drop(record(&mut consumer).await);
    }
    fake.kill().await;
    let commit = consumer.commit(&first);
    assert!(within(consumer.next()).await.unwrap_err().is_unreachable());
    assert!(within(commit).await.unwrap_err().is_unreachable());
    append(&fake, 0, 10, 1);
    fake.revive();
    let next = within(async {
        loop {
            if let Ok(record) = consumer.next().await {
                return record;
            }
        }
    });
    assert_eq!(next.await.offset.get(), 10);
    until("the commit was sent again", || committed(&fake, 0) == Some(1)).await;
}

#[tokio::test]
async fn an_end_without_a_server_says_what_is_not_known() {
    let fake = filled(13, 1, 10).await;
    let close_within = Duration::from_millis(200);
    let mut consumer = builder(&fake, "a").close_within(close_within).build().unwrap();
    let first = record(&mut consumer).await;
    fake.kill().await;
    drop(consumer.commit(&first));
    assert!(within(consumer.close()).await.unwrap_err().is_unreachable());

    // One whose join is not answered is not waited for longer either.
    let fake = filled(13, 1, 10).await;
    fake.world.lock().session_faults.silent = true;
    let mut consumer = builder(&fake, "a").close_within(close_within).build().unwrap();
    let early = tokio::time::timeout(Duration::from_millis(50), consumer.next()).await;
    assert!(early.is_err(), "{early:?}");
    let closing = tokio::time::Instant::now();
    within(consumer.close()).await.unwrap();
    assert!(closing.elapsed() < Duration::from_secs(30), "{:?}", closing.elapsed());

    // One that has never asked for anything has nothing to say to anybody.
    within(builder(&fake, "a").build().unwrap().close()).await.unwrap();
}

#[tokio::test]
async fn settings_outside_their_bounds_are_named() {
    let fake = filled(14, 1, 1).await;
    let good = || Consumer::builder(&fake.endpoint(), "g").topics(["logs"]);
    assert!(good().build().is_ok());
    for (builder, named) in [
        (Consumer::builder(&fake.endpoint(), "g"), "needs a topic"),
        (Consumer::builder(&fake.endpoint(), "a b").topics(["logs"]), "group name"),
        (good().member_id("a:b"), "member id"),
        (good().instance_id(""), "instance id"),
        (good().topics(["a/b"]), "topic name"),
        (good().session_timeout(Duration::from_millis(999)), "session_timeout"),
        (good().max_poll_interval(Duration::from_millis(999)), "max_poll_interval"),
        (good().prefetch(0, 1), "prefetch"),
        (good().prefetch(1, 0), "prefetch"),
        (good().commit(CommitMode::Automatic(Duration::ZERO)), "interval"),
    ] {
        let error = builder.build().unwrap_err();
        assert!(error.to_string().contains(named), "{error}");
    }
}
