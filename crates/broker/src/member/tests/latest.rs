//! The start policy `latest`: nothing is skipped because of who reads when.

use std::collections::BTreeMap;

use super::*;

fn latest(id: &str) -> JoinRequest {
    JoinRequest { start: StartPolicy::Latest, ..joining(id) }
}

/// Retention may overtake it: what was read is sent.
fn one_batch_at_a_time() -> JoinRequest {
    let credit = Credit { records: 1, ..PLENTY };
    JoinRequest { credit, message_bytes: Some(ByteCount(1)), ..latest("m") }
}

impl Fixture {
    /// What is committed, by partition.
    async fn places(&self) -> BTreeMap<u32, u64> {
        let all = self.broker.fetch_offsets(&group("g"), Vec::new()).await.expect("there are offsets");
        let place = |line: CommittedOffset| Some((line.partition.0, line.value?.offset.get()));
        all.into_iter().filter_map(place).collect()
    }

    async fn trim(&self, start: u64) {
        let before = BTreeMap::from([(PartitionIndex(0), at(start))]);
        self.broker.delete_records(&name("t"), before).await.expect("it is trimmed");
    }

    /// The shard's oldest batch, and those that it holds until then, come to this.
    async fn fate(&self, what: &str, error: Option<AppendError>) {
        until(what, || self.store.held(shard()) > 0).await;
        self.store.release(shard(), error).await;
    }
}

#[tokio::test]
async fn what_comes_while_a_partition_moves_is_not_skipped() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 1).await;
    fixture.put("t", 0, &["a"]).await;
    let mut session = fixture.join(latest("m1")).await;
    assert_eq!(started(event(&mut session).await), [(0, Some(1))].into());
    quiet(&mut session).await;
    // It is sent, and not processed.
    fixture.put("t", 0, &["b"]).await;
    assert_eq!(values(&records(event(&mut session).await)), ["b"]);
    session.leave(false).await.1.unwrap();
    fixture.put("t", 0, &["c"]).await;
    let mut session = fixture.join(latest("m2")).await;
    let SessionEvent::Start { partitions, .. } = event(&mut session).await else { panic!("not a start") };
    assert_eq!((partitions[0].offset, partitions[0].committed), (Some(at(1)), Some(at(1))));
    assert_eq!(values(&records(event(&mut session).await)), ["b", "c"]);
    drop(session);
    // Nor by its own new start.
    let mut session = fixture.join(latest("m2")).await;
    assert_eq!(started(event(&mut session).await), [(0, Some(1))].into());
    assert_eq!(values(&records(event(&mut session).await)), ["b", "c"]);
}

#[tokio::test]
async fn a_beginning_is_told_when_it_is_durable() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 1).await;
    fixture.put("t", 0, &["a"]).await;
    fixture.join(JoinRequest { topics: [name("u")].into(), ..joining("other") }).await;
    fixture.store.script(shard(), |script| script.hold = true);
    let (mut session, ()) = tokio::join!(fixture.join(latest("m")), fixture.fate("the join", None));
    until("the beginning is submitted", || fixture.store.held(shard()) > 0).await;
    fixture.put("t", 0, &["b"]).await;
    quiet(&mut session).await;
    session.seek(name("t"), PartitionIndex(0), SeekTo::Earliest, 1);
    assert_eq!(problem(event(&mut session).await).1.reason(), Reason::PartitionNotOwned);
    quiet(&mut session).await;
    fixture.fate("the beginning", Some(undone())).await;
    fixture.store.script(shard(), |script| script.hold = false);
    // It was not told before, so it may begin later.
    assert_eq!(started(event(&mut session).await), [(0, Some(2))].into());
    assert_eq!(fixture.places().await, [(0, 2)].into());
    fixture.put("t", 0, &["c"]).await;
    assert_eq!(values(&records(event(&mut session).await)), ["c"]);
}

#[tokio::test]
async fn what_is_to_be_given_back_is_not_begun() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 2).await;
    fixture.join(JoinRequest { topics: [name("u")].into(), ..joining("other") }).await;
    fixture.store.script(shard(), |script| script.hold = true);
    let (mut one, ()) = tokio::join!(fixture.join(latest("m1")), fixture.fate("the join", None));
    until("the beginnings are submitted", || fixture.store.held(shard()) == 1).await;
    let (mut two, ()) = tokio::join!(fixture.join(latest("m2")), async {
        until("the other join is submitted", || fixture.store.held(shard()) == 2).await;
        fixture.store.script(shard(), |script| script.hold = false);
        fixture.fate("the beginnings", None).await;
        fixture.fate("the other join", None).await;
    });
    // The news of the other comes before the answer.
    let moving = stopped(event(&mut one).await);
    assert_eq!(moving.len(), 1);
    assert_eq!(started(event(&mut one).await), [(1 - moving[0], Some(0))].into());
    one.stopped(vec![place("t", moving[0])]);
    assert_eq!(started(event(&mut two).await), [(moving[0], Some(0))].into());
}

#[tokio::test]
async fn a_commit_outside_the_log_is_replaced_by_where_it_goes_on() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 1).await;
    fixture.put("t", 0, &["a", "b", "c", "d"]).await;
    let mut session = fixture.join(joining("m")).await;
    started(event(&mut session).await);
    records(event(&mut session).await);
    commit(&mut session, 1, 0, 1);
    committed(event(&mut session).await).1.unwrap();
    session.leave(false).await.1.unwrap();
    fixture.trim(3).await;
    let mut session = fixture.join(latest("m")).await;
    assert_eq!(started(event(&mut session).await), [(0, Some(4))].into());
    session.leave(false).await.1.unwrap();
    fixture.put("t", 0, &["e"]).await;
    let mut session = fixture.join(latest("m")).await;
    assert_eq!(started(event(&mut session).await), [(0, Some(4))].into());
    assert_eq!(values(&records(event(&mut session).await)), ["e"]);
}

#[tokio::test]
async fn where_a_reader_is_overtaken_it_goes_on_at_a_committed_place() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 1).await;
    for value in ["a", "b", "c", "d"] {
        fixture.put("t", 0, &[value]).await;
    }
    let mut session = fixture.join(one_batch_at_a_time()).await;
    started(event(&mut session).await);
    session.seek(name("t"), PartitionIndex(0), SeekTo::Earliest, 1);
    assert_eq!(values(&records(event(&mut session).await)), ["a"]);
    commit(&mut session, 1, 0, 0);
    committed(event(&mut session).await).1.unwrap();
    fixture.trim(3).await;
    fixture.store.script(shard(), |script| script.hold = true);
    session.credit(Credit { bytes: 0, records: 9 });
    quiet(&mut session).await;
    // It reads on only when its place is durable; a commit that was under way does not take the place away.
    commit(&mut session, 2, 0, 1);
    fixture.put("t", 0, &["e"]).await;
    quiet(&mut session).await;
    fixture.store.script(shard(), |script| script.hold = false);
    while fixture.store.held(shard()) > 0 {
        fixture.store.release(shard(), None).await;
    }
    assert_eq!(committed(event(&mut session).await).0, 2);
    assert_eq!(values(&records(event(&mut session).await)), ["e"]);
    assert_eq!(fixture.places().await, [(0, 4)].into());
    // Nor does one that comes later.
    commit(&mut session, 3, 0, 1);
    committed(event(&mut session).await).1.unwrap();
    assert_eq!(fixture.places().await, [(0, 4)].into());
    session.leave(false).await.1.unwrap();
    let mut session = fixture.join(latest("m2")).await;
    assert_eq!(started(event(&mut session).await), [(0, Some(4))].into());
    assert_eq!(values(&records(event(&mut session).await)), ["e"]);
}

/// A member that was overtaken after it was sent "a" (at 0), with the place 4 committed; log start is 3.
async fn overtaken(fixture: &Fixture) -> MemberSession {
    fixture.topic("t", 1).await;
    for value in ["a", "b", "c", "d"] {
        fixture.put("t", 0, &[value]).await;
    }
    let mut session = fixture.join(one_batch_at_a_time()).await;
    started(event(&mut session).await);
    session.seek(name("t"), PartitionIndex(0), SeekTo::Earliest, 1);
    assert_eq!(values(&records(event(&mut session).await)), ["a"]);
    commit(&mut session, 1, 0, 0);
    committed(event(&mut session).await).1.unwrap();
    fixture.trim(3).await;
    session.credit(Credit { bytes: 0, records: 1 });
    quiet(&mut session).await;
    assert_eq!(fixture.places().await, [(0, 4)].into());
    session
}

#[tokio::test]
async fn a_commit_that_was_under_way_when_the_stream_broke_leaves_the_place() {
    let fixture = Fixture::new().await;
    let session = overtaken(&fixture).await;
    let epoch = session.facts().epoch;
    drop(session);
    // It comes back with what it has, and room for nothing.
    let positions = vec![(name("t"), PartitionIndex(0), at(1))];
    let back = JoinRequest { epoch, positions, credit: Credit::default(), ..latest("m") };
    let mut session = fixture.join(back).await;
    assert!(session.facts().resumed);
    commit(&mut session, 2, 0, 1);
    let (_, done) = committed(event(&mut session).await);
    assert!(done.unwrap().below_log_start, "and it is told");
    assert_eq!(fixture.places().await, [(0, 4)].into());
    fixture.put("t", 0, &["e"]).await;
    session.credit(PLENTY);
    assert_eq!(values(&records(event(&mut session).await)), ["e"]);
    // Nor does one that comes in another way, whether a stream is open or not.
    let mut session = Some(session);
    for _ in 0..2 {
        let offset = OffsetToCommit {
            topic: name("t"),
            partition: PartitionIndex(0),
            offset: Some(at(2)),
            metadata: String::new(),
        };
        let by = Some((member("m"), epoch));
        let request = CommitRequest { group: group("g"), member: by, offsets: vec![offset] };
        let room = fixture.broker.try_reserve(ByteCount(1)).unwrap();
        let done = fixture.broker.commit_offsets(request, room).await.unwrap();
        assert!(done[0].result.as_ref().unwrap().below_log_start);
        assert_eq!(fixture.places().await, [(0, 4)].into());
        drop(session.take());
    }
}

#[tokio::test]
async fn who_was_overtaken_may_go_back_within_the_log() {
    let fixture = Fixture::new().await;
    let mut session = overtaken(&fixture).await;
    commit(&mut session, 2, 0, 3);
    let (_, done) = committed(event(&mut session).await);
    assert_eq!(done, Ok(Committed { below_log_start: false, backwards: true }));
    assert_eq!(fixture.places().await, [(0, 3)].into());
}

#[tokio::test]
async fn what_is_committed_and_ahead_is_not_lost_when_a_reader_is_overtaken() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 1).await;
    for value in ["a", "b", "c", "d"] {
        fixture.put("t", 0, &[value]).await;
    }
    let mut session = fixture.join(one_batch_at_a_time()).await;
    started(event(&mut session).await);
    commit(&mut session, 1, 0, 3);
    committed(event(&mut session).await).1.unwrap();
    // It reads again, and retention is faster.
    session.seek(name("t"), PartitionIndex(0), SeekTo::Earliest, 1);
    assert_eq!(values(&records(event(&mut session).await)), ["a"]);
    fixture.trim(2).await;
    session.credit(Credit { bytes: 0, records: 9 });
    assert_eq!(values(&records(event(&mut session).await)), ["d"]);
}

#[tokio::test]
async fn partitions_that_are_made_while_it_is_subscribed_are_read_from_their_start() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 1).await;
    fixture.topic("old", 1).await;
    fixture.put("t", 0, &["before"]).await;
    fixture.put("old", 0, &["before"]).await;
    let mut session =
        fixture.join(JoinRequest { topic_prefix: Some("new-".to_owned()), ..latest("m") }).await;
    assert_eq!(started(event(&mut session).await), [(0, Some(1))].into());
    fixture.broker.alter_topic(&name("t"), BTreeMap::new(), Vec::new(), Some(3)).await.unwrap();
    fixture.put("t", 2, &["x"]).await;
    assert_eq!(started(event(&mut session).await), [(1, Some(0)), (2, Some(0))].into());
    assert_eq!(values(&records(event(&mut session).await)), ["x"]);
    fixture.topic("new-1", 1).await;
    fixture.put("new-1", 0, &["y"]).await;
    assert_eq!(started(event(&mut session).await), [(0, Some(0))].into());
    assert_eq!(values(&records(event(&mut session).await)), ["y"]);
    // Another subscription finds what was there before.
    let topics = [name("t"), name("old")].into();
    let mut session = fixture.join(JoinRequest { topics, ..latest("m") }).await;
    let SessionEvent::Start { partitions, .. } = event(&mut session).await else { panic!("not a start") };
    assert_eq!(partitions.len(), 3, "what is committed");
    let partitions = loop {
        match event(&mut session).await {
            SessionEvent::Start { partitions, .. } => break partitions,
            other => records(other),
        };
    };
    assert_eq!((&partitions[0].topic, partitions[0].offset), (&name("old"), Some(at(1))));
}

#[tokio::test(start_paused = true)]
async fn what_the_shard_could_not_take_is_asked_again_while_there_are_records() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 2).await;
    for _ in 0..200 {
        fixture.put("t", 0, &["x"]).await;
    }
    let mut session = fixture.join(joining("m")).await;
    started(event(&mut session).await);
    commit(&mut session, 1, 0, 0);
    while !matches!(event(&mut session).await, SessionEvent::Committed { .. }) {}
    session.leave(false).await.1.unwrap();

    fixture.store.script(shard(), |script| script.hold = true);
    let request = JoinRequest { credit: PLENTY, ..one_batch_at_a_time() };
    let (mut session, ()) = tokio::join!(fixture.join(request), fixture.fate("the join", None));
    assert_eq!(started(event(&mut session).await), [(0, Some(0))].into());
    fixture.fate("the beginning of the other", Some(undone())).await;
    fixture.store.script(shard(), |script| script.hold = false);
    let mut read = 0;
    let begun = loop {
        match event(&mut session).await {
            SessionEvent::Records(_) => read += 1,
            other => break started(other),
        }
        assert!(read < 100, "it is not asked again");
        advance(Duration::from_millis(20)).await;
    };
    assert_eq!(begun, [(1, Some(0))].into());
    records(event(&mut session).await);
}

impl Fixture {
    /// A member without credit, whose partitions, this many, retention has overtaken; the shard answers nothing.
    async fn overtaken_unseen(&self, partitions: u32) -> MemberSession {
        self.topic("t", partitions).await;
        for partition in 0..partitions {
            self.put("t", partition, &["a"]).await;
            self.put("t", partition, &["b"]).await;
        }
        let request = JoinRequest { credit: Credit::default(), ..latest("m") };
        let mut session = self.join(request).await;
        assert_eq!(started(event(&mut session).await).len(), partitions as usize);
        for partition in 0..partitions {
            session.seek(name("t"), PartitionIndex(partition), SeekTo::Earliest, 1);
        }
        let all = (0..partitions).map(|partition| (PartitionIndex(partition), at(1))).collect();
        self.broker.delete_records(&name("t"), all).await.expect("they are in the log");
        self.store.script(shard(), |script| script.hold = true);
        session
    }

    async fn answer_again(&self) {
        self.store.script(shard(), |script| script.hold = false);
        while self.store.held(shard()) > 0 {
            self.store.release(shard(), None).await;
        }
    }
}

#[tokio::test]
async fn partitions_that_are_overtaken_together_are_begun_together() {
    let fixture = Fixture::new().await;
    let mut session = fixture.overtaken_unseen(100).await;
    let before = session.begins;
    commit(&mut session, 1, 0, 2);
    session.credit(PLENTY);
    quiet(&mut session).await;
    assert_eq!(session.begins - before, 1, "requests");
    assert!(session.takes_messages());
    fixture.answer_again().await;
    assert_eq!(committed(event(&mut session).await).0, 1);
    quiet(&mut session).await;
    for partition in 0..100 {
        fixture.put("t", partition, &["c"]).await;
        assert_eq!(values(&records(event(&mut session).await)), ["c"]);
    }
}

#[tokio::test(start_paused = true)]
async fn who_is_not_read_because_of_a_beginning_is_not_silent() {
    let fixture = Fixture::new().await;
    let mut session = fixture.overtaken_unseen(1).await;
    for correlation in 0..63 {
        commit(&mut session, correlation, 0, 2);
    }
    assert!(session.takes_messages());
    session.credit(PLENTY);
    quiet(&mut session).await;
    assert!(!session.takes_messages());
    let longer_than_a_session = Duration::from_secs(100);
    let _ = tokio::time::timeout(longer_than_a_session, session.hear()).await;
    fixture.answer_again().await;
    let _ = tokio::time::timeout(Duration::from_secs(30), session.hear()).await;
    let described = fixture.broker.describe_group(&group("g")).await.unwrap();
    assert_eq!(described.group.members.len(), 1);
}
