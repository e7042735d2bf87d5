//! Which records of a batch stay. Pure: batches in, batches out.

use rimstone_record::{Batch, BatchError, BatchHeader, Record};
use rimstone_types::{Offset, Timestamp};

use super::{CompactionSettings, Plan, keys::KeyMap};
use crate::reader::STORED;

/// Learns the last offset of each key in the dirty part of a log, then judges the batches of the whole log below
/// the end of what it learned.
#[derive(Debug)]
pub struct Sieve {
    keys: KeyMap,
    /// Records below are deleted.
    start: Offset,
    /// What lies from here on was not learned, and is not judged.
    end: Offset,
    /// Tombstones from here on stay: records of their keys may lie before them where nobody can look.
    tombstones_until: Option<Offset>,
    now: Timestamp,
    /// Until when a tombstone that is met for the first time stays.
    horizon: Timestamp,
    /// Batches whose numbers are still remembered, by their base offsets: they stay, empty if need be. In order once
    /// [`Sieve::order`] was called.
    numbered: Vec<Offset>,
}

/// What becomes of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Judged {
    /// It stays byte for byte.
    Same {
        /// When its tombstones may go, if it has any.
        horizon: Option<Timestamp>,
    },
    /// It stays with fewer records, none perhaps, or is marked with a delete horizon.
    Changed {
        /// As it is from now on.
        batch: Batch,
        /// Records that went.
        removed: u32,
        /// When its tombstones may go, if it has any.
        horizon: Option<Timestamp>,
    },
    /// Nothing of it has to stay.
    Gone {
        /// Records that went.
        removed: u32,
    },
}

impl Sieve {
    /// Nothing is learned yet: everything below `plan.dirty_from` is clean. `numbered` may come in any order: it is put
    /// in order later, for this is done under a lock. `seed` is random.
    pub fn new(
        settings: &CompactionSettings,
        plan: &Plan,
        start: Offset,
        now: Timestamp,
        numbered: Vec<Offset>,
        seed: u64,
    ) -> Self {
        Self {
            keys: KeyMap::new(seed, settings.map_bytes),
            start,
            end: plan.dirty_from,
            tombstones_until: None,
            now,
            horizon: now.saturating_add(settings.delete_retention),
            numbered,
        }
    }

    /// Tombstones from `obstacle` on stay, for records of their keys may lie in it.
    #[must_use]
    pub fn behind(self, obstacle: Option<Offset>) -> Self {
        Self { tombstones_until: obstacle, ..self }
    }

    /// To be called before the first batch is judged, where taking some time does no harm.
    pub fn order(&mut self) {
        self.numbered.sort_unstable();
    }

    /// Learns the keys of the next dirty batch. `false`: they do not fit; what was learned ends before it.
    ///
    /// # Errors
    /// [`BatchError`]: its records cannot be read.
    pub fn learn(&mut self, batch: &Batch) -> Result<bool, BatchError> {
        let header = batch.header();
        if !header.is_control() {
            if !self.keys.fits(header.record_count as usize) {
                return Ok(false);
            }
            for record in batch.records(&STORED)? {
                let record = record?;
                if let Some(key) = &record.key
                    && record.offset >= self.start
                {
                    self.keys.put(key, record.offset);
                }
            }
        }
        self.end = header.next_offset();
        Ok(true)
    }

    /// The end of what was learned.
    pub fn end(&self) -> Offset {
        self.end
    }

    /// What becomes of a batch. A record without a key is the last of none, and stays.
    ///
    /// # Errors
    /// [`BatchError`]: its records cannot be read.
    pub fn judge(&self, batch: &Batch) -> Result<Judged, BatchError> {
        let header = batch.header();
        if header.base_offset >= self.end || header.is_control() {
            return Ok(Judged::Same { horizon: None });
        }
        // Met for the first time, a tombstone gets its time; what has one goes by it.
        let first_time = !header.has_delete_horizon();
        let may_go = self.tombstones_until.is_none_or(|until| header.base_offset < until);
        let expired = !first_time && may_go && header.base_timestamp <= self.now;
        let stays = |record: &Record| {
            record.offset >= self.start
                && record.key.as_ref().is_none_or(|key| self.is_last(key, record.offset))
                && !(expired && record.key.is_some() && record.value.is_none())
        };
        let records = batch.records(&STORED)?;
        let (mut kept, mut tombstones) = (0u32, false);
        for record in records.clone() {
            let record = record?;
            if stays(&record) {
                kept += 1;
                tombstones |= record.key.is_some() && record.value.is_none();
            }
        }
        let removed = header.record_count - kept;
        if kept == 0 {
            return Ok(match (self.numbered.binary_search(&header.base_offset).is_ok(), removed) {
                (false, removed) => Judged::Gone { removed },
                (true, 0) => Judged::Same { horizon: None },
                (true, removed) => Judged::Changed { batch: batch.emptied(), removed, horizon: None },
            });
        }
        let marked = |header: &BatchHeader| {
            (tombstones && header.has_delete_horizon()).then_some(header.base_timestamp)
        };
        let horizon = (first_time && tombstones).then_some(self.horizon);
        if removed == 0 && horizon.is_none() {
            return Ok(Judged::Same { horizon: marked(header) });
        }
        let batch = batch.thinned(records, horizon, stays)?;
        if removed == 0 && !batch.header().has_delete_horizon() {
            return Ok(Judged::Same { horizon: None });
        }
        let horizon = marked(batch.header());
        Ok(Judged::Changed { batch, removed, horizon })
    }

    fn is_last(&self, key: &[u8], offset: Offset) -> bool {
        self.keys.last(key).is_none_or(|last| last <= offset)
    }
}
