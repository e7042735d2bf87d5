//! What a session has asked its shard: sent in order, answered in order.

use std::{collections::VecDeque, sync::Arc};

use rimstone_store::Visibility;
use rimstone_types::{GroupEpoch, GroupName, MemberId, PartitionIndex, TopicName};
use tokio::sync::{
    mpsc::{self, error::TrySendError},
    oneshot,
};

use super::{SessionCommitted, SessionEvent};
use crate::{
    coordinator::{Command, Now},
    error::{GroupRequestError, SessionCommitError, ShuttingDown},
    groups::{Begun, Committing, OffsetCommitted, OffsetToCommit, ToBegin, begin, commit},
    reserve::Reservation,
};

/// Commits of one session that wait for their answers; then no more of the stream is read.
const COMMITS_MAX: usize = 64;

type Answer<T> = oneshot::Receiver<Result<T, GroupRequestError>>;

/// Partitions of one request.
pub(super) type Named = Vec<(TopicName, PartitionIndex)>;

/// Asked, and not yet answered.
#[derive(Debug)]
enum Asked {
    Commit {
        correlation: u64,
        named: Named,
        answer: Answer<Vec<OffsetCommitted>>,
        /// For the request's bytes.
        room: Option<Reservation>,
    },
    Stopped {
        named: Named,
        answer: Answer<()>,
    },
    Begin {
        number: u64,
        named: Named,
        answer: Answer<Vec<Begun>>,
    },
}

/// What the shard has answered.
#[derive(Debug)]
pub(super) enum Answered {
    Commit { correlation: u64, named: Named, result: Result<Vec<OffsetCommitted>, GroupRequestError> },
    Stopped { named: Named, result: Result<(), GroupRequestError> },
    Begun { number: u64, named: Named, result: Result<Vec<Begun>, GroupRequestError> },
}

/// The way to the shard.
#[derive(Debug)]
pub(super) struct Outbox {
    group: GroupName,
    member: MemberId,
    token: u64,
    mailbox: mpsc::Sender<Command>,
    /// What found the mailbox full, or stands behind it.
    unsent: VecDeque<Command>,
    asked: VecDeque<Asked>,
    /// The oldest answer, if it has come and was not taken.
    answered: Option<Answered>,
}

impl Outbox {
    pub(super) fn new(
        group: GroupName,
        member: MemberId,
        token: u64,
        mailbox: mpsc::Sender<Command>,
    ) -> Self {
        Self {
            group,
            member,
            token,
            mailbox,
            unsent: VecDeque::new(),
            asked: VecDeque::new(),
            answered: None,
        }
    }

    pub(super) fn has_room(&self) -> bool {
        self.asked.len() + usize::from(self.answered.is_some()) < COMMITS_MAX
    }

    /// Whether a commit that came without room waits for its answer.
    pub(super) fn commits_without_room(&self) -> bool {
        self.asked.iter().any(|asked| matches!(asked, Asked::Commit { room: None, .. }))
    }

    pub(super) fn is_idle(&self) -> bool {
        self.asked.is_empty() && self.answered.is_none()
    }

    pub(super) fn commit(
        &mut self,
        correlation: u64,
        offsets: Vec<OffsetToCommit>,
        room: Option<Reservation>,
    ) {
        let named = offsets.iter().map(|offset| (offset.topic.clone(), offset.partition)).collect();
        let (group, by) = (self.group.clone(), Committing::Session(self.member.clone(), self.token));
        let (reply, answer) = oneshot::channel();
        self.send(Command::ask(reply, move |now| commit(now, &group, by, offsets)));
        self.asked.push_back(Asked::Commit { correlation, named, answer, room });
    }

    /// Tells that partitions are read no more, as was asked at an epoch.
    pub(super) fn stopped(&mut self, epoch: GroupEpoch, named: Named) {
        let (group, member, token) = (self.group.clone(), self.member.clone(), self.token);
        let mut stopped = named.clone();
        let (reply, answer) = oneshot::channel();
        self.send(Command::ask(reply, move |now: &Now<'_>| {
            now.check_session(&group, &member, token)?;
            let view = now.groups.view(&group, &member).expect("who has a session is a member");
            // What it was given again meanwhile is its own, or another stop by now: a later view says so.
            let is_same = view.epoch == epoch;
            let stopping = &view.assignment.stopping;
            stopped.retain(|(topic, partition)| is_same && stopping.contains(topic, *partition));
            let decision = now.groups.confirm_stop(&group, &member, view.epoch, &stopped)?;
            Ok(rimstone_state::group::Decision { records: decision.records, answer: () })
        }));
        self.asked.push_back(Asked::Stopped { named, answer });
    }

    /// Asks where partitions begin under the start policy `latest`.
    pub(super) fn begin(&mut self, number: u64, visibility: Visibility, partitions: Vec<ToBegin>) {
        let named = partitions.iter().map(|begin| (begin.topic.clone(), begin.partition)).collect();
        let (group, member, token) = (self.group.clone(), self.member.clone(), self.token);
        let (reply, answer) = oneshot::channel();
        self.send(Command::ask(reply, move |now| {
            begin(now, &group, (&member, token), visibility, partitions)
        }));
        self.asked.push_back(Asked::Begin { number, named, answer });
    }

    fn send(&mut self, command: Command) {
        if !self.unsent.is_empty() {
            return self.unsent.push_back(command);
        }
        match self.mailbox.try_send(command) {
            Ok(()) => {}
            Err(TrySendError::Full(command)) => self.unsent.push_back(command),
            // The shard has stopped with the server: the answer never comes, which says so.
            Err(TrySendError::Closed(_)) => {}
        }
    }

    /// Sends what is not sent; answers the oldest answer. Pending while there is neither. Nothing is lost if
    /// this is dropped.
    pub(super) async fn next(&mut self) -> Answered {
        match self.answered.take() {
            Some(answered) => answered,
            None => self.oldest().await,
        }
    }

    /// As [`next`](Self::next), but leaves the answer where it is.
    pub(super) async fn wait(&mut self) {
        if self.answered.is_none() {
            self.answered = Some(self.oldest().await);
        }
    }

    async fn oldest(&mut self) -> Answered {
        loop {
            let Self { mailbox, unsent, asked, .. } = self;
            let Some(oldest) = asked.front_mut() else { return std::future::pending().await };
            tokio::select! {
                biased;
                room = mailbox.reserve(), if !unsent.is_empty() => match (room, unsent.pop_front()) {
                    (Ok(room), Some(command)) => room.send(command),
                    _ => unsent.clear(),
                },
                answered = oldest.answered() => {
                    asked.pop_front();
                    return answered;
                }
            }
        }
    }

    /// The oldest answer, if it is there.
    pub(super) fn try_next(&mut self) -> Option<Answered> {
        futures::FutureExt::now_or_never(self.next())
    }
}

impl Asked {
    /// Must not be called again once it has answered.
    async fn answered(&mut self) -> Answered {
        let gone = |_| Err(ShuttingDown.into());
        match self {
            Self::Commit { correlation, named, answer, .. } => {
                let result = answer.await.unwrap_or_else(gone);
                Answered::Commit { correlation: *correlation, named: std::mem::take(named), result }
            }
            Self::Stopped { named, answer } => {
                let result = answer.await.unwrap_or_else(|_| Err(ShuttingDown.into()));
                Answered::Stopped { named: std::mem::take(named), result }
            }
            Self::Begin { number, named, answer } => {
                let result = answer.await.unwrap_or_else(|_| Err(ShuttingDown.into()));
                Answered::Begun { number: *number, named: std::mem::take(named), result }
            }
        }
    }
}

/// The answer to a commit as the member is given it: what refuses the whole refuses each.
pub(super) fn committed(
    correlation: u64,
    named: Named,
    result: Result<Vec<OffsetCommitted>, GroupRequestError>,
) -> SessionEvent {
    let results = match result {
        Ok(results) => results
            .into_iter()
            .map(|OffsetCommitted { topic, partition, result }| SessionCommitted {
                topic,
                partition,
                result: result.map_err(SessionCommitError::from),
            })
            .collect(),
        Err(error) => {
            let error = Arc::new(error);
            let refused = |(topic, partition)| SessionCommitted {
                topic,
                partition,
                result: Err(SessionCommitError::Request(Arc::clone(&error))),
            };
            named.into_iter().map(refused).collect()
        }
    };
    SessionEvent::Committed { correlation, results }
}
