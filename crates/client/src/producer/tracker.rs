//! What `flush` waits for: counts batches that are not yet resolved, by generation. A flush begins a new
//! generation and waits until every older one is empty.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::producer::record::DeliveryError;

#[derive(Debug)]
pub(crate) struct Tracker {
    counts: Mutex<Counts>,
    /// The oldest generation with something in it; `u64::MAX` when all are empty.
    oldest: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Counts {
    generation: u64,
    open: BTreeMap<u64, usize>,
    failure: Option<DeliveryError>,
}

impl Tracker {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { counts: Mutex::default(), oldest: watch::Sender::new(u64::MAX) })
    }

    /// Counts one batch in the present generation until the token is dropped.
    pub(crate) fn enter(self: &Arc<Self>) -> Token {
        let mut counts = self.counts.lock();
        let generation = counts.generation;
        *counts.open.entry(generation).or_default() += 1;
        self.publish(&counts);
        Token { tracker: self.clone(), generation }
    }

    /// Ends the present generation and returns it.
    pub(crate) fn turn(&self) -> u64 {
        let mut counts = self.counts.lock();
        counts.generation += 1;
        counts.generation - 1
    }

    /// Waits until every generation up to this one is empty.
    pub(crate) async fn wait(&self, generation: u64) {
        let mut oldest = self.oldest.subscribe();
        let _ = oldest.wait_for(|oldest| *oldest > generation).await;
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.counts.lock().open.is_empty()
    }

    /// Remembers the first failure since the last [`Tracker::take_failure`].
    pub(crate) fn failed(&self, error: &DeliveryError) {
        self.counts.lock().failure.get_or_insert_with(|| error.clone());
    }

    pub(crate) fn take_failure(&self) -> Option<DeliveryError> {
        self.counts.lock().failure.take()
    }

    fn publish(&self, counts: &Counts) {
        self.oldest.send_replace(counts.open.keys().next().copied().unwrap_or(u64::MAX));
    }
}

/// One batch that is not yet resolved.
#[derive(Debug)]
pub(crate) struct Token {
    tracker: Arc<Tracker>,
    generation: u64,
}

impl Token {
    pub(crate) fn failed(&self, error: &DeliveryError) {
        self.tracker.failed(error);
    }
}

impl Drop for Token {
    fn drop(&mut self) {
        let mut counts = self.tracker.counts.lock();
        if let Some(count) = counts.open.get_mut(&self.generation) {
            *count -= 1;
            if *count == 0 {
                counts.open.remove(&self.generation);
            }
        }
        self.tracker.publish(&counts);
    }
}
