//! Made-up histories: a good one, which is accepted, and one for each way in which it can be wrong, which is refused
//! with the rule, the place and the value.

use std::collections::{BTreeMap, BTreeSet};

use super::{Anomaly, check};
use crate::{
    event::{Event, Seen, Stamp, What},
    facts::{Facts, FinalLog, Lag, TimeLookup, Topic},
    files::{FileLog, FileRecord},
    value::{is_tombstone, key},
};

const SECOND: u64 = 1_000_000_000;
/// The only producer.
const PRODUCER: u64 = 77;
/// Values of topic `t` begin here; value `T + n` lies at offset `n`.
const T: u64 = 100;

fn t() -> (String, u32) {
    ("t".to_owned(), 0)
}

fn c() -> (String, u32) {
    ("c".to_owned(), 0)
}

struct Story {
    events: Vec<Event>,
    op: u64,
    now: u64,
}

impl Story {
    fn tell(&mut self, process: &str, op: u64, what: What) {
        self.now += 1_000;
        self.events.push(Event { at_ns: self.now, process: process.to_owned(), op, what });
    }

    fn call(&mut self, process: &str, question: What, answer: What) {
        self.op += 1;
        let op = self.op;
        self.tell(process, op, question);
        self.tell(process, op, answer);
    }

    fn send(&mut self, sequence: u32, count: u32, answer: What) {
        let stamp = Some(Stamp { producer: PRODUCER, epoch: 0, sequence, by_request: false });
        let first = T + u64::from(sequence);
        let send = What::Send { topic: "t".to_owned(), partition: Some(0), stamp, first, count };
        self.call("producer", send, answer);
    }
}

fn sent(offsets: std::ops::Range<u64>) -> What {
    What::Sent { places: offsets.map(|offset| (0, Some(offset))).collect(), duplicate: false }
}

fn polled(topic: &str, session: u64, from: u64, records: Vec<(u64, u64)>, next: u64) -> What {
    let records = records.into_iter().map(|(offset, value)| (offset, Some(value))).collect();
    let (topic, partition) = (topic.to_owned(), 0);
    What::Polled { topic, partition, session, from, records, next, start: Some(0), end: Some(next) }
}

/// Four values of one key for the compacted topic, none a tombstone, and then one of another key.
fn keyed() -> Vec<u64> {
    let plain = |value: &u64| !is_tombstone(*value, true);
    let one = (1_000..).filter(plain).filter(|value| key(*value, true) == 3).take(4);
    let other = (1_000..).filter(plain).filter(|value| key(*value, true) == 4).take(1);
    one.chain(other).collect()
}

fn final_log(records: &[(u64, u64)], end: u64) -> FinalLog {
    FinalLog {
        start: 0,
        end,
        records: records.iter().map(|(offset, value)| (*offset, Some(*value))).collect(),
        times: records.iter().map(|(offset, _)| (5_000 + *offset as i64, 6_000)).collect(),
        lost: Vec::new(),
    }
}

fn file_log(records: &[(u64, u64)], stamped: bool) -> FileLog {
    let record = |(offset, value): &(u64, u64)| FileRecord {
        offset: *offset,
        value: Some(*value),
        stamp: stamped.then_some((PRODUCER, 0, (*value - T) as u32, false)),
        create_ms: 5_000,
        append_ms: 6_000,
    };
    FileLog { records: records.iter().map(record).collect(), ..FileLog::default() }
}

/// Ten records in `t`, the sixth and seventh sent twice, the last unknown but there; five in `c`, of which compaction
/// left two; commits, lag, look-ups, topics; settled.
fn good() -> Facts {
    let mut story = Story { events: Vec::new(), op: 0, now: SECOND };
    story.send(0, 5, sent(0..5));
    story.send(5, 2, What::Unknown { why: "cut".to_owned() });
    story.send(5, 2, What::Sent { places: vec![(0, Some(5)), (0, Some(6))], duplicate: true });
    story.send(7, 2, sent(7..9));
    story.send(9, 1, What::Unknown { why: "cut".to_owned() });
    let stamp = Some(Stamp { producer: PRODUCER, epoch: 0, sequence: 40, by_request: false });
    let refused = What::Send { topic: "t".to_owned(), partition: Some(0), stamp, first: T + 40, count: 1 };
    story.call("producer", refused, What::Refused { why: "SEQUENCE_GAP".to_owned() });
    let keyed = keyed();
    for (offset, value) in (0..).zip(&keyed) {
        let first = *value;
        let send = What::Send { topic: "c".to_owned(), partition: Some(0), stamp: None, first, count: 1 };
        story.call("keyed", send, sent(offset..offset + 1));
    }
    story.tell("reader", 0, polled("t", 1, 0, (0..4).map(|n| (n, T + n)).collect(), 4));
    story.tell("reader", 0, polled("t", 1, 4, (4..9).map(|n| (n, T + n)).collect(), 9));
    story.tell("reader", 0, polled("c", 1, 0, vec![(1, keyed[1]), (3, keyed[3]), (4, keyed[4])], 5));
    let commit = |offset| What::Commit { group: "g".to_owned(), topic: "t".to_owned(), partition: 0, offset };
    let ask = || What::AskOffsets { group: "g".to_owned() };
    story.call("reader", ask(), What::Offsets { offsets: vec![("t".to_owned(), 0, None)] });
    story.call("reader", commit(4), What::Done);
    story.call("reader", ask(), What::Offsets { offsets: vec![("t".to_owned(), 0, Some(4))] });
    story.call("reader", commit(7), What::Unknown { why: "cut".to_owned() });
    story.call("reader", commit(8), What::Done);
    let (topic, group) = ("t".to_owned(), "g".to_owned());
    story.tell(
        "member",
        0,
        What::Assigned { group, topic, partition: 0, session: 3, committed: Some(8), start: 8 },
    );
    story.tell("member", 0, polled("t", 3, 8, vec![(8, T + 8)], 9));
    for topic in ["kept", "dropped"] {
        story.call("admin", What::Create { topic: topic.to_owned() }, What::Done);
    }
    story.call("admin", What::Delete { topic: "dropped".to_owned() }, What::Done);
    story.tell("driver", 0, What::FaultsEnd);
    for process in ["producer", "keyed", "reader", "admin"] {
        story.tell(process, 0, What::Settled);
    }
    let log_t: Vec<_> = (0..10).map(|n| (n, T + n)).collect();
    let log_c = [(3, keyed[3]), (4, keyed[4])];
    Facts {
        topics: BTreeMap::from([
            ("t".to_owned(), Topic { partitions: 1, ..Default::default() }),
            ("c".to_owned(), Topic { partitions: 1, compacted: true, ..Default::default() }),
        ]),
        events: story.events,
        finals: BTreeMap::from([(t(), final_log(&log_t, 10)), (c(), final_log(&log_c, 5))]),
        files: BTreeMap::from([(t(), file_log(&log_t, true)), (c(), file_log(&log_c, false))]),
        committed: BTreeMap::from([("g".to_owned(), BTreeMap::from([(t(), 8)]))]),
        lag: vec![Lag { group: "g".to_owned(), at: t(), committed: Some(8), records: 2 }],
        lookups: vec![
            TimeLookup { at: t(), time_ms: 5_003, offset: Some(3) },
            TimeLookup { at: c(), time_ms: 5_000, offset: Some(3) },
            TimeLookup { at: t(), time_ms: 9_999, offset: None },
        ],
        listed: BTreeSet::from(["t", "c", "kept"].map(str::to_owned)),
        damage: false,
    }
}

#[test]
fn a_good_history_is_accepted() {
    let (wrong, counts) = check(&good());
    assert_eq!(wrong, [], "{wrong:#?}");
    assert_eq!((counts.sent, counts.acknowledged, counts.unknown, counts.refused), (16, 14, 1, 1));
    assert_eq!((counts.duplicates, counts.polled, counts.commits, counts.kept), (1, 13, 2, 12));
}

fn log(facts: &mut Facts) -> &mut FinalLog {
    facts.finals.get_mut(&t()).expect("it is there")
}

/// The same change to what the server shows and to the files.
fn both(facts: &mut Facts, change: impl Fn(&mut Vec<(u64, u64)>)) {
    let mut records: Vec<_> =
        log(facts).records.iter().map(|(offset, value)| (*offset, value.expect("good"))).collect();
    change(&mut records);
    let end = log(facts).end;
    *log(facts) = final_log(&records, end);
    facts.files.insert(t(), file_log(&records, true));
}

/// Changes the first event for which it can.
fn change(facts: &mut Facts, change: impl Fn(&mut What) -> bool) {
    assert!(facts.events.iter_mut().any(|event| change(&mut event.what)), "nothing was changed");
}

/// Adds an event between the others and the end.
fn add(facts: &mut Facts, process: &str, op: u64, what: What) {
    let at_ns = facts.events.last().expect("a story has events").at_ns + 1_000;
    facts.events.push(Event { at_ns, process: process.to_owned(), op, what });
}

fn add_call(facts: &mut Facts, process: &str, question: What, answer: What) {
    let op = 1_000 + facts.events.len() as u64;
    add(facts, process, op, question);
    add(facts, process, op, answer);
}

/// Changes a poll: its first offset, its records, what it says comes next.
type Edit = fn(&mut u64, &mut Vec<Seen>, &mut u64);

/// Asserts that a history is refused by this rule, there, in these words.
#[track_caller]
fn refused(why: &str, make: impl Fn(&mut Facts)) {
    let mut facts = good();
    make(&mut facts);
    let (wrong, _) = check(&facts);
    let said: Vec<String> = wrong.iter().map(Anomaly::to_string).collect();
    assert!(said.iter().any(|said| said.contains(why)), "{why:?} is not said:\n{said:#?}");
}

#[test]
fn rule_1_one_offset_has_one_value() {
    refused(
        "rule 1, t/0, offset 2, value 900: the final read has this value, before it was value 102",
        |facts| {
            log(facts).records[2].1 = Some(900);
        },
    );
    refused("rule 1, t/0, offset 2, value 900: the files has this value, before it was value 102", |facts| {
        facts.files.get_mut(&t()).expect("it is there").records[2].value = Some(900);
    });
    refused("rule 1, t/0, offset 3: the final read has bytes that nobody sent", |facts| {
        log(facts).records[3].1 = None;
    });
    refused("rule 1, t/0, offset 1: a poll has bytes that nobody sent", |facts| {
        change(facts, |what| match what {
            What::Polled { records, .. } => records[1].1.take().is_some(),
            _ => false,
        });
    });
    refused("rule 1, t/0, offset 6, value 105: a poll has this value, before it was value 106", |facts| {
        change(facts, |what| match what {
            What::Polled { from: 4, records, .. } => records[2].1.replace(T + 5).is_some(),
            _ => false,
        });
    });
    refused("rule 1, t/0, offset 9, value 100: was acknowledged at partition 0 offset 0 before", |facts| {
        let stamp = Some(Stamp { producer: PRODUCER, epoch: 0, sequence: 0, by_request: false });
        let send = What::Send { topic: "t".to_owned(), partition: Some(0), stamp, first: T, count: 1 };
        add_call(facts, "producer", send, sent(9..10));
    });
}

#[test]
fn rule_2_offsets_rise_without_gaps_and_the_files_agree() {
    refused("rule 2, t/0, offset 3, value 103: comes after offset 4", |facts| {
        log(facts).records.swap(3, 4);
    });
    refused("rule 2, t/0, offset 10: the log ends here, the high watermark is 11", |facts| {
        log(facts).end = 11
    });
    refused("rule 2, t/0, offset 4, value 104: offsets 3 to 3 are missing before it", |facts| {
        both(facts, |records| {
            records.remove(3);
        });
    });
    refused("rule 2, t/0, offset 4, value 104: the server shows it, and the files do not have it", |facts| {
        facts.files.get_mut(&t()).expect("it is there").records.remove(4);
    });
    refused(
        "rule 2, t/0, offset 9, value 109: the files have it, and the server does not show it",
        |facts| {
            log(facts).records.pop();
        },
    );
    refused("rule 2, t/0, offset 3: the files are damaged up to offset 5", |facts| {
        facts.files.get_mut(&t()).expect("it is there").damaged.push((3, 5));
    });
}

#[test]
fn rule_3_what_was_acknowledged_is_there_once_and_nothing_else() {
    refused("rule 3, t/0, offset 8, value 108: was acknowledged, and is not in the log", |facts| {
        both(facts, |records| records.truncate(8));
        log(facts).end = 8;
    });
    refused(
        "rule 3, t/0, offset 10, value 140: is in the log, and every attempt to send it was refused",
        |facts| {
            both(facts, |records| records.push((10, T + 40)));
            log(facts).end = 11;
        },
    );
    refused("rule 3, t/0, offset 10, value 999: is in the log, and nobody sent it", |facts| {
        both(facts, |records| records.push((10, 999)));
        log(facts).end = 11;
    });
    refused("rule 3, t/0, offset 10, value 109: is there twice, before at t/0 offset 9", |facts| {
        both(facts, |records| records.push((10, T + 9)));
        log(facts).end = 11;
    });
    let other = keyed()[0];
    refused(&format!("rule 3, t/0, offset 10, value {other}: was sent to another topic"), |facts| {
        log(facts).records.push((10, Some(other)));
    });
}

#[test]
fn rule_3_compaction_takes_only_what_a_later_record_replaces() {
    let last = keyed()[3];
    let first = keyed()[0];
    refused(
        &format!("rule 3, c/0, offset 3, value {last}: was acknowledged, and is not in the log"),
        |facts| {
            facts.finals.get_mut(&c()).expect("it is there").records.remove(0);
            facts.files.get_mut(&c()).expect("it is there").records.remove(0);
        },
    );
    let why = format!("value {last}: is gone, and value {first} of the same key at offset 0 is not");
    refused(&why, |facts| {
        let at_0 = (0, Some(first));
        facts.finals.get_mut(&c()).expect("it is there").records[0] = at_0;
    });
}

#[test]
fn rule_3_topics_are_kept() {
    refused("rule 3: topic kept was made, and is not there", |facts| {
        facts.listed.remove("kept");
    });
    refused("rule 3: topic t was made, and is not there", |facts| {
        facts.listed.remove("t");
    });
    refused("rule 3: topic dropped was deleted, and is there", |facts| {
        facts.listed.insert("dropped".to_owned());
    });
    refused("was acknowledged, and is not in the log: its partition is gone", |facts| {
        facts.finals.remove(&t());
    });
}

#[test]
fn rule_3_nothing_is_told_to_be_lost() {
    let failed = || What::PollFailed {
        topic: "t".to_owned(),
        partition: 0,
        from: 3,
        reason: "DATA_DAMAGED".to_owned(),
        lost: Some((3, 5)),
    };
    refused("rule 3, t/0, offset 3: reader is told that Some((3, 5)) is lost", |facts| {
        add(facts, "reader", 0, failed());
    });
    refused("rule 3, t/0, offset 3: reader is told that Some((3, 5)) is lost", |facts| {
        add(facts, "driver", 0, What::Device { fails: true });
        add(facts, "driver", 0, What::Device { fails: false });
        add(facts, "reader", 0, failed());
    });
    refused("rule 3, t/0, offset 3: the final read is told that it is lost up to 5", |facts| {
        log(facts).lost.push((3, 5));
    });
    let mut facts = good();
    add(&mut facts, "driver", 0, What::Device { fails: true });
    add(&mut facts, "reader", 0, failed());
    add(&mut facts, "driver", 0, What::Device { fails: false });
    assert_eq!(check(&facts).0, []);
}

/// Gives the record at an offset of `t` another stamp, as it was sent and in the files.
fn restamp(facts: &mut Facts, sequence: u32, epoch: u32, new: u32) {
    change(facts, |what| match what {
        What::Send { stamp: Some(stamp), .. } if stamp.sequence == sequence => {
            (stamp.epoch, stamp.sequence) = (epoch, new);
            true
        }
        _ => false,
    });
}

#[test]
fn rule_4_the_log_is_in_the_order_of_sequences() {
    refused(
        "rule 4, t/0, offset 7, value 107: producer 77 epoch 0 sequence 8 comes where 7 is due",
        |facts| {
            restamp(facts, 7, 0, 8);
        },
    );
    refused(
        "rule 4, t/0, offset 7, value 107: producer 77 epoch 0 sequence 3 comes where 7 is due",
        |facts| {
            restamp(facts, 7, 0, 3);
        },
    );
    refused("rule 4, t/0, offset 0, value 100: producer 77 epoch 0 begins with sequence 2", |facts| {
        restamp(facts, 0, 0, 2);
    });
    refused("rule 4, t/0, offset 9, value 109: producer 77 epoch 0 comes after epoch 1", |facts| {
        restamp(facts, 7, 1, 7);
    });
    refused("rule 4, t/0, offset 4, value 104: was sent as", |facts| {
        facts.files.get_mut(&t()).expect("it is there").records[4].stamp = Some((PRODUCER, 3, 4, false));
    });
    refused("rule 4: producer: UNKNOWN_PRODUCER", |facts| {
        add(facts, "producer", 0, What::Violation { rule: 4, what: "UNKNOWN_PRODUCER".to_owned() });
    });
}

#[test]
fn rule_4_requests_come_in_order() {
    let by_request = |facts: &mut Facts, numbers: [u32; 3]| {
        for (number, value) in numbers.into_iter().zip(500..) {
            let stamp = Some(Stamp { producer: 5, epoch: 0, sequence: number, by_request: true });
            let send = What::Send { topic: "t".to_owned(), partition: None, stamp, first: value, count: 1 };
            add_call(facts, "requests", send, What::Unknown { why: "cut".to_owned() });
            let offset = 10 + value - 500;
            log(facts).records.push((offset, Some(value)));
            log(facts).times.push((9_000, 9_000));
            log(facts).end = offset + 1;
            facts.files.get_mut(&t()).expect("it is there").records.push(FileRecord {
                offset,
                value: Some(value),
                stamp: Some((5, 0, number, true)),
                create_ms: 9_000,
                append_ms: 9_000,
            });
        }
        add(facts, "requests", 0, What::Settled);
        facts.lag[0].records += 3;
        facts.lookups.pop();
    };
    let mut facts = good();
    by_request(&mut facts, [0, 2, 7]);
    assert_eq!(check(&facts).0, []);
    refused("rule 4, t/0, offset 12, value 502: producer 5 request 0 comes after request 1", |facts| {
        by_request(facts, [0, 1, 0]);
    });
}

#[test]
fn rule_5_what_was_sent_later_lies_behind() {
    refused(
        "rule 5, t/0, offset 9, value 110: was sent after value 109 had been acknowledged at offset 10, and lies",
        |facts| {
            let what = |sequence| What::Send {
                topic: "t".to_owned(),
                partition: Some(0),
                stamp: None,
                first: T + sequence,
                count: 1,
            };
            add_call(facts, "producer", what(9), sent(10..11));
            add_call(facts, "producer", what(10), sent(9..10));
        },
    );
}

#[test]
fn rule_6_polls_of_a_session_are_contiguous() {
    let polls = |from: u64, edit: Edit| {
        move |facts: &mut Facts| {
            change(facts, |what| match what {
                What::Polled { topic, from: begin, records, next, .. } if topic == "t" && *begin == from => {
                    edit(begin, records, next);
                    true
                }
                _ => false,
            });
        }
    };
    refused(
        "rule 6, t/0, offset 5: reader goes on here, it had read up to 4",
        polls(4, |from, records, _| {
            *from = 5;
            records.remove(0);
        }),
    );
    refused(
        "rule 6, t/0, offset 3: reader goes on here, it had read up to 4",
        polls(4, |from, records, _| {
            *from = 3;
            records.insert(0, (3, Some(T + 3)));
        }),
    );
    refused(
        "rule 6, t/0, offset 6, value 106: a poll from 4 up to 9 has it where 5 is due",
        polls(4, |_, records, _| {
            records.remove(1);
        }),
    );
    refused(
        "rule 6, t/0, offset 8: a poll from 4 ends here and says that 9 comes next",
        polls(4, |_, records, _| {
            records.pop();
        }),
    );
    refused(
        "rule 6, t/0, offset 4, value 104: a poll from 4 up to 9 has it where 5 is due",
        polls(4, |_, records, _| {
            records.insert(1, (4, Some(T + 4)));
        }),
    );
    let last = keyed()[3];
    refused(&format!("rule 6, c/0, offset 3, value {last}: a poll from 0 up to 5 left it out"), |facts| {
        change(facts, |what| match what {
            What::Polled { topic, records, .. } if topic == "c" => records.remove(1).0 == 3,
            _ => false,
        });
    });
}

#[test]
fn rule_7_what_was_read_stays() {
    refused("rule 7, t/0, offset 9, value 109: member has read it, and it is not in the log", |facts| {
        add(facts, "member", 0, polled("t", 3, 9, vec![(9, T + 9)], 10));
        both(facts, |records| records.truncate(9));
        log(facts).end = 9;
    });
    refused("rule 7, t/0, offset 12: was shown as durable, in the end the high watermark is 10", |facts| {
        change(facts, |what| match what {
            What::Polled { end, .. } => end.replace(12).is_some(),
            _ => false,
        });
    });
}

#[test]
fn rule_8_commits_are_kept_and_none_is_made_up() {
    let end = |offset: Option<u64>| {
        move |facts: &mut Facts| {
            let group = facts.committed.get_mut("g").expect("it is there");
            match offset {
                Some(offset) => drop(group.insert(t(), offset)),
                None => drop(group.remove(&t())),
            }
            facts.lag.clear();
        }
    };
    refused("rule 8, t/0, offset 4: the end is shown this of g, and 8 was acknowledged before", end(Some(4)));
    refused("rule 8, t/0: the end is shown this of g, and 8 was acknowledged before", end(None));
    refused("rule 8, t/0, offset 0: the end is shown this of g, and nobody committed it", end(Some(0)));
    refused("rule 8, t/0, offset 9: the end is shown this of g, and nobody committed it", end(Some(9)));
    // Never 0 where nothing was committed.
    refused("rule 8, t/0, offset 0: reader is shown this of g, and nobody committed it", |facts| {
        change(facts, |what| match what {
            What::Offsets { offsets } => offsets[0].2.replace(0).is_none(),
            _ => false,
        });
    });
    refused("rule 8, t/0, offset 6: g has committed Some(8), and is started here", |facts| {
        change(facts, |what| match what {
            What::Assigned { start, .. } => {
                *start = 6;
                true
            }
            _ => false,
        });
    });
}

#[test]
fn rule_9_lag_is_counted_and_look_ups_scan() {
    refused("rule 9, t/0, offset 8: the lag of g is said to be 3, counted are 2", |facts| {
        facts.lag[0].records = 3
    });
    refused("rule 9, t/0, offset 4: is what a look-up of 5003 answers, a scan finds Some(3)", |facts| {
        facts.lookups[0].offset = Some(4);
    });
    refused("rule 9, t/0, offset 10: is what a look-up of 9999 answers, a scan finds None", |facts| {
        facts.lookups[2].offset = Some(10);
    });
}

#[test]
fn rule_10_everything_settles() {
    refused("rule 10: the faults did not end", |facts| {
        facts.events.retain(|event| event.what != What::FaultsEnd)
    });
    refused("rule 10: keyed has not settled", |facts| {
        facts.events.retain(|event| event.process != "keyed" || event.what != What::Settled);
    });
    refused("rule 10: admin has settled only after 31 s", |facts| {
        let last = facts.events.last_mut().expect("there are events");
        last.at_ns += 31 * SECOND;
    });
}

#[test]
fn retention_and_named_damage_excuse_what_lies_there_and_no_more() {
    let mut facts = good();
    facts.topics.get_mut("t").expect("it is there").retention = true;
    both(&mut facts, |records| drop(records.drain(..3)));
    log(&mut facts).start = 3;
    facts.lookups.remove(0);
    assert_eq!(check(&facts).0, []);
    log(&mut facts).start = 2;
    assert!(!check(&facts).0.is_empty(), "offset 2 is not below the log start");

    let mut facts = good();
    facts.damage = true;
    both(&mut facts, |records| drop(records.drain(3..5)));
    log(&mut facts).lost.push((3, 5));
    facts.lookups.remove(0);
    assert_eq!(check(&facts).0, []);
    log(&mut facts).lost[0].1 = 4;
    assert!(!check(&facts).0.is_empty(), "offset 4 is not named");
}
