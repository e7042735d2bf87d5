//! Producers: what is a duplicate, what is refused, what outlives what.

use super::*;
use crate::ProducerView;

/// A window that every store must have at least (semantics: 64).
const WINDOW: u32 = 64;

/// Rules 2 to 5: exact repeats, gaps, overlaps, older epochs, strangers.
pub async fn dense_numbering_by_the_rules<H: Harness>() {
    let harness = H::create().await;
    let partition = Partition::create(&harness, PartitionConfig::default()).await;
    let offer =
        async |epoch, base, count| partition.offer(batch(dense(UNNAMED, epoch, base), "d", count)).await;
    assert_eq!(offer(3, 5, 1).await, Err(AppendError::UnknownProducer { got: 5 }));
    assert_eq!(offer(3, 0, 10).await, stored(0, 9));
    assert_eq!(offer(3, 10, 5).await, stored(10, 14));
    assert_eq!(offer(3, 0, 10).await, duplicate(0, 9));
    assert_eq!(offer(3, 10, 5).await, duplicate(10, 14));
    let gap = |got| Err(AppendError::SequenceGap { expected: 15, got });
    for (base, count) in [(16, 1), (0, 9), (0, 15), (5, 10), (14, 2), (i32::MAX as u32, 1)] {
        assert_eq!(offer(3, base, count).await, gap(base), "{base} {count}");
    }
    assert_eq!(offer(2, 15, 1).await, Err(AppendError::Fenced { got: epoch(2), current: Some(epoch(3)) }));
    assert_eq!(partition.end(), 15);
    assert_eq!(offer(3, 15, 1).await, stored(15, 15));
}

/// A retry that overtakes the answer to the original is answered when the original is.
pub async fn duplicates_in_flight_are_recognised<H: Harness>() {
    let harness = H::create().await;
    let partition = Partition::create(&harness, PartitionConfig::default()).await;
    for stamp in [dense(UNNAMED, 0, 0), request(NAMED, 0, 0)] {
        let first = partition.end();
        let tickets: Vec<_> = (0..3).map(|_| partition.submit(append(batch(stamp, "f", 4)))).collect();
        let mut answers = Vec::new();
        for ticket in tickets {
            answers.push(within("an answer", ticket).await);
            assert!(partition.end() >= first + 4, "no answer before the original is durable");
        }
        assert_eq!(
            answers,
            [stored(first, first + 3), duplicate(first, first + 3), duplicate(first, first + 3)]
        );
        assert_eq!(partition.end(), first + 4);
    }
}

/// What is in flight counts: the next may follow at once, a gap is seen at once.
pub async fn gaps_in_flight_are_refused<H: Harness>() {
    let harness = H::create().await;
    let partition = Partition::create(&harness, PartitionConfig::default()).await;
    let submit = |base| partition.submit(append(batch(dense(UNNAMED, 0, base), "g", 2)));
    let tickets = [submit(0), submit(2), submit(6), submit(4), submit(6)];
    let mut answers = Vec::new();
    for ticket in tickets {
        answers.push(within("an answer", ticket).await);
    }
    let gap = Err(AppendError::SequenceGap { expected: 4, got: 6 });
    assert_eq!(answers, [stored(0, 1), stored(2, 3), gap, stored(4, 5), stored(6, 7)]);
}

/// From 2^31 - 1 the sequences go on at 0. A batch that compaction has emptied gets them there: it keeps its
/// offsets and sequences.
pub async fn sequences_wrap<H: Harness>() {
    let harness = H::create().await;
    let partition = Partition::create(&harness, PartitionConfig::default()).await;
    let most = i32::MAX as u32 - 1;
    let end = u64::from(most);
    assert_eq!(partition.offer(emptied(dense(UNNAMED, 0, 0), most)).await, stored(0, end - 1));
    let across = batch(dense(UNNAMED, 0, most), "w", 4);
    assert_eq!(partition.offer(across.clone()).await, stored(end, end + 3));
    assert_eq!(partition.offer(across).await, duplicate(end, end + 3));
    let refused = Err(AppendError::SequenceGap { expected: 2, got: 0 });
    assert_eq!(partition.offer(batch(dense(UNNAMED, 0, 0), "w", 2)).await, refused);
    assert_eq!(partition.offer(batch(dense(UNNAMED, 0, 2), "w", 1)).await, stored(end + 4, end + 4));
}

/// A batch without records that takes `count` offsets and sequences.
fn emptied(producer: Option<ProducerStamp>, count: u32) -> Batch {
    let mut bytes = batch(producer, "", 0).bytes().to_vec();
    bytes[23..27].copy_from_slice(&(count - 1).to_be_bytes());
    let crc = crc32c::crc32c(&bytes[21..]);
    bytes[17..21].copy_from_slice(&crc.to_be_bytes());
    Batch::verify(bytes.into(), &Limits::default()).expect("a batch without records is a batch")
}

/// Kafka's rule: another epoch, another numbering.
pub async fn without_a_name_a_higher_epoch_begins_at_zero<H: Harness>() {
    let harness = H::create().await;
    let partition = Partition::create(&harness, PartitionConfig::default()).await;
    let offer = async |epoch, base| partition.offer(batch(dense(UNNAMED, epoch, base), "d", 2)).await;
    assert_eq!(offer(0, 0).await, stored(0, 1));
    assert_eq!(offer(1, 2).await, Err(AppendError::SequenceGap { expected: 0, got: 2 }));
    assert_eq!(offer(1, 0).await, stored(2, 3));
    assert_eq!(offer(0, 2).await, Err(AppendError::Fenced { got: epoch(0), current: Some(epoch(1)) }));
}

/// Rule 7: a named producer's sequences go on, and what it sends again in its new epoch is known.
pub async fn with_a_name_numbering_goes_on<H: Harness>() {
    let harness = H::create().await;
    let partition = Partition::create(&harness, PartitionConfig::default()).await;
    let offer = async |epoch, base| partition.offer(batch(dense(NAMED, epoch, base), "d", 2)).await;
    assert_eq!(offer(0, 0).await, stored(0, 1));
    assert_eq!(offer(0, 2).await, stored(2, 3));
    assert_eq!(offer(1, 2).await, duplicate(2, 3));
    assert_eq!(offer(1, 0).await, duplicate(0, 1));
    assert_eq!(offer(1, 6).await, Err(AppendError::SequenceGap { expected: 4, got: 6 }));
    assert_eq!(offer(1, 4).await, stored(4, 5));
}

/// From the return of `fence` on, also where the producer has not written yet.
pub async fn a_fence_holds_everywhere_at_once<H: Harness>() {
    let harness = H::create().await;
    let one = Partition::open(&harness, id(1, 0), PartitionConfig::default(), OpenMode::CreateNew).await;
    let two = Partition::open(&harness, id(2, 0), PartitionConfig::default(), OpenMode::CreateNew).await;
    let offer = async |partition: &Partition, epoch, base| {
        partition.offer(batch(dense(NAMED, epoch, base), "d", 1)).await
    };
    assert_eq!(offer(&one, 1, 0).await, stored(0, 0));
    harness.storage().fence(producer(NAMED), Some(epoch(2)));
    let fenced = |got| Err(AppendError::Fenced { got: epoch(got), current: Some(epoch(2)) });
    assert_eq!(offer(&one, 1, 1).await, fenced(1));
    assert_eq!(offer(&one, 1, 0).await, fenced(1), "a duplicate too");
    assert_eq!(offer(&two, 1, 0).await, fenced(1));
    let three = Partition::open(&harness, id(3, 0), PartitionConfig::default(), OpenMode::CreateNew).await;
    assert_eq!(offer(&three, 0, 0).await, fenced(0));
    assert_eq!(offer(&one, 2, 1).await, stored(1, 1));
    assert_eq!(offer(&two, 3, 0).await, stored(0, 0));
    harness.storage().fence(producer(NAMED), None);
    let got = epoch(9);
    assert_eq!(offer(&one, 9, 2).await, Err(AppendError::Fenced { got, current: None }));
}

/// The number, the count and the content make a duplicate; any other number not above the last is refused.
pub async fn numbering_by_request_by_the_rules<H: Harness>() {
    let harness = H::create().await;
    let partition = Partition::create(&harness, PartitionConfig::default()).await;
    let offer =
        async |number, tag, count| partition.offer(batch(request(UNNAMED, 0, number), tag, count)).await;
    assert_eq!(offer(4, "four", 2).await, stored(0, 1));
    assert_eq!(offer(9, "nine", 3).await, stored(2, 4));
    assert_eq!(offer(4, "four", 2).await, duplicate(0, 1));
    assert_eq!(offer(9, "nine", 3).await, duplicate(2, 4));
    let reused = |got| Err(AppendError::NumberReused { got, last: 9 });
    assert_eq!(offer(9, "none", 3).await, reused(9));
    assert_eq!(offer(9, "nine", 2).await, reused(9));
    assert_eq!(offer(7, "nine", 3).await, reused(7));
    assert_eq!(offer(10, "nine", 3).await, stored(5, 7));
    // Another time and another compression are no other content.
    let mut again = BatchBuilder::new(Compression::Lz4).producer(stamp(UNNAMED, 0, 20, Numbering::ByRequest));
    for round in 0..2 {
        for n in 0..50 {
            let value = Some(Bytes::from(format!("the same text {n}")));
            let timestamp = Timestamp(NOW.as_millis() + round);
            again.push(&NewRecord { value, timestamp, ..NewRecord::default() }).expect("a small record fits");
        }
        let expected = if round == 0 { stored(8, 57) } else { duplicate(8, 57) };
        assert_eq!(partition.offer(again.build()).await, expected);
        again = BatchBuilder::new(Compression::None).producer(stamp(UNNAMED, 0, 20, Numbering::ByRequest));
    }
}

/// One producer, one numbering.
pub async fn numberings_are_not_mixed<H: Harness>() {
    let harness = H::create().await;
    let partition = Partition::create(&harness, PartitionConfig::default()).await;
    partition.append(batch(dense(NAMED, 0, 0), "d", 1)).await;
    let (stored, got) = (Numbering::Dense, Numbering::ByRequest);
    let mixed = Err(AppendError::NumberingMixed { stored, got });
    assert_eq!(partition.offer(batch(request(NAMED, 1, 1), "r", 1)).await, mixed);
}

/// The last 64 batches are known by their offsets. Older dense ones are known to be stored; older requests
/// are too old to tell.
pub async fn the_window_holds_what_is_promised<H: Harness>() {
    let harness = H::create().await;
    let partition = Partition::create(&harness, PartitionConfig::default()).await;
    let extra = 300;
    let of_dense = |n: u32| batch(dense(UNNAMED, 0, n * 2), &format!("d{n}"), 2);
    let of_request = |n: u32| batch(request(NAMED, 0, n), &format!("r{n}"), 1);
    let mut tickets = Vec::new();
    for n in 0..WINDOW + extra {
        tickets.push(partition.submit(append(of_dense(n))));
        tickets.push(partition.submit(append(of_request(n))));
    }
    for ticket in tickets {
        assert!(!within("an answer", ticket).await.expect("it is taken").duplicate);
    }
    for n in extra..WINDOW + extra {
        let first = u64::from(n) * 3;
        assert_eq!(partition.offer(of_dense(n)).await, duplicate(first, first + 1), "{n}");
        assert_eq!(partition.offer(of_request(n)).await, duplicate(first + 2, first + 2), "{n}");
    }
    let old = partition.offer(of_dense(0)).await.expect("it is known to be stored");
    assert_eq!((old.offsets, old.duplicate), (None, true));
    let last = WINDOW + extra - 1;
    assert_eq!(partition.offer(of_request(0)).await, Err(AppendError::NumberTooOld { got: 0, last }));
    assert_eq!(partition.end(), u64::from(WINDOW + extra) * 3);
}

/// A restart loses nothing of it: the last number, the offsets of duplicates, the contents of requests.
pub async fn producers_resume_after_a_restart<H: Harness>() {
    let mut harness = H::create().await;
    let config = PartitionConfig::default();
    let mut partition = Partition::create(&harness, config.clone()).await;
    let mut last = 0;
    for round in 0..3u32 {
        let end = partition.end();
        partition.append(batch(dense(UNNAMED, 0, round * 2), &format!("d{round}"), 2)).await;
        partition.append(batch(request(NAMED, 0, round * 5), &format!("r{round}"), 1)).await;
        let before = partition.0.producers(10);
        (harness, partition) = restart(harness, partition, &config).await;
        assert_eq!(partition.0.producers(10), before);
        let again = batch(dense(UNNAMED, 0, round * 2), &format!("d{round}"), 2);
        assert_eq!(partition.offer(again).await, duplicate(end, end + 1));
        let again = batch(request(NAMED, 0, round * 5), &format!("r{round}"), 1);
        assert_eq!(partition.offer(again).await, duplicate(end + 2, end + 2));
        let other = batch(request(NAMED, 0, round * 5), "other", 1);
        let got = round * 5;
        assert_eq!(partition.offer(other).await, Err(AppendError::NumberReused { got, last: got }));
        last = round * 2 + 2;
    }
    let gap = Err(AppendError::SequenceGap { expected: last, got: last + 1 });
    assert_eq!(partition.offer(batch(dense(UNNAMED, 0, last + 1), "gap", 1)).await, gap);
}

/// What is known of a producer, of all, and of one whose name was deleted.
pub async fn producers_are_shown_and_forgotten<H: Harness>() {
    let harness = H::create().await;
    let config = PartitionConfig::default();
    let partition = Partition::create(&harness, config.clone()).await;
    let view = async |partition: &Partition, id| {
        within("a view", partition.0.producer(producer(id))).await.expect("the partition is open")
    };
    assert_eq!(view(&partition, NAMED).await, None);
    partition.append(batch(dense(NAMED, 4, 0), "n", 3)).await;
    partition.append(batch(request(UNNAMED, 1, 6), "u", 2)).await;
    let named = ProducerView {
        id: producer(NAMED),
        epoch: epoch(4),
        numbering: Numbering::Dense,
        last: 2,
        last_offset: Some(offset(2)),
        last_append: NOW,
    };
    let unnamed = ProducerView {
        id: producer(UNNAMED),
        epoch: epoch(1),
        numbering: Numbering::ByRequest,
        last: 6,
        last_offset: Some(offset(4)),
        last_append: NOW,
    };
    assert_eq!(view(&partition, NAMED).await, Some(named));
    assert_eq!(view(&partition, UNNAMED).await, Some(unnamed));
    assert_eq!(partition.0.producers(10), [unnamed, named]);
    assert_eq!(partition.0.producers(1), [unnamed]);
    within("forgetting", partition.0.forget_producer(producer(NAMED))).await.expect("the partition is open");
    assert_eq!(view(&partition, NAMED).await, None);
    // For good.
    let (_harness, partition) = restart(harness, partition, &config).await;
    assert_eq!(partition.0.producers(10), [unnamed]);
    let unknown = Err(AppendError::UnknownProducer { got: 3 });
    assert_eq!(partition.offer(batch(dense(NAMED, 4, 3), "n", 1)).await, unknown);
}

/// Rule 6: neither trimming nor retention forgets a producer, nor a restart after them.
pub async fn producers_outlive_their_records<H: Harness>() {
    let harness = H::create().await;
    let config = PartitionConfig {
        segment_bytes: ByteCount::kib(4),
        retention_bytes: Some(ByteCount(1)),
        ..PartitionConfig::default()
    };
    let partition = Partition::create(&harness, config.clone()).await;
    partition.append(batch(dense(NAMED, 0, 0), "n", 3)).await;
    for _ in 0..20 {
        partition.append(heavy(1500, NOW.as_millis())).await;
    }
    within("maintenance", partition.0.maintain(NOW)).await.expect("the partition is open");
    assert!(partition.0.ends().start >= offset(3), "{:?}", partition.0.ends());
    let (_harness, partition) = restart(harness, partition, &config).await;
    assert_eq!(partition.offer(batch(dense(NAMED, 0, 0), "n", 3)).await, duplicate(0, 2));
    partition.append(batch(dense(NAMED, 0, 3), "n", 1)).await;
}

/// 24 hours for a producer without a name; one with a name stays.
pub async fn idle_producers_without_a_name_expire<H: Harness>() {
    const HOUR: Duration = Duration::from_secs(60 * 60);
    let harness = H::create().await;
    let partition = Partition::create(&harness, PartitionConfig::default()).await;
    partition.append(batch(dense(UNNAMED, 0, 0), "u", 1)).await;
    partition.append(batch(dense(NAMED, 0, 0), "n", 1)).await;
    let maintain = async |now| {
        within("maintenance", partition.0.maintain(now)).await.expect("the partition is open");
        partition.0.producers(10).iter().map(|view| view.id.get()).collect::<Vec<_>>()
    };
    for hour in 0..=23 {
        assert_eq!(maintain(NOW.saturating_add(HOUR * hour)).await, [UNNAMED, NAMED], "{hour}");
    }
    maintain(NOW.saturating_add(HOUR * 24)).await;
    assert_eq!(maintain(NOW.saturating_add(HOUR * 25)).await, [NAMED]);
    let unknown = Err(AppendError::UnknownProducer { got: 1 });
    assert_eq!(partition.offer(batch(dense(UNNAMED, 0, 1), "u", 1)).await, unknown);
}

/// A clock that jumps, under a running server or between two, makes no producer idle.
pub async fn a_clock_that_jumps_forgets_no_producer<H: Harness>() {
    const FAR: Duration = Duration::from_secs(40 * 24 * 60 * 60);
    const OTHER: u64 = UNNAMED + 1;
    let (mut harness, config) = (H::create().await, PartitionConfig::default());
    let mut partition = Partition::create(&harness, config.clone()).await;
    let write = async |partition: &Partition, stamp, now| {
        let append = Append { now, ..append(batch(stamp, "x", 1)) };
        within("an append", partition.0.submit(append).expect("there is room")).await.expect("it is stored");
    };
    let maintain = async |partition: &Partition, now| {
        within("maintenance", partition.0.maintain(now)).await.expect("the partition is open");
    };
    write(&partition, dense(UNNAMED, 0, 0), NOW).await;
    for number in 0..4 {
        let now = if number % 2 == 0 { NOW } else { NOW.saturating_add(FAR * number) };
        maintain(&partition, now).await;
        // Another one writes at that time, and then the server is started again.
        write(&partition, dense(OTHER, 0, number), now).await;
        maintain(&partition, now).await;
        (harness, partition) = restart(harness, partition, &config).await;
        maintain(&partition, now.saturating_add(FAR)).await;
    }
    write(&partition, dense(UNNAMED, 0, 1), NOW).await;
    write(&partition, dense(OTHER, 0, 4), NOW).await;
    drop(harness);
}
