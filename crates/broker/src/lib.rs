//! Topics, produce, fetch, producer ids: the asynchronous heart above the store. It decides which partition a
//! record goes to, who may write, how long a fetch waits, and what is remembered of topics and producers.
//!
//! Not here: how bytes are kept (`rimstone-store`), any protocol's messages or status codes (`rimstone-grpc`,
//! `rimstone-web`), settings files and environment (`rimstone-server`).
#![forbid(unsafe_code)]

mod background;
mod broker;
mod catalog;
mod clock;
mod compaction;
mod config;
mod coordinator;
mod damage;
mod decode;
mod error;
mod fetch;
mod groups;
mod lag;
mod limits;
mod member;
mod metrics;
mod offsets;
mod pace;
mod produce;
mod producer_ids;
mod read;
mod replay;
mod reserve;
mod sessions;
mod settings;
#[cfg(test)]
mod testing;
mod topics;

/// The records that are judged before a start writes anything: of the catalog all that is not understood is refused, for
/// it stops the start in any case; of groups what a later server has written. Other partitions of groups go on without
/// one that is damaged, so that is for their loading to say.
pub const STORED_RECORDS: rimstone_store::RecordJudge = rimstone_store::RecordJudge {
    topics: &[rimstone_types::TopicId::CATALOG, rimstone_types::TopicId::CONSUMER_OFFSETS],
    judge: |topic, key, value| {
        if topic == rimstone_types::TopicId::CATALOG {
            catalog_record_reads(key, value)
        } else {
            rimstone_state::group::GroupRecord::check_version(key, value).map_err(|error| error.to_string())
        }
    },
};

/// Whether this build understands a record of the catalog; in words why not.
///
/// # Errors
/// What is wrong with it.
pub fn catalog_record_reads(key: Option<&[u8]>, value: Option<&[u8]>) -> Result<(), String> {
    catalog::CatalogRecord::decode(key, value).map(drop)
}

pub use background::MaintenanceReport;
pub use broker::{Broker, ReadinessIssue, ServerDescription};
pub use clock::{Clock, SystemClock};
pub use compaction::CompactionReport;
pub use config::BrokerConfig;
pub use damage::ScrubReport;
pub use decode::{Decoded, StoredRecord, decode};
pub use error::{
    AlterTopicError, BatchCorrupt, BatchTooLarge, CatalogError, CatalogUnreadable, CoordinatorLoading,
    CreateTopicError, DeleteProducerError, DeleteRecordsError, DeleteTopicError, Details, Failure,
    FetchError, FewerPartitions, FindDamageError, GroupRequestError, IdUnknown, InitProducerError,
    InvalidRequest, KeyRequired, LagError, LimitReached, ListOffsetsError, LossError, NoRoom,
    OffsetCommitError, OutOfRange, PartitionAppendError, PartitionNotFound, PartitionNotOwned,
    PartitionReadError, PartitionUnavailable, PlanChanged, ProduceError, ProducerFenced, ProducerNotFound,
    ProducerStateError, ReadError, Reason, RecordTooLarge, ReplayError, ResendFirst, ReserveError,
    ReservedName, SessionCommitError, SessionError, SessionFenced, SessionFencedWhy, SessionProblem,
    ShuttingDown, StartError, StartPositionNeeded, SubmitRefused, TimestampTooFar, TopicExists,
    TopicNotFound, Undecodable,
};
pub use fetch::{FetchAnswer, FetchPartition, FetchRequest, Fetched, FetchedPartition};
pub use groups::{CommitRequest, CommittedOffset, GroupDescription, OffsetCommitted, OffsetToCommit};
pub use lag::{LagReport, LagRequest, LagUnknown, MeasuredLag, PartitionLag, PartitionOwner, TopicSum};
pub use limits::Limits;
pub use member::{
    Credit, JoinRequest, MemberSession, SeekTo, SessionCommitted, SessionEvent, SessionFacts, SessionRecords,
    StartPolicy, StartedPartition,
};
pub use offsets::{FoundOffset, OffsetQuery, PartitionOffset};
pub use produce::{
    PartitionAppend, PartitionBatch, Payload, PendingProduce, PlainRecord, ProduceOutcome, ProduceRequest,
    RecordPosition, RecordView, Records, RequestNumbering,
};
pub use producer_ids::{InitializedProducer, ProducerListing, ProducerPartition, ProducerState};
pub use read::{
    ChunkContent, Origin, PartitionFailed, ReadChunk, ReadEnd, ReadFilter, ReadFormat, ReadRequest,
    ReadStart, Reader,
};
pub use replay::{PlannedMove, PlannedPartition, ReplayBlocked, ReplayPlan, ReplaySpec, ReplayTo};
pub use reserve::Reservation;
pub use settings::{SettingError, TopicSetting, TopicSettings};
// What the calls above take and answer, so that the doors need not know the rooms below.
pub use rimstone_state::group::{
    Assignor, CommitError, Committed, Description, FencedBecause, GroupError, GroupState, MemberDescription,
    OffsetValue, Partitions, Summary as GroupSummary,
};
pub use rimstone_store::{
    AcceptedLoss, DamagedRange, Health, OffsetRange, ReadBatch, StoreState, Visibility,
};
pub use topics::{PartitionDescription, TopicDescription, TopicSummary};
