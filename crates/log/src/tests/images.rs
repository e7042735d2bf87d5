//! Random operations against a plain list, with power cuts among them. What the next start finds is any directory that
//! the cut could have left, at some place of what was done since the last one ([`crate::recording::image`]); or, after
//! a kill, all of it. The syncs that were really made say what is durable, and witness, checkpoints, clean mark and names
//! are part of the directory. Writes and syncs fail.
//!
//! Not here: files that are spoiled otherwise (`model`), compaction (`compaction::tests`), a flusher, whose part is
//! played here; all of it together is in the schedules of the store (`sectors`).

mod operation;
mod seen;

use std::{cell::RefCell, fs::File, path::PathBuf};

use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};
use rimstone_types::LogEnds;

use self::operation::{Operation, operation};
use super::*;
use crate::{
    CHECKPOINTS_FILE, Checkpoint, Checkpoints, DataDirectory, WITNESS_FILE, Witness, files,
    recording::{CallKind, Fault, Recorder, image::Images},
};

/// Those who number: by sequence and by request, without a name and with one.
const PRODUCERS: [(u64, Numbering); 5] = [
    (1, Numbering::Dense),
    (2, Numbering::Dense),
    (3, Numbering::ByRequest),
    (NAMED | 4, Numbering::Dense),
    (NAMED | 5, Numbering::ByRequest),
];
/// Set in the ids of named producers.
const NAMED: u64 = 1 << 62;
/// How many schedules are tried, unless `PROPTEST_CASES` says otherwise.
const CASES: u32 = 120;
/// A segment is older than this then.
const OLD: i64 = 3_700_000;

/// A batch that was staged.
struct Staged {
    base: u64,
    batch: Batch,
    claim: Option<Claim>,
    append_time: i64,
    times: Vec<i64>,
}

impl Staged {
    fn end(&self) -> u64 {
        self.base + self.times.len() as u64
    }
}

/// What was promised, and at which place of the journal.
#[derive(Debug, Clone, Copy)]
struct Promise {
    place: usize,
    durable: u64,
    start: u64,
}

/// What runs on a data directory.
struct Server {
    directory: DataDirectory,
    witness: Witness,
    checkpoints: Checkpoints,
    log: Log,
}

/// What has happened in all.
#[derive(Debug, Clone, Copy, Default)]
struct Done {
    cuts: u32,
    /// Cuts that took something.
    fired: u32,
    /// ... and batches with it.
    batches_lost: u32,
    /// Batches that were there though nothing promised it.
    batches_found: u32,
    clean: u32,
    failed: u32,
    trimmed: u32,
    repeated: u32,
}

struct World {
    scratch: tempfile::TempDir,
    recorder: Arc<Recorder>,
    root: PathBuf,
    syncfs: bool,
    segment_bytes: u64,
    server: Option<Server>,
    staged: Vec<Staged>,
    /// What was undone, and the place at which that was said: before it, it may be there.
    undone: Vec<(usize, Vec<Staged>)>,
    /// All log starts that were asked for.
    asked: Vec<u64>,
    promises: Vec<Promise>,
    now: i64,
    serial: u64,
    /// To be synced.
    written: Vec<Arc<File>>,
    names: bool,
    checkpoint: Option<Checkpoint>,
    done: Done,
}

impl World {
    fn new(segment_bytes: u64, syncfs: bool, done: Done) -> Self {
        let scratch = cuts::recorded();
        let root = scratch.path().canonicalize().unwrap().join("first");
        std::fs::create_dir(&root).unwrap();
        let recorder = Recorder::install(&root).unwrap();
        let mut world = Self {
            scratch,
            recorder,
            root,
            syncfs,
            segment_bytes,
            server: None,
            staged: Vec::new(),
            undone: Vec::new(),
            asked: vec![0],
            promises: Vec::new(),
            now: 1_000_000,
            serial: 0,
            written: Vec::new(),
            names: false,
            checkpoint: None,
            done,
        };
        world.start(None);
        world
    }

    fn server(&mut self) -> &mut Server {
        self.server.as_mut().unwrap()
    }

    fn log(&mut self) -> &mut Log {
        &mut self.server().log
    }

    fn ends(&self) -> LogEnds {
        self.server.as_ref().unwrap().log.reader().ends()
    }

    fn end(&self) -> u64 {
        self.staged.last().map_or(0, Staged::end)
    }

    fn promise(&mut self) {
        let (ends, place) = (self.ends(), self.recorder.position());
        self.promises.push(Promise { place, durable: ends.durable.get(), start: ends.start.get() });
    }

    fn apply(&mut self, operation: &Operation) {
        self.serial += 1;
        self.now += 10;
        match *operation {
            Operation::Append { records, size, jitter } => {
                let expected = Some(offset(self.end()));
                self.offer(BatchBuilder::new(Compression::None), records, size, jitter, expected);
            }
            Operation::Produce { producer, batches, records, size, anew } => {
                for number in 0..batches {
                    let stamp = self.next(PRODUCERS[producer], anew && number == 0);
                    let builder = BatchBuilder::new(Compression::None).producer(stamp);
                    self.offer(builder, records, size, 0, None);
                    self.serial += 1;
                }
            }
            Operation::Repeat { producer, back } => self.repeat(PRODUCERS[producer].0, back),
            Operation::Roll => {
                self.now += OLD;
                let now = Timestamp(self.now);
                self.log().roll_if_old(now);
            }
            Operation::Write => assert!(self.write(), "no call was made to fail"),
            Operation::WriteFails { short } => self.fail_a_write(short),
            Operation::Sync { witness } => assert!(self.sync(witness), "no call was made to fail"),
            Operation::SyncFails => {
                self.write();
                self.fault(CallKind::Sync, 0);
                // A group in which nothing was written needs no sync.
                if !self.sync(true) {
                    self.done.failed += 1;
                }
                self.recorder.clear_faults();
                self.kill();
            }
            Operation::Trim { share } => self.trim(share),
            Operation::Snapshot { durable } => self.log().stage_snapshot(durable),
            Operation::Look { from, to, jitter, bytes } => self.look(from, to, jitter, bytes),
            Operation::Stop => self.stop(),
            Operation::Kill => self.kill(),
            Operation::PowerCut { back, seed } => self.power_cut(back, seed),
        }
    }

    fn offer(
        &mut self,
        builder: BatchBuilder,
        records: usize,
        size: usize,
        jitter: i64,
        expected: Option<Offset>,
    ) {
        let (base, now) = (self.end(), self.now);
        let time = now + jitter;
        let batch = build(builder, &values(records, size, self.serial), time);
        let hash = batch.content_hash(&crate::inspect::LIMITS).unwrap();
        let numbering = batch.header().producer.map(|stamp| stamp.numbering);
        let claim = Claim::of(batch.header(), (numbering == Some(Numbering::ByRequest)).then_some(hash));
        let offered = self.log().offer(&batch, claim.as_ref(), expected, Timestamp(now)).unwrap();
        let last = base + records as u64 - 1;
        let staged = Offered::Staged { base: offset(base), last: offset(last), append_time: Timestamp(now) };
        assert_eq!(offered, staged);
        let times = (0..records as i64).map(|number| time + number).collect();
        self.staged.push(Staged { base, batch, claim, append_time: now, times });
    }

    fn fault(&self, kind: CallKind, short: usize) {
        let error = rustix::io::Errno::NOSPC.raw_os_error();
        self.recorder.fail(Fault { kind, after: 0, short, error });
    }

    /// Writes what is staged. `false`: that failed, and is as if it had never been staged.
    fn write(&mut self) -> bool {
        let log = &mut self.server.as_mut().unwrap().log;
        let Some(mut plan) = log.take_plan() else { return true };
        let creates = plan.creates();
        if let Err(failure) = plan.execute() {
            assert!(failure.undone.is_ok(), "{failure:?}");
            log.plan_failed(plan, &failure);
            let end = log.staged_end().get();
            let undone = self.forget_from(end);
            if !undone.is_empty() {
                self.undone.push((self.recorder.position(), undone));
            }
            return false;
        }
        self.written.extend(plan.files());
        self.names |= creates;
        let mut after = log.plan_succeeded(plan);
        self.checkpoint = after.checkpoint.take().or(self.checkpoint.take());
        let written = after.execute();
        assert!(written.failure.is_none(), "{written:?}");
        log.snapshots_written(&written);
        true
    }

    fn fail_a_write(&mut self, short: usize) {
        if self.log().staged_bytes() == 0 {
            return;
        }
        self.fault(CallKind::Write, short);
        let whole = self.write();
        self.done.failed += u32::from(!whole);
        self.recorder.clear_faults();
    }

    fn sync_disk(&mut self) -> std::io::Result<()> {
        let Server { directory, witness, .. } = self.server.as_ref().unwrap();
        if self.syncfs {
            return files::sync_file_system(&File::open(directory.path())?);
        }
        for file in std::mem::take(&mut self.written) {
            files::sync_data(&file)?;
        }
        if std::mem::take(&mut self.names) {
            files::sync_names(&File::open(directory.partition_path(ID))?)?;
        }
        files::sync_data(witness.file())
    }

    /// As a group commit, with what was written before. `false`: it failed.
    fn sync(&mut self, witness: bool) -> bool {
        let position = self.log().written_position();
        if witness {
            // As in the flusher, the end of a group is written with the one after it.
            let Server { witness, log, .. } = self.server();
            witness.record(ID, log.durable_position()).unwrap();
        }
        if self.sync_disk().is_err() {
            return false;
        }
        let checkpoint = self.checkpoint.take().map(|checkpoint| (ID, checkpoint));
        let Server { log, checkpoints, .. } = self.server();
        log.synced(position);
        checkpoints.add(checkpoint.as_slice(), |_| true);
        self.promise();
        true
    }

    fn trim(&mut self, share: u8) {
        let LogEnds { start, durable, .. } = self.ends();
        let wanted = offset(start.get() + durable.since(start) * u64::from(share) / 255);
        let wanted = self.log().clamp_start(wanted);
        if wanted <= start && !self.log().has_segments_below(wanted) {
            return;
        }
        self.log().stage_snapshot(true);
        assert!(self.write() && self.sync(false), "no call was made to fail");
        self.asked.push(wanted.get());
        let directory = self.server().directory.partition_path(ID);
        crate::write_log_start(&directory, wanted).unwrap();
        let removed = self.log().advance_start(wanted);
        self.promise();
        for freed in removed.unlink() {
            freed.unwrap();
        }
        self.done.trimmed += 1;
    }

    fn stop(&mut self) {
        assert!(self.write() && self.sync(true), "no call was made to fail");
        let syncfs = self.syncfs;
        let Server { directory, witness, log, .. } = self.server();
        log.caches().write().unwrap();
        witness.record(ID, log.written_position()).unwrap();
        if syncfs {
            files::sync_file_system(witness.file()).unwrap();
        } else {
            witness.sync().unwrap();
            let path = directory.partition_path(ID);
            for entry in std::fs::read_dir(&path).unwrap() {
                files::sync_all(&File::open(entry.unwrap().path()).unwrap()).unwrap();
            }
            files::sync_directory(&path).unwrap();
        }
        directory.mark_clean().unwrap();
        let promised = *self.promises.last().unwrap();
        let end = self.end();
        self.start(Some(promised));
        assert_eq!(self.end(), end);
        self.done.clean += 1;
    }

    /// What was written is there, whether or not it is durable.
    fn kill(&mut self) {
        let written = self.log().written_position().offset.get();
        self.forget_from(written);
        let promised = *self.promises.last().unwrap();
        self.start(Some(promised));
        assert_eq!(self.end(), written);
    }

    fn power_cut(&mut self, back: usize, seed: u64) {
        let written = self.log().written_position().offset.get();
        self.forget_from(written);
        self.server = None;
        let journal = self.recorder.journal();
        // Before the first promise the partition is being made.
        let place = journal.events.len().saturating_sub(back).max(self.promises[0].place);
        let promised = *self.promises.iter().rfind(|promise| promise.place <= place).unwrap();
        let undone = std::mem::take(&mut self.undone);
        if let Some((_, mut then)) = undone.into_iter().find(|(told, _)| *told > place) {
            self.forget_from(then[0].base);
            self.staged.append(&mut then);
        }
        let mut images = Images::new(&journal);
        images.advance(place);
        let image = images.power_cut(seed);
        self.done.cuts += 1;
        self.done.fired += u32::from(image.lost.any());
        let root = self.scratch.path().join(self.done.cuts.to_string());
        std::fs::create_dir(&root).unwrap();
        image.write(&journal, &root).unwrap();
        std::fs::remove_dir_all(&self.root).unwrap();
        self.root = root.canonicalize().unwrap();
        self.recorder = Recorder::install(&self.root).unwrap();
        self.promises = vec![Promise { place: 0, ..promised }];
        let all = self.staged.len();
        let promised_batches = self.staged.partition_point(|staged| staged.end() <= promised.durable);
        self.start(Some(promised));
        self.done.batches_lost += (all - self.staged.len()) as u32;
        self.done.batches_found += (self.staged.len() - promised_batches) as u32;
    }

    /// Batches from an offset on are not there any more.
    fn forget_from(&mut self, end: u64) -> Vec<Staged> {
        let first = self.staged.partition_point(|staged| staged.base < end);
        let gone = self.staged.split_off(first);
        assert_eq!(self.end(), end, "a batch is there in part, or more than was sent");
        gone
    }

    /// Starts on what is there, for the first time or after something was promised.
    fn start(&mut self, promised: Option<Promise>) {
        self.server = None;
        (self.written, self.names, self.checkpoint) = (Vec::new(), false, None);
        let now = Timestamp(self.now);
        let directory = DataDirectory::open(&self.root.join("data"), uuid::Uuid::nil(), now).unwrap();
        let (witness, ends) = Witness::open(&directory.path().join(WITNESS_FILE)).unwrap();
        let (checkpoints, mut known) = Checkpoints::open(&directory.path().join(CHECKPOINTS_FILE)).unwrap();
        let (path, clean) = (directory.partition_path(ID), directory.was_clean());
        let config = config(self.segment_bytes);
        let log = match promised {
            None => {
                directory.create_partition(ID).unwrap();
                Log::create(&path, ID, config, now).unwrap()
            }
            Some(_) => {
                if !clean && !ends.contains_key(&ID) {
                    directory.sync_partition(ID).unwrap();
                }
                let options = OpenOptions { clean, witness: ends.get(&ID).copied(), now };
                let opened = Log::open_from(&path, ID, config, options, known.remove(&ID));
                let (log, report) = opened.unwrap();
                assert_eq!(report.damaged_ranges, 0, "{report:?}");
                log
            }
        };
        self.server = Some(Server { directory, witness, checkpoints, log });
        if let Some(Promise { durable, start, .. }) = promised {
            let ends = self.ends();
            assert_eq!(ends.durable, ends.written, "what recovery shows, it has made durable");
            assert!(ends.durable.get() >= durable, "{durable} was durable, and the end is {}", ends.durable);
            assert!(
                ends.durable.get() <= self.end(),
                "{} were sent, and {} are there",
                self.end(),
                ends.durable
            );
            self.forget_from(ends.durable.get());
            assert!(ends.start.get() >= start, "the log start was {start}, and is {}", ends.start);
            assert!(self.asked.contains(&ends.start.get()), "nobody asked for {}", ends.start);
            self.read(ends.start.get(), ends.durable.get(), 700);
            self.look(0, 255, 0, 1 << 20);
            self.check_producers();
        }
        self.promise();
    }
}

fn run(segment_bytes: u64, syncfs: bool, operations: &[Operation], done: Done) -> Done {
    let mut world = World::new(segment_bytes, syncfs, done);
    for operation in operations {
        world.apply(operation);
    }
    // Twice, with an append in between: some faults show only on the second start.
    for back in [0, 5] {
        world.power_cut(back, world.serial);
        world.apply(&Operation::Append { records: 1, size: 3, jitter: 0 });
        world.apply(&Operation::Write);
        world.apply(&Operation::Sync { witness: back == 0 });
    }
    world.kill();
    world.done
}

#[test]
fn what_a_power_cut_leaves_is_the_list_up_to_some_place() {
    let done = RefCell::new(Done::default());
    let strategy = (
        prop_oneof![Just(600u64), Just(3_000), Just(1 << 20)],
        any::<bool>(),
        prop::collection::vec(operation(), 1..60),
    );
    let cases = std::env::var_os("PROPTEST_CASES").map_or(CASES, |_| Config::default().cases);
    let mut runner = TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() });
    let result = runner.run(&strategy, |(segment_bytes, syncfs, operations)| {
        let before = *done.borrow();
        *done.borrow_mut() = run(segment_bytes, syncfs, &operations, before);
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{error}"));
    let done = done.into_inner();
    println!("{done:?}");
    let Done { cuts, fired, batches_lost, batches_found, clean, failed, trimmed, repeated } = done;
    for count in [cuts, fired, batches_lost, batches_found, clean, failed, trimmed, repeated] {
        assert!(count > 10, "little was tested: {done:?}");
    }
}
