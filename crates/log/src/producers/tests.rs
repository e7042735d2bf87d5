use proptest::prelude::*;

use super::*;

const NAMED: u64 = ProducerId::NAMED_BIT | 5;
const UNNAMED: u64 = 5;
const SEQUENCES: u64 = 1 << 31;
const NOW: Timestamp = Timestamp(1_000_000);

fn limits() -> Limits {
    Limits { producers: 100, expiry: Duration::from_secs(100), protected: Duration::from_secs(10) }
}

fn claim(numbering: Numbering, id: u64, epoch: u16, base: u32, record_count: u32, content: u64) -> Claim {
    let stamp = ProducerStamp {
        id: ProducerId::new(id).unwrap(),
        epoch: ProducerEpoch::new(epoch.into()).unwrap(),
        base,
        numbering,
    };
    let content_hash = (numbering == Numbering::ByRequest).then_some(content);
    Claim { stamp, record_count, content_hash }
}

fn dense(id: u64, epoch: u16, base: u32, count: u32) -> Claim {
    claim(Numbering::Dense, id, epoch, base, count, 0)
}

fn request(id: u64, epoch: u16, number: u32, content: u64) -> Claim {
    claim(Numbering::ByRequest, id, epoch, number, 2, content)
}

fn offset(value: u64) -> Offset {
    Offset::new(value).unwrap()
}

/// A table together with the end of the log that it is about.
struct Log {
    table: ProducerTable,
    end: u64,
}

impl Log {
    fn new() -> Self {
        Self { table: ProducerTable::new(limits()), end: 0 }
    }

    fn check(&mut self, claim: Claim) -> Result<Verdict, Refusal> {
        self.table.check(&claim, NOW)
    }

    /// Stages without asking.
    fn stage(&mut self, claim: Claim) -> Undo {
        let base = self.end;
        self.end += u64::from(claim.record_count);
        self.table.apply(&claim, offset(base), offset(self.end - 1), Timestamp(base as i64))
    }

    /// Appends what must be new, and settles it.
    fn append(&mut self, claim: Claim) {
        assert_eq!(self.check(claim), Ok(Verdict::Append), "{claim:?}");
        drop(self.stage(claim));
        self.table.settle(claim.stamp.id);
    }

    fn last(&self, id: u64) -> Option<u32> {
        self.table.get(ProducerId::new(id).unwrap()).and_then(Entry::last)
    }

    fn undo(&mut self, undo: Undo) {
        self.end -= u64::from(undo.claim.record_count);
        self.table.undo(undo);
    }
}

fn duplicate(first: u64, last: u64) -> Result<Verdict, Refusal> {
    Ok(Verdict::Duplicate {
        offsets: Some((offset(first), offset(last))),
        append_time: Timestamp(first as i64),
        depends_on: offset(last + 1),
    })
}

#[test]
fn dense_numbering() {
    for id in [UNNAMED, NAMED] {
        let mut log = Log::new();
        assert_eq!(log.check(dense(id, 0, 7, 3)), Err(Refusal::UnknownProducer { got: 7 }));
        log.append(dense(id, 3, 0, 10));
        log.append(dense(id, 3, 10, 5));
        let gap = |got| Err(Refusal::SequenceGap { expected: 15, got });
        for (base, count, expected) in [
            (15, 1, Ok(Verdict::Append)),
            (10, 5, duplicate(10, 14)),
            (0, 10, duplicate(0, 9)),
            (16, 1, gap(16)),
            (0, 9, gap(0)),
            (0, 15, gap(0)),
            (5, 10, gap(5)),
            (10, 4, gap(10)),
            (12, 10, gap(12)),
            (i32::MAX as u32, 1, gap(i32::MAX as u32)),
        ] {
            assert_eq!(log.check(dense(id, 3, base, count)), expected, "{base} {count}");
        }
        let epoch = |value| ProducerEpoch::new(value).unwrap();
        assert_eq!(log.check(dense(id, 2, 15, 1)), Err(Refusal::Fenced { got: epoch(2), current: epoch(3) }));
        let (stored, got) = (Numbering::Dense, Numbering::ByRequest);
        assert_eq!(log.check(request(id, 3, 1, 0)), Err(Refusal::NumberingMixed { stored, got }));
    }
}

#[test]
fn without_a_name_a_higher_epoch_begins_at_0() {
    let mut log = Log::new();
    log.append(dense(UNNAMED, 0, 0, 10));
    assert_eq!(log.check(dense(UNNAMED, 1, 10, 1)), Err(Refusal::SequenceGap { expected: 0, got: 10 }));
    log.append(dense(UNNAMED, 1, 0, 10));
    assert_eq!(log.check(dense(UNNAMED, 1, 0, 10)), duplicate(10, 19));
    assert_eq!(log.last(UNNAMED), Some(9));
}

#[test]
fn with_a_name_the_numbering_goes_on_and_duplicates_are_known_across_epochs() {
    let mut log = Log::new();
    log.append(dense(NAMED, 0, 0, 10));
    log.append(dense(NAMED, 0, 10, 10));
    assert_eq!(log.check(dense(NAMED, 5, 10, 10)), duplicate(10, 19));
    assert_eq!(log.check(dense(NAMED, 5, 0, 1)), Err(Refusal::SequenceGap { expected: 20, got: 0 }));
    log.append(dense(NAMED, 5, 20, 1));
    assert_eq!(log.check(dense(NAMED, 5, 0, 10)), duplicate(0, 9));
    assert!(matches!(log.check(dense(NAMED, 4, 21, 1)), Err(Refusal::Fenced { .. })));
}

#[test]
fn sequences_wrap() {
    let last = i32::MAX as u32;
    let mut log = Log::new();
    // What a log contains is taken as it is.
    drop(log.stage(dense(UNNAMED, 0, last - 4, 3)));
    log.append(dense(UNNAMED, 0, last - 1, 4));
    assert_eq!(log.last(UNNAMED), Some(1));
    assert_eq!(log.check(dense(UNNAMED, 0, last - 1, 4)), duplicate(3, 6));
    assert_eq!(log.check(dense(UNNAMED, 0, 0, 2)), Err(Refusal::SequenceGap { expected: 2, got: 0 }));
    log.append(dense(UNNAMED, 0, 2, 1));
    assert_eq!(log.check(dense(UNNAMED, 0, last - 4, 3)), duplicate(0, 2));
}

#[test]
fn older_than_the_window_is_a_duplicate_without_offsets() {
    let mut log = Log::new();
    let window = WINDOW as u32;
    for n in 0..window + 10 {
        log.append(dense(UNNAMED, 0, n * 2, 2));
    }
    assert_eq!(log.table.get(ProducerId::new(UNNAMED).unwrap()).unwrap().batches().count(), WINDOW);
    assert_eq!(log.check(dense(UNNAMED, 0, 20, 2)), duplicate(20, 21));
    let unknown =
        Ok(Verdict::Duplicate { offsets: None, append_time: Timestamp(20), depends_on: offset(20) });
    assert_eq!(log.check(dense(UNNAMED, 0, 18, 2)), unknown);
    assert_eq!(log.check(dense(UNNAMED, 0, 0, 2)), unknown);
    assert_eq!(log.check(dense(UNNAMED, 0, 0, 20)), unknown);
    let gap = |got| Err(Refusal::SequenceGap { expected: (window + 10) * 2, got });
    assert_eq!(log.check(dense(UNNAMED, 0, 0, 21)), gap(0), "reaches into the window");
    assert_eq!(log.check(dense(UNNAMED, 0, i32::MAX as u32, 1)), gap(i32::MAX as u32), "before the first");
}

#[test]
fn before_the_first_known_sequence_nothing_is_claimed() {
    let mut log = Log::new();
    for n in 0..WINDOW as u32 + 1 {
        drop(log.stage(dense(UNNAMED, 0, 1000 + n, 1)));
        log.table.settle(ProducerId::new(UNNAMED).unwrap());
    }
    let mut check = |base| log.check(dense(UNNAMED, 0, base, 1));
    assert!(matches!(check(1000), Ok(Verdict::Duplicate { offsets: None, .. })));
    assert!(matches!(check(999), Err(Refusal::SequenceGap { got: 999, .. })));
}

#[test]
fn a_log_that_lost_batches_makes_no_false_claims() {
    let mut log = Log::new();
    let id = ProducerId::new(UNNAMED).unwrap();
    let mut replay = |base| {
        drop(log.stage(dense(UNNAMED, 0, base, 1)));
        log.table.settle(id);
    };
    replay(0);
    // 1 to 9 are lost.
    for n in 10..10 + WINDOW as u32 {
        replay(n);
    }
    assert_eq!(log.table.get(id).unwrap().batches().count(), WINDOW);
    for got in [0, 5, 9] {
        assert!(matches!(log.check(dense(UNNAMED, 0, got, 1)), Err(Refusal::SequenceGap { .. })), "{got}");
    }
}

#[test]
fn numbering_by_request() {
    for id in [UNNAMED, NAMED] {
        let mut log = Log::new();
        log.append(request(id, 1, 4, 44));
        log.append(request(id, 1, 9, 99));
        let reused = |got| Err(Refusal::NumberReused { got, last: 9 });
        for (number, content, expected) in [
            (10, 0, Ok(Verdict::Append)),
            (1000, 0, Ok(Verdict::Append)),
            (9, 99, duplicate(2, 3)),
            (4, 44, duplicate(0, 1)),
            (9, 98, reused(9)),
            (4, 99, reused(4)),
            (6, 44, reused(6)),
            (1, 44, reused(1)),
        ] {
            assert_eq!(log.check(request(id, 1, number, content)), expected, "{number} {content}");
        }
        let other_count = Claim { record_count: 3, ..request(id, 1, 9, 99) };
        assert_eq!(log.check(other_count), reused(9));
        let no_hash = Claim { content_hash: None, ..request(id, 1, 9, 99) };
        assert_eq!(log.check(no_hash), reused(9));
        assert!(matches!(log.check(request(id, 0, 10, 0)), Err(Refusal::Fenced { .. })));
        assert!(matches!(log.check(dense(id, 1, 10, 1)), Err(Refusal::NumberingMixed { .. })));
    }
}

#[test]
fn epochs_of_requests() {
    let mut log = Log::new();
    log.append(request(NAMED, 0, 7, 77));
    log.append(request(UNNAMED, 0, 7, 77));
    assert_eq!(log.check(request(NAMED, 1, 7, 77)), duplicate(0, 1));
    assert_eq!(log.check(request(NAMED, 1, 0, 1)), Err(Refusal::NumberReused { got: 0, last: 7 }));
    log.append(request(UNNAMED, 1, 0, 1));
    assert_eq!(log.last(UNNAMED), Some(0));
}

#[test]
fn requests_older_than_the_window_are_too_old() {
    let mut log = Log::new();
    for n in 0..WINDOW as u32 + 3 {
        log.append(request(UNNAMED, 0, n * 2, n.into()));
    }
    let last = (WINDOW as u32 + 2) * 2;
    assert_eq!(log.check(request(UNNAMED, 0, 6, 3)), duplicate(6, 7));
    assert_eq!(log.check(request(UNNAMED, 0, 4, 2)), Err(Refusal::NumberTooOld { got: 4, last }));
    assert_eq!(log.check(request(UNNAMED, 0, 7, 3)), Err(Refusal::NumberReused { got: 7, last }));
}

#[test]
fn what_was_undone_must_come_again() {
    for id in [UNNAMED, NAMED] {
        let mut log = Log::new();
        // From nothing, so that only the memory of the failure is left.
        let first = log.stage(request(id, 0, 3, 33));
        log.undo(first);
        assert_eq!(log.last(id), None);
        assert_eq!(log.check(request(id, 0, 4, 44)), Err(Refusal::ResendFirst { expected: 3, got: 4 }));
        log.append(request(id, 0, 3, 33));
        log.append(request(id, 0, 4, 44));

        let undos = [log.stage(request(id, 0, 6, 66)), log.stage(request(id, 0, 8, 88))];
        for undo in undos.into_iter().rev() {
            log.undo(undo);
        }
        assert_eq!(log.last(id), Some(4));
        assert_eq!(log.check(request(id, 0, 8, 88)), Err(Refusal::ResendFirst { expected: 6, got: 8 }));
        assert_eq!(log.check(request(id, 0, 4, 44)), duplicate(2, 3));
        // It comes and fails once more.
        let again = log.stage(request(id, 0, 6, 66));
        assert_eq!(log.check(request(id, 0, 8, 88)), Ok(Verdict::Append));
        log.undo(again);
        assert_eq!(log.check(request(id, 0, 8, 88)), Err(Refusal::ResendFirst { expected: 6, got: 8 }));
        log.append(request(id, 0, 6, 66));
        log.append(request(id, 0, 8, 88));
    }
}

#[test]
fn a_failure_is_left_behind_only_by_a_new_epoch_without_a_name() {
    for (id, taken) in [(UNNAMED, true), (NAMED, false)] {
        let mut log = Log::new();
        log.append(request(id, 0, 3, 33));
        let failed = log.stage(request(id, 0, 5, 55));
        log.undo(failed);
        assert_eq!(log.check(request(id, 1, 6, 66)) == Ok(Verdict::Append), taken);
        // The failed one began the epoch.
        let mut log = Log::new();
        log.append(request(id, 0, 3, 33));
        let failed = log.stage(request(id, 1, 5, 55));
        log.undo(failed);
        assert_eq!(log.check(request(id, 1, 6, 66)), Err(Refusal::ResendFirst { expected: 5, got: 6 }));
        assert_eq!(log.check(request(id, 0, 3, 33)), duplicate(0, 1));
        log.append(request(id, 1, 5, 55));
        log.append(request(id, 1, 6, 66));
    }
}

#[test]
fn undoing_dense_batches_brings_the_state_back() {
    let mut log = Log::new();
    let first = log.stage(dense(UNNAMED, 0, 0, 5));
    log.undo(first);
    assert!(log.table.is_empty());
    assert_eq!(log.check(dense(UNNAMED, 0, 5, 1)), Err(Refusal::UnknownProducer { got: 5 }));
    log.append(dense(UNNAMED, 0, 0, 5));
    let before = log.table.get(ProducerId::new(UNNAMED).unwrap()).unwrap().clone();
    let undos = [
        log.stage(dense(UNNAMED, 0, 5, 5)),
        log.stage(dense(UNNAMED, 1, 0, 5)),
        log.stage(dense(UNNAMED, 1, 5, 5)),
    ];
    assert_eq!(log.last(UNNAMED), Some(9));
    for undo in undos.into_iter().rev() {
        log.undo(undo);
    }
    assert_eq!(log.table.get(ProducerId::new(UNNAMED).unwrap()), Some(&before));
    assert_eq!(log.check(dense(UNNAMED, 0, 10, 5)), Err(Refusal::SequenceGap { expected: 5, got: 10 }));
}

#[test]
fn the_window_is_whole_after_many_staged_batches_were_undone() {
    let mut log = Log::new();
    let id = ProducerId::new(UNNAMED).unwrap();
    let window = WINDOW as u32;
    for n in 0..window {
        log.append(dense(UNNAMED, 0, n, 1));
    }
    let undos: Vec<Undo> = (window..3 * window).map(|n| log.stage(dense(UNNAMED, 0, n, 1))).collect();
    log.table.settle(id);
    for undo in undos.into_iter().skip(1).rev() {
        log.undo(undo);
    }
    assert_eq!(log.last(UNNAMED), Some(window));
    assert_eq!(log.check(dense(UNNAMED, 0, 1, 1)), duplicate(1, 1));
    log.append(dense(UNNAMED, 0, window + 1, 1));
    assert_eq!(log.table.get(id).unwrap().batches().count(), WINDOW);
}

#[test]
fn what_was_settled_stays_settled_when_a_later_epoch_is_undone() {
    let mut log = Log::new();
    let id = ProducerId::new(UNNAMED).unwrap();
    drop(log.stage(dense(UNNAMED, 0, 0, 1)));
    let later = log.stage(dense(UNNAMED, 1, 0, 1));
    log.table.settle(id);
    log.undo(later);
    assert_eq!(log.last(UNNAMED), Some(0));
    assert_eq!(log.table.expire(Timestamp(i64::MAX)), 1, "nothing of it is on its way to the disk");
}

#[test]
fn a_forgotten_producer_is_not_brought_back_by_an_undo() {
    let mut log = Log::new();
    log.append(dense(NAMED, 0, 0, 1));
    let undo = log.stage(dense(NAMED, 0, 1, 1));
    assert!(log.table.forget(ProducerId::new(NAMED).unwrap()));
    assert!(!log.table.forget(ProducerId::new(NAMED).unwrap()));
    log.undo(undo);
    assert!(log.table.is_empty());
}

#[test]
fn only_the_unnamed_and_idle_expire() {
    let mut log = Log::new();
    log.append(dense(1, 0, 0, 1));
    log.append(dense(NAMED, 0, 0, 1));
    log.end = 50_000;
    log.append(dense(2, 0, 0, 1));
    drop(log.stage(dense(3, 0, 0, 1)));
    assert_eq!(log.table.expire(Timestamp(100_000)), 0);
    assert_eq!(log.table.expire(Timestamp(100_001)), 1);
    assert_eq!(log.table.iter().map(|(id, _)| id.get()).collect::<Vec<_>>(), [2, 3, NAMED]);
    // Whoever has a batch on its way to the disk is not idle.
    assert_eq!(log.table.expire(Timestamp(i64::MAX)), 1);
    assert_eq!(log.table.len(), 2);
    log.table.settle(ProducerId::new(3).unwrap());
    assert_eq!(log.table.expire(Timestamp(i64::MAX)), 1);
    assert_eq!(log.table.len(), 1);
}

#[test]
fn at_the_bound_new_producers_are_refused_unless_one_has_expired() {
    let mut table = ProducerTable::new(Limits { producers: 3, ..limits() });
    for (id, at) in [(1, 0), (2, 5_000), (NAMED, 0)] {
        table.replay(&dense(id, 0, 0, 1), offset(0), offset(0), Timestamp(at));
    }
    let full = Err(Refusal::TooManyProducers { limit: 3 });
    assert_eq!(table.check(&dense(9, 0, 0, 1), Timestamp(100_000)), full);
    assert_eq!(table.check(&dense(1, 0, 1, 1), Timestamp(100_000)), Ok(Verdict::Append));
    let late = Timestamp(100_001);
    assert_eq!(table.check(&dense(9, 0, 0, 1), late), Ok(Verdict::Append));
    table.replay(&dense(9, 0, 0, 1), offset(9), offset(9), late);
    assert_eq!(table.iter().map(|(id, _)| id.get()).collect::<Vec<_>>(), [2, 9, NAMED]);
    assert_eq!(table.check(&dense(10, 0, 0, 1), late), full);
    // What the log contains is taken all the same.
    table.replay(&dense(10, 0, 0, 1), offset(10), offset(10), late);
    assert_eq!(table.len(), 4);

    let protected = Limits { producers: 1, expiry: Duration::ZERO, protected: Duration::from_secs(10) };
    let mut table = ProducerTable::new(protected);
    table.replay(&dense(1, 0, 0, 1), offset(0), offset(0), Timestamp(0));
    assert!(table.check(&dense(2, 0, 0, 1), Timestamp(10_000)).is_err());
    assert!(table.check(&dense(2, 0, 0, 1), Timestamp(10_001)).is_ok());
}

#[test]
fn the_layout_of_a_snapshot() {
    let mut log = Log::new();
    log.end = 0x0102;
    log.append(claim(Numbering::ByRequest, 0x0a0b, 7, 0x0c0d, 3, 0x1122_3344_5566_7788));
    let expected = [
        &[0, 0, 0, 1][..],
        &[0, 0, 0, 0, 0, 0, 0x0a, 0x0b],
        &[1],
        &[0, 0, 0, 0],
        &[1],
        &[0, 7],
        &[0, 0, 0x0c, 0x0d],
        &[0, 0, 0, 3],
        &[0, 0, 0, 0, 0, 0, 1, 2],
        &[0, 0, 0, 2],
        &[0, 0, 0, 0, 0, 0, 1, 2],
        &[1],
        &[0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88],
    ]
    .concat();
    assert_eq!(log.table.encode(), expected);
    for length in 0..expected.len() {
        assert!(matches!(
            ProducerTable::decode(&expected[..length], limits()),
            Err(DecodeError::Truncated { .. })
        ));
    }
    let longer = [&expected[..], &[0]].concat();
    assert_eq!(
        ProducerTable::decode(&longer, limits()).unwrap_err(),
        DecodeError::TrailingBytes { extra: 1 }
    );
    let wrong = |at: usize, value: u8| {
        let mut bytes = expected.clone();
        bytes[at] = value;
        ProducerTable::decode(&bytes, limits()).unwrap_err().to_string()
    };
    assert!(wrong(4, 0x80).starts_with("producer id"));
    assert!(wrong(12, 2).starts_with("numbering"));
    assert!(wrong(17, 0).starts_with("batch count"));
    assert!(wrong(17, 65).starts_with("batch count"));
    assert!(wrong(18, 0x80).starts_with("producer epoch"));
    assert!(wrong(28, 0x80).starts_with("offset"));
    assert!(wrong(48, 2).starts_with("content hash"));
}

#[test]
fn a_snapshot_holds_no_more_than_the_window() {
    let mut log = Log::new();
    let window = WINDOW as u32;
    for n in 0..window + 6 {
        drop(log.stage(dense(UNNAMED, 0, n, 1)));
    }
    let mut table = ProducerTable::decode(&log.table.encode(), limits()).unwrap();
    let entry = table.get(ProducerId::new(UNNAMED).unwrap()).unwrap();
    assert_eq!(entry.batches().count(), WINDOW);
    assert_eq!(entry.last(), Some(window + 5));
    assert!(matches!(
        table.check(&dense(UNNAMED, 0, 5, 1), NOW),
        Ok(Verdict::Duplicate { offsets: None, .. })
    ));
}

mod model;
