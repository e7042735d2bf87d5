//! What every service does with a unary call: answers it in time, or refuses and has the refusal counted.

use std::{future::Future, time::Duration};

use rimstone_broker::Broker;
use tonic::{Code, Response, Status};

use crate::{open::OpenCalls, refusal::Refusal};

/// What all services share.
#[derive(Debug, Clone)]
pub(crate) struct Door {
    pub(crate) broker: Broker,
    request_timeout: Duration,
    pub(crate) open: OpenCalls,
}

impl Door {
    pub(crate) fn new(broker: Broker, request_timeout: Duration, open: OpenCalls) -> Self {
        Self { broker, request_timeout, open }
    }

    /// What of a request has to come, or be taken, comes within this time.
    pub(crate) fn request_timeout(&self) -> Duration {
        self.request_timeout
    }

    /// The outcome of a call as tonic wants it.
    pub(crate) async fn answer<T>(
        &self,
        call: impl Future<Output = Result<T, Refusal>>,
    ) -> Result<Response<T>, Status> {
        let outcome = tokio::time::timeout(self.request_timeout, call).await;
        outcome.unwrap_or_else(|_| Err(too_slow(self.request_timeout))).map(Response::new).map_err(
            |refusal| {
                self.count(&refusal);
                refusal.into_status()
            },
        )
    }

    /// Counts a refusal that a door made itself; the broker counts its own.
    pub(crate) fn count(&self, refusal: &Refusal) {
        if let Some(reason) = refusal.uncounted {
            self.broker.count_error(reason);
        }
    }
}

/// What was begun goes on all the same: a produce may still be stored.
fn too_slow(timeout: Duration) -> Refusal {
    let millis = timeout.as_millis();
    Refusal {
        code: Code::DeadlineExceeded,
        reason: "DEADLINE_EXCEEDED",
        message: format!(
            "not answered within {millis} ms (limits.request_timeout); whether it was done is unknown"
        ),
        metadata: [("timeout_ms".to_owned(), millis.to_string())].into(),
        retry: None,
        uncounted: None,
    }
}

/// The deadline of a request on its way here: nothing of it was done.
pub(crate) fn too_slow_to_arrive(timeout: Duration) -> Refusal {
    let millis = timeout.as_millis();
    Refusal {
        message: format!(
            "the request was not there within {millis} ms (limits.request_timeout); it was not done"
        ),
        ..too_slow(timeout)
    }
}

/// Answers that nobody takes keep a request from being done: nothing of it was.
pub(crate) fn not_read(timeout: Duration) -> Refusal {
    let millis = timeout.as_millis();
    Refusal {
        message: format!(
            "no answer of this stream was read for {millis} ms (limits.request_timeout), and the window is full; the \
             next request was not done"
        ),
        ..too_slow(timeout)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rimstone_broker::{BrokerConfig, SystemClock};
    use rimstone_store::MemoryStorage;
    use tonic_types::StatusExt as _;

    use super::*;

    #[tokio::test]
    async fn a_call_that_takes_too_long_is_refused_with_a_reason() {
        let storage = Arc::new(MemoryStorage::new());
        let broker = Broker::start(storage, BrokerConfig::default(), Arc::new(SystemClock)).await.unwrap();
        let door = Door::new(broker, Duration::from_millis(5), OpenCalls::default());
        let status = door.answer::<()>(std::future::pending()).await.unwrap_err();
        assert_eq!(status.code(), Code::DeadlineExceeded);
        let info = status.get_details_error_info().unwrap();
        assert_eq!((info.reason.as_str(), info.metadata["timeout_ms"].as_str()), ("DEADLINE_EXCEEDED", "5"));
        assert_eq!(door.answer(async { Ok(7) }).await.unwrap().into_inner(), 7);
    }
}
