//! Sessions of producers that number their requests: a table of them, and the driver that gives requests their
//! turns. The rules are in `state`. Not here: what a partition recognises as a duplicate (the store).

mod state;

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
};

use parking_lot::{Mutex, MutexGuard};
use rimstone_types::{ProducerEpoch, ProducerId};
use tokio::sync::oneshot;

use crate::{
    broker::Inner,
    error::{LimitReached, NoRoom, ProduceError, ProducerFenced, ResendFirst},
    produce::{
        Answer, PendingProduce, Prepared, ProduceOutcome, RequestNumbering, is_end_not_met, needs_resend,
    },
};
use state::{Arrival, Fate, Refusal, Refused, State, Turn};

/// A request on its way, and where its answer goes.
#[derive(Debug)]
struct Work {
    epoch: ProducerEpoch,
    prepared: Prepared,
    answer: oneshot::Sender<Answer>,
}

/// One producer's session.
#[derive(Debug)]
struct Session {
    id: ProducerId,
    state: Mutex<State<Work>>,
}

/// All sessions.
#[derive(Debug)]
pub(crate) struct Sessions {
    table: Mutex<HashMap<ProducerId, Arc<Session>>>,
    sessions_max: usize,
    open_max: usize,
}

impl Sessions {
    pub(crate) fn new(sessions_max: usize, open_max: usize) -> Self {
        Self { table: Mutex::default(), sessions_max, open_max }
    }

    pub(crate) fn count(&self) -> usize {
        self.table.lock().len()
    }

    /// The session of a producer, and whether it was made now and its state has yet to be read.
    fn get(&self, id: ProducerId) -> Result<(Arc<Session>, bool), LimitReached> {
        let mut table = self.table.lock();
        if let Some(session) = table.get(&id) {
            return Ok((Arc::clone(session), false));
        }
        if table.len() >= self.sessions_max {
            let limit = self.sessions_max as u64;
            evict(&mut table).ok_or(LimitReached { what: "producers numbered by request", limit })?;
        }
        let state = Mutex::new(State::building(id.is_named(), self.open_max));
        let session = Arc::new(Session { id, state });
        table.insert(id, Arc::clone(&session));
        Ok((session, true))
    }

    /// The producer was deleted.
    pub(crate) fn remove(&self, id: ProducerId) {
        let session = self.table.lock().remove(&id);
        if let Some(session) = session {
            session.state.lock().gone = true;
        }
    }
}

/// Takes the session that was idle for longest out of the table; `None` if all have something open.
fn evict(table: &mut HashMap<ProducerId, Arc<Session>>) -> Option<()> {
    let used = |session: &Arc<Session>| {
        let state = session.state.lock();
        state.is_idle().then_some((state.used, session.id))
    };
    let mut idle: Vec<_> = table.values().filter_map(used).collect();
    idle.sort_unstable();
    for (_, id) in idle {
        let mut state = table.get(&id)?.state.lock();
        // Somebody may hold the session and have come in between; whoever comes later sees the mark.
        if state.is_idle() {
            state.gone = true;
            drop(state);
            table.remove(&id);
            return Some(());
        }
    }
    None
}

/// What an answer means for the requests behind it.
fn fate(outcome: &ProduceOutcome) -> Fate {
    let errors = || outcome.appends.iter().filter_map(|append| append.result.as_ref().err());
    if errors().any(needs_resend) {
        Fate::Failed { in_part: outcome.appends.iter().any(|append| append.result.is_ok()) }
    } else if errors().next().is_none() {
        Fate::Stored
    } else if errors().all(is_end_not_met) {
        Fate::EndNotMet
    } else {
        Fate::Refused
    }
}

impl Inner {
    /// Gives a numbered request its place; it is submitted now or when its turn comes.
    pub(crate) fn produce_in_session(
        self: &Arc<Self>,
        numbering: RequestNumbering,
        prepared: Prepared,
    ) -> Result<PendingProduce, ProduceError> {
        let (epoch, number) = (numbering.epoch, numbering.number.get());
        let arrival = Arrival { epoch, number, scope: prepared.scope() };
        let (answer, pending) = PendingProduce::new();
        let work = Work { epoch, prepared, answer };
        loop {
            let (session, made) = self.sessions.get(numbering.id)?;
            let mut state = session.state.lock();
            if state.gone {
                continue;
            }
            state.used = self.clock.now();
            self.refuse(state.arrive(arrival, work));
            self.drive(&session, state);
            if made {
                let inner = Arc::clone(self);
                self.tasks.spawn(async move { inner.build(&session).await });
            }
            return Ok(pending);
        }
    }

    /// A newer instance of a named producer was started, and this is what is stored of it.
    pub(crate) fn replace_session(&self, id: ProducerId, epoch: ProducerEpoch, highest: Option<u32>) {
        loop {
            // At the bound of the table there is none: the first request makes it, from the same state.
            let Ok((session, _)) = self.sessions.get(id) else { return };
            let mut state = session.state.lock();
            if state.gone {
                continue;
            }
            state.used = self.clock.now();
            let refused = state.replace(epoch, highest);
            drop(state);
            return self.refuse(refused);
        }
    }

    /// Answers requests that are refused.
    fn refuse(&self, refused: Refused<Work>) {
        for (work, number, refusal) in refused {
            let error: ProduceError = match refusal {
                Refusal::ResendFirst { expected } => ResendFirst { expected, got: number }.into(),
                Refusal::Fenced { current } => ProducerFenced { got: work.epoch, current }.into(),
                Refusal::TooManyOpen { limit } => {
                    NoRoom::new("open requests of one producer", 1, limit as u64).into()
                }
                Refusal::NotYet => NoRoom::new("requests until the producer's state is read", 1, 0).into(),
            };
            self.metrics.error(&error);
            // The caller may have gone.
            drop(work.answer.send(Err(error)));
        }
    }

    /// Reads what the partitions know of a producer and lets its requests begin.
    async fn build(self: &Arc<Self>, session: &Arc<Session>) {
        let (epoch, highest) = self.stored_requests(session.id).await;
        let mut state = session.state.lock();
        self.refuse(state.built(epoch, highest));
        self.drive(session, state);
    }

    /// Submits everything whose turn it is. The lock is held, so that the order of turns is the order of
    /// submits; submitting never blocks.
    fn drive(self: &Arc<Self>, session: &Arc<Session>, mut state: MutexGuard<'_, State<Work>>) {
        while let Some(turn) = state.turn() {
            let (turn, Work { prepared, answer, .. }) = turn.split();
            match self.submit(prepared) {
                Ok(submitted) => {
                    let (inner, session) = (Arc::clone(self), Arc::downgrade(session));
                    self.tasks.spawn(async move {
                        let outcome = submitted.outcome(&inner.metrics).await;
                        inner.finished(&session, &turn, fate(&outcome));
                        drop(answer.send(Ok(outcome)));
                    });
                }
                Err(error) => {
                    self.metrics.error(&error);
                    drop(answer.send(Err(error)));
                    self.refuse(state.not_taken(&turn));
                }
            }
        }
    }

    fn finished(self: &Arc<Self>, session: &Weak<Session>, turn: &Turn<()>, fate: Fate) {
        // Gone from the table and from everybody's hands: nobody asks any more.
        let Some(session) = session.upgrade() else { return };
        let mut state = session.state.lock();
        state.used = self.clock.now();
        self.refuse(state.finished(turn, fate));
        self.drive(&session, state);
    }
}

#[cfg(test)]
mod tests;
