//! The in-flight budget: bytes of produce requests that the server holds at one time.

use std::sync::Arc;

use rimstone_types::ByteCount;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError};
use tokio_util::sync::CancellationToken;

use crate::error::{LimitReached, NoRoom, ReserveError, ShuttingDown};

/// Room in the in-flight budget; given back when dropped.
#[derive(Debug)]
pub struct Reservation {
    permit: OwnedSemaphorePermit,
}

impl Reservation {
    /// How much it is.
    pub fn bytes(&self) -> ByteCount {
        ByteCount(self.permit.num_permits() as u64)
    }

    /// Makes one of two.
    pub fn add(&mut self, more: Self) {
        self.permit.merge(more.permit);
    }
}

#[derive(Debug)]
pub(crate) struct Budget {
    semaphore: Arc<Semaphore>,
    total: u32,
}

impl Budget {
    pub(crate) fn new(total: ByteCount) -> Self {
        // A permit is a byte, and the semaphore takes 32-bit numbers of permits at once: 4 GiB is the most.
        let total = u32::try_from(total.get()).unwrap_or(u32::MAX);
        Self { semaphore: Arc::new(Semaphore::new(total as usize)), total }
    }

    pub(crate) fn in_flight(&self) -> ByteCount {
        ByteCount((self.total as usize - self.semaphore.available_permits()) as u64)
    }

    pub(crate) fn limit(&self) -> ByteCount {
        ByteCount(u64::from(self.total))
    }

    fn permits(&self, bytes: ByteCount) -> Result<u32, LimitReached> {
        u32::try_from(bytes.get())
            .ok()
            .filter(|bytes| *bytes <= self.total)
            .ok_or(LimitReached { what: "bytes in flight", limit: u64::from(self.total) })
    }

    pub(crate) fn try_reserve(&self, bytes: ByteCount) -> Result<Reservation, ReserveError> {
        match Arc::clone(&self.semaphore).try_acquire_many_owned(self.permits(bytes)?) {
            Ok(permit) => Ok(Reservation { permit }),
            Err(TryAcquireError::NoPermits) => Err(NoRoom::bytes(bytes, self.limit()).into()),
            Err(TryAcquireError::Closed) => Err(ShuttingDown.into()),
        }
    }

    pub(crate) async fn reserve(
        &self,
        bytes: ByteCount,
        shutdown: &CancellationToken,
    ) -> Result<Reservation, ReserveError> {
        let permits = self.permits(bytes)?;
        tokio::select! {
            biased;
            () = shutdown.cancelled() => Err(ShuttingDown.into()),
            permit = Arc::clone(&self.semaphore).acquire_many_owned(permits) => {
                Ok(Reservation { permit: permit.map_err(|_| ShuttingDown)? })
            }
        }
    }
}
