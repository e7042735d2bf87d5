//! Open loop: requests are sent when they are due, whether or not earlier ones were answered, and each
//! latency counts from when its request was *due*. So a server that stalls is charged for every request that
//! would have come meanwhile, not only for those that happened to be under way (coordinated omission).

use std::{
    future::Future,
    num::NonZeroU64,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use rimstone_client::ClientError;
use tokio::{
    sync::{Notify, Semaphore},
    task::JoinSet,
    time::Instant,
};

use super::{
    caller::Caller,
    closed::{Shared, all},
    meter::{Latencies, Measured},
    pool::Pool,
};
use crate::exit::{Failure, Outcome};

/// The clock is not set to less than this from now: waking more often would take a processor from the server.
const WAIT_MIN: Duration = Duration::from_micros(50);
/// How late the system may wake the clock's thread. The default of Linux, 50 us, is as long as that.
const TIMER_SLACK: NonZeroU64 = NonZeroU64::new(1000).expect("it is not 0");

/// When each request is due.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Schedule {
    start: Instant,
    rate: f64,
}

impl Schedule {
    /// So many requests a second, evenly.
    pub(crate) fn new(start: Instant, rate: f64) -> Self {
        Self { start, rate }
    }

    /// When the request of this number, from 0, is due.
    pub(crate) fn due_at(&self, number: u64) -> Instant {
        self.start + Duration::from_secs_f64(number as f64 / self.rate)
    }
}

/// Wakes whoever sends.
pub(crate) trait Clock {
    /// Returns at this time or, if it cannot tell so exactly, a little later.
    fn until(&mut self, at: Instant) -> impl Future<Output = ()> + Send;
}

/// A thread that wakes whoever waits: the executor's own timers are too coarse, a millisecond.
pub(crate) struct Alarm {
    shared: Arc<Waking>,
    thread: thread::Thread,
}

#[derive(Debug, Default)]
struct Waking {
    /// When to wake, if anybody waits.
    at: Mutex<Option<Instant>>,
    woken: Notify,
    ended: AtomicBool,
}

impl Alarm {
    pub(crate) fn start() -> Result<Self, Failure> {
        let shared = Arc::new(Waking::default());
        let waking = shared.clone();
        let thread = thread::Builder::new()
            .name("bench-clock".to_owned())
            .spawn(move || waking.run())
            .map_err(|error| Failure::failed(format!("cannot start a thread: {error}")))?;
        Ok(Self { shared, thread: thread.thread().clone() })
    }
}

impl Waking {
    fn run(&self) {
        #[cfg(target_os = "linux")]
        // Without it the clock is a little later; the report tells how late requests were.
        let _ = rustix::thread::set_current_timer_slack(Some(TIMER_SLACK));
        while !self.ended.load(Ordering::Acquire) {
            let at = *self.at();
            let wait = at.map(|at| at.saturating_duration_since(Instant::now()));
            match wait {
                None => thread::park(),
                Some(Duration::ZERO) => {
                    *self.at() = None;
                    self.woken.notify_one();
                }
                Some(wait) => thread::park_timeout(wait),
            }
        }
    }

    /// A panic elsewhere leaves a time as it is.
    fn at(&self) -> MutexGuard<'_, Option<Instant>> {
        self.at.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Clock for Alarm {
    async fn until(&mut self, at: Instant) {
        loop {
            let now = Instant::now();
            if now >= at {
                return;
            }
            *self.shared.at() = Some(at.max(now + WAIT_MIN));
            self.thread.unpark();
            self.shared.woken.notified().await;
        }
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Release);
        self.thread.unpark();
    }
}

/// What an open loop measures beside the latencies from when requests were due.
#[derive(Debug, Default)]
pub(crate) struct Beside {
    /// From the sending to the answer: what a closed loop would have seen.
    service: Latencies,
    /// From when a request was due to its sending: how late the generator itself was.
    late: Latencies,
}

impl Beside {
    /// The latencies from the sending, and how late requests were sent.
    pub(crate) fn measured(&self, of: &Measured) -> [Measured; 2] {
        [&self.service, &self.late].map(|latencies| {
            let latencies = latencies.merged();
            Measured {
                records: 0,
                bytes: 0,
                requests: latencies.len(),
                latencies,
                errors: Vec::new(),
                ..of.clone()
            }
        })
    }
}

/// Sends the requests of a pool on schedule through the callers in turn, until the budget is spent; at most
/// `in_flight` are unanswered. Beyond that a request is sent later than it is due, and counts from when it was.
pub(crate) async fn send(
    callers: Vec<Caller>,
    pool: Arc<Pool>,
    schedule: Schedule,
    in_flight: usize,
    shared: &Shared,
    beside: &Arc<Beside>,
) -> Outcome {
    let mut clock = Alarm::start()?;
    let records = pool.at(0).records;
    let call = move |number: u64| {
        let (caller, pool) = (callers[number as usize % callers.len()].clone(), pool.clone());
        async move {
            let prepared = pool.at(number);
            caller.call(prepared).await.map(|_| (prepared.records, prepared.bytes))
        }
    };
    run(call, records, schedule, in_flight, &mut clock, shared, beside).await
}

/// The loop itself: `call` sends the request of a number and says how many records and bytes it had.
async fn run<F>(
    call: impl Fn(u64) -> F,
    records: u64,
    schedule: Schedule,
    in_flight: usize,
    clock: &mut impl Clock,
    shared: &Shared,
    beside: &Arc<Beside>,
) -> Outcome
where
    F: Future<Output = Result<(u64, u64), ClientError>> + Send + 'static,
{
    let room = Arc::new(Semaphore::new(in_flight));
    let mut tasks: JoinSet<Result<(), ClientError>> = JoinSet::new();
    let mut outcome = Ok(());
    for number in 0.. {
        let due = schedule.due_at(number);
        clock.until(due).await;
        let room = room.clone().acquire_owned().await.expect("the semaphore is never closed");
        // The request's own time decides whether it is still within the run.
        if !shared.budget.claim(records, due) {
            break;
        }
        let answer = call(number);
        let (shared, beside) = (shared.clone(), beside.clone());
        tasks.spawn(async move {
            let _room = room;
            one(number, due, answer, &shared, &beside).await
        });
        // What has ended makes room, so that the set stays as small as what is in flight.
        while let Some(ended) = tasks.try_join_next() {
            if let Ok(Err(error)) = ended
                && outcome.is_ok()
            {
                outcome = Err(Failure::from(error));
            }
        }
    }
    let rest = all(tasks).await;
    outcome.and(rest)
}

async fn one(
    number: u64,
    due: Instant,
    answer: impl Future<Output = Result<(u64, u64), ClientError>>,
    shared: &Shared,
    beside: &Beside,
) -> Result<(), ClientError> {
    let task = number as usize;
    let sent = Instant::now();
    match answer.await {
        Ok((records, bytes)) => {
            let now = Instant::now();
            shared.meter.answered(task, records, bytes, now - due, now);
            if shared.meter.counts(now) {
                beside.service.record(task, now - sent);
                beside.late.record(task, sent - due);
            }
            Ok(())
        }
        Err(error) => shared.failed(error).await,
    }
}

#[cfg(test)]
mod tests {
    use rimstone_client::Code;

    use super::*;
    use crate::bench::{
        bounds::Budget,
        meter::{Meter, Window},
    };

    const SECOND: Duration = Duration::from_secs(1);
    const MS: Duration = Duration::from_millis(1);

    /// The executor's own clock, which stands still in these tests until everybody waits.
    struct Paused;

    impl Clock for Paused {
        async fn until(&mut self, at: Instant) {
            tokio::time::sleep_until(at).await;
        }
    }

    /// A server that answers after 2 ms, and from `stall` on takes nothing until `resume`.
    #[derive(Clone, Copy)]
    struct Stalling {
        stall: Instant,
        resume: Instant,
    }

    impl Stalling {
        async fn answer(self) -> Result<(u64, u64), ClientError> {
            let now = Instant::now();
            if now >= self.stall && now < self.resume {
                tokio::time::sleep_until(self.resume).await;
            }
            tokio::time::sleep(2 * MS).await;
            Ok((1, 10))
        }
    }

    async fn load(
        rate: f64,
        seconds: u32,
        in_flight: usize,
        stall: Duration,
        length: Duration,
    ) -> (Measured, [Measured; 2]) {
        let start = Instant::now();
        let until = start + seconds * SECOND;
        // All answers count: the window is open until the last one.
        let meter = Meter::new(Window { from: start, until: None });
        let shared = Shared::new((meter, Budget::new(None, Some(until))));
        let beside = Arc::new(Beside::default());
        let server = Stalling { stall: start + stall, resume: start + stall + length };
        let schedule = Schedule::new(start, rate);
        run(move |_| server.answer(), 1, schedule, in_flight, &mut Paused, &shared, &beside).await.unwrap();
        let measured = shared.meter.measured();
        let others = beside.measured(&measured);
        (measured, others)
    }

    fn ms(measured: &Measured, quantile: f64) -> f64 {
        measured.latencies.value_at_quantile(quantile) as f64 / 1e6
    }

    /// 100 a second for 10 s, a stall from 2 s to 6 s: of 1000 requests, the 400 that are due meanwhile take
    /// 4 s, 3.99 s, ... 10 ms, and 2 ms. So 60 % take 2 ms, and from there on it rises evenly to 4 s.
    fn expected(quantile: f64) -> f64 {
        if quantile <= 0.6 { 2.0 } else { (quantile - 0.6) / 0.4 * 4000.0 + 2.0 }
    }

    #[tokio::test(start_paused = true)]
    async fn a_stalled_server_is_charged_for_every_request_that_was_due() {
        for in_flight in [1000, 1] {
            let (measured, _) = load(100.0, 10, in_flight, 2 * SECOND, 4 * SECOND).await;
            assert_eq!(measured.latencies.len(), 1000);
            for quantile in [0.5, 0.59, 0.7, 0.8, 0.9, 0.99, 1.0] {
                let (is, should) = (ms(&measured, quantile), expected(quantile));
                // One at a time, the backlog after the stall costs 2 ms for each of 400: up to 800 ms more.
                let slack = 15.0 + should * 0.002 + if in_flight == 1 { 1000.0 } else { 0.0 };
                if in_flight > 1 || quantile > 0.69 {
                    assert!((is - should).abs() <= slack, "{in_flight} {quantile}: {is} {should}");
                }
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn counted_from_the_sending_the_stall_would_not_be_seen() {
        // One request at a time, as a closed loop: all but one of 1000 seem to take 2 ms.
        let (measured, [service, late]) = load(100.0, 10, 1, 2 * SECOND, 4 * SECOND).await;
        assert!((ms(&service, 0.998) - 2.0).abs() < 0.5, "{}", ms(&service, 0.998));
        assert!((ms(&service, 1.0) - 4002.0).abs() < 10.0);
        assert!(ms(&measured, 0.9) > 2000.0);
        assert!(ms(&late, 0.9) > 2000.0);
        // With room for all, nobody is sent late, and both ways of counting agree.
        let (measured, [service, late]) = load(100.0, 10, 1000, 2 * SECOND, 4 * SECOND).await;
        assert!(ms(&late, 1.0) < 2.0);
        assert!((ms(&service, 0.9) - ms(&measured, 0.9)).abs() < 10.0);
    }

    #[tokio::test(start_paused = true)]
    async fn requests_are_due_at_even_steps_and_end_with_the_time() {
        let start = Instant::now();
        let schedule = Schedule::new(start, 20_000.0);
        assert_eq!(schedule.due_at(0), start);
        assert_eq!(schedule.due_at(1), start + Duration::from_micros(50));
        assert_eq!(schedule.due_at(20_000 * 3600), start + 3600 * SECOND);
        let (measured, _) = load(250.0, 4, 100, SECOND, Duration::ZERO).await;
        assert_eq!(measured.records, 1000);
        assert_eq!(measured.bytes, 10_000);
    }

    #[tokio::test(start_paused = true)]
    async fn not_now_is_counted_and_anything_else_ends_the_run() {
        for (code, ends) in [(Code::ResourceExhausted, false), (Code::NotFound, true)] {
            let start = Instant::now();
            let meter = Meter::new(Window { from: start, until: None });
            let shared = Shared::new((meter, Budget::new(Some(50), None)));
            let beside = Arc::new(Beside::default());
            let call = move |number: u64| async move {
                if number != 10 {
                    return Ok((1, 1));
                }
                Err(ClientError {
                    code,
                    reason: "SOME_REASON".to_owned(),
                    message: String::new(),
                    metadata: Default::default(),
                    retry_after: None,
                })
            };
            let schedule = Schedule::new(start, 100.0);
            let outcome = run(call, 1, schedule, 10, &mut Paused, &shared, &beside).await;
            assert_eq!(outcome.is_err(), ends);
            let measured = shared.meter.measured();
            assert_eq!(measured.records < 49, ends, "{}", measured.records);
            assert_eq!(measured.errors[0].reason, "SOME_REASON");
        }
    }

    #[tokio::test]
    async fn the_clock_wakes_soon_after_a_time_and_never_before() {
        let schedule = Schedule::new(Instant::now(), 10_000.0);
        let mut clock = Alarm::start().unwrap();
        for number in 0..50 {
            let due = schedule.due_at(number);
            clock.until(due).await;
            assert!(Instant::now() >= due);
        }
    }
}
