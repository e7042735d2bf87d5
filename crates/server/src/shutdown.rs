//! The life of a server process: start, wait for a signal, stop in order, or at once on the second signal.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::{
    config::Config,
    wire::{StartedServer, start},
};

/// How a server process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Everything acknowledged is durable, and the data directory is marked clean.
    Clean,
    /// A second signal came: as if it had been killed. The next start recovers.
    AtOnce,
}

/// Runs a server until SIGINT or SIGTERM. `started` is called once it listens.
///
/// After [`Ended::AtOnce`] tasks are still running: the caller should end the process without waiting for
/// them.
///
/// # Errors
/// If the server could not start, failed while it ran, or could not be closed cleanly.
pub async fn run(config: Config, started: impl FnOnce(&StartedServer)) -> anyhow::Result<Ended> {
    let mut signals = Signals::new()?;
    let mut server = tokio::select! {
        server = start(config) => server?,
        name = signals.next() => {
            // Recovery only reads and repairs; leaving it in the middle is no worse than a power cut.
            tracing::info!(signal = name, "stopped while starting");
            return Ok(Ended::AtOnce);
        }
    };
    started(&server);
    let failed = tokio::select! {
        name = signals.next() => {
            tracing::info!(signal = name, "stopping; a second signal ends at once");
            None
        }
        error = server.failed() => {
            tracing::error!(%error, "stopping: a door failed");
            Some(error)
        }
    };
    tokio::select! {
        stopped = server.stop() => stopped?,
        name = signals.next() => {
            tracing::warn!(signal = name, "ended at once; the next start recovers");
            return Ok(Ended::AtOnce);
        }
    }
    match failed {
        Some(error) => Err(error.into()),
        None => Ok(Ended::Clean),
    }
}

/// The signals that ask for an end.
#[derive(Debug)]
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
        }
    }
}
