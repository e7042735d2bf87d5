//! What a power cut leaves, found by the schedules of the store (`sectors`), each by itself.

use super::*;
use crate::{
    DataDirectory,
    producers::Limits,
    recording::{CallKind, Fault, Recorder, image::Images},
    snapshot,
};

/// The state of producers as every image of a directory has it.
fn snapshots(recorder: &Recorder) -> Vec<Option<Offset>> {
    let journal = recorder.journal();
    let mut images = Images::new(&journal);
    images.advance(journal.events.len());
    (0..100)
        .map(|seed| {
            let to = tempfile::tempdir().unwrap();
            images.power_cut(seed).write(&journal, to.path()).unwrap();
            let newest = snapshot::newest(to.path(), Offset::MAX, &Limits::default()).unwrap();
            newest.map(|(offset, _)| offset)
        })
        .collect()
}

/// The snapshot that a trim has synced was overwritten by one that is not synced, at the same offset: by a roll, or at
/// a stop.
#[test]
fn a_synced_snapshot_is_not_replaced_by_one_that_is_not() {
    for stop in [false, true] {
        let directory = tempfile::tempdir().unwrap();
        let recorder = Recorder::install(directory.path()).unwrap();
        let mut log = Log::create(directory.path(), ID, config(500), Timestamp(0)).unwrap();
        let (batch, claim) = dense(&values(1, 300, 1), 0, 7, 0);
        log.offer(&batch, Some(&claim), None, Timestamp(0)).unwrap();
        log.stage_snapshot(true);
        sync(&mut log);
        assert!(snapshots(&recorder).iter().all(Option::is_some));
        if stop {
            log.caches().write().unwrap();
        } else {
            // Does not fit any more: the segment is sealed where the snapshot was made.
            append(&mut log, &values(1, 300, 2), 0);
            sync(&mut log);
            assert_eq!(log.size().0, 2);
        }
        assert!(snapshots(&recorder).iter().all(Option::is_some), "stop: {stop}");
    }
}

/// After a crash the snapshots before a durable one may be back: the durable one was taken for a cache then.
#[test]
fn snapshots_that_were_there_at_a_start_stay_until_another_is_durable() {
    let directory = tempfile::tempdir().unwrap();
    let mut log = Log::create(directory.path(), ID, config(500), Timestamp(0)).unwrap();
    for n in 0..4 {
        let (batch, claim) = dense(&values(1, 300, 1), 0, 7, n);
        log.offer(&batch, Some(&claim), None, Timestamp(0)).unwrap();
        sync(&mut log);
    }
    let witness = log.durable_position();
    drop(log);
    let (mut log, _) = open(directory.path(), 500, Some(witness), false);
    let there = |directory: &Path| crate::files::list_offsets(directory, "producers").unwrap();
    let found = there(directory.path());
    assert!(found.len() >= 2, "{found:?}");
    for n in 4..9 {
        let (batch, claim) = dense(&values(1, 300, 1), 0, 7, n);
        log.offer(&batch, Some(&claim), None, Timestamp(0)).unwrap();
        sync(&mut log);
    }
    let later = there(directory.path());
    assert!(found.iter().all(|offset| later.contains(offset)), "{found:?}, then {later:?}");
    log.stage_snapshot(true);
    sync(&mut log);
    append(&mut log, &values(1, 300, 1), 0);
    sync(&mut log);
    append(&mut log, &values(1, 300, 1), 0);
    sync(&mut log);
    assert!(there(directory.path()).len() <= 3);
}

/// A write failed, part of it there, and it was said that nothing of it is stored. A power cut before the next sync
/// brought its frames back, or the segment that it had made.
#[test]
fn what_is_said_not_to_be_stored_does_not_come_back() {
    for (segment_bytes, images) in [(4096, 200), (500, 200)] {
        let scratch = recorded();
        let recorder = Recorder::install(scratch.path()).unwrap();
        let mut log = Log::create(scratch.path(), ID, config(segment_bytes), Timestamp(0)).unwrap();
        append(&mut log, &values(1, 150, 1), 0);
        sync_files(&mut log);
        // Fits, or is written behind a seal, into a segment of its own.
        append(&mut log, &values(1, 150, 2), 0);
        let mut plan = log.take_plan().unwrap();
        let after = usize::from(plan.creates());
        // All of it gets through, and an error comes all the same.
        let error = rustix::io::Errno::NOSPC.raw_os_error();
        recorder.fail(Fault { kind: CallKind::Write, after, short: 4096, error });
        let failure = plan.execute().unwrap_err();
        assert!(failure.undone.is_ok());
        log.plan_failed(plan, &failure);
        drop(log);
        let journal = recorder.journal();
        let mut drawn = Images::new(&journal);
        drawn.advance(journal.events.len());
        for seed in 0..images {
            let to = recorded();
            drawn.power_cut(seed).write(&journal, to.path()).unwrap();
            let there = crate::files::list_offsets(to.path(), "log").unwrap();
            assert_eq!(there, [offset(0)], "image {seed}, segments of {segment_bytes}");
            let (log, _) = open(to.path(), segment_bytes, None, false);
            assert_eq!(log.staged_end(), offset(1), "image {seed}, segments of {segment_bytes}");
        }
    }
}

/// A directory in memory, where there is such a file system: images are many.
pub(super) fn recorded() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let builder = tempfile::Builder::new().prefix("rimstone-log-").to_owned();
    if memory.is_dir() { builder.tempdir_in(memory).unwrap() } else { builder.tempdir().unwrap() }
}

/// Writes what is staged and really makes it durable.
fn sync_files(log: &mut Log) {
    let mut plan = log.take_plan().unwrap();
    plan.execute().unwrap();
    for file in plan.files() {
        crate::files::sync_data(&file).unwrap();
    }
    let written = log.plan_succeeded(plan).execute();
    log.snapshots_written(&written);
    crate::files::sync_directory(log.directory()).unwrap();
    log.synced(log.written_position());
}

/// A sync failed when a topic was deleted, behind the rename; the next start emptied the trash, and a power cut took the
/// rename back: the topic was there with a part of its files (seed 267).
#[test]
fn a_topic_is_whole_or_not_there() {
    let scratch = recorded();
    let recorder = Recorder::install(scratch.path()).unwrap();
    let path = scratch.path().canonicalize().unwrap().join("data");
    let open = || DataDirectory::open(&path, uuid::Uuid::nil(), Timestamp(0)).unwrap();
    let directory = open();
    let partition = directory.create_partition(ID).unwrap();
    let mut log = Log::create(&partition, ID, config(500), Timestamp(0)).unwrap();
    for n in 0..4 {
        append(&mut log, &values(1, 300, n), 0);
        sync_files(&mut log);
    }
    drop(log);
    let segments = |data: &Path| {
        let there = crate::list_partitions(data).unwrap().contains(&ID);
        there.then(|| crate::files::list_offsets(&crate::partition_path(data, ID), "log").unwrap())
    };
    let whole = segments(&path).unwrap();
    assert!(whole.len() > 2);
    let error = rustix::io::Errno::IO.raw_os_error();
    recorder.fail(Fault { kind: CallKind::Sync, after: 0, short: 0, error });
    directory.delete_topic(ID.topic).unwrap_err();
    drop(directory);
    drop(open());
    let journal = recorder.journal();
    let mut images = Images::new(&journal);
    let mut back = 0;
    for at in (0..journal.events.len()).rev().take(12).rev() {
        images.advance(at);
        for seed in 0..50 {
            let to = recorded();
            images.power_cut(seed).write(&journal, to.path()).unwrap();
            let found = segments(&to.path().join("data"));
            back += u32::from(found.is_some());
            assert!(found.is_none_or(|found| found == whole), "image {seed} at {at}");
        }
    }
    println!("there in {back} images");
}
