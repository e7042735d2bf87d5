//! The settings of a consumer, each with its bounds.

use std::time::Duration;

use rimstone_proto::v1;
use rimstone_types::{GroupName, InstanceId, MemberId, TopicName};

use crate::{
    connect::Connection,
    consumer::Consumer,
    error::ClientError,
    groups::{Assignor, StartPolicy},
};

/// Far above what helps anybody; the server holds one message per session, the rest lies on this side.
const PREFETCH_BYTES_MAX: u64 = 1 << 30;
/// The server's bounds on a session time-out.
const SESSION_TIMEOUT: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(1800));
/// The server's bounds on the time without progress.
const MAX_POLL_INTERVAL: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(24 * 3600));

/// Whether commits are made by hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommitMode {
    /// By [`Consumer::commit`] and its like only.
    ByHand,
    /// By the consumer: at this interval, before a stop is confirmed, and at the end, what was handed out before
    /// the last call for more and is not held any more. Never what may still be in work.
    Automatic(Duration),
}

/// Makes a [`Consumer`].
#[derive(Debug, Clone)]
pub struct ConsumerBuilder {
    endpoint: String,
    group: String,
    topics: Vec<String>,
    topic_prefix: String,
    member_id: Option<String>,
    instance_id: Option<String>,
    client_id: String,
    assignor: Option<Assignor>,
    start: StartPolicy,
    pub(crate) session_timeout: Duration,
    max_poll_interval: Duration,
    pub(crate) commit: CommitMode,
    pub(crate) prefetch: (u64, u64),
    pub(crate) retry_for: Duration,
    pub(crate) close_within: Duration,
}

impl ConsumerBuilder {
    pub(crate) fn new(endpoint: &str, group: &str) -> Self {
        Self {
            endpoint: endpoint.to_owned(),
            group: group.to_owned(),
            topics: Vec::new(),
            topic_prefix: String::new(),
            member_id: None,
            instance_id: None,
            client_id: "rimstone-client".to_owned(),
            assignor: None,
            start: StartPolicy::Error,
            session_timeout: Duration::from_secs(45),
            max_poll_interval: Duration::from_secs(300),
            commit: CommitMode::ByHand,
            prefetch: (8 << 20, 20_000),
            retry_for: Duration::from_secs(120),
            close_within: Duration::from_secs(15),
        }
    }

    /// Reads these topics. They need not exist yet.
    #[must_use]
    pub fn topics<T: Into<String>>(mut self, topics: impl IntoIterator<Item = T>) -> Self {
        self.topics.extend(topics.into_iter().map(Into::into));
        self
    }

    /// Reads the topics whose names begin with this, too, also those that are made later.
    #[must_use]
    pub fn topic_prefix(mut self, prefix: &str) -> Self {
        prefix.clone_into(&mut self.topic_prefix);
        self
    }

    /// Where to begin in a partition without a committed offset, or with one outside the log. Default: an error
    /// that names the choice; the partition then waits for [`Consumer::seek`].
    #[must_use]
    pub fn start(mut self, start: StartPolicy) -> Self {
        self.start = start;
        self
    }

    /// Who commits, and when. Default: [`CommitMode::ByHand`].
    #[must_use]
    pub fn commit(mut self, mode: CommitMode) -> Self {
        self.commit = mode;
        self
    }

    /// The member's id, kept across reconnects. Default: one by chance, so that no two consumers share one. A
    /// consumer that joins under an id that another one has takes its place.
    #[must_use]
    pub fn member_id(mut self, id: &str) -> Self {
        self.member_id = Some(id.to_owned());
        self
    }

    /// Makes it a static member: one that comes back under this name within the session time-out, also as
    /// another process, has its partitions without anybody else's moving.
    #[must_use]
    pub fn instance_id(mut self, id: &str) -> Self {
        self.instance_id = Some(id.to_owned());
        self
    }

    /// What is shown where members are listed, for example the program's name.
    #[must_use]
    pub fn client_id(mut self, id: &str) -> Self {
        id.clone_into(&mut self.client_id);
        self
    }

    /// How to share out the group's partitions; the choice of most members counts. Default: none, which is
    /// sticky.
    #[must_use]
    pub fn assignor(mut self, assignor: Assignor) -> Self {
        self.assignor = Some(assignor);
        self
    }

    /// Without a word for so long, the server gives the partitions to others, and the consumer hands out nothing
    /// more until it has heard from the server. Default 45 s; 1 s to 30 min.
    #[must_use]
    pub fn session_timeout(mut self, timeout: Duration) -> Self {
        self.session_timeout = timeout;
        self
    }

    /// How long the application may be busy with what it has, or with giving partitions back, before it is taken
    /// for stuck and loses its partitions. Default 5 min; 1 s to 24 h.
    #[must_use]
    pub fn max_poll_interval(mut self, interval: Duration) -> Self {
        self.max_poll_interval = interval;
        self
    }

    /// How much may lie here, or be on its way, that was not asked for: bytes and records; one message of the
    /// server (256 KiB, or one batch) may go beyond. Default 8 MiB and 20,000 records.
    #[must_use]
    pub fn prefetch(mut self, bytes: u64, records: u64) -> Self {
        self.prefetch = (bytes, records);
        self
    }

    /// How long the server may be out of reach before that is told as an error. The consumer goes on trying all
    /// the same. Default 2 minutes; [`Duration::MAX`]: it is never told.
    #[must_use]
    pub fn retry_for(mut self, patience: Duration) -> Self {
        self.retry_for = patience;
        self
    }

    /// How long [`Consumer::close`] may take to commit and to leave. Default 15 s.
    #[must_use]
    pub fn close_within(mut self, timeout: Duration) -> Self {
        self.close_within = timeout;
        self
    }

    /// The consumer. It joins at the first call of [`Consumer::next`]. Must be called within a Tokio runtime.
    ///
    /// # Errors
    /// [`Code::InvalidArgument`](crate::Code::InvalidArgument) for a name or a setting outside its bounds,
    /// naming it, and without a topic.
    pub fn build(mut self) -> Result<Consumer, ClientError> {
        self.group.parse::<GroupName>()?;
        let member_id = self.member_id.get_or_insert_with(|| format!("m-{:016x}", rand::random::<u64>()));
        member_id.parse::<MemberId>()?;
        if let Some(instance) = &self.instance_id {
            instance.parse::<InstanceId>()?;
        }
        for topic in &self.topics {
            topic.parse::<TopicName>()?;
        }
        if self.topics.is_empty() && self.topic_prefix.is_empty() {
            return Err(ClientError::invalid("a consumer needs a topic, or a prefix of topics"));
        }
        let (least, most) = SESSION_TIMEOUT;
        if !(least..=most).contains(&self.session_timeout) {
            let message =
                format!("session_timeout is {:?}; {least:?} to {most:?} is allowed", self.session_timeout);
            return Err(ClientError::invalid(message));
        }
        let (least, most) = MAX_POLL_INTERVAL;
        if !(least..=most).contains(&self.max_poll_interval) {
            let message = format!(
                "max_poll_interval is {:?}; {least:?} to {most:?} is allowed",
                self.max_poll_interval
            );
            return Err(ClientError::invalid(message));
        }
        let (bytes, records) = self.prefetch;
        if !(1..=PREFETCH_BYTES_MAX).contains(&bytes) || records == 0 {
            return Err(ClientError::invalid(format!(
                "prefetch is {bytes} bytes and {records} records; 1 to {PREFETCH_BYTES_MAX} bytes and at least \
                 one record are allowed"
            )));
        }
        if matches!(self.commit, CommitMode::Automatic(interval) if interval.is_zero()) {
            return Err(ClientError::invalid("the interval of automatic commits is 0"));
        }
        let connection = Connection::new(&self.endpoint)?;
        Ok(Consumer::start(connection, self))
    }

    pub(crate) fn group(&self) -> &str {
        &self.group
    }

    /// The member's own id.
    pub(crate) fn member(&self) -> &str {
        self.member_id.as_deref().unwrap_or_default()
    }

    pub(crate) fn is_automatic(&self) -> bool {
        matches!(self.commit, CommitMode::Automatic(_))
    }

    /// The join, without what belongs to the moment.
    pub(crate) fn join(&self) -> v1::ConsumeJoin {
        let millis = |duration: Duration| u32::try_from(duration.as_millis()).unwrap_or(u32::MAX);
        let start = match self.start {
            StartPolicy::Error => v1::StartPolicy::Error,
            StartPolicy::Earliest => v1::StartPolicy::Earliest,
            StartPolicy::Latest => v1::StartPolicy::Latest,
        };
        v1::ConsumeJoin {
            group: self.group.clone(),
            member_id: self.member().to_owned(),
            instance_id: self.instance_id.clone().unwrap_or_default(),
            topics: self.topics.clone(),
            topic_prefix: self.topic_prefix.clone(),
            assignor: self.assignor.map_or(v1::Assignor::Unspecified, Assignor::message).into(),
            start: start.into(),
            format: v1::RecordFormat::Batches.into(),
            session_timeout_ms: millis(self.session_timeout),
            max_poll_interval_ms: millis(self.max_poll_interval),
            client_id: self.client_id.clone(),
            ..Default::default()
        }
    }
}
