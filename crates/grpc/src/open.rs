//! Calls that wait for their answers, and when something last went out to a client, so that a stop knows when there
//! is nothing left to give: connections of clients that do not read would keep it until its deadline. Not here: ending
//! calls (the services, from the broker's token).

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures::future::BoxFuture;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};
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
/// not read them is not waited for; everything else has an answer to give. A member that leaves has one too: its
/// session counts itself meanwhile.
const NOT_WAITED_FOR: [&str; 3] =
    ["/rimstone.v1.ConsumeService/Consume", "/rimstone.v1.ConsumeService/Read", "/grpc."];

/// Where nothing is asked, answered or taken for this long, who is left does not read. An answer waits in the
/// connection after its call has ended, and a slow link takes it in steps: what the system holds of it, some MiB, goes
/// out before there is room for more.
const FAREWELL: Duration = Duration::from_secs(3);

/// A write no longer than a ping, or the answer to one, shows nothing: clients whose programs hang exchange them.
const PING_BYTES: usize = 17;

/// The calls of all connections.
#[derive(Debug, Clone, Default)]
pub(crate) struct OpenCalls(Arc<Calls>);

#[derive(Debug)]
struct Calls {
    count: AtomicUsize,
    none: Notify,
    /// When a call last began or ended, or bytes went out: nanoseconds after `since`.
    moved: AtomicU64,
    since: Instant,
}

impl Default for Calls {
    fn default() -> Self {
        let (count, none, moved) = Default::default();
        Self { count, none, moved, since: Instant::now() }
    }
}

impl Calls {
    fn moves(&self) {
        let nanos = self.since.elapsed().as_nanos();
        // Enough for five centuries.
        self.moved.fetch_max(u64::try_from(nanos).unwrap_or(u64::MAX), Ordering::AcqRel);
    }
}

/// One call, until its answer has been handed to the connection.
#[derive(Debug)]
pub(crate) struct OpenCall(Arc<Calls>);

impl OpenCalls {
    fn begin(&self, path: &str) -> Option<OpenCall> {
        (!NOT_WAITED_FOR.iter().any(|stream| path.starts_with(stream))).then(|| self.hold())
    }

    /// Counts what has an answer to give within a stream that is not waited for.
    pub(crate) fn hold(&self) -> OpenCall {
        self.0.count.fetch_add(1, Ordering::AcqRel);
        self.0.moves();
        OpenCall(Arc::clone(&self.0))
    }

    /// A connection took so many bytes.
    pub(crate) fn went_out(&self, bytes: usize) {
        if bytes > PING_BYTES {
            self.0.moves();
        }
    }

    /// Resolves when there are none, and clients have had the time to take what they were told: those that take
    /// something all the time.
    pub(crate) async fn answered(&self) {
        let asked = Instant::now();
        loop {
            let none = self.0.none.notified();
            if self.0.count.load(Ordering::Acquire) > 0 {
                none.await;
                continue;
            }
            let moved = self.0.since + Duration::from_nanos(self.0.moved.load(Ordering::Acquire));
            let quiet = moved.max(asked) + FAREWELL;
            if quiet <= Instant::now() {
                return;
            }
            sleep_until(quiet).await;
        }
    }
}

impl Drop for OpenCall {
    fn drop(&mut self) {
        self.0.moves();
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

/// The body of an answer; when it is dropped, all of it is with the connection, or nobody is there to take it.
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
    use tokio::time::sleep;

    use super::*;

    const FETCH: &str = "/rimstone.v1.ConsumeService/Fetch";

    /// How long it takes until everything is answered, while `happens`.
    async fn answered_while(calls: &OpenCalls, happens: impl Future<Output = ()>) -> Duration {
        let begin = Instant::now();
        let answered = async {
            tokio::task::yield_now().await;
            calls.answered().await;
            begin.elapsed()
        };
        tokio::join!(happens, answered).1
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_over_when_the_last_answer_was_given_and_nobody_asked_again() {
        let calls = OpenCalls::default();
        let streams = ["/rimstone.v1.ConsumeService/Consume", "/grpc.health.v1.Health/Watch"];
        assert!(streams.iter().all(|path| calls.begin(path).is_none()));
        let answered = answered_while(&calls, async {
            let first = calls.begin("/rimstone.v1.ProduceService/ProduceStream");
            sleep(Duration::from_secs(3)).await;
            drop(first);
            sleep(FAREWELL / 2).await;
            let again = calls.begin(FETCH);
            sleep(Duration::from_secs(5)).await;
            drop(again);
        });
        assert_eq!(answered.await, Duration::from_secs(3) + FAREWELL / 2 + Duration::from_secs(5) + FAREWELL);
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_begins_and_ends_unseen_has_its_farewell() {
        let calls = OpenCalls::default();
        let answered = answered_while(&calls, async {
            sleep(FAREWELL / 4).await;
            let call = calls.begin(FETCH);
            sleep(FAREWELL / 2).await;
            drop(call);
        });
        assert_eq!(answered.await, FAREWELL / 4 + FAREWELL / 2 + FAREWELL);
    }

    /// Whoever takes something has not had everything yet; pings are nothing.
    #[tokio::test(start_paused = true)]
    async fn as_long_as_bytes_go_out_it_is_not_over() {
        let calls = OpenCalls::default();
        drop(calls.begin(FETCH));
        sleep(10 * FAREWELL).await;
        let step = FAREWELL * 3 / 4;
        let answered = answered_while(&calls, async {
            for _ in 0..5 {
                sleep(step).await;
                calls.went_out(PING_BYTES + 1);
            }
            for _ in 0..5 {
                sleep(step).await;
                calls.went_out(PING_BYTES);
            }
        });
        assert_eq!(answered.await, 5 * step + FAREWELL);
    }
}
