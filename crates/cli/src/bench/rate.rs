//! `rimstone bench rate`: how long one record takes when so many come each second, whatever the server does.

use std::sync::Arc;

use clap::Args;
use serde::Serialize;

use super::{
    caller::Caller,
    closed::Shared,
    open::{self, Beside, Schedule},
    options::{Calling, Load},
    pool::{Pool, Source},
    report::Phase,
    session::Session,
};
use crate::{exit::Outcome, produce::pace::rate};

/// Sends single records at a rate, whether or not earlier ones were answered (open loop).
///
/// The latencies of `rate` count from when a record was due, so that a stall of the server counts for every record
/// that came meanwhile (no coordinated omission). `service` counts from the sending, as a closed loop would; `late`
/// is how long after it was due a record was sent.
#[derive(Debug, Clone, Args, Serialize)]
pub(crate) struct Rate {
    #[command(flatten)]
    #[serde(skip)]
    pub(crate) load: Load,
    #[command(flatten)]
    #[serde(flatten)]
    calling: Calling,
    /// Records a second
    #[arg(long, value_name = "N/s", value_parser = rate)]
    rate: f64,
    /// Unanswered records at a time; beyond that they are sent late
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    in_flight: u32,
}

impl Rate {
    pub(crate) async fn go(&self, session: &mut Session) -> Outcome {
        let topic = session.topic().await?;
        let pool = Arc::new(Pool::of_singles(&topic, &mut Source::new(session, 1)));
        let callers = Caller::all(session, &topic, &self.calling).await?;
        let shared = Shared::new(session.bounded());
        // The first record is due when warming up begins.
        let begin = shared.meter.window().from - session.load.warm_up();
        let schedule = Schedule::new(begin, self.rate);
        let beside = Arc::new(Beside::default());
        let watched = session.watch("rate", &shared.meter);
        let in_flight = self.in_flight as usize;
        let outcome = open::send(callers, pool, schedule, in_flight, &shared, &beside).await;
        drop(watched);
        measured(session, "", &shared, &beside);
        outcome
    }
}

/// Adds the three phases of an open loop.
pub(crate) fn measured(session: &mut Session, suffix: &str, shared: &Shared, beside: &Beside) {
    let measured = shared.meter.measured();
    let [service, late] = beside.measured(&measured);
    let rate = Phase::new(&format!("rate{suffix}"), measured).latency("from when it was due to its answer");
    session.measured(rate);
    let service = Phase::new(&format!("service{suffix}"), service).latency("from the sending to the answer");
    session.measured(service);
    session
        .measured(Phase::new(&format!("late{suffix}"), late).latency("from when it was due to its sending"));
}
