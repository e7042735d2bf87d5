//! Where a member reads, how much, and what stands in the way.

use std::collections::BTreeMap;

use rimstone_store::ReadError;

use super::*;

#[tokio::test]
async fn reading_begins_where_the_commit_or_the_policy_says() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 2).await;
    fixture.put("t", 0, &["a", "b", "c"]).await;
    fixture.put("t", 1, &["x"]).await;

    let mut session = fixture.join(joining("m")).await;
    assert_eq!(started(event(&mut session).await), [(0, Some(0)), (1, Some(0))].into());
    assert_eq!(values(&records(event(&mut session).await)), ["a", "b", "c"]);
    assert_eq!(values(&records(event(&mut session).await)), ["x"], "each in its turn");
    commit(&mut session, 7, 0, 2);
    assert_eq!(committed(event(&mut session).await), (7, Ok(Committed::default())));
    let (answers, left) = session.leave(false).await;
    assert!(answers.is_empty());
    left.unwrap();

    let mut session = fixture.join(JoinRequest { start: StartPolicy::Error, ..joining("m") }).await;
    assert_eq!(started(event(&mut session).await), [(0, Some(2)), (1, None)].into());
    let (partition, error) = problem(event(&mut session).await);
    assert_eq!((partition, error.reason()), (1, Reason::StartPositionNeeded));
    assert!(error.to_string().contains("earliest or latest"), "{error}");
    assert_eq!(values(&records(event(&mut session).await)), ["c"]);
    quiet(&mut session).await;
    session.seek(name("t"), PartitionIndex(1), SeekTo::Earliest, 5);
    let read = records(event(&mut session).await);
    assert_eq!((values(&read), read.seek_id), (vec!["x".to_owned()], 5));
    session.leave(false).await.1.unwrap();

    let mut session = fixture.join(JoinRequest { start: StartPolicy::Latest, ..joining("m") }).await;
    assert_eq!(started(event(&mut session).await), [(0, Some(2))].into());
    assert_eq!(values(&records(event(&mut session).await)), ["c"]);
    assert_eq!(started(event(&mut session).await), [(1, Some(1))].into(), "once it is committed");
    quiet(&mut session).await;
    fixture.put("t", 1, &["y"]).await;
    assert_eq!(values(&records(event(&mut session).await)), ["y"]);
}

#[tokio::test]
async fn where_there_is_nothing_there_is_nothing_to_choose() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 3).await;
    for partition in [0, 2] {
        fixture.put("t", partition, &["a", "b"]).await;
    }
    let all = [(PartitionIndex(2), at(2))].into();
    fixture.broker.delete_records(&name("t"), all).await.expect("it is in the log");
    let asking = JoinRequest { start: StartPolicy::Error, ..joining("m") };
    let mut session = fixture.join(asking.clone()).await;
    assert_eq!(started(event(&mut session).await), [(0, None)].into());
    let (partition, error) = problem(event(&mut session).await);
    assert_eq!((partition, error.reason()), (0, Reason::StartPositionNeeded));
    assert_eq!(started(event(&mut session).await), [(1, Some(0)), (2, Some(2))].into());
    quiet(&mut session).await;
    fixture.put("t", 1, &["x"]).await;
    assert_eq!(values(&records(event(&mut session).await)), ["x"], "it is not skipped");
    // Nor is there anything to choose for who has it next.
    session.leave(false).await.1.unwrap();
    let mut session = fixture.join(asking.clone()).await;
    assert_eq!(started(event(&mut session).await), [(0, None), (1, Some(0)), (2, Some(2))].into());
    let (partition, error) = problem(event(&mut session).await);
    assert_eq!((partition, error.reason()), (0, Reason::StartPositionNeeded));
    assert_eq!(values(&records(event(&mut session).await)), ["x"]);
    // What is taken before it is read is another matter: there was a place.
    commit(&mut session, 1, 1, 0);
    committed(event(&mut session).await).1.expect("it is its own");
    session.leave(false).await.1.unwrap();
    let all = [(PartitionIndex(1), at(1))].into();
    fixture.broker.delete_records(&name("t"), all).await.expect("it is in the log");
    let mut session = fixture.join(asking).await;
    assert_eq!(started(event(&mut session).await), [(0, None), (1, None), (2, Some(2))].into());
}

#[tokio::test]
async fn what_comes_while_the_place_of_an_empty_partition_is_committed_is_read() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 1).await;
    fixture.join(JoinRequest { topics: [name("u")].into(), ..joining("other") }).await;
    fixture.store.script(shard(), |script| script.hold = true);
    let asking = JoinRequest { start: StartPolicy::Error, ..joining("m") };
    let (mut session, ()) = tokio::join!(fixture.join(asking), async {
        until("the join is submitted", || fixture.store.held(shard()) > 0).await;
        fixture.store.release(shard(), None).await;
    });
    until("the beginning is submitted", || fixture.store.held(shard()) > 0).await;
    fixture.put("t", 0, &["x"]).await;
    fixture.store.script(shard(), |script| script.hold = false);
    // It is decided once more, and the partition is not empty any more.
    fixture.store.release(shard(), Some(undone())).await;
    assert_eq!(started(event(&mut session).await), [(0, Some(0))].into());
    assert_eq!(values(&records(event(&mut session).await)), ["x"]);
}

#[tokio::test]
async fn seeks_are_told_apart_from_what_was_under_way() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 1).await;
    fixture.put("t", 0, &["a"]).await;
    let later = fixture.clock.now();
    fixture.clock.advance(1_000);
    fixture.put("t", 0, &["b", "c"]).await;
    let mut session =
        fixture.join(JoinRequest { credit: Credit { records: 1, ..PLENTY }, ..joining("m") }).await;
    started(event(&mut session).await);
    let first = records(event(&mut session).await);
    assert_eq!((values(&first), first.seek_id, first.next), (vec!["a".to_owned()], 0, at(1)));
    let cases = [
        (SeekTo::Offset(at(2)), "c"),
        (SeekTo::Time(later.saturating_add(Duration::from_millis(1))), "b"),
        (SeekTo::Earliest, "a"),
    ];
    for (seek_id, (to, value)) in (1..).zip(cases) {
        session.seek(name("t"), PartitionIndex(0), to, seek_id);
        quiet(&mut session).await;
        session.credit(Credit { bytes: 0, records: 1 });
        let read = records(event(&mut session).await);
        assert_eq!((values(&read), read.seek_id), (vec![value.to_owned()], seek_id));
    }
    session.credit(PLENTY);
    records(event(&mut session).await);
    session.seek(name("t"), PartitionIndex(0), SeekTo::Latest, 9);
    session.seek(name("t"), PartitionIndex(0), SeekTo::Offset(at(4)), 10);
    let (_, error) = problem(event(&mut session).await);
    assert_eq!(error.reason(), Reason::OffsetOutOfRange);
    quiet(&mut session).await;
    session.seek(name("t"), PartitionIndex(0), SeekTo::Time(Timestamp(i64::MAX)), 11);
    quiet(&mut session).await;
    fixture.put("t", 0, &["d"]).await;
    let read = records(event(&mut session).await);
    assert_eq!((values(&read), read.seek_id), (vec!["d".to_owned()], 11));
    session.seek(name("t"), PartitionIndex(7), SeekTo::Earliest, 12);
    assert_eq!(problem(event(&mut session).await).1.reason(), Reason::PartitionNotOwned);
}

#[tokio::test]
async fn credits_are_kept_to() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 1).await;
    fixture.put("t", 0, &["a", "b", "c", "d", "e", "f", "g", "h"]).await;
    let mut session = fixture.join(JoinRequest { credit: Credit::default(), ..joining("m") }).await;
    started(event(&mut session).await);
    quiet(&mut session).await;
    session.credit(Credit { bytes: 10_000, records: 0 });
    quiet(&mut session).await;
    session.credit(Credit { bytes: 0, records: 3 });
    let read = records(event(&mut session).await);
    assert_eq!((values(&read).len(), read.used.records, read.used.bytes), (3, 3, 3 * 49));
    quiet(&mut session).await;
    // One message may go below zero in bytes, and what is missing has to be made up for.
    session.credit(Credit { bytes: 0, records: 100 });
    let read = records(event(&mut session).await);
    assert_eq!(values(&read), ["d", "e", "f", "g", "h"]);
    let left = 10_000 - 8 * 49;
    fixture.put("t", 0, &[&"x".repeat(left as usize - 48 - 1), "i", "j"]).await;
    let read = records(event(&mut session).await);
    assert_eq!((values(&read).len(), read.used.bytes), (1, left - 1), "a second one does not fit");
    let read = records(event(&mut session).await);
    assert_eq!(
        (values(&read), read.used.bytes),
        (vec!["i".to_owned()], 49),
        "at least one while there is credit"
    );
    quiet(&mut session).await;
    session.credit(Credit { bytes: 48, records: 0 });
    quiet(&mut session).await;
    session.credit(Credit { bytes: 1, records: 0 });
    assert_eq!(values(&records(event(&mut session).await)), ["j"]);
    quiet(&mut session).await;
}

#[tokio::test]
async fn whole_batches_are_sent_as_they_are_stored() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 1).await;
    fixture.put("t", 0, &["a", "b"]).await;
    fixture.put("t", 0, &["c"]).await;
    fixture.put("t", 0, &["d"]).await;
    let credit = Credit { records: 3, ..PLENTY };
    let request = JoinRequest { format: ReadFormat::Batches, credit, ..joining("m") };
    let mut session = fixture.join(request).await;
    started(event(&mut session).await);
    let read = records(event(&mut session).await);
    let ChunkContent::Batches(batches) = &read.content else { panic!("batches were asked for") };
    let bytes: usize = batches.iter().map(|read| read.batch.bytes().len()).sum();
    assert_eq!((batches.len(), read.next, read.used), (2, at(3), Credit { bytes: bytes as u64, records: 3 }));
    quiet(&mut session).await;
    session.credit(Credit { bytes: 0, records: 1 });
    assert_eq!(records(event(&mut session).await).next, at(4));
}

#[tokio::test]
async fn paused_partitions_wait() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 2).await;
    let mut session = fixture.join(joining("m")).await;
    started(event(&mut session).await);
    session.pause(&[place("t", 0), place("t", 9)], true);
    fixture.put("t", 0, &["a"]).await;
    fixture.put("t", 1, &["x"]).await;
    assert_eq!(values(&records(event(&mut session).await)), ["x"]);
    quiet(&mut session).await;
    session.pause(&[place("t", 0)], false);
    assert_eq!(values(&records(event(&mut session).await)), ["a"]);
}

#[tokio::test]
async fn where_retention_overtakes_a_reader_the_policy_says_where_to_go_on() {
    let fixture = Fixture::new().await;
    for (topic, start) in
        [("t1", StartPolicy::Earliest), ("t2", StartPolicy::Latest), ("t3", StartPolicy::Error)]
    {
        fixture.topic(topic, 1).await;
        for value in ["a", "b", "c", "d"] {
            fixture.put(topic, 0, &[value]).await;
        }
        let request = JoinRequest {
            start,
            topics: [name(topic)].into(),
            credit: Credit { records: 0, ..PLENTY },
            // One batch at a time: what was read is sent, whatever retention does.
            message_bytes: Some(ByteCount(1)),
            ..joining(topic)
        };
        let mut session = fixture.join(request).await;
        started(event(&mut session).await);
        if start == StartPolicy::Error {
            problem(event(&mut session).await);
        }
        session.seek(name(topic), PartitionIndex(0), SeekTo::Earliest, 1);
        session.credit(Credit { bytes: 0, records: 1 });
        assert_eq!(values(&records(event(&mut session).await)), ["a"]);
        let before = BTreeMap::from([(PartitionIndex(0), at(3))]);
        fixture.broker.delete_records(&name(topic), before).await.unwrap();
        session.credit(Credit { bytes: 0, records: 100 });
        match start {
            StartPolicy::Earliest => assert_eq!(values(&records(event(&mut session).await)), ["d"]),
            StartPolicy::Latest => {
                quiet(&mut session).await;
                fixture.put(topic, 0, &["e"]).await;
                assert_eq!(values(&records(event(&mut session).await)), ["e"]);
            }
            StartPolicy::Error => {
                let (_, error) = problem(event(&mut session).await);
                assert_eq!(error.reason(), Reason::StartPositionNeeded);
                quiet(&mut session).await;
            }
        }
    }
    let text = fixture.broker.metrics_text();
    assert!(text.contains("rimstone_group_overtaken_total 3\n"), "{text}");
}

#[tokio::test]
async fn what_cannot_be_read_is_a_problem_and_a_seek_gets_over_it() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 2).await;
    fixture.put("t", 0, &["a", "b", "c"]).await;
    let broken = fixture.partition("t", 0);
    let lost = ReadError::DataLoss { from: at(0), until: at(2), reason: "rot".to_owned() };
    fixture.store.script(broken, |script| script.read_error = Some(lost));
    let mut session = fixture.join(joining("m")).await;
    started(event(&mut session).await);
    let (partition, error) = problem(event(&mut session).await);
    assert_eq!((partition, error.reason()), (0, Reason::DataDamaged));
    assert!(error.details().contains(&("until_offset", "2".to_owned())), "{:?}", error.details());
    fixture.put("t", 1, &["x"]).await;
    assert_eq!(values(&records(event(&mut session).await)), ["x"], "the others are read");
    quiet(&mut session).await;
    // A time that leads there is looked up once and refused as well; the others are read.
    let look_ups = || fixture.store.script(broken, |script| script.look_ups);
    let before = look_ups();
    session.seek(name("t"), PartitionIndex(0), SeekTo::Time(Timestamp(0)), 1);
    let (partition, error) = problem(event(&mut session).await);
    assert_eq!((partition, error.reason()), (0, Reason::DataDamaged));
    assert!(error.details().contains(&("until_offset", "2".to_owned())), "{:?}", error.details());
    fixture.put("t", 1, &["y"]).await;
    assert_eq!(values(&records(event(&mut session).await)), ["y"]);
    quiet(&mut session).await;
    assert_eq!(look_ups(), before + 1);
    fixture.store.script(broken, |script| script.read_error = None);
    session.seek(name("t"), PartitionIndex(0), SeekTo::Offset(at(2)), 2);
    assert_eq!(values(&records(event(&mut session).await)), ["c"]);
}

#[tokio::test]
async fn who_is_refused_and_does_not_read_is_not_read() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 1).await;
    let mut session = fixture.join(joining("m")).await;
    started(event(&mut session).await);
    let mut taken = 0;
    while session.takes_messages() {
        session.seek(name("t"), PartitionIndex(7), SeekTo::Earliest, taken);
        taken += 1;
        assert!(taken < 1_000, "refusals pile up");
    }
    for _ in 0..taken {
        assert_eq!(problem(event(&mut session).await).1.reason(), Reason::PartitionNotOwned);
    }
    assert!(session.takes_messages(), "they have been read");
}

#[tokio::test]
async fn who_comes_back_is_told_what_has_become_unavailable() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 2).await;
    fixture.put("t", 1, &["x"]).await;
    let mut session = fixture.join(joining("m")).await;
    assert_eq!(started(event(&mut session).await).len(), 2);
    let (epoch, broken) = (session.facts().epoch, fixture.partition("t", 0));
    fixture.broker.finish_shutdown(DEADLINE).await.unwrap();
    drop(session);
    let store = fixture.store.reopen();
    store.script(broken, |script| script.open_error = Some("bad sector".to_owned()));
    let fixture = Fixture::over(store, still()).await;

    let positions = [0, 1].map(|partition| (name("t"), PartitionIndex(partition), at(0))).into();
    let mut session = fixture.join_again(JoinRequest { epoch, positions, ..joining("m") }).await.unwrap();
    assert!(session.facts().resumed);
    let (partition, error) = problem(event(&mut session).await);
    assert_eq!((partition, error.reason()), (0, Reason::PartitionUnavailable));
    assert_eq!(values(&records(event(&mut session).await)), ["x"], "the other is read");
    quiet(&mut session).await;
}

#[tokio::test]
async fn only_what_may_have_something_is_looked_at() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 100).await;
    let mut session = fixture.join(joining("m")).await;
    assert_eq!(started(event(&mut session).await).len(), 100);
    quiet(&mut session).await;
    let before = session.looks;
    for number in 0..50 {
        session.heartbeat(true);
        session.credit(Credit { bytes: 1, records: 1 });
        commit(&mut session, number, 7, 0);
        assert!(matches!(event(&mut session).await, SessionEvent::Alive { .. }));
        committed(event(&mut session).await).1.unwrap();
        quiet(&mut session).await;
    }
    assert_eq!(session.looks, before, "nothing has moved");
    for value in ["a", "b"] {
        fixture.put("t", 42, &[value]).await;
        assert_eq!(values(&records(event(&mut session).await)), [value]);
        quiet(&mut session).await;
    }
    session.pause(&[place("t", 42)], true);
    fixture.put("t", 42, &["c"]).await;
    quiet(&mut session).await;
    session.pause(&[place("t", 42)], false);
    assert_eq!(values(&records(event(&mut session).await)), ["c"]);
    quiet(&mut session).await;
    let looks = session.looks - before;
    assert!((3..=12).contains(&looks), "{looks} looks for three records in one partition");
}

#[tokio::test]
async fn what_is_said_during_a_read_does_not_begin_it_anew() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 1).await;
    fixture.put("t", 0, &["a"]).await;
    let permits = Arc::new(tokio::sync::Semaphore::new(0));
    let slow = fixture.partition("t", 0);
    fixture.store.script(slow, |script| script.read_permits = Some(Arc::clone(&permits)));
    let mut session = fixture.join(joining("m")).await;
    started(event(&mut session).await);
    quiet(&mut session).await;
    for number in 0..20 {
        session.heartbeat(false);
        commit(&mut session, number, 0, 0);
        assert!(matches!(event(&mut session).await, SessionEvent::Alive { .. }));
        assert_eq!(committed(event(&mut session).await).0, number, "answers do not wait for a read");
        quiet(&mut session).await;
    }
    fixture.put("t", 0, &["b"]).await;
    assert_eq!(fixture.store.script(slow, |script| script.reads), 1);
    // What it reads elsewhere is another read.
    session.seek(name("t"), PartitionIndex(0), SeekTo::Offset(at(1)), 1);
    quiet(&mut session).await;
    assert_eq!(fixture.store.script(slow, |script| script.reads), 2);
    permits.add_permits(1);
    assert_eq!(values(&records(event(&mut session).await)), ["b"]);
}

#[tokio::test]
async fn a_look_up_holds_up_nothing_else() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 2).await;
    fixture.put("t", 0, &["a"]).await;
    let mut session = fixture.join(joining("m")).await;
    started(event(&mut session).await);
    assert_eq!(values(&records(event(&mut session).await)), ["a"]);
    let permits = Arc::new(tokio::sync::Semaphore::new(0));
    let slow = fixture.partition("t", 0);
    let before = fixture.store.script(slow, |script| {
        script.read_permits = Some(Arc::clone(&permits));
        script.look_ups
    });
    let look_ups = || fixture.store.script(slow, |script| script.look_ups) - before;
    session.seek(name("t"), PartitionIndex(0), SeekTo::Time(Timestamp(0)), 1);
    quiet(&mut session).await;
    for number in 0..20 {
        session.heartbeat(false);
        commit(&mut session, number, 0, 0);
        assert!(matches!(event(&mut session).await, SessionEvent::Alive { .. }));
        assert_eq!(committed(event(&mut session).await).0, number);
        fixture.put("t", 1, &["x"]).await;
        assert_eq!(values(&records(event(&mut session).await)), ["x"]);
    }
    assert_eq!(look_ups(), 1, "what is said does not begin it anew");
    // Another seek takes its place.
    session.seek(name("t"), PartitionIndex(0), SeekTo::Time(Timestamp(0)), 2);
    quiet(&mut session).await;
    assert_eq!(look_ups(), 2);
    // Nor does it keep anybody from hearing what is to be given back.
    let _two = fixture.join(joining("m2")).await;
    let moving = stopped(event(&mut session).await);
    assert_eq!(moving.len(), 1);
    permits.add_permits(10);
    if moving == [0] {
        return quiet(&mut session).await;
    }
    let read = records(event(&mut session).await);
    assert_eq!((values(&read), read.seek_id), (vec!["a".to_owned()], 2));
}
