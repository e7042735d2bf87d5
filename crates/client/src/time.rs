//! The wall clock, in one place.

use std::time::{SystemTime, UNIX_EPOCH};

use rimstone_types::Timestamp;

/// This machine's clock.
pub(crate) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}
