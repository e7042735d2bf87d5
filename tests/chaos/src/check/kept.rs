//! Rules 2 and 3: what is in the log, and what is not.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{Anomaly, Gathered};
use crate::{
    event::{Event, What},
    facts::{At, Facts, FinalLog, Topic},
    files::FileLog,
    value::{is_tombstone, key},
};

pub(super) fn check(facts: &Facts, gathered: &Gathered, wrong: &mut Vec<Anomaly>) {
    let mut places: HashMap<u64, (&At, u64)> = HashMap::new();
    for (at, log) in &facts.finals {
        offsets_rise(at, facts.topics.get(&at.0), log, wrong);
        for (offset, value) in &log.records {
            let Some(value) = value else { continue };
            if let Some((other, first)) = places.insert(*value, (at, *offset)) {
                let what = format!("is there twice, before at {}/{} offset {first}", other.0, other.1);
                wrong.push(Anomaly::new(3, at, Some(*offset), Some(*value), what));
            }
            of_somebody(gathered, at, *offset, *value, wrong);
        }
    }
    for (value, sent) in &gathered.sent {
        if sent.acknowledged_ns.is_none() || places.contains_key(value) {
            continue;
        }
        let Some(topic) = facts.topics.get(&sent.topic) else { continue };
        let Some((partition, offset)) = sent.place else {
            // A duplicate too old to be known, and its original's answer was lost: it is somewhere.
            let may_be_gone = topic.retention || topic.compacted || facts.damage;
            if !may_be_gone {
                let at = (sent.topic.clone(), 0);
                wrong.push(Anomaly::new(
                    3,
                    &at,
                    None,
                    Some(*value),
                    "was acknowledged, and is not in the log",
                ));
            }
            continue;
        };
        let at = (sent.topic.clone(), partition);
        if let Some(why) = not_excused(facts, gathered, &at, offset, *value) {
            let what = format!("was acknowledged, and is not in the log{why}");
            wrong.push(Anomaly::new(3, &at, Some(offset), Some(*value), what));
        }
    }
    for at in facts.finals.keys() {
        if facts.topics.get(&at.0).is_some_and(|topic| topic.compacted) {
            nothing_comes_back(facts, gathered, at, wrong);
        }
    }
    for (at, files) in &facts.files {
        if let Some(shown) = facts.finals.get(at) {
            agree(at, shown, files, facts.damage, wrong);
        }
    }
    topics(facts, wrong);
    named_damage(facts, wrong);
}

/// Nothing is told to be lost where nothing was damaged; of a device that fails nothing may be readable meanwhile.
fn named_damage(facts: &Facts, wrong: &mut Vec<Anomaly>) {
    let mut fails = facts.damage;
    for event in &facts.events {
        match &event.what {
            What::Device { fails: now } => fails = *now || facts.damage,
            What::PollFailed { topic, partition, from, reason, lost }
                if reason == "DATA_DAMAGED" && !fails =>
            {
                let what = format!("{} is told that {lost:?} is lost", event.process);
                wrong.push(Anomaly::new(3, &(topic.clone(), *partition), Some(*from), None, what));
            }
            _ => {}
        }
    }
    for (at, log) in facts.finals.iter().filter(|_| !facts.damage) {
        for (from, until) in &log.lost {
            let what = format!("the final read is told that it is lost up to {until}");
            wrong.push(Anomaly::new(3, at, Some(*from), None, what));
        }
    }
}

/// Why a known record that is not in the final log ought to be there; `None` if it may be gone.
pub(super) fn not_excused(
    facts: &Facts,
    gathered: &Gathered,
    at: &At,
    offset: u64,
    value: u64,
) -> Option<String> {
    let Some(log) = facts.finals.get(at) else { return Some(": its partition is gone".to_owned()) };
    let topic = facts.topics.get(&at.0).copied().unwrap_or_default();
    if topic.retention && offset < log.start {
        return None;
    }
    if facts.damage && log.lost.iter().any(|(from, until)| (*from..*until).contains(&offset)) {
        return None;
    }
    if topic.compacted {
        if topic.tombstones_go && is_tombstone(value, true) {
            return None;
        }
        let same_key = |(_, other): &(u64, u64)| key(*other, true) == key(value, true);
        let known = gathered.known.get(at).into_iter().flatten().map(|(offset, value)| (*offset, *value));
        let kept = log.records.iter().filter_map(|(offset, value)| Some((*offset, (*value)?)));
        if known.chain(kept).filter(same_key).any(|(later, _)| later > offset) {
            return None;
        }
    }
    Some(format!(" (log start {}, end {})", log.start, log.end))
}

/// Rule 2.
fn offsets_rise(at: &At, topic: Option<&Topic>, log: &FinalLog, wrong: &mut Vec<Anomaly>) {
    let compacted = topic.is_some_and(|topic| topic.compacted);
    let mut expected = log.start;
    let lost = |from: u64, until: u64| {
        // Every offset of the gap lies in a range that is named as lost.
        let mut at = from;
        while at < until {
            match log.lost.iter().find(|(from, until)| (*from..*until).contains(&at)) {
                Some((_, end)) => at = *end,
                None => return false,
            }
        }
        true
    };
    for (offset, value) in &log.records {
        if *offset < expected {
            let what = format!("comes after offset {}", expected.saturating_sub(1));
            wrong.push(Anomaly::new(2, at, Some(*offset), *value, what));
            continue;
        }
        if *offset > expected && !compacted && !lost(expected, *offset) {
            let what = format!("offsets {expected} to {} are missing before it", offset - 1);
            wrong.push(Anomaly::new(2, at, Some(*offset), *value, what));
        }
        expected = offset + 1;
    }
    if expected != log.end && !compacted && !lost(expected, log.end) {
        let what = format!("the log ends here, the high watermark is {}", log.end);
        wrong.push(Anomaly::new(2, at, Some(expected), None, what));
    }
}

fn of_somebody(gathered: &Gathered, at: &At, offset: u64, value: u64, wrong: &mut Vec<Anomaly>) {
    let mut say = |what: &str| wrong.push(Anomaly::new(3, at, Some(offset), Some(value), what));
    match gathered.sent.get(&value) {
        None => say("is in the log, and nobody sent it"),
        Some(sent) if sent.topic != at.0 => say("was sent to another topic"),
        Some(sent) if sent.acknowledged_ns.is_none() && !sent.in_doubt => {
            say("is in the log, and every attempt to send it was refused");
        }
        Some(_) => {}
    }
}

/// A record that a later one of its key had replaced is gone with that one, not behind it.
fn nothing_comes_back(facts: &Facts, gathered: &Gathered, at: &At, wrong: &mut Vec<Anomaly>) {
    let log = &facts.finals[at];
    let there: BTreeMap<u64, u64> =
        log.records.iter().filter_map(|(offset, value)| Some((*offset, (*value)?))).collect();
    let mut last: HashMap<u64, (u64, u64)> = HashMap::new();
    for (offset, value) in &there {
        last.insert(key(*value, true), (*offset, *value));
    }
    for (offset, value) in gathered.known.get(at).into_iter().flatten() {
        if there.contains_key(offset) || *offset < log.start {
            continue;
        }
        if let Some((before, old)) = last.get(&key(*value, true)).filter(|(before, _)| before < offset) {
            let what = format!("is gone, and value {old} of the same key at offset {before} is not");
            wrong.push(Anomaly::new(3, at, Some(*offset), Some(*value), what));
        }
    }
}

/// The files hold what the server shows.
fn agree(at: &At, shown: &FinalLog, files: &FileLog, damage: bool, wrong: &mut Vec<Anomaly>) {
    let in_files: BTreeMap<u64, Option<u64>> =
        files.records.iter().map(|record| (record.offset, record.value)).collect();
    let by_server: BTreeMap<u64, Option<u64>> = shown.records.iter().copied().collect();
    for (offset, value) in &by_server {
        if !in_files.contains_key(offset) {
            let what = "the server shows it, and the files do not have it";
            wrong.push(Anomaly::new(2, at, Some(*offset), *value, what));
        }
    }
    for (offset, value) in in_files.iter().filter(|(offset, _)| **offset < shown.end) {
        let lost = shown.lost.iter().any(|(from, until)| (*from..*until).contains(offset));
        let excused = damage && lost;
        if !excused && !by_server.contains_key(offset) {
            let what = "the files have it, and the server does not show it";
            wrong.push(Anomaly::new(2, at, Some(*offset), *value, what));
        }
    }
    if !damage {
        for (from, until) in &files.damaged {
            let what = format!("the files are damaged up to offset {until}");
            wrong.push(Anomaly::new(2, at, Some(*from), None, what));
        }
    }
}

/// A topic that was made is there, one that was deleted is not.
fn topics(facts: &Facts, wrong: &mut Vec<Anomaly>) {
    let mut asked: HashMap<u64, (&str, bool)> = HashMap::new();
    let mut made: BTreeSet<&str> = facts.topics.keys().map(String::as_str).collect();
    let mut gone = BTreeSet::new();
    for Event { op, what, .. } in &facts.events {
        match what {
            What::Create { topic } => drop(asked.insert(*op, (topic, true))),
            What::Delete { topic } => {
                made.remove(topic.as_str());
                asked.insert(*op, (topic, false));
            }
            What::Done => match asked.remove(op) {
                Some((topic, true)) => drop(made.insert(topic)),
                Some((topic, false)) => drop(gone.insert(topic)),
                None => {}
            },
            _ => {}
        }
    }
    for topic in made.iter().filter(|topic| !facts.listed.contains(**topic)) {
        wrong.push(Anomaly::bare(3, format!("topic {topic} was made, and is not there")));
    }
    for topic in gone.iter().filter(|topic| facts.listed.contains(**topic)) {
        wrong.push(Anomaly::bare(3, format!("topic {topic} was deleted, and is there")));
    }
}
