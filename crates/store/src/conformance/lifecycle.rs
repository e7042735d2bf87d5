//! Opening, closing, deleting.

use super::*;
use crate::{Backpressure, OpenError, StoreError, StoreState, Waiter};

/// `CreateNew` of what is there and `MustExist` of what is not are errors that name the partition.
pub async fn partitions_are_made_once_and_must_exist<H: Harness>() {
    let harness = H::create().await;
    let open = async |id, mode| {
        within("opening", harness.storage().open(id, PartitionConfig::default(), mode)).await.map(drop)
    };
    assert!(
        matches!(open(id(1, 0), OpenMode::MustExist).await, Err(OpenError::Missing(it)) if it == id(1, 0))
    );
    assert_eq!(within("a list", harness.storage().list()).await.expect("the store is open"), []);
    open(id(1, 0), OpenMode::CreateNew).await.expect("it is new");
    open(id(1, 1), OpenMode::CreateNew).await.expect("it is new");
    open(id(2, 0), OpenMode::CreateNew).await.expect("it is new");
    assert!(
        matches!(open(id(1, 1), OpenMode::CreateNew).await, Err(OpenError::Exists(it)) if it == id(1, 1))
    );
    open(id(1, 1), OpenMode::MustExist).await.expect("it is there, and open already");
    assert!(matches!(open(id(1, 2), OpenMode::MustExist).await, Err(OpenError::Missing(_))));
    let listed = async |harness: &H| {
        let mut all = within("a list", harness.storage().list()).await.expect("the store is open");
        all.sort();
        all
    };
    assert_eq!(listed(&harness).await, [id(1, 0), id(1, 1), id(2, 0)]);
    // Not open, and all there.
    let harness = harness.reopen().await;
    assert_eq!(listed(&harness).await, [id(1, 0), id(1, 1), id(2, 0)]);
    let storage = harness.storage();
    let again =
        within("opening", storage.open(id(2, 0), PartitionConfig::default(), OpenMode::CreateNew)).await;
    assert!(matches!(again, Err(OpenError::Exists(_))));
}

/// Batches, ends, append times: as they were, several times over.
pub async fn a_restart_changes_nothing<H: Harness>() {
    let mut harness = H::create().await;
    let config = PartitionConfig { segment_bytes: ByteCount::kib(4), ..PartitionConfig::default() };
    let mut partition = Partition::create(&harness, config.clone()).await;
    for round in 0..4 {
        for n in 0..10 {
            let now = NOW.saturating_add(Duration::from_secs(round * 10 + n));
            let append = Append { now, ..append(batch(None, &format!("{round}-{n}"), 3)) };
            within("an answer", partition.submit(append)).await.expect("it is taken");
            partition.append(heavy(700, NOW.as_millis())).await;
        }
        let (ends, all) = (partition.0.ends(), partition.read_all().await);
        let last =
            partition.0.append_time_at(offset(ends.stable.get() - 1)).await.expect("the log can be read");
        let identity = harness.storage().identity();
        (harness, partition) = restart(harness, partition, &config).await;
        assert_eq!(harness.storage().identity(), identity);
        assert_eq!(partition.0.ends(), ends);
        assert_eq!(partition.read_all().await, all);
        let again =
            partition.0.append_time_at(offset(ends.stable.get() - 1)).await.expect("the log can be read");
        assert_eq!(again, last);
    }
    assert_eq!(partition.end(), 160);
}

/// Offsets, producers and settings of one partition are nothing to another.
pub async fn partitions_are_separate<H: Harness>() {
    let harness = H::create().await;
    let one = Partition::open(&harness, id(1, 0), PartitionConfig::default(), OpenMode::CreateNew).await;
    let two = Partition::open(&harness, id(1, 1), PartitionConfig::default(), OpenMode::CreateNew).await;
    one.append(batch(dense(UNNAMED, 0, 0), "one", 5)).await;
    assert_eq!(two.append(batch(dense(UNNAMED, 0, 0), "two", 1)).await, 0);
    assert_eq!((one.end(), two.end()), (5, 1));
    assert_eq!(two.values().await, ["two-0"]);
}

/// The topic's partitions are gone and their handles take nothing more; a partition made anew is empty.
pub async fn deleted_topics_are_gone<H: Harness>() {
    let harness = H::create().await;
    let config = PartitionConfig::default();
    let partition = Partition::open(&harness, id(1, 0), config.clone(), OpenMode::CreateNew).await;
    let other = Partition::open(&harness, id(2, 0), config.clone(), OpenMode::CreateNew).await;
    partition.append(batch(dense(NAMED, 0, 0), "x", 2)).await;
    other.append(batch(None, "stays", 1)).await;
    let waiter = Waiter::new();
    partition.0.subscribe(&waiter);
    within("a deletion", harness.storage().delete(id(1, 0).topic)).await.expect("the topic is there");
    within("a wake", waiter.wait()).await;
    let submitted = partition.0.submit(append(batch(None, "x", 1)));
    assert!(matches!(submitted, Err(Backpressure::Closed)), "{submitted:?}");
    assert_eq!(within("a list", harness.storage().list()).await.expect("the store is open"), [id(2, 0)]);
    let storage = harness.storage();
    let missing = within("opening", storage.open(id(1, 0), config.clone(), OpenMode::MustExist)).await;
    assert!(matches!(missing, Err(OpenError::Missing(_))));
    within("a deletion", harness.storage().delete(id(9, 0).topic)).await.expect("nothing is there to delete");

    let anew = Partition::open(&harness, id(1, 0), config.clone(), OpenMode::CreateNew).await;
    assert_eq!(anew.0.ends(), crate::LogEnds::default());
    assert_eq!(anew.0.producers(10), []);
    assert_eq!(anew.append(batch(None, "anew", 1)).await, 0);
    assert_eq!(other.values().await, ["stays-0"]);
    drop((partition, other, storage));
    let (_harness, anew) = restart(harness, anew, &config).await;
    assert_eq!(anew.values().await, ["anew-0"]);
}

/// After `close` nothing is taken and nothing is opened; what was taken before is answered.
pub async fn a_closed_store_takes_nothing<H: Harness>() {
    let harness = H::create().await;
    let partition = Partition::create(&harness, PartitionConfig::default()).await;
    let tickets: Vec<_> =
        (0..20).map(|n| partition.submit(append(batch(None, &format!("b{n}"), 1)))).collect();
    let storage = harness.storage();
    within("closing", storage.close()).await.expect("nothing stands in the way");
    for (n, ticket) in tickets.into_iter().enumerate() {
        assert_eq!(within("an answer", ticket).await, stored(n as u64, n as u64));
    }
    let submitted = partition.0.submit(append(batch(None, "x", 1)));
    assert!(matches!(submitted, Err(Backpressure::Closed)), "{submitted:?}");
    let opened = storage.open(id(1, 1), PartitionConfig::default(), OpenMode::CreateNew);
    assert!(matches!(within("opening", opened).await, Err(OpenError::Store(StoreError::ShuttingDown))));
}

/// What `describe` shows is true.
pub async fn a_partition_tells_of_itself<H: Harness>() {
    let harness = H::create().await;
    let config = PartitionConfig { segment_bytes: ByteCount::kib(4), ..PartitionConfig::default() };
    let partition = Partition::create(&harness, config).await;
    let empty = partition.0.info();
    assert_eq!((empty.segments, empty.producers, &empty.state), (1, 0, &StoreState::Serving));
    partition.append(batch(dense(NAMED, 0, 0), "x", 1)).await;
    partition.append(batch(dense(UNNAMED, 0, 0), "x", 1)).await;
    for _ in 0..8 {
        partition.append(heavy(1000, NOW.as_millis())).await;
    }
    let info = partition.0.info();
    assert_eq!(info.ends, partition.0.ends());
    assert_eq!(info.producers, 2);
    assert!(info.segments >= 3 && info.segments <= 4, "{info:?}");
    assert!(info.bytes >= ByteCount(8000) && info.bytes < ByteCount::kib(64), "{info:?}");
    assert_eq!(info.undurable_bytes, ByteCount(0), "everything was acknowledged");
    assert!(!harness.storage().sync_method().name.is_empty());
    assert_eq!(harness.storage().health(), crate::Health::Healthy);
}
