//! Gathers the events of a history by record and by place; finds what contradicts rule 1 on the way.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::Anomaly;
use crate::{
    event::{Stamp, What},
    facts::{At, Facts},
};

/// How much there was to check: a run asserts that it was enough.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Records sent.
    pub sent: usize,
    /// Records acknowledged.
    pub acknowledged: usize,
    /// Records of which nobody was told what became of them.
    pub unknown: usize,
    /// Records of which every attempt was refused.
    pub refused: usize,
    /// Acknowledgements that were duplicates.
    pub duplicates: usize,
    /// Records polled.
    pub polled: usize,
    /// Acknowledged commits.
    pub commits: usize,
    /// Records in the final log.
    pub kept: usize,
}

/// A record that somebody sent.
#[derive(Debug, Clone)]
pub struct Sent {
    /// Its topic.
    pub topic: String,
    /// Who numbered it, and the sequence of this record itself (or the number of its request).
    pub stamp: Option<Stamp>,
    /// When it was first sent.
    pub first_ns: u64,
    /// When it was first acknowledged.
    pub acknowledged_ns: Option<u64>,
    /// Where an acknowledgement says it is.
    pub place: Option<(u32, u64)>,
    /// Whether an attempt ended without an answer, or has not ended.
    pub in_doubt: bool,
}

/// What a history says.
#[derive(Debug, Default)]
pub struct Gathered {
    /// Every record that was sent.
    pub sent: HashMap<u64, Sent>,
    /// What anybody was told lies at an offset, polls and acknowledgements.
    pub known: BTreeMap<At, BTreeMap<u64, u64>>,
    /// How much.
    pub counts: Counts,
}

pub(super) fn gather(facts: &Facts, wrong: &mut Vec<Anomaly>) -> Gathered {
    let mut gathered = Gathered::default();
    // Of each open attempt to append: the records that it is of.
    let mut open: HashMap<u64, (u64, u32)> = HashMap::new();
    let mut commits = HashSet::new();
    for event in &facts.events {
        match &event.what {
            What::Send { topic, stamp, first, count, .. } => {
                open.insert(event.op, (*first, *count));
                for index in 0..*count {
                    let stamp = stamp.map(|stamp| {
                        let step = if stamp.by_request { 0 } else { index };
                        Stamp { sequence: (stamp.sequence + step) & 0x7fff_ffff, ..stamp }
                    });
                    let topic = topic.clone();
                    gathered.sent.entry(first + u64::from(index)).or_insert(Sent {
                        topic,
                        stamp,
                        first_ns: event.at_ns,
                        acknowledged_ns: None,
                        place: None,
                        in_doubt: false,
                    });
                }
            }
            What::Sent { places, duplicate } => {
                let Some((first, _)) = open.remove(&event.op) else { continue };
                gathered.counts.duplicates += usize::from(*duplicate);
                for (value, (partition, offset)) in (first..).zip(places) {
                    acknowledged(&mut gathered, value, *partition, *offset, event.at_ns, wrong);
                }
            }
            What::Unknown { .. } => {
                if let Some((first, count)) = open.remove(&event.op) {
                    in_doubt(&mut gathered, first, count);
                }
            }
            What::Refused { .. } => {
                open.remove(&event.op);
            }
            What::Polled { topic, partition, records, .. } => {
                gathered.counts.polled += records.len();
                let at = (topic.clone(), *partition);
                for (offset, value) in records {
                    seen(&mut gathered, &at, *offset, *value, "a poll", wrong);
                }
            }
            What::Commit { .. } => drop(commits.insert(event.op)),
            What::Done => gathered.counts.commits += usize::from(commits.remove(&event.op)),
            _ => {}
        }
    }
    for (first, count) in open.into_values() {
        in_doubt(&mut gathered, first, count);
    }
    for (at, log) in &facts.finals {
        gathered.counts.kept += log.records.len();
        for (offset, value) in &log.records {
            compare(&gathered, at, *offset, *value, "the final read", wrong);
        }
    }
    for (at, log) in &facts.files {
        for record in &log.records {
            compare(&gathered, at, record.offset, record.value, "the files", wrong);
        }
    }
    count(&mut gathered);
    gathered
}

fn count(gathered: &mut Gathered) {
    for sent in gathered.sent.values() {
        let counts = &mut gathered.counts;
        counts.sent += 1;
        match (sent.acknowledged_ns, sent.in_doubt) {
            (Some(_), _) => counts.acknowledged += 1,
            (None, true) => counts.unknown += 1,
            (None, false) => counts.refused += 1,
        }
    }
}

fn in_doubt(gathered: &mut Gathered, first: u64, count: u32) {
    for value in first..first + u64::from(count) {
        if let Some(sent) = gathered.sent.get_mut(&value) {
            sent.in_doubt = true;
        }
    }
}

fn acknowledged(
    gathered: &mut Gathered,
    value: u64,
    partition: u32,
    offset: Option<u64>,
    at_ns: u64,
    wrong: &mut Vec<Anomaly>,
) {
    let Some(sent) = gathered.sent.get_mut(&value) else { return };
    sent.acknowledged_ns = Some(sent.acknowledged_ns.map_or(at_ns, |before| before.min(at_ns)));
    let Some(offset) = offset else { return };
    let at = (sent.topic.clone(), partition);
    match sent.place {
        Some(place) if place != (partition, offset) => {
            let what = format!("was acknowledged at partition {} offset {} before", place.0, place.1);
            wrong.push(Anomaly::new(1, &at, Some(offset), Some(value), what));
        }
        _ => sent.place = Some((partition, offset)),
    }
    seen(gathered, &at, offset, Some(value), "an acknowledgement", wrong);
}

/// Somebody was shown a value at an offset.
fn seen(
    gathered: &mut Gathered,
    at: &At,
    offset: u64,
    value: Option<u64>,
    by: &str,
    wrong: &mut Vec<Anomaly>,
) {
    compare(gathered, at, offset, value, by, wrong);
    if let Some(value) = value {
        gathered.known.entry(at.clone()).or_default().entry(offset).or_insert(value);
    }
}

fn compare(
    gathered: &Gathered,
    at: &At,
    offset: u64,
    value: Option<u64>,
    by: &str,
    wrong: &mut Vec<Anomaly>,
) {
    let Some(value) = value else {
        wrong.push(Anomaly::new(1, at, Some(offset), None, format!("{by} has bytes that nobody sent")));
        return;
    };
    let known = gathered.known.get(at).and_then(|known| known.get(&offset));
    if let Some(known) = known.filter(|known| **known != value) {
        let what = format!("{by} has this value, before it was value {known}");
        wrong.push(Anomaly::new(1, at, Some(offset), Some(value), what));
    }
}
