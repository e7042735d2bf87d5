//! Partitions for the tests of other rooms.

use std::sync::Arc;

use rimstone_types::{PartitionId, PartitionIndex, TopicId};
use uuid::Uuid;

use super::{
    LocalPartition, LocalStorage, SyncPreference,
    tests::{append, options},
};
use crate::{
    partition::PartitionStore as _,
    storage::{OpenMode, PartitionConfig, Storage as _},
};

/// A store with partitions.
pub(crate) struct Opened {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) storage: Arc<LocalStorage>,
    pub(crate) partitions: Vec<Arc<LocalPartition>>,
}

/// So many partitions with one record each.
pub(crate) async fn opened(count: u32) -> Opened {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let storage = LocalStorage::open(options(directory.path(), SyncPreference::Auto)).expect("it opens");
    for partition in 0..count {
        let id = PartitionId { topic: TopicId(Uuid::from_u128(5)), partition: PartitionIndex(partition) };
        storage.open(id, PartitionConfig::default(), OpenMode::CreateNew).await.expect("it is made");
    }
    let partitions = storage.shared.all();
    for partition in &partitions {
        put(partition).await;
    }
    Opened { directory, storage, partitions }
}

/// Appends one record.
pub(crate) async fn put(partition: &Arc<LocalPartition>) {
    let ticket = partition.submit(append("value")).expect("it is taken");
    ticket.await.expect("it is stored");
}
