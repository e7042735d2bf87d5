//! Reading stored batches, past the generated service: what it would copy into one message leaves here as slices of
//! what the log handed out, between the few bytes that protobuf and gRPC put around them (ADR 0013).
//!
//! Not here: reading records, and all other calls, which go to the generated service.

use std::{
    collections::VecDeque,
    convert::Infallible,
    pin::Pin,
    sync::{Arc, Weak},
    task::{Context, Poll, ready},
    time::Duration,
};

use futures::{Stream, future::BoxFuture, stream};
use http_body::{Body as HttpBody, Frame};
use parking_lot::Mutex;
use prost::{
    Message as _,
    bytes::{BufMut as _, BytesMut},
    encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len},
};
use rimstone_broker::{ChunkContent, Origin, ReadChunk};
use rimstone_proto::v1::{self, consume_service_server::ConsumeServiceServer};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tonic::{
    Code, Status, Streaming,
    body::Body,
    codec::Codec as _,
    codegen::{
        Bytes, Service,
        http::{HeaderMap, HeaderValue, Response, header, request},
    },
    server::NamedService,
};
use tonic_prost::ProstCodec;

use super::{Consume, Reading, log_ends};
use crate::{connection::Peer, status::topic_refusal};

type Inner = ConsumeServiceServer<Consume>;
type HttpRequest = tonic::codegen::http::Request<Body>;

/// The call that is served here.
const READ: &str = "/rimstone.v1.ConsumeService/Read";
/// Says that messages are compressed; the generated service refuses that.
const ENCODING_HEADER: &str = "grpc-encoding";
/// A flag, which says that the message is not compressed, and its length.
const MESSAGE_HEAD_BYTES: usize = 5;
/// Batches below this are copied: a frame of its own costs more than that.
const SLICED_BYTES_MIN: usize = 16 << 10;
/// Smaller messages are copied whole, and go out in one write.
const SLICED_MESSAGE_BYTES_MIN: usize = 64 << 10;

/// How long a client that does not take its message may keep a segment that has been deleted. Those whose segments are
/// still there may take as long as they like.
const KEPT_MAX: Duration = Duration::from_secs(60);
/// How often that is looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);

/// Fields of `ReadResponse`, `PartitionRecords` and `EncodedBatch` (`consume.proto`, `record.proto`).
const RECORDS_FIELD: u32 = 1;
const BATCHES_FIELD: u32 = 3;
const DATA_FIELD: u32 = 1;

/// The consume service, with the way past it.
#[derive(Debug, Clone)]
pub(crate) struct RawReads {
    consume: Consume,
    inner: Inner,
    request_bytes_max: usize,
    response_bytes_max: usize,
}

impl RawReads {
    pub(crate) fn new(consume: Consume, request_bytes_max: usize, response_bytes_max: usize) -> Self {
        let inner = ConsumeServiceServer::new(consume.clone())
            .max_decoding_message_size(request_bytes_max)
            .max_encoding_message_size(response_bytes_max);
        Self { consume, inner, request_bytes_max, response_bytes_max }
    }

    async fn read(mut self, request: HttpRequest) -> Response<Body> {
        let (head, body) = request.into_parts();
        let message = match message(body, self.request_bytes_max).await {
            Ok(message) => message,
            Err(status) => return status.into_http(),
        };
        if message.format != i32::from(v1::RecordFormat::Batches) {
            let answered = self.inner.call(again(head, &message)).await;
            return answered.unwrap_or_else(|never| match never {});
        }
        let breaker = head.extensions.get::<Peer>().map(|peer| peer.breaker.clone()).unwrap_or_default();
        match self.consume.door.answer(self.consume.open_reader(message)).await {
            Ok(reading) => response(reading.into_inner(), self.response_bytes_max, breaker),
            Err(status) => status.into_http(),
        }
    }
}

impl NamedService for RawReads {
    const NAME: &'static str = Inner::NAME;
}

impl Service<HttpRequest> for RawReads {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: HttpRequest) -> Self::Future {
        if request.uri().path() != READ || request.headers().contains_key(ENCODING_HEADER) {
            return self.inner.call(request);
        }
        let this = self.clone();
        Box::pin(async move { Ok(this.read(request).await) })
    }
}

/// The only message of a call.
async fn message(body: Body, bytes_max: usize) -> Result<v1::ReadRequest, Status> {
    let decoder = ProstCodec::<v1::ReadResponse, v1::ReadRequest>::default().decoder();
    let mut messages = Streaming::new_request(decoder, body, None, Some(bytes_max));
    let message = messages.message().await?.ok_or_else(|| Status::internal("Missing request message."))?;
    // The call has no second message: what watches over its body refuses one.
    messages.trailers().await?;
    Ok(message)
}

/// The call as it came, for the generated service.
fn again(head: request::Parts, message: &v1::ReadRequest) -> HttpRequest {
    let mut bytes = BytesMut::new();
    put_message_head(&mut bytes, message.encoded_len());
    // There is always room in a `BytesMut`.
    let _ = message.encode(&mut bytes);
    HttpRequest::from_parts(head, Body::new(Once(Some(bytes.freeze()))))
}

fn response(reading: Reading, bytes_max: usize, breaker: CancellationToken) -> Response<Body> {
    let messages = stream::unfold(reading, move |mut reading| async move {
        let item = match reading.reader.next().await? {
            Ok(chunk) => pieces(chunk, bytes_max).map(|pieces| (pieces, reading.reader.origin())),
            Err(error) => Err(topic_refusal(&error, &reading.topic).into_status()),
        };
        Some((item, reading))
    });
    let taking = Arc::new(Taking::default());
    tokio::spawn(watch(Arc::downgrade(&taking), breaker));
    let messages = Box::pin(messages);
    let body = Answer { messages, ahead: None, pieces: VecDeque::new(), taking, ended: false };
    let mut response = Response::new(Body::new(body));
    let grpc = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert(header::CONTENT_TYPE, grpc);
    response
}

/// The message that the client is taking: since when, and where its bytes come from.
#[derive(Debug, Default)]
struct Taking(Mutex<Option<(Instant, Origin)>>);

impl Taking {
    fn begin(&self, origin: Option<Origin>) {
        *self.0.lock() = origin.map(|origin| (Instant::now(), origin));
    }

    /// Whether it keeps a deleted segment's space for too long.
    fn is_too_slow(&self) -> bool {
        let taking = self.0.lock();
        taking.as_ref().is_some_and(|(since, origin)| since.elapsed() >= KEPT_MAX && origin.may_be_gone())
    }
}

/// Looks after a call from outside: its body is not asked for anything while the client takes nothing.
async fn watch(taking: Weak<Taking>, breaker: CancellationToken) {
    loop {
        sleep(LOOK_INTERVAL).await;
        let Some(taking) = taking.upgrade() else { return };
        if taking.is_too_slow() {
            tracing::warn!(
                seconds = KEPT_MAX.as_secs(),
                "a connection is broken: its client did not take what it reads, and the segment has been deleted"
            );
            breaker.cancel();
            return;
        }
    }
}

fn put_message_head(into: &mut BytesMut, length: usize) {
    into.put_u8(0);
    // Messages are bounded far below 4 GiB by limits.response_bytes.
    into.put_u32(length as u32);
}

fn field_len(field: u32, length: usize) -> usize {
    key_len(field) + encoded_len_varint(length as u64) + length
}

fn put_field_head(field: u32, length: usize, into: &mut BytesMut) {
    encode_key(field, WireType::LengthDelimited, into);
    encode_varint(length as u64, into);
}

/// A `ReadResponse` as it goes over the wire. Fields come in another order than a generated encoder writes them,
/// which protobuf allows.
///
/// # Errors
/// What a generated encoder says of a message that is too long.
fn pieces(chunk: ReadChunk, bytes_max: usize) -> Result<VecDeque<Bytes>, Status> {
    let batches = match chunk.content {
        ChunkContent::Batches(batches) => batches,
        // Only batches are asked for here.
        ChunkContent::Records(_) => Vec::new(),
    };
    let rest = v1::PartitionRecords {
        partition: chunk.partition.0,
        next_offset: chunk.next.get(),
        ends: Some(log_ends(chunk.ends)),
        ..Default::default()
    };
    let time_of = |append_time_ms| v1::EncodedBatch { append_time_ms, data: Bytes::new() };
    let batches: Vec<_> = batches
        .into_iter()
        .map(|read| {
            let (data, time) = (read.batch.bytes().clone(), time_of(read.append_time.as_millis()));
            let length = field_len(DATA_FIELD, data.len()) + time.encoded_len();
            (data, time, length)
        })
        .collect();
    let inside = rest.encoded_len()
        + batches.iter().map(|(.., length)| field_len(BATCHES_FIELD, *length)).sum::<usize>();
    let whole = field_len(RECORDS_FIELD, inside);

    if whole > bytes_max {
        let message =
            format!("encoded message length too large: found {whole} bytes, the limit is: {bytes_max} bytes");
        return Err(Status::out_of_range(message));
    }
    let slices = whole >= SLICED_MESSAGE_BYTES_MIN;
    let is_sliced = |data: &Bytes| slices && data.len() >= SLICED_BYTES_MIN;
    let sliced: usize =
        batches.iter().map(|(data, ..)| data).filter(|data| is_sliced(data)).map(Bytes::len).sum();
    let mut pieces = VecDeque::new();
    let mut copied = BytesMut::with_capacity(MESSAGE_HEAD_BYTES + whole - sliced);
    put_message_head(&mut copied, whole);
    put_field_head(RECORDS_FIELD, inside, &mut copied);
    // There is always room in a `BytesMut`.
    let _ = rest.encode(&mut copied);
    for (data, time, length) in batches {
        put_field_head(BATCHES_FIELD, length, &mut copied);
        let _ = time.encode(&mut copied);
        put_field_head(DATA_FIELD, data.len(), &mut copied);
        if is_sliced(&data) {
            pieces.push_back(copied.split().freeze());
            pieces.push_back(data);
        } else {
            copied.extend_from_slice(&data);
        }
    }
    if !copied.is_empty() {
        pieces.push_back(copied.freeze());
    }
    Ok(pieces)
}

/// A body of one piece.
struct Once(Option<Bytes>);

impl HttpBody for Once {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.take().map(|bytes| Ok(Frame::data(bytes))))
    }
}

/// The pieces of a message, and where their bytes come from.
type Message = (VecDeque<Bytes>, Option<Origin>);
type Messages = Pin<Box<dyn Stream<Item = Result<Message, Status>> + Send>>;

/// The body of an answer: the pieces of one message after the other, and the status behind them.
struct Answer {
    messages: Messages,
    /// What came of reading on while the message under way was taken.
    ahead: Option<Option<Result<Message, Status>>>,
    /// Of the message that is under way.
    pieces: VecDeque<Bytes>,
    taking: Arc<Taking>,
    ended: bool,
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        loop {
            if let Some(piece) = self.pieces.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
            if self.ended {
                return Poll::Ready(None);
            }
            self.taking.begin(None);
            let message = match self.ahead.take() {
                Some(message) => message,
                None => ready!(self.messages.as_mut().poll_next(context)),
            };
            let status = match message {
                Some(Ok((pieces, origin))) => {
                    self.pieces = pieces;
                    self.taking.begin(origin);
                    // If the next message has to come from a disk, it comes while this one is taken.
                    if let Poll::Ready(next) = self.messages.as_mut().poll_next(context) {
                        self.ahead = Some(next);
                    }
                    continue;
                }
                Some(Err(status)) => status,
                None => Status::new(Code::Ok, ""),
            };
            self.ended = true;
            let mut trailers = HeaderMap::new();
            return Poll::Ready(Some(status.add_header(&mut trailers).map(|()| Frame::trailers(trailers))));
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ended && self.pieces.is_empty()
    }
}

#[cfg(test)]
mod tests;
