//! Waiting for a condition with a deadline, never for a time.

use std::{future::Future, panic::Location, time::Duration};

use tokio::time::{Instant, sleep, timeout};

/// Everything here answers in milliseconds, on a loaded machine in seconds; this keeps a broken test from
/// hanging.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// How often a condition is looked at.
const LOOK: Duration = Duration::from_millis(5);

/// What a future resolves to.
///
/// # Panics
/// If it does not resolve within [`PATIENCE`].
#[track_caller]
pub fn soon<T>(future: impl Future<Output = T>) -> impl Future<Output = T> {
    let caller = Location::caller();
    async move {
        timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("{caller} waited longer than {PATIENCE:?}"))
    }
}

/// Looks again and again until there is something.
///
/// # Panics
/// If there is nothing within [`PATIENCE`]; `what` says what was waited for.
pub async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = timeout(PATIENCE, look()).await.unwrap_or_else(|_| panic!("{what}: a look hung"))
        {
            return found;
        }
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        sleep(LOOK).await;
    }
}
