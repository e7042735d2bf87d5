//! The order of one producer's numbered requests, decided without I/O: which may be submitted now, which wait
//! for their turn, which are refused.
//!
//! A new number is submitted only when everything before it is stored, or when it and everything open go to
//! one and the same partition, whose log keeps the order. So whatever a crash takes, at most the highest number
//! found afterwards is stored only in part, and it is enough that the producer sends that one again.

use std::collections::{BTreeMap, VecDeque};

use rimstone_types::{PartitionId, ProducerEpoch, Timestamp};

/// What a request touches: one partition, or several (`None`).
pub(crate) type Scope = Option<PartitionId>;

/// Why a request is not taken. It uses up no number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// This number must come first.
    ResendFirst { expected: u32 },
    /// A newer instance is there.
    Fenced { current: ProducerEpoch },
    /// So many requests are open or wait already.
    TooManyOpen { limit: usize },
    /// The newer instance's state is being read.
    NotYet,
}

/// What became of a request whose turn it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// All of it is there, now or since an earlier attempt.
    Stored,
    /// Some of it was not kept, or nobody knows; `in_part`: some of it is there.
    Failed { in_part: bool },
    /// A verdict that a repeat would get as well: nothing failed, but it is not what is stored under its number.
    Refused,
    /// The end that it made its condition was not met. Such a request goes to one partition.
    EndNotMet,
}

/// Why a number stands in the way of later ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Mark {
    /// Its last attempt failed, and nothing is known to be stored of it.
    Lost,
    /// Something of it is stored: the request itself is found there again, so only that settles it.
    InPart,
}

/// One arrival: which instance, which number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Arrival {
    pub(crate) epoch: ProducerEpoch,
    pub(crate) number: u32,
    pub(crate) scope: Scope,
}

/// A request that may be submitted now.
#[derive(Debug)]
pub(crate) struct Turn<W> {
    pub(crate) epoch: ProducerEpoch,
    pub(crate) number: u32,
    pub(crate) attempt: u64,
    /// The number was never submitted before.
    is_new: bool,
    /// It stood in the way of later ones before.
    mark: Option<Mark>,
    /// The attempt that decided before this one.
    before: u64,
    pub(crate) work: W,
}

/// Requests that are refused now, with the reason.
pub(crate) type Refused<W> = Vec<(W, u32, Refusal)>;

#[derive(Debug)]
struct Open {
    /// Attempts whose fate is not known yet.
    attempts: u32,
    /// The last attempt decides: it found what the earlier ones left.
    last: u64,
    scope: Scope,
    /// It stood in the way of later ones, and no attempt has settled it yet.
    mark: Option<Mark>,
}

/// The session of one producer. `W` is what is submitted.
#[derive(Debug)]
pub(crate) struct State<W> {
    /// Named producers get their epochs from the server, and their numbers go on; others take a higher epoch
    /// by themselves and begin again at 0.
    named: bool,
    epoch: ProducerEpoch,
    /// What came before the state was read, in order of arrival; `None` once it is read.
    early: Option<VecDeque<(Arrival, W)>>,
    /// The next number that was never accepted.
    next: u64,
    /// The next number that was never submitted; `submitted <= next`.
    submitted: u64,
    /// Numbers whose last attempt failed: later ones wait for the producer to send them again.
    failed: BTreeMap<u32, Mark>,
    open: BTreeMap<u32, Open>,
    /// Accepted, and waiting for the turn: new numbers, and repeats of those.
    waiting: BTreeMap<(u32, u64), (Scope, W)>,
    attempts: u64,
    limit: usize,
    /// When something last happened.
    pub(crate) used: Timestamp,
    /// Taken out of the table: whoever holds it must look there again.
    pub(crate) gone: bool,
}

impl<W> State<W> {
    /// A session whose state is being read; requests wait until [`State::built`].
    pub(crate) fn building(named: bool, limit: usize) -> Self {
        Self {
            named,
            epoch: ProducerEpoch::ZERO,
            early: Some(VecDeque::new()),
            next: 0,
            submitted: 0,
            failed: BTreeMap::new(),
            open: BTreeMap::new(),
            waiting: BTreeMap::new(),
            attempts: 0,
            limit,
            used: Timestamp::MIN,
            gone: false,
        }
    }

    /// Whether it can be taken out of the table: nothing depends on it but what the partitions know too.
    pub(crate) fn is_idle(&self) -> bool {
        self.early.is_none() && self.open.is_empty() && self.waiting.is_empty()
    }

    /// Whether the state is still being read.
    pub(crate) fn is_building(&self) -> bool {
        self.early.is_some()
    }

    #[cfg(test)]
    fn epoch(&self) -> ProducerEpoch {
        self.epoch
    }

    /// The state was read: the epoch in force and the highest number stored, if any. Answers what came early
    /// and is refused.
    pub(crate) fn built(&mut self, epoch: ProducerEpoch, highest: Option<u32>) -> Refused<W> {
        let Some(early) = self.early.take() else { return Vec::new() };
        self.begin(epoch, highest);
        let mut refused = Vec::new();
        for (arrival, work) in early {
            refused.extend(self.arrive(arrival, work));
        }
        refused
    }

    /// A newer instance: what waits of the older one is refused, what is open goes on unwatched.
    pub(crate) fn replace(&mut self, epoch: ProducerEpoch, highest: Option<u32>) -> Refused<W> {
        if self.is_building() {
            return self.built(epoch, highest);
        }
        if epoch <= self.epoch {
            return Vec::new();
        }
        self.begin(epoch, highest)
    }

    fn begin(&mut self, epoch: ProducerEpoch, highest: Option<u32>) -> Refused<W> {
        self.epoch = epoch;
        self.next = highest.map_or(0, |highest| u64::from(highest) + 1);
        self.submitted = self.next;
        self.failed = highest.map(|highest| (highest, Mark::InPart)).into_iter().collect();
        self.open.clear();
        let fenced = Refusal::Fenced { current: epoch };
        std::mem::take(&mut self.waiting)
            .into_iter()
            .map(|((number, _), (_, work))| (work, number, fenced))
            .collect()
    }

    /// A request arrives: it is accepted and gets its turn from [`State::turn`], or is refused.
    pub(crate) fn arrive(&mut self, arrival: Arrival, work: W) -> Refused<W> {
        let Arrival { epoch, number, scope } = arrival;
        if let Some(early) = &mut self.early {
            if early.len() >= self.limit {
                return vec![(work, number, Refusal::TooManyOpen { limit: self.limit })];
            }
            early.push_back((arrival, work));
            return Vec::new();
        }
        let mut refused = Vec::new();
        if epoch < self.epoch {
            return vec![(work, number, Refusal::Fenced { current: self.epoch })];
        }
        if epoch > self.epoch {
            if self.named {
                return vec![(work, number, Refusal::NotYet)];
            }
            if number != 0 {
                return vec![(work, number, Refusal::ResendFirst { expected: 0 })];
            }
            refused = self.begin(epoch, None);
        }
        if let Some(refusal) = self.refuses(number) {
            refused.push((work, number, refusal));
            return refused;
        }
        self.next = self.next.max(u64::from(number) + 1);
        self.attempts += 1;
        self.waiting.insert((number, self.attempts), (scope, work));
        refused
    }

    fn refuses(&self, number: u32) -> Option<Refusal> {
        if let Some((&expected, _)) = self.failed.first_key_value()
            && number > expected
        {
            return Some(Refusal::ResendFirst { expected });
        }
        if u64::from(number) > self.next {
            // Cannot truncate: next is below the number.
            return Some(Refusal::ResendFirst { expected: self.next as u32 });
        }
        let attempts: usize = self.open.values().map(|open| open.attempts as usize).sum();
        if attempts + self.waiting.len() >= self.limit {
            return Some(Refusal::TooManyOpen { limit: self.limit });
        }
        None
    }

    /// The next request that may be submitted now, which counts as open from here on. Call until `None`.
    pub(crate) fn turn(&mut self) -> Option<Turn<W>> {
        let (&(number, attempt), &(scope, _)) = self.waiting.first_key_value()?;
        let is_new = u64::from(number) == self.submitted;
        if is_new && !self.keeps_order(scope) {
            return None;
        }
        let (_, work) = self.waiting.remove(&(number, attempt)).expect("it was found there");
        if is_new {
            self.submitted += 1;
        }
        let mark = self.failed.remove(&number);
        let open = self.open.entry(number).or_insert(Open { attempts: 0, last: 0, scope, mark: None });
        open.mark = open.mark.max(mark);
        open.attempts += 1;
        let before = std::mem::replace(&mut open.last, attempt);
        Some(Turn { epoch: self.epoch, number, attempt, is_new, mark, before, work })
    }

    /// Whether a new request may be submitted behind those that are open.
    fn keeps_order(&self, scope: Scope) -> bool {
        self.open.is_empty() || scope.is_some() && self.open.values().all(|open| open.scope == scope)
    }

    /// A request that had its turn was not taken by the store at all: its number is not used up. Later ones
    /// that wait are refused.
    pub(crate) fn not_taken(&mut self, turn: &Turn<()>) -> Refused<W> {
        let number = turn.number;
        if let Some(open) = self.open.get_mut(&number) {
            open.attempts -= 1;
            open.last = turn.before;
            if open.attempts == 0 {
                self.open.remove(&number);
            }
        }
        if let Some(mark) = turn.mark {
            self.failed.insert(number, mark);
        }
        if !turn.is_new {
            return Vec::new();
        }
        self.submitted = u64::from(number);
        self.refuse_waiting(number)
    }

    /// The fate of a request is known; a failed one has to be sent again before later ones are taken.
    pub(crate) fn finished(&mut self, turn: &Turn<()>, fate: Fate) -> Refused<W> {
        if turn.epoch != self.epoch {
            return Vec::new();
        }
        let Some(open) = self.open.get_mut(&turn.number) else { return Vec::new() };
        let mark = match fate {
            Fate::Failed { in_part: false } => open.mark.max(Some(Mark::Lost)),
            Fate::Failed { in_part: true } => Some(Mark::InPart),
            // Other content under a number that is possibly partial settles nothing.
            Fate::Refused => open.mark,
            // Where something is stored, the request itself would have been found, and not been judged by the end.
            Fate::EndNotMet => open.mark.filter(|mark| *mark == Mark::InPart),
            Fate::Stored => None,
        };
        if mark.is_none() {
            open.mark = None;
        }
        let decides = open.last == turn.attempt;
        open.attempts -= 1;
        if open.attempts == 0 {
            self.open.remove(&turn.number);
        }
        match mark {
            Some(mark) if decides => {
                self.failed.insert(turn.number, mark);
                self.refuse_waiting(turn.number)
            }
            // The last attempt decides, and what was found before stands until the request itself settles it.
            Some(mark) => {
                if let Some(open) = self.open.get_mut(&turn.number) {
                    open.mark = open.mark.max(Some(mark));
                }
                Vec::new()
            }
            None => Vec::new(),
        }
    }

    /// Refuses everything that waits behind a number; their numbers were never used.
    fn refuse_waiting(&mut self, expected: u32) -> Refused<W> {
        self.next = self.submitted;
        std::mem::take(&mut self.waiting)
            .into_iter()
            .map(|((number, _), (_, work))| (work, number, Refusal::ResendFirst { expected }))
            .collect()
    }
}

impl<W> Turn<W> {
    /// The turn without its work.
    pub(crate) fn split(self) -> (Turn<()>, W) {
        let Self { epoch, number, attempt, is_new, mark, before, work } = self;
        (Turn { epoch, number, attempt, is_new, mark, before, work: () }, work)
    }
}

#[cfg(test)]
mod tests;
