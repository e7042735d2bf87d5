//! `Consume`: the stream of a group member. It reads what the member says while it sends what the member is
//! given; a member that does not read is still heard. Not here: what any of it means (the broker's session).

use std::time::Duration;

use futures::{FutureExt as _, future::BoxFuture};
use prost::Message as _;
use rimstone_broker::{
    Assignor, ChunkContent, Credit, JoinRequest, MemberSession, OffsetToCommit, ReadFormat, Reservation,
    ReserveError, SeekTo, SessionCommitted, SessionEvent, SessionRecords, StartPolicy, StartedPartition,
};
use rimstone_proto::v1::{
    self, ConsumeRequest, ConsumeResponse, consume_request::Kind as Request,
    consume_response::Kind as Answer, consume_seek::To,
};
use rimstone_types::{ByteCount, GroupEpoch, PartitionIndex, Timestamp, TopicName};
use tokio::{sync::mpsc, time::timeout};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use crate::{
    convert::{
        encoded_batch, group_name, instance_id, known, log_ends, member_id, offset, stored_record,
        topic_name, visibility,
    },
    door::Door,
    explain::explained,
    group::{offsets_to_commit, topic_partitions},
    receive::Received,
    refusal::Refusal,
    status::{partition_refusal, refusal},
};

/// Answers that wait for the connection. One, because a message of records is as large as the member allows.
const ANSWERS_WAITING_MAX: usize = 1;

/// The first message must come this soon: an open stream holds a task.
const JOIN_WAIT_MAX: Duration = Duration::from_secs(30);

type Outgoing = Result<ConsumeResponse, Status>;

/// Serves a stream in a task of its own; the answers are what is received.
pub(super) fn open(
    door: Door,
    host: String,
    received: Received,
    requests: Streaming<ConsumeRequest>,
) -> mpsc::Receiver<Outgoing> {
    let (answers, outgoing) = mpsc::channel(ANSWERS_WAITING_MAX);
    let stop = door.broker.shutdown_token();
    tokio::spawn(ConsumeStream { door, host, received, stop, answers }.serve(requests));
    outgoing
}

struct ConsumeStream {
    door: Door,
    /// Where the member connects from.
    host: String,
    received: Received,
    stop: CancellationToken,
    answers: mpsc::Sender<Outgoing>,
}

/// A commit of up to so many bytes goes without room where there is none, one of a session at a time: those who commit
/// must not have to wait for those who fill the server's budget. 4,000 sessions hold 64 MiB so, at most.
const COMMIT_WITHOUT_ROOM_MAX: u64 = 16 << 10;

/// A commit that waits for room in the server's budget. Meanwhile the member is told what there is to tell.
struct Waiting {
    bytes: u64,
    correlation: u64,
    offsets: Vec<OffsetToCommit>,
    room: BoxFuture<'static, Result<Reservation, ReserveError>>,
}

/// Why a stream ends.
enum End {
    /// The client is gone, or has sent everything.
    Gone,
    /// The member has left; what is still to be said to it.
    Left(Vec<SessionEvent>),
    Refused(Refusal),
}

impl From<Refusal> for End {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl ConsumeStream {
    async fn serve(self, mut requests: Streaming<ConsumeRequest>) {
        match self.session(&mut requests).await {
            End::Gone => {}
            End::Left(events) => {
                for event in events {
                    // An error means that the client has gone, which is an end as well.
                    drop(self.answers.send(Ok(response(event))).await);
                }
            }
            End::Refused(refusal) => {
                self.door.count(&refusal);
                drop(self.answers.send(Err(refusal.into_status())).await);
            }
        }
    }

    async fn session(&self, requests: &mut Streaming<ConsumeRequest>) -> End {
        let mut session = match self.join(requests).await {
            Ok(session) => session,
            Err(end) => return end,
        };
        if self.answers.send(Ok(joined(&session))).await.is_err() {
            return End::Gone;
        }
        let mut waiting: Option<Waiting> = None;
        loop {
            if let Some(room) = waiting.as_mut().and_then(|waiting| at_hand(&session, waiting))
                && let Err(refusal) = commit(&mut session, &mut waiting, room)
            {
                return refusal.into();
            }
            let takes_messages = session.takes_messages();
            let told = async {
                // Room first: what is taken from the session can then be sent.
                let room = tokio::select! {
                    biased;
                    room = self.answers.reserve() => room.map_err(|_| End::Gone)?,
                    never = session.hear() => match never {},
                };
                let event = session.next().await.map_err(|error| End::Refused(refusal(&error)))?;
                Ok::<_, End>((room, event))
            };
            let message = tokio::select! {
                () = self.stop.cancelled() => return Refusal::shutting_down().into(),
                () = self.answers.closed() => return End::Gone,
                told = told => match told {
                    Ok((room, event)) => {
                        room.send(Ok(response(event)));
                        continue;
                    }
                    Err(end) => return end,
                },
                room = room(&mut waiting) => match commit(&mut session, &mut waiting, room.map(Some)) {
                    Ok(()) => continue,
                    Err(refusal) => return refusal.into(),
                },
                message = requests.message(), if takes_messages => message,
            };
            // Room that the message took while it arrived; commits keep it until they are answered.
            let room = self.received.take();
            let kind = match message {
                Ok(None) => return End::Gone,
                Err(status) => return End::Refused(explained(&status)),
                Ok(Some(message)) => message.kind,
            };
            match kind {
                Some(Request::Leave(leave)) => {
                    // Commits and the leave wait for syncs; a stop waits for what is then to be said.
                    let _held = self.door.open.hold();
                    let (events, left) = session.leave(leave.for_good).await;
                    return match left {
                        Ok(()) => End::Left(events),
                        Err(error) => refusal(&error).into(),
                    };
                }
                Some(Request::Commit(asked)) => match self.room_for(asked, room) {
                    Ok(asked) => {
                        session.waits_for_room(true);
                        waiting = Some(asked);
                    }
                    Err(refusal) => return refusal.into(),
                },
                Some(kind) => {
                    if let Err(refusal) = take(&mut session, kind) {
                        return refusal.into();
                    }
                }
                None => return Refusal::invalid("a message of a consume stream has no kind").into(),
            }
        }
    }

    /// Takes the first message and joins.
    async fn join(&self, requests: &mut Streaming<ConsumeRequest>) -> Result<MemberSession, End> {
        let first = tokio::select! {
            biased;
            () = self.stop.cancelled() => return Err(Refusal::shutting_down().into()),
            first = timeout(JOIN_WAIT_MAX, requests.message()) => first,
        };
        let message = match first {
            Err(_) => {
                return Err(Refusal::invalid("the first message, join, did not come within 30 s").into());
            }
            Ok(Err(status)) => return Err(explained(&status).into()),
            Ok(Ok(message)) => message,
        };
        let Some(Request::Join(join)) = message.and_then(|message| message.kind) else {
            return Err(Refusal::invalid("the first message of a consume stream must be join").into());
        };
        let request = join_request(join, self.host.clone())?;
        let session = self.door.broker.join_group(request).await;
        Ok(session.map_err(|error| refusal(&error))?)
    }

    /// A commit with the room that it keeps until it is answered: that in which it arrived, or some that is to come.
    fn room_for(&self, commit: v1::ConsumeCommit, room: Option<Reservation>) -> Result<Waiting, Refusal> {
        let bytes = ByteCount(commit.encoded_len() as u64);
        let broker = self.door.broker.clone();
        Ok(Waiting {
            bytes: bytes.get(),
            correlation: commit.correlation_id,
            offsets: offsets_to_commit(commit.offsets)?,
            room: Box::pin(async move {
                match room {
                    Some(room) => Ok(room),
                    None => broker.reserve(bytes).await,
                }
            }),
        })
    }
}

/// Waits for the room of a commit, for ever if none waits.
async fn room(waiting: &mut Option<Waiting>) -> Result<Reservation, ReserveError> {
    match waiting {
        Some(waiting) => waiting.room.as_mut().await,
        None => std::future::pending().await,
    }
}

/// The room of a commit if there is some, or none if it goes without.
fn at_hand(
    session: &MemberSession,
    waiting: &mut Waiting,
) -> Option<Result<Option<Reservation>, ReserveError>> {
    match waiting.room.as_mut().now_or_never() {
        Some(room) => Some(room.map(Some)),
        None if waiting.bytes <= COMMIT_WITHOUT_ROOM_MAX && !session.commits_without_room() => Some(Ok(None)),
        None => None,
    }
}

/// Hands on the commit that has waited.
fn commit(
    session: &mut MemberSession,
    waiting: &mut Option<Waiting>,
    room: Result<Option<Reservation>, ReserveError>,
) -> Result<(), Refusal> {
    let Some(Waiting { correlation, offsets, .. }) = waiting.take() else { return Ok(()) };
    session.waits_for_room(false);
    let room = room.map_err(|error| refusal(&error))?;
    session.commit(correlation, offsets, room).map_err(|error| refusal(&error))
}

/// Takes a message other than a commit and a leave.
fn take(session: &mut MemberSession, kind: Request) -> Result<(), Refusal> {
    match kind {
        Request::Join(_) => {
            return Err(Refusal::invalid("join must be the first message, and only the first"));
        }
        Request::Credit(credit) => session.credit(credit_in(credit)),
        Request::Stopped(stopped) => session.stopped(topic_partitions(&stopped.partitions)?),
        Request::Seek(seek) => {
            let to = match seek.to {
                Some(To::Offset(at)) => SeekTo::Offset(offset(at)?),
                Some(To::Earliest(_)) => SeekTo::Earliest,
                Some(To::Latest(_)) => SeekTo::Latest,
                Some(To::TimeMs(time)) => SeekTo::Time(Timestamp(time)),
                None => {
                    return Err(Refusal::invalid("say where to seek: offset, earliest, latest or time_ms"));
                }
            };
            session.seek(topic_name(&seek.topic)?, PartitionIndex(seek.partition), to, seek.seek_id);
        }
        Request::Pause(pause) => session.pause(&topic_partitions(&pause.partitions)?, true),
        Request::Resume(resume) => session.pause(&topic_partitions(&resume.partitions)?, false),
        Request::Heartbeat(heartbeat) => session.heartbeat(heartbeat.progress),
        // The caller takes these.
        Request::Commit(_) | Request::Leave(_) => {}
    }
    Ok(())
}

fn join_request(join: v1::ConsumeJoin, host: String) -> Result<JoinRequest, Refusal> {
    let some = |text: String| (!text.is_empty()).then_some(text);
    let millis = |millis: u32| (millis > 0).then(|| Duration::from_millis(millis.into()));
    let assignor: v1::Assignor = known("assignor", join.assignor)?;
    let start: v1::StartPolicy = known("start", join.start)?;
    let isolation: v1::Isolation = known("isolation", join.isolation)?;
    let format: v1::RecordFormat = known("format", join.format)?;
    let position = |owned: v1::ConsumePosition| {
        Ok((topic_name(&owned.topic)?, PartitionIndex(owned.partition), offset(owned.offset)?))
    };
    Ok(JoinRequest {
        group: group_name(&join.group)?,
        member: some(join.member_id).map(|id| member_id(&id)).transpose()?,
        instance: some(join.instance_id).map(|id| instance_id(&id)).transpose()?,
        client_id: join.client_id,
        host,
        topics: join.topics.iter().map(|name| topic_name(name)).collect::<Result<_, _>>()?,
        topic_prefix: some(join.topic_prefix),
        assignor: match assignor {
            v1::Assignor::Unspecified => None,
            v1::Assignor::Sticky => Some(Assignor::Sticky),
            v1::Assignor::Range => Some(Assignor::Range),
            v1::Assignor::RoundRobin => Some(Assignor::RoundRobin),
        },
        start: match start {
            v1::StartPolicy::Unspecified | v1::StartPolicy::Error => StartPolicy::Error,
            v1::StartPolicy::Earliest => StartPolicy::Earliest,
            v1::StartPolicy::Latest => StartPolicy::Latest,
        },
        visibility: visibility(isolation),
        format: match format {
            v1::RecordFormat::Batches => ReadFormat::Batches,
            v1::RecordFormat::Unspecified | v1::RecordFormat::Records => ReadFormat::Records,
        },
        session_timeout: millis(join.session_timeout_ms),
        max_poll_interval: millis(join.max_poll_interval_ms),
        credit: join.credit.map(credit_in).unwrap_or_default(),
        epoch: GroupEpoch(join.member_epoch),
        positions: join.owned.into_iter().map(position).collect::<Result<_, Refusal>>()?,
        message_bytes: (join.max_message_bytes > 0).then_some(ByteCount(join.max_message_bytes.into())),
    })
}

fn credit_in(credit: v1::ConsumeCredit) -> Credit {
    Credit { bytes: credit.bytes, records: credit.records }
}

fn joined(session: &MemberSession) -> ConsumeResponse {
    let millis = |duration: Duration| u32::try_from(duration.as_millis()).unwrap_or(u32::MAX);
    let facts = session.facts();
    let joined = v1::ConsumeJoined {
        member_id: facts.member.to_string(),
        member_epoch: facts.epoch.0,
        session_timeout_ms: millis(facts.session_timeout),
        heartbeat_interval_ms: millis(facts.heartbeat_interval),
        max_poll_interval_ms: millis(facts.max_poll_interval),
        resumed: facts.resumed,
    };
    ConsumeResponse { kind: Some(Answer::Joined(joined)) }
}

fn response(event: SessionEvent) -> ConsumeResponse {
    let kind = match event {
        SessionEvent::Start { epoch, partitions } => Answer::Start(v1::ConsumeStart {
            member_epoch: epoch.0,
            partitions: partitions.into_iter().map(started).collect(),
        }),
        SessionEvent::Stop { epoch, partitions } => Answer::Stop(v1::ConsumeStop {
            member_epoch: epoch.0,
            partitions: partitions.into_iter().map(topic_partition).collect(),
        }),
        SessionEvent::Records(records) => Answer::Records(records_out(records)),
        SessionEvent::Committed { correlation, results } => Answer::Committed(v1::ConsumeCommitted {
            correlation_id: correlation,
            results: results.into_iter().map(committed).collect(),
        }),
        SessionEvent::Alive { epoch } => Answer::Alive(v1::ConsumeAlive { member_epoch: epoch.0 }),
        SessionEvent::Problem { topic, partition, error } => Answer::Problem(v1::ConsumeProblem {
            error: Some(partition_refusal(&error, &topic, partition).into_item()),
            topic: topic.into(),
            partition: partition.0,
        }),
    };
    ConsumeResponse { kind: Some(kind) }
}

fn started(started: StartedPartition) -> v1::ConsumeStarted {
    v1::ConsumeStarted {
        topic: started.topic.into(),
        partition: started.partition.0,
        offset: started.offset.map(|offset| offset.get()),
        committed_offset: started.committed.map(|offset| offset.get()),
        ends: started.ends.map(log_ends),
    }
}

fn topic_partition((topic, partition): (TopicName, PartitionIndex)) -> v1::TopicPartition {
    v1::TopicPartition { topic: topic.into(), partition: partition.0 }
}

fn records_out(read: SessionRecords) -> v1::ConsumeRecords {
    let (records, batches) = match read.content {
        ChunkContent::Records(records) => (records.into_iter().map(stored_record).collect(), Vec::new()),
        ChunkContent::Batches(batches) => (Vec::new(), batches.into_iter().map(encoded_batch).collect()),
    };
    v1::ConsumeRecords {
        topic: read.topic.into(),
        records: Some(v1::PartitionRecords {
            partition: read.partition.0,
            records,
            batches,
            next_offset: read.next.get(),
            ends: Some(log_ends(read.ends)),
            error: None,
        }),
        seek_id: read.seek_id,
        used: Some(v1::ConsumeCredit { bytes: read.used.bytes, records: read.used.records }),
    }
}

fn committed(committed: SessionCommitted) -> v1::OffsetCommitResult {
    let SessionCommitted { topic, partition, result } = committed;
    let (flags, error) = match result {
        Ok(flags) => (flags, None),
        Err(error) => (Default::default(), Some(partition_refusal(&error, &topic, partition).into_item())),
    };
    v1::OffsetCommitResult {
        topic: topic.into(),
        partition: partition.0,
        below_log_start: flags.below_log_start,
        backwards: flags.backwards,
        error,
    }
}
