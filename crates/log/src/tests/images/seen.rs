//! Whether what a log shows, and what it knows of producers, is what the list says.

use super::*;
use crate::{
    StageError, TimedOffset,
    producers::{Refusal, StoredBatch, WINDOW},
};

impl World {
    /// How a producer numbers its next batch.
    pub(super) fn next(&self, (id, numbering): (u64, Numbering), anew: bool) -> ProducerStamp {
        let id = ProducerId::new(id).unwrap();
        let last = self.window(id).last().copied();
        let epoch = last.map_or(0, |last| u64::from(last.epoch.get()));
        let base = last.map_or(0, |last| match numbering {
            Numbering::Dense => last.first + last.record_count,
            Numbering::ByRequest => last.first + 1,
        });
        let (epoch, base) = match anew && last.is_some() {
            true => (epoch + 1, if id.is_named() { base } else { 0 }),
            false => (epoch, base),
        };
        ProducerStamp { id, epoch: ProducerEpoch::new(epoch).unwrap(), base, numbering }
    }

    /// What is to be known of a producer, from the list alone: without a name, only what its highest epoch sent.
    pub(super) fn window(&self, id: ProducerId) -> Vec<StoredBatch> {
        let of = self.staged.iter().filter_map(|staged| {
            let claim = staged.claim.filter(|claim| claim.stamp.id == id)?;
            Some(StoredBatch {
                epoch: claim.stamp.epoch,
                first: claim.stamp.base,
                record_count: staged.times.len() as u32,
                base_offset: offset(staged.base),
                last_offset: offset(staged.end() - 1),
                append_time: Timestamp(staged.append_time),
                content_hash: claim.content_hash,
            })
        });
        let mut all: Vec<StoredBatch> = of.collect();
        let newest = all.iter().map(|batch| batch.epoch).max();
        all.retain(|batch| id.is_named() || Some(batch.epoch) == newest);
        all.split_off(all.len().saturating_sub(WINDOW))
    }

    pub(super) fn repeat(&mut self, id: u64, back: usize) {
        let id = ProducerId::new(id).unwrap();
        let window = self.window(id);
        let Some(known) = window.len().checked_sub(back + 1).map(|at| window[at]) else { return };
        self.done.repeated += 1;
        let at = self.staged.partition_point(|staged| staged.base < known.base_offset.get());
        let (batch, claim) = (self.staged[at].batch.clone(), self.staged[at].claim);
        let current = window[window.len() - 1].epoch;
        if known.epoch < current {
            // With a name the batches of older epochs are known, and fenced.
            let refusal = self.refused(claim.unwrap().stamp);
            assert_eq!(refusal, Refusal::Fenced { got: known.epoch, current });
            return;
        }
        let offered = self.log().offer(&batch, claim.as_ref(), None, Timestamp(i64::MAX)).unwrap();
        let duplicate = Offered::Duplicate {
            offsets: Some((known.base_offset, known.last_offset)),
            append_time: known.append_time,
            depends_on: offset(known.last_offset.get() + 1),
        };
        assert_eq!(offered, duplicate);
    }

    /// A read, a count and look-ups by time and by offset.
    pub(super) fn look(&self, from: u8, to: u8, jitter: i64, bytes: usize) {
        let log = &self.server.as_ref().unwrap().log;
        let (reader, LogEnds { start, durable, .. }) = (log.reader(), self.ends());
        let within = |share: u8| start.get() + durable.since(start) * u64::from(share) / 255;
        let (from, to) = (within(from.min(to)), within(from.max(to)));
        self.read(from, to, bytes);
        let count = reader.count(offset(from), offset(to), Access::Blocking).unwrap();
        assert_eq!(count.records, to - from, "{from} to {to}");

        let seen = self.staged.iter().flat_map(|staged| (staged.base..).zip(&staged.times));
        let seen = seen.filter(|(at, _)| (start.get()..durable.get()).contains(at));
        let seen: Vec<(u64, i64)> = seen.map(|(at, time)| (at, *time)).collect();
        let middle = seen.get(seen.len() * (from as usize % 7) / 7).map_or(self.now, |(_, time)| *time);
        let wanted = middle + jitter / 10;
        let first = seen.iter().find(|(_, time)| *time >= wanted);
        let first = first.map(|(at, time)| TimedOffset { offset: offset(*at), time: Timestamp(*time) });
        let found = reader.find_time(Timestamp(wanted), durable, Access::Blocking).unwrap();
        assert_eq!(found, first, "the first at or after {wanted}");
        let largest = seen.iter().map(|(_, time)| Timestamp(*time)).max();
        assert_eq!(reader.max_time(durable, Access::Blocking).unwrap(), largest);

        let at = self.staged.partition_point(|staged| staged.end() <= from);
        let appended = (from < durable.get()).then(|| Timestamp(self.staged[at].append_time));
        if appended.is_some() {
            assert_eq!(reader.append_time_at(offset(from), durable, Access::Blocking).unwrap(), appended);
        }
    }

    /// What lies there is what was sent, byte for byte.
    pub(super) fn read(&self, mut from: u64, until: u64, bytes: usize) {
        let reader = self.server.as_ref().unwrap().log.reader();
        while from < until {
            let range = ReadRange { from: offset(from), until: offset(until), bytes };
            let batches = reader.read(range, Access::Blocking).unwrap();
            assert!(!batches.is_empty(), "nothing at {from}, though the end is {until}");
            for found in batches {
                let at = self.staged.partition_point(|staged| staged.end() <= from);
                let sent = &self.staged[at];
                assert_eq!(found.batch.base_offset(), offset(sent.base), "the batch that {from} is in");
                assert_eq!(found.append_time, Timestamp(sent.append_time), "at {from}");
                // From the magic on: before it there is what a server stamps.
                assert_eq!(found.batch.bytes()[16..], sent.batch.bytes()[16..], "at {from}");
                from = sent.end();
            }
        }
    }

    /// What is known of producers is what the list says, also of what was deleted.
    pub(super) fn check_producers(&mut self) {
        for (number, numbering) in PRODUCERS {
            let id = ProducerId::new(number).unwrap();
            let window = self.window(id);
            let found = self.log().producer(id).map(|entry| {
                let batches: Vec<StoredBatch> = entry.batches().copied().collect();
                (entry.epoch(), entry.numbering(), batches)
            });
            let wanted = window.last().map(|last| (last.epoch, numbering, window.clone()));
            assert_eq!(found, wanted, "producer {number}");
            for back in 0..window.len() {
                self.repeat(number, back);
            }
            let Some(last) = window.last() else { continue };
            if last.epoch > ProducerEpoch::ZERO {
                let epoch = ProducerEpoch::new(u64::from(last.epoch.get()) - 1).unwrap();
                let older = ProducerStamp { epoch, ..self.next((number, numbering), false) };
                let refusal = self.refused(older);
                assert_eq!(refusal, Refusal::Fenced { got: epoch, current: last.epoch });
            }
            if numbering == Numbering::Dense {
                let next = self.next((number, numbering), false);
                let (expected, got) = (next.base, next.base + 1);
                let refusal = self.refused(ProducerStamp { base: got, ..next });
                assert_eq!(refusal, Refusal::SequenceGap { expected, got });
            }
        }
    }

    fn refused(&mut self, stamp: ProducerStamp) -> Refusal {
        let batch = build(BatchBuilder::new(Compression::None).producer(stamp), &values(1, 1, 0), 0);
        let claim = Claim::of(batch.header(), Some(7));
        match self.log().offer(&batch, claim.as_ref(), None, Timestamp(0)) {
            Err(StageError::Producer(refusal)) => refusal,
            other => panic!("{stamp:?}: {other:?}"),
        }
    }
}
