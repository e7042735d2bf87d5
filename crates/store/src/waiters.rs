//! Who is to be woken when a partition moves.

use std::sync::Weak;

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::Waiter;

/// The waiters of one partition. Those that were dropped are swept out when the list has doubled, so that it
/// stays within twice the number of those that live (which the broker bounds).
#[derive(Debug, Default)]
pub(crate) struct Waiters(Mutex<Listed>);

#[derive(Debug, Default)]
struct Listed {
    waiters: Vec<Weak<Notify>>,
    /// How many lived when the list was last swept.
    lived: usize,
}

impl Waiters {
    /// The least length at which the list is swept.
    const SWEEP_MIN: usize = 16;

    pub(crate) fn add(&self, waiter: &Waiter) {
        let mut listed = self.0.lock();
        if listed.waiters.len() >= (listed.lived * 2).max(Self::SWEEP_MIN) {
            listed.sweep(|_| {});
        }
        listed.waiters.push(waiter.downgrade());
    }

    pub(crate) fn wake(&self) {
        self.0.lock().sweep(Notify::notify_one);
    }
}

impl Listed {
    /// Visits those that live and drops the others.
    fn sweep(&mut self, visit: impl Fn(&Notify)) {
        self.waiters.retain(|waiter| waiter.upgrade().map(|notify| visit(&notify)).is_some());
        self.lived = self.waiters.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiters_that_are_gone_take_no_room() {
        let waiters = Waiters::default();
        let stays = Waiter::new();
        waiters.add(&stays);
        for _ in 0..1000 {
            waiters.add(&Waiter::new());
        }
        assert!(waiters.0.lock().waiters.len() <= Waiters::SWEEP_MIN + 1);
        waiters.wake();
        assert_eq!(waiters.0.lock().waiters.len(), 1);
    }
}
