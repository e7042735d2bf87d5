use std::sync::Arc;

use rimstone_types::{GroupEpoch, Offset, PartitionIndex};

use super::*;
use crate::{testing::*, *};

const MIB: u64 = 1 << 20;

/// How long so many pieces of a MiB take, while so much is written before each of them.
async fn reading(pace: &Pace, pieces: u64, written: u64) -> Duration {
    let begin = Instant::now();
    for _ in 0..pieces {
        pace.submitted(written);
        if let Some(turn) = pace.turn(MIB) {
            sleep_until(turn).await;
        }
    }
    begin.elapsed()
}

fn near(duration: Duration, seconds: f64) {
    let found = duration.as_secs_f64();
    assert!((found - seconds).abs() < 0.1 * seconds + 0.002, "{found} s instead of {seconds} s");
}

#[tokio::test(start_paused = true)]
async fn history_is_read_at_its_rate_while_somebody_writes() {
    let pace = Pace::new(ByteCount(100 * MIB));
    tokio::time::advance(LOOK_INTERVAL).await;
    near(reading(&pace, 200, MIB / 10).await, 2.0);
}

#[tokio::test(start_paused = true)]
async fn all_readers_share_the_rate() {
    let pace = Pace::new(ByteCount(100 * MIB));
    tokio::time::advance(LOOK_INTERVAL).await;
    let begin = Instant::now();
    tokio::join!(reading(&pace, 100, MIB / 10), reading(&pace, 100, MIB / 10));
    near(begin.elapsed(), 2.0);
}

#[tokio::test(start_paused = true)]
async fn a_turn_comes_soon_whoever_else_reads() {
    let pace = Pace::new(ByteCount(MIB));
    tokio::time::advance(LOOK_INTERVAL).await;
    pace.submitted(1);
    let waits = (0..100).filter_map(|_| pace.turn(100 * MIB)).map(|turn| turn - Instant::now());
    assert_eq!(waits.max(), Some(WAIT_MAX));
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_where_nobody_writes() {
    let pace = Pace::new(ByteCount(100 * MIB));
    tokio::time::advance(LOOK_INTERVAL).await;
    assert_eq!(reading(&pace, 200, 0).await, Duration::ZERO);
    // Nor any more once writing has ended, but for what that takes to be noticed.
    reading(&pace, 20, MIB).await;
    assert!(reading(&pace, 2_000, 0).await <= 3 * LOOK_INTERVAL);
    let without = Pace::new(ByteCount(0));
    tokio::time::advance(LOOK_INTERVAL).await;
    assert_eq!(reading(&without, 200, MIB).await, Duration::ZERO);
}

/// Twice the rate of what is written at least, or the reader would never be done.
#[tokio::test(start_paused = true)]
async fn who_fell_behind_catches_up() {
    let pace = Pace::new(ByteCount(MIB));
    let writing = async {
        for _ in 0..600 {
            pace.submitted(MIB);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let reader = async {
        tokio::time::sleep(LOOK_INTERVAL).await;
        near(reading(&pace, 1_000, 0).await, 5.0);
    };
    tokio::join!(writing, reader);
}

fn joining(credit: Credit) -> JoinRequest {
    JoinRequest {
        group: "g".parse().unwrap(),
        member: Some("m".parse().unwrap()),
        instance: None,
        client_id: "a test".to_owned(),
        host: "127.0.0.1".to_owned(),
        topics: [name("t")].into(),
        topic_prefix: None,
        assignor: None,
        start: StartPolicy::Earliest,
        visibility: Visibility::Stable,
        format: ReadFormat::Batches,
        session_timeout: None,
        max_poll_interval: None,
        credit,
        epoch: GroupEpoch::ZERO,
        positions: Vec::new(),
        message_bytes: None,
    }
}

/// Reads one batch in one of three ways.
async fn read(fixture: Fixture, way: usize) {
    match way {
        0 => {
            let request = ReadRequest { end: ReadEnd::Latest, ..read_from("t", ReadStart::Earliest) };
            let mut reader = fixture.broker.read(request).await.unwrap();
            reader.next().await.unwrap().unwrap();
        }
        1 => {
            let partition =
                FetchPartition { partition: PartitionIndex(0), offset: Offset::ZERO, max_bytes: None };
            let request = FetchRequest {
                topic: name("t"),
                partitions: vec![partition],
                min_bytes: ByteCount(0),
                max_bytes: None,
                max_wait: Duration::ZERO,
                visibility: Visibility::Stable,
            };
            fixture.broker.fetch(request).await.unwrap().partitions.remove(0).result.unwrap();
        }
        _ => {
            let credit = Credit { bytes: 1, records: 1 };
            let mut session = fixture.broker.join_group(joining(credit)).await.unwrap();
            while !matches!(session.next().await.unwrap(), SessionEvent::Records(_)) {}
        }
    }
}

/// Who asks for many partitions waits no longer than who asks for one.
#[tokio::test(start_paused = true)]
async fn a_fetch_of_many_partitions_waits_for_one_turn() {
    let mut config = still();
    config.limits.history_rate = ByteCount(1);
    let fixture = Fixture::with(config).await;
    fixture.topic("t", 3).await;
    for partition in 0..3 {
        fixture.put("t", partition, &["a"]).await;
    }
    fixture.clock.advance(HISTORY_AGE_MILLIS);
    let pace = Arc::clone(&fixture.broker.inner.pace);
    let begin = Instant::now();
    let others = begin + Duration::from_secs(3600);
    *pace.turn.lock() = Turn { looked: others, written_then: 0, writing: 0.1, free_at: others };
    let partition =
        |number| FetchPartition { partition: PartitionIndex(number), offset: Offset::ZERO, max_bytes: None };
    let request = FetchRequest {
        topic: name("t"),
        partitions: (0..3).map(partition).collect(),
        min_bytes: ByteCount(0),
        max_bytes: None,
        max_wait: Duration::ZERO,
        visibility: Visibility::Stable,
    };
    let answer = fixture.broker.fetch(request).await.unwrap();
    for fetched in &answer.partitions {
        assert_eq!(fetched.result.as_ref().unwrap().batches.len(), 1);
    }
    near(begin.elapsed(), WAIT_MAX.as_secs_f64());
}

/// A reader that waits has taken its turn; none takes one that does not wait.
#[tokio::test]
async fn every_way_to_read_history_gives_way_and_no_other_does() {
    for way in 0..3 {
        for (age_millis, writing, waits) in [
            (HISTORY_AGE_MILLIS, 1.0, true),
            (HISTORY_AGE_MILLIS - 1, 1.0, false),
            (HISTORY_AGE_MILLIS, 0.0, false),
        ] {
            let fixture = Fixture::new().await;
            fixture.topic("t", 1).await;
            fixture.put("t", 0, &["a"]).await;
            fixture.clock.advance(age_millis);
            let pace = Arc::clone(&fixture.broker.inner.pace);
            // Others have read much, and for an hour nobody looks how much is written.
            let others = Instant::now() + Duration::from_secs(3600);
            *pace.turn.lock() = Turn { looked: others, written_then: 0, writing, free_at: others };
            let reading = tokio::spawn(read(fixture, way));
            if waits {
                until("a turn of its own", || pace.turn.lock().free_at != others).await;
                reading.abort();
            } else {
                soon("what is read", reading).await.unwrap();
                assert!(writing == 0.0 || pace.turn.lock().free_at == others, "way {way}");
            }
        }
    }
}
