//! What the application has in hand of one partition: handed out, and neither committed nor dropped. No I/O,
//! no clock.

use std::{
    collections::VecDeque,
    sync::{Arc, Weak},
};

use parking_lot::Mutex;
use rimstone_types::Offset;
use tokio::sync::Notify;

/// One record that was handed out.
#[derive(Debug)]
struct Held {
    /// Counts up over everything handed out of this partition.
    id: u64,
    offset: Offset,
    /// The application has let go of it.
    dropped: bool,
    /// The application has asked for the next one since.
    asked: bool,
}

impl Held {
    fn is_done(&self) -> bool {
        self.dropped && self.asked
    }
}

#[derive(Debug, Default)]
struct Inner {
    /// In the order of hand-out. What is done is taken out from the front.
    records: VecDeque<Held>,
    next_id: u64,
    /// Records with lower ids were handed out before the last seek.
    since: u64,
    /// Somebody waits until nothing is in hand.
    watched: bool,
    /// With more entries than this it is time to look for those that are done.
    tidy_above: usize,
}

/// The records of one partition that are in hand, for as long as the partition is owned.
#[derive(Debug)]
pub(crate) struct Hand {
    inner: Mutex<Inner>,
    /// Of the driver.
    wake: Arc<Notify>,
}

impl Hand {
    pub(crate) fn new(wake: Arc<Notify>) -> Arc<Self> {
        Arc::new(Self { inner: Mutex::default(), wake })
    }

    /// A record is handed out.
    pub(crate) fn take(self: &Arc<Self>, offset: Offset) -> Lease {
        let mut inner = self.inner.lock();
        let id = inner.next_id;
        inner.next_id += 1;
        inner.records.push_back(Held { id, offset, dropped: false, asked: false });
        Lease { hand: Arc::downgrade(self), id }
    }

    /// The application asks for the next record: what was handed out has been processed, unless it is still
    /// held.
    pub(crate) fn asked(&self) {
        let mut inner = self.inner.lock();
        for held in inner.records.iter_mut().rev().take_while(|held| !held.asked) {
            held.asked = true;
        }
        inner.settle();
    }

    /// Everything before `offset` is committed: it is not in hand any more, held or not.
    pub(crate) fn committed(&self, offset: Offset) {
        let mut inner = self.inner.lock();
        let since = inner.since;
        inner.records.retain(|held| held.id < since || held.offset >= offset);
    }

    /// What is handed out from now on does not follow on what was handed out before.
    pub(crate) fn sought(&self) {
        let mut inner = self.inner.lock();
        inner.since = inner.next_id;
    }

    /// Whether nothing is in hand. From now on the driver is woken when the last record is let go of.
    pub(crate) fn is_empty(&self) -> bool {
        let mut inner = self.inner.lock();
        inner.watched = true;
        inner.records.is_empty()
    }

    /// The same, without a call when it changes.
    pub(crate) fn has_none(&self) -> bool {
        self.inner.lock().records.is_empty()
    }

    /// The lowest offset in hand of what was handed out since the last seek.
    pub(crate) fn lowest(&self) -> Option<Offset> {
        let inner = self.inner.lock();
        // Since a seek offsets only rise.
        let counts = |held: &&Held| held.id >= inner.since && !held.is_done();
        inner.records.iter().find(counts).map(|held| held.offset)
    }

    /// Whether a record was handed out before the last seek.
    fn is_before_seek(&self, id: u64) -> bool {
        id < self.inner.lock().since
    }

    fn dropped(&self, id: u64) {
        let mut inner = self.inner.lock();
        if let Ok(at) = inner.records.binary_search_by_key(&id, |held| held.id) {
            inner.records[at].dropped = true;
        }
        inner.settle();
        let wakes = inner.watched && inner.records.is_empty();
        drop(inner);
        if wakes {
            self.wake.notify_one();
        }
    }
}

impl Inner {
    fn settle(&mut self) {
        while self.records.front().is_some_and(Held::is_done) {
            self.records.pop_front();
        }
        // A record that is held long has many behind it that are done. Twice what is really held is the bound.
        if self.records.len() > self.tidy_above.max(TIDY_MIN) {
            self.records.retain(|held| !held.is_done());
            self.tidy_above = self.records.len() * 2;
        }
    }
}

/// Fewer entries than this cost nothing.
const TIDY_MIN: usize = 1024;

/// That one record is in the application's hand.
#[derive(Debug)]
pub(crate) struct Lease {
    /// Gone once the partition is not owned any more.
    hand: Weak<Hand>,
    id: u64,
}

impl Lease {
    /// Whether the record came from this ownership of the partition.
    pub(crate) fn is_of(&self, hand: &Arc<Hand>) -> bool {
        std::ptr::eq(self.hand.as_ptr(), Arc::as_ptr(hand))
    }

    pub(crate) fn is_before_seek(&self) -> bool {
        self.hand.upgrade().is_some_and(|hand| hand.is_before_seek(self.id))
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(hand) = self.hand.upgrade() {
            hand.dropped(self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hand() -> Arc<Hand> {
        Hand::new(Arc::default())
    }

    fn at(offset: u64) -> Offset {
        Offset::new(offset).unwrap()
    }

    #[test]
    fn a_record_is_in_hand_until_it_is_dropped_and_the_next_is_asked_for() {
        let hand = hand();
        let lease = hand.take(at(7));
        assert!(!hand.is_empty());
        hand.asked();
        assert!(!hand.is_empty(), "it is still held");
        drop(lease);
        assert!(hand.is_empty());

        drop(hand.take(at(8)));
        assert!(!hand.is_empty(), "its value may be worked on");
        assert_eq!(hand.lowest(), Some(at(8)));
        hand.asked();
        assert!(hand.is_empty());
    }

    #[test]
    fn the_lowest_counts_when_records_are_let_go_of_in_another_order() {
        let hand = hand();
        let mut leases: Vec<_> = (0..5)
            .map(|offset| {
                let lease = hand.take(at(offset));
                hand.asked();
                lease
            })
            .collect();
        drop(leases.remove(1));
        drop(leases.remove(2));
        assert_eq!(hand.lowest(), Some(at(0)));
        drop(leases.remove(0));
        assert_eq!(hand.lowest(), Some(at(2)));
        drop(leases);
        assert_eq!(hand.lowest(), None);
        assert!(hand.is_empty());
    }

    #[test]
    fn what_is_committed_is_not_in_hand() {
        let hand = hand();
        let (a, b) = (hand.take(at(1)), hand.take(at(2)));
        hand.committed(at(2));
        assert_eq!(hand.lowest(), Some(at(2)));
        hand.committed(at(3));
        assert!(hand.is_empty());
        drop((a, b));
        assert!(hand.is_empty());
    }

    #[test]
    fn what_was_handed_out_before_a_seek_is_in_hand_but_does_not_count_for_the_position() {
        let hand = hand();
        let before = hand.take(at(100));
        hand.asked();
        hand.sought();
        assert!(before.is_before_seek());
        let after = hand.take(at(5));
        assert!(!after.is_before_seek());
        assert_eq!(hand.lowest(), Some(at(5)));
        hand.asked();
        drop(after);
        assert_eq!(hand.lowest(), None);
        hand.committed(at(1000));
        assert!(!hand.is_empty(), "a commit after the seek says nothing of it");
        drop(before);
        assert!(hand.is_empty());
    }

    #[test]
    fn many_records_behind_one_that_is_held_do_not_pile_up() {
        let hand = hand();
        let first = hand.take(at(0));
        for offset in 1..10_000 {
            drop(hand.take(at(offset)));
            hand.asked();
        }
        assert!(hand.inner.lock().records.len() <= TIDY_MIN + 1);
        assert_eq!(hand.lowest(), Some(at(0)));
        drop(first);
        assert!(hand.is_empty());
    }
}
