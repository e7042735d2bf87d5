//! How long to wait between tries. Deciding whether to try again is not here: that depends on the call.

use std::time::Duration;

/// The first wait: long enough not to spin, short against a restart of the server.
const BASE: Duration = Duration::from_millis(50);
/// The longest wait between tries, so that a server that is back is found soon.
const MAX: Duration = Duration::from_secs(2);
/// The longest wait that a server may ask for.
const ASKED_MAX: Duration = Duration::from_secs(30);

/// Exponential backoff with jitter: between half and the whole of 50 ms, 100 ms, 200 ms and so on up to 2 s.
#[derive(Debug, Clone, Default)]
pub(crate) struct Backoff {
    tries: u32,
}

impl Backoff {
    /// The next wait; at least what the server asked for.
    pub(crate) fn next(&mut self, asked: Option<Duration>) -> Duration {
        let whole = BASE.saturating_mul(1 << self.tries.min(16)).min(MAX);
        self.tries = self.tries.saturating_add(1);
        let jittered = whole.mul_f64(rand::random_range(0.5..=1.0));
        jittered.max(asked.unwrap_or_default().min(ASKED_MAX))
    }

    /// Something succeeded: begin anew.
    pub(crate) fn reset(&mut self) {
        self.tries = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_bound_and_start_anew() {
        let mut backoff = Backoff::default();
        let mut whole = BASE;
        for _ in 0..100 {
            let wait = backoff.next(None);
            assert!(wait >= whole.mul_f64(0.499) && wait <= whole, "{wait:?} of {whole:?}");
            whole = (whole * 2).min(MAX);
        }
        backoff.reset();
        assert!(backoff.next(None) <= BASE);
    }

    #[test]
    fn a_server_is_heard_up_to_a_bound() {
        let mut backoff = Backoff::default();
        assert_eq!(backoff.next(Some(Duration::from_secs(5))), Duration::from_secs(5));
        assert_eq!(backoff.next(Some(Duration::from_secs(5000))), ASKED_MAX);
    }
}
