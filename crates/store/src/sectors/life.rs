//! A run of a store over a recorded directory: what clients and the broker do to it, one step after the other, so that
//! the same seed does the same again. The observer of the recorder sends, reads and lets the flusher work in the
//! middle of syncs.

use std::{
    collections::BTreeMap,
    future::Future,
    path::PathBuf,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use futures::FutureExt as _;
use parking_lot::Mutex;
use rimstone_log::recording::{CallKind, Fault, Observer, Recorder, image::Draw};
use rimstone_types::{ByteCount, PartitionId};

use super::{
    client::{Time, config, options, partition_id, read_from, stamp, within},
    examine,
    history::{At, Cut, Fate, Flavour, History, PartitionHistory, Start, offset},
};
use crate::{
    AppendError, AppendTicket, Appended, LocalStorage, OpenMode, PartitionStore, Storage, StoreState,
    SyncPreference,
};

/// Topics that a schedule has at a time, at most.
const TOPICS_MAX: u32 = 4;
/// Batches that are sent while the syncs of one step run. Each of them asks for a sync of its own, and, with one for each
/// file, without a bound there would be no end of them.
const SENDS_WITHIN_SYNCS_MAX: usize = 8;
/// Producers with numbers in a partition.
const PRODUCERS: u64 = 3;

/// What went on in a run.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Done {
    pub(crate) acked: usize,
    pub(crate) compactions: usize,
    pub(crate) trims: usize,
    pub(crate) restarts: usize,
    pub(crate) faults: usize,
    pub(crate) deleted: usize,
}

/// An answer that has not come.
struct Waiting {
    id: PartitionId,
    batch: usize,
    ticket: AppendTicket,
}

/// A client that numbers what it sends.
#[derive(Debug, Clone, Copy, Default)]
struct Client {
    epoch: u64,
    /// The number of the next record.
    next: u32,
    /// Sent and not answered.
    open: usize,
    /// Something failed: nothing new before everything is answered and sent again.
    stuck: bool,
}

/// What the steps and the observer share.
struct Inner {
    recorder: Arc<Recorder>,
    life: u32,
    time: Time,
    /// The process was killed: what it says does not count any more.
    dead: AtomicBool,
    /// The store is being closed: its caches are written under the locks that appends and reads take.
    closing: AtomicBool,
    /// The place in the journal at which it is killed.
    kill_at: AtomicUsize,
    state: Mutex<State>,
}

struct State {
    storage: Option<Arc<LocalStorage>>,
    partitions: BTreeMap<PartitionId, Arc<dyn PartitionStore>>,
    history: History,
    waiting: Vec<Waiting>,
    clients: BTreeMap<(PartitionId, u64), Client>,
    draw: Draw,
    now: Instant,
    /// How much may still be sent within syncs of this step.
    sends_left: usize,
    wrong: Option<String>,
    done: Done,
    poisoned: bool,
}

/// A store, a recorder under it, and what is known.
pub(crate) struct Life {
    inner: Arc<Inner>,
    directory: PathBuf,
    sync: SyncPreference,
    topics: u32,
}

struct Watch(Weak<Inner>);

impl Observer for Watch {
    fn change(&self) {
        let Some(inner) = self.0.upgrade() else { return };
        if inner.recorder.position() >= inner.kill_at.load(Ordering::Acquire) {
            inner.die();
        }
        inner.hear();
    }

    fn sync(&self) {
        self.change();
        if let Some(inner) = self.0.upgrade() {
            inner.meanwhile();
        }
    }
}

impl Inner {
    fn at(&self) -> At {
        (self.life, self.recorder.position())
    }

    fn die(&self) {
        if !self.dead.swap(true, Ordering::AcqRel) {
            self.recorder.freeze(true);
        }
    }

    fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Acquire)
    }

    /// Looks which answers have come.
    fn hear(&self) {
        let Some(mut state) = self.state.try_lock() else { return };
        if self.is_dead() {
            return;
        }
        let at = self.at();
        let (mut left, mut refused) = (Vec::new(), Vec::new());
        for mut waiting in std::mem::take(&mut state.waiting) {
            match (&mut waiting.ticket).now_or_never() {
                None => left.push(waiting),
                Some(answer) => {
                    if !state.answered(waiting.id, waiting.batch, answer, at) {
                        refused.push((waiting.id, waiting.batch));
                    }
                }
            }
        }
        for (id, batch) in refused {
            // Of what was sent twice, the other one may be stored.
            let other = left.iter().any(|waiting| (waiting.id, waiting.batch) == (id, batch));
            let sent = &mut state.history.partition(id).batches[batch];
            if sent.fate == Fate::Open && !other {
                sent.fate = Fate::Refused(at);
            }
        }
        state.waiting = left;
    }

    /// While a sync runs.
    fn meanwhile(&self) {
        let storage = {
            let Some(mut state) = self.state.try_lock() else { return };
            if self.is_dead() || self.closing.load(Ordering::Acquire) || !state.draw.percent(40) {
                return;
            }
            let at = self.at();
            let sends = state.draw.below(4).min(state.sends_left);
            state.sends_left -= sends;
            for _ in 0..sends {
                state.send(at, self.time.load(Ordering::Acquire));
            }
            if state.draw.percent(50) {
                state.look(at);
            }
            state
                .draw
                .percent(60)
                .then(|| state.storage.clone())
                .flatten()
                .map(|storage| (storage, state.now))
        };
        if let Some((storage, now)) = storage {
            // Nothing happens if the flusher itself is what syncs.
            storage.step(now);
        }
        self.hear();
    }
}

impl State {
    /// `false`: it is said that nothing of it is stored.
    fn answered(
        &mut self,
        id: PartitionId,
        batch: usize,
        answer: Result<Appended, AppendError>,
        at: At,
    ) -> bool {
        let sent = &self.history.partitions[&id].batches[batch];
        let client = sent.stamp.and_then(|stamp| self.clients.get_mut(&(id, stamp.id.get())));
        let failed = answer.is_err();
        if let Some(client) = client {
            client.open = client.open.saturating_sub(1);
            client.stuck |= failed;
        }
        match answer {
            Ok(Appended { offsets: Some((base, last)), .. }) => {
                self.done.acked += 1;
                let acked = self.history.acked(id, batch, at, base.get(), last.get());
                self.wrong = self.wrong.take().or(acked.err());
            }
            Ok(_) => {
                self.wrong.get_or_insert_with(|| format!("partition {id}: a duplicate without offsets"));
            }
            Err(AppendError::Unknown { .. }) => {}
            Err(_) => return false,
        }
        true
    }

    fn open_partition(&mut self) -> Option<PartitionId> {
        let ids: Vec<PartitionId> = self.partitions.keys().copied().collect();
        (!ids.is_empty()).then(|| *self.draw.pick(&ids))
    }

    /// One client sends what it would send now.
    fn send(&mut self, at: At, time: i64) {
        let Some(id) = self.open_partition() else { return };
        let flavour = self.history.partition(id).flavour;
        if flavour == Flavour::Written || self.draw.percent(25) {
            let batch = self.history.make(id, None, at, time, &mut self.draw);
            return self.submit(id, batch, time, Some(at));
        }
        let producer = 1 + self.draw.below(PRODUCERS as usize) as u64;
        let mut client = self.clients.get(&(id, producer)).copied().unwrap_or_default();
        if client.open > 0 && client.stuck {
            return;
        }
        let own = |history: &History, fate: fn(Fate) -> bool| {
            let batches = history.partitions[&id].batches.iter().enumerate();
            let own = batches.filter(|(_, sent)| sent.stamp.is_some_and(|stamp| stamp.id.get() == producer));
            own.filter(|(_, sent)| fate(sent.fate)).map(|(number, _)| number).collect::<Vec<_>>()
        };
        if client.open == 0 {
            // What nobody knows of is sent again first; then it goes on behind what was acknowledged.
            let open = own(&self.history, |fate| fate == Fate::Open);
            let again = open.first().copied().filter(|_| client.stuck);
            if again.is_none() && client.stuck {
                let last = own(&self.history, |fate| matches!(fate, Fate::Acked(..))).last().copied();
                let last = last.map(|number| &self.history.partitions[&id].batches[number]);
                (client.epoch, client.next) = last.map_or((0, 0), |sent| {
                    let stamp = sent.stamp.expect("it was numbered");
                    (u64::from(stamp.epoch.get()), stamp.base + sent.batch.header().record_count)
                });
                client.stuck = false;
            } else if again.is_none() && self.draw.percent(5) && client.next > 0 {
                (client.epoch, client.next) = (client.epoch + 1, 0);
            }
            if let Some(batch) = again {
                client.open = 1;
                self.clients.insert((id, producer), client);
                return self.submit(id, batch, time, None);
            }
        } else if self.draw.percent(15) {
            // Sent once more while the first is under way.
            let open = own(&self.history, |fate| fate == Fate::Open);
            if let Some(batch) = open.last().copied() {
                client.open += 1;
                self.clients.insert((id, producer), client);
                return self.submit(id, batch, time, None);
            }
        }
        let batch =
            self.history.make(id, Some(stamp(producer, client.epoch, client.next)), at, time, &mut self.draw);
        client.next += self.history.partition(id).batches[batch].batch.header().record_count;
        client.open += 1;
        let zombie = client.epoch > 0 && self.draw.percent(10);
        self.clients.insert((id, producer), client);
        self.submit(id, batch, time, Some(at));
        if zombie {
            // An older instance goes on; nothing of it may be stored, whatever becomes of the answer.
            let older = stamp(producer, client.epoch - 1, self.draw.below(40) as u32);
            let batch = self.history.make(id, Some(older), at, time, &mut self.draw);
            self.history.partition(id).batches[batch].fate = Fate::Refused(at);
            let append = self.history.append(id, batch, time);
            drop(self.partitions[&id].submit(append));
        }
    }

    /// `first`: it was not sent before, so that if it is not taken, it is not stored.
    fn submit(&mut self, id: PartitionId, batch: usize, time: i64, first: Option<At>) {
        let append = self.history.append(id, batch, time);
        match self.partitions[&id].submit(append) {
            Ok(ticket) => self.waiting.push(Waiting { id, batch, ticket }),
            Err(_) => {
                self.poisoned = true;
                let sent = &mut self.history.partition(id).batches[batch];
                if let Some(at) = first {
                    sent.fate = Fate::Refused(at);
                }
                let stamp = sent.stamp;
                if let Some(client) = stamp.and_then(|stamp| self.clients.get_mut(&(id, stamp.id.get()))) {
                    client.open = client.open.saturating_sub(1);
                    client.stuck = true;
                }
            }
        }
    }

    /// Somebody reads what there is to see at once.
    fn look(&mut self, at: At) {
        let Some(id) = self.open_partition() else { return };
        let known = self.history.partition(id).log.last_key_value().map_or(0, |(last, _)| last + 1);
        let from = known.saturating_sub(self.draw.below(6) as u64);
        let partition = Arc::clone(&self.partitions[&id]);
        let Some(read) = read_from(&*partition, from).now_or_never() else { return };
        let shown = match read {
            Ok((_, shown)) => shown,
            Err(error) => {
                self.wrong.get_or_insert(format!("partition {id}: {error}"));
                return;
            }
        };
        for record in shown {
            let learned = self.history.learn(id, record.offset, record.id, at);
            self.wrong = self.wrong.take().or(learned.err());
        }
    }
}

impl Life {
    /// Opens what lies in a directory below a recorded root, and compares it with what is known.
    pub(crate) async fn begin(
        root: &std::path::Path,
        life: u32,
        history: History,
        cut: Cut,
        seed: u64,
        sync: SyncPreference,
        time: &Time,
    ) -> Result<Self, String> {
        let recorder = Recorder::install(root).map_err(|error| error.to_string())?;
        let directory = root.canonicalize().map_err(|error| error.to_string())?.join("data");
        let inner = Arc::new(Inner {
            recorder,
            life,
            time: Arc::clone(time),
            dead: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            kill_at: AtomicUsize::new(usize::MAX),
            state: Mutex::new(State {
                storage: None,
                partitions: BTreeMap::new(),
                history,
                waiting: Vec::new(),
                clients: BTreeMap::new(),
                draw: Draw::new(seed),
                now: Instant::now(),
                wrong: None,
                sends_left: 0,
                done: Done::default(),
                poisoned: false,
            }),
        });
        inner.recorder.observe(Some(Arc::new(Watch(Arc::downgrade(&inner)))));
        let mut life = Self { inner, directory, sync, topics: 0 };
        life.topics = life.inner.state.lock().history.partitions.len() as u32;
        life.start(cut).await?;
        Ok(life)
    }

    async fn start(&mut self, cut: Cut) -> Result<(), String> {
        // A start that is made to fail is one more kill.
        let fired = self.inner.recorder.clear_faults();
        self.inner.state.lock().done.faults += fired;
        let storage = LocalStorage::open_stepped(options(&self.directory, self.sync, &self.inner.time))
            .map_err(|error| format!("a start: {error}"))?;
        let mut history = std::mem::take(&mut self.inner.state.lock().history);
        // As the broker does with what it has begun to delete.
        for (topic, (_, done)) in &mut history.deleted {
            if done.is_none() {
                let deleted = within("delete", &storage, Instant::now, storage.delete(*topic)).await?;
                deleted.map_err(|error| format!("a start: {error}"))?;
                *done = Some(self.inner.at());
            }
        }
        let opened = examine::open(storage, &mut history, cut, || self.inner.at()).await;
        let mut state = self.inner.state.lock();
        // What was under way is unknown now; clients find out.
        state.clients.values_mut().for_each(|client| (client.open, client.stuck) = (0, true));
        for (id, partition) in &history.partitions {
            for batch in &partition.batches {
                if let Some(stamp) = batch.stamp {
                    let client = state.clients.entry((*id, stamp.id.get())).or_default();
                    client.stuck = true;
                }
            }
        }
        state.history = history;
        let opened = opened?;
        let at = self.inner.at();
        for id in opened.partitions.keys() {
            state.history.partition(*id).made.get_or_insert(at);
        }
        state.storage = Some(opened.storage);
        state.partitions = opened.partitions;
        state.poisoned = false;
        Ok(())
    }

    pub(crate) fn recorder(&self) -> &Arc<Recorder> {
        &self.inner.recorder
    }

    /// What is known, and what went on.
    pub(crate) fn end(self) -> (History, Done) {
        self.inner.hear();
        self.inner.die();
        let mut state = self.inner.state.lock();
        state.waiting.clear();
        state.partitions.clear();
        let storage = state.storage.take();
        let end = (std::mem::take(&mut state.history), state.done);
        drop(state);
        drop(storage);
        end
    }

    /// One more step of the schedule.
    pub(crate) async fn step(&mut self) -> Result<(), String> {
        let (choice, argument, poisoned) = {
            let mut state = self.inner.state.lock();
            state.sends_left = SENDS_WITHIN_SYNCS_MAX;
            (state.draw.below(100), state.draw.number(), state.poisoned)
        };
        if poisoned && argument.is_multiple_of(3) {
            self.inner.die();
        }
        match choice {
            _ if self.inner.is_dead() => {}
            0..38 => {
                let mut state = self.inner.state.lock();
                for _ in 0..1 + argument % 4 {
                    let (at, time) = (self.inner.at(), self.inner.time.load(Ordering::Acquire));
                    state.send(at, time);
                }
            }
            38..66 => {
                self.pass(Duration::from_millis(argument % 30));
                // Twice: while the witness is synced something may be sent.
                while self.flush() || self.flush() {}
                self.all_answered()?;
            }
            66..72 => self.read().await?,
            72..75 => self.pass(Duration::from_millis(*Draw::new(argument).pick(&[120, 1100, 40_000]))),
            75..79 => self.trim(argument).await?,
            79..83 => self.maintain().await?,
            83..91 => self.compact(argument).await?,
            91..94 => self.make_topic(argument).await?,
            94 => self.delete_topic().await?,
            95 => self.stop().await?,
            96..98 => {
                let at = self.inner.recorder.position() + (argument % 25) as usize;
                self.inner.kill_at.store(at, Ordering::Release);
            }
            _ => self.break_something(argument),
        }
        self.inner.hear();
        if self.inner.is_dead() {
            self.restart_after_kill().await?;
        }
        self.inner.state.lock().wrong.take().map_or(Ok(()), Err)
    }

    fn pass(&self, time: Duration) {
        self.inner.state.lock().now += time;
        self.inner.time.fetch_add(time.as_millis() as i64, Ordering::AcqRel);
    }

    /// `false`: there was nothing for the flusher to do.
    fn flush(&self) -> bool {
        let (storage, now) = {
            let state = self.inner.state.lock();
            (state.storage.clone(), state.now)
        };
        let found = storage.is_some_and(|storage| storage.step(now));
        self.inner.hear();
        found
    }

    /// Whoever sent something is told when there is nothing more to do.
    fn all_answered(&self) -> Result<(), String> {
        let state = self.inner.state.lock();
        let serves = |id| {
            let partition = state.partitions.get(id);
            partition.is_some_and(|partition| partition.info().state == StoreState::Serving)
        };
        match state.waiting.iter().find(|waiting| serves(&waiting.id)) {
            Some(waiting) if !self.inner.is_dead() => {
                Err(format!("partition {}: batch {} has no answer", waiting.id, waiting.batch))
            }
            _ => Ok(()),
        }
    }

    /// Waits for something that needs the flusher now and then.
    async fn drive<T>(&self, what: &str, future: impl Future<Output = T>) -> Result<T, String> {
        let storage = self.inner.state.lock().storage.clone();
        let Some(storage) = storage else { return Err(format!("{what}: the store is not open")) };
        let done = within(what, &storage, || self.inner.state.lock().now, future).await;
        self.inner.hear();
        done
    }

    fn some_partition(
        &self,
        wanted: impl Fn(Flavour) -> bool,
    ) -> Option<(PartitionId, Arc<dyn PartitionStore>)> {
        let mut state = self.inner.state.lock();
        let State { partitions, history, draw, .. } = &mut *state;
        let of: Vec<_> =
            partitions.iter().filter(|(id, _)| wanted(history.partitions[*id].flavour)).collect();
        (!of.is_empty()).then(|| *draw.pick(&of)).map(|(id, partition)| (*id, Arc::clone(partition)))
    }

    fn asked(&self, id: PartitionId, start: u64) -> usize {
        let at = self.inner.at();
        let mut state = self.inner.state.lock();
        let starts = &mut state.history.partition(id).starts;
        starts.push(Start { asked: at, done: None, offset: start });
        starts.len() - 1
    }

    fn started(&self, id: PartitionId, number: usize, offset: u64) {
        if self.inner.is_dead() {
            return;
        }
        let at = self.inner.at();
        let mut state = self.inner.state.lock();
        state.done.trims += 1;
        let start = &mut state.history.partition(id).starts[number];
        (start.offset, start.done) = (offset, Some(at));
    }

    /// A reader that may wait for the disk.
    async fn read(&self) -> Result<(), String> {
        let Some((id, partition)) = self.some_partition(|_| true) else { return Ok(()) };
        let read = self.drive("a read", read_from(&*partition, 0)).await?;
        if self.inner.is_dead() {
            return Ok(());
        }
        let (_, shown) = read.map_err(|error| format!("partition {id}: {error}"))?;
        let at = self.inner.at();
        let mut state = self.inner.state.lock();
        for record in shown {
            state.history.learn(id, record.offset, record.id, at)?;
        }
        Ok(())
    }

    async fn trim(&self, argument: u64) -> Result<(), String> {
        let Some((id, partition)) = self.some_partition(|flavour| flavour != Flavour::Keyed) else {
            return Ok(());
        };
        let ends = partition.ends();
        let start = ends.start.get() + argument % (ends.durable.get() - ends.start.get() + 1);
        let number = self.asked(id, start);
        if let Ok(done) = self.drive("trim", partition.trim(offset(start))).await? {
            self.started(id, number, done.get());
        }
        Ok(())
    }

    async fn maintain(&self) -> Result<(), String> {
        let Some((id, partition)) = self.some_partition(|_| true) else { return Ok(()) };
        let time = rimstone_types::Timestamp(self.inner.time.load(Ordering::Acquire));
        // It may move the log start up to the end; where to, is known when it is done.
        let end = partition.ends().durable.get();
        let number = self.asked(id, end);
        let maintained = self.drive("maintain", partition.maintain(time)).await?;
        let start = partition.ends().start.get();
        if maintained.is_ok() {
            self.started(id, number, start);
        }
        Ok(())
    }

    async fn compact(&self, argument: u64) -> Result<(), String> {
        let Some((_, partition)) = self.some_partition(|flavour| flavour == Flavour::Keyed) else {
            return Ok(());
        };
        let time = rimstone_types::Timestamp(self.inner.time.load(Ordering::Acquire));
        let budget = ByteCount(*Draw::new(argument).pick(&[500, 4000, 1 << 20]));
        // Nobody waits for the flusher then, so a pass does not wait for it.
        while self.flush() {}
        let compacted = self.drive("compact", partition.compact(time, budget)).await?;
        if let Ok(compacted) = compacted {
            self.inner.state.lock().done.compactions += usize::from(compacted.segments_after > 0);
        }
        Ok(())
    }

    async fn make_topic(&mut self, argument: u64) -> Result<(), String> {
        let draw = &mut Draw::new(argument);
        let (storage, topics) = {
            let state = self.inner.state.lock();
            (state.storage.clone(), state.partitions.len())
        };
        let Some(storage) = storage.filter(|_| topics < TOPICS_MAX as usize) else { return Ok(()) };
        self.topics += 1;
        let id = partition_id(self.topics, draw.below(2) as u32);
        let flavour =
            *draw.pick(&[Flavour::Plain, Flavour::Plain, Flavour::Keyed, Flavour::Keyed, Flavour::Written]);
        let config = config(flavour, draw);
        let at = self.inner.at();
        let history = PartitionHistory::new(flavour, config.clone(), at);
        self.inner.state.lock().history.partitions.insert(id, history);
        let made = self.drive("make", storage.open(id, config, OpenMode::CreateNew)).await?;
        if self.inner.is_dead() {
            return Ok(());
        }
        let at = self.inner.at();
        let mut state = self.inner.state.lock();
        match made {
            Ok(partition) => {
                state.history.partition(id).made = Some(at);
                state.partitions.insert(id, partition);
            }
            // It may be there or not, until the next start.
            Err(_) => state.poisoned = true,
        }
        Ok(())
    }

    async fn delete_topic(&self) -> Result<(), String> {
        let Some((id, _)) = self.some_partition(|_| true) else { return Ok(()) };
        let at = self.inner.at();
        let storage = {
            let mut state = self.inner.state.lock();
            if state.partitions.len() < 2 {
                return Ok(());
            }
            state.history.deleted.insert(id.topic, (at, None));
            state.partitions.remove(&id);
            state.storage.clone()
        };
        let Some(storage) = storage else { return Ok(()) };
        let deleted = self.drive("delete", storage.delete(id.topic)).await?;
        if deleted.is_ok() && !self.inner.is_dead() {
            let done = self.inner.at();
            let mut state = self.inner.state.lock();
            state.history.deleted.insert(id.topic, (at, Some(done)));
            state.done.deleted += 1;
        }
        Ok(())
    }

    /// A clean stop and a start; a stop that fails is a kill.
    async fn stop(&mut self) -> Result<(), String> {
        let storage = self.inner.state.lock().storage.clone();
        let Some(storage) = storage else { return Ok(()) };
        self.inner.closing.store(true, Ordering::Release);
        let closed = self.drive("close", storage.close()).await?;
        self.inner.closing.store(false, Ordering::Release);
        drop(storage);
        if closed.is_err() || self.inner.is_dead() {
            self.inner.die();
            return Ok(());
        }
        self.inner.hear();
        self.leave();
        self.inner.state.lock().done.restarts += 1;
        // A kill that is due during the start comes behind it: what the start has done by then is in the images.
        let kill_at = self.inner.kill_at.swap(usize::MAX, Ordering::AcqRel);
        let started = self.start(Cut::Kill).await;
        self.inner.kill_at.store(kill_at, Ordering::Release);
        started
    }

    fn leave(&self) {
        let mut state = self.inner.state.lock();
        state.waiting.clear();
        state.partitions.clear();
        let storage = state.storage.take();
        drop(state);
        drop(storage);
    }

    async fn restart_after_kill(&mut self) -> Result<(), String> {
        self.leave();
        self.inner.kill_at.store(usize::MAX, Ordering::Release);
        self.inner.recorder.freeze(false);
        self.inner.dead.store(false, Ordering::Release);
        {
            let mut state = self.inner.state.lock();
            state.done.restarts += 1;
        }
        self.start(Cut::Kill).await
    }

    fn break_something(&self, argument: u64) {
        let draw = &mut Draw::new(argument);
        let kinds = [
            CallKind::Write,
            CallKind::Write,
            CallKind::Create,
            CallKind::Truncate,
            CallKind::Rename,
            CallKind::Sync,
        ];
        let no_space = rustix::io::Errno::NOSPC.raw_os_error();
        let io = rustix::io::Errno::IO.raw_os_error();
        let fault = Fault {
            kind: *draw.pick(&kinds),
            after: draw.below(4),
            short: draw.below(2000),
            error: *draw.pick(&[no_space, io]),
        };
        self.inner.recorder.fail(fault);
    }
}
