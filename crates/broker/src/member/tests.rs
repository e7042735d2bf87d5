mod forget;
mod latest;
mod reading;

use std::collections::BTreeMap;

use rimstone_store::AppendError;
use rimstone_types::{PartitionId, TopicId};
use tokio::time::{advance, sleep};

use super::*;
use crate::{coordinator::shard_of, error::Failure, testing::*, *};

const PLENTY: Credit = Credit { bytes: u64::MAX, records: u64::MAX };

fn group(name: &str) -> GroupName {
    name.parse().expect("a valid name")
}

fn member(name: &str) -> MemberId {
    name.parse().expect("a valid name")
}

fn at(offset: u64) -> Offset {
    Offset::new(offset).expect("in bounds")
}

fn place(topic: &str, partition: u32) -> (TopicName, PartitionIndex) {
    (name(topic), PartitionIndex(partition))
}

/// The partition that the group `g` is kept in.
fn shard() -> PartitionId {
    PartitionId { topic: TopicId::CONSUMER_OFFSETS, partition: PartitionIndex(shard_of(&group("g"))) }
}

/// A member of the group `g` that reads the topic `t` from its start.
fn joining(id: &str) -> JoinRequest {
    JoinRequest {
        group: group("g"),
        member: Some(member(id)),
        instance: None,
        client_id: format!("client of {id}"),
        host: "127.0.0.1".to_owned(),
        topics: [name("t")].into(),
        topic_prefix: None,
        assignor: None,
        start: StartPolicy::Earliest,
        visibility: Visibility::Stable,
        format: ReadFormat::Records,
        session_timeout: None,
        max_poll_interval: None,
        credit: PLENTY,
        epoch: GroupEpoch::ZERO,
        positions: Vec::new(),
        message_bytes: None,
    }
}

impl Fixture {
    async fn join(&self, request: JoinRequest) -> MemberSession {
        soon("the answer to a join", self.broker.join_group(request)).await.expect("it joins")
    }

    /// After a start: the coordinator may be loading.
    async fn join_again(&self, request: JoinRequest) -> Result<MemberSession, GroupRequestError> {
        loop {
            match soon("the answer to a join", self.broker.join_group(request.clone())).await {
                Err(error) if error.reason() == Reason::CoordinatorLoading => tokio::task::yield_now().await,
                answer => return answer,
            }
        }
    }
}

async fn event(session: &mut MemberSession) -> SessionEvent {
    soon("the next event", session.next()).await.expect("the session goes on")
}

async fn ended(session: &mut MemberSession) -> SessionError {
    soon("the end", async {
        loop {
            if let Err(error) = session.next().await {
                return error;
            }
        }
    })
    .await
}

/// Nothing comes, however often it is looked.
async fn quiet(session: &mut MemberSession) {
    for _ in 0..300 {
        let mut next = Box::pin(session.next());
        if let std::task::Poll::Ready(event) = futures::poll!(&mut next) {
            panic!("nothing was to come: {event:?}");
        }
        drop(next);
        tokio::task::yield_now().await;
    }
}

/// The offsets that a start begins at, by partition.
#[track_caller]
fn started(event: SessionEvent) -> BTreeMap<u32, Option<u64>> {
    let SessionEvent::Start { partitions, .. } = event else { panic!("not a start: {event:?}") };
    let begin = |started: StartedPartition| (started.partition.0, started.offset.map(Offset::get));
    partitions.into_iter().map(begin).collect()
}

#[track_caller]
fn stopped(event: SessionEvent) -> Vec<u32> {
    let SessionEvent::Stop { partitions, .. } = event else { panic!("not a stop: {event:?}") };
    partitions.into_iter().map(|(_, partition)| partition.0).collect()
}

#[track_caller]
fn records(event: SessionEvent) -> SessionRecords {
    let SessionEvent::Records(records) = event else { panic!("not records: {event:?}") };
    records
}

#[track_caller]
fn values(records: &SessionRecords) -> Vec<String> {
    let ChunkContent::Records(records) = &records.content else { panic!("records were asked for") };
    let text = |stored: &StoredRecord| {
        String::from_utf8(stored.record.value.clone().unwrap_or_default().to_vec()).expect("tests write text")
    };
    records.iter().map(text).collect()
}

#[track_caller]
fn problem(event: SessionEvent) -> (u32, SessionProblem) {
    let SessionEvent::Problem { partition, error, .. } = event else { panic!("not a problem: {event:?}") };
    (partition.0, error)
}

fn commit(session: &mut MemberSession, correlation: u64, partition: u32, offset: u64) {
    let (topic, partition) = place("t", partition);
    let offset = OffsetToCommit { topic, partition, offset: Some(at(offset)), metadata: String::new() };
    session.commit(correlation, vec![offset], None).expect("it is small");
}

/// The answer to a commit of one offset.
#[track_caller]
fn committed(event: SessionEvent) -> (u64, Result<Committed, Reason>) {
    let SessionEvent::Committed { correlation, mut results } = event else {
        panic!("not an answer: {event:?}")
    };
    (correlation, results.remove(0).result.map_err(|error| error.reason()))
}

#[tokio::test]
async fn a_partition_moves_when_its_owner_has_confirmed() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 2).await;
    fixture.put("t", 0, &["a", "b"]).await;
    fixture.put("t", 1, &["x", "y"]).await;
    let mut first = fixture.join(joining("m1")).await;
    assert_eq!(started(event(&mut first).await).len(), 2);
    assert_eq!(values(&records(event(&mut first).await)), ["a", "b"]);
    let mut second = fixture.join(joining("m2")).await;
    quiet(&mut second).await;
    let moving = stopped(event(&mut first).await);
    assert_eq!(moving.len(), 1, "no more than must be");
    let moving = moving[0];
    quiet(&mut second).await;

    let described = fixture.broker.describe_group(&group("g")).await.unwrap();
    assert_eq!(described.group.summary.state, GroupState::Reconciling);
    assert_eq!(described.connected, [member("m1"), member("m2")].into());
    assert_eq!(described.group.members[0].value.client_id, "client of m1");

    // It commits before it lets go, and is not sent more of what it is to give back.
    commit(&mut first, 1, moving, 1);
    first.stopped(vec![place("t", moving)]);
    assert_eq!(committed(event(&mut first).await).1, Ok(Committed::default()));
    assert_eq!(started(event(&mut second).await), [(moving, Some(1))].into());
    assert_eq!(records(event(&mut second).await).partition.0, moving);
    commit(&mut first, 2, moving, 2);
    let mut next = event(&mut first).await;
    if matches!(next, SessionEvent::Records(_)) {
        next = event(&mut first).await;
    }
    assert_eq!(committed(next), (2, Err(Reason::PartitionNotOwned)));
    commit(&mut second, 3, moving, 2);
    assert_eq!(committed(event(&mut second).await).1, Ok(Committed::default()));

    second.leave(false).await.1.unwrap();
    assert_eq!(started(event(&mut first).await), [(moving, Some(2))].into());
    let text = fixture.broker.metrics_text();
    assert!(text.contains("rimstone_group_members{group=\"g\"} 1"), "{text}");
    assert!(text.contains("rimstone_group_sessions 1\n"), "{text}");
    assert!(text.contains("rimstone_group_rebalances_total 3\n"), "{text}");
}

#[tokio::test]
async fn what_is_kept_is_read_on_when_another_partition_is_given_back() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 2).await;
    fixture.put("t", 0, &["a"]).await;
    let mut one = fixture.join(joining("one")).await;
    started(event(&mut one).await);
    // It is the turn of partition 1 now, which is given away.
    assert_eq!(values(&records(event(&mut one).await)), ["a"]);
    let mut two = fixture.join(joining("two")).await;
    assert_eq!(stopped(event(&mut one).await), [1]);
    one.stopped(vec![place("t", 1)]);
    let told = soon("the other's start", async {
        tokio::select! {
            told = event(&mut two) => told,
            told = event(&mut one) => panic!("nothing was to come: {told:?}"),
        }
    });
    assert_eq!(started(told.await), [(1, Some(0))].into());
    fixture.put("t", 0, &["b"]).await;
    assert_eq!(values(&records(event(&mut one).await)), ["b"]);
}

#[tokio::test]
async fn no_push_goes_out_before_it_is_durable() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 2).await;
    let mut first = fixture.join(joining("m1")).await;
    assert_eq!(started(event(&mut first).await).len(), 2);
    fixture.store.script(shard(), |script| script.hold = true);
    let mut joins = Box::pin(fixture.broker.join_group(joining("m2")));
    assert!(futures::poll!(&mut joins).is_pending());
    until("the join is submitted", || fixture.store.held(shard()) == 1).await;
    quiet(&mut first).await;
    assert!(futures::poll!(&mut joins).is_pending());
    // Lost: nobody has heard of it.
    fixture.store.release(shard(), Some(undone())).await;
    assert_eq!(soon("the join", joins).await.unwrap_err().reason(), Reason::AppendUndone);
    quiet(&mut first).await;
    fixture.store.script(shard(), |script| script.hold = false);

    let mut second = fixture.join_again(joining("m2")).await.unwrap();
    let moving = stopped(event(&mut first).await)[0];
    fixture.store.script(shard(), |script| script.hold = true);
    first.stopped(vec![place("t", moving)]);
    until("the stop is submitted", || fixture.store.held(shard()) == 1).await;
    quiet(&mut second).await;
    fixture.store.release(shard(), None).await;
    assert_eq!(started(event(&mut second).await), [(moving, Some(0))].into());
}

#[tokio::test]
async fn a_stop_that_was_lost_is_told_again() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 2).await;
    let mut first = fixture.join(joining("m1")).await;
    assert_eq!(started(event(&mut first).await).len(), 2);
    let mut second = fixture.join(joining("m2")).await;
    let moving = stopped(event(&mut first).await)[0];
    for error in [undone(), AppendError::Unknown { reason: "scripted".to_owned() }] {
        fixture.store.script(shard(), |script| script.hold = true);
        first.stopped(vec![place("t", moving)]);
        let submitted = soon("the stop is submitted", async {
            while fixture.store.held(shard()) == 0 {
                let mut next = Box::pin(first.next());
                assert!(futures::poll!(&mut next).is_pending());
                drop(next);
                tokio::task::yield_now().await;
            }
        });
        submitted.await;
        fixture.store.script(shard(), |script| script.hold = false);
        fixture.store.release(shard(), Some(error)).await;
    }
    // The session tries again by itself.
    let event = tokio::select! {
        told = event(&mut second) => told,
        told = event(&mut first) => panic!("{told:?}"),
    };
    assert_eq!(started(event), [(moving, Some(0))].into());
}

#[tokio::test]
async fn a_session_that_was_to_be_replaced_ends_when_that_is_lost() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 1).await;
    let mut old = fixture.join(joining("m")).await;
    started(event(&mut old).await);
    fixture.store.script(shard(), |script| script.hold = true);
    let mut joins = Box::pin(fixture.broker.join_group(joining("m")));
    assert!(futures::poll!(&mut joins).is_pending());
    until("the join is submitted", || fixture.store.held(shard()) == 1).await;
    fixture.store.release(shard(), Some(undone())).await;
    assert_eq!(soon("the join", joins).await.unwrap_err().reason(), Reason::AppendUndone);
    fixture.store.script(shard(), |script| script.hold = false);
    // Nobody has taken its place: it may come back at once, and what it says meanwhile is not a zombie's.
    fixture.put("t", 0, &["a"]).await;
    let error = soon("its end", old.next()).await.unwrap_err();
    assert_eq!(error.reason(), Reason::CoordinatorLoading);
    while let Err(error) = fixture.broker.describe_group(&group("g")).await {
        assert_eq!(error.reason(), Reason::CoordinatorLoading);
        tokio::task::yield_now().await;
    }
    commit(&mut old, 1, 0, 0);
    let answer = soon("its answer", old.outbox.next()).await;
    let outbox::Answered::Commit { result, .. } = answer else { panic!("not an answer to a commit") };
    assert_eq!(result.unwrap_err().reason(), Reason::CoordinatorLoading);
    let (epoch, positions) = (old.facts().epoch, vec![(name("t"), PartitionIndex(0), at(0))]);
    let mut again = fixture.join_again(JoinRequest { epoch, positions, ..joining("m") }).await.unwrap();
    assert!(again.facts().resumed);
    assert_eq!(values(&records(event(&mut again).await)), ["a"]);
}

#[tokio::test]
async fn what_is_taken_back_and_asked_for_again_unseen_is_another_stop() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 2).await;
    let mut first = fixture.join(joining("m1")).await;
    assert_eq!(started(event(&mut first).await).len(), 2);
    let mut second = fixture.join(joining("m2")).await;
    assert_eq!(stopped(event(&mut first).await), [1]);
    first.stopped(vec![place("t", 1)]);
    assert_eq!(started(event(&mut second).await), [(1, Some(0))].into());
    // All of this the first member's session sees as one.
    second.leave(false).await.1.unwrap();
    let mut third = fixture.join(joining("m3")).await;
    let described = fixture.broker.describe_group(&group("g")).await.unwrap();
    assert!(described.group.members[0].assignment.stopping.contains(&name("t"), PartitionIndex(1)));
    assert_eq!(stopped(event(&mut first).await), [1]);
    first.stopped(vec![place("t", 1)]);
    assert_eq!(started(event(&mut third).await), [(1, Some(0))].into());
}

#[tokio::test]
async fn a_stop_that_an_earlier_stream_did_not_answer_is_asked_again() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 2).await;
    fixture.put("t", 0, &["a", "b"]).await;
    fixture.put("t", 1, &["x", "y"]).await;
    let mut first = fixture.join(joining("m1")).await;
    assert_eq!(started(event(&mut first).await).len(), 2);
    let epoch = first.facts().epoch;
    let mut second = fixture.join(joining("m2")).await;
    let described = fixture.broker.describe_group(&group("g")).await.unwrap();
    let moving = described.group.members[0].assignment.stopping.iter().next().unwrap().2.0;
    drop(first);
    // One time it still reads it, one time it does not.
    for reads in [true, false] {
        let all = [0, 1].map(|partition| (name("t"), PartitionIndex(partition), at(1)));
        let positions = all.into_iter().filter(|at| reads || at.1.0 != moving).collect();
        let epoch = if reads { epoch } else { described.group.members[0].epoch };
        let mut again = fixture.join(JoinRequest { epoch, positions, ..joining("m1") }).await;
        assert!(again.facts().resumed);
        assert_eq!(stopped(event(&mut again).await), [moving]);
        let read = records(event(&mut again).await);
        assert_eq!((read.partition.0, read.next), (1 - moving, at(2)));
        quiet(&mut again).await;
        quiet(&mut second).await;
        if !reads {
            again.stopped(vec![place("t", moving)]);
            assert_eq!(started(event(&mut second).await), [(moving, Some(0))].into());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_member_loses_its_partitions_and_a_beating_one_does_not() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 2).await;
    let mut silent = fixture.join(joining("m1")).await;
    let mut alive = fixture.join(joining("m2")).await;
    assert_eq!(started(event(&mut silent).await).len(), 2);
    let moving = stopped(event(&mut silent).await)[0];
    for _ in 0..8 {
        quiet(&mut alive).await;
        advance(Duration::from_secs(5)).await;
        alive.heartbeat(false);
        assert!(matches!(event(&mut alive).await, SessionEvent::Alive { .. }));
    }
    quiet(&mut alive).await;
    sleep(Duration::from_secs(6)).await;
    alive.heartbeat(false);
    let mut owned = BTreeMap::new();
    while owned.len() < 2 {
        match event(&mut alive).await {
            SessionEvent::Alive { .. } => {}
            other => owned.extend(started(other)),
        }
    }
    let fenced = ended(&mut silent).await;
    assert_eq!(fenced.reason(), Reason::MemberFenced);
    assert!(fenced.details().contains(&("why", "session_timeout".to_owned())), "{:?}", fenced.details());
    // What it says now does not count.
    commit(&mut silent, 1, moving, 0);
    let mut outbox_answer = soon("its answer", silent.outbox.next()).await;
    if let outbox::Answered::Commit { result, .. } = &mut outbox_answer {
        assert_eq!(result.as_ref().unwrap_err().reason(), Reason::MemberFenced);
    } else {
        panic!("not an answer to a commit");
    }
    let text = fixture.broker.metrics_text();
    assert!(text.contains("rimstone_group_fenced_total{reason=\"session_timeout\"} 1"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn members_that_die_together_are_removed_together() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 4).await;
    let mut alive = fixture.join(joining("m")).await;
    started(event(&mut alive).await);
    for number in 0..300 {
        let dies = fixture.join(joining(&format!("dies-{number}"))).await;
        drop(dies);
        // They were last heard of at different moments.
        advance(Duration::from_micros(150)).await;
    }
    let described = async || fixture.broker.describe_group(&group("g")).await.unwrap().group;
    let before = described().await.summary;
    let end = || fixture.ends_of(shard()).durable.get();
    assert_eq!(before.members, 301);
    let (epoch, records) = (before.epoch.0, end());
    for _ in 0..10 {
        advance(Duration::from_secs(4)).await;
        alive.heartbeat(true);
    }
    sleep(Duration::from_secs(6)).await;
    let after = described().await.summary;
    assert_eq!(after.members, 1);
    let (epochs, records) = (after.epoch.0 - epoch, end() - records);
    assert!(epochs <= 2, "{epochs} epochs");
    assert!(records <= 300 * 3 + 10, "{records} records");
    let text = fixture.broker.metrics_text();
    assert!(text.contains("rimstone_group_fenced_total{reason=\"session_timeout\"} 300"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn a_member_that_does_not_get_on_loses_its_partitions() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 1).await;
    fixture.put("t", 0, &["a", "b"]).await;
    let poll = Some(Duration::from_secs(60));
    let mut session = fixture.join(JoinRequest { max_poll_interval: poll, ..joining("m") }).await;
    started(event(&mut session).await);
    assert_eq!(values(&records(event(&mut session).await)), ["a", "b"]);
    // Progress of several kinds, each within the interval.
    for step in 0..4 {
        for _ in 0..10 {
            advance(Duration::from_secs(5)).await;
            session.heartbeat(false);
            assert!(matches!(event(&mut session).await, SessionEvent::Alive { .. }));
        }
        match step {
            0 => session.heartbeat(true),
            1 => session.credit(Credit { bytes: 1, records: 1 }),
            2 => commit(&mut session, 1, 0, 1),
            _ => session.seek(name("t"), PartitionIndex(0), SeekTo::Offset(at(1)), 1),
        }
        if step != 1 {
            event(&mut session).await;
        }
    }
    let before = fixture.broker.describe_group(&group("g")).await.unwrap();
    assert_eq!(before.group.members.len(), 1);
    let fenced = tokio::time::timeout(Duration::from_secs(600), async {
        loop {
            session.heartbeat(false);
            while let Ok(told) = tokio::time::timeout(Duration::from_secs(5), session.next()).await {
                if let Err(error) = told {
                    return error;
                }
            }
        }
    });
    let fenced = fenced.await.expect("it ends");
    assert!(fenced.details().contains(&("why", "poll_timeout".to_owned())), "{:?}", fenced.details());
    let after = fixture.broker.describe_group(&group("g")).await.unwrap();
    assert_eq!(after.group.members.len(), 0);
}

#[tokio::test(start_paused = true)]
async fn only_what_the_server_has_not_answered_excuses_silence() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 1).await;
    let mut session = fixture.join(joining("m")).await;
    started(event(&mut session).await);
    fixture.store.script(shard(), |script| script.hold = true);
    for correlation in 0..64 {
        commit(&mut session, correlation, 0, 0);
    }
    assert!(!session.takes_messages());
    let longer_than_a_session = Duration::from_secs(100);
    let _ = tokio::time::timeout(longer_than_a_session, session.hear()).await;
    fixture.store.script(shard(), |script| script.hold = false);
    while fixture.store.held(shard()) > 0 {
        fixture.store.release(shard(), None).await;
    }
    let members = async || fixture.broker.describe_group(&group("g")).await.unwrap().group.members.len();
    let _ = tokio::time::timeout(Duration::from_secs(30), session.hear()).await;
    assert_eq!(members().await, 1);
    // The answers are there, and it does not take them.
    let _ = tokio::time::timeout(Duration::from_secs(30), session.hear()).await;
    assert_eq!(members().await, 0);
    assert!(!session.takes_messages());
}

#[tokio::test(start_paused = true)]
async fn who_has_worked_off_what_it_was_sent_may_be_idle() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 1).await;
    fixture.put("t", 0, &["a", "b"]).await;
    let poll = Some(Duration::from_secs(60));
    let mut session = fixture.join(JoinRequest { max_poll_interval: poll, ..joining("m") }).await;
    started(event(&mut session).await);
    assert_eq!(values(&records(event(&mut session).await)), ["a", "b"]);
    commit(&mut session, 1, 0, 2);
    committed(event(&mut session).await).1.unwrap();
    for _ in 0..100 {
        advance(Duration::from_secs(5)).await;
        session.heartbeat(false);
        assert!(matches!(event(&mut session).await, SessionEvent::Alive { .. }));
    }
}

#[tokio::test]
async fn the_older_session_of_a_member_is_a_zombie() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 1).await;
    fixture.put("t", 0, &["a", "b"]).await;
    let mut old = fixture.join(joining("m")).await;
    started(event(&mut old).await);
    let mut new = fixture.join(joining("m")).await;
    assert!(!new.facts().resumed);
    assert_eq!(started(event(&mut new).await), [(0, Some(0))].into());
    commit(&mut old, 1, 0, 2);
    let answer = soon("its answer", old.outbox.next()).await;
    let outbox::Answered::Commit { result, .. } = answer else { panic!("not an answer to a commit") };
    let error = result.unwrap_err();
    assert_eq!(error.reason(), Reason::MemberFenced);
    assert!(error.details().contains(&("why", "replaced".to_owned())), "{:?}", error.details());
    assert_eq!(ended(&mut old).await.reason(), Reason::MemberFenced);
    old.leave(true).await.1.unwrap_err();
    let described = fixture.broker.describe_group(&group("g")).await.unwrap();
    assert_eq!(described.group.members.len(), 1, "a zombie cannot leave for another");
    let none = fixture.broker.fetch_offsets(&group("g"), Vec::new()).await.unwrap();
    assert!(none.is_empty());
    // With an epoch it goes on, on another stream, and only there.
    let epoch = new.facts().epoch;
    let positions = vec![(name("t"), PartitionIndex(0), at(1))];
    let mut newest = fixture.join(JoinRequest { epoch, positions, ..joining("m") }).await;
    assert!(newest.facts().resumed);
    let fenced = "rimstone_group_fenced_total{reason=\"replaced\"} 2";
    assert!(fixture.broker.metrics_text().contains(fenced));
    assert_eq!(values(&records(event(&mut newest).await)), ["b"], "from where it says, without a start");
    assert_eq!(ended(&mut new).await.reason(), Reason::MemberFenced);
    // Its stream breaks: coming back fences nobody.
    let epoch = newest.facts().epoch;
    drop(newest);
    let positions = vec![(name("t"), PartitionIndex(0), at(1))];
    assert!(fixture.join(JoinRequest { epoch, positions, ..joining("m") }).await.facts().resumed);
    assert!(fixture.broker.metrics_text().contains(fenced));
}

#[tokio::test(start_paused = true)]
async fn members_go_on_after_a_restart_and_have_a_whole_session_for_it() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 2).await;
    fixture.put("t", 0, &["a", "b"]).await;
    fixture.put("t", 1, &["x", "y"]).await;
    let mut one = fixture.join(joining("m1")).await;
    assert_eq!(started(event(&mut one).await).len(), 2);
    let two = fixture.join(joining("m2")).await;
    let moving = stopped(event(&mut one).await)[0];
    one.stopped(vec![place("t", moving)]);
    until("it has moved", || {
        let commits = fixture.broker.inner.commits.group(&group("g"));
        let owner = commits
            .as_ref()
            .and_then(|commits| commits.topics[&name("t")][&PartitionIndex(moving)].owner.as_ref());
        owner.is_some_and(|owner| owner.member == member("m2"))
    })
    .await;
    let stays = 1 - moving;
    let epoch = fixture.broker.describe_group(&group("g")).await.unwrap().group.members[0].epoch;
    fixture.broker.begin_shutdown();
    assert_eq!(ended(&mut one).await.reason(), Reason::ShuttingDown);
    drop((one, two));
    let fixture = fixture.restart().await;

    sleep(Duration::from_secs(40)).await;
    let positions = vec![(name("t"), PartitionIndex(stays), at(1))];
    let back = JoinRequest { epoch, positions, ..joining("m1") };
    let mut one = fixture.join_again(back).await.unwrap();
    assert!(one.facts().resumed);
    assert_eq!(records(event(&mut one).await).next, at(2));
    quiet(&mut one).await;
    let described = fixture.broker.describe_group(&group("g")).await.unwrap();
    assert_eq!(described.group.members.len(), 2);
    assert_eq!(described.connected, [member("m1")].into());
    // The other does not come back.
    sleep(Duration::from_secs(6)).await;
    assert_eq!(started(event(&mut one).await), [(moving, Some(0))].into());
}

#[tokio::test]
async fn a_static_member_comes_back_without_a_rebalance() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 2).await;
    let instance: Option<InstanceId> = Some("i1".parse().unwrap());
    let mut one = fixture.join(JoinRequest { instance: instance.clone(), ..joining("m1") }).await;
    assert_eq!(started(event(&mut one).await).len(), 2);
    let mut two = fixture.join(joining("m2")).await;
    let moving = stopped(event(&mut one).await)[0];
    one.stopped(vec![place("t", moving)]);
    assert_eq!(started(event(&mut two).await).len(), 1);
    // It leaves for a while: nothing moves.
    one.leave(false).await.1.unwrap();
    quiet(&mut two).await;
    let before = fixture.broker.describe_group(&group("g")).await.unwrap().group.summary.epoch;
    let mut again = fixture.join(JoinRequest { instance, ..joining("m3") }).await;
    assert_eq!(started(event(&mut again).await), [(1 - moving, Some(0))].into());
    quiet(&mut two).await;
    let after = fixture.broker.describe_group(&group("g")).await.unwrap();
    assert_eq!((after.group.summary.epoch, after.group.members.len()), (before, 2));
    again.leave(true).await.1.unwrap();
    assert_eq!(started(event(&mut two).await), [(1 - moving, Some(0))].into());
}

#[tokio::test]
async fn sessions_follow_the_topics() {
    let fixture = Fixture::new().await;
    let mut session = fixture.join(joining("m")).await;
    quiet(&mut session).await;
    fixture.topic("t", 1).await;
    assert_eq!(started(event(&mut session).await), [(0, Some(0))].into());
    fixture.broker.alter_topic(&name("t"), BTreeMap::new(), Vec::new(), Some(3)).await.unwrap();
    assert_eq!(started(event(&mut session).await), [(1, Some(0)), (2, Some(0))].into());
    fixture.put("t", 2, &["a"]).await;
    assert_eq!(values(&records(event(&mut session).await)), ["a"]);

    fixture.broker.delete_topic(&name("t")).await.unwrap();
    let gone = stopped(event(&mut session).await);
    assert_eq!(gone, [0, 1, 2]);
    fixture.topic("t", 2).await;
    quiet(&mut session).await;
    session.stopped(gone.iter().map(|partition| place("t", *partition)).collect());
    assert_eq!(started(event(&mut session).await), [(0, Some(0)), (1, Some(0))].into());
    fixture.put("t", 1, &["new"]).await;
    assert_eq!(values(&records(event(&mut session).await)), ["new"]);
}

#[tokio::test]
async fn leaving_answers_what_is_open_and_frees_at_once() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 1).await;
    fixture.put("t", 0, &["a", "b"]).await;
    let mut one = fixture.join(joining("m1")).await;
    started(event(&mut one).await);
    let mut two = fixture.join(joining("m2")).await;
    commit(&mut one, 4, 0, 1);
    let (answers, left) = one.leave(false).await;
    left.unwrap();
    let answers: Vec<_> = answers.into_iter().map(committed).collect();
    assert_eq!(answers, [(4, Ok(Committed::default()))]);
    assert_eq!(started(event(&mut two).await), [(0, Some(1))].into());
}

#[tokio::test]
async fn joins_are_bounded_and_checked() {
    let limits = Limits { group_sessions: 1, ..Limits::default() };
    let fixture = Fixture::with(BrokerConfig { limits, ..still() }).await;
    fixture.topic("t", 1).await;
    let reason = async |request: JoinRequest| {
        soon("the answer", fixture.broker.join_group(request)).await.unwrap_err().reason()
    };
    let nothing = JoinRequest { topics: Default::default(), ..joining("m") };
    assert_eq!(reason(nothing).await, Reason::InvalidRequest);
    let short = JoinRequest { session_timeout: Some(Duration::from_millis(999)), ..joining("m") };
    assert_eq!(reason(short).await, Reason::InvalidRequest);
    let odd = JoinRequest { positions: vec![(name("t"), PartitionIndex(0), at(0))], ..joining("m") };
    assert_eq!(reason(odd).await, Reason::InvalidRequest);
    let stranger = JoinRequest { epoch: GroupEpoch(3), ..joining("m") };
    assert_eq!(reason(stranger).await, Reason::MemberFenced);
    let session = fixture.join(JoinRequest { member: None, ..joining("m") }).await;
    assert_eq!(session.facts().member.as_str().len(), 36, "a UUID");
    assert_eq!(reason(joining("m2")).await, Reason::LimitReached);
    session.leave(false).await.1.unwrap();
    let mut session = fixture.join(joining("m2")).await;
    // While many commits wait, no more messages are to be taken.
    started(event(&mut session).await);
    fixture.store.script(shard(), |script| script.hold = true);
    let mut taken = 0;
    while session.takes_messages() {
        commit(&mut session, taken, 0, 0);
        taken += 1;
        assert!(taken < 1_000);
    }
    assert_eq!(taken, 64);
    let many = (0..10_001).map(|_| OffsetToCommit {
        topic: name("t"),
        partition: PartitionIndex(0),
        offset: None,
        metadata: String::new(),
    });
    assert_eq!(session.commit(1, many.collect(), None).unwrap_err().reason(), Reason::LimitReached);
}
