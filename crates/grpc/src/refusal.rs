//! An error on its way out: as a gRPC status with details, or as an `ItemError` inside an answer. Both say the
//! same. Not here: which error of the broker becomes which refusal (`status`).

use std::{collections::HashMap, fmt::Display, time::Duration};

use rimstone_broker::Reason;
use rimstone_proto::{ERROR_DOMAIN, v1};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::status::code;

/// An error with everything that a client needs to act on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) code: Code,
    /// Stable; part of the API.
    pub(crate) reason: &'static str,
    pub(crate) message: String,
    pub(crate) metadata: HashMap<String, String>,
    /// Worth another try, as it is, after this long.
    pub(crate) retry: Option<Duration>,
    /// Set where a door found the error itself, so that the broker has not counted it.
    pub(crate) uncounted: Option<Reason>,
}

impl Refusal {
    /// An error that a door found.
    pub(crate) fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            code: code(reason),
            reason: reason.as_str(),
            message: message.into(),
            metadata: HashMap::new(),
            retry: reason.retry_after(),
            uncounted: Some(reason),
        }
    }

    /// A request that means nothing: a field missing, or outside its range.
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(Reason::InvalidRequest, message)
    }

    /// The server is stopping; what was not answered may be sent again to the next one.
    pub(crate) fn shutting_down() -> Self {
        Self::new(Reason::ShuttingDown, SHUTTING_DOWN)
    }

    pub(crate) fn with(mut self, key: &str, value: impl Display) -> Self {
        self.metadata.insert(key.to_owned(), value.to_string());
        self
    }

    pub(crate) fn into_item(self) -> v1::ItemError {
        v1::ItemError {
            code: self.code as i32,
            reason: self.reason.to_owned(),
            message: self.message,
            metadata: self.metadata,
            retry_delay_ms: self
                .retry
                .map_or(0, |delay| u64::try_from(delay.as_millis()).unwrap_or(u64::MAX)),
        }
    }

    pub(crate) fn into_status(self) -> Status {
        let mut details = ErrorDetails::with_error_info(self.reason, ERROR_DOMAIN, self.metadata);
        if self.retry.is_some() {
            details.set_retry_info(self.retry);
        }
        Status::with_error_details(self.code, self.message, details)
    }
}

/// What a client is told when the server stops.
pub(crate) const SHUTTING_DOWN: &str = "shutting down, reconnect";
