//! `ProduceService` as HTTP calls: what the generated service does, with messages whose records are still encoded.

use std::{
    convert::Infallible,
    future::ready,
    sync::Arc,
    task::{Context, Poll},
};

use futures::future::BoxFuture;
use rimstone_proto::v1::{self, produce_service_server::SERVICE_NAME};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Request, Response, Status, Streaming,
    body::Body,
    codec::Codec,
    codegen::{Service, http},
    server::{Grpc, NamedService},
};
use tonic_prost::ProstCodec;
use tower::service_fn;

use super::{
    Produce,
    wire::{WireCodec, WireRequest, WireStreamRequest},
};

const INIT_PRODUCER: &str = "/rimstone.v1.ProduceService/InitProducer";
const PRODUCE: &str = "/rimstone.v1.ProduceService/Produce";
const PRODUCE_STREAM: &str = "/rimstone.v1.ProduceService/ProduceStream";

/// The service, with the bounds of its messages in bytes.
#[derive(Debug, Clone)]
pub(crate) struct ProduceDoor {
    produce: Arc<Produce>,
    request_bytes_max: usize,
    response_bytes_max: usize,
}

impl ProduceDoor {
    pub(crate) fn new(produce: Produce, request_bytes_max: usize, response_bytes_max: usize) -> Self {
        Self { produce: Arc::new(produce), request_bytes_max, response_bytes_max }
    }

    fn calls<C: Codec>(&self, codec: C) -> Grpc<C> {
        Grpc::new(codec)
            .max_decoding_message_size(self.request_bytes_max)
            .max_encoding_message_size(self.response_bytes_max)
    }

    async fn init_producer(self, request: http::Request<Body>) -> http::Response<Body> {
        let produce = &self.produce;
        let call = service_fn(|request: Request<v1::InitProducerRequest>| {
            let produce = Arc::clone(produce);
            async move { produce.door.answer(produce.init(request.into_inner())).await }
        });
        self.calls(ProstCodec::default()).unary(call, request).await
    }

    async fn produce(self, request: http::Request<Body>) -> http::Response<Body> {
        let produce = &self.produce;
        let call = service_fn(|request: Request<WireRequest>| {
            let produce = Arc::clone(produce);
            async move { produce.answer(request).await }
        });
        self.calls(WireCodec).unary(call, request).await
    }

    async fn produce_stream(self, request: http::Request<Body>) -> http::Response<Body> {
        let produce = &self.produce;
        let call = service_fn(|request: Request<Streaming<WireStreamRequest>>| {
            ready(Ok::<_, Status>(Response::new(ReceiverStream::new(produce.stream(request)))))
        });
        self.calls(ProstCodec::default()).streaming(call, request).await
    }
}

impl NamedService for ProduceDoor {
    const NAME: &'static str = SERVICE_NAME;
}

impl Service<http::Request<Body>> for ProduceDoor {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let this = self.clone();
        match request.uri().path() {
            PRODUCE => Box::pin(async move { Ok(this.produce(request).await) }),
            PRODUCE_STREAM => Box::pin(async move { Ok(this.produce_stream(request).await) }),
            INIT_PRODUCER => Box::pin(async move { Ok(this.init_producer(request).await) }),
            _ => Box::pin(ready(Ok(Status::unimplemented("").into_http()))),
        }
    }
}
