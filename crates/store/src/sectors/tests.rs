//! A small run of the schedules, and what they have found, each by itself.
//!
//! `RIMSTONE_SECTORS` sets the number of seeds, `RIMSTONE_SEED` runs one seed alone.

use std::sync::atomic::{AtomicUsize, Ordering};

use rimstone_log::recording::{Journal, Observer, Recorder};
use rimstone_types::PartitionId;

use super::{
    client::{Time, options, partition_id},
    *,
};
use crate::{Append, LocalStorage, OpenMode, PartitionConfig, Storage};

/// Seeds of the small run.
const SEEDS: u64 = 12;
/// What is done for each of them: less than `just sectors` does.
const SMALL: Effort = Effort { steps: 100, images: 10, keep: false };

fn number(variable: &str) -> Option<u64> {
    let value = std::env::var(variable).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{variable} is a number, not {value}")))
}

#[test]
fn every_image_has_what_was_acknowledged() {
    let seeds = match number("RIMSTONE_SEED") {
        Some(seed) => seed..=seed,
        None => 1..=number("RIMSTONE_SECTORS").unwrap_or(SEEDS),
    };
    let mut all = Summary::default();
    for seed in seeds {
        println!("RIMSTONE_SEED={seed}");
        all += run(seed, SMALL).unwrap_or_else(|violation| panic!("{violation}"));
    }
    println!("{all:?}");
    let Summary { fired, lost, acknowledged, restarts, .. } = all;
    for (what, count) in [
        ("images that lost something", fired),
        ("units lost", lost.units.into()),
        ("lengths lost", lost.lengths.into()),
        ("names lost", lost.names.into()),
        ("appends acknowledged", acknowledged),
        ("restarts", restarts),
    ] {
        assert!(count > 0, "{what}: {count}; nothing was tested");
    }
    // One seed alone need not have all of it.
    if number("RIMSTONE_SEED").is_none() {
        let Summary { compactions, trims, deleted, faults, .. } = all;
        for (what, count) in [
            ("compactions", compactions),
            ("log starts moved", trims),
            ("topics deleted", deleted),
            ("calls that failed", faults),
        ] {
            assert!(count > 0, "{what}: {count}; nothing was tested");
        }
    }
}

#[test]
fn the_same_seed_makes_the_same_run() {
    let runs = [(); 2].map(|()| run(7, Effort { images: 3, ..SMALL }).expect("no violation"));
    assert_eq!(runs[0], runs[1]);
}

fn time() -> Time {
    Arc::new(AtomicI64::new(BEGIN))
}

fn append(value: &str) -> Append {
    use rimstone_record::{BatchBuilder, Compression, NewRecord};
    let mut builder = BatchBuilder::new(Compression::None);
    let value = Some(bytes::Bytes::from(value.to_owned()));
    builder.push(&NewRecord { value, ..NewRecord::default() }).unwrap();
    let now = rimstone_types::Timestamp(BEGIN);
    Append { batch: builder.build(), expected_end: None, content_hash: None, now }
}

/// Images of the end of a journal, each in a data directory of its own.
fn each_image(journal: &Journal, scratch: &Scratch, mut look: impl FnMut(&Path)) {
    let mut images = Images::new(journal);
    images.advance(journal.events.len());
    let mut fired = 0;
    for seed in 0..60 {
        let image = images.power_cut(seed);
        fired += usize::from(image.lost.any());
        let to = scratch.root("image").unwrap();
        image.write(journal, &to).unwrap();
        look(&to.join("data"));
        fs::remove_dir_all(&to).unwrap();
    }
    println!("{fired} of 60 images had lost something");
}

async fn has_a_record(directory: &Path, id: PartitionId) {
    let storage = LocalStorage::open(options(directory, SyncPreference::Fdatasync, &time())).unwrap();
    let partition = storage.open(id, PartitionConfig::default(), OpenMode::MustExist).await.unwrap();
    assert_eq!(partition.ends().durable.get(), 1);
}

fn wait<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(future)
}

/// The name of the data directory itself was not synced: a power cut took all of it.
#[test]
fn a_new_data_directory_is_durable_by_name() {
    let scratch = Scratch::new().unwrap();
    let root = scratch.root("0").unwrap();
    let recorder = Recorder::install(&root).unwrap();
    let id = partition_id(1, 0);
    wait(async {
        let directory = root.join("data");
        let storage = LocalStorage::open(options(&directory, SyncPreference::Fdatasync, &time())).unwrap();
        let partition = storage.open(id, PartitionConfig::default(), OpenMode::CreateNew).await.unwrap();
        partition.submit(append("x")).unwrap().await.unwrap();
    });
    let journal = recorder.journal();
    each_image(&journal, &scratch, |directory| wait(has_a_record(directory, id)));
}

/// Freezes its recorder at a place of the journal.
struct KillAt(std::sync::Weak<Recorder>, AtomicUsize);

impl Observer for KillAt {
    fn change(&self) {
        if let Some(recorder) = self.0.upgrade()
            && recorder.position() >= self.1.load(Ordering::Acquire)
        {
            recorder.freeze(true);
        }
    }

    fn sync(&self) {
        self.change();
    }
}

/// A kill came while a partition was made, between its files and the syncs of their names. The next start took it as it
/// was, and what was acknowledged in it was lost with its name in a power cut.
#[test]
fn a_partition_that_a_kill_left_half_made_is_durable_once_it_is_opened() {
    let id = partition_id(1, 0);
    let mut taken = 0;
    for kill in 1..40 {
        let scratch = Scratch::new().unwrap();
        let root = scratch.root("0").unwrap();
        let directory = root.join("data");
        let recorder = Recorder::install(&root).unwrap();
        wait(async {
            let open =
                || LocalStorage::open(options(&directory, SyncPreference::Fdatasync, &time())).unwrap();
            let storage = open();
            let at = recorder.position() + kill;
            recorder.observe(Some(Arc::new(KillAt(Arc::downgrade(&recorder), AtomicUsize::new(at)))));
            drop(storage.open(id, PartitionConfig::default(), OpenMode::CreateNew).await);
            drop(storage);
            recorder.observe(None);
            recorder.freeze(false);
            let storage = open();
            if storage.list().await.unwrap() != [id] {
                return;
            }
            taken += 1;
            let partition = storage.open(id, PartitionConfig::default(), OpenMode::MustExist).await.unwrap();
            partition.submit(append("x")).unwrap().await.unwrap();
            drop((partition, storage));
            each_image(&recorder.journal(), &scratch, |directory| {
                let directory = directory.to_owned();
                std::thread::spawn(move || wait(has_a_record(&directory, id))).join().unwrap();
            });
        });
    }
    assert!(taken > 3, "{taken}");
}

/// A kill came while a topic was deleted, behind the rename and before the syncs of its names. The next start found
/// nothing to delete any more, said so, and a power cut brought the topic back (seed 46).
#[test]
fn a_topic_that_a_kill_left_half_deleted_is_gone_once_that_is_said() {
    let id = partition_id(1, 0);
    let mut gone_before = 0;
    for kill in 0..12 {
        let scratch = Scratch::new().unwrap();
        let root = scratch.root("0").unwrap();
        let directory = root.join("data");
        let recorder = Recorder::install(&root).unwrap();
        wait(async {
            let open =
                || LocalStorage::open(options(&directory, SyncPreference::Fdatasync, &time())).unwrap();
            let storage = open();
            drop(storage.open(id, PartitionConfig::default(), OpenMode::CreateNew).await.unwrap());
            let at = recorder.position() + kill;
            recorder.observe(Some(Arc::new(KillAt(Arc::downgrade(&recorder), AtomicUsize::new(at)))));
            drop(storage.delete(id.topic).await);
            drop(storage);
            recorder.observe(None);
            recorder.freeze(false);
            let storage = open();
            gone_before += usize::from(storage.list().await.unwrap().is_empty());
            storage.delete(id.topic).await.unwrap();
            drop(storage);
            each_image(&recorder.journal(), &scratch, |directory| {
                let there = rimstone_log::list_partitions(directory).unwrap();
                assert_eq!(there, [], "killed {kill} calls into it");
            });
        });
    }
    assert!(gone_before > 3, "{gone_before}");
}
