//! The Rust client of Rimstone: a producer, a reader, and the calls that administer a server.
//!
//! | room | what |
//! |---|---|
//! | [`Producer`] | writes records exactly once, in order per partition, through lost connections |
//! | [`Reader`] | reads a topic from anywhere to anywhere, without gaps or doubles, through lost connections |
//! | [`Consumer`] | a member of a group: is given partitions, reads them, commits what was processed |
//! | [`Groups`], [`lag()`], [`plan_replay`] | committed offsets and members from outside, lag, reading again |
//! | [`Admin`] | topics, settings, offsets, producers |
//! | [`bare`] | the bare calls, for whoever batches and retries by himself |
//! | [`ClientError`] | one error with a code, a stable reason and the numbers that explain it |
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use rimstone_client::{Admin, End, Producer, ProducerRecord, Reader, Start};
//!
//! let server = "127.0.0.1:9190";
//! Admin::new(server)?.create_topic("visits", 6, &[("retention.ms", "-1")]).await?;
//!
//! let producer = Producer::builder(server).build()?;
//! for line in ["a", "b", "c"] {
//!     drop(producer.send("visits", ProducerRecord::new(line).key("83.149.9.216")).await?);
//! }
//! producer.close().await?;
//!
//! let mut reader = Reader::builder(server, "visits").start(Start::Earliest).end(End::Latest).build()?;
//! while let Some(record) = reader.next().await? {
//!     println!("{} {} {:?}", record.partition, record.offset, record.value);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Not here: what is durable, what is a duplicate, which offsets there are. The server decides all of that.
#![forbid(unsafe_code)]

mod admin;
pub mod bare;
mod call;
mod connect;
pub mod consumer;
mod error;
#[cfg(test)]
mod fake;
mod groups;
mod lag;
pub mod producer;
mod reader;
mod replay;
mod retry;
mod time;

pub use admin::{
    AcceptedLoss, Admin, DamagedRange, FoundDamage, OffsetAt, OffsetQuery, Partition, ProducerAt,
    ProducerDetails, ServerDetails, Setting, TopicChange, TopicDetails, TopicSummary,
};
pub use connect::{Connection, DEFAULT_ENDPOINT};
pub use consumer::{
    Assignment, CommitMode, Committing, Consumer, ConsumerBuilder, ConsumerRecord, Event, Position, SeekTo,
    Stopping,
};
pub use error::{ClientError, Code, reason};
pub use groups::{
    Assignor, CommitFlags, CommittedOffset, GroupDetails, GroupMember, GroupState, GroupSummary, Groups,
    OffsetCommit, StartPolicy, TopicPartition,
};
pub use lag::{Lag, Owner, PartitionLag, TopicLag, lag};
pub use producer::{Delivery, DeliveryError, Outcome, Pending, Producer, ProducerBuilder, ProducerRecord};
pub use reader::{End, Fetch, Fetched, Filter, Reader, ReaderBuilder, Received, Start, fetch};
pub use replay::{PlannedPartition, ReplayPlan, ReplaySpec, ReplayTo, plan_replay, start_replay};
pub use rimstone_record::{Compression, Header};
