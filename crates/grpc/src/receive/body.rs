//! The body of a call while it arrives.
//!
//! A message that is there in one piece passes: its service takes the room for it before it does anything. One that
//! has to be waited for takes its room first, all of it, so that nobody who holds some waits for more. Without room a
//! unary call is refused, and a stream waits, as it does when its requests are taken too slowly.

use std::{
    future::Future as _,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use futures::future::BoxFuture;
use http_body::{Body as HttpBody, Frame, SizeHint};
use rimstone_broker::{Reservation, ReserveError};
use rimstone_types::ByteCount;
use tokio::time::{Sleep, sleep};
use tonic::{Status, body::Body, codegen::Bytes};

use super::{
    Received, Rules,
    framing::{Framing, Piece},
    scan::Scan,
    shape::Call,
};
use crate::status::refusal;

/// What a message takes beside its bytes: enough for the batches that one request of a client of ours has, so that
/// such a request finds its room before it arrives or not at all.
const MESSAGE_OVERHEAD_BYTES: u64 = 4 << 10;

/// The room of the message that is arriving.
enum Room {
    /// None is needed.
    None,
    /// The message has begun and needs this much.
    Wanted(ByteCount),
    /// The stream waits for it.
    Awaited(BoxFuture<'static, Result<Reservation, ReserveError>>),
    Held(Reservation),
}

/// A body that takes room, counts and has a deadline.
pub(super) struct Arriving {
    body: Body,
    rules: Arc<Rules>,
    call: Option<Call>,
    received: Received,
    framing: Framing,
    scan: Option<Scan>,
    room: Room,
    messages: u64,
    /// Runs while something is waited for that must come.
    deadline: Option<Pin<Box<Sleep>>>,
}

impl Arriving {
    pub(super) fn new(body: Body, rules: Arc<Rules>, call: Option<Call>, received: Received) -> Self {
        Self {
            body,
            rules,
            call,
            received,
            framing: Framing::new(),
            scan: None,
            room: Room::None,
            messages: 0,
            deadline: None,
        }
    }

    /// Calls that are not ours, health and reflection, may be either.
    fn streams(&self) -> bool {
        self.call.is_none_or(|call| call.streams)
    }

    fn poll_room(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Status>> {
        loop {
            let outcome = match &mut self.room {
                Room::None | Room::Held(_) => return Poll::Ready(Ok(())),
                Room::Wanted(bytes) if self.call.is_some_and(|call| !call.streams) => {
                    self.rules.broker.try_reserve(*bytes)
                }
                Room::Wanted(bytes) => {
                    let (broker, bytes) = (self.rules.broker.clone(), *bytes);
                    self.room = Room::Awaited(Box::pin(async move { broker.reserve(bytes).await }));
                    continue;
                }
                Room::Awaited(room) => ready!(room.as_mut().poll(context)),
            };
            match outcome {
                Ok(reservation) => self.room = Room::Held(reservation),
                Err(error) => return Poll::Ready(Err(refusal(&error).into_status())),
            }
        }
    }

    /// Whether what is waited for should have come by now. A unary call has to be there as a whole; a stream may say
    /// nothing for as long as it likes, but has to finish a message that it began.
    fn is_late(&mut self, context: &mut Context<'_>) -> bool {
        if self.streams() && self.framing.is_between() {
            self.deadline = None;
            return false;
        }
        let timeout = self.rules.timeout;
        let deadline = self.deadline.get_or_insert_with(|| Box::pin(sleep(timeout)));
        deadline.as_mut().poll(context).is_ready()
    }

    fn look_at(&mut self, mut bytes: &[u8]) -> Result<(), Status> {
        while let Some(piece) = self.framing.next(&mut bytes) {
            match piece {
                Piece::Begin(length) => self.begin(length, bytes.len())?,
                Piece::Content(content) => {
                    if let Some(scan) = &mut self.scan {
                        scan.feed(&self.rules.api, content).map_err(|why| self.rules.unsound(why))?;
                    }
                }
                Piece::End => {
                    if let Room::Held(reservation) = std::mem::replace(&mut self.room, Room::None) {
                        self.received.put(reservation);
                    }
                    if self.streams() {
                        self.deadline = None;
                    }
                }
            }
        }
        Ok(())
    }

    fn begin(&mut self, length: u32, here: usize) -> Result<(), Status> {
        self.messages += 1;
        if self.messages > 1 && !self.streams() {
            return Err(self.rules.two_messages());
        }
        if u64::from(length) > self.rules.message_max.get() {
            return Err(self.rules.too_long(length));
        }
        self.scan = self.call.map(|call| Scan::new(call.input, length.into(), self.rules.items_max));
        if length as usize > here {
            // A message as long as the whole budget may still come, alone.
            let most = self.rules.broker.limits().in_flight;
            self.room = Room::Wanted(ByteCount(u64::from(length) + MESSAGE_OVERHEAD_BYTES).min(most));
        }
        Ok(())
    }
}

impl HttpBody for Arriving {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        if this.streams() {
            // Whoever asks for more has had everything that was complete; a room that nobody took is not needed.
            drop(this.received.take());
        }
        if let Err(status) = ready!(this.poll_room(context)) {
            return Poll::Ready(Some(Err(status)));
        }
        match Pin::new(&mut this.body).poll_frame(context) {
            Poll::Pending if this.is_late(context) => Poll::Ready(Some(Err(this.rules.too_slow()))),
            Poll::Ready(Some(Ok(frame))) => {
                let looked = frame.data_ref().map_or(Ok(()), |data| this.look_at(data));
                Poll::Ready(Some(looked.map(|()| frame)))
            }
            other => other,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
