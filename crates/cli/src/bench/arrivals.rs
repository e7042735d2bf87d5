//! From the sending of a record to its arrival at a reader, both in this process and by one clock.
//!
//! A producer learns offsets from its answers, a reader from what it reads; either may be first.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
};

use rimstone_client::bare::Place;
use rimstone_types::{Offset, PartitionIndex};
use tokio::time::Instant;

use super::meter::{Latencies, Measured, Meter, Window};

/// Arrivals remembered for each partition while the answers to their producers are still on the way: far more
/// than messages can be under way. What is forgotten is counted.
const ARRIVALS_MAX: usize = 4096;
/// Sendings remembered for each partition while a reader is behind.
const SENDINGS_MAX: usize = 65_536;

/// Matches sendings and arrivals.
#[derive(Debug)]
pub(crate) struct Arrivals {
    /// What was sent in it counts.
    window: Window,
    partitions: Vec<Mutex<Partition>>,
    latencies: Latencies,
}

#[derive(Debug, Default)]
struct Partition {
    /// The next offset after each arrival, and when it was; rising.
    arrived: VecDeque<(Offset, Instant)>,
    /// When records were sent that have not arrived yet, by offset.
    sent: BTreeMap<Offset, Instant>,
    /// How far readers have come.
    next: Offset,
    /// How far producers know.
    stored: Offset,
    untold: u64,
}

impl Arrivals {
    pub(crate) fn new(partitions: u32, window: Window) -> Self {
        Self {
            window,
            partitions: (0..partitions).map(|_| Mutex::default()).collect(),
            latencies: Latencies::default(),
        }
    }

    fn partition(&self, partition: PartitionIndex) -> Option<MutexGuard<'_, Partition>> {
        let partition = self.partitions.get(partition.0 as usize)?;
        Some(partition.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Readers begin here.
    pub(crate) fn begin(&self, partition: PartitionIndex, at: Offset) {
        if let Some(mut partition) = self.partition(partition) {
            partition.next = at;
        }
    }

    /// A request was stored here that was sent then.
    pub(crate) fn sent(&self, places: &[Place], at: Instant) {
        for place in places {
            let Some(mut partition) = self.partition(place.partition) else { continue };
            partition.stored = partition.stored.max(place.last.saturating_add(1));
            self.tell(&mut partition, place.first, at);
        }
    }

    /// A record was stored here that was sent then.
    pub(crate) fn sent_one(&self, partition: PartitionIndex, offset: Offset, at: Instant) {
        self.sent(&[Place { partition, first: offset, last: offset }], at);
    }

    fn tell(&self, partition: &mut Partition, offset: Offset, sent: Instant) {
        if offset >= partition.next {
            partition.sent.insert(offset, sent);
            if partition.sent.len() > SENDINGS_MAX {
                partition.sent.pop_first();
                partition.untold += 1;
            }
            return;
        }
        let at = partition.arrived.partition_point(|(next, _)| *next <= offset);
        // Before the oldest that is remembered, it is not known which brought it.
        match partition.arrived.get(at) {
            Some((_, arrived)) if at > 0 || partition.arrived.len() < ARRIVALS_MAX => {
                self.record(offset, sent, *arrived);
            }
            _ => partition.untold += 1,
        }
    }

    fn record(&self, offset: Offset, sent: Instant, arrived: Instant) {
        if sent >= self.window.from && self.window.until.is_none_or(|until| sent <= until) {
            self.latencies.record(offset.get() as usize, arrived.saturating_duration_since(sent));
        }
    }

    /// A reader has everything below `next`.
    pub(crate) fn arrived(&self, partition: PartitionIndex, next: Offset, at: Instant) {
        let Some(mut partition) = self.partition(partition) else { return };
        if next <= partition.next {
            return;
        }
        partition.next = next;
        partition.arrived.push_back((next, at));
        if partition.arrived.len() > ARRIVALS_MAX {
            partition.arrived.pop_front();
        }
        while let Some(entry) = partition.sent.first_entry() {
            if *entry.key() >= next {
                break;
            }
            let sent = entry.remove();
            self.record(next, sent, at);
        }
    }

    /// Whether readers have everything that producers know to be stored.
    pub(crate) fn is_level(&self) -> bool {
        self.partitions.iter().all(|partition| {
            let partition = partition.lock().unwrap_or_else(PoisonError::into_inner);
            partition.next >= partition.stored
        })
    }

    /// The latencies, and how many could not be told.
    pub(crate) fn measured(&self, meter: &Meter) -> (Measured, u64) {
        let latencies = self.latencies.merged();
        let untold = self
            .partitions
            .iter()
            .map(|partition| partition.lock().unwrap_or_else(PoisonError::into_inner).untold);
        let requests = latencies.len();
        let measured =
            Measured { records: 0, bytes: 0, requests, latencies, errors: Vec::new(), ..meter.measured() };
        (measured, untold.sum())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn offset(offset: u64) -> Offset {
        Offset::new(offset).unwrap()
    }

    fn place(partition: u32, first: u64, last: u64) -> Place {
        Place { partition: PartitionIndex(partition), first: offset(first), last: offset(last) }
    }

    fn always() -> Window {
        Window { from: Instant::now() - Duration::from_secs(1), until: None }
    }

    fn told(arrivals: &Arrivals) -> Vec<u64> {
        let all = arrivals.latencies.merged();
        let mut told: Vec<u64> = all
            .iter_recorded()
            .flat_map(|at| vec![at.value_iterated_to() / 1_000_000; at.count_at_value() as usize])
            .collect();
        told.sort_unstable();
        told
    }

    #[test]
    fn either_side_may_be_first() {
        let arrivals = Arrivals::new(2, always());
        let start = Instant::now();
        // The answer comes before the reader has it.
        arrivals.sent(&[place(0, 0, 9)], start);
        assert!(!arrivals.is_level());
        arrivals.arrived(PartitionIndex(0), offset(10), start + 5 * MS);
        // The reader has it before the answer comes.
        arrivals.arrived(PartitionIndex(1), offset(4), start + 20 * MS);
        arrivals.arrived(PartitionIndex(1), offset(8), start + 30 * MS);
        arrivals.sent(&[place(1, 4, 7)], start + 10 * MS);
        arrivals.sent(&[place(1, 0, 3)], start + 10 * MS);
        assert_eq!(told(&arrivals), [5, 10, 20]);
        assert!(arrivals.is_level());
    }

    #[test]
    fn one_message_brings_many() {
        let arrivals = Arrivals::new(1, always());
        let start = Instant::now();
        for number in 0..5 {
            arrivals.sent_one(PartitionIndex(0), offset(number), start + number as u32 * MS);
        }
        arrivals.arrived(PartitionIndex(0), offset(3), start + 10 * MS);
        assert_eq!(told(&arrivals), [8, 9, 10]);
        // What has come before is told once.
        arrivals.arrived(PartitionIndex(0), offset(3), start + 11 * MS);
        arrivals.arrived(PartitionIndex(0), offset(5), start + 20 * MS);
        assert_eq!(told(&arrivals), [8, 9, 10, 16, 17]);
    }

    #[test]
    fn what_is_remembered_is_bounded_and_the_rest_is_counted() {
        let arrivals = Arrivals::new(1, always());
        let start = Instant::now();
        for number in 0..SENDINGS_MAX as u64 + 10 {
            arrivals.sent_one(PartitionIndex(0), offset(number), start);
        }
        let meter = Meter::new(Window { from: start, until: None });
        assert_eq!(arrivals.measured(&meter).1, 10);
        let arrivals = Arrivals::new(1, always());
        for number in 1..=ARRIVALS_MAX as u64 + 10 {
            arrivals.arrived(PartitionIndex(0), offset(number), start);
        }
        // Long forgotten; and still known.
        arrivals.sent_one(PartitionIndex(0), offset(0), start);
        arrivals.sent_one(PartitionIndex(0), offset(ARRIVALS_MAX as u64), start);
        let (measured, untold) = arrivals.measured(&meter);
        assert_eq!((measured.latencies.len(), untold), (1, 1));
        // What was sent before the window does not count.
        let arrivals = Arrivals::new(1, Window { from: start + MS, until: Some(start + 3 * MS) });
        for (number, at) in [(0, 0), (1, 1), (2, 3), (3, 4)] {
            arrivals.sent_one(PartitionIndex(0), offset(number), start + at * MS);
        }
        arrivals.arrived(PartitionIndex(0), offset(9), start + 10 * MS);
        assert_eq!(told(&arrivals), [7, 9]);
        // A partition that is not there is nobody's.
        arrivals.sent_one(PartitionIndex(7), offset(0), start);
    }
}
