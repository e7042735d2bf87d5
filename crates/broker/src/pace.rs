//! Readers of history give way to producers: while somebody writes, what was appended some time ago is read at a
//! bounded rate by all readers together (ADR 0020). Who reads what has just been appended is never held up, and
//! without producers nobody is.
//!
//! Not here: compaction, which yields to the flusher in the store.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use parking_lot::Mutex;
use rimstone_store::ReadBatch;
use rimstone_types::{ByteCount, Timestamp};
use tokio::time::{Instant, sleep_until};

/// What was appended longer ago than this is history. Readers who keep up are some milliseconds behind; a consumer that
/// starts again after its restart is live before it has come this far.
const HISTORY_AGE_MILLIS: i64 = 2_000;
/// Over so long it is seen how much is written: several groups, and short enough that the end of writing is noticed.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// History may always be read at so many times the rate of what is written, or who fell behind would stay behind.
const CATCH_UP: f64 = 2.0;

/// Nobody waits longer for his turn: behind so many others a reader is slow enough, and calls have deadlines.
const WAIT_MAX: Duration = Duration::from_secs(1);

/// The rate of readers of history.
#[derive(Debug)]
pub(crate) struct Pace {
    /// In bytes a second; `None`: no bound.
    rate: Option<f64>,
    /// Bytes that were submitted since the start.
    written: AtomicU64,
    turn: Mutex<Turn>,
}

#[derive(Debug)]
struct Turn {
    looked: Instant,
    written_then: u64,
    /// In bytes a second.
    writing: f64,
    /// When what was read before is paid for.
    free_at: Instant,
}

impl Pace {
    /// A rate of 0 bytes a second stands for no bound. Begins now.
    pub(crate) fn new(rate: ByteCount) -> Self {
        let now = Instant::now();
        Self {
            rate: (rate.get() > 0).then_some(rate.get() as f64),
            written: AtomicU64::new(0),
            turn: Mutex::new(Turn { looked: now, written_then: 0, writing: 0.0, free_at: now }),
        }
    }

    /// So many bytes were submitted.
    pub(crate) fn submitted(&self, bytes: u64) {
        self.written.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Waits for the turn of what was read, as far as it is history. Whoever stops waiting has had his turn.
    pub(crate) async fn give_way<'a>(
        &self,
        batches: impl IntoIterator<Item = &'a ReadBatch>,
        now: Timestamp,
    ) {
        let is_history = |read: &&ReadBatch| now.millis_since(read.append_time) >= HISTORY_AGE_MILLIS;
        let bytes = batches.into_iter().filter(is_history).map(|read| read.batch.bytes().len() as u64).sum();
        if let Some(turn) = self.turn(bytes) {
            sleep_until(turn).await;
        }
    }

    /// When so many bytes of history may go out, if that is not at once.
    fn turn(&self, bytes: u64) -> Option<Instant> {
        let rate = self.rate.filter(|_| bytes > 0)?;
        let now = Instant::now();
        let mut turn = self.turn.lock();
        turn.look(now, self.written.load(Ordering::Relaxed));
        if turn.writing == 0.0 {
            turn.free_at = now;
            return None;
        }
        let begin = turn.free_at.clamp(now, now + WAIT_MAX);
        turn.free_at = begin + Duration::from_secs_f64(bytes as f64 / rate.max(CATCH_UP * turn.writing));
        (begin > now).then_some(begin)
    }
}

impl Turn {
    fn look(&mut self, now: Instant, written: u64) {
        let elapsed = now.saturating_duration_since(self.looked);
        if elapsed >= LOOK_INTERVAL {
            self.writing = written.saturating_sub(self.written_then) as f64 / elapsed.as_secs_f64();
            (self.looked, self.written_then) = (now, written);
        }
    }
}

#[cfg(test)]
mod tests;
