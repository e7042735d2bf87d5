//! A rate that is kept on average, without a burst after a pause.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// Behind by more than this, what was missed is forgotten instead of made up for.
const BEHIND_MAX: Duration = Duration::from_secs(1);

/// Records a second, as somebody typed it: `500` or `500/s`.
///
/// # Errors
/// What is allowed.
pub(crate) fn rate(text: &str) -> Result<f64, String> {
    let number = text.strip_suffix("/s").unwrap_or(text).trim();
    match number.parse::<f64>() {
        Ok(rate) if (0.001..=1e9).contains(&rate) => Ok(rate),
        _ => Err(format!("{text:?} is not a rate; write records per second, for example 500 or 500/s")),
    }
}

/// Says when the next record is due.
#[derive(Debug)]
pub(crate) struct Pace {
    step: Option<Duration>,
    due: Instant,
}

impl Pace {
    /// So many a second; `None`: no limit.
    pub(crate) fn new(rate: Option<f64>, now: Instant) -> Self {
        Self { step: rate.map(|rate| Duration::from_secs_f64(1.0 / rate)), due: now }
    }

    /// When the next one may go; `None`: at once.
    fn next(&mut self, now: Instant) -> Option<Instant> {
        let step = self.step?;
        if now > self.due + BEHIND_MAX {
            self.due = now;
        }
        let due = self.due;
        self.due += step;
        (due > now).then_some(due)
    }

    /// Waits until the next one may go.
    pub(crate) async fn wait(&mut self) {
        if let Some(due) = self.next(Instant::now()) {
            sleep_until(due).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_with_and_without_a_unit() {
        assert_eq!(rate("500"), Ok(500.0));
        assert_eq!(rate("0.5/s"), Ok(0.5));
        for bad in ["", "0", "-1", "fast", "nan", "inf", "500/m"] {
            assert!(rate(bad).unwrap_err().contains("500/s"), "{bad}");
        }
    }

    #[test]
    fn records_are_due_at_even_steps() {
        let start = Instant::now();
        let mut pace = Pace::new(Some(100.0), start);
        assert_eq!(pace.next(start), None);
        assert_eq!(pace.next(start), Some(start + Duration::from_millis(10)));
        assert_eq!(pace.next(start), Some(start + Duration::from_millis(20)));
        // A little behind: made up for.
        let late = start + Duration::from_millis(500);
        for _ in 0..48 {
            assert_eq!(pace.next(late), None);
        }
        assert!(pace.next(late).is_some());
        // Far behind: no burst.
        let later = start + Duration::from_secs(100);
        assert_eq!(pace.next(later), None);
        assert_eq!(pace.next(later), Some(later + Duration::from_millis(10)));
        assert_eq!(Pace::new(None, start).next(start), None);
    }
}
