use bytes::Bytes;
use rimstone_record::{BatchBuilder, Compression, NewRecord};
use rimstone_types::PartitionIndex;

use super::*;
use crate::{Append, Backpressure, conformance::Harness};

struct Memory(Arc<MemoryStorage>);

impl Harness for Memory {
    async fn create() -> Self {
        Self(Arc::new(MemoryStorage::new()))
    }

    fn storage(&self) -> Arc<dyn Storage> {
        self.0.clone()
    }

    async fn reopen(self) -> Self {
        self.0.close().await.expect("memory closes");
        Self(Arc::new(self.0.reopen()))
    }
}

mod conformance {
    use super::Memory;

    crate::conformance_suite!(Memory);
}

fn append() -> Append {
    let mut builder = BatchBuilder::new(Compression::None);
    builder.push(&NewRecord { value: Some(Bytes::from(vec![0; 1000])), ..NewRecord::default() }).unwrap();
    Append {
        batch: builder.build(),
        expected_end: None,
        content_hash: None,
        now: rimstone_types::Timestamp(0),
    }
}

#[tokio::test]
async fn memory_is_bounded_and_comes_back() {
    let storage = MemoryStorage::with_capacity(ByteCount(3000));
    let id =
        |topic| PartitionId { topic: TopicId(uuid::Uuid::from_u128(topic)), partition: PartitionIndex(0) };
    let open =
        async |topic| storage.open(id(topic), PartitionConfig::default(), OpenMode::CreateNew).await.unwrap();
    let (one, two) = (open(1).await, open(2).await);
    for partition in [&one, &two, &one] {
        partition.submit(append()).unwrap().await.unwrap();
    }
    assert!(matches!(two.submit(append()), Err(Backpressure::DiskReserve { .. })));
    storage.delete(id(1).topic).await.unwrap();
    two.submit(append()).unwrap().await.unwrap();
    assert_eq!(storage.statistics().written_bytes, 4 * append().batch.bytes().len() as u64);
}
