//! What a running compaction does to the latency of durable appends, on one device:
//! `cargo bench -p rimstone-benches --bench compaction_pace -- [passes] [MiB] [rest in tenths]`
//!
//! Four writers append 1 KiB each to a partition of their own, one batch in flight each. Passes rewrite another
//! partition of random values meanwhile, slice after slice with a rest in between, as the broker does it. Every half
//! second the pass is held up for half a second, so that both sides meet the same machine.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU8, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use rimstone_record::{Batch, BatchBuilder, Compression, NewRecord};
use rimstone_store::{
    Append, CleanupPolicy, CompactionConfig, LocalOptions, LocalStorage, OpenMode, PartitionConfig,
    PartitionStore, Share, Storage, StoreClock, SyncPreference,
};
use rimstone_types::{ByteCount, PartitionId, PartitionIndex, Timestamp, TopicId};

/// Writers of the foreground.
const WRITERS: u32 = 4;
/// Log gone over before the rest: as in the broker.
const SLICE: ByteCount = ByteCount::mib(4);
/// Records of one batch of the log that is compacted.
const RECORDS: usize = 64;
/// Its keys: each is superseded several times.
const KEYS: u64 = 40_000;

/// A generator that is good enough to make bytes that do not compress.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn bytes(&mut self, length: usize) -> Bytes {
        (0..length.div_ceil(8)).flat_map(|_| self.next().to_le_bytes()).take(length).collect()
    }
}

fn keyed(noise: &mut Noise, records: usize) -> Batch {
    let mut builder = BatchBuilder::new(Compression::None);
    for _ in 0..records {
        let key = Some(Bytes::from(format!("key-{}", noise.next() % KEYS)));
        let record = NewRecord { key, value: Some(noise.bytes(1000)), ..NewRecord::default() };
        builder.push(&record).expect("a small record fits");
    }
    builder.build()
}

fn append(batch: Batch) -> Append {
    Append { batch, expected_end: None, content_hash: None, now: Timestamp(1_700_000_000_000) }
}

fn open(directory: &Path) -> Arc<LocalStorage> {
    let now = AtomicI64::new(1_700_000_000_000);
    let options = LocalOptions {
        directory: directory.to_owned(),
        disk_reserve: ByteCount(0),
        sync: SyncPreference::Auto,
        producers: Default::default(),
        clock: StoreClock(Arc::new(move || Timestamp(now.fetch_add(1, Ordering::Relaxed)))),
    };
    LocalStorage::open(options).expect("a temporary directory opens")
}

async fn partition(storage: &LocalStorage, number: u32, config: PartitionConfig) -> Arc<dyn PartitionStore> {
    let topic = TopicId(uuid::Uuid::from_u128(0xbe9c4));
    let id = PartitionId { topic, partition: PartitionIndex(number) };
    storage.open(id, config, OpenMode::CreateNew).await.expect("it is new")
}

/// How long the pass goes on, and is held up, in turn.
const TURN: Duration = Duration::from_millis(500);

const WITHOUT: u8 = 0;
const WITH: u8 = 1;
const STOP: u8 = 2;

/// Appends until it is told to stop; answers the latencies without and with a compaction, sorted. What began in
/// one turn and ended in another is nobody's.
async fn writers(partitions: &[Arc<dyn PartitionStore>], turn: &Arc<AtomicU8>) -> [Vec<Duration>; 2] {
    let tasks: Vec<_> = partitions
        .iter()
        .enumerate()
        .map(|(number, store)| {
            let (store, turn) = (Arc::clone(store), Arc::clone(turn));
            tokio::spawn(async move {
                let batch = keyed(&mut Noise(number as u64 + 1), 1);
                let mut latencies = [Vec::new(), Vec::new()];
                loop {
                    let side = turn.load(Ordering::Acquire);
                    let Some(latencies) = latencies.get_mut(usize::from(side)) else { break };
                    let began = Instant::now();
                    store.submit(append(batch.clone())).expect("there is room").await.expect("it is durable");
                    if turn.load(Ordering::Acquire) == side {
                        latencies.push(began.elapsed());
                    }
                }
                latencies
            })
        })
        .collect();
    let mut all = [Vec::new(), Vec::new()];
    for task in tasks {
        for (all, one) in all.iter_mut().zip(task.await.expect("writers do not panic")) {
            all.extend(one);
        }
    }
    all.iter_mut().for_each(|side| side.sort_unstable());
    all
}

fn quantile(sorted: &[Duration], share: f64) -> f64 {
    let at = ((sorted.len() as f64 * share) as usize).min(sorted.len() - 1);
    sorted[at].as_secs_f64() * 1000.0
}

async fn fill(store: &Arc<dyn PartitionStore>, noise: &mut Noise, mib: usize) {
    for _ in 0..mib * 1024 / RECORDS {
        store.submit(append(keyed(noise, RECORDS))).expect("there is room").await.expect("it is durable");
    }
}

/// One pass in turns; answers how long it went on, and what it wrote.
async fn pass(store: &Arc<dyn PartitionStore>, rest_tenths: u32, turn: &AtomicU8) -> (Duration, u64) {
    let (mut took, mut written) = (Duration::ZERO, 0);
    loop {
        turn.store(WITH, Ordering::Release);
        let began = Instant::now();
        let mut more = true;
        while more && began.elapsed() < TURN {
            let slice = Instant::now();
            let done = store.compact(Timestamp(1_800_000_000_000), SLICE).await.expect("it can be compacted");
            written += done.written.get();
            more = done.more;
            tokio::time::sleep(slice.elapsed() * rest_tenths / 10).await;
        }
        took += began.elapsed();
        turn.store(WITHOUT, Ordering::Release);
        tokio::time::sleep(TURN).await;
        if !more {
            turn.store(STOP, Ordering::Release);
            return (took, written);
        }
    }
}

#[tokio::main]
async fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    // Only this bench's own words: a filter of others, as from `cargo bench end_to_end`, is not for it.
    if words.iter().any(|word| !word.starts_with('-') && word.parse::<u32>().is_err()) {
        return;
    }
    let numbers: Vec<u32> = words.iter().filter_map(|word| word.parse().ok()).collect();
    let number = |at: usize, default| numbers.get(at).copied().unwrap_or(default);
    // As criterion's benches do: with `--test` it is only tried whether it runs.
    let tried = words.iter().any(|word| word == "--test");
    let (passes, mib) = if tried { (1, 24) } else { (number(0, 5), number(1, 128) as usize) };
    let rest = number(2, 10);
    let directory = tempfile::tempdir_in(".").expect("a directory on the disk, not in memory");
    let storage = open(directory.path());
    println!("sync: {}", storage.sync_method().name);
    let mut foreground = Vec::new();
    for writer in 0..WRITERS {
        foreground.push(partition(&storage, writer, PartitionConfig::default()).await);
    }
    let config = PartitionConfig {
        cleanup: CleanupPolicy::Compact,
        segment_bytes: ByteCount::mib(16),
        compaction: CompactionConfig {
            min_dirty_ratio: Share::from_millionths(0).expect("not above one"),
            ..CompactionConfig::default()
        },
        ..PartitionConfig::default()
    };
    let background = partition(&storage, WRITERS, config).await;
    let mut noise = Noise(7);
    let mut all = [Vec::new(), Vec::new()];
    for number in 0..passes {
        fill(&background, &mut noise, mib).await;
        let turn = Arc::new(AtomicU8::new(WITHOUT));
        let (latencies, (took, written)) =
            tokio::join!(writers(&foreground, &turn), pass(&background, rest, &turn));
        println!(
            "pass {number}: {:.1} s, {:.0} MiB written",
            took.as_secs_f64(),
            written as f64 / f64::from(1 << 20)
        );
        tell(&latencies);
        for (all, one) in all.iter_mut().zip(latencies) {
            all.extend(one);
        }
    }
    all.iter_mut().for_each(|side| side.sort_unstable());
    println!("all passes");
    tell(&all);
}

fn tell([without, with]: &[Vec<Duration>; 2]) {
    let pair = |share| (quantile(without, share), quantile(with, share));
    for (name, share) in [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)] {
        let (without, with) = pair(share);
        println!("  {name}: {without:.2} ms without, {with:.2} ms with, ratio {:.2}", with / without);
    }
}
