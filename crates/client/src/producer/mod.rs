//! The producer: batches by time and size, compresses, keeps many batches on the wire, and writes each record
//! exactly once and in order per partition through lost connections and restarts of the server.
//!
//! | room | what |
//! |---|---|
//! | `config` | settings and their bounds |
//! | `state` | topics and queues behind one lock: where a record goes |
//! | `queue`, `parcel` | one partition: numbering, resending, giving up. Pure |
//! | `driver`, `link` | the one task that owns the connection; opening it |
//! | `verdict` | what the server's reasons mean for a batch |
//! | `tracker` | what `flush` waits for |
//!
//! Not here: partition hashing and the batch format (`rimstone-record`), deduplication (the server).

mod config;
mod driver;
mod link;
mod parcel;
mod queue;
mod record;
mod state;
mod tracker;
mod verdict;

use std::{fmt, num::NonZeroU32, sync::Arc, time::Duration};

use parking_lot::Mutex;
use rimstone_proto::v1;
use tokio::{
    sync::{Notify, Semaphore, oneshot},
    task::JoinHandle,
    time::Instant,
};

pub use self::{
    config::ProducerBuilder,
    record::{Delivery, DeliveryError, Outcome, Pending, ProducerRecord},
};
use self::{
    driver::Driver,
    state::{State, TopicFacts},
    tracker::Tracker,
};
use crate::{
    connect::Connection,
    error::{ClientError, Code, reason},
    retry::Backoff,
    time,
};

/// How long the number of partitions of a topic is believed, as in Kafka's clients.
const TOPIC_FACTS_MAX_AGE: Duration = Duration::from_secs(300);
/// What a topic takes per batch where the server does not say.
const MESSAGE_BYTES_DEFAULT: usize = 1 << 20;
/// What a record costs in memory beyond its bytes: its handle and its place in a batch.
const RECORD_OVERHEAD: usize = 128;

/// Writes records. Cheap to clone; clones share one connection, one buffer and one numbering.
///
/// # What is promised
/// - A record whose [`Pending`] resolves with a [`Delivery`] is stored once, and is as durable as its topic
///   asks. Records of one partition are stored in the order in which [`Producer::send`] took them.
/// - A lost connection, a restart of the server and an answer of "not now" are tried again by the producer
///   itself, with backoff and jitter, until the record's deadline. A sequence that may have been stored is
///   only sent again with the same bytes, so the server can tell that it has it.
/// - A record is given up at its deadline (or at a refusal that waiting does not heal). Its
///   [`DeliveryError`] says [`Outcome::NotStored`] only if every try was answered by a refusal, else
///   [`Outcome::Unknown`].
/// - After a batch was given up with an unknown outcome, the numbering of its partition cannot go on. Those
///   batches behind it that may be stored too fail with [`reason::EARLIER_UNKNOWN`]. The others wait until
///   everything else this producer has sent is resolved, and go out under a new id, or for a named producer
///   under a new epoch. So a record that follows can be stored although an earlier one is not: whoever needs
///   more stops at the first error.
/// - [`reason::UNKNOWN_PRODUCER`] (the server has lost the state, or 24 idle hours have passed) is handled in
///   the same way: what is provably not stored is sent under a new id, the rest fails with that reason.
/// - [`reason::PRODUCER_FENCED`] (a newer instance of the name has begun) ends the producer: everything open
///   fails with it, and so does every later [`Producer::send`].
///
/// Memory is bounded by `buffer_bytes`. Dropping the last clone delivers what was taken, in the background;
/// [`Producer::close`] waits for it.
#[derive(Clone)]
pub struct Producer {
    handle: Arc<Handle>,
}

struct Handle {
    shared: Arc<Shared>,
    driver: Mutex<Option<JoinHandle<()>>>,
}

/// What the handles and the driver share.
struct Shared {
    connection: Connection,
    config: ProducerBuilder,
    state: Mutex<State>,
    tracker: Arc<Tracker>,
    /// Bytes of records that may still be taken.
    room: Arc<Semaphore>,
    /// Something for the driver to look at.
    wake: Notify,
    /// One look-up of a topic at a time.
    asking: tokio::sync::Mutex<()>,
}

impl Producer {
    /// Settings for a producer that writes to `endpoint` (`host:port` or `http://host:port`).
    pub fn builder(endpoint: &str) -> ProducerBuilder {
        ProducerBuilder::new(endpoint)
    }

    fn start(connection: Connection, config: ProducerBuilder) -> Self {
        let shared = Arc::new(Shared {
            state: Mutex::new(State::new(config.queue(), config.name.is_some())),
            tracker: Tracker::new(),
            room: Arc::new(Semaphore::new(config.buffer_bytes)),
            wake: Notify::new(),
            asking: tokio::sync::Mutex::new(()),
            connection,
            config,
        });
        let driver = tokio::spawn(Driver::new(shared.clone()).run());
        Self { handle: Arc::new(Handle { shared, driver: Mutex::new(Some(driver)) }) }
    }

    /// Takes a record: waits while the buffer is full, and for the topic's number of partitions the first
    /// time. The record is in its partition's order when this returns; await the [`Pending`] to learn where
    /// it was stored. Dropping the future of this call before it is ready takes nothing.
    ///
    /// # Errors
    /// Nothing was taken. `TOPIC_NOT_FOUND`, `PARTITION_NOT_FOUND`, `RECORD_TOO_LARGE`,
    /// [`reason::PRODUCER_FENCED`], [`reason::CLOSED`], [`reason::UNREACHABLE`] after the deadline.
    pub async fn send(&self, topic: &str, record: ProducerRecord) -> Result<Pending, ClientError> {
        let shared = &self.handle.shared;
        let facts = shared.topic(topic).await?;
        let record_partition = record.partition;
        let record = record.into_new(time::now());
        let bytes = record.encoded_bytes_max();
        if bytes > facts.record_bytes_max {
            let limit = facts.record_bytes_max;
            return Err(ClientError::new(
                Code::InvalidArgument,
                reason::RECORD_TOO_LARGE,
                format!(
                    "the record has {bytes} bytes; topic {topic} takes at most {limit} (max.message.bytes)"
                ),
            )
            .with("topic", topic)
            .with("limit", limit));
        }
        // No record waits for more room than there is.
        let cost = (bytes + RECORD_OVERHEAD).min(shared.config.buffer_bytes) as u32;
        let room = shared.room.clone().acquire_many_owned(cost).await.map_err(|_| closed())?;
        let (waiter, answer) = oneshot::channel();
        let token = || shared.tracker.enter();
        let wake = shared.state.lock().push(
            topic,
            record_partition,
            &record,
            waiter,
            room,
            token,
            Instant::now(),
        )?;
        if wake {
            shared.wake.notify_one();
        }
        Ok(Pending { answer })
    }

    /// Sends what is gathered without waiting for more, and waits until every record taken before this call
    /// is resolved.
    ///
    /// # Errors
    /// The first failure of any record since the last flush, whether its [`Pending`] was awaited or not.
    pub async fn flush(&self) -> Result<(), DeliveryError> {
        let shared = &self.handle.shared;
        let generation = {
            let mut state = shared.state.lock();
            state.close_open();
            shared.tracker.turn()
        };
        shared.wake.notify_one();
        shared.tracker.wait(generation).await;
        shared.tracker.take_failure().map_or(Ok(()), Err)
    }

    /// Takes no more records, from no clone, and waits until every record that was taken is resolved.
    ///
    /// # Errors
    /// As [`Producer::flush`].
    pub async fn close(&self) -> Result<(), DeliveryError> {
        self.handle.shared.begin_close();
        let flushed = self.flush().await;
        let driver = self.handle.driver.lock().take();
        if let Some(driver) = driver {
            // It ends by itself when nothing is open; a panic in it has failed every record.
            let _ = driver.await;
        }
        flushed
    }
}

impl Shared {
    fn begin_close(&self) {
        self.state.lock().close();
        self.room.close();
        self.wake.notify_one();
    }

    /// The number of partitions and the largest record, from memory or from the server.
    async fn topic(&self, topic: &str) -> Result<TopicFacts, ClientError> {
        let known = self.state.lock().topic(topic)?;
        if let Some(facts) = known.filter(|facts| facts.asked.elapsed() < TOPIC_FACTS_MAX_AGE) {
            return Ok(facts);
        }
        let _one_at_a_time = self.asking.lock().await;
        let known = self.state.lock().topic(topic)?;
        if let Some(facts) = known.filter(|facts| facts.asked.elapsed() < TOPIC_FACTS_MAX_AGE) {
            return Ok(facts);
        }
        let deadline = Instant::now() + self.config.deadline;
        let mut backoff = Backoff::default();
        loop {
            let request = v1::DescribeTopicRequest { topic: topic.to_owned() };
            let asked =
                tokio::time::timeout_at(deadline, self.connection.admin().describe_topic(request)).await;
            let error = match asked {
                Ok(Ok(answer)) => {
                    let facts = facts_of(topic, &answer.into_inner())?;
                    return self.state.lock().set_topic(topic, facts);
                }
                Ok(Err(status)) => ClientError::from(status),
                Err(_) => ClientError::new(
                    Code::DeadlineExceeded,
                    reason::UNREACHABLE,
                    format!(
                        "{} did not answer within {:?}",
                        self.connection.endpoint(),
                        self.config.deadline
                    ),
                ),
            };
            let wait = backoff.next(error.retry_after);
            if !error.is_retriable() || Instant::now() + wait >= deadline {
                return Err(error);
            }
            // What was known a while ago is better than nothing.
            if let Some(facts) = known {
                return Ok(facts);
            }
            tracing::debug!(topic, error = %error, "asking for a topic failed; trying again");
            tokio::time::sleep(wait).await;
            self.state.lock().topic(topic)?;
        }
    }
}

fn facts_of(topic: &str, answer: &v1::DescribeTopicResponse) -> Result<TopicFacts, ClientError> {
    let partitions = answer.topic.as_ref().and_then(|info| NonZeroU32::new(info.partitions));
    let setting = answer.settings.iter().find(|setting| setting.name == "max.message.bytes");
    Ok(TopicFacts {
        partitions: partitions.ok_or_else(|| {
            ClientError::protocol(format!("the server says that topic {topic} has no partitions"))
        })?,
        record_bytes_max: setting
            .and_then(|setting| setting.value.parse().ok())
            .unwrap_or(MESSAGE_BYTES_DEFAULT),
        asked: Instant::now(),
    })
}

fn closed() -> ClientError {
    ClientError::new(Code::FailedPrecondition, reason::CLOSED, "the producer is closed")
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.begin_close();
    }
}

impl fmt::Debug for Producer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Producer").field("config", &self.handle.shared.config).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
