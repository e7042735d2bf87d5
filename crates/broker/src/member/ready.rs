//! Which partitions of a session are to be looked at: those of which something may have changed. What a member
//! says, and what comes in elsewhere, costs nothing for the others.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use rimstone_store::{Moved, Waiter};

use super::session::Place;

/// The partitions of a session, and their turns.
#[derive(Debug, Default)]
pub(super) struct Ready {
    moved: Moved,
    places: BTreeMap<u64, Place>,
    /// A key for each partition that there has been.
    keys: u64,
    /// Those that are to be looked at, in the order of their turns.
    turns: VecDeque<u64>,
    /// The same.
    queued: BTreeSet<u64>,
    /// Whoever has the turn has moved since it began.
    again: bool,
}

/// A partition among those of its session.
#[derive(Debug)]
pub(super) struct Seat {
    key: u64,
    /// Puts it among those that are to be looked at.
    pub(super) waiter: Waiter,
}

impl Ready {
    /// A partition that is now the session's. To be subscribed before it is first read; it is to be looked at.
    pub(super) fn seat(&mut self, place: Place) -> Seat {
        self.keys += 1;
        let key = self.keys;
        self.places.insert(key, place);
        self.queue(key);
        Seat { key, waiter: self.moved.waiter(key) }
    }

    /// It is not the session's any more.
    pub(super) fn leave(&mut self, seat: &Seat) {
        self.places.remove(&seat.key);
        if self.queued.remove(&seat.key) {
            self.again &= self.turns.front() != Some(&seat.key);
            self.turns.retain(|key| *key != seat.key);
        }
    }

    /// There may be something to read in it.
    pub(super) fn call(&mut self, seat: &Seat) {
        self.queue(seat.key);
    }

    fn queue(&mut self, key: u64) {
        if self.queued.insert(key) {
            self.turns.push_back(key);
        }
    }

    /// Whose turn it is. It stays so until it is said how the turn has ended.
    pub(super) fn turn(&mut self) -> Option<Place> {
        for key in self.moved.take() {
            if self.places.contains_key(&key) {
                self.again |= self.turns.front() == Some(&key);
                self.queue(key);
            }
        }
        self.turns.front().and_then(|key| self.places.get(key)).cloned()
    }

    /// The turn has ended; `more`: there may be more to read in it when its turn comes again.
    pub(super) fn end_turn(&mut self, more: bool) {
        let Some(key) = self.turns.pop_front() else { return };
        self.queued.remove(&key);
        let again = std::mem::take(&mut self.again);
        if more || again {
            self.queue(key);
        }
    }

    /// Resolves once one has moved.
    pub(super) async fn wait(&self) {
        self.moved.wait().await;
    }
}

#[cfg(test)]
mod tests {
    use rimstone_types::PartitionIndex;

    use super::*;

    fn place(partition: u32) -> Place {
        ("t".parse().unwrap(), PartitionIndex(partition))
    }

    #[test]
    fn turns_go_round_among_those_that_have_something() {
        let mut ready = Ready::default();
        let seats: Vec<_> = (0..4).map(|index| ready.seat(place(index))).collect();
        let turns = |ready: &mut Ready, more: &[u32]| {
            let mut seen = Vec::new();
            while let Some((_, index)) = ready.turn() {
                seen.push(index.0);
                ready.end_turn(more.contains(&index.0) && seen.len() < 5);
            }
            seen
        };
        assert_eq!(turns(&mut ready, &[1, 3]), [0, 1, 2, 3, 1, 3]);
        assert_eq!(turns(&mut ready, &[]), [] as [u32; 0]);
        seats[2].waiter.wake();
        seats[0].waiter.wake();
        seats[2].waiter.wake();
        ready.call(&seats[3]);
        ready.leave(&seats[0]);
        assert_eq!(turns(&mut ready, &[]), [3, 2]);
    }

    #[test]
    fn who_moves_during_its_turn_has_another() {
        let mut ready = Ready::default();
        let seat = ready.seat(place(0));
        for asked_between in [false, true] {
            assert!(ready.turn().is_some());
            seat.waiter.wake();
            if asked_between {
                assert!(ready.turn().is_some(), "it is the same turn");
            }
            ready.end_turn(false);
            assert!(ready.turn().is_some());
            ready.end_turn(false);
            assert!(ready.turn().is_none());
            ready.call(&seat);
        }
    }
}
