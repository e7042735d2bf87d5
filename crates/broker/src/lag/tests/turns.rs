//! Many who count at once, and counts that hang.

use super::*;

#[tokio::test(start_paused = true)]
async fn many_who_ask_at_once_are_answered_by_one_count() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 1).await;
    fixture.put("t", 0, &["a", "b"]).await;
    commit_to(&fixture.broker.inner, "g", "t", 0, Some(1));
    lag_of(&fixture.broker, &[]).await;
    let before = look_ups(&fixture, 1)[0];
    fixture.put("t", 0, &["c"]).await;
    let permits = Arc::new(tokio::sync::Semaphore::new(0));
    let partition = fixture.partition("t", 0);
    fixture.store.script(partition, |script| script.counts = Some(Arc::clone(&permits)));
    let ask = || {
        let broker = fixture.broker.clone();
        tokio::spawn(async move { lines(&lag_of(&broker, &["g"]).await) })
    };
    let asked: Vec<_> = (0..50).map(|_| ask()).collect();
    until("the first to count", || look_ups(&fixture, 1)[0] > before).await;
    permits.add_permits(1_000);
    for answer in asked {
        assert_eq!(answer.await.expect("it ends")[0].3, 2);
    }
    assert_eq!(look_ups(&fixture, 1)[0], before + 2, "a count and an append time for all of them");
}

#[tokio::test(start_paused = true)]
async fn a_partition_that_cannot_be_counted_in_time_says_so_and_holds_up_no_other() {
    let fixture = Fixture::new().await;
    let inner = &fixture.broker.inner;
    fixture.topic("t", 2).await;
    for partition in [0, 1] {
        fixture.put("t", partition, &["a", "b"]).await;
        commit_to(inner, "g", "t", partition, Some(1));
    }
    let slow = fixture.partition("t", 0);
    let permits = Arc::new(tokio::sync::Semaphore::new(0));
    fixture.store.script(slow, |script| script.counts = Some(Arc::clone(&permits)));
    let report = lag_of(&fixture.broker, &["g"]).await;
    let late = report.partitions[0].measured.as_ref().expect_err("it waits for the disk");
    assert_eq!(late.reason(), Reason::PartitionUnavailable);
    assert!(late.to_string().contains("not counted within 5 s"), "{late}");
    assert_eq!(report.partitions[1].measured.as_ref().expect("it is known").lag.records, 1);
    assert_eq!(report.topics[0].unknown, 1);
    // It is no longer than that that it is not known.
    permits.add_permits(1_000);
    assert_eq!(lines(&lag_of(&fixture.broker, &["g"]).await)[0].3, 1);
}

/// What looks up in a log cannot be stopped half-way, whoever has stopped waiting for it.
#[tokio::test(start_paused = true)]
async fn counts_that_hang_keep_their_places_and_are_not_begun_again() {
    const PARTITIONS: u32 = 40;
    let fixture = Fixture::new().await;
    let inner = &fixture.broker.inner;
    fixture.topic("t", PARTITIONS).await;
    let permits = Arc::new(tokio::sync::Semaphore::new(0));
    for partition in 0..PARTITIONS {
        let id = fixture.partition("t", partition);
        fixture.store.script(id, |script| script.counts = Some(Arc::clone(&permits)));
        fixture.put("t", partition, &["a", "b"]).await;
        commit_to(inner, "g", "t", partition, Some(1));
    }
    for _ in 0..3 {
        let report = lag_of(&fixture.broker, &["g"]).await;
        assert_eq!(report.topics[0].unknown, PARTITIONS);
        let begun = look_ups(&fixture, PARTITIONS);
        assert!(begun.iter().sum::<u32>() <= 16, "{begun:?}");
        assert!(begun.iter().all(|begun| *begun <= 1), "{begun:?}");
    }
    permits.add_permits(10_000);
    let report = lag_of(&fixture.broker, &["g"]).await;
    assert_eq!(
        report.topics[0].lag,
        TopicLag { records: u64::from(PARTITIONS), millis: 0, partitions: PARTITIONS }
    );
}

/// Time goes on here only while everything waits, so a deadline may be far away.
async fn shown(what: &str, condition: impl Fn() -> bool) {
    let look = async {
        while !condition() {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(DEADLINE * 10, look).await.unwrap_or_else(|_| panic!("{what} is not shown"));
}

/// Metrics show the last pass; it says of the partition that hangs that it is not known.
#[tokio::test(start_paused = true)]
async fn a_partition_that_hangs_does_not_hold_up_a_pass() {
    let fixture = Fixture::new().await;
    let inner = &fixture.broker.inner;
    fixture.topic("t", 1).await;
    fixture.topic("u", 1).await;
    let permits = Arc::new(tokio::sync::Semaphore::new(0));
    let hangs = fixture.partition("t", 0);
    fixture.store.script(hangs, |script| script.counts = Some(Arc::clone(&permits)));
    let shows = |topic: &str, unknown: u32| {
        let line = format!(r#"rimstone_group_lag_unknown_partitions{{group="g",topic="{topic}"}} {unknown}"#);
        series(&fixture.broker).contains(&line)
    };
    for topic in ["t", "u"] {
        fixture.put(topic, 0, &["a", "b"]).await;
        commit_to(inner, "g", topic, 0, Some(1));
    }
    shown("a pass", || shows("t", 1) && shows("u", 0)).await;
    assert_eq!(look_ups(&fixture, 1), [1], "it is not begun again by another pass");
    permits.add_permits(1_000);
    shown("it is known", || shows("t", 0)).await;
}

/// Two that count at once, or a pass and a question: what was counted first may be put in last.
#[tokio::test(start_paused = true)]
async fn what_was_counted_earlier_does_not_replace_what_was_counted_later() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 1).await;
    let topic = fixture.broker.inner.topics.get(&name("t")).expect("it exists");
    let id = fixture.partition("t", 0);
    let positions = |at: &[u64]| at.iter().map(|at| Some(offset(*at))).collect::<measure::Positions>();
    let count = |at: &[u64]| measure::measure(&topic, PartitionIndex(0), positions(at), None);
    let damage = ReadError::DataLoss { from: offset(0), until: offset(9), reason: "scripted".to_owned() };
    let fails = |damage: Option<ReadError>| fixture.store.script(id, |script| script.read_error = damage);

    fixture.put("t", 0, &["a", "b"]).await;
    let earlier = count(&[1]).await;
    fixture.put("t", 0, &["c"]).await;
    let later = count(&[1]).await;
    let elsewhere = count(&[2]).await;
    fails(Some(damage));
    let failed = count(&[1]).await;
    fails(None);
    fixture.put("t", 0, &["d"]).await;
    let last = count(&[1]).await;

    // What is there, what comes then, and what is kept of the two, for somebody who stands at 1.
    let cases = [
        (&later, &earlier, &later),
        (&earlier, &later, &later),
        (&later, &failed, &later),
        (&failed, &later, &later),
        (&failed, &earlier, &failed),
        (&failed, &last, &last),
        // What does not say what is wanted is no better for being later.
        (&elsewhere, &earlier, &earlier),
    ];
    for (at, (there, comes, kept)) in cases.into_iter().enumerate() {
        let wanted = Arc::new(positions(&[1]));
        let published = |measured: &Arc<measure::Measured>| {
            let known = table::Known { measured: Arc::clone(measured), positions: Arc::clone(&wanted) };
            table::Published { partitions: [(id, known)].into(), ..Default::default() }
        };
        let is_kept = |table: &LagTable| Arc::ptr_eq(&table.known([id].iter())[&id].measured, kept);
        let table = LagTable::default();
        table.publish(published(there));
        table.put(id, comes);
        assert!(is_kept(&table), "{at}, put");
        let table = LagTable::default();
        table.publish(published(there));
        table.publish(published(comes));
        assert!(is_kept(&table), "{at}, published");
    }
}
