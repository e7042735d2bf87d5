//! A member of a group with nothing but the generated stubs, which writes down everything that it sees and
//! does. It works on records one by one and commits after them, confirms stops, goes on after a broken stream
//! with what it owns, begins anew when it is shut out, ends when another takes its place, and leaves on SIGTERM.
//!
//! Not here: pauses, seeks, prefetching on the side of the work.

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use rimstone_proto::v1::{
    self, consume_request::Kind as Request, consume_response::Kind as Response,
    consume_service_client::ConsumeServiceClient,
};
use serde::{Deserialize, Serialize};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming, transport::Endpoint};
use tonic_types::{ErrorInfo, StatusExt as _};

use crate::{
    group::event::{Recorder, What},
    input::NUMBER_HEADER,
};

/// What the server may send ahead: little, so that partitions change hands in the middle of things.
const CREDIT: v1::ConsumeCredit = v1::ConsumeCredit { bytes: 64 << 10, records: 1_000 };

/// Messages of a few dozen records, for the same reason.
const MESSAGE_BYTES: u32 = 8 << 10;

/// Messages to the server that wait for the connection. More than any step sends.
const OUTGOING: usize = 256;

/// Before the next try after a broken stream.
const BACKOFF: Duration = Duration::from_millis(50);

/// How long a server may take to take a connection or a message, or to end a stream.
const PATIENCE: Duration = Duration::from_secs(20);

/// How a member is to behave; one JSON object on the command line.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Options {
    /// `HOST:PORT`.
    pub server: String,
    /// Its group.
    pub group: String,
    /// Its own name.
    pub member: String,
    /// Set for a static member.
    pub instance: Option<String>,
    /// What it reads.
    pub topic: String,
    /// Where it writes, see [`super::event`].
    pub history: PathBuf,
    /// Its session time-out.
    pub session_timeout_ms: u32,
    /// How many records it works on in a millisecond.
    pub records_per_ms: u32,
    /// Of its choices: after which messages it commits.
    pub seed: u64,
}

#[derive(Debug, Clone, Copy)]
struct Owned {
    position: u64,
    committed: u64,
}

enum End {
    Left,
    Broken(String),
    Fenced {
        why: String,
        /// By another process under the same name: this one is not wanted any more.
        replaced: bool,
    },
}

struct Member {
    options: Options,
    recorder: Recorder,
    random: StdRng,
    terminate: Signal,
    epoch: u32,
    owned: BTreeMap<u32, Owned>,
    /// Since the last pause for breath.
    worked: u32,
    commits: u64,
    /// What each commit without an answer is of.
    open: HashMap<u64, Vec<(u64, u32)>>,
}

/// Takes part until SIGTERM, or until another takes its place.
///
/// # Errors
/// If the server answers what it must not, or the history cannot be written.
pub async fn run(options: Options) -> anyhow::Result<()> {
    let mut member = Member {
        recorder: Recorder::create(&options.history).context("the history cannot be begun")?,
        random: StdRng::seed_from_u64(options.seed),
        terminate: signal(SignalKind::terminate())?,
        epoch: 0,
        owned: BTreeMap::new(),
        worked: 0,
        commits: 0,
        open: HashMap::new(),
        options,
    };
    loop {
        let ended = member.session().await?;
        if !member.open.is_empty() {
            // Nobody knows what became of these: to be committed again.
            member.open.clear();
            member.owned.values_mut().for_each(|owned| owned.committed = 0);
        }
        match ended {
            End::Left => return Ok(()),
            End::Broken(why) => member.recorder.record(What::Broken { why })?,
            End::Fenced { why, replaced } => {
                member.recorder.record(What::Fenced { why })?;
                if replaced {
                    return Ok(());
                }
                member.epoch = 0;
                member.owned.clear();
            }
        }
        tokio::select! {
            // Nobody there to say it to: the session ends by its time-out.
            _ = member.terminate.recv() => return Ok(()),
            () = sleep(BACKOFF) => {}
        }
    }
}

/// How a stream ended with this status.
fn end_of(status: &Status) -> End {
    let info = status.get_details_error_info().unwrap_or_else(|| ErrorInfo::new("", "", HashMap::new()));
    let why = format!("{:?} {}: {}", status.code(), info.reason, status.message());
    if status.code() != Code::Aborted || info.reason != "MEMBER_FENCED" {
        return End::Broken(why);
    }
    End::Fenced { why, replaced: info.metadata.get("why").is_some_and(|why| why == "replaced") }
}

/// Messages to the server; `Err` tells how the stream ended.
struct Out(mpsc::Sender<v1::ConsumeRequest>);

impl Out {
    async fn send(&self, kind: Request) -> Result<(), End> {
        let sent = self.0.send_timeout(v1::ConsumeRequest { kind: Some(kind) }, PATIENCE).await;
        sent.map_err(|error| End::Broken(format!("nothing can be sent: {error}")))
    }
}

/// A session that ended, or a program that cannot go on.
enum Stop {
    Session(End),
    Program(anyhow::Error),
}

impl From<End> for Stop {
    fn from(end: End) -> Self {
        Self::Session(end)
    }
}

impl<E: Into<anyhow::Error>> From<E> for Stop {
    fn from(error: E) -> Self {
        Self::Program(error.into())
    }
}

impl Member {
    async fn session(&mut self) -> anyhow::Result<End> {
        match self.stream().await {
            Ok(end) | Err(Stop::Session(end)) => Ok(end),
            Err(Stop::Program(error)) => Err(error),
        }
    }

    async fn stream(&mut self) -> Result<End, Stop> {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.options.server))?;
        let channel = match endpoint.connect_timeout(PATIENCE).connect().await {
            Ok(channel) => channel,
            Err(error) => return Ok(End::Broken(format!("no connection: {error}"))),
        };
        let (sender, receiver) = mpsc::channel(OUTGOING);
        let out = Out(sender);
        self.recorder.record(What::Join { epoch: self.epoch })?;
        out.send(Request::Join(self.join())).await?;
        let call = ConsumeServiceClient::new(channel).consume(ReceiverStream::new(receiver)).await;
        let mut answers = match call {
            Ok(answer) => answer.into_inner(),
            Err(status) => return Ok(end_of(&status)),
        };
        let third = Duration::from_millis(u64::from(self.options.session_timeout_ms) / 3);
        let mut beats = interval(third.min(Duration::from_secs(5)));
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut joined = false;
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return self.leave(&out, &mut answers).await,
                _ = beats.tick(), if joined => {
                    self.commit_all(&out).await?;
                    self.recorder.record(What::Beat)?;
                    out.send(Request::Heartbeat(v1::ConsumeHeartbeat { progress: true })).await?;
                }
                answer = answers.message() => match answer {
                    Ok(Some(answer)) => {
                        let kind = answer.kind.context("an answer of no kind")?;
                        self.take(kind, &mut joined, &out).await?;
                    }
                    Ok(None) => return Ok(End::Broken("the server has ended the stream".to_owned())),
                    Err(status) => return Ok(end_of(&status)),
                },
            }
        }
    }

    fn join(&self) -> v1::ConsumeJoin {
        let position = |(&partition, owned): (&u32, &Owned)| v1::ConsumePosition {
            topic: self.options.topic.clone(),
            partition,
            offset: owned.position,
        };
        v1::ConsumeJoin {
            group: self.options.group.clone(),
            member_id: self.options.member.clone(),
            instance_id: self.options.instance.clone().unwrap_or_default(),
            topics: vec![self.options.topic.clone()],
            start: v1::StartPolicy::Earliest.into(),
            session_timeout_ms: self.options.session_timeout_ms,
            client_id: "rimstone-member".to_owned(),
            credit: Some(CREDIT),
            member_epoch: self.epoch,
            owned: self.owned.iter().map(position).collect(),
            max_message_bytes: MESSAGE_BYTES,
            ..Default::default()
        }
    }

    async fn take(&mut self, answer: Response, joined: &mut bool, out: &Out) -> Result<(), Stop> {
        match answer {
            Response::Joined(answer) => {
                *joined = true;
                if !answer.resumed {
                    self.owned.clear();
                }
                self.epoch = answer.member_epoch;
                let (epoch, resumed) = (answer.member_epoch, answer.resumed);
                self.recorder.record(What::Joined { epoch, resumed })?;
            }
            Response::Start(start) => self.start(&start)?,
            Response::Stop(stop) => self.stop(stop, out).await?,
            Response::Records(records) => self.work(records, out).await?,
            Response::Committed(answer) => self.committed(&answer)?,
            Response::Alive(alive) => {
                self.epoch = alive.member_epoch;
                self.recorder.record(What::Alive { epoch: alive.member_epoch })?;
            }
            Response::Problem(problem) => {
                let why = problem.error.map_or_else(String::new, |error| error.reason);
                self.recorder.record(What::Problem { partition: problem.partition, why })?;
            }
        }
        Ok(())
    }

    fn start(&mut self, start: &v1::ConsumeStart) -> anyhow::Result<()> {
        self.epoch = start.member_epoch;
        for started in &start.partitions {
            let (partition, offset, committed) =
                (started.partition, started.offset, started.committed_offset);
            self.recorder.record(What::Start { epoch: start.member_epoch, partition, offset, committed })?;
            let position = offset.unwrap_or(0);
            self.owned.insert(partition, Owned { position, committed: committed.unwrap_or(0) });
        }
        Ok(())
    }

    /// Works on records, and commits now and then.
    async fn work(&mut self, message: v1::ConsumeRecords, out: &Out) -> Result<(), Stop> {
        let records = message.records.context("records of no partition")?;
        let partition = records.partition;
        for record in &records.records {
            let number = record.headers.iter().find(|header| header.key == NUMBER_HEADER);
            let number =
                number.and_then(|header| header.value.as_deref()).context("a record without its line")?;
            let number = std::str::from_utf8(number)?.parse()?;
            self.recorder.record(What::Done { partition, offset: record.offset, number })?;
            if let Some(owned) = self.owned.get_mut(&partition) {
                owned.position = record.offset + 1;
            }
            self.worked += 1;
            if self.worked.is_multiple_of(self.options.records_per_ms) {
                sleep(Duration::from_millis(1)).await;
            }
        }
        if self.random.random_bool(0.5) {
            self.commit(&[partition], out).await?;
        }
        if let Some(used) = message.used {
            out.send(Request::Credit(used)).await?;
        }
        Ok(())
    }

    /// Commits what was worked on, where that is news.
    async fn commit(&mut self, partitions: &[u32], out: &Out) -> Result<(), Stop> {
        let mut offsets = Vec::new();
        let mut ids = Vec::new();
        for &partition in partitions {
            let Some(owned) = self.owned.get_mut(&partition) else { continue };
            if owned.position <= owned.committed {
                continue;
            }
            owned.committed = owned.position;
            self.commits += 1;
            let (id, offset) = (self.commits, owned.position);
            self.recorder.record(What::Commit { id, partition, offset })?;
            ids.push((id, partition));
            let topic = self.options.topic.clone();
            offsets.push(v1::OffsetCommit { topic, partition, offset: Some(offset), ..Default::default() });
        }
        let Some(&(correlation_id, _)) = ids.first() else { return Ok(()) };
        self.open.insert(correlation_id, ids);
        out.send(Request::Commit(v1::ConsumeCommit { correlation_id, offsets })).await?;
        Ok(())
    }

    async fn commit_all(&mut self, out: &Out) -> Result<(), Stop> {
        let all: Vec<_> = self.owned.keys().copied().collect();
        self.commit(&all, out).await
    }

    fn committed(&mut self, answer: &v1::ConsumeCommitted) -> anyhow::Result<()> {
        let ids = self.open.remove(&answer.correlation_id).context("an answer to no commit")?;
        ensure!(ids.len() == answer.results.len(), "{} commits, {} results", ids.len(), answer.results.len());
        for ((id, partition), result) in ids.into_iter().zip(&answer.results) {
            ensure!(result.partition == partition, "results are not in the order of the commits");
            let refused = result.error.as_ref().map(|error| error.reason.clone());
            if refused.is_some()
                && let Some(owned) = self.owned.get_mut(&partition)
            {
                // To be committed again.
                owned.committed = 0;
            }
            self.recorder.record(What::Committed { id, refused })?;
        }
        Ok(())
    }

    /// Commits, and gives partitions back without waiting for the commit's answer.
    async fn stop(&mut self, stop: v1::ConsumeStop, out: &Out) -> Result<(), Stop> {
        let numbers: Vec<_> = stop.partitions.iter().map(|stopping| stopping.partition).collect();
        for &partition in &numbers {
            self.recorder.record(What::Stop { epoch: stop.member_epoch, partition })?;
        }
        self.commit(&numbers, out).await?;
        for partition in numbers {
            self.owned.remove(&partition);
            self.recorder.record(What::Stopped { partition })?;
        }
        out.send(Request::Stopped(v1::ConsumeStopped { partitions: stop.partitions })).await?;
        Ok(())
    }

    /// Commits everything, leaves for good, and waits for the server to end the stream.
    async fn leave(&mut self, out: &Out, answers: &mut Streaming<v1::ConsumeResponse>) -> Result<End, Stop> {
        self.commit_all(out).await?;
        self.recorder.record(What::Leave)?;
        self.owned.clear();
        out.send(Request::Leave(v1::ConsumeLeave { for_good: true })).await?;
        loop {
            match timeout(PATIENCE, answers.message()).await {
                Ok(Ok(Some(answer))) => {
                    if let Some(Response::Committed(answer)) = answer.kind {
                        self.committed(&answer)?;
                    }
                }
                // It may have broken: then the session ends by its time-out.
                Ok(Ok(None) | Err(_)) => return Ok(End::Left),
                Err(_) => return Err(anyhow::anyhow!("the stream did not end after leave").into()),
            }
        }
    }
}
