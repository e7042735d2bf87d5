//! What a shard is asked: something to decide, and where the answer goes.

use std::{fmt, sync::Arc};

use rimstone_state::group::{Decision, Groups, Join, Joined, MemberView, Topics};
use rimstone_types::{GroupName, MemberId, Timestamp, TopicId, TopicName};
use tokio::sync::watch;

use super::{Lost, Pulse, Reply, SessionUpdate, members::Members, outward::Outward, shard::Shard};
use crate::{broker::Inner, error::GroupRequestError, topics::TopicTable};

/// A request.
#[derive(Debug)]
pub(crate) enum Command {
    /// Decide something and answer.
    Ask(Box<dyn Request>),
    /// A member joins and opens a session.
    Join(Box<Joining>),
}

/// What is there when something is decided.
pub(crate) struct Now<'a> {
    /// The state, with everything that was decided before.
    pub(crate) groups: &'a Groups,
    /// Everything else.
    pub(crate) inner: &'a Inner,
    /// The time.
    pub(crate) time: Timestamp,
    members: &'a Members,
}

/// Something to decide.
pub(crate) trait Request: Send + fmt::Debug {
    /// Lets the shard decide, and parks the answer.
    fn decide(self: Box<Self>, shard: &mut Shard);
    /// Answers that it cannot.
    fn refuse(self: Box<Self>, why: &Lost);
}

type Decide<T> = Box<dyn FnOnce(&Now<'_>) -> Result<Decision<T>, GroupRequestError> + Send>;

/// A decision to be taken, and where its answer goes.
pub(crate) struct Ask<T> {
    decide: Decide<T>,
    reply: Reply<T>,
}

/// A member that joins.
#[derive(Debug)]
pub(crate) struct Joining {
    pub(crate) join: Join,
    /// Its signs of life.
    pub(crate) pulse: Arc<Pulse>,
    /// It reads under the start policy `latest`.
    pub(crate) reads_latest: bool,
    pub(crate) reply: Reply<SessionStart>,
}

/// A session that has begun: its membership is durable.
#[derive(Debug)]
pub(crate) struct SessionStart {
    pub(crate) joined: Joined,
    /// Tells this session from others of the same member.
    pub(crate) token: u64,
    pub(crate) view: MemberView,
    pub(crate) updates: watch::Receiver<SessionUpdate>,
}

impl Command {
    /// A request that decides something.
    pub(crate) fn ask<T: Send + 'static>(
        reply: Reply<T>,
        decide: impl FnOnce(&Now<'_>) -> Result<Decision<T>, GroupRequestError> + Send + 'static,
    ) -> Self {
        Self::Ask(Box::new(Ask { decide: Box::new(decide), reply }))
    }

    /// A request that only looks.
    pub(crate) fn look<T: Send + 'static>(
        reply: Reply<T>,
        look: impl FnOnce(&Now<'_>) -> Result<T, GroupRequestError> + Send + 'static,
    ) -> Self {
        Self::ask(reply, move |now| Ok(Decision { records: Vec::new(), answer: look(now)? }))
    }

    pub(super) fn refuse(self, why: &Lost) {
        match self {
            Self::Ask(ask) => ask.refuse(why),
            Self::Join(joining) => drop(joining.reply.send(Err(why.clone().into()))),
        }
    }
}

impl<T> fmt::Debug for Ask<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ask").finish_non_exhaustive()
    }
}

impl<T: Send + 'static> Request for Ask<T> {
    fn decide(self: Box<Self>, shard: &mut Shard) {
        let Self { decide, reply } = *self;
        match decide(&shard.now()) {
            Ok(decision) => match shard.apply(decision) {
                Ok(answer) => shard.park(Outward::answer(reply, Ok(answer))),
                Err(lost) => shard.park(Outward::answer(reply, Err(lost.into()))),
            },
            Err(refused) => shard.park(Outward::answer(reply, Err(refused))),
        }
    }

    fn refuse(self: Box<Self>, why: &Lost) {
        drop(self.reply.send(Err(why.clone().into())));
    }
}

impl<'a> Now<'a> {
    pub(super) fn new(groups: &'a Groups, members: &'a Members, inner: &'a Inner) -> Self {
        Self { groups, inner, time: inner.clock.now(), members }
    }

    /// The topics that there are.
    pub(crate) fn topics(&self) -> &'a dyn Topics {
        &self.inner.topics
    }

    /// Whether a stream of a member is open.
    pub(crate) fn is_connected(&self, group: &GroupName, member: &MemberId) -> bool {
        self.members.is_connected(group, member)
    }

    /// Whether this is the member's present session.
    pub(crate) fn is_session(&self, group: &GroupName, member: &MemberId, token: u64) -> bool {
        self.members.is_session(group, member, token)
    }

    /// Whether a member's last session read under the start policy `latest`, as far as this is known: not from
    /// before the server was started.
    pub(crate) fn reads_latest(&self, group: &GroupName, member: &MemberId) -> bool {
        self.members.reads_latest(group, member)
    }
}

impl Topics for TopicTable {
    fn get(&self, name: &TopicName) -> Option<(TopicId, u32)> {
        let topic = Self::get(self, name).ok()?;
        Some((topic.id, topic.partition_count()))
    }

    fn with_prefix(&self, prefix: &str) -> Vec<TopicName> {
        self.names_with_prefix(prefix)
    }
}
