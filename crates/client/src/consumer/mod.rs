//! The consumer: a member of a group, which is given partitions, reads them, and commits what it has processed.
//!
//! | room | what |
//! |---|---|
//! | `config` | settings and their bounds |
//! | `event` | records, events, stops, commits on their way |
//! | `state`, `owned` | what the application and the driver share, behind one lock. Pure |
//! | `hand` | what the application has in hand of a partition |
//! | `commits`, `credit` | gathering commits; bounded prefetch. Pure |
//! | `driver` | the one task that owns the session |
//!
//! Not here: who is given which partition, and what a commit is worth (the server); reading without a group
//! ([`Reader`](crate::Reader)).

mod commits;
mod config;
mod credit;
mod driver;
mod event;
mod hand;
mod owned;
mod state;

use std::{collections::BTreeMap, fmt, sync::Arc};

use futures::Stream;
use parking_lot::Mutex;
use rimstone_types::{Offset, Timestamp};
use tokio::{sync::Notify, task::JoinHandle, time::Instant};

pub use self::{
    config::{CommitMode, ConsumerBuilder},
    event::{Assignment, Committing, ConsumerRecord, Event, Stopping},
};
use self::{
    driver::Driver,
    event::not_owned,
    owned::Stop,
    state::{Close, State, Taken, Told},
};
use crate::{
    admin::{Admin, OffsetQuery},
    connect::Connection,
    error::{ClientError, Code, reason},
    groups::{OffsetCommit, TopicPartition},
};

/// A member of a group. It is given partitions of its topics, hands out their records, and commits what was
/// processed, so that whoever reads a partition next goes on there: **at least once**, always. What the group
/// has committed was processed; what was processed and not committed is processed again.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use rimstone_client::{Consumer, StartPolicy};
///
/// let mut consumer =
///     Consumer::builder("127.0.0.1:9190", "billing").topics(["visits"]).start(StartPolicy::Earliest).build()?;
/// loop {
///     let record = consumer.next().await?;
///     println!("{} {} {:?}", record.partition, record.offset, record.value); // the work
///     consumer.commit(&record); // in the background; `.await?` it to know that it is durable
/// }
/// # #[allow(unreachable_code)]
/// # Ok(())
/// # }
/// ```
///
/// # What is in hand
/// A record is *in hand* from when it is handed out until it is committed, or until the [`ConsumerRecord`] was
/// dropped **and** the application has asked for the next one. So the loop above is right as it stands, a
/// record may be kept for as long as it takes (in another task, or in a batch), and the value of the last one
/// may be worked on after the record itself was dropped. Whoever copies values out and keeps *those* while
/// asking for more says that they are processed.
///
/// # When a stop is confirmed
/// The group may give a partition to another member. From the moment the consumer hears of it, no record of
/// that partition is handed out any more. The stop is confirmed, and the other member begins, when nothing of
/// the partition is in hand and every commit of it is answered; with [`Consumer::next_event`], not before the
/// application has also let go of the [`Stopping`] that it was told. Until then commits of it are taken. With
/// automatic commits, what was processed is committed before the stop is confirmed.
///
/// # What is committed
/// By hand: [`Consumer::commit`] (this record and everything before it in its partition), [`Consumer::commit_all`],
/// [`Consumer::commit_offsets`]. Automatically ([`CommitMode::Automatic`]): everything before the lowest record
/// in hand, at an interval, before a stop is confirmed, and when the consumer is closed or dropped. While one
/// commit is on its way the next ones gather, so a commit per record costs little.
///
/// # When something fails
/// - A broken connection, a restart of the server: the consumer comes back by itself, under the same member id,
///   with what it owns; nothing is handed out twice, and commits that were not answered are sent again.
/// - Nothing heard from the server for the session time-out: nothing more is handed out until it is heard again,
///   since others may own the partitions by now.
/// - Fenced (the session timed out, or the application was busy for longer than `max_poll_interval`): everything
///   is dropped, [`Event::Lost`] tells so, commits of what was in hand fail with
///   [`reason::PARTITION_NOT_OWNED`], and when the application asks for more the consumer joins again and
///   goes on from what is committed.
/// - Another consumer with the same member id or instance id takes its place: this one ends with
///   [`reason::MEMBER_FENCED`].
/// - A partition that cannot be read ([`reason::START_POSITION_NEEDED`], [`reason::OFFSET_OUT_OF_RANGE`],
///   [`reason::DATA_DAMAGED`]): one error with its name; it waits for [`Consumer::seek`], the others go on.
///
/// Memory is bounded by `prefetch`. Dropping the consumer commits (if automatic) what was handed out before the
/// last call for more, and leaves, in the background; [`Consumer::close`] waits for it and counts everything
/// that is not held as processed.
pub struct Consumer {
    shared: Arc<Shared>,
    driver: Option<JoinHandle<Result<(), ClientError>>>,
}

/// What the handle, what it handed out, and the driver share.
pub(crate) struct Shared {
    connection: Connection,
    config: ConsumerBuilder,
    state: Mutex<State>,
    /// Something for the driver to look at.
    wake: Arc<Notify>,
    /// Something for the application to look at.
    ready: Notify,
}

/// Where to read on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SeekTo {
    /// The first record there is.
    Earliest,
    /// The end: only what comes later.
    Latest,
    /// This offset.
    Offset(Offset),
    /// The first record at or after this time, by the topic's time; the end if there is none.
    Time(Timestamp),
}

/// Where a member stands in a partition that it owns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// The next offset to be handed out; `None`: the partition waits for a seek.
    pub next: Option<Offset>,
    /// The end that readers see, as last heard.
    pub end: Offset,
    /// It is paused.
    pub paused: bool,
}

impl Consumer {
    /// Settings for a member of `group` at `endpoint` (`host:port` or `http://host:port`).
    pub fn builder(endpoint: &str, group: &str) -> ConsumerBuilder {
        ConsumerBuilder::new(endpoint, group)
    }

    fn start(connection: Connection, config: ConsumerBuilder) -> Self {
        let wake: Arc<Notify> = Arc::default();
        let state = Mutex::new(State::new(config.is_automatic(), config.prefetch, wake.clone()));
        let shared = Arc::new(Shared { connection, config, state, wake, ready: Notify::new() });
        let driver = tokio::spawn(Driver::new(shared.clone()).run());
        Self { shared, driver: Some(driver) }
    }

    /// The next record; waits for one. Joins the group if that has not been done, or if the member was fenced.
    /// By asking, the application says that it has processed what was handed out before and is not held
    /// any more. Dropping the future before it is ready loses nothing.
    ///
    /// Stops are confirmed without asking (see [`Consumer`]); whoever wants to be told uses
    /// [`Consumer::next_event`] instead.
    ///
    /// # Errors
    /// Those named at [`Consumer`], with `group`, and `topic` and `partition` where one partition is meant, in
    /// the metadata; the call after it goes on with the others. [`reason::UNREACHABLE`] when the server has been away for the
    /// patience given by [`ConsumerBuilder::retry_for`]; the call after it goes on waiting. A refusal of the
    /// join and [`reason::MEMBER_FENCED`] end the consumer: every later call answers the same.
    pub async fn next(&mut self) -> Result<ConsumerRecord, ClientError> {
        loop {
            if let Event::Record(record) = self.next_of(false).await? {
                return Ok(record);
            }
        }
    }

    /// The next record, or what happens to the member's partitions, in order.
    ///
    /// ```no_run
    /// # use rimstone_client::{Consumer, Event};
    /// # async fn example(mut consumer: Consumer) -> Result<(), Box<dyn std::error::Error>> {
    /// let mut batch = Vec::new();
    /// loop {
    ///     match consumer.next_event().await? {
    ///         Event::Record(record) => batch.push(record),
    ///         Event::Stopping(stopping) => {
    ///             println!("{} records before {:?} go", batch.len(), stopping.partitions());
    ///             batch.clear(); // the work
    ///             consumer.commit_all().await?;
    ///             stopping.confirm();
    ///         }
    ///         Event::Lost(_) => batch.clear(), // somebody else processes them again
    ///         Event::Assigned(_) | Event::CaughtUp(_) => {}
    ///     }
    /// }
    /// # #[allow(unreachable_code)]
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Consumer::next`].
    pub async fn next_event(&mut self) -> Result<Event, ClientError> {
        self.next_of(true).await
    }

    async fn next_of(&mut self, listens: bool) -> Result<Event, ClientError> {
        let shared = &self.shared;
        if shared.state.lock().ask(listens) {
            shared.wake.notify_one();
        }
        let mut waiting = Waiting { shared, waits: false };
        loop {
            let ready = shared.ready.notified();
            if let Some(event) = shared.take() {
                return event;
            }
            waiting.begin();
            ready.await;
        }
    }

    /// The records as a stream that ends after the first error, with [`Consumer::next`] behind it. Adaptors
    /// that ask ahead are fine as long as they keep the [`ConsumerRecord`]s until their work is done.
    ///
    /// ```no_run
    /// # use rimstone_client::{Consumer, ConsumerRecord};
    /// # async fn work(_: &ConsumerRecord) {}
    /// # async fn example(mut consumer: Consumer) -> Result<(), Box<dyn std::error::Error>> {
    /// use futures::TryStreamExt as _;
    ///
    /// // Eight at a time. With automatic commits nothing that is still in work is ever committed.
    /// let done = consumer.stream().try_for_each_concurrent(8, |record| async move {
    ///     work(&record).await;
    ///     Ok(())
    /// });
    /// done.await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn stream(&mut self) -> impl Stream<Item = Result<ConsumerRecord, ClientError>> + '_ {
        futures::stream::unfold(Some(self), |consumer| async {
            let consumer = consumer?;
            match consumer.next().await {
                Ok(record) => Some((Ok(record), Some(consumer))),
                Err(error) => Some((Err(error), None)),
            }
        })
    }

    /// Commits this record and everything before it in its partition, unless that is so already: it never moves
    /// the commit back. Sent at once, or as soon as the commit before it is answered.
    ///
    /// # Errors
    /// When awaited: [`reason::PARTITION_NOT_OWNED`] where the partition has been lost since;
    /// [`reason::MEMBER_FENCED`]; [`reason::UNREACHABLE`] after the patience (it may be taken later all the
    /// same); [`reason::INVALID`] where the record was handed out before a seek.
    pub fn commit(&self, record: &ConsumerRecord) -> Committing {
        self.shared.commit(record)
    }

    /// Commits everything that was handed out, in all partitions: the application says that it is processed.
    ///
    /// # Errors
    /// When awaited: as [`Consumer::commit`], the first of all partitions.
    pub fn commit_all(&self) -> Committing {
        let mut state = self.shared.state.lock();
        let wanted = state.commit_handed_out();
        let answers = wanted.iter().filter_map(|(at, number)| {
            let owned = state.owned.get(at)?;
            Some((owned.answered.subscribe(), *number))
        });
        let committing = Committing::when(answers.collect());
        drop(state);
        self.shared.wake.notify_one();
        committing
    }

    /// Commits exactly these offsets, backwards too, with metadata. A later automatic commit overwrites them.
    ///
    /// # Errors
    /// When awaited: as [`Consumer::commit`]; [`reason::OFFSET_OUT_OF_RANGE`] beyond the end.
    pub fn commit_offsets(&self, offsets: &[OffsetCommit]) -> Committing {
        let mut state = self.shared.state.lock();
        if let Some(foreign) = offsets.iter().find(|commit| !state.owned.contains_key(&commit.at)) {
            return Committing::failed(not_owned(&foreign.at));
        }
        let answers = offsets.iter().filter_map(|commit| {
            let number = state.want_commit(&commit.at, commit.offset, commit.metadata.clone(), true)?;
            Some((state.owned.get(&commit.at)?.answered.subscribe(), number))
        });
        let committing = Committing::when(answers.collect());
        drop(state);
        self.shared.wake.notify_one();
        committing
    }

    /// Reads an owned partition from elsewhere. Nothing that was on its way from the old place is handed out
    /// after this.
    ///
    /// # Errors
    /// [`reason::PARTITION_NOT_OWNED`], also while it is being given back; for a time or an end, those of
    /// [`Admin::list_offsets`].
    pub async fn seek(&self, at: &TopicPartition, to: SeekTo) -> Result<(), ClientError> {
        let query = match to {
            SeekTo::Offset(_) => None,
            SeekTo::Earliest => Some(OffsetQuery::Earliest),
            SeekTo::Latest => Some(OffsetQuery::Latest),
            SeekTo::Time(time) => Some(OffsetQuery::At(time)),
        };
        let offset = match (to, query) {
            (SeekTo::Offset(offset), _) => Some(offset),
            (_, Some(query)) => self.look_up(at, query).await?,
            (_, None) => None,
        };
        let offset = match offset {
            Some(offset) => offset,
            None => self.look_up(at, OffsetQuery::Latest).await?.unwrap_or_default(),
        };
        if !self.shared.state.lock().seek(at, offset) {
            return Err(not_owned(at));
        }
        self.shared.wake.notify_one();
        Ok(())
    }

    async fn look_up(&self, at: &TopicPartition, query: OffsetQuery) -> Result<Option<Offset>, ClientError> {
        let admin = Admin::over(self.shared.connection.clone());
        let found = admin.list_offsets(&at.topic, &[at.partition], query).await?;
        Ok(found.first().and_then(|found| found.offset))
    }

    /// Hands out no records of these partitions until [`Consumer::resume`]. They stay the member's.
    ///
    /// # Errors
    /// [`reason::PARTITION_NOT_OWNED`]; those before it are paused.
    pub fn pause(&self, partitions: &[TopicPartition]) -> Result<(), ClientError> {
        self.each(partitions, State::pause)
    }

    /// Goes on with these partitions where they were paused.
    ///
    /// # Errors
    /// [`reason::PARTITION_NOT_OWNED`]; those before it are resumed.
    pub fn resume(&self, partitions: &[TopicPartition]) -> Result<(), ClientError> {
        self.each(partitions, State::resume)
    }

    fn each(
        &self,
        partitions: &[TopicPartition],
        change: impl Fn(&mut State, &TopicPartition) -> bool,
    ) -> Result<(), ClientError> {
        let mut state = self.shared.state.lock();
        let refused = partitions.iter().find(|at| !change(&mut state, at));
        drop(state);
        self.shared.wake.notify_one();
        refused.map_or(Ok(()), |at| Err(not_owned(at)))
    }

    /// Where the member stands in each partition that it owns, those that it is giving back left out.
    pub fn positions(&self) -> BTreeMap<TopicPartition, Position> {
        let state = self.shared.state.lock();
        let owned = state.owned.iter().filter(|(_, owned)| owned.stop == Stop::No);
        let position = |(at, owned): (&TopicPartition, &owned::Owned)| {
            (at.clone(), Position { next: owned.next, end: owned.end, paused: owned.paused })
        };
        owned.map(position).collect()
    }

    /// The member's id.
    pub fn member_id(&self) -> &str {
        self.shared.config.member()
    }

    /// Commits (if automatic) everything that was handed out and is not held, waits until every commit is
    /// answered, and leaves the group. A static member keeps its place until its session times out.
    ///
    /// # Errors
    /// The first commit that was refused, also earlier; [`reason::UNREACHABLE`] if the last ones were not
    /// answered in time.
    pub async fn close(self) -> Result<(), ClientError> {
        self.end(false).await
    }

    /// The same; a static member gives its place up at once.
    ///
    /// # Errors
    /// As [`Consumer::close`].
    pub async fn close_for_good(self) -> Result<(), ClientError> {
        self.end(true).await
    }

    async fn end(mut self, for_good: bool) -> Result<(), ClientError> {
        self.shared.begin_close(for_good, true);
        let Some(driver) = self.driver.take() else { return Ok(()) };
        driver.await.unwrap_or_else(|error| {
            Err(ClientError::new(Code::Internal, "", format!("the consumer's task ended: {error}")))
        })
    }
}

impl Shared {
    fn take(self: &Arc<Self>) -> Option<Result<Event, ClientError>> {
        let mut state = self.state.lock();
        let taken = state.take(Instant::now());
        let look = state.credit.is_due() || matches!(taken, Taken::Told(Told::Error(_)));
        drop(state);
        if look {
            self.wake.notify_one();
        }
        let shared = Arc::downgrade(self);
        Some(match taken {
            Taken::Nothing => return None,
            Taken::Record { topic, record, lease } => {
                Ok(Event::Record(ConsumerRecord { topic, record, lease, shared }))
            }
            Taken::Told(Told::Assigned(assigned)) => Ok(Event::Assigned(assigned)),
            Taken::Told(Told::Stopping(partitions, generation)) => {
                Ok(Event::Stopping(Stopping { partitions, shared, generation }))
            }
            Taken::Told(Told::Lost(lost)) => Ok(Event::Lost(lost)),
            Taken::Told(Told::CaughtUp(at)) => Ok(Event::CaughtUp(at)),
            Taken::Told(Told::Error(mut error)) => {
                error.metadata.entry("group".to_owned()).or_insert_with(|| self.config.group().to_owned());
                Err(error)
            }
        })
    }

    fn commit(&self, record: &ConsumerRecord) -> Committing {
        let at = record.at();
        let mut state = self.state.lock();
        let owned = state.owned.get(&at).filter(|owned| record.lease.is_of(&owned.hand));
        let Some(answered) = owned.map(|owned| owned.answered.subscribe()) else {
            return Committing::failed(not_owned(&at));
        };
        if record.lease.is_before_seek() {
            return Committing::failed(ClientError::new(
                Code::InvalidArgument,
                reason::INVALID,
                format!(
                    "{at} was sought elsewhere since this record was handed out; commit an offset instead"
                ),
            ));
        }
        let next = record.record.offset.saturating_add(1);
        let number = state.want_commit(&at, Some(next), String::new(), false);
        // A commit per record is not to wake the driver for each.
        let look = !state.commits.is_under_way();
        drop(state);
        if look {
            self.wake.notify_one();
        }
        Committing::when(number.map(|number| (answered, number)).into_iter().collect())
    }

    fn begin_close(&self, for_good: bool, settled: bool) {
        let deadline = Instant::now() + self.config.close_within;
        self.state.lock().begin_close(Close { for_good, deadline }, settled);
        self.wake.notify_one();
    }
}

/// That the application waits, for as long as this lives.
struct Waiting<'a> {
    shared: &'a Shared,
    waits: bool,
}

impl Waiting<'_> {
    fn begin(&mut self) {
        if !self.waits {
            self.waits = true;
            self.shared.state.lock().waits = true;
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if self.waits {
            self.shared.state.lock().waits = false;
        }
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        // What was handed out last may not have been processed: dropping is how an error ends.
        self.shared.begin_close(false, false);
    }
}

impl fmt::Debug for Consumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer").field("config", &self.shared.config).finish_non_exhaustive()
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("config", &self.config).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
