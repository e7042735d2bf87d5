//! Lag in numbers: what follows from a committed offset, the ends of a log and what was counted between them.
//!
//! Not here: counting (the store), the table that keeps what was counted (`rimstone-broker`), rates and status.

use rimstone_types::{Offset, Timestamp};

/// How far behind a reader is in one partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Lag {
    /// Records that are really there and not yet consumed.
    pub records: u64,
    /// Milliseconds since the first of them was taken; 0 without any.
    pub millis: u64,
}

/// What was counted from where a reader stands up to the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Unread {
    /// Records that are really there: gaps and control batches do not count.
    pub records: u64,
    /// The append time of the first of them; `None` without any.
    pub first_append: Option<Timestamp>,
}

/// The lag of a group in a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TopicLag {
    /// Records, summed over the partitions.
    pub records: u64,
    /// Milliseconds, the most of any partition.
    pub millis: u64,
    /// Partitions added.
    pub partitions: u32,
}

/// Where a reader really goes on: nothing below log start can be read, and without a committed offset everything
/// counts.
pub fn reads_from(committed: Option<Offset>, log_start: Offset) -> Offset {
    committed.map_or(log_start, |committed| committed.max(log_start))
}

/// Whether retention has taken records that the reader had not consumed, as far as offsets tell.
pub fn is_overtaken(committed: Option<Offset>, log_start: Offset) -> bool {
    committed.is_some_and(|committed| committed < log_start)
}

impl Unread {
    /// The lag at a time. A clock that has gone back makes no negative lag.
    pub fn at(&self, now: Timestamp) -> Lag {
        let since = |first: Timestamp| u64::try_from(now.millis_since(first)).unwrap_or(0);
        match self.first_append {
            Some(first) if self.records > 0 => Lag { records: self.records, millis: since(first) },
            _ => Lag { records: self.records, millis: 0 },
        }
    }

    /// The same when more was appended behind it.
    #[must_use]
    pub fn and(&self, appended: Unread) -> Self {
        let first_append = if self.records > 0 { self.first_append } else { appended.first_append };
        Self { records: self.records.saturating_add(appended.records), first_append }
    }
}

impl TopicLag {
    /// Adds a partition.
    pub fn add(&mut self, lag: Lag) {
        self.records = self.records.saturating_add(lag.records);
        self.millis = self.millis.max(lag.millis);
        self.partitions += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offset(value: u64) -> Offset {
        Offset::new(value).unwrap()
    }

    #[test]
    fn a_commit_below_log_start_counts_from_there_and_is_told() {
        for (committed, start, from, overtaken) in
            [(None, 5, 5, false), (Some(4), 5, 5, true), (Some(5), 5, 5, false), (Some(9), 5, 9, false)]
        {
            let committed = committed.map(offset);
            assert_eq!(reads_from(committed, offset(start)), offset(from));
            assert_eq!(is_overtaken(committed, offset(start)), overtaken);
        }
    }

    #[test]
    fn time_lag_is_that_of_the_first_unread_record_and_nothing_when_caught_up() {
        let unread = |records, first| Unread { records, first_append: first };
        let behind = unread(3, Some(Timestamp(1000)));
        assert_eq!(behind.at(Timestamp(1700)), Lag { records: 3, millis: 700 });
        assert_eq!(behind.at(Timestamp(900)), Lag { records: 3, millis: 0 }, "the clock has gone back");
        assert_eq!(unread(0, None).at(Timestamp(5000)), Lag::default());
        assert_eq!(unread(0, Some(Timestamp(1))).at(Timestamp(5000)), Lag::default());
        let more = unread(2, Some(Timestamp(1500)));
        assert_eq!(behind.and(more), unread(5, Some(Timestamp(1000))));
        assert_eq!(unread(0, None).and(more), more);
        assert_eq!(behind.and(Unread::default()), behind);
    }

    #[test]
    fn a_topic_has_the_sum_of_the_records_and_the_most_time() {
        let mut topic = TopicLag::default();
        topic.add(Lag { records: 5, millis: 10 });
        topic.add(Lag { records: 1, millis: 700 });
        topic.add(Lag::default());
        assert_eq!(topic, TopicLag { records: 6, millis: 700, partitions: 3 });
    }
}
