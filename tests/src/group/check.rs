//! What must be true of the histories of a group's members, whatever joined, left, froze or died meanwhile:
//!
//! 1. A partition has at most one owner in an epoch, as members see it, and at most one at a time.
//! 2. A member works only on what it owns; within a tenure without holes, from where it was told to begin; and
//!    finds what the log has there.
//! 3. A tenure begins at the committed offset, which is one that somebody committed, and none that is older
//!    than an acknowledged one.
//! 4. What is committed was worked on before; commits do not go backwards; whoever has been followed by
//!    another owner commits nothing any more.
//! 5. In the end every record was worked on, and everything is committed.
//!
//! Time: a member may believe in its tenure for one session time-out from the last thing it said that the
//! server has answered, not longer; that is what counts here, whatever it may have believed itself.
//!
//! Not here: how the events came about; members that seek.

mod tenure;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::group::event::{Event, What};
use tenure::Tenure;

/// What one process did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Life {
    /// Names the process.
    pub process: String,
    /// Who it is to the group: its instance id, or else its member id.
    pub owner: String,
    /// In the order in which they happened.
    pub events: Vec<Event>,
}

/// Everything that is known in the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Of all processes.
    pub lives: Vec<Life>,
    /// The numbers of the lines in each partition, by offset, from 0 on.
    pub log: BTreeMap<u32, Vec<u64>>,
    /// What the server says is committed; a partition without a commit is left out.
    pub committed: BTreeMap<u32, u64>,
    /// Of every member, in nanoseconds.
    pub session_timeout_ns: u64,
}

/// What must not be.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs, reason = "the fields are told by their names")]
pub enum Anomaly {
    /// Two members were told in the same epoch that a partition is theirs.
    TwoOwnersInAnEpoch { partition: u32, epochs: (u32, u32), one: String, other: String },
    /// Two members owned a partition at the same time.
    TwoOwnersAtOnce { partition: u32, one: String, other: String },
    /// A member's epoch went back without a new start.
    EpochWentBack { process: String, from: u32, to: u32 },
    /// A partition was worked on by one who did not own it.
    NotTheOwner { process: String, partition: u32, offset: u64 },
    /// Records were left out, or repeated within a tenure.
    NotContiguous { process: String, partition: u32, expected: Option<u64>, offset: u64 },
    /// A member was given something else than the log has.
    OtherRecord { process: String, partition: u32, offset: u64, expected: Option<u64>, number: u64 },
    /// A tenure did not begin at the committed offset.
    WrongStart { process: String, partition: u32, offset: Option<u64>, committed: Option<u64> },
    /// An acknowledged commit was not there any more.
    CommitForgotten { seen_by: String, partition: u32, acknowledged: u64, committed: Option<u64> },
    /// An offset that nobody committed.
    CommitOfNobody { seen_by: String, partition: u32, committed: u64 },
    /// Something before a committed offset had not been worked on.
    CommittedNotDone { partition: u32, committed: u64, missing: u64 },
    /// One whom another had followed could still commit.
    StaleCommit { process: String, partition: u32, offset: u64 },
    /// A commit below an acknowledged one was acknowledged.
    CommitBackwards { partition: u32, from: u64, to: u64 },
    /// A partition could not be read.
    Problem { process: String, partition: u32, why: String },
    /// A record that nobody worked on.
    NeverDone { partition: u32, offset: u64 },
    /// Not everything is committed in the end.
    NotSettled { partition: u32, committed: Option<u64>, end: u64 },
}

/// How much there was to check: a test asserts that it was enough.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Ownerships of a partition, from start to end.
    pub tenures: usize,
    /// Of those, ended by a confirmed stop.
    pub stops_confirmed: usize,
    /// Records worked on, repetitions included.
    pub done: usize,
    /// Acknowledged commits.
    pub commits: usize,
    /// Refused commits.
    pub commits_refused: usize,
    /// Commits whose result nobody knows.
    pub commits_unknown: usize,
    /// Streams that went on where an earlier one had broken.
    pub resumed: usize,
    /// Members shut out.
    pub fenced: usize,
}

/// Everything that is wrong, and how much was looked at.
pub fn check(facts: &Facts) -> (Vec<Anomaly>, Counts) {
    let mut wrong = Vec::new();
    let mut counts = Counts::default();
    let commits = commits(&facts.lives);
    let mut tenures = Vec::new();
    for life in &facts.lives {
        let (of_life, begun) = tenure::of_life(life, facts, &mut wrong);
        tenures.extend(of_life);
        for begin in begun {
            wrong.extend(shown(&commits, &begin.process, begin.partition, begin.committed, begin.at_ns));
        }
        count(life, &mut counts);
    }
    counts.tenures = tenures.len();
    owners(&facts.lives, &tenures, &mut wrong);
    commits_rightly(facts, &commits, &tenures, &mut wrong);
    settled(facts, &commits, &mut wrong);
    counts.commits =
        commits.iter().filter(|commit| matches!(commit.outcome, Outcome::Durable { .. })).count();
    counts.commits_refused = commits.iter().filter(|commit| commit.outcome == Outcome::Refused).count();
    counts.commits_unknown = commits.iter().filter(|commit| commit.outcome == Outcome::Unknown).count();
    wrong.sort();
    wrong.dedup();
    (wrong, counts)
}

fn count(life: &Life, counts: &mut Counts) {
    for event in &life.events {
        match event.what {
            What::Done { .. } => counts.done += 1,
            What::Stopped { .. } => counts.stops_confirmed += 1,
            What::Joined { resumed: true, .. } => counts.resumed += 1,
            What::Fenced { .. } => counts.fenced += 1,
            _ => {}
        }
    }
}

/// Until when a tenure stood in the way of others: a member that begins anew in another process takes everything from its
/// older self at once, whatever that still believes, and it may be given to anybody.
fn until_ns(lives: &[Life], tenure: &Tenure) -> u64 {
    let others = lives.iter().filter(|life| life.owner == tenure.owner && life.process != tenure.process);
    let began = others.flat_map(|life| life.events.windows(2)).filter_map(|pair| {
        let is_new = matches!(
            (&pair[0].what, &pair[1].what),
            (What::Join { .. }, What::Joined { resumed: false, .. })
        );
        (is_new && pair[0].at_ns > tenure.from_ns).then_some(pair[0].at_ns)
    });
    began.min().map_or(tenure.until_ns, |at_ns| tenure.until_ns.min(at_ns))
}

/// Rule 1.
fn owners(lives: &[Life], tenures: &[Tenure], wrong: &mut Vec<Anomaly>) {
    for (index, one) in tenures.iter().enumerate() {
        for other in tenures[index + 1..].iter().filter(|other| other.partition == one.partition) {
            let partition = one.partition;
            let epochs = (one.epochs.0.max(other.epochs.0), one.epochs.1.min(other.epochs.1));
            if one.owner != other.owner && epochs.0 <= epochs.1 {
                let (one, other) = (one.process.clone(), other.process.clone());
                wrong.push(Anomaly::TwoOwnersInAnEpoch { partition, epochs, one, other });
            }
            let at_once = one.was_real()
                && other.was_real()
                && one.from_ns < until_ns(lives, other)
                && other.from_ns < until_ns(lives, one);
            // The same member in another process takes over from its older self at once.
            if one.owner != other.owner && at_once {
                let (one, other) = (one.process.clone(), other.process.clone());
                wrong.push(Anomaly::TwoOwnersAtOnce { partition, one, other });
            }
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Durable { at_ns: u64 },
    Refused,
    Unknown,
}

#[derive(Debug)]
struct Commit<'a> {
    process: &'a str,
    partition: u32,
    offset: u64,
    invoked_ns: u64,
    outcome: Outcome,
}

impl Commit<'_> {
    /// When it was known to be durable.
    fn durable_ns(&self) -> Option<u64> {
        match self.outcome {
            Outcome::Durable { at_ns } => Some(at_ns),
            Outcome::Refused | Outcome::Unknown => None,
        }
    }
}

fn commits(lives: &[Life]) -> Vec<Commit<'_>> {
    let mut commits = Vec::new();
    for life in lives {
        let mut open = HashMap::new();
        for event in &life.events {
            match &event.what {
                What::Commit { id, partition, offset } => {
                    open.insert(*id, commits.len());
                    commits.push(Commit {
                        process: &life.process,
                        partition: *partition,
                        offset: *offset,
                        invoked_ns: event.at_ns,
                        outcome: Outcome::Unknown,
                    });
                }
                What::Committed { id, refused } => {
                    let at_ns = event.at_ns;
                    let outcome =
                        if refused.is_some() { Outcome::Refused } else { Outcome::Durable { at_ns } };
                    let commit = open.get(id).expect("what is answered was asked");
                    commits[*commit].outcome = outcome;
                }
                _ => {}
            }
        }
    }
    commits
}

/// The highest offset that was known to be durable before this.
fn acknowledged_before(commits: &[Commit<'_>], partition: u32, at_ns: u64) -> Option<u64> {
    let before = |commit: &&Commit<'_>| commit.durable_ns().is_some_and(|durable| durable < at_ns);
    let of_partition = commits.iter().filter(|commit| commit.partition == partition);
    of_partition.filter(before).map(|commit| commit.offset).max()
}

/// Rule 3 for an offset that the server showed to somebody.
fn shown(
    commits: &[Commit<'_>],
    seen_by: &str,
    partition: u32,
    committed: Option<u64>,
    at_ns: u64,
) -> Option<Anomaly> {
    let seen_by = || seen_by.to_owned();
    if let Some(acknowledged) = acknowledged_before(commits, partition, at_ns)
        && committed.is_none_or(|committed| committed < acknowledged)
    {
        return Some(Anomaly::CommitForgotten { seen_by: seen_by(), partition, acknowledged, committed });
    }
    let committed = committed?;
    let somebody = commits.iter().any(|commit| {
        let same = commit.partition == partition && commit.offset == committed;
        same && commit.invoked_ns < at_ns && commit.outcome != Outcome::Refused
    });
    (!somebody).then(|| Anomaly::CommitOfNobody { seen_by: seen_by(), partition, committed })
}

/// Rule 4.
fn commits_rightly(facts: &Facts, commits: &[Commit<'_>], tenures: &[Tenure], wrong: &mut Vec<Anomaly>) {
    let done_ns = first_done(&facts.lives);
    for commit in commits.iter().filter(|commit| commit.durable_ns().is_some()) {
        let (partition, offset) = (commit.partition, commit.offset);
        let in_time =
            |offset: &u64| done_ns.get(&(partition, *offset)).is_some_and(|at| *at < commit.invoked_ns);
        if let Some(missing) = (0..offset).find(|offset| !in_time(offset)) {
            wrong.push(Anomaly::CommittedNotDone { partition, committed: offset, missing });
        }
        if let Some(from) = acknowledged_before(commits, partition, commit.invoked_ns)
            && from > offset
        {
            wrong.push(Anomaly::CommitBackwards { partition, from, to: offset });
        }
        let begun = tenures
            .iter()
            .filter(|tenure| tenure.partition == partition && tenure.was_real())
            .filter(|tenure| tenure.from_ns < commit.invoked_ns)
            .max_by_key(|tenure| tenure.from_ns);
        if begun.is_some_and(|tenure| tenure.process != commit.process) {
            wrong.push(Anomaly::StaleCommit { process: commit.process.to_owned(), partition, offset });
        }
    }
}

/// When each record was first worked on.
fn first_done(lives: &[Life]) -> HashMap<(u32, u64), u64> {
    let mut first = HashMap::new();
    for event in lives.iter().flat_map(|life| &life.events) {
        if let What::Done { partition, offset, .. } = event.what {
            let at = first.entry((partition, offset)).or_insert(event.at_ns);
            *at = event.at_ns.min(*at);
        }
    }
    first
}

/// Rule 5.
fn settled(facts: &Facts, commits: &[Commit<'_>], wrong: &mut Vec<Anomaly>) {
    let done: BTreeSet<_> = first_done(&facts.lives).into_keys().collect();
    for (&partition, numbers) in &facts.log {
        let end = numbers.len() as u64;
        let never = (0..end).filter(|offset| !done.contains(&(partition, *offset)));
        wrong.extend(never.map(|offset| Anomaly::NeverDone { partition, offset }));
        let committed = facts.committed.get(&partition).copied();
        wrong.extend(shown(commits, "the end", partition, committed, u64::MAX));
        if committed.unwrap_or(0) != end {
            wrong.push(Anomaly::NotSettled { partition, committed, end });
        }
    }
}
