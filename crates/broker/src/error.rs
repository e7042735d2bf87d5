//! What can go wrong, one enum per operation; each variant is a small struct with the data that explains it.
//! Not here: status codes of any protocol (the doors map [`Reason`] to theirs, exhaustively).

mod failures;
mod store;

use std::{error::Error, time::Duration};

pub use failures::{
    BatchCorrupt, BatchTooLarge, CatalogUnreadable, FewerPartitions, IdUnknown, InvalidRequest, KeyRequired,
    LimitReached, NoRoom, OutOfRange, PartitionNotFound, PartitionUnavailable, ProducerFenced,
    ProducerNotFound, RecordTooLarge, ResendFirst, ReservedName, ShuttingDown, SubmitRefused,
    TimestampTooFar, TopicExists, TopicNotFound, Undecodable,
};
use rimstone_store::{AcceptLossError, AppendError, Backpressure, StoreError};

use crate::settings::SettingError;

/// The stable name of a kind of failure: what clients compare, what metrics count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)] // each is explained by the struct or variant that answers it
pub enum Reason {
    TopicNotFound,
    PartitionNotFound,
    ProducerNotFound,
    TopicExists,
    InvalidName,
    InvalidRequest,
    InvalidSetting,
    BatchCorrupt,
    BatchTooLarge,
    RecordTooLarge,
    KeyRequired,
    TimestampTooFar,
    OffsetOutOfRange,
    SequenceGap,
    UnknownProducer,
    NumberReused,
    NumberTooOld,
    ResendFirst,
    NumberingMixed,
    ProducerFenced,
    ExpectedEndNotMet,
    TooManyProducers,
    Backpressure,
    LimitReached,
    DiskFull,
    PartitionPoisoned,
    PartitionUnavailable,
    ShuttingDown,
    AppendUndone,
    AppendUnknown,
    DataDamaged,
    DamageDiffers,
    LossRefused,
    GroupNotFound,
    GroupExists,
    GroupNotEmpty,
    MemberFenced,
    PartitionNotOwned,
    StartPositionNeeded,
    CoordinatorLoading,
    PlanChanged,
    Internal,
}

impl Reason {
    /// All of them.
    pub const ALL: [Self; 42] = [
        Self::TopicNotFound,
        Self::PartitionNotFound,
        Self::ProducerNotFound,
        Self::TopicExists,
        Self::InvalidName,
        Self::InvalidRequest,
        Self::InvalidSetting,
        Self::BatchCorrupt,
        Self::BatchTooLarge,
        Self::RecordTooLarge,
        Self::KeyRequired,
        Self::TimestampTooFar,
        Self::OffsetOutOfRange,
        Self::SequenceGap,
        Self::UnknownProducer,
        Self::NumberReused,
        Self::NumberTooOld,
        Self::ResendFirst,
        Self::NumberingMixed,
        Self::ProducerFenced,
        Self::ExpectedEndNotMet,
        Self::TooManyProducers,
        Self::Backpressure,
        Self::LimitReached,
        Self::DiskFull,
        Self::PartitionPoisoned,
        Self::PartitionUnavailable,
        Self::ShuttingDown,
        Self::AppendUndone,
        Self::AppendUnknown,
        Self::DataDamaged,
        Self::DamageDiffers,
        Self::LossRefused,
        Self::GroupNotFound,
        Self::GroupExists,
        Self::GroupNotEmpty,
        Self::MemberFenced,
        Self::PartitionNotOwned,
        Self::StartPositionNeeded,
        Self::CoordinatorLoading,
        Self::PlanChanged,
        Self::Internal,
    ];

    /// The name as clients see it, for example `TOPIC_NOT_FOUND`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::TopicNotFound => "TOPIC_NOT_FOUND",
            Self::PartitionNotFound => "PARTITION_NOT_FOUND",
            Self::ProducerNotFound => "PRODUCER_NOT_FOUND",
            Self::TopicExists => "TOPIC_EXISTS",
            Self::InvalidName => "INVALID_NAME",
            Self::InvalidRequest => "INVALID_REQUEST",
            Self::InvalidSetting => "INVALID_SETTING",
            Self::BatchCorrupt => "BATCH_CORRUPT",
            Self::BatchTooLarge => "BATCH_TOO_LARGE",
            Self::RecordTooLarge => "RECORD_TOO_LARGE",
            Self::KeyRequired => "KEY_REQUIRED",
            Self::TimestampTooFar => "TIMESTAMP_TOO_FAR",
            Self::OffsetOutOfRange => "OFFSET_OUT_OF_RANGE",
            Self::SequenceGap => "SEQUENCE_GAP",
            Self::UnknownProducer => "UNKNOWN_PRODUCER",
            Self::NumberReused => "NUMBER_REUSED",
            Self::NumberTooOld => "NUMBER_TOO_OLD",
            Self::ResendFirst => "RESEND_FIRST",
            Self::NumberingMixed => "NUMBERING_MIXED",
            Self::ProducerFenced => "PRODUCER_FENCED",
            Self::ExpectedEndNotMet => "EXPECTED_END_NOT_MET",
            Self::TooManyProducers => "TOO_MANY_PRODUCERS",
            Self::Backpressure => "BACKPRESSURE",
            Self::LimitReached => "LIMIT_REACHED",
            Self::DiskFull => "DISK_FULL",
            Self::PartitionPoisoned => "PARTITION_POISONED",
            Self::PartitionUnavailable => "PARTITION_UNAVAILABLE",
            Self::ShuttingDown => "SHUTTING_DOWN",
            Self::AppendUndone => "APPEND_UNDONE",
            Self::AppendUnknown => "APPEND_UNKNOWN",
            Self::DataDamaged => "DATA_DAMAGED",
            Self::DamageDiffers => "DAMAGE_DIFFERS",
            Self::LossRefused => "LOSS_REFUSED",
            Self::GroupNotFound => "GROUP_NOT_FOUND",
            Self::GroupExists => "GROUP_EXISTS",
            Self::GroupNotEmpty => "GROUP_NOT_EMPTY",
            Self::MemberFenced => "MEMBER_FENCED",
            Self::PartitionNotOwned => "PARTITION_NOT_OWNED",
            Self::StartPositionNeeded => "START_POSITION_NEEDED",
            Self::CoordinatorLoading => "COORDINATOR_LOADING",
            Self::PlanChanged => "PLAN_CHANGED",
            Self::Internal => "INTERNAL",
        }
    }

    /// How long to wait before another try, where another try may succeed.
    pub const fn retry_after(self) -> Option<Duration> {
        match self {
            // Room comes back with the next group, a few milliseconds later; 50 ms keeps a crowd from spinning.
            Self::Backpressure | Self::AppendUndone => Some(Duration::from_millis(50)),
            // A shard of offsets loads in well under a second.
            Self::CoordinatorLoading => Some(Duration::from_millis(200)),
            // What a bound counts (waits, readers, producers) goes away by somebody's action.
            Self::LimitReached | Self::TooManyProducers => Some(Duration::from_secs(1)),
            // Space comes back by retention or by an operator.
            Self::DiskFull => Some(Duration::from_secs(5)),
            // A server that stops is started again, or another address answers.
            Self::ShuttingDown
            | Self::PartitionUnavailable
            | Self::PartitionPoisoned
            | Self::AppendUnknown => Some(Duration::from_secs(1)),
            _ => None,
        }
    }
}

/// Names and values that explain a failure, for machines.
pub type Details = Vec<(&'static str, String)>;

/// What every error of the broker can say of itself.
pub trait Failure: Error {
    /// The stable name.
    fn reason(&self) -> Reason;

    /// The numbers and names behind it, for example `expected_sequence`. Topic and partition are among them
    /// where the failure knows them; an item of an answer leaves them to who assembles it.
    fn details(&self) -> Details {
        Details::new()
    }

    /// How long to wait before another try; `None`: do not try again as it is.
    fn retry_after(&self) -> Option<Duration> {
        self.reason().retry_after()
    }
}

/// An enum of failures, each variant one of the structs, and what it says of itself by asking them.
macro_rules! failures_of {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident($inner:ty),)+ }) => {
        $(#[$doc])*
        #[derive(Debug, thiserror::Error)]
        pub enum $name {
            $($(#[$variant_doc])* #[error(transparent)] $variant(#[from] $inner),)+
        }

        impl Failure for $name {
            fn reason(&self) -> Reason {
                match self { $(Self::$variant(inner) => inner.reason(),)+ }
            }

            fn details(&self) -> Details {
                match self { $(Self::$variant(inner) => inner.details(),)+ }
            }

            fn retry_after(&self) -> Option<Duration> {
                match self { $(Self::$variant(inner) => inner.retry_after(),)+ }
            }
        }
    };
}

mod groups;
pub use groups::{
    CoordinatorLoading, GroupRequestError, OffsetCommitError, PartitionNotOwned, PlanChanged,
    SessionCommitError, SessionError, SessionFenced, SessionFencedWhy, SessionProblem, StartPositionNeeded,
};

failures_of! {
    /// Why the catalog could not take a record.
    CatalogError {
        /// The append failed.
        Append(AppendError),
        /// The append was not taken.
        Refused(Backpressure),
    }
}

failures_of! {
    /// Why a topic was not made.
    CreateTopicError {
        /// The name belongs to the server.
        Reserved(ReservedName),
        /// There is one.
        Exists(TopicExists),
        /// A setting is unknown or out of bounds.
        Setting(SettingError),
        /// A nonsense number of partitions.
        Invalid(InvalidRequest),
        /// A bound on topics or partitions.
        Limit(LimitReached),
        /// The server stops.
        ShuttingDown(ShuttingDown),
        /// The catalog could not take it: the topic does not exist, or (unknown) a restart tells.
        Catalog(CatalogError),
        /// A partition could not be made.
        Store(StoreError),
    }
}

failures_of! {
    /// Why a topic was not changed.
    AlterTopicError {
        /// There is no such topic.
        NotFound(TopicNotFound),
        /// The topic belongs to the server.
        Reserved(ReservedName),
        /// A setting is unknown or out of bounds.
        Setting(SettingError),
        /// Partitions cannot be taken away.
        FewerPartitions(FewerPartitions),
        /// A bound on partitions.
        Limit(LimitReached),
        /// The server stops.
        ShuttingDown(ShuttingDown),
        /// The catalog could not take it.
        Catalog(CatalogError),
        /// A partition could not be made.
        Store(StoreError),
    }
}

failures_of! {
    /// Why a topic was not deleted.
    DeleteTopicError {
        /// There is no such topic.
        NotFound(TopicNotFound),
        /// The topic belongs to the server.
        Reserved(ReservedName),
        /// The server stops.
        ShuttingDown(ShuttingDown),
        /// The catalog could not take it.
        Catalog(CatalogError),
        /// It is gone from the catalog, but its files could not be deleted now; the next start does it.
        Store(StoreError),
    }
}

failures_of! {
    /// Why log start was not moved (in every partition asked for).
    DeleteRecordsError {
        /// There is no such topic.
        NotFound(TopicNotFound),
        /// The topic belongs to the server.
        Reserved(ReservedName),
        /// There is no such partition.
        PartitionNotFound(PartitionNotFound),
        /// The partition could not be opened.
        Unavailable(PartitionUnavailable),
        /// The offset lies behind the visible end.
        OutOfRange(OutOfRange),
        /// The server stops.
        ShuttingDown(ShuttingDown),
        /// The store could not.
        Store(StoreError),
    }
}

failures_of! {
    /// Why damage could not be looked at.
    FindDamageError {
        /// There is no such topic.
        NotFound(TopicNotFound),
        /// There is no such partition.
        PartitionNotFound(PartitionNotFound),
        /// The partition could not be opened.
        Unavailable(PartitionUnavailable),
        /// The store could not.
        Store(StoreError),
    }
}

failures_of! {
    /// Why a loss was not accepted.
    LossError {
        /// There is no such topic.
        NotFound(TopicNotFound),
        /// There is no such partition.
        PartitionNotFound(PartitionNotFound),
        /// The partition could not be opened.
        Unavailable(PartitionUnavailable),
        /// No range, or one that is none.
        Invalid(InvalidRequest),
        /// The server stops.
        ShuttingDown(ShuttingDown),
        /// The store refused, or could not.
        Store(AcceptLossError),
    }
}

failures_of! {
    /// Why offsets could not be listed at all.
    ListOffsetsError {
        /// There is no such topic.
        NotFound(TopicNotFound),
        /// More partitions than one request may name.
        Limit(LimitReached),
        /// The server stops.
        ShuttingDown(ShuttingDown),
    }
}

failures_of! {
    /// Why lag was not told.
    LagError {
        /// There is no such topic.
        NotFound(TopicNotFound),
        /// There is no such group, or it is being loaded.
        Group(GroupRequestError),
        /// A bound on the request or on its answer.
        Limit(LimitReached),
        /// The server stops.
        ShuttingDown(ShuttingDown),
    }
}

failures_of! {
    /// Why a replay was not planned or not done.
    ReplayError {
        /// There is no such topic.
        NotFound(TopicNotFound),
        /// The request contradicts itself, or there is nothing to do.
        Invalid(InvalidRequest),
        /// A bound on the request.
        Limit(LimitReached),
        /// A partition stands in the way.
        Blocked(crate::replay::ReplayBlocked),
        /// The group: not there, not empty, there already, its offsets have moved; or its coordinator.
        Group(GroupRequestError),
        /// The server stops.
        ShuttingDown(ShuttingDown),
    }
}

failures_of! {
    /// Why no producer id was given out.
    InitProducerError {
        /// There is no such topic.
        NotFound(TopicNotFound),
        /// A bound on named producers, or on the topics of a request.
        Limit(LimitReached),
        /// What is stored there cannot be told, so that numbering cannot be resumed.
        Unavailable(PartitionUnavailable),
        /// The server stops.
        ShuttingDown(ShuttingDown),
        /// The catalog could not take it.
        Catalog(CatalogError),
        /// A partition could not tell what it holds.
        Store(StoreError),
    }
}

failures_of! {
    /// Why it cannot be told what is stored of a producer.
    ProducerStateError {
        /// There is no such topic.
        NotFound(TopicNotFound),
        /// More topics than one request may name.
        Limit(LimitReached),
        /// The partition could not be opened.
        Unavailable(PartitionUnavailable),
        /// The server stops.
        ShuttingDown(ShuttingDown),
        /// A partition could not tell what it holds.
        Store(StoreError),
    }
}

failures_of! {
    /// Why a producer was not deleted.
    DeleteProducerError {
        /// There is no such name.
        NotFound(ProducerNotFound),
        /// The server stops.
        ShuttingDown(ShuttingDown),
        /// The catalog could not take it.
        Catalog(CatalogError),
    }
}

failures_of! {
    /// Why no room was given in the in-flight budget.
    ReserveError {
        /// Everything is taken at the moment.
        NoRoom(NoRoom),
        /// The request is larger than the whole budget.
        Limit(LimitReached),
        /// The server stops.
        ShuttingDown(ShuttingDown),
    }
}

failures_of! {
    /// Why a whole request was refused: nothing of it was or will be stored by it, and its request number, if
    /// it had one, is not used up.
    ProduceError {
        /// There is no such topic.
        NotFound(TopicNotFound),
        /// The topic belongs to the server.
        Reserved(ReservedName),
        /// There is no such partition.
        PartitionNotFound(PartitionNotFound),
        /// The partition could not be opened.
        Unavailable(PartitionUnavailable),
        /// The request contradicts itself or asks for what clients may not.
        Invalid(InvalidRequest),
        /// A batch is not what it says.
        Corrupt(BatchCorrupt),
        /// A batch is larger than `max.message.bytes`.
        BatchTooLarge(BatchTooLarge),
        /// A record is larger than `max.message.bytes` allows.
        RecordTooLarge(RecordTooLarge),
        /// The topic is compacted and a record has no key.
        KeyRequired(KeyRequired),
        /// A create time lies too far in the future.
        TimestampTooFar(TimestampTooFar),
        /// The producer id was never given out, or its name was deleted.
        IdUnknown(IdUnknown),
        /// A newer instance of the producer has been started.
        Fenced(ProducerFenced),
        /// Another request number must come first.
        ResendFirst(ResendFirst),
        /// A bound on one request.
        Limit(LimitReached),
        /// The partition did not take it.
        Refused(SubmitRefused),
        /// Too many requests of this producer are open.
        NoRoom(NoRoom),
        /// The server stops.
        ShuttingDown(ShuttingDown),
        /// The state of the producer could not be read.
        Store(StoreError),
    }
}

failures_of! {
    /// Why one partition of a request that was taken has no offsets.
    PartitionAppendError {
        /// The store's verdict.
        Append(AppendError),
        /// The partition did not take it, while others had taken their part already.
        Refused(Backpressure),
    }
}

failures_of! {
    /// Why a whole fetch was refused.
    FetchError {
        /// There is no such topic.
        NotFound(TopicNotFound),
        /// The request contradicts itself.
        Invalid(InvalidRequest),
        /// A bound on the request, or on those that wait.
        Limit(LimitReached),
        /// The server stops.
        ShuttingDown(ShuttingDown),
    }
}

failures_of! {
    /// Why one partition could not be read.
    PartitionReadError {
        /// There is no such partition.
        NotFound(PartitionNotFound),
        /// The partition could not be opened.
        Unavailable(PartitionUnavailable),
        /// The store could not read: outside the log, damaged, or a failure.
        Read(rimstone_store::ReadError),
        /// A stored batch cannot be decoded.
        Undecodable(Undecodable),
    }
}

failures_of! {
    /// Why a reader was not made, or why it ends.
    ReadError {
        /// There is no such topic.
        NotFound(TopicNotFound),
        /// The request contradicts itself.
        Invalid(InvalidRequest),
        /// A bound on readers or on the request.
        Limit(LimitReached),
        /// A partition could not be read.
        Partition(crate::read::PartitionFailed),
        /// The server stops: read on from the last `next`, there or elsewhere.
        ShuttingDown(ShuttingDown),
    }
}

/// Why the broker did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// There are partitions, but no catalog: it is never taken for an empty one.
    #[error("the data directory holds {partitions} partitions, but no catalog")]
    CatalogMissing {
        /// How many partitions there are.
        partitions: usize,
    },
    /// The catalog cannot be read or understood.
    #[error(transparent)]
    CatalogUnreadable(#[from] CatalogUnreadable),
    /// The catalog's partition cannot be opened.
    #[error("the catalog cannot be opened: {0}")]
    CatalogOpen(#[source] rimstone_store::OpenError),
    /// The catalog could not take the server's first record.
    #[error("the catalog cannot be written: {0}")]
    CatalogWrite(#[from] CatalogError),
    /// The store could not list its partitions.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A default of the configuration is out of bounds.
    #[error(transparent)]
    Setting(#[from] SettingError),
}
