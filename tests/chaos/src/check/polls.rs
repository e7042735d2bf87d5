//! Rules 6 and 7: what readers saw.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{Anomaly, Gathered, kept::not_excused};
use crate::{
    event::{Seen, What},
    facts::{At, Facts},
};

pub(super) fn check(facts: &Facts, gathered: &Gathered, wrong: &mut Vec<Anomaly>) {
    let kept: BTreeMap<&At, BTreeMap<u64, Option<u64>>> =
        facts.finals.iter().map(|(at, log)| (at, log.records.iter().copied().collect())).collect();
    // Where each session of each process goes on in a partition.
    let mut sessions: HashMap<(&str, u64, At), u64> = HashMap::new();
    let mut told = BTreeSet::new();
    for event in &facts.events {
        match &event.what {
            What::Assigned { topic, partition, session, committed, start, group } => {
                let at = (topic.clone(), *partition);
                sessions.insert((&event.process, *session, at.clone()), *start);
                let log_start = facts.finals.get(&at).map_or(0, |log| log.start);
                if committed.is_some_and(|committed| {
                    committed != *start && *start >= log_start && committed >= log_start
                }) {
                    let what = format!("{group} has committed {committed:?}, and is started here");
                    wrong.push(Anomaly::new(8, &at, Some(*start), None, what));
                }
            }
            What::Polled { topic, partition, session, from, records, next, end, .. } => {
                let at = (topic.clone(), *partition);
                let before = sessions.insert((&event.process, *session, at.clone()), *next);
                if let Some(before) = before.filter(|before| before != from) {
                    let what = format!("{} goes on here, it had read up to {before}", event.process);
                    wrong.push(Anomaly::new(6, &at, Some(*from), None, what));
                }
                contiguous(facts, &at, (*from, *next), records, kept.get(&at), wrong);
                for (offset, value) in records {
                    let Some(value) = value.filter(|_| facts.topics.contains_key(topic)) else { continue };
                    let is_there = kept.get(&at).is_some_and(|kept| kept.contains_key(offset));
                    if is_there || !told.insert((at.clone(), *offset)) {
                        continue;
                    }
                    if let Some(why) = not_excused(facts, gathered, &at, *offset, value) {
                        let what = format!("{} has read it, and it is not in the log{why}", event.process);
                        wrong.push(Anomaly::new(7, &at, Some(*offset), Some(value), what));
                    }
                }
                let last = facts.finals.get(&at).map(|log| log.end);
                if let (Some(end), Some(last)) = (end, last)
                    && *end > last
                    && !facts.damage
                {
                    let what = format!("was shown as durable, in the end the high watermark is {last}");
                    wrong.push(Anomaly::new(7, &at, Some(*end), None, what));
                }
            }
            _ => {}
        }
    }
}

/// Rule 6 within a poll: it has everything from its first offset up to the one that it says comes next.
fn contiguous(
    facts: &Facts,
    at: &At,
    (from, next): (u64, u64),
    records: &[Seen],
    kept: Option<&BTreeMap<u64, Option<u64>>>,
    wrong: &mut Vec<Anomaly>,
) {
    let compacted = facts.topics.get(&at.0).is_some_and(|topic| topic.compacted);
    let mut expected = from;
    for (offset, value) in records {
        let gap = *offset > expected && !compacted && !facts.damage;
        if *offset < expected || gap || *offset >= next {
            let what = format!("a poll from {from} up to {next} has it where {expected} is due");
            wrong.push(Anomaly::new(6, at, Some(*offset), *value, what));
        }
        expected = offset + 1;
    }
    if !compacted && !facts.damage && expected != next {
        let what = format!("a poll from {from} ends here and says that {next} comes next");
        wrong.push(Anomaly::new(6, at, Some(expected), None, what));
    }
    if compacted && from < next {
        let polled: BTreeSet<u64> = records.iter().map(|(offset, _)| *offset).collect();
        // Compaction only takes away: what is there in the end was there then.
        let later = kept.into_iter().flat_map(|kept| kept.range(from..next));
        for (offset, value) in later.filter(|(offset, _)| !polled.contains(offset)) {
            let what = format!("a poll from {from} up to {next} left it out");
            wrong.push(Anomaly::new(6, at, Some(*offset), *value, what));
        }
    }
}
