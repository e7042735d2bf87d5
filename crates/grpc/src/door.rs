//! What every service does with its outcome: answers, or refuses and has the refusal counted.

use rimstone_broker::Broker;
use tonic::{Response, Status};

use crate::refusal::Refusal;

/// Counts a refusal that a door made itself; the broker counts its own.
pub(crate) fn count(broker: &Broker, refusal: &Refusal) {
    if let Some(reason) = refusal.uncounted {
        broker.count_error(reason);
    }
}

/// The outcome of a call as tonic wants it.
pub(crate) fn answer<T>(broker: &Broker, outcome: Result<T, Refusal>) -> Result<Response<T>, Status> {
    outcome.map(Response::new).map_err(|refusal| {
        count(broker, &refusal);
        refusal.into_status()
    })
}
