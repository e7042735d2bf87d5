//! Runs a target over a range of seeds. Its own memory is limited, and somebody looks whether an input hangs.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    process,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::{Random, Target};

/// What a process of this program may have of address space. An input's own needs are far below (the map of a segment
/// of these targets has 64 MiB); a length of 32 bits taken at its word is beyond it.
pub const ADDRESS_SPACE: u64 = 2 << 30;
/// No input takes this long.
const HANG: Duration = Duration::from_secs(30);

/// What a run has done.
#[derive(Debug, Clone, Copy, Default)]
pub struct Done {
    /// Inputs.
    pub inputs: u64,
    /// Those of them that were taken for valid.
    pub valid: u64,
}

/// Limits the process, so that an allocation by an unchecked length ends it.
///
/// # Errors
/// Those of the system.
pub fn limit_memory() -> std::io::Result<()> {
    let most = getrlimit(Resource::As).maximum;
    Ok(setrlimit(Resource::As, Rlimit { current: Some(ADDRESS_SPACE), maximum: most })?)
}

/// Runs inputs from seed `first` on, until there were `most` of them or the time is over.
///
/// # Errors
/// The seed of the first input that panics.
pub fn run(target: &Target, first: u64, most: u64, time: Duration) -> Result<Done, u64> {
    let began = Instant::now();
    let done = Arc::new(AtomicU64::new(0));
    watch(target.name, first, Arc::downgrade(&done));
    let mut valid = 0;
    while done.load(Ordering::Relaxed) < most && began.elapsed() < time {
        let seed = first.wrapping_add(done.load(Ordering::Relaxed));
        match catch_unwind(AssertUnwindSafe(|| (target.run)(&mut Random::new(seed)))) {
            Ok(taken) => valid += u64::from(taken),
            Err(_) => return Err(seed),
        }
        done.fetch_add(1, Ordering::Relaxed);
    }
    Ok(Done { inputs: done.load(Ordering::Relaxed), valid })
}

/// Ends the process if an input takes too long. The thread ends with the run.
fn watch(name: &'static str, first: u64, done: std::sync::Weak<AtomicU64>) {
    thread::spawn(move || {
        let mut last = (0, Instant::now());
        while let Some(now) = done.upgrade().map(|done| done.load(Ordering::Relaxed)) {
            if now != last.0 {
                last = (now, Instant::now());
            } else if last.1.elapsed() > HANG {
                eprintln!("{name}: the input of seed {} hangs", first.wrapping_add(now));
                process::exit(3);
            }
            thread::park_timeout(Duration::from_millis(200));
        }
    });
}
