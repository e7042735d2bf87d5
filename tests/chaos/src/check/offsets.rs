//! Rules 8 and 9: committed offsets, lag, look-ups by time.

use std::collections::{BTreeMap, HashMap};

use super::Anomaly;
use crate::{
    event::What,
    facts::{At, Facts, FinalLog, Lag},
};

/// The commits of a group in a partition, by one committer that only goes forward.
#[derive(Debug, Default)]
struct Commits {
    /// Offsets that may be committed: asked for and not refused.
    possible: Vec<u64>,
    /// The highest that is acknowledged.
    acknowledged: Option<u64>,
}

pub(super) fn check(facts: &Facts, wrong: &mut Vec<Anomaly>) {
    committed(facts, wrong);
    for lag in &facts.lag {
        if let Some(log) = facts.finals.get(&lag.at) {
            lag_is_counted(lag, log, wrong);
        }
    }
    for lookup in &facts.lookups {
        let Some(log) = facts.finals.get(&lookup.at) else { continue };
        let found = log.records.iter().zip(&log.times).find(|(_, (create, _))| *create >= lookup.time_ms);
        let found = found.map(|((offset, _), _)| *offset);
        if found != lookup.offset {
            let what = format!("is what a look-up of {} answers, a scan finds {found:?}", lookup.time_ms);
            wrong.push(Anomaly::new(9, &lookup.at, lookup.offset, None, what));
        }
    }
}

/// Rule 8.
fn committed(facts: &Facts, wrong: &mut Vec<Anomaly>) {
    let mut all: BTreeMap<(String, At), Commits> = BTreeMap::new();
    let mut asked: HashMap<u64, (String, At, u64)> = HashMap::new();
    // What was acknowledged when the question was asked; what may be there is looked at when it is answered.
    let mut questions: HashMap<u64, (String, BTreeMap<At, u64>)> = HashMap::new();
    for event in &facts.events {
        match &event.what {
            What::Commit { group, topic, partition, offset } => {
                let place = (group.clone(), (topic.clone(), *partition));
                all.entry(place.clone()).or_default().possible.push(*offset);
                asked.insert(event.op, (place.0, place.1, *offset));
            }
            What::Done => {
                if let Some((group, at, offset)) = asked.remove(&event.op) {
                    let commits = all.entry((group, at)).or_default();
                    commits.acknowledged = commits.acknowledged.max(Some(offset));
                }
            }
            What::Refused { .. } => {
                if let Some((group, at, offset)) = asked.remove(&event.op) {
                    let possible = &mut all.entry((group, at)).or_default().possible;
                    if let Some(index) = possible.iter().position(|possible| *possible == offset) {
                        possible.swap_remove(index);
                    }
                }
            }
            What::AskOffsets { group } => {
                let of_group = all.iter().filter(|((other, _), _)| other == group);
                let known =
                    of_group.filter_map(|((_, at), commits)| Some((at.clone(), commits.acknowledged?)));
                questions.insert(event.op, (group.clone(), known.collect()));
            }
            What::Offsets { offsets } => {
                let Some((group, due)) = questions.remove(&event.op) else { continue };
                let shown = offsets
                    .iter()
                    .filter_map(|(topic, partition, offset)| Some(((topic.clone(), *partition), (*offset)?)))
                    .collect();
                answer(&event.process, &group, &shown, &due, &all, wrong);
            }
            _ => {}
        }
    }
    for (group, shown) in &facts.committed {
        let of_group = all.iter().filter(|((other, _), _)| other == group);
        let due = of_group.filter_map(|((_, at), commits)| Some((at.clone(), commits.acknowledged?)));
        answer("the end", group, shown, &due.collect(), &all, wrong);
    }
}

fn answer(
    by: &str,
    group: &str,
    shown: &BTreeMap<At, u64>,
    due: &BTreeMap<At, u64>,
    all: &BTreeMap<(String, At), Commits>,
    wrong: &mut Vec<Anomaly>,
) {
    for (at, due) in due {
        let shown = shown.get(at).copied();
        if shown.is_none_or(|shown| shown < *due) {
            let what = format!("{by} is shown this of {group}, and {due} was acknowledged before");
            wrong.push(Anomaly::new(8, at, shown, None, what));
        }
    }
    for (at, offset) in shown {
        let possible = all.get(&(group.to_owned(), at.clone())).map_or(&[][..], |commits| &commits.possible);
        if !possible.contains(offset) {
            let what = format!("{by} is shown this of {group}, and nobody committed it");
            wrong.push(Anomaly::new(8, at, Some(*offset), None, what));
        }
    }
}

/// Rule 9.
fn lag_is_counted(lag: &Lag, log: &FinalLog, wrong: &mut Vec<Anomaly>) {
    let from = lag.committed.unwrap_or(0).max(log.start);
    let counted = log.records.iter().filter(|(offset, _)| *offset >= from).count() as u64;
    if counted != lag.records {
        let what = format!("the lag of {} is said to be {}, counted are {counted}", lag.group, lag.records);
        wrong.push(Anomaly::new(9, &lag.at, Some(from), None, what));
    }
}
