//! The producer against a server that breaks connections, refuses and forgets: every record exactly once, in
//! order, at the offset that was answered.

use std::time::Duration;

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use rimstone_record::Compression;
use rimstone_types::{Offset, PartitionIndex};
use tokio::sync::Semaphore;

use super::{Delivery, DeliveryError, Outcome, Pending, Producer, ProducerBuilder, ProducerRecord};
use crate::{
    error::{Code, reason},
    fake::{Fake, Faults, item},
};

/// A test that takes longer has hung.
const HUNG: Duration = Duration::from_secs(60);

fn producer(fake: &Fake) -> ProducerBuilder {
    Producer::builder(&fake.endpoint())
        .linger(Duration::from_millis(1))
        .batch_bytes(400)
        .deadline(Duration::from_secs(30))
}

async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(HUNG, work).await.expect("hung")
}

fn in_partition(partition: u32, value: &str) -> ProducerRecord {
    ProducerRecord::new(value.to_owned()).partition(PartitionIndex(partition))
}

/// Sends `count` records over `partitions` and checks that the log has them all once, in order, where the
/// answers say.
async fn sends_exactly_once(fake: &Fake, producer: &Producer, partitions: u32, count: usize, seed: u64) {
    sends_as_allowed(fake, producer, partitions, count, seed, &Semaphore::new(count)).await;
}

/// The same, one record for each permit.
async fn sends_as_allowed(
    fake: &Fake,
    producer: &Producer,
    partitions: u32,
    count: usize,
    seed: u64,
    allowed: &Semaphore,
) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut sent: Vec<Vec<(String, Pending)>> = (0..partitions).map(|_| Vec::new()).collect();
    for number in 0..count {
        allowed.acquire().await.unwrap().forget();
        let partition = rng.random_range(0..partitions);
        let value = format!("{number}-{}", "x".repeat(rng.random_range(0..120)));
        let pending = producer.send("logs", in_partition(partition, &value)).await.unwrap();
        sent[partition as usize].push((value, pending));
        if rng.random_range(0..20) == 0 {
            // Lets the driver and the server come in between, more or less.
            for _ in 0..rng.random_range(0..50) {
                tokio::task::yield_now().await;
            }
        }
    }
    producer.flush().await.unwrap();
    for (partition, sent) in sent.into_iter().enumerate() {
        let stored = fake.world.lock().values("logs", partition);
        let values: Vec<_> = sent.iter().map(|(value, _)| value.clone()).collect();
        assert_eq!(stored, values, "partition {partition}, seed {seed}");
        for (offset, (_, pending)) in (0u64..).zip(sent) {
            let Delivery { offset: told, partition: at, .. } = pending.await.unwrap();
            assert_eq!(at.0 as usize, partition);
            assert_eq!(told, Some(Offset::new(offset).unwrap()), "partition {partition}, seed {seed}");
        }
    }
}

async fn exactly_once_with_seed(seed: u64) {
    println!("RIMSTONE_SEED={seed}");
    let faults = Faults {
        backpressure: 12,
        undone: 15,
        unknown: 15,
        cut_before: 25,
        cut_after: 25,
        cut_late: 40,
        skip_answer: 40,
    };
    let fake = Fake::start(seed, &[("logs", 3)], faults).await;
    let builder = producer(&fake).in_flight(1 + (seed as usize * 7) % 64);
    let named = seed.is_multiple_of(2);
    let producer = if named { builder.name("importer").unwrap().build() } else { builder.build() }.unwrap();
    within(sends_exactly_once(&fake, &producer, 3, 600, seed)).await;
    within(producer.close()).await.unwrap();
    {
        let world = fake.world.lock();
        assert!(world.fired > 20, "only {} faults fired", world.fired);
        assert_eq!(world.inits, 1, "no fault of these needs a new id");
    }
    fake.kill().await;
}

/// One seed runs alone with `RIMSTONE_SEED`.
#[tokio::test]
async fn exactly_once_in_order_through_every_fault() {
    let seeds: Vec<u64> = match std::env::var("RIMSTONE_SEED") {
        Ok(seed) => vec![seed.parse().unwrap()],
        Err(_) => (1..=16).collect(),
    };
    futures::future::join_all(seeds.into_iter().map(exactly_once_with_seed)).await;
}

#[tokio::test]
async fn exactly_once_through_restarts_of_the_server() {
    let fake = Fake::start(1, &[("logs", 2)], Faults::default()).await;
    let producer = producer(&fake).build().unwrap();
    // Something is left to be sent in every round, however fast the others went.
    let allowed = Semaphore::new(0);
    let restarts = async {
        for round in 1..=5 {
            let before = fake.world.lock().values("logs", 0).len();
            allowed.add_permits(300);
            while fake.streams_opened() < round || fake.world.lock().values("logs", 0).len() < before + 20 {
                tokio::task::yield_now().await;
            }
            fake.kill().await;
            fake.revive();
        }
    };
    within(async { tokio::join!(restarts, sends_as_allowed(&fake, &producer, 2, 1500, 9, &allowed)) }).await;
    assert!(fake.streams_opened() >= 5, "{} streams", fake.streams_opened());
    within(producer.close()).await.unwrap();
}

#[tokio::test]
async fn many_batches_are_on_the_wire_at_once_but_no_more_than_allowed() {
    let fake = Fake::start(1, &[("logs", 1)], Faults::default()).await;
    fake.world.lock().hang = true;
    let producer = producer(&fake).linger(Duration::ZERO).in_flight(7).build().unwrap();
    let mut pending = Vec::new();
    for number in 0..20 {
        // Each fills a batch.
        let value = format!("{number:0400}");
        pending.push(producer.send("logs", in_partition(0, &value)).await.unwrap());
    }
    within(async {
        while fake.world.lock().values("logs", 0).len() < 7 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    for _ in 0..1000 {
        tokio::task::yield_now().await;
    }
    assert_eq!(fake.world.lock().values("logs", 0).len(), 7);
    fake.world.lock().hang = false;
    fake.kill().await;
    fake.revive();
    within(producer.flush()).await.unwrap();
    let duplicates = within(async {
        let mut duplicates = Vec::new();
        for pending in pending {
            duplicates.push(pending.await.unwrap().duplicate);
        }
        duplicates
    })
    .await;
    assert_eq!(duplicates.iter().filter(|duplicate| **duplicate).count(), 7);
    assert!(duplicates[..7].iter().all(|duplicate| *duplicate));
    assert_eq!(fake.world.lock().values("logs", 0).len(), 20);
}

#[tokio::test]
async fn a_named_producer_goes_on_where_its_name_stopped() {
    let fake = Fake::start(1, &[("logs", 2), ("other", 1)], Faults::default()).await;
    for round in 0..3 {
        let producer = producer(&fake).name("importer").unwrap().build().unwrap();
        for number in 0..10 {
            let value = format!("{round}-{number}");
            drop(producer.send("logs", in_partition(number % 2, &value)).await.unwrap());
        }
        // A topic that was not known when the stream was opened.
        within(producer.flush()).await.unwrap();
        drop(producer.send("other", in_partition(0, &format!("{round}"))).await.unwrap());
        within(producer.close()).await.unwrap();
    }
    let world = fake.world.lock();
    assert_eq!(world.values("logs", 0).len(), 15);
    assert_eq!(world.values("logs", 1)[5..10], ["1-1", "1-3", "1-5", "1-7", "1-9"]);
    assert_eq!(world.values("other", 0), ["0", "1", "2"]);
}

#[tokio::test]
async fn the_older_instance_of_a_name_is_fenced_for_good() {
    let fake = Fake::start(1, &[("logs", 1)], Faults::default()).await;
    let old = producer(&fake).name("importer").unwrap().build().unwrap();
    drop(old.send("logs", in_partition(0, "old")).await.unwrap());
    within(old.flush()).await.unwrap();
    let new = producer(&fake).name("importer").unwrap().build().unwrap();
    drop(new.send("logs", in_partition(0, "new")).await.unwrap());
    within(new.flush()).await.unwrap();

    let pending = old.send("logs", in_partition(0, "late")).await.unwrap();
    let error = within(pending).await.unwrap_err();
    assert!(error.cause.is(reason::PRODUCER_FENCED), "{error:?}");
    let error = old.send("logs", in_partition(0, "later")).await.unwrap_err();
    assert!(error.is(reason::PRODUCER_FENCED), "{error:?}");
    assert!(within(old.close()).await.unwrap_err().cause.is(reason::PRODUCER_FENCED));
    within(new.close()).await.unwrap();
    assert_eq!(fake.world.lock().values("logs", 0), ["old", "new"]);
}

#[tokio::test]
async fn lost_state_takes_a_new_id_for_what_is_provably_not_stored() {
    let fake = Fake::start(1, &[("logs", 1)], Faults::default()).await;
    let producer = producer(&fake).build().unwrap();
    drop(producer.send("logs", in_partition(0, "a")).await.unwrap());
    within(producer.flush()).await.unwrap();
    fake.world.lock().forget_producers();
    for value in ["b", "c"] {
        drop(producer.send("logs", in_partition(0, value)).await.unwrap());
    }
    within(producer.flush()).await.unwrap();
    let world = fake.world.lock();
    assert_eq!(world.values("logs", 0), ["a", "b", "c"]);
    assert_eq!(world.inits, 2);
}

#[tokio::test]
async fn lost_state_fails_what_may_be_stored() {
    let fake = Fake::start(1, &[("logs", 1)], Faults::default()).await;
    let producer = producer(&fake).build().unwrap();
    drop(producer.send("logs", in_partition(0, "a")).await.unwrap());
    within(producer.flush()).await.unwrap();
    fake.world.lock().hang = true;
    let pending = producer.send("logs", in_partition(0, "b")).await.unwrap();
    within(async {
        while fake.world.lock().values("logs", 0).len() < 2 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    // Stored, not answered, and then forgotten: nobody can say any more.
    {
        let mut world = fake.world.lock();
        world.hang = false;
        world.forget_producers();
    }
    fake.kill().await;
    fake.revive();
    let error = within(pending).await.unwrap_err();
    assert_eq!(error.outcome, Outcome::Unknown);
    assert!(error.cause.is(reason::UNKNOWN_PRODUCER), "{error:?}");
    let _ = within(producer.flush()).await.unwrap_err();
    drop(producer.send("logs", in_partition(0, "c")).await.unwrap());
    within(producer.close()).await.unwrap();
    assert_eq!(fake.world.lock().values("logs", 0), ["a", "b", "c"]);
}

#[tokio::test]
async fn a_refused_batch_makes_room_in_the_numbering() {
    let fake = Fake::start(1, &[("logs", 1)], Faults::default()).await;
    let refusal = item(Code::InvalidArgument, "TIMESTAMP_TOO_FAR", &[]);
    fake.world.lock().refuse.insert(("logs".to_owned(), 0), refusal);
    let producer = producer(&fake).build().unwrap();
    let error = within(producer.send("logs", in_partition(0, "bad")).await.unwrap()).await.unwrap_err();
    assert_eq!((error.outcome, error.cause.reason.as_str()), (Outcome::NotStored, "TIMESTAMP_TOO_FAR"));
    assert_eq!(within(producer.flush()).await.unwrap_err(), error);
    fake.world.lock().refuse.clear();
    within(sends_exactly_once(&fake, &producer, 1, 50, 3)).await;
    assert_eq!(fake.world.lock().inits, 1);
}

#[tokio::test]
async fn refusals_that_last_end_at_the_deadline_as_not_stored() {
    let fake = Fake::start(1, &[("logs", 1)], Faults::default()).await;
    // Tried twice, and no try is on the wire at the deadline: what became of that one would not be known.
    let mut refusal = item(Code::ResourceExhausted, reason::DISK_FULL, &[]);
    refusal.retry_delay_ms = 1_500;
    fake.world.lock().refuse.insert(("logs".to_owned(), 0), refusal);
    let producer = producer(&fake).deadline(Duration::from_millis(2_800)).build().unwrap();
    let mut pending = Vec::new();
    for number in 0..30 {
        pending.push(producer.send("logs", in_partition(0, &format!("{number:0100}"))).await.unwrap());
    }
    for pending in pending {
        let DeliveryError { outcome, cause } = within(pending).await.unwrap_err();
        assert_eq!(outcome, Outcome::NotStored);
        assert!(cause.is(reason::DEADLINE), "{cause:?}");
    }
    fake.world.lock().refuse.clear();
    let _ = within(producer.flush()).await.unwrap_err();
    within(sends_exactly_once(&fake, &producer, 1, 50, 3)).await;
    assert_eq!(fake.world.lock().inits, 1, "nothing was unknown, so the numbering goes on");
}

#[tokio::test]
async fn an_unknown_outcome_ends_the_numbering_and_a_new_id_goes_on() {
    let fake = Fake::start(1, &[("logs", 2)], Faults::default()).await;
    let producer = producer(&fake).deadline(Duration::from_secs(5)).build().unwrap();
    drop(producer.send("logs", in_partition(0, "a")).await.unwrap());
    within(producer.flush()).await.unwrap();
    fake.world.lock().hang = true;
    let first = producer.send("logs", in_partition(0, "b")).await.unwrap();
    let error = within(first).await.unwrap_err();
    assert_eq!(error.outcome, Outcome::Unknown);
    assert!(error.cause.is(reason::DEADLINE), "{error:?}");
    let _ = within(producer.flush()).await.unwrap_err();
    fake.world.lock().hang = false;
    fake.kill().await;
    fake.revive();
    for value in ["c", "d"] {
        drop(producer.send("logs", in_partition(0, value)).await.unwrap());
        drop(producer.send("logs", in_partition(1, value)).await.unwrap());
    }
    within(producer.close()).await.unwrap();
    let world = fake.world.lock();
    assert_eq!(world.values("logs", 0), ["a", "b", "c", "d"]);
    assert_eq!(world.values("logs", 1), ["c", "d"]);
    assert_eq!(world.inits, 2);
}

/// An opening under the old id that ends after the numbering did: going on with that id, what is new would be taken
/// for a resend of what is stored.
#[tokio::test]
async fn an_id_whose_numbering_has_ended_does_not_come_back() {
    let fake = Fake::start(1, &[("logs", 1)], Faults::default()).await;
    // Long enough for the server's return within it.
    let producer = producer(&fake).deadline(Duration::from_secs(8)).build().unwrap();
    drop(producer.send("logs", in_partition(0, "a")).await.unwrap());
    within(producer.flush()).await.unwrap();
    fake.world.lock().hang = true;
    let unknown = producer.send("logs", in_partition(0, "b")).await.unwrap();
    within(async {
        while fake.world.lock().values("logs", 0).len() < 2 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    fake.world.lock().hang = false;
    fake.world.lock().hold_opens = true;
    let opened = fake.streams_opened();
    fake.kill().await;
    fake.revive();
    within(async {
        while fake.streams_opened() == opened {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let error = within(unknown).await.unwrap_err();
    assert_eq!(error.outcome, Outcome::Unknown);
    let _ = within(producer.flush()).await.unwrap_err();
    let next = producer.send("logs", in_partition(0, "c")).await.unwrap();
    fake.world.lock().hold_opens = false;
    let delivery = within(next).await.unwrap();
    assert_eq!(fake.world.lock().values("logs", 0), ["a", "b", "c"]);
    assert_eq!((delivery.offset, delivery.duplicate), (Some(Offset::new(2).unwrap()), false));
    within(producer.close()).await.unwrap();
    assert_eq!(fake.world.lock().inits, 2);
}

async fn one_topic_holds_up_no_other(named: bool) {
    let fake = Fake::start(1, &[("logs", 1), ("other", 1)], Faults::default()).await;
    let builder = producer(&fake);
    let producer = if named { builder.name("importer").unwrap().build() } else { builder.build() }.unwrap();
    drop(producer.send("other", in_partition(0, "a")).await.unwrap());
    within(producer.flush()).await.unwrap();
    // On the wire when the connection breaks; and of a named producer, a topic that it has not asked for yet.
    fake.world.lock().hang = true;
    let open = producer.send("logs", in_partition(0, "b")).await.unwrap();
    if !named {
        within(async {
            while fake.world.lock().values("logs", 0).is_empty() {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
    fake.world.lock().hang = false;
    fake.world.lock().unavailable = Some("logs".to_owned());
    fake.kill().await;
    fake.revive();
    let other = producer.send("other", in_partition(0, "c")).await.unwrap();
    assert_eq!(within(other).await.unwrap().offset, Some(Offset::new(1).unwrap()), "named: {named}");
    fake.world.lock().unavailable = None;
    assert_eq!(within(open).await.unwrap().offset, Some(Offset::ZERO), "named: {named}");
    within(producer.close()).await.unwrap();
    assert_eq!(fake.world.lock().values("logs", 0), ["b"]);
    assert_eq!(fake.world.lock().inits, 1);
}

#[tokio::test]
async fn a_topic_whose_partition_cannot_be_opened_holds_up_no_other() {
    one_topic_holds_up_no_other(false).await;
    one_topic_holds_up_no_other(true).await;
}

#[tokio::test]
async fn a_server_that_is_not_there_is_named_at_the_deadline() {
    let fake = Fake::start(1, &[("logs", 1)], Faults::default()).await;
    let producer = producer(&fake).deadline(Duration::from_secs(5)).build().unwrap();
    drop(producer.send("logs", in_partition(0, "a")).await.unwrap());
    within(producer.flush()).await.unwrap();
    fake.kill().await;
    let pending = producer.send("logs", in_partition(0, "b")).await.unwrap();
    let error = within(pending).await.unwrap_err();
    assert!(error.cause.is(reason::DEADLINE), "{error:?}");
    // A topic that is not known cannot even be partitioned.
    let error = within(producer.send("more", ProducerRecord::new("c"))).await.unwrap_err();
    assert!(error.is_unreachable(), "{error:?}");
}

#[tokio::test]
async fn the_buffer_is_bounded() {
    let fake = Fake::start(1, &[("logs", 1)], Faults::default()).await;
    fake.world.lock().hang = true;
    let producer = producer(&fake).buffer_bytes(64 << 10).build().unwrap();
    let value = "x".repeat(1000);
    // The first one waits for the connection; the others only for room.
    drop(within(producer.send("logs", in_partition(0, &value))).await.unwrap());
    let mut taken = 1;
    loop {
        let send = producer.send("logs", in_partition(0, &value));
        match tokio::time::timeout(Duration::from_secs(2), send).await {
            Ok(pending) => drop(pending.unwrap()),
            Err(_) => break,
        }
        taken += 1;
        assert!(taken < 100, "the buffer never fills");
    }
    assert!(taken > 30, "{taken}");
    fake.world.lock().hang = false;
    fake.kill().await;
    fake.revive();
    within(producer.close()).await.unwrap();
    assert_eq!(fake.world.lock().values("logs", 0).len(), taken);
}

#[tokio::test]
async fn records_without_a_key_spread_batch_by_batch_and_keys_stay_together() {
    let fake = Fake::start(1, &[("logs", 4)], Faults::default()).await;
    let producer = producer(&fake).build().unwrap();
    for number in 0..400 {
        drop(producer.send("logs", ProducerRecord::new(format!("{number:0100}"))).await.unwrap());
    }
    within(producer.flush()).await.unwrap();
    {
        let world = fake.world.lock();
        let counts: Vec<_> = (0..4).map(|partition| world.values("logs", partition).len()).collect();
        assert!(counts.iter().all(|count| *count > 40), "{counts:?}");
    }
    let mut places = Vec::new();
    for _ in 0..20 {
        let record = ProducerRecord::new("v").key("foobar");
        places.push(within(producer.send("logs", record).await.unwrap()).await.unwrap().partition);
    }
    // (murmur2("foobar") & 0x7fffffff) % 4, by Kafka's own test vector.
    let expected = (-790_332_482i32 & 0x7fff_ffff) as u32 % 4;
    assert!(places.iter().all(|place| place.0 == expected), "{places:?}");
}

#[tokio::test]
async fn what_cannot_be_sent_is_refused_before_it_is_taken() {
    let fake = Fake::start(1, &[("logs", 1)], Faults::default()).await;
    let producer = producer(&fake).build().unwrap();
    let error = producer.send("nothing", ProducerRecord::new("a")).await.unwrap_err();
    assert!(error.is(reason::TOPIC_NOT_FOUND), "{error:?}");
    let error = producer.send("logs", in_partition(1, "a")).await.unwrap_err();
    assert!(error.is(reason::PARTITION_NOT_FOUND), "{error:?}");
    let error = producer.send("logs", ProducerRecord::new("x".repeat(1 << 20))).await.unwrap_err();
    assert!(error.is(reason::RECORD_TOO_LARGE), "{error:?}");
    within(producer.close()).await.unwrap();
    let error = producer.send("logs", in_partition(0, "a")).await.unwrap_err();
    assert!(error.is(reason::CLOSED), "{error:?}");
    assert!(Producer::builder("127.0.0.1:1").in_flight(65).build().is_err());
    assert!(Producer::builder("127.0.0.1:1").buffer_bytes(1).build().is_err());
    assert!(Producer::builder("127.0.0.1:1").name("a/b").is_err());
}

#[tokio::test]
async fn a_batch_too_long_for_the_server_fails_alone_and_is_known_not_to_be_stored() {
    let fake = Fake::start(1, &[("logs", 2)], Faults::default()).await;
    fake.world.lock().message_max = 1000;
    let producer = producer(&fake).linger(Duration::ZERO).compression(Compression::None).build().unwrap();
    let mut pending = Vec::new();
    let long = "x".repeat(1000);
    for (partition, value) in [(0, "a"), (1, "b"), (0, &long), (0, "c"), (1, "d"), (1, &long), (0, "e")] {
        pending.push(producer.send("logs", in_partition(partition, value)).await.unwrap());
    }
    let mut told = Vec::new();
    for pending in pending {
        told.push(match within(pending).await {
            Ok(delivery) => Ok(delivery.offset.unwrap().get()),
            Err(error) => Err((error.outcome, error.cause.reason)),
        });
    }
    let refused = Err((Outcome::NotStored, reason::INVALID_REQUEST.to_owned()));
    assert_eq!(told, [Ok(0), Ok(0), refused.clone(), Ok(1), Ok(1), refused, Ok(2)]);
    assert_eq!(fake.world.lock().values("logs", 0), ["a", "c", "e"]);
    assert_eq!(fake.world.lock().values("logs", 1), ["b", "d"]);
    assert_eq!(fake.world.lock().inits, 1, "the numbering goes on");
}

#[tokio::test]
async fn dropping_the_producer_delivers_what_it_took() {
    let fake = Fake::start(1, &[("logs", 1)], Faults::default()).await;
    let producer = producer(&fake).linger(Duration::from_secs(20)).build().unwrap();
    let pending = producer.send("logs", in_partition(0, "a")).await.unwrap();
    drop(producer);
    assert_eq!(within(pending).await.unwrap().offset, Some(Offset::ZERO));
}

#[tokio::test]
async fn a_topic_that_is_deleted_fails_only_its_own_records() {
    let fake = Fake::start(1, &[("logs", 1), ("other", 1)], Faults::default()).await;
    let producer = producer(&fake).build().unwrap();
    for topic in ["logs", "other"] {
        drop(producer.send(topic, in_partition(0, "a")).await.unwrap());
    }
    within(producer.flush()).await.unwrap();
    fake.world.lock().topics.remove("logs");
    let gone = producer.send("logs", in_partition(0, "b")).await.unwrap();
    let kept = producer.send("other", in_partition(0, "b")).await.unwrap();
    let error = within(gone).await.unwrap_err();
    assert_eq!((error.outcome, error.cause.reason.as_str()), (Outcome::NotStored, reason::TOPIC_NOT_FOUND));
    assert_eq!(within(kept).await.unwrap().offset, Some(Offset::new(1).unwrap()));
    // Made again, it begins anew.
    fake.world.lock().topics.insert("logs".to_owned(), vec![crate::fake::Partition::default()]);
    let again = producer.send("logs", in_partition(0, "c")).await.unwrap();
    assert_eq!(within(again).await.unwrap().offset, Some(Offset::ZERO));
}
