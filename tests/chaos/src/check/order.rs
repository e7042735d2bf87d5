//! Rules 4 and 5: the order of the log.

use std::collections::{BTreeMap, HashMap};

use super::{Anomaly, Gathered};
use crate::facts::{At, Facts};

pub(super) fn check(facts: &Facts, gathered: &Gathered, wrong: &mut Vec<Anomaly>) {
    for (at, log) in &facts.finals {
        let topic = facts.topics.get(&at.0).copied().unwrap_or_default();
        let gaps = topic.compacted || facts.damage;
        sequences(gathered, at, log.start, &log.records, gaps, wrong);
    }
    for (at, log) in &facts.files {
        stamps(gathered, at, log, wrong);
    }
    times(facts, gathered, wrong);
}

#[derive(Clone, Copy)]
struct Last {
    epoch: u32,
    sequence: u32,
}

/// Rule 4, in the final log of a partition.
fn sequences(
    gathered: &Gathered,
    at: &At,
    start: u64,
    records: &[(u64, Option<u64>)],
    gaps: bool,
    wrong: &mut Vec<Anomaly>,
) {
    let mut last: HashMap<u64, Last> = HashMap::new();
    for (offset, value) in records {
        let Some(value) = value else { continue };
        let Some(stamp) = gathered.sent.get(value).and_then(|sent| sent.stamp) else { continue };
        let this = Last { epoch: stamp.epoch, sequence: stamp.sequence };
        let before = last.insert(stamp.producer, this);
        let mut say = |what: String| {
            let what = format!("producer {} {what}", stamp.producer);
            wrong.push(Anomaly::new(4, at, Some(*offset), Some(*value), what));
        };
        let (epoch, sequence) = (this.epoch, this.sequence);
        match before {
            Some(before) if epoch < before.epoch => {
                say(format!("epoch {epoch} comes after epoch {}", before.epoch));
            }
            // One request may be several records of a partition, or none.
            Some(before) if stamp.by_request && sequence < before.sequence => {
                say(format!("request {sequence} comes after request {}", before.sequence));
            }
            Some(_) if stamp.by_request => {}
            Some(before) => {
                let expected = (before.sequence + 1) & 0x7fff_ffff;
                let behind = sequence.wrapping_sub(expected) & 0x7fff_ffff;
                if behind != 0 && !gaps || behind > 0x3fff_ffff {
                    say(format!("epoch {epoch} sequence {sequence} comes where {expected} is due"));
                }
            }
            // What lies below the log start is not seen.
            None if start == 0 && !gaps && !stamp.by_request && sequence != 0 => {
                say(format!("epoch {epoch} begins with sequence {sequence}"));
            }
            None => {}
        }
    }
}

/// What the files say of producers is what was sent.
fn stamps(gathered: &Gathered, at: &At, log: &crate::files::FileLog, wrong: &mut Vec<Anomaly>) {
    for record in &log.records {
        let Some(value) = record.value else { continue };
        let Some(sent) = gathered.sent.get(&value).and_then(|sent| sent.stamp) else { continue };
        let same = record.stamp.is_some_and(|(producer, epoch, sequence, by_request)| {
            let within = sent.sequence.wrapping_sub(sequence) & 0x7fff_ffff;
            let fits = if by_request { within == 0 } else { within < 1 << 20 };
            (producer, epoch, by_request) == (sent.producer, sent.epoch, sent.by_request) && fits
        });
        if !same {
            let what = format!("was sent as {sent:?}, the files have {:?}", record.stamp);
            wrong.push(Anomaly::new(4, at, Some(record.offset), Some(value), what));
        }
    }
}

/// Rule 5.
fn times(facts: &Facts, gathered: &Gathered, wrong: &mut Vec<Anomaly>) {
    struct Placed {
        value: u64,
        offset: u64,
        first_ns: u64,
        acknowledged_ns: Option<u64>,
    }
    let mut placed: BTreeMap<At, Vec<Placed>> = BTreeMap::new();
    let mut place = |at: At, value: u64, offset: u64| {
        if let Some(sent) = gathered.sent.get(&value) {
            let (first_ns, acknowledged_ns) = (sent.first_ns, sent.acknowledged_ns);
            placed.entry(at).or_default().push(Placed { value, offset, first_ns, acknowledged_ns });
        }
    };
    for (at, known) in &gathered.known {
        known.iter().for_each(|(offset, value)| place(at.clone(), *value, *offset));
    }
    for (at, log) in &facts.finals {
        for (offset, value) in &log.records {
            let is_known = gathered.known.get(at).is_some_and(|known| known.contains_key(offset));
            if let Some(value) = value.filter(|_| !is_known) {
                place(at.clone(), value, *offset);
            }
        }
    }
    for (at, mut records) in placed {
        let mut acknowledged: Vec<_> = records
            .iter()
            .filter_map(|record| Some((record.acknowledged_ns?, record.offset, record.value)))
            .collect();
        acknowledged.sort_unstable();
        records.sort_unstable_by_key(|record| record.first_ns);
        let mut acknowledged = acknowledged.into_iter().peekable();
        let mut highest: Option<(u64, u64)> = None;
        for record in records {
            while let Some((_, offset, value)) = acknowledged.next_if(|(at_ns, ..)| *at_ns < record.first_ns)
            {
                highest = highest.max(Some((offset, value)));
            }
            if let Some((offset, value)) = highest.filter(|(offset, _)| *offset > record.offset) {
                let what = format!(
                    "was sent after value {value} had been acknowledged at offset {offset}, and lies before it"
                );
                wrong.push(Anomaly::new(5, &at, Some(record.offset), Some(record.value), what));
            }
        }
    }
}
