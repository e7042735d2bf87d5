//! One partition on local disk: the lock around its log, the tickets that wait, the waiters that wake.

mod seam;

use std::{
    collections::VecDeque,
    fs::File,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use parking_lot::Mutex;
use rimstone_log::{
    AfterWrite, FileError, Log, LogPosition, LogReader, SnapshotsWritten, WriteFailure, WritePlan, files,
    planted::{self, Bug},
};
use rimstone_types::{Offset, PartitionId};
use tokio::sync::oneshot;

use super::{Shared, compact::CompactionState, damage::DamageState, store_error};
use crate::{
    partition::{AckLevel, Appended},
    storage::{PartitionConfig, StoreError},
    ticket::{AppendError, TicketSender},
    waiters::Waiters,
};

/// A partition.
#[derive(Debug)]
pub(crate) struct LocalPartition {
    pub(crate) id: PartitionId,
    pub(crate) directory: PathBuf,
    /// In the flusher's queue.
    pub(crate) queued: AtomicBool,
    pub(super) shared: Arc<Shared>,
    pub(super) reader: LogReader,
    /// The topic's readers see what is written.
    sees_written: AtomicBool,
    /// What readers saw when the topic's owner took `written` back: they go on seeing it, for an end never goes
    /// back. The sync that follows makes it durable.
    seen_end: AtomicU64,
    pub(super) state: Mutex<State>,
    waiters: Waiters,
    /// One trim, maintenance pass or slice of a compaction at a time.
    pub(super) maintenance: tokio::sync::Mutex<()>,
    pub(super) compaction: CompactionState,
    pub(super) damage: DamageState,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) log: Log,
    /// In the order in which they were given; resolved in that order.
    tickets: VecDeque<Parked>,
    /// Wait until what was staged when they came is durable, and what was asked for with it is done.
    barriers: Vec<Barrier>,
    /// Barriers of the plan that is being written or synced.
    barriers_out: Vec<Barrier>,
    pub(super) poisoned: Option<String>,
    pub(super) closed: Option<&'static str>,
}

type Barrier = oneshot::Sender<Result<(), StoreError>>;

#[derive(Debug)]
struct Parked {
    /// What its answer rests on.
    rests_on: Offset,
    /// Told when everything below this is as durable as the topic asks: at or above what it rests on, for answers
    /// are told in order.
    until: Offset,
    answer: Result<Appended, AppendError>,
    sender: TicketSender,
}

impl State {
    /// Told in order: a duplicate's answer may wait for those before it, never for those behind.
    fn park(&mut self, parked: Parked) {
        let before = self.tickets.back().map_or(parked.rests_on, |last| last.until);
        self.tickets.push_back(Parked { until: parked.rests_on.max(before), ..parked });
    }
}

/// What the flusher takes from a partition.
pub(crate) struct Taken {
    pub(crate) plan: Option<WritePlan>,
    pub(crate) wants_sync: bool,
}

impl LocalPartition {
    pub(super) fn new(
        shared: Arc<Shared>,
        id: PartitionId,
        directory: PathBuf,
        log: Log,
        config: &PartitionConfig,
        damage: DamageState,
    ) -> Arc<Self> {
        Arc::new(Self {
            id,
            directory,
            queued: AtomicBool::new(false),
            shared,
            reader: log.reader(),
            sees_written: AtomicBool::new(config.ack == AckLevel::Written),
            seen_end: AtomicU64::new(0),
            state: Mutex::new(State {
                log,
                tickets: VecDeque::new(),
                barriers: Vec::new(),
                barriers_out: Vec::new(),
                poisoned: None,
                closed: None,
            }),
            waiters: Waiters::default(),
            maintenance: tokio::sync::Mutex::new(()),
            compaction: CompactionState::new(config),
            damage,
        })
    }

    /// The flusher takes what is staged; `None` if there is nothing to do.
    pub(crate) fn take(&self) -> Option<Taken> {
        let mut state = self.state.lock();
        if state.poisoned.is_some() || state.closed.is_some() {
            return None;
        }
        let plan = state.log.take_plan();
        if planted::is(Bug::PublishBeforeWrite) {
            self.tell_written(&mut state);
        }
        if plan.is_none() && state.barriers.is_empty() {
            return None;
        }
        let barriers = std::mem::take(&mut state.barriers);
        let wants_sync = !barriers.is_empty() || !self.sees_written.load(Ordering::Acquire);
        state.barriers_out.extend(barriers);
        Some(Taken { plan, wants_sync })
    }

    /// The plan is in the files.
    pub(crate) fn written(&self, plan: WritePlan) -> AfterWrite {
        let mut state = self.state.lock();
        let after = state.log.plan_succeeded(plan);
        let told = self.tell_written(&mut state);
        drop(state);
        if told {
            self.waiters.wake();
        }
        after
    }

    /// Tells whom it is enough for what is written. `false`: it is for nobody.
    fn tell_written(&self, state: &mut State) -> bool {
        let tells = self.sees_written.load(Ordering::Acquire) || planted::is(Bug::AckBeforeSync);
        if tells {
            let end = state.log.written_position().offset;
            resolve(&mut state.tickets, end);
        }
        tells
    }

    /// What followed the plan is done. Without its snapshot, what waits for it cannot go on; the log can.
    pub(crate) fn snapshots_written(&self, written: SnapshotsWritten) {
        let mut state = self.state.lock();
        state.log.snapshots_written(&written);
        let Some(error) = written.failure else { return };
        let barriers = std::mem::take(&mut state.barriers_out);
        drop(state);
        tracing::error!(partition = %self.id, %error, "a producer snapshot was not written");
        let error = store_error(error);
        for barrier in barriers {
            drop(barrier.send(Err(error.clone())));
        }
    }

    /// The plan failed: what is not written did not happen, or, if the files could not be put back, is unknown.
    pub(crate) fn write_failed(&self, plan: WritePlan, failure: &WriteFailure) {
        tracing::error!(partition = %self.id, error = %failure, undone = ?failure.undone, "a write failed");
        if let Err(why) = &failure.undone {
            self.poison(&format!("a write failed ({failure}) and could not be undone ({why})"));
            return;
        }
        let mut state = self.state.lock();
        state.log.plan_failed(plan, failure);
        let end = state.log.written_position().offset;
        let disk_full = failure.cause.is_full();
        // Everything that rests on what was rolled back goes with it; what was written before stays parked.
        let kept = state.tickets.iter().take_while(|parked| parked.until <= end).count();
        let behind = state.tickets.split_off(kept);
        // A duplicate may only have waited behind it: what its answer rests on is there.
        let (stays, gone): (Vec<_>, Vec<_>) = behind.into_iter().partition(|parked| parked.rests_on <= end);
        for parked in stays {
            state.park(parked);
        }
        let acknowledged = self.acknowledged(&state.log);
        resolve(&mut state.tickets, acknowledged);
        let mut barriers = std::mem::take(&mut state.barriers_out);
        barriers.append(&mut state.barriers);
        drop(state);
        for parked in gone {
            parked.sender.resolve(Err(AppendError::DidNotHappen { reason: failure.to_string(), disk_full }));
        }
        for barrier in barriers {
            let error = if disk_full {
                StoreError::Full { path: failure.cause.path.clone() }
            } else {
                StoreError::Io {
                    operation: failure.cause.operation,
                    path: failure.cause.path.clone(),
                    reason: failure.cause.source.to_string(),
                }
            };
            drop(barrier.send(Err(error)));
        }
    }

    pub(crate) fn written_position(&self) -> LogPosition {
        self.state.lock().log.written_position()
    }

    /// A completed sync covers everything up to `point`. `false`: the partition was given up meanwhile, and
    /// nothing is to be said of its end.
    pub(crate) fn synced(&self, point: LogPosition) -> bool {
        let mut state = self.state.lock();
        if state.poisoned.is_some() || state.closed.is_some() {
            return false;
        }
        state.log.synced(point);
        resolve(&mut state.tickets, point.offset);
        let barriers = std::mem::take(&mut state.barriers_out);
        drop(state);
        for barrier in barriers {
            drop(barrier.send(Ok(())));
        }
        self.waiters.wake();
        true
    }

    /// Refuses writes from now on; whatever waits is unknown. Reads go on, up to what was durable.
    pub(crate) fn poison(&self, reason: &str) {
        let mut state = self.state.lock();
        // A topic that was deleted under a write is no failure of the device.
        if state.poisoned.is_some() || state.closed.is_some() {
            return;
        }
        self.shared.note_failure(reason);
        state.poisoned = Some(reason.to_owned());
        let (tickets, barriers) = drain(&mut state);
        drop(state);
        for ticket in tickets {
            ticket.sender.resolve(Err(AppendError::Unknown { reason: reason.to_owned() }));
        }
        for barrier in barriers {
            drop(barrier.send(Err(StoreError::Poisoned { reason: reason.to_owned() })));
        }
        self.waiters.wake();
    }

    pub(crate) fn poison_if_undurable(&self, reason: &str) {
        let undurable = {
            let state = self.state.lock();
            state.log.is_dirty() || !state.tickets.is_empty() || !state.barriers_out.is_empty()
        };
        if undurable {
            self.poison(reason);
        }
    }

    /// Nothing more comes in or out.
    pub(crate) fn shut(&self, why: &'static str, error: &StoreError) {
        let mut state = self.state.lock();
        state.closed.get_or_insert(why);
        let (tickets, barriers) = drain(&mut state);
        drop(state);
        for ticket in tickets {
            ticket.sender.resolve(Err(AppendError::Unknown { reason: why.to_owned() }));
        }
        for barrier in barriers {
            drop(barrier.send(Err(error.clone())));
        }
        self.stop_compaction();
        self.damage.stop();
        self.waiters.wake();
    }

    /// Whoever waits looks again.
    pub(super) fn wake(&self) {
        self.waiters.wake();
    }

    /// Gives the descriptor back that segments are written through. `false`: it is in use.
    pub(crate) fn release_writer(&self) -> bool {
        let state = self.state.lock();
        // What was closed or given up is never written or synced again.
        let unused = !state.log.is_dirty() || state.closed.is_some() || state.poisoned.is_some();
        if unused {
            state.log.release_writer();
        }
        unused
    }

    /// Writes the caches for the next start. `false`: the partition is not clean.
    pub(super) fn write_caches(&self) -> Result<bool, StoreError> {
        let caches = {
            let state = self.state.lock();
            if state.poisoned.is_some() || state.log.is_dirty() {
                return Ok(false);
            }
            state.log.caches()
        };
        caches.write().map_err(store_error)?;
        Ok(true)
    }

    /// The directory, open.
    pub(crate) fn open_directory(&self) -> Result<File, FileError> {
        File::open(&self.directory).map_err(|source| FileError {
            operation: "open",
            path: self.directory.display().to_string(),
            source,
        })
    }

    pub(super) fn sync_caches(&self) -> Result<(), StoreError> {
        let io = |error: std::io::Error| StoreError::Io {
            operation: "sync",
            path: self.directory.display().to_string(),
            reason: error.to_string(),
        };
        for entry in std::fs::read_dir(&self.directory).map_err(io)? {
            std::fs::File::open(entry.map_err(io)?.path())
                .and_then(|file| files::sync_all(&file))
                .map_err(io)?;
        }
        files::sync_directory(&self.directory).map_err(store_error)
    }

    /// Below this, tickets are told.
    fn acknowledged(&self, log: &Log) -> Offset {
        if self.sees_written.load(Ordering::Acquire) {
            log.written_position().offset
        } else {
            log.durable_position().offset
        }
    }

    /// Waits until everything staged is durable, and what `stage` asks for with it is done.
    pub(super) async fn barrier(self: &Arc<Self>, stage: impl FnOnce(&mut Log)) -> Result<(), StoreError> {
        let waiting = {
            let mut state = self.state.lock();
            if self.shared.closing.load(Ordering::Acquire) {
                return Err(StoreError::ShuttingDown);
            }
            if let Some(reason) = &state.poisoned {
                return Err(StoreError::Poisoned { reason: reason.clone() });
            }
            if state.closed.is_some() {
                return Err(StoreError::Deleted);
            }
            stage(&mut state.log);
            let (sender, receiver) = oneshot::channel();
            state.barriers.push(sender);
            receiver
        };
        self.shared.queue.push(self);
        waiting.await.unwrap_or(Err(StoreError::ShuttingDown))
    }
}

fn drain(state: &mut State) -> (Vec<Parked>, Vec<Barrier>) {
    let mut barriers = std::mem::take(&mut state.barriers_out);
    barriers.append(&mut state.barriers);
    (std::mem::take(&mut state.tickets).into(), barriers)
}

/// Tells everything that rests on nothing above `end`, in order.
fn resolve(tickets: &mut VecDeque<Parked>, end: Offset) {
    while tickets.front().is_some_and(|parked| parked.until <= end) {
        if let Some(parked) = tickets.pop_front() {
            parked.sender.resolve(parked.answer);
        }
    }
}
