//! The disk reserve: appends stop before the disk is full, so that the server's own records, and what frees
//! space, still find room.

use std::{
    fs::File,
    os::fd::AsFd,
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use rimstone_types::ByteCount;

/// How long a look at the free space counts.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// Watches the free space of a device.
#[derive(Debug)]
pub(crate) struct DiskGuard {
    directory: File,
    reserve: ByteCount,
    began: Instant,
    /// Milliseconds since `began` at which the free space was last looked at, plus 1; 0: never.
    looked_ms: AtomicU64,
    /// Free bytes when they were looked at, less what was taken since.
    free: AtomicU64,
    #[cfg(test)]
    pretended: parking_lot::Mutex<Option<u64>>,
}

impl DiskGuard {
    pub(crate) fn new(path: &Path, reserve: ByteCount) -> std::io::Result<Self> {
        Ok(Self {
            directory: File::open(path)?,
            reserve,
            began: Instant::now(),
            looked_ms: AtomicU64::new(0),
            free: AtomicU64::new(u64::MAX),
            #[cfg(test)]
            pretended: parking_lot::Mutex::default(),
        })
    }

    /// Takes so many bytes, if the reserve stays whole.
    ///
    /// # Errors
    /// The free bytes and the reserve.
    pub(crate) fn take(&self, bytes: ByteCount) -> Result<(), (ByteCount, ByteCount)> {
        self.look();
        self.take_down_to(self.reserve.get(), bytes)
    }

    fn take_down_to(&self, least: u64, bytes: ByteCount) -> Result<(), (ByteCount, ByteCount)> {
        // What is taken counts at once: a fast writer fills a reserve between two looks.
        let take = |free: u64| {
            let left = free.saturating_sub(bytes.get());
            (left >= least).then_some(left)
        };
        let taken = self.free.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take);
        taken.map(drop).map_err(|free| (ByteCount(free), self.reserve))
    }

    /// Whether so many bytes more leave half of the reserve: for what frees space in the end. Looks at the device
    /// itself, for what was freed a moment ago counts.
    ///
    /// # Errors
    /// The free bytes and the reserve.
    pub(crate) fn spare(&self, bytes: ByteCount) -> Result<(), (ByteCount, ByteCount)> {
        self.look_now();
        let free = self.free.load(Ordering::Relaxed);
        if free.saturating_sub(bytes.get()) >= self.reserve.get() / 2 {
            return Ok(());
        }
        Err((ByteCount(free), self.reserve))
    }

    /// Takes so many bytes, if half of the reserve stays: for what frees space in the end.
    ///
    /// # Errors
    /// The free bytes and the reserve.
    pub(crate) fn take_spare(&self, bytes: ByteCount) -> Result<(), (ByteCount, ByteCount)> {
        self.look();
        self.take_down_to(self.reserve.get() / 2, bytes)
    }

    /// The free bytes, if they are below the reserve.
    pub(crate) fn below_reserve(&self) -> Option<(ByteCount, ByteCount)> {
        self.look();
        let free = self.free.load(Ordering::Relaxed);
        (free < self.reserve.get()).then_some((ByteCount(free), self.reserve))
    }

    /// Looks at the device, unless that was done a moment ago.
    fn look(&self) {
        let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX - 1) + 1;
        let looked = self.looked_ms.load(Ordering::Relaxed);
        if looked == 0 || now - looked.min(now) >= LOOK_INTERVAL.as_millis() as u64 {
            self.looked_ms.store(now, Ordering::Relaxed);
            self.look_now();
        }
    }

    fn look_now(&self) {
        #[cfg(test)]
        if let Some(free) = *self.pretended.lock() {
            return self.free.store(free, Ordering::Relaxed);
        }
        if let Ok(state) = rustix::fs::fstatvfs(self.directory.as_fd()) {
            self.free.store(state.f_bavail.saturating_mul(state.f_frsize), Ordering::Relaxed);
        }
    }

    /// From now on the device says that so many bytes are free.
    #[cfg(test)]
    pub(crate) fn pretend(&self, free: u64) {
        *self.pretended.lock() = Some(free);
        self.look_now();
    }
}
