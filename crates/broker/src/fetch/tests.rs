use std::time::Duration;

use rimstone_store::{ReadError, Visibility};
use rimstone_types::{ByteCount, Offset, PartitionIndex, Timestamp};

use crate::{testing::*, *};

fn offset(value: u64) -> Offset {
    Offset::new(value).unwrap()
}

fn from(topic: &str, partitions: &[(u32, u64)]) -> FetchRequest {
    let partition = |(partition, from): &(u32, u64)| FetchPartition {
        partition: PartitionIndex(*partition),
        offset: offset(*from),
        max_bytes: None,
    };
    FetchRequest {
        topic: name(topic),
        partitions: partitions.iter().map(partition).collect(),
        min_bytes: ByteCount(0),
        max_bytes: None,
        max_wait: Duration::ZERO,
        visibility: Visibility::Stable,
    }
}

/// As long as a fetch may wait: if it ends before the test does, something woke it.
fn waiting(request: FetchRequest) -> FetchRequest {
    FetchRequest { max_wait: Duration::from_secs(60), ..request }
}

fn fetched(answer: &FetchAnswer, index: usize) -> &Fetched {
    answer.partitions[index].result.as_ref().expect("it can be read")
}

fn records(answer: &FetchAnswer) -> Vec<u32> {
    let count = |partition: &FetchedPartition| {
        let batches = &partition.result.as_ref().expect("it can be read").batches;
        batches.iter().map(|read| read.batch.header().record_count).sum()
    };
    answer.partitions.iter().map(count).collect()
}

/// Spawns a fetch and waits until it has read and found too little.
async fn started(
    fixture: &Fixture,
    request: FetchRequest,
) -> tokio::task::JoinHandle<Result<FetchAnswer, FetchError>> {
    let partition = fixture.partition(request.topic.as_str(), request.partitions[0].partition.0);
    let before = fixture.store.script(partition, |script| script.reads);
    let broker = fixture.broker.clone();
    let task = tokio::spawn(async move { broker.fetch(request).await });
    until("the first read", || fixture.store.script(partition, |script| script.reads) > before).await;
    tokio::task::yield_now().await;
    task
}

#[tokio::test]
async fn what_is_there_is_answered_at_once_per_partition() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 3).await;
    fixture.put("t", 0, &["a", "b"]).await;
    fixture.put("t", 0, &["c"]).await;
    fixture.put("t", 2, &["d"]).await;
    let request = waiting(from("t", &[(2, 0), (0, 1), (1, 0)]));
    let answer = soon("the answer", fixture.broker.fetch(request)).await.unwrap();
    let order: Vec<_> = answer.partitions.iter().map(|partition| partition.partition.0).collect();
    assert_eq!(order, [2, 0, 1], "as asked");
    assert_eq!(records(&answer), [1, 3, 0], "whole batches: the first holds offset 1");
    assert_eq!(answer.partitions[1].from, offset(1));
    assert_eq!(fetched(&answer, 1).next, offset(3));
    assert_eq!(fetched(&answer, 2).next, offset(0));
    assert_eq!(fetched(&answer, 0).ends.durable, offset(1));
    let limits = fixture.broker.record_limits();
    let decoded = decode(&fetched(&answer, 1).batches, offset(1), None, ByteCount::mib(1), &limits).unwrap();
    assert_eq!(decoded.records.len(), 2);
}

#[tokio::test]
async fn a_long_poll_wakes_for_any_of_its_partitions() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 3).await;
    for partition in [0, 2] {
        let end = fixture.ends("t", 0).durable.get();
        let task = started(&fixture, waiting(from("t", &[(0, end), (1, 0), (2, 0)]))).await;
        assert!(!task.is_finished());
        fixture.put("t", partition, &["woken"]).await;
        let answer = soon("the answer", task).await.unwrap().unwrap();
        assert_eq!(records(&answer).iter().sum::<u32>(), 1);
        assert_eq!(records(&answer)[partition as usize], 1);
    }
}

#[tokio::test]
async fn what_comes_between_the_read_and_the_wait_is_not_missed() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 2).await;
    fixture.put_after_read("t", 0, "just then");
    let request = waiting(from("t", &[(0, 0), (1, 0)]));
    assert_eq!(records(&soon("the answer", fixture.broker.fetch(request)).await.unwrap()), [1, 0]);
}

#[tokio::test]
async fn min_bytes_are_waited_for_over_all_partitions() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 2).await;
    let one = encoded(None, &["x"], Timestamp(0)).len() as u64;
    let request = FetchRequest { min_bytes: ByteCount(3 * one), ..waiting(from("t", &[(0, 0), (1, 0)])) };
    let task = started(&fixture, request).await;
    for partition in [0, 1] {
        let read = fixture.partition("t", partition);
        let before = fixture.store.script(read, |script| script.reads);
        fixture.put("t", partition, &["x"]).await;
        until("another look", || fixture.store.script(read, |script| script.reads) > before).await;
        tokio::task::yield_now().await;
        assert!(!task.is_finished(), "too little yet");
    }
    fixture.put("t", 0, &["x"]).await;
    let answer = soon("the answer", task).await.unwrap().unwrap();
    assert_eq!(records(&answer), [2, 1]);
    assert_eq!(fetched(&answer, 0).next, offset(2));
}

#[tokio::test]
async fn min_bytes_above_the_bound_do_not_wait_for_ever() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 1).await;
    fixture.put("t", 0, &["x"]).await;
    let (min_bytes, max_bytes) = (ByteCount::mib(1), Some(ByteCount(10)));
    let request = FetchRequest { min_bytes, max_bytes, ..waiting(from("t", &[(0, 0)])) };
    assert_eq!(records(&soon("the answer", fixture.broker.fetch(request)).await.unwrap()), [1]);
}

#[tokio::test]
async fn after_max_wait_the_answer_is_what_there_is() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 1).await;
    fixture.put("t", 0, &["x"]).await;
    let (min_bytes, max_wait) = (ByteCount::mib(1), Duration::from_millis(1));
    let request = FetchRequest { min_bytes, max_wait, ..from("t", &[(0, 0)]) };
    assert_eq!(records(&soon("the answer", fixture.broker.fetch(request)).await.unwrap()), [1]);
    let request = FetchRequest { max_wait, ..from("t", &[(0, 1)]) };
    assert_eq!(records(&soon("the answer", fixture.broker.fetch(request)).await.unwrap()), [0]);
}

#[tokio::test]
async fn shutdown_ends_waits() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 1).await;
    let task = started(&fixture, waiting(from("t", &[(0, 0)]))).await;
    fixture.broker.begin_shutdown();
    let answer = soon("the answer", task).await.unwrap().unwrap();
    assert_eq!(records(&answer), [0]);
    let refused = fixture.broker.fetch(from("t", &[(0, 0)])).await.unwrap_err();
    assert_eq!(refused.reason(), Reason::ShuttingDown);
}

#[tokio::test]
async fn deleting_the_topic_ends_waits_with_an_error() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 1).await;
    let task = started(&fixture, waiting(from("t", &[(0, 0)]))).await;
    fixture.broker.delete_topic(&name("t")).await.unwrap();
    let answer = soon("the answer", task).await.unwrap().unwrap();
    assert_eq!(answer.partitions[0].result.as_ref().unwrap_err().reason(), Reason::PartitionUnavailable);
}

#[tokio::test]
async fn errors_of_partitions_are_answered_beside_what_others_have() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 3).await;
    fixture.put("t", 0, &["a"]).await;
    let damaged = fixture.partition("t", 2);
    fixture.store.script(damaged, |script| {
        let (from, until, reason) = (offset(3), offset(9), "rot".to_owned());
        script.read_error = Some(ReadError::DataLoss { from, until, reason });
    });
    let request = waiting(from("t", &[(0, 0), (1, 5), (7, 0), (2, 0)]));
    let answer = soon("the answer", fixture.broker.fetch(request)).await.unwrap();
    let reasons: Vec<_> = answer
        .partitions
        .iter()
        .map(|partition| partition.result.as_ref().err().map(|error| (error.reason(), error.details().len())))
        .collect();
    assert_eq!(
        reasons,
        [
            None,
            Some((Reason::OffsetOutOfRange, 2)),
            Some((Reason::PartitionNotFound, 3)),
            Some((Reason::DataDamaged, 2)),
        ]
    );
    let text = fixture.broker.metrics_text();
    assert!(text.contains("rimstone_errors_total{reason=\"DATA_DAMAGED\"} 1"), "{text}");
}

#[tokio::test]
async fn max_bytes_bound_the_answer_and_no_partition_starves() {
    let fixture = Fixture::new().await;
    fixture.topic("t", 4).await;
    for partition in 0..4 {
        fixture.put("t", partition, &["x"]).await;
        fixture.put("t", partition, &["y"]).await;
    }
    let request =
        || FetchRequest { max_bytes: Some(ByteCount(1)), ..from("t", &[(0, 0), (1, 0), (2, 0), (3, 0)]) };
    let mut seen = [0; 4];
    for _ in 0..4 {
        let answer = fixture.broker.fetch(request()).await.unwrap();
        assert_eq!(records(&answer).iter().sum::<u32>(), 1, "at least one batch, and no more");
        for (seen, records) in seen.iter_mut().zip(records(&answer)) {
            *seen += records;
        }
    }
    assert_eq!(seen, [1; 4]);
    let mut request = from("t", &[(0, 0), (1, 0)]);
    request.partitions[0].max_bytes = Some(ByteCount(0));
    assert_eq!(records(&fixture.broker.fetch(request).await.unwrap()), [1, 2], "a bound for one partition");
}

#[tokio::test]
async fn fetches_are_bounded() {
    let mut config = still();
    config.limits.waiting_fetches = 1;
    config.limits.partitions_per_fetch = 2;
    let fixture = Fixture::with(config).await;
    fixture.topic("t", 3).await;
    let refused = |request| {
        let broker = fixture.broker.clone();
        async move { broker.fetch(request).await.unwrap_err().reason() }
    };
    assert_eq!(refused(from("t", &[(0, 0), (1, 0), (2, 0)])).await, Reason::LimitReached);
    assert_eq!(refused(from("t", &[])).await, Reason::InvalidRequest);
    assert_eq!(refused(from("u", &[(0, 0)])).await, Reason::TopicNotFound);
    let long = FetchRequest { max_wait: Duration::from_millis(60_001), ..from("t", &[(0, 0)]) };
    assert_eq!(refused(long).await, Reason::InvalidRequest);
    let task = started(&fixture, waiting(from("t", &[(0, 0)]))).await;
    assert_eq!(refused(from("t", &[(0, 0)])).await, Reason::LimitReached);
    // A caller that goes away gives its place back.
    task.abort();
    assert!(task.await.unwrap_err().is_cancelled());
    fixture.broker.fetch(from("t", &[(0, 0)])).await.unwrap();
}
