//! The one task that owns the session of a consumer: joins, keeps the membership alive, carries messages between
//! the server and [`State`](super::state::State), and comes back after a break. What a message means is decided
//! there.

use std::{collections::VecDeque, pin::pin, sync::Arc, time::Duration};

use rimstone_proto::v1::{
    self, consume_request::Kind as RequestKind, consume_response::Kind as ResponseKind,
};
use tokio::{
    sync::mpsc::{self, error::TrySendError},
    time::Instant,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::{
    consumer::{CommitMode, Shared, state::Close},
    error::{ClientError, Code, reason},
    retry::Backoff,
};

/// Requests between the driver and the connection; what is further behind waits in the state.
const REQUESTS_QUEUED: usize = 4;
/// How long a server may take to answer a join.
const OPEN_TIMEOUT: Duration = Duration::from_secs(15);
/// The server's own bound on the time between two heartbeats (`ConsumeHeartbeat` in `consume.proto`).
const HEARTBEAT_MAX: Duration = Duration::from_secs(5);
/// With nothing due, look again after this long.
const IDLE: Duration = Duration::from_secs(60);

/// How a session ended.
enum Ended {
    /// We have left.
    Left,
    /// The group does not count on us any more.
    Fenced(ClientError),
    /// To be tried again.
    Broken(ClientError),
    /// Trying again would not help.
    Refused(ClientError),
}

impl From<ClientError> for Ended {
    fn from(error: ClientError) -> Self {
        if error.is(reason::MEMBER_FENCED) {
            // Two that take each other's place for ever would help nobody: the newer one stays.
            let replaced = error.metadata.get("why").is_some_and(|why| why == "replaced");
            if replaced { Self::Refused(error) } else { Self::Fenced(error) }
        } else if error.is_retriable() {
            Self::Broken(error)
        } else {
            Self::Refused(error)
        }
    }
}

/// An open stream.
struct Link {
    requests: mpsc::Sender<v1::ConsumeRequest>,
    answers: Streaming<v1::ConsumeResponse>,
    /// When the heartbeats that are not answered were sent.
    heartbeats: VecDeque<Instant>,
    heartbeat_at: Instant,
    heartbeat_every: Duration,
    session_timeout: Duration,
    /// We have said that we leave.
    leaving: bool,
}

pub(crate) struct Driver {
    shared: Arc<Shared>,
    backoff: Backoff,
    /// When the server was lost, and not had again yet.
    away_since: Option<Instant>,
    /// When that was last told to the application, or began.
    told_away: Option<Instant>,
    commit_at: Option<Instant>,
    seek_ids: u64,
}

impl Driver {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            backoff: Backoff::default(),
            away_since: None,
            told_away: None,
            commit_at: None,
            seek_ids: 0,
        }
    }

    /// Answers how the end went.
    pub(crate) async fn run(mut self) -> Result<(), ClientError> {
        while self.until_wanted().await {
            match self.session().await {
                Ended::Left => return self.left(),
                Ended::Fenced(error) => {
                    let mut state = self.shared.state.lock();
                    state.lost(&error);
                    // Whoever is stuck must not be given partitions again: the application has to ask.
                    state.wanted = state.waits;
                    state.lease_until = None;
                    drop(state);
                    self.shared.ready.notify_one();
                }
                Ended::Broken(error) => self.broken(&error).await,
                Ended::Refused(error) => {
                    let mut state = self.shared.state.lock();
                    state.lost(&error);
                    state.fail(error.clone());
                    drop(state);
                    self.shared.ready.notify_one();
                    return Err(error);
                }
            }
        }
        self.left()
    }

    fn left(&self) -> Result<(), ClientError> {
        let mut state = self.shared.state.lock();
        let open = !state.commits.is_idle();
        let failure = state.commit_failure.take();
        state.fail(crate::consumer::event::closed());
        match failure {
            Some(error) => Err(error),
            None if open => Err(ClientError::new(
                Code::Unavailable,
                reason::UNREACHABLE,
                "the last commits were not answered in time; they may or may not have been taken",
            )),
            None => Ok(()),
        }
    }

    /// Waits until the application wants a session; false if it wants none any more.
    async fn until_wanted(&self) -> bool {
        loop {
            {
                let state = self.shared.state.lock();
                match state.close {
                    // Without membership there is nothing to commit and nothing to leave.
                    Some(close) => return state.epoch > 0 && Instant::now() < close.deadline,
                    None if state.wanted => return true,
                    None => {}
                }
            }
            self.shared.wake.notified().await;
        }
    }

    /// Waits before the next try; tells the application when its patience is at an end.
    async fn broken(&mut self, error: &ClientError) {
        let now = Instant::now();
        if self.away_since.is_none() {
            let endpoint = self.shared.connection.endpoint();
            tracing::warn!(endpoint, %error, "the session of the group member broke; trying again");
        }
        self.away_since.get_or_insert(now);
        let told = *self.told_away.get_or_insert(now);
        if now.duration_since(told) >= self.shared.config.retry_for {
            self.told_away = Some(now);
            self.shared.state.lock().unreachable(error.clone());
            self.shared.ready.notify_one();
        }
        let until = now + self.backoff.next(error.retry_after);
        let deadline = || self.shared.state.lock().close.map(|close| close.deadline);
        loop {
            let until = deadline().map_or(until, |deadline| deadline.min(until));
            tokio::select! {
                () = tokio::time::sleep_until(until) => return,
                // Only a close changes anything here.
                () = self.shared.wake.notified() => {}
            }
        }
    }

    async fn session(&mut self) -> Ended {
        let mut link = match self.open_in_time().await {
            Ok(link) => link,
            Err(error) => return error.into(),
        };
        let ended = loop {
            match self.turn(&mut link).await {
                Ok(true) => {}
                Ok(false) => break Ended::Left,
                Err(error) => break error.into(),
            }
        };
        self.shared.state.lock().disconnected();
        ended
    }

    async fn open_in_time(&mut self) -> Result<Link, ClientError> {
        let shared = self.shared.clone();
        let latest = Instant::now() + OPEN_TIMEOUT;
        let mut opening = pin!(self.open());
        loop {
            let close = shared.state.lock().close;
            let until = close.map_or(latest, |close| close.deadline.min(latest));
            tokio::select! {
                opened = &mut opening => return opened,
                () = tokio::time::sleep_until(until) => {
                    let endpoint = shared.connection.endpoint();
                    let message = format!("{endpoint} did not answer a join in time");
                    return Err(ClientError::new(Code::Unavailable, reason::UNREACHABLE, message));
                }
                // Perhaps a close.
                () = shared.wake.notified() => {}
            }
        }
    }

    /// Opens a stream and joins, or carries the membership on.
    async fn open(&mut self) -> Result<Link, ClientError> {
        let (join, epoch) = {
            let mut state = self.shared.state.lock();
            let mut join = self.shared.config.join();
            join.member_epoch = state.epoch;
            join.owned = state.carry_on();
            join.credit = Some(state.credit.begin());
            (join, state.epoch)
        };
        let (requests, outgoing) = mpsc::channel(REQUESTS_QUEUED);
        let first = v1::ConsumeRequest { kind: Some(RequestKind::Join(join)) };
        requests.try_send(first).map_err(|_| ClientError::protocol("a new channel has room"))?;
        let sent = Instant::now();
        let outgoing = ReceiverStream::new(outgoing);
        let mut answers = self.shared.connection.consume().consume(outgoing).await?.into_inner();
        let Some(ResponseKind::Joined(joined)) = answers.message().await?.ok_or_else(ended)?.kind else {
            return Err(ClientError::protocol("the first answer of a session is not to the join"));
        };
        let millis = |millis: u32, otherwise: Duration| {
            if millis == 0 { otherwise } else { Duration::from_millis(millis.into()) }
        };
        let session_timeout = millis(joined.session_timeout_ms, self.shared.config.session_timeout);
        let heartbeat_every = millis(joined.heartbeat_interval_ms, HEARTBEAT_MAX).min(session_timeout / 3);
        {
            let mut state = self.shared.state.lock();
            if epoch > 0 && !joined.resumed {
                let message = "the group has forgotten this member; it has joined anew";
                state.lost(&ClientError::new(Code::Aborted, reason::MEMBER_FENCED, message));
            }
            state.epoch = joined.member_epoch;
            state.lease_until = Some(sent + session_timeout);
        }
        if let Some(since) = self.away_since.take() {
            let away_ms = since.elapsed().as_millis() as u64;
            tracing::info!(away_ms, resumed = joined.resumed, "the group member is connected again");
        }
        self.told_away = None;
        self.backoff.reset();
        self.shared.ready.notify_one();
        Ok(Link {
            requests,
            answers,
            heartbeats: VecDeque::new(),
            heartbeat_at: sent + heartbeat_every,
            heartbeat_every,
            session_timeout,
            leaving: false,
        })
    }

    /// Says what is to be said, and waits for one thing to happen. False: we have left.
    async fn turn(&mut self, link: &mut Link) -> Result<bool, ClientError> {
        let now = Instant::now();
        let close = self.shared.state.lock().close;
        if close.is_some_and(|close| now >= close.deadline) {
            return Ok(false);
        }
        let blocked = self.say_all(link, now, close)?;
        let timer = self.timer(link, now, close);
        let requests = link.requests.clone();
        tokio::select! {
            answer = link.answers.message() => match answer? {
                Some(answer) => self.hear(link, answer)?,
                None if link.leaving => return Ok(false),
                None => return Err(ended()),
            },
            () = self.shared.wake.notified() => {}
            () = tokio::time::sleep_until(timer) => {}
            room = requests.reserve(), if blocked => drop(room),
        }
        Ok(true)
    }

    /// Answers whether there is more to say than the connection takes at the moment.
    fn say_all(&mut self, link: &mut Link, now: Instant, close: Option<Close>) -> Result<bool, ClientError> {
        let silent = link.heartbeats.front().is_some_and(|sent| now >= *sent + link.session_timeout / 2);
        if silent {
            let message = format!("no heartbeat was answered for {:?}", link.session_timeout / 2);
            return Err(ClientError::new(Code::Unavailable, reason::UNREACHABLE, message));
        }
        let mut state = self.shared.state.lock();
        if let CommitMode::Automatic(interval) = self.shared.config.commit
            && self.commit_at.is_none_or(|at| now >= at)
        {
            state.commit_processed();
            self.commit_at = Some(now + interval);
        }
        loop {
            let room = match link.requests.try_reserve() {
                Ok(room) => room,
                Err(TrySendError::Full(())) => return Ok(true),
                // The stream has ended; reading from it says why.
                Err(TrySendError::Closed(())) => return Ok(false),
            };
            let kind = if now >= link.heartbeat_at {
                link.heartbeat_at = now + link.heartbeat_every;
                link.heartbeats.push_back(now);
                RequestKind::Heartbeat(v1::ConsumeHeartbeat { progress: state.progress() })
            } else if let Some(kind) = state.next_request(now, &mut self.seek_ids) {
                kind
            } else if let (Some(close), false, true) = (close, link.leaving, state.may_leave()) {
                link.leaving = true;
                RequestKind::Leave(v1::ConsumeLeave { for_good: close.for_good })
            } else {
                return Ok(false);
            };
            room.send(v1::ConsumeRequest { kind: Some(kind) });
        }
    }

    fn timer(&self, link: &Link, now: Instant, close: Option<Close>) -> Instant {
        let silent_at = link.heartbeats.front().map(|sent| *sent + link.session_timeout / 2);
        let commit_at = self.commit_at.filter(|_| self.shared.config.is_automatic());
        let retry_at = self.shared.state.lock().commits.retry_at();
        let others = [silent_at, commit_at, retry_at, close.map(|close| close.deadline)];
        let first = others.into_iter().flatten().chain([link.heartbeat_at]).min();
        first.unwrap_or(now + IDLE)
    }

    fn hear(&self, link: &mut Link, answer: v1::ConsumeResponse) -> Result<(), ClientError> {
        let mut state = self.shared.state.lock();
        let mut proof = None;
        match answer.kind {
            Some(ResponseKind::Start(start)) => state.start(start)?,
            Some(ResponseKind::Stop(stop)) => state.stop(stop),
            Some(ResponseKind::Records(records)) => state.records(records)?,
            Some(ResponseKind::Problem(problem)) => state.problem(problem),
            Some(ResponseKind::Committed(answer)) => {
                proof = Some(state.committed(answer, Instant::now())?);
            }
            Some(ResponseKind::Alive(alive)) => {
                state.epoch = state.epoch.max(alive.member_epoch);
                proof = link.heartbeats.pop_front();
            }
            Some(ResponseKind::Joined(_)) => {
                return Err(ClientError::protocol("the server answered a join that was not sent"));
            }
            // Of a newer server; nothing that we have asked for.
            None => {}
        }
        // The server counts from when it heard us, which is after we spoke.
        let proven = proof.map(|sent| sent + link.session_timeout);
        state.lease_until = state.lease_until.max(proven);
        drop(state);
        self.shared.ready.notify_one();
        Ok(())
    }
}

fn ended() -> ClientError {
    ClientError::new(Code::Unavailable, reason::UNREACHABLE, "the server ended the session's stream")
}
