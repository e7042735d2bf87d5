//! Accepted connections: a bound on their number, and on how long one may say nothing at first.

use std::{
    future::Future as _,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures::stream::{self, Stream};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Sleep, sleep},
};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::Connected;

use crate::open::OpenCalls;

/// A client that connects and then says nothing is closed after this long. Once it has spoken, HTTP/2 pings
/// find out whether it is still there.
const FIRST_BYTES_WAIT_MAX: Duration = Duration::from_secs(10);

/// After a failed accept (no descriptors left, most likely) the next one waits this long, so that the failure
/// does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Accepts connections, at most `connections_max` at a time. Cancelling `kill` breaks those that are open; what they
/// write is told to `open`.
pub(crate) fn accept(
    listener: TcpListener,
    connections_max: usize,
    kill: CancellationToken,
    open: OpenCalls,
) -> impl Stream<Item = io::Result<Connection>> {
    let permits = Arc::new(Semaphore::new(connections_max.min(Semaphore::MAX_PERMITS)));
    stream::unfold((listener, permits, kill, open), move |(listener, permits, kill, open)| async move {
        loop {
            let (stream, peer) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "could not accept a connection");
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Ok(permit) = Arc::clone(&permits).try_acquire_owned() else {
                tracing::warn!(%peer, connections_max, "connection closed: limits.connections is reached");
                continue;
            };
            // Answers are small and waited for; Nagle would hold them back.
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(%peer, %error, "could not set TCP_NODELAY");
            }
            let breaker = kill.child_token();
            let connection = Connection {
                stream,
                silence: Some(Box::pin(sleep(FIRST_BYTES_WAIT_MAX))),
                killed: Box::pin(breaker.clone().cancelled_owned()),
                open: open.clone(),
                peer: Peer { address: peer, breaker },
                _permit: permit,
            };
            return Some((Ok(connection), (listener, permits, kill, open)));
        }
    })
}

/// What a call knows of its connection.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    /// The other side.
    pub(crate) address: SocketAddr,
    /// Cancelling it breaks the connection, with all its calls.
    pub(crate) breaker: CancellationToken,
}

/// One connection; it counts against the bound until it is dropped.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
    /// Runs until the first bytes come.
    silence: Option<Pin<Box<Sleep>>>,
    /// Resolves when the drain has taken too long. A reading is always pending on an HTTP/2 connection, so
    /// that looking at it there is enough.
    killed: Pin<Box<WaitForCancellationFutureOwned>>,
    open: OpenCalls,
    peer: Peer,
    _permit: OwnedSemaphorePermit,
}

impl Connection {
    fn wrote(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = written {
            self.open.went_out(bytes);
        }
        written
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.killed.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        let answer = Pin::new(&mut self.stream).poll_read(context, buffer);
        let Some(silence) = &mut self.silence else { return answer };
        if answer.is_ready() {
            self.silence = None;
            return answer;
        }
        silence.as_mut().poll(context).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.wrote(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.wrote(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
