//! Tenures: who owned a partition from when to when, in which epochs; and whether its work was within.

use std::collections::{BTreeMap, HashMap, VecDeque};

use super::{Anomaly, Facts, Life};
use crate::group::event::What;

/// The ownership of a partition by a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tenure {
    pub(super) process: String,
    pub(super) owner: String,
    pub(super) partition: u32,
    /// The first and the last that the member was told while it owned the partition.
    pub(super) epochs: (u32, u32),
    /// From when on the member could work.
    pub(super) from_ns: u64,
    /// Until when it rightly could.
    pub(super) until_ns: u64,
}

impl Tenure {
    /// Whether it began while the member could still believe in it. One that was frozen may hear of a tenure
    /// when that has long been another's.
    pub(super) fn was_real(&self) -> bool {
        self.from_ns < self.until_ns
    }
}

/// What a member was told to be committed when a tenure began.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Shown {
    pub(super) process: String,
    pub(super) partition: u32,
    pub(super) committed: Option<u64>,
    pub(super) at_ns: u64,
}

#[derive(Debug)]
struct Open {
    epochs: (u32, u32),
    from_ns: u64,
    position: Option<u64>,
}

/// A life as it is walked through.
#[derive(Debug)]
struct Walk<'a> {
    life: &'a Life,
    facts: &'a Facts,
    open: BTreeMap<u32, Open>,
    closed: Vec<Tenure>,
    shown: Vec<Shown>,
    /// When each commit without an answer was sent.
    commits: HashMap<u64, u64>,
    epoch: u32,
    /// The last thing said that was answered.
    contact_ns: u64,
    /// Heartbeats of this stream that were not answered yet.
    beats: VecDeque<u64>,
    joined_ns: u64,
}

/// The tenures of a process and what it was shown; `wrong` takes what it did outside of them.
pub(super) fn of_life(life: &Life, facts: &Facts, wrong: &mut Vec<Anomaly>) -> (Vec<Tenure>, Vec<Shown>) {
    let mut walk = Walk {
        life,
        facts,
        open: BTreeMap::new(),
        closed: Vec::new(),
        shown: Vec::new(),
        commits: HashMap::new(),
        epoch: 0,
        contact_ns: 0,
        beats: VecDeque::new(),
        joined_ns: 0,
    };
    for event in &life.events {
        walk.step(event.at_ns, &event.what, wrong);
    }
    // It still owned these when it was killed, or when the test ended.
    let last_ns = life.events.last().map_or(0, |event| event.at_ns);
    walk.close_all(last_ns);
    (walk.closed, walk.shown)
}

impl Walk<'_> {
    fn step(&mut self, at_ns: u64, what: &What, wrong: &mut Vec<Anomaly>) {
        match *what {
            What::Join { .. } => {
                self.joined_ns = at_ns;
                self.beats.clear();
            }
            What::Joined { epoch, resumed } => {
                if !resumed {
                    // Since when is not known; it may be as long as nothing was heard.
                    self.close_all(self.contact_ns);
                    self.epoch = 0;
                }
                self.contact_ns = self.joined_ns;
                self.reach(epoch, wrong);
            }
            What::Start { epoch, partition, offset, committed } => {
                self.reach(epoch, wrong);
                self.start(at_ns, partition, offset, committed, wrong);
            }
            What::Stop { epoch, .. } => self.reach(epoch, wrong),
            What::Done { partition, offset, number } => self.done(partition, offset, number, wrong),
            What::Stopped { partition } => self.close(partition, at_ns),
            What::Beat => self.beats.push_back(at_ns),
            What::Alive { epoch } => {
                let sent_ns = self.beats.pop_front().expect("what is answered was asked");
                self.contact_ns = self.contact_ns.max(sent_ns);
                self.reach(epoch, wrong);
            }
            What::Leave => self.close_all(at_ns),
            What::Fenced { .. } => {
                self.close_all(self.contact_ns);
                self.epoch = 0;
            }
            What::Problem { partition, ref why } => {
                let process = self.life.process.clone();
                wrong.push(Anomaly::Problem { process, partition, why: why.clone() });
            }
            What::Commit { id, .. } => drop(self.commits.insert(id, at_ns)),
            What::Committed { id, ref refused } => {
                let sent_ns = self.commits.remove(&id);
                if let (Some(sent_ns), None) = (sent_ns, refused) {
                    self.contact_ns = self.contact_ns.max(sent_ns);
                }
            }
            What::Broken { .. } => {}
        }
    }

    fn reach(&mut self, epoch: u32, wrong: &mut Vec<Anomaly>) {
        if epoch < self.epoch {
            let process = self.life.process.clone();
            wrong.push(Anomaly::EpochWentBack { process, from: self.epoch, to: epoch });
        }
        self.epoch = epoch;
        for open in self.open.values_mut() {
            open.epochs.1 = open.epochs.1.max(epoch);
        }
    }

    fn start(
        &mut self,
        at_ns: u64,
        partition: u32,
        offset: Option<u64>,
        committed: Option<u64>,
        wrong: &mut Vec<Anomaly>,
    ) {
        // Named again after a reconnect: it goes on where the member said that it is.
        let expected = match self.open.get(&partition) {
            Some(open) => open.position,
            None => Some(committed.unwrap_or(0)),
        };
        if offset != expected {
            let process = self.life.process.clone();
            wrong.push(Anomaly::WrongStart { process, partition, offset, committed });
        }
        if at_ns < self.lease_ns() {
            let process = self.life.process.clone();
            self.shown.push(Shown { process, partition, committed, at_ns });
        }
        let epoch = self.epoch;
        let open = Open { epochs: (epoch, epoch), from_ns: at_ns, position: offset };
        self.open.entry(partition).or_insert(open).position = offset;
    }

    fn done(&mut self, partition: u32, offset: u64, number: u64, wrong: &mut Vec<Anomaly>) {
        let process = || self.life.process.clone();
        let expected = self.log_has(partition, offset);
        if expected != Some(number) {
            wrong.push(Anomaly::OtherRecord { process: process(), partition, offset, expected, number });
        }
        let Some(open) = self.open.get_mut(&partition) else {
            wrong.push(Anomaly::NotTheOwner { process: process(), partition, offset });
            return;
        };
        if open.position != Some(offset) {
            let expected = open.position;
            wrong.push(Anomaly::NotContiguous { process: process(), partition, expected, offset });
        }
        open.position = Some(offset + 1);
    }

    fn log_has(&self, partition: u32, offset: u64) -> Option<u64> {
        self.facts.log.get(&partition)?.get(usize::try_from(offset).ok()?).copied()
    }

    /// Until when the member may believe that nobody has followed it.
    fn lease_ns(&self) -> u64 {
        self.contact_ns.saturating_add(self.facts.session_timeout_ns)
    }

    fn close_all(&mut self, at_ns: u64) {
        for partition in self.open.keys().copied().collect::<Vec<_>>() {
            self.close(partition, at_ns);
        }
    }

    fn close(&mut self, partition: u32, at_ns: u64) {
        let Some(open) = self.open.remove(&partition) else { return };
        let lease_ns = self.lease_ns();
        self.closed.push(Tenure {
            process: self.life.process.clone(),
            owner: self.life.owner.clone(),
            partition,
            epochs: open.epochs,
            from_ns: open.from_ns,
            until_ns: at_ns.min(lease_ns).max(open.from_ns),
        });
    }
}
