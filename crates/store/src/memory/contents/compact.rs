//! Compaction of what one partition holds, by the rules of `rimstone-log`: a pass is done at once.

use rimstone_log::compaction::{Dirtiness, Facts, Judged, Plan, Sieve, groups, plan};
use rimstone_types::{ByteCount, Offset, Timestamp};

use super::{Contents, Segment};
use crate::{Compacted, ReadBatch};

impl Contents {
    fn facts(&self) -> Vec<Facts> {
        let sealed = self.segments.iter().zip(self.segments.iter().skip(1));
        let facts = |(segment, next): (&Segment, &Segment)| Facts {
            base: segment.base,
            next: next.base,
            bytes: segment.bytes,
            first_append: segment.first_append,
            last_append: segment.last_append,
            cleaned: segment.cleaned,
            horizon: segment.horizon,
        };
        sealed.map(facts).collect()
    }

    fn plan(&self, now: Timestamp) -> Plan {
        plan(&self.facts(), self.end, &self.config.compaction.settings(), now)
    }

    pub(in crate::memory) fn dirtiness(&self, now: Timestamp) -> Dirtiness {
        if self.config.cleanup.compacts() { self.plan(now).dirtiness } else { Dirtiness::default() }
    }

    /// Bytes cleaned and not, for `info`.
    pub(in crate::memory) fn cleaned_size(&self) -> Option<Dirtiness> {
        let facts = self.facts();
        let clean = facts.iter().take_while(|facts| facts.cleaned == facts.next).count();
        let (clean, dirty) = facts.split_at(clean);
        let bytes = |facts: &[Facts]| facts.iter().map(|facts| facts.bytes).sum();
        let dirtiness = Dirtiness { clean_bytes: bytes(clean), dirty_bytes: bytes(dirty), due: false };
        self.config.cleanup.compacts().then_some(dirtiness)
    }

    /// A whole pass, if one is due. Answers what it did, and the bytes that are held before and after.
    pub(in crate::memory) fn compact(&mut self, now: Timestamp) -> (Compacted, u64, u64) {
        let due = self.dirtiness(now).due;
        if !due {
            return Default::default();
        }
        let plan = self.plan(now);
        let mut facts = self.facts();
        facts.truncate(plan.segments);
        let mut sieve = self.sieve(&plan, &facts, now);
        let mut done = Compacted { finished: true, ..Compacted::default() };
        self.learn(&mut sieve, &plan, &facts, &mut done);
        let learned = facts.iter().take_while(|facts| facts.base < sieve.end()).count();
        let mut segments = std::mem::take(&mut self.segments);
        let mut batches = std::mem::take(&mut self.batches);
        let before = segments.iter().map(|segment| segment.bytes).sum::<u64>();
        for group in groups(&facts[..learned], self.config.segment_bytes.get()) {
            let old: Vec<Segment> = segments.drain(..group.len()).collect();
            let count: usize = old.iter().map(|segment| segment.batches).sum();
            let cleaned = facts[group.end - 1].next.min(sieve.end());
            let mut new = Segment { cleaned, ..Segment::new(old[0].base) };
            let members = batches.drain(..count).collect();
            for read in judged(&sieve, members, &mut new.horizon, &mut done) {
                new.count(&read);
                self.batches.push_back(read);
            }
            done.written.0 += new.bytes;
            done.segments_before += old.len() as u32;
            done.segments_after += 1;
            self.segments.push_back(new);
        }
        self.segments.append(&mut segments);
        self.batches.append(&mut batches);
        self.generation += 1;
        (done, before, self.bytes())
    }

    fn sieve(&self, plan: &Plan, facts: &[Facts], now: Timestamp) -> Sieve {
        let end = facts.last().map_or(plan.dirty_from, |facts| facts.next);
        let windows = self.producers.iter().flat_map(|(_, entry)| entry.batches());
        let numbered: Vec<Offset> =
            windows.map(|batch| batch.base_offset).filter(|base| *base < end).collect();
        // As random as it has to be where nothing outlives the process.
        let seed = self.end.get() ^ now.as_millis() as u64;
        let mut sieve = Sieve::new(&self.config.compaction.settings(), plan, self.start, now, numbered, seed);
        sieve.order();
        sieve
    }

    fn learn(&self, sieve: &mut Sieve, plan: &Plan, facts: &[Facts], done: &mut Compacted) {
        let end = facts.last().map_or(plan.dirty_from, |facts| facts.next);
        for read in &self.batches {
            let base = read.batch.base_offset();
            if base < plan.dirty_from || base >= end {
                continue;
            }
            done.read.0 += read.batch.bytes().len() as u64;
            // What cannot be decoded ends what a pass can know; what does not fit is for the next.
            if !sieve.learn(&read.batch).unwrap_or(false) {
                break;
            }
        }
    }
}

/// What stays of the batches of a group: the last of them does, empty if need be.
fn judged(
    sieve: &Sieve,
    members: Vec<ReadBatch>,
    earliest: &mut Option<Timestamp>,
    done: &mut Compacted,
) -> Vec<ReadBatch> {
    let mut meet = |horizon: Option<Timestamp>| *earliest = (*earliest).into_iter().chain(horizon).min();
    let last = members.len().saturating_sub(1);
    let mut kept = Vec::new();
    for (number, read) in members.into_iter().enumerate() {
        done.read = ByteCount(done.read.get() + read.batch.bytes().len() as u64);
        match sieve.judge(&read.batch) {
            Ok(Judged::Same { horizon }) => {
                meet(horizon);
                kept.push(read);
            }
            Err(_) => kept.push(read),
            Ok(Judged::Changed { batch, removed, horizon }) => {
                meet(horizon);
                done.records_removed += u64::from(removed);
                kept.push(ReadBatch { batch, ..read });
            }
            Ok(Judged::Gone { removed }) => {
                done.records_removed += u64::from(removed);
                if number == last {
                    kept.push(ReadBatch { batch: read.batch.emptied(), ..read });
                }
            }
        }
    }
    kept
}
