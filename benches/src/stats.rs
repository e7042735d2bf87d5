//! Counting what a program did, and telling it in the words of `rimstone bench --json`.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use serde_json::{Value, json};

/// Latencies above this count as this.
const LATENCY_MAX: Duration = Duration::from_secs(600);
/// Histograms that those who record share.
const SHARDS: usize = 8;

/// Counts answers in a window of time.
#[derive(Debug)]
pub struct Meter {
    from: Instant,
    until: Option<Instant>,
    requests: AtomicU64,
    records: AtomicU64,
    bytes: AtomicU64,
    /// Nanoseconds from the window's beginning to the last answer.
    last: AtomicU64,
    latencies: Vec<Mutex<Histogram<u64>>>,
}

impl Meter {
    /// Counts what comes from then on; without an end until the last answer.
    pub fn new(from: Instant, until: Option<Instant>) -> Self {
        let histogram = || {
            Histogram::new_with_bounds(1, LATENCY_MAX.as_nanos() as u64, 3)
                .expect("the bounds are constants that a histogram takes")
        };
        Self {
            from,
            until,
            requests: AtomicU64::new(0),
            records: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            last: AtomicU64::new(0),
            latencies: (0..SHARDS).map(|_| Mutex::new(histogram())).collect(),
        }
    }

    /// Whether the window is over.
    pub fn is_over(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now >= until)
    }

    /// Counts an answer that came now to a request of this task.
    pub fn answered(&self, task: usize, records: u64, bytes: u64, latency: Option<Duration>, now: Instant) {
        if now < self.from || self.until.is_some_and(|until| now > until) {
            return;
        }
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.records.fetch_add(records, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.last.fetch_max((now - self.from).as_nanos() as u64, Ordering::Relaxed);
        if let Some(latency) = latency {
            let nanos = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
            lock(&self.latencies[task % SHARDS]).saturating_record(nanos.max(1));
        }
    }

    /// What it came to, as a phase of `rimstone bench --json`.
    pub fn phase(&self, name: &str) -> Value {
        let last = Duration::from_nanos(self.last.load(Ordering::Relaxed));
        let whole = self.until.filter(|until| Instant::now() >= *until).map(|until| until - self.from);
        let seconds = whole.unwrap_or(last).as_secs_f64();
        let per_second = |count: u64| if seconds > 0.0 { count as f64 / seconds } else { 0.0 };
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let (requests, records, bytes) = (count(&self.requests), count(&self.records), count(&self.bytes));
        json!({
            "name": name,
            "elapsed_s": seconds,
            "requests": requests,
            "records": records,
            "bytes": bytes,
            "requests_per_s": per_second(requests),
            "records_per_s": per_second(records),
            "bytes_per_s": per_second(bytes),
            "latency": self.latency(),
        })
    }

    fn latency(&self) -> Value {
        let mut all = lock(&self.latencies[0]).clone();
        for shard in &self.latencies[1..] {
            all.add(&*lock(shard)).expect("all histograms have the same bounds");
        }
        if all.is_empty() {
            return Value::Null;
        }
        json!({
            "count": all.len(),
            "p50_ns": all.value_at_quantile(0.5),
            "p90_ns": all.value_at_quantile(0.9),
            "p99_ns": all.value_at_quantile(0.99),
            "p99_9_ns": all.value_at_quantile(0.999),
            "max_ns": all.max(),
        })
    }
}

/// A panic elsewhere leaves counts as they are, which is fine to read.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The median; the mean of the two in the middle of an even number. `NaN` of nothing.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match (sorted.len(), sorted.len() / 2) {
        (0, _) => f64::NAN,
        (length, middle) if length % 2 == 1 => sorted[middle],
        (_, middle) => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn only_the_window_counts_and_rates_are_per_second_of_it() {
        // A window that is over.
        let from = Instant::now().checked_sub(100 * MS).unwrap();
        let meter = Meter::new(from, Some(from + 50 * MS));
        assert!(meter.is_over(from + 50 * MS) && !meter.is_over(from + 49 * MS));
        meter.answered(0, 10, 1000, Some(2 * MS), from.checked_sub(MS).unwrap());
        meter.answered(1, 10, 1000, Some(2 * MS), from + 10 * MS);
        meter.answered(2, 10, 1000, Some(4 * MS), from + 50 * MS);
        meter.answered(3, 10, 1000, Some(2 * MS), from + 51 * MS);
        let phase = meter.phase("x");
        assert_eq!(
            (&phase["records"], &phase["requests"], &phase["elapsed_s"]),
            (&json!(20), &json!(2), &json!(0.05))
        );
        assert_eq!((&phase["records_per_s"], &phase["bytes_per_s"]), (&json!(400.0), &json!(40_000.0)));
        assert_eq!(phase["latency"]["count"], 2);
        let p50 = phase["latency"]["p50_ns"].as_u64().unwrap();
        assert!(p50.abs_diff(2_000_000) < 3000, "{p50}");
    }

    #[test]
    fn without_an_end_the_last_answer_is_the_end() {
        let from = Instant::now().checked_sub(100 * MS).unwrap();
        let meter = Meter::new(from, None);
        meter.answered(0, 1, 1, None, from + 20 * MS);
        assert_eq!(meter.phase("x")["elapsed_s"], 0.02);
        assert_eq!(meter.phase("x")["latency"], Value::Null);
    }

    #[test]
    fn medians() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(&[]).is_nan());
    }
}
