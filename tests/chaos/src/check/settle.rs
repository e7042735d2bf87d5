//! Rule 10.

use std::collections::BTreeMap;

use super::Anomaly;
use crate::{event::What, facts::Facts};

/// How long it may take from the end of the faults until nothing is open any more.
pub const SETTLE_NS: u64 = 30_000_000_000;

pub(super) fn check(facts: &Facts, wrong: &mut Vec<Anomaly>) {
    let end = facts.events.iter().find(|event| event.what == What::FaultsEnd);
    let Some(end) = end.map(|event| event.at_ns) else {
        wrong.push(Anomaly::bare(10, "the faults did not end"));
        return;
    };
    // Everybody who ever asked for something: from when on it has to settle, and when it has.
    let mut settled: BTreeMap<&str, (u64, Option<u64>)> = BTreeMap::new();
    for event in facts.events.iter().filter(|event| event.op != 0) {
        settled.entry(&event.process).or_insert((event.at_ns.max(end), None));
    }
    for event in facts.events.iter().filter(|event| event.what == What::Settled) {
        settled.entry(&event.process).or_insert((end, None)).1 = Some(event.at_ns);
    }
    for (process, (from, at)) in settled {
        match at {
            None => wrong.push(Anomaly::bare(10, format!("{process} has not settled"))),
            Some(at) if at > from + SETTLE_NS => {
                let seconds = (at - from) / 1_000_000_000;
                wrong.push(Anomaly::bare(10, format!("{process} has settled only after {seconds} s")));
            }
            Some(_) => {}
        }
    }
}
