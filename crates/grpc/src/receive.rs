//! What happens to a request while it arrives, before it is decoded: its bytes are taken from the in-flight
//! budget, its elements are counted, and it must be there in time. A call takes the server's memory only so far.
//!
//! Not here: decoding (tonic), what a request means (the services).

mod body;
mod framing;
mod scan;
mod shape;

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use rimstone_broker::{Broker, Reason, Reservation};
use rimstone_types::ByteCount;
use tonic::{Status, body::Body, codegen::http::Request};

use crate::{door::too_slow_to_arrive, options::GrpcOptions, refusal::Refusal};
use body::Arriving;
use scan::Malformed;
use shape::Api;

/// Room in the budget that the layer took for a message, until its service takes it over.
#[derive(Debug, Clone, Default)]
pub(crate) struct Received(Arc<Mutex<Option<Reservation>>>);

impl Received {
    /// The room of the message that was decoded last. `None`: it came in one piece, which takes none.
    pub(crate) fn take(&self) -> Option<Reservation> {
        self.0.lock().take()
    }

    fn put(&self, reservation: Reservation) {
        *self.0.lock() = Some(reservation);
    }
}

/// Goes over the bytes of a call's body as the server does while they arrive, in these pieces: how many elements its
/// last message has. For fuzzing.
///
/// # Errors
/// Why they are refused before anything is decoded.
#[doc(hidden)]
pub fn look_at_request(path: &str, pieces: &[&[u8]], items_max: u64) -> Result<u64, &'static str> {
    static API: std::sync::LazyLock<Api> = std::sync::LazyLock::new(Api::ours);
    let call = API.call(path).ok_or("no such call")?;
    let (mut framing, mut scan) = (framing::Framing::new(), None);
    for mut bytes in pieces.iter().copied() {
        while let Some(piece) = framing.next(&mut bytes) {
            match piece {
                framing::Piece::Begin(length) => {
                    scan = Some(scan::Scan::new(call.input, length.into(), items_max));
                }
                framing::Piece::Content(content) => {
                    let fed = scan.as_mut().map_or(Ok(()), |scan: &mut scan::Scan| scan.feed(&API, content));
                    fed.map_err(|why| match why {
                        Malformed::TooManyItems => "too many elements",
                        Malformed::Wire(why) => why,
                    })?;
                }
                framing::Piece::End => {}
            }
        }
    }
    Ok(scan.map_or(0, |scan| scan.items()))
}

/// What all arriving requests share.
#[derive(Debug, Clone)]
pub(crate) struct Receive(Arc<Rules>);

#[derive(Debug)]
struct Rules {
    broker: Broker,
    api: Api,
    timeout: Duration,
    message_max: ByteCount,
    items_max: u64,
}

impl Receive {
    pub(crate) fn new(broker: Broker, options: &GrpcOptions) -> Self {
        Self(Arc::new(Rules {
            broker,
            api: Api::ours(),
            timeout: options.request_timeout,
            message_max: options.request_bytes_max,
            items_max: options.items_per_request_max,
        }))
    }

    /// Watches over the body of a call.
    pub(crate) fn watch(&self, mut request: Request<Body>) -> Request<Body> {
        let received = Received::default();
        request.extensions_mut().insert(received.clone());
        let call = self.0.api.call(request.uri().path());
        request.map(|body| Body::new(Arriving::new(body, Arc::clone(&self.0), call, received)))
    }
}

impl Rules {
    fn refused(&self, refusal: Refusal) -> Status {
        if let Some(reason) = refusal.uncounted {
            self.broker.count_error(reason);
        }
        refusal.into_status()
    }

    fn too_slow(&self) -> Status {
        self.refused(too_slow_to_arrive(self.timeout))
    }

    fn too_long(&self, bytes: u32) -> Status {
        let limit = self.message_max.get();
        let message =
            format!("the request message has {bytes} bytes, and limits.request_bytes allows {limit}");
        self.refused(Refusal::invalid(message).with("limit", limit))
    }

    fn two_messages(&self) -> Status {
        self.refused(Refusal::invalid("this call takes one message, and a second one came"))
    }

    fn unsound(&self, why: Malformed) -> Status {
        self.refused(match why {
            Malformed::TooManyItems => {
                let limit = self.items_max;
                let message = format!(
                    "more than {limit} elements (records, headers, batches, names) in one request message \
                     (limits.items_per_request)"
                );
                Refusal::new(Reason::LimitReached, message).with("limit", limit)
            }
            Malformed::Wire(why) => Refusal::invalid(format!("the request is no protobuf message: {why}")),
        })
    }
}
