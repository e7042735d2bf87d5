//! Trims that end after something else has come: a stop, a deletion, another trim.

use std::{
    pin::Pin,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use futures::future::BoxFuture;

use super::*;
use crate::StoreError;

fn offset(value: u64) -> Offset {
    Offset::new(value).unwrap()
}

/// One look, without waiting.
fn poll<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    Pin::new(future).poll(&mut Context::from_waker(Waker::noop()))
}

async fn told<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("an answer in time")
}

/// A store whose flusher takes a step when it is told to, with a partition of three segments.
async fn stepped() -> (tempfile::TempDir, Arc<LocalStorage>, Arc<dyn PartitionStore>) {
    let directory = tempfile::tempdir().unwrap();
    let storage = LocalStorage::open_stepped(options(directory.path(), SyncPreference::Auto)).unwrap();
    let small = PartitionConfig { segment_bytes: ByteCount(4096), ..PartitionConfig::default() };
    let partition = storage.open(id(5), small, OpenMode::CreateNew).await.unwrap();
    for _ in 0..3 {
        let ticket = partition.submit(append(&"x".repeat(3000))).unwrap();
        while storage.step(Instant::now()) {}
        told(ticket).await.unwrap();
    }
    (directory, storage, partition)
}

/// A trim for which everything is durable that has to be: the next look begins what it does to the files.
fn about_to_trim<'a>(
    storage: &LocalStorage,
    partition: &'a Arc<dyn PartitionStore>,
    start: u64,
) -> BoxFuture<'a, Result<Offset, StoreError>> {
    let mut trim = partition.trim(offset(start));
    for _ in 0..2 {
        assert!(poll(&mut trim).is_pending());
        while storage.step(Instant::now()) {}
    }
    trim
}

#[tokio::test]
async fn a_trim_that_ends_after_its_partition_changes_nothing() {
    for way in ["closed", "dropped", "deleted", "poisoned"] {
        let (directory, storage, partition) = stepped().await;
        let path = storage.shared.directory.partition_path(id(5));
        let trim = about_to_trim(&storage, &partition, 2);
        let mut kept = None;
        match way {
            "closed" => told(storage.close()).await.unwrap(),
            "dropped" => drop(storage),
            "deleted" => {
                told(storage.delete(id(5).topic)).await.unwrap();
                // Another of the same name has nothing to do with it.
                told(storage.open(id(5), PartitionConfig::default(), OpenMode::CreateNew)).await.unwrap();
                kept = Some(storage);
            }
            _ => {
                storage.shared.all()[0].poison("made up");
                kept = Some(storage);
            }
        }
        let refused = told(trim).await;
        match way {
            "deleted" => assert!(matches!(refused, Err(StoreError::Deleted)), "{refused:?}"),
            "poisoned" => assert!(matches!(refused, Err(StoreError::Poisoned { .. })), "{refused:?}"),
            _ => assert!(matches!(refused, Err(StoreError::ShuttingDown)), "{way}: {refused:?}"),
        }
        assert_eq!(partition.ends().start, offset(0), "{way}");
        assert!(!path.join("log-start").exists(), "{way}");
        drop((partition, kept));
        if way != "deleted" {
            let storage = LocalStorage::open(options(directory.path(), SyncPreference::Auto)).unwrap();
            let again = storage.open(id(5), PartitionConfig::default(), OpenMode::MustExist).await.unwrap();
            assert_eq!((storage.was_clean(), read_values(&again).await.len()), (way == "closed", 3), "{way}");
        }
    }
}

/// Nobody waits for it any more, and another one has overtaken it: log start does not go back.
#[tokio::test]
async fn a_trim_that_comes_late_takes_nothing_back() {
    let (directory, storage, partition) = stepped().await;
    assert_eq!(told(about_to_trim(&storage, &partition, 2)).await.unwrap(), offset(2));
    let late = storage.shared.all()[0].carry_out_trim(offset(1)).unwrap();
    assert_eq!(late, (offset(2), 0, 0));
    assert_eq!(partition.ends().start, offset(2));
    told(storage.close()).await.unwrap();
    drop((partition, storage));
    let storage = LocalStorage::open(options(directory.path(), SyncPreference::Auto)).unwrap();
    let again = storage.open(id(5), PartitionConfig::default(), OpenMode::MustExist).await.unwrap();
    assert_eq!((again.ends().start, read_values(&again).await.len()), (offset(2), 1));
}
