//! The web server: one listener, bounded connections, an end that does not wait for ever.

use std::{io, time::Duration};

use rimstone_broker::Broker;
use tokio::{net::TcpListener, sync::watch, time::sleep};
use tokio_util::sync::CancellationToken;

use crate::{connection::BoundedListener, pages};

/// How long answers that have begun may take once the server stops.
const DRAIN_DEADLINE: Duration = Duration::from_secs(2);

/// How far the server is.
#[derive(Debug, Clone)]
pub enum Phase {
    /// It opens its data.
    Starting,
    /// The broker is there; it knows itself whether it is ready.
    Serving(Broker),
}

/// Serves until `stop` is cancelled.
///
/// # Errors
/// If the listener breaks.
pub async fn serve(
    listener: TcpListener,
    phase: watch::Receiver<Phase>,
    stop: CancellationToken,
) -> io::Result<()> {
    let drained = stop.clone();
    let server = axum::serve(BoundedListener::new(listener), pages::router(phase))
        .with_graceful_shutdown(stop.cancelled_owned());
    tokio::select! {
        ended = server => ended,
        () = async { drained.cancelled().await; sleep(DRAIN_DEADLINE).await } => Ok(()),
    }
}
