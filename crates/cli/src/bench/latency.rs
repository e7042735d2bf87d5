//! `rimstone bench latency`: how long one record takes.

use std::sync::Arc;

use clap::Args;
use serde::Serialize;

use super::{
    caller::Caller,
    closed::{self, Shared},
    options::{Calling, Load},
    pool::{Pool, Source},
    report::Phase,
    session::Session,
};
use crate::exit::Outcome;

/// Callers that each send one record, wait for its answer, and send the next.
///
/// More callers than connections or streams share them.
#[derive(Debug, Clone, Args, Serialize)]
pub(crate) struct Latency {
    #[command(flatten)]
    #[serde(skip)]
    pub(crate) load: Load,
    #[command(flatten)]
    #[serde(flatten)]
    calling: Calling,
    /// Callers
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=16_384))]
    callers: u32,
}

impl Latency {
    pub(crate) async fn go(&self, session: &mut Session) -> Outcome {
        let topic = session.topic().await?;
        let pool = Arc::new(Pool::of_singles(&topic, &mut Source::new(session, 1)));
        let ways = Caller::all(session, &topic, &self.calling).await?;
        let callers = (0..self.callers as usize).map(|number| ways[number % ways.len()].clone()).collect();
        let shared = Shared::new(session.bounded());
        let watched = session.watch("latency", &shared.meter);
        let outcome = closed::closed(callers, 1, pool, &shared).await;
        drop(watched);
        let phase = Phase::new("latency", shared.meter.measured());
        session.measured(phase.latency("from a record to its answer"));
        outcome
    }
}
