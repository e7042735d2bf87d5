//! What is counted while a phase runs: records, bytes, latencies, errors.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use hdrhistogram::Histogram;
use rimstone_client::ClientError;
use serde::Serialize;
use tokio::time::Instant;

/// Latencies above this count as this: longer than any deadline.
const LATENCY_MAX: Duration = Duration::from_secs(600);
/// Digits that a histogram keeps: an error of less than 0.1 %.
const DIGITS: u8 = 3;
/// Histograms that those who record share, so that they seldom wait for each other; about 250 KiB each.
const SHARDS: usize = 8;
/// Kinds of errors that are told apart; more are counted as one.
const ERROR_KINDS_MAX: usize = 32;

/// A histogram of nanoseconds.
pub(crate) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_MAX.as_nanos() as u64, DIGITS)
        .expect("the bounds are constants that a histogram takes")
}

/// Latencies that many tasks record.
#[derive(Debug)]
pub(crate) struct Latencies {
    shards: Vec<Mutex<Histogram<u64>>>,
}

impl Default for Latencies {
    fn default() -> Self {
        Self { shards: (0..SHARDS).map(|_| Mutex::new(histogram())).collect() }
    }
}

impl Latencies {
    /// Records one, by the task of this number.
    pub(crate) fn record(&self, task: usize, latency: Duration) {
        let nanos = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        lock(&self.shards[task % SHARDS]).saturating_record(nanos.max(1));
    }

    /// All of them.
    pub(crate) fn merged(&self) -> Histogram<u64> {
        let mut all = histogram();
        for shard in &self.shards {
            all.add(&*lock(shard)).expect("all histograms have the same bounds");
        }
        all
    }
}

/// The time in which answers count.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Window {
    pub(crate) from: Instant,
    /// `None`: until the last answer.
    pub(crate) until: Option<Instant>,
}

/// An error, and how often it came.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct ErrorCount {
    /// The server's reason, or gRPC's code where there is none.
    pub(crate) reason: String,
    pub(crate) count: u64,
    /// The first of its kind, in words.
    pub(crate) message: String,
}

/// Counts the answers of one phase.
#[derive(Debug)]
pub(crate) struct Meter {
    window: Window,
    begun: Instant,
    cpu: Duration,
    records: AtomicU64,
    bytes: AtomicU64,
    requests: AtomicU64,
    /// When the last answer came, in nanoseconds from the window's beginning.
    last: AtomicU64,
    latencies: Latencies,
    errors: Mutex<BTreeMap<String, ErrorCount>>,
}

/// What a phase came to.
#[derive(Debug, Clone)]
pub(crate) struct Measured {
    /// From the beginning of the window to its end, or to the last answer.
    pub(crate) elapsed: Duration,
    pub(crate) records: u64,
    pub(crate) bytes: u64,
    pub(crate) requests: u64,
    pub(crate) latencies: Histogram<u64>,
    pub(crate) errors: Vec<ErrorCount>,
    /// Processors that this process kept busy, warm-up included.
    pub(crate) client_cores: f64,
}

impl Meter {
    pub(crate) fn new(window: Window) -> Self {
        Self {
            window,
            begun: Instant::now(),
            cpu: cpu(),
            records: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            last: AtomicU64::new(0),
            latencies: Latencies::default(),
            errors: Mutex::default(),
        }
    }

    pub(crate) fn window(&self) -> Window {
        self.window
    }

    /// Whether what happens now counts.
    pub(crate) fn counts(&self, now: Instant) -> bool {
        now >= self.window.from && self.window.until.is_none_or(|until| now <= until)
    }

    /// Counts an answer that came now.
    pub(crate) fn counted(&self, records: u64, bytes: u64, now: Instant) -> bool {
        if !self.counts(now) {
            return false;
        }
        self.records.fetch_add(records, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.last.fetch_max((now - self.window.from).as_nanos() as u64, Ordering::Relaxed);
        true
    }

    /// Counts an answer that came now to a request of this task, and how long it took.
    pub(crate) fn answered(&self, task: usize, records: u64, bytes: u64, latency: Duration, now: Instant) {
        if self.counted(records, bytes, now) {
            self.latencies.record(task, latency);
        }
    }

    /// Counts an error, whenever it comes.
    pub(crate) fn failed(&self, error: &ClientError) {
        let reason = if error.reason.is_empty() { format!("{:?}", error.code) } else { error.reason.clone() };
        let mut errors = lock(&self.errors);
        let full = errors.len() >= ERROR_KINDS_MAX && !errors.contains_key(&reason);
        let reason = if full { "OTHERS".to_owned() } else { reason };
        let message = || error.message.clone();
        errors
            .entry(reason)
            .or_insert_with_key(|reason| ErrorCount { reason: reason.clone(), count: 0, message: message() })
            .count += 1;
    }

    /// Records and bytes so far.
    pub(crate) fn so_far(&self) -> (u64, u64) {
        (self.records.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed))
    }

    /// How many errors so far.
    pub(crate) fn errors_so_far(&self) -> u64 {
        lock(&self.errors).values().map(|error| error.count).sum()
    }

    /// What it came to, at the end.
    pub(crate) fn measured(&self) -> Measured {
        let now = Instant::now();
        let last = Duration::from_nanos(self.last.load(Ordering::Relaxed));
        let whole = self.window.until.filter(|until| now >= *until).map(|until| until - self.window.from);
        let wall = (now - self.begun).as_secs_f64();
        Measured {
            elapsed: whole.unwrap_or(last),
            records: self.records.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            requests: self.requests.load(Ordering::Relaxed),
            latencies: self.latencies.merged(),
            errors: lock(&self.errors).values().cloned().collect(),
            client_cores: (cpu().saturating_sub(self.cpu)).as_secs_f64() / wall.max(1e-9),
        }
    }
}

impl Measured {
    /// This many of something, per second.
    pub(crate) fn per_second(&self, count: u64) -> f64 {
        let seconds = self.elapsed.as_secs_f64();
        if seconds > 0.0 { count as f64 / seconds } else { 0.0 }
    }
}

/// Processor time of this process so far.
fn cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// A panic elsewhere leaves counts as they are, which is fine to read.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use rimstone_client::Code;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[tokio::test(start_paused = true)]
    async fn only_what_comes_in_the_window_counts() {
        let from = Instant::now() + 10 * MS;
        let meter = Meter::new(Window { from, until: Some(from + 10 * MS) });
        for (at, counts) in [(9, false), (10, true), (15, true), (20, true), (21, false)] {
            let now = from - 10 * MS + at * MS;
            assert_eq!(meter.counts(now), counts, "{at}");
            meter.answered(at as usize, 5, 100, 2 * MS, now);
        }
        tokio::time::advance(25 * MS).await;
        let measured = meter.measured();
        assert_eq!((measured.records, measured.bytes, measured.requests), (15, 300, 3));
        assert_eq!(measured.elapsed, 10 * MS);
        assert_eq!(measured.latencies.len(), 3);
        assert!((measured.per_second(measured.records) - 1500.0).abs() < 1e-6);
    }

    #[tokio::test(start_paused = true)]
    async fn without_an_end_the_last_answer_is_the_end() {
        let from = Instant::now();
        let meter = Meter::new(Window { from, until: None });
        meter.answered(0, 1, 1, MS, from + 40 * MS);
        meter.answered(1, 1, 1, MS, from + 20 * MS);
        tokio::time::advance(100 * MS).await;
        assert_eq!(meter.measured().elapsed, 40 * MS);
        // A window that was cut short: until the last answer too.
        let meter = Meter::new(Window { from, until: Some(from + 1000 * MS) });
        meter.answered(0, 1, 1, MS, from + 50 * MS);
        assert_eq!(meter.measured().elapsed, 50 * MS);
        assert_eq!(Meter::new(Window { from, until: None }).measured().per_second(0), 0.0);
    }

    #[test]
    fn latencies_of_all_tasks_come_together() {
        let latencies = Latencies::default();
        for task in 0..100 {
            latencies.record(task, Duration::from_micros(task as u64 + 1));
        }
        latencies.record(0, Duration::from_secs(100_000));
        let all = latencies.merged();
        assert_eq!(all.len(), 101);
        let close = |a: u64, b: u64| a.abs_diff(b) <= b / 1000;
        assert!(close(all.value_at_quantile(0.5), 51_000), "{}", all.value_at_quantile(0.5));
        assert!(close(all.max(), LATENCY_MAX.as_nanos() as u64), "{}", all.max());
    }

    #[tokio::test]
    async fn errors_are_named_and_their_kinds_bounded() {
        let meter = Meter::new(Window { from: Instant::now(), until: None });
        let error = |reason: &str, code| ClientError {
            code,
            reason: reason.to_owned(),
            message: format!("the message of {reason}"),
            metadata: BTreeMap::new(),
            retry_after: None,
        };
        for _ in 0..3 {
            meter.failed(&error("DISK_FULL", Code::ResourceExhausted));
        }
        meter.failed(&error("", Code::Internal));
        assert_eq!(meter.errors_so_far(), 4);
        let errors = meter.measured().errors;
        assert_eq!(errors[0].reason, "DISK_FULL");
        assert_eq!((errors[0].count, errors[0].message.as_str()), (3, "the message of DISK_FULL"));
        assert_eq!((errors[1].reason.as_str(), errors[1].count), ("Internal", 1));
        for number in 0..100 {
            meter.failed(&error(&format!("KIND_{number}"), Code::Internal));
        }
        let errors = meter.measured().errors;
        assert_eq!(errors.len(), ERROR_KINDS_MAX + 1);
        assert_eq!(errors.iter().map(|error| error.count).sum::<u64>(), 104);
    }
}
