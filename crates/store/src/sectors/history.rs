//! What was sent, acknowledged and seen, and when; and whether what a store shows agrees with it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::Range,
};

use bytes::Bytes;
use rimstone_record::{Batch, ProducerStamp};
use rimstone_types::{Offset, PartitionId, ProducerId, Timestamp, TopicId};

use crate::PartitionConfig;

/// A moment: a run of the store over one recorded directory, and a place in its journal.
pub(crate) type At = (u32, usize);

/// What is left of what was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cut {
    /// What was written is there.
    Kill,
    /// What a sync covers is there.
    Power,
}

/// What a topic of a schedule is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flavour {
    /// Retention by size and age, producers with numbers.
    Plain,
    /// Compacted.
    Keyed,
    /// Acknowledged when written.
    Written,
}

/// A record that was sent; it carries its number in a header.
#[derive(Debug, Clone)]
pub(crate) struct Sent {
    pub(crate) partition: PartitionId,
    pub(crate) batch: usize,
    pub(crate) key: Option<Bytes>,
    pub(crate) value: Option<Bytes>,
}

/// What became of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Nobody knows.
    Open,
    /// Acknowledged, first and last offset.
    Acked(At, u64, u64),
    /// It was told that nothing of it is stored.
    Refused(At),
}

/// A batch that was sent.
#[derive(Debug, Clone)]
pub(crate) struct SentBatch {
    pub(crate) batch: Batch,
    /// The numbers of its records.
    pub(crate) ids: Range<u64>,
    pub(crate) stamp: Option<ProducerStamp>,
    pub(crate) sent: At,
    pub(crate) fate: Fate,
}

/// What is known of an offset.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Known {
    pub(crate) id: u64,
    pub(crate) since: At,
}

/// A log start that was asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Start {
    pub(crate) asked: At,
    pub(crate) done: Option<At>,
    pub(crate) offset: u64,
}

#[derive(Debug, Clone)]
pub(crate) struct PartitionHistory {
    pub(crate) flavour: Flavour,
    pub(crate) config: PartitionConfig,
    pub(crate) asked: At,
    pub(crate) made: Option<At>,
    pub(crate) batches: Vec<SentBatch>,
    pub(crate) log: BTreeMap<u64, Known>,
    pub(crate) starts: Vec<Start>,
}

/// A record as a reader got it.
#[derive(Debug, Clone)]
pub(crate) struct Shown {
    pub(crate) offset: u64,
    pub(crate) id: u64,
    pub(crate) key: Option<Bytes>,
    pub(crate) value: Option<Bytes>,
    pub(crate) stamp: Option<(ProducerStamp, u32)>,
    pub(crate) time: Timestamp,
}

/// Everything that was done and told.
#[derive(Debug, Clone, Default)]
pub(crate) struct History {
    pub(crate) partitions: BTreeMap<PartitionId, PartitionHistory>,
    /// When it was asked for, and when it was done.
    pub(crate) deleted: BTreeMap<TopicId, (At, Option<At>)>,
    pub(crate) sent: HashMap<u64, Sent>,
}

impl History {
    pub(crate) fn partition(&mut self, id: PartitionId) -> &mut PartitionHistory {
        self.partitions.get_mut(&id).expect("schedules use partitions that they have made")
    }

    /// An answer has come: these records have these offsets.
    pub(crate) fn acked(
        &mut self,
        id: PartitionId,
        batch: usize,
        at: At,
        base: u64,
        last: u64,
    ) -> Result<(), String> {
        let partition = self.partition(id);
        if let Fate::Acked(_, known, _) = partition.batches[batch].fate
            && known != base
        {
            return Err(format!("partition {id}: a batch at {known} was answered again with {base}"));
        }
        let sent = &mut partition.batches[batch];
        let told = match sent.fate {
            Fate::Acked(before, ..) => before.min(at),
            _ => at,
        };
        sent.fate = Fate::Acked(told, base, last);
        let ids = sent.ids.clone();
        if last - base + 1 != ids.end - ids.start {
            return Err(format!("partition {id}: records {ids:?} at {base} to {last}"));
        }
        for (offset, number) in (base..).zip(ids) {
            self.learn(id, offset, number, at)?;
        }
        Ok(())
    }

    /// An offset was seen with this record, and has it from now on for ever.
    pub(crate) fn learn(&mut self, id: PartitionId, offset: u64, number: u64, at: At) -> Result<(), String> {
        let known = self.partition(id).log.entry(offset).or_insert(Known { id: number, since: at });
        if known.id != number {
            return Err(format!(
                "partition {id}: offset {offset} had record {}, now it has {number}",
                known.id
            ));
        }
        known.since = known.since.min(at);
        Ok(())
    }

    /// Where in the journal of a life something was promised.
    pub(crate) fn promises(&self, life: u32) -> Vec<usize> {
        let mut all = Vec::new();
        for partition in self.partitions.values() {
            all.extend(partition.made);
            all.extend(partition.starts.iter().filter_map(|start| start.done));
            all.extend(partition.batches.iter().filter_map(|batch| match batch.fate {
                Fate::Acked(told, ..) | Fate::Refused(told) => Some(told),
                Fate::Open => None,
            }));
        }
        all.extend(self.deleted.values().filter_map(|(_, done)| *done));
        let mut places: Vec<usize> = all.into_iter().filter(|at| at.0 == life).map(|at| at.1).collect();
        places.sort_unstable();
        places
    }

    /// What was known at an earlier moment.
    pub(crate) fn as_of(&self, at: At) -> Self {
        let mut then = Self::default();
        let mut first_unsent = u64::MAX;
        for (id, partition) in self.partitions.iter().filter(|(_, partition)| partition.asked <= at) {
            let sent = partition.batches.partition_point(|batch| batch.sent <= at);
            first_unsent =
                first_unsent.min(partition.batches.get(sent).map_or(u64::MAX, |batch| batch.ids.start));
            let mut batches = partition.batches[..sent].to_vec();
            for batch in &mut batches {
                if let Fate::Acked(told, ..) | Fate::Refused(told) = batch.fate
                    && told > at
                {
                    batch.fate = Fate::Open;
                }
            }
            let known = partition.log.iter().filter(|(_, known)| known.since <= at);
            let starts = partition.starts.iter().filter(|start| start.asked <= at);
            let partition = PartitionHistory {
                flavour: partition.flavour,
                config: partition.config.clone(),
                asked: partition.asked,
                made: partition.made.filter(|made| *made <= at),
                batches,
                log: known.map(|(offset, known)| (*offset, *known)).collect(),
                starts: starts
                    .map(|start| Start { done: start.done.filter(|done| *done <= at), ..*start })
                    .collect(),
            };
            then.partitions.insert(*id, partition);
        }
        let deleted = self.deleted.iter().filter(|(_, (asked, _))| *asked <= at);
        then.deleted =
            deleted.map(|(id, (asked, done))| (*id, (*asked, done.filter(|done| *done <= at)))).collect();
        let sent = self.sent.iter().filter(|(number, _)| **number < first_unsent);
        then.sent = sent.map(|(number, sent)| (*number, sent.clone())).collect();
        then
    }

    /// Whether a partition may be missing from the store, and whether it may be there.
    pub(crate) fn may_be(&self, id: PartitionId) -> (bool, bool) {
        let Some(partition) = self.partitions.get(&id) else { return (true, false) };
        let deleted = self.deleted.get(&id.topic);
        (partition.made.is_none() || deleted.is_some(), !deleted.is_some_and(|(_, done)| done.is_some()))
    }

    /// Whether what a partition shows agrees with what is known.
    pub(crate) fn check(
        &self,
        id: PartitionId,
        cut: Cut,
        (start, end): (u64, u64),
        shown: &[Shown],
    ) -> Result<(), String> {
        let partition = &self.partitions[&id];
        let wrong = |what: String| Err(format!("partition {id} ({:?}): {what}", partition.flavour));
        self.check_records(id, shown).or_else(wrong)?;
        check_numbers(shown, partition.flavour == Flavour::Keyed).or_else(wrong)?;
        let starts = partition.starts.iter();
        let most = starts.clone().map(|start| start.offset).max();
        let least = starts.filter(|start| start.done.is_some()).map(|start| start.offset).max();
        if start > most.unwrap_or(0) || start < least.unwrap_or(0) {
            return wrong(format!("log start {start}, asked for {most:?}, done {least:?}"));
        }
        if partition.flavour != Flavour::Keyed {
            let dense = shown.iter().map(|record| record.offset).eq(start..end);
            if !dense {
                let offsets: Vec<u64> = shown.iter().map(|record| record.offset).collect();
                return wrong(format!("{start} to {end} shows only {offsets:?}"));
            }
        }
        if partition.flavour == Flavour::Written && cut == Cut::Power {
            return Ok(());
        }
        let by_offset: HashMap<u64, u64> = shown.iter().map(|record| (record.offset, record.id)).collect();
        for (offset, known) in partition.log.range(start..) {
            if *offset >= end {
                return wrong(format!(
                    "offset {offset} was known at {:?} and is gone: the end is {end}",
                    known.since
                ));
            }
            match by_offset.get(offset) {
                Some(found) if *found == known.id => {}
                None if partition.flavour == Flavour::Keyed => {}
                found => return wrong(format!("offset {offset} had record {}, and now {found:?}", known.id)),
            }
        }
        if partition.flavour == Flavour::Keyed {
            self.check_last(id, end, shown).or_else(wrong)?;
        }
        Ok(())
    }

    fn check_records(&self, id: PartitionId, shown: &[Shown]) -> Result<(), String> {
        let partition = &self.partitions[&id];
        let mut seen = BTreeSet::new();
        let mut before = None;
        for record in shown {
            let Shown { offset, id: number, .. } = record;
            if before.is_some_and(|before| before >= *offset) {
                return Err(format!("offset {offset} comes behind {before:?}"));
            }
            before = Some(*offset);
            let Some(sent) = self.sent.get(number).filter(|sent| sent.partition == id) else {
                return Err(format!("offset {offset} has record {number}, which nobody sent here"));
            };
            if (&sent.key, &sent.value) != (&record.key, &record.value) {
                return Err(format!("offset {offset}, record {number}: other bytes than were sent"));
            }
            if !seen.insert(*number) {
                return Err(format!("record {number} is there twice, again at {offset}"));
            }
            if let Fate::Refused(_) = partition.batches[sent.batch].fate {
                return Err(format!(
                    "offset {offset} has record {number}, of which it was said that it is not stored"
                ));
            }
        }
        Ok(())
    }

    /// The last record of every key is what it was; or gone, if it is a tombstone.
    fn check_last(&self, id: PartitionId, end: u64, shown: &[Shown]) -> Result<(), String> {
        let known = self.partitions[&id].log.range(..end);
        let mut all: BTreeMap<u64, u64> = known.map(|(offset, known)| (*offset, known.id)).collect();
        all.extend(shown.iter().map(|record| (record.offset, record.id)));
        let mut wanted = BTreeMap::new();
        for (offset, number) in &all {
            let sent = &self.sent[number];
            wanted.insert(sent.key.clone(), (*offset, sent.value.is_none()));
        }
        let found: BTreeMap<_, _> = shown.iter().map(|record| (record.key.clone(), record.offset)).collect();
        for (key, (offset, tombstone)) in wanted {
            match found.get(&key) {
                Some(last) if *last == offset => {}
                None if tombstone => {}
                last => {
                    return Err(format!(
                        "key {key:?} was last at {offset} (tombstone: {tombstone}), and is now at {last:?}"
                    ));
                }
            }
        }
        Ok(())
    }

    /// What a producer has sent, in words.
    pub(crate) fn told(&self, id: PartitionId, producer: ProducerId) -> String {
        let batches = self.partitions[&id].batches.iter().filter_map(|sent| {
            let stamp = sent.stamp.filter(|stamp| stamp.id == producer)?;
            let until = stamp.base + sent.batch.header().record_count;
            Some(format!(
                "epoch {} numbers {}..{until} sent {:?} {:?}",
                stamp.epoch, stamp.base, sent.sent, sent.fate
            ))
        });
        let mut batches: Vec<String> = batches.collect();
        // The last ones tell most.
        batches.drain(..batches.len().saturating_sub(12));
        batches.join(", ")
    }

    /// What the client of a producer would do now: its last acknowledged batch, and those of which it knows nothing.
    pub(crate) fn resends(&self, id: PartitionId) -> Vec<(ProducerId, Option<usize>, Vec<usize>)> {
        let mut of: BTreeMap<ProducerId, (Option<usize>, Vec<usize>)> = BTreeMap::new();
        // What was refused leaves a hole in the numbers: what was sent behind it can only be refused too.
        let mut holes: BTreeMap<ProducerId, ProducerStamp> = BTreeMap::new();
        for (number, batch) in self.partitions[&id].batches.iter().enumerate() {
            let Some(stamp) = batch.stamp else { continue };
            let (last, open) = of.entry(stamp.id).or_default();
            match batch.fate {
                Fate::Acked(..) => {
                    *last = Some(number);
                    holes.remove(&stamp.id);
                }
                Fate::Refused(_) => {
                    holes.entry(stamp.id).or_insert(stamp);
                }
                Fate::Open => {
                    let hole = holes.get(&stamp.id).filter(|hole| hole.epoch == stamp.epoch);
                    if hole.is_none_or(|hole| hole.base == stamp.base) {
                        open.push(number);
                        holes.remove(&stamp.id);
                    }
                }
            }
        }
        // One of an older epoch is fenced, if the newer one is stored.
        let epoch = |number: usize| self.partitions[&id].batches[number].stamp.map(|stamp| stamp.epoch);
        of.into_iter()
            .map(|(producer, (last, open))| {
                let last = last.filter(|last| open.iter().all(|open| epoch(*open) == epoch(*last)));
                (producer, last, open)
            })
            .collect()
    }
}

/// Of each producer: no older epoch behind a newer one, and within an epoch numbers in order, without holes unless
/// `holes`.
fn check_numbers(shown: &[Shown], holes: bool) -> Result<(), String> {
    let mut last: HashMap<ProducerId, (ProducerStamp, u32)> = HashMap::new();
    for record in shown {
        let Some((stamp, sequence)) = record.stamp else { continue };
        if let Some((before, number)) = last.insert(stamp.id, (stamp, sequence)) {
            let next = match before.epoch.cmp(&stamp.epoch) {
                std::cmp::Ordering::Less => sequence == 0 || holes,
                std::cmp::Ordering::Equal => sequence == number + 1 || (holes && sequence > number),
                std::cmp::Ordering::Greater => false,
            };
            if !next {
                return Err(format!(
                    "producer {} epoch {} number {sequence} at {} comes behind epoch {} number {number}",
                    stamp.id, stamp.epoch, record.offset, before.epoch
                ));
            }
        }
    }
    Ok(())
}

/// An offset of a test.
pub(crate) fn offset(value: u64) -> Offset {
    Offset::new(value).unwrap_or(Offset::MAX)
}
