//! Calls that wait for their answers, so that a stop knows when there are none: connections of clients that do not
//! read would keep it until its deadline. Not here: ending calls (the services, from the broker's token).

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures::future::BoxFuture;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::{sync::Notify, time::sleep};
use tonic::{
    Status,
    body::Body,
    codegen::{
        Bytes, Service,
        http::{Request, Response},
    },
};
use tower::Layer;

/// Streams that end by the token, whatever they were about to send, and services of the transport. Whoever does
/// not read them is not waited for; everything else has an answer to give.
const NOT_WAITED_FOR: [&str; 3] =
    ["/rimstone.v1.ConsumeService/Consume", "/rimstone.v1.ConsumeService/Read", "/grpc."];

/// When there is nothing left to answer, who reads has its last words within this; others do not read.
const FAREWELL: Duration = Duration::from_secs(1);

/// The calls of all connections.
#[derive(Debug, Clone, Default)]
pub(crate) struct OpenCalls(Arc<Calls>);

#[derive(Debug, Default)]
struct Calls {
    count: AtomicUsize,
    none: Notify,
}

/// One call, until its answer has been taken.
#[derive(Debug)]
struct OpenCall(Arc<Calls>);

impl OpenCalls {
    fn begin(&self, path: &str) -> Option<OpenCall> {
        if NOT_WAITED_FOR.iter().any(|stream| path.starts_with(stream)) {
            return None;
        }
        self.0.count.fetch_add(1, Ordering::AcqRel);
        Some(OpenCall(Arc::clone(&self.0)))
    }

    fn are_none(&self) -> bool {
        self.0.count.load(Ordering::Acquire) == 0
    }

    /// Resolves when there are none, and clients have had the time to take what they were told.
    pub(crate) async fn answered(&self) {
        loop {
            let none = self.0.none.notified();
            if !self.are_none() {
                none.await;
                continue;
            }
            sleep(FAREWELL).await;
            if self.are_none() {
                return;
            }
        }
    }
}

impl Drop for OpenCall {
    fn drop(&mut self) {
        if self.0.count.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.none.notify_waiters();
        }
    }
}

impl<S> Layer<S> for OpenCalls {
    type Service = Counted<S>;

    fn layer(&self, service: S) -> Counted<S> {
        Counted { calls: self.clone(), service }
    }
}

/// A service whose calls are counted.
#[derive(Debug, Clone)]
pub(crate) struct Counted<S> {
    calls: OpenCalls,
    service: S,
}

impl<S> Service<Request<Body>> for Counted<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Response<Body>, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let open = self.calls.begin(request.uri().path());
        let answer = self.service.call(request);
        Box::pin(async move { Ok(answer.await?.map(|body| Body::new(Answer { body, _open: open }))) })
    }
}

/// The body of an answer; when it is dropped, it has been taken, or nobody is there to take it.
struct Answer {
    body: Body,
    _open: Option<OpenCall>,
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_is_over_when_the_last_answer_was_taken_and_nobody_asked_again() {
        let calls = OpenCalls::default();
        let streams = ["/rimstone.v1.ConsumeService/Consume", "/grpc.health.v1.Health/Watch"];
        assert!(streams.iter().all(|path| calls.begin(path).is_none()));
        let begin = Instant::now();
        let asks = async {
            let first = calls.begin("/rimstone.v1.ProduceService/ProduceStream");
            sleep(Duration::from_secs(3)).await;
            drop(first);
            sleep(FAREWELL / 2).await;
            let again = calls.begin("/rimstone.v1.ConsumeService/Fetch");
            sleep(Duration::from_secs(5)).await;
            drop(again);
        };
        tokio::join!(asks, async {
            tokio::task::yield_now().await;
            calls.answered().await;
        });
        assert_eq!(
            begin.elapsed(),
            Duration::from_secs(3) + FAREWELL / 2 + Duration::from_secs(5) + FAREWELL
        );
    }
}
