//! All the unsafe code of Rimstone: read-only shared maps of segment files, and the handler that keeps a bad
//! sector or an outside truncation under one of them from killing the process.
//!
//! Why it is sound to hand out `&[u8]` over a shared file map:
//! - Only ranges below a published end are ever turned into a slice. The end is published (`Release`) after
//!   `pwrite` has put the bytes there, and loaded (`Acquire`) before a slice is made.
//! - Nothing that is published is written, truncated or punched by this process again: segments are append
//!   only, and deletion unlinks the name and leaves the pages.
//! - The data directory is locked against a second server. Another program that changes the file under us
//!   can change bytes that a slice shows; it cannot move or unmap them. The bytes are plain `u8`, are
//!   verified by their check after they are read, and no other invariant rests on them.
//!
//! Nothing is written through a map, so a full disk is an error code of `pwrite`, never a signal.

#![allow(unsafe_code)]

use std::{
    fs::File,
    io,
    sync::{
        Arc, Once,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use memmap2::{MmapOptions, MmapRaw};

/// The most maps at a time: half of Linux's default `vm.max_map_count` (65,530), so that allocator and
/// libraries keep theirs. Beyond it segments are read with `pread`.
const MAPS_MAX: usize = 32_765;

/// One registered map, as the signal handler sees it. `start` 0: free.
struct Slot {
    start: AtomicUsize,
    length: AtomicUsize,
    damaged: AtomicBool,
    taken: AtomicBool,
}

static SLOTS: [Slot; MAPS_MAX] = [const {
    Slot {
        start: AtomicUsize::new(0),
        length: AtomicUsize::new(0),
        damaged: AtomicBool::new(false),
        taken: AtomicBool::new(false),
    }
}; MAPS_MAX];
/// Where the search for a free slot begins, and how far the handler must look.
static SLOTS_USED: AtomicUsize = AtomicUsize::new(0);
static HANDLER: Once = Once::new();

/// A read-only shared map over the whole address range of a segment file. The range may reach beyond the end
/// of the file; only what lies below a published end is touched.
pub(crate) struct Map {
    raw: MmapRaw,
    slot: usize,
}

impl std::fmt::Debug for Map {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Map").field("length", &self.raw.len()).field("damaged", &self.is_damaged()).finish()
    }
}

impl Map {
    /// Maps `capacity` bytes of a file.
    pub(crate) fn new(file: &File, capacity: u64) -> io::Result<Arc<Self>> {
        install_handler();
        let length = usize::try_from(capacity).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        let slot = take_slot().ok_or_else(|| {
            io::Error::new(io::ErrorKind::QuotaExceeded, format!("{MAPS_MAX} maps are open"))
        })?;
        match MmapOptions::new().len(length).map_raw_read_only(file) {
            Ok(raw) => {
                SLOTS[slot].damaged.store(false, Ordering::Relaxed);
                SLOTS[slot].length.store(length, Ordering::Relaxed);
                SLOTS[slot].start.store(raw.as_ptr() as usize, Ordering::Release);
                Ok(Arc::new(Self { raw, slot }))
            }
            Err(error) => {
                SLOTS[slot].taken.store(false, Ordering::Release);
                Err(error)
            }
        }
    }

    /// The bytes from `start` on, kept alive by the map. `published` is the end that was loaded with `Acquire`;
    /// `None` for a range that does not lie below it and below the map's own end.
    pub(crate) fn bytes(self: &Arc<Self>, start: u64, length: usize, published: u64) -> Option<Bytes> {
        let end = start.checked_add(length as u64)?;
        if end > published || end > self.raw.len() as u64 {
            return None;
        }
        Some(Bytes::from_owner(Published { map: Arc::clone(self), start: start as usize, length }))
    }

    /// Whether every page of a range is in memory, so that reading it does not wait for the disk. A hint: it
    /// promises nothing for later.
    pub(crate) fn is_resident(&self, start: u64, length: usize) -> bool {
        let page = rustix::param::page_size();
        let first = start as usize / page * page;
        let end = (start as usize).saturating_add(length).min(self.raw.len());
        if end <= first {
            return true;
        }
        // 256 pages at a time: 1 MiB with the usual page size, without an allocation.
        let mut states = [0u8; 256];
        let mut at = first;
        while at < end {
            let step = (end - at).min(states.len() * page);
            // SAFETY: `at` is page-aligned (a map begins on a page), `at + step` is at most the map's length,
            // and `states` has one byte for each page that the step touches.
            let result = unsafe {
                libc::mincore(self.raw.as_ptr().add(at).cast_mut().cast(), step, states.as_mut_ptr().cast())
            };
            if result != 0 || states[..step.div_ceil(page)].iter().any(|state| state & 1 == 0) {
                return false;
            }
            at += step;
        }
        true
    }

    /// Whether a page of this map could not be read and was replaced by zeros. To be looked at after bytes
    /// were read through the map and before they are called good.
    pub(crate) fn is_damaged(&self) -> bool {
        SLOTS[self.slot].damaged.load(Ordering::Acquire)
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // Before the pages go, so that the handler never touches an address that is somebody else's by then.
        SLOTS[self.slot].start.store(0, Ordering::Release);
        SLOTS[self.slot].taken.store(false, Ordering::Release);
    }
}

/// A published range of a map, as the owner of a [`Bytes`].
struct Published {
    map: Arc<Map>,
    start: usize,
    length: usize,
}

impl AsRef<[u8]> for Published {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: `Map::bytes` checked that the range lies within the map and below the published end, so that
        // the file has these pages; the module's rules say why they do not change. The map lives as long as
        // `self`, and so does the slice.
        unsafe { std::slice::from_raw_parts(self.map.raw.as_ptr().add(self.start), self.length) }
    }
}

fn take_slot() -> Option<usize> {
    SLOTS.iter().enumerate().find_map(|(number, slot)| {
        if slot.taken.load(Ordering::Relaxed) || slot.taken.swap(true, Ordering::AcqRel) {
            return None;
        }
        SLOTS_USED.fetch_max(number + 1, Ordering::AcqRel);
        Some(number)
    })
}

fn install_handler() {
    HANDLER.call_once(|| {
        // SAFETY: `action` is zeroed, which is a valid `sigaction`, and then given a handler of the type that
        // SA_SIGINFO asks for. The handler itself uses only atomics, `mmap` and `sigaction`.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_sigbus as extern "C" fn(_, _, _) as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER;
            libc::sigemptyset(&mut action.sa_mask);
            libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut());
        }
    });
}

/// Replaces the page that could not be read by a page of zeros, marks the map, and lets the read go on. A
/// fault outside our maps gets the default action, which ends the process as it should.
extern "C" fn on_sigbus(_signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid `siginfo_t` to a handler installed with SA_SIGINFO.
    let address = unsafe { (*info).si_addr() } as usize;
    let used = SLOTS_USED.load(Ordering::Acquire).min(MAPS_MAX);
    for slot in &SLOTS[..used] {
        let start = slot.start.load(Ordering::Acquire);
        let length = slot.length.load(Ordering::Relaxed);
        if start == 0 || address < start || address - start >= length {
            continue;
        }
        // 4 KiB is the smallest page of any Linux; with larger pages the kernel refuses the address, and the
        // fault takes the default way.
        let page = address & !0xfff;
        // SAFETY: the page belongs to one of our maps, which is only ever read; MAP_FIXED replaces exactly it.
        let replaced = unsafe {
            libc::mmap(
                page as *mut libc::c_void,
                0x1000,
                libc::PROT_READ,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED,
                -1,
                0,
            )
        };
        if replaced != libc::MAP_FAILED {
            slot.damaged.store(true, Ordering::Release);
            return;
        }
    }
    // SAFETY: a zeroed `sigaction` with SIG_DFL is valid; the instruction faults again and the process ends.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = libc::SIG_DFL;
        libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut());
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write, os::unix::fs::FileExt};

    use super::*;

    #[test]
    fn appended_bytes_show_through_the_map_and_only_below_the_published_end() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"hello").unwrap();
        let map = Map::new(&file, 1 << 20).unwrap();
        assert_eq!(&map.bytes(1, 4, 5).unwrap()[..], b"ello");
        assert!(map.bytes(1, 5, 5).is_none());
        assert!(map.bytes(u64::MAX, 5, 5).is_none());
        file.write_all_at(b" world", 5).unwrap();
        assert_eq!(&map.bytes(0, 11, 11).unwrap()[..], b"hello world");
        assert!(map.is_resident(0, 11));
        let kept = map.bytes(0, 5, 11).unwrap();
        drop(map);
        assert_eq!(&kept[..], b"hello");
    }

    #[test]
    fn a_truncation_from_outside_marks_the_map_and_kills_nobody() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 16384]).unwrap();
        let map = Map::new(&file, 16384).unwrap();
        let bytes = map.bytes(0, 16384, 16384).unwrap();
        assert_eq!(bytes[12288], 7);
        assert!(!map.is_damaged());
        file.set_len(4096).unwrap();
        assert_eq!(bytes[12288], 0);
        assert!(map.is_damaged());
        assert_eq!(bytes[100], 7);
    }
}
