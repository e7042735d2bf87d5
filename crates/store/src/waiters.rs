//! Who is to be woken when a partition moves.

use std::{
    collections::BTreeSet,
    sync::{Arc, Weak},
};

use parking_lot::Mutex;
use tokio::sync::Notify;

/// Wakes one task when any of the partitions it was given to has moved.
#[derive(Debug, Clone, Default)]
pub struct Waiter(Arc<Wakes>);

/// Tells one task which of its partitions have moved: each is given a waiter with a key of its own.
#[derive(Debug, Clone, Default)]
pub struct Moved(Arc<List>);

#[derive(Debug, Default)]
struct Wakes {
    notify: Notify,
    /// Where it is listed as well.
    listed: Option<(Moved, u64)>,
}

/// At most one entry for each waiter.
#[derive(Debug, Default)]
struct List {
    keys: Mutex<BTreeSet<u64>>,
    notify: Notify,
}

impl Waiter {
    /// A waiter that waits for nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Resolves once a partition has moved since the last call. Subscribe first, then read, then wait.
    pub async fn wait(&self) {
        self.0.notify.notified().await;
    }

    /// Wakes the task, or lets its next wait return at once.
    pub fn wake(&self) {
        self.0.wake();
    }
}

impl Wakes {
    fn wake(&self) {
        self.notify.notify_one();
        if let Some((Moved(list), key)) = &self.listed
            && list.keys.lock().insert(*key)
        {
            list.notify.notify_one();
        }
    }
}

impl Moved {
    /// Nothing has moved yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// A waiter that lists this key when it is woken.
    pub fn waiter(&self, key: u64) -> Waiter {
        Waiter(Arc::new(Wakes { notify: Notify::new(), listed: Some((self.clone(), key)) }))
    }

    /// The keys of what has moved since the last call, in order.
    pub fn take(&self) -> BTreeSet<u64> {
        std::mem::take(&mut *self.0.keys.lock())
    }

    /// Resolves once something has moved since the last call: take what it is then.
    pub async fn wait(&self) {
        self.0.notify.notified().await;
    }
}

/// The waiters of one partition. Those that were dropped are swept out when the list has doubled, so that it
/// stays within twice the number of those that live (which the broker bounds).
#[derive(Debug, Default)]
pub(crate) struct Waiters(Mutex<Listed>);

#[derive(Debug, Default)]
struct Listed {
    waiters: Vec<Weak<Wakes>>,
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
        listed.waiters.push(Arc::downgrade(&waiter.0));
    }

    pub(crate) fn wake(&self) {
        self.0.lock().sweep(Wakes::wake);
    }
}

impl Listed {
    /// Visits those that live and drops the others.
    fn sweep(&mut self, visit: impl Fn(&Wakes)) {
        self.waiters.retain(|waiter| waiter.upgrade().map(|waiter| visit(&waiter)).is_some());
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

    #[tokio::test]
    async fn what_has_moved_is_listed_once() {
        let moved = Moved::new();
        let partitions = [Waiters::default(), Waiters::default(), Waiters::default()];
        let waiters: Vec<_> = (0..).zip(&partitions).map(|(key, of)| (moved.waiter(key), of)).collect();
        waiters.iter().for_each(|(waiter, of)| of.add(waiter));
        for index in [2, 0, 2] {
            partitions[index].wake();
        }
        moved.wait().await;
        assert_eq!(moved.take(), [0, 2].into());
        assert_eq!(moved.take(), [].into());
        partitions[2].wake();
        moved.wait().await;
        assert_eq!(moved.take(), [2].into());
        drop(waiters);
        partitions[1].wake();
        assert_eq!(moved.take(), [].into(), "nobody waits for it");
    }
}
