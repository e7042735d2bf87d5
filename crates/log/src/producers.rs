//! The deduplication table of one partition: who wrote here, and which of its batches are known. The rules are
//! those of Kafka's `ProducerStateEntry` and `ProducerAppendInfo`, with a longer window, and ours for batches
//! that are numbered by request.
//!
//! The table is pure. A batch is first checked, then applied when it is staged; it is undone if it could not be
//! written, and settled once it was.
//!
//! Not here: the fence of named producers, which the caller checks before; the session that keeps the numbers
//! of requests dense over all partitions (`rimstone-broker`); files.
//!
//! # The body of a snapshot
//! Big-endian. The file around it (magic, position, checksum) is `snapshot`'s.
//!
//! | bytes | field |
//! |---|---|
//! | 4 | producers that follow |
//!
//! Each producer, in ascending order of id:
//!
//! | bytes | field |
//! |---|---|
//! | 8 | producer id |
//! | 1 | numbering: 0 dense, 1 by request |
//! | 4 | what lies directly before the window and is known to be stored: sequences (dense), batches (by request); at most 2^30 - 1 |
//! | 1 | batches that follow, 1 to 64 |
//!
//! Each batch, oldest first:
//!
//! | bytes | field |
//! |---|---|
//! | 2 | producer epoch |
//! | 4 | first sequence, or request number |
//! | 4 | record count |
//! | 8 | offset of the first record |
//! | 4 | offset of the last record, less that of the first |
//! | 8 | append time, milliseconds |
//! | 1 | 1 if a content hash follows, 0 if zeros do |
//! | 8 | content hash |

mod ages;
mod entry;
mod snapshot;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, time::Duration};

use rimstone_record::{BatchHeader, ProducerStamp};
use rimstone_types::{Numbering, Offset, ProducerEpoch, ProducerId, Timestamp};

pub use entry::{Entry, StoredBatch};
pub use snapshot::DecodeError;

use ages::Ages;
use entry::Resend;

/// Batches remembered per producer. Kafka keeps 5, which bounds the batches in flight; 64 lets a client
/// pipeline over a long line, and one producer still takes less than 4 KiB.
pub const WINDOW: usize = 64;

/// What a batch says of its producer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// Who wrote it, in which epoch, and which of its batches it is.
    pub stamp: ProducerStamp,
    /// How many sequences it takes: its records, as many as it had when it was written.
    pub record_count: u32,
    /// The hash of its content; needed for numbering by request only.
    pub content_hash: Option<u64>,
}

impl Claim {
    /// The claim of a batch, if it has a producer. Counts offsets rather than records, which is the same until
    /// compaction takes records away.
    pub fn of(header: &BatchHeader, content_hash: Option<u64>) -> Option<Self> {
        let stamp = header.producer?;
        Some(Self { stamp, record_count: header.last_offset_delta.saturating_add(1), content_hash })
    }
}

/// Bounds on the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Producers remembered. Beyond it new ones are refused.
    pub producers: usize,
    /// How long a producer without a name is remembered after its last batch.
    pub expiry: Duration,
    /// A producer that wrote within this time is never dropped: it may still send a batch again.
    pub protected: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        const HOUR: Duration = Duration::from_secs(60 * 60);
        // With full windows 10,000 producers take less than 40 MiB.
        Self { producers: 10_000, expiry: HOUR * 24, protected: HOUR }
    }
}

/// What to do with a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is new.
    Append,
    /// It is stored, or staged, already.
    Duplicate {
        /// The offsets of its first and its last record; `None` if it is older than the window.
        offsets: Option<(Offset, Offset)>,
        /// When it was taken; for one older than the window, a time at or after that.
        append_time: Timestamp,
        /// The log must be durable up to here before this is told.
        depends_on: Offset,
    },
}

/// Why a batch is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The sequence leaves a gap, or overlaps what is stored without being it.
    #[error("sequence {got} is out of order: expected {expected}")]
    SequenceGap {
        /// What should have come.
        expected: u32,
        /// What came.
        got: u32,
    },
    /// Nothing is known of the producer, and its first sequence is not 0.
    #[error("nothing is known of the producer, and its first sequence is {got}, not 0")]
    UnknownProducer {
        /// What came.
        got: u32,
    },
    /// A newer epoch wrote here.
    #[error("producer epoch {got} is fenced; the epoch in force is {current}")]
    Fenced {
        /// What came.
        got: ProducerEpoch,
        /// The newer epoch.
        current: ProducerEpoch,
    },
    /// The request number was used for other content, or for none here.
    #[error("request number {got} was used before for other content; the last is {last}")]
    NumberReused {
        /// What came.
        got: u32,
        /// The last number stored.
        last: u32,
    },
    /// The request number lies before the window, so that nobody can tell whether it was stored.
    #[error("request number {got} is too old to be recognised; the last is {last}")]
    NumberTooOld {
        /// What came.
        got: u32,
        /// The last number stored.
        last: u32,
    },
    /// An earlier request failed here and must be sent again first.
    #[error("request number {got} cannot be taken before {expected}, which failed, is sent again")]
    ResendFirst {
        /// The number that failed.
        expected: u32,
        /// What came.
        got: u32,
    },
    /// Dense numbering and numbering by request cannot be mixed by one producer.
    #[error("the producer's batches here are numbered {stored}, this one is numbered {got}")]
    NumberingMixed {
        /// What is stored.
        stored: Numbering,
        /// What came.
        got: Numbering,
    },
    /// The bound on producers remembered is reached.
    #[error("{limit} producers are remembered in this partition already")]
    TooManyProducers {
        /// The bound.
        limit: u64,
    },
}

/// What takes an applied batch back out of the table.
#[derive(Debug)]
pub struct Undo {
    claim: Claim,
    before: Before,
}

/// What was there before a batch was applied.
#[derive(Debug)]
enum Before {
    /// The batch went behind others; their epoch and whether one had to be sent again first.
    Others { epoch: ProducerEpoch, resend: Option<Resend> },
    /// The batch began a window of its own; this was there instead.
    Fresh(Option<Box<Entry>>),
}

/// The producers of one partition.
#[derive(Debug, Clone)]
pub struct ProducerTable {
    limits: Limits,
    producers: BTreeMap<ProducerId, Entry>,
    /// How long those without a name have been idle.
    ages: Ages,
}

impl ProducerTable {
    /// An empty table.
    pub fn new(limits: Limits) -> Self {
        Self { limits, producers: BTreeMap::new(), ages: Ages::default() }
    }

    /// What to do with a batch. The caller has checked the fence of a named producer.
    ///
    /// # Errors
    /// [`Refusal`]. It cites what has been applied, so it must not be told before that is durable.
    pub fn check(&mut self, claim: &Claim, now: Timestamp) -> Result<Verdict, Refusal> {
        if let Some(entry) = self.producers.get(&claim.stamp.id) {
            return entry.check(claim);
        }
        if self.producers.len() >= self.limits.producers {
            self.ages.look(now);
            if self.expired().next().is_none() {
                return Err(Refusal::TooManyProducers { limit: self.limits.producers as u64 });
            }
        }
        entry::check_first(claim)
    }

    /// Adds a batch that is staged. Takes whatever a log may contain, in the order of the log, so that a table
    /// is rebuilt with it too (see [`ProducerTable::replay`]).
    pub fn apply(&mut self, claim: &Claim, base: Offset, last: Offset, append_time: Timestamp) -> Undo {
        let id = claim.stamp.id;
        let batch = StoredBatch::new(claim, base, last, append_time);
        if self.producers.len() >= self.limits.producers && !self.producers.contains_key(&id) {
            self.drop_one_expired();
        }
        let before = match self.producers.get_mut(&id) {
            Some(entry) => entry.push(claim, batch),
            None => {
                self.producers.insert(id, Entry::new(claim, batch));
                Before::Fresh(None)
            }
        };
        self.note_age(id);
        Undo { claim: *claim, before }
    }

    /// Adds a batch that is read from the log, where it needs no undoing.
    pub fn replay(&mut self, claim: &Claim, base: Offset, last: Offset, append_time: Timestamp) {
        drop(self.apply(claim, base, last, append_time));
        self.settle(claim.stamp.id);
    }

    /// Takes a batch out again that could not be written: the one applied last among those that are neither
    /// undone nor settled. After it a producer that numbers its requests must send that number again before
    /// any higher one.
    pub fn undo(&mut self, undo: Undo) {
        let Undo { claim, before } = undo;
        let id = claim.stamp.id;
        let Some(entry) = self.producers.get_mut(&id) else {
            // Forgotten meanwhile.
            return;
        };
        if !entry.pop(&claim, before) {
            self.producers.remove(&id);
            self.ages.forget(id);
        }
    }

    /// One batch of a producer is written: the oldest that is neither settled nor undone. Trims the window.
    /// Call it once for each batch applied.
    pub fn settle(&mut self, id: ProducerId) {
        if let Some(entry) = self.producers.get_mut(&id) {
            entry.settle();
        }
    }

    /// What is known of a producer.
    pub fn get(&self, id: ProducerId) -> Option<&Entry> {
        self.producers.get(&id)
    }

    /// All producers, lowest id first.
    pub fn iter(&self) -> impl Iterator<Item = (ProducerId, &Entry)> {
        self.producers.iter().map(|(&id, entry)| (id, entry))
    }

    /// How many producers are remembered.
    pub fn len(&self) -> usize {
        self.producers.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.producers.is_empty()
    }

    /// Forgets a producer whose name was deleted. Answers whether it was known.
    pub fn forget(&mut self, id: ProducerId) -> bool {
        self.ages.forget(id);
        self.producers.remove(&id).is_some()
    }

    /// Forgets the producers without a name that have been idle for too long. Answers how many. Of the time since the
    /// last call an hour counts at most: a clock that jumps makes nobody idle.
    pub fn expire(&mut self, now: Timestamp) -> usize {
        self.ages.look(now);
        let expired: Vec<ProducerId> = self.expired().collect();
        for &id in &expired {
            self.forget(id);
        }
        expired.len()
    }

    /// Those that may be dropped, the longest idle first.
    fn expired(&self) -> impl Iterator<Item = ProducerId> {
        let idle_max = self.limits.expiry.max(self.limits.protected);
        self.ages.idle(idle_max).filter(|id| self.producers.get(id).is_none_or(|entry| !entry.has_staged()))
    }

    fn drop_one_expired(&mut self) {
        let oldest = self.expired().next();
        if let Some(id) = oldest {
            self.forget(id);
        }
    }

    fn note_age(&mut self, id: ProducerId) {
        if let Some(entry) = self.producers.get(&id)
            && !id.is_named()
        {
            self.ages.active(id, entry.last_append());
        }
    }
}
