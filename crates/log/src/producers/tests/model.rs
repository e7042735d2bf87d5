//! The table against a naive model: a list of all batches that were ever appended.

use super::*;

/// A batch of the model; `position` counts a producer's sequences without wrapping.
#[derive(Debug, Clone, Copy)]
struct Appended {
    claim: Claim,
    base: u64,
    last: u64,
    time: i64,
}

/// What the model has to say of a claim.
#[derive(Debug)]
enum Expected {
    Exactly(Result<Verdict, Refusal>),
    /// Older than the window that is promised: offsets may be known still, or not.
    Older {
        known: Option<(u64, u64)>,
    },
    /// Older than the promised window and not one batch: known to be stored, or refused while the window is
    /// longer than promised.
    OlderInParts {
        refusal: Refusal,
    },
}

#[derive(Debug, Default)]
struct Model {
    batches: Vec<Appended>,
    resend: Vec<(ProducerId, ProducerEpoch, u32)>,
}

impl Model {
    /// The batches that count for a producer: of its highest epoch, or with a name of all epochs.
    fn of(&self, id: ProducerId) -> Vec<Appended> {
        let all = || self.batches.iter().filter(|batch| batch.claim.stamp.id == id);
        let Some(newest) = all().map(|batch| batch.claim.stamp.epoch).max() else { return Vec::new() };
        all().filter(|batch| id.is_named() || batch.claim.stamp.epoch == newest).copied().collect()
    }

    fn check(&self, claim: &Claim) -> Expected {
        let stamp = claim.stamp;
        let batches = self.of(stamp.id);
        let by_request = stamp.numbering == Numbering::ByRequest;
        let resend = self.resend.iter().find(|(id, epoch, number)| {
            *id == stamp.id && stamp.base > *number && (id.is_named() || *epoch == stamp.epoch)
        });
        let append = match resend {
            Some(&(_, _, expected)) if by_request => Err(Refusal::ResendFirst { expected, got: stamp.base }),
            _ => Ok(Verdict::Append),
        };
        let Some(newest) = batches.last() else {
            return Expected::Exactly(match stamp.numbering {
                Numbering::Dense if stamp.base != 0 => Err(Refusal::UnknownProducer { got: stamp.base }),
                _ => append,
            });
        };
        let epoch = batches.iter().map(|batch| batch.claim.stamp.epoch).max().unwrap();
        let stored = newest.claim.stamp.numbering;
        if stamp.epoch < epoch {
            return Expected::Exactly(Err(Refusal::Fenced { got: stamp.epoch, current: epoch }));
        }
        if stamp.numbering != stored {
            return Expected::Exactly(Err(Refusal::NumberingMixed { stored, got: stamp.numbering }));
        }
        if stamp.epoch > epoch && !stamp.id.is_named() {
            return Expected::Exactly(match stamp.numbering {
                Numbering::Dense if stamp.base != 0 => {
                    Err(Refusal::SequenceGap { expected: 0, got: stamp.base })
                }
                _ => append,
            });
        }
        let promised = batches.len().saturating_sub(WINDOW);
        if by_request {
            check_request(claim, &batches, promised, append)
        } else {
            check_dense(claim, &batches, promised)
        }
    }
}

fn known(batch: &Appended) -> Result<Verdict, Refusal> {
    Ok(Verdict::Duplicate {
        offsets: Some((offset(batch.base), offset(batch.last))),
        append_time: Timestamp(batch.time),
        depends_on: offset(batch.last + 1),
    })
}

fn check_dense(claim: &Claim, batches: &[Appended], promised: usize) -> Expected {
    let got = claim.stamp.base;
    let count =
        |batches: &[Appended]| batches.iter().map(|batch| u64::from(batch.claim.record_count)).sum::<u64>();
    let end = u64::from(batches[0].claim.stamp.base) + count(batches);
    let expected = (end % SEQUENCES) as u32;
    if got == expected {
        return Expected::Exactly(Ok(Verdict::Append));
    }
    let same = batches
        .iter()
        .position(|batch| batch.claim.stamp.base == got && batch.claim.record_count == claim.record_count);
    match same {
        Some(at) if at >= promised => return Expected::Exactly(known(&batches[at])),
        Some(at) => return Expected::Older { known: Some((batches[at].base, batches[at].last)) },
        None => {}
    }
    let refusal = Refusal::SequenceGap { expected, got };
    let back = (end + SEQUENCES - u64::from(got)) % SEQUENCES;
    let in_window = count(&batches[promised..]);
    if back <= count(batches) && back >= in_window + u64::from(claim.record_count) {
        return Expected::OlderInParts { refusal };
    }
    Expected::Exactly(Err(refusal))
}

fn check_request(
    claim: &Claim,
    batches: &[Appended],
    promised: usize,
    append: Result<Verdict, Refusal>,
) -> Expected {
    let got = claim.stamp.base;
    let last = batches.last().unwrap().claim.stamp.base;
    if got > last {
        return Expected::Exactly(append);
    }
    let reused = Refusal::NumberReused { got, last };
    match batches.iter().position(|batch| batch.claim.stamp.base == got) {
        Some(at) => {
            let batch = &batches[at];
            let same = batch.claim.record_count == claim.record_count
                && batch.claim.content_hash == claim.content_hash;
            match (at >= promised, same) {
                (true, true) => Expected::Exactly(known(batch)),
                (true, false) => Expected::Exactly(Err(reused)),
                (false, true) => Expected::Older { known: Some((batch.base, batch.last)) },
                (false, false) => Expected::Older { known: None },
            }
        }
        None if got > batches[promised].claim.stamp.base || promised == 0 => Expected::Exactly(Err(reused)),
        None => Expected::Older { known: None },
    }
}

fn agrees(expected: &Expected, verdict: Result<Verdict, Refusal>, numbering: Numbering) -> bool {
    match (expected, verdict) {
        (Expected::Exactly(expected), verdict) => *expected == verdict,
        (Expected::Older { known }, Ok(Verdict::Duplicate { offsets: Some((base, last)), .. })) => {
            *known == Some((base.get(), last.get()))
        }
        (Expected::Older { known }, Ok(Verdict::Duplicate { offsets: None, .. })) => {
            known.is_some() && numbering == Numbering::Dense
        }
        (Expected::Older { .. }, Err(Refusal::NumberTooOld { .. } | Refusal::NumberReused { .. })) => {
            numbering == Numbering::ByRequest
        }
        (Expected::OlderInParts { .. }, Ok(Verdict::Duplicate { offsets, .. })) => offsets.is_none(),
        (Expected::OlderInParts { refusal }, Err(got)) => *refusal == got,
        _ => false,
    }
}

#[derive(Debug, Clone)]
enum Op {
    /// The next batch of a producer, as a client would send it.
    Next {
        producer: usize,
        count: u32,
        skip: u32,
        new_epoch: bool,
    },
    /// One that was sent before, perhaps changed a little.
    Again {
        producer: usize,
        which: prop::sample::Index,
        more: i32,
        shift: i32,
        other: bool,
    },
    /// Anything.
    Any {
        producer: usize,
        base: u32,
        count: u32,
        epoch: u16,
        other_numbering: bool,
    },
    Undo {
        count: usize,
    },
    Settle {
        count: usize,
    },
    Reopen,
}

fn op() -> impl Strategy<Value = Op> {
    let producer = || 0usize..4;
    prop_oneof![
        30 => (producer(), 1u32..5, 0u32..3, prop::bool::weighted(0.03))
            .prop_map(|(producer, count, skip, new_epoch)| Op::Next { producer, count, skip, new_epoch }),
        6 => (producer(), any::<prop::sample::Index>(), -1i32..2, -1i32..2, prop::bool::weighted(0.2))
            .prop_map(|(producer, which, more, shift, other)| Op::Again { producer, which, more, shift, other }),
        2 => (producer(), prop_oneof![0u32..300, Just(i32::MAX as u32), 0..i32::MAX as u32], 1u32..200, 0u16..4, any::<bool>())
            .prop_map(|(producer, base, count, epoch, other_numbering)| Op::Any { producer, base, count, epoch, other_numbering }),
        1 => (1usize..6).prop_map(|count| Op::Undo { count }),
        4 => (1usize..12).prop_map(|count| Op::Settle { count }),
        1 => Just(Op::Reopen),
    ]
}

/// Dense and by request, without a name and with one.
const PRODUCERS: [(u64, Numbering); 4] = [
    (1, Numbering::Dense),
    (ProducerId::NAMED_BIT | 1, Numbering::Dense),
    (2, Numbering::ByRequest),
    (ProducerId::NAMED_BIT | 2, Numbering::ByRequest),
];

struct Run {
    table: ProducerTable,
    model: Model,
    staged: std::collections::VecDeque<Undo>,
    end: u64,
    time: i64,
}

impl Run {
    /// Both begin with a batch of each dense producer that lies just before the end of the sequences.
    fn new(distance: u32) -> Self {
        let mut run = Self {
            table: ProducerTable::new(limits()),
            model: Model::default(),
            staged: std::collections::VecDeque::new(),
            end: 0,
            time: 0,
        };
        for (id, numbering) in PRODUCERS {
            if numbering == Numbering::Dense && distance > 0 {
                run.append(dense(id, 0, i32::MAX as u32 + 1 - distance, 1));
            }
        }
        run
    }

    fn append(&mut self, claim: Claim) {
        let base = self.end;
        self.end += u64::from(claim.record_count);
        self.time += 1;
        let undo = self.table.apply(&claim, offset(base), offset(self.end - 1), Timestamp(self.time));
        self.staged.push_back(undo);
        self.model.batches.push(Appended { claim, base, last: self.end - 1, time: self.time });
        if claim.stamp.numbering == Numbering::ByRequest {
            self.model.resend.retain(|&(id, epoch, number)| {
                id != claim.stamp.id
                    || (claim.stamp.base < number && (id.is_named() || epoch == claim.stamp.epoch))
            });
        }
    }

    fn offer(&mut self, claim: Claim) -> Result<(), TestCaseError> {
        let verdict = self.table.check(&claim, Timestamp(self.time));
        let expected = self.model.check(&claim);
        prop_assert!(
            agrees(&expected, verdict, claim.stamp.numbering),
            "{claim:?}: expected {expected:?}, got {verdict:?}"
        );
        if verdict == Ok(Verdict::Append) {
            self.append(claim);
        }
        Ok(())
    }

    fn undo(&mut self, count: usize) {
        for _ in 0..count.min(self.staged.len()) {
            let undo = self.staged.pop_back().unwrap();
            let batch = self.model.batches.pop().unwrap();
            let stamp = undo.claim.stamp;
            self.end = batch.base;
            self.table.undo(undo);
            if stamp.numbering == Numbering::ByRequest {
                self.model.resend.retain(|&(id, ..)| id != stamp.id);
                self.model.resend.push((stamp.id, stamp.epoch, stamp.base));
            }
        }
    }

    fn settle(&mut self, count: usize) {
        for undo in self.staged.drain(..count.min(self.staged.len())) {
            self.table.settle(undo.claim.stamp.id);
        }
    }

    fn reopen(&mut self) -> Result<(), TestCaseError> {
        self.settle(usize::MAX);
        let body = self.table.encode();
        self.table = ProducerTable::decode(&body, limits()).expect("what was encoded can be decoded");
        prop_assert_eq!(self.table.encode(), body);
        self.model.resend.clear();
        Ok(())
    }

    fn run(&mut self, op: Op) -> Result<(), TestCaseError> {
        match op {
            Op::Next { producer, count, skip, new_epoch } => {
                let (id, numbering) = PRODUCERS[producer];
                let stored = self.model.of(ProducerId::new(id).unwrap());
                let mut epoch = stored.last().map_or(0, |batch| batch.claim.stamp.epoch.get());
                let mut base = match (stored.last(), numbering) {
                    (None, _) => 0,
                    (Some(batch), Numbering::Dense) => {
                        ((u64::from(batch.claim.stamp.base) + u64::from(batch.claim.record_count))
                            % SEQUENCES) as u32
                    }
                    (Some(batch), Numbering::ByRequest) => batch.claim.stamp.base + 1 + skip,
                };
                if new_epoch {
                    epoch += 1;
                    if !ProducerId::new(id).unwrap().is_named() {
                        base = 0;
                    }
                }
                self.offer(claim(numbering, id, epoch, base, count, u64::from(base) * 31))
            }
            Op::Again { producer, which, more, shift, other } => {
                let (id, numbering) = PRODUCERS[producer];
                let stored = self.model.of(ProducerId::new(id).unwrap());
                if stored.is_empty() {
                    return Ok(());
                }
                let Claim { stamp, record_count, .. } = stored[which.index(stored.len())].claim;
                let epoch = stored.last().unwrap().claim.stamp.epoch.get();
                let base = match numbering {
                    Numbering::Dense => {
                        (i64::from(stamp.base) + i64::from(shift)).rem_euclid(SEQUENCES as i64) as u32
                    }
                    Numbering::ByRequest => stamp.base.saturating_add_signed(shift),
                };
                let count = (record_count as i32 + more).max(1) as u32;
                self.offer(claim(numbering, id, epoch, base, count, u64::from(base) * 31 + u64::from(other)))
            }
            Op::Any { producer, base, count, epoch, other_numbering } => {
                let (id, mut numbering) = PRODUCERS[producer];
                if other_numbering {
                    numbering = PRODUCERS[(producer + 2) % 4].1;
                }
                let claim = claim(numbering, id, epoch, base, count, u64::from(base) * 31);
                // A number near the end would leave no room for those that follow.
                if numbering == Numbering::ByRequest && base > 300 { Ok(()) } else { self.offer(claim) }
            }
            Op::Undo { count } => {
                self.undo(count);
                Ok(())
            }
            Op::Settle { count } => {
                self.settle(count);
                Ok(())
            }
            Op::Reopen => self.reopen(),
        }
    }
}

proptest! {
    #[test]
    fn agrees_with_the_model(distance in 0u32..40, ops in prop::collection::vec(op(), 1..600)) {
        let mut run = Run::new(distance);
        for op in ops {
            run.run(op)?;
        }
    }

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..500)) {
        drop(ProducerTable::decode(&bytes, limits()));
    }

    #[test]
    fn changed_snapshots_never_panic_and_stay_stable(
        distance in 0u32..40,
        ops in prop::collection::vec(op(), 1..60),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        claims in prop::collection::vec((0usize..4, any::<u32>(), any::<u32>(), 0u16..4), 1..20),
    ) {
        let mut run = Run::new(distance);
        for op in ops {
            run.run(op)?;
        }
        let mut bytes = run.table.encode();
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Ok(mut table) = ProducerTable::decode(&bytes, limits()) {
            prop_assert_eq!(&table.encode(), &bytes);
            for (producer, base, count, epoch) in claims {
                let (id, numbering) = PRODUCERS[producer];
                let claim = claim(numbering, id, epoch, base & i32::MAX as u32, count, 0);
                if table.check(&claim, NOW) == Ok(Verdict::Append) {
                    table.replay(&claim, offset(1 << 40), offset(1 << 40), NOW);
                }
            }
        }
    }
}
