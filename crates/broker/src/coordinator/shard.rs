//! One shard while it serves: drain, decide, apply, submit, park until durable.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use rimstone_state::group::{Decision, GroupRecord, Groups, Removal};
use rimstone_store::{AppendError, Backpressure, Health, Waiter};
use rimstone_types::{GroupName, MemberId};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep, sleep_until},
};

use super::{
    Command, Joining, Lost, Now, Overdue, SessionStart, SessionUpdate,
    members::{Due, Members},
    outward::{InFlight, Outward, deliver, lose, oldest},
    shard_log::{EncodedRecords, Gathered, ShardLog},
    table,
};
use crate::{
    broker::Inner,
    error::SessionFencedWhy,
    groups::{Commit, CommitChange},
};

/// Batches that are submitted and not durable: while some are synced the next gather, and more than a few
/// only make a failure larger.
const IN_FLIGHT_MAX: usize = 8;
/// Requests that are decided before their records are submitted.
const DRAIN_MAX: usize = 256;
/// A batch that has reached this is submitted before the next request is decided.
const BATCH_BYTES: usize = 256 << 10;
/// What may wait for durability: beyond it requests stay in the mailbox.
const PARKED_MAX: usize = 16_384;
/// A batch that the partition does not take is tried for this long; then it has failed.
const SUBMIT_WAIT_MAX: Duration = Duration::from_secs(10);
/// It is tried when the partition moves, and also this often: free space returns without a word.
const SUBMIT_PAUSE: Duration = Duration::from_millis(20);
/// Time-outs that could not be decided, because nothing can be written, are looked at again after this long.
const OVERDUE_PAUSE: Duration = Duration::from_secs(1);

/// After memberships have timed out, the next are looked at after this long: members that die together were last
/// heard of at different moments, and each decision is a target over all that stay. Far below any session time-out.
const EXPIRE_PAUSE: Duration = Duration::from_millis(100);

/// Why a shard serves no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// The server stops; everything has been answered.
    Stopped,
    /// An append failed: the state is not to be believed.
    Failed,
}

/// A batch that the partition does not take at the moment.
#[derive(Debug)]
struct Stuck {
    batch: EncodedRecords,
    outward: Vec<Outward>,
    since: Instant,
    /// Wakes when the partition moves; `None` before the first attempt.
    waiter: Option<Waiter>,
}

/// A membership that a decision ends, and what its session is told.
type Ending = (GroupName, MemberId, SessionFencedWhy);

/// Groups that are looked at once per batch, however many decisions it holds.
#[derive(Debug, Default)]
struct Touched {
    named: BTreeSet<GroupName>,
    moved: BTreeSet<GroupName>,
}

/// One shard.
#[derive(Debug)]
pub(crate) struct Shard {
    inner: Arc<Inner>,
    index: u32,
    log: ShardLog,
    groups: Groups,
    members: Members,
    /// The partition takes nothing until the server is started again.
    poisoned: Option<String>,
    gathered: Gathered,
    /// What waits for what is gathered.
    outward: Vec<Outward>,
    /// Groups that what is gathered is about, and those of them whose members have moved.
    touched: Touched,
    in_flight: VecDeque<InFlight>,
    stuck: Option<Stuck>,
    /// What requests behind a failed append are told.
    failed: Option<Lost>,
    /// Topics have changed and the groups have not been told.
    topics_due: bool,
    /// They could not be told, because nothing can be written: tell them then.
    topics_again: Option<Instant>,
    /// When memberships timed out last.
    expired_at: Option<Instant>,
}

impl Shard {
    pub(super) fn new(
        inner: Arc<Inner>,
        index: u32,
        log: ShardLog,
        groups: Groups,
        members: Members,
    ) -> Self {
        let poisoned = log.poisoned();
        Self {
            inner,
            index,
            log,
            groups,
            members,
            poisoned,
            gathered: Gathered::new(),
            outward: Vec::new(),
            touched: Touched::default(),
            in_flight: VecDeque::new(),
            stuck: None,
            failed: None,
            topics_due: true,
            topics_again: None,
            expired_at: None,
        }
    }

    pub(super) fn into_members(self) -> Members {
        self.members
    }

    /// What is there for the next decision.
    pub(super) fn now(&self) -> Now<'_> {
        Now::new(&self.groups, &self.members, &self.inner)
    }

    /// Serves until the server stops or an append fails.
    pub(super) async fn serve(&mut self, mailbox: &mut mpsc::Receiver<Command>) -> End {
        let stop = self.inner.shutdown.clone();
        let mut topics = self.inner.topics.subscribe();
        self.show_loaded();
        let (mut stopping, mut drained) = (false, false);
        loop {
            if let Some(lost) = self.failed.take() {
                return self.fail(lost).await;
            }
            let quiet = self.stuck.is_none() && self.in_flight.is_empty();
            if drained && quiet {
                return End::Stopped;
            }
            let room = self.has_room();
            if room && self.topics_due && !stopping {
                self.tell_topics();
                continue;
            }
            let look = self.next_look();
            tokio::select! {
                biased;
                resolved = oldest(&mut self.in_flight) => self.settle(resolved.map(|_| ())),
                () = stop.cancelled(), if !stopping => {
                    stopping = true;
                    mailbox.close();
                }
                () = again(self.stuck.as_ref().map(|stuck| stuck.waiter.clone())) => self.submit_again(),
                command = mailbox.recv(), if room && !drained => match command {
                    Some(command) => self.drain(command, mailbox),
                    None => drained = true,
                },
                _ = topics.changed(), if !self.topics_due && !stopping => self.topics_due = true,
                () = until(look), if room && !stopping => self.expire(),
            }
        }
    }

    fn has_room(&self) -> bool {
        let parked: usize = self.in_flight.iter().map(|batch| batch.outward.len()).sum();
        self.stuck.is_none() && self.in_flight.len() < IN_FLIGHT_MAX && parked < PARKED_MAX
    }

    /// Decides what waits, and submits it.
    fn drain(&mut self, first: Command, mailbox: &mut mpsc::Receiver<Command>) {
        let mut command = first;
        for _ in 0..DRAIN_MAX {
            match command {
                Command::Ask(ask) => ask.decide(self),
                Command::Join(joining) => self.join(*joining),
            }
            if self.gathered.bytes() >= BATCH_BYTES {
                break;
            }
            match mailbox.try_recv() {
                Ok(next) => command = next,
                Err(_) => break,
            }
        }
        self.submit();
    }

    fn join(&mut self, joining: Joining) {
        let Joining { join, pulse, reads_latest, reply } = joining;
        let (group, member) = (join.group.clone(), join.member.clone());
        let now = self.inner.clock.now();
        let decision = match self.groups.join(&join, &self.inner.topics, now) {
            Ok(decision) => decision,
            Err(refused) => return self.park(Outward::answer(reply, Err(refused.into()))),
        };
        // Before anything is pushed: an older session must not be told what the new one holds.
        let mut ending = vec![(group.clone(), member.clone(), SessionFencedWhy::Replaced)];
        ending.extend(
            decision.answer.replaced.clone().map(|other| (group.clone(), other, SessionFencedWhy::Replaced)),
        );
        let joined = match self.apply_ending(decision, ending) {
            Ok(joined) => joined,
            Err(lost) => return self.park(Outward::answer(reply, Err(lost.into()))),
        };
        let view = self.groups.view(&group, &member).expect("who has joined is a member");
        let (sender, updates) = watch::channel(SessionUpdate::View(view.clone()));
        let token = self.inner.coordinator.token();
        self.members.connect((&group, &member), pulse, (token, sender), reads_latest, view.clone());
        self.park(Outward::answer(reply, Ok(SessionStart { joined, token, view, updates })));
    }

    /// Applies a decision: its records are replayed and will be written.
    ///
    /// # Errors
    /// [`Lost`] if nothing can be written; nothing has changed then.
    pub(super) fn apply<T>(&mut self, decision: Decision<T>) -> Result<T, Lost> {
        self.apply_ending(decision, Vec::new())
    }

    fn apply_ending<T>(&mut self, decision: Decision<T>, ending: Vec<Ending>) -> Result<T, Lost> {
        let Decision { records, answer } = decision;
        if !records.is_empty() {
            self.check_writable()?;
        }
        for (group, member, why) in ending {
            let is_member = self.members.knows(&group, &member);
            let push = self.members.remove(&group, &member, why);
            // Who comes back after its stream has broken fences nobody.
            if push.is_some() || is_member && why != SessionFencedWhy::Replaced {
                let fenced = self.inner.metrics.groups.fenced(why);
                self.outward.push(Outward::push(move || fenced.inc()));
            }
            self.outward.extend(push.map(Outward::Push));
        }
        let now = self.inner.clock.now();
        for record in records {
            self.gathered.push(&record, now);
            self.touched.named.extend(record.group().cloned());
            match &record {
                GroupRecord::Offset { group, topic, partition, value } => {
                    let commit = value.as_ref().map(Commit::of);
                    let (group, topic, partition) = (group.clone(), topic.clone(), *partition);
                    self.outward.push(Outward::Commit(CommitChange::Offset {
                        group,
                        topic,
                        partition,
                        commit,
                    }));
                }
                GroupRecord::Group { group, value } => {
                    self.count_rebalance(group, value.as_ref().map(|value| value.epoch));
                    self.touched.moved.insert(group.clone());
                }
                _ => self.touched.moved.extend(record.group().cloned()),
            }
            self.groups.replay(record);
        }
        Ok(answer)
    }

    /// Parks what sessions, the commit table and metrics are to know of what is gathered: its end state.
    fn park_levels(&mut self) {
        let Touched { named, moved } = std::mem::take(&mut self.touched);
        for group in &moved {
            self.outward.extend(self.members.follow(&self.groups, group).into_iter().map(Outward::Push));
            let owners = table::owners(&self.groups, group);
            self.outward.push(Outward::Commit(CommitChange::Owners { group: group.clone(), owners }));
        }
        self.show(&named, &moved);
    }

    fn count_rebalance(&mut self, group: &GroupName, epoch: Option<rimstone_types::GroupEpoch>) {
        if epoch.is_some_and(|epoch| Some(epoch) > self.groups.epoch(group)) {
            let rebalances = self.inner.metrics.groups.rebalances.clone();
            self.outward.push(Outward::push(move || rebalances.inc()));
        }
    }

    /// Parks something until what has been decided so far is durable.
    pub(super) fn park(&mut self, outward: Outward) {
        self.outward.push(outward);
    }

    /// Whether a batch could be taken, as far as one can know before. The disk reserve is no reason: what groups
    /// write lives out of it, and where the disk has really no room the append says so.
    fn check_writable(&self) -> Result<(), Lost> {
        if let Some(reason) = &self.poisoned {
            return Err(Lost::Refused(Backpressure::Poisoned { reason: reason.clone() }));
        }
        match self.inner.storage.health() {
            Health::Healthy | Health::DiskReserveReached { .. } => Ok(()),
            Health::Poisoned { reason } => Err(Lost::Refused(Backpressure::Poisoned { reason })),
        }
    }

    /// Submits what is gathered. What waits for nothing of its own waits for what was submitted last.
    fn submit(&mut self) {
        self.park_levels();
        let outward = std::mem::take(&mut self.outward);
        if !self.gathered.is_empty() {
            let (batch, since) = (self.gathered.take(), Instant::now());
            return self.try_submit(Stuck { batch, outward, since, waiter: None });
        }
        match self.in_flight.back_mut() {
            Some(last) => last.outward.extend(outward),
            None => deliver(outward, &self.inner.commits),
        }
    }

    /// Submits what is gathered if it is enough for a batch. False: more must not be decided now.
    fn submit_when_full(&mut self) -> bool {
        if self.gathered.bytes() < BATCH_BYTES {
            return true;
        }
        self.submit();
        self.failed.is_none() && self.has_room()
    }

    fn submit_again(&mut self) {
        if let Some(stuck) = self.stuck.take() {
            self.try_submit(stuck);
        }
        if self.stuck.is_none() {
            // Signs of life are taken at once, but what members asked for has waited.
            self.members.renew();
        }
    }

    fn try_submit(&mut self, mut stuck: Stuck) {
        match self.log.submit(&stuck.batch, self.inner.clock.now()) {
            Ok(ticket) => self.in_flight.push_back(InFlight { ticket, outward: stuck.outward }),
            Err(Backpressure::Staging { .. } | Backpressure::DiskReserve { .. })
                if stuck.since.elapsed() < SUBMIT_WAIT_MAX =>
            {
                let store = self.log.store();
                stuck.waiter.get_or_insert_with(|| {
                    let waiter = Waiter::new();
                    store.subscribe(&waiter);
                    waiter
                });
                self.stuck = Some(stuck);
            }
            Err(refusal) => {
                tracing::warn!(shard = self.index, %refusal, "the coordinator's records were not taken");
                lose(stuck.outward, &Lost::Refused(refusal));
                self.failed = Some(Lost::Loading);
            }
        }
    }

    /// The oldest batch has its fate.
    fn settle(&mut self, fate: Result<(), AppendError>) {
        let outward = self.in_flight.pop_front().map(|batch| batch.outward).unwrap_or_default();
        match fate {
            Ok(()) => deliver(outward, &self.inner.commits),
            Err(error) => {
                tracing::warn!(shard = self.index, %error, "the coordinator's append failed: loading again");
                self.failed = Some(match &error {
                    AppendError::Unknown { .. } => Lost::Append(error.clone()),
                    _ => Lost::Loading,
                });
                lose(outward, &lost_by(error));
            }
        }
    }

    /// What was not submitted is lost. What was has a fate of its own: what did not come after the failure may
    /// be durable, and then it has happened. The log is read again when all fates are known.
    async fn fail(&mut self, lost: Lost) -> End {
        for InFlight { ticket, outward } in self.in_flight.drain(..) {
            match ticket.await {
                Ok(_) => deliver(outward, &self.inner.commits),
                Err(error) => lose(outward, &lost_by(error)),
            }
        }
        if let Some(stuck) = self.stuck.take() {
            lose(stuck.outward, &lost);
        }
        lose(std::mem::take(&mut self.outward), &lost);
        End::Failed
    }

    /// Ends the memberships whose time is up.
    fn expire(&mut self) {
        if self.topics_again.is_some_and(|at| at <= Instant::now()) {
            (self.topics_due, self.topics_again) = (true, None);
        }
        for (group, due) in self.members.overdue(DRAIN_MAX, OVERDUE_PAUSE) {
            if !self.end_memberships(&group, &due) || !self.submit_when_full() {
                break;
            }
        }
        self.submit();
    }

    /// Ends memberships whose time is up in one decision: each makes a target over all that stay. False: nothing
    /// can be written, they are looked at again.
    fn end_memberships(&mut self, group: &GroupName, due: &[Due]) -> bool {
        let removal = |which: &Overdue| match which {
            Overdue::Session => (Removal::SessionTimeout, SessionFencedWhy::SessionTimeout),
            Overdue::Poll => (Removal::PollTimeout, SessionFencedWhy::PollTimeout),
        };
        let removed: Vec<_> = due.iter().map(|(member, which)| (member, removal(which).0)).collect();
        let decision = self.groups.remove_members(group, &removed, &self.inner.topics);
        let ending = due.iter().map(|(member, which)| (group.clone(), member.clone(), removal(which).1));
        if self.apply_ending(decision, ending.collect()).is_err() {
            return false;
        }
        for (member, which) in due {
            let why = removal(which).1;
            tracing::info!(%group, %member, %why, "a member is removed");
        }
        self.expired_at = Some(Instant::now());
        true
    }

    /// When time-outs are to be looked at.
    fn next_look(&self) -> Option<Instant> {
        let soonest = self.expired_at.map(|at| at + EXPIRE_PAUSE);
        let look = self.members.next_look().map(|at| soonest.map_or(at, |soonest| at.max(soonest)));
        look.into_iter().chain(self.topics_again).min()
    }

    /// Lets the groups follow the topics as they are now.
    fn tell_topics(&mut self) {
        (self.topics_due, self.topics_again) = (false, None);
        for group in self.groups.outdated(&self.inner.topics) {
            let decision = self.groups.topics_changed(&group, &self.inner.topics);
            if self.apply(decision).is_err() {
                self.topics_again = Some(Instant::now() + OVERDUE_PAUSE);
                break;
            }
            if !self.submit_when_full() {
                self.topics_due = true;
                break;
            }
        }
        self.submit();
    }

    /// Shows the state as it was loaded, all of it durable.
    fn show_loaded(&mut self) {
        let index = self.index;
        let mine = |group: &GroupName| super::shard_of(group) == index;
        self.inner.commits.replace(mine, table::all(&self.groups, &self.inner.topics));
        let counted = |group: &GroupName| (group.clone(), count(&self.groups, group));
        let members = self.groups.names().map(counted).collect();
        self.inner.coordinator.show(index, |facts| {
            facts.members = members;
            facts.backwards.clear();
        });
        for push in self.members.loaded(&self.groups) {
            push();
        }
    }

    /// Shows what has changed, once it is durable.
    fn show(&mut self, named: &BTreeSet<GroupName>, moved: &BTreeSet<GroupName>) {
        for group in named {
            let there = self.groups.contains(group);
            let shown = moved.contains(group) || !there;
            let known = self.inner.coordinator.shows(self.index, group);
            if shown || !known {
                let members = there.then(|| count(&self.groups, group));
                let (inner, index, group) = (Arc::clone(&self.inner), self.index, group.clone());
                self.outward.push(Outward::push(move || {
                    inner.coordinator.show(index, |facts| facts.set(group, members));
                }));
            }
        }
    }
}

fn count(groups: &Groups, group: &GroupName) -> u32 {
    u32::try_from(groups.members(group).count()).unwrap_or(u32::MAX)
}

/// What a failed batch's requests are told.
fn lost_by(error: AppendError) -> Lost {
    match error {
        // Behind one that was undone: its turn never came.
        AppendError::ExpectedEndNotMet { .. } => Lost::Loading,
        error => Lost::Append(error),
    }
}

async fn again(stuck: Option<Option<Waiter>>) {
    match stuck {
        Some(Some(waiter)) => tokio::select! {
            () = waiter.wait() => {}
            () = sleep(SUBMIT_PAUSE) => {}
        },
        Some(None) => {}
        None => std::future::pending().await,
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}
