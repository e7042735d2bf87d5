//! The one error of this crate, and the reasons that tell errors apart.

use std::{collections::BTreeMap, time::Duration};

use rimstone_proto::v1;
use rimstone_record::{BatchError, BuildError};
use rimstone_types::InvalidName;
use tonic::Status;
use tonic_types::StatusExt as _;

pub use tonic::Code;

/// The stable reasons of errors. Those of the server are in `docs/api.md`; the rest are this crate's own.
pub mod reason {
    /// The request means nothing to the server; metadata `limit` where it is too long for it.
    pub const INVALID_REQUEST: &str = "INVALID_REQUEST";
    /// The topic does not exist.
    pub const TOPIC_NOT_FOUND: &str = "TOPIC_NOT_FOUND";
    /// The topic has no such partition.
    pub const PARTITION_NOT_FOUND: &str = "PARTITION_NOT_FOUND";
    /// No producer of this name.
    pub const PRODUCER_NOT_FOUND: &str = "PRODUCER_NOT_FOUND";
    /// The record is larger than the topic takes.
    pub const RECORD_TOO_LARGE: &str = "RECORD_TOO_LARGE";
    /// The offset lies outside the log; metadata `log_start_offset` and `high_watermark`.
    pub const OFFSET_OUT_OF_RANGE: &str = "OFFSET_OUT_OF_RANGE";
    /// A sequence was skipped; metadata `expected_sequence`.
    pub const SEQUENCE_GAP: &str = "SEQUENCE_GAP";
    /// The server does not know this producer (any more).
    pub const UNKNOWN_PRODUCER: &str = "UNKNOWN_PRODUCER";
    /// A newer instance of the producer has taken over.
    pub const PRODUCER_FENCED: &str = "PRODUCER_FENCED";
    /// A sequence was used for something else before.
    pub const NUMBER_REUSED: &str = "NUMBER_REUSED";
    /// A sequence is older than what the server remembers.
    pub const NUMBER_TOO_OLD: &str = "NUMBER_TOO_OLD";
    /// The producer numbers by request elsewhere.
    pub const NUMBERING_MIXED: &str = "NUMBERING_MIXED";
    /// The append did not happen.
    pub const APPEND_UNDONE: &str = "APPEND_UNDONE";
    /// It is not known whether the append happened.
    pub const APPEND_UNKNOWN: &str = "APPEND_UNKNOWN";
    /// Too much is under way.
    pub const BACKPRESSURE: &str = "BACKPRESSURE";
    /// A bound of the server was reached.
    pub const LIMIT_REACHED: &str = "LIMIT_REACHED";
    /// The table of producers is full.
    pub const TOO_MANY_PRODUCERS: &str = "TOO_MANY_PRODUCERS";
    /// The data directory's device is full.
    pub const DISK_FULL: &str = "DISK_FULL";
    /// The partition takes no writes until it is recovered.
    pub const PARTITION_POISONED: &str = "PARTITION_POISONED";
    /// The partition cannot be used.
    pub const PARTITION_UNAVAILABLE: &str = "PARTITION_UNAVAILABLE";
    /// The server is stopping.
    pub const SHUTTING_DOWN: &str = "SHUTTING_DOWN";
    /// Stored bytes are damaged; metadata `from_offset` and `until_offset`.
    pub const DATA_DAMAGED: &str = "DATA_DAMAGED";
    /// What is damaged is something else than what was named.
    pub const DAMAGE_DIFFERS: &str = "DAMAGE_DIFFERS";
    /// The loss cannot be accepted as it was named; the message says what can be done.
    pub const LOSS_REFUSED: &str = "LOSS_REFUSED";

    /// No group of this name.
    pub const GROUP_NOT_FOUND: &str = "GROUP_NOT_FOUND";
    /// A group of this name is there already.
    pub const GROUP_EXISTS: &str = "GROUP_EXISTS";
    /// The group has members, and what was asked for needs one without.
    pub const GROUP_NOT_EMPTY: &str = "GROUP_NOT_EMPTY";
    /// The group does not know this member (any more), or another has taken its place.
    pub const MEMBER_FENCED: &str = "MEMBER_FENCED";
    /// The partition is not this member's (any more).
    pub const PARTITION_NOT_OWNED: &str = "PARTITION_NOT_OWNED";
    /// Nothing is committed (or outside the log), and nobody has said where to begin instead.
    pub const START_POSITION_NEEDED: &str = "START_POSITION_NEEDED";
    /// The group's coordinator is still reading what it knows; try again.
    pub const COORDINATOR_LOADING: &str = "COORDINATOR_LOADING";
    /// A replay would no longer do what its plan says.
    pub const PLAN_CHANGED: &str = "PLAN_CHANGED";

    /// Ours: the server could not be reached, or the connection was lost.
    pub const UNREACHABLE: &str = "UNREACHABLE";
    /// Ours: the deadline of a record passed.
    pub const DEADLINE: &str = "DELIVERY_DEADLINE";
    /// Ours: an earlier record of the partition was given up while its outcome was unknown.
    pub const EARLIER_UNKNOWN: &str = "EARLIER_OUTCOME_UNKNOWN";
    /// Ours: the consumer was closed.
    pub const CONSUMER_CLOSED: &str = "CONSUMER_CLOSED";
    /// Ours: the producer was closed.
    pub const CLOSED: &str = "PRODUCER_CLOSED";
    /// Ours: the server broke a rule of the protocol.
    pub const PROTOCOL: &str = "PROTOCOL_VIOLATED";
    /// Ours: an argument is not allowed.
    pub const INVALID: &str = "INVALID_ARGUMENT";
}

/// What went wrong, as the server said it (`google.rpc.ErrorInfo`) or as this crate found it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ClientError {
    /// The gRPC code.
    pub code: Code,
    /// The stable reason, for example [`reason::TOPIC_NOT_FOUND`]; empty where the other side gave none.
    pub reason: String,
    /// What was wrong and what is allowed, in words.
    pub message: String,
    /// The numbers and names that explain it, for example `topic` and `expected_sequence`.
    pub metadata: BTreeMap<String, String>,
    /// How long the server asks to wait before another try.
    pub retry_after: Option<Duration>,
}

impl ClientError {
    /// An error of this crate's own.
    pub(crate) fn new(code: Code, reason: &str, message: impl Into<String>) -> Self {
        Self {
            code,
            reason: reason.to_owned(),
            message: message.into(),
            metadata: BTreeMap::new(),
            retry_after: None,
        }
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(Code::InvalidArgument, reason::INVALID, message)
    }

    pub(crate) fn protocol(message: impl Into<String>) -> Self {
        Self::new(Code::Internal, reason::PROTOCOL, message)
    }

    pub(crate) fn with(mut self, key: &str, value: impl ToString) -> Self {
        self.metadata.insert(key.to_owned(), value.to_string());
        self
    }

    /// Whether the reason is this one.
    pub fn is(&self, reason: &str) -> bool {
        self.reason == reason
    }

    /// Whether the server could not be reached at all.
    pub fn is_unreachable(&self) -> bool {
        self.is(reason::UNREACHABLE)
    }

    /// Whether the same call may succeed later, unchanged.
    pub fn is_retriable(&self) -> bool {
        match self.code {
            Code::Unavailable | Code::ResourceExhausted | Code::Aborted => true,
            // A connection that breaks inside a call comes as one of these, without a reason.
            Code::Unknown | Code::Internal | Code::Cancelled | Code::DeadlineExceeded => {
                self.reason.is_empty() || self.is(reason::UNREACHABLE) || self.is("INTERNAL")
            }
            _ => false,
        }
    }

    /// A number from the metadata.
    pub fn number(&self, key: &str) -> Option<u64> {
        self.metadata.get(key)?.parse().ok()
    }
}

impl From<Status> for ClientError {
    fn from(status: Status) -> Self {
        let details = status.get_error_details();
        let info = details.error_info();
        let mut reason = info.map(|info| info.reason.clone()).unwrap_or_default();
        let mut message = status.message().to_owned();
        if reason.is_empty() && is_transport(&status) {
            reason = self::reason::UNREACHABLE.to_owned();
            message = root_cause(&status);
        }
        Self {
            code: status.code(),
            reason,
            message,
            metadata: info.map(|info| info.metadata.clone().into_iter().collect()).unwrap_or_default(),
            retry_after: details.retry_info().and_then(|retry| retry.retry_delay),
        }
    }
}

/// Whether a status was made on this side because the connection failed.
fn is_transport(status: &Status) -> bool {
    std::error::Error::source(status).is_some()
        && matches!(
            status.code(),
            Code::Unavailable | Code::Unknown | Code::Internal | Code::Cancelled | Code::DeadlineExceeded
        )
}

/// The innermost error: "Connection refused" says more than "transport error".
fn root_cause(status: &Status) -> String {
    let mut error: &dyn std::error::Error = status;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

impl From<v1::ItemError> for ClientError {
    fn from(item: v1::ItemError) -> Self {
        Self {
            code: Code::from(item.code),
            reason: item.reason,
            message: item.message,
            metadata: item.metadata.into_iter().collect(),
            retry_after: (item.retry_delay_ms > 0).then(|| Duration::from_millis(item.retry_delay_ms)),
        }
    }
}

impl From<InvalidName> for ClientError {
    fn from(error: InvalidName) -> Self {
        Self::new(Code::InvalidArgument, "INVALID_NAME", error.to_string())
    }
}

impl From<BuildError> for ClientError {
    fn from(error: BuildError) -> Self {
        Self::invalid(error.to_string())
    }
}

impl From<BatchError> for ClientError {
    fn from(error: BatchError) -> Self {
        Self::new(
            Code::DataLoss,
            "BATCH_CORRUPT",
            format!("the server sent a batch that is damaged: {error}"),
        )
    }
}

#[cfg(test)]
mod tests {
    use tonic_types::ErrorDetails;

    use super::*;

    #[test]
    fn a_status_with_details_keeps_every_part() {
        let mut details = ErrorDetails::with_error_info(
            reason::BACKPRESSURE,
            "rimstone.v1",
            [("topic".to_owned(), "logs".to_owned()), ("limit".to_owned(), "16".to_owned())],
        );
        details.set_retry_info(Some(Duration::from_millis(250)));
        let status = Status::with_error_details(Code::ResourceExhausted, "too much is under way", details);
        let error = ClientError::from(status);
        assert_eq!(error.code, Code::ResourceExhausted);
        assert!(error.is(reason::BACKPRESSURE) && error.is_retriable() && !error.is_unreachable());
        assert_eq!(error.to_string(), "too much is under way");
        assert_eq!(error.number("limit"), Some(16));
        assert_eq!(error.number("topic"), None);
        assert_eq!(error.retry_after, Some(Duration::from_millis(250)));
    }

    #[test]
    fn an_item_error_says_the_same_as_a_status() {
        let error = ClientError::from(v1::ItemError {
            code: 9,
            reason: reason::SEQUENCE_GAP.to_owned(),
            message: "a gap".to_owned(),
            metadata: [("expected_sequence".to_owned(), "7".to_owned())].into(),
            retry_delay_ms: 0,
        });
        assert_eq!(error.code, Code::FailedPrecondition);
        assert_eq!(error.number("expected_sequence"), Some(7));
        assert_eq!(error.retry_after, None);
        assert!(!error.is_retriable());
    }

    #[test]
    fn a_refusal_with_a_reason_is_not_taken_for_a_broken_connection() {
        let details =
            ErrorDetails::with_error_info("DATA_DAMAGED", "rimstone.v1", [] as [(String, String); 0]);
        let error = ClientError::from(Status::with_error_details(Code::DataLoss, "damaged", details));
        assert!(!error.is_retriable());
        assert!(!ClientError::from(Status::invalid_argument("no")).is_retriable());
        assert!(ClientError::from(Status::unknown("h2 protocol error")).is_retriable());
    }
}
