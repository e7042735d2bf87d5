//! What an answer means: done, refused (it did not happen), or unknown (it may have happened).

use rimstone_proto::v1;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::event::What;

/// Why a call did not succeed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The code.
    pub code: Code,
    /// The stable reason; empty where nobody gave one.
    pub reason: String,
    /// In words.
    pub message: String,
    /// The numbers that explain it.
    pub metadata: std::collections::HashMap<String, String>,
}

/// Reasons that leave open what became of an append; a call without a reason does too.
const UNKNOWN: &[&str] = &["APPEND_UNKNOWN", "", "SHUTTING_DOWN", "INTERNAL"];

impl Failure {
    /// From a whole call.
    pub fn of_status(status: &Status) -> Self {
        let info = status.get_details_error_info();
        Self {
            code: status.code(),
            reason: info.as_ref().map(|info| info.reason.clone()).unwrap_or_default(),
            message: status.message().to_owned(),
            metadata: info.map(|info| info.metadata).unwrap_or_default(),
        }
    }

    /// From an item of an answer.
    pub fn of_item(item: &v1::ItemError) -> Self {
        Self {
            code: item.code.into(),
            reason: item.reason.clone(),
            message: item.message.clone(),
            metadata: item.metadata.clone(),
        }
    }

    /// A connection that broke before the answer.
    pub fn lost(why: &str) -> Self {
        Self {
            code: Code::Unavailable,
            reason: String::new(),
            message: why.to_owned(),
            metadata: std::collections::HashMap::new(),
        }
    }

    /// Whether what was asked may have happened all the same.
    pub fn is_unknown(&self) -> bool {
        UNKNOWN.contains(&self.reason.as_str())
    }

    /// A number that explains it.
    pub fn number(&self, key: &str) -> Option<u64> {
        self.metadata.get(key)?.parse().ok()
    }

    /// How the history tells it.
    pub fn told(&self) -> What {
        let why = format!("{:?} {} {}", self.code, self.reason, self.message);
        if self.is_unknown() { What::Unknown { why } } else { What::Refused { why } }
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        Self::of_status(&status)
    }
}
