//! What a member's session tells its shard without a message: that it is alive, and whether it gets on. The
//! shard looks when a deadline may have passed, so that a heartbeat costs a lock and nothing else.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// The signs of life of one member.
#[derive(Debug)]
pub(crate) struct Pulse {
    signs: Mutex<Signs>,
    session_timeout: Duration,
    max_poll_interval: Duration,
}

#[derive(Debug, Clone, Copy)]
struct Signs {
    /// The last message of any kind.
    alive: Instant,
    /// The last progress, or when something to work on was first sent after a pause. `None`: there is nothing
    /// to work on.
    working: Option<Instant>,
    /// Since when it has been asked to give partitions back. `None`: it has nothing to give back.
    stopping: Option<Instant>,
    /// What it says is not read until the shard has answered: its silence is the server's.
    unheard: bool,
}

/// Which deadline has passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Overdue {
    /// No message for the session time-out.
    Session,
    /// No progress, or no answer to a stop, for the poll interval.
    Poll,
}

impl Pulse {
    pub(crate) fn new(session_timeout: Duration, max_poll_interval: Duration) -> Self {
        let signs = Signs { alive: Instant::now(), working: None, stopping: None, unheard: false };
        Self { signs: Mutex::new(signs), session_timeout, max_poll_interval }
    }

    /// A message has come.
    pub(crate) fn beat(&self) {
        self.signs.lock().alive = Instant::now();
    }

    /// Whether what it says is read, or could be if the member took the answers that there are.
    pub(crate) fn heard(&self, heard: bool) {
        let mut signs = self.signs.lock();
        if signs.unheard && heard {
            signs.alive = Instant::now();
        }
        signs.unheard = !heard;
    }

    /// The member has got on; `more`: it still has something to work on.
    pub(crate) fn progress(&self, more: bool) {
        self.signs.lock().working = more.then(Instant::now);
    }

    /// Something to work on was sent.
    pub(crate) fn sent(&self) {
        self.signs.lock().working.get_or_insert_with(Instant::now);
    }

    /// Whether the member has been asked to give something back.
    pub(crate) fn stopping(&self, asked: bool) {
        let mut signs = self.signs.lock();
        signs.stopping = if asked { signs.stopping.or_else(|| Some(Instant::now())) } else { None };
    }

    /// A whole time-out again: what kept the signs from coming was the server.
    pub(crate) fn renew(&self) {
        let now = Instant::now();
        let mut signs = self.signs.lock();
        signs.alive = now;
        signs.working = signs.working.map(|_| now);
        signs.stopping = signs.stopping.map(|_| now);
    }

    /// The stream has ended: what was sent through it is nobody's to work on.
    pub(crate) fn disconnected(&self) {
        let mut signs = self.signs.lock();
        signs.working = None;
        signs.stopping = None;
        signs.unheard = false;
    }

    /// The next deadline, and which one it is.
    pub(crate) fn deadline(&self) -> (Instant, Overdue) {
        let signs = *self.signs.lock();
        let alive = if signs.unheard { Instant::now() } else { signs.alive };
        let session = (alive + self.session_timeout, Overdue::Session);
        let poll = [signs.working, signs.stopping].into_iter().flatten().min();
        match poll.map(|since| since + self.max_poll_interval) {
            Some(poll) if poll < session.0 => (poll, Overdue::Poll),
            _ => session,
        }
    }

    /// When the deadline is to be looked at again: no later than a poll interval from now, for the deadline of
    /// work that is sent meanwhile.
    pub(crate) fn look_at(&self) -> Instant {
        self.deadline().0.min(Instant::now() + self.max_poll_interval)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SESSION: Duration = Duration::from_secs(45);
    const POLL: Duration = Duration::from_secs(300);

    #[tokio::test(start_paused = true)]
    async fn the_first_deadline_counts() {
        let pulse = Pulse::new(SESSION, POLL);
        let start = Instant::now();
        assert_eq!(pulse.deadline(), (start + SESSION, Overdue::Session));
        pulse.sent();
        for _ in 0..10 {
            tokio::time::advance(Duration::from_secs(29)).await;
            pulse.beat();
            pulse.sent();
        }
        assert_eq!(pulse.deadline(), (start + POLL, Overdue::Poll), "alive, but it does not get on");
        pulse.progress(true);
        pulse.stopping(true);
        assert_eq!(pulse.deadline(), (Instant::now() + SESSION, Overdue::Session));
        for _ in 0..10 {
            tokio::time::advance(Duration::from_secs(29)).await;
            pulse.beat();
            pulse.progress(false);
            pulse.stopping(true);
        }
        let asked = start + Duration::from_secs(290);
        assert_eq!(pulse.deadline(), (asked + POLL, Overdue::Poll), "progress is no answer to a stop");
        pulse.stopping(false);
        assert_eq!(pulse.deadline().1, Overdue::Session);
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_not_read_is_not_silent() {
        let pulse = Pulse::new(SESSION, POLL);
        pulse.heard(false);
        tokio::time::advance(SESSION * 3).await;
        assert_eq!(pulse.deadline(), (Instant::now() + SESSION, Overdue::Session));
        pulse.heard(true);
        tokio::time::advance(SESSION / 3).await;
        pulse.heard(true);
        assert_eq!(pulse.deadline().0, Instant::now() + SESSION - SESSION / 3);
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_not_read_is_to_get_on_all_the_same() {
        for stopping in [false, true] {
            let pulse = Pulse::new(SESSION, POLL);
            let start = Instant::now();
            if stopping {
                pulse.stopping(true)
            } else {
                pulse.sent()
            }
            pulse.heard(false);
            tokio::time::advance(POLL - SESSION / 2).await;
            assert_eq!(pulse.deadline(), (start + POLL, Overdue::Poll));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_nothing_to_work_on_is_not_slow() {
        let pulse = Pulse::new(SESSION, POLL);
        pulse.sent();
        pulse.progress(false);
        tokio::time::advance(POLL * 2).await;
        pulse.beat();
        assert_eq!(pulse.deadline(), (Instant::now() + SESSION, Overdue::Session));
    }
}
