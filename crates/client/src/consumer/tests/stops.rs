//! Partitions that are given back.

use super::*;

/// Whether member a of group g has yet to confirm a stop.
fn is_asked_to_stop(fake: &Fake) -> bool {
    let mut world = fake.world.lock();
    world.group("g").members.get("a").is_some_and(|member| !member.stopping.is_empty())
}

#[tokio::test]
async fn a_stop_by_hand_waits_for_what_is_in_hand() {
    let fake = filled(1, 2, 50).await;
    let mut first = builder(&fake, "a").build().unwrap();
    let mut held: BTreeMap<u32, Vec<ConsumerRecord>> = BTreeMap::new();
    while held.len() < 2 || held.values().any(|records| records.len() < 3) {
        let record = record(&mut first).await;
        held.entry(record.partition.0).or_default().push(record);
    }
    let mut second = builder(&fake, "b").build().unwrap();
    let moved = async { within(second.next()).await.unwrap() };
    let mut moved = std::pin::pin!(moved);
    // One of the two partitions is to go; nothing of it is handed out any more, and it does not go yet.
    let asked = async {
        until("a is asked to stop", || is_asked_to_stop(&fake)).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
    };
    let mut asked = std::pin::pin!(asked);
    loop {
        tokio::select! {
            () = &mut asked => break,
            moved = &mut moved => panic!("{moved:?} was given away"),
            record = first.next() => {
                let record = record.unwrap();
                held.entry(record.partition.0).or_default().push(record);
            }
        }
    }
    let gone = fake.world.lock().group("g").members["a"].stopping.first().unwrap().1;
    assert!(!has_stopped(&fake, gone));
    // A record is still held; committing the last one settles all of them.
    let of_gone = held.remove(&gone).unwrap();
    append(&fake, gone as usize, 50, 1);
    drop(first.commit(of_gone.last().unwrap()));
    let got = within(moved).await;
    assert_eq!((got.partition.0, got.offset.get()), (gone, of_gone.last().unwrap().offset.get() + 1));
    assert!(within(first.commit(&of_gone[0])).await.unwrap_err().is(reason::PARTITION_NOT_OWNED));
}

#[tokio::test]
async fn a_stop_also_goes_through_when_what_is_in_hand_is_dropped() {
    let fake = filled(1, 2, 5).await;
    let mut first = builder(&fake, "a").build().unwrap();
    let mut held = Vec::new();
    for _ in 0..10 {
        held.push(record(&mut first).await);
    }
    let mut second = builder(&fake, "b").build().unwrap();
    let asking = tokio::spawn(async move { first.next().await.map(|record| record.offset) });
    let moved = tokio::spawn(async move { second.next().await.unwrap().offset.get() });
    until("a is asked to stop", || is_asked_to_stop(&fake)).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!has_stopped(&fake, 0) && !has_stopped(&fake, 1));
    drop(held);
    // Nothing was committed, so the other one begins at the beginning.
    assert_eq!(within(moved).await.unwrap(), 0);
    asking.abort();
}

#[tokio::test]
async fn a_stop_waits_for_the_answers_to_its_commits() {
    let fake = filled(1, 2, 20).await;
    let mut first = builder(&fake, "a").build().unwrap();
    for _ in 0..40 {
        let record = record(&mut first).await;
        drop(first.commit(&record));
    }
    until("everything is committed", || (0..2).all(|partition| committed(&fake, partition) == Some(20)))
        .await;
    fake.world.lock().session_faults.refuse_commit = 1;
    let back = (0..2).map(|partition| OffsetCommit {
        at: at(partition),
        offset: Some(offset(7)),
        metadata: String::new(),
    });
    drop(first.commit_offsets(&back.collect::<Vec<_>>()));
    let mut second = builder(&fake, "b").build().unwrap();
    let asking = tokio::spawn(async move { first.next().await.map(|record| record.offset) });
    let moved = tokio::spawn(async move { second.next().await.unwrap().offset.get() });
    until("a is asked to stop", || is_asked_to_stop(&fake)).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!has_stopped(&fake, 0) && !has_stopped(&fake, 1));
    fake.world.lock().session_faults.refuse_commit = 0;
    assert_eq!(within(moved).await.unwrap(), 7);
    asking.abort();
}

#[tokio::test]
async fn a_told_stop_waits_for_the_application_to_let_go() {
    let fake = filled(2, 2, 20).await;
    let mut first = builder(&fake, "a").build().unwrap();
    let Event::Assigned(assigned) = event(&mut first).await else { panic!("nothing assigned") };
    assert_eq!(assigned.len(), 2);
    assert_eq!(
        (assigned[0].start, assigned[0].committed, assigned[0].end),
        (Some(offset(0)), None, offset(20))
    );
    let mut caught_up = BTreeSet::new();
    while caught_up.len() < 2 {
        let Event::CaughtUp(at) = event(&mut first).await else { panic!("something else") };
        caught_up.insert(at);
    }
    let mut second = builder(&fake, "b").build().unwrap();
    let asking = tokio::spawn(async move { (second.next().await.unwrap().offset.get(), second) });
    let Event::Stopping(stopping) = event(&mut first).await else { panic!("no stop") };
    let gone = stopping.partitions()[0].clone();
    within(first.commit_all()).await.unwrap();
    assert_eq!(committed(&fake, gone.partition.0), Some(20));
    assert!(!has_stopped(&fake, gone.partition.0), "the application has not let go");
    assert_eq!(first.positions().len(), 1);
    stopping.confirm();
    until("the stop is confirmed", || has_stopped(&fake, gone.partition.0)).await;
    append(&fake, gone.partition.0 as usize, 20, 1);
    assert_eq!(within(asking).await.unwrap().0, 20, "it goes on behind the commit");
}

#[tokio::test]
async fn a_stop_is_answered_on_the_stream_that_it_came_on() {
    let fake = filled(16, 2, 20).await;
    let mut first = builder(&fake, "a").build().unwrap();
    let Event::Assigned(_) = event(&mut first).await else { panic!("nothing assigned") };
    let mut second = builder(&fake, "b").build().unwrap();
    let asking = tokio::spawn(async move { (second.next().await.unwrap().offset.get(), second) });
    let stopping = loop {
        if let Event::Stopping(stopping) = event(&mut first).await {
            break stopping;
        }
    };
    let gone = stopping.partitions()[0].partition.0;
    fake.world.lock().session_faults.hold_stops = true;
    while_joining(&fake, async || stopping.confirm()).await;
    // The second is sent after all that the new stream had to say when the first was answered.
    for to in 1..=2 {
        let kept = OffsetCommit { at: at(1 - gone), offset: Some(offset(to)), metadata: String::new() };
        within(first.commit_offsets(&[kept])).await.unwrap();
    }
    assert!(!has_stopped(&fake, gone), "the new stream has not asked for it");
    fake.world.lock().session_faults.hold_stops = false;
    until("the stop is confirmed", || has_stopped(&fake, gone)).await;
    assert_eq!(within(asking).await.unwrap().0, 0, "nothing of it was committed");
    let answers = said(&fake).into_iter().filter(|said| matches!(said, Said::Stopped { .. })).count();
    assert_eq!(answers, 1);
}
