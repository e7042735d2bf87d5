//! When a run ends: after so many records, after some time, or when it is told to.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tokio::time::Instant;

/// Records that may still be sent.
#[derive(Debug, Default)]
pub(crate) struct Budget {
    records: Option<u64>,
    until: Option<Instant>,
    claimed: AtomicU64,
    stopped: AtomicBool,
}

impl Budget {
    /// So many records, until this time; `None`: without that bound.
    pub(crate) fn new(records: Option<u64>, until: Option<Instant>) -> Self {
        Self { records, until, ..Self::default() }
    }

    /// Takes so many records for a request that is sent now, if any are left. The last request may go beyond
    /// the bound by less than itself.
    pub(crate) fn claim(&self, records: u64, now: Instant) -> bool {
        if self.stopped.load(Ordering::Relaxed) || self.until.is_some_and(|until| now >= until) {
            return false;
        }
        let before = self.claimed.fetch_add(records, Ordering::Relaxed);
        self.records.is_none_or(|most| before < most)
    }

    /// Ends the run: nothing more is sent.
    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn ends_after_so_many_records() {
        let now = Instant::now();
        let budget = Budget::new(Some(10), None);
        assert_eq!((0..100).filter(|_| budget.claim(1, now)).count(), 10);
        // The last request goes beyond by less than itself.
        let budget = Budget::new(Some(10), None);
        assert_eq!((0..100).filter(|_| budget.claim(4, now)).count(), 3);
    }

    #[test]
    fn ends_at_its_time_or_when_told() {
        let now = Instant::now();
        let until = now + Duration::from_secs(1);
        let budget = Budget::new(Some(1000), Some(until));
        assert!(budget.claim(1, now));
        assert!(budget.claim(1, until - Duration::from_nanos(1)));
        assert!(!budget.claim(1, until));
        let budget = Budget::new(None, None);
        assert!(budget.claim(u64::MAX / 2, now));
        budget.stop();
        assert!(!budget.claim(1, now));
    }

    #[test]
    fn many_who_claim_at_once_get_no_more_than_there_is() {
        let budget = Budget::new(Some(1000), None);
        let now = Instant::now();
        let claim = || (0..1000).filter(|_| budget.claim(1, now)).count();
        let claimed: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(claim)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(claimed, 1000);
    }
}
