//! What the application's side of a consumer and its driver share, behind one lock: what is owned, what is here
//! and not handed out, what is to be said to the server. No I/O; time is passed in. Here is the application's side;
//! the driver's is in `session`.

mod session;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use rimstone_types::Offset;
use tokio::{sync::Notify, time::Instant};

pub(crate) use crate::consumer::owned::Answered;
use crate::{
    consumer::{
        commits::{Commits, Wanted},
        credit::{Amount, Credit},
        event::Assignment,
        hand::Lease,
        owned::{Owned, Stop},
    },
    error::ClientError,
    groups::TopicPartition,
    reader::{Received, decode::Chunk},
};

/// What waits to be handed out.
#[derive(Debug)]
enum Item {
    Chunk {
        at: TopicPartition,
        chunk: Chunk,
        /// A batch comes whole, also where log start lies inside it.
        log_start: Offset,
        used: Amount,
    },
    /// The partition cannot be read on from here.
    Problem { at: TopicPartition, error: ClientError },
}

impl Item {
    fn at(&self) -> &TopicPartition {
        match self {
            Self::Chunk { at, .. } | Self::Problem { at, .. } => at,
        }
    }
}

/// What the application is told besides records.
#[derive(Debug)]
pub(crate) enum Told {
    Assigned(Vec<Assignment>),
    Stopping(Vec<TopicPartition>, u64),
    Lost(Vec<TopicPartition>),
    CaughtUp(TopicPartition),
    Error(ClientError),
}

/// What [`State::take`] found.
#[derive(Debug)]
pub(crate) enum Taken {
    Record { topic: Arc<str>, record: Received, lease: Lease },
    Told(Told),
    Nothing,
}

/// How a consumer is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Close {
    /// A static member gives its place up.
    pub(crate) for_good: bool,
    pub(crate) deadline: Instant,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct State {
    /// Commits what was processed, by itself.
    automatic: bool,
    pub(crate) owned: BTreeMap<TopicPartition, Owned>,
    items: VecDeque<Item>,
    told: VecDeque<Told>,
    pub(crate) credit: Credit,
    pub(crate) commits: Commits,
    /// Partitions that are given back without having been ours, as far as we know.
    unknown_stops: Vec<TopicPartition>,
    /// Where the last record was handed out.
    last: Option<TopicPartition>,
    /// The application listens for events, not only for records.
    listens: bool,
    /// The application has asked for records since the last heartbeat.
    asked: bool,
    /// The application waits for records now.
    pub(crate) waits: bool,
    /// The application wants to be a member: it has asked since the start, or since it was fenced.
    pub(crate) wanted: bool,
    /// Of membership.
    pub(crate) epoch: u32,
    /// Until then the server counts on us, as far as we know.
    pub(crate) lease_until: Option<Instant>,
    generations: u64,
    /// Counts the commits of all partitions.
    numbers: u64,
    pub(crate) close: Option<Close>,
    pub(crate) fatal: Option<ClientError>,
    /// The first commit that was refused, for `close`.
    pub(crate) commit_failure: Option<ClientError>,
    wake: Arc<Notify>,
}

impl State {
    pub(crate) fn new(automatic: bool, prefetch: (u64, u64), wake: Arc<Notify>) -> Self {
        Self {
            automatic,
            owned: BTreeMap::new(),
            items: VecDeque::new(),
            told: VecDeque::new(),
            credit: Credit::new(prefetch.0, prefetch.1),
            commits: Commits::default(),
            unknown_stops: Vec::new(),
            last: None,
            listens: false,
            asked: false,
            waits: false,
            wanted: false,
            epoch: 0,
            lease_until: None,
            generations: 0,
            numbers: 0,
            close: None,
            fatal: None,
            commit_failure: None,
            wake,
        }
    }

    /// The application asks for the next record: whatever was handed out before has been processed, unless it
    /// is held. Answers whether the driver should look.
    pub(crate) fn ask(&mut self, listens: bool) -> bool {
        let listened = std::mem::replace(&mut self.listens, listens);
        self.asked = true;
        let mut look = !self.wanted;
        self.wanted = true;
        look |= self.settle_last();
        if listened && !listens {
            // Nobody is to be told any more: what waits for that waits no longer.
            for owned in self.owned.values_mut().filter(|owned| owned.stop == Stop::Told) {
                owned.stop = Stop::Released;
                look = true;
            }
            self.told.retain(|told| matches!(told, Told::Error(_)));
        }
        look
    }

    /// What was handed out last has been processed.
    fn settle_last(&mut self) -> bool {
        let Some(owned) = self.last.take().and_then(|last| self.owned.get(&last)) else { return false };
        owned.hand.asked();
        owned.stop != Stop::No
    }

    /// The next thing for the application.
    pub(crate) fn take(&mut self, now: Instant) -> Taken {
        if let Some(told) = self.told.pop_front() {
            return Taken::Told(told);
        }
        if let Some(error) = &self.fatal {
            return Taken::Told(Told::Error(error.clone()));
        }
        // Somebody else may own our partitions by now.
        if self.lease_until.is_none_or(|until| now >= until) {
            return Taken::Nothing;
        }
        while let Some(item) = self.items.pop_front() {
            let (at, mut chunk, log_start, used) = match item {
                Item::Problem { error, .. } => return Taken::Told(Told::Error(error)),
                Item::Chunk { at, chunk, log_start, used } => (at, chunk, log_start, used),
            };
            let Some(owned) = self.owned.get_mut(&at).filter(|owned| owned.is_read()) else {
                // Whoever takes a partition out takes its items out too; this only keeps it so.
                self.credit.freed(used);
                continue;
            };
            match next_of(&mut chunk, owned.next.unwrap_or_default().max(log_start)) {
                Ok(Some(record)) => {
                    owned.next = Some(record.offset.saturating_add(1));
                    owned.touched = true;
                    let lease = owned.hand.take(record.offset);
                    if owned.catches_up() && self.listens {
                        self.told.push_back(Told::CaughtUp(at.clone()));
                    }
                    let topic = at.topic.clone();
                    self.last = Some(at.clone());
                    self.items.push_front(Item::Chunk { at, chunk, log_start, used });
                    return Taken::Record { topic, record, lease };
                }
                Ok(None) => {
                    if owned.next.is_none_or(|next| next < chunk.next_offset()) {
                        owned.next = Some(chunk.next_offset());
                        owned.touched = true;
                    }
                    self.credit.freed(used);
                    if owned.catches_up() && self.listens {
                        return Taken::Told(Told::CaughtUp(at));
                    }
                }
                Err(error) => {
                    // What is left of this message would leave a gap: it is read again from the next offset.
                    self.credit.freed(used);
                    if let Some(next) = owned.next {
                        owned.go_on_at(next);
                    }
                    self.purge(&at);
                    return Taken::Told(Told::Error(located(error, &at)));
                }
            }
        }
        Taken::Nothing
    }

    /// The application has let go of a stop.
    pub(crate) fn released(&mut self, partitions: &[TopicPartition], generation: u64) {
        for at in partitions {
            if let Some(owned) = self.owned.get_mut(at)
                && owned.generation <= generation
                && owned.stop == Stop::Told
            {
                owned.stop = Stop::Released;
            }
        }
    }

    /// Throws away what is here of a partition.
    fn purge(&mut self, at: &TopicPartition) {
        let credit = &mut self.credit;
        self.items.retain(|item| {
            if let (true, Item::Chunk { used, .. }) = (item.at() == at, item) {
                credit.freed(*used);
            }
            item.at() != at
        });
    }

    /// Reads an owned partition from elsewhere. Answers whether it is owned.
    pub(crate) fn seek(&mut self, at: &TopicPartition, to: Offset) -> bool {
        let Some(owned) = self.owned.get_mut(at).filter(|owned| owned.stop == Stop::No) else { return false };
        owned.seek(to);
        self.purge(at);
        true
    }

    /// No more records of a partition until [`State::resume`]. What is here is thrown away, so that it keeps
    /// no other partition waiting. Answers whether it is owned.
    pub(crate) fn pause(&mut self, at: &TopicPartition) -> bool {
        let Some(owned) = self.owned.get_mut(at) else { return false };
        owned.paused = true;
        self.purge(at);
        true
    }

    pub(crate) fn resume(&mut self, at: &TopicPartition) -> bool {
        let Some(owned) = self.owned.get_mut(at) else { return false };
        if std::mem::take(&mut owned.paused)
            && let Some(next) = owned.next
        {
            owned.go_on_at(next);
        }
        true
    }

    /// Wants an offset committed; answers the number of the commit. Not below an earlier one since the
    /// assignment or the last seek, unless `exactly`.
    pub(crate) fn want_commit(
        &mut self,
        at: &TopicPartition,
        offset: Option<Offset>,
        metadata: String,
        exactly: bool,
    ) -> Option<u64> {
        let owned = self.owned.get_mut(at)?;
        if let Some(offset) = offset {
            owned.hand.committed(offset);
        }
        if !exactly && owned.floor.is_some() && owned.floor >= offset {
            return Some(owned.commits);
        }
        self.numbers += 1;
        let number = self.numbers;
        owned.floor = offset;
        owned.commits = number;
        self.commits.want(at.clone(), Wanted { offset, metadata, number });
        Some(number)
    }

    /// Wants everything that was processed committed, where that is not so already.
    pub(crate) fn commit_processed(&mut self) {
        let due: Vec<_> =
            self.owned.iter().filter_map(|(at, owned)| Some((at.clone(), due(owned)?))).collect();
        for (at, offset) in due {
            self.want_commit(&at, Some(offset), String::new(), true);
        }
    }

    /// Wants everything that was handed out committed: the application says that it is processed. Answers where,
    /// and the numbers.
    pub(crate) fn commit_handed_out(&mut self) -> Vec<(TopicPartition, u64)> {
        let positions: Vec<_> = self
            .owned
            .iter()
            .filter(|(_, owned)| owned.touched)
            .filter_map(|(at, owned)| Some((at.clone(), owned.next?, owned.floor.or(owned.committed))))
            .collect();
        let mut wanted = Vec::new();
        for (at, next, known) in positions {
            let number = if known == Some(next) {
                self.owned.get(&at).map(|owned| {
                    owned.hand.committed(next);
                    owned.commits
                })
            } else {
                self.want_commit(&at, Some(next), String::new(), true)
            };
            wanted.extend(number.map(|number| (at, number)));
        }
        wanted
    }
}

/// The offset to commit, if what was processed is not what is committed.
fn due(owned: &Owned) -> Option<Offset> {
    let processed = owned.processed()?;
    (owned.floor.or(owned.committed) != Some(processed)).then_some(processed)
}

fn next_of(chunk: &mut Chunk, from: Offset) -> Result<Option<Received>, ClientError> {
    while let Some(record) = chunk.next()? {
        if record.offset >= from {
            return Ok(Some(record));
        }
    }
    Ok(None)
}

fn located(error: ClientError, at: &TopicPartition) -> ClientError {
    error.with("topic", &at.topic).with("partition", at.partition)
}
