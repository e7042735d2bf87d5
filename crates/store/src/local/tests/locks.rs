//! No change is made to the disk under a partition's lock: whoever appends would wait for it.

use std::{
    backtrace::Backtrace,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use rimstone_log::recording::{Observer, Recorder};
use rimstone_record::ProducerStamp;
use rimstone_types::Numbering;

use super::*;
use crate::{CleanupPolicy, CompactionConfig, OffsetRange, ScrubScope, Share};

const NOW: Timestamp = Timestamp(1_700_000_000_000);
/// Who has the lock for a moment gives it back; the one who makes the change does not while it waits here.
const HELD: Duration = Duration::from_secs(10);

/// Takes the lock before each change.
struct Watch {
    partition: Arc<LocalPartition>,
    looks: AtomicUsize,
    held: parking_lot::Mutex<Option<String>>,
}

impl Watch {
    fn look(&self) {
        self.looks.fetch_add(1, Ordering::Relaxed);
        if self.held.lock().is_none() && self.partition.state.try_lock_for(HELD).is_none() {
            *self.held.lock() = Some(Backtrace::force_capture().to_string());
        }
    }

    /// How many changes there were since the last call.
    fn looks(&self, what: &str) -> usize {
        if let Some(who) = &*self.held.lock() {
            panic!("{what}: a change is made under the lock\n{who}");
        }
        self.looks.swap(0, Ordering::Relaxed)
    }
}

impl Observer for Watch {
    fn change(&self) {
        self.look();
    }

    fn sync(&self) {
        self.look();
    }
}

fn keyed(number: u32, key: &str) -> Append {
    let stamp = ProducerStamp {
        id: ProducerId::new(7).unwrap(),
        epoch: ProducerEpoch::ZERO,
        base: number,
        numbering: Numbering::Dense,
    };
    let mut builder = BatchBuilder::new(Compression::None).producer(stamp);
    let (key, value) = (Some(Bytes::from(key.to_owned())), Some(Bytes::from(vec![b'x'; 1500])));
    builder.push(&NewRecord { key, value, timestamp: NOW, ..NewRecord::default() }).unwrap();
    Append { batch: builder.build(), ..append("") }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_done_to_files_is_done_without_the_lock() {
    let directory = tempfile::tempdir().unwrap();
    let storage = LocalStorage::open(options(directory.path(), SyncPreference::Fdatasync)).unwrap();
    let config = PartitionConfig {
        segment_bytes: ByteCount(4096),
        cleanup: CleanupPolicy::CompactAndDelete,
        retention_bytes: Some(ByteCount::kib(16)),
        compaction: CompactionConfig {
            min_dirty_ratio: Share::from_millionths(0).unwrap(),
            ..CompactionConfig::default()
        },
        ..PartitionConfig::default()
    };
    let partition = storage.open(id(5), config, OpenMode::CreateNew).await.unwrap();
    let path = storage.shared.directory.partition_path(id(5));
    let recorder = Recorder::install(directory.path()).unwrap();
    let watch = Arc::new(Watch {
        partition: Arc::clone(&storage.shared.all()[0]),
        looks: AtomicUsize::new(0),
        held: parking_lot::Mutex::default(),
    });
    recorder.observe(Some(watch.clone()));
    let mut number = 0;
    let mut put = async |count: u32| {
        for _ in 0..count {
            partition.submit(keyed(number, &format!("key {}", number % 5))).unwrap().await.unwrap();
            number += 1;
        }
    };

    put(12).await;
    assert!(watch.looks("appends") > 12);
    for start in [3, 5] {
        assert_eq!(partition.trim(Offset::new(start).unwrap()).await.unwrap().get(), start);
        assert!(watch.looks("a trim") > 4);
        put(4).await;
    }
    assert!(partition.maintain(NOW).await.unwrap().deleted > 0);
    assert!(watch.looks("retention") > 4);
    put(20).await;
    while partition.compact(NOW, ByteCount::mib(1)).await.unwrap().more {}
    assert!(watch.looks("compaction") > 4);
    put(20).await;

    // A bit of the second batch of the last segment that is sealed.
    let mut segments: Vec<_> = std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()).collect();
    segments.retain(|file| file.extension().is_some_and(|suffix| suffix == "log"));
    segments.sort();
    let rotten = &segments[segments.len() - 2];
    let mut content = std::fs::read(rotten).unwrap();
    content[2500] ^= 1;
    std::fs::write(rotten, content).unwrap();
    while partition.scrub(ScrubScope::Sealed, ByteCount::mib(1)).await.unwrap().more {}
    let damage = partition.find_damage().await.unwrap();
    assert_eq!(damage.len(), 1);
    let ranges = vec![OffsetRange { from: damage[0].from, until: damage[0].until }];
    assert_eq!(partition.accept_loss(ranges, NOW).await.unwrap().len(), 1);
    assert!(watch.looks("accepting a loss") > 4);

    partition.forget_producer(ProducerId::new(7).unwrap()).await.unwrap();
    assert!(watch.looks("forgetting a producer") > 0);
    partition.close().await.unwrap();
    assert!(watch.looks("closing a partition") > 0);
    storage.close().await.unwrap();
    assert!(watch.looks("a stop") > 0);
}
