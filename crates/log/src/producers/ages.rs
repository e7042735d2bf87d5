//! How long producers without a name have been idle, by a clock that no jump of the machine's clock moves far.
//!
//! Whoever looks says the time. Between two looks at most [`STEP_MAX`] counts, whatever the machine's clock has done
//! meanwhile, and nothing if it went back. After a start only append times are known: of a stretch between two of
//! them, and of the time since the last one, at most [`STEP_MAX`] counts as well, so that neither the time a server
//! was down nor a clock that was set between two runs makes anybody idle.
//!
//! Not here: who may be forgotten, and when (the table).

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use rimstone_types::{ProducerId, Timestamp};

/// What counts at most of a stretch in which nobody looked. Maintenance looks every few minutes; two dozen jumps of a clock
/// are not yet a day.
const STEP_MAX: Duration = Duration::from_secs(60 * 60);

/// Of the producers without a name, when each was last active.
#[derive(Debug, Clone, Default)]
pub(super) struct Ages {
    /// Milliseconds that have gone by.
    clock: u64,
    /// When it was last looked; `None`: not since the start.
    looked: Option<Timestamp>,
    /// Who was last active when, longest ago first.
    order: BTreeSet<(u64, ProducerId)>,
    at: BTreeMap<ProducerId, u64>,
    /// Active since the last look, with the append time of the last batch.
    fresh: BTreeMap<ProducerId, Timestamp>,
}

impl Ages {
    /// A producer has written.
    pub(super) fn active(&mut self, id: ProducerId, append_time: Timestamp) {
        self.forget(id);
        self.fresh.insert(id, append_time);
    }

    /// A producer is known no more.
    pub(super) fn forget(&mut self, id: ProducerId) {
        if let Some(at) = self.at.remove(&id) {
            self.order.remove(&(at, id));
        }
        self.fresh.remove(&id);
    }

    /// Lets the clock go on.
    pub(super) fn look(&mut self, now: Timestamp) {
        let fresh = std::mem::take(&mut self.fresh);
        // Requests tell their times out of order: a small step back is none, or each would be counted again.
        let back = |looked: Timestamp| now < looked && now.saturating_add(STEP_MAX) > looked;
        let now = self.looked.filter(|looked| back(*looked)).unwrap_or(now);
        if let Some(looked) = self.looked {
            self.clock = self.clock.saturating_add(counted(looked, now));
            for id in fresh.into_keys() {
                self.note(id);
            }
        } else {
            let mut by_time: Vec<_> = fresh.into_iter().map(|(id, time)| (time, id)).collect();
            by_time.sort_unstable();
            let mut before = by_time.first().map_or(now, |(time, _)| *time);
            for (time, id) in by_time {
                self.clock = self.clock.saturating_add(counted(before, time));
                self.note(id);
                before = time;
            }
            self.clock = self.clock.saturating_add(counted(before, now));
        }
        self.looked = Some(now);
    }

    fn note(&mut self, id: ProducerId) {
        self.order.insert((self.clock, id));
        self.at.insert(id, self.clock);
    }

    /// Those that have been idle for longer than so, as of the last look; the longest idle first.
    pub(super) fn idle(&self, longer_than: Duration) -> impl Iterator<Item = ProducerId> {
        let most = u64::try_from(longer_than.as_millis()).unwrap_or(u64::MAX);
        let clock = self.clock;
        self.order.iter().take_while(move |(at, _)| clock - at > most).map(|(_, id)| *id)
    }
}

/// Milliseconds of a stretch that count.
fn counted(from: Timestamp, to: Timestamp) -> u64 {
    u64::try_from(to.millis_since(from)).unwrap_or(0).min(STEP_MAX.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 60 * 60 * 1000;
    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    fn id(value: u64) -> ProducerId {
        ProducerId::new(value).expect("a small id")
    }

    fn idle(ages: &Ages, longer_than: Duration) -> Vec<u64> {
        ages.idle(longer_than).map(ProducerId::get).collect()
    }

    #[test]
    fn idle_time_is_what_was_looked_at() {
        let mut ages = Ages::default();
        ages.look(Timestamp(0));
        ages.active(id(1), Timestamp(0));
        for hour in 1..=24 {
            ages.look(Timestamp(hour * HOUR));
            if hour == 10 {
                ages.active(id(2), Timestamp(0));
            }
        }
        // It was active at some moment between two looks: the later one counts.
        assert_eq!(idle(&ages, DAY), []);
        ages.look(Timestamp(25 * HOUR));
        assert_eq!(idle(&ages, DAY), []);
        ages.look(Timestamp(25 * HOUR + 1));
        assert_eq!(idle(&ages, DAY), [1]);
        assert_eq!(idle(&ages, Duration::ZERO), [1, 2]);
        ages.active(id(1), Timestamp(0));
        assert_eq!(idle(&ages, Duration::ZERO), [2], "nobody has looked since");
        ages.forget(id(2));
        ages.look(Timestamp(25 * HOUR + 1));
        assert_eq!(idle(&ages, Duration::ZERO), []);
    }

    #[test]
    fn a_clock_that_jumps_makes_nobody_idle() {
        let mut ages = Ages::default();
        ages.look(Timestamp(0));
        ages.active(id(1), Timestamp(0));
        let mut now = 0;
        for jump in [40 * 24 * HOUR, -1_000 * HOUR, 1, i64::MAX / 2, -i64::MAX / 2, 30 * HOUR, -HOUR] {
            now += jump;
            ages.look(Timestamp(now));
        }
        assert_eq!(idle(&ages, Duration::from_secs(3 * 60 * 60)), []);
        // And it is not stuck where it jumped to.
        for minute in 0..60 * 24 {
            ages.look(Timestamp(now + minute * 60_000));
        }
        assert_eq!(idle(&ages, DAY), [1]);
    }

    #[test]
    fn times_that_come_out_of_order_are_not_counted_twice() {
        let mut ages = Ages::default();
        ages.look(Timestamp(0));
        ages.active(id(1), Timestamp(0));
        for n in 0..100_000 {
            ages.look(Timestamp(1_000 + n / 100 - if n % 2 == 0 { 900 } else { 0 }));
        }
        assert_eq!(idle(&ages, Duration::from_millis(2_000)), []);
        assert_eq!(idle(&ages, Duration::from_millis(1_890)), [1]);
    }

    #[test]
    fn after_a_start_long_stretches_count_for_little() {
        let mut ages = Ages::default();
        let day = 24 * HOUR;
        for (producer, time) in [(3, 50 * day), (1, 0), (2, 1_000), (4, 50 * day + 10)] {
            ages.active(id(producer), Timestamp(time));
        }
        ages.look(Timestamp(500 * day));
        // In the order of their times, and not further from each other than may be counted.
        assert_eq!(idle(&ages, Duration::ZERO), [1, 2, 3, 4]);
        let two_hours = Duration::from_secs(2 * 60 * 60);
        assert_eq!(idle(&ages, two_hours), [1, 2]);
        assert_eq!(idle(&ages, two_hours + Duration::from_millis(10)), [1]);
        assert_eq!(idle(&ages, two_hours + Duration::from_millis(1_010)), []);
    }
}
